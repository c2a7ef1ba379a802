//! Checkpoints: safetensors files that are whole or absent, and say so when they are not.
//!
//! A process killed at any instant leaves the previous file ([`disk::replace`]). The same content
//! gives the same bytes. Beside the caller's own entries the metadata holds
//!
//! | key | value |
//! |---|---|
//! | `format_version` | `"1"` |
//! | `sha256` | [`Checkpoint::digest`]: names, types, shapes and data |
//! | `sha256_meta` | the same over all other metadata |
//!
//! so that any flipped bit is found. Files without these (PyTorch users') are read without the
//! check; their f64, f16 and bf16 tensors become f32.

use std::collections::BTreeMap;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use sha2::{Digest, Sha256};

use super::other_format::OtherFormat;
use crate::disk::{self, DiskError};

/// Version of the layout that [`Checkpoint::save`] writes; newer ones are refused.
const FORMAT_VERSION: u32 = 1;

const VERSION_KEY: &str = "format_version";
const DIGEST_KEY: &str = "sha256";
const META_DIGEST_KEY: &str = "sha256_meta";
/// Longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;

/// Elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// 32-bit floats, row by row.
    F32(Vec<f32>),
    /// 64-bit integers: counters and labels.
    I64(Vec<i64>),
}

impl TensorData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(data) => data.len(),
            Self::I64(data) => data.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::I64(_) => Dtype::I64,
        }
    }

    fn bytes(&self) -> usize {
        self.len() * self.dtype().bitsize() / 8
    }

    /// Hands the elements to `sink` as little-endian bytes, a few KiB at a time.
    fn stream(&self, mut sink: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        const STEP: usize = 4096;
        let mut buffer = Vec::with_capacity(STEP * 8);
        let mut emit = |fill: &mut dyn FnMut(&mut Vec<u8>)| {
            buffer.clear();
            fill(&mut buffer);
            sink(&buffer)
        };
        match self {
            Self::F32(data) => data
                .chunks(STEP)
                .try_for_each(|c| emit(&mut |b| b.extend(c.iter().flat_map(|v| v.to_le_bytes())))),
            Self::I64(data) => data
                .chunks(STEP)
                .try_for_each(|c| emit(&mut |b| b.extend(c.iter().flat_map(|v| v.to_le_bytes())))),
        }
    }
}

/// A tensor of a checkpoint, with the shape that PyTorch gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many elements as the extents' product.
    pub data: TensorData,
}

impl NamedTensor {
    /// An f32 tensor.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        Self { shape: shape.to_vec(), data: TensorData::F32(data) }
    }

    /// An i64 tensor.
    pub fn i64(shape: &[usize], data: Vec<i64>) -> Self {
        Self { shape: shape.to_vec(), data: TensorData::I64(data) }
    }
}

/// Tensors and text by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Checkpoint {
    /// Tensors by name.
    pub tensors: BTreeMap<String, NamedTensor>,
    /// The caller's metadata; the keys in the head of this module are added when saving and taken
    /// away when loading.
    pub meta: BTreeMap<String, String>,
}

