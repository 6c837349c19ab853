//! The place of the modules that are fuzzed: they name each other by it.

#[path = "dhcp.rs"]
pub mod dhcp;
