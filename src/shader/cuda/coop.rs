//! Cooperative matrices: products of 16 by 16 that the lanes of a warp make together.
//!
//! naga does not compare the types of operands and of memory; here each that is not a product of
//! 16-bit floats with sums in f32, staged in workgroup memory, is refused by name.

use naga::{
    AddressSpace, CooperativeData, CooperativeRole as Role, CooperativeSize, Expression, Handle,
    Scalar, ScalarKind, TypeInner,
};

use super::{CudaError, Scope, Writer, unknown};

/// The name of a matrix's type in the prelude. Those of A and B are templates.
pub(super) fn type_name(ty: &TypeInner) -> Result<&'static str, CudaError> {
    let TypeInner::CooperativeMatrix { columns, rows, scalar, role } = *ty else {
        return unknown(format!("the matrix {ty:?}"));
    };
    let [across, down] = [columns, rows].map(|size| size as u8);
    if (columns, rows) != (CooperativeSize::Sixteen, CooperativeSize::Sixteen) {
        return unknown(format!("a cooperative matrix of {across} by {down}: only 16 by 16"));
    }
    match (role, scalar) {
        (Role::A, Scalar { kind: ScalarKind::Float, width: 2 }) => Ok("coop_a"),
        (Role::B, Scalar { kind: ScalarKind::Float, width: 2 }) => Ok("coop_b"),
        (Role::C, Scalar { kind: ScalarKind::Float, width: 4 }) => Ok("coop_c"),
        _ => {
            unknown(format!("a cooperative matrix {role:?} of {scalar:?}: A and B are f16, C f32"))
        }
    }
}

impl<'a> Writer<'a> {
    pub(super) fn coop_load(
        &self,
        scope: &Scope<'a>,
        e: Handle<Expression>,
        data: &CooperativeData,
    ) -> Result<String, CudaError> {
        let role = match type_name(self.ty(scope, e))? {
            "coop_a" => "a",
            "coop_b" => "b",
            _ => return unknown("a cooperative load of C"),
        };
        Ok(format!("w_coop_load_{role}{}", self.tile(scope, "", data)?))
    }

    pub(super) fn coop_multiply_add(
        &self,
        scope: &Scope<'a>,
        operands: [Handle<Expression>; 3],
    ) -> Result<String, CudaError> {
        let mut list = Vec::new();
        for e in operands {
            type_name(self.ty(scope, e))?;
            list.push(self.expression(scope, e)?);
        }
        Ok(format!("w_coop_multiply_add({})", list.join(", ")))
    }

    pub(super) fn coop_store(
        &self,
        scope: &Scope<'a>,
        matrix: Handle<Expression>,
        data: &CooperativeData,
    ) -> Result<String, CudaError> {
        if type_name(self.ty(scope, matrix))? != "coop_c" {
            return unknown("a cooperative store of A or B");
        }
        let value = format!("{}, ", self.expression(scope, matrix)?);
        Ok(format!("w_coop_store{};", self.tile(scope, &value, data)?))
    }

    /// Whether rows are lines of memory, and the arguments: what goes before, the corner and the
    /// stride.
    fn tile(
        &self,
        scope: &Scope<'a>,
        before: &str,
        data: &CooperativeData,
    ) -> Result<String, CudaError> {
        let pointer = self.ty(scope, data.pointer);
        match pointer.pointer_space() {
            Some(AddressSpace::WorkGroup) => {}
            other => return unknown(format!("a cooperative matrix in {other:?}")),
        }
        let corner = self.expression(scope, data.pointer)?;
        let stride = self.expression(scope, data.stride)?;
        Ok(format!("<{}>({before}{corner}, {stride})", data.row_major))
    }
}
