//! Expressions.

use naga::proc::TypeResolution;
use naga::{
    BinaryOperator as Binary, Expression, GlobalVariable, Handle, Literal, MathFunction as Math,
    RelationalFunction, Scalar, ScalarKind, Type, TypeInner, UnaryOperator,
};

use super::{CudaError, Scope, Writer, unknown};

const COMPONENTS: [&str; 4] = ["x", "y", "z", "w"];

impl<'a> Writer<'a> {
    /// Type of a value, as naga resolved it.
    pub(super) fn ty(&self, scope: &Scope<'a>, e: Handle<Expression>) -> &'a TypeInner {
        scope.info[e].ty.inner_with(&self.module.types)
    }

    /// Name of the type of a value.
    pub(super) fn value_type(
        &self,
        scope: &Scope<'a>,
        e: Handle<Expression>,
    ) -> Result<String, CudaError> {
        match &scope.info[e].ty {
            TypeResolution::Handle(handle) => self.type_name(*handle),
            TypeResolution::Value(inner) => self.inner_name(inner),
        }
    }

    /// Type of an operand, which must be one that is computed with.
    fn computes(
        &self,
        scope: &Scope<'a>,
        e: Handle<Expression>,
    ) -> Result<&'a TypeInner, CudaError> {
        let ty = self.ty(scope, e);
        if matches!(ty, TypeInner::CooperativeMatrix { .. }) {
            return unknown("arithmetic on cooperative matrices");
        }
        match ty.scalar() {
            Some(Scalar { kind: ScalarKind::Float, width: 2 }) => unknown("arithmetic in f16"),
            _ => Ok(ty),
        }
    }

    pub(super) fn is_vector_pointer(&self, scope: &Scope<'a>, e: Handle<Expression>) -> bool {
        match *self.ty(scope, e) {
            TypeInner::Pointer { base, .. } => {
                matches!(self.inner(base), TypeInner::Vector { .. })
            }
            TypeInner::ValuePointer { size, .. } => size.is_some(),
            _ => false,
        }
    }

    /// A value, or the lvalue that a pointer points to.
    pub(super) fn expression(
        &self,
        scope: &Scope<'a>,
        e: Handle<Expression>,
    ) -> Result<String, CudaError> {
        if let Some(name) = scope.named.get(&e) {
            return Ok(name.clone());
        }
        let value = |e: Handle<Expression>| self.expression(scope, e);
        Ok(match scope.function.expressions[e] {
            Expression::Literal(l) => self.literal(l)?,
            Expression::Constant(c) => self.constant(self.module.constants[c].init)?,
            Expression::ZeroValue(ty) => format!("{}{{}}", self.type_name(ty)?),
            Expression::Compose { ty, ref components } => {
                let list: Result<Vec<_>, _> = components.iter().map(|c| value(*c)).collect();
                self.compose(ty, &list?.join(", "))?
            }
            Expression::Splat { size, value: s } => splat(size as u8, &value(s)?),
            Expression::Swizzle { size, vector, pattern } => {
                let picked = &pattern[..size as usize];
                let list: Vec<_> = picked.iter().map(|p| (*p as u8).to_string()).collect();
                format!("w_swizzle<{}>({})", list.join(", "), value(vector)?)
            }
            Expression::FunctionArgument(i) => scope.arguments[i as usize].clone(),
            Expression::LocalVariable(v) => scope.locals[&v].clone(),
            Expression::GlobalVariable(g) => self.global(g),
            Expression::Load { pointer } => value(pointer)?,
            Expression::Access { base, index } => {
                let vector = self.is_vector_pointer(scope, base)
                    || matches!(self.ty(scope, base), TypeInner::Vector { .. });
                let (base, index) = (value(base)?, value(index)?);
                if vector { format!("w_get({base}, {index})") } else { format!("{base}[{index}]") }
            }
            Expression::AccessIndex { base, index } => self.member(scope, base, index)?,
            Expression::Unary { op, expr } => self.unary(scope, op, expr)?,
            Expression::Binary { op, left, right } => self.binary(scope, op, left, right)?,
            Expression::Select { condition, accept, reject } => {
                let vector = matches!(self.ty(scope, condition), TypeInner::Vector { .. });
                let (c, a, b) = (value(condition)?, value(accept)?, value(reject)?);
                if vector {
                    format!("w_select({c}, {a}, {b})")
                } else {
                    format!("({c} ? {a} : {b})")
                }
            }
            Expression::Relational { fun: RelationalFunction::All, argument } => {
                format!("w_all({})", value(argument)?)
            }
            Expression::Relational { fun: RelationalFunction::Any, argument } => {
                format!("w_any({})", value(argument)?)
            }
            Expression::Math { fun, arg, arg1, arg2, arg3 } => {
                let function = math(fun)?;
                self.computes(scope, arg)?;
                let list = [Some(arg), arg1, arg2, arg3].into_iter().flatten();
                let list: Result<Vec<_>, _> = list.map(value).collect();
                format!("{function}({})", list?.join(", "))
            }
            Expression::As { expr, kind, convert } => {
                if convert.is_none() {
                    self.computes(scope, expr)?;
                }
                let to = self.scalar(Scalar { kind, width: convert.unwrap_or(4) })?;
                let function = if convert.is_some() { "w_cast" } else { "w_bitcast" };
                format!("{function}<{to}>({})", value(expr)?)
            }
            Expression::CooperativeLoad { ref data, .. } => self.coop_load(scope, e, data)?,
            Expression::CooperativeMultiplyAdd { a, b, c } => {
                self.coop_multiply_add(scope, [a, b, c])?
            }
            ref other => return unknown(format!("the expression {other:?}")),
        })
    }

