//! Adapters: what is there, which one `auto` takes and why.

use serde::Serialize;

use crate::device::DeviceError;

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
    /// Features that kernels could use: `subgroup`, `f16`, `timestamps`.
    pub features: Vec<String>,
}

/// The instance every adapter comes from: native backends only.
pub(crate) fn instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    descriptor.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(descriptor)
}

/// Every adapter, real GPUs first.
pub(crate) fn enumerate() -> Vec<(wgpu::Adapter, AdapterInfo)> {
    let adapters = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::all()));
    let mut found: Vec<_> = adapters
        .into_iter()
        .map(|a| {
            let info = describe(&a);
            (a, info)
        })
        .collect();
    let rank = |kind: &str| ["DiscreteGpu", "IntegratedGpu", "VirtualGpu", "Other", "Cpu"].iter().position(|k| *k == kind);
    found.sort_by_key(|(_, i)| rank(&i.kind));
    found
}

/// Descriptions of every adapter, real GPUs first.
pub fn adapters() -> Vec<AdapterInfo> {
    enumerate().into_iter().map(|a| a.1).collect()
}

fn describe(adapter: &wgpu::Adapter) -> AdapterInfo {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    let has_subgroup = features.contains(wgpu::Features::SUBGROUP);
    let named =
        [(wgpu::Features::SUBGROUP, "subgroup"), (wgpu::Features::SHADER_F16, "f16"), (wgpu::Features::TIMESTAMP_QUERY, "timestamps")];
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
        features: named.iter().filter(|(f, _)| features.contains(*f)).map(|(_, n)| (*n).into()).collect(),
    }
}

/// The adapter that `--device wgpu` (no name: a real GPU) or `--device wgpu:NAME` means.
///
/// # Errors
/// If there is none; lists what there is.
pub(crate) fn select(name: Option<&str>) -> Result<(wgpu::Adapter, AdapterInfo), DeviceError> {
    let all = enumerate();
    let list =
        if all.is_empty() { "no adapter".to_owned() } else { all.iter().map(|a| format!("`{}`", a.1.name)).collect::<Vec<_>>().join(", ") };
    let wanted = |info: &AdapterInfo| match name {
        Some(n) => info.name.to_lowercase().contains(&n.to_lowercase()),
        None => !info.software,
    };
    let missing = match name {
        Some(n) => format!("no adapter is named `{n}` (found {list})"),
        None => format!("no GPU adapter (found {list}; software adapters are used only when named, e.g. `--device wgpu:llvmpipe`)"),
    };
    all.into_iter().find(|a| wanted(&a.1)).ok_or(DeviceError::NotFound(missing))
}
