//! Golden numbers for Rust tests: the files, the hash that fills tensors (`README.md` here), the
//! devices they are compared on, and what counts as equal.

use std::collections::BTreeMap;

use aavae::device::wgpu::{AdapterInfo, Gpu, OpenOptions, adapters};
use aavae::device::{DeviceError, Host, Pick, PlanId, Session};
use aavae::ops::Target;
use libtest_mimic::{Failed, Trial};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// Bytes of a golden file.
pub(crate) fn bytes(file: &str) -> Vec<u8> {
    let path = format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A golden JSON file.
pub(crate) fn json(file: &str) -> Value {
    serde_json::from_slice(&bytes(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// The tensors of a golden file, any element type as f64.
pub(crate) struct Tensors {
    file: String,
    all: BTreeMap<String, Vec<f64>>,
}

impl Tensors {
    /// Reads a file.
    pub(crate) fn open(file: &str) -> Self {
        let bytes = bytes(file);
        let tensors = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
        let wide = |t: &safetensors::tensor::TensorView<'_>| -> Vec<f64> {
            fn each<const N: usize>(data: &[u8], f: fn([u8; N]) -> f64) -> Vec<f64> {
                data.as_chunks::<N>().0.iter().map(|b| f(*b)).collect()
            }
            match t.dtype() {
                Dtype::U8 => each(t.data(), |b: [u8; 1]| f64::from(b[0])),
                Dtype::F32 => each(t.data(), |b| f64::from(f32::from_le_bytes(b))),
                Dtype::F64 => each(t.data(), f64::from_le_bytes),
                Dtype::I64 => each(t.data(), |b| i64::from_le_bytes(b) as f64),
                other => panic!("{file}: unexpected dtype {other:?}"),
            }
        };
        Self {
            file: file.into(),
            all: tensors.tensors().into_iter().map(|(name, t)| (name, wide(&t))).collect(),
        }
    }
    /// A tensor that may not be there.
    pub(crate) fn find(&self, name: &str) -> Option<&[f64]> {
        self.all.get(name).map(Vec::as_slice)
    }
    /// A tensor.
    pub(crate) fn get(&self, name: &str) -> &[f64] {
        self.find(name).unwrap_or_else(|| panic!("{} has no tensor `{name}`", self.file))
    }
    /// Names that begin with a prefix.
    pub(crate) fn count(&self, prefix: &str) -> usize {
        self.all.keys().filter(|k| k.starts_with(prefix)).count()
    }
}

fn bits(name: &str, i: u64) -> u64 {
    let start = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |s, b| (s ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut z = start.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The hash's tensor of this name.
pub(crate) fn fill(name: &str, len: usize, scale: f64, offset: f64) -> Vec<f32> {
    let value = |i| (bits(name, i) >> 40) as f64 / 16_777_216.0 - 0.5;
    (0..len as u64).map(|i| (offset + value(i) * scale) as f32).collect()
}

/// The hash's values of a parameter or buffer, in the file's order.
pub(crate) fn fill_parameter(name: &str, shape: &[usize]) -> Vec<f32> {
    let (scale, offset) = match name.rsplit('.').next() {
        Some("log_scale") => (2.0, 0.0),
        Some("running_mean") => (0.1, 0.0),
        Some("running_var") => (0.2, 1.0),
        Some("bias") => (0.2, 0.0),
        _ if name.ends_with(".bn2.weight") || name.ends_with(".bn3.weight") => (0.2, 0.3),
        _ if shape.len() == 1 => (0.2, 1.0),
        _ => (2.0 * 3.0_f64.sqrt() / (shape[1..].iter().product::<usize>() as f64).sqrt(), 0.0),
    };
    fill(name, shape.iter().product(), scale, offset)
}

/// The elements that stand for a sampled tensor.
pub(crate) fn sample_of(name: &str, tensor: &[f64], count: usize) -> Vec<f64> {
    let index = format!("idx/{name}");
    (0..count as u64).map(|j| tensor[(bits(&index, j) % tensor.len() as u64) as usize]).collect()
}

/// A device to prove.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Device {
    /// The f64 reference.
    Reference,
    /// Native f32.
    Cpu,
    /// An adapter, with the products made for a GPU or for a processor.
    Wgpu { index: usize, adapter: String, software: bool },
}

impl Device {
    /// Opens a session.
    pub(crate) fn open(&self) -> Result<Session, DeviceError> {
        Ok(match self {
            Self::Reference => Session::from(Host::<f64>::new()),
            Self::Cpu => Session::from(Host::<f32>::new()),
            Self::Wgpu { index, software, .. } => {
                let pick = Pick::Index(*index);
                let mut session = Session::from(Gpu::pick(&pick, OpenOptions::default())?);
                session.set_target(Target { software: *software, ..session.target() });
                session
            }
        })
    }
    /// Name in a trial's name.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Reference => "reference".into(),
            Self::Cpu => "cpu".into(),
            Self::Wgpu { adapter, software: false, .. } => format!("{adapter}/tile"),
            Self::Wgpu { adapter, software: true, .. } => format!("{adapter}/broadcast"),
        }
    }
}

/// Every adapter with the products of every kind it can run, its own kind first.
pub(crate) fn wgpu_devices() -> Vec<Device> {
    let variants = |(index, a): (usize, AdapterInfo)| {
        let broadcasts = a.subgroup.is_some_and(|[least, most]| least == most);
        let kinds = if broadcasts { vec![a.software, !a.software] } else { vec![false] };
        kinds.into_iter().map(move |software| Device::Wgpu {
            index,
            adapter: a.name.clone(),
            software,
        })
    };
    adapters().into_iter().enumerate().flat_map(variants).collect()
}

/// What stands for the trial of a machine without an adapter: ignored, or a failure where one is
/// required.
pub(crate) fn no_adapter(name: &str) -> Trial {
    let require = std::env::var_os("REQUIRE_GPU").is_some();
    Trial::test(format!("{name}/wgpu (no adapter)"), || {
        Err("no Vulkan, Metal or DX12 adapter".into())
    })
    .with_ignored_flag(!require)
}

/// An output of a loaded plan by name.
pub(crate) fn read(session: &mut Session, id: PlanId, name: &str) -> Result<Vec<f64>, Failed> {
    let position = session
        .plan(id)
        .outputs
        .iter()
        .position(|p| p.name == name)
        .ok_or_else(|| format!("no output `{name}`"))?;
    Ok(wide(&session.read(id, position)?))
}

/// NCHW to NHWC with four channels.
pub(crate) fn pixels(nchw: &[f32], n: usize, side: usize) -> Vec<f32> {
    let area = side * side;
    let at = |i: usize, p: usize, c: usize| if c < 3 { nchw[(i * 3 + c) * area + p] } else { 0.0 };
    (0..n * area * 4).map(|k| at(k / 4 / area, k / 4 % area, k % 4)).collect()
}

/// f32 as f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Largest absolute value.
pub(crate) fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| if x.abs() > m { x.abs() } else { m })
}

