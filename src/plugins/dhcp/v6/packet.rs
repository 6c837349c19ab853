//! DHCPv6 messages as bytes (RFC 8415 sections 8 and 21).

use std::fmt;
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

use super::lease::{Lease, Times, is_host};
use crate::plugins::dhcp::clock::Millis;
use crate::plugins::dhcp::names::domains;

/// Longest message that is read.
pub const MAX_SIZE: usize = 1500;

/// Options (RFC 8415 section 21; RFC 3646, RFC 5908).
const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const REQUEST: u16 = 6;
const PREFERENCE: u16 = 7;
const ELAPSED: u16 = 8;
const STATUS: u16 = 13;
const RAPID_COMMIT: u16 = 14;
const DNS: u16 = 23;
const SEARCH: u16 = 24;
const IA_PD: u16 = 25;
const IA_PREFIX: u16 = 26;
const REFRESH_TIME: u16 = 32;
const NTP: u16 = 56;
const SOL_MAX_RT: u16 = 82;
const INF_MAX_RT: u16 = 83;

/// What is asked for together with a lease, and without one.
const ASKED: [u16; 4] = [DNS, SEARCH, NTP, SOL_MAX_RT];
const ASKED_ALONE: [u16; 5] = [DNS, SEARCH, REFRESH_TIME, NTP, INF_MAX_RT];

/// What a server may set SOL_MAX_RT and INF_MAX_RT to, seconds (RFC 8415 sections 21.24 and 21.25).
const MAX_RT: std::ops::RangeInclusive<u32> = 60..=86_400;

/// A status (RFC 8415 section 21.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub u16);

#[allow(missing_docs)]
impl Status {
    pub const SUCCESS: Status = Status(0);
    pub const NO_BINDING: Status = Status(3);
    #[cfg(test)]
    pub const NO_ADDRS_AVAIL: Status = Status(2);
    #[cfg(test)]
    pub const NOT_ON_LINK: Status = Status(4);
}

/// The name in RFC 8415, or the number.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("Success"),
            1 => f.write_str("UnspecFail"),
            2 => f.write_str("NoAddrsAvail"),
            3 => f.write_str("NoBinding"),
            4 => f.write_str("NotOnLink"),
            5 => f.write_str("UseMulticast"),
            6 => f.write_str("NoPrefixAvail"),
            other => write!(f, "status {other}"),
        }
    }
}

/// Message types that a client sends or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Kind {
    Solicit = 1,
    Advertise = 2,
    Request = 3,
    Confirm = 4,
    Renew = 5,
    Rebind = 6,
    Reply = 7,
    Release = 8,
    Decline = 9,
    InformationRequest = 11,
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
    /// Addresses and prefixes that must not be used any more: given for no time at all.
    pub withdrawn: Vec<Ipv6Addr>,
    /// Seconds until information is to be asked for again.
    pub refresh: Option<u32>,
    /// Longest wait between SOLICITs, ms (SOL_MAX_RT).
    pub solicit_longest: Option<Millis>,
    /// Longest wait between INFORMATION-REQUESTs, ms (INF_MAX_RT).
    pub information_longest: Option<Millis>,
    /// How long.
    pub times: Times,
}

