//! A model's tensors on a device and in checkpoints.

use std::collections::BTreeMap;

use super::RunError;
use super::checkpoint::{Checkpoint, NamedTensor, TensorData};
use crate::device::{DeviceError, Session, StateRead};
use crate::ir::{Group, Layout};
use crate::nn::{Param, Params};
use crate::optim::loss_scale;

/// Prefix of a moment in a checkpoint: `optim.m.<parameter>`, `optim.v.<parameter>`.
fn prefix(moment: Group) -> &'static str {
    match moment {
        Group::Moment1 => "optim.m.",
        Group::Moment2 => "optim.v.",
        other => unreachable!("{other:?} is no moment"),
    }
}

/// Name of the state of the loss's scale in a checkpoint: the scale, the good steps in a row, the
/// skipped steps in all.
const LOSS_SCALE: &str = "optim.loss_scale";

/// Writes initial values, clears the flag that guards updates, and begins the scale of the loss.
///
/// # Errors
/// If the device fails.
pub fn initialise(
    session: &mut Session,
    layout: &Layout,
    params: &Params,
    seed: u64,
) -> Result<(), RunError> {
    for p in &params.all {
        write(session, layout, p, p.group, &p.initial(seed))?;
    }
    begin_updates(session, layout)
}

/// Lets updates go ahead: nothing has failed yet, or what has was replaced. A scale of the loss
/// begins anew.
fn begin_updates(session: &mut Session, layout: &Layout) -> Result<(), RunError> {
    let guard = layout.guard();
    session.write_state(guard.group, guard.offset, &[0.0])?;
    if layout.scaled {
        let scale = layout.loss_scale();
        session.write_state(scale.group, scale.offset, &loss_scale::begin())?;
    }
    Ok(())
}

/// Asks for the scale of the loss as it is after the steps queued so far; `None` where none is
/// scaled.
///
/// # Errors
/// If the device fails.
pub fn request_scale(
    session: &mut Session,
    layout: &Layout,
) -> Result<Option<StateRead>, DeviceError> {
    let range = layout.scaled.then(|| layout.loss_scale());
    let elements = range.map(|range| range.offset..range.offset + range.len);
    elements.map(|elements| session.request_state(Group::Buffer, elements)).transpose()
}

/// The scale of the loss that was asked for, and the steps that were skipped in all.
///
/// # Errors
/// If the device fails.
pub fn scale(session: &mut Session, read: StateRead) -> Result<[f32; 2], DeviceError> {
    let state = session.requested_state(read)?;
    Ok([state[0], state[2]])
}

/// Goes on with the scale of the loss of a checkpoint, where the loss is scaled.
///
/// # Errors
/// If the checkpoint has none, or one that no training makes.
pub fn resume_loss_scale(
    session: &mut Session,
    layout: &Layout,
    file: &Checkpoint,
) -> Result<(), RunError> {
    if !layout.scaled {
        return Ok(());
    }
    let range = layout.loss_scale();
    let state = match file.tensors.get(LOSS_SCALE).map(|t| &t.data) {
        Some(TensorData::F32(state)) if state.len() == range.len => state,
        _ => {
            let message = format!("the checkpoint has no tensor `{LOSS_SCALE}` of 3 floats");
            return Err(RunError::Weights { message });
        }
    };
    if let Some(rule) = loss_scale::fault(state) {
        let message = format!("`{LOSS_SCALE}` holds {state:?}; {rule}");
        return Err(RunError::Weights { message });
    }
    Ok(session.write_state(range.group, range.offset, state)?)
}

fn write(
    session: &mut Session,
    layout: &Layout,
    p: &Param,
    group: Group,
    data: &[f32],
) -> Result<(), RunError> {
    let range = layout.get(&p.name).unwrap_or_else(|| panic!("{} is not laid out", p.name)).range;
    Ok(session.write_state(group, range.offset, data)?)
}

/// What a model and its optimiser were after a step: the flat buffers as the device had them.
#[derive(Debug, Default)]
pub struct Snapshot {
    flats: Vec<(Group, Vec<f32>)>,
    batches: u64,
}

/// Reads the model and these of the optimiser's moments. `batches` is the number of training
/// batches taken, which BatchNorm counts too.
///
/// # Errors
/// If the device fails.
pub fn snapshot(
    session: &mut Session,
    batches: u64,
    moments: &[Group],
) -> Result<Snapshot, RunError> {
    let groups = [Group::Param, Group::Buffer].iter().chain(moments);
    let flats = groups
        .map(|&group| Ok((group, session.read_state(group)?)))
        .collect::<Result<_, RunError>>()?;
    Ok(Snapshot { flats, batches })
}

