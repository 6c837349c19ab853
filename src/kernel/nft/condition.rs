//! Conditions on a packet, and parts of it to look up: how they print and what they are in the kernel.

use std::fmt::{self, Formatter};
use std::net::IpAddr;

use nftnl::expr::{Bitwise, Cmp, CmpOp};
use nftnl::nftnl_sys::{self as sys, libc};

use super::ffi::RawExpression;
use super::lower::{is_in, payload, xtables};
use super::print::{Protocol, joined, side_name};
use super::{Dialect, Family, Map, Rule, Side, Statement};
use crate::cni::{Error, Result};

/// `IPS_DST_NAT` (`linux/netfilter/nf_conntrack_common.h`): the connection's destination was translated.
const IPS_DST_NAT: u32 = 1 << 5;
/// `NFT_FIB_RESULT_ADDRTYPE` and `NFTA_FIB_F_*` (`linux/netfilter/nf_tables.h`).
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_SOURCE: u32 = 1 << 0;
const FIB_DESTINATION: u32 = 1 << 1;
const FIB_INPUT_LINK: u32 = 1 << 3;
/// Register of 4 bytes in which the first 16-byte register starts (`NFT_REG32_00`).
const FIRST_REGISTER: u32 = libc::NFT_REG32_00 as u32;

/// A part of a packet or of its connection, to look up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// `meta l4proto`: the transport protocol.
    Protocol,
    /// `ip saddr`, `ip6 daddr`: an address.
    Address(Side),
    /// `th dport`, or `tcp dport` where the rule has made sure of the protocol.
    Port(Side, Option<u8>),
    /// `ct original proto-dst`: the port that the connection was made to, before translation.
    OriginalPort,
}

impl Field {
    /// As nft writes it.
    pub(super) fn shown(self, family: Family) -> String {
        match self {
            Field::Protocol => "meta l4proto".into(),
            Field::Address(side) => format!("{family} {}", side_name(side)),
            Field::Port(side, protocol) => format!("{} {}", transport(protocol), port_name(side)),
            Field::OriginalPort => "ct original proto-dst".into(),
        }
    }

    /// Loads it into the register of 4 bytes with this number, and says how many such registers it takes.
    pub(super) fn load(self, object: &mut nftnl::Rule, rule: &Rule, register: u32) -> Result<u32> {
        let register = if register == FIRST_REGISTER { libc::NFT_REG_1 as u32 } else { register };
        let expression = match self {
            Field::Protocol => meta(libc::NFT_META_L4PROTO, register),
            Field::Address(side) => {
                let (offset, length) = super::lower::field(rule, side)?;
                object.add_expr(&payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length, register));
                return Ok(length / 4);
            }
            Field::Port(side, _) => {
                payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, port_offset(side), 2, register)
            }
            Field::OriginalPort => RawExpression {
                name: c"ct",
                numbers: vec![
                    (sys::NFTNL_EXPR_CT_KEY, libc::NFT_CT_PROTO_DST as u32),
                    (sys::NFTNL_EXPR_CT_DREG, register),
                ],
                small: vec![(sys::NFTNL_EXPR_CT_DIR, 0)],
                bytes: Vec::new(),
            },
        };
        object.add_expr(&expression);
        Ok(1)
    }
}

/// Loads several fields, one after the other, as nft lays out a concatenation.
pub(super) fn load_all(object: &mut nftnl::Rule, rule: &Rule, fields: &[Field]) -> Result<()> {
    let mut register = FIRST_REGISTER;
    for field in fields {
        register += field.load(object, rule, register)?;
    }
    Ok(())
}

/// What a routing table has for an address (`RTN_*`, linux/rtnetlink.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Route {
    /// Reached through a link or gateway.
    Unicast = 1,
    /// An address of this host.
    Local = 2,
    /// A broadcast address.
    Broadcast = 3,
    /// An anycast address.
    Anycast = 4,
    /// A group's address.
    Multicast = 5,
    /// Dropped.
    Blackhole = 6,
    /// Refused.
    Unreachable = 7,
    /// Forbidden.
    Prohibit = 8,
}

impl Route {
    /// All of them.
    pub const ALL: [Route; 8] = [
        Route::Unicast,
        Route::Local,
        Route::Broadcast,
        Route::Anycast,
        Route::Multicast,
        Route::Blackhole,
        Route::Unreachable,
        Route::Prohibit,
    ];

    /// The name that nft and, in upper case, iptables have for it.
    pub fn name(self) -> &'static str {
        match self {
            Route::Unicast => "unicast",
            Route::Local => "local",
            Route::Broadcast => "broadcast",
            Route::Anycast => "anycast",
            Route::Multicast => "multicast",
            Route::Blackhole => "blackhole",
            Route::Unreachable => "unreachable",
            Route::Prohibit => "prohibit",
        }
    }
}

