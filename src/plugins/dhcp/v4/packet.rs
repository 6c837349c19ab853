//! DHCPv4 messages as bytes (RFC 2131 section 2, options RFC 2132, long options RFC 3396).
//!
//! Options are joined as RFC 3396 says (wherever their parts stand, and in `file` and `sname` when option 52 says so), and
//! one malformed option does not hide the others.
//!
//! No crate does this: dhcproto 0.15 panics on an address length over 16, reads no overloaded fields, stops at the first
//! malformed option, and brings sixty crates along.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::plugins::dhcp::names::{domains, is_domain};
use crate::plugins::dhcp::options;

/// Option codes that the client itself knows (RFC 2132 unless said otherwise).
pub mod code {
    /// Subnet mask.
    pub const SUBNET_MASK: u8 = 1;
    /// Routers.
    pub const ROUTERS: u8 = 3;
    /// Domain name servers.
    pub const DNS: u8 = 6;
    /// Host name.
    pub const HOST_NAME: u8 = 12;
    /// Domain name.
    pub const DOMAIN: u8 = 15;
    /// MTU of the interface.
    pub const MTU: u8 = 26;
    /// Static routes, classful.
    pub const STATIC_ROUTES: u8 = 33;
    /// NTP servers.
    pub const NTP: u8 = 42;
    /// Requested address.
    pub const REQUESTED: u8 = 50;
    /// Lease time in seconds.
    pub const LEASE_TIME: u8 = 51;
    /// `file` and `sname` hold options.
    pub const OVERLOAD: u8 = 52;
    /// Message type.
    pub const TYPE: u8 = 53;
    /// Server identifier.
    pub const SERVER: u8 = 54;
    /// Parameter request list.
    pub const REQUEST_LIST: u8 = 55;
    /// A text for people.
    pub const MESSAGE: u8 = 56;
    /// Longest message that the client takes.
    pub const MAX_SIZE: u8 = 57;
    /// T1 in seconds.
    pub const T1: u8 = 58;
    /// T2 in seconds.
    pub const T2: u8 = 59;
    /// Vendor class.
    pub const VENDOR_CLASS: u8 = 60;
    /// Client identifier.
    pub const CLIENT_ID: u8 = 61;
    /// User class (RFC 3004).
    pub const USER_CLASS: u8 = 77;
    /// Domain search list (RFC 3397).
    pub const SEARCH: u8 = 119;
    /// Classless static routes (RFC 3442).
    pub const CLASSLESS_ROUTES: u8 = 121;
}

/// Longest message we say we take (option 57), and do: an Ethernet frame's worth.
pub const MAX_SIZE: u16 = 1500;

/// Servers may drop what is shorter (RFC 1542 section 2.1).
const MIN_SIZE: usize = 300;

/// What stands before options (RFC 2131 section 3).
const MAGIC: [u8; 4] = [99, 130, 83, 99];

/// `op` of a client's and a server's message; `htype` and `hlen` of Ethernet.
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: [u8; 2] = [1, 6];

/// Codes without a length.
const PAD: u8 = 0;
const END: u8 = 255;

/// `file` and `sname` in a message.
const FILE: std::ops::Range<usize> = 108..236;
const SNAME: std::ops::Range<usize> = 44..108;
const OPTIONS: usize = 240;

/// Message types (option 53).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
}

/// The options of one message, by code; each value joined from its parts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Options(pub BTreeMap<u8, Vec<u8>>);

/// A message from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Type: OFFER, ACK or NAK.
    pub kind: Kind,
    /// Transaction id.
    pub xid: u32,
    /// The client's address on the link.
    pub mac: [u8; 6],
    /// The address that the client is offered or given.
    pub yiaddr: Ipv4Addr,
    /// Options.
    pub options: Options,
}

/// A message of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Type.
    pub kind: Kind,
    /// Transaction id.
    pub xid: u32,
    /// Seconds since the client began.
    pub secs: u16,
    /// The server shall answer by broadcast.
    pub broadcast: bool,
    /// The address that the client has, in states where it may use it.
    pub ciaddr: Ipv4Addr,
    /// The client's address on the link.
    pub mac: [u8; 6],
    /// Options but the type.
    pub options: Options,
}

