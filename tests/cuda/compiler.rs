//! The system's C++ compiler, for the text of CUDA kernels.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use aavae::shader::cuda::{PRELUDE, translate};
use libloading::Library;
use sha2::{Digest, Sha256};

/// Kernels of a library at most.
const BATCH: usize = 16;

/// In the message of a text that the compiler does not take.
pub(crate) const REFUSES: &str = " refuses ";

/// What makes the text of kernels legal on a host.
pub(crate) const HOST: &str = include_str!("host.h");

/// `host_NAME` of `host.h`.
type Entry = unsafe extern "C" fn(
    at: *const *mut u8,
    bytes: *const usize,
    grid: *const u32,
    first: usize,
    last: usize,
    order: u32,
) -> *const std::ffi::c_char;

/// A kernel ready to run.
#[derive(Clone, Copy)]
pub(crate) struct Code {
    pub(crate) entry: Entry,
    /// Pointers it takes.
    pub(crate) bindings: usize,
}

/// A change to the text of kernels, or to that of the prelude, to see that trials notice it: the
/// `nth` place of `from` becomes `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Bug {
    pub(crate) nth: usize,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) prelude: bool,
}

impl Bug {
    pub(crate) fn plant(&self, text: &str) -> String {
        match text.match_indices(self.from).nth(self.nth) {
            Some((at, _)) if !self.from.is_empty() => {
                format!("{}{}{}", &text[..at], self.to, &text[at + self.from.len()..])
            }
            _ => text.into(),
        }
    }
}

/// Kernels loaded into this process, by WGSL and bug.
type Loaded = HashMap<(String, Bug), Code>;

fn loaded() -> MutexGuard<'static, Loaded> {
    static LOADED: OnceLock<Mutex<Loaded>> = OnceLock::new();
    LOADED.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// A folder of this test below `target`, which outlives the run.
pub(crate) fn cache(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda").join(name)
}

pub(crate) fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(10).map(|b| format!("{b:02x}")).collect()
}

/// Compiles the kernels that are not loaded yet. Libraries are kept by what they are made from.
pub(crate) fn load(kernels: &[(&str, String)], bug: &Bug) -> Result<Vec<Code>, String> {
    // Kernels of one file share libraries, so that a change to a shader compiles few of them anew.
    let mut missing: BTreeMap<(&str, &String), ()> = BTreeMap::new();
    {
        let loaded = loaded();
        for (file, wgsl) in kernels {
            if !loaded.contains_key(&(wgsl.clone(), bug.clone())) {
                missing.insert((file, wgsl), ());
            }
        }
    }
    let missing: Vec<(&str, &String)> = missing.into_keys().collect();
    let batches: Vec<&[(&str, &String)]> =
        missing.chunk_by(|a, b| a.0 == b.0).flat_map(|same| same.chunks(BATCH)).collect();
    in_parallel(&batches, |batch| compile(batch, bug))?;
    let loaded = loaded();
    Ok(kernels.iter().map(|(_, wgsl)| loaded[&(wgsl.clone(), bug.clone())]).collect())
}

/// Calls `work` for each item on every core; the first error counts.
pub(crate) fn in_parallel<T: Sync>(
    items: &[T],
    work: impl Fn(&T) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let (next, threads) = (AtomicUsize::new(0), std::thread::available_parallelism());
    let threads = threads.map_or(1, usize::from).min(items.len());
    let worker = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let join = |h: std::thread::ScopedJoinHandle<'_, _>| h.join().map_err(|_| "a panic")?;
        handles.into_iter().try_for_each(join)
    })
}

fn compile(batch: &[(&str, &String)], bug: &Bug) -> Result<(), String> {
    let change = |planted: bool, text: &str| if planted { bug.plant(text) } else { text.into() };
    let (mut source, mut made) = (HOST.to_owned() + &change(bug.prelude, PRELUDE), Vec::new());
    for (file, wgsl) in batch {
        let name = format!("k{}", hash(wgsl));
        let kernel = translate(wgsl, &name).map_err(|e| format!("{file}: {e}"))?;
        source += &change(!bug.prelude, &kernel.text);
        made.push((*wgsl, name, kernel.bindings.len()));
    }
    let path = library("kernels", &source, &["-Og", "-w"])?;
    #[allow(unsafe_code, reason = "kernels are native code of our own")]
    // SAFETY: the library was made from our own text, and loading it runs nothing.
    let library = unsafe { Library::new(&path) }.map_err(|e| e.to_string())?;
    for (wgsl, name, bindings) in made {
        #[allow(unsafe_code, reason = "kernels are native code of our own")]
        // SAFETY: `host.h` declares every entry with this type.
        let entry = unsafe { library.get::<Entry>(format!("host_{name}").as_bytes()) };
        let entry = *entry.map_err(|e| e.to_string())?;
        loaded().insert((wgsl.clone(), bug.clone()), Code { entry, bindings });
    }
    // The entries are used until the process ends.
    std::mem::forget(library);
    Ok(())
}

/// The shared library made from a source; an earlier run's, if the source is the same.
pub(crate) fn library(folder: &str, source: &str, options: &[&str]) -> Result<PathBuf, String> {
    let folder = cache(folder);
    std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let name = hash(&format!("{options:?}{source}"));
    let object = folder.join(format!("{name}.so"));
    if object.exists() {
        return Ok(object);
    }
    let text = folder.join(format!("{name}.cpp"));
    std::fs::write(&text, source).map_err(|e| format!("{}: {e}", text.display()))?;
    static SERIAL: AtomicUsize = AtomicUsize::new(0);
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let part = folder.join(format!("{name}.{}.{serial}.part", std::process::id()));
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let out = Command::new(&compiler)
        .args(["-std=c++17", "-shared", "-fPIC", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"])
        .args(options)
        .args([&text, Path::new("-o"), &part])
        .output()
        .map_err(|e| format!("{compiler}: {e}"))?;
    if !out.status.success() {
        let message = String::from_utf8_lossy(&out.stderr);
        return Err(format!("{compiler}{REFUSES}{}:\n{message}", text.display()));
    }
    std::fs::rename(&part, &object).map_err(|e| format!("{}: {e}", object.display()))?;
    Ok(object)
}

/// Runs block 0 of a kernel of one dispatch on buffers of words.
pub(crate) fn run(
    wgsl: &str,
    buffers: &mut [&mut [u32]],
    bug: &Bug,
    order: u32,
) -> Result<(), String> {
    let code = load(&[("text", wgsl.to_owned())], bug)?[0];
    assert_eq!(code.bindings, buffers.len(), "bindings");
    let bytes: Vec<usize> = buffers.iter().map(|b| size_of_val(&**b)).collect();
    let at: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
    let grid = [1, 1, 1];
    #[allow(unsafe_code, reason = "kernels are native code")]
    // SAFETY: all buffers live in the caller, and `host.h` checks every index.
    let message = unsafe { (code.entry)(at.as_ptr(), bytes.as_ptr(), grid.as_ptr(), 0, 1, order) };
    if message.is_null() {
        return Ok(());
    }
    #[allow(unsafe_code, reason = "the message is a C string")]
    // SAFETY: the message is the thread's own and ends in a zero.
    let message = unsafe { std::ffi::CStr::from_ptr(message) };
    Err(message.to_string_lossy().into_owned())
}
