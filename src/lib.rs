//! The CNI plugins and the runtime side of CNI, in one library and one executable.
//!
//! * [`cni`]: the protocol as plain data, every version from 0.1.0 to 1.1.0.
//! * [`runtime`]: what libcni offers a container runtime: networks from files, and containers attached to them.
//!
//! The executable is made of the same library: `main.rs` hands [`personality`] the process.
//!
//! Calls go downwards only: `main` → `personality` → `cli`, `runtime` → `invoke` → `plugins` → `attach` → `kernel`;
//! every layer may use [`cni`] and `log`. The one intended loop is `attach::ipam` → `invoke` → `plugins`: a main plugin
//! delegating to an IPAM plugin.

#[doc(hidden)]
pub mod arena;
pub(crate) mod attach;
pub(crate) mod cli;
pub mod cni;
pub(crate) mod decimal;
pub(crate) mod hex;
pub(crate) mod invoke;
pub(crate) mod kernel;
pub(crate) mod log;
#[doc(hidden)]
pub mod personality;
pub(crate) mod plugins;
pub mod runtime;
