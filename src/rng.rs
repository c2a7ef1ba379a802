//! All randomness: Philox4x32-10 (Salmon et al. 2011), a counter generator, so that no draw depends
//! on order or device.
//!
//! A draw is `philox(key, counter)`, four 32-bit words, with
//!
//! ```text
//! key     = (seed low 32 bits, seed high 32 bits XOR stream * 0x9E3779B9)
//! counter = (step, sample, index, 0)
//! ```
//!
//! | stream | step | sample | index | gives |
//! |---|---|---|---|---|
//! | [`Stream::Init`] | 0 | FNV-1a 32 of the parameter's name | element / 4 | initial weights |
//! | [`Stream::Order`] | epoch | 0 | i | data order (`data::split`) |
//! | [`Stream::Split`] | 0 | 0 | i | train/validation split |
//! | [`Stream::Noise`] | step | position in the step's images | element / 4 | `eps` of the reparameterisation; further samples are further elements |
//! | [`Stream::Augment`] | step | position in the step's images | 16 view + 0.. | augmentation parameters (`ops::augment_params`); one view but for SimCLR |
//! | [`Stream::Probe`] | step | position in batch | 0.. | probe crops and flips (`ops::probe_augment`; STL-10: `ops::augment_params`) |
//! | [`Stream::Data`] | split | image | 0.. | procedural images |
//! | [`Stream::Study`] | 0 | 0 | i | values that an experiment draws (`reproduce::cells`) |
//!
//! `shaders/lib/rng.wgsl` is the same function in WGSL; the `random_normal` and `augment_params`
//! trials hold the two together. Uniforms: `(word >> 8) * 2^-24` in `[0, 1)`. Normals: Box-Muller
//! on two words, `r = sqrt(-2 ln(((a >> 8) + 0.5) * 2^-24))`, `(r cos(2 pi u_b), r sin(2 pi u_b))`:
//! words 0, 1 give normals 0, 1; words 2, 3 give 2, 3.

/// Steps of validation, evaluation and figures are counted from here on, so that they never share
/// a draw with training.
pub const EVALUATION_STEP: u32 = 1 << 31;

/// What a draw is for; a stream changes the key, so streams never share a draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Stream {
    /// Initial values of weights.
    Init = 1,
    /// Order of the training images.
    Order = 2,
    /// Choice of the validation images.
    Split = 3,
    /// Noise of the reparameterised sample.
    Noise = 4,
    /// SimCLR augmentation parameters.
    Augment = 5,
    /// Augmentation of the linear probe.
    Probe = 6,
    /// Procedural data sets.
    Data = 7,
    /// Inputs of tests and benchmarks.
    Test = 8,
    /// Values that an experiment of the paper draws.
    Study = 9,
}

/// A keyed generator.
#[derive(Clone, Copy, Debug)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// Generator for one seed and stream.
    pub const fn new(seed: u64, stream: Stream) -> Self {
        let [lo, hi] = [seed as u32, (seed >> 32) as u32];
        Self { key: [lo, hi ^ (stream as u32).wrapping_mul(0x9E37_79B9)] }
    }

    /// Four random words for a counter.
    pub const fn words(&self, step: u32, sample: u32, index: u32) -> [u32; 4] {
        let mut c = [step, sample, index, 0];
        let mut k = self.key;
        let mut round = 0;
        while round < 10 {
            let p0 = 0xD251_1F53u64 * c[0] as u64;
            let p1 = 0xCD9E_8D57u64 * c[2] as u64;
            c = [
                (p1 >> 32) as u32 ^ c[1] ^ k[0],
                p1 as u32,
                (p0 >> 32) as u32 ^ c[3] ^ k[1],
                p0 as u32,
            ];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
            round += 1;
        }
        c
    }

    /// Four uniforms in `[0, 1)`.
    pub fn uniforms(&self, step: u32, sample: u32, index: u32) -> [f32; 4] {
        self.words(step, sample, index).map(uniform)
    }

    /// Four standard normals.
    pub fn normals(&self, step: u32, sample: u32, index: u32) -> [f64; 4] {
        let w = self.words(step, sample, index);
        let [a, b] = box_muller(w[0], w[1]);
        let [c, d] = box_muller(w[2], w[3]);
        [a, b, c, d]
    }
}

/// `(word >> 8) * 2^-24`, in `[0, 1)`, exact in f32.
pub fn uniform(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

fn box_muller(a: u32, b: u32) -> [f64; 2] {
    let u = (f64::from(a >> 8) + 0.5) / 16_777_216.0;
    let r = (-2.0 * u.ln()).sqrt();
    let t = 2.0 * std::f64::consts::PI * f64::from(uniform(b));
    [r * t.cos(), r * t.sin()]
}

/// FNV-1a, 32 bits: the counter of a parameter's initial values.
pub const fn fnv1a(text: &str) -> u32 {
    let (bytes, mut hash, mut i) = (text.as_bytes(), 0x811C_9DC5u32, 0);
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u32).wrapping_mul(0x0100_0193);
        i += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the Random123 distribution (`kat_vectors`, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        let zero = Philox { key: [0, 0] };
        assert_eq!(zero.words(0, 0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[test]
    fn normals_have_unit_moments() {
        let rng = Philox::new(7, Stream::Test);
        let draws: Vec<f64> = (0..25_000).flat_map(|i| rng.normals(3, 5, i)).collect();
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        let var = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 0.01 && (var - 1.0).abs() < 0.02, "mean {mean}, variance {var}");
    }
}
