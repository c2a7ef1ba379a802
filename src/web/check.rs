//! Every kernel's trials in a page: `aavae check` on a second, independent WebGPU.

use serde_json::json;

use super::post;
use crate::check;
use crate::device::wgpu::{Gpu, OpenOptions, Pick};
use crate::device::{DeviceError, Session};
use crate::ops;

/// Runs the cases whose name contains `only`, and tells of each.
pub(super) fn check(only: &str) -> Result<(), DeviceError> {
    let mut session = Session::from(Gpu::pick(&Pick::Index(0), OpenOptions::default())?);
    let (mut passed, mut failed) = (0, 0);
    let f16 = session.capabilities().f16;
    for case in ops::all_cases() {
        let name = check::name(&case);
        if !name.contains(only) || case.half && !f16 {
            continue;
        }
        for variant in check::variants(&case, &session.target()) {
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
    post("checked", &json!({ "device": device, "passed": passed, "failed": failed }));
    Ok(())
}
