//! The binary `lastbeat`.

fn main() {}
