//! How an op could be lowered: what a device can run, and the candidates that a chooser takes one
//! of.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Io, Op, Requirements, Target};
use crate::tensor::TensorType;

/// A product tiled in workgroup memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Tile {
    /// Rows of the result per workgroup: pixels, or output channels of a weight gradient.
    pub m: u32,
    /// Columns per workgroup: output channels, or taps and input channels of a weight gradient.
    pub n: u32,
    /// Depth of a tile.
    pub k: u32,
    /// Rows per invocation.
    pub rows: u32,
    /// Columns per invocation.
    pub cols: u32,
    /// Workgroups that a weight gradient's sum over pixels is split for; 0 elsewhere.
    pub groups: u32,
    /// The shapes are data of the dispatch, so that all products of one epilogue share a pipeline.
    #[serde(default)]
    pub compact: bool,
}

impl Tile {
    /// Invocations of a workgroup.
    pub const fn invocations(&self) -> u32 {
        self.m / self.rows * (self.n / self.cols)
    }
}

/// A product of f16 operands by cooperative matrices, which subgroups multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CoopTile {
    /// Rows of the result per workgroup: pixels, or output channels of a weight gradient.
    pub m: u32,
    /// Columns per workgroup: output channels, or taps and input channels of a weight gradient.
    pub n: u32,
    /// Depth of a tile.
    pub k: u32,
    /// Rows per subgroup.
    pub rows: u32,
    /// Columns per subgroup.
    pub cols: u32,
    /// Tiles in workgroup memory. With two, one is filled from registers while the other is
    /// multiplied; with more, all but one are being filled by copies that go on by themselves.
    pub buffers: u32,
    /// Workgroups that a weight gradient's sum over pixels is split for; 0 elsewhere.
    pub groups: u32,
    /// Edge of a cooperative matrix.
    pub edge: u32,
    /// Lanes of a subgroup.
    pub subgroup: u32,
}

impl CoopTile {
    /// Subgroups of a workgroup.
    pub const fn subgroups(&self) -> u32 {
        self.m / self.rows * (self.n / self.cols)
    }
    /// Whether tiles come by copies that go on while others are multiplied ([`Target::copies`]).
    pub const fn copies(&self) -> bool {
        self.buffers > 2
    }
    /// Bytes of workgroup memory (`lib/coop.wgsl`).
    pub fn workgroup_memory(&self) -> u32 {
        // Each row of an operand ends with two unused vectors of four. The rows of a weight
        // gradient lie across the depth, those of the others along it, but for weights that are
        // read across.
        let rows = if self.groups > 0 { [self.k; 2] } else { [self.m, self.n.max(self.k)] };
        let vectors = (self.m + self.n) * self.k / 4 + 2 * (rows[0] + rows[1]);
        let operands = 8 * self.buffers * vectors;
        // A row of the results of a subgroup, one or two matrices long, ends with one.
        // Moments of each lane's rows take their place.
        let strip = self.edge * (self.cols.min(2 * self.edge) / 4 + 1);
        let strip = strip.max(2 * self.subgroup);
        operands + 16 * self.subgroups() * strip
    }
}

/// A library of a device's vendor.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Library {
    /// Of convolutions, their gradients and what follows: NVIDIA's cuDNN.
    #[default]
    Convolutions,
    /// Of products of matrices, for convolutions of one tap: NVIDIA's cuBLASLt.
    Matrices,
}

/// One way to lower an op.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// The op is lowered in one way only.
    #[default]
    Only,
    /// Workgroup-memory tiles: the portable products.
    Tile(Tile),
    /// Register tiles, operands broadcast across a subgroup of this many lanes, no barrier.
    Broadcast {
        /// Lanes of a subgroup.
        subgroup: u32,
    },
    /// Cooperative matrices: of half products ([`super::OpDef::rounded`]) only.
    Coop(CoopTile),
    /// A library of the device's vendor. The first dispatch of its lowering says what is computed:
    /// a device calls the library in place of that kernel, whose text gives the same numbers.
    Library {
        /// The library.
        #[serde(default)]
        of: Library,
        /// Which of the ways that the library proposes for the product, the most promising first.
        rank: u32,
    },
}

