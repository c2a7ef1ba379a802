//! The `aavae` command.
fn main() {}
