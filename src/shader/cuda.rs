//! WGSL to CUDA C++, from naga's IR: a compute module becomes one `__global__` function over
//! [`PRELUDE`], which holds WGSL's types and those of its rules that differ from C++'s.
//!
//! * A load, a call and whatever is used twice get a name where naga says `Emit`, which is when
//!   WGSL evaluates them; other values are written where they are used, and pointers are lvalues.
//! * Functions are inlined. Besides their own arguments they get the bound buffers that they use.
//! * Names end in `_`, so that none is a keyword of C++ or a built-in of CUDA.
//! * The uniform is a pointer like every buffer: a graph sees the values of each launch.
//! * Subgroups are warps, and cooperative matrices the tensor cores' (`coop.cuh`).
//! * f16 is what memory holds: there is no arithmetic of it, as shaders compute in f32. bf16 is f16
//!   by another name up to here ([`BF16`]). What f32 is as either is an instruction (`rounding`).
//! * A construct that no shader needs yet is an error that names it, not a guess.

mod body;
mod coop;
mod copies;
mod names;
mod rounding;
mod value;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;

use naga::valid::{Capabilities, FunctionInfo, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, ArraySize, BuiltIn, Expression, Function, GlobalVariable, Handle, LocalVariable,
    Module, Scalar, ScalarKind, StorageAccess, Type, TypeInner,
};
use names::Names;

use super::BF16;
use super::spec::replace_word;
use crate::ops::Target;
use crate::tensor::Half;

/// What every translated kernel stands on; goes before the texts of one program, once.
pub const PRELUDE: &str = concat!(
    include_str!("cuda/wgsl.cuh"),
    include_str!("cuda/coop.cuh"),
    include_str!("cuda/copies.cuh")
);

/// Bytes of shared memory that a kernel may declare (CUDA C++ Programming Guide, compute
/// capabilities); more is asked for by the launch.
pub const STATIC: u32 = 48 << 10;

/// Lanes of a subgroup, which CUDA calls a warp.
pub const LANES: u32 = 32;

/// What plans for CUDA are lowered to: every GPU since 2016 can do it. Blocks of 1024 threads are
/// not asked for, as two of them would not fit beside each other. Every parameter is a pointer, and
/// there are 4 KB of them (CUDA C++ Programming Guide, function parameters), two for uniforms.
pub const TARGET: Target = Target {
    storage_buffers: 510,
    max_invocations: 512,
    workgroup_memory: STATIC,
    subgroup: Some(LANES),
    ..Target::WEBGPU
};

/// What plans for a GPU of a compute capability are lowered to. Since 8.0 (Ampere) tensor cores
/// multiply matrices of 16 by 16 as `coop.cuh` asks for, copies to shared memory need no thread
/// (`copies.cuh`), and a launch may ask for 99 KB of it at least (8.6 and 8.9; 8.0 has 163, 9.0 has
/// 227: CUDA C++ Programming Guide, compute capabilities).
pub fn target(capability: [i32; 2]) -> Target {
    if capability < [8, 0] {
        return TARGET;
    }
    Target { coop: Some(16), copies: true, workgroup_memory: 99 << 10, ..TARGET }
}

/// A kernel in CUDA C++.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaKernel {
    /// The text, without [`PRELUDE`]. Kernels of several names may share a program: each stands in
    /// a namespace.
    pub text: String,
    /// Name of the `__global__` function.
    pub name: String,
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// `@binding`s in the order of the parameters, all of which are pointers.
    pub bindings: Vec<u32>,
    /// Bytes of shared memory.
    pub shared: u32,
}

impl CudaKernel {
    /// Bytes of shared memory that a launch asks for: all of it, where it is more than the
    /// [`STATIC`] that a kernel may have by itself.
    pub fn dynamic(&self) -> u32 {
        dynamic(self.shared)
    }
}

fn dynamic(shared: u32) -> u32 {
    if shared > STATIC { shared } else { 0 }
}

/// A text that could not be translated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// naga refuses the WGSL.
    #[error("{0}")]
    Wgsl(String),
    /// No shader needed this so far.
    #[error("the CUDA writer does not know {0}")]
    Unknown(String),
}

/// `Err` for a construct that the writer does not know.
fn unknown<T>(what: impl Into<String>) -> Result<T, CudaError> {
    Err(CudaError::Unknown(what.into()))
}