/// What can go wrong with a checkpoint. The message names the file and the numbers.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused an operation.
    #[error(transparent)]
    Io(#[from] DiskError),
    /// There is no such file.
    #[error("no checkpoint at `{}`", crate::text::name(path))]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("`{}` ({bytes} bytes) is not a safetensors file: {reason}", crate::text::name(path))]
    NotSafetensors {
        /// Path of the file.
        path: PathBuf,
        /// Length of the file in bytes.
        bytes: u64,
        /// What does not fit.
        reason: String,
    },
    /// The file is in another format that weights, or downloads, come in.
    #[error(
        "`{}` is {}; weights are read from safetensors files",
        crate::text::name(path),
        format.name
    )]
    OtherFormat {
        /// Path of the file.
        path: PathBuf,
        /// Which format it is.
        format: OtherFormat,
    },
    /// The file has another length than its header says.
    #[error(
        "`{}` is {}: it has {bytes} bytes, its header asks for {expected}",
        crate::text::name(path),
        if bytes < expected { "truncated" } else { "too long" }
    )]
    Length {
        /// Path of the file.
        path: PathBuf,
        /// Length of the file in bytes.
        bytes: u64,
        /// Length according to its header.
        expected: u64,
    },
    /// The content is not what was written.
    #[error(
        "`{}` is damaged: the SHA-256 of its {what} is {found}, recorded was \
        {expected}",
        crate::text::name(path)
    )]
    Digest {
        /// Path of the file.
        path: PathBuf,
        /// "tensors" or "metadata".
        what: &'static str,
        /// The digest in the metadata.
        expected: String,
        /// The digest of what was read.
        found: String,
    },
    /// A newer program wrote the file.
    #[error(
        "`{}` has format version {found}; this program reads up to \
        {FORMAT_VERSION}",
        crate::text::name(path)
    )]
    Version {
        /// Path of the file.
        path: PathBuf,
        /// Version of the format that it says it has.
        found: String,
    },
    /// A tensor has an element type that weights do not have.
    #[error(
        "`{}`: tensor `{tensor}` has elements of type {dtype}; F32, F64, F16, BF16 and I64 can \
        be read",
        crate::text::name(path)
    )]
    Type {
        /// Path of the file.
        path: PathBuf,
        /// Name of the tensor.
        tensor: String,
        /// Its type, as safetensors calls it.
        dtype: String,
    },
}

impl CheckpointError {
    /// What the user can do about it, as one sentence without a full stop.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Io(error) => return error.hint(),
            Self::Missing { .. } => return None,
            Self::NotSafetensors { .. } => "in PyTorch, \
                `safetensors.torch.save_file(model.state_dict(), path)` writes such a file"
                .into(),
            Self::OtherFormat { format, .. } => format.hint.into(),
            Self::Length { .. } | Self::Digest { .. } => "`step-*.safetensors` beside it are \
                earlier checkpoints of the run"
                .into(),
            Self::Version { .. } => "use the program that wrote it, or a newer one".into(),
            Self::Type { .. } => "leave that tensor out, or convert it to float32".into(),
        })
    }

    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let named = DiskError::of(action, path);
        move |source| Self::Io(named(source))
    }
}