/// The relative errors of a trial: the largest difference over the largest wanted value of the
/// tensor.
pub(crate) struct Report {
    title: String,
    tolerance: f64,
    worst: (f64, String),
    failures: Vec<String>,
    tensors: usize,
}

impl Report {
    /// A report that fails above this error.
    pub(crate) fn new(title: &str, tolerance: f64) -> Self {
        Self {
            title: title.into(),
            tolerance,
            worst: (0.0, String::new()),
            failures: Vec::new(),
            tensors: 0,
        }
    }
    /// An error already divided by its scale. A NaN fails.
    pub(crate) fn error(&mut self, name: &str, error: f64) {
        self.tensors += 1;
        if error.is_nan() || error > self.tolerance {
            self.failures.push(format!("{name}: error {error:.1e}"));
        }
        if error.is_nan() || error > self.worst.0 {
            self.worst = (error, name.into());
        }
    }
    /// A tensor against the golden one, relative to its own largest element (to 1 where that is 0).
    pub(crate) fn tensor(&mut self, name: &str, got: &[f64], want: &[f64]) {
        let scale = largest(want);
        self.scaled(name, got, want, if scale == 0.0 { 1.0 } else { scale });
    }
    /// A tensor against the golden one, relative to a given scale.
    pub(crate) fn scaled(&mut self, name: &str, got: &[f64], want: &[f64], scale: f64) {
        if got.len() != want.len() || want.is_empty() {
            self.failures.push(format!("{name}: {} elements, not {}", got.len(), want.len()));
            return;
        }
        let error =
            |(g, w): (&f64, &f64)| if g.is_finite() { (g - w).abs() } else { f64::INFINITY };
        self.error(name, got.iter().zip(want).map(error).fold(0.0, f64::max) / scale);
    }
    /// A whole tensor against a sampled one: 32 or 512 of its elements, its L2 norm (relative), and
    /// its sum (relative to the L1 norm).
    pub(crate) fn sample(&mut self, name: &str, got: &[f64], want: &[f64]) {
        let (elements, totals) = want.split_at(want.len() - 2);
        self.tensor(name, &sample_of(name, got, elements.len()), elements);
        let norm = got.iter().map(|x| x * x).sum::<f64>().sqrt();
        self.scaled(&format!("{name} (norm)"), &[norm], &totals[..1], totals[0]);
        let one_norm = got.iter().map(|x| x.abs()).sum::<f64>();
        self.scaled(&format!("{name} (sum)"), &[got.iter().sum()], &totals[1..], one_norm);
    }
    /// `PREFIX/NAME` or `PREFIX.sample/NAME` of a golden file, whichever is there.
    pub(crate) fn stored(&mut self, golden: &Tensors, prefix: &str, name: &str, got: &[f64]) {
        match golden.find(&format!("{prefix}.sample/{name}")) {
            Some(want) => self.sample(name, got, want),
            None => self.tensor(
                &format!("{prefix}/{name}"),
                got,
                golden.get(&format!("{prefix}/{name}")),
            ),
        }
    }
    /// What the trial says.
    pub(crate) fn finish(self) -> Result<(), Failed> {
        if std::env::var_os("SHOW_ERRORS").is_some() {
            eprintln!(
                "{:60} worst {:.1e} of {:.0e}, {} values ({})",
                self.title, self.worst.0, self.tolerance, self.tensors, self.worst.1
            );
        }
        match &self.failures[..] {
            [] if self.tensors == 0 => Err("nothing was compared".into()),
            [] => Ok(()),
            few => Err(format!(
                "{} of {} above {:.0e}:\n{}",
                few.len(),
                self.tensors,
                self.tolerance,
                few.join("\n")
            )
            .into()),
        }
    }
}
