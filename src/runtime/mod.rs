//! The caller's side of CNI, libcni's role: network configurations, each plugin's request, the order of calls.

mod chain;
pub mod conflist;
mod run;

pub use conflist::NetworkList;
pub use run::{Attachment, PluginPath, add, del};
