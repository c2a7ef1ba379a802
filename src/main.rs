//! The `aavae` command; see [`aavae::cli`].

/// Mesa's device-selection layer connects to Wayland whenever adapters are listed, and prints an
/// error of its own where there is no session. Nothing here is shown on a screen, so the layer is
/// left out there.
#[allow(
    unsafe_code,
    reason = "the environment can be changed safely only here, before any other thread exists"
)]
fn quieten_drivers() {
    use std::env;
    let session =
        env::var_os("XDG_RUNTIME_DIR").is_some_and(|dir| dir.as_encoded_bytes().starts_with(b"/"));
    if cfg!(target_os = "linux") && !session && env::var_os("NODEVICE_SELECT").is_none() {
        // SAFETY: no other thread exists yet.
        unsafe { env::set_var("NODEVICE_SELECT", "1") };
    }
}

fn main() -> std::process::ExitCode {
    quieten_drivers();
    aavae::cli::main()
}
