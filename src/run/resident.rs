//! Images that stay on a device, as bytes: a step is told which it takes, and no image is read,
//! packed or uploaded twice. What is computed is the same, to the bit.
//!
//! Which images stay is decided by a device and a run: a host reads images where they are, and one
//! that sees an image once gains nothing.

use std::ops::Range;

use rayon::prelude::*;

use super::RunError;
use super::fit::{self, Fit};
use crate::data::{Batch, DataError, Loader, Order, Subset};
use crate::device::{Data, DeviceError, PlanId, Session};
use crate::ir::Graph;
use crate::ir::resident::{INDICES, ImageSet, gather};

/// Bytes of images that may stay where nobody knows how much memory there is: a system may move
/// what is beyond it to the processor's memory and say nothing.
const MOST: usize = 1 << 30;
/// Bytes that are read and written at a time.
const CHUNK: usize = 4 << 20;

/// How the images of a subset would lie on a device that sees so many in all, or why they do not
/// stay there.
///
/// # Errors
/// The reason, for people; it is empty where there is none to give.
pub fn set(session: &Session, subset: &Subset, seen: u64) -> Result<ImageSet, String> {
    if !session.keeps_images() {
        return Err(String::new());
    }
    if seen < 2 * subset.len() as u64 {
        return Err("most are seen once".into());
    }
    let side = subset.dataset.image_size();
    let set = ImageSet::new(subset.len(), side, session.target().max_binding);
    let set = set.ok_or("the device does not bind one image")?;
    if session.memory().is_none() && set.bytes() > MOST {
        let bytes = set.bytes();
        return Err(format!(
            "they take {bytes} bytes, and more than {MOST} stay only where the device says how much \
             memory it has"
        ));
    }
    Ok(set)
}

/// Bytes that the images of a subset take of a device that sees so many in all, beside others that
/// it needs; 0 where they do not stay.
pub fn bytes(session: &Session, subset: &Subset, seen: u64, needed: usize) -> usize {
    let bytes = set(session, subset, seen).map_or(0, |set| set.bytes());
    if fit::check_memory(session, "images", needed + bytes).is_ok() { bytes } else { 0 }
}

/// Writes the images of a subset to a session that has room for them ([`Session::keep_images`]),
/// each at its place in the subset.
///
/// # Errors
/// If an image cannot be read, or the device fails.
pub fn fill(session: &mut Session, subset: &Subset, set: &ImageSet) -> Result<(), RunError> {
    let (words, bytes) = (set.words(), 3 * set.side * set.side);
    let at_once = (CHUNK / (words * size_of::<u32>())).max(1);
    let mut indices = &subset.indices[..];
    for (part, &images) in set.parts.iter().enumerate() {
        let (these, rest) = indices.split_at(images);
        indices = rest;
        let mut first = 0;
        for chunk in these.chunks(at_once) {
            let mut packed = vec![0_u32; chunk.len() * words];
            packed.par_chunks_exact_mut(words).zip(chunk).try_for_each_init(
                || vec![0_u8; bytes],
                |image, (packed, &index)| {
                    subset.dataset.read(index as usize, image)?;
                    for (word, bytes) in packed.iter_mut().zip(image.chunks(size_of::<u32>())) {
                        *word = bytes.iter().rev().fold(0, |word, b| word << 8 | u32::from(*b));
                    }
                    Ok::<(), DataError>(())
                },
            )?;
            session.write_images(part, first * words, &packed)?;
            first += chunk.len();
        }
    }
    Ok(())
}

/// Plans a graph beside what a session holds already and loads it, with the images of a subset on
/// the device if they stay there and fit, in place of others; a graph that sees so many in all.
///
/// # Errors
/// Those of [`fit::load`], and if an image cannot be read.
pub fn load(
    session: &mut Session,
    name: &str,
    fit: Fit,
    graph: &dyn Fn(usize) -> Graph,
    (subset, seen): (&Subset, u64),
) -> Result<PlanId, RunError> {
    let Ok(set) = set(session, subset, seen) else { return fit::load(session, name, fit, graph) };
    let loaded = session.keep_images(&set.types()).and_then(|()| {
        let as_asked = Fit { least: fit.asked, ..fit };
        // Where it does not fit, whoever asks for less memory says so.
        let plan = fit::plan(session, name, as_asked, &|n| gather(graph(n), &set)).ok();
        plan.map(|plan| session.load_beside(plan)).transpose()
    });
    match loaded {
        Ok(Some(plan)) => {
            fill(session, subset, &set)?;
            Ok(plan)
        }
        Ok(None) | Err(DeviceError::OutOfMemory { .. }) => {
            session.forget_images()?;
            fit::load(session, name, fit, graph)
        }
        Err(error) => Err(error.into()),
    }
}

