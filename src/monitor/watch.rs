//! A live dashboard over a run folder. The screen is the terminal's second one, and is given back
//! however it ends.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use image::RgbImage;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::dashboard;
use super::run::{RunState, RunView};
use crate::data::read_regular;
use crate::run::RunError;
use crate::text;
use crate::train::interrupt::Interrupt;

/// Why a terminal shows no pictures, from `COLORTERM` and `NO_COLOR`; `None` if it does.
pub fn no_pictures(colorterm: Option<&str>, no_color: Option<&str>) -> Option<&'static str> {
    if no_color.is_some_and(|value| !value.is_empty()) {
        return Some("no reconstruction is shown: NO_COLOR is set");
    }
    match colorterm {
        Some("truecolor" | "24bit") => None,
        _ => Some("no reconstruction is shown: COLORTERM does not say truecolor or 24bit"),
    }
}

/// The newest reconstruction, read once.
#[derive(Debug, Default)]
struct Picture {
    path: Option<PathBuf>,
    /// Of one that cannot be read the reason, for people; another may be read.
    image: Option<Result<RgbImage, String>>,
}

impl Picture {
    fn refresh(&mut self, newest: Option<&PathBuf>) {
        if self.path.as_ref() != newest {
            self.path = newest.cloned();
            self.image = newest.map(|path| {
                let cannot = |e: &dyn std::fmt::Display| {
                    format!("no reconstruction is shown: {} cannot be read: {e}", text::name(path))
                };
                let bytes = read_regular(path).map_err(|e| cannot(&e))?;
                let image = image::load_from_memory(&bytes).map_err(|e| cannot(&e))?;
                Ok(image.to_rgb8())
            });
        }
    }
}

/// Whether a run changes no more. One that is trained may still be evaluated.
fn over(view: &RunView) -> bool {
    matches!(view.state(), RunState::Evaluated | RunState::Interrupted | RunState::Imported)
}

/// Longest time that a signal is not heard.
const PATIENCE: Duration = Duration::from_millis(200);

/// Shows the run every so often until it is over, a key (q, Esc, Ctrl-C) says so, or a signal does.
///
/// # Errors
/// If the terminal or the run folder fails.
pub fn follow(
    view: &mut RunView,
    every: Duration,
    no_pictures: Option<&str>,
    stop: &Interrupt,
) -> Result<(), RunError> {
    let mut terminal = ratatui::try_init().map_err(RunError::io("open", "the terminal"))?;
    let result = events()
        .map_err(RunError::io("read", "the terminal"))
        .and_then(|events| run(&mut terminal, &events, view, every, no_pictures, stop));
    ratatui::restore();
    result
}

/// What happens in the terminal, read by a thread of its own: of a terminal that was closed the
/// library reads the end for ever, and would keep whoever asked from hearing the signal that says
/// so.
fn events() -> io::Result<Receiver<io::Result<Event>>> {
    let (sender, events) = mpsc::channel();
    let reads = move || {
        while sender.send(event::read()).is_ok() {}
    };
    thread::Builder::new().name("terminal".into()).spawn(reads)?;
    Ok(events)
}

fn run(
    terminal: &mut DefaultTerminal,
    events: &Receiver<io::Result<Event>>,
    view: &mut RunView,
    every: Duration,
    no_pictures: Option<&str>,
    stop: &Interrupt,
) -> Result<(), RunError> {
    let failed = || RunError::io("use", "the terminal");
    let mut picture = Picture::default();
    loop {
        view.refresh()?;
        picture.refresh(view.picture.as_ref().filter(|_| no_pictures.is_none()));
        let shown = match (&picture.image, no_pictures) {
            (Some(image), _) => image.as_ref().map_err(String::as_str),
            (None, Some(why)) => Err(why),
            (None, None) => Err("no reconstruction yet"),
        };
        terminal
            .draw(|frame| dashboard::draw(view, shown, frame.area(), frame.buffer_mut()))
            .map_err(failed())?;
        if over(view) {
            return Ok(());
        }
        let looked = Instant::now();
        while looked.elapsed() < every {
            let wait = every.saturating_sub(looked.elapsed()).min(PATIENCE);
            let event = events.recv_timeout(wait).ok().transpose().map_err(failed())?;
            if stop.asked() || event.as_ref().is_some_and(leaves) {
                return Ok(());
            }
            if matches!(event, Some(Event::Resize(..))) {
                break;
            }
        }
    }
}

fn leaves(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let asked = match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    };
    asked && key.kind == KeyEventKind::Press
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn keys_that_leave() {
        let key = |code, modifiers| leaves(&Event::Key(KeyEvent::new(code, modifiers)));
        assert!(
            key(KeyCode::Char('q'), KeyModifiers::NONE) && key(KeyCode::Esc, KeyModifiers::NONE)
        );
        assert!(key(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(
            !key(KeyCode::Char('c'), KeyModifiers::NONE)
                && !key(KeyCode::Enter, KeyModifiers::NONE)
                && !leaves(&Event::FocusLost)
        );
    }

    #[test]
    fn pictures_need_true_colour() {
        assert_eq!(no_pictures(Some("truecolor"), None), None);
        assert_eq!(no_pictures(Some("24bit"), Some("")), None);
        assert!(no_pictures(Some("256"), None).is_some_and(|why| why.contains("COLORTERM")));
        assert!(no_pictures(None, None).is_some());
        assert!(
            no_pictures(Some("truecolor"), Some("1")).is_some_and(|why| why.contains("NO_COLOR"))
        );
    }

    #[test]
    fn a_picture_that_cannot_be_read_is_not_taken_for_none() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("reconstruction-000001.png");
        std::fs::write(&path, "half a PNG").expect("a file");
        let mut picture = Picture::default();
        picture.refresh(Some(&path));
        let said = picture.image.as_ref().and_then(|image| image.as_ref().err());
        assert!(said.is_some_and(|said| said.contains("000001.png cannot be read")), "{said:?}");
        let whole = dir.path().join("reconstruction-000002.png");
        RgbImage::new(4, 2).save(&whole).expect("a PNG");
        picture.refresh(Some(&whole));
        assert!(matches!(&picture.image, Some(Ok(image)) if image.dimensions() == (4, 2)));
        picture.refresh(None);
        assert!(picture.image.is_none());
    }
}
