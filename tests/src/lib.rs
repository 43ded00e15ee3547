//! Black-box tests of the binary `lastbeat`: what they share. The tests themselves are in `tests/`.
