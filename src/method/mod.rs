//! The methods of the paper's Table 1 and SimCLR, with which it compares: each file is one
//! equation, and [`methods!`](self) is the one list of them.
//!
//! What others ask of a method (how many views it sees, whether it samples, reconstructs, which
//! settings it reads) is a property in its [`Definition`]; nobody else names a method in order to
//! decide. `images` is what the methods see, `latent` what their head makes of features, `graphs`
//! assembles training, evaluation and figures around an objective, `frozen` the linear probe,
//! `measure` what is measured of a trained model besides.

mod frozen;
mod graphs;
mod images;
mod latent;
mod measure;

pub use frozen::{Frozen, Protocol, features, frozen, probe, probe_test};
pub use graphs::{
    Model, ONLINE_PROBE, Training, decoding, embedding, encoding, figures, training, validation,
};
pub use images::Views;
pub use measure::{importance, log_weights, views};

use serde::{Deserialize, Serialize};

use crate::model::NetConfig;
use crate::nn::Builder;
use crate::ops::ValueId;
use images::Images;
use latent::Latent;

/// What the file of a method provides.
#[derive(Debug)]
pub struct Definition {
    /// What it is called in a sentence, with its article: "an autoencoder (AE)".
    pub title: &'static str,
    /// The paper that describes it, by its number on arXiv.
    pub arxiv: &'static str,
    /// What it minimises, as the paper writes it.
    pub equation: &'static str,
    /// The same in words, with the values of its parameters.
    loss: fn(&Objective) -> String,
    /// Augmented views of each image that the encoder sees; 0 if it sees the image itself.
    pub views: usize,
    /// What makes the latent of the features.
    pub head: Head,
    /// Whether there is a decoder, and so a reconstruction. Without one the head is a projection
    /// that only the loss reads.
    pub decoder: bool,
    /// Whether the loss is a mean over images, so that the mean gradient of several batches is that
    /// of one large batch.
    pub per_image: bool,
    /// Parameters of the objective that it reads.
    pub parameters: &'static [Parameter],
    /// Weight of the KL term where none is given.
    pub kl_coeff: f32,
    /// The equation as a graph.
    objective: fn(&mut Builder, &ModelConfig, &Images) -> Outcome,
}

/// What makes a latent of features (`model::projection`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// The latent is a function of the features.
    Deterministic,
    /// The latent is drawn from a Gaussian whose mean and variance are functions of the features.
    Gaussian,
}

/// A parameter of an objective that only some methods read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// The weight of the KL term, [`Objective::kl_coeff`].
    KlCoeff,
    /// The width of the likelihood, [`Objective::log_scale`] and
    /// [`Objective::learn_log_scale`].
    LogScale,
    /// What a reconstruction is compared with, [`Objective::target`].
    Target,
    /// The temperature of a contrastive loss, [`Objective::temperature`].
    Temperature,
}

/// Declares [`Method`] and its properties from one list: a variant and the file of its
/// `METHOD`, whose name is the method's on the command line.
macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident => $file:ident),+ $(,)?) => {
        $(mod $file;)+

        /// What is trained.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
        #[serde(rename_all = "lowercase")]
        pub enum Method {
            $($(#[$doc])* $variant,)+
        }

        impl Method {
            /// Every method, in the order of the list.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name on the command line and in files.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($file),)+
                }
            }

            /// What its file says of it.
            pub const fn definition(self) -> &'static Definition {
                match self {
                    $(Self::$variant => &$file::METHOD,)+
                }
            }
        }
    };
}

methods! {
    /// Autoencoder of the images themselves.
    Ae => ae,
    /// Variational autoencoder of the images themselves.
    Vae => vae,
    /// Augmentation-augmented autoencoder, which encodes a view.
    Aaae => aaae,
    /// Augmentation-augmented variational autoencoder, which encodes a view.
    Aavae => aavae,
    /// Contrastive learning of two views.
    Simclr => simclr,
}

impl Method {
    /// Whether the encoder sees augmented views.
    pub const fn augments(self) -> bool {
        self.definition().views > 0
    }
    /// Inputs of the encoder that are made of each image: its views, or the image itself.
    pub const fn views(self) -> usize {
        let views = self.definition().views;
        if views == 0 { 1 } else { views }
    }
    /// Whether there is a decoder, and so a reconstruction.
    pub const fn reconstructs(self) -> bool {
        self.definition().decoder
    }
    /// Whether the latent is sampled.
    pub const fn samples(self) -> bool {
        matches!(self.definition().head, Head::Gaussian)
    }
    /// Whether its objective has a parameter.
    pub fn reads(self, parameter: Parameter) -> bool {
        self.definition().parameters.contains(&parameter)
    }
    /// Weight of the KL term where none is given.
    pub const fn default_kl_coeff(self) -> f32 {
        self.definition().kl_coeff
    }
}

/// What a reconstruction is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Compare {
    /// The original image (the paper's equations).
    Original,
    /// The augmented view (the authors' released autoencoder).
    View,
}

/// A method and the parameters of its objective.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Which equation is minimised.
    pub method: Method,
    /// Weight of the KL term.
    pub kl_coeff: f32,
    /// Logarithm of the likelihood's variance.
    pub log_scale: f32,
    /// Whether that logarithm is trained.
    pub learn_log_scale: bool,
    /// What the reconstruction is compared with.
    pub target: Compare,
    /// Temperature of the contrastive loss.
    pub temperature: f32,
}

impl Objective {
    /// What is minimised, in words.
    pub fn loss(&self) -> String {
        (self.method.definition().loss)(self)
    }
}

/// Everything that a graph is built from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelConfig {
    /// Sizes of the networks.
    pub net: NetConfig,
    /// What they are trained for.
    pub objective: Objective,
    /// Mean of the pixels, in [0, 1].
    pub mean: [f32; 3],
    /// Standard deviation of the pixels.
    pub std: [f32; 3],
    /// Images per step.
    pub batch: usize,
    /// Classes of the linear classifier that is trained along on the features, if one is.
    pub online_probe: Option<usize>,
}

/// What the equation of a method returns.
struct Outcome {
    loss: ValueId,
    /// Scalars to log.
    metrics: Vec<(&'static str, ValueId)>,
    /// Features of the encoder, `[N, 1, 1, features]`.
    features: ValueId,
    latent: Latent,
    reconstruction: Option<ValueId>,
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    /// Command line, configuration files and the list spell a method alike.
    #[test]
    fn a_method_has_one_name() {
        for method in Method::ALL {
            let value = method.to_possible_value().expect("no method is hidden");
            assert_eq!(value.get_name(), method.name());
            let json = serde_json::to_string(method).expect("a name");
            assert_eq!(json, format!("\"{}\"", method.name()));
        }
        assert_eq!(Method::ALL.len(), Method::value_variants().len());
    }

    /// A target to choose needs a reconstruction and a view, a likelihood a decoder; the paper's
    /// AAVAE has no KL term.
    #[test]
    fn definitions_are_consistent() {
        for &method in Method::ALL {
            let chooses = method.reconstructs() && method.augments();
            assert_eq!(method.reads(Parameter::Target), chooses, "{method:?}");
            let likelihood = method.reconstructs() && method.samples();
            assert_eq!(method.reads(Parameter::LogScale), likelihood, "{method:?}");
            assert!(method.reads(Parameter::KlCoeff) || method.default_kl_coeff() == 0.0);
        }
        assert_eq!((Method::Vae.default_kl_coeff(), Method::Aavae.default_kl_coeff()), (1.0, 0.0));
    }
}
