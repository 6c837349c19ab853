//! host-local as a runtime sees it: the executable, variables, standard input, and the files it leaves.
//! Needs no privileges. Debian's Go plugin and strace are used where installed, else their tests are skipped.

// clippy.toml's permission covers test functions, not what they call.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod boots;
mod configuration;
mod cost;
mod crashes;
mod files;
mod support;
mod verbs;
