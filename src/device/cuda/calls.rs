//! The device's calls of cuDNN, and what it would call.

use serde::Serialize;

use super::cudnn::OnDevice;
use super::driver::{Address, Captured};
use super::product::{self, Call, Product, Products};
use super::{Cuda, libraries};
use crate::device::DeviceError;
use crate::ops::{Io, Op};
use crate::plan::PlannedOp;

/// What cuDNN proposes for a product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proposal {
    /// cuDNN's number of the engine.
    pub engine: i64,
    /// Bytes that it takes beside its operands; `None` for an engine that is compiled on the
    /// device.
    pub workspace: Option<usize>,
}

/// What cuDNN proposes for an op on a GPU that is described by cuDNN's own text
/// (`CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION`), the fastest by its estimate first. No GPU is
/// needed, but a `libcuda.so.1` is.
///
/// # Errors
/// If there is no driver or no cuDNN, or it refuses the product.
///
/// # Panics
/// If the op is no product.
pub fn proposals(op: &Op, io: &Io, gpu: &str) -> Result<Vec<Proposal>, DeviceError> {
    let driver = libraries::driver()?;
    let [major, _] = libraries::version(driver.version);
    let failed = |message| DeviceError::Driver { device: "cuda".into(), message };
    let library = libraries::products(major).map_err(failed)?;
    let ask = || -> Result<Vec<Proposal>, String> {
        let on = product::Target::Described(product::described(&library, gpu)?);
        let product = Product::of(op, io);
        let graph = product::graph(&library, &product, &on)?;
        let engines = product::engines(&product, &graph, &on)?;
        let proposal = |engine: &product::Engine| {
            let ready = if engine.compiled { None } else { Some(engine.prepare(&on)?) };
            Ok(Proposal { engine: engine.index, workspace: ready.map(|r| r.workspace) })
        };
        engines.iter().map(proposal).collect()
    };
    ask().map_err(|e| failed(format!("cuDNN: {e}")))
}

impl Cuda {
    /// What cuDNN says of an op, in the words of devices.
    pub(super) fn refused(&self, of: &str, message: &str) -> DeviceError {
        let message = format!("cuDNN: {message}, of `{of}`");
        DeviceError::Driver { device: self.capabilities.name.clone(), message }
    }

    /// The call of the library that takes the place of an op's first dispatch.
    pub(super) fn call(
        &mut self,
        op: &PlannedOp,
        rank: u32,
        arguments: &[Address],
    ) -> Result<Call, DeviceError> {
        let refused = |device: &Self, e: String| device.refused(&op.label, &e);
        if self.products.is_none() {
            // `Target::library` says whether it is there, and no other plan has such a variant.
            let Some(library) = &self.library else { unreachable!("a plan for another device") };
            let made = OnDevice::new(library, self.context.stream());
            self.products = Some(Products::new(made.map_err(|e| refused(self, e))?));
        }
        let Some(products) = &mut self.products else { unreachable!("just made") };
        let product = Product::of(&op.op, &Io::from(&op.io));
        let prepared = products.prepare(&product, rank).map_err(|e| refused(self, e))?;
        let workspace = self.memory(&op.label, prepared.workspace.max(16))?;
        let Some(products) = &self.products else { unreachable!("made above") };
        products.bind(&prepared, arguments, workspace).map_err(|e| refused(self, e))
    }

    /// What a call of the library queues, as a part of graphs.
    pub(super) fn captured(&self, label: &str, call: &Call) -> Result<Captured, DeviceError> {
        let mut said = Ok(());
        let captured = self.context.capture(|| said = call.queue());
        said.map_err(|e| self.refused(label, &e))?;
        captured.map_err(|e| self.failed(label, e))
    }
}
