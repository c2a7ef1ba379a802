//! The graphs of a frozen encoder: its features, and the linear probe that is trained on them (the
//! paper's section 4).
//!
//! A probe's model is the trained one as state that nothing updates ([`Layout::frozen`]), and the
//! classifier as its only parameters. So the encoder costs neither gradients nor moments, autodiff
//! ends at its features, and the optimiser works on the whole of the flat buffers, which are the
//! classifier's.

use super::ModelConfig;
use super::graphs::{Model, Training, evaluation, training};
use super::images::pixels;
use crate::ir::{Graph, Group, Layout, autodiff};
use crate::model::resnet::encoder;
use crate::nn::{Builder, Params};
use crate::ops::{
    AugmentParams, CropResize, Decode, Emit, Normalize, ProbeAugment, Recipe, ResizeCenter,
    SoftmaxCrossEntropy, ValueId,
};
use crate::optim::{Optimizer, Update};
use crate::rng::Stream;
use crate::tensor::{Shape, TensorType};

/// The probe's optimiser: SGD with Nesterov's momentum, without weight decay.
const PROBE: Update = Update { optimizer: Optimizer::Sgd, weight_decay: 0.0, nesterov: true };

/// Name of the probe's linear layer.
const CLASSIFIER: &str = "classifier";

/// What images go through before a frozen encoder (the paper's section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A probe trains on crops of the image padded by 4 pixels, flipped at random, and is tested on
    /// the image itself.
    PadCrop,
    /// STL-10: a probe trains on random resized crops, flipped at random, and is tested on the
    /// centre of the image resized by 105 / 96.
    ResizedCrop,
}

impl Protocol {
    /// The images that a frozen encoder sees; `augment` asks for those that a probe trains on.
    fn images(self, b: &mut Builder, config: &ModelConfig, augment: bool) -> ValueId {
        let (side, mean, std) = (config.net.image, config.mean, config.std);
        let pixels = pixels(b, config);
        b.graph.label("images");
        match (self, augment) {
            (Protocol::PadCrop, true) => {
                b.graph.emit1(ProbeAugment { pad: 4, mean, std }.into(), &[pixels])
            }
            (Protocol::PadCrop, false) => b.graph.emit1(Decode { mean, std }.into(), &[pixels]),
            (Protocol::ResizedCrop, true) => {
                let draws = AugmentParams {
                    recipe: Recipe::crop_and_flip(),
                    n: config.batch,
                    views: 1,
                    in_h: side,
                    in_w: side,
                    stream: Stream::Probe,
                };
                let params = b.graph.emit1(draws.into(), &[]);
                let crop = CropResize { out_h: side, out_w: side };
                let x = b.graph.emit1(crop.into(), &[pixels, params]);
                b.graph.emit1(Normalize { mean, std }.into(), &[x])
            }
            (Protocol::ResizedCrop, false) => {
                let full = side * 105 / 96;
                let resize = ResizeCenter {
                    full_h: full,
                    full_w: full,
                    out_h: side,
                    out_w: side,
                    mean,
                    std,
                };
                b.graph.emit1(resize.into(), &[pixels])
            }
        }
    }
}

/// A trained model as state that nothing updates, and a linear classifier on its features.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// Where the tensors of both live.
    pub layout: Layout,
    /// Names and initial values of the model's tensors.
    pub model: Params,
    /// Those of the classifier, which alone is updated.
    pub classifier: Params,
}

/// Freezes a model under a classifier of so many classes.
pub fn frozen(config: &ModelConfig, classes: usize) -> Frozen {
    let trained = training(config, Training::default());
    let mut b = Builder::new(Graph::with_layout(trained.graph.layout.frozen()), false);
    let h = features_input(&mut b, config);
    b.linear(CLASSIFIER, h, classes, true);
    Frozen { layout: b.graph.layout, model: trained.params.frozen(), classifier: b.params }
}

/// Features of a batch that are uploaded.
fn features_input(b: &mut Builder, config: &ModelConfig) -> ValueId {
    b.graph.input("features", TensorType::f32(Shape::rows(config.batch, config.net.features())))
}

