//! Ten classes of shapes, drawn from a seed: a data set that needs no files and no network.
//!
//! Image `i` of a part is a pure function of `(seed, part, i)`: all draws come from the stream
//! [`Stream::Data`] with the counter `(part, i, block)`, and the drawing uses only `+ - * /` on
//! `f32`, which every machine rounds alike. Its class is `i % 10`, so every prefix is balanced.
//!
//! Colour, place, scale (0.6 to 0.95 of the frame), rotation (up to 23 degrees), squeeze,
//! background gradient and texture, a blot behind and pixel noise vary independently of the class,
//! and half of the images, by chance, are negatives: neither brightness nor colour says anything. A
//! classifier on raw pixels therefore does poorly (nearest neighbour: see `tests/data.rs`), while
//! the class survives crops, flips and colour changes, and fills enough of the frame that a
//! likelihood of pixels rewards knowing it.

use std::ffi::OsString;
use std::sync::OnceLock;

use super::{DataError, Dataset};
use crate::rng::{self, Philox, Stream};

/// Default number of training images.
pub const TRAIN_LEN: usize = 10_000;
/// Default number of test images.
pub const TEST_LEN: usize = 2_000;
/// The classes, in label order.
pub const CLASSES: [&str; 10] = {
    let mut names = [""; 10];
    names[DISC] = "disc";
    names[RING] = "ring";
    names[HALF_DISC] = "half-disc";
    names[CRESCENT] = "crescent";
    names[TRIANGLE] = "triangle";
    names[SQUARE] = "square";
    names[CROSS] = "cross";
    names[STAR] = "star";
    names[HEART] = "heart";
    names[HOURGLASS] = "hourglass";
    names
};

const DISC: usize = 0;
const RING: usize = 1;
const HALF_DISC: usize = 2;
const CRESCENT: usize = 3;
const TRIANGLE: usize = 4;
const SQUARE: usize = 5;
const CROSS: usize = 6;
const STAR: usize = 7;
const HEART: usize = 8;
const HOURGLASS: usize = 9;

/// Per-channel mean of the pixels, in [0, 1].
pub const MEAN: [f32; 3] = [0.498; 3];
/// Per-channel standard deviation of the pixels.
pub const STD: [f32; 3] = [0.271; 3];

const SIZE: usize = 32;
const IMAGE_BYTES: usize = SIZE * SIZE * 3;
/// Coverage is sampled on a grid of this side per pixel.
const SAMPLES: usize = 4;
/// Cells of the texture's lattice along a side.
const LATTICE: usize = 6;

/// Which images of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Images to train on.
    Train = 0,
    /// Test images, none of which is a training image.
    Test = 1,
}

/// The images of one part, drawn when first read and kept.
pub struct Shapes {
    classes: Vec<OsString>,
    seed: u64,
    part: Part,
    images: Vec<OnceLock<Box<[u8]>>>,
}

impl Shapes {
    /// `len` images.
    ///
    /// # Panics
    /// If `len` is above `u32::MAX`.
    pub fn new(seed: u64, part: Part, len: usize) -> Self {
        assert!(u32::try_from(len).is_ok(), "image numbers are 32 bits");
        Self {
            classes: CLASSES.map(OsString::from).to_vec(),
            seed,
            part,
            images: vec![OnceLock::new(); len],
        }
    }
}

impl Dataset for Shapes {
    fn name(&self) -> &str {
        "shapes"
    }

    fn len(&self) -> usize {
        self.images.len()
    }

    fn image_size(&self) -> usize {
        SIZE
    }

    fn classes(&self) -> &[OsString] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        assert!(index < self.len(), "image {index} of {}", self.len());
        (index % CLASSES.len()) as u32
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), DataError> {
        let image = self.images[index].get_or_init(|| {
            let mut pixels = vec![0; IMAGE_BYTES];
            draw(self.seed, self.part, index as u32, &mut pixels);
            pixels.into()
        });
        out.copy_from_slice(image);
        Ok(())
    }

    /// Measured on 10,000 training images of seed 0; other seeds differ in the third digit.
    fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
        (MEAN, STD)
    }
}

