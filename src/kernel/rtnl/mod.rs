//! rtnetlink: links, addresses, routes and bridge VLANs, read and changed over one socket for each namespace.
//!
//! [`Handle`] owns the socket. A change is a value ([`Change`]) that prints as the `ip` or `bridge` command an operator
//! would type; errors start with that text. Messages are written and read in `wire.rs`, straight into and out of one
//! buffer: neli's typed builders can fail and allocate for every attribute, so of neli this uses the socket and the names.

mod address;
mod change;
mod change_text;
mod dry_run;
mod handle;
mod link;
mod mac;
mod needs;
mod neighbour;
mod netconf;
mod port_vlan;
mod probe;
mod route;
mod rule;
mod socket;
mod sublink;
mod surroundings;
pub mod tc;
mod tc_text;
pub mod uapi;
mod vrf;
mod watch;
mod wire;

pub use address::Address;
pub use change::{AddAddress, AddBridge, AddVeth, Change, PeerNetns, PortFlags, SetLink, VethPeer};
pub(in crate::kernel) use dry_run::make_tap;
pub use handle::{Handle, Step};
#[allow(unused_imports)] // Bridge and Port: for those who build a Link in a test
pub use link::{Bridge, Dev, Link, Port, Tun};
pub use mac::Mac;
pub use needs::option_of_kind;
pub use port_vlan::{PortVlan, VlanRange};
pub use probe::has_kind;
pub use route::{NextHop, Route, RouteSpec};
pub use rule::{Rule, RuleSpec, free_table};
pub use sublink::{AddSubLink, IpvlanMode, MacvlanMode, SubKind};
pub use vrf::AddVrf;
pub use watch::{AddressWatch, Event, LinkWatch};

pub(super) use socket::Socket;
pub(super) use wire::{Attributes, Attrs, Batch, Messages, ip_of};

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
pub(in crate::kernel) mod private_netns;
