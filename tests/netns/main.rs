//! The real executable on a real kernel: what it makes, what traffic gets through, what is left afterwards.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;
