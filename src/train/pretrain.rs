//! Pretraining, from the data to the last checkpoint. Linear, no callbacks: what is done after a
//! step stands in `running`.

use super::interrupt::Interrupt;
use super::plans;
use super::recorder::Recorder;
pub use super::running::Outcome;
use super::running::{Identity, Running};
use super::schedule::Timetable;
use super::trainer::Trainer;
use crate::data::Splits;
use crate::device::Session;
use crate::eval::knn;
use crate::run::checkpoint::Checkpoint;
use crate::run::folder::RunFolder;
use crate::run::resume::Resumed;
use crate::run::settings::RunConfig;
use crate::run::trained::{model_config, write_config};
use crate::run::{RunError, foreign, precision};
use crate::text;

/// What a run is asked to do.
pub struct TrainingRequest<'a> {
    /// The settings, validated.
    pub config: &'a RunConfig,
    /// The images of its data set.
    pub splits: &'a Splits,
    /// Resume on another device than the run was trained on.
    pub another_device: bool,
    /// Measure which kernels are the fastest, where that is not remembered.
    pub tune: bool,
    /// The run folder. What is in it makes way, unless it is resumed.
    pub folder: &'a RunFolder,
    /// Ctrl-C and `kill`: save and stop.
    pub interrupt: &'a Interrupt,
}

/// Pretrains a model, from the beginning or from a checkpoint, on a device that was opened, until
/// the end or until something stops it; the checkpoints written before stay whole. `notes` are for
/// the user.
pub(super) fn train(
    request: &TrainingRequest<'_>,
    resumed: Option<&Resumed>,
    opened: (Session, String),
    notes: &[String],
) -> Result<Outcome, RunError> {
    let mut run = start(request, resumed, opened, notes)?;
    // From here on there is something to save.
    let _saving = request.interrupt.saving();
    let asked = || request.interrupt.asked();
    let mut batches = run.batches()?.until(asked);
    let owed = resumed.is_some_and(Resumed::owes);
    let goes_on = !owed || run.pause(|run| run.look(&asked))?;
    let mut stops = false;
    while goes_on
        && !stops
        && let Some(step) = run.step(&mut batches)?
    {
        stops = asked();
        run.see_to_saves()?;
        run.log(&step, stops)?;
        if stops || run.pauses(&step) {
            run.pause(|run| {
                stops |= !run.look(&asked)?;
                run.save(stops)
            })?;
        }
    }
    run.end(stops)
}

/// Loads a run onto its device, from the beginning or from a checkpoint, after everything that can
/// be refused has been.
fn start<'a>(
    request: &TrainingRequest<'a>,
    resumed: Option<&Resumed>,
    (mut session, why): (Session, String),
    notes: &[String],
) -> Result<Running<'a>, RunError> {
    let TrainingRequest { config, splits, folder, .. } = *request;
    let timetable = Timetable::new(config, splits.train.len())?;
    timetable.refuse_endless()?;
    precision::train(&mut session, config.half())?;
    let identity = Identity { data: splits.fingerprint(), device: session.device() };
    if let Some(resumed) = resumed {
        resumed.same_data(&identity.data, config)?;
        resumed.same_device(&identity.device, request.another_device)?;
        resumed.fits(timetable.total)?;
    }
    let mut notes: Vec<String> = notes.to_vec();
    let asked = (config.eval_every > 0).then_some(splits.labelled_train.len());
    let left_out = asked.and_then(knn::knn_left_out);
    notes.extend(splits.notes.iter().chain(&left_out).map(|note| format!("note: {note}")));
    notes.extend(kernels(request, resumed, &mut session)?);
    let mut trainer = Trainer::new(config, timetable, splits, session)?;
    let recorder = match resumed {
        Some(resumed) => restore(request, resumed, &mut trainer, timetable)?,
        None => begin(request, &mut trainer, &mut notes)?,
    };
    notes.extend(resumed.iter().flat_map(|resumed| resumed.warnings.clone()));
    let start = resumed.map_or(0, |resumed| resumed.step);
    let mut run = Running::new(config, folder, trainer, recorder, timetable, identity, start)?;
    run.greet(&why, &notes, resumed.is_some());
    Ok(run)
}

/// Chooses the kernels: those of the run that is resumed, since others sum in another order and
/// give other bits; else the fastest, or the table of defaults. Returns what there is to say about
/// it.
fn kernels(
    request: &TrainingRequest<'_>,
    resumed: Option<&Resumed>,
    session: &mut Session,
) -> Result<Vec<String>, RunError> {
    let TrainingRequest { config, splits, .. } = *request;
    let (model, held_out) = (model_config(config, splits), splits.val.len());
    if let Some(resumed) = resumed {
        let refused = plans::trust(session, config, &model, held_out, &resumed.kernels())?;
        if refused.is_empty() || request.another_device {
            return Ok(vec![]);
        }
        let message = format!(
            "{} was trained with kernels that are wrong here: {}",
            text::name(&resumed.path),
            refused[0]
        );
        let hint = "a driver may have changed; `--allow-device-change` goes on with other kernels \
            and other bits";
        return Err(RunError::config(message, Some(hint)));
    }
    if request.tune { plans::tune(session, config, &model, held_out) } else { Ok(vec![]) }
}

/// A new run: initial weights, fresh logs. What was in the folder makes way only now that nothing
/// can be refused any more.
fn begin(
    request: &TrainingRequest<'_>,
    trainer: &mut Trainer<'_>,
    notes: &mut Vec<String>,
) -> Result<Recorder, RunError> {
    let TrainingRequest { config, folder, .. } = *request;
    match &config.init_from {
        Some(path) => {
            let mut file = Checkpoint::load(path)?;
            let named =
                |message| RunError::config(format!("`{}`: {message}", text::name(path)), None);
            if let Some(prefix) = foreign::unwrap(&mut file).map_err(named)? {
                notes.push(format!(
                    "note: the names of the weights began with `{prefix}`, which was taken off"
                ));
            }
            trainer.initialise(Some(&file)).map_err(|e| e.of_file(path))?;
        }
        None => trainer.initialise(None)?,
    }
    folder.clear()?;
    folder.store().begin()?;
    let recorder = Recorder::begin(folder)?;
    write_config(&folder.path().join("config.toml"), config)?;
    Ok(recorder)
}

/// The run as it was after the checkpoint's step.
fn restore(
    request: &TrainingRequest<'_>,
    resumed: &Resumed,
    trainer: &mut Trainer<'_>,
    timetable: Timetable<'_>,
) -> Result<Recorder, RunError> {
    let TrainingRequest { config, folder, .. } = *request;
    let window = resumed.window(trainer.scalars())?;
    trainer.restore(&resumed.checkpoint, window).map_err(|e| e.of_file(&resumed.path))?;
    // A resumed run may have been given more epochs; the file says how many it has now.
    write_config(&folder.path().join("config.toml"), config)?;
    let (step, ended) = (resumed.step, resumed.step == timetable.total);
    Recorder::resume(folder, step, |r| {
        // What it owes is measured again, and so is what it had of that.
        let again = resumed.owes() && matches!(r.split.as_str(), "val" | "eval");
        let due = ended || timetable.due(step, &r.split);
        r.step < step || (r.step == step && due && !again)
    })
}
