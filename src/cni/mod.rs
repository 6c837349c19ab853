//! The CNI protocol as plain data: no system calls, no files. CNI spec: <https://www.cni.dev/docs/spec/>.

pub mod args;
pub mod config;
pub mod convert;
pub mod error;
pub mod json;
pub mod names;
pub(crate) mod place;
pub mod request;
pub mod result;
pub mod version;

pub use args::Args;
pub use config::{Common, Config, ValidAttachment};
pub use error::{Code, Error, Result, ResultExt};
pub use request::{Accepts, Command, Environment, Execution, Request};
pub use result::{CniResult, Dns, Interface, IpConfig, Route};
pub use version::{Family, Version};