    /// A global variable as an lvalue: what a binding points to, unless it is an array.
    fn global(&self, handle: Handle<GlobalVariable>) -> String {
        let (global, name) = (&self.module.global_variables[handle], &self.globals[&handle]);
        let array = matches!(self.inner(global.ty), TypeInner::Array { .. });
        if global.binding.is_some() && !array { format!("(*{name})") } else { name.clone() }
    }

    /// A component, a field or an element by a constant index.
    fn member(
        &self,
        scope: &Scope<'a>,
        base: Handle<Expression>,
        index: u32,
    ) -> Result<String, CudaError> {
        let mut ty = self.ty(scope, base);
        if let TypeInner::Pointer { base, .. } = *ty {
            ty = self.inner(base);
        }
        let text = self.expression(scope, base)?;
        Ok(match ty {
            TypeInner::Vector { .. } | TypeInner::ValuePointer { .. } => {
                format!("{text}.{}", COMPONENTS[index as usize])
            }
            TypeInner::Struct { members, .. } => {
                let field = members[index as usize].name.as_deref().unwrap_or("unnamed");
                format!("{text}.{field}_")
            }
            _ => format!("{text}[{index}u]"),
        })
    }

    fn unary(
        &self,
        scope: &Scope<'a>,
        op: UnaryOperator,
        operand: Handle<Expression>,
    ) -> Result<String, CudaError> {
        let ty = self.computes(scope, operand)?;
        let vector = matches!(ty, TypeInner::Vector { .. });
        let signed = ty.scalar().is_some_and(|s| s.kind == ScalarKind::Sint);
        let x = self.expression(scope, operand)?;
        Ok(match op {
            UnaryOperator::Negate if vector || signed => format!("w_neg({x})"),
            UnaryOperator::Negate => format!("(-{x})"),
            UnaryOperator::LogicalNot if vector => format!("w_not({x})"),
            UnaryOperator::LogicalNot => format!("(!{x})"),
            UnaryOperator::BitwiseNot => format!("w_inv({x})"),
        })
    }

    /// An operator of C++ where it means what WGSL's means, else a function of the prelude.
    fn binary(
        &self,
        scope: &Scope<'a>,
        op: Binary,
        left: Handle<Expression>,
        right: Handle<Expression>,
    ) -> Result<String, CudaError> {
        let (left_type, right_type) = (self.computes(scope, left)?, self.computes(scope, right)?);
        let (mut l, mut r) = (self.expression(scope, left)?, self.expression(scope, right)?);
        match (left_type, right_type) {
            (TypeInner::Vector { size, .. }, TypeInner::Scalar(_)) => r = splat(*size as u8, &r),
            (TypeInner::Scalar(_), TypeInner::Vector { size, .. }) => l = splat(*size as u8, &l),
            _ => {}
        }
        let vector = [left_type, right_type].iter().any(|t| matches!(t, TypeInner::Vector { .. }));
        let kind = left_type.scalar().map(|s| s.kind);
        let (signed, float) = (kind == Some(ScalarKind::Sint), kind == Some(ScalarKind::Float));
        let boolean = kind == Some(ScalarKind::Bool);
        // A positive literal divides as in C++, and one below 32 shifts unsigned numbers as in C++.
        let value = self.integer(scope, right);
        let divides = value.is_some_and(|x| x > 0);
        let shifts = !signed && value.is_some_and(|x| (0..32).contains(&x));
        let (function, operator, plain) = match op {
            Binary::Add => ("w_add", "+", !signed),
            Binary::Subtract => ("w_sub", "-", !signed),
            Binary::Multiply => ("w_mul", "*", !signed),
            Binary::Divide => ("w_div", "/", float || divides),
            Binary::Modulo => ("w_rem", "%", !float && divides),
            Binary::ShiftLeft => ("w_shl", "<<", shifts),
            Binary::ShiftRight => ("w_shr", ">>", shifts),
            Binary::And => ("w_and", "&", !boolean),
            Binary::InclusiveOr => ("w_or", "|", !boolean),
            Binary::ExclusiveOr => ("w_xor", "^", true),
            Binary::Equal => ("w_eq", "==", true),
            Binary::NotEqual => ("w_ne", "!=", true),
            Binary::Less => ("w_lt", "<", true),
            Binary::LessEqual => ("w_le", "<=", true),
            Binary::Greater => ("w_gt", ">", true),
            Binary::GreaterEqual => ("w_ge", ">=", true),
            Binary::LogicalAnd => ("w_and", "&&", true),
            Binary::LogicalOr => ("w_or", "||", true),
        };
        Ok(match plain && !vector {
            true => format!("({l} {operator} {r})"),
            false => format!("{function}({l}, {r})"),
        })
    }

