//! The CNI plugins and the runtime side of CNI, in one library and one executable.
//!
//! * [`cni`]: the protocol as plain data, every version from 0.1.0 to 1.1.0.
//!
//! Calls go downwards only: `main` → `cli`, `runtime` → `invoke` → `plugins` → `attach` → `kernel`; every layer may
//! use [`cni`]. The one intended loop is `attach::ipam` → `invoke` → `plugins`: a main plugin delegating to an IPAM.

#[allow(dead_code)]
pub(crate) mod attach;
pub mod cni;
#[allow(dead_code)]
pub(crate) mod kernel;
