//! The folder of a run: whose it is, and what is in it.
//!
//! | file | what it is |
//! |---|---|
//! | `config.toml` | the settings, written when everything else has begun |
//! | `metrics.jsonl` | what was measured ([`super::metrics`]) |
//! | `events.out.tfevents.*` | the same for TensorBoard ([`super::events`]) |
//! | `checkpoints/` | states to resume from and weights to keep ([`super::store`]) |
//! | `images/` | views and reconstructions |
//! | `train.log`, `summary.json` | what was said, and what came out |
//! | `.lock` | the process that works here now ([`crate::disk::Lock`]) |
//!
//! A folder that holds any of these holds a run, and nothing of a run is overwritten unasked.

use std::fs::{self, DirEntry};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::RunError;
use super::events;
use super::metrics::MetricsRecord;
use super::settings::DataKind;
use super::store::{CHECKPOINTS, Store};
use super::trained::read_config;
use crate::data::{open_regular, read_regular};
use crate::disk::{self, DiskError, Lock, is_there};
use crate::text;

/// A run folder that belongs to this process until it is dropped.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    lock: Option<Lock>,
    /// Folders that were made for it, the outermost first.
    made: Vec<PathBuf>,
}

/// What a run folder holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing of a run.
    Nothing,
    /// A run that was killed before its first checkpoint.
    Unsaved,
    /// A run with checkpoints.
    Saved,
    /// These files of a run, but none of its checkpoints: somebody removed them.
    Stripped(Vec<String>),
}

impl RunFolder {
    /// Takes a folder, which is made if it is not there, and removes what a killed process left
    /// half-written in it. `name` is what the process calls itself.
    ///
    /// # Errors
    /// If another process has it, or it cannot be written.
    pub fn claim(path: &Path, name: &str) -> Result<Self, RunError> {
        disk::refuse_tilde(path)?;
        refuse_inside_run(path)?;
        let missing = path
            .ancestors()
            .take_while(|folder| !folder.as_os_str().is_empty() && !is_there(folder));
        let mut made: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        made.reverse();
        let mut folder = Self { path: path.to_owned(), lock: None, made };
        disk::create_folder(path)?;
        folder.lock = Some(Lock::take(path, name)?);
        disk::sweep(path, |name| FILES.contains(&name));
        disk::sweep(&path.join(CHECKPOINTS), Store::owns);
        disk::sweep(&path.join(IMAGES), is_picture);
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a process was killed here before it had written anything: the folder was there, and
    /// there is nothing in it.
    pub fn is_unborn(&self) -> bool {
        let lock = |entry: io::Result<DirEntry>| entry.is_ok_and(|e| e.file_name() == Lock::FILE);
        self.made.is_empty() && fs::read_dir(&self.path).is_ok_and(|mut all| all.all(lock))
    }

    /// The checkpoints in its folder `checkpoints`.
    pub fn store(&self) -> Store {
        Store::of_run(&self.path)
    }

    /// Its folder of PNG pictures; it need not be there.
    pub fn images(&self) -> PathBuf {
        self.path.join(IMAGES)
    }

    /// What is in it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn contents(&self) -> Result<Contents, RunError> {
        let store = self.store();
        if store.holds_any()? {
            return Ok(Contents::Saved);
        }
        if store.is_unsaved() {
            return Ok(Contents::Unsaved);
        }
        let files = self.files()?;
        Ok(if files.is_empty() { Contents::Nothing } else { Contents::Stripped(files) })
    }

    /// Refuses to begin a run where there is one.
    ///
    /// # Errors
    /// If there is any file of a run.
    pub fn refuse_run(&self) -> Result<(), RunError> {
        let files = self.files()?;
        if files.is_empty() {
            return Ok(());
        }
        let message =
            format!("{} already holds a run: {}", text::name(&self.path), files.join(", "));
        let hint = "continue it with --resume, replace it with --overwrite, or name another folder \
            with --out";
        Err(RunError::config(message, Some(hint)))
    }

    /// Whether there is a checkpoint to resume from; if not, the run begins.
    ///
    /// # Errors
    /// If there was one: a run is not begun over what is left of another.
    pub fn resumes(&self) -> Result<bool, RunError> {
        match self.contents()? {
            Contents::Saved => Ok(true),
            Contents::Nothing | Contents::Unsaved => Ok(false),
            Contents::Stripped(files) => {
                let message = format!(
                    "{} holds a run without checkpoints: {}",
                    text::name(&self.path),
                    files.join(", ")
                );
                let hint = "bring `checkpoints/` back from a backup; without --resume, --overwrite \
                    begins anew and removes the rest";
                Err(RunError::config(message, Some(hint)))
            }
        }
    }

