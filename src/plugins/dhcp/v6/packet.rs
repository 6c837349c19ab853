//! DHCPv6 messages as bytes (RFC 8415 sections 8 and 21), read and written by dhcproto.

use std::net::Ipv6Addr;

use dhcproto::v6::{
    DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, IAPrefix, Message, MessageType, NtpSuboption, ORO,
    OptionCode, Status,
};
use dhcproto::{Decodable, Encodable, Encoder};
use ipnet::Ipv6Net;

use super::lease::{Lease, Times, is_host};
use crate::plugins::dhcp::clock::Millis;
use crate::plugins::dhcp::names::domains;

/// Longest message that is read: options can be nested, and the parser follows.
pub const MAX_SIZE: usize = 1500;

/// `Rapid Commit` and what else is asked for: name servers, search list, NTP servers.
const ASKED: [u16; 3] = [23, 24, 56];

/// Message types that a client sends or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Solicit,
    Advertise,
    Request,
    Confirm,
    Renew,
    Rebind,
    Reply,
    Release,
    Decline,
}

impl Kind {
    fn wire(self) -> MessageType {
        match self {
            Kind::Solicit => MessageType::Solicit,
            Kind::Advertise => MessageType::Advertise,
            Kind::Request => MessageType::Request,
            Kind::Confirm => MessageType::Confirm,
            Kind::Renew => MessageType::Renew,
            Kind::Rebind => MessageType::Rebind,
            Kind::Reply => MessageType::Reply,
            Kind::Release => MessageType::Release,
            Kind::Decline => MessageType::Decline,
        }
    }
}

/// Who the client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// DUID.
    pub duid: Vec<u8>,
    /// IAID of the addresses, and of the prefix.
    pub iaid: u32,
    /// A prefix is wanted as well.
    pub prefix: bool,
}

/// A message of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Type.
    pub kind: Kind,
    /// Transaction id, 24 bits.
    pub xid: u32,
    /// Milliseconds since the exchange began.
    pub elapsed: Millis,
    /// The server that is meant; none for all.
    pub server: Option<Vec<u8>>,
    /// Addresses and prefixes that it is about.
    pub lease: Option<Lease>,
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// ADVERTISE or REPLY.
    pub kind: Kind,
    /// Transaction id.
    pub xid: u32,
    /// DUID of the client that it is for.
    pub client: Vec<u8>,
    /// Preference of the server (RFC 8415 section 21.8).
    pub preference: u8,
    /// The server commits without a REQUEST.
    pub rapid: bool,
    /// Status of the whole message and its text; success when not said.
    pub status: (Status, String),
    /// Status of the identity association, likewise.
    pub association: (Status, String),
    /// What is given; the moments are not set.
    pub lease: Lease,
    /// How long.
    pub times: Times,
}

/// The bytes of a message.
pub fn encode(message: &Outgoing, identity: &Identity) -> Vec<u8> {
    let [_, xid @ ..] = message.xid.to_be_bytes();
    let mut packet = Message::new_with_id(message.kind.wire(), xid);
    let options = packet.opts_mut();
    options.insert(DhcpOption::ClientId(identity.duid.clone()));
    options.insert(DhcpOption::ElapsedTime(u16::try_from(message.elapsed / 10).unwrap_or(u16::MAX)));
    if let Some(server) = &message.server {
        options.insert(DhcpOption::ServerId(server.clone()));
    }
    if message.kind == Kind::Solicit {
        options.insert(DhcpOption::RapidCommit);
    }
    if matches!(message.kind, Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind) {
        options.insert(DhcpOption::ORO(ORO { opts: ASKED.map(OptionCode::from).to_vec() }));
    }
    let lease = message.lease.as_ref();
    let addresses = lease.map(|l| l.addresses.clone()).unwrap_or_default();
    let inside: DhcpOptions = addresses.into_iter().map(address).collect();
    options.insert(DhcpOption::IANA(IANA { id: identity.iaid, t1: 0, t2: 0, opts: inside }));
    // RFC 8415 sections 18.2.3 and 18.2.8: prefixes are neither confirmed nor declined.
    if identity.prefix && !matches!(message.kind, Kind::Confirm | Kind::Decline) {
        let prefixes = lease.map(|l| l.prefixes.clone()).unwrap_or_default();
        let inside: DhcpOptions = prefixes.into_iter().map(prefix).collect();
        options.insert(DhcpOption::IAPD(IAPD { id: identity.iaid, t1: 0, t2: 0, opts: inside }));
    }
    let mut bytes = Vec::new();
    // Writing to memory does not fail.
    let _ = packet.encode(&mut Encoder::new(&mut bytes));
    bytes
}

fn address(addr: Ipv6Addr) -> DhcpOption {
    DhcpOption::IAAddr(IAAddr { addr, preferred_life: 0, valid_life: 0, opts: DhcpOptions::new() })
}

fn prefix(net: Ipv6Net) -> DhcpOption {
    DhcpOption::IAPrefix(IAPrefix {
        preferred_lifetime: 0,
        valid_lifetime: 0,
        prefix_len: net.prefix_len(),
        prefix_ip: net.network(),
        opts: DhcpOptions::new(),
    })
}

