//! The caller's side of CNI, for container runtimes: what libcni is in Go.
//!
//! A network is a list of plugins ([`NetworkList`]), read from a file or from the directory of configurations
//! ([`Directory`]). A [`Runtime`] attaches containers to it, and detaches them. Plugins that are part of this library
//! run in the calling process; others are executed, as the protocol says.
//!
//! ```no_run
//! use std::path::Path;
//! use cni_all::runtime::{Attachment, Directory, Runtime};
//!
//! # fn main() -> Result<(), cni_all::cni::Error> {
//! let configured = Directory::read(Path::new("/etc/cni/net.d"))?;
//! for broken in &configured.broken {
//!     eprintln!("{broken}"); // /etc/cni/net.d/10-a.conf: … at line 3 column 7
//! }
//! let network = configured.find("mynet")?;
//!
//! let runtime = Runtime::new(["/opt/cni/bin"]);
//! let container = Attachment::new("0123abcd", "/run/netns/demo", "eth0");
//! let result = runtime.add(network, &container)?;
//! for ip in &result.ips {
//!     println!("{}", ip.address);
//! }
//! runtime.check(network, &container)?;
//! runtime.del(network, &container)?;
//! # Ok(()) }
//! ```
//!
//! Capability arguments go to the plugins that declare them:
//!
//! ```
//! use cni_all::cni::json::Value;
//! use cni_all::runtime::{Attachment, NetworkList};
//!
//! let network = NetworkList::parse(br#"{"cniVersion": "1.0.0", "name": "mynet", "plugins": [
//!     {"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.22.0.0/16"}},
//!     {"type": "portmap", "capabilities": {"portMappings": true}}
//! ]}"#)?;
//! assert_eq!(network.capabilities(), ["portMappings"]);
//!
//! let mapping = Value::parse(br#"[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]"#)?;
//! let container = Attachment {
//!     capability_args: vec![("portMappings".to_owned(), mapping)],
//!     ..Attachment::new("0123abcd", "/run/netns/demo", "eth0")
//! };
//! # let _ = container;
//! # Ok::<(), cni_all::cni::Error>(())
//! ```
//!
//! What an edited configuration says for containers that are attached already, [`Runtime::update`] makes true, as far as
//! that goes without a new address:
//!
//! ```no_run
//! # use std::path::Path;
//! # use cni_all::runtime::{Attachment, NetworkList, Runtime};
//! # fn main() -> Result<(), cni_all::cni::Error> {
//! let network = NetworkList::load(Path::new("/etc/cni/net.d/10-mynet.conflist"))?;
//! let runtime = Runtime::new(["/opt/cni/bin"]);
//! for kept in runtime.cached_attachments(None)?.iter().filter(|kept| kept.network == network.name) {
//!     let container = Attachment::new(&kept.container_id, "", &kept.ifname);
//!     let updated = runtime.update(&network, &container)?;
//!     for command in &updated.commands {
//!         println!("{command}"); // ip link set dev veth1b2c3d4e mtu 1400
//!     }
//! }
//! # Ok(()) }
//! ```
//!
//! What ADD returned is kept below `/var/lib/cni/results`, where libcni keeps it and in its format: either can detach
//! what the other attached.

mod base64;
mod cache;
mod chain;
pub(crate) mod conflist;
mod difference;
mod run;
mod update;

pub use cache::CachedAttachment;
pub use conflist::{Directory, NetworkList};
pub use difference::KeyChange;
pub use run::{Attachment, CACHE_DIR, Runtime};
pub use update::Updated;