impl Checkpoint {
    /// SHA-256 (hexadecimal) over the names, types, shapes and data in the order of names; the
    /// metadata does not count.
    ///
    /// For each tensor: length of the name and the name, length of the type and the type (`"F32"`),
    /// rank, extents, data. Numbers are u64, everything little-endian.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for (name, tensor) in &self.tensors {
            let dtype = tensor.data.dtype().to_string();
            for text in [name, &dtype] {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
            hash.update((tensor.shape.len() as u64).to_le_bytes());
            for extent in &tensor.shape {
                hash.update((*extent as u64).to_le_bytes());
            }
            let hashed = tensor.data.stream(|bytes| {
                hash.update(bytes);
                Ok(())
            });
            hashed.expect("hashing does no input or output");
        }
        hex(hash)
    }

    /// The step after which a run saved it.
    pub fn step(&self) -> Option<u64> {
        self.meta.get("step")?.parse().ok()
    }

    /// Writes the file, replacing what was there only once the new one is whole. Returns
    /// [`Checkpoint::digest`].
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; the file at `path` is then what it was, and nothing else is left
    /// behind.
    ///
    /// # Panics
    /// If a tensor's shape does not fit its data.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<String, CheckpointError> {
        let path = path.as_ref();
        let digest = self.digest();
        let header = self.header(&digest);
        disk::replace(path, |file| {
            let mut writer = BufWriter::with_capacity(1 << 20, file);
            let written = self.write(&header, &mut writer);
            // What a failed write left in the buffer must not be tried again on drop.
            drop(writer.into_parts());
            written
        })?;
        Ok(digest)
    }

    /// The bytes of the file that [`Checkpoint::save`] writes.
    ///
    /// # Panics
    /// If a tensor's shape does not fit its data.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let written = self.write(&self.header(&self.digest()), &mut bytes);
        written.expect("memory does no input or output");
        bytes
    }

    fn write(&self, header: &[u8], to: &mut impl Write) -> io::Result<()> {
        to.write_all(&(header.len() as u64).to_le_bytes())?;
        to.write_all(header)?;
        let mut tensors = self.in_file_order().into_iter();
        tensors.try_for_each(|(_, tensor)| tensor.data.stream(|bytes| to.write_all(bytes)))?;
        to.flush()
    }

    /// Reads a file that [`Checkpoint::save`] or PyTorch wrote.
    ///
    /// # Errors
    /// Any [`CheckpointError`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let path = path.as_ref();
        disk::refuse_tilde(path)?;
        let file = crate::data::open_regular(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CheckpointError::Missing { path: path.to_owned() },
            _ => CheckpointError::io("open", path)(source),
        })?;
        let bytes = file.metadata().map_err(CheckpointError::io("read", path))?.len();
        Self::read(path, bytes, &mut BufReader::with_capacity(1 << 20, file))
    }

    /// Reads such a file that is in memory; errors call it `name`.
    ///
    /// # Errors
    /// Any [`CheckpointError`].
    pub fn from_bytes(name: &Path, mut bytes: &[u8]) -> Result<Self, CheckpointError> {
        Self::read(name, bytes.len() as u64, &mut bytes)
    }

    fn read(path: &Path, bytes: u64, reader: &mut impl Read) -> Result<Self, CheckpointError> {
        let mut head = Vec::new();
        let mut first = reader.by_ref().take(OtherFormat::BYTES);
        first.read_to_end(&mut head).map_err(CheckpointError::io("read", path))?;
        if let Some(format) = OtherFormat::of(&head) {
            return Err(CheckpointError::OtherFormat { path: path.to_owned(), format });
        }
        let mut reader = head.chain(reader);
        let metadata = read_header(path, bytes, &mut reader)?;
        // The version comes before the tensors: a newer one may have types that are unknown here.
        let meta = metadata.metadata().clone().unwrap_or_default();
        if let Some(found) = meta.get(VERSION_KEY)
            && !found.parse::<u32>().is_ok_and(|version| version <= FORMAT_VERSION)
        {
            return Err(CheckpointError::Version { path: path.to_owned(), found: found.clone() });
        }

        let mut loaded = Self::default();
        for name in metadata.offset_keys() {
            let info = metadata.info(&name).expect("a name of the header");
            let mut raw = vec![0; info.data_offsets.1 - info.data_offsets.0];
            reader.read_exact(&mut raw).map_err(CheckpointError::io("read", path))?;
            let Some(data) = decode(info.dtype, &raw) else {
                return Err(CheckpointError::Type {
                    path: path.to_owned(),
                    tensor: name,
                    dtype: info.dtype.to_string(),
                });
            };
            loaded.tensors.insert(name, NamedTensor { shape: info.shape.clone(), data });
        }
        loaded.meta = meta.into_iter().collect();
        loaded.verify(path)?;
        Ok(loaded)
    }

    /// Compares the recorded digests and takes our own keys out of the metadata.
    fn verify(&mut self, path: &Path) -> Result<(), CheckpointError> {
        let version = self.meta.remove(VERSION_KEY);
        let digest = self.meta.remove(DIGEST_KEY);
        let meta_digest = self.meta.remove(META_DIGEST_KEY);
        if version.is_none() && meta_digest.is_none() {
            // The file is not ours, and a foreign `sha256` means whatever its writer wanted.
            self.meta.extend(digest.map(|value| (DIGEST_KEY.to_owned(), value)));
            return Ok(());
        }
        // The file is ours, so a key that is missing was damaged.
        let found_meta = meta_hash(&self.meta, version.as_deref().unwrap_or(""));
        for (what, expected, found) in
            [("tensors", digest, self.digest()), ("metadata", meta_digest, found_meta)]
        {
            if expected.as_ref() != Some(&found) {
                let expected = expected.unwrap_or_else(|| "lost".to_owned());
                return Err(CheckpointError::Digest {
                    path: path.to_owned(),
                    what,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }

    /// Widest elements first, as the format wants for alignment; then by name.
    fn in_file_order(&self) -> Vec<(&String, &NamedTensor)> {
        let mut tensors: Vec<_> = self.tensors.iter().collect();
        tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.data.dtype()));
        tensors
    }

    fn header(&self, digest: &str) -> Vec<u8> {
        let mut offset = 0;
        let infos = self.in_file_order().into_iter().map(|(name, tensor)| {
            let elements: usize = tensor.shape.iter().product();
            assert!(
                elements == tensor.data.len(),
                "`{name}`: shape {:?} for {} elements",
                tensor.shape,
                tensor.data.len()
            );
            let start = offset;
            offset += tensor.data.bytes();
            (
                name.clone(),
                TensorInfo {
                    dtype: tensor.data.dtype(),
                    shape: tensor.shape.clone(),
                    data_offsets: (start, offset),
                },
            )
        });
        let metadata = Metadata::new(None, infos.collect()).expect("offsets without gaps");
        let tensors = serde_json::to_string(&metadata).expect("a map with text keys");

        let mut meta = self.meta.clone();
        for key in [VERSION_KEY, DIGEST_KEY, META_DIGEST_KEY] {
            meta.remove(key);
        }
        let version = FORMAT_VERSION.to_string();
        let meta_digest = meta_hash(&meta, &version);
        meta.extend(
            [
                (VERSION_KEY, version),
                (DIGEST_KEY, digest.to_owned()),
                (META_DIGEST_KEY, meta_digest),
            ]
            .map(|(k, v)| (k.to_owned(), v)),
        );
        // The crate would write the metadata in the order of a hash map, another one in every
        // process.
        let meta = serde_json::to_string(&meta).expect("a map with text keys");
        let comma = if self.tensors.is_empty() { "" } else { "," };
        let mut header = format!("{{\"__metadata__\":{meta}{comma}{}", &tensors[1..]).into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        header
    }
}

/// Reads and checks the header; the reader is then at the first tensor.
fn read_header(
    path: &Path,
    bytes: u64,
    reader: &mut impl Read,
) -> Result<Metadata, CheckpointError> {
    let other =
        |reason: String| CheckpointError::NotSafetensors { path: path.to_owned(), bytes, reason };
    if bytes < 8 {
        return Err(other("shorter than the 8 bytes of the header's length".to_owned()));
    }
    let mut length = [0; 8];
    reader.read_exact(&mut length).map_err(CheckpointError::io("read", path))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(other(format!(
            "its first 8 bytes ask for a header of {length} bytes, more than {MAX_HEADER}"
        )));
    }
    if 8 + length > bytes {
        return Err(CheckpointError::Length { path: path.to_owned(), bytes, expected: 8 + length });
    }
    let mut header = vec![0; usize::try_from(length).expect("at most MAX_HEADER")];
    reader.read_exact(&mut header).map_err(CheckpointError::io("read", path))?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| other(format!("header: {error}")))?;
    let expected = (metadata.data_len() as u64).saturating_add(8 + length);
    if expected != bytes {
        return Err(CheckpointError::Length { path: path.to_owned(), bytes, expected });
    }
    Ok(metadata)
}

