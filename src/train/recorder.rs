//! What a run writes while it trains, besides its checkpoints: `metrics.jsonl`, the event file, and
//! pictures. Knows no device.

use std::fs::File;
use std::path::PathBuf;

use crate::disk;
use crate::eval::pictures::Picture;
use crate::run::RunError;
use crate::run::events::EventWriter;
use crate::run::folder::RunFolder;
use crate::run::metrics::{self, MetricsLog, MetricsRecord};

/// Writes the records and pictures of a run.
#[derive(Debug)]
pub struct Recorder {
    images: PathBuf,
    metrics: MetricsLog,
    events: EventWriter,
    /// The last record of each split.
    last: Vec<MetricsRecord>,
}

impl Recorder {
    /// Of a run that begins.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn begin(folder: &RunFolder) -> Result<Self, RunError> {
        let out = folder.path();
        let metrics = MetricsLog::create(out.join("metrics.jsonl"))?;
        Ok(Self {
            images: folder.images(),
            metrics,
            events: EventWriter::create(out)?,
            last: Vec::new(),
        })
    }

    /// Of a run that is resumed after `step`, with the records that stay.
    ///
    /// # Errors
    /// If a file cannot be read or written, or a line that stays is no record.
    pub fn resume(
        folder: &RunFolder,
        step: u64,
        stays: impl Fn(&MetricsRecord) -> bool,
    ) -> Result<Self, RunError> {
        let out = folder.path();
        let log = out.join("metrics.jsonl");
        let metrics = MetricsLog::resume_where(&log, stays)?;
        let kept = metrics::read(&log)?;
        let events = EventWriter::resume(out, &kept, step)?;
        let mut recorder = Self { images: folder.images(), metrics, events, last: Vec::new() };
        kept.into_iter().for_each(|record| recorder.remember(record));
        Ok(recorder)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn record(&mut self, record: MetricsRecord) -> Result<(), RunError> {
        self.metrics.write(&record)?;
        self.events.record(&record)?;
        self.remember(record);
        Ok(())
    }

    fn remember(&mut self, record: MetricsRecord) {
        self.last.retain(|last| last.split != record.split);
        self.last.push(record);
    }

    /// The last record of a split.
    pub fn last(&self, split: &str) -> Option<&MetricsRecord> {
        self.last.iter().find(|record| record.split == split)
    }

    /// Whether the views have been drawn.
    pub fn has_views(&self) -> bool {
        self.images.join("augmentation.png").is_file()
    }

    /// Writes the picture of the views.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn views(&self, png: &Picture) -> Result<(), RunError> {
        disk::create_folder(&self.images)?;
        Ok(disk::write(&self.images.join("augmentation.png"), &png.bytes)?)
    }

    /// Writes the picture of a step's reconstructions.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn reconstruction(&mut self, step: u64, png: &Picture) -> Result<(), RunError> {
        disk::create_folder(&self.images)?;
        disk::write(&self.images.join(format!("reconstruction-{step:06}.png")), &png.bytes)?;
        Ok(self.events.image(step, "reconstruction", png.width, png.height, &png.bytes)?)
    }

    /// Handles of the files whose records a checkpoint must not be ahead of.
    ///
    /// # Errors
    /// If the operating system refuses one.
    pub fn logs(&self) -> Result<Vec<(File, PathBuf)>, RunError> {
        Ok(vec![self.metrics.handle()?, self.events.handle()?])
    }
}
