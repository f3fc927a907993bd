//! The `sparoa` command.
fn main() {}
