//! The CNI protocol as plain data: no system calls, no files. CNI spec: <https://www.cni.dev/docs/spec/>.

pub mod error;

pub use error::{Code, Error, Result};