/// Something that holds for a packet or does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `meta l4proto tcp`, `-p tcp`: the transport protocol (`IPPROTO_*`).
    Protocol(u8),
    /// `tcp dport 80`, `--dport 1024:2047`: a port is one of these, both ends included. The rule must have made sure of
    /// the protocol.
    Port {
        /// Which port.
        side: Side,
        /// The protocol, which decides how the condition is written.
        protocol: u8,
        /// The lowest.
        from: u16,
        /// The highest.
        to: u16,
    },
    /// `-m multiport --dports 80,443`: the destination port is one of these, 15 at most. iptables only.
    DestinationPorts(Vec<u16>),
    /// `fib daddr type local`, `-m addrtype --dst-type LOCAL`: what the host's routes say of an address.
    Type(Side, Route),
    /// `fib daddr . iif type local`: the address is one of the link that the packet came in by. nft only.
    LocalToLink(Side),
    /// `meta mark & 0x2000 == 0x2000`, `-m mark --mark 0x2000/0x2000`
    Mark {
        /// What the packet's mark must be.
        value: u32,
        /// The bits that count.
        mask: u32,
    },
    /// `iifname "eth0"`, `-i eth0`: the link that the packet came in by; `*` at the end stands for any rest.
    InputName(String),
    /// `iif "lo"`: the packet came from this host itself. nft only.
    FromThisHost,
    /// `meta l4proto . th dport @set`: several parts of the packet are in a set. nft only.
    In(Vec<Field>, Map),
    /// `ct status dnat`: the connection's destination was translated. nft only.
    Translated,
}

impl Statement {
    /// Whether iptables has it behind a `-m`: the comment goes before the first of these.
    pub(super) fn is_xt_match(&self) -> bool {
        use Condition::{DestinationPorts, Mark, Port, Type};
        let (Statement::Only(condition) | Statement::Unless(condition)) = self else { return false };
        matches!(condition, Port { .. } | DestinationPorts(_) | Type(..) | Mark { .. })
    }
}

impl Condition {
    /// As nft writes it.
    pub(super) fn fmt_nft(&self, not: bool, f: &mut Formatter<'_>) -> fmt::Result {
        let differs = if not { "!= " } else { "" };
        match self {
            Condition::Protocol(number) => write!(f, "meta l4proto {differs}{}", Protocol(*number)),
            Condition::Port { side, protocol, from, to } => {
                write!(f, "{} {} {differs}{from}", transport(Some(*protocol)), port_name(*side))?;
                if from == to { Ok(()) } else { write!(f, "-{to}") }
            }
            Condition::DestinationPorts(ports) => write!(f, "th dport {differs}{{ {} }}", list(ports, ", ")),
            Condition::Type(side, route) => {
                write!(f, "fib {} type {differs}{}", side_name(*side), route.name())
            }
            Condition::LocalToLink(side) => write!(f, "fib {} . iif type {differs}local", side_name(*side)),
            Condition::Mark { value, mask } => {
                let equals = if not { "!=" } else { "==" };
                match *mask {
                    u32::MAX => write!(f, "meta mark {equals} {value:#x}"),
                    mask => write!(f, "meta mark & {mask:#x} {equals} {value:#x}"),
                }
            }
            Condition::InputName(name) => write!(f, "iifname {differs}\"{name}\""),
            Condition::FromThisHost => write!(f, "iif {differs}\"lo\""),
            Condition::In(fields, set) => {
                let key = joined(fields.iter().map(|field| field.shown(set.table.family)));
                write!(f, "{key} {differs}@{}", set.name)
            }
            Condition::Translated => write!(f, "ct status {}dnat", if not { "! " } else { "" }),
        }
    }

    /// As iptables writes it, after a blank.
    pub(super) fn fmt_iptables(&self, not: bool, f: &mut Formatter<'_>) -> fmt::Result {
        let not = if not { "! " } else { "" };
        match self {
            Condition::Protocol(number) => write!(f, " {not}-p {}", Protocol(*number)),
            Condition::Port { side, protocol, from, to } => {
                let option = if *side == Side::Source { "--sport" } else { "--dport" };
                write!(f, " -m {} {not}{option} {from}", Protocol(*protocol))?;
                if from == to { Ok(()) } else { write!(f, ":{to}") }
            }
            Condition::DestinationPorts(ports) => {
                write!(f, " -m multiport {not}--dports {}", list(ports, ","))
            }
            Condition::Type(side, route) => {
                let option = if *side == Side::Source { "--src-type" } else { "--dst-type" };
                write!(f, " -m addrtype {not}{option} {}", route.name().to_ascii_uppercase())
            }
            Condition::Mark { value, mask: u32::MAX } => write!(f, " -m mark {not}--mark {value:#x}"),
            Condition::Mark { value, mask } => write!(f, " -m mark {not}--mark {value:#x}/{mask:#x}"),
            Condition::InputName(name) => write!(f, " {not}-i {}", name.replace('*', "+")),
            Condition::LocalToLink(_)
            | Condition::FromThisHost
            | Condition::In(..)
            | Condition::Translated => {
                write!(f, " {not}{self:?}")
            }
        }
    }

