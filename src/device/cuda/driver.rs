//! The CUDA driver: its functions, and what they make as values that free themselves.
//!
//! The functions are bound by hand, with numbers for results. `cudarc` returns Rust enums, and a
//! driver newer than its bindings may give a number that is none of them; it panics where a library
//! or a function is missing; and it opens libraries by fixed names only.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libloading::Library;

/// An object of the driver.
type Handle = *mut c_void;
/// An address on the device.
pub(super) type Address = u64;

/// `CUresult`s with a meaning here.
const OUT_OF_MEMORY: c_int = 2;
const NOT_READY: c_int = 600;
/// The driver cannot use a module: an invalid image, one for another GPU, or what should have been
/// compiled.
const BAD_IMAGE: [c_int; 4] = [200, 209, 218, 300];
/// After these nothing works in the process's context any more: the driver is going or gone, the
/// device is unavailable, contained or has bad memory, or a kernel did something that ends the
/// context.
const LOST: [c_int; 16] =
    [4, 46, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999];

/// A call that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failed {
    /// The driver's function.
    pub(super) call: &'static str,
    code: c_int,
    /// What the driver says of the code.
    text: String,
}

impl Failed {
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.code == OUT_OF_MEMORY
    }
    pub(super) fn is_bad_image(&self) -> bool {
        BAD_IMAGE.contains(&self.code)
    }
    pub(super) fn is_lost(&self) -> bool {
        LOST.contains(&self.code)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.call, self.text)
    }
}

functions! {
    cuInit: fn(c_uint);
    cuDriverGetVersion: fn(*mut c_int);
    cuGetErrorName: fn(c_int, *mut *const c_char);
    cuGetErrorString: fn(c_int, *mut *const c_char);
    cuDeviceGetCount: fn(*mut c_int);
    cuDeviceGet: fn(*mut c_int, c_int);
    cuDeviceGetName: fn(*mut c_char, c_int, c_int);
    cuDeviceTotalMem_v2: fn(*mut usize, c_int);
    cuDeviceGetAttribute: fn(*mut c_int, c_int, c_int);
    cuDevicePrimaryCtxRetain: fn(*mut Handle, c_int);
    cuDevicePrimaryCtxRelease_v2: fn(c_int);
    cuCtxSetCurrent: fn(Handle);
    cuMemGetInfo_v2: fn(*mut usize, *mut usize);
    cuStreamCreate: fn(*mut Handle, c_uint);
    cuStreamDestroy_v2: fn(Handle);
    cuStreamSynchronize: fn(Handle);
    cuEventCreate: fn(*mut Handle, c_uint);
    cuEventDestroy_v2: fn(Handle);
    cuEventRecord: fn(Handle, Handle);
    cuEventQuery: fn(Handle);
    cuEventSynchronize: fn(Handle);
    cuEventElapsedTime: fn(*mut f32, Handle, Handle);
    cuMemAlloc_v2: fn(*mut Address, usize);
    cuMemFree_v2: fn(Address);
    cuMemHostAlloc: fn(*mut Handle, usize, c_uint);
    cuMemFreeHost: fn(Handle);
    cuMemsetD8Async: fn(Address, u8, usize, Handle);
    cuMemcpyHtoDAsync_v2: fn(Address, *const c_void, usize, Handle);
    cuMemcpyDtoHAsync_v2: fn(*mut c_void, Address, usize, Handle);
    cuModuleLoadData: fn(*mut Handle, *const c_void);
    cuModuleUnload: fn(Handle);
    cuModuleGetFunction: fn(*mut Handle, Handle, *const c_char);
    cuFuncSetAttribute: fn(Handle, c_int, c_int);
    cuLaunchKernel: fn(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle,
        *mut *mut c_void, *mut *mut c_void
    );
    cuGraphCreate: fn(*mut Handle, c_uint);
    cuStreamBeginCapture_v2: fn(Handle, c_int);
    cuStreamEndCapture: fn(Handle, *mut Handle);
    cuGraphAddChildGraphNode: fn(*mut Handle, Handle, *const Handle, usize, Handle);
    cuGraphAddKernelNode_v2: fn(*mut Handle, Handle, *const Handle, usize, *const KernelNode);
    cuGraphInstantiateWithFlags: fn(*mut Handle, Handle, u64);
    cuGraphLaunch: fn(Handle, Handle);
    cuGraphDestroy: fn(Handle);
    cuGraphExecDestroy: fn(Handle);
}

