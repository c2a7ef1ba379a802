//! The embedded shaders and their specialisation. A kernel's text is a file of `shaders/` with
//! imports resolved, `// spec` consts set, guards applied and `// unroll` loops expanded (`spec`);
//! each file is legal WGSL as it stands.

#[cfg(feature = "native")]
pub mod cuda;
mod files;
mod spec;

pub use files::FILES;

use crate::ops::Kernel;

/// Text of an embedded file (`relu`, `lib/grid`).
pub fn file(name: &str) -> Option<&'static str> {
    FILES.iter().find(|f| f.0 == name).map(|f| f.1)
}

/// Final WGSL of a kernel.
///
/// # Panics
/// If the kernel names an unknown file or const: a bug of an op's lowering, found by
/// `tests/shaders.rs` for every reachable kernel.
pub fn source(kernel: &Kernel) -> String {
    let text = file(kernel.file).unwrap_or_else(|| panic!("no shader `{}`", kernel.file));
    let consts: Vec<_> =
        kernel.consts.iter().map(|(name, value)| (*name, value.to_string())).collect();
    spec::specialise(text, &consts, file)
        .unwrap_or_else(|e| panic!("shader `{}`: {e}", kernel.file))
}
