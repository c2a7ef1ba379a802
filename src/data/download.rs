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
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};
    use std::thread;

    use super::super::archive::ALL;
    use super::*;
    use sha2::{Digest, Sha256};

    /// How the test server treats a request.
    #[derive(Clone, Copy)]
    enum Manner {
        Ranges,
        IgnoresRanges,
        /// Promises everything, sends so many bytes of it.
        DiesAfter(usize),
        Status(u16),
    }

    /// Serves `body` once per manner; returns its URL and, for each request, the first byte asked
    /// for.
    fn serve(body: Vec<u8>, manners: &[Manner]) -> (String, Arc<Mutex<Vec<usize>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/images.tar.gz", listener.local_addr().expect("an address"));
        let log = Arc::new(Mutex::new(Vec::new()));
        let (seen, manners) = (log.clone(), manners.to_vec());
        thread::spawn(move || {
            for manner in manners {
                let (mut stream, _) = listener.accept().expect("a client");
                let from = requested(&mut stream);
                seen.lock().expect("no poison").push(from);
                answer(&mut stream, &body, from, manner).expect("the client reads");
            }
        });
        (url, log)
    }

    fn requested(stream: &mut TcpStream) -> usize {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("a whole request");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
        let range =
            head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
        range.map_or(0, |from| from.parse().expect("a number"))
    }

    fn answer(stream: &mut TcpStream, body: &[u8], from: usize, manner: Manner) -> io::Result<()> {
        let n = body.len();
        match manner {
            Manner::Ranges if from >= n && from > 0 => {
                write!(
                    stream,
                    "HTTP/1.1 416 No\r\nContent-Range: bytes */{n}\r\nContent-Length: \
                     0\r\nConnection: close\r\n\r\n"
                )
            }
            Manner::Ranges | Manner::DiesAfter(_) if from > 0 => {
                let rest = n - from;
                write!(
                    stream,
                    "HTTP/1.1 206 Part\r\nContent-Range: bytes {from}-{}/{n}\r\nContent-Length: \
                     {rest}\r\nConnection: close\r\n\r\n",
                    n - 1
                )?;
                let sent = if let Manner::DiesAfter(sent) = manner { sent } else { rest };
                stream.write_all(&body[from..from + sent])
            }
            Manner::Status(status) => {
                write!(
                    stream,
                    "HTTP/1.1 {status} No\r\nContent-Length: 5\r\nConnection: close\r\n\r\nsorry"
                )
            }
            _ => {
                write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n"
                )?;
                let sent = if let Manner::DiesAfter(sent) = manner { sent } else { n };
                stream.write_all(&body[..sent])
            }
        }
    }

    fn body() -> Vec<u8> {
        (0..200_000_u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
    }

    fn sha(bytes: &[u8]) -> String {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Fetches what should be `body`.
    fn get(url: &str, body: &[u8], path: &Path) -> Result<(), DataError> {
        fetch(url, Checksum::Sha256(&sha(body)), path, false)
    }

    struct Place {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    fn place() -> Place {
        let dir = tempfile::tempdir().expect("a temporary folder");
        Place { path: dir.path().join("file"), _dir: dir }
    }

    #[test]
    fn fetches_a_whole_file() {
        let (place, body) = (place(), body());
        let (url, log) = serve(body.clone(), &[Manner::Ranges]);
        fetch(&url, Checksum::Sha256(&sha(&body).to_uppercase()), &place.path, true).unwrap();
        assert_eq!(fs::read(&place.path).unwrap(), body);
        assert!(!suffixed(&place.path, "part").exists());
        assert_eq!(*log.lock().unwrap(), [0]);
    }

    #[test]
    fn continues_a_partial_file() {
        let (place, body) = (place(), body());
        fs::write(suffixed(&place.path, "part"), &body[..100_000]).unwrap();
        let (url, log) = serve(body.clone(), &[Manner::Ranges]);
        get(&url, &body, &place.path).unwrap();
        assert_eq!(fs::read(&place.path).unwrap(), body);
        assert_eq!(*log.lock().unwrap(), [100_000]);
    }

    #[test]
    fn a_dying_server_leaves_a_part_to_continue() {
        let (place, body) = (place(), body());
        let (url, log) = serve(
            body.clone(),
            &[Manner::DiesAfter(70_000), Manner::DiesAfter(50_000), Manner::Ranges],
        );
        for received in [70_000, 120_000] {
            let error = get(&url, &body, &place.path).unwrap_err();
            let text = error.to_string();
            assert!(
                text.contains(&format!("stopped after {received} bytes, expected 200000")),
                "{text}"
            );
            assert!(error.hint().unwrap().contains(&format!("continues after byte {received}")));
            assert!(!place.path.exists());
        }
        get(&url, &body, &place.path).unwrap();
        assert_eq!(fs::read(&place.path).unwrap(), body);
        assert_eq!(*log.lock().unwrap(), [0, 70_000, 120_000]);
    }

    #[test]
    fn a_server_without_ranges_starts_over() {
        let (place, body) = (place(), body());
        fs::write(suffixed(&place.path, "part"), vec![1; 150_000]).unwrap();
        let (url, log) = serve(body.clone(), &[Manner::IgnoresRanges]);
        get(&url, &body, &place.path).unwrap();
        assert_eq!(fs::read(&place.path).unwrap(), body);
        assert_eq!(*log.lock().unwrap(), [150_000]);
    }

    #[test]
    fn a_part_of_full_or_greater_length() {
        let (place, body) = (place(), body());
        fs::write(suffixed(&place.path, "part"), &body).unwrap();
        let (url, log) = serve(body.clone(), &[Manner::Ranges, Manner::Ranges, Manner::Ranges]);
        get(&url, &body, &place.path).unwrap();
        assert_eq!(fs::read(&place.path).unwrap(), body);
        fs::write(suffixed(&place.path, "part"), vec![1; body.len() + 1]).unwrap();
        get(&url, &body, &place.path).unwrap();
        assert_eq!(fs::read(&place.path).unwrap(), body);
        assert_eq!(*log.lock().unwrap(), [200_000, 200_001, 0]);
    }

    #[test]
    fn a_wrong_checksum_is_put_aside() {
        let body = body();
        for (archive, name) in ALL.iter().zip(["SHA-256", "MD5"]) {
            let place = place();
            let (url, _) = serve(body.clone(), &[Manner::Ranges]);
            let error = fetch(&url, archive.checksum, &place.path, false).unwrap_err();
            let text = error.to_string();
            for part in ["file.bad", "200000 bytes", name, archive.checksum.digits()] {
                assert!(text.contains(part), "`{part}` is not in `{text}`");
            }
            assert!(name != "SHA-256" || text.contains(&sha(&body)), "{text}");
            assert!(!place.path.exists() && !suffixed(&place.path, "part").exists());
            assert_eq!(fs::read(suffixed(&place.path, "bad")).unwrap(), body);
        }
    }

    #[test]
    fn refusals_keep_the_part() {
        let (place, body) = (place(), body());
        let part = suffixed(&place.path, "part");
        let (url, _) = serve(body.clone(), &[Manner::Status(404)]);
        let error = get(&url, &body, &place.path).unwrap_err();
        assert!(error.to_string().contains("HTTP status 404, expected 200"), "{error}");

        fs::write(&part, &body[..9]).unwrap();
        let (url, _) = serve(body.clone(), &[Manner::Status(503)]);
        let error = get(&url, &body, &place.path).unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
        assert_eq!(fs::read(&part).unwrap(), body[..9]);

        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = get(&format!("http://{closed}/x"), &body, &place.path).unwrap_err();
        assert!(matches!(error, DataError::Connect { .. }), "{error:?}");

        let other = File::open(&part).unwrap();
        other.lock().unwrap();
        let error = get(&url, &body, &place.path).unwrap_err();
        assert!(matches!(error, DataError::Busy { .. }), "{error:?}");
    }

    /// An archive of the given files, with names as they are.
    fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
            Vec::new(),
            flate2::Compression::fast(),
        ));
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            // Not `set_path`: it refuses what an attacker would write.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, *bytes).expect("appended");
        }
        tar.into_inner().expect("finished").finish().expect("compressed")
    }

    /// The data files' names in the archive.
    fn data_files(archive: &Archive<'_>) -> Vec<String> {
        archive.files.iter().map(|(name, _)| format!("{}/{name}", archive.folder)).collect()
    }

    #[test]
    fn unpacks_the_known_files_and_no_others() {
        for known in ALL {
            let place = place();
            let dir = place.path.parent().unwrap();
            let (names, folder) = (data_files(&known), known.folder);
            let strangers = [
                "../evil".to_owned(),
                "/tmp/aavae-evil".into(),
                format!("{folder}/../../evil"),
                format!("{folder}/other.bin"),
                known.files[0].0.into(),
            ];
            let mut files: Vec<(&str, &[u8])> =
                names.iter().map(|name| (name.as_str(), &b"data"[..])).collect();
            files.extend(strangers.iter().map(|name| (name.as_str(), &b"x"[..])));
            let bytes = archive(&files);
            let (url, _) = serve(bytes.clone(), &[Manner::Ranges]);
            let target = dir.join("a/b");
            let served = Archive { url: &url, checksum: Checksum::Sha256(&sha(&bytes)), ..known };
            let unpacked = download(&served, &target, false).unwrap();
            assert_eq!(unpacked, target.join(folder));
            let listed = fs::read_dir(&unpacked).unwrap();
            let mut found: Vec<String> =
                listed.map(|e| format!("{folder}/{}", e.unwrap().file_name().display())).collect();
            found.sort();
            let mut want = names.clone();
            want.sort();
            assert_eq!(found, want);
            assert_eq!(fs::read(unpacked.join(known.files[0].0)).unwrap(), b"data");
            let left: Vec<_> =
                fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert_eq!(left, [folder]);
            assert!(!dir.join("evil").exists() && !dir.join("a/evil").exists());
        }
    }

    #[test]
    fn refuses_damaged_archives() {
        for known in ALL {
            let place = place();
            let folder = place.path.with_file_name("out");
            let names = data_files(&known);
            let whole: Vec<(&str, &[u8])> =
                names.iter().map(|name| (name.as_str(), &b"data"[..])).collect();
            let (at, limit) = (0..names.len())
                .map(|i| (i, known.files[i].1))
                .min_by_key(|(_, limit)| *limit)
                .unwrap();
            let long = vec![0; limit as usize + 1];
            let too_long = [whole.clone(), vec![(names[at].as_str(), &long[..])]].concat();
            let bytes = archive(&whole);
            let cases = [
                (archive(&whole[1..]), format!("{}` is not in it", names[0])),
                (
                    archive(&too_long),
                    format!("{} bytes, expected a file of at most {limit}", limit + 1),
                ),
                (bytes[..bytes.len() / 2].to_vec(), "cannot unpack".into()),
                (b"no archive".to_vec(), "cannot unpack".into()),
            ];
            for (bytes, want) in cases {
                fs::write(&place.path, bytes).unwrap();
                let error = unpack(&known, &place.path, &folder).unwrap_err();
                assert!(matches!(error, DataError::Archive { .. }), "{error:?}");
                assert!(error.to_string().contains(&want), "`{want}` is not in `{error}`");
                assert!(!folder.exists() && !suffixed(&folder, "part").exists());
            }
        }
    }
}
