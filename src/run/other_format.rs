//! What a file that is named as weights and is no safetensors file is instead, as far as its first
//! bytes tell.

/// A format that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OtherFormat {
    /// What the file is, with its article.
    pub name: &'static str,
    /// How to get at the weights.
    pub hint: &'static str,
}

/// An archive (ZIP) or a stream of pickled objects, as `torch.save` writes it.
const PYTORCH: OtherFormat = OtherFormat {
    name: "in PyTorch's own format",
    // Lightning keeps the weights under `state_dict`.
    hint: "three lines of Python convert it:
    import torch, safetensors.torch
    state = torch.load(\"FILE\", map_location=\"cpu\", weights_only=True)
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in \
state.get(\"state_dict\", state).items()}, \"FILE.safetensors\")",
};

const NPZ: OtherFormat = OtherFormat {
    name: "an archive of NumPy arrays (.npz)",
    hint: "two lines of Python convert it:
    import numpy, safetensors.numpy
    safetensors.numpy.save_file(dict(numpy.load(\"FILE\")), \"FILE.safetensors\")",
};

/// For those who have the weights in a program that can write them.
const SAVE: &str = "load it with the program that wrote it, and save its tensors by name with \
    `safetensors.torch.save_file` or `safetensors.numpy.save_file`";

const UNPACK: &str = "unpack it, and name the weights in it";

/// What a file begins with, what it then is, and what to do.
const MAGIC: [(&[u8], &str, &str); 13] = [
    (b"PK\x03\x04", "a ZIP archive", UNPACK),
    (b"PK\x05\x06", "an empty ZIP archive", SAVE),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (.h5), as Keras writes it", SAVE),
    (b"GGUF", "a GGUF file", SAVE),
    (b"\x93NUMPY", "one NumPy array (.npy)", SAVE),
    (b"\x1f\x8b", "compressed with gzip", UNPACK),
    (b"\xfd7zXZ\0", "compressed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", UNPACK),
    (b"BZh", "compressed with bzip2", UNPACK),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, not the file that it stands for",
        "`git lfs pull` in its repository fetches the file",
    ),
    (b"<!DOCTYPE", "a web page", PAGE),
    (b"<!doctype", "a web page", PAGE),
    (b"<html", "a web page", PAGE),
];

const PAGE: &str = "the download answered with a page; fetch the file itself";

/// What `torch.save` wrote before it wrote archives: this number, pickled.
const PYTORCH_MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

impl OtherFormat {
    /// Bytes of a file that [`OtherFormat::of`] looks at.
    pub const BYTES: u64 = 512;

    /// The format of a file by its first bytes; `None` if it may be a safetensors file, or is
    /// nothing that is known.
    pub fn of(head: &[u8]) -> Option<Self> {
        // Behind its length the header of a safetensors file begins.
        if head.get(8) == Some(&b'{') {
            return None;
        }
        let by_magic = MAGIC.iter().find(|(magic, ..)| head.starts_with(magic));
        if let Some((magic, name, hint)) = by_magic {
            let archive = if *magic == b"PK\x03\x04" { archive(head) } else { None };
            return Some(archive.unwrap_or(Self { name, hint }));
        }
        if head.get(4..8) == Some(b"TFL3") {
            return Some(Self { name: "a TensorFlow Lite model", hint: SAVE });
        }
        if head.get(257..262) == Some(b"ustar") {
            return Some(Self { name: "a tar archive", hint: UNPACK });
        }
        match head {
            // A pickle of protocol 2 to 5.
            [0x80, 2..=5, ..] => {
                let start = &head[..head.len().min(64)];
                let torch = start.windows(PYTORCH_MAGIC.len()).any(|part| part == PYTORCH_MAGIC);
                Some(if torch { PYTORCH } else { Self { name: "a Python pickle", hint: SAVE } })
            }
            // Protocol buffers have no magic: the first field of an ONNX model is its version, and
            // one that is a text or a message follows.
            [0x08, 1..=32, 0x12 | 0x1a | 0x3a, ..] => {
                Some(Self { name: "an ONNX model, it seems", hint: SAVE })
            }
            _ => None,
        }
    }
}

/// What a ZIP archive holds, by the name of its first entry.
fn archive(head: &[u8]) -> Option<OtherFormat> {
    let length = head.get(26..28)?;
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    let name = head.get(30..)?;
    let name = &name[..length.min(name.len())];
    if name.ends_with(b".npy") {
        return Some(NPZ);
    }
    // One folder, of the name of the file; scripts have their tensors before the pickle.
    let inner = &name[name.iter().position(|byte| *byte == b'/')? + 1..];
    let torch: [&[u8]; 7] =
        [b"data.pkl", b"data/", b"version", b"byteorder", b"constants", b"code/", b"extra/"];
    torch.iter().any(|part| inner.starts_with(part)).then_some(PYTORCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a ZIP archive whose first entry has a name.
    fn zip(name: &str) -> Vec<u8> {
        let mut head = b"PK\x03\x04".to_vec();
        head.resize(26, 0);
        head.extend((name.len() as u16).to_le_bytes());
        head.extend([0, 0]);
        head.extend(name.as_bytes());
        head
    }

    #[test]
    fn formats_are_told_by_their_first_bytes() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let cases: [(&[u8], &str); 21] = [
            (&zip("archive/data.pkl"), "PyTorch's own"),
            (&zip("my model/data/0"), "PyTorch's own"),
            (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M", "PyTorch's own"),
            (b"\x80\x04\x95\x0d\0\0\0\0\0\0\0\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", "PyTorch's own"),
            (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94", "a Python pickle"),
            (&zip("weight.npy"), "NumPy arrays"),
            (&zip("metadata.json"), "a ZIP archive"),
            (b"PK\x03\x04\x14", "a ZIP archive"),
            (b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "an empty ZIP"),
            (b"\x89HDF\r\n\x1a\n\0\0\0\0", "an HDF5 file"),
            (b"GGUF\x03\0\0\0\x10\0\0\0", "a GGUF file"),
            (b"\x93NUMPY\x01\0v\0{'descr'", "one NumPy array"),
            (b"\x08\x08\x12\x07pytorch\x1a\x05", "an ONNX model"),
            (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "gzip"),
            (b"\xfd7zXZ\0\0\x04", "xz"),
            (b"\x28\xb5\x2f\xfd\x04\0", "zstd"),
            (b"BZh91AY&SY", "bzip2"),
            (b"\x1c\0\0\0TFL3\0\0", "TensorFlow Lite"),
            (&tar, "a tar archive"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "Git LFS"),
            (b"<!DOCTYPE html><html>", "a web page"),
        ];
        for (head, says) in cases {
            let found = OtherFormat::of(head).unwrap_or_else(|| panic!("{says} is not told"));
            assert!(found.name.contains(says), "{} for {says}", found.name);
        }
        // Whatever the length of its header, a safetensors file is none of these.
        for length in [0x0008_8b1f_u64, 0x0608, 0x0012_0808, 2, 0x0280] {
            let head = [&length.to_le_bytes()[..], b"{\"a\":{}}"].concat();
            assert_eq!(OtherFormat::of(&head), None);
        }
        for other in [&b""[..], b"x", b"some text of eight bytes"] {
            assert_eq!(OtherFormat::of(other), None);
        }
    }
}