/// Features `[N, 1, 1, h]` of the images that a frozen encoder is tested on, in evaluation mode.
pub fn features(config: &ModelConfig, layout: &Layout, protocol: Protocol) -> Model {
    evaluation(layout, |b| {
        let x = protocol.images(b, config, false);
        let h = encoder(b, &config.net, x);
        b.graph.output("features", h);
    })
}

/// A step of the linear probe over a [`frozen`] layout: the images it trains on, the encoder in
/// evaluation mode, `min -ln softmax(W h + b)[label]` in W and b, and their update. Inputs:
/// `pixels` and `labels`. Outputs, all scalars: `loss`, `correct` (how many of the batch) and
/// [`FINITE`](crate::optim::FINITE).
pub fn probe(config: &ModelConfig, layout: &Layout, protocol: Protocol, classes: usize) -> Model {
    evaluation(layout, |b| {
        let x = protocol.images(b, config, true);
        let h = encoder(b, &config.net, x);
        let (loss, _) = classify(b, h, classes);
        autodiff::backward(&mut b.graph, loss);
        PROBE.emit(&mut b.graph, Group::Grad, loss);
    })
}

/// The classifier of a probe on features that are made once. Inputs: `features` `[N, 1, 1, h]` and
/// `labels`. Outputs: `loss`, `correct`, and the `logits` `[N, 1, 1, C]`, whose columns from
/// `classes` on are padding.
pub fn probe_test(config: &ModelConfig, layout: &Layout, classes: usize) -> Model {
    evaluation(layout, |b| {
        let h = features_input(b, config);
        let (_, logits) = classify(b, h, classes);
        b.graph.output("logits", logits);
    })
}

/// Appends the classifier with its scalars; returns the loss and the logits.
fn classify(b: &mut Builder, h: ValueId, classes: usize) -> (ValueId, ValueId) {
    let rows = b.graph.ty(h).shape.n;
    let labels = b.graph.input("labels", TensorType::u32(Shape::rows(rows, 1)));
    let logits = b.linear(CLASSIFIER, h, classes, true);
    b.graph.label("loss");
    let out = b.graph.emit(SoftmaxCrossEntropy { classes }.into(), &[logits, labels]);
    b.graph.output("loss", out[0]);
    b.graph.output("correct", out[1]);
    (out[0], logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Compare, Method, Objective};
    use crate::model::{Depth, NetConfig, Stem};
    use crate::ops::Op;

    /// The ops that make the images.
    fn transforms(protocol: Protocol, augment: bool) -> Vec<Op> {
        let net = NetConfig {
            encoder: Depth::Resnet18,
            decoder: Depth::Resnet18,
            width: 8,
            latent: 16,
            stem: Stem::Stl,
            image: 96,
        };
        let objective = Objective {
            method: Method::Ae,
            kl_coeff: 0.0,
            log_scale: 0.0,
            learn_log_scale: false,
            target: Compare::Original,
            temperature: 0.5,
        };
        let config = ModelConfig {
            net,
            objective,
            mean: [0.5; 3],
            std: [0.25; 3],
            batch: 2,
            online_probe: None,
        };
        let mut b = Builder::new(Graph::default(), false);
        protocol.images(&mut b, &config, augment);
        b.graph.nodes.into_iter().map(|node| node.op).collect()
    }

    #[test]
    fn frozen_encoders_see_the_images_of_the_paper() {
        let names = |protocol, augment| {
            transforms(protocol, augment).iter().map(Op::name).collect::<Vec<_>>()
        };
        assert_eq!(names(Protocol::PadCrop, true), ["probe_augment"]);
        assert_eq!(names(Protocol::PadCrop, false), ["decode"]);
        assert_eq!(
            names(Protocol::ResizedCrop, true),
            ["augment_params", "crop_resize", "normalize"]
        );
        let [Op::ResizeCenter(op)] = &transforms(Protocol::ResizedCrop, false)[..] else {
            panic!("one op resizes and cuts")
        };
        assert_eq!([op.full_h, op.full_w, op.out_h, op.out_w], [105, 105, 96, 96]);
    }
}
