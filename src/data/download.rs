//! Fetches official archives.
//!
//! An archive goes to `<DIR>/<name>.part`, which a later run continues; only a file whose checksum
//! is right is renamed and unpacked. Unpacking takes the known files out of the archive's folder
//! and nothing else, first into a folder aside, then renamed: at every instant each file of the
//! data set is whole or absent.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::GzDecoder;
use indicatif::{ProgressBar, ProgressStyle};
use ureq::http::{Response, header};
use ureq::{Agent, Body};

use super::DataError;
use super::archive::{Archive, Checksum};
use crate::text::understands_escapes;

/// Longest file beside the data, in bytes.
const TEXT_BYTES: u64 = 1 << 20;
/// Longest pause of a server before the download counts as interrupted.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Downloads an archive and unpacks it to the folder in `dir` that has its name, which is returned;
/// does nothing if all files are there, or in `dir`, already. A progress bar goes to stderr if that
/// is a terminal and `progress` is set.
///
/// # Errors
/// [`DataError::HttpStatus`], [`DataError::Connect`], [`DataError::Interrupted`] (call again to
/// continue), [`DataError::Checksum`] (the download is kept as `*.bad`), [`DataError::Archive`],
/// [`DataError::Busy`], or [`DataError::Io`].
pub fn download(archive: &Archive<'_>, dir: &Path, progress: bool) -> Result<PathBuf, DataError> {
    let folder = dir.join(archive.folder);
    for complete in [dir, &folder] {
        if is_complete(archive, complete) {
            return Ok(complete.to_owned());
        }
    }
    fs::create_dir_all(dir).map_err(DataError::io("create", dir))?;
    let file = dir.join(archive.file_name());
    // An earlier run may have been stopped between the download and the end of unpacking.
    if !(file.is_file() && archive.checksum.matches(&archive.checksum.of(&file)?.1)) {
        fetch(archive.url, archive.checksum, &file, progress)?;
    }
    unpack(archive, &file, &folder)?;
    fs::remove_file(&file).map_err(DataError::io("remove", &file))?;
    Ok(folder)
}

/// Whether `dir` holds all data files at their official lengths.
fn is_complete(archive: &Archive<'_>, dir: &Path) -> bool {
    archive
        .files
        .iter()
        .all(|(name, length)| fs::metadata(dir.join(name)).is_ok_and(|file| file.len() == *length))
}

/// Downloads a file, continuing `<path>.part` where there is one, and renames it to `path` once its
/// checksum is right.
///
/// # Errors
/// As [`download`].
pub fn fetch(
    url: &str,
    checksum: Checksum<'_>,
    path: &Path,
    progress: bool,
) -> Result<(), DataError> {
    let part = suffixed(path, "part");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&part)
        .map_err(DataError::io("create", &part))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(DataError::Busy { path: part }),
        // Some network file systems have no locks: go on without.
        Err(TryLockError::Error(_)) => {}
    }
    transfer(url, &mut file, &part, progress)?;
    file.sync_all().map_err(DataError::io("write", &part))?;
    drop(file);

    let (bytes, found) = checksum.of(&part)?;
    if !checksum.matches(&found) {
        // Aside, so that the next try starts afresh and the curious can look at what came.
        let bad = suffixed(path, "bad");
        fs::rename(&part, &bad).map_err(DataError::io("rename", &part))?;
        let (algorithm, expected) = (checksum.algorithm(), checksum.digits().to_owned());
        return Err(DataError::Checksum { path: bad, bytes, algorithm, expected, found });
    }
    fs::rename(&part, path).map_err(DataError::io("rename", &part))
}

/// Appends to `file` what the server has beyond its end.
fn transfer(url: &str, file: &mut File, part: &Path, progress: bool) -> Result<(), DataError> {
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
        .timeout_per_read(Some(TIMEOUT))
        .user_agent(concat!("aavae/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let get = |from: u64| -> Result<Response<Body>, DataError> {
        let mut request = agent.get(url);
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        request
            .call()
            .map_err(|source| DataError::Connect { url: url.to_owned(), source: Box::new(source) })
    };

    let mut received = file.metadata().map_err(DataError::io("read", part))?.len();
    let mut response = get(received)?;
    let resumed = response.status() == 206
        && content_range(&response).is_some_and(|(from, _)| from == received);
    if received > 0 && !resumed && matches!(response.status().as_u16(), 200 | 206 | 416) {
        if response.status() == 416
            && content_range(&response).is_some_and(|(_, total)| total == Some(received))
        {
            return Ok(()); // nothing is missing
        }
        // The server ignores ranges (200), or sent another range (206), or its file is shorter than
        // ours (416). Any other answer says nothing about our part, which stays.
        file.set_len(0).map_err(DataError::io("truncate", part))?;
        received = 0;
        if response.status() != 200 {
            response = get(0)?;
        }
    }
    if !(response.status() == 200 || resumed) {
        return Err(DataError::HttpStatus {
            url: url.to_owned(),
            status: response.status().as_u16(),
        });
    }
    let expected = response.body().content_length().map(|rest| received + rest);

    let shown = progress && understands_escapes(&io::stderr());
    let bar = if shown { progress_bar(expected) } else { ProgressBar::hidden() };
    bar.set_position(received);
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0; 1 << 16];
    file.seek(SeekFrom::End(0)).map_err(DataError::io("write", part))?;
    let reason = loop {
        match body.read(&mut buffer) {
            Ok(0) => break "the connection was closed".to_owned(),
            Ok(n) => {
                file.write_all(&buffer[..n]).map_err(DataError::io("write", part))?;
                received += n as u64;
                bar.set_position(received);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                bar.abandon();
                return Err(DataError::Interrupted {
                    url: url.to_owned(),
                    received,
                    expected,
                    reason: e.to_string(),
                });
            }
        }
    };
    bar.finish_and_clear();
    if expected.is_some_and(|expected| expected != received) {
        return Err(DataError::Interrupted { url: url.to_owned(), received, expected, reason });
    }
    Ok(())
}

