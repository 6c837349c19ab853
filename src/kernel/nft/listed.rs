//! What the kernel says it has: rules, chains and elements, read back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nftnl::nftnl_sys::libc;

use super::lower::type_of;
use super::{Base, Chain, Element, Family, Hook, Kind, Map, Side, Type, Value, Verdict, ffi};

/// User data of a rule or element that `nft` shows as its comment (`NFTNL_UDATA_RULE_COMMENT`, `…_SET_ELEM_COMMENT`).
pub(super) const UDATA_COMMENT: u8 = 0;
/// User data of ours in a rule: [`super::Rule::tag`]. Tools skip and keep types they do not know.
pub(super) const UDATA_TAG: u8 = 0xc1;

/// One expression of a rule, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Bytes of the packet are loaded: from which header, where, how many.
    Payload {
        /// `NFT_PAYLOAD_*_HEADER`
        base: u32,
        /// In bytes.
        offset: u32,
        /// In bytes.
        length: u32,
    },
    /// The transport protocol is loaded.
    Protocol,
    /// These bytes are loaded.
    Constant(Vec<u8>),
    /// What was loaded is masked.
    Mask(Vec<u8>),
    /// What was loaded must be, or not be, these bytes.
    Compare {
        /// Must be.
        equal: bool,
        /// The bytes.
        data: Vec<u8>,
    },
    /// The end: `NF_ACCEPT`, `NFT_JUMP` ….
    Verdict {
        /// Its code.
        code: i32,
        /// Where to, for jump and goto.
        chain: Option<String>,
    },
    /// What was loaded is looked up.
    Lookup {
        /// The set's or map's name.
        set: String,
        /// What is found is used: a map.
        mapped: bool,
    },
    /// An xtables match, by name and data.
    Match(String, Vec<u8>),
    /// An xtables target, by name and data.
    Target(String, Vec<u8>),
    /// The source or destination is translated.
    Nat {
        /// `NFT_NAT_SNAT` or `NFT_NAT_DNAT`
        kind: u32,
        /// The register that has the address; 0 for none.
        address: u32,
        /// The register that has the port; 0 for none.
        port: u32,
    },
    /// A counter; its numbers do not matter.
    Counter,
    /// Any other, as libnftnl prints it.
    Other(String),
}

/// A rule that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// The name of its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// What to delete it by.
    pub handle: u64,
    /// Its comment, nft's or that of an xtables match.
    pub comment: Option<String>,
    /// Our [`super::Rule::tag`].
    pub tag: Option<String>,
    /// What it does.
    pub steps: Vec<Step>,
}

/// A rule as `ffi.rs` reads it.
pub(super) struct RawRule {
    pub table: String,
    pub chain: String,
    pub handle: u64,
    pub user_data: Vec<u8>,
    pub steps: Vec<Step>,
}

impl From<RawRule> for ListedRule {
    fn from(raw: RawRule) -> ListedRule {
        let match_comment = raw.steps.iter().find_map(|step| match step {
            Step::Match(name, info) if name == "comment" => Some(text(info)),
            _ => None,
        });
        ListedRule {
            table: raw.table,
            chain: raw.chain,
            handle: raw.handle,
            comment: user_data(&raw.user_data, UDATA_COMMENT).or(match_comment),
            tag: user_data(&raw.user_data, UDATA_TAG),
            steps: raw.steps,
        }
    }
}

impl ListedRule {
    /// The chain that it jumps or goes to.
    pub fn target(&self) -> Option<&str> {
        self.steps.iter().find_map(|step| match step {
            Step::Verdict { chain: Some(chain), .. } => Some(chain.as_str()),
            _ => None,
        })
    }

    /// The network that this address of a packet must be in, when the rule says so (`-s 10.1.0.5`, `ip daddr fd00::/64`).
    pub fn within(&self, side: Side, family: Family) -> Option<IpNet> {
        let mut steps = self.steps.iter();
        let (at, full) = address_field(side, family)?;
        let load = |step: &Step| match step {
            Step::Payload { base, offset, length } => {
                (*base == libc::NFT_PAYLOAD_NETWORK_HEADER as u32 && *offset == at).then_some(*length)
            }
            _ => None,
        };
        let length = steps.find_map(load)?;
        let mut prefix = u8::try_from(length * 8).ok()?;
        let mut next = steps.next()?;
        if let Step::Mask(mask) = next {
            prefix = mask.iter().map(|byte| byte.leading_ones() as u8).sum();
            next = steps.next()?;
        }
        let Step::Compare { equal: true, data } = next else { return None };
        let mut bytes = data.clone();
        bytes.resize(full as usize, 0);
        match address(&bytes)? {
            IpAddr::V4(address) => Ipv4Net::new(address, prefix).ok().map(IpNet::V4),
            IpAddr::V6(address) => Ipv6Net::new(address, prefix).ok().map(IpNet::V6),
        }
    }
}

