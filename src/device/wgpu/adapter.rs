//! Adapters: what is there, which one `auto` takes and why.

use serde::Serialize;

use crate::device::DeviceError;

/// Which wgpu adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pick {
    /// The first real GPU.
    Any,
    /// By its position in the list of `aavae devices`.
    Index(usize),
    /// The one whose name contains this, of any backend or of one.
    Name {
        /// `vulkan`, `metal` or `dx12`.
        backend: Option<String>,
        /// Part of the name, whatever the case.
        name: String,
    },
}

const BACKENDS: [&str; 3] = ["vulkan", "metal", "dx12"];

impl std::str::FromStr for Pick {
    type Err = DeviceError;
    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let (backend, name) = match text.split_once(':') {
            Some((backend, name)) if BACKENDS.contains(&backend.to_lowercase().as_str()) => {
                (Some(backend.to_lowercase()), name)
            }
            _ => (None, text),
        };
        match (backend, name.parse::<usize>()) {
            (_, _) if name.is_empty() => Err(DeviceError::unknown(&format!("wgpu:{text}"))),
            (None, Ok(index)) if name.len() < 4 => Ok(Self::Index(index)),
            (backend, _) => Ok(Self::Name { backend, name: name.into() }),
        }
    }
}

/// An adapter, described.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AdapterInfo {
    /// Name, e.g. `llvmpipe (LLVM 15.0.6, 256 bits)`.
    pub name: String,
    /// `vulkan`, `metal`, `dx12`.
    pub backend: String,
    /// `DiscreteGpu`, `IntegratedGpu`, `VirtualGpu`, `Cpu`, `Other`.
    pub kind: String,
    /// Driver and its version.
    pub driver: String,
    /// A processor pretending to be a GPU.
    pub software: bool,
    /// Bytes of one storage binding.
    pub max_binding_bytes: u64,
    /// Bytes of one buffer.
    pub max_buffer_bytes: u64,
    /// Storage buffers of one dispatch.
    pub max_storage_buffers: u32,
    /// Bytes of workgroup memory.
    pub workgroup_memory_bytes: u32,
    /// Lanes of a subgroup, smallest and largest; absent without the feature.
    pub subgroup: Option<[u32; 2]>,
    /// Edge of the square cooperative matrices, f16 by f16 with sums in f32; absent where there are
    /// none, or none that WGSL can name.
    pub coop: Option<u32>,
    /// Features that kernels could use: `subgroup`, `f16`, `coop 16x16`, `timestamps`.
    pub features: Vec<String>,
}

/// What kernels of cooperative matrices need of a device.
pub(super) const COOP: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// The largest edge that an adapter multiplies: 16 suits most GPUs, Apple's have 8.
fn coop(adapter: &wgpu::Adapter) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    if !adapter.features().contains(COOP) {
        return None;
    }
    let listed = adapter.cooperative_matrix_properties();
    let square = |edge: u32| {
        listed.iter().any(|p| {
            [p.m_size, p.n_size, p.k_size] == [edge; 3] && p.ab_type == F16 && p.cr_type == F32
        })
    };
    [16, 8].into_iter().find(|&edge| square(edge))
}

/// wgpu's consent form for cooperative matrices, where the adapter has them.
pub(super) fn experimental(info: &AdapterInfo) -> wgpu::ExperimentalFeatures {
    if info.coop.is_none() {
        return wgpu::ExperimentalFeatures::disabled();
    }
    #[allow(
        unsafe_code,
        reason = "the kernels that use it are ours, tests run each, and a tuner compares it \
            with one without them on the device before it is used"
    )]
    // SAFETY: what it may do wrong is in how kernels with cooperative matrices are validated and
    // written, and the only ones are those of `shaders`, which load and store whole matrices inside
    // of workgroup memory.
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// The instance every adapter comes from: a browser's where that was built in, else the native
/// ones.
pub(crate) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN
        | wgpu::Backends::METAL
        | wgpu::Backends::DX12
        | wgpu::Backends::BROWSER_WEBGPU;
    descriptor.flags = wgpu::InstanceFlags::empty();
    // Where the driver tells its budget (Vulkan, DX12), a buffer beyond it is an error instead of a
    // machine that swaps.
    descriptor.memory_budget_thresholds.for_resource_creation = Some(95);
    wgpu::Instance::new(descriptor)
}

/// Every adapter, real GPUs first.
pub(crate) async fn enumerate() -> Vec<(wgpu::Adapter, AdapterInfo)> {
    let adapters = instance().enumerate_adapters(wgpu::Backends::all()).await;
    let mut found: Vec<_> = adapters
        .into_iter()
        .map(|a| {
            let info = describe(&a);
            (a, info)
        })
        .collect();
    let rank = |kind: &str| {
        ["DiscreteGpu", "IntegratedGpu", "VirtualGpu", "Other", "Cpu"]
            .iter()
            .position(|k| *k == kind)
    };
    found.sort_by_key(|(_, i)| rank(&i.kind));
    found
}

