//! Steps that main plugins share, named after what they do.

use crate::cni::Request;

pub mod address;
pub mod container;
pub mod forwarding;
pub mod ipam;
pub mod live;
pub mod mac;
pub mod masquerade;
pub mod mtu;
pub mod owner;
pub mod redirect;
pub mod spoofcheck;
pub mod state;
pub mod sublink;
pub mod teardown;
pub mod undo;
pub mod verify;
pub mod veth;

/// The identity of an attachment (CNI spec, "Overview of all operations"): what DEL and GC find things by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The container's id.
    pub container_id: &'a str,
    /// The interface's name in the container.
    pub ifname: &'a str,
}

impl<'a> Attachment<'a> {
    /// The attachment a request is about.
    pub fn of(req: &'a Request) -> Attachment<'a> {
        Attachment { network: &req.config.name, container_id: &req.container_id, ifname: &req.ifname }
    }
}