/// The draws of one image, in order.
struct Draws {
    rng: Philox,
    part: Part,
    image: u32,
    block: u32,
    words: [u32; 4],
    used: usize,
}

impl Draws {
    fn new(seed: u64, part: Part, image: u32) -> Self {
        Self { rng: Philox::new(seed, Stream::Data), part, image, block: 0, words: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = self.rng.words(self.part as u32, self.image, self.block);
            self.block += 1;
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Uniform in [low, high).
    fn uniform(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * rng::uniform(self.word())
    }

    fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.word()) * u64::from(n)) >> 32) as u32
    }

    fn colour(&mut self, low: f32, high: f32) -> Rgb {
        [self.uniform(low, high), self.uniform(low, high), self.uniform(low, high)]
    }

    fn near(&mut self, colour: Rgb, spread: f32) -> Rgb {
        colour.map(|c| c + self.uniform(-spread, spread))
    }
}

type Rgb = [f32; 3];

fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [0, 1, 2].map(|c| a[c] + (b[c] - a[c]) * t)
}

fn distance_squared(a: Rgb, b: Rgb) -> f32 {
    [0, 1, 2].map(|c| (a[c] - b[c]) * (a[c] - b[c])).iter().sum()
}

/// A place in the frame: `x`, `y` of the centre and the half extents in frame units, and a
/// rotation.
struct Pose {
    x: f32,
    y: f32,
    half_u: f32,
    half_v: f32,
    cos: f32,
    sin: f32,
}

impl Pose {
    /// `t` is the tangent of half the angle: a rational rotation, exact on every machine where
    /// `sin` is not.
    fn new(x: f32, y: f32, half_u: f32, half_v: f32, t: f32) -> Self {
        let q = 1.0 / (1.0 + t * t);
        Self { x, y, half_u, half_v, cos: (1.0 - t * t) * q, sin: 2.0 * t * q }
    }
}

/// Draws one image into `out` [32, 32, 3].
fn draw(seed: u64, part: Part, image: u32, out: &mut [u8]) {
    let d = &mut Draws::new(seed, part, image);
    let class = image as usize % CLASSES.len();
    let mut canvas = [[0.0_f32; 3]; SIZE * SIZE];
    let back = background(d, &mut canvas);
    blot(d, &mut canvas);

    let mut front = d.colour(0.35, 1.0);
    // The shape must be visible: move on to other colours while it is too near the background's.
    for _ in 0..8 {
        if distance_squared(front, back) > 0.16 {
            break;
        }
        front = d.colour(0.35, 1.0);
    }
    let rim = d.near(front, 0.2);
    let half = 0.5 * d.uniform(0.6, 0.95);
    let squeeze = d.uniform(0.85, 1.18);
    let room = 0.6 * half;
    let (x, y) = (d.uniform(room, 1.0 - room), d.uniform(room, 1.0 - room));
    let pose = Pose::new(x, y, half * squeeze, half / squeeze, d.uniform(-0.2, 0.2));
    paint(
        &mut canvas,
        &pose,
        |u, v| inside(class, u, v),
        |u, v| mix(front, rim, (u + v + 2.0) * 0.25),
    );

    if d.below(2) == 1 {
        canvas.iter_mut().flatten().for_each(|value| *value = 1.0 - *value);
    }
    let noise = d.uniform(0.01, 0.1);
    for (pixel, rgb) in canvas.iter().zip(out.chunks_exact_mut(3)) {
        for (value, byte) in pixel.iter().zip(rgb) {
            // `as` saturates at 0 and 255.
            *byte = ((value + d.uniform(-noise, noise)) * 255.0 + 0.5) as u8;
        }
    }
}