/// Calls a function of the driver and checks its result.
macro_rules! call {
    ($driver:expr, $name:ident($($argument:expr),* $(,)?)) => {{
        let driver: &Driver = $driver;
        #[allow(unsafe_code, reason = "a function of the driver")]
        // SAFETY: every object passed is alive, as its owner is borrowed; pointers to results are
        // to locals of the types that the header says; ranges of memory were checked by the caller,
        // as it says.
        let code = unsafe { (driver.functions.$name)($($argument),*) };
        driver.check(stringify!($name), code)
    }};
}

mod graphs;

use graphs::KernelNode;
pub(super) use graphs::{Captured, Graph};

/// The driver, initialised.
pub(super) struct Driver {
    functions: Functions,
    /// Newest version of CUDA that it supports, as 1000 times major plus 10 times minor.
    pub(super) version: c_int,
    /// What was opened.
    pub(super) path: PathBuf,
    /// Never closed: its threads may outlive every context.
    _library: ManuallyDrop<Library>,
}

impl Driver {
    /// Opens the driver's library: a path, or a name that the system's loader looks for.
    ///
    /// # Errors
    /// What is missing or too old, and what to do about it.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        #[allow(unsafe_code, reason = "opening a library runs its initialisers")]
        // SAFETY: NVIDIA's driver, where the system or the user put it.
        let library = unsafe { Library::new(path) }.map_err(|e| e.to_string())?;
        let functions = Functions::find(&library).map_err(|name| {
            format!("{} has no {name}: it is older than CUDA 12", path.display())
        })?;
        let mut driver =
            Self { functions, version: 0, path: path.into(), _library: ManuallyDrop::new(library) };
        let mut version = 0;
        let failed = |e: Failed| e.to_string();
        call!(&driver, cuDriverGetVersion(&mut version)).map_err(failed)?;
        call!(&driver, cuInit(0)).map_err(failed)?;
        driver.version = version;
        Ok(driver)
    }

    fn check(&self, call: &'static str, code: c_int) -> Result<(), Failed> {
        if code == 0 {
            return Ok(());
        }
        let text = |function: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = std::ptr::null();
            #[allow(unsafe_code, reason = "functions of the driver")]
            // SAFETY: the driver gives a constant string, or leaves the null for a number it does
            // not know.
            unsafe {
                function(code, &mut text);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        let name = text(self.functions.cuGetErrorName).unwrap_or_else(|| format!("error {code}"));
        let text = match text(self.functions.cuGetErrorString) {
            Some(meaning) => format!("{name} ({meaning})"),
            None => name,
        };
        Err(Failed { call, code, text })
    }

    /// Number of devices.
    pub(super) fn count(&self) -> Result<usize, Failed> {
        let mut count = 0;
        call!(self, cuDeviceGetCount(&mut count))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// A device by its index.
    pub(super) fn device(&self, index: usize) -> Result<Description, Failed> {
        let mut device = 0;
        call!(self, cuDeviceGet(&mut device, c_int::try_from(index).unwrap_or(c_int::MAX)))?;
        let mut name = [0 as c_char; 128];
        call!(self, cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device))?;
        name[name.len() - 1] = 0;
        #[allow(unsafe_code, reason = "a C string")]
        // SAFETY: it ends in a zero, at the latest in the last character.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let mut memory = 0;
        call!(self, cuDeviceTotalMem_v2(&mut memory, device))?;
        let attribute = |which: c_int| {
            let mut value = 0;
            call!(self, cuDeviceGetAttribute(&mut value, which, device)).map(|()| value)
        };
        // COMPUTE_CAPABILITY_MAJOR and _MINOR, MULTIPROCESSOR_COUNT.
        let (capability, processors) = ([attribute(75)?, attribute(76)?], attribute(16)?);
        Ok(Description { device, name, memory, capability, processors })
    }
}

