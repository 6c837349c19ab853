//! Router advertisements and solicitations, neighbour solicitations and advertisements as bytes (RFC 4861, RFC 4191,
//! RFC 8106): whole IPv6 packets, as packet sockets take and give them.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use crate::plugins::dhcp::frame::{add, fold};
use crate::plugins::dhcp::names::domains;

const ICMPV6: u8 = 58;
const HEADER: usize = 40;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// `ff02::2`, all routers.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// Least MTU of IPv6 (RFC 8200 section 5).
const LEAST_MTU: u32 = 1280;

/// A prefix that a router tells of. Lifetimes are in seconds, all ones for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The prefix.
    pub net: Ipv6Net,
    /// Its addresses are on the link.
    pub on_link: bool,
    /// Addresses may be made from it.
    pub autonomous: bool,
    /// Valid lifetime.
    pub valid: u32,
    /// Preferred lifetime.
    pub preferred: u32,
}

/// A router advertisement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Advertisement {
    /// Seconds for which the router is a default router; 0: it is none.
    pub lifetime: u16,
    /// DHCPv6 servers give more than this.
    pub stateless: bool,
    /// Prefixes.
    pub prefixes: Vec<Prefix>,
    /// Routes by this router and their lifetimes (RFC 4191).
    pub routes: Vec<(Ipv6Net, u32)>,
    /// MTU of the link.
    pub mtu: Option<u32>,
    /// Name servers and their lifetime.
    pub dns: Vec<(Ipv6Addr, u32)>,
    /// Search domains and their lifetime.
    pub search: Vec<(String, u32)>,
}

/// The payload of an ICMPv6 packet that has crossed no router, and its source and destination.
fn icmp(packet: &[u8], unfinished: bool) -> Option<(Ipv6Addr, Ipv6Addr, &[u8])> {
    let header: &[u8; HEADER] = packet.first_chunk()?;
    // Version 6, next header ICMPv6, hop limit 255.
    if header[0] >> 4 != 6 || header[6] != ICMPV6 || header[7] != 255 {
        return None;
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let body = packet.get(HEADER..HEADER + length)?;
    let (from, to) = (ip_at(header, 8)?, ip_at(header, 24)?);
    if !unfinished && fold(checksum(from, to, body)) != 0 {
        return None;
    }
    Some((from, to, body))
}

/// Reads a router advertisement, and which router it is from.
pub fn advertisement(packet: &[u8], unfinished: bool) -> Option<(Ipv6Addr, Advertisement)> {
    let (from, _, body) = icmp(packet, unfinished)?;
    if !from.is_unicast_link_local() || body.len() < 16 || body[..2] != [ROUTER_ADVERTISEMENT, 0] {
        return None;
    }
    let mut advert = Advertisement {
        lifetime: u16::from_be_bytes([body[6], body[7]]),
        stateless: body[5] & 0xc0 != 0,
        ..Advertisement::default()
    };
    let mut options = &body[16..];
    while !options.is_empty() {
        // RFC 4861 section 6.1.2: an option of no length makes the whole packet invalid.
        let length = usize::from(*options.get(1)?) * 8;
        let option = options.get(..length).filter(|option| !option.is_empty())?;
        advert.take(option);
        options = &options[length..];
    }
    Some((from, advert))
}

impl Advertisement {
    fn take(&mut self, option: &[u8]) -> Option<()> {
        match (option[0], option.len()) {
            (3, 32) => {
                let net = Ipv6Net::new(ip_at(option, 16)?, option[2]).ok()?.trunc();
                let (valid, preferred) = (u32_at(option, 4)?, u32_at(option, 8)?);
                if preferred <= valid
                    && !net.network().is_unicast_link_local()
                    && !net.network().is_multicast()
                {
                    let (on_link, autonomous) = (option[3] & 0x80 != 0, option[3] & 0x40 != 0);
                    self.prefixes.push(Prefix { net, on_link, autonomous, valid, preferred });
                }
            }
            (5, 8) => self.mtu = u32_at(option, 4).filter(|mtu| (LEAST_MTU..=65_535).contains(mtu)),
            (24, length @ (8 | 16 | 24)) => {
                let mut prefix = [0; 16];
                prefix[..length - 8].copy_from_slice(&option[8..]);
                let net = Ipv6Net::new(prefix.into(), option[2]).ok()?;
                if usize::from(option[2]) <= (length - 8) * 8 {
                    self.routes.push((net.trunc(), u32_at(option, 4)?));
                }
            }
            (25, length) if length >= 24 => {
                let lifetime = u32_at(option, 4)?;
                let servers = option[8..].chunks_exact(16).filter_map(|bytes| ip_at(bytes, 0));
                self.dns.extend(servers.filter(|ip| !ip.is_multicast()).map(|ip| (ip, lifetime)));
            }
            (31, length) if length >= 16 => {
                let lifetime = u32_at(option, 4)?;
                self.search.extend(domains(&option[8..]).into_iter().map(|name| (name, lifetime)));
            }
            _ => {}
        }
        Some(())
    }
}

/// A router solicitation from a link-local address.
pub fn router_solicitation(from: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut body = vec![ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    body.extend_from_slice(&mac);
    packet(from, ALL_ROUTERS, body)
}

/// A neighbour solicitation for duplicate address detection (RFC 4862 section 5.4.2).
pub fn probe(address: Ipv6Addr) -> Vec<u8> {
    let mut body = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&address.octets());
    packet(Ipv6Addr::UNSPECIFIED, solicited_node(address), body)
}

/// The hardware address of a multicast group (RFC 2464 section 7).
pub fn multicast_mac(group: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The group that a probe for an address goes to.
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// All routers' group.
pub fn all_routers() -> Ipv6Addr {
    ALL_ROUTERS
}

/// Whether a packet says that another machine has `address`, or is about to take it.
pub fn is_conflict(packet: &[u8], unfinished: bool, address: Ipv6Addr) -> bool {
    let Some((from, _, body)) = icmp(packet, unfinished) else { return false };
    match body.first() {
        Some(&NEIGHBOUR_ADVERTISEMENT) => ip_at(body, 8) == Some(address),
        Some(&NEIGHBOUR_SOLICITATION) => from.is_unspecified() && ip_at(body, 8) == Some(address),
        _ => false,
    }
}

fn packet(from: Ipv6Addr, to: Ipv6Addr, mut body: Vec<u8>) -> Vec<u8> {
    let sum = fold(checksum(from, to, &body));
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend_from_slice(&[ICMPV6, 255]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&body);
    packet
}

/// The sum over an ICMPv6 message and its pseudo header.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, body: &[u8]) -> u32 {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let sum = add(add(0, &from.octets()), &to.octets());
    add(add(add(sum, &length.to_be_bytes()), &[0, ICMPV6]), body)
}

fn ip_at(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    let bytes: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
    Some(bytes.into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