/// Fills the canvas with a gradient and a smooth texture; returns the mean of the gradient.
fn background(d: &mut Draws, canvas: &mut [Rgb]) -> Rgb {
    let from = d.colour(0.0, 0.6);
    let to = d.near(from, 0.3);
    let (gx, gy) = (d.uniform(-1.0, 1.0), d.uniform(-1.0, 1.0));
    let strength = d.uniform(0.0, 0.25);
    let tint = [d.uniform(0.3, 1.0), d.uniform(0.3, 1.0), d.uniform(0.3, 1.0)];
    let mut lattice = [[0.0_f32; LATTICE + 1]; LATTICE + 1];
    for value in lattice.iter_mut().flatten() {
        *value = d.uniform(-strength, strength);
    }
    let step = LATTICE as f32 / SIZE as f32;
    for (i, pixel) in canvas.iter_mut().enumerate() {
        let (px, py) = ((i % SIZE) as f32 + 0.5, (i / SIZE) as f32 + 0.5);
        let slope = gx * (px / SIZE as f32 - 0.5) + gy * (py / SIZE as f32 - 0.5);
        let (lx, ly) = (px * step, py * step);
        let (cx, cy) = (lx as usize, ly as usize);
        let (fx, fy) = (lx - cx as f32, ly - cy as f32);
        let top = lattice[cy][cx] + (lattice[cy][cx + 1] - lattice[cy][cx]) * fx;
        let bottom = lattice[cy + 1][cx] + (lattice[cy + 1][cx + 1] - lattice[cy + 1][cx]) * fx;
        let texture = top + (bottom - top) * fy;
        let base = mix(from, to, 0.5 + slope);
        *pixel = [0, 1, 2].map(|c| base[c] + texture * tint[c]);
    }
    mix(from, to, 0.5)
}

/// Paints one small bar or blob at a random place.
fn blot(d: &mut Draws, canvas: &mut [Rgb]) {
    let colour = d.colour(0.0, 1.0);
    let half = d.uniform(0.04, 0.11);
    let stretch = d.uniform(1.0, 3.0);
    let pose = Pose::new(
        d.uniform(0.0, 1.0),
        d.uniform(0.0, 1.0),
        half * stretch,
        half,
        d.uniform(-1.0, 1.0),
    );
    let round = d.below(2) == 0;
    let inside = move |u: f32, v: f32| {
        if round { u * u + v * v < 1.0 } else { u.abs() < 1.0 && v.abs() < 1.0 }
    };
    paint(canvas, &pose, inside, |_, _| colour);
}

/// Blends a shape over the canvas by its coverage of each pixel. `inside` and `colour` take
/// coordinates in which the shape's box is [-1, 1] squared, v down.
fn paint(
    canvas: &mut [Rgb],
    pose: &Pose,
    inside: impl Fn(f32, f32) -> bool,
    colour: impl Fn(f32, f32) -> Rgb,
) {
    // Nothing is painted outside the box, which reaches this far from the centre in any rotation.
    let reach = pose.half_u + pose.half_v;
    let range = |centre: f32| {
        let low = ((centre - reach) * SIZE as f32).max(0.0) as usize;
        let high = ((centre + reach) * SIZE as f32).max(0.0) as usize + 1;
        low..high.min(SIZE)
    };
    let (per_u, per_v) = (1.0 / pose.half_u, 1.0 / pose.half_v);
    let local = |x: f32, y: f32| {
        let (dx, dy) = (x / SIZE as f32 - pose.x, y / SIZE as f32 - pose.y);
        ((dx * pose.cos + dy * pose.sin) * per_u, (dy * pose.cos - dx * pose.sin) * per_v)
    };
    for py in range(pose.y) {
        for px in range(pose.x) {
            let mut hits = 0_u32;
            for s in 0..SAMPLES * SAMPLES {
                let sx = (s % SAMPLES) as f32 + 0.5;
                let sy = (s / SAMPLES) as f32 + 0.5;
                let (u, v) =
                    local(px as f32 + sx / SAMPLES as f32, py as f32 + sy / SAMPLES as f32);
                hits += u32::from(u.abs() <= 1.0 && v.abs() <= 1.0 && inside(u, v));
            }
            if hits > 0 {
                let (u, v) = local(px as f32 + 0.5, py as f32 + 0.5);
                let pixel = &mut canvas[py * SIZE + px];
                *pixel = mix(*pixel, colour(u, v), hits as f32 / (SAMPLES * SAMPLES) as f32);
            }
        }
    }
}

