//! Signals that ask the program to end, between whoever hears them and the work that they end.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// A request to end, by Ctrl-C or `kill`.
///
/// While a [`Saving`] lives, the first signal is only noted: the work at hand comes to an end that
/// can be continued, and is saved. No wait for images outlasts it, since a disk may never answer:
/// a step that was begun is forgotten, and what was to be measured after a step is left to the run
/// that is resumed there. At any other time nothing is lost by ending at once, whatever the program
/// waits for. The second signal always ends it at once.
#[derive(Debug, Default)]
pub struct Interrupt {
    /// Number of the first signal; 0 for none.
    signal: AtomicI32,
    saving: AtomicBool,
}

impl Interrupt {
    /// Notes a signal by its number. Returns whether the process may end at once.
    pub fn ask(&self, signal: i32) -> bool {
        let first =
            self.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        !(first && self.saving.load(Ordering::SeqCst))
    }

    /// Whether a signal was heard.
    pub fn asked(&self) -> bool {
        self.signal().is_some()
    }

    /// Number of the first signal that was heard.
    pub fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
    }

    /// From here on there is something to save, until the result is dropped. Whoever holds it looks
    /// at [`Interrupt::asked`] now and then.
    pub fn saving(&self) -> Saving<'_> {
        self.saving.store(true, Ordering::SeqCst);
        Saving { of: self }
    }
}

/// Work that is saved before the program ends; see [`Interrupt::saving`].
#[derive(Debug)]
pub struct Saving<'a> {
    of: &'a Interrupt,
}

impl Drop for Saving<'_> {
    fn drop(&mut self) {
        self.of.saving.store(false, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_signal_waits_where_something_is_saved() {
        let idle = Interrupt::default();
        assert!(!idle.asked() && idle.ask(2) && idle.asked());
        let busy = Interrupt::default();
        let saving = busy.saving();
        assert!(!busy.ask(15), "the first waits");
        assert!(busy.ask(2), "the second does not");
        assert_eq!(busy.signal(), Some(15), "the first one counts");
        drop(saving);
        let over = Interrupt::default();
        drop(over.saving());
        assert!(over.ask(2), "what was saved is no reason to wait");
    }
}
