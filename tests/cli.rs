//! The command line from outside: stdout, stderr and exit code of every command and of every
//! documented error.

#[path = "cli/support.rs"]
mod support;

#[path = "cli/commands.rs"]
mod commands;
#[path = "cli/data_errors.rs"]
mod data_errors;
#[path = "cli/errors.rs"]
mod errors;
#[path = "cli/folders.rs"]
mod folders;
#[path = "cli/identity.rs"]
mod identity;
#[path = "cli/images.rs"]
mod images;
#[path = "cli/monitor.rs"]
mod monitor;
#[path = "cli/precision.rs"]
mod precision;
#[path = "cli/pretraining.rs"]
mod pretraining;
#[path = "cli/reproduce.rs"]
mod reproduce;
#[path = "cli/resume.rs"]
mod resume;
#[path = "cli/saving.rs"]
mod saving;
// Windows has no signals, and its Ctrl-C goes to all that share a console.
#[cfg(unix)]
#[path = "cli/signals.rs"]
mod signals;
#[path = "cli/stl10.rs"]
mod stl10;
#[path = "cli/terminal.rs"]
mod terminal;
#[path = "cli/weights.rs"]
mod weights;
