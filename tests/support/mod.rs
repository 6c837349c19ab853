//! What the black-box tests share: a throw-away node with its own network namespaces, calls of plugins as a runtime
//! makes them, and looks at what the kernel holds afterwards.
//!
//! A test target takes it in with `#[path = "../support/mod.rs"] mod support;` at its crate root and usually reads:
//!
//! ```ignore
//! #[test]
//! fn the_gateway_answers_as_soon_as_add_returns() {
//!     require_netns!();
//!     let node = Node::new();
//!     let container = node.container();
//!     let attachment = node.attach(&container, "eth0", &json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", …}));
//!     assert!(container.pings("10.1.0.1"));
//!     attachment.del();
//! }
//! ```
//!
//! Everything is removed when the values are dropped; what a killed test run left behind is removed by the next one.
//!
//! Environment:
//! - `CNI_ALL_TEST_PLUGINS=/usr/lib/cni`: test the plugins of that directory instead of ours.
//! - `CNI_ALL_TEST_EXE=PATH`: test this build of the executable (a static one, say) instead of cargo's.
//! - `CNI_ALL_TEST_SLOWNESS=10`: time limits are stretched so many times; for emulated machines.
//! - `CNI_ALL_STRICT=1`: a test that cannot run fails instead of printing SKIP.

// Each test target uses its own part of this module.
#![allow(dead_code, unused_imports, unused_macros)]

mod call;
mod netns;
mod node;
mod patience;
mod skip;
mod snapshot;
mod traffic;
mod workdir;

pub use call::{Call, Failure, Outcome};
pub use netns::Netns;
pub use node::{Attachment, Container, Node, Outside};
pub use patience::{patience, slowness};
pub use skip::{has_kind, missing_privilege, missing_tool, skip, skip_for_kernel};
pub(crate) use skip::{require_kind, require_netns, require_tool};
pub use snapshot::{Snapshot, assert_same, assert_same_after};
pub use workdir::{PLUGINS, Workdir, executable, foreign_plugins, leases_in};

/// Every protocol version, oldest first.
pub static VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The versions that a plugin speaks: chained plugins need results that name interfaces.
pub fn versions_of(plugin: &str) -> &'static [&'static str] {
    match plugin {
        "bandwidth" | "tc-redirect-tap" => &VERSIONS[2..],
        "vrf" => &VERSIONS[3..],
        _ => &VERSIONS,
    }
}
