//! Copies device memory to the host: asked for with the work, fetched when it is done.

use std::sync::{Arc, Mutex, PoisonError};

use crate::device::wait;

/// What became of the wish to map memory, once it is known.
type Mapped = Arc<Mutex<Option<Result<(), wgpu::BufferAsyncError>>>>;

/// A copy under way.
pub(super) struct Reading {
    staging: wgpu::Buffer,
    mapped: Mapped,
}

impl Reading {
    /// Adds the copy to the commands.
    pub(super) fn begin(
        device: &wgpu::Device,
        encoder: &mut wgpu::CommandEncoder,
        buffer: &wgpu::Buffer,
        offset: usize,
        bytes: usize,
    ) -> Self {
        let staging = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("readback"),
            size: bytes as u64,
            usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        encoder.copy_buffer_to_buffer(buffer, offset as u64, &staging, 0, bytes as u64);
        Self { staging, mapped: Mapped::default() }
    }

    /// Asks for the memory once the commands are submitted.
    pub(super) fn map(self) -> Self {
        let told = Arc::clone(&self.mapped);
        self.staging.slice(..).map_async(wgpu::MapMode::Read, move |result| {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            wait::wake();
        });
        self
    }

    /// Whether the memory can be read, or never will be.
    #[cfg(target_family = "wasm")]
    pub(super) fn is_mapped(&self) -> bool {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Bytes of host-visible memory.
    pub(super) fn bytes(&self) -> usize {
        self.staging.size() as usize
    }

    /// The bytes, after the device has been polled up to the copy.
    pub(super) fn finish(self) -> Result<Vec<u8>, String> {
        let result = self.mapped.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = result.ok_or("the copy is done but its memory is not mapped")?;
        result.map_err(|e| e.to_string())?;
        let view = self.staging.slice(..).get_mapped_range().map_err(|e| e.to_string())?;
        Ok(view.to_vec())
    }
}
