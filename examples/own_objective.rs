//! Writes an objective of its own and trains it: here a small network that undoes a blur,
//!
//! ```text
//! min_f  E || f(blur(x)) - x ||^2
//! ```
//!
//! `cargo run --release --example own_objective [DEVICE] [STEPS]`
//!
//! The forward pass is written as a graph. `autodiff` appends the gradients, an op the update;
//! `Session::lower` moves biases and ReLUs into the convolutions and turns the graph into a plan
//! for the device, which the session runs. Blur and decoding are ops too: the host uploads bytes.

use std::error::Error;
use std::sync::Arc;

use aavae::data::shapes::{MEAN, Part, STD};
use aavae::data::{Loader, Order, Shapes, Subset};
use aavae::device::{self, Data};
use aavae::ir::{Graph, Group, autodiff};
use aavae::nn::{Builder, Conv, Init, Params};
use aavae::ops::{
    Adam, AugmentParams, CropResize, Decode, Emit, GaussianBlur, Mse, Normalize, Recipe,
    StepUniforms, ValueId,
};
use aavae::rng::Stream;
use aavae::run::state;
use aavae::tensor::{Shape, TensorType};

const BATCH: usize = 32;
const SIDE: usize = 32;
const SEED: u64 = 0;

/// The bytes of a batch as normalised images, and those blurred by a width that is drawn for each.
fn images(b: &mut Builder) -> (ValueId, ValueId) {
    let pixels = b.graph.input("pixels", TensorType::u32(Shape::new(BATCH, SIDE, SIDE, 1)));
    b.graph.label("original");
    let original = b.graph.emit1(Decode { mean: MEAN, std: STD }.into(), &[pixels]);
    let whole =
        Recipe { flip_p: 0.0, scale: (1.0, 1.0), ratio: (1.0, 1.0), ..Recipe::crop_and_flip() };
    let recipe = Recipe { blur_p: 1.0, sigma: (1.0, 2.0), ..whole };
    b.graph.label("blurred");
    let draws = AugmentParams {
        recipe,
        n: BATCH,
        views: 1,
        in_h: SIDE,
        in_w: SIDE,
        stream: Stream::Augment,
    };
    let draws = b.graph.emit1(draws.into(), &[]);
    let x = b.graph.emit1(CropResize { out_h: SIDE, out_w: SIDE }.into(), &[pixels, draws]);
    let x = b.graph.emit1(GaussianBlur { kernel: recipe.blur_kernel }.into(), &[x, draws]);
    (original, b.graph.emit1(Normalize { mean: MEAN, std: STD }.into(), &[x]))
}

/// The network: three convolutions say what is missing in `x`; before training, nothing is.
fn sharpen(b: &mut Builder, x: ValueId) -> ValueId {
    let conv = |inputs, outputs, init| Conv {
        inputs,
        outputs,
        kernel: 3,
        stride: 1,
        pad: 1,
        bias: false,
        init,
    };
    let h = b.conv("conv1", x, conv(3, 32, Init::kaiming_fan_out(32, 3)));
    let h = b.batch_norm("bn1", h, None, true);
    let h = b.conv("conv2", h, conv(32, 32, Init::kaiming_fan_out(32, 3)));
    let h = b.batch_norm("bn2", h, None, true);
    let missing = b.conv("conv3", h, conv(32, 3, Init::Constant(0.0)));
    b.add("sum", x, missing)
}

/// One training step. Its scalar outputs: the loss, and the error of the blurred image itself.
fn step() -> (Graph, Params) {
    let mut b = Builder::new(Graph::default(), true);
    let (original, blurred) = images(&mut b);
    let sharp = sharpen(&mut b, blurred);
    b.graph.label("loss");
    let loss = b.graph.emit1(Mse { channels: 3 }.into(), &[sharp, original]);
    let before = b.graph.emit1(Mse { channels: 3 }.into(), &[blurred, original]);
    b.graph.output("loss", loss);
    b.graph.output("before", before);

    autodiff::backward(&mut b.graph, loss);
    let adam = Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, plain: vec![] };
    let flat =
        [Group::Param, Group::Grad, Group::Moment1, Group::Moment2].map(|g| b.graph.whole(g));
    b.graph.label("optimizer");
    // Nothing changes in a step whose loss is not finite.
    b.graph.emit(adam.into(), &[&flat[..], &[loss]].concat());
    (b.graph, b.params)
}

/// Trains on the embedded images; returns the last loss and what it was for the blurred images.
fn train(device: &str, steps: u64) -> Result<(f32, f32), Box<dyn Error>> {
    let (graph, params) = step();
    let (mut session, why) = device::open(&device.parse()?)?;
    println!("device: {} ({why}); {} parameters", session.device(), params.count());
    session.allocate(&graph.layout);
    let plan = session.load(session.lower("sharpen", &graph))?;
    state::initialise(&mut session, &graph.layout, &params, SEED)?;

    let subset = Subset::full(Arc::new(Shapes::new(SEED, Part::Train, 2000)));
    let order = Order::new(subset.len(), BATCH, SEED, true)?;
    let mut last = (f32::NAN, f32::NAN);
    for batch in Loader::new(&subset, order, 0..steps)? {
        let batch = batch?;
        session.upload(plan, 0, Data::U32(&batch.pixels))?;
        let bias = |beta: f64| (1.0 / (1.0 - beta.powf(batch.step as f64 + 1.0))) as f32;
        session.run(
            plan,
            &StepUniforms {
                seed_lo: SEED as u32,
                step: batch.step as u32,
                learning_rate: 2e-3,
                bias1: bias(0.9),
                bias2: bias(0.999),
                ..StepUniforms::default()
            },
        )?;
        // Losses stay on the device until they are asked for, all at once.
        if (batch.step + 1) % 20 == 0 || batch.step + 1 == steps {
            for (_, values) in session.drain(plan)? {
                last = (values[0], values[1]);
            }
            println!(
                "step {}: error {:.4}, of the blurred image {:.4}",
                batch.step + 1,
                last.0,
                last.1
            );
        }
    }
    Ok(last)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device = arguments.next().unwrap_or_else(|| "auto".into());
    let steps = arguments.next().map_or(Ok(200), |text| text.parse())?;
    train(&device, steps).map(drop)
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_learns_to_sharpen() {
        let (after, before) = super::train("cpu", 60).expect("a training");
        assert!(after < 0.7 * before, "error {after}, of the blurred image {before}");
    }
}
