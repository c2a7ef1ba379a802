//! Copies device memory to the host: asked for with the work, fetched when it is done.

use std::sync::mpsc::{Receiver, channel};

/// A copy under way.
pub(super) struct Reading {
    staging: wgpu::Buffer,
    mapped: Option<Receiver<Result<(), wgpu::BufferAsyncError>>>,
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
        Self { staging, mapped: None }
    }

    /// Asks for the memory once the commands are submitted.
    pub(super) fn map(mut self) -> Self {
        let (sender, receiver) = channel();
        self.staging.slice(..).map_async(wgpu::MapMode::Read, move |result| {
            // Nobody listens any more if the session has been reset since.
            sender.send(result).ok();
        });
        self.mapped = Some(receiver);
        self
    }

    /// Bytes of host-visible memory.
    pub(super) fn bytes(&self) -> usize {
        self.staging.size() as usize
    }

    /// The bytes, after the device has been polled up to the copy.
    pub(super) fn finish(self) -> Result<Vec<u8>, String> {
        let mapped = self.mapped.ok_or("the memory was not asked for")?;
        let result =
            mapped.try_recv().map_err(|_| "the copy is done but its memory is not mapped")?;
        result.map_err(|e| e.to_string())?;
        let view = self.staging.slice(..).get_mapped_range().map_err(|e| e.to_string())?;
        Ok(view.to_vec())
    }
}
