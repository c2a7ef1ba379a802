//! JPEGs that are whole.
//!
//! Decoders are made to show what they can of a broken picture: of a file that was cut they return
//! what there is above grey, and call it a success. Training on that is worse than an error. So a
//! file must reach its end-of-image marker, and everything between a start of scan and its end must
//! decode as the standard has it, to the last block: programs that mend a cut file put the marker
//! where it was cut. Nor may data be left over when the last block is decoded: where bytes in the
//! middle were lost or overwritten, what follows is read as other blocks, more or fewer than there
//! are. What stands before the scans is taken as leniently as viewers take it, and whatever follows
//! the end of the image (previews, a second picture of a camera, garbage) is not looked at.
//!
//! A JPEG has no checksum, so some damage cannot be told: other bytes that happen to make as many
//! blocks, data of fewer than `LEFT_OVER` bytes too much, which some cameras write, and what is
//! left over before the last scan of a progressive file or between restart markers.

use image::{DynamicImage, GrayImage, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Most bytes of pixels, as much as `image` allows for the other formats.
const MAX_BYTES: usize = 512 << 20;

/// Fewest bytes of a scan's end that are damage if no block needs them.
const LEFT_OVER: usize = 8;

/// The end-of-image marker.
const END: [u8; 2] = [0xff, 0xd9];

/// Eight set bits in a scan. No code has set bits only, so a decoder that gets here in want of a
/// block fails, where after the end of the image it would take zeros. A whole image never wants it.
const NO_CODE: [u8; 2] = [0xff, 0x00];

/// Decodes a JPEG, baseline or progressive, that is whole.
///
/// # Errors
/// What is wrong with it, in words.
pub fn decode(file: &[u8]) -> Result<RgbImage, String> {
    let parts = Parts::of(file)?;
    let image = pixels(&file[..parts.end])?;
    // The decoder does not say how far it has read. But a whole file needs its last bytes: without
    // them it is an error, or another picture.
    let left_over =
        parts.needed.is_some_and(|end| pixels(&file[..end]).is_ok_and(|without| without == image));
    if left_over {
        return Err(format!(
            "at least {LEFT_OVER} bytes of its data are left over, so what is before them is damaged"
        ));
    }
    Ok(image)
}

/// [`decode`] of a file that was found to be whole, in half the time.
///
/// # Errors
/// As [`decode`], but for data that is left over.
pub fn decode_again(file: &[u8]) -> Result<RgbImage, String> {
    pixels(&file[..Parts::of(file)?.end])
}

/// The picture of a file that was cut at the end of its image.
fn pixels(file: &[u8]) -> Result<RgbImage, String> {
    let file = [file, &NO_CODE.repeat(16), &END].concat();
    let options = DecoderOptions::default().set_max_width(usize::MAX).set_max_height(usize::MAX);
    let mut decoder =
        JpegDecoder::new_with_options(ZCursor::new(&file[..]), options.set_strict_mode(false));
    decoder.decode_headers().map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions().ok_or("it has no size")?;
    if width.saturating_mul(height).saturating_mul(3) > MAX_BYTES {
        return Err(format!(
            "{width} x {height} pixels are more than {} million",
            MAX_BYTES / 3_000_000
        ));
    }
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let colours = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    // From here on: in the scans.
    decoder.set_options(options.set_strict_mode(true).jpeg_set_out_colorspace(colours));
    let mut pixels = vec![0; width * height * colours.num_components()];
    decoder.decode_into(&mut pixels).map_err(|e| e.to_string())?;
    let side = |pixels: usize| u32::try_from(pixels).map_err(|e| e.to_string());
    let (width, height) = (side(width)?, side(height)?);
    let image = if grey {
        GrayImage::from_raw(width, height, pixels).map(|grey| DynamicImage::from(grey).into_rgb8())
    } else {
        RgbImage::from_raw(width, height, pixels)
    };
    image.ok_or_else(|| "its pixels do not fill its size".into())
}

/// Places in a file.
struct Parts {
    /// Where the image ends: an end-of-image marker outside of segments, which may hold pictures of
    /// their own.
    end: usize,
    /// A place before the end that a whole picture needs data behind, where one can be named.
    needed: Option<usize>,
}

impl Parts {
    fn of(file: &[u8]) -> Result<Self, String> {
        Self::find(file).ok_or_else(|| {
            "the file ends before the image does (it has no end-of-image marker)".into()
        })
    }

    fn find(file: &[u8]) -> Option<Self> {
        let (mut at, mut scan, mut progressive) = (0, None, false);
        loop {
            // Data of a scan, or garbage between segments.
            at += file.get(at..)?.iter().position(|byte| *byte == 0xff)?;
            let marker = at;
            while *file.get(at)? == 0xff {
                at += 1; // a marker may be preceded by any number of these
            }
            match file[at] {
                0xd9 => {
                    let needed =
                        scan.filter(|_| !progressive).and_then(|scan| needed(file, scan, marker));
                    return Some(Self { end: marker, needed });
                }
                // A byte 0xff of a scan, a temporary marker, the start of the image: no segment
                // follows.
                0x00 | 0x01 | 0xd8 => at += 1,
                // A restart: what follows is decoded by itself.
                0xd0..=0xd7 => {
                    at += 1;
                    scan = Some(at);
                }
                kind => {
                    progressive |= kind == 0xc2;
                    let length = file.get(at + 1..at + 3)?;
                    at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                    scan = (kind == 0xda).then_some(at);
                }
            }
        }
    }
}

/// Where the last [`LEFT_OVER`] bytes of the data from `scan` to `end` begin, not counting zeros
/// that fill it up; `None` if there are fewer.
fn needed(file: &[u8], scan: usize, end: usize) -> Option<usize> {
    let data = file.get(scan..end)?;
    let filled = data.iter().rev().take_while(|byte| **byte == 0).count();
    let mut at = (data.len() - filled).checked_sub(LEFT_OVER)?;
    // Not within an escaped 0xff.
    while at > 0 && data[at - 1] == 0xff {
        at -= 1;
    }
    Some(scan + at)
}
