//! Where NVIDIA's libraries are: the driver comes with the system, the run-time compiler with a
//! CUDA toolkit or with a Python package, torch's own among them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::OnceLock;

use super::cublas::Blas;
use super::cudnn::Cudnn;
use super::driver::Driver;
use super::nvrtc::Nvrtc;
use crate::device::DeviceError;

/// Set to 1, it lets the tuner compare what cuDNN and cuBLASLt propose with our kernels. No
/// training on a GPU has gone well by them yet, so it is asked for.
pub const CUDNN: &str = "AAVAE_CUDNN";
/// Folders to look into first, separated as in `PATH`.
pub const FOLDERS: &str = "AAVAE_CUDA_LIBS";
/// The oldest and the newest major version of CUDA whose compiler is known to fit.
const MAJORS: [i32; 2] = [13, 12];

/// An error that says what is missing and what to do.
fn missing(message: impl Into<String>, hint: impl Into<String>) -> DeviceError {
    let message = format!("no CUDA: {}", message.into());
    DeviceError::NotFound { message, hint: Some(hint.into()) }
}

/// Folders that a variable lists.
fn listed(variable: &str) -> Vec<PathBuf> {
    std::env::var_os(variable).map_or(vec![], |list| std::env::split_paths(&list).collect())
}

/// The existing subfolders of `folder` that a test of their name picks, in order.
fn subfolders(folder: &Path, pick: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let named = |p: &PathBuf| p.file_name().and_then(|n| n.to_str()).is_some_and(&pick);
    let mut found: Vec<_> = entries.filter(|p| p.is_dir()).filter(named).collect();
    found.sort();
    found
}

/// `nvidia/*/lib` of a folder of Python packages.
fn wheels(packages: &Path) -> Vec<PathBuf> {
    let parts = subfolders(&packages.join("nvidia"), |_| true);
    let mut found: Vec<_> = parts.into_iter().map(|p| p.join("lib")).collect();
    found.push(packages.join("torch/lib"));
    found
}

/// Where a CUDA toolkit keeps its libraries.
fn toolkit(root: &Path) -> [PathBuf; 2] {
    [root.join("lib64"), root.join("lib")]
}

/// Folders that may hold the compiler, in the order in which they are searched.
pub(super) fn folders() -> Vec<PathBuf> {
    let mut all = listed(FOLDERS);
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        all.extend(listed(variable).iter().flat_map(|root| toolkit(root)));
    }
    all.extend(listed("LD_LIBRARY_PATH"));
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        for root in listed(variable) {
            all.push(root.join("lib"));
            for python in subfolders(&root.join("lib"), |n| n.starts_with("python3")) {
                all.extend(wheels(&python.join("site-packages")));
            }
        }
    }
    let mut toolkits = subfolders(Path::new("/usr/local"), |n| n.starts_with("cuda"));
    toolkits.reverse();
    all.extend(toolkits.iter().flat_map(|root| toolkit(root)));
    let system =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    all.extend(system.map(PathBuf::from));
    all
}

/// Folders of the packages of the `python3` that would run, which is asked once.
fn python_folders() -> &'static [PathBuf] {
    static FOUND: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOUND.get_or_init(ask_python)
}

fn ask_python() -> Vec<PathBuf> {
    let print = "import sys; print('\\n'.join(p for p in sys.path if p))";
    let out = Command::new("python3").args(["-c", print]).output();
    let text = out.map_or(String::new(), |o| String::from_utf8_lossy(&o.stdout).into_owned());
    text.lines().flat_map(|path| wheels(Path::new(path))).collect()
}

/// `libnvrtc.so.MAJOR` of the folders, newest version first, in the order of the folders.
fn compilers(folders: &[PathBuf], newest: i32) -> Vec<PathBuf> {
    let majors = MAJORS.into_iter().filter(|m| *m <= newest);
    let files =
        majors.flat_map(|m| folders.iter().map(move |f| f.join(format!("libnvrtc.so.{m}"))));
    files.filter(|p| p.exists()).collect()
}

/// The line that installs the compiler for a driver that supports CUDA `major`.
pub(super) fn install(major: i32) -> &'static str {
    match major {
        12 => "pip install nvidia-cuda-nvrtc-cu12",
        _ => "pip install 'nvidia-cuda-nvrtc<14'",
    }
}

/// Opens the driver.
///
/// # Errors
/// If there is none, or one that is too old.
pub(super) fn driver() -> Result<Driver, DeviceError> {
    let named = listed(FOLDERS).into_iter().map(|f| f.join("libcuda.so.1")).find(|p| p.exists());
    let path = named.unwrap_or_else(|| "libcuda.so.1".into());
    let hint = "`nvidia-smi` shows whether NVIDIA's driver works; it must be 525 or newer";
    let driver = Driver::open(&path).map_err(|e| missing(format!("the driver: {e}"), hint))?;
    let [major, minor] = version(driver.version);
    if major < 12 {
        let message = format!("the driver supports CUDA {major}.{minor}, and 12.0 is needed");
        return Err(missing(message, "install NVIDIA's driver 525 or newer"));
    }
    Ok(driver)
}