impl Snapshot {
    /// The tensors under PyTorch's names and shapes.
    pub fn tensors(&self, layout: &Layout, params: &Params) -> BTreeMap<String, NamedTensor> {
        let mut tensors = BTreeMap::new();
        for (group, flat) in &self.flats {
            // The moments are those of the parameters.
            let (prefix, of) = match group {
                Group::Param | Group::Buffer => ("", *group),
                moment => (prefix(*moment), Group::Param),
            };
            for p in params.all.iter().filter(|p| p.group == of) {
                let range = layout
                    .get(&p.name)
                    .unwrap_or_else(|| panic!("{} is not laid out", p.name))
                    .range;
                let data = p.file.to_file(&flat[range.offset..range.offset + range.len], p.shape);
                let tensor = NamedTensor { shape: p.file.shape(), data: TensorData::F32(data) };
                tensors.insert(format!("{prefix}{}", p.name), tensor);
            }
        }
        for name in counters(params) {
            let count = i64::try_from(self.batches).unwrap_or(i64::MAX);
            tensors.insert(name, NamedTensor { shape: vec![], data: TensorData::I64(vec![count]) });
        }
        if let Some((_, flat)) = self.flats.iter().find(|f| f.0 == Group::Buffer && layout.scaled) {
            let range = layout.loss_scale();
            let state = flat[range.offset..range.offset + range.len].to_vec();
            tensors.insert(LOSS_SCALE.into(), NamedTensor::f32(&[range.len], state));
        }
        tensors
    }
}

/// [`snapshot`] under PyTorch's names and shapes.
///
/// # Errors
/// If the device fails.
pub fn export(
    session: &mut Session,
    layout: &Layout,
    params: &Params,
    batches: u64,
    moments: &[Group],
) -> Result<BTreeMap<String, NamedTensor>, RunError> {
    Ok(snapshot(session, batches, moments)?.tensors(layout, params))
}

/// Writes a checkpoint's tensors to the device, of the optimiser's moments these, clears the flag
/// that guards updates, and begins the scale of the loss ([`resume_loss_scale`]). Tensors that the
/// model does not have are ignored.
///
/// # Errors
/// If a tensor is missing or has another shape: the checkpoint is of another architecture. If one
/// holds what no training makes: a weight that is not finite, a negative variance.
pub fn import(
    session: &mut Session,
    layout: &Layout,
    params: &Params,
    file: &Checkpoint,
    moments: &[Group],
) -> Result<(), RunError> {
    let moments_of = |p: &Param| if p.group == Group::Param { moments } else { &[] };
    // Everything is checked before anything is written.
    for p in &params.all {
        find(file, p, &p.name)?;
        for &group in moments_of(p) {
            find(file, p, &format!("{}{}", prefix(group), p.name))?;
        }
    }
    for p in &params.all {
        write(session, layout, p, p.group, &p.file.to_memory(shaped(file, p, &p.name)?, p.shape))?;
        for &group in moments_of(p) {
            let moment = shaped(file, p, &format!("{}{}", prefix(group), p.name))?;
            write(session, layout, p, group, &p.file.to_memory(moment, p.shape))?;
        }
    }
    begin_updates(session, layout)
}

/// The model's tensors out of a file, under PyTorch's names and shapes. A counter of BatchNorm that
/// the file lacks is 0.
///
/// # Errors
/// As [`import`].
pub fn select(
    file: &Checkpoint,
    params: &Params,
) -> Result<BTreeMap<String, NamedTensor>, RunError> {
    let mut tensors = BTreeMap::new();
    for p in &params.all {
        tensors.insert(
            p.name.clone(),
            NamedTensor::f32(&p.file.shape(), find(file, p, &p.name)?.to_vec()),
        );
    }
    for name in counters(params) {
        let count = match file.tensors.get(&name).map(|t| &t.data) {
            Some(TensorData::I64(count)) if count.len() == 1 => count[0],
            _ => 0,
        };
        tensors.insert(name, NamedTensor::i64(&[], vec![count]));
    }
    Ok(tensors)
}

