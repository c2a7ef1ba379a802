//! Signals of the operating system.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use super::{Failure, say};
use crate::run::RunError;
use crate::train::interrupt::Interrupt;

/// Exit code of a process that a signal ended, as shells have it: 130 after Ctrl-C, 143 after
/// `kill`.
pub(super) fn exit_code(signal: i32) -> ExitCode {
    ExitCode::from(code(signal))
}

fn code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// Ends the process as a signal would, without the destructors of libraries: threads still work
/// with what those take away.
pub(super) fn end(signal: i32) -> ! {
    #[cfg(unix)]
    signal_hook::low_level::exit(code(signal).into());
    #[cfg(not(unix))]
    std::process::exit(code(signal).into());
}

/// Listens to Ctrl-C and `kill` for work that saves. Anything else ends at the first one.
pub(super) fn interrupt() -> Result<Arc<Interrupt>, Failure> {
    let interrupt = Arc::new(Interrupt::default());
    let heard = Arc::clone(&interrupt);
    listen(move |signal| {
        if heard.ask(signal) {
            end(signal);
        }
        say("stopping after this step; a second signal (Ctrl-C) stops at once");
    })?;
    Ok(interrupt)
}

/// Calls `heard` with the number of each signal that asks the program to end. One that whoever
/// started the program wants it to ignore (`nohup`, a script with `&`) stays ignored.
pub(super) fn listen(heard: impl Fn(i32) + Send + 'static) -> Result<(), Failure> {
    system::listen(heard).map_err(|e| {
        let hint = "the limit on processes and threads (`ulimit -u`) may be too low";
        RunError::config(format!("cannot listen to signals: {e}"), Some(hint)).into()
    })
}

#[cfg(unix)]
mod system {
    use super::io;
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    pub(super) fn listen(heard: impl Fn(i32) + Send + 'static) -> io::Result<()> {
        let asked: Vec<i32> =
            [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| !ignored(*signal)).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let mut signals = signal_hook::iterator::Signals::new(asked)?;
        let listener = std::thread::Builder::new().name("signals".into());
        listener.spawn(move || signals.forever().for_each(heard)).map(drop)
    }

    /// Whether a signal is ignored, as nothing here has asked for.
    #[allow(unsafe_code, reason = "no safe interface asks what a signal does")]
    fn ignored(signal: i32) -> bool {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
        // SAFETY: with no new action given, the call only writes the present one to the place that
        // is given for it.
        unsafe {
            libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
                && action.assume_init().sa_sigaction == libc::SIG_IGN
        }
    }

    /// Makes a file that grows beyond the limit on its length an error of that write: by default it
    /// ends the process.
    #[allow(unsafe_code, reason = "no safe interface ignores a signal")]
    pub(in crate::cli) fn limits_are_errors() {
        // SAFETY: ignoring a signal runs no code when it comes.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    }
}

#[cfg(not(unix))]
mod system {
    use super::io;

    /// What Ctrl-C is called where signals have no numbers.
    const CTRL_C: i32 = 2;

    pub(super) fn listen(heard: impl Fn(i32) + Send + 'static) -> io::Result<()> {
        ctrlc::set_handler(move || heard(CTRL_C)).map_err(io::Error::other)
    }

    pub(in crate::cli) fn limits_are_errors() {}
}

pub(super) use system::limits_are_errors;
