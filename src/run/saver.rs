//! Saving beside training. The trainer hands over what the device had; converting, hashing and
//! writing happen on a thread, while the next steps run.
//!
//! One write is in flight at most. A state that must be kept (the end of the run, Ctrl-C, a
//! milestone, every epoch where no time lies between saves) waits for the one before it. A state
//! that is merely due by the clock does not: while the disk is behind, training goes on, and what
//! is saved next is newer.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::RunError;
use super::checkpoint::{Checkpoint, NamedTensor, TensorData};
use super::state::Snapshot;
use super::store::{Saved, Store};
use crate::disk::DiskError;
use crate::ir::Layout;
use crate::nn::Params;
use crate::text;

/// A state of a run, to be saved.
#[derive(Debug)]
pub struct PendingSave {
    /// Steps that had been taken when it was made.
    pub step: u64,
    /// The epoch whose weights are to be kept, at a milestone.
    pub milestone: Option<usize>,
    /// What the device had.
    pub snapshot: Snapshot,
    /// Metadata of the checkpoint.
    pub meta: BTreeMap<String, String>,
    /// Files that hold what was measured up to this step. They are synced before the checkpoint is
    /// written, so that a run killed between the two resumes with every record that its checkpoint
    /// is older than.
    pub logs: Vec<(File, PathBuf)>,
}

/// What a thread does with a state.
type Write = Arc<dyn Fn(PendingSave) -> Result<Saved, RunError> + Send + Sync>;

/// Writes the checkpoints of a run.
pub struct Saver {
    write: Write,
    /// `None` where the operating system gives this process no more threads: training waits then.
    worker: Option<Worker>,
    /// Whether the worker has a state.
    writing: bool,
    /// Time between two saves by the clock.
    every: Duration,
    /// When a state was last handed over.
    handed: Instant,
    saved: Option<Saved>,
    warnings: Vec<String>,
}

/// The thread that writes.
struct Worker {
    states: SyncSender<PendingSave>,
    results: Receiver<Result<Saved, RunError>>,
    thread: JoinHandle<()>,
}

/// What a state becomes a checkpoint with.
#[derive(Clone, Debug)]
pub struct Writer {
    /// The folder of checkpoints to save to.
    pub store: Store,
    /// Checkpoints to keep.
    pub keep: usize,
    /// Where tensors lie in the snapshot.
    pub layout: Arc<Layout>,
    /// Their names and shapes.
    pub params: Arc<Params>,
}

impl Saver {
    /// Saves with `writer`, by the clock at most once in `every`, from now on.
    pub fn new(writer: Writer, every: Duration) -> Self {
        Self::with(Arc::new(move |state| writer.write(state)), every)
    }

    fn with(write: Write, every: Duration) -> Self {
        let worker = Worker::start(Arc::clone(&write));
        let handed = Instant::now();
        Self { write, worker, writing: false, every, handed, saved: None, warnings: Vec::new() }
    }

    /// Whether a state should be saved that nothing but the clock asks for.
    pub fn due(&self) -> bool {
        self.every.is_zero() || (!self.writing && self.handed.elapsed() >= self.every)
    }

    /// Takes a state over, after the one before it is written.
    ///
    /// # Errors
    /// What went wrong with the one before it.
    pub fn save(&mut self, state: PendingSave) -> Result<(), RunError> {
        self.wait()?;
        self.handed = Instant::now();
        let Some(worker) = &self.worker else {
            let saved = (self.write)(state);
            return self.settle(saved);
        };
        self.writing = true;
        // Sending fails only if the thread has panicked, which shows when it is waited for.
        drop(worker.states.send(state));
        Ok(())
    }

    /// Learns what has become of the write in flight, if it has ended.
    ///
    /// # Errors
    /// What went wrong with it.
    pub fn check(&mut self) -> Result<(), RunError> {
        let ended =
            self.worker.as_ref().filter(|_| self.writing).map(|worker| worker.results.try_recv());
        match ended {
            None | Some(Err(TryRecvError::Empty)) => Ok(()),
            Some(Ok(saved)) => self.settle(saved),
            Some(Err(TryRecvError::Disconnected)) => self.panicked(),
        }
    }

