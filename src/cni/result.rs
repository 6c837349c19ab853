//! What ADD returns, in the shape of the newest version (CNI spec, section 5 "Success").
//! [`super::convert`] reads and writes the older shapes.

use std::net::IpAddr;

use ipnet::IpNet;

/// A successful ADD: which interfaces, addresses, routes and name servers the container got.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CniResult {
    /// Interfaces, on the host and in the container. IPAM plugins leave this empty.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<IpConfig>,
    /// Routes that the container's interface got, or that an IPAM plugin wants it to get.
    pub routes: Vec<Route>,
    /// Name resolution.
    pub dns: Dns,
}

/// One interface of a result.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interface {
    /// The link's name.
    pub name: String,
    /// Hardware address, lower-case colon hex; empty when it has none.
    pub mac: String,
    /// MTU in bytes; 0 when not told.
    pub mtu: i64,
    /// Path of the namespace the interface is in; empty for the host's.
    pub sandbox: String,
    /// Path of a socket that belongs to the interface (vhost-user); empty when there is none.
    pub socket_path: String,
    /// PCI address of the device behind the interface; empty when there is none.
    pub pci_id: String,
}

/// One address of a result.
#[derive(Clone, Debug, PartialEq)]
pub struct IpConfig {
    /// Address and prefix length, host bits kept.
    pub address: IpNet,
    /// The gateway of the address's network.
    pub gateway: Option<IpAddr>,
    /// Index into [`CniResult::interfaces`] of the interface that has the address; an IPAM plugin gives none.
    pub interface: Option<i64>,
}

/// One route of a result or configuration. Numbers are as wide as the JSON lets them be; 0 means "not set" where the
/// kernel has no use for 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// Destination, host bits as written.
    pub dst: IpNet,
    /// Next hop; without one, the address's gateway is used.
    pub gw: Option<IpAddr>,
    /// MTU towards the destination, bytes; 0: not set.
    pub mtu: i64,
    /// TCP maximum segment size to advertise, bytes; 0: not set.
    pub advmss: i64,
    /// Metric: lower is preferred; 0: not set.
    pub priority: i64,
    /// Routing table; not set: main.
    pub table: Option<i64>,
    /// Scope (rtnetlink(7)): 0 universe, 253 link, 254 host.
    pub scope: Option<i64>,
}

impl Route {
    /// A route with nothing but a destination and, possibly, a next hop.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Route {
        Route { dst, gw, mtu: 0, advmss: 0, priority: 0, table: None, scope: None }
    }
}

/// Name resolution for the container (resolv.conf(5)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// The local domain; empty when not set.
    pub domain: String,
    /// Search list.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

impl Dns {
    /// Nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Dns::default()
    }
}