/// First byte and total length in `Content-Range: bytes 10-99/100` or `bytes */100`; `*` is 0 or
/// `None`.
fn content_range(response: &Response<Body>) -> Option<(u64, Option<u64>)> {
    let value = response.headers().get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let from = match range {
        "*" => 0,
        _ => range.split_once('-')?.0.parse().ok()?,
    };
    Some((from, total.parse().ok()))
}

fn progress_bar(length: Option<u64>) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length),
            "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
        ),
        None => (ProgressBar::no_length(), "{spinner} {binary_bytes} {binary_bytes_per_sec}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the templates above are valid"))
}

/// Unpacks the known files of an archive, which lies in `file`, into `folder`; whatever else it
/// holds is skipped.
///
/// # Errors
/// [`DataError::Archive`] if the archive is damaged, a data file is missing from it or a file
/// longer than it can be.
pub fn unpack(archive: &Archive<'_>, file: &Path, folder: &Path) -> Result<(), DataError> {
    let aside = suffixed(folder, "part");
    fs::create_dir_all(&aside).map_err(DataError::io("create", &aside))?;
    let result = unpack_aside(archive, file, &aside).and_then(|names| {
        fs::create_dir_all(folder).map_err(DataError::io("create", folder))?;
        for name in names {
            let from = aside.join(name);
            fs::rename(&from, folder.join(name)).map_err(DataError::io("rename", &from))?;
        }
        Ok(())
    });
    // Half a data set is of no use to anyone; the archive is still there. The first error is the
    // one to report.
    let removed = fs::remove_dir_all(&aside).map_err(DataError::io("remove", &aside));
    result.and(removed)
}

fn unpack_aside(
    archive: &Archive<'_>,
    path: &Path,
    aside: &Path,
) -> Result<Vec<&'static str>, DataError> {
    let damaged = |reason: String| DataError::Archive { path: path.to_owned(), reason };
    let file = File::open(path).map_err(DataError::io("read", path))?;
    let mut tar = tar::Archive::new(GzDecoder::new(BufReader::new(file)));
    let mut names: Vec<&'static str> = Vec::new();
    for entry in tar.entries().map_err(|e| damaged(e.to_string()))? {
        let entry = entry.map_err(|e| damaged(e.to_string()))?;
        let inside = entry.path().map_err(|e| damaged(e.to_string()))?.into_owned();
        // The name written to is one of ours, never one from the archive.
        let mut known = archive
            .files
            .iter()
            .copied()
            .chain(archive.texts.iter().map(|&name| (name, TEXT_BYTES)));
        let Some((name, limit)) =
            known.find(|(name, _)| Path::new(archive.folder).join(name) == inside)
        else {
            continue;
        };
        if !entry.header().entry_type().is_file() || entry.size() > limit {
            let size = entry.size();
            return Err(damaged(format!(
                "`{name}` has {size} bytes, expected a file of at most {limit}"
            )));
        }
        let to = aside.join(name);
        let mut out = File::create(&to).map_err(DataError::io("create", &to))?;
        copy(entry, &mut out).map_err(|e| match e {
            Copy::Read(e) => damaged(format!("`{name}`: {e}")),
            Copy::Write(e) => DataError::io("write", &to)(e),
        })?;
        out.sync_all().map_err(DataError::io("write", &to))?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match archive.files.iter().find(|(name, _)| !names.contains(name)) {
        Some((name, _)) => Err(damaged(format!("`{}/{name}` is not in it", archive.folder))),
        None => Ok(names),
    }
}

enum Copy {
    Read(io::Error),
    Write(io::Error),
}

/// `io::copy`, but a damaged archive and a full disk stay apart.
fn copy(mut from: impl Read, to: &mut File) -> Result<(), Copy> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer).map_err(Copy::Read)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n]).map_err(Copy::Write)?,
        }
    }
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;