/// Descriptions of every adapter, real GPUs first.
#[cfg(any(feature = "native", target_family = "wasm"))]
pub fn adapters() -> Vec<AdapterInfo> {
    crate::device::wait::block_on(enumerate()).into_iter().map(|a| a.1).collect()
}

fn describe(adapter: &wgpu::Adapter) -> AdapterInfo {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let has_subgroup = features.contains(wgpu::Features::SUBGROUP);
    let coop = coop(adapter);
    let named = [
        (features.contains(wgpu::Features::SUBGROUP), "subgroup".into()),
        (features.contains(wgpu::Features::SHADER_F16), "f16".into()),
        (coop.is_some(), coop.map_or(String::new(), |edge| format!("coop {edge}x{edge}"))),
        (features.contains(wgpu::Features::TIMESTAMP_QUERY), "timestamps".into()),
    ];
    AdapterInfo {
        software: info.device_type == wgpu::DeviceType::Cpu,
        backend: format!("{:?}", info.backend).to_lowercase(),
        kind: format!("{:?}", info.device_type),
        driver: format!("{} {}", info.driver, info.driver_info).trim().into(),
        name: info.name,
        max_binding_bytes: limits.max_storage_buffer_binding_size,
        max_buffer_bytes: limits.max_buffer_size,
        max_storage_buffers: limits.max_storage_buffers_per_shader_stage,
        workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
        subgroup: has_subgroup.then_some([info.subgroup_min_size, info.subgroup_max_size]),
        coop,
        features: named.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect(),
    }
}

/// The adapter that a `--device` means.
///
/// # Errors
/// If there is none or more than one; lists what there is.
pub(crate) async fn select(pick: &Pick) -> Result<(wgpu::Adapter, AdapterInfo), DeviceError> {
    let mut all = enumerate().await;
    let infos: Vec<AdapterInfo> = all.iter().map(|a| a.1.clone()).collect();
    let index = find(pick, &infos)?;
    Ok(all.swap_remove(index))
}

/// Position of the adapter that is meant among those of [`adapters`].
///
/// # Errors
/// If there is none or more than one.
pub fn find(pick: &Pick, all: &[AdapterInfo]) -> Result<usize, DeviceError> {
    let line = |i: usize| format!("wgpu:{i} = {} ({})", all[i].name, all[i].backend);
    let lines = |of: &[usize]| of.iter().map(|&i| line(i)).collect::<Vec<_>>().join(", ");
    let everything: Vec<usize> = (0..all.len()).collect();
    let list = if all.is_empty() { "no adapter".into() } else { lines(&everything) };
    let missing =
        |message: String, hint: &str| DeviceError::NotFound { message, hint: Some(hint.into()) };
    let (name, backend) = match pick {
        Pick::Any => {
            return all.iter().position(|a| !a.software).ok_or_else(|| {
                let message = format!("there is no GPU adapter (found {list})");
                missing(
                    message,
                    "`aavae devices` lists adapters; a software one is used only when \
                    named, as `--device wgpu:llvmpipe`",
                )
            });
        }
        Pick::Index(i) if *i < all.len() => return Ok(*i),
        Pick::Index(i) => {
            let message = format!("there is no adapter {i} (found {list})");
            return Err(missing(message, "`aavae devices` lists the adapters"));
        }
        Pick::Name { backend, name } => (name.to_lowercase(), backend),
    };
    let of_backend = |a: &AdapterInfo| backend.as_ref().is_none_or(|b| a.backend == *b);
    let mut fitting = everything;
    fitting.retain(|&i| of_backend(&all[i]) && all[i].name.to_lowercase().contains(&name));
    // A whole name means the adapter of that name, though it may begin another's.
    let whole: Vec<usize> =
        fitting.iter().copied().filter(|&i| all[i].name.to_lowercase() == name).collect();
    match (&whole[..], &fitting[..]) {
        ([one], _) | (_, [one]) => Ok(*one),
        (_, []) => {
            let of = backend.as_ref().map_or(String::new(), |b| format!(" of {b}"));
            let message = format!("no adapter{of} is named `{name}` (found {list})");
            Err(missing(message, "`aavae devices` lists the adapters"))
        }
        _ => {
            let message = format!("`{name}` fits {} adapters: {}", fitting.len(), lines(&fitting));
            Err(missing(
                message,
                "choose one by its index, e.g. `--device wgpu:0`, or as `wgpu:BACKEND:NAME`",
            ))
        }
    }
}
