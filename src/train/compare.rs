//! A training step on a device, beside its ops one by one.
//!
//! Kernels of ours are compared shape by shape before they are taken ([`crate::tune`]); what
//! somebody else's do beside their result only a whole step shows.

use crate::device::{Data, PlanId, Session};
use crate::ir::{Graph, Group};
use crate::nn::Params;
use crate::ops::{StepUniforms, Variant};
use crate::rng::{Philox, Stream};
use crate::run::{RunError, state};
use crate::tensor::DType;

/// Random contents for every input of a plan: pixels, and floats between -1 and 1.
///
/// # Errors
/// If the device fails.
pub fn fill(session: &mut Session, id: PlanId) -> Result<(), RunError> {
    let rng = Philox::new(0, Stream::Test);
    let ports = session.plan(id).inputs.clone();
    for (i, port) in ports.iter().enumerate() {
        let len = port.ty.shape.len();
        if port.ty.dtype == DType::U32 {
            let pixel = |e: usize| rng.words(0, i as u32, e as u32)[0] & 0x00ff_ffff;
            session.upload(id, i, Data::U32(&(0..len).map(pixel).collect::<Vec<_>>()))?;
            continue;
        }
        // The fourth channel of an image is zero.
        let image = port.ty.shape.h > 1;
        let value = |e: usize| match image && e % 4 == 3 {
            true => 0.0,
            false => rng.uniforms(0, i as u32, e as u32)[0] * 2.0 - 1.0,
        };
        session.upload(id, i, Data::F32(&(0..len).map(value).collect::<Vec<_>>()))?;
    }
    Ok(())
}

/// Runs a training step of random images on an empty session, with the kernels that are chosen, at
/// once and op by op: `None` if the bits are the same and no op writes beside its results, else
/// what is wrong. The session is empty again.
///
/// # Errors
/// If the device fails or has no room.
pub fn compare_step(
    session: &mut Session,
    graph: &Graph,
    params: &Params,
) -> Result<Option<String>, RunError> {
    session.reset();
    session.allocate(&graph.layout);
    let plan = session.lower("train", graph);
    let id = session.load(plan)?;
    fill(session, id)?;
    let step =
        StepUniforms { learning_rate: 1e-4, bias1: 1.0, bias2: 1.0, ..StepUniforms::default() };
    let begin = |session: &mut Session| {
        for group in Group::ALL {
            if session.holds(group) {
                session.write_state(group, 0, &vec![0.0; graph.layout.size(group)])?;
            }
        }
        state::initialise(session, &graph.layout, params, 0)
    };
    let wrong = session.compare_step(id, &step, begin);
    session.reset();
    wrong
}

/// Takes back products that a library computes where a step shows that it does more, or less, than
/// it was asked for: those of weight gradients first, which stand beside each other, then all.
/// Returns how many these are, and what is wrong with the step.
///
/// # Errors
/// If the device fails.
pub fn trust_library(
    session: &mut Session,
    graph: &Graph,
    params: &Params,
) -> Result<Option<String>, RunError> {
    let is_library = |variant: &Variant| matches!(variant, Variant::Library { .. });
    let (mut said, before) = (None, session.choices().len());
    for without in ["conv2d_weight_grad ", ""] {
        if !session.choices().iter().any(|(_, variant)| is_library(variant)) {
            break;
        }
        let Some(wrong) = compare_step(session, graph, params)? else { break };
        let mut kept = session.choices().clone();
        kept.retain(|key, variant| !(key.starts_with(without) && is_library(variant)));
        let taken_back = before - kept.len();
        said = Some(format!(
            "{taken_back} products by the library, since a step by it is wrong: {wrong}"
        ));
        session.set_choices(kept);
    }
    Ok(said)
}