/// Elements of a type that weights have, or `None`.
fn decode(dtype: Dtype, raw: &[u8]) -> Option<TensorData> {
    fn each<const N: usize, T>(raw: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
        raw.as_chunks::<N>().0.iter().map(|bytes| convert(*bytes)).collect()
    }
    Some(match dtype {
        Dtype::F32 => TensorData::F32(each(raw, f32::from_le_bytes)),
        Dtype::F64 => TensorData::F32(each(raw, |b| f64::from_le_bytes(b) as f32)),
        Dtype::F16 => TensorData::F32(each(raw, |b| f16_to_f32(u16::from_le_bytes(b)))),
        Dtype::BF16 => {
            TensorData::F32(each(raw, |b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)))
        }
        Dtype::I64 => TensorData::I64(each(raw, i64::from_le_bytes)),
        _ => return None,
    })
}

fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10 & 31), u32::from(bits & 1023));
    match exponent {
        // Zero and subnormals: the fraction counts units of 2^-24.
        0 => f32::from_bits((fraction as f32 * 2f32.powi(-24)).to_bits() | sign),
        31 => f32::from_bits(sign | 0x7f80_0000 | fraction << 13),
        _ => f32::from_bits(sign | (exponent + 127 - 15) << 23 | fraction << 13),
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn meta_hash(meta: &BTreeMap<String, String>, version: &str) -> String {
    let mut hash = Sha256::new();
    for text in
        [version].into_iter().chain(meta.iter().flat_map(|(key, value)| [key.as_str(), value]))
    {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hex(hash)
}
