//! DHCPv4 messages as bytes (RFC 2131 section 2, options RFC 2132, long options RFC 3396).
//!
//! dhcproto reads and writes them. Around it: what it would panic on is refused first (`hlen`), options are joined as
//! RFC 3396 says (wherever their parts stand, and in `file` and `sname` when option 52 says so), and one malformed option
//! does not hide the others.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use dhcproto::v4::borrowed::{DhcpOptionIterator, Message as View};
use dhcproto::v4::{self, DhcpOption, Flags, Message, OptionCode, encode_long_opt_bytes};
use dhcproto::{Decodable, Encodable, Encoder};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::plugins::dhcp::names::is_domain;
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
const MIN_SIZE: usize = v4::MIN_PACKET_SIZE;

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
    let mut flags = Flags::default();
    if message.broadcast {
        flags = flags.set_broadcast();
    }
    let none = Ipv4Addr::UNSPECIFIED;
    let mut packet = Message::new_with_id(message.xid, message.ciaddr, none, none, none, &message.mac);
    packet.set_flags(flags).set_secs(message.secs);
    let mut bytes = Vec::with_capacity(MIN_SIZE);
    let mut encoder = Encoder::new(&mut bytes);
    // Writing to memory does not fail.
    let _ = packet.encode(&mut encoder);
    let kind = [message.kind as u8];
    let all = std::iter::once((code::TYPE, kind.as_slice()));
    let others = message.options.0.iter().filter(|(c, _)| **c != code::TYPE);
    let mut all: Vec<(u8, &[u8])> = all.chain(others.map(|(c, v)| (*c, v.as_slice()))).collect();
    all.sort_by_key(|(code, _)| *code);
    for (code, value) in all {
        let _ = encode_long_opt_bytes(code.into(), value, &mut encoder);
    }
    let _ = DhcpOption::End.encode(&mut encoder);
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
    let view = View::new(bytes).map_err(|_| "too short for a DHCP message")?;
    if view.opcode() != v4::Opcode::BootReply {
        return Err("no reply");
    }
    if view.htype() != v4::HType::Eth || view.hlen() != 6 {
        return Err("not for an Ethernet client");
    }
    if bytes.get(OPTIONS - 4..OPTIONS) != Some(v4::MAGIC.as_slice()) {
        return Err("no DHCP options");
    }
    let options = Options::of(bytes);
    let kind = match options.0.get(&code::TYPE).map(Vec::as_slice) {
        Some([2]) => Kind::Offer,
        Some([5]) => Kind::Ack,
        Some([6]) => Kind::Nak,
        _ => return Err("no OFFER, ACK or NAK"),
    };
    let mac = view.chaddr().try_into().map_err(|_| "not for an Ethernet client")?;
    Ok(Reply { kind, xid: view.xid(), mac, yiaddr: view.yiaddr(), options })
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

    /// Appends the options of one field.
    fn join(&mut self, field: &[u8]) {
        for option in DhcpOptionIterator::new(field) {
            self.0.entry(option.code().into()).or_default().extend_from_slice(option.data());
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

    /// The value as dhcproto reads it; `None` when it is absent or malformed.
    fn typed(&self, code: u8) -> Option<DhcpOption> {
        let value = self.get(code)?;
        let mut bytes = Vec::with_capacity(value.len() + 2);
        encode_long_opt_bytes(OptionCode::from(code), value, &mut Encoder::new(&mut bytes)).ok()?;
        DhcpOption::from_bytes(&bytes).ok()
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
        match self.typed(code::DOMAIN)? {
            DhcpOption::DomainName(name) => {
                // Servers written in C send the terminating NUL as well.
                let name = name.trim_end_matches('\0').trim_end_matches('.');
                is_domain(name).then(|| name.to_owned())
            }
            _ => None,
        }
    }

    /// The search list (option 119); what is no name is left out.
    pub fn search(&self) -> Vec<String> {
        match self.typed(code::SEARCH) {
            Some(DhcpOption::DomainSearch(names)) => crate::plugins::dhcp::names::domains(&names),
            _ => Vec::new(),
        }
    }

    /// Static routes with the netmask of the destination's class (option 33).
    pub fn classful_routes(&self) -> Vec<(Ipv4Net, Ipv4Addr)> {
        let Some(DhcpOption::StaticRoutingTable(pairs)) = self.typed(code::STATIC_ROUTES) else {
            return Vec::new();
        };
        let route = |(destination, router): (Ipv4Addr, Ipv4Addr)| {
            let length = match destination.octets()[0] {
                0..=127 => 8,
                128..=191 => 16,
                _ => 24,
            };
            // 0.0.0.0 is no destination here (RFC 2132 section 5.8).
            let usable = !destination.is_unspecified() && is_host(router);
            Ipv4Net::new(destination, length).ok().filter(|_| usable).map(|net| (net, router))
        };
        pairs.into_iter().filter_map(route).collect()
    }

    /// Classless routes (option 121); `None` when absent, empty or malformed in any part. A router of 0.0.0.0 means that
    /// the destination is on the link.
    pub fn classless_routes(&self) -> Option<Vec<(Ipv4Net, Ipv4Addr)>> {
        let length = self.get(code::CLASSLESS_ROUTES)?.len();
        let Some(DhcpOption::ClasslessStaticRoute(routes)) = self.typed(code::CLASSLESS_ROUTES) else {
            return None;
        };
        // dhcproto stops at what it cannot read: then something is left over.
        let read: usize = routes.iter().map(|(net, _)| 5 + usize::from(net.prefix_len()).div_ceil(8)).sum();
        let usable = |router: Ipv4Addr| router.is_unspecified() || is_host(router);
        let whole = length > 0 && read == length && routes.iter().all(|(_, router)| usable(*router));
        whole.then_some(routes)
    }
}

/// An address that a host on a network can have.
pub fn is_host(ip: Ipv4Addr) -> bool {
    !(ip.octets()[0] == 0 || ip.is_loopback() || ip.is_multicast() || ip.octets()[0] >= 240)
}
