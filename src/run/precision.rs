//! Which precision a device computes in: asked for, or chosen for it.

use super::RunError;
use super::settings::PrecisionKind;
use crate::device::Session;
use crate::ops::Target;
use crate::tensor::Half;

/// What `auto` is on a device: f16 where it has matrix units for it, else f32. The others are what
/// they are.
pub fn resolve(asked: PrecisionKind, session: &Session) -> PrecisionKind {
    match asked {
        PrecisionKind::Auto
            if session.capabilities().stores(Half::F16) && session.target().coop.is_some() =>
        {
            PrecisionKind::F16
        }
        PrecisionKind::Auto => PrecisionKind::F32,
        asked => asked,
    }
}

/// Has plans of a session lowered for training in a precision, before any is made: `half`, or f32.
///
/// # Errors
/// If the device cannot store it.
pub fn train(session: &mut Session, half: Option<Half>) -> Result<(), RunError> {
    let can = session.capabilities();
    if let Some(half) = half.filter(|half| !can.stores(*half)) {
        let name = half.name();
        let message = format!("{} cannot store {name}, as --precision {name} asks", can.name);
        let other = match half {
            Half::Bf16 if can.stores(Half::F16) => "take --precision f16",
            _ => "leave --precision out",
        };
        let device = match half {
            Half::F16 => "name another device with --device",
            Half::Bf16 => "--device cuda or cpu: WGSL has no bf16",
        };
        return Err(RunError::config(message, Some(&format!("{other}, or {device}"))));
    }
    session.set_target(Target { half, ..session.target() });
    Ok(())
}

/// Has plans of a session lowered for evaluating a model that was trained in `half`, or in f32: in
/// the same where the device can, as such a model is used, else in f32, of which others are a
/// rounding. Returns which it is.
pub fn evaluate(session: &mut Session, trained: Option<Half>) -> Option<Half> {
    let half = trained.filter(|half| session.capabilities().stores(*half));
    session.set_target(Target { half, ..session.target() });
    half
}
