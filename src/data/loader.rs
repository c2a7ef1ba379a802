//! Batches from a prefetch thread; where there are no threads, as in a browser, each is read when
//! it is asked for.
//!
//! Batch `k` of a training loader is a pure function of the subset, the [`Order`] and `k`: a loader
//! that starts at step `k` yields exactly what one started at 0 yields from there on. Images are
//! read and packed in parallel on rayon's pool; at most `DEPTH` batches wait in the channel.
//! Dropping a loader ends its thread, unless that hangs.

use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::split::{Order, Subset};
use super::{DataError, Dataset};

/// Name of the prefetch thread.
const THREAD: &str = "data-prefetch";
/// Finished batches that wait for the trainer. One hides a slow decode, a second one jitter.
const DEPTH: usize = 2;

/// Longest time between two looks at whether to stop.
const PATIENCE: Duration = Duration::from_millis(100);
/// Longest time that dropping a loader waits for its thread.
const FAREWELL: Duration = Duration::from_secs(2);

/// The images and labels of one step, or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Global step, from 0; for evaluation the number of the batch.
    pub step: u64,
    /// Epoch of that step, from 0.
    pub epoch: u32,
    /// `[N, H, W]`, packed as `R | G << 8 | B << 16`; empty in a batch without pixels.
    pub pixels: Vec<u32>,
    /// `[N]`, the class of each image.
    pub labels: Vec<u32>,
    /// `[N]`, the index of each image in its data set.
    pub indices: Vec<u32>,
    /// `[N]`, the place of each image in its subset.
    pub places: Vec<u32>,
    /// Images that count: N, except in the last batch of an evaluation, which repeats its last
    /// image up to N.
    pub valid: usize,
}

/// An iterator of batches, in order. It ends after the last one, or after the first error.
pub struct Loader {
    source: Source,
}

/// Makes the batches, one after the other.
type Batches = Box<dyn Iterator<Item = Result<Batch, DataError>> + Send>;

enum Source {
    /// Read ahead by a thread.
    Thread { batches: Option<Receiver<Result<Batch, DataError>>>, thread: Option<JoinHandle<()>> },
    /// Read when asked for.
    InPlace(Batches),
}

impl Loader {
    /// [`Loader::in_parts`] with whole batches.
    ///
    /// # Errors
    /// Those of [`Loader::in_parts`].
    ///
    /// # Panics
    /// If `order` is for a subset of another length.
    pub fn new(subset: &Subset, order: Order, steps: Range<u64>) -> Result<Self, DataError> {
        Self::in_parts(subset, order, 1, steps)
    }

    /// Starts the batches of `steps` (global steps; `start..u64::MAX` never ends) of an order over
    /// the subset, each step's batch in so many equal parts, one after the other.
    ///
    /// # Errors
    /// If no thread can be started. Errors in reading images arrive in place of the batch.
    ///
    /// # Panics
    /// If `order` is for a subset of another length, or its batches cannot be cut into `parts`.
    pub fn in_parts(
        subset: &Subset,
        order: Order,
        parts: usize,
        steps: Range<u64>,
    ) -> Result<Self, DataError> {
        Self::of_order(subset, order, parts, steps, true)
    }

    /// [`Loader::in_parts`] without pixels, where the device has the images: none is read.
    ///
    /// # Errors
    /// If no thread can be started.
    ///
    /// # Panics
    /// Like [`Loader::in_parts`].
    pub fn without_pixels(
        subset: &Subset,
        order: Order,
        parts: usize,
        steps: Range<u64>,
    ) -> Result<Self, DataError> {
        Self::of_order(subset, order, parts, steps, false)
    }

    fn of_order(
        subset: &Subset,
        order: Order,
        parts: usize,
        steps: Range<u64>,
        pixels: bool,
    ) -> Result<Self, DataError> {
        assert_eq!(order.len(), subset.len(), "the order is for another subset");
        assert!(
            order.batch_size().is_multiple_of(parts),
            "batches of {} in {parts} parts",
            order.batch_size()
        );
        let subset = subset.clone();
        let part = order.batch_size() / parts;
        let mut current: Option<(u32, Vec<u32>)> = None;
        Self::start(steps.flat_map(move |step| {
            let (epoch, first) = order.locate(step);
            let positions = match current.take() {
                Some((e, positions)) if e == epoch => positions,
                _ => order.epoch(epoch),
            };
            let chosen = positions[first..first + order.batch_size()].to_vec();
            current = Some((epoch, positions));
            let subset = subset.clone();
            (0..parts).map(move |i| {
                let batch = Batch::new(&subset, [step, epoch.into()], &chosen[i * part..][..part]);
                if pixels { batch.read(&*subset.dataset, part) } else { Ok(batch) }
            })
        }))
    }

    /// Starts one pass over the subset in its own order, every image once; the last batch is padded
    /// to `batch_size`.
    ///
    /// # Errors
    /// [`DataError::BatchZero`], or if no thread can be started.
    pub fn eval_batches(subset: &Subset, batch_size: usize) -> Result<Self, DataError> {
        if batch_size == 0 {
            return Err(DataError::BatchZero);
        }
        let subset = subset.clone();
        let batches = subset.len().div_ceil(batch_size);
        Self::start((0..batches).map(move |step| {
            let last = subset.len().min((step + 1) * batch_size);
            let places: Vec<u32> = (step * batch_size..last).map(|place| place as u32).collect();
            Batch::new(&subset, [step as u64, 0], &places).read(&*subset.dataset, batch_size)
        }))
    }

