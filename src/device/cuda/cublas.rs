//! cuBLASLt, NVIDIA's library of matrix products: convolutions of one tap, which linear layers are.
//!
//! Bound by hand, as cuDNN is. Numbers and types are those of `cublasLt.h`; cuBLAS 12 and 13 keep
//! them. Matrices lie column by column there, so it is asked for the transpose of what lies row by
//! row here.
//!
//! Operands keep their types and sums are f32, without TF32. Where it splits the sums, their parts
//! are f32 in the workspace and are added in a fixed order.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libloading::Library;

use super::bind::{load, version};
use super::driver::{Address, Memory};
use super::product::{Pass, Product, WORKSPACE};
use crate::tensor::{DType, Half, Shape};

/// An object of the library.
type Handle = *mut c_void;

functions! {
    cublasLtGetVersion: fn() -> usize;
    cublasLtGetStatusName: fn(c_int) -> *const c_char;
    cublasLtCreate: fn(*mut Handle);
    cublasLtDestroy: fn(Handle);
    cublasLtMatmulDescCreate: fn(*mut Handle, c_int, c_int);
    cublasLtMatmulDescSetAttribute: fn(Handle, c_int, *const c_void, usize);
    cublasLtMatmulDescDestroy: fn(Handle);
    cublasLtMatrixLayoutCreate: fn(*mut Handle, c_int, u64, u64, i64);
    cublasLtMatrixLayoutDestroy: fn(Handle);
    cublasLtMatmulPreferenceCreate: fn(*mut Handle);
    cublasLtMatmulPreferenceSetAttribute: fn(Handle, c_int, *const c_void, usize);
    cublasLtMatmulPreferenceDestroy: fn(Handle);
    cublasLtMatmulAlgoGetHeuristic:
        fn(Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Proposal,
            *mut c_int);
    cublasLtMatmul: fn(
        Handle, Handle, *const f32, Address, Handle, Address, Handle, *const f32, Address, Handle,
        Address, Handle, *const [u64; 8], Address, usize, Handle
    );
}

/// Calls a function that returns a status.
macro_rules! call {
    ($library:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let library: &Blas = $library;
        #[allow(unsafe_code, reason = "a function of the library")]
        // SAFETY: every object passed is alive, as its owner is borrowed; values and results are
        // locals of the types and lengths that the header says; addresses are of the device's
        // memory, of which the caller knows that it is large enough.
        let status = unsafe { (library.functions.$name)($($argument),*) };
        library.check(stringify!($name), status)
    }};
}

/// `cublasLtMatmulDescAttributes_t`.
mod attribute {
    use std::ffi::c_int;
    pub(super) const TRANSPOSED: [c_int; 2] = [3, 4]; // the first operand, the second
    pub(super) const EPILOGUE: c_int = 7;
    pub(super) const BIAS: c_int = 8;
}

/// `cublasLtMatmulPreferenceAttributes_t`.
mod preference {
    use std::ffi::c_int;
    pub(super) const WORKSPACE: c_int = 1;
    pub(super) const REDUCTIONS: c_int = 3;
    pub(super) const ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];
}

/// `CUBLAS_COMPUTE_32F`: sums in f32; of f32 operands without TF32.
const COMPUTE_F32: c_int = 68;
/// `CUBLASLT_EPILOGUE_BIAS`.
const WITH_BIAS: u32 = 4;
/// `CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE`: parts of sums are f32 in the workspace. The others add
/// up in the result, some of them rounded.
const REDUCTIONS: u32 = 2;
/// What addresses are multiples of.
const ALIGNMENT: u32 = 16;
/// Proposals that are asked for.
const ASKED: usize = 8;

/// `cudaDataType_t`.
fn data_type(ty: DType) -> c_int {
    match ty.half() {
        None => 0,
        Some(Half::F16) => 2,
        Some(Half::Bf16) => 14,
    }
}

/// A way to compute a product: `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Proposal {
    algorithm: [u64; 8],
    workspace: usize,
    /// Whether it can be taken.
    status: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// The library, open.
pub(super) struct Blas {
    functions: Functions,
    path: PathBuf,
    /// Never closed, as cuDNN is not, which uses it.
    _library: ManuallyDrop<Library>,
}

