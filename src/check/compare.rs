//! The comparator every device trial rests on. Its canaries are in `tests/ops.rs`.

use std::fmt;

use crate::tensor::DType;

/// Where two tensors differ most.
#[derive(Clone, Debug, PartialEq)]
pub struct Mismatch {
    /// Which element differs the most.
    pub index: usize,
    /// What the device computed there.
    pub got: f32,
    /// What the reference computed there.
    pub want: f64,
    /// Error over tolerance.
    pub ratio: f64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "element {}: got {:e}, want {:e}, {:.1} times the tolerance",
            self.index, self.got, self.want, self.ratio
        )
    }
}

/// Accepts only if every element is finite and within
/// `slack * eps * (4 |want| + sqrt(terms) max|want|)`, the rounding of a sum of `terms` products in
/// f32. What is stored as a 16-bit float may differ by a unit in its last place too: one rounding
/// of each. Integers may not differ.
/// Returns the worst ratio of error to that tolerance.
pub fn close(
    got: &[f32],
    want: &[f64],
    terms: usize,
    slack: f64,
    stored: DType,
) -> Result<f64, Mismatch> {
    assert!(
        !want.is_empty() && got.len() == want.len(),
        "compare whole, non-empty outputs: {} and {} elements",
        got.len(),
        want.len()
    );
    let eps = f64::from(f32::EPSILON);
    let largest = want.iter().fold(0.0f64, |m, x| if x.abs() > m { x.abs() } else { m });
    let atol = eps * (terms.min(1 << 16) as f64).sqrt() * largest + f64::from(f32::MIN_POSITIVE);
    let unit =
        |w: f64| stored.half().map_or(0.0, |half| (w.abs() * half.epsilon()).max(half.smallest()));
    let error = |i: usize| {
        let (g, w) = (f64::from(got[i]), want[i]);
        if stored == DType::U32 {
            2.0 * (g - w).abs()
        } else if g.is_finite() && w.is_finite() {
            (g - w).abs() / (slack * (atol + 4.0 * eps * w.abs()) + unit(w))
        } else {
            f64::INFINITY
        }
    };
    let worst = (0..want.len()).map(|i| (error(i), i)).max_by(|a, b| a.0.total_cmp(&b.0));
    match worst {
        // A NaN has become an infinity above, so this comparison sees none.
        Some((ratio, index)) if ratio > 1.0 => {
            Err(Mismatch { index, got: got[index], want: want[index], ratio })
        }
        Some((ratio, _)) => Ok(ratio),
        None => unreachable!("outputs are not empty"),
    }
}
