//! The kernels of plans as functions on the device: translated, compiled on every core, kept on
//! disk.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::driver::{Context, Failed, Function, Module};
use super::nvrtc::Nvrtc;
use crate::device::Progress;
use crate::plan::Plan;
use crate::shader::cuda::{CudaKernel, PRELUDE, translate};
use crate::shader::source;

/// Kernels that are compiled together at most: the prelude and the start of the compiler cost less
/// than half as much as with each alone.
const BATCH: usize = 16;
/// Programs for each core, where there are so many kernels: one that takes long leaves the others
/// to other cores.
const PER_CORE: usize = 2;

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
    /// The compiler's flag: `--gpu-architecture=sm_90`.
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

/// A kernel on its way.
struct Kernel {
    wgsl: String,
    cuda: CudaKernel,
}

/// Kernels that are compiled as one program.
#[derive(Default)]
struct Batch {
    kernels: Vec<Kernel>,
    /// Bytes of their texts, about in proportion to which they take time.
    length: usize,
}

impl Batch {
    fn text(&self) -> String {
        let texts = self.kernels.iter().map(|k| k.cuda.text.as_str());
        std::iter::once(PRELUDE).chain(texts).collect()
    }
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

    /// Compiles the kernels of plans that are not on the device yet.
    pub(super) fn compile(
        &mut self,
        context: &Rc<Context>,
        plans: &[&Plan],
        progress: Progress<'_>,
    ) -> Result<(), CompileError> {
        let missing = self.missing(plans)?;
        let total = missing.len();
        let rest = self.load_kept(context, missing)?;
        let ready = AtomicUsize::new(total - rest.len());
        let batches = batches(rest, rayon::current_num_threads());
        let toolchain = &self.toolchain;
        let compiled = batches.into_par_iter().with_max_len(1).map(|batch| {
            let cubin = toolchain.make(&batch)?;
            let count = batch.kernels.len();
            progress(ready.fetch_add(count, Ordering::Relaxed) + count, total);
            Ok((batch, cubin))
        });
        for (batch, cubin) in compiled.collect::<Result<Vec<_>, CompileError>>()? {
            let module = Module::new(context, &cubin)?;
            for kernel in batch.kernels {
                self.insert(&module, kernel)?;
            }
        }
        Ok(())
    }

    /// The kernels of plans that are not on the device, translated.
    fn missing(&self, plans: &[&Plan]) -> Result<Vec<Kernel>, CompileError> {
        let dispatches = plans.iter().flat_map(|p| &p.ops).flat_map(|s| s.kernels());
        let texts: BTreeSet<_> = dispatches.map(|d| (d.kernel.file, source(&d.kernel))).collect();
        let missing: Vec<_> =
            texts.into_iter().filter(|(_, wgsl)| !self.codes.contains_key(wgsl)).collect();
        let translated = missing.into_par_iter().map(|(file, wgsl)| {
            let name = format!("{}_{}", file.replace('/', "_"), hash(&wgsl));
            let cuda = translate(&wgsl, &name)
                .map_err(|e| CompileError::Refused(format!("kernel `{file}`: {e}")))?;
            Ok(Kernel { wgsl, cuda })
        });
        translated.collect()
    }

    /// Loads what is on disk; the kernels that are not. A file that is broken is none.
    fn load_kept(
        &mut self,
        context: &Rc<Context>,
        kernels: Vec<Kernel>,
    ) -> Result<Vec<Kernel>, CompileError> {
        let (mut files, mut rest) = (BTreeMap::<PathBuf, Vec<Kernel>>::new(), Vec::new());
        for kernel in kernels {
            match self.toolchain.kept(&kernel.cuda.text) {
                Some(path) => files.entry(path).or_default().push(kernel),
                None => rest.push(kernel),
            }
        }
        for (path, kernels) in files {
            let module = match std::fs::read(path).ok().map(|c| Module::new(context, &c)) {
                Some(Ok(module)) => module,
                // No other failure is helped by compiling anew.
                Some(Err(e)) if !e.is_bad_image() => return Err(e.into()),
                _ => {
                    rest.extend(kernels);
                    continue;
                }
            };
            for kernel in kernels {
                self.insert(&module, kernel)?;
            }
        }
        Ok(rest)
    }

    fn insert(&mut self, module: &Rc<Module>, kernel: Kernel) -> Result<(), CompileError> {
        let function = module.function(&kernel.cuda.name, kernel.cuda.dynamic())?;
        let (block, bindings) = (kernel.cuda.block, kernel.cuda.bindings.len());
        self.codes.insert(kernel.wgsl, Code { function, block, bindings });
        Ok(())
    }
}

