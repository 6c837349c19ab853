//! Steps that main plugins share, named after what they do.

pub mod masquerade;
pub mod spoofcheck;

/// The identity of one attachment: what the CNI spec says is unique for a container's interface on a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attachment<'a> {
    /// The network's name (`name` of the configuration).
    pub network: &'a str,
    /// `CNI_CONTAINERID`
    pub container_id: &'a str,
    /// `CNI_IFNAME`
    pub ifname: &'a str,
}
