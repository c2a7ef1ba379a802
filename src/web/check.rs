//! Every kernel's trials in a page: `aavae check` on a second, independent WebGPU.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::post;
use crate::check;
use crate::device::wgpu::{Gpu, OpenOptions, Pick};
use crate::device::{DeviceError, Session};
use crate::ops::{self, Case, Target};
use crate::tensor::Half;

/// Runs the cases whose name contains `only`, or of each op the `first` of them, and tells of each
/// trial; in the end also how many this device cannot run, and why.
pub(super) fn check(only: &str, first: bool) -> Result<(), DeviceError> {
    let mut session = Session::from(Gpu::pick(&Pick::Index(0), OpenOptions::default())?);
    let (mut passed, mut failed) = (0, 0);
    let (halves, target) = (session.capabilities().halves, session.target());
    let mut left_out: BTreeMap<&str, usize> = BTreeMap::new();
    let mut begun = BTreeSet::new();
    for case in ops::all_cases() {
        let name = check::name(&case);
        if !name.contains(only) {
            continue;
        }
        if let Some(half) = case.half.filter(|half| !halves.contains(half)) {
            let trials = check::variants(&case, &target).len();
            let why = match half {
                Half::F16 => "no f16 on this device",
                Half::Bf16 => "no bf16 in WGSL",
            };
            *left_out.entry(why).or_default() += trials;
            continue;
        }
        if first && !begun.insert(case.op.name()) {
            *left_out.entry("not the first case of its op").or_default() += 1;
            continue;
        }
        for (why, variants) in beyond(&case, &target) {
            *left_out.entry(why).or_default() += variants;
        }
        for variant in check::variants(&case, &target) {
            let tried = check::trial(&case, &mut session, variant);
            let (ratio, message) = (tried.as_ref().ok(), tried.as_ref().err());
            (passed, failed) = match &tried {
                Ok(_) => (passed + 1, failed),
                Err(_) => (passed, failed + 1),
            };
            let variant = variant.to_string();
            post(
                "trial",
                &json!({ "case": name, "variant": variant, "ratio": ratio, "message": message }),
            );
        }
    }
    let device = session.device();
    let left_out: Vec<_> =
        left_out.iter().map(|(why, count)| json!({ "why": why, "count": count })).collect();
    post(
        "checked",
        &json!({ "device": device, "passed": passed, "failed": failed, "left_out": left_out }),
    );
    Ok(())
}

/// Variants of a case that only devices with more than this one have, by what it lacks. Browsers
/// offer no cooperative matrices.
fn beyond(case: &Case, target: &Target) -> Vec<(&'static str, usize)> {
    let here = check::variants(case, target);
    let larger = Target { max_invocations: u32::MAX, workgroup_memory: u32::MAX, ..*target };
    let lanes = Target { subgroup: target.subgroup.or(Some(32)), ..*target };
    let more = |target: &Target| {
        check::variants(case, target).iter().filter(|variant| !here.contains(variant)).count()
    };
    [
        ("workgroups too large for this device", more(&larger)),
        ("no subgroups: browsers want `enable subgroups;`, which naga refuses", more(&lanes)),
    ]
    .into_iter()
    .filter(|(_, count)| *count > 0)
    .collect()
}
