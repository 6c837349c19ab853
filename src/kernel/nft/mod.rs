//! nftables, without the `nft` tool: values that say what to change, and a socket that changes it.
//!
//! A [`Change`] is plain data and prints as the line an operator would type; [`Socket::apply`] sends a list of them as
//! one atomic batch and names the change that failed. What the kernel has is read back as [`Listed`] values.
//!
//! `lower.rs` turns values into libnftnl objects, `ffi.rs` holds what libnftnl's safe wrapper does not cover (and all
//! `unsafe`), `socket.rs` talks. Kernel interface: `include/uapi/linux/netfilter/nf_tables.h`.
//!
//! [`Listed`]: ListedRule

mod condition;
mod dry_run;
mod ffi;
mod listed;
mod lower;
mod needs;
mod print;
mod socket;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

pub use condition::{Condition, Field, Route};
pub use listed::{ListedChain, ListedRule, Step};
pub use lower::program;
pub use socket::Socket;

/// Longest comment that the `nft` tool accepts and shows, in bytes.
pub const COMMENT_MAX: usize = 125;

/// Longest comment of the xtables match `comment`, in bytes (`XT_MAX_COMMENT_LEN` less the final zero).
pub const XT_COMMENT_MAX: usize = 255;

/// The family of a table: which packets its chains see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both; NAT in it needs Linux 5.2.
    Inet,
    /// Frames that pass a bridge.
    Bridge,
}

impl Family {
    /// The single-protocol family that an address belongs to.
    pub fn of(address: IpAddr) -> Family {
        if address.is_ipv4() { Family::Ip } else { Family::Ip6 }
    }
}

/// A table; it prints as `ip cni-all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name within the family.
    pub name: &'static str,
}

/// Where a base chain is called from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What the chain is for.
    pub kind: Kind,
    /// The point in a packet's way.
    pub hook: Hook,
    /// Order among the chains of one hook, lowest first: -100 is `dstnat`, 100 is `srcnat`.
    pub priority: i32,
}

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Deciding what passes.
    Filter,
    /// Address translation: sees only the first packet of a connection.
    Nat,
}

/// The point in a packet's way at which a base chain is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// From a process of this host, before routing.
    Output,
    /// Between routing and leaving, for what is not for this host.
    Forward,
    /// After routing.
    Postrouting,
}

/// A chain to make. Its policy is `accept`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The table it is in.
    pub table: Table,
    /// Its name.
    pub name: String,
    /// Where it is called from; `None` for a chain that only other chains call.
    pub base: Option<Base>,
}

/// A named map from one type to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Map {
    /// The table it is in.
    pub table: Table,
    /// Its name; at most 15 bytes, for kernels before 4.14.
    pub name: &'static str,
    /// The type of what is looked up.
    pub key: Type,
    /// The type of what is found.
    pub data: Type,
}

/// What a map's keys or data are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// An address of the table's family (`ipv4_addr`, `ipv6_addr`).
    Address,
    /// A string of at most 15 bytes (`ifname`).
    Name,
    /// A transport protocol (`inet_proto`).
    Protocol,
    /// A port of a transport protocol (`inet_service`).
    Port,
    /// Several, one after the other (`inet_proto . inet_service`).
    Joined(&'static [Type]),
    /// What to do with the packet (`verdict`); data only.
    Verdict,
    /// No data at all: the map is a set.
    Nothing,
}

/// A key or datum of a map.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Of [`Type::Address`].
    Address(IpAddr),
    /// Of [`Type::Name`].
    Name(String),
    /// Of [`Type::Protocol`]: `IPPROTO_*`.
    Protocol(u8),
    /// Of [`Type::Port`].
    Port(u16),
    /// Of [`Type::Joined`].
    Joined(Vec<Value>),
    /// Of [`Type::Verdict`].
    Verdict(Verdict),
    /// Of [`Type::Nothing`].
    Nothing,
}

/// One entry of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// What is looked up.
    pub key: Value,
    /// What is found.
    pub data: Value,
    /// Whose it is; at most [`COMMENT_MAX`] bytes.
    pub comment: String,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It passes this hook's chain.
    Accept,
    /// It is dropped.
    Drop,
    /// Back to the calling chain.
    Return,
    /// Into a chain, and back when that ends.
    Jump(String),
    /// Into a chain, and back to the caller when that ends.
    Goto(String),
}

/// Which address of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// `saddr`
    Source,
    /// `daddr`
    Destination,
}