    /// Removes the files of a run, and nothing else.
    ///
    /// # Errors
    /// If a file has the name of one of a run's and is something else; nothing is removed then. If
    /// a file cannot be removed.
    pub fn clear(&self) -> Result<(), RunError> {
        self.refuse_foreign()?;
        let files = FILES.iter().map(|name| self.path.join(name));
        let (checkpoints, images) = (self.path.join(CHECKPOINTS), self.images());
        let (notes, states): (Vec<_>, Vec<_>) =
            listed(&checkpoints, Store::owns)?.into_iter().partition(|path| Store::is_note(path));
        let pictures = listed(&images, is_picture)?;
        let events = events::files(&self.path)?;
        // What a run is resumed from goes first, so that what is left if this is cut short is not
        // taken for a whole run; the note that there was nothing to lose goes last.
        remove(states.into_iter().chain(pictures).chain(files))?;
        events::retire(&events)?;
        remove(notes)?;
        // Folders with files of others stay.
        drop(fs::remove_dir(images));
        drop(fs::remove_dir(checkpoints));
        Ok(disk::sync_folder(&self.path)?)
    }

    /// The files of a run that are there, by name.
    fn files(&self) -> Result<Vec<String>, RunError> {
        let mut found: Vec<String> = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(RunError::io("read", &self.path))? {
            let entry = entry.map_err(RunError::io("read", &self.path))?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let own =
                FILES.contains(&name) && name != FAILURE || [CHECKPOINTS, IMAGES].contains(&name);
            // An event file that is empty has been retired and counts as gone.
            let retired = || entry.metadata().is_ok_and(|found| found.len() == 0);
            if own || events::owns(name) && !retired() {
                found.push(name.to_owned());
            }
        }
        found.sort();
        Ok(found)
    }

    fn refuse_foreign(&self) -> Result<(), RunError> {
        type Own = fn(&Path) -> io::Result<bool>;
        let checks: [(&str, Own); 4] = [
            (CONFIG, |path| Ok(read_config(path).is_ok())),
            ("metrics.jsonl", |path| {
                Ok(first_line(path)?.is_none_or(|line| MetricsRecord::parse(&line).is_some()))
            }),
            ("train.log", |path| {
                Ok(first_line(path)?.is_none_or(|line| line.get(19..21) == Some(b"Z ")))
            }),
            ("summary.json", |path| {
                let value = serde_json::from_slice::<serde_json::Value>(&read_regular(path)?);
                Ok(value.is_ok_and(|summary| summary["run"].is_string()))
            }),
        ];
        for (name, own) in checks {
            let path = self.path.join(name);
            let found = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found.map_err(RunError::io("read", &path))?,
            };
            if !found.is_file() || !own(&path).map_err(RunError::io("read", &path))? {
                let message =
                    format!("{} is no file of a run; nothing was removed", text::name(&path));
                return Err(RunError::config(
                    message,
                    Some("move it away, or name another folder with --out"),
                ));
            }
        }
        Ok(())
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        drop(self.lock.take());
        // An empty folder is no run. One that was there before stays, as does one with anything in
        // it.
        self.made.iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
    }
}

const CONFIG: &str = "config.toml";
const IMAGES: &str = "images";
/// Why a run of a grid failed: not a file of a run, but gone with it.
const FAILURE: &str = "failure.json";
/// The last one says that a run has begun.
const FILES: [&str; 6] =
    ["metrics.jsonl", "train.log", "summary.json", "views.json", FAILURE, CONFIG];

fn is_picture(name: &str) -> bool {
    let numbered =
        |prefix: &str| name.strip_prefix(prefix)?.strip_suffix(".png")?.parse::<u64>().ok();
    name == "augmentation.png"
        || numbered("reconstruction-").is_some()
        || numbered("views-").is_some()
}

fn remove(files: impl IntoIterator<Item = PathBuf>) -> Result<(), DiskError> {
    files.into_iter().try_for_each(|path| match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DiskError::of("remove", path)(error))
        }
        _ => Ok(()),
    })
}