/// Programs that take about the same time, the longest first, so that every core works to the end.
fn batches(mut kernels: Vec<Kernel>, cores: usize) -> Vec<Batch> {
    let count = kernels.len().div_ceil(BATCH).max(kernels.len().min(cores * PER_CORE));
    kernels.sort_by_cached_key(|k| (Reverse(k.cuda.text.len()), k.cuda.name.clone()));
    let mut batches: Vec<Batch> = std::iter::repeat_with(Batch::default).take(count).collect();
    for kernel in kernels {
        let open = batches.iter_mut().filter(|b| b.kernels.len() < BATCH);
        let Some(shortest) = open.min_by_key(|b| b.length) else {
            unreachable!("there is room for every kernel")
        };
        shortest.length += kernel.cuda.text.len();
        shortest.kernels.push(kernel);
    }
    batches.sort_by_key(|b| Reverse(b.length));
    batches
}

impl Toolchain {
    /// Compiles a program and keeps it.
    fn make(&self, batch: &Batch) -> Result<Vec<u8>, CompileError> {
        let made = self.nvrtc.compile(&batch.text(), &self.options());
        let cubin = made.map_err(CompileError::Refused)?.cubin;
        // What cannot be kept costs time at the next start, nothing else.
        self.keep(batch, &cubin).ok();
        Ok(cubin)
    }

    fn options(&self) -> [&str; 3] {
        [&self.architecture, "--std=c++17", "-default-device"]
    }

    /// Where it is said which file holds a kernel: by all that its machine code depends on, so that
    /// it is found whatever it was compiled with.
    fn entry(&self, text: &str) -> Option<PathBuf> {
        let (major, minor) = self.nvrtc.version();
        let all = format!("{major}.{minor} {:?} {PRELUDE}{text}", self.options());
        Some(self.cache.as_ref()?.join(format!("{}.kernel", hash(&all))))
    }

    /// The file that holds a kernel.
    fn kept(&self, text: &str) -> Option<PathBuf> {
        let entry = self.entry(text)?;
        let name = std::fs::read_to_string(&entry).ok()?;
        // A file of another folder is none of ours.
        let plain = name.strip_suffix(".cubin")?.chars().all(|c| c.is_ascii_alphanumeric());
        plain.then(|| entry.with_file_name(name))
    }

    fn keep(&self, batch: &Batch, cubin: &[u8]) -> std::io::Result<()> {
        let Some(folder) = &self.cache else { return Ok(()) };
        std::fs::create_dir_all(folder)?;
        let name = format!("{}.cubin", hash(cubin));
        write(&folder.join(&name), cubin)?;
        for entry in batch.kernels.iter().filter_map(|k| self.entry(&k.cuda.text)) {
            write(&entry, name.as_bytes())?;
        }
        Ok(())
    }
}

fn hash(data: impl AsRef<[u8]>) -> String {
    Sha256::digest(data.as_ref()).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Writes a file whole or not at all.
fn write(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    let kept = std::fs::write(&part, bytes).and_then(|()| std::fs::rename(&part, path));
    if kept.is_err() {
        std::fs::remove_file(&part).ok();
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels(lengths: &[usize]) -> Vec<Kernel> {
        let kernel = |(i, length): (usize, &usize)| {
            let (name, text) = (format!("k{i}"), "x".repeat(*length));
            let cuda = CudaKernel { text, name, block: [1; 3], bindings: vec![], shared: 0 };
            Kernel { wgsl: String::new(), cuda }
        };
        lengths.iter().enumerate().map(kernel).collect()
    }

    #[test]
    fn every_core_gets_as_much() {
        let longest = |lengths: &[usize], cores| {
            let made = batches(kernels(lengths), cores);
            assert_eq!(made.iter().map(|b| b.kernels.len()).sum::<usize>(), lengths.len());
            assert!(made.iter().all(|b| (1..=BATCH).contains(&b.kernels.len())));
            assert!(made.is_sorted_by_key(|b| Reverse(b.length)));
            (made.len(), made.first().map_or(0, |b| b.length))
        };
        // 8 long ones are spread over the 8 programs of 4 cores.
        let mut lengths = vec![10; 72];
        lengths.extend([200; 8]);
        assert_eq!(longest(&lengths, 4), (8, 290));
        // Few kernels stand alone, many share as much as may be.
        assert_eq!(longest(&[5, 7, 6], 16), (3, 7));
        assert_eq!(longest(&[1; 100], 1), (7, 15));
        assert_eq!(longest(&[], 16), (0, 0));
    }
}
