//! A plan as text (reviewed in `tests/golden`) and as a summary.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::{Place, Plan};
use crate::ops::{Binding, Kernel};

/// Totals of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Name of the plan.
    pub name: String,
    /// Number of ops.
    pub steps: usize,
    /// Number of WGSL dispatches.
    pub dispatches: usize,
    /// Number of distinct pipelines.
    pub pipelines: usize,
    /// Floating-point operations of a step (convolutions and linear layers).
    pub flops: u64,
    /// Bytes read and written by a step, each tensor once per op.
    pub bytes: usize,
    /// Device memory: transient and persistent buffers.
    pub peak_bytes: usize,
    /// The same if no two values shared a buffer.
    pub peak_bytes_unaliased: usize,
    /// Persistent part of it.
    pub state_bytes: usize,
}

/// Totals of a plan.
pub fn summary(plan: &Plan) -> Summary {
    let inputs: usize = plan.inputs.iter().map(|p| p.ty.bytes().next_multiple_of(16)).sum();
    let dispatches = || plan.ops.iter().flat_map(|s| &s.dispatches);
    let kernels: BTreeMap<String, &Kernel> =
        dispatches().map(|d| (format!("{:?}", d.kernel), &d.kernel)).collect();
    // Kernels that differ in data only share a text, and so a pipeline.
    let texts: BTreeSet<String> = kernels.values().map(|k| crate::shader::source(k)).collect();
    Summary {
        name: plan.name.clone(),
        steps: plan.ops.len(),
        dispatches: dispatches().count(),
        pipelines: texts.len(),
        flops: plan.flops(),
        bytes: plan.ops.iter().map(super::PlannedOp::moved_bytes).sum(),
        peak_bytes: plan.peak_bytes(),
        peak_bytes_unaliased: plan.unaliased_bytes
            + inputs
            + plan.buffers[plan.ring.buffer].bytes
            + plan.state_bytes()
            + plan.image_bytes(),
        state_bytes: plan.state_bytes(),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Buffer(b) => write!(f, "b{b}"),
            Self::State(r) => write!(f, "{}+{}", format!("{:?}", r.group).to_lowercase(), r.offset),
            Self::Images(part) => write!(f, "images{part}"),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "plan {}", self.name)?;
        for (i, step) in self.ops.iter().enumerate() {
            let side = |tensors: &[(crate::ops::ValueId, Place)],
                        types: &[crate::tensor::TensorType]| {
                tensors
                    .iter()
                    .zip(types)
                    .map(|((_, p), t)| format!("{p} {t}"))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            writeln!(f, "{i:4} {}", step.label)?;
            writeln!(
                f,
                "       {} -> {}",
                side(&step.inputs, &step.io.inputs),
                side(&step.outputs, &step.io.outputs)
            )?;
            for d in &step.dispatches {
                let consts = d
                    .kernel
                    .consts
                    .iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .collect::<Vec<_>>()
                    .join(" ");
                let bound = d
                    .bindings
                    .iter()
                    .map(|b| match b {
                        Binding::Input(i) => step.inputs[*i].1.to_string(),
                        Binding::Output(i) => step.outputs[*i].1.to_string(),
                        Binding::Scratch(i) => format!("b{}", step.scratch[*i]),
                        Binding::Table(i) => format!("table[{}]", step.tables[*i].len()),
                        Binding::Step => "step".into(),
                        Binding::Skip => "-".into(),
                    })
                    .collect::<Vec<_>>()
                    .join(" ");
                writeln!(f, "       {} {:?} ({bound}) {consts}", d.kernel.file, d.grid)?;
            }
            if step.flops > 0 {
                let (flops, bytes) = (step.flops as f64 / 1e6, step.bytes() as f64 / 1e6);
                writeln!(f, "       {flops:.3} MFLOP, {bytes:.3} MB, {}", step.variant)?;
            }
        }
        for (i, b) in self.buffers.iter().enumerate() {
            writeln!(f, "b{i}: {} bytes", b.bytes)?;
        }
        for (kind, ports) in
            [("input", &self.inputs), ("images", &self.images), ("output", &self.outputs)]
        {
            for p in ports {
                writeln!(f, "{kind} {}: {} {}", p.name, p.place, p.ty)?;
            }
        }
        let s = summary(self);
        write!(
            f,
            "{} ops, {} dispatches, {} pipelines, {:.3} MFLOP, {:.3} MB moved, peak memory {:.3} \
             MB ({:.3} MB without aliasing)",
            s.steps,
            s.dispatches,
            s.pipelines,
            s.flops as f64 / 1e6,
            s.bytes as f64 / 1e6,
            s.peak_bytes as f64 / 1e6,
            s.peak_bytes_unaliased as f64 / 1e6
        )
    }
}