    /// Adds what the kernel needs for it; true when that is an xtables match.
    pub(super) fn lower(&self, object: &mut nftnl::Rule, rule: &Rule, not: bool) -> Result<bool> {
        let first = libc::NFT_REG_1 as u32;
        let op = if not { CmpOp::Neq } else { CmpOp::Eq };
        let iptables = rule.dialect == Dialect::Iptables;
        match self {
            Condition::Protocol(number) => {
                object.add_expr(&meta(libc::NFT_META_L4PROTO, first));
                object.add_expr(&Cmp::new(op, [*number].as_slice()));
            }
            Condition::Port { side, protocol, from, to }
                if iptables && i32::from(*protocol) == libc::IPPROTO_SCTP =>
            {
                object.add_expr(&sctp_match(*side, *from, *to, not));
                return Ok(true);
            }
            Condition::Port { side, from, to, .. } => {
                object.add_expr(&payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, port_offset(*side), 2, first));
                let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
                match (from == to, not) {
                    (true, _) => object.add_expr(&Cmp::new(op, from.as_slice())),
                    (false, false) => {
                        object.add_expr(&Cmp::new(CmpOp::Gte, from.as_slice()));
                        object.add_expr(&Cmp::new(CmpOp::Lte, to.as_slice()));
                    }
                    (false, true) => object.add_expr(&RawExpression {
                        name: c"range",
                        numbers: vec![
                            (sys::NFTNL_EXPR_RANGE_SREG, first),
                            (sys::NFTNL_EXPR_RANGE_OP, libc::NFT_RANGE_NEQ as u32),
                        ],
                        small: Vec::new(),
                        bytes: vec![
                            (sys::NFTNL_EXPR_RANGE_FROM_DATA, from.to_vec()),
                            (sys::NFTNL_EXPR_RANGE_TO_DATA, to.to_vec()),
                        ],
                    }),
                }
            }
            Condition::DestinationPorts(ports) if iptables && ports.len() <= 15 => {
                object.add_expr(&multiport_match(ports, not));
                return Ok(true);
            }
            Condition::Type(side, route) if iptables => {
                // struct xt_addrtype_info_v1: source and destination types as bits, flags (1, 2: inverted).
                let bit = (1_u16 << *route as u8).to_ne_bytes();
                let (types, inverted) = match side {
                    Side::Source => ([bit, [0; 2]].concat(), 1_u32),
                    Side::Destination => ([[0; 2], bit].concat(), 2),
                };
                let flags = if not { inverted } else { 0 };
                let info = [types, flags.to_ne_bytes().to_vec()].concat();
                object.add_expr(&xtables(c"match", "addrtype", 1, info));
                return Ok(true);
            }
            Condition::Type(side, route) => {
                object.add_expr(&fib(*side, false, first));
                object.add_expr(&Cmp::new(op, (*route as u32).to_ne_bytes().as_slice()));
            }
            Condition::LocalToLink(side) if !iptables => {
                object.add_expr(&fib(*side, true, first));
                object.add_expr(&Cmp::new(op, (Route::Local as u32).to_ne_bytes().as_slice()));
            }
            Condition::Mark { value, mask } => {
                object.add_expr(&meta(libc::NFT_META_MARK, first));
                if *mask != u32::MAX {
                    object.add_expr(&Bitwise::new(
                        mask.to_ne_bytes().as_slice(),
                        0_u32.to_ne_bytes().as_slice(),
                    ));
                }
                object.add_expr(&Cmp::new(op, value.to_ne_bytes().as_slice()));
            }
            Condition::InputName(name) => {
                let mut bytes = name.trim_end_matches('*').as_bytes().to_vec();
                if !name.ends_with('*') {
                    // nft compares the whole field, iptables-nft up to the final zero, padded.
                    let length = if iptables { bytes.len() + 1 } else { 16 };
                    bytes.resize(length, 0);
                }
                object.add_expr(&meta(libc::NFT_META_IIFNAME, first));
                object.add_expr(&Cmp::new(op, bytes.as_slice()));
            }
            Condition::FromThisHost if !iptables => {
                // LOOPBACK_IFINDEX: lo has number 1 in every namespace.
                object.add_expr(&meta(libc::NFT_META_IIF, first));
                object.add_expr(&Cmp::new(op, 1_u32.to_ne_bytes().as_slice()));
            }
            Condition::In(fields, set) if !iptables => {
                load_all(object, rule, fields)?;
                object.add_expr(&is_in(set, not)?);
            }
            Condition::Translated if !iptables => {
                object.add_expr(&RawExpression {
                    name: c"ct",
                    numbers: vec![
                        (sys::NFTNL_EXPR_CT_KEY, libc::NFT_CT_STATUS as u32),
                        (sys::NFTNL_EXPR_CT_DREG, first),
                    ],
                    small: Vec::new(),
                    bytes: Vec::new(),
                });
                let none = 0_u32.to_ne_bytes();
                object.add_expr(&Bitwise::new(IPS_DST_NAT.to_ne_bytes().as_slice(), none.as_slice()));
                object.add_expr(&Cmp::new(if not { CmpOp::Eq } else { CmpOp::Neq }, none.as_slice()));
            }
            Condition::DestinationPorts(_)
            | Condition::LocalToLink(_)
            | Condition::FromThisHost
            | Condition::In(..)
            | Condition::Translated => {
                return Err(Error::internal(format!("nft: {self:?} cannot be written like this: {rule}")));
            }
        }
        Ok(false)
    }
}

