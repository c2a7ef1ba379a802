//! The bridge to a page: a worker tells it what to do ([`Command`]), it tells the worker what came
//! of that. Between the two stands the library as it is; nothing here knows what a step is.
//!
//! The worker calls `work` once, as a function that may be suspended, and `tell` whenever it likes.
//! `host.js` has what the program asks of the worker.

mod check;
mod look;
mod run;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use wasm_bindgen::prelude::wasm_bindgen;

use crate::data::{DataError, FileTree, Files};
use crate::device::{DeviceError, Session, wait};
use crate::eval::pictures::Picture;
use crate::run::RunError;
use crate::run::checkpoint::Checkpoint;
use crate::run::settings::{DataKind, RunConfig};
use crate::run::trained::open_data_in;
use crate::train::measure::Measures;
use crate::tune::Kernels;

/// What a page asks for, as JSON: `{"do": "train", "steps": 10}`.
#[derive(Debug, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Command {
    /// A new run, in place of the one there is. With the bytes of a checkpoint it goes on from
    /// there, with the settings that it carries.
    Begin {
        /// Settings by their names in `config.toml`; what is missing has its default.
        #[serde(default)]
        settings: serde_json::Map<String, serde_json::Value>,
        /// Which kernels it takes after those that it starts with.
        #[serde(default)]
        kernels: Kernels,
        /// Of how many products at most, those with the most work; of all where it is missing.
        #[serde(default)]
        products: Option<usize>,
    },
    /// Takes so many steps, or all that are left.
    Train {
        /// How many; all that are left if it is missing.
        steps: Option<u64>,
    },
    /// Takes no more steps.
    Pause,
    /// Takes the following steps at another learning rate.
    Rate {
        /// The rate of the steps that follow.
        learning_rate: f32,
    },
    /// Draws a picture, `views` or `reconstructions`.
    Picture {
        /// Which of the two.
        of: String,
    },
    /// One of the images to choose from, which are those that are held out, under many alterations.
    Views {
        /// Its place among them.
        image: usize,
        /// Another number, other alterations.
        draw: u32,
    },
    /// The training images whose features are nearest to those of one of them.
    Neighbours {
        /// The place of that image among those held out.
        image: usize,
        /// Among so many, the first of them: a slow device takes its time for each.
        among: usize,
    },
    /// What the decoder makes of the way from one of them to another.
    Walk {
        /// Where it begins.
        from: usize,
        /// Where it ends.
        to: usize,
    },
    /// How alike views of one image and of different images are to the network.
    Similarity,
    /// Trains a linear classifier on the frozen features.
    Probe {
        /// Passes over the training images.
        epochs: usize,
    },
    /// Measures the held-out images: the loss, kNN where the settings ask for it.
    Measure,
    /// The weights and the state of the optimiser as a safetensors file.
    Save,
    /// The plan of a step, as text.
    Plan,
    /// Runs the trials of every kernel whose case is named like that.
    Check {
        /// Part of the name; empty for all.
        #[serde(default)]
        only: String,
        /// Of each op only the first case.
        #[serde(default)]
        first: bool,
    },
    /// Ends the run there is, and says when all that it held is given back. The device and its
    /// compiled kernels stay, for the next one.
    End,
}

/// A command, and the bytes that came with it.
type Asked = (Command, Option<Vec<u8>>);

thread_local! {
    static ASKED: RefCell<VecDeque<Asked>> = const { RefCell::new(VecDeque::new()) };
    /// The files that a person gave to the page.
    static GIVEN: RefCell<FileTree> = RefCell::new(FileTree::default());
}

#[wasm_bindgen(raw_module = "./host.js")]
extern "C" {
    #[wasm_bindgen(js_name = post)]
    fn post_bytes(kind: &str, json: &str, bytes: Option<js_sys::Uint8Array>);
}

/// Tells the page something.
fn post(kind: &str, value: &impl Serialize) {
    post_with(kind, value, None);
}

/// Tells the page something that has bytes.
fn post_with(kind: &str, value: &impl Serialize, bytes: Option<&[u8]>) {
    let json = serde_json::to_string(value).unwrap_or_else(|e| panic!("{kind}: {e}"));
    post_bytes(kind, &json, bytes.map(js_sys::Uint8Array::from));
}

/// Shows the page a picture, as it is after so many steps.
fn show(name: &str, step: u64, picture: &Picture, more: serde_json::Value) {
    let (width, height) = (picture.width, picture.height);
    let text = json!({
        "of": name, "step": step, "width": width, "height": height, "more": more,
    });
    post_with("picture", &text, Some(&picture.bytes));
}