/// The batches of some steps of a plan ([`Loader::in_parts`]): without pixels where it has the
/// images.
///
/// # Errors
/// If no thread can be started.
pub fn batches(
    session: &Session,
    plan: PlanId,
    subset: &Subset,
    (order, parts): (Order, usize),
    steps: Range<u64>,
) -> Result<Loader, DataError> {
    match session.plan(plan).input(INDICES) {
        Some(_) => Loader::without_pixels(subset, order, parts, steps),
        None => Loader::in_parts(subset, order, parts, steps),
    }
}

/// Uploads what a plan reads of a batch: which images it takes of those that stay, or their
/// pixels; and the labels, once for each view of the images, where it reads them.
///
/// # Errors
/// If the device fails.
pub fn feed(session: &mut Session, plan: PlanId, batch: &Batch) -> Result<(), DeviceError> {
    match session.plan(plan).input(INDICES) {
        Some((input, _)) => session.upload(plan, input, Data::U32(&batch.places))?,
        None => session.upload(plan, 0, Data::U32(&batch.pixels))?,
    }
    if let Some((input, port)) = session.plan(plan).input("labels") {
        let views = port.ty.shape.n / batch.labels.len();
        session.upload(plan, input, Data::U32(&batch.labels.repeat(views)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::sync::Arc;

    use super::*;
    use crate::data::Dataset;
    use crate::device::Host;
    use crate::ops::{Decode, Emit, Op, StepUniforms};
    use crate::tensor::{Shape, TensorType};

    /// Images so large that three are read and written at a time.
    const SIDE: usize = 600;

    /// The byte at place `at` of image `index`, other than its neighbours' in either.
    fn byte(index: usize, at: usize) -> u8 {
        (31 * index + 7 * at + at / SIDE) as u8
    }

    struct Numbered;

    impl Dataset for Numbered {
        fn name(&self) -> &str {
            "numbered"
        }
        fn len(&self) -> usize {
            6
        }
        fn image_size(&self) -> usize {
            SIDE
        }
        fn classes(&self) -> &[OsString] {
            &[]
        }
        fn label(&self, _index: usize) -> u32 {
            0
        }
        fn read(&self, index: usize, out: &mut [u8]) -> Result<(), DataError> {
            out.iter_mut().enumerate().for_each(|(at, out)| *out = byte(index, at));
            Ok(())
        }
        fn mean_std(&self) -> ([f32; 3], [f32; 3]) {
            ([0.0; 3], [1.0; 3])
        }
    }

    /// A part that is written in several pieces, and one behind it: each image of the subset is
    /// found at its place.
    #[test]
    fn images_lie_at_their_places() {
        let indices = [4_u32, 0, 3, 1, 2];
        let subset = Subset { dataset: Arc::new(Numbered), indices: indices.into() };
        let set = ImageSet { side: SIDE, parts: vec![4, 1] };
        let mut g = Graph::default();
        let pixels = g.input("pixels", TensorType::u32(Shape::new(5, SIDE, SIDE, 1)));
        let x = g.emit1(Op::from(Decode { mean: [0.0; 3], std: [1.0; 3] }), &[pixels]);
        g.output("x", x);
        let graph = gather(g, &set);
        let mut session = Session::from(Host::<f32>::new());
        session.keep_images(&set.types()).expect("room");
        fill(&mut session, &subset, &set).expect("images");
        let id = session.load(session.lower("images", &graph)).expect("a plan");
        session.upload(id, 0, Data::U32(&[0, 1, 2, 3, 4])).expect("places");
        session.run(id, &StepUniforms::default()).expect("a run");
        let found = session.read(id, 0).expect("pixels");
        for (place, image) in found.chunks(4 * SIDE * SIDE).enumerate() {
            let index = indices[place] as usize;
            let wrong = image.chunks(4).enumerate().find(|(pixel, found)| {
                let value = |c: usize| (found[c] * 255.0).round() as u8;
                (0..3).any(|c| value(c) != byte(index, 3 * pixel + c))
            });
            assert_eq!(wrong, None, "image {index} at place {place}");
        }
    }
}