/// Where in the network header an address is, and its length; `None` in a family that has no one address format.
pub(super) fn address_field(side: Side, family: Family) -> Option<(u32, u32)> {
    match (family, side) {
        (Family::Ip, Side::Source) => Some((12, 4)),
        (Family::Ip, Side::Destination) => Some((16, 4)),
        (Family::Ip6, Side::Source) => Some((8, 16)),
        (Family::Ip6, Side::Destination) => Some((24, 16)),
        (Family::Inet | Family::Bridge, _) => None,
    }
}

/// A chain that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChain {
    /// The name of its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// How many rules it has, plus how many rules and elements refer to it.
    pub uses: u32,
    /// Where it is called from; `None` as well for a kind and hook that [`Base`] has no words for.
    pub base: Option<Base>,
    /// Its policy is drop: what no rule decides goes no further.
    pub drops: bool,
}

impl ListedChain {
    /// A chain as it is when it was just made.
    pub(super) fn planned(chain: &Chain) -> ListedChain {
        let Chain { table, name, base } = chain;
        ListedChain { table: table.name.to_owned(), name: name.clone(), uses: 0, base: *base, drops: false }
    }
}

impl From<ffi::RawChain> for ListedChain {
    fn from(raw: ffi::RawChain) -> ListedChain {
        let base = raw.base.and_then(|(kind, hook, priority)| {
            let kind = match kind.as_str() {
                "filter" => Kind::Filter,
                "nat" => Kind::Nat,
                _ => return None,
            };
            let hook = match i32::try_from(hook).ok()? {
                libc::NF_INET_PRE_ROUTING => Hook::Prerouting,
                libc::NF_INET_LOCAL_OUT => Hook::Output,
                libc::NF_INET_FORWARD => Hook::Forward,
                libc::NF_INET_POST_ROUTING => Hook::Postrouting,
                _ => return None,
            };
            Some(Base { kind, hook, priority })
        });
        ListedChain { table: raw.table, name: raw.name, uses: raw.uses, base, drops: raw.drops }
    }
}

/// An element as `ffi.rs` reads it.
pub(super) struct RawElement {
    pub key: Vec<u8>,
    pub data: Vec<u8>,
    pub verdict: Option<(i32, Option<String>)>,
    pub user_data: Vec<u8>,
}

impl RawElement {
    /// The element, by the types of its map; `None` when it does not fit them.
    pub(super) fn typed(self, map: &Map) -> Option<Element> {
        let data = match self.verdict {
            Some((code, chain)) => Value::Verdict(verdict(code, chain)?),
            None if map.data == Type::Nothing => Value::Nothing,
            None => value(map.data, map.table.family, &self.data)?,
        };
        let comment = user_data(&self.user_data, UDATA_COMMENT).unwrap_or_default();
        Some(Element { key: value(map.key, map.table.family, &self.key)?, data, comment })
    }
}

fn value(ty: Type, family: Family, bytes: &[u8]) -> Option<Value> {
    match ty {
        Type::Address => address(bytes).map(Value::Address),
        Type::Name => Some(Value::Name(text(bytes))),
        Type::Protocol => bytes.first().copied().map(Value::Protocol),
        Type::Port => Some(Value::Port(u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]))),
        Type::Joined(parts) => {
            let mut rest = bytes;
            let mut values = Vec::new();
            for part in parts {
                let length = type_of(*part, family).1 as usize;
                let (own, after) = rest.split_at_checked(length.next_multiple_of(4))?;
                values.push(value(*part, family, own.get(..length)?)?);
                rest = after;
            }
            Some(Value::Joined(values))
        }
        Type::Verdict | Type::Nothing => None,
    }
}

fn verdict(code: i32, chain: Option<String>) -> Option<Verdict> {
    match (code, chain) {
        (libc::NF_ACCEPT, _) => Some(Verdict::Accept),
        (libc::NF_DROP, _) => Some(Verdict::Drop),
        (libc::NFT_RETURN, _) => Some(Verdict::Return),
        (libc::NFT_JUMP, Some(chain)) => Some(Verdict::Jump(chain)),
        (libc::NFT_GOTO, Some(chain)) => Some(Verdict::Goto(chain)),
        _ => None,
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).into())
}

/// A string in a field that is filled up with zeros.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// [`super::Rule::tag`] in a rule's user data.
pub(super) fn tag(user_data_of_rule: &[u8]) -> Option<String> {
    user_data(user_data_of_rule, UDATA_TAG)
}

/// The string of one type in user data: type, length (with the final zero), bytes, and so on.
fn user_data(mut bytes: &[u8], wanted: u8) -> Option<String> {
    while let [ty, length, rest @ ..] = bytes {
        let (content, next) = rest.split_at_checked(usize::from(*length))?;
        if *ty == wanted {
            return Some(text(content));
        }
        bytes = next;
    }
    None
}
