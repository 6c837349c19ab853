//! The CNI protocol as every plugin speaks it: environment, standard input, output, versions. Needs no privileges.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;