/// A device.
#[derive(Clone, Debug)]
pub(super) struct Description {
    device: c_int,
    pub(super) name: String,
    pub(super) memory: usize,
    pub(super) capability: [c_int; 2],
    pub(super) processors: c_int,
}

/// The primary context of a device, with one stream.
pub(super) struct Context {
    driver: Driver,
    device: c_int,
    context: Handle,
    stream: Handle,
}

impl Context {
    /// Makes the device ready and current on this thread.
    pub(super) fn new(driver: Driver, device: &Description) -> Result<Rc<Self>, Failed> {
        let (mut context, mut stream) = (std::ptr::null_mut(), std::ptr::null_mut());
        call!(&driver, cuDevicePrimaryCtxRetain(&mut context, device.device))?;
        let mut made = Self { driver, device: device.device, context, stream };
        made.enter()?;
        // CU_STREAM_NON_BLOCKING: it does not wait for the default stream.
        call!(&made.driver, cuStreamCreate(&mut stream, 1))?;
        made.stream = stream;
        Ok(Rc::new(made))
    }

    /// Makes it current on this thread, which may have used another device.
    pub(super) fn enter(&self) -> Result<(), Failed> {
        call!(&self.driver, cuCtxSetCurrent(self.context))
    }

    /// Bytes that are free.
    pub(super) fn free_memory(&self) -> Result<usize, Failed> {
        let (mut free, mut total) = (0, 0);
        call!(&self.driver, cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok(free)
    }

    /// Waits for everything that was queued.
    pub(super) fn synchronize(&self) -> Result<(), Failed> {
        call!(&self.driver, cuStreamSynchronize(self.stream))
    }

    /// Queues a copy of bytes to a range that the caller has checked.
    ///
    /// The driver copies pageable memory aside before it returns, so the bytes need not outlive the
    /// call.
    pub(super) fn upload(&self, to: Address, bytes: &[u8]) -> Result<(), Failed> {
        call!(
            &self.driver,
            cuMemcpyHtoDAsync_v2(to, bytes.as_ptr().cast(), bytes.len(), self.stream)
        )
    }

    /// Queues a copy of a range that the caller has checked.
    pub(super) fn download(&self, to: &Pinned, from: Address, bytes: usize) -> Result<(), Failed> {
        assert!(bytes <= to.bytes, "a copy beyond its memory");
        call!(&self.driver, cuMemcpyDtoHAsync_v2(to.at, from, bytes, self.stream))
    }

    /// Queues a kernel that takes addresses only.
    pub(super) fn launch(
        &self,
        function: &Function,
        [gx, gy, gz]: [u32; 3],
        [bx, by, bz]: [u32; 3],
        arguments: &[Address],
    ) -> Result<(), Failed> {
        let pointer = |a: &Address| std::ptr::from_ref(a).cast_mut().cast::<c_void>();
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(pointer).collect();
        let (list, none) = (pointers.as_mut_ptr(), std::ptr::null_mut());
        call!(
            &self.driver,
            cuLaunchKernel(
                function.handle,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                function.dynamic,
                self.stream,
                list,
                none
            )
        )
    }

    /// The stream, for a library that queues work of its own there.
    pub(super) fn stream(&self) -> *mut c_void {
        self.stream
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if !self.stream.is_null() {
            call!(&self.driver, cuStreamDestroy_v2(self.stream)).ok();
        }
        call!(&self.driver, cuDevicePrimaryCtxRelease_v2(self.device)).ok();
    }
}

/// Memory of the device.
pub(super) struct Memory {
    context: Rc<Context>,
    pub(super) at: Address,
    pub(super) bytes: usize,
}

impl Memory {
    /// Zeros.
    pub(super) fn new(context: &Rc<Context>, bytes: usize) -> Result<Self, Failed> {
        let mut at = 0;
        call!(&context.driver, cuMemAlloc_v2(&mut at, bytes))?;
        let memory = Self { context: Rc::clone(context), at, bytes };
        call!(&context.driver, cuMemsetD8Async(at, 0, bytes, context.stream))?;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        call!(&self.context.driver, cuMemFree_v2(self.at)).ok();
    }
}

/// Memory of the host that the device copies to by itself.
pub(super) struct Pinned {
    context: Rc<Context>,
    at: Handle,
    pub(super) bytes: usize,
}

impl Pinned {
    pub(super) fn new(context: &Rc<Context>, bytes: usize) -> Result<Self, Failed> {
        let mut at = std::ptr::null_mut();
        call!(&context.driver, cuMemHostAlloc(&mut at, bytes, 0))?;
        Ok(Self { context: Rc::clone(context), at, bytes })
    }