    /// Waits for the write in flight.
    ///
    /// # Errors
    /// What went wrong with it.
    pub fn wait(&mut self) -> Result<(), RunError> {
        let ended =
            self.worker.as_ref().filter(|_| self.writing).map(|worker| worker.results.recv());
        match ended {
            None => Ok(()),
            Some(Ok(saved)) => self.settle(saved),
            Some(Err(RecvError)) => self.panicked(),
        }
    }

    /// What was written last.
    pub fn saved(&self) -> Option<&Saved> {
        self.saved.as_ref()
    }

    /// What the user should know, since the last call.
    pub fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// Goes on with the panic of the thread.
    fn panicked(&mut self) -> ! {
        let ended = self.worker.take().map(Worker::end);
        match ended {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            _ => unreachable!("the thread ends when it is told to"),
        }
    }

    fn settle(&mut self, saved: Result<Saved, RunError>) -> Result<(), RunError> {
        self.writing = false;
        let saved = saved?;
        if let Some(error) = &saved.held {
            let path = text::name(&saved.path);
            self.warnings.push(format!(
                "warning: {error}; the newest checkpoint is {path}, and the next one tries again"
            ));
        }
        self.saved = Some(saved);
        Ok(())
    }
}

impl Worker {
    fn start(write: Write) -> Option<Self> {
        let (states, work) = sync_channel::<PendingSave>(1);
        let (done, results) = channel();
        let work = move || {
            for state in work {
                if done.send(write(state)).is_err() {
                    return; // The run has stopped, and nobody waits for the outcome.
                }
            }
        };
        let thread = std::thread::Builder::new().name("checkpoint".into()).spawn(work).ok()?;
        Some(Self { states, results, thread })
    }

    /// Waits until it has written what it has.
    fn end(self) -> std::thread::Result<()> {
        drop(self.states);
        self.thread.join()
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        // The trainer reports what stops the run; the write in flight is of a good state.
        drop(self.worker.take().map(Worker::end));
    }
}

