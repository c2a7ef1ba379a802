//! The timestamps of a timed run.

/// Two timestamps and where they are resolved to.
pub(super) struct Queries {
    pub(super) set: wgpu::QuerySet,
    pub(super) resolved: wgpu::Buffer,
    /// Nanoseconds of a tick.
    pub(super) period: f32,
}

impl Queries {
    /// Bytes of the resolved timestamps.
    pub(super) const BYTES: usize = 256;

    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue) -> Self {
        let descriptor = wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        };
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("timestamps"),
            size: Self::BYTES as u64,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        Self {
            set: device.create_query_set(&descriptor),
            resolved,
            period: queue.get_timestamp_period(),
        }
    }
}
