//! The driver's pipeline cache on disk: a second start compiles nothing. Keyed by adapter and
//! driver; a file of another driver is ignored by the driver itself, which checks its header.

use std::path::PathBuf;

use crate::disk;

/// Compiled pipelines of one adapter.
pub(super) struct PipelineCache {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    written: usize,
}

impl PipelineCache {
    /// Opens the cache of an adapter; `None` where the backend has none or there is no place for
    /// it.
    pub(super) fn open(device: &wgpu::Device, adapter: &wgpu::Adapter) -> Option<Self> {
        let key = wgpu::util::pipeline_cache_key(&adapter.get_info())?;
        let folders = directories::ProjectDirs::from("", "", "aavae")?;
        let path = folders.cache_dir().join("pipelines").join(key);
        let data = std::fs::read(&path).ok();
        let descriptor = wgpu::PipelineCacheDescriptor {
            label: Some("pipelines"),
            data: data.as_deref(),
            fallback: true,
        };
        #[allow(unsafe_code, reason = "the driver trusts what it wrote itself")]
        // SAFETY: the file lies in the user's own cache folder under a key of adapter and driver,
        // is replaced whole, and wgpu checks its header; only `store` writes it.
        let cache = unsafe { device.create_pipeline_cache(&descriptor) };
        Some(Self { cache, path, written: data.map_or(0, |d| d.len()) })
    }

    pub(super) fn handle(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Writes what has been compiled since. A cache that cannot be written costs time at the next
    /// start, nothing else.
    pub(super) fn store(&mut self) {
        let Some(data) = self.cache.get_data().filter(|d| d.len() != self.written) else { return };
        let folder = self.path.parent().map_or(Ok(()), disk::create_folder);
        if folder.and_then(|()| disk::write(&self.path, &data)).is_ok() {
            self.written = data.len();
        }
    }
}
