//! The kernels of a plan as functions on the device: translated, compiled on every core, kept on
//! disk.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

use super::driver::{Context, Failed, Function, Module};
use super::nvrtc::Nvrtc;
use crate::device::Progress;
use crate::plan::Plan;
use crate::shader::cuda::{CudaKernel, PRELUDE, translate};
use crate::shader::source;

/// Kernels that are compiled together: the prelude and the start of the compiler cost less than
/// half as much as with each alone.
const BATCH: usize = 16;

/// A kernel on the device.
#[derive(Clone)]
pub(super) struct Code {
    pub(super) function: Function,
    pub(super) block: [u32; 3],
    /// Pointers it takes.
    pub(super) bindings: usize,
}

/// What went wrong.
pub(super) enum CompileError {
    /// The writer or the compiler refuses a kernel.
    Refused(String),
    /// The driver refuses what was compiled.
    Driver(Failed),
}

impl From<Failed> for CompileError {
    fn from(e: Failed) -> Self {
        Self::Driver(e)
    }
}

/// Makes machine code for one kind of device; threads share it.
struct Toolchain {
    nvrtc: Nvrtc,
    /// `--gpu-architecture=sm_90`.
    architecture: String,
    /// Where machine code is kept; `None` where there is no place for it.
    cache: Option<PathBuf>,
}

/// The kernels of one device.
pub(super) struct Compiler {
    toolchain: Toolchain,
    /// By the kernel's WGSL.
    codes: BTreeMap<String, Code>,
}

/// Kernels of one program, with their WGSL, and the program's text.
struct Batch {
    kernels: Vec<(String, CudaKernel)>,
    text: String,
}

impl Compiler {
    pub(super) fn new(nvrtc: Nvrtc, [major, minor]: [i32; 2]) -> Self {
        let folders = directories::ProjectDirs::from("", "", "aavae");
        let toolchain = Toolchain {
            nvrtc,
            architecture: format!("--gpu-architecture=sm_{major}{minor}"),
            cache: folders.map(|f| f.cache_dir().join("cubins")),
        };
        Self { toolchain, codes: BTreeMap::new() }
    }

    pub(super) fn version(&self) -> (i32, i32) {
        self.toolchain.nvrtc.version()
    }

    /// The function of a kernel that was compiled.
    pub(super) fn code(&self, wgsl: &str) -> Code {
        self.codes[wgsl].clone()
    }

    /// Compiles the kernels of a plan that are not on the device yet.
    pub(super) fn compile(
        &mut self,
        context: &Rc<Context>,
        plan: &Plan,
        progress: Progress<'_>,
    ) -> Result<(), CompileError> {
        let batches = self.batches(plan)?;
        let total = batches.iter().map(|b| b.kernels.len()).sum();
        let ready = AtomicUsize::new(0);
        let cubins = self.toolchain.cubins(&batches, |count| {
            progress(ready.fetch_add(count, Ordering::Relaxed) + count, total);
        })?;
        for (batch, (cubin, kept)) in batches.into_iter().zip(cubins) {
            let module = match Module::new(context, &cubin) {
                // A file that is broken is replaced; no other failure is helped by that.
                Err(e) if kept && e.is_bad_image() => {
                    Module::new(context, &self.toolchain.make(&batch.text)?)?
                }
                module => module?,
            };
            for (wgsl, kernel) in batch.kernels {
                let function = module.function(&kernel.name)?;
                let (block, bindings) = (kernel.block, kernel.bindings.len());
                self.codes.insert(wgsl, Code { function, block, bindings });
            }
        }
        Ok(())
    }

    /// What is missing, in programs of a few kernels of one file, the same for the same plan.
    fn batches(&self, plan: &Plan) -> Result<Vec<Batch>, CompileError> {
        let mut missing: BTreeMap<(&str, String), ()> = BTreeMap::new();
        for dispatch in plan.ops.iter().flat_map(|s| &s.dispatches) {
            let wgsl = source(&dispatch.kernel);
            if !self.codes.contains_key(&wgsl) {
                missing.insert((dispatch.kernel.file, wgsl), ());
            }
        }
        let missing: Vec<(&str, String)> = missing.into_keys().collect();
        let mut batches = Vec::new();
        for chunk in missing.chunk_by(|a, b| a.0 == b.0).flat_map(|same| same.chunks(BATCH)) {
            let (mut kernels, mut text) = (Vec::new(), PRELUDE.to_owned());
            for (file, wgsl) in chunk {
                let name = format!("{}_{}", file.replace('/', "_"), hash(wgsl));
                let kernel = translate(wgsl, &name)
                    .map_err(|e| CompileError::Refused(format!("kernel `{file}`: {e}")))?;
                text += &kernel.text;
                kernels.push((wgsl.clone(), kernel));
            }
            batches.push(Batch { kernels, text });
        }
        Ok(batches)
    }
}

impl Toolchain {
    /// Machine code of each batch, and whether it was on disk; compiled on every core.
    fn cubins(
        &self,
        batches: &[Batch],
        tick: impl Fn(usize) + Sync,
    ) -> Result<Vec<(Vec<u8>, bool)>, CompileError> {
        let (next, made) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
        let worker = || {
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(batch) = batches.get(i) else { return Ok(()) };
                let kept = self.path(&batch.text).and_then(|p| std::fs::read(p).ok());
                let cubin = match kept {
                    Some(cubin) => (cubin, true),
                    None => (self.make(&batch.text)?, false),
                };
                made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(i, cubin);
                tick(batch.kernels.len());
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let results: Vec<Result<(), CompileError>> = std::thread::scope(|scope| {
            let threads = threads.min(batches.len());
            let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
            let join = |h: std::thread::ScopedJoinHandle<'_, _>| {
                h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            handles.into_iter().map(join).collect()
        });
        results.into_iter().collect::<Result<(), _>>()?;
        let made = made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(made.into_values().collect())
    }

    /// Compiles a text and keeps the result.
    fn make(&self, text: &str) -> Result<Vec<u8>, CompileError> {
        let options = self.options();
        let made = self.nvrtc.compile(text, &options).map_err(CompileError::Refused)?;
        if let Some(path) = self.path(text) {
            // What cannot be kept costs time at the next start, nothing else.
            keep(&path, &made.cubin).ok();
        }
        Ok(made.cubin)
    }

    fn options(&self) -> [&str; 3] {
        [&self.architecture, "--std=c++17", "-default-device"]
    }

    /// Where the machine code of a text is kept: by all that it depends on.
    fn path(&self, text: &str) -> Option<PathBuf> {
        let (major, minor) = self.nvrtc.version();
        let all = format!("{major}.{minor} {:?} {text}", self.options());
        Some(self.cache.as_ref()?.join(format!("{}.cubin", hash(&all))))
    }
}

fn hash(text: &str) -> String {
    Sha256::digest(text).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Writes a file whole or not at all.
fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let kept = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if kept.is_err() {
        std::fs::remove_file(&part).ok();
    }
    kept
}
