//! Grids of images as PNG: originals, views and reconstructions side by side.

use std::io::Cursor;

use image::{ImageFormat, RgbImage};

/// Width of the lines between images, in pixels; not scaled.
const GAP: usize = 2;

/// Draws rows of images on white, with gaps of two pixels, each pixel of an image as `scale` x
/// `scale` pixels.
///
/// Rows may differ in length. Returns the PNG file; its size is [`grid_size`].
///
/// # Shapes
/// Every image is HWC, RGB, `side * side * 3` bytes.
///
/// # Panics
/// If there is no image, an image has another length, `side` or `scale` is 0, or the grid is more
/// than 2^32 pixels wide.
pub fn grid_png(rows: &[Vec<&[u8]>], side: usize, scale: usize) -> Vec<u8> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    assert!(
        columns > 0 && side > 0 && scale > 0,
        "a grid of {columns} images in a row, side {side}, scale {scale}"
    );
    let (width, height) = grid_size(rows.len(), columns, side, scale);
    let mut canvas = RgbImage::from_pixel(width, height, image::Rgb([255; 3]));
    let stride = width as usize * 3;
    let pixels: &mut [u8] = &mut canvas;
    for (row, images) in rows.iter().enumerate() {
        for (column, image) in images.iter().enumerate() {
            assert!(
                image.len() == side * side * 3,
                "an image of {} bytes, expected {side} x {side} x 3",
                image.len()
            );
            let (top, left) = (row * (side * scale + GAP), column * (side * scale + GAP));
            for y in 0..side * scale {
                let source = &image[y / scale * side * 3..][..side * 3];
                let line = &mut pixels[(top + y) * stride + left * 3..][..side * scale * 3];
                for (to, from) in line.chunks_exact_mut(scale * 3).zip(source.chunks_exact(3)) {
                    to.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(from));
                }
            }
        }
    }
    let mut png = Cursor::new(Vec::new());
    canvas.write_to(&mut png, ImageFormat::Png).expect("a PNG in memory");
    png.into_inner()
}

/// Width and height of a grid in pixels.
///
/// # Panics
/// If one is more than 2^32.
pub fn grid_size(rows: usize, columns: usize, side: usize, scale: usize) -> (u32, u32) {
    let extent = |count: usize| {
        u32::try_from(count * side * scale + count.saturating_sub(1) * GAP)
            .expect("a grid of a sane size")
    };
    (extent(columns), extent(rows))
}

/// The bytes of packed pixels, `R | G << 8 | B << 16` ([`Batch`](crate::data::Batch)): RGB.
pub fn unpack(pixels: &[u32]) -> Vec<u8> {
    pixels
        .iter()
        .flat_map(|pixel| [*pixel as u8, (pixel >> 8) as u8, (pixel >> 16) as u8])
        .collect()
}

/// From a normalised batch to bytes: `(x * std + mean) * 255`, rounded and clamped; NaN becomes 0.
///
/// # Shapes
/// `nhwc4` is `[N, H, W, 4]` with an unused fourth channel; the result is `[N, H, W, 3]`.
///
/// # Panics
/// If the length of `nhwc4` is no multiple of 4.
pub fn denormalise(nhwc4: &[f32], mean: [f32; 3], std: [f32; 3]) -> Vec<u8> {
    let (pixels, rest) = nhwc4.as_chunks::<4>();
    assert!(rest.is_empty(), "{} values are not pixels of 4 channels", nhwc4.len());
    // `as` clamps to 0 and 255, and makes NaN 0.
    let byte = |pixel: &[f32; 4], c: usize| ((pixel[c] * std[c] + mean[c]) * 255.0).round() as u8;
    pixels.iter().flat_map(|pixel| [byte(pixel, 0), byte(pixel, 1), byte(pixel, 2)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_land_where_they_should() {
        let red: Vec<u8> = [[255, 0, 0]; 4].concat();
        let numbered: Vec<u8> = (0..12).collect();
        let png = grid_png(&[vec![&red, &numbered], vec![&numbered]], 2, 3);
        let grid = image::load_from_memory(&png).expect("a PNG").to_rgb8();
        assert_eq!(grid.dimensions(), (14, 14));
        assert_eq!(grid.dimensions(), grid_size(2, 2, 2, 3));
        for (x, y, pixel) in grid.enumerate_pixels() {
            let at = |left: u32, top: u32| (((y - top) / 3 * 2 + (x - left) / 3) * 3) as u8;
            let expected = match (x, y) {
                (0..6, 0..6) => [255, 0, 0],
                (8.., 0..6) => [0, 1, 2].map(|c| at(8, 0) + c),
                (0..6, 8..) => [0, 1, 2].map(|c| at(0, 8) + c),
                _ => [255; 3],
            };
            assert_eq!(pixel.0, expected, "({x}, {y})");
        }
    }

    #[test]
    fn denormalising_undoes_normalising_every_byte() {
        let (mean, std) = ([0.4914, 0.4822, 0.4465], [0.247, 0.2435, 0.2616]);
        let normal = |byte: u8, c: usize| (f32::from(byte) / 255.0 - mean[c]) / std[c];
        let batch: Vec<f32> =
            (0..=255).flat_map(|b| [normal(b, 0), normal(b, 1), normal(b, 2), 9.0]).collect();
        assert_eq!(
            denormalise(&batch, mean, std),
            (0..=255).flat_map(|b| [b; 3]).collect::<Vec<u8>>()
        );
        assert_eq!(denormalise(&[f32::NAN, 1e9, f32::NEG_INFINITY, 0.0], mean, std), [0, 255, 0]);
    }
}
