//! Which precision a device computes in: asked for, or chosen for it.

use super::RunError;
use super::settings::PrecisionKind;
use crate::device::Session;
use crate::ops::Target;

/// What `auto` is on a device: f16 where it has matrix units for it, else f32. The others are what
/// they are.
pub fn resolve(asked: PrecisionKind, session: &Session) -> PrecisionKind {
    match asked {
        PrecisionKind::Auto if session.capabilities().f16 && session.target().coop.is_some() => {
            PrecisionKind::F16
        }
        PrecisionKind::Auto => PrecisionKind::F32,
        asked => asked,
    }
}

/// Has plans of a session lowered for training in a precision, before any is made; `half` for f16.
///
/// # Errors
/// If the device cannot store f16.
pub fn train(session: &mut Session, half: bool) -> Result<(), RunError> {
    if half && !session.capabilities().f16 {
        let message = format!("{} cannot store f16, as --precision f16 asks", session.device());
        let hint = "leave --precision out, or name another device with --device";
        return Err(RunError::config(message, Some(hint)));
    }
    session.set_target(Target { half, ..session.target() });
    Ok(())
}

/// Has plans of a session lowered for evaluating a model that was trained in f16, or not: in f16
/// where the device can, as such a model is used, else in f32, of which f16 is a rounding. Returns
/// whether it is f16.
pub fn evaluate(session: &mut Session, trained_half: bool) -> bool {
    let half = trained_half && session.capabilities().f16;
    session.set_target(Target { half, ..session.target() });
    half
}
