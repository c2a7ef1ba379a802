//! How the elements of tensors go to a device and come back: a host keeps each 16-bit float as
//! a number of its own, others keep two in a word.

use std::rc::Rc;

use super::{PlanId, Session};
use crate::device::{BufferId, Data, DeviceError, Values};
use crate::plan::{Place, Plan};
use crate::tensor::{DType, TensorType};

impl Session {
    /// Fills the transient buffers with NaN, so that an element a kernel does not write shows
    /// (tests).
    ///
    /// # Errors
    /// If the driver fails.
    pub fn poison(&mut self, id: PlanId) -> Result<(), DeviceError> {
        let plan = Rc::clone(&self.plans[&id.0].plan);
        let kept: Vec<_> = plan.inputs.iter().map(|p| p.place).collect();
        let own = |b: &usize| !kept.contains(&Place::Buffer(*b)) && *b != plan.ring.buffer;
        self.fill_with_nan(id, (0..plan.buffers.len()).filter(own))
    }

    /// The same of what one op writes.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn poison_op(&mut self, id: PlanId, op: usize) -> Result<(), DeviceError> {
        let plan = Rc::clone(&self.plans[&id.0].plan);
        let op = &plan.ops[op];
        let outputs = op.outputs.iter().filter_map(|(_, place)| match place {
            Place::Buffer(b) => Some(*b),
            Place::State(_) | Place::Images(_) => None,
        });
        self.fill_with_nan(id, outputs.chain(op.scratch.iter().copied()))
    }

    fn fill_with_nan(
        &mut self,
        id: PlanId,
        buffers: impl Iterator<Item = usize>,
    ) -> Result<(), DeviceError> {
        let types = types(&self.plans[&id.0].plan);
        for b in buffers {
            let loaded = &self.plans[&id.0];
            let ty = if self.stores_elements() { types[b] } else { DType::F32 };
            let (buffer, elements) =
                (loaded.bound.buffers[b], loaded.plan.buffers[b].bytes / ty.bytes());
            // All bits set is a NaN, also as two 16-bit floats, and no pixel.
            if types[b] == DType::U32 {
                self.device.write(buffer, 0, Data::U32(&vec![u32::MAX; elements]))?;
            } else {
                let nan = vec![f32::from_bits(u32::MAX); elements];
                self.device.write(buffer, 0, Data::F32(&nan))?;
            }
        }
        Ok(())
    }

    /// Sets an input of a plan by position.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn upload(&mut self, id: PlanId, input: usize, data: Data<'_>) -> Result<(), DeviceError> {
        let loaded = &self.plans[&id.0];
        let port = &loaded.plan.inputs[input];
        let integers = matches!(data, Data::U32(_));
        assert_eq!(integers, port.ty.dtype == DType::U32, "input `{}` is {}", port.name, port.ty);
        assert_eq!(data.len(), port.ty.shape.len(), "input `{}`", port.name);
        let ((buffer, offset), ty) = (loaded.bound.place(port.place), port.ty.dtype);
        let Some(half) = ty.half() else { return self.device.write(buffer, offset, data) };
        match (data, self.stores_elements()) {
            (Data::F32(x), false) => {
                let bits: Vec<u16> = x.iter().map(|x| half.bits(*x)).collect();
                self.device.write(buffer, offset, Data::U32(&packed(&bits)))
            }
            (Data::F32(x), true) => {
                let rounded: Vec<f32> = x.iter().map(|x| half.round(*x)).collect();
                self.device.write(buffer, offset, Data::F32(&rounded))
            }
            _ => unreachable!("16-bit floats come as f32"),
        }
    }

    /// Whether the device keeps each 16-bit float as a number of its own, in place of two in a
    /// word.
    fn stores_elements(&self) -> bool {
        !self.device.capabilities().dispatches
    }

    /// Reads a tensor.
    pub(super) fn fetch_tensor(
        &mut self,
        (buffer, offset): (BufferId, usize),
        ty: TensorType,
    ) -> Result<Values, DeviceError> {
        let len = ty.shape.len();
        if ty.dtype == DType::U32 {
            // Words come back as the bits of floats, whatever the device.
            let words = self.fetch(buffer, offset, len)?.into_f32();
            return Ok(Values::F32(words.iter().map(|w| w.to_bits() as f32).collect()));
        }
        let half = match ty.dtype.half() {
            Some(half) if !self.stores_elements() => half,
            _ => return self.fetch(buffer, offset, len),
        };
        assert_eq!(offset, 0, "16-bit floats have buffers of their own");
        let words = self.fetch(buffer, 0, len.div_ceil(2))?.into_f32();
        let halves = words.iter().map(|w| w.to_bits()).flat_map(|w| [w as u16, (w >> 16) as u16]);
        Ok(Values::F32(halves.take(len).map(|bits| half.value(bits)).collect()))
    }
}

/// What each buffer of a plan is made for: words that the host writes, or floats; 16-bit floats
/// where a tensor of such is ever there, so that a device that counts elements has room for all.
pub(super) fn types(plan: &Plan) -> Vec<DType> {
    let mut types = vec![DType::F32; plan.buffers.len()];
    let inputs = plan.inputs.iter().map(|p| (p.place, p.ty.dtype));
    let outputs = plan.ops.iter().flat_map(|s| s.outputs.iter().zip(&s.io.outputs));
    for (place, dtype) in inputs.chain(outputs.map(|(y, ty)| (y.1, ty.dtype))) {
        if let (Place::Buffer(b), DType::U32 | DType::F16 | DType::BF16) = (place, dtype) {
            types[b] = dtype;
        }
    }
    types
}

/// Pairs of 16-bit floats as words.
fn packed(bits: &[u16]) -> Vec<u32> {
    let word = |pair: &[u16]| pair.iter().rev().fold(0, |word, half| word << 16 | u32::from(*half));
    bits.chunks(2).map(word).collect()
}
