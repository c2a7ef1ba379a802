//! What commands print: data on stdout, all else on stderr. Text may come from files, so none of it
//! commands the terminal.

use std::io::{self, ErrorKind, Write};

use super::Failure;
use crate::run::RunError;
use crate::text::{clean, clean_json};

/// Prints a line for people on stderr. Where `eprintln!` would panic (a closed pipe), the work goes
/// on.
pub(super) fn say(text: &str) {
    // Nobody is listening.
    writeln!(io::stderr(), "{}", clean(text)).ok();
}

/// Prints one line of JSON on stdout.
///
/// # Errors
/// As [`print_text`].
pub(super) fn print_json(value: &serde_json::Value) -> Result<(), Failure> {
    print(&clean_json(&value.to_string()))
}

/// Prints text on stdout.
///
/// # Errors
/// If it does not arrive (a full disk). Whoever closed a pipe has read enough, which is no error.
pub(super) fn print_text(text: &str) -> Result<(), Failure> {
    print(&clean(text))
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    arrived(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
}

/// What became of something that was printed.
pub(super) fn arrived(printed: io::Result<()>) -> Result<(), Failure> {
    match printed {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(RunError::io("write to", "standard output")(e).into())
        }
        _ => Ok(()),
    }
}
