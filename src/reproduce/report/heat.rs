//! Heat maps of cosine similarities.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};
use maud::{Markup, html};

use super::chart::n;
use super::data_uri;
use crate::reproduce::views::{IMAGES, VIEWS};

/// Side of a cell.
pub(super) const CELL: f64 = 8.0;
/// Width of the pictures beside a map.
pub(super) const STRIP: f64 = CELL * VIEWS as f64;

/// Width of the pictures beside a map that shows those of so many images.
pub(super) fn strip(images: usize) -> f64 {
    if images > 0 { STRIP } else { 0.0 }
}

/// Colours of -1, 0 and 1: blue, white, red.
const ENDS: [[f64; 3]; 3] = [[33.0, 102.0, 172.0], [247.0, 247.0, 247.0], [178.0, 24.0, 43.0]];

/// The colour of a cosine.
pub(super) fn colour(cosine: f64) -> [u8; 3] {
    let at = cosine.clamp(-1.0, 1.0) + 1.0;
    let (low, share) = if at < 1.0 { (0, at) } else { (1, at - 1.0) };
    std::array::from_fn(|c| (ENDS[low][c] * (1.0 - share) + ENDS[low + 1][c] * share).round() as u8)
}

fn picture(width: u32, height: u32, cosine: impl Fn(u32, u32) -> f64) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let canvas = RgbImage::from_fn(width, height, |x, y| Rgb(colour(cosine(x, y))));
    canvas.write_to(&mut file, ImageFormat::Png).expect("a PNG in memory");
    file.into_inner()
}

/// A square matrix with the views of the first `images` images (`#views-0`, …) beside its rows and
/// above its columns.
///
/// # Panics
/// If the matrix is not that of [`IMAGES`] times [`VIEWS`] views.
pub(super) fn map(matrix: &[f64], images: usize) -> Markup {
    let rows = (IMAGES * VIEWS) as u32;
    assert!(matrix.len() == (rows * rows) as usize, "{} similarities", matrix.len());
    let side = f64::from(rows) * CELL;
    let png = picture(rows, rows, |x, y| matrix[(y * rows + x) as usize]);
    html! {
        @for i in 0..images {
            @let at = n(STRIP * i as f64 + STRIP + 2.0);
            use xlink:href={ "#views-" (i) } x="0" y=(at) {}
            use xlink:href={ "#views-" (i) } x=(at) y="0" {}
        }
        @let (corner, side) = (n(strip(images)), n(side));
        image x=(corner) y=(corner) width=(side) height=(side) style="image-rendering:pixelated"
            xlink:href=(data_uri(&png)) {}
    }
}

/// The scale of the colours, from 1 at the top to -1.
pub(super) fn legend(height: f64) -> Markup {
    const STEPS: u32 = 64;
    let png = picture(1, STEPS, |_, y| 1.0 - 2.0 * f64::from(y) / f64::from(STEPS - 1));
    html! {
        @let picture = data_uri(&png);
        image width="12" height=(n(height)) preserveAspectRatio="none" xlink:href=(picture) {}
        @for (text, share) in [("1", 0.0), ("0", 0.5), ("−1", 1.0)] {
            text class="faint" x="18" y=(n(height * share + 4.0)) { (text) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_from_blue_over_white_to_red() {
        assert_eq!([-1.0, 0.0, 1.0].map(colour), [[33, 102, 172], [247, 247, 247], [178, 24, 43]]);
        assert_eq!((colour(2.0), colour(-3.0)), (colour(1.0), colour(-1.0)));
        assert_eq!(colour(0.5), [213, 136, 145]);
    }
}
