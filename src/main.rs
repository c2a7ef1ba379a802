//! The `aavae` command; see [`aavae::cli`].

fn main() -> std::process::ExitCode {
    aavae::cli::main()
}