    fn start(
        batches: impl Iterator<Item = Result<Batch, DataError>> + Send + 'static,
    ) -> Result<Self, DataError> {
        let source = if cfg!(feature = "native") {
            Source::read_ahead(batches)?
        } else {
            Source::InPlace(Box::new(batches))
        };
        Ok(Self { source })
    }
}

impl Source {
    fn read_ahead(
        made: impl Iterator<Item = Result<Batch, DataError>> + Send + 'static,
    ) -> Result<Self, DataError> {
        let (out, batches) = sync_channel(DEPTH);
        let run = move || {
            for batch in made {
                let failed = batch.is_err();
                if out.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let thread = Builder::new()
            .name(THREAD.into())
            .spawn(run)
            .map_err(|source| DataError::Thread { name: THREAD, source })?;
        Ok(Self::Thread { batches: Some(batches), thread: Some(thread) })
    }
}

/// What came of waiting for a batch.
enum Waited {
    Batch(Result<Batch, DataError>),
    Ended,
    Stopped,
}

impl Loader {
    /// The batches until `stop` says so, which is asked while a batch is waited for too: a disk may
    /// never answer.
    pub fn until(
        mut self,
        stop: impl Fn() -> bool,
    ) -> impl Iterator<Item = Result<Batch, DataError>> {
        std::iter::from_fn(move || match self.wait(&stop) {
            Waited::Batch(batch) => Some(batch),
            Waited::Ended | Waited::Stopped => None,
        })
    }

    /// The same for whom some of the batches are no use: where `stop` ends them, the last one is
    /// [`DataError::Stopped`].
    pub fn unless(
        mut self,
        stop: impl Fn() -> bool,
    ) -> impl Iterator<Item = Result<Batch, DataError>> {
        let mut stopped = false;
        std::iter::from_fn(move || match self.wait(&stop) {
            _ if stopped => None,
            Waited::Batch(batch) => Some(batch),
            Waited::Ended => None,
            Waited::Stopped => {
                stopped = true;
                Some(Err(DataError::Stopped))
            }
        })
    }

    fn wait(&mut self, stop: &impl Fn() -> bool) -> Waited {
        let of = |batch: Option<_>| batch.map_or(Waited::Ended, Waited::Batch);
        loop {
            if stop() {
                return Waited::Stopped;
            }
            let Source::Thread { batches, .. } = &self.source else { return of(self.next()) };
            let Some(batches) = batches else { return Waited::Ended };
            match batches.recv_timeout(PATIENCE) {
                Ok(batch) => return Waited::Batch(batch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return of(self.source.end()),
            }
        }
    }
}

impl Source {
    /// No batch follows, because none is left or because of a bug, which must not look like the end
    /// of the data.
    fn end<T>(&mut self) -> Option<T> {
        if let Self::Thread { thread, .. } = self
            && let Some(Err(panic)) = thread.take().map(JoinHandle::join)
        {
            std::panic::resume_unwind(panic);
        }
        None
    }
}

impl Iterator for Loader {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match &mut self.source {
            Source::Thread { batches, .. } => batches.as_ref().and_then(|b| b.recv().ok()),
            Source::InPlace(batches) => batches.next(),
        };
        if let (Some(Err(_)), Source::InPlace(batches)) = (&batch, &mut self.source) {
            *batches = Box::new(std::iter::empty());
        }
        if batch.is_some() { batch } else { self.source.end() }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        let Source::Thread { batches, thread } = &mut self.source else { return };
        // The thread may be waiting to send: with the receiver gone it fails and returns.
        drop(batches.take());
        let Some(thread) = thread.take() else { return };
        let asked = Instant::now();
        while !thread.is_finished() {
            if asked.elapsed() > FAREWELL {
                return; // it hangs in a file, and will see that nobody listens when it comes back
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // A panic was printed by the hook, and nobody wants this loader's batches any more.
        drop(thread.join());
    }
}

impl Batch {
    /// The images at these places of a subset, without their pixels.
    fn new(subset: &Subset, [step, epoch]: [u64; 2], places: &[u32]) -> Self {
        let indices: Vec<u32> = places.iter().map(|&p| subset.indices[p as usize]).collect();
        let labels = indices.iter().map(|&i| subset.dataset.label(i as usize)).collect();
        let (places, valid) = (places.to_vec(), places.len());
        Self { step, epoch: epoch as u32, pixels: vec![], labels, indices, places, valid }
    }

    /// Reads and packs the images, then repeats the last one until there are `n`.
    fn read(mut self, dataset: &dyn Dataset, n: usize) -> Result<Self, DataError> {
        let area = dataset.image_size() * dataset.image_size();
        let valid = self.valid;
        self.pixels = vec![0_u32; n * area];
        let images = self.pixels[..valid * area].par_chunks_exact_mut(area).zip(&self.indices);
        images.try_for_each_init(
            || vec![0_u8; 3 * area],
            |bytes, (packed, &index)| {
                dataset.read(index as usize, bytes)?;
                for (word, rgb) in packed.iter_mut().zip(bytes.chunks_exact(3)) {
                    *word = u32::from_le_bytes([rgb[0], rgb[1], rgb[2], 0]);
                }
                Ok(())
            },
        )?;
        for i in valid..n {
            self.pixels.copy_within((valid - 1) * area..valid * area, i * area);
        }
        for list in [&mut self.indices, &mut self.labels, &mut self.places] {
            list.resize(n, list[valid - 1]);
        }
        Ok(self)
    }
}
