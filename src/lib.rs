//! The CNI plugins and the runtime side of CNI, in one library and one executable.
//!
//! * [`cni`]: the protocol as plain data, every version from 0.1.0 to 1.1.0.
//! * [`personality`]: what the executable does; `main.rs` hands it the process.
//!
//! Calls go downwards only: `main` → `personality` → `cli`, `runtime` → `invoke` → `plugins` → `attach` → `kernel`;
//! every layer may use [`cni`]. The one intended loop is `attach::ipam` → `invoke` → `plugins`: a main plugin
//! delegating to an IPAM plugin.

pub(crate) mod attach;
pub(crate) mod cli;
pub mod cni;
pub(crate) mod invoke;
pub(crate) mod kernel;
#[doc(hidden)]
pub mod personality;
pub(crate) mod plugins;
pub(crate) mod runtime;