/// Reads a server's message to the client with this IAID.
///
/// # Errors
/// Why it is none, for the log.
pub fn decode(bytes: &[u8], iaid: u32) -> Result<Reply, &'static str> {
    if bytes.len() > MAX_SIZE {
        return Err("too long");
    }
    // dhcproto subtracts lengths before it looks whether they are there.
    if !well_formed(bytes.get(4..).unwrap_or_default(), 0) {
        return Err("malformed options");
    }
    let message = Message::from_bytes(bytes).map_err(|_| "no DHCPv6 message")?;
    let kind = match message.msg_type() {
        MessageType::Advertise => Kind::Advertise,
        MessageType::Reply => Kind::Reply,
        _ => return Err("no ADVERTISE or REPLY"),
    };
    let success = || (Status::Success, String::new());
    let mut reply = Reply {
        kind,
        xid: message.xid_num(),
        client: Vec::new(),
        preference: 0,
        rapid: false,
        status: success(),
        association: success(),
        lease: Lease::default(),
        times: Times::default(),
    };
    for option in message.opts().iter() {
        reply.take(option, iaid);
    }
    if reply.client.is_empty() || reply.lease.server.is_empty() {
        return Err("it does not say who sent it, or to whom");
    }
    Ok(reply)
}

impl Reply {
    fn take(&mut self, option: &DhcpOption, iaid: u32) {
        match option {
            DhcpOption::ClientId(duid) => self.client = duid.clone(),
            DhcpOption::ServerId(duid) => self.lease.server = duid.clone(),
            DhcpOption::Preference(preference) => self.preference = *preference,
            DhcpOption::RapidCommit => self.rapid = true,
            DhcpOption::StatusCode(code) => self.status = (code.status, printable(&code.msg)),
            DhcpOption::IANA(ia) if ia.id == iaid && (ia.t2 == 0 || ia.t1 <= ia.t2) => {
                self.take_times(ia.t1, ia.t2);
                ia.opts.iter().for_each(|inner| self.take_inner(inner));
            }
            DhcpOption::IAPD(ia) if ia.id == iaid && (ia.t2 == 0 || ia.t1 <= ia.t2) => {
                self.take_times(ia.t1, ia.t2);
                ia.opts.iter().for_each(|inner| self.take_inner(inner));
            }
            DhcpOption::DomainNameServers(servers) => {
                self.lease.dns = servers.iter().copied().filter(|ip| !ip.is_multicast()).collect();
            }
            DhcpOption::DomainSearchList(names) => self.lease.search = domains(names),
            DhcpOption::NtpServer(servers) => {
                self.lease.ntp = servers
                    .iter()
                    .flat_map(|server| match server {
                        NtpSuboption::ServerAddress(ip) | NtpSuboption::MulticastAddress(ip) => {
                            vec![ip.to_string()]
                        }
                        NtpSuboption::FQDN(name) => domains(std::slice::from_ref(name)),
                    })
                    .collect();
            }
            _ => {}
        }
    }

    fn take_inner(&mut self, option: &DhcpOption) {
        match option {
            DhcpOption::IAAddr(a)
                if is_host(a.addr) && a.valid_life > 0 && a.preferred_life <= a.valid_life =>
            {
                self.take_lifetimes(a.preferred_life, a.valid_life);
                self.lease.addresses.push(a.addr);
            }
            DhcpOption::IAPrefix(p) if p.valid_lifetime > 0 && p.preferred_lifetime <= p.valid_lifetime => {
                if let Ok(net) = Ipv6Net::new(p.prefix_ip, p.prefix_len).map(|net| net.trunc())
                    && (is_host(net.network()) && net.prefix_len() > 0)
                {
                    self.take_lifetimes(p.preferred_lifetime, p.valid_lifetime);
                    self.lease.prefixes.push(net);
                }
            }
            DhcpOption::StatusCode(code) if code.status != Status::Success => {
                self.association = (code.status, printable(&code.msg));
            }
            _ => {}
        }
    }

    fn take_times(&mut self, t1: u32, t2: u32) {
        let least = |a: u32, b: u32| if a == 0 || (b != 0 && b < a) { b } else { a };
        self.times.t1 = least(self.times.t1, t1);
        self.times.t2 = least(self.times.t2, t2);
    }

    fn take_lifetimes(&mut self, preferred: u32, valid: u32) {
        let first = self.lease.addresses.is_empty() && self.lease.prefixes.is_empty();
        self.times.preferred = if first { preferred } else { self.times.preferred.min(preferred) };
        self.times.valid = if first { valid } else { self.times.valid.min(valid) };
    }
}

fn printable(text: &str) -> String {
    text.replace(char::is_control, " ").trim().to_owned()
}

/// Whether options have the lengths that dhcproto relies on, at most a few levels deep.
fn well_formed(mut bytes: &[u8], depth: u32) -> bool {
    while !bytes.is_empty() {
        let Some(([a, b, c, d], rest)) = bytes.split_first_chunk::<4>() else { return false };
        let (code, length) = (u16::from_be_bytes([*a, *b]), usize::from(u16::from_be_bytes([*c, *d])));
        let Some((value, rest)) = rest.split_at_checked(length) else { return false };
        // Where the options inside begin.
        let (least, inside) = match code {
            3 | 25 => (12, Some(12)),
            4 => (4, Some(4)),
            5 => (24, Some(24)),
            26 => (25, Some(25)),
            17 => (4, Some(4)),
            // A relayed message, authentication: nothing for a client of ours.
            9 | 11 => return false,
            7 => (1, None),
            8 | 13 => (2, None),
            12 => (16, None),
            16 => (4, None),
            19 => (1, None),
            _ => (0, None),
        };
        if value.len() < least {
            return false;
        }
        if let Some(at) = inside
            && (depth >= 3 || !well_formed(&value[at..], depth + 1))
        {
            return false;
        }
        bytes = rest;
    }
    true
}
