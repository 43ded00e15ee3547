//! The client against a server that does as the test says: what happens when answers are late, lost or bad.

#![allow(clippy::unwrap_used)]

mod calls;
mod heart;
mod stub;
