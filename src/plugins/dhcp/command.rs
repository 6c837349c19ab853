//! `dhcp daemon` and `dhcp leases`: what the plugin does when it is not called as one.

use super::{daemon, leases};
use crate::personality::Process;

/// Serves the words after `dhcp`; `None` when they are none of ours.
pub fn run(words: &[String], process: &mut Process<'_>) -> Option<i32> {
    match words.split_first() {
        Some((word, flags)) if word == "daemon" => Some(daemon::run(flags, process)),
        Some((word, flags)) if word == "leases" => Some(leases::run(flags, process)),
        _ => None,
    }
}