impl Variant {
    /// Whether products share its pipelines.
    pub fn is_compact(&self) -> bool {
        matches!(self, Self::Tile(t) if t.compact)
    }
    /// What it requires of a device.
    pub fn requirements(&self) -> Requirements {
        match *self {
            Self::Only => Requirements::default(),
            Self::Tile(t) => Requirements {
                invocations: t.invocations(),
                // Two operands, each row two floats longer than the tile (`conv_nt_tile`).
                workgroup_memory: (t.m + t.n + 4) * t.k * 4,
                ..Requirements::default()
            },
            Self::Broadcast { subgroup } => Requirements {
                subgroup: Some(subgroup),
                invocations: subgroup,
                ..Requirements::default()
            },
            Self::Coop(t) => Requirements {
                subgroup: Some(t.subgroup),
                invocations: t.subgroups() * t.subgroup,
                workgroup_memory: t.workgroup_memory(),
                coop: Some(t.edge),
                copies: t.copies(),
                ..Requirements::default()
            },
            Self::Library { .. } => Requirements { library: true, ..Requirements::default() },
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => write!(f, "only"),
            Self::Tile(t) => {
                write!(f, "tile {}x{}x{} by {}x{}", t.m, t.n, t.k, t.rows, t.cols)?;
                if t.groups > 0 {
                    write!(f, " for {} groups", t.groups)?;
                }
                if t.compact { write!(f, ", compact") } else { Ok(()) }
            }
            Self::Broadcast { subgroup } => write!(f, "broadcast {subgroup}"),
            Self::Library { of: Library::Convolutions, rank } => {
                write!(f, "library, proposal {rank}")
            }
            Self::Library { of: Library::Matrices, rank } => {
                write!(f, "library of matrices, proposal {rank}")
            }
            Self::Coop(t) => {
                write!(f, "coop {}x{}x{} by {}x{}", t.m, t.n, t.k, t.rows, t.cols)?;
                write!(f, ", {} of {}x{}", t.buffers, t.edge, t.edge)?;
                if t.groups > 0 { write!(f, " for {} groups", t.groups) } else { Ok(()) }
            }
        }
    }
}

/// Which variant an op of a shape takes where the table of defaults does not say it.
///
/// Plain data: what a tuner has measured, a file has remembered, or a test asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// The variant of each product, by its [`key`].
    chosen: std::collections::BTreeMap<String, Variant>,
}

/// No choice: the table of defaults.
pub static DEFAULTS: Choices = Choices { chosen: std::collections::BTreeMap::new() };

/// An op and its shape, whatever its epilogue and whether it sums a bias's gradient too: what a
/// choice is made for.
pub fn key(op: &Op, io: &Io) -> String {
    let shapes =
        |types: &[TensorType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let mut operands = io.inputs[..io.inputs.len().min(2)].to_vec();
    if let (Op::Conv2d(_) | Op::Conv2dInputGrad(_), [_, w]) = (op, &mut operands[..]) {
        // It is the same product, whether weights are rounded before or as they are loaded.
        *w = TensorType::f32(w.shape);
    }
    let (stride, pad) = match op {
        Op::Conv2d(c) => (c.stride, c.pad),
        Op::Conv2dInputGrad(c) => (c.stride, c.pad),
        Op::Conv2dWeightGrad(c) => (c.stride, c.pad),
        _ => (0, 0),
    };
    let (from, to) = (shapes(&operands), shapes(&io.outputs[..1]));
    format!("{} s{stride} p{pad} {from} -> {to}", op.name())
}

impl Choices {
    /// Sets the variant of a [`key`].
    pub fn set(&mut self, key: String, variant: Variant) {
        self.chosen.insert(key, variant);
    }
    /// What is chosen for a [`key`].
    pub fn get(&self, key: &str) -> Option<Variant> {
        self.chosen.get(key).copied()
    }
    /// The variant of an op; one that the op does not offer on this device is no choice, whoever
    /// made it.
    pub fn variant(&self, op: &Op, io: &Io, target: &Target) -> Variant {
        let offered = op.variants(io, target);
        if let [only] = offered[..] {
            return only;
        }
        match self.chosen.get(&key(op, io)) {
            Some(chosen) if offered.contains(chosen) => *chosen,
            _ => op.preferred(io, target),
        }
    }
    /// As text, for a checkpoint.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.chosen)
            .unwrap_or_else(|e| unreachable!("text and numbers: {e}"))
    }
    /// From such text; what cannot be read is no choice.
    pub fn from_json(text: &str) -> Self {
        Self { chosen: serde_json::from_str(text).unwrap_or_default() }
    }
    /// Choices by key.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Variant)> {
        self.chosen.iter()
    }
    /// Drops the choices that are not to be kept.
    pub fn retain(&mut self, mut keep: impl FnMut(&str, &Variant) -> bool) {
        self.chosen.retain(|key, variant| keep(key, variant));
    }
    /// Number of choices.
    pub fn len(&self) -> usize {
        self.chosen.len()
    }
    /// Whether nothing is chosen.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }
}
