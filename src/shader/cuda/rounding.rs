//! What a 16-bit float keeps of f32, which WGSL finds by bits (`lib/round_f16.wgsl`,
//! `lib/round_bf16.wgsl`), because compilers for Vulkan make nothing of a conversion there and
//! back. Here the conversions are instructions that stay, and give the same bits.

use naga::{Function, Scalar, TypeInner, VectorSize};

use super::{CudaError, Scope, Writer, unknown};

impl Writer<'_> {
    /// The statement that takes the place of a function's body, if it is such a function.
    pub(super) fn rounding(
        &self,
        function: &Function,
        scope: &Scope<'_>,
    ) -> Result<Option<String>, CudaError> {
        let Some(name @ ("round_f16" | "round_bf16")) = function.name.as_deref() else {
            return Ok(None);
        };
        let four = TypeInner::Vector { size: VectorSize::Quad, scalar: Scalar::F32 };
        let types =
            function.arguments.iter().map(|a| a.ty).chain(function.result.iter().map(|r| r.ty));
        if !types.map(|ty| self.inner(ty).clone()).eq([four.clone(), four]) {
            return unknown(format!("the function `{name}`"));
        }
        let half = &name["round_".len()..];
        Ok(Some(format!("return w_round<{half}>({});", scope.arguments[0])))
    }
}
