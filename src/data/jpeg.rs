//! JPEGs that are whole.
//!
//! Decoders are made to show what they can of a broken picture: of a file that was cut they return
//! what there is above grey, and call it a success. Training on that is worse than an error. So a
//! file must reach its end-of-image marker, and everything between a start of scan and its end must
//! decode as the standard has it, to the last block: programs that mend a cut file put the marker
//! where it was cut. What stands before the scans is taken as leniently as viewers
//! take it, and whatever follows the end of the image (previews, a second picture of a camera,
//! garbage) is not looked at.

use image::{DynamicImage, GrayImage, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Most bytes of pixels, as much as `image` allows for the other formats.
const MAX_BYTES: usize = 512 << 20;

/// The end-of-image marker.
const END: [u8; 2] = [0xff, 0xd9];

/// Eight set bits in a scan. No code has set bits only, so a decoder that gets here in want of a
/// block fails, where after the end of the image it would take zeros. A whole image never wants it.
const NO_CODE: [u8; 2] = [0xff, 0x00];

/// Decodes a JPEG, baseline or progressive.
///
/// # Errors
/// What is wrong with it, in words.
pub fn decode(file: &[u8]) -> Result<RgbImage, String> {
    let end = end_of_image(file)
        .ok_or("the file ends before the image does (it has no end-of-image marker)")?;
    let file = [&file[..end], &NO_CODE.repeat(16), &END].concat();
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

/// Where the image ends within the file: an end-of-image marker outside of segments, which may
/// hold pictures of their own.
fn end_of_image(file: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        // Data of a scan, or garbage between segments.
        at += file.get(at..)?.iter().position(|byte| *byte == 0xff)?;
        let marker = at;
        while *file.get(at)? == 0xff {
            at += 1; // a marker may be preceded by any number of these
        }
        match file[at] {
            0xd9 => return Some(marker),
            // A byte 0xff of a scan, a temporary marker, a restart, the start of the image: no
            // segment follows.
            0x00 | 0x01 | 0xd0..=0xd8 => at += 1,
            _ => {
                let length = file.get(at + 1..at + 3)?;
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
    }
}