impl Blas {
    /// Opens it.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn open(path: &Path) -> Result<Rc<Self>, String> {
        let library = load(path).map_err(|e| e.to_string())?;
        let functions =
            Functions::find(&library).map_err(|name| format!("it has no function {name}"))?;
        Ok(Rc::new(Self { functions, path: path.into(), _library: ManuallyDrop::new(library) }))
    }

    /// Its version and where it is.
    pub(super) fn describe(&self) -> [String; 2] {
        #[allow(unsafe_code, reason = "a function of the library")]
        // SAFETY: it takes nothing and needs nothing.
        let number = unsafe { (self.functions.cublasLtGetVersion)() };
        [version(number), self.path.display().to_string()]
    }

    fn check(&self, call: &str, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        #[allow(unsafe_code, reason = "a function of the library")]
        // SAFETY: it returns a constant string for every number.
        let name = unsafe { CStr::from_ptr((self.functions.cublasLtGetStatusName)(status)) };
        Err(format!("{call}: {}", name.to_string_lossy()))
    }

    /// An object that was made, and what it goes by.
    fn own(self: &Rc<Self>, at: Handle, end: End) -> Object {
        Object { library: Rc::clone(self), at, end }
    }
}

/// What an object goes by.
type End = unsafe extern "C" fn(Handle) -> c_int;

/// An object of the library.
struct Object {
    library: Rc<Blas>,
    at: Handle,
    end: End,
}

impl Drop for Object {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "a function of the library")]
        // SAFETY: it is of the object's kind, and nobody uses the object any more.
        unsafe {
            (self.end)(self.at);
        }
    }
}

/// The library on a device: the context that was current when it was made.
pub(super) struct OnDevice {
    handle: Object,
    stream: Handle,
}

/// A matrix as it lies: columns behind each other.
struct Matrix {
    at: Address,
    layout: Object,
}

/// A product that is ready to be computed.
pub(super) struct Prepared {
    operation: Object,
    operands: [Matrix; 2],
    /// What is added to it: the result itself, 0 times, if nothing is.
    added: Matrix,
    result: Matrix,
    adds: bool,
    proposal: Proposal,
}

impl OnDevice {
    /// What it does is queued on a stream.
    pub(super) fn new(library: &Rc<Blas>, stream: Handle) -> Result<Self, String> {
        let mut handle = std::ptr::null_mut();
        call!(library, cublasLtCreate(&mut handle))?;
        Ok(Self { handle: library.own(handle, library.functions.cublasLtDestroy), stream })
    }

    /// A product by the library's proposal number `rank`, with what the kernel in whose place it
    /// stands binds.
    ///
    /// # Errors
    /// If there are not so many, or the library fails.
    pub(super) fn prepare(
        &self,
        product: &Product,
        rank: u32,
        arguments: &[Address],
    ) -> Result<Prepared, String> {
        let (on, mut made) = (&self.handle, prepared(&self.handle.library, product, arguments)?);
        let preference = preference(&on.library)?;
        let (mut found, mut count) = ([Proposal::default(); ASKED], 0);
        let [a, b] = &made.operands;
        call!(
            &on.library,
            cublasLtMatmulAlgoGetHeuristic(
                on.at,
                made.operation.at,
                a.layout.at,
                b.layout.at,
                made.added.layout.at,
                made.result.layout.at,
                preference.at,
                ASKED as c_int,
                found.as_mut_ptr(),
                &mut count,
            )
        )?;
        let count = usize::try_from(count).unwrap_or(0).min(ASKED);
        let fit = |p: &&Proposal| p.status == 0 && p.workspace <= WORKSPACE;
        let fitting: Vec<Proposal> = found[..count].iter().filter(fit).copied().collect();
        made.proposal = *fitting
            .get(rank as usize)
            .ok_or_else(|| format!("it proposes {} ways for this product", fitting.len()))?;
        Ok(made)
    }

    /// A prepared product with its memory.
    pub(super) fn bind(self: &Rc<Self>, prepared: Prepared, workspace: Memory) -> Call {
        Call { on: Rc::clone(self), prepared, workspace }
    }
}

/// Describes a product to the library, which refuses what is no description; what it proposes needs
/// a device.
pub(super) fn describe(library: &Rc<Blas>, product: &Product) -> Result<(), String> {
    let somewhere = [Address::from(ALIGNMENT); 5];
    prepared(library, product, &somewhere)?;
    preference(library).map(drop)
}