/// Whether a point of the box [-1, 1] squared (v down) belongs to the shape of a class.
fn inside(class: usize, u: f32, v: f32) -> bool {
    let r2 = u * u + v * v;
    match class {
        DISC => r2 < 0.81,
        RING => r2 > 0.25 && r2 < 0.95,
        HALF_DISC => v < 0.45 && u * u + (v - 0.45) * (v - 0.45) < 0.98,
        CRESCENT => r2 < 0.95 && (u - 0.45) * (u - 0.45) + v * v > 0.55,
        TRIANGLE => v < 0.75 && u.abs() < (v + 0.95) * 0.56,
        SQUARE => u.abs() < 0.76 && v.abs() < 0.76,
        CROSS => (u.abs() < 0.28 && v.abs() < 0.92) || (v.abs() < 0.28 && u.abs() < 0.92),
        STAR => {
            // A pentagram is where at most one of its five lines has the point on its far side. The
            // lines pass the centre at cos 72 degrees; their normals are 72 degrees apart.
            const NORMALS: [(f32, f32); 5] = [
                (0.0, 1.0),
                (0.951_056_5, 0.309_017),
                (0.587_785_24, -0.809_017),
                (-0.587_785_24, -0.809_017),
                (-0.951_056_5, 0.309_017),
            ];
            NORMALS.iter().filter(|(a, b)| a * u - b * v < 0.309_017).count() >= 4
        }
        HEART => {
            let (x, y) = (1.16 * u, 0.12 - 1.12 * v);
            let q = x * x + y * y - 1.0;
            q * q * q < x * x * y * y * y
        }
        HOURGLASS => v.abs() < 0.88 && u.abs() < v.abs() * 0.9 + 0.08,
        other => unreachable!("class {other} of {}", CLASSES.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shapes as sets of points of a 41 x 41 grid.
    fn points(class: usize, turn: impl Fn(f32, f32) -> (f32, f32)) -> Vec<bool> {
        let at = |i: usize| i as f32 / 20.0 - 1.0;
        (0..41 * 41)
            .map(|i| {
                let (u, v) = turn(at(i % 41), at(i / 41));
                inside(class, u, v)
            })
            .collect()
    }

    /// A flip, and any rotation in steps of 15 degrees, leaves two classes at least a tenth of
    /// their area apart.
    #[test]
    fn classes_differ_under_rotation_and_flip() {
        for a in 0..CLASSES.len() {
            let fixed = points(a, |u, v| (u, v));
            for b in 0..a {
                for turn in 0..48 {
                    let (sin, cos) = (turn as f32 * 15.0).to_radians().sin_cos();
                    let flip = if turn < 24 { 1.0 } else { -1.0 };
                    let other = points(b, |u, v| (flip * (cos * u - sin * v), sin * u + cos * v));
                    let union = fixed.iter().zip(&other).filter(|(x, y)| **x || **y).count();
                    let apart = fixed.iter().zip(&other).filter(|(x, y)| x != y).count();
                    assert!(
                        apart * 10 > union,
                        "{} and {} differ in {apart} of {union}",
                        CLASSES[a],
                        CLASSES[b]
                    );
                }
            }
        }
    }

    /// No shape fills its box or hides in it: area alone says little.
    #[test]
    fn areas_are_alike() {
        for class in 0..CLASSES.len() {
            let area = points(class, |u, v| (u, v)).iter().filter(|x| **x).count() as f32 / 1681.0;
            assert!((0.2..0.75).contains(&area), "{}: {area}", CLASSES[class]);
        }
    }

    #[test]
    fn a_prefix_and_a_part_do_not_change_an_image() {
        let (few, many) = (Shapes::new(3, Part::Train, 5), Shapes::new(3, Part::Train, 50));
        let five = |shapes: &Shapes| {
            let mut pixels = vec![0; 5 * IMAGE_BYTES];
            for (i, out) in pixels.chunks_exact_mut(IMAGE_BYTES).enumerate() {
                shapes.read(i, out).expect("an image");
            }
            pixels
        };
        assert_eq!(five(&few), five(&many));
        assert_ne!(five(&few), five(&Shapes::new(3, Part::Test, 5)));
        assert_ne!(five(&few), five(&Shapes::new(4, Part::Train, 5)));
    }
}
