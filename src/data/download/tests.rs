//! Downloads from a server of bad manners, and archives that are damaged.

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
    let range = head.lines().find_map(|line| line.strip_prefix("range: bytes=")?.strip_suffix('-'));
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
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {n}\r\nConnection: close\r\n\r\n")?;
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
    let mut tar =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
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
        let left: Vec<_> = fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
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
