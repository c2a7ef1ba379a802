//! Weights that come from and go to other programs: [`torchvision`]'s ResNets, a [`folder`] to
//! publish, half as many bytes to carry ([`bf16`]), the authors' checkpoints ([`import`]). Files
//! are safetensors with PyTorch's names and shapes.

pub mod bf16;
mod card;
pub mod folder;
pub mod import;
pub mod torchvision;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::disk;
use crate::run::RunError;
use crate::text;

/// Makes a folder whose contents `fill` writes: all of it or nothing, and nothing of others is
/// removed. The folder may be there if it is empty.
fn new_folder(
    out: &Path,
    fill: impl FnOnce(&Path) -> Result<(), RunError>,
) -> Result<(), RunError> {
    let refused = |what: &str| {
        Err(RunError::config(
            format!("{} {what}", text::name(&out)),
            Some("name another folder with --out"),
        ))
    };
    let empty = match fs::symlink_metadata(out) {
        // Nothing there, or nothing that can be: making it says why.
        Err(_) => false,
        Ok(found) if !found.is_dir() => return refused("is no folder"),
        _ if fs::read_dir(out).map_err(RunError::io("read", out))?.next().is_some() => {
            return refused("is not empty");
        }
        _ => true,
    };
    // A name that can be replaced by another: not `.`, `..` or a root.
    let Some(name) =
        out.components().next_back().filter(|part| matches!(part, std::path::Component::Normal(_)))
    else {
        return refused("has no name of its own");
    };
    let parent = out
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."));
    disk::refuse_tilde(out)?;
    disk::create_folder(parent)?;
    let mut staging = name.as_os_str().to_owned();
    staging.push(".tmp");
    let staging = parent.join(staging);
    match fs::create_dir(&staging) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            let message = format!(
                "{} is there already, where {} is to be prepared",
                text::name(&staging),
                text::name(&out)
            );
            return Err(RunError::config(
                message,
                Some(
                    "if a killed command left it, remove it; otherwise name another folder with \
                     --out",
                ),
            ));
        }
        made => made.map_err(RunError::io("create", &staging))?,
    }
    let finish = || {
        if empty {
            fs::remove_dir(out).map_err(RunError::io("replace", out))?;
        }
        fs::rename(&staging, out).map_err(RunError::io("create", out))
    };
    fill(&staging).and_then(|()| finish()).inspect_err(|_| {
        // Its space may be what is missing; the error to report is the first one.
        drop(fs::remove_dir_all(&staging));
    })
}
