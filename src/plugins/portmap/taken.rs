//! Host ports that rules lead to other containers already: rules in the Go plugin's iptables layout, whoever wrote them,
//! and what the Go plugin left in its nftables layout. Both come before our maps.

use std::fmt::Display;
use std::net::IpAddr;

use ipnet::IpNet;

use super::conf::{Conf, protocol_name};
use super::record::Record;
use super::{iptables, upstream};
use crate::attach::Attachment;
use crate::cni::{Code, Error, Result};
use crate::kernel::nft::{Change, Family, ListedRule, Side, Socket, Step};

/// A mapping that rules make.
pub struct Taken {
    /// The mapping.
    pub record: Record,
    /// The rule that translates.
    pub rule: ListedRule,
    /// The rule that leads to it, where there is one for each container.
    pub entry: Option<ListedRule>,
}

/// Which connections to a port a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Those to this address of the host; unspecified for all.
    pub host_ip: IpAddr,
    /// Those with further conditions only.
    pub conditional: bool,
}

impl Reach {
    /// Whether of two mappings of a port that have connections in common this one goes first: at one address before at
    /// all, with conditions before without.
    pub fn goes_before(self, other: Reach) -> bool {
        let rank = |reach: Reach| (!reach.host_ip.is_unspecified(), reach.conditional);
        let anywhere = self.host_ip.is_unspecified() || other.host_ip.is_unspecified();
        rank(self) > rank(other) && (anywhere || self.host_ip == other.host_ip)
    }

    /// Whether a mapping that goes first leaves the other one nothing, as far as can be told.
    pub fn covers(self, other: Reach) -> bool {
        (self.host_ip.is_unspecified() || self.host_ip == other.host_ip)
            && (!self.conditional || other.conditional)
    }
}

impl Taken {
    /// What it is for.
    pub fn reach(&self) -> Reach {
        Reach { host_ip: self.record.host_ip, conditional: !self.conditions().is_empty() }
    }

    /// What its entry asks for besides protocol, port and address.
    pub fn conditions(&self) -> Vec<&Step> {
        self.entry.as_ref().map(|entry| conditions(&entry.steps, &self.record)).unwrap_or_default()
    }

    /// Whether it is for the same port.
    pub fn is_at(&self, record: &Record) -> bool {
        (self.record.protocol, self.record.host_port) == (record.protocol, record.host_port)
    }

    /// Whether it is one of a container that is gone: its address is another container's now.
    pub fn is_stale(&self, address: IpAddr) -> bool {
        self.record.container_ip == address
    }

    /// The error for a mapping that cannot be made because of it.
    pub fn refused(&self) -> Error {
        let comment = self.entry.as_ref().unwrap_or(&self.rule).comment.as_deref().unwrap_or_default();
        let owner = match comment.split('"').collect::<Vec<_>>().as_slice() {
            ["dnat name: ", network, " id: ", id, ""] => match &self.rule.tag {
                Some(ifname) => format!("container {id} (network {network}, interface {ifname})"),
                None => format!("container {id} (network {network})"),
            },
            [id] if self.entry.is_none() => format!("container {id}"),
            _ => format!("rules with the comment {comment:?}"),
        };
        let Record { protocol, host_port, .. } = self.record;
        refused(format!("{} . {host_port}", protocol_name(protocol)), &owner)
    }
}

/// The error for a host port that someone has.
pub fn refused(port: impl Display, owner: &str) -> Error {
    Error::new(Code::PORT_IN_USE, format!("host port {port} is mapped already, by {owner}"))
}

/// Refuses mappings for our maps that rules of others, which come first, leave nothing; what removes rules of containers
/// that are gone.
///
/// Costs two questions for each family where there are no such rules.
///
/// # Errors
/// [`Code::PORT_IN_USE`], with the owner.
pub fn plan_before_maps(
    nft: &mut Socket,
    at: &Attachment,
    conf: &Conf,
    container: &[IpNet],
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for net in container {
        let records = Record::all(&conf.mappings, net.addr());
        if records.is_empty() {
            continue;
        }
        let family = Family::of(net.addr());
        let conditional = conf.conditions(family).language().is_some();
        let by_iptables = iptables::taken(nft, at, &records)?;
        let by_upstream = upstream::taken(nft, at, &records)?;
        refuse_covered(&by_iptables, &records, conditional)?;
        refuse_covered(&by_upstream, &records, conditional)?;
        iptables::plan_stale(nft, net.addr(), &by_iptables, &mut changes)?;
        changes.extend(upstream::plan_stale(net.addr(), &by_upstream));
    }
    Ok(changes)
}

