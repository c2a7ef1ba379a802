//! The embedded shaders and their specialisation. A kernel's text is a file of `shaders/` with
//! imports resolved, `// spec` consts set, guards applied and `// unroll` loops expanded (`spec`);
//! its `// uniform` consts are the words of a uniform. Bindings that hold 16-bit floats are
//! rewritten last (`storage`). Each file is legal WGSL as it stands.

#[cfg(feature = "native")]
pub mod cuda;
mod expression;
mod files;
mod spec;
mod storage;

pub use files::FILES;
pub use spec::CONSTANTS_BINDING;

use crate::ops::Kernel;

/// Text of an embedded file (`relu`, `lib/grid`).
pub fn file(name: &str) -> Option<&'static str> {
    FILES.iter().find(|f| f.0 == name).map(|f| f.1)
}

/// A kernel, specialised but for its loops.
fn specialise(kernel: &Kernel) -> Result<spec::Specialised, String> {
    let text = file(kernel.file).ok_or("there is no such file")?;
    let consts: Vec<_> =
        kernel.consts.iter().map(|(name, value)| (*name, value.to_string())).collect();
    spec::specialise(text, &consts, kernel.shaped, file)
}

/// How the text of a kernel with bf16 begins. WGSL has no such type: naga refuses the text, and the
/// writer of CUDA C++ ([`cuda::translate`]) knows it.
pub const BF16: &str = "enable bf16;";

/// Final WGSL of a kernel.
///
/// # Panics
/// If the kernel names an unknown file or const: a bug of an op's lowering, found by
/// `tests/shaders.rs` for every reachable kernel.
pub fn source(kernel: &Kernel) -> String {
    let text = specialise(kernel).and_then(|s| spec::text(&s));
    let text = text.and_then(|text| storage::store(&text, &kernel.storage));
    text.unwrap_or_else(|e| panic!("shader `{}`: {e}", kernel.file))
}

/// What a kernel's uniform of constants holds, in the order of its members; empty if the text has
/// none.
///
/// # Panics
/// As [`source`].
pub fn constants(kernel: &Kernel) -> Vec<u32> {
    specialise(kernel).unwrap_or_else(|e| panic!("shader `{}`: {e}", kernel.file)).constants
}
