//! Waiting for what a device does, and for a browser's answers.
//!
//! A thread sleeps until what it waits for is done. In a browser that never is: the answer comes
//! between two turns of the event loop, which such a sleep would stop. There the program is
//! suspended where it stands, JavaScript goes on, and the answer resumes it (JavaScript Promise
//! Integration, on by default in Chromium from 137 on). Callers are plain functions on both.

#[cfg(all(feature = "native", not(target_family = "wasm")))]
pub use pollster::block_on;

/// Resumes a program that waits; threads are woken by what they wait for.
#[cfg(not(target_family = "wasm"))]
pub(super) fn wake() {}

#[cfg(target_family = "wasm")]
pub use browser::block_on;
#[cfg(target_family = "wasm")]
pub(crate) use browser::{until, wake};

#[cfg(target_family = "wasm")]
mod browser {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    #[allow(unsafe_code, reason = "a suspending import is none that wasm-bindgen could wrap")]
    #[link(wasm_import_module = "./host.js")]
    // SAFETY: both are functions of `assets/web/host.js` without arguments or results.
    unsafe extern "C" {
        /// Suspends the program until [`wake`] is called; returns at once if it was called since
        /// the last time.
        safe fn suspend();
        #[link_name = "wake"]
        safe fn resume();
    }

    /// Resumes the program where it waits, or keeps it from its next wait.
    pub(crate) fn wake() {
        resume();
    }

    /// Waits until something is so; whatever makes it so calls [`wake`].
    pub(crate) fn until(is_so: impl Fn() -> bool) {
        while !is_so() {
            suspend();
        }
    }

    struct Resume;

    impl Wake for Resume {
        fn wake(self: Arc<Self>) {
            wake();
        }
    }

    /// Waits for a future.
    pub fn block_on<F: Future>(future: F) -> F::Output {
        let waker = Waker::from(Arc::new(Resume));
        let mut future = pin!(future);
        loop {
            match future.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(output) => return output,
                Poll::Pending => suspend(),
            }
        }
    }
}