/// The bytes of a message.
pub fn encode(message: &Outgoing, identity: &Identity) -> Vec<u8> {
    let [_, xid @ ..] = message.xid.to_be_bytes();
    let mut bytes = vec![message.kind as u8];
    bytes.extend_from_slice(&xid);
    let elapsed = u16::try_from(message.elapsed / 10).unwrap_or(u16::MAX);
    put(&mut bytes, CLIENT_ID, &identity.duid);
    if let Some(server) = &message.server {
        put(&mut bytes, SERVER_ID, server);
    }
    let lease = message.lease.as_ref();
    let mut inside = Vec::new();
    for address in lease.map(|l| l.addresses.as_slice()).unwrap_or_default() {
        // The lifetimes are the server's business.
        put(&mut inside, IA_ADDRESS, &[&address.octets()[..], &[0; 8]].concat());
    }
    put(&mut bytes, ELAPSED, &elapsed.to_be_bytes());
    if message.kind == Kind::InformationRequest {
        put(&mut bytes, REQUEST, &ASKED_ALONE.map(u16::to_be_bytes).concat());
        return bytes;
    }
    put_association(&mut bytes, IA_NA, identity.iaid, &inside);
    if matches!(message.kind, Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind) {
        put(&mut bytes, REQUEST, &ASKED.map(u16::to_be_bytes).concat());
    }
    if message.kind == Kind::Solicit {
        put(&mut bytes, RAPID_COMMIT, &[]);
    }
    // RFC 8415 sections 18.2.3 and 18.2.8: prefixes are neither confirmed nor declined.
    if identity.prefix && !matches!(message.kind, Kind::Confirm | Kind::Decline) {
        let mut inside = Vec::new();
        for net in lease.map(|l| l.prefixes.as_slice()).unwrap_or_default() {
            let value = [&[0; 8][..], &[net.prefix_len()], &net.network().octets()].concat();
            put(&mut inside, IA_PREFIX, &value);
        }
        put_association(&mut bytes, IA_PD, identity.iaid, &inside);
    }
    bytes
}

fn put(bytes: &mut Vec<u8>, code: u16, value: &[u8]) {
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend_from_slice(value);
}

/// T1 and T2 are the server's business.
fn put_association(bytes: &mut Vec<u8>, code: u16, iaid: u32, inside: &[u8]) {
    put(bytes, code, &[&iaid.to_be_bytes()[..], &[0; 8], inside].concat());
}

/// The options of a field, up to its end; an error when one does not fit.
fn options(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, &'static str> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let ([a, b, c, d], rest) = bytes.split_first_chunk().ok_or("an option is cut off")?;
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        let (value, rest) = rest.split_at_checked(length).ok_or("an option is cut off")?;
        found.push((u16::from_be_bytes([*a, *b]), value));
        bytes = rest;
    }
    Ok(found)
}

/// Reads a server's message to the client with this IAID.
///
/// # Errors
/// Why it is none, for the log.
pub fn decode(bytes: &[u8], iaid: u32) -> Result<Reply, &'static str> {
    if bytes.len() > MAX_SIZE {
        return Err("too long");
    }
    let ([kind, a, b, c], rest) = bytes.split_first_chunk().ok_or("no DHCPv6 message")?;
    let kind = match kind {
        2 => Kind::Advertise,
        7 => Kind::Reply,
        _ => return Err("no ADVERTISE or REPLY"),
    };
    let success = || (Status::SUCCESS, String::new());
    let mut reply = Reply {
        kind,
        xid: u32::from_be_bytes([0, *a, *b, *c]),
        client: Vec::new(),
        preference: 0,
        rapid: false,
        status: success(),
        association: success(),
        lease: Lease::default(),
        withdrawn: Vec::new(),
        refresh: None,
        solicit_longest: None,
        information_longest: None,
        times: Times::default(),
    };
    for (code, value) in options(rest)? {
        reply.take(code, value, iaid)?;
    }
    if reply.client.is_empty() || reply.lease.server.is_empty() {
        return Err("it does not say who sent it, or to whom");
    }
    Ok(reply)
}

