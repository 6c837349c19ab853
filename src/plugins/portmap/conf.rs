//! The configuration, as written and as checked.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use nix::libc;
use serde::Deserialize;

use super::conditions::{Conditions, Language};
use crate::cni::json::Value;
use crate::cni::names::parse_ip;
use crate::cni::{CniResult, Error, Request, Result};
use crate::kernel::nft::Family;

/// The JSON, as written.
#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    /// `nftables` or `iptables`; default: nftables.
    backend: Option<String>,
    /// Masquerade hairpin and localhost connections; default: true.
    snat: bool,
    /// Masquerade all forwarded connections.
    masq_all: bool,
    /// Number of a bit, 0 to 31, of the packet mark; default: 13. Only iptables uses it.
    mark_masq_bit: Option<i64>,
    /// A chain that marks what is to be masqueraded. Only iptables has it.
    external_set_mark_chain: Option<String>,
    /// Words of iptables or nft.
    conditions_v4: Option<Vec<String>>,
    /// Words of ip6tables or nft.
    conditions_v6: Option<Vec<String>>,
    runtime_config: RuntimeConfigWire,
}

impl Default for Wire {
    fn default() -> Wire {
        Wire {
            backend: None,
            snat: true,
            masq_all: false,
            mark_masq_bit: None,
            external_set_mark_chain: None,
            conditions_v4: None,
            conditions_v6: None,
            runtime_config: RuntimeConfigWire::default(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfigWire {
    port_mappings: Vec<MappingWire>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MappingWire {
    host_port: i64,
    container_port: i64,
    /// `tcp`, `udp` or `sctp`, in any case.
    protocol: String,
    /// An address of the host; `0.0.0.0` or `::` for all of that family; default: all of both.
    #[serde(rename = "hostIP")]
    host_ip: String,
}

/// Which rules ADD writes (`backend`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Our maps; the default.
    Nftables,
    /// Rules that `iptables-nft -t nat -S` lists as the Go plugin would have written them.
    Iptables,
}

/// A port of the host that leads to a port of the container. It prints as `8080/tcp`, `192.0.2.1:8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// `IPPROTO_*`
    pub protocol: u8,
    /// The host's address; unspecified for all of its family, `None` for all of both.
    pub host_ip: Option<IpAddr>,
    /// The port at the host.
    pub host_port: u16,
    /// The port in the container.
    pub container_port: u16,
}

impl Mapping {
    /// The host's address as far as connections of this family are concerned: unspecified for all, `None` for none.
    pub fn host_ip_of(&self, family: Family) -> Option<IpAddr> {
        let any: IpAddr = match family {
            Family::Ip6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        self.host_ip.map_or(Some(any), |own| Some(own).filter(|own| Family::of(*own) == family))
    }
}

impl fmt::Display for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip.filter(|address| !address.is_unspecified()) {
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
            Some(address) => write!(f, "{address}:")?,
            None => {}
        }
        write!(f, "{}/{}", self.host_port, protocol_name(self.protocol))
    }
}

/// Protocols whose ports can be mapped.
const PROTOCOLS: [(&str, i32); 3] =
    [("tcp", libc::IPPROTO_TCP), ("udp", libc::IPPROTO_UDP), ("sctp", libc::IPPROTO_SCTP)];

/// The number of a protocol whose ports can be mapped.
pub fn protocol_number(name: &str) -> Option<u8> {
    let found = PROTOCOLS.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
    found.map(|(_, number)| *number as u8)
}

/// The name of a protocol of a mapping.
pub fn protocol_name(number: u8) -> &'static str {
    PROTOCOLS.iter().find(|(_, known)| *known == i32::from(number)).map_or("?", |(name, _)| name)
}

/// The bit of the packet mark that says "masquerade", unless the configuration names another. (Kubernetes uses 14 and
/// 15, Calico 20 to 31.)
const DEFAULT_MARK_BIT: i64 = 13;

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Conf {
    /// How rules are written.
    pub backend: Backend,
    /// Connections that would not find their way back otherwise are masqueraded.
    pub snat: bool,
    /// All forwarded connections are masqueraded.
    pub masq_all: bool,
    /// The bit of the packet mark that iptables rules use.
    pub mark: u32,
    /// The chain that iptables rules use instead of setting that bit.
    pub external_set_mark_chain: Option<String>,
    /// Further conditions on IPv4 and on IPv6 connections.
    conditions: [Conditions; 2],
    /// In the order given, each once.
    pub mappings: Vec<Mapping>,
}

impl Conf {
    /// Reads and checks it.
    ///
    /// # Errors
    /// The first value that is not valid, named.
    pub fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        if wire.mark_masq_bit.is_some() && wire.external_set_mark_chain.is_some() {
            return Err(Error::config("Cannot specify externalSetMarkChain and markMasqBit"));
        }
        let bit = wire.mark_masq_bit.unwrap_or(DEFAULT_MARK_BIT);
        if !(0..=31).contains(&bit) {
            return Err(Error::config(format!("markMasqBit: {bit} is not a bit of a mark (0 to 31)")));
        }
        let conditions = [
            Conditions::new("conditionsV4", wire.conditions_v4, Family::Ip)?,
            Conditions::new("conditionsV6", wire.conditions_v6, Family::Ip6)?,
        ];
        let backend = backend(wire.backend.as_deref(), wire.external_set_mark_chain.is_some(), &conditions)?;
        Ok(Conf {
            backend,
            snat: wire.snat,
            masq_all: wire.masq_all,
            mark: 1 << bit,
            external_set_mark_chain: wire.external_set_mark_chain,
            conditions,
            mappings: mappings(&wire.runtime_config.port_mappings)?,
        })
    }