/// The bytes of a message: ascending option codes, long values in parts of 255 bytes, at least 300 bytes.
pub fn encode(message: &Outgoing) -> Vec<u8> {
    let mut bytes = vec![0; OPTIONS];
    bytes[0] = BOOT_REQUEST;
    bytes[1..3].copy_from_slice(&ETHERNET);
    bytes[4..8].copy_from_slice(&message.xid.to_be_bytes());
    bytes[8..10].copy_from_slice(&message.secs.to_be_bytes());
    bytes[10] = if message.broadcast { 0x80 } else { 0 };
    bytes[12..16].copy_from_slice(&message.ciaddr.octets());
    bytes[28..34].copy_from_slice(&message.mac);
    bytes[OPTIONS - 4..].copy_from_slice(&MAGIC);
    let kind = [message.kind as u8];
    let others = message.options.0.iter().filter(|(c, _)| **c != code::TYPE);
    let mut all: Vec<(u8, &[u8])> = others.map(|(c, v)| (*c, v.as_slice())).collect();
    all.push((code::TYPE, &kind));
    all.sort_unstable_by_key(|(code, _)| *code);
    for (code, value) in all {
        for part in value.chunks(usize::from(u8::MAX)) {
            bytes.extend_from_slice(&[code, part.len() as u8]);
            bytes.extend_from_slice(part);
        }
    }
    bytes.push(END);
    if bytes.len() < MIN_SIZE {
        bytes.resize(MIN_SIZE, 0);
    }
    bytes
}

/// Reads a server's message for an Ethernet client.
///
/// # Errors
/// Why it is none, for the log.
pub fn decode(bytes: &[u8]) -> Result<Reply, &'static str> {
    let header: &[u8; OPTIONS] = bytes.first_chunk().ok_or("too short for a DHCP message")?;
    if header[0] != BOOT_REPLY {
        return Err("no reply");
    }
    if header[1..3] != ETHERNET {
        return Err("not for an Ethernet client");
    }
    if header[OPTIONS - 4..] != MAGIC {
        return Err("no DHCP options");
    }
    let options = Options::of(bytes);
    let kind = match options.0.get(&code::TYPE).map(Vec::as_slice) {
        Some([2]) => Kind::Offer,
        Some([5]) => Kind::Ack,
        Some([6]) => Kind::Nak,
        _ => return Err("no OFFER, ACK or NAK"),
    };
    let [.., a, b, c, d] = header[..20] else { return Err("too short for a DHCP message") };
    let xid = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let mac = [header[28], header[29], header[30], header[31], header[32], header[33]];
    Ok(Reply { kind, xid, mac, yiaddr: Ipv4Addr::new(a, b, c, d), options })
}

impl Options {
    /// The options of a whole message, in the order of RFC 3396 section 5: options, then `file`, then `sname`.
    fn of(message: &[u8]) -> Options {
        let mut options = Options::default();
        options.join(message.get(OPTIONS..).unwrap_or_default());
        // Only option 52 of the options field counts: an overloaded field cannot overload others.
        let overload = options.0.get(&code::OVERLOAD).and_then(|v| v.first().copied()).unwrap_or(0);
        for (bit, field) in [(1, FILE), (2, SNAME)] {
            if overload & bit != 0 {
                options.join(message.get(field).unwrap_or_default());
            }
        }
        options
    }

    /// Appends the options of one field, up to its end or to one that does not fit.
    fn join(&mut self, mut field: &[u8]) {
        while let Some((&code, rest)) = field.split_first() {
            if code == PAD {
                field = rest;
                continue;
            }
            let Some((&length, rest)) = rest.split_first().filter(|_| code != END) else { return };
            let Some((value, rest)) = rest.split_at_checked(usize::from(length)) else { return };
            self.0.entry(code).or_default().extend_from_slice(value);
            field = rest;
        }
    }