fn transport(protocol: Option<u8>) -> String {
    protocol.map_or_else(|| "th".into(), |number| Protocol(number).to_string())
}

fn port_name(side: Side) -> &'static str {
    match side {
        Side::Source => "sport",
        Side::Destination => "dport",
    }
}

/// Where TCP, UDP and SCTP have the port in their header.
fn port_offset(side: Side) -> u32 {
    match side {
        Side::Source => 0,
        Side::Destination => 2,
    }
}

fn list(ports: &[u16], between: &str) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(between)
}

pub(super) fn meta(key: i32, register: u32) -> RawExpression {
    RawExpression {
        name: c"meta",
        numbers: vec![(sys::NFTNL_EXPR_META_KEY, key as u32), (sys::NFTNL_EXPR_META_DREG, register)],
        small: Vec::new(),
        bytes: Vec::new(),
    }
}

/// The type of an address, by the host's routes, or only those of the packet's link.
fn fib(side: Side, of_link: bool, register: u32) -> RawExpression {
    let address = match side {
        Side::Source => FIB_SOURCE,
        Side::Destination => FIB_DESTINATION,
    };
    let link = if of_link { FIB_INPUT_LINK } else { 0 };
    RawExpression {
        name: c"fib",
        numbers: vec![
            (sys::NFTNL_EXPR_FIB_DREG, register),
            (sys::NFTNL_EXPR_FIB_RESULT, FIB_RESULT_ADDRTYPE),
            (sys::NFTNL_EXPR_FIB_FLAGS, address | link),
        ],
        small: Vec::new(),
        bytes: Vec::new(),
    }
}

/// struct xt_sctp_info: destination and source ports; chunks of no type; which ports count (1 source, 2 destination), and
/// which of these are inverted.
fn sctp_match(side: Side, from: u16, to: u16, not: bool) -> RawExpression {
    let ports = [from.to_ne_bytes(), to.to_ne_bytes()].concat();
    let (ports, flag) = match side {
        Side::Source => ([vec![0; 4], ports].concat(), 1_u32),
        Side::Destination => ([ports, vec![0; 4]].concat(), 2),
    };
    let inverted = if not { flag } else { 0 };
    // A map of 256 bytes, how it is compared, four structures of type (none), flag and mask, and their number.
    let chunks = [&[0; 260][..], &[0xff, 0, 0].repeat(4), &[0; 4]].concat();
    let info = [&ports[..], &chunks, &flag.to_ne_bytes(), &inverted.to_ne_bytes()].concat();
    xtables(c"match", "sctp", 0, info)
}

/// struct xt_multiport_v1: 1 for destination, number of ports, ports, flags of ranges, inverted.
fn multiport_match(ports: &[u16], not: bool) -> RawExpression {
    let mut all: Vec<u8> = ports.iter().flat_map(|port| port.to_ne_bytes()).collect();
    all.resize(30, 0);
    let info = [&[1, ports.len() as u8][..], &all, &[0; 15], &[u8::from(not)]].concat();
    xtables(c"match", "multiport", 1, info)
}

/// The target `DNAT`: struct nf_nat_range2 with one address and one port (flags: addresses, ports).
pub(super) fn dnat_target(address: IpAddr, port: u16) -> RawExpression {
    let mut octets = super::lower::octets(address);
    octets.resize(16, 0);
    let port = port.to_be_bytes();
    let info = [&3_u32.to_ne_bytes()[..], &octets, &octets, &port, &port, &[0; 4]].concat();
    xtables(c"target", "DNAT", 2, info)
}

/// The target `MARK`: struct xt_mark_tginfo2 with value and mask.
pub(super) fn mark_target(bits: u32) -> RawExpression {
    xtables(c"target", "MARK", 2, [bits.to_ne_bytes(), bits.to_ne_bytes()].concat())
}
