//! What an attachment wants from DHCP: the configuration, decoded and checked. The plugin makes it, the daemon gets it and
//! remembers it with the lease.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose lease it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// The container's id.
    pub container: String,
    /// The network's name.
    pub network: String,
    /// The interface's name in the container.
    pub ifname: String,
}

impl Key {
    /// It is of this network, and of none of these containers and interfaces.
    pub fn is_stale(&self, network: &str, valid: &[(String, String)]) -> bool {
        self.network == network
            && !valid.iter().any(|(container, ifname)| *container == self.container && *ifname == self.ifname)
    }
}

/// `CONTAINER/NETWORK/IFNAME`: the text of the Go plugin's client identifier.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.container, self.network, self.ifname)
    }
}

/// What servers know the client by (option 61), unless `provide` says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientId {
    /// A zero byte and the text of [`Key`], at most 254 bytes: as the Go plugin.
    #[default]
    Name,
    /// RFC 4361: 255, an IAID that is made from the [`Key`], and the host's DUID.
    Duid,
    /// RFC 2132: 1 and the hardware address.
    Mac,
}

/// How IPv6 addresses are got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ipv6 {
    /// Not at all.
    #[default]
    None,
    /// From router advertisements (RFC 4862).
    Slaac,
    /// From a DHCPv6 server (RFC 8415); routes come from router advertisements, if there are any.
    Dhcpv6,
    /// Both.
    Both,
}

/// What an attachment wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wanted {
    /// Whose it is.
    pub key: Key,
    /// Path of the container's network namespace, as the plugin was given it.
    pub netns: String,
    /// IPv4 by DHCP.
    pub ipv4: bool,
    /// How IPv6 is set up.
    pub ipv6: Ipv6,
    /// Ask for a prefix as well (RFC 8415, IA_PD).
    pub prefix_delegation: bool,
    /// Options to send, with their values as bytes.
    pub provide: Vec<(u8, Vec<u8>)>,
    /// Options to ask for.
    pub request: Vec<u8>,
    /// Client identifier.
    pub client_id: ClientId,
    /// Metric of every route; 0: not set.
    pub priority: u32,
    /// Probe an address before it is used.
    pub conflict_detection: bool,
}

impl Wanted {
    /// Whether IPv6 is set up at all.
    pub fn wants_ipv6(&self) -> bool {
        self.ipv6 != Ipv6::None
    }
}