/// One part of a rule: a condition, or what to do when all conditions before it hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `ip daddr 10.1.0.0/16`, `ip daddr != 224.0.0.0/4`: the packet's address is, or is not, within a network.
    /// The table's family must be the network's.
    Within {
        /// Which address.
        side: Side,
        /// The network; host bits do not matter.
        net: IpNet,
        /// Whether it must be inside (`true`) or outside.
        inside: bool,
    },
    /// `ip saddr vmap @map`: the map, whose data are verdicts, decides; no entry means the rule does not apply.
    Lookup(Side, Map),
    /// `meta l4proto . th dport vmap @map`: as [`Statement::Lookup`], by several parts of the packet.
    LookupAll(Vec<Field>, Map),
    /// `fib daddr type local`: a condition that must hold.
    Only(Condition),
    /// `fib daddr type != local`: a condition that must not hold.
    Unless(Condition),
    /// `iifname "veth0"`: the packet came in on the link of this name.
    InputLink(String),
    /// `oifname "veth0"`, `oifname != "veth0"`: the packet leaves by the link of this name, or by another.
    OutputLink {
        /// The link's name.
        name: String,
        /// Whether it must be this one (`true`) or another.
        is: bool,
    },
    /// `ct state related,established`: the packet belongs to a connection that was let through, or is about one.
    Established,
    /// `meta ibrname "cni0"`: the frame came in on a port of this bridge. Bridge tables only.
    InputBridge(String),
    /// `meta protocol ip`: what the frame carries ([`Family::Ip`] or [`Family::Ip6`]). Bridge tables only.
    Carries(Family),
    /// `ether saddr 0a:58:0a:01:00:05`: the frame's sender. Bridge tables only.
    EtherSource([u8; 6]),
    /// `masquerade`: the source becomes the address of the link the packet leaves by.
    Masquerade,
    /// `dnat to 10.1.0.5:80`: the destination becomes this address and port.
    Dnat(SocketAddr),
    /// `dnat ip to meta l4proto . th dport map @map`: the destination becomes what the map has, address and port; no
    /// entry means the rule does not apply.
    DnatBy(Vec<Field>, Map),
    /// `meta mark set meta mark | 0x2000`: these bits are set in the packet's mark.
    SetMark(u32),
    /// `accept`, `drop`, `return`, `jump`, `goto`.
    Verdict(Verdict),
}

/// How a rule is written, for the sake of the tool that owns the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// As the `nft` tool writes it.
    Nft,
    /// As iptables-nft writes it: counter, comment and masquerade as xtables matches and targets, so that
    /// `iptables-nft -S` lists the rule and can delete it. The tables `nat` and `filter` of `ip` and `ip6` are its own.
    Iptables,
}

/// A rule to put into a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The table it is in.
    pub table: Table,
    /// The chain it is in.
    pub chain: String,
    /// Conditions and what to do, in order.
    pub statements: Vec<Statement>,
    /// A remark that listings show: at most [`COMMENT_MAX`] bytes, [`XT_COMMENT_MAX`] in an iptables rule.
    pub comment: Option<String>,
    /// A remark that listings do not show and that tools keep: for what an upstream comment has no room for.
    pub tag: Option<String>,
    /// How it is written.
    pub dialect: Dialect,
}

/// One change of the ruleset. [`Socket::apply`] makes a list of them, all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes a table unless it is there.
    AddTable(Table),
    /// Makes a table; EEXIST when it is there.
    CreateTable(Table),
    /// Makes a chain unless it is there with the same hook and priority.
    AddChain(Chain),
    /// Makes a chain; EEXIST when it is there.
    CreateChain(Chain),
    /// Makes a map unless it is there with the same types.
    AddMap(Map),
    /// Makes an element; EEXIST when the key is there.
    CreateElement(Map, Element),
    /// Removes the element of a key. From Linux 6.3 on (and unless the kernel says it cannot) a missing element is no
    /// error; before that it is ENOENT.
    DestroyElement(Map, Value),
    /// Appends a rule.
    AddRule(Rule),
    /// Puts a rule in front of all others of its chain.
    InsertRule(Rule),
    /// Puts a rule in front of the one with this handle; ENOENT when that is gone.
    InsertBefore(Rule, u64),
    /// Removes one rule.
    DeleteRule {
        /// Its table.
        table: Table,
        /// Its chain.
        chain: String,
        /// Its handle, from a [`ListedRule`].
        handle: u64,
    },
    /// Removes all rules of a chain.
    FlushChain {
        /// The chain's table.
        table: Table,
        /// The chain.
        chain: String,
    },
    /// Removes a chain that nothing refers to; EBUSY otherwise.
    DeleteChain {
        /// The chain's table.
        table: Table,
        /// The chain.
        chain: String,
    },
}