    /// Further conditions on connections of one family.
    pub fn conditions(&self, family: Family) -> &Conditions {
        let [v4, v6] = &self.conditions;
        if family == Family::Ip6 { v6 } else { v4 }
    }
}

/// The backend that is named, or that has what else is named. What only the other backend has is refused, as the Go
/// plugin does; without `backend`, conditions are read in either language.
fn backend(written: Option<&str>, external_chain: bool, conditions: &[Conditions; 2]) -> Result<Backend> {
    let (backend, foreign) = match written {
        None if external_chain => return Ok(Backend::Iptables),
        None => return Ok(Backend::Nftables),
        Some("nftables") => (Backend::Nftables, Language::Iptables),
        Some("iptables") => (Backend::Iptables, Language::Nft),
        Some(other) => return Err(Error::config(format!("unrecognized backend {other:?}"))),
    };
    let mut wrong = Vec::new();
    if external_chain && backend == Backend::Nftables {
        wrong.push("externalSetMarkChain");
    }
    for (key, own) in ["conditionsV4", "conditionsV6"].into_iter().zip(conditions) {
        if own.language() == Some(foreign) {
            wrong.push(key);
        }
    }
    if wrong.is_empty() {
        return Ok(backend);
    }
    let (is, other) = match backend {
        Backend::Nftables => ("nftables", "iptables"),
        Backend::Iptables => ("iptables", "nftables"),
    };
    let wrong = wrong.join(" ");
    Err(Error::config(format!(
        "{is} backend was requested but configuration contains {other}-specific options [{wrong}]"
    )))
}

/// What `runtimeConfig.portMappings` says.
///
/// # Errors
/// The first value that is not valid, named.
pub fn requested(value: &Value) -> Result<Vec<Mapping>> {
    mappings(&value.read::<Vec<MappingWire>>()?)
}

fn mappings(wires: &[MappingWire]) -> Result<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::with_capacity(wires.len());
    let mut by_port: HashMap<(u8, u16), Vec<Mapping>> = HashMap::new();
    for (n, wire) in wires.iter().enumerate() {
        let fault =
            |key: &str, what: String| Error::config(format!("runtimeConfig.portMappings[{n}].{key}: {what}"));
        let port = |key: &str, value: i64| match u16::try_from(value) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(fault(key, format!("{value} is not a port (1 to 65535)"))),
        };
        let Some(protocol) = protocol_number(&wire.protocol) else {
            return Err(fault("protocol", format!("{:?} is not tcp, udp or sctp", wire.protocol)));
        };
        let host_ip = match wire.host_ip.as_str() {
            "" => None,
            text => Some(
                parse_ip(text).ok_or_else(|| fault("hostIP", format!("{text:?} is not an IP address")))?,
            ),
        };
        let mapping = Mapping {
            protocol,
            host_ip,
            host_port: port("hostPort", wire.host_port)?,
            container_port: port("containerPort", wire.container_port)?,
        };
        let overlaps = |other: &&Mapping| {
            [Family::Ip, Family::Ip6].into_iter().any(|family| {
                other.host_ip_of(family).is_some() && other.host_ip_of(family) == mapping.host_ip_of(family)
            })
        };
        let same_port = by_port.entry((mapping.protocol, mapping.host_port)).or_default();
        match same_port.iter().find(overlaps) {
            Some(other) if other.container_port != mapping.container_port => {
                let msg = format!("{mapping} is mapped to container port {} as well", other.container_port);
                return Err(fault("hostPort", msg));
            }
            _ if same_port.contains(&mapping) => {}
            _ => {
                same_port.push(mapping);
                mappings.push(mapping);
            }
        }
    }
    Ok(mappings)
}

/// The addresses that ports are mapped to: the first IPv4 and the first IPv6 address of the container's interface.
///
/// Addresses of other interfaces (a bridge's, say) are skipped as far as the result tells them apart.
pub fn container_addresses(prev: &CniResult, ifname: &str) -> Vec<IpNet> {
    let inside = |n: i64| {
        let interface = usize::try_from(n).ok().and_then(|n| prev.interfaces.get(n));
        interface.is_none_or(|interface| interface.name == ifname && !interface.sandbox.is_empty())
    };
    let own = prev.ips.iter().filter(|ip| ip.interface.is_none_or(inside)).map(|ip| ip.address);
    let first = |v4: bool| own.clone().find(|net| net.addr().is_ipv4() == v4);
    [first(true), first(false)].into_iter().flatten().collect()
}
