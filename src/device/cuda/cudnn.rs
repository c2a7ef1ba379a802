//! cuDNN, NVIDIA's library of products: its graph API, in which every object is a descriptor that
//! takes attributes and is then finished.
//!
//! Bound by hand, as the driver is and for its reasons. Numbers and types are those of
//! `cudnn_graph_v9.h`; cuDNN 9 keeps them.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libloading::Library;

use super::bind::{load, version};
use super::driver::Address;

/// An object of the library.
type Handle = *mut c_void;

functions! {
    cudnnGetVersion: fn() -> usize;
    cudnnGetCudartVersion: fn() -> usize;
    cudnnGetErrorString: fn(c_int) -> *const c_char;
    cudnnGetLastErrorString: fn(*mut c_char, usize) -> ();
    cudnnCreate: fn(*mut Handle);
    cudnnDestroy: fn(Handle);
    cudnnSetStream: fn(Handle, Handle);
    cudnnBackendCreateDescriptor: fn(c_int, *mut Handle);
    cudnnBackendDestroyDescriptor: fn(Handle);
    cudnnBackendSetAttribute: fn(Handle, c_int, c_int, i64, *const c_void);
    cudnnBackendGetAttribute: fn(Handle, c_int, c_int, i64, *mut i64, *mut c_void);
    cudnnBackendFinalize: fn(Handle);
    cudnnBackendExecute: fn(Handle, Handle, Handle);
}

/// Calls a function that returns a status.
macro_rules! call {
    ($library:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let library: &Cudnn = $library;
        #[allow(unsafe_code, reason = "a function of the library")]
        // SAFETY: every object passed is alive, as its owner is borrowed; values and results are
        // locals or slices of the types and lengths that are passed beside them.
        let status = unsafe { (library.functions.$name)($($argument),*) };
        library.check(stringify!($name), status)
    }};
}

/// The library, open.
pub(super) struct Cudnn {
    functions: Functions,
    path: PathBuf,
    /// Never closed: its engines keep threads and code.
    _library: ManuallyDrop<Library>,
}

impl Cudnn {
    /// Opens `libcudnn.so.9`. Before anything else is asked of it the libraries of its CUDA that it
    /// ends the process without must be open: the compiler and cuBLASLt.
    ///
    /// # Errors
    /// What is missing or does not fit.
    pub(super) fn open(path: &Path, compiler_major: i32) -> Result<Rc<Self>, String> {
        let own = load(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let functions = Functions::find(&own)
            .map_err(|name| format!("{} has no {name}: it is older than 9", path.display()))?;
        #[allow(unsafe_code, reason = "a function of the library")]
        // SAFETY: it takes nothing and needs nothing.
        let major = unsafe { (functions.cudnnGetCudartVersion)() } / 1000;
        if usize::try_from(compiler_major) != Ok(major) {
            return Err(format!(
                "{} is for CUDA {major}, and the compiler is of {compiler_major}",
                path.display()
            ));
        }
        let library = ManuallyDrop::new(own);
        Ok(Rc::new(Self { functions, path: path.into(), _library: library }))
    }

    /// Its version and where it is.
    pub(super) fn describe(&self) -> [String; 2] {
        #[allow(unsafe_code, reason = "a function of the library")]
        // SAFETY: it takes nothing and needs nothing.
        let number = unsafe { (self.functions.cudnnGetVersion)() };
        [version(number), self.path.display().to_string()]
    }

    fn check(&self, call: &str, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        let mut last = [0u8; 512];
        #[allow(unsafe_code, reason = "functions of the library")]
        // SAFETY: it returns a constant string for every number, and writes a string that ends
        // within the length given.
        let name = unsafe {
            (self.functions.cudnnGetLastErrorString)(last.as_mut_ptr().cast(), last.len());
            CStr::from_ptr((self.functions.cudnnGetErrorString)(status))
        };
        let end = last.iter().position(|c| *c == 0).unwrap_or(0);
        let (name, last) = (name.to_string_lossy(), String::from_utf8_lossy(&last[..end]));
        Err(format!("{call}: {name} ({})", last.trim()))
    }
}

/// Kinds of descriptors: `cudnnBackendDescriptorType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pointwise = 0,
    Convolution = 1,
    Engine = 2,
    EngineConfig = 3,
    Heuristics = 4,
    ExecutionPlan = 5,
    Forward = 10,
    BackwardFilter = 11,
    BackwardData = 12,
    PointwiseOperation = 13,
    OperationGraph = 15,
    VariantPack = 16,
    Tensor = 17,
    DeviceProperties = 38,
}

/// Something that an attribute may hold: `cudnnBackendAttributeType_t`.
pub(super) trait Value: Copy {
    /// Number of the type.
    const TYPE: c_int;
}

macro_rules! values {
    ($($(#[$doc:meta])* $name:ident($of:ty) = $number:literal;)*) => {$(
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) struct $name(pub(super) $of);
        impl Value for $name {
            const TYPE: c_int = $number;
        }
    )*};
}