/// Translates the one entry point of a WGSL module to a kernel called `name`.
///
/// # Errors
/// If naga refuses the text, or it holds a construct that this writer does not know.
pub fn translate(wgsl: &str, name: &str) -> Result<CudaKernel, CudaError> {
    let refused = |message| CudaError::Wgsl(message);
    let half = if wgsl.starts_with(BF16) { Half::Bf16 } else { Half::F16 };
    let spelled = match half {
        Half::Bf16 => replace_word(wgsl, "bf16", "f16"),
        Half::F16 => wgsl.to_owned(),
    };
    let wgsl = &spelled[..];
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| refused(e.emit_to_string(wgsl)))?;
    let able =
        Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX | Capabilities::SUBGROUP;
    let mut validator = Validator::new(ValidationFlags::all(), able);
    let info = validator.validate(&module).map_err(|e| refused(e.emit_to_string(wgsl)))?;
    let writer = Writer {
        module: &module,
        info: &info,
        half,
        out: String::new(),
        globals: HashMap::new(),
        functions: HashMap::new(),
        barriers: false,
        cooperates: false,
    };
    writer.kernel(name)
}

struct Writer<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    /// What the text's f16 is.
    half: Half,
    out: String,
    globals: HashMap<Handle<GlobalVariable>, String>,
    functions: HashMap<Handle<Function>, String>,
    /// Whether a barrier was written.
    barriers: bool,
    /// Whether something was written that all lanes of a warp do together.
    cooperates: bool,
}

/// The function that is being written.
struct Scope<'a> {
    function: &'a Function,
    info: &'a FunctionInfo,
    arguments: Vec<String>,
    locals: HashMap<Handle<LocalVariable>, String>,
    /// Values that have a name by now.
    named: HashMap<Handle<Expression>, String>,
    names: Names,
    /// The loops around: the number of each, and whether a `continue` was met in it.
    loops: Vec<(usize, bool)>,
    /// Loops so far.
    labels: usize,
}

/// The workgroup variables of a module.
#[derive(Default)]
struct Shared {
    bytes: u32,
    /// Fills them with NaN, on a host.
    poison: String,
}