/// What is asked of proposals.
fn preference(library: &Rc<Blas>) -> Result<Object, String> {
    let mut at = std::ptr::null_mut();
    call!(library, cublasLtMatmulPreferenceCreate(&mut at))?;
    let made = library.own(at, library.functions.cublasLtMatmulPreferenceDestroy);
    let set = |which: c_int, value: *const c_void, bytes: usize| {
        call!(library, cublasLtMatmulPreferenceSetAttribute(at, which, value, bytes))
    };
    let most = WORKSPACE as u64;
    set(preference::WORKSPACE, std::ptr::from_ref(&most).cast(), size_of_val(&most))?;
    let numbers = preference::ALIGNMENTS.map(|which| (which, ALIGNMENT));
    for (which, number) in numbers.into_iter().chain([(preference::REDUCTIONS, REDUCTIONS)]) {
        set(which, std::ptr::from_ref(&number).cast(), size_of_val(&number))?;
    }
    Ok(made)
}

/// The product as one of matrices, by no proposal yet.
///
/// # Panics
/// If the library does not compute it.
fn prepared(
    library: &Rc<Blas>,
    product: &Product,
    arguments: &[Address],
) -> Result<Prepared, String> {
    assert!(product.is_matrices(), "the library does not compute {product:?}");
    let Product { x, w, y, epilogue, .. } = *product;
    // Images and maps are matrices with a column for each pixel, weights with one for each output.
    let matrix = |at: Address, ty: DType, s: Shape| {
        let [rows, columns] = [s.c, s.n * s.h * s.w].map(|n| n as u64);
        let (mut layout, ty) = (std::ptr::null_mut(), data_type(ty));
        call!(library, cublasLtMatrixLayoutCreate(&mut layout, ty, rows, columns, rows as i64))?;
        let layout = library.own(layout, library.functions.cublasLtMatrixLayoutDestroy);
        Ok::<_, String>(Matrix { at, layout })
    };
    // The first operand and the second, whether each is transposed, and the result.
    let [first, second] = [arguments[0], arguments[1]];
    let (a, b, transposed, result) = match product.pass {
        Pass::Forward => ((second, w), (first, x), [true, false], y),
        Pass::Data => ((second, w), (first, y), [false, false], x),
        Pass::Filter => ((first, x), (second, y), [false, true], w),
    };
    let operand = |(at, s)| matrix(at, product.operands, s);
    let output = |at| matrix(at, product.result, result);
    let mut operation = std::ptr::null_mut();
    call!(library, cublasLtMatmulDescCreate(&mut operation, COMPUTE_F32, data_type(DType::F32)))?;
    let operation = library.own(operation, library.functions.cublasLtMatmulDescDestroy);
    let set = |which: c_int, value: *const c_void, bytes: usize| {
        call!(library, cublasLtMatmulDescSetAttribute(operation.at, which, value, bytes))
    };
    for (which, yes) in attribute::TRANSPOSED.into_iter().zip(transposed) {
        let number = i32::from(yes); // `cublasOperation_t`
        set(which, std::ptr::from_ref(&number).cast(), size_of_val(&number))?;
    }
    if epilogue.bias {
        let bias = arguments[3];
        set(attribute::EPILOGUE, std::ptr::from_ref(&WITH_BIAS).cast(), size_of_val(&WITH_BIAS))?;
        set(attribute::BIAS, std::ptr::from_ref(&bias).cast(), size_of_val(&bias))?;
    }
    let added = arguments[if epilogue.add { 3 + usize::from(epilogue.bias) } else { 2 }];
    Ok(Prepared {
        operands: [operand(a)?, operand(b)?],
        added: output(added)?,
        result: output(arguments[2])?,
        adds: epilogue.add,
        operation,
        proposal: Proposal::default(),
    })
}

impl Prepared {
    /// Bytes that it takes beside its operands.
    pub(super) fn workspace(&self) -> usize {
        self.proposal.workspace
    }
}

/// A call of the library.
pub(super) struct Call {
    on: Rc<OnDevice>,
    prepared: Prepared,
    pub(super) workspace: Memory,
}

impl Call {
    /// Queues it.
    pub(super) fn queue(&self) -> Result<(), String> {
        let (on, p) = (&self.on.handle, &self.prepared);
        let ([a, b], one, with) = (&p.operands, 1f32, f32::from(u8::from(p.adds)));
        call!(
            &on.library,
            cublasLtMatmul(
                on.at,
                p.operation.at,
                &one,
                a.at,
                a.layout.at,
                b.at,
                b.layout.at,
                &with,
                p.added.at,
                p.added.layout.at,
                p.result.at,
                p.result.layout.at,
                &p.proposal.algorithm,
                self.workspace.at,
                self.workspace.bytes,
                self.on.stream,
            )
        )
    }
}
