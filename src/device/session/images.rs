//! Images that stay on the device, for every plan that reads them.

use super::Session;
use crate::device::{Data, DeviceError};
use crate::tensor::{DType, TensorType};

impl Session {
    /// Whether images may stay: on every device but hosts, which read them where they are.
    pub fn keeps_images(&self) -> bool {
        self.keeps_images
    }

    /// Sets whether images may stay (tests).
    pub fn set_keeps_images(&mut self, keeps: bool) {
        self.keeps_images = keeps;
    }

    /// Makes room for images, part by part, in place of those that stayed so far; plans that read
    /// those must not run any more.
    ///
    /// # Errors
    /// If there is no room: then none stay.
    pub fn keep_images(&mut self, parts: &[TensorType]) -> Result<(), DeviceError> {
        self.forget_images()?;
        for (i, ty) in parts.iter().enumerate() {
            // Kernels take whole vectors of four.
            let elements = ty.shape.len().next_multiple_of(4);
            match self.device.allocate(&format!("images{i}"), DType::U32, elements) {
                Ok(buffer) => self.images.push((buffer, *ty)),
                Err(error) => {
                    self.forget_images()?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Gives the room of images back.
    ///
    /// # Errors
    /// If the driver fails at what is queued.
    pub fn forget_images(&mut self) -> Result<(), DeviceError> {
        self.settle()?;
        let buffers: Vec<_> = self.images.drain(..).map(|part| part.0).collect();
        self.device.free(&[], &buffers);
        Ok(())
    }

    /// Writes words of a part, from one on, and waits for it: a driver keeps what it is given until
    /// the device has taken it, and a whole set would be twice in memory.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn write_images(
        &mut self,
        part: usize,
        first: usize,
        words: &[u32],
    ) -> Result<(), DeviceError> {
        let (buffer, ty) = self.images[part];
        assert!(first + words.len() <= ty.shape.len(), "images{part} is {ty}");
        self.device.write(buffer, first, Data::U32(words))?;
        self.fetch(buffer, first, 1).map(drop)
    }
}
