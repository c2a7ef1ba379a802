//! Copies into workgroup memory that go on while the invocation does, for which WGSL has no word.
//!
//! A shader says what they do by functions whose names begin with `async_`. A device without such
//! copies carries out their bodies; here each is an instruction (`copies.cuh`).
//!
//! | function | here |
//! |---|---|
//! | `async_copy_*(to, source, inside)` | 16 bytes of a buffer to a workgroup array |
//! | `async_copy_near_*(to, source, inside)` | the same, through the cache of the multiprocessor |
//! | `async_commit()` | the copies so far are a group |
//! | `async_wait(newest)` | waits for all groups but the newest |

use naga::valid::FunctionInfo;
use naga::{AddressSpace, Function, GlobalVariable, Handle, Scalar, TypeInner, VectorSize};

use super::{CudaError, Scope, Writer, unknown};

impl Writer<'_> {
    /// The statement that takes the place of a function's body, if it is such a function.
    pub(super) fn copies(
        &self,
        function: &Function,
        info: &FunctionInfo,
        scope: &Scope<'_>,
    ) -> Result<Option<String>, CudaError> {
        let Some(name) = function.name.as_deref().filter(|name| name.starts_with("async_")) else {
            return Ok(None);
        };
        let takes = |kinds: &[Scalar]| {
            let inner = function.arguments.iter().map(|a| self.inner(a.ty).clone());
            inner.eq(kinds.iter().map(|s| TypeInner::Scalar(*s))) && function.result.is_none()
        };
        let arguments = &scope.arguments;
        match name {
            "async_commit" if takes(&[]) => Ok(Some("w_copies_commit();".into())),
            "async_wait" if takes(&[Scalar::U32]) => {
                Ok(Some(format!("w_copies_wait({});", arguments[0])))
            }
            _ if name.starts_with("async_copy_")
                && takes(&[Scalar::U32, Scalar::U32, Scalar::BOOL]) =>
            {
                let used = |space: fn(AddressSpace) -> bool| {
                    let all = self.module.global_variables.iter();
                    let mut found = all.filter(|(h, g)| space(g.space) && !info[*h].is_empty());
                    match (found.next(), found.next()) {
                        (Some((handle, global)), None) if self.is_piece(global) => Ok(handle),
                        _ => unknown(format!("`{name}` between other than two arrays of halves")),
                    }
                };
                let to = used(|space| space == AddressSpace::WorkGroup)?;
                let from = used(|space| matches!(space, AddressSpace::Storage { .. }))?;
                let of = |handle: Handle<GlobalVariable>| &self.globals[&handle];
                let [at, source, inside] = [0, 1, 2].map(|i| &arguments[i]);
                let (to, from) = (of(to), of(from));
                let near = if name.starts_with("async_copy_near_") { "_near" } else { "" };
                Ok(Some(format!("w_copy{near}({to}, {at}, {from}, {source}, {inside});")))
            }
            _ => unknown(format!("the function `{name}`")),
        }
    }

    /// Whether an array's elements are four 16-bit floats: two of them are copied at a time.
    fn is_piece(&self, global: &GlobalVariable) -> bool {
        let TypeInner::Array { base, .. } = *self.inner(global.ty) else { return false };
        let (size, scalar) = (VectorSize::Quad, Scalar::F16);
        *self.inner(base) == TypeInner::Vector { size, scalar }
    }
}