/// PyTorch's `num_batches_tracked` of every BatchNorm.
fn counters(params: &Params) -> impl Iterator<Item = String> {
    let stem = |p: &Param| {
        p.name.strip_suffix(".running_mean").map(|stem| format!("{stem}.num_batches_tracked"))
    };
    params.all.iter().filter_map(stem)
}

/// A tensor of a file that is of this model and holds what a training can make: every file whose
/// weights are used comes through here.
fn find<'a>(file: &'a Checkpoint, p: &Param, name: &str) -> Result<&'a [f32], RunError> {
    let x = shaped(file, p, name)?;
    let variance = name.ends_with(".running_var") || name.starts_with(prefix(Group::Moment2));
    let bad = |x: &f32| !x.is_finite() || variance && *x < 0.0;
    let Some((at, value)) = x.iter().copied().enumerate().find(|(_, x)| bad(x)) else {
        return Ok(x);
    };
    let rule = if value.is_finite() {
        "a variance is at least 0"
    } else {
        "the numbers of a model are finite"
    };
    let message =
        format!("`{name}` holds {value} at {:?}; {rule}", coordinates(at, &p.file.shape()));
    Err(RunError::Weights { message })
}

/// Where element `at` of a tensor is.
fn coordinates(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut place: Vec<usize> =
        shape.iter().rev().map(|extent| (at % extent, at /= extent).0).collect();
    place.reverse();
    place
}

fn shaped<'a>(file: &'a Checkpoint, p: &Param, name: &str) -> Result<&'a [f32], RunError> {
    let wrong = |message: String| Err(RunError::Architecture { message });
    match file.tensors.get(name) {
        None => wrong(format!(
            "the checkpoint has no tensor `{name}` (this model needs shape {:?})",
            p.file.shape()
        )),
        Some(t) if t.shape != p.file.shape() => wrong(format!(
            "`{name}` has shape {:?} in the checkpoint, this model needs {:?}",
            t.shape,
            p.file.shape()
        )),
        Some(NamedTensor { data: TensorData::F32(x), .. }) => Ok(x),
        Some(_) => {
            wrong(format!("`{name}` holds integers in the checkpoint, this model needs floats"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{FileLayout, Init};
    use crate::tensor::Shape;

    #[test]
    fn elements_have_coordinates() {
        let all: Vec<_> = (0..24).map(|at| coordinates(at, &[2, 3, 4])).collect();
        let want: Vec<_> = (0..2)
            .flat_map(|i| (0..3).flat_map(move |j| (0..4).map(move |k| vec![i, j, k])))
            .collect();
        assert_eq!(all, want);
        assert!(coordinates(0, &[]).is_empty());
    }

    /// A variance of 0 is one that a training can make: of a channel that is always 0. A counter is
    /// one number; what else has its name is none.
    #[test]
    fn files_hold_what_a_training_makes() {
        let param = |name: &str| Param {
            name: name.into(),
            shape: Shape::new(1, 1, 1, 4),
            group: Group::Buffer,
            init: Init::Constant(0.0),
            file: FileLayout::Vector { len: 4 },
        };
        let params = Params { all: vec![param("bn.running_mean"), param("bn.running_var")] };
        let read = |variance: f32, counter: Option<NamedTensor>| {
            let vector = |x: f32| NamedTensor::f32(&[4], vec![1.0, x, 1.0, 1.0]);
            let mut file = Checkpoint::default();
            file.tensors.insert("bn.running_mean".into(), vector(-1.0));
            file.tensors.insert("bn.running_var".into(), vector(variance));
            let counter = counter.map(|counter| ("bn.num_batches_tracked".into(), counter));
            file.tensors.extend(counter);
            let found = select(&file, &params).map_err(|error| error.to_string())?;
            let zero = found["bn.running_var"] == vector(variance);
            assert!(zero && found["bn.running_mean"] == vector(-1.0), "{found:?}");
            Ok::<_, String>(found["bn.num_batches_tracked"].data.clone())
        };
        for (counter, count) in [
            (None, 0),
            (Some(NamedTensor::i64(&[], vec![7])), 7),
            (Some(NamedTensor::i64(&[2], vec![7, 8])), 0),
            (Some(NamedTensor::f32(&[], vec![7.0])), 0),
        ] {
            assert_eq!(read(0.0, counter), Ok(TensorData::I64(vec![count])));
        }
        let error = read(-1e-9, None).expect_err("a negative variance");
        assert!(error.contains("`bn.running_var` holds -0.000000001 at [1]"), "{error}");
    }
}
