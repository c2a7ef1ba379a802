//! What a network makes of several augmented views of the same images.

use super::features::Evaluator;
use super::grid;
use crate::data::{Loader, Subset};
use crate::device::Data;
use crate::method::{self, ModelConfig};
use crate::ops::StepUniforms;
use crate::run::RunError;

/// Images, views of them, and what a network makes of the views.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Originals, HWC RGB.
    pub originals: Vec<Vec<u8>>,
    /// Views of each image, HWC RGB.
    pub views: Vec<Vec<Vec<u8>>>,
    /// By name (`h`, `mu`, `z`): a vector of each view of each image.
    pub vectors: Vec<(String, Vec<Vec<Vec<f32>>>)>,
}

impl Evaluator {
    /// What the network makes of several augmented views of the first images. View `v` has the
    /// draws of step `step + v`.
    ///
    /// # Errors
    /// If data or device fail, or there are fewer images.
    pub fn embed_views(
        &mut self,
        subset: &Subset,
        images: usize,
        views: usize,
        step: &StepUniforms,
    ) -> Result<Embedded, RunError> {
        let model = ModelConfig { batch: images, ..self.model };
        let graph = method::embedding(&model, &self.frozen.layout).graph;
        let plan = self.session.load(self.session.lower("views", &graph))?;
        let first = Loader::eval_batches(subset, images)?
            .next()
            .transpose()?
            .filter(|batch| batch.valid == images);
        let Some(batch) = first else {
            return Err(RunError::config(
                format!("{images} images are needed, the set has {}", subset.len()),
                None,
            ));
        };
        self.session.upload(plan, 0, Data::U32(&batch.pixels))?;
        let rgb = |pixel: &u32| [*pixel as u8, (pixel >> 8) as u8, (pixel >> 16) as u8];
        let originals = batch
            .pixels
            .chunks(model.net.image.pow(2))
            .map(|image| image.iter().flat_map(rgb).collect())
            .collect();
        let names: Vec<String> =
            self.session.plan(plan).outputs.iter().map(|port| port.name.clone()).collect();
        let mut embedded =
            Embedded { originals, views: vec![Vec::new(); images], vectors: Vec::new() };
        for v in 0..views {
            self.session.run(plan, &StepUniforms { step: step.step + v as u32, ..*step })?;
            self.session.drain(plan)?;
            let pixels = grid::denormalise(&self.session.read(plan, 0)?, model.mean, model.std);
            for (views, image) in
                embedded.views.iter_mut().zip(pixels.chunks(pixels.len() / images))
            {
                views.push(image.to_vec());
            }
            for (i, name) in names.iter().enumerate().skip(1) {
                let data = self.session.read(plan, i)?;
                if v == 0 {
                    embedded.vectors.push((name.clone(), vec![Vec::new(); images]));
                }
                for (rows, row) in
                    embedded.vectors[i - 1].1.iter_mut().zip(data.chunks(data.len() / images))
                {
                    rows.push(row.to_vec());
                }
            }
        }
        Ok(embedded)
    }
}