values! {
    /// `cudnnHandle_t`.
    OnHandle(Handle) = 0;
    /// `cudnnDataType_t`.
    DataType(c_int) = 1;
    /// C's `bool`.
    Flag(bool) = 2;
    /// An address on the device.
    Pointer(Address) = 6;
    /// `cudnnConvolutionMode_t`.
    ConvolutionMode(c_int) = 7;
    /// `cudnnBackendHeurMode_t`.
    HeuristicMode(c_int) = 8;
    /// `cudnnNanPropagation_t`.
    NanPropagation(c_int) = 10;
    /// `cudnnBackendNumericalNote_t`.
    NumericalNote(c_int) = 11;
    /// `cudnnPointwiseMode_t`.
    PointwiseMode(c_int) = 14;
    /// Another descriptor, which is alive.
    Reference(Handle) = 15;
    /// `cudnnBackendBehaviorNote_t`.
    BehaviorNote(c_int) = 19;
    /// A byte of a text.
    Character(u8) = 24;
}
impl Value for i64 {
    const TYPE: c_int = 3;
}
impl Value for f32 {
    const TYPE: c_int = 4;
}

/// An object of the graph API.
pub(super) struct Descriptor {
    library: Rc<Cudnn>,
    at: Handle,
    /// What it refers to.
    #[allow(dead_code, reason = "it is kept")]
    kept: Vec<Rc<Descriptor>>,
}

impl std::fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Descriptor").field(&self.at).finish()
    }
}

impl Descriptor {
    /// An empty one.
    pub(super) fn new(library: &Rc<Cudnn>, kind: Kind) -> Result<Self, String> {
        let mut at = std::ptr::null_mut();
        call!(library, cudnnBackendCreateDescriptor(kind as c_int, &mut at))?;
        Ok(Self { library: Rc::clone(library), at, kept: Vec::new() })
    }

    /// With an attribute.
    pub(super) fn with<T: Value>(self, attribute: c_int, values: &[T]) -> Result<Self, String> {
        let (count, list) = (values.len() as i64, values.as_ptr().cast());
        call!(&self.library, cudnnBackendSetAttribute(self.at, attribute, T::TYPE, count, list))?;
        Ok(self)
    }

    /// With references to others, which live as long as it does.
    pub(super) fn refer(mut self, attribute: c_int, to: &[Rc<Self>]) -> Result<Self, String> {
        self.kept.extend(to.iter().cloned());
        let handles: Vec<Reference> = to.iter().map(|d| Reference(d.at)).collect();
        self.with(attribute, &handles)
    }

    /// Finished: it is used from now on, and takes nothing more.
    pub(super) fn finish(self) -> Result<Rc<Self>, String> {
        call!(&self.library, cudnnBackendFinalize(self.at))?;
        Ok(Rc::new(self))
    }

    /// Reads an attribute's elements, at most as many as `room` has; how many there are.
    pub(super) fn get<T: Value>(&self, attribute: c_int, room: &mut [T]) -> Result<usize, String> {
        let (most, list, mut count) = (room.len() as i64, room.as_mut_ptr().cast(), 0);
        call!(
            &self.library,
            cudnnBackendGetAttribute(self.at, attribute, T::TYPE, most, &mut count, list)
        )?;
        Ok(usize::try_from(count).unwrap_or(0).min(room.len()))
    }

    /// Descriptors of a kind that an attribute holds, at most so many.
    pub(super) fn list(
        self: &Rc<Self>,
        attribute: c_int,
        kind: Kind,
        most: usize,
    ) -> Result<Vec<Rc<Self>>, String> {
        // The library fills descriptors that it is given.
        let empty = || -> Result<Self, String> {
            let mut empty = Self::new(&self.library, kind)?;
            empty.kept.push(Rc::clone(self));
            Ok(empty)
        };
        let mut filled = (0..most).map(|_| empty()).collect::<Result<Vec<_>, _>>()?;
        let mut handles: Vec<Reference> = filled.iter().map(|d| Reference(d.at)).collect();
        let count = self.get(attribute, &mut handles)?;
        filled.truncate(count);
        Ok(filled.into_iter().map(Rc::new).collect())
    }

    /// The library that it is of.
    pub(super) fn library(&self) -> &Rc<Cudnn> {
        &self.library
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        call!(&self.library, cudnnBackendDestroyDescriptor(self.at)).ok();
    }
}

/// The library on a device: the context that was current when it was made.
pub(super) struct OnDevice {
    pub(super) library: Rc<Cudnn>,
    handle: Handle,
}

impl OnDevice {
    /// What it does is queued on a stream.
    pub(super) fn new(library: &Rc<Cudnn>, stream: Handle) -> Result<Self, String> {
        let mut handle = std::ptr::null_mut();
        call!(library, cudnnCreate(&mut handle))?;
        let made = Self { library: Rc::clone(library), handle };
        call!(library, cudnnSetStream(handle, stream))?;
        Ok(made)
    }

    /// As an attribute.
    pub(super) fn value(&self) -> OnHandle {
        OnHandle(self.handle)
    }

    /// Queues what a plan does with what a variant pack holds.
    pub(super) fn execute(&self, plan: &Descriptor, pack: &Descriptor) -> Result<(), String> {
        call!(&self.library, cudnnBackendExecute(self.handle, plan.at, pack.at))
    }
}

impl Drop for OnDevice {
    fn drop(&mut self) {
        call!(&self.library, cudnnDestroy(self.handle)).ok();
    }
}