/// The next command; waits for one.
fn next() -> Asked {
    wait::until(|| ASKED.with_borrow(|asked| !asked.is_empty()));
    asked().unwrap_or_else(|| unreachable!("waited for above"))
}

/// The next command, if there is one.
fn asked() -> Option<Asked> {
    ASKED.with_borrow_mut(VecDeque::pop_front)
}

/// Asks for something. What is no command is answered with an error.
#[wasm_bindgen]
pub fn tell(command: &str, bytes: Option<Vec<u8>>) {
    match serde_json::from_str(command) {
        Ok(command) => ASKED.with_borrow_mut(|asked| asked.push_back((command, bytes))),
        Err(error) => {
            post("error", &json!({ "what": "bug", "message": format!("{command}: {error}") }))
        }
    }
    wait::wake();
}

/// Gives the program a file of data, before the run that reads it is begun.
#[wasm_bindgen]
pub fn give(path: &str, bytes: Vec<u8>) {
    GIVEN.with_borrow_mut(|given| given.add(path, bytes));
}

/// Does what is asked for, for ever. The worker calls it as a function that may be suspended.
#[wasm_bindgen]
pub fn work() {
    std::panic::set_hook(Box::new(|panic| {
        post("error", &json!({ "what": "bug", "message": panic.to_string() }))
    }));
    let (mut session, mut begin) = (None, None);
    loop {
        let (command, bytes) = begin.take().unwrap_or_else(next);
        let ended = match command {
            Command::Begin { settings, kernels, products } => {
                start(settings, (kernels, products), bytes, &mut session).map(Some)
            }
            Command::Check { only, first } => {
                check::check(&only, first).map(|()| None).map_err(Into::into)
            }
            Command::End => {
                post("ended", &json!({}));
                continue;
            }
            _ => continue,
        };
        match ended {
            Ok(another) => begin = another,
            Err(error) => {
                let (message, hint) = (error.to_string(), error.hint());
                post("error", &json!({ "what": what(&error), "message": message, "hint": hint }));
            }
        }
    }
}

/// What a page can say about an error in its own words.
fn what(error: &RunError) -> &'static str {
    match error {
        RunError::Device(DeviceError::Lost { .. }) => "lost",
        RunError::Device(DeviceError::Driver { .. }) => "driver",
        RunError::Device(DeviceError::NotFound { .. }) => "adapter",
        RunError::Device(DeviceError::OutOfMemory { .. } | DeviceError::Plan(_))
        | RunError::TooLarge { .. } => "memory",
        RunError::NotFinite { .. } => "diverged",
        RunError::Checkpoint(_) | RunError::Architecture { .. } => "file",
        RunError::Data(_) => "data",
        _ => "settings",
    }
}

/// Runs until something else is asked for, which is returned. A run takes the session of the one
/// before it, and leaves its own unless it fails.
fn start(
    settings: serde_json::Map<String, serde_json::Value>,
    kernels: (Kernels, Option<usize>),
    file: Option<Vec<u8>>,
    session: &mut Option<Session>,
) -> Result<Asked, RunError> {
    let wrong = |e: String| RunError::config(e, None);
    let file =
        file.map(|bytes| Checkpoint::from_bytes(Path::new("the file"), &bytes)).transpose()?;
    let mut config: RunConfig = match file.as_ref().and_then(|file| file.meta.get("config")) {
        Some(text) => toml::from_str(text).map_err(|e| wrong(e.to_string()))?,
        None => serde_json::from_value(settings.into()).map_err(|e| wrong(e.to_string()))?,
    };
    let files = data(&mut config)?;
    config.validate().map_err(wrong)?;
    let splits = open_data_in(&config, files)?;
    if Measures::check(&config, &splits).is_err() {
        config.eval_every = 0; // images without classes, or too few of them
    }
    run::run(&config, &splits, kernels, file, session)
}

/// The files of a run's data: what the page was given.
fn data(config: &mut RunConfig) -> Result<Files, RunError> {
    if config.dataset == DataKind::Shapes {
        return Ok(Files::Disk); // none is read
    }
    let given = GIVEN.take();
    if given.is_empty() {
        return Err(RunError::Data(DataError::Missing {
            what: "files of images",
            path: config.dataset.name().into(),
            hint: None,
        }));
    }
    config.data_dir = Some(given.root());
    Ok(Files::Memory(Arc::new(given)))
}