/// Refuses mappings to which these, that go first, leave nothing.
///
/// # Errors
/// [`Code::PORT_IN_USE`], with the owner.
pub fn refuse_covered(all: &[Taken], records: &[Record], conditional: bool) -> Result<()> {
    for record in records {
        let reach = Reach { host_ip: record.host_ip, conditional };
        let covers = |taken: &&Taken| {
            taken.is_at(record) && !taken.is_stale(record.container_ip) && taken.reach().covers(reach)
        };
        if let Some(taken) = all.iter().find(covers) {
            return Err(taken.refused());
        }
    }
    Ok(())
}

/// What an entry asks for besides the protocol, port and address of a mapping.
pub fn conditions<'a>(steps: &'a [Step], record: &Record) -> Vec<&'a Step> {
    let host_ip = match record.host_ip {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let mut left = Vec::new();
    let mut rest = steps;
    while let [step, after @ ..] = rest {
        rest = after;
        let own = match step {
            Step::Protocol => &[record.protocol][..],
            // The destination's address, in the network header of IPv4 or IPv6.
            Step::Payload { base: 1, offset: 16 | 24, .. } => &host_ip,
            Step::Match(name, _) if name == "comment" || name == "multiport" => continue,
            Step::Verdict { .. } | Step::Counter => continue,
            _ => &[],
        };
        match rest {
            [Step::Compare { equal: true, data }, after @ ..] if !own.is_empty() && data == own => {
                rest = after
            }
            _ => left.push(step),
        }
    }
    left
}

/// The ports that an entry is for; `None` when it does not say: then what it leads to does.
pub fn ports(entry: &ListedRule) -> Option<Vec<u16>> {
    entry.steps.iter().find_map(|step| match step {
        Step::Match(name, info) if name == "multiport" => {
            // struct xt_multiport_v1: flags, number of ports, ports.
            let count = usize::from(*info.get(1)?);
            let ports = info.get(2..)?.chunks_exact(2).take(count);
            Some(ports.map(|port| u16::from_ne_bytes([port[0], port[1]])).collect())
        }
        _ => None,
    })
}

/// What is compared with what a rule loads by a step.
fn compared(steps: &[Step], load: impl Fn(&Step) -> bool) -> Option<&[u8]> {
    steps.windows(2).find_map(|pair| match pair {
        [first, Step::Compare { equal: true, data }] if load(first) => Some(data.as_slice()),
        _ => None,
    })
}

/// The protocol that a rule is for, if it is for one.
pub fn protocol(rule: &ListedRule) -> Option<u8> {
    compared(&rule.steps, |step| *step == Step::Protocol).and_then(|data| data.first().copied())
}

/// The mapping that a rule makes, in iptables' words or nft's; `None` for other rules.
pub fn read(rule: &ListedRule, family: Family) -> Option<Record> {
    let steps = rule.steps.as_slice();
    let port = |bytes: &[u8], from: fn([u8; 2]) -> u16| Some(from(bytes.get(..2)?.try_into().ok()?));
    let is_port = |step: &Step| matches!(step, Step::Payload { base: 2, offset: 2, length: 2 });
    let host_port = match compared(steps, is_port) {
        Some(bytes) => port(bytes, u16::from_be_bytes)?,
        // struct xt_sctp_info: destination ports first.
        None => steps.iter().find_map(|step| match step {
            Step::Match(name, info) if name == "sctp" => port(info, u16::from_ne_bytes),
            _ => None,
        })?,
    };
    let in_iptables = steps.iter().find_map(|step| match step {
        Step::Target(name, info) if name == "DNAT" => Some(match info.len() {
            // Revision 0, struct nf_nat_ipv4_multi_range_compat: number of ranges, flags, addresses, ports.
            ..32 => (info.get(8..12)?, info.get(16..)?),
            // struct nf_nat_range and nf_nat_range2: flags, addresses of 16 bytes, ports.
            _ => (info.get(4..if family == Family::Ip6 { 20 } else { 8 })?, info.get(36..)?),
        }),
        _ => None,
    });
    let in_nft = || {
        steps.windows(3).find_map(|steps| match steps {
            [Step::Constant(address), Step::Constant(port), Step::Nat { .. }] => {
                Some((&address[..], &port[..]))
            }
            _ => None,
        })
    };
    let (address, container_port) = in_iptables.or_else(in_nft)?;
    let container_ip = match <[u8; 4]>::try_from(address) {
        Ok(octets) => IpAddr::from(octets),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    let host_ip = rule.within(Side::Destination, family).map(|net| net.addr());
    let any: IpAddr = if family == Family::Ip6 { [0_u16; 8].into() } else { [0; 4].into() };
    Some(Record {
        protocol: protocol(rule)?,
        host_ip: host_ip.unwrap_or(any),
        host_port,
        container_ip,
        container_port: port(container_port, u16::from_be_bytes)?,
    })
}
