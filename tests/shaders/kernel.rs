//! What a kernel is once it is parsed: valid in every output language, within a browser's limits,
//! and what it binds.

use std::collections::{BTreeMap, BTreeSet};

use aavae::shader::CONSTANTS_BINDING;
use naga::valid::{Capabilities, GlobalUse, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, StorageAccess};

/// Baseline WebGPU.
pub(crate) const WORKGROUP_BYTES: u32 = 16 << 10;
pub(crate) const INVOCATIONS: u32 = 256;
pub(crate) const STORAGE_BUFFERS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Uniform,
    Read,
    ReadWrite,
}

/// What a validated kernel declares.
#[derive(Debug)]
pub(crate) struct Reflection {
    pub(crate) bindings: BTreeMap<u32, Access>,
    /// Bytes of the uniform of constants.
    pub(crate) constants: u32,
    /// The bindings that are read, and those that are written.
    pub(crate) reads: BTreeSet<u32>,
    pub(crate) writes: BTreeSet<u32>,
    pub(crate) workgroup_size: u32,
    pub(crate) workgroup_bytes: u32,
}

pub(crate) fn uses_subgroups(name: &str) -> bool {
    name.ends_with("_bcast") || COOP.contains(&name)
}

/// Kernels of cooperative matrices, which neither baseline WebGPU nor HLSL can express; those are
/// never chosen in a browser or on DX12, where no adapter lists such matrices.
pub(crate) const COOP: [&str; 4] =
    ["conv_nt_coop", "conv_tn_coop", "conv_nt_async", "conv_tn_async"];
/// What a kernel of [`COOP`] may take of a GPU that has such matrices, and where it copies tiles.
const COOP_BYTES: [u32; 2] = [48 << 10, 99 << 10];

pub(crate) fn parse(name: &str, text: &str) -> Result<(Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(text)
        .map_err(|e| format!("{name}: {}", e.emit_to_string(text)))?;
    let mut capabilities = Capabilities::empty();
    capabilities.set(Capabilities::SUBGROUP, uses_subgroups(name));
    capabilities.set(Capabilities::SHADER_FLOAT16, text.contains("enable f16;"));
    let matrices = COOP.contains(&name) || name.starts_with("lib/coop");
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, matrices);
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info =
        validator.validate(&module).map_err(|e| format!("{name}: {}", e.emit_to_string(text)))?;
    Ok((module, info))
}

/// Parses, validates and writes in every language; checks the limits; says what the kernel binds.
pub(crate) fn validate(name: &str, text: &str) -> Result<Reflection, String> {
    let (module, info) = parse(name, text)?;
    written_in_every_language(name, text, &module, &info)?;
    let reflection = reflect(name, &module, &info)?;
    within_limits(name, text, &reflection)?;
    Ok(reflection)
}

fn written_in_every_language(
    name: &str,
    text: &str,
    module: &Module,
    info: &ModuleInfo,
) -> Result<(), String> {
    let subgroups = uses_subgroups(name);
    let failed = |language: &str, e: &dyn std::fmt::Display| format!("{name}: {language}: {e}");

    let coop = COOP.contains(&name);
    let spv = naga::back::spv::Options {
        lang_version: if coop {
            (1, 6)
        } else if subgroups {
            (1, 3)
        } else {
            (1, 0)
        },
        ..Default::default()
    };
    let words =
        naga::back::spv::write_vec(module, info, &spv, None).map_err(|e| failed("SPIR-V", &e))?;
    let msl = naga::back::msl::Options {
        lang_version: if coop {
            (2, 3)
        } else if subgroups {
            (2, 1)
        } else {
            (2, 0)
        },
        ..Default::default()
    };
    let (metal, _) = naga::back::msl::write_string(module, info, &msl, &Default::default())
        .map_err(|e| failed("MSL", &e))?;
    // Wave intrinsics came with shader model 6.0, f16 with 6.2; everything else must suit the older
    // compiler too.
    let shader_model = if text.contains("enable f16;") {
        naga::back::hlsl::ShaderModel::V6_2
    } else if subgroups {
        naga::back::hlsl::ShaderModel::V6_0
    } else {
        naga::back::hlsl::ShaderModel::V5_1
    };
    let hlsl = naga::back::hlsl::Options { shader_model, ..Default::default() };
    let (mut direct, pipeline) = (String::new(), Default::default());
    if !coop {
        naga::back::hlsl::Writer::new(&mut direct, &hlsl, &pipeline)
            .write(module, info, None)
            .map_err(|e| failed("HLSL", &e))?;
    }
    if words.len() < 20 || metal.len() < 20 || (direct.len() < 20 && !coop) {
        return Err(format!("{name}: an output is empty"));
    }
    Ok(())
}