/// Files of a folder with names like these.
fn listed(folder: &Path, named: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, DiskError> {
    let names = disk::names(folder)?.into_iter();
    let ours = names.filter(|name| name.to_str().is_some_and(&named));
    Ok(ours.map(|name| folder.join(name)).collect())
}

/// The first line of a file; `None` if that does not end.
fn first_line(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let reader = BufReader::new(open_regular(path)?);
    reader.take(1 << 16).read_until(b'\n', &mut line)?;
    Ok((line.pop() == Some(b'\n')).then_some(line))
}

/// Refuses to make a run of the folder of another's checkpoints or pictures.
fn refuse_inside_run(path: &Path) -> Result<(), RunError> {
    let path = real(path);
    let own = path.file_name().is_some_and(|name| name == CHECKPOINTS || name == IMAGES);
    match path.parent().filter(|folder| own && is_there(&folder.join(CONFIG))) {
        None => Ok(()),
        Some(run) => Err(RunError::config(
            format!("{} belongs to the run in {}", text::name(&path), text::name(&run)),
            Some("name another folder with --out"),
        )),
    }
}

/// Refuses a file to write that would take the place of one of a run's, of `source`, which is what
/// is read for it, or that has no folder: an evaluation takes long, and should not end with that.
///
/// # Errors
/// If it would.
pub fn refuse_output(out: &Path, source: &Path) -> Result<(), RunError> {
    let refused = |message: String, hint| Err(RunError::config(message, Some(hint)));
    disk::refuse_tilde(out)?;
    let (said, out) = (text::name(&out), real(out));
    let folder = out.parent().unwrap_or(&out);
    if !folder.is_dir() {
        let message = format!("{said} cannot be written: {} is no folder", text::name(&folder));
        let hint = match is_there(folder) {
            true => "name another file with --out",
            false => "make the folder first, or name another file with --out",
        };
        return refused(message, hint);
    }
    if out == real(source) {
        let message = format!("{said} is what is read: it would be overwritten");
        return refused(message, "name another file with --out");
    }
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    let above = |own: &str| folder.parent().filter(|_| folder.file_name() == Some(own.as_ref()));
    let run = match &*name {
        name if FILES.contains(&name) || name == Lock::FILE || events::owns(name) => Some(folder),
        name if Store::owns(name) => above(CHECKPOINTS),
        name if is_picture(name) => above(IMAGES),
        _ => None,
    };
    match run.filter(|run| is_there(&run.join(CONFIG))) {
        None => Ok(()),
        Some(run) => refused(
            format!("{said} is a file of the run in {}", text::name(&run)),
            "name another file with --out",
        ),
    }
}

/// Refuses an output folder among the images of a data set, where it would become a class, or a
/// file, which would become an image.
///
/// # Errors
/// If it is one of the folders that the data set reads, or in one.
pub fn refuse_inside_data(
    out: &Path,
    dataset: DataKind,
    data_dir: Option<&Path>,
) -> Result<(), RunError> {
    let Some(dir) = data_dir.filter(|_| dataset == DataKind::Folder) else { return Ok(()) };
    let out = real(out);
    let splits = ["train", "val", "test"].map(|split| dir.join(split));
    let Some(split) = splits.iter().find(|split| is_there(split) && out.starts_with(real(split)))
    else {
        return Ok(());
    };
    let message = format!(
        "{} lies in {}, whose folders are the classes of the data set",
        text::name(&out),
        text::name(&split)
    );
    Err(RunError::config(message, Some("name a place outside the data with --out")))
}

/// A path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = absolute.ancestors().find_map(|folder| {
        let rest = absolute.strip_prefix(folder).ok()?;
        // What is joined may be empty and add a slash, which is no component.
        Some(folder.canonicalize().ok()?.join(rest).components().collect())
    });
    found.unwrap_or(absolute)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    fn claim(path: &Path) -> RunFolder {
        RunFolder::claim(path, "test").expect("nobody else has it")
    }

    #[test]
    fn only_an_empty_folder_that_was_there_is_unborn() {
        let dir = temp();
        assert!(claim(dir.path()).is_unborn());
        assert!(!claim(&dir.path().join("new")).is_unborn(), "it was made just now");
        fs::write(dir.path().join("note"), "").expect("a file");
        assert!(!claim(dir.path()).is_unborn());
    }

    #[test]
    fn only_files_of_a_run_make_one() {
        let dir = temp();
        let event = "events.out.tfevents.1700000000.aavae";
        // Somebody's, why a run failed, and an event file that was retired.
        let foreign = "events.out.tfevents.1.other";
        for (name, bytes) in [("thesis.txt", 9), (foreign, 9), (FAILURE, 9), (event, 0)] {
            fs::write(dir.path().join(name), vec![b'x'; bytes]).expect("a file");
        }
        let folder = claim(dir.path());
        assert_eq!(folder.contents().expect("read"), Contents::Nothing);
        folder.refuse_run().expect("no run");
        fs::write(dir.path().join(event), "x").expect("a file");
        fs::write(dir.path().join("views.json"), "").expect("a file");
        fs::create_dir(folder.images()).expect("a folder");
        let found = [event, "images", "views.json"].map(str::to_owned);
        assert_eq!(folder.contents().expect("read"), Contents::Stripped(found.into()));
    }

    #[test]
    fn outputs_spare_what_is_a_runs_and_what_is_read() {
        let dir = temp();
        let [run, other] = ["run", "other"].map(|name| dir.path().join(name));
        for folder in [&run.join(CHECKPOINTS), &run.join(IMAGES), &other.join(CHECKPOINTS)] {
            fs::create_dir_all(folder).expect("a folder");
        }
        fs::write(run.join(CONFIG), "").expect("a file");
        let event = "events.out.tfevents.1700000000.aavae";
        let (state, picture) = ("checkpoints/step-8.safetensors", "images/views-000008.png");
        let source = dir.path().join("weights.safetensors");
        for name in FILES.into_iter().chain([event, Lock::FILE, state, picture]) {
            let error = refuse_output(&run.join(name), &source).expect_err(name).to_string();
            assert!(error.contains(&format!("{name} is a file of the run in ")), "{error}");
            // A folder of pictures or checkpoints that belongs to no run is anyone's.
            let made = other.join(name).parent().is_some_and(Path::is_dir);
            assert_eq!(refuse_output(&other.join(name), &source).is_ok(), made, "{name}");
        }
        for name in ["features.safetensors", "images/mine.png", "checkpoints/mine.safetensors"] {
            refuse_output(&run.join(name), &source).expect(name);
        }
        let error = refuse_output(&dir.path().join("run/../weights.safetensors"), &source);
        assert!(error.is_err_and(|e| e.to_string().contains("is what is read")));
        let error = refuse_output(&dir.path().join("none/file"), &source);
        assert!(error.is_err_and(|e| e.to_string().contains("none is no folder")));
    }

    #[test]
    fn no_run_begins_among_the_files_of_another() {
        let dir = temp();
        let (states, pictures) = (dir.path().join(CHECKPOINTS), dir.path().join(IMAGES));
        drop(claim(&states));
        fs::write(dir.path().join(CONFIG), "").expect("a file");
        for folder in [&states, &pictures] {
            let error = RunFolder::claim(folder, "test").expect_err("another run's").to_string();
            assert!(error.contains("belongs to the run in"), "{error}");
        }
        drop(claim(&dir.path().join("sub")));
    }

    /// What of a run cannot be looked at is not taken for nothing: nothing is removed then.
    #[test]
    fn nothing_is_removed_beside_what_cannot_be_read() {
        for name in [CHECKPOINTS, IMAGES] {
            let dir = temp();
            let (file, log) = (dir.path().join(name), dir.path().join("train.log"));
            fs::write(&file, "no folder").expect("a file");
            fs::write(&log, "2024-05-06T07:08:09Z one\n").expect("a file");
            let error = claim(dir.path()).clear().expect_err(name).to_string();
            assert!(error.contains("cannot read") && error.contains(name), "{error}");
            assert!(log.exists(), "{name}");
        }
        let dir = temp();
        let folder = claim(dir.path());
        fs::remove_dir_all(dir.path()).expect("a folder");
        assert!(!folder.is_unborn(), "a folder that cannot be read may hold anything");
    }

    /// A log is known by its first line; one that was killed within it may be a run's.
    #[test]
    fn logs_of_others_are_not_removed() {
        let record = r#"{"step":1,"epoch":0,"split":"train","loss":0.5}"#;
        let said = "2024-05-06T07:08:09Z one two";
        for (name, line, own) in [
            ("metrics.jsonl", format!("{record}\nanything"), true),
            ("metrics.jsonl", record[..9].to_owned(), true),
            ("metrics.jsonl", "{\"step\":1}\n".to_owned(), false),
            ("train.log", format!("{said}\n{said}\n"), true),
            ("train.log", said[..9].to_owned(), true),
            ("train.log", "one two\n".to_owned(), false),
        ] {
            let dir = temp();
            let path = dir.path().join(name);
            fs::write(&path, &line).expect("a file");
            let cleared = claim(dir.path()).clear();
            assert_eq!((cleared.is_ok(), path.exists()), (own, !own), "{name}: {line}");
        }
    }

    #[test]
    fn an_output_among_the_images_is_named_as_it_is() {
        let dir = temp();
        let data = dir.path().canonicalize().expect("a folder");
        let train = data.join("train");
        fs::create_dir(&train).expect("a folder");
        let refuse = |out: &Path| refuse_inside_data(out, DataKind::Folder, Some(&data));
        for inside in ["", "cats", "new/run"] {
            let said = refuse(&train.join(inside)).expect_err("in it").to_string();
            let out = if inside.is_empty() { train.clone() } else { train.join(inside) };
            let (out, train) = (text::name(&out).to_string(), text::name(&train).to_string());
            assert!(said.starts_with(&format!("{out} lies in {train},")), "{said}");
        }
        for beside in ["", "val", "training/run"] {
            refuse(&data.join(beside)).expect("beside the images");
        }
        #[cfg(unix)]
        {
            let link = data.join("link");
            std::os::unix::fs::symlink(&train, &link).expect("a link");
            let said = refuse(&link.join("run")).expect_err("in it").to_string();
            let real = text::name(&train.join("run")).to_string();
            assert!(said.starts_with(&real), "{said}");
        }
    }
}