    /// The first floats, once the copy to them is done.
    pub(super) fn floats(&self, count: usize) -> Vec<f32> {
        assert!(count * 4 <= self.bytes, "a read beyond its memory");
        #[allow(unsafe_code, reason = "memory of the driver")]
        // SAFETY: it is aligned to pages, at least as long, and nothing writes there any more.
        unsafe {
            std::slice::from_raw_parts(self.at.cast::<f32>(), count).to_vec()
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        call!(&self.context.driver, cuMemFreeHost(self.at)).ok();
    }
}

/// A moment in the stream.
pub(super) struct Event {
    context: Rc<Context>,
    handle: Handle,
}

impl Event {
    pub(super) fn new(context: &Rc<Context>) -> Result<Self, Failed> {
        let mut handle = std::ptr::null_mut();
        call!(&context.driver, cuEventCreate(&mut handle, 0))?;
        Ok(Self { context: Rc::clone(context), handle })
    }
    /// It is the moment when everything queued so far is done.
    pub(super) fn record(&self) -> Result<(), Failed> {
        call!(&self.context.driver, cuEventRecord(self.handle, self.context.stream))
    }
    /// Whether it has come; with `wait`, once it has.
    pub(super) fn is_done(&self, wait: bool) -> Result<bool, Failed> {
        let driver = &self.context.driver;
        if wait {
            return call!(driver, cuEventSynchronize(self.handle)).map(|()| true);
        }
        match call!(driver, cuEventQuery(self.handle)) {
            Err(e) if e.code == NOT_READY => Ok(false),
            other => other.map(|()| true),
        }
    }
    /// Seconds since an earlier event, both done.
    pub(super) fn seconds_since(&self, start: &Self) -> Result<f64, Failed> {
        let mut milliseconds = 0.0;
        let (from, to) = (start.handle, self.handle);
        call!(&self.context.driver, cuEventElapsedTime(&mut milliseconds, from, to))?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        call!(&self.context.driver, cuEventDestroy_v2(self.handle)).ok();
    }
}

/// Machine code on the device.
pub(super) struct Module {
    context: Rc<Context>,
    handle: Handle,
}

impl Module {
    pub(super) fn new(context: &Rc<Context>, cubin: &[u8]) -> Result<Rc<Self>, Failed> {
        let mut handle = std::ptr::null_mut();
        call!(&context.driver, cuModuleLoadData(&mut handle, cubin.as_ptr().cast()))?;
        Ok(Rc::new(Self { context: Rc::clone(context), handle }))
    }
    /// A kernel whose launches bring so many bytes of shared memory.
    pub(super) fn function(self: &Rc<Self>, name: &str, dynamic: u32) -> Result<Function, Failed> {
        let name = CString::new(name).expect("names of kernels hold no zero");
        let mut handle = std::ptr::null_mut();
        let driver = &self.context.driver;
        call!(driver, cuModuleGetFunction(&mut handle, self.handle, name.as_ptr()))?;
        if dynamic > 0 {
            let bytes = c_int::try_from(dynamic).expect("bytes of a multiprocessor");
            // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES and
            // CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT: in percent of what there is, so
            // that several blocks fit beside each other.
            call!(driver, cuFuncSetAttribute(handle, 8, bytes))?;
            call!(driver, cuFuncSetAttribute(handle, 9, 100))?;
        }
        Ok(Function { _module: Rc::clone(self), handle, dynamic })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        call!(&self.context.driver, cuModuleUnload(self.handle)).ok();
    }
}

/// A kernel on the device.
#[derive(Clone)]
pub(super) struct Function {
    _module: Rc<Module>,
    handle: Handle,
    /// Bytes of shared memory that its launches bring.
    dynamic: u32,
}
