//! Steps that main plugins share, named after what they do.

pub mod address;
pub mod container;
pub mod ipam;
pub mod owner;
pub mod undo;
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