    /// Every option by name: addresses, numbers and texts as such where the value can be one, else as hexadecimal digits.
    pub fn shown(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(code, value)| (options::name(*code), options::show(*code, value))).collect()
    }

    /// The raw value.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    /// A single number of four bytes.
    pub fn u32(&self, code: u8) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    /// A single number of two bytes.
    pub fn u16(&self, code: u8) -> Option<u16> {
        Some(u16::from_be_bytes(self.get(code)?.try_into().ok()?))
    }

    /// One address.
    pub fn ip(&self, code: u8) -> Option<Ipv4Addr> {
        self.u32(code).map(Ipv4Addr::from)
    }

    /// A list of addresses; empty when malformed. Addresses that no host can have are left out.
    pub fn ips(&self, code: u8) -> Vec<Ipv4Addr> {
        let value = self.get(code).filter(|v| v.len() % 4 == 0).unwrap_or_default();
        let ips = value.chunks_exact(4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]));
        ips.filter(|ip| is_host(*ip)).collect()
    }

    /// A text, as far as it can be shown: without line breaks and other control characters.
    pub fn text(&self, code: u8) -> Option<String> {
        let text = String::from_utf8_lossy(self.get(code)?).replace(char::is_control, " ");
        Some(text.trim().to_owned()).filter(|t| !t.is_empty())
    }

    /// The domain name (option 15); `None` when it is no name.
    pub fn domain(&self) -> Option<String> {
        // Servers written in C send the terminating NUL as well.
        let name =
            std::str::from_utf8(self.get(code::DOMAIN)?).ok()?.trim_end_matches('\0').trim_end_matches('.');
        is_domain(name).then(|| name.to_owned())
    }

    /// The search list (option 119); what is no name is left out.
    pub fn search(&self) -> Vec<String> {
        self.get(code::SEARCH).map(domains).unwrap_or_default()
    }

    /// Static routes with the netmask of the destination's class (option 33).
    pub fn classful_routes(&self) -> Vec<(Ipv4Net, Ipv4Addr)> {
        let value = self.get(code::STATIC_ROUTES).filter(|v| v.len() % 8 == 0).unwrap_or_default();
        let route = |b: &[u8]| {
            let length = match b[0] {
                0..=127 => 8,
                128..=191 => 16,
                _ => 24,
            };
            let (destination, router) =
                (Ipv4Addr::new(b[0], b[1], b[2], b[3]), Ipv4Addr::new(b[4], b[5], b[6], b[7]));
            // 0.0.0.0 is no destination here (RFC 2132 section 5.8).
            let usable = !destination.is_unspecified() && is_host(router);
            Ipv4Net::new(destination, length).ok().filter(|_| usable).map(|net| (net, router))
        };
        value.chunks_exact(8).filter_map(route).collect()
    }

    /// Classless routes (option 121); `None` when absent, empty or malformed in any part. A router of 0.0.0.0 means that
    /// the destination is on the link.
    pub fn classless_routes(&self) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
        let mut rest = self.get(code::CLASSLESS_ROUTES).filter(|value| !value.is_empty())?;
        let mut routes = Vec::new();
        while let Some((&length, tail)) = rest.split_first() {
            let (significant, tail) = tail.split_at_checked(usize::from(length).div_ceil(8))?;
            let (router, tail) = tail.split_first_chunk::<4>()?;
            let mut destination = [0; 4];
            destination.get_mut(..significant.len())?.copy_from_slice(significant);
            let (net, router) = (Ipv4Net::new(destination.into(), length).ok()?, Ipv4Addr::from(*router));
            if !(router.is_unspecified() || is_host(router)) {
                return None;
            }
            routes.push((net, router));
            rest = tail;
        }
        Some(routes)
    }
}

/// An address that a host on a network can have.
pub fn is_host(ip: Ipv4Addr) -> bool {
    !(ip.octets()[0] == 0 || ip.is_loopback() || ip.is_multicast() || ip.octets()[0] >= 240)
}
