//! What a tuner has measured, on disk: by adapter and driver, and by the text of the kernels it
//! measured.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::disk;
use crate::ops::Variant;
use crate::rng::fnv1a;
use crate::shader::FILES;

/// A measured choice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Remembered {
    /// The fastest right variant.
    pub variant: Variant,
    /// Seconds it took.
    pub seconds: f64,
}

/// Choices by device and product.
type Table = BTreeMap<String, BTreeMap<String, Remembered>>;

/// The file's contents; anything else is ignored.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    /// Hash of every kernel's text: another text is another measurement.
    kernels: u32,
    devices: Table,
}

/// The choices that a file remembers.
#[derive(Debug)]
pub struct Memory {
    path: Option<PathBuf>,
    devices: Table,
    changed: bool,
}

/// A hash of the texts of all products' kernels.
fn kernels() -> u32 {
    let of_products = |name: &str| name.contains("conv") || name.contains("epilogue");
    let texts: String =
        FILES.iter().filter(|(name, _)| of_products(name)).map(|(_, text)| *text).collect();
    fnv1a(&texts)
}

impl Memory {
    /// What a file remembers. One that cannot be read, is of other kernels or was damaged remembers
    /// nothing.
    pub fn open(path: &Path) -> Self {
        let contents: Option<Contents> =
            std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let devices =
            contents.filter(|c| c.kernels == kernels()).map(|c| c.devices).unwrap_or_default();
        Self { path: Some(path.into()), devices, changed: false }
    }

    /// The user's file, in the system's folder for caches; nothing is kept where there is none.
    pub fn of_user() -> Self {
        let path = directories::ProjectDirs::from("", "", "aavae")
            .map(|d| d.cache_dir().join("variants.json"));
        path.map_or_else(Self::nowhere, |p| Self::open(&p))
    }

    /// A memory that lasts as long as the program.
    pub fn nowhere() -> Self {
        Self { path: None, devices: Table::new(), changed: false }
    }

    /// The choice for a product on a device.
    pub fn get(&self, device: &str, product: &str) -> Option<Remembered> {
        self.devices.get(device)?.get(product).copied()
    }

    pub(super) fn set(&mut self, device: &str, product: &str, choice: Remembered) {
        self.devices.entry(device.into()).or_default().insert(product.into(), choice);
        self.changed = true;
    }

    pub(super) fn forget(&mut self, device: &str, product: &str) {
        if let Some(products) = self.devices.get_mut(device) {
            self.changed |= products.remove(product).is_some();
        }
    }

    /// Writes what has changed. A file that cannot be written costs seconds at the next start,
    /// nothing else.
    pub(super) fn store(&mut self) {
        let Some(path) = self.path.as_ref().filter(|_| self.changed) else { return };
        let contents = Contents { kernels: kernels(), devices: self.devices.clone() };
        let Ok(text) = serde_json::to_vec_pretty(&contents) else { return };
        let folder = path.parent().map_or(Ok(()), disk::create_folder);
        if folder.and_then(|()| disk::write(path, &text)).is_ok() {
            self.changed = false;
        }
    }
}