impl<'a> Writer<'a> {
    fn inner(&self, ty: Handle<Type>) -> &'a TypeInner {
        &self.module.types[ty].inner
    }

    fn type_name(&self, ty: Handle<Type>) -> Result<String, CudaError> {
        if let TypeInner::Struct { .. } = self.inner(ty) {
            return match &self.module.types[ty].name {
                Some(name) => Ok(format!("{name}_")),
                None => unknown("a struct without a name"),
            };
        }
        self.inner_name(self.inner(ty))
    }

    fn inner_name(&self, ty: &TypeInner) -> Result<String, CudaError> {
        Ok(match *ty {
            TypeInner::Scalar(s) => self.scalar(s)?.into(),
            TypeInner::Vector { size, scalar: s } => {
                format!("vec<{}, {}>", self.scalar(s)?, size as u8)
            }
            TypeInner::CooperativeMatrix { .. } => match coop::type_name(ty)? {
                sums @ "coop_c" => sums.into(),
                operand => format!("{operand}<{}>", self.half.name()),
            },
            TypeInner::Array { base, size: ArraySize::Constant(n), .. } => {
                format!("arr<{}, {n}>", self.type_name(base)?)
            }
            ref other => return unknown(format!("the type {other:?}")),
        })
    }

    fn kernel(mut self, name: &str) -> Result<CudaKernel, CudaError> {
        let [entry] = &self.module.entry_points[..] else { return unknown("several entry points") };
        let info = self.info.get_entry_point(0);
        self.structs()?;
        let mut names = Names::default();
        let shared = self.shared(&mut names)?;
        let bound = self.bound(info)?;
        for (handle, function) in self.module.functions.iter() {
            let name = names.fresh(function.name.as_deref().unwrap_or("f"));
            self.functions.insert(handle, name.clone());
            self.function(function, &self.info[handle], &name, &names)?;
        }
        let parameters: Result<Vec<_>, _> = bound.values().map(|h| self.parameter(*h)).collect();
        let [x, y, z] = entry.workgroup_size;
        let (threads, parameters) = (x * y * z, parameters?.join(", "));
        // What looks ahead (lib/ahead.wgsl) needs its loads under way more than it needs company:
        // without a second bound ptxas puts each load beside its use, which saves registers.
        let ahead = self.module.constants.iter().any(|(_, c)| c.name.as_deref() == Some("AHEAD"));
        let company = if ahead { ", 1" } else { "" };
        let bounds = format!("__launch_bounds__({threads}{company})");
        self.line(0, &format!("extern \"C\" __global__ void {bounds} {name}({parameters}) {{"));
        self.entry(entry, info, &names)?;
        let pointers: Vec<_> = (0..bound.len()).map(|i| format!("WGSL_AT({i})")).collect();
        let (count, pointers, poison) = (bound.len(), pointers.join(", "), &shared.poison);
        if self.cooperates && threads % LANES != 0 {
            return unknown(format!("matrices of warps in a workgroup of {threads}"));
        }
        // Lanes meet as threads at a barrier do.
        let barriers = self.barriers || self.cooperates;
        self.line(0, "}");
        self.line(
            0,
            &format!(
                "WGSL_ENTRY({name}, {x}, {y}, {z}, {barriers}, {count}, \
            ({pointers}), {{ {poison}}}, {})",
                dynamic(shared.bytes)
            ),
        );
        Ok(CudaKernel {
            text: format!("namespace n_{name} {{\n{}}}\n", self.out),
            name: name.into(),
            block: entry.workgroup_size,
            bindings: bound.into_keys().collect(),
            shared: shared.bytes,
        })
    }

    /// Declares the structs. NVRTC 13.0 has no `offsetof`, so their layout is checked here against
    /// C++'s rule.
    fn structs(&mut self) -> Result<(), CudaError> {
        for (handle, ty) in self.module.types.iter() {
            let TypeInner::Struct { members, span } = &ty.inner else { continue };
            let name = self.type_name(handle)?;
            let (mut fields, mut at) = (String::new(), 0);
            for member in members {
                let field = member.name.as_deref().unwrap_or("unnamed");
                let (size, align) = match self.inner(member.ty) {
                    TypeInner::Scalar(Scalar { width: 4, .. }) => (4, 4),
                    TypeInner::Vector { size, scalar: Scalar { width: 4, .. } }
                        if *size != naga::VectorSize::Tri =>
                    {
                        (4 * *size as u32, 4 * *size as u32)
                    }
                    other => return unknown(format!("a struct member of type {other:?}")),
                };
                at = u32::next_multiple_of(at, align);
                if at != member.offset {
                    let offset = member.offset;
                    return unknown(format!(
                        "`{name}.{field}` at {offset}, which C++ puts at {at}"
                    ));
                }
                at += size;
                write!(fields, "{} {field}_; ", self.type_name(member.ty)?).ok();
            }
            self.line(0, &format!("struct {name} {{ {fields}}};"));
            self.line(0, &format!("static_assert(sizeof({name}) == {span}, \"layout\");"));
        }
        Ok(())
    }

    /// Declares the workgroup variables, or where in the launch's shared memory they are.
    fn shared(&mut self, names: &mut Names) -> Result<Shared, CudaError> {
        let mut shared = Shared::default();
        let mut variables = Vec::new();
        for (handle, global) in self.module.global_variables.iter() {
            let name = names.fresh(global.name.as_deref().unwrap_or("g"));
            if global.space == AddressSpace::WorkGroup {
                let at = shared.bytes.next_multiple_of(16);
                shared.bytes = at + self.inner(global.ty).size(self.module.to_ctx());
                variables.push((handle, name.clone(), self.type_name(global.ty)?, at));
            }
            self.globals.insert(handle, name);
        }
        let dynamic = dynamic(shared.bytes) > 0;
        if dynamic {
            self.line(0, &format!("WGSL_DYNAMIC(dynamic_, {});", shared.bytes));
        }
        for (handle, name, ty, at) in variables {
            if dynamic {
                self.globals.insert(handle, format!("(*({ty}*)((char*)dynamic_ + {at}))"));
            } else {
                self.line(0, &format!("WGSL_SHARED({ty}) {name};"));
            }
            write!(shared.poison, "WGSL_POISON({}); ", self.globals[&handle]).ok();
        }
        Ok(shared)
    }

    /// The bound variables by `@binding`.
    fn bound(
        &self,
        info: &FunctionInfo,
    ) -> Result<BTreeMap<u32, Handle<GlobalVariable>>, CudaError> {
        let mut bound = BTreeMap::new();
        for (handle, global) in self.module.global_variables.iter() {
            let name = &self.globals[&handle];
            match (global.space, &global.binding) {
                (AddressSpace::WorkGroup, _) => {}
                // A dispatch binds everything that is declared: a host's list would not fit.
                (_, Some(_)) if info[handle].is_empty() => {
                    return unknown(format!("`{name}`, which is bound and not used"));
                }
                (AddressSpace::Uniform | AddressSpace::Storage { .. }, Some(at)) => {
                    bound.insert(at.binding, handle);
                }
                (space, _) => return unknown(format!("a variable in {space:?}")),
            }
        }
        Ok(bound)
    }

    /// A buffer as a parameter.
    fn parameter(&self, handle: Handle<GlobalVariable>) -> Result<String, CudaError> {
        let global = &self.module.global_variables[handle];
        let element = match self.inner(global.ty) {
            TypeInner::Array { base, stride, .. } => {
                let size = self.inner(*base).size(self.module.to_ctx());
                if *stride != size {
                    return unknown(format!("an array of stride {stride} of elements of {size}"));
                }
                self.type_name(*base)?
            }
            _ => self.type_name(global.ty)?,
        };
        let written = matches!(global.space,
            AddressSpace::Storage { access } if access.contains(StorageAccess::STORE));
        let kind = if written { "WGSL_WRITE" } else { "WGSL_READ" };
        Ok(format!("{kind}({element}) {}", self.globals[&handle]))
    }

    /// The bound variables that a function or its callees use.
    fn needs(&self, info: &FunctionInfo) -> Vec<Handle<GlobalVariable>> {
        let globals = self.module.global_variables.iter();
        globals.filter(|(h, g)| g.binding.is_some() && !info[*h].is_empty()).map(|g| g.0).collect()
    }

    fn function(
        &mut self,
        function: &'a Function,
        info: &'a FunctionInfo,
        name: &str,
        names: &Names,
    ) -> Result<(), CudaError> {
        let mut scope = Scope::new(function, info, names);
        let mut parameters = Vec::new();
        for argument in &function.arguments {
            let name = scope.names.fresh(argument.name.as_deref().unwrap_or("a"));
            parameters.push(match *self.inner(argument.ty) {
                TypeInner::Pointer { base, .. } => format!("{}& {name}", self.type_name(base)?),
                _ => format!("const {} {name}", self.type_name(argument.ty)?),
            });
            scope.arguments.push(name);
        }
        for handle in self.needs(info) {
            parameters.push(self.parameter(handle)?);
        }
        let result = match &function.result {
            Some(result) => self.type_name(result.ty)?,
            None => "void".into(),
        };
        self.line(0, &format!("WGSL_FN {result} {name}({}) {{", parameters.join(", ")));
        let instruction = match self.rounding(function, &scope)? {
            None => self.copies(function, info, &scope)?,
            rounding => rounding,
        };
        match instruction {
            Some(statement) => self.line(1, &statement),
            None => self.body(&mut scope)?,
        }
        self.line(0, "}");
        Ok(())
    }

    /// The body of the entry point, built-in values first.
    fn entry(
        &mut self,
        entry: &'a naga::EntryPoint,
        info: &'a FunctionInfo,
        names: &Names,
    ) -> Result<(), CudaError> {
        let mut scope = Scope::new(&entry.function, info, names);
        for argument in &entry.function.arguments {
            let Some(naga::Binding::BuiltIn(built_in)) = argument.binding else {
                return unknown("an argument of the entry point that is no built-in value");
            };
            let value = match built_in {
                BuiltIn::WorkGroupId => "w_workgroup_id()",
                BuiltIn::NumWorkGroups => "w_num_workgroups()",
                BuiltIn::LocalInvocationId => "w_local_invocation_id()",
                BuiltIn::LocalInvocationIndex => "w_local_invocation_index()",
                BuiltIn::GlobalInvocationId => "w_global_invocation_id()",
                BuiltIn::SubgroupId => "w_subgroup_id()",
                BuiltIn::SubgroupInvocationId => "w_lane()",
                other => return unknown(format!("the built-in value {other:?}")),
            };
            let name = scope.names.fresh(argument.name.as_deref().unwrap_or("a"));
            let ty = self.type_name(argument.ty)?;
            self.line(1, &format!("const {ty} {name} = {value};"));
            scope.arguments.push(name);
        }
        self.body(&mut scope)
    }

    fn scalar(&self, s: Scalar) -> Result<&'static str, CudaError> {
        match (s.kind, s.width) {
            (ScalarKind::Float, 4) => Ok("f32"),
            (ScalarKind::Float, 2) => Ok(self.half.name()),
            (ScalarKind::Uint, 4) => Ok("u32"),
            (ScalarKind::Sint, 4) => Ok("i32"),
            (ScalarKind::Bool, _) => Ok("bool"),
            other => unknown(format!("the scalar {other:?}")),
        }
    }

    fn line(&mut self, depth: usize, text: &str) {
        let indent = depth * 2;
        // Writing to a string cannot fail.
        writeln!(self.out, "{:indent$}{text}", "").ok();
    }
}

impl<'a> Scope<'a> {
    fn new(function: &'a Function, info: &'a FunctionInfo, names: &Names) -> Self {
        Self {
            function,
            info,
            arguments: vec![],
            locals: HashMap::new(),
            named: HashMap::new(),
            names: names.clone(),
            loops: vec![],
            labels: 0,
        }
    }
}