/// What a kernel declares; each of its bindings must be used.
fn reflect(name: &str, module: &Module, info: &ModuleInfo) -> Result<Reflection, String> {
    let [entry] = module.entry_points.as_slice() else {
        return Err(format!("{name}: {} entry points", module.entry_points.len()));
    };
    if entry.name != "main" || entry.stage != naga::ShaderStage::Compute {
        return Err(format!(
            "{name}: the entry point is `{}`, expected a compute shader `main`",
            entry.name
        ));
    }
    let mut r = Reflection {
        bindings: BTreeMap::new(),
        constants: 0,
        reads: BTreeSet::new(),
        writes: BTreeSet::new(),
        workgroup_size: entry.workgroup_size.iter().product(),
        workgroup_bytes: 0,
    };
    for (handle, variable) in module.global_variables.iter() {
        let usage = info.get_entry_point(0)[handle];
        let label = variable.name.as_deref().unwrap_or("?");
        if variable.space == AddressSpace::WorkGroup {
            r.workgroup_bytes += module.types[variable.ty].inner.size(module.to_ctx());
        }
        let Some(at) = &variable.binding else { continue };
        let access = match variable.space {
            AddressSpace::Uniform => Access::Uniform,
            AddressSpace::Storage { access: StorageAccess::LOAD } => Access::Read,
            AddressSpace::Storage { .. } => Access::ReadWrite,
            other => return Err(format!("{name}: `{label}` is bound in {other:?}")),
        };
        if at.binding == CONSTANTS_BINDING {
            r.constants = module.types[variable.ty].inner.size(module.to_ctx());
        }
        if at.group != 0 || r.bindings.insert(at.binding, access).is_some() {
            return Err(format!("{name}: `{label}` is not at a binding of its own in group 0"));
        }
        // The pipeline's layout comes from what is used: a binding that is declared in vain would
        // not be in it.
        if usage.is_empty() {
            return Err(format!("{name}: `{label}` is bound but not used"));
        }
        if access == Access::ReadWrite && !usage.contains(GlobalUse::WRITE) {
            return Err(format!("{name}: `{label}` is read_write but never written"));
        }
        if usage.contains(GlobalUse::READ) {
            r.reads.insert(at.binding);
        }
        if usage.contains(GlobalUse::WRITE) {
            r.writes.insert(at.binding);
        }
    }
    Ok(r)
}

fn within_limits(name: &str, text: &str, r: &Reflection) -> Result<(), String> {
    let buffers = r.bindings.values().filter(|a| **a != Access::Uniform).count();
    if buffers > STORAGE_BUFFERS {
        return Err(format!(
            "{name}: {buffers} storage buffers, baseline WebGPU binds {STORAGE_BUFFERS}"
        ));
    }
    // Tiles with moments are offered where they fit; these are sums of theirs.
    let larger = COOP.contains(&name) || text.contains("sh_sums: ");
    let copies = usize::from(name.ends_with("_async"));
    let most = if larger { COOP_BYTES[copies] } else { WORKGROUP_BYTES };
    if r.workgroup_bytes > most {
        return Err(format!("{name}: {} bytes of workgroup memory, of {most}", r.workgroup_bytes));
    }
    if r.workgroup_size == 0 || r.workgroup_size > INVOCATIONS {
        return Err(format!(
            "{name}: {} invocations, baseline WebGPU has {INVOCATIONS}",
            r.workgroup_size
        ));
    }
    Ok(())
}