/// Opens the newest compiler that fits the driver: machine code runs on drivers of its major
/// version.
///
/// # Errors
/// If there is none that can be opened.
pub(super) fn compiler(driver: &Driver) -> Result<(Nvrtc, PathBuf), DeviceError> {
    let [major, _] = version(driver.version);
    let folders = folders();
    let mut found = compilers(&folders, major);
    if found.is_empty() {
        found = compilers(python_folders(), major);
    }
    let hint = format!("`{}`, or name its folder in {FOLDERS}", install(major));
    let mut failures = Vec::new();
    for path in found {
        match Nvrtc::open(&path) {
            Ok(nvrtc) => return Ok((nvrtc, path)),
            Err(e) => failures.push(e),
        }
    }
    if failures.is_empty() {
        let looked = folders.iter().filter(|f| f.is_dir()).map(|f| f.display().to_string());
        let looked = looked.collect::<Vec<_>>().join(", ");
        let name = format!("libnvrtc.so.{}", major.clamp(MAJORS[1], MAJORS[0]));
        return Err(missing(format!("{name} is in none of {looked}"), hint));
    }
    Err(missing(format!("the compiler: {}", failures.join("; ")), hint))
}

/// The line that installs cuDNN and what it needs, for CUDA `major`.
pub(super) fn install_products(major: i32) -> String {
    let blas = if major == 12 { "nvidia-cublas-cu12" } else { "'nvidia-cublas<14'" };
    format!("pip install nvidia-cudnn-cu{major} {blas}")
}

/// The libraries of products, open.
#[derive(Clone)]
pub(super) struct OfProducts {
    pub(super) cudnn: Rc<Cudnn>,
    /// Which cuDNN needs.
    pub(super) blas: Rc<Blas>,
}

/// Opens the libraries of products if they are asked for ([`CUDNN`]).
///
/// # Errors
/// If they are asked for and there are none that fit.
pub(super) fn wanted(major: i32) -> Result<Option<OfProducts>, DeviceError> {
    if std::env::var_os(CUDNN).is_none_or(|asked| asked != "1") {
        return Ok(None);
    }
    let hint = format!("`{}`, or unset {CUDNN}", install_products(major));
    products(major).map(Some).map_err(|why| missing(format!("cuDNN: {why}"), hint))
}

/// Opens the libraries of products, where there are some that fit the compiler of CUDA `major`.
///
/// # Errors
/// Why there are none.
pub(super) fn products(major: i32) -> Result<OfProducts, String> {
    let folders = folders();
    let find = |name: &str| {
        let here = |all: &[PathBuf]| all.iter().map(|f| f.join(name)).find(|p| p.exists());
        here(&folders).or_else(|| here(python_folders()))
    };
    let path = find("libcudnn.so.9").ok_or("there is no libcudnn.so.9")?;
    let cudnn = Cudnn::open(&path, major)?;
    let name = format!("libcublasLt.so.{major}");
    let blas = Blas::open(&find(&name).unwrap_or_else(|| name.clone().into()))
        .map_err(|e| format!("{name}, which cuDNN needs: {e}"))?;
    Ok(OfProducts { cudnn, blas })
}

/// Major and minor version of a number like 13000.
pub(super) fn version(number: i32) -> [i32; 2] {
    [number / 1000, number % 1000 / 10]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_compiler_that_fits_the_driver_is_taken() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let [a, b] = ["a", "b"].map(|n| root.path().join(n));
        for (folder, name) in
            [(&a, "libnvrtc.so.12"), (&b, "libnvrtc.so.12"), (&b, "libnvrtc.so.13")]
        {
            std::fs::create_dir_all(folder).expect("a folder");
            std::fs::write(folder.join(name), "").expect("a file");
        }
        let both = [a.clone(), b.clone()];
        let old = [a.join("libnvrtc.so.12"), b.join("libnvrtc.so.12")];
        assert_eq!(compilers(&both, 12), old);
        assert_eq!(compilers(&both, 13)[0], b.join("libnvrtc.so.13"));
        assert_eq!(compilers(&both[..1], 14), old[..1]);
    }

    #[test]
    fn packages_of_python_are_searched() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let lib = root.path().join("nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).expect("a folder");
        assert!(wheels(root.path()).contains(&lib));
        assert_eq!(version(12_080), [12, 8]);
        assert!(install(12).contains("cu12") && !install(13).contains("cu12"));
    }
}