    /// The value of an integer literal or of a named constant that is one.
    fn integer(&self, scope: &Scope<'a>, e: Handle<Expression>) -> Option<i64> {
        let literal = match scope.function.expressions[e] {
            Expression::Literal(l) => l,
            Expression::Constant(c) => {
                match self.module.global_expressions[self.module.constants[c].init] {
                    Expression::Literal(l) => l,
                    _ => return None,
                }
            }
            _ => return None,
        };
        match literal {
            Literal::U32(x) => Some(i64::from(x)),
            Literal::I32(x) => Some(i64::from(x)),
            _ => None,
        }
    }

    fn compose(&self, ty: Handle<Type>, list: &str) -> Result<String, CudaError> {
        Ok(match self.inner(ty) {
            TypeInner::Vector { size, scalar: s } => {
                format!("w_vec{}<{}>({list})", *size as u8, self.scalar(*s)?)
            }
            TypeInner::Array { .. } => format!("{}{{{{{list}}}}}", self.type_name(ty)?),
            _ => format!("{}{{{list}}}", self.type_name(ty)?),
        })
    }

    /// A constant of the module, written where it is used.
    fn constant(&self, e: Handle<Expression>) -> Result<String, CudaError> {
        Ok(match self.module.global_expressions[e] {
            Expression::Literal(l) => self.literal(l)?,
            Expression::Constant(c) => self.constant(self.module.constants[c].init)?,
            Expression::ZeroValue(ty) => format!("{}{{}}", self.type_name(ty)?),
            Expression::Splat { size, value } => splat(size as u8, &self.constant(value)?),
            Expression::Compose { ty, ref components } => {
                let list: Result<Vec<_>, _> =
                    components.iter().map(|c| self.constant(*c)).collect();
                self.compose(ty, &list?.join(", "))?
            }
            ref other => return unknown(format!("the constant {other:?}")),
        })
    }
}

fn splat(size: u8, value: &str) -> String {
    format!("w_splat<{size}>({value})")
}

impl Writer<'_> {
    fn literal(&self, l: Literal) -> Result<String, CudaError> {
        Ok(match l {
            Literal::F32(x) if !x.is_finite() => return unknown(format!("the literal {x}")),
            Literal::F32(x) if x.is_sign_negative() => format!("({x:?}f)"),
            Literal::F32(x) => format!("{x:?}f"),
            Literal::F16(x) => {
                format!("{}{{{:#06x}}}", self.half.name(), self.half.bits(x.to_f32()))
            }
            Literal::U32(x) => format!("{x}u"),
            Literal::I32(i32::MIN) => "(-2147483647 - 1)".into(),
            Literal::I32(x) if x < 0 => format!("({x})"),
            Literal::I32(x) => x.to_string(),
            Literal::Bool(x) => x.to_string(),
            other => return unknown(format!("the literal {other:?}")),
        })
    }
}

fn math(function: Math) -> Result<&'static str, CudaError> {
    Ok(match function {
        Math::Abs => "w_abs",
        Math::Min => "w_min",
        Math::Max => "w_max",
        Math::Clamp => "w_clamp",
        Math::Floor => "w_floor",
        Math::Ceil => "w_ceil",
        Math::Trunc => "w_trunc",
        Math::Round => "w_round",
        Math::Fract => "w_fract",
        Math::Exp => "w_exp",
        Math::Exp2 => "w_exp2",
        Math::Log => "w_log",
        Math::Log2 => "w_log2",
        Math::Sqrt => "w_sqrt",
        Math::InverseSqrt => "w_rsqrt",
        Math::Sin => "w_sin",
        Math::Cos => "w_cos",
        Math::Tanh => "w_tanh",
        Math::Pow => "w_pow",
        Math::Fma => "w_fma",
        Math::Mix => "w_mix",
        Math::Dot => "w_dot",
        Math::Unpack4x8unorm => "w_unpack4x8unorm",
        other => return unknown(format!("the function {other:?}")),
    })
}
