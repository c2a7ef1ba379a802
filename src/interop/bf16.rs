//! A network's weights in half the bytes: matrices and kernels as bf16, vectors as they are.
//!
//! Rounding to bf16 is what a run with `--precision bf16` does to its weights before every product,
//! so what such a network computes stays nearly the same, but it is not the run: the optimiser's
//! moments are gone. `--init-from` and PyTorch read the file.

use std::io::Write;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView, serialize};

use crate::disk;
use crate::method::{self, Training};
use crate::run::RunError;
use crate::run::checkpoint::TensorData;
use crate::run::state;
use crate::run::trained::{Trained, normalisation};

/// Writes the file and returns how many tensors it has.
///
/// # Errors
/// If the checkpoint lacks a tensor of its network, or the file cannot be written; nothing is left
/// at `out` then.
pub fn write(trained: &Trained, out: &Path) -> Result<usize, RunError> {
    let (mean, std) = normalisation(&trained.config);
    let model = trained.config.model(mean, std);
    let params = method::training(&model, Training::default()).params;
    let tensors =
        state::select(&trained.checkpoint, &params).map_err(|e| e.of_file(&trained.path))?;
    let encoded: Vec<_> = tensors
        .iter()
        .map(|(name, tensor)| {
            let (dtype, bytes) = encode(&tensor.data, tensor.shape.len());
            (name, dtype, &tensor.shape, bytes)
        })
        .collect();
    let views = encoded.iter().map(|(name, dtype, shape, bytes)| {
        let view = TensorView::new(*dtype, shape.to_vec(), bytes);
        (name, view.expect("as many bytes as the shape asks for"))
    });
    let file = serialize(views, None).expect("a header of names and shapes");
    disk::replace(out, |to| to.write_all(&file))?;
    Ok(tensors.len())
}

/// The type in the file and the little-endian elements.
fn encode(data: &TensorData, rank: usize) -> (Dtype, Vec<u8>) {
    match data {
        TensorData::F32(values) if rank > 1 => {
            (Dtype::BF16, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect())
        }
        TensorData::F32(values) => {
            (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        TensorData::I64(values) => {
            (Dtype::I64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
    }
}