impl Reply {
    fn take(&mut self, code: u16, value: &[u8], iaid: u32) -> Result<(), &'static str> {
        match (code, value) {
            (CLIENT_ID, duid) => self.client = duid.to_vec(),
            (SERVER_ID, duid) => self.lease.server = duid.to_vec(),
            (PREFERENCE, [preference]) => self.preference = *preference,
            (RAPID_COMMIT, _) => self.rapid = true,
            (STATUS, value) => self.status = status(value)?,
            (REFRESH_TIME, [a, b, c, d]) => self.refresh = Some(u32::from_be_bytes([*a, *b, *c, *d])),
            (SOL_MAX_RT, [a, b, c, d]) => self.solicit_longest = max_rt([*a, *b, *c, *d]),
            (INF_MAX_RT, [a, b, c, d]) => self.information_longest = max_rt([*a, *b, *c, *d]),
            (IA_NA | IA_PD, value) => {
                let (header, inside) = value.split_first_chunk::<12>().ok_or("an association is cut off")?;
                let (t1, t2) = (u32_at(header, 4), u32_at(header, 8));
                if u32_at(header, 0) == iaid && (t2 == 0 || t1 <= t2) {
                    self.take_times(t1, t2);
                    for (inner, value) in options(inside)? {
                        self.take_inner(code, inner, value)?;
                    }
                }
            }
            (DNS, servers) => {
                let servers = servers.chunks_exact(16).filter_map(ip);
                self.lease.dns = servers.filter(|ip| !ip.is_multicast()).collect();
            }
            (SEARCH, names) => self.lease.search = domains(names),
            (NTP, value) => {
                for (code, value) in options(value)? {
                    match code {
                        1 | 2 => self.lease.ntp.extend(ip(value).map(|ip| ip.to_string())),
                        3 => self.lease.ntp.extend(domains(value)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An option inside an identity association of this kind. Lifetimes: preferred, valid.
    fn take_inner(&mut self, kind: u16, code: u16, value: &[u8]) -> Result<(), &'static str> {
        match (code, value.len()) {
            (IA_ADDRESS, 24..) => {
                let (preferred, valid) = (u32_at(value, 16), u32_at(value, 20));
                if valid == 0 {
                    self.withdrawn.extend(ip(value));
                } else if let Some(address) = ip(value).filter(|a| is_host(*a) && preferred <= valid) {
                    self.take_lifetimes(preferred, valid);
                    self.lease.addresses.push(address);
                }
            }
            (IA_PREFIX, 25..) => {
                let (preferred, valid) = (u32_at(value, 0), u32_at(value, 4));
                let net =
                    ip(&value[9..]).and_then(|ip| Ipv6Net::new(ip, value[8]).ok()).map(|net| net.trunc());
                let usable = |net: &Ipv6Net| is_host(net.network()) && net.prefix_len() > 0;
                if valid == 0 {
                    self.withdrawn.extend(net.map(|net| net.network()));
                } else if let Some(net) = net.filter(|net| usable(net) && preferred <= valid) {
                    self.take_lifetimes(preferred, valid);
                    self.lease.prefixes.push(net);
                }
            }
            (IA_ADDRESS | IA_PREFIX, _) => return Err("an address is cut off"),
            (STATUS, _) => {
                let said = status(value)?;
                // A server without prefixes gives the address all the same.
                if said.0 != Status::SUCCESS && (kind == IA_NA || said.0 == Status::NO_BINDING) {
                    self.association = said;
                }
            }
            _ => {}
        }
        Ok(())
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

/// A status and its text, as far as that can be shown.
fn status(value: &[u8]) -> Result<(Status, String), &'static str> {
    let ([a, b], text) = value.split_first_chunk().ok_or("a status is cut off")?;
    let text = String::from_utf8_lossy(text).replace(char::is_control, " ").trim().to_owned();
    Ok((Status(u16::from_be_bytes([*a, *b])), text))
}

/// The address at the beginning.
fn ip(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.first_chunk::<16>().map(|bytes| Ipv6Addr::from(*bytes))
}

/// SOL_MAX_RT or INF_MAX_RT in milliseconds, if it is one.
fn max_rt(value: [u8; 4]) -> Option<Millis> {
    let seconds = u32::from_be_bytes(value);
    MAX_RT.contains(&seconds).then(|| u64::from(seconds) * 1000)
}

/// A number that is known to be there.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}
