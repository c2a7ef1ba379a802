//! NVIDIA's run-time compiler: CUDA C++ to machine code, without a driver.
//!
//! Nine functions, bound by hand: `cudarc` looks for the library under fixed names and panics where
//! it misses one; here a path is opened, and everything that goes wrong is a message.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

use libloading::Library;

type Program = *mut c_void;
/// `nvrtcCreateProgram`: text, name, and headers that there are none of.
type Create = unsafe extern "C" fn(
    program: *mut Program,
    text: *const c_char,
    name: *const c_char,
    headers: c_int,
    contents: *const *const c_char,
    names: *const *const c_char,
) -> c_int;

/// The functions of a library that stays loaded.
pub(super) struct Nvrtc {
    /// Files of it, kept open: the built-in functions, then the compiler.
    _libraries: Vec<Library>,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    create: Create,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvrtc").field("version", &self.version()).finish_non_exhaustive()
    }
}

/// What a compilation gives.
#[derive(Clone, Debug)]
pub(super) struct Compiled {
    /// Machine code.
    pub(super) cubin: Vec<u8>,
    /// What the compiler said.
    #[allow(dead_code, reason = "tests read registers and spills there")]
    pub(super) log: String,
}

/// A program that is destroyed when it goes.
struct Owned<'a>(&'a Nvrtc, Program);

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "a foreign function")]
        // SAFETY: the program was made by this library and is used no more.
        unsafe {
            (self.0.destroy)(&mut self.1);
        }
    }
}

impl Nvrtc {
    /// Opens `libnvrtc.so.*` and, before it, the built-in functions beside it, which it looks for
    /// by name.
    ///
    /// # Errors
    /// What the loader said, or the function that is missing.
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let mut libraries = Vec::new();
        for builtins in beside(path) {
            // One that does not open is missed, if at all, by the compiler itself.
            libraries.extend(load(&builtins).ok());
        }
        let library = load(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let functions = Self {
            version: function(&library, path, "nvrtcVersion")?,
            error_string: function(&library, path, "nvrtcGetErrorString")?,
            create: function(&library, path, "nvrtcCreateProgram")?,
            destroy: function(&library, path, "nvrtcDestroyProgram")?,
            compile: function(&library, path, "nvrtcCompileProgram")?,
            log_size: function(&library, path, "nvrtcGetProgramLogSize")?,
            log: function(&library, path, "nvrtcGetProgramLog")?,
            cubin_size: function(&library, path, "nvrtcGetCUBINSize")?,
            cubin: function(&library, path, "nvrtcGetCUBIN")?,
            _libraries: Vec::new(),
        };
        libraries.push(library);
        Ok(Self { _libraries: libraries, ..functions })
    }

    /// Version of CUDA, e.g. (13, 0).
    pub(super) fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        #[allow(unsafe_code, reason = "a foreign function")]
        // SAFETY: both are written, or keep their zeros.
        unsafe {
            (self.version)(&mut major, &mut minor);
        }
        (major, minor)
    }

    fn check(&self, call: &str, result: c_int) -> Result<(), String> {
        if result == 0 {
            return Ok(());
        }
        #[allow(unsafe_code, reason = "a foreign function")]
        // SAFETY: the library returns a constant string, for unknown numbers too.
        let text = unsafe { CStr::from_ptr((self.error_string)(result)) };
        Err(format!("{call}: {}", text.to_string_lossy()))
    }

    /// Compiles a text.
    ///
    /// # Errors
    /// The call that failed, and what the compiler said.
    pub(super) fn compile(&self, text: &str, options: &[&str]) -> Result<Compiled, String> {
        let text = CString::new(text).map_err(|_| "the text holds a zero")?;
        let options: Result<Vec<CString>, _> = options.iter().map(|o| CString::new(*o)).collect();
        let options = options.map_err(|_| "an option holds a zero")?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let (none, mut program) = (std::ptr::null(), std::ptr::null_mut());
        #[allow(unsafe_code, reason = "foreign functions")]
        // SAFETY: texts end in zeros and outlive the calls; the sizes are those that the library
        // gives.
        unsafe {
            let made =
                (self.create)(&mut program, text.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none);
            self.check("nvrtcCreateProgram", made)?;
            let program = Owned(self, program);
            let count = pointers.len() as c_int;
            let compiled = (self.compile)(program.1, count, pointers.as_ptr());
            let mut size = 0;
            self.check("nvrtcGetProgramLogSize", (self.log_size)(program.1, &mut size))?;
            let mut log = vec![0u8; size.max(1)];
            self.check("nvrtcGetProgramLog", (self.log)(program.1, log.as_mut_ptr().cast()))?;
            let end = log.iter().position(|c| *c == 0).unwrap_or(log.len());
            let log = String::from_utf8_lossy(&log[..end]).trim().to_owned();
            self.check("nvrtcCompileProgram", compiled).map_err(|e| format!("{e}\n{log}"))?;
            let mut size = 0;
            self.check("nvrtcGetCUBINSize", (self.cubin_size)(program.1, &mut size))?;
            let mut cubin = vec![0u8; size];
            self.check("nvrtcGetCUBIN", (self.cubin)(program.1, cubin.as_mut_ptr().cast()))?;
            Ok(Compiled { cubin, log })
        }
    }
}

/// `libnvrtc-builtins.so.*` in the folder of the compiler.
fn beside(path: &Path) -> Vec<std::path::PathBuf> {
    let Some(folder) = path.parent() else { return vec![] };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let named = |p: &std::path::PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or("");
        name.starts_with("libnvrtc-builtins.") && !name.contains(".alt.")
    };
    let mut found: Vec<_> = entries.filter(named).collect();
    found.sort();
    found
}

fn load(path: &Path) -> Result<Library, libloading::Error> {
    #[allow(unsafe_code, reason = "opening a library runs its initialisers")]
    // SAFETY: NVIDIA's library, at a path that the user or a package manager put it at.
    unsafe {
        Library::new(path)
    }
}

fn function<T: Copy>(library: &Library, path: &Path, name: &str) -> Result<T, String> {
    #[allow(unsafe_code, reason = "foreign functions have the types of the library's header")]
    // SAFETY: the fields of `Nvrtc` repeat `nvrtc.h`, which has not changed since CUDA 11.1.
    let found = unsafe { library.get::<T>(name.as_bytes()) };
    found.map(|f| *f).map_err(|_| format!("{} has no function {name}", path.display()))
}