impl Writer {
    /// Writes a state.
    ///
    /// # Errors
    /// If a tensor is not finite; such a state is not written. If a file cannot be written.
    pub fn write(&self, state: PendingSave) -> Result<Saved, RunError> {
        let PendingSave { step, milestone, snapshot, meta, logs } = state;
        let tensors = snapshot.tensors(&self.layout, &self.params);
        drop(snapshot);
        let bad = |tensor: &NamedTensor| match &tensor.data {
            TensorData::F32(values) => values.iter().any(|x| !x.is_finite()),
            _ => false,
        };
        if let Some((tensor, _)) = tensors.iter().find(|(_, t)| bad(t)) {
            return Err(RunError::NotFiniteState { step, tensor: tensor.clone() });
        }
        for (file, path) in logs {
            file.sync_data().map_err(DiskError::of("sync", path))?;
        }
        let checkpoint = Checkpoint { tensors, meta };
        if let Some(epoch) = milestone {
            let weights = checkpoint.tensors.iter().filter(|(name, _)| !name.starts_with("optim."));
            let tensors = weights.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
            self.store
                .save_milestone(epoch, &Checkpoint { tensors, meta: checkpoint.meta.clone() })?;
        }
        Ok(self.store.save(step, &checkpoint, self.keep)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    const HOUR: Duration = Duration::from_secs(3600);

    fn state(step: u64) -> PendingSave {
        PendingSave {
            step,
            milestone: None,
            snapshot: Snapshot::default(),
            meta: BTreeMap::new(),
            logs: Vec::new(),
        }
    }

    fn saved(step: u64) -> Saved {
        Saved { digest: step.to_string(), path: "last".into(), held: None }
    }

    /// A saver whose writes end when they are told how, and the last step that it was asked to
    /// write.
    fn told(every: Duration) -> (Saver, SyncSender<Result<(), RunError>>, Arc<AtomicU64>) {
        let (tell, hear) = sync_channel(9);
        let (hear, asked) = (Mutex::new(hear), Arc::new(AtomicU64::new(0)));
        let step = Arc::clone(&asked);
        let write = move |state: PendingSave| {
            step.store(state.step, Ordering::SeqCst);
            let result: Result<(), RunError> =
                hear.lock().expect("one writer").recv().expect("a word");
            result.map(|()| saved(state.step))
        };
        (Saver::with(Arc::new(write), every), tell, asked)
    }

    /// By the clock nothing is due while the disk is behind; without an interval everything is.
    #[test]
    fn a_slow_disk_holds_up_only_what_must_be_kept() {
        let (mut saver, tell, _) = told(Duration::from_nanos(1));
        assert!(saver.due());
        saver.save(state(1)).expect("handed over");
        saver.check().expect("nothing has ended");
        assert!(!saver.due() && saver.saved().is_none(), "the disk is behind");
        tell.send(Ok(())).expect("a saver");
        while !saver.due() {
            saver.check().expect("it goes well");
        }
        assert_eq!(saver.saved().map(|saved| &*saved.digest), Some("1"));

        let (mut saver, tell, asked) = told(Duration::ZERO);
        saver.save(state(1)).expect("handed over");
        assert!(saver.due());
        // The next one waits for it: two words are needed for two states, and none is left out.
        tell.send(Ok(())).expect("a saver");
        saver.save(state(2)).expect("handed over");
        assert_eq!(saver.saved().map(|saved| &*saved.digest), Some("1"));
        tell.send(Ok(())).expect("a saver");
        saver.wait().expect("it goes well");
        assert_eq!(
            (saver.saved().map(|saved| &*saved.digest), asked.load(Ordering::SeqCst)),
            (Some("2"), 2)
        );
        assert!(!Saver::with(Arc::new(|_| Ok(saved(1))), HOUR).due());
    }

    #[test]
    fn what_goes_wrong_is_told_at_the_next_step() {
        let failed = || RunError::config("no room", None);
        let (mut saver, tell, _) = told(HOUR);
        saver.save(state(1)).expect("handed over");
        tell.send(Err(failed())).expect("a saver");
        let error = loop {
            if let Err(error) = saver.check() {
                break error;
            }
        };
        assert_eq!(error.to_string(), "no room");
        // By the next state as well, and by the end.
        for ask in [|saver: &mut Saver| saver.save(state(3)), |saver: &mut Saver| saver.wait()] {
            saver.save(state(2)).expect("handed over");
            tell.send(Err(failed())).expect("a saver");
            assert!(ask(&mut saver).is_err());
        }
        // A panic of the writer is one of the trainer, with the same message, however it is met.
        let check = |saver: &mut Saver| while saver.check().is_ok() {};
        let wait = |saver: &mut Saver| drop(saver.wait());
        for ask in [check, wait as fn(&mut Saver)] {
            let mut saver = Saver::with(Arc::new(|_| panic!("a bug")), HOUR);
            saver.save(state(1)).expect("handed over");
            let panic = catch_unwind(AssertUnwindSafe(|| ask(&mut saver))).expect_err("a panic");
            assert_eq!(panic.downcast_ref(), Some(&"a bug"));
        }
    }

    /// A run that ends with an error keeps the state that is being written.
    #[test]
    fn a_write_in_flight_is_finished() {
        let written = Arc::new(AtomicU64::new(0));
        let step = Arc::clone(&written);
        let write = move |state: PendingSave| {
            std::thread::sleep(Duration::from_millis(50));
            step.store(state.step, Ordering::SeqCst);
            Ok(saved(state.step))
        };
        let mut saver = Saver::with(Arc::new(write), HOUR);
        saver.save(state(7)).expect("handed over");
        drop(saver);
        assert_eq!(written.load(Ordering::SeqCst), 7);
    }

    /// Where there are no more threads, and where another program holds `last`.
    #[test]
    fn a_run_goes_on_without_a_thread_and_without_last() {
        let held = |_: PendingSave| {
            let error = DiskError::of("replace", "last")(std::io::ErrorKind::ResourceBusy.into());
            Ok(Saved { digest: String::new(), path: "step-1".into(), held: Some(error) })
        };
        let mut saver = Saver::with(Arc::new(held), HOUR);
        drop(saver.worker.take().map(Worker::end));
        saver.save(state(1)).expect("it goes on");
        let warnings = saver.warnings();
        assert!(
            warnings.len() == 1 && warnings[0].contains("the newest checkpoint is step-1"),
            "{warnings:?}"
        );
        assert!(saver.warnings().is_empty());
    }
}
