//! The device's calls of libraries, and what it would call.

use std::rc::Rc;

use serde::Serialize;

use super::driver::{Address, Captured, Memory};
use super::product::{self, Product, Products};
use super::{Cuda, cublas, cudnn, libraries};
use crate::device::DeviceError;
use crate::ops::{Io, Library, Op};
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
/// needed, but a `libcuda.so.1` is. Products of matrices are also described to cuBLASLt, which
/// proposes for a GPU that is there only.
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
        let on = product::Target::Described(product::described(&library.cudnn, gpu)?);
        let product = Product::of(op, io);
        if product.is_matrices() {
            cublas::describe(&library.blas, &product)?;
        }
        let graph = product::graph(&library.cudnn, &product, &on)?;
        let engines = product::engines(&product, &graph, &on)?;
        let proposal = |engine: &product::Engine| {
            let ready = if engine.compiled { None } else { Some(engine.prepare(&on)?) };
            Ok(Proposal { engine: engine.index, workspace: ready.map(|r| r.workspace) })
        };
        engines.iter().map(proposal).collect()
    };
    ask().map_err(failed)
}

/// A call of a library with its memory.
pub(super) enum Call {
    Convolution(product::Call),
    Matrices(Box<cublas::Call>),
}

impl Call {
    /// Queues it.
    pub(super) fn queue(&self) -> Result<(), String> {
        match self {
            Self::Convolution(call) => call.queue(),
            Self::Matrices(call) => call.queue(),
        }
    }

    /// What it takes beside its operands.
    pub(super) fn workspace(&self) -> &Memory {
        match self {
            Self::Convolution(call) => &call.workspace,
            Self::Matrices(call) => &call.workspace,
        }
    }
}

/// The libraries on a device, as far as they were asked for.
#[derive(Default)]
pub(super) struct Asked {
    convolutions: Option<Products>,
    matrices: Option<Rc<cublas::OnDevice>>,
}

/// What a library is called.
pub(super) fn name(of: Library) -> &'static str {
    match of {
        Library::Convolutions => "cuDNN",
        Library::Matrices => "cuBLASLt",
    }
}

impl Cuda {
    /// What a library says of an op, whose label names it, in the words of devices.
    pub(super) fn refused(&self, label: &str, message: &str) -> DeviceError {
        let message = format!("{message}, of `{label}`");
        DeviceError::Driver { device: self.capabilities.name.clone(), message }
    }

    /// The call of a library that takes the place of an op's first dispatch.
    pub(super) fn call(
        &mut self,
        op: &PlannedOp,
        label: &str,
        (of, rank): (Library, u32),
        arguments: &[Address],
    ) -> Result<Call, DeviceError> {
        let product = Product::of(&op.op, &Io::from(&op.io));
        // `Target::library` says whether it is there, and no other plan has such a variant.
        let Some(library) = self.library.clone() else { unreachable!("a plan for another device") };
        let stream = self.context.stream();
        match of {
            Library::Convolutions => {
                let asked = &mut self.asked.convolutions;
                let made = match asked.take() {
                    Some(made) => Ok(made),
                    None => cudnn::OnDevice::new(&library.cudnn, stream).map(Products::new),
                };
                let prepared = made.and_then(|made| asked.insert(made).prepare(&product, rank));
                let prepared = prepared.map_err(|e| self.refused(label, &e))?;
                let workspace = self.memory(label, prepared.workspace.max(16))?;
                let Some(asked) = &self.asked.convolutions else { unreachable!("made above") };
                let bound = asked.bind(&prepared, arguments, workspace);
                bound.map(Call::Convolution).map_err(|e| self.refused(label, &e))
            }
            Library::Matrices => {
                let on = match &self.asked.matrices {
                    Some(on) => Ok(Rc::clone(on)),
                    None => cublas::OnDevice::new(&library.blas, stream).map(Rc::new),
                };
                let on = on.map_err(|e| self.refused(label, &e))?;
                self.asked.matrices = Some(Rc::clone(&on));
                let prepared = on.prepare(&product, rank, arguments);
                let prepared = prepared.map_err(|e| self.refused(label, &e))?;
                let workspace = self.memory(label, prepared.workspace().max(16))?;
                Ok(Call::Matrices(Box::new(on.bind(prepared, workspace))))
            }
        }
    }

    /// What a call of a library queues, as a part of graphs.
    pub(super) fn captured(&self, label: &str, call: &Call) -> Result<Captured, DeviceError> {
        let mut said = Ok(());
        let captured = self.context.capture(|| said = call.queue());
        said.map_err(|e| self.refused(label, &e))?;
        captured.map_err(|e| self.failed(label, e))
    }
}
