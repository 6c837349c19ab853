//! Addresses on interfaces.

use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::IpNet;
use neli::consts::{
    nl::NlmF,
    rtnl::{Ifa, Rtm},
};
use nix::libc;

use super::{
    uapi::*,
    wire::{Attrs, Batch, ip_of, text_of, u8_at, u32_at},
};

/// `IFA_RT_PRIORITY`, linux/if_addr.h: metric of the route to the address's network.
const IFA_RT_PRIORITY: u16 = 9;

/// An address that the kernel has on an interface. As text, what `ip addr add` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The interface's own address and its prefix length.
    pub net: IpNet,
    /// `RT_SCOPE_*`, linux/rtnetlink.h: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_*`, linux/if_addr.h.
    pub flags: u32,
    /// The other end's address, whose the prefix length is then.
    pub peer: Option<IpAddr>,
    /// IPv4 only. `None`: not known.
    pub broadcast: Option<IpAddr>,
    /// IPv4 only; empty: the interface's name.
    pub label: String,
    /// Metric of the route to its network; 0: the kernel's choice.
    pub metric: u32,
}

impl Address {
    /// Not usable yet: duplicate address detection is under way (or failed).
    pub fn is_tentative(&self) -> bool {
        self.flags & libc::IFA_F_TENTATIVE != 0
    }

    /// Duplicate address detection found another owner.
    pub fn is_dad_failed(&self) -> bool {
        self.flags & libc::IFA_F_DADFAILED != 0
    }

    /// Reads the payload of an RTM_NEWADDR or RTM_DELADDR; `None` for a family other than IPv4 and IPv6.
    pub(super) fn decode(payload: &[u8]) -> Option<Address> {
        let attrs = Attrs::after(payload, 8);
        // IFA_LOCAL is the own address where IFA_ADDRESS is the peer's (point to point); IPv6 sends IFA_ADDRESS alone.
        let other = attrs.find(Ifa::Address).and_then(ip_of);
        let address = attrs.find(Ifa::Local).and_then(ip_of).or(other)?;
        let flags = attrs.find(Ifa::Flags).map_or(u32::from(u8_at(payload, 2)), |b| u32_at(b, 0));
        Some(Address {
            index: u32_at(payload, 4),
            net: IpNet::new(address, u8_at(payload, 1)).ok()?,
            scope: u8_at(payload, 3),
            flags,
            peer: other.filter(|other| *other != address),
            // There is none when the kernel tells none.
            broadcast: address
                .is_ipv4()
                .then(|| attrs.find(Ifa::Broadcast).and_then(ip_of).unwrap_or(Ipv4Addr::UNSPECIFIED.into())),
            label: attrs.find(Ifa::Label).map(text_of).unwrap_or_default(),
            metric: attrs.find(IFA_RT_PRIORITY).map_or(0, |b| u32_at(b, 0)),
        })
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Address { net, peer, .. } = self;
        match peer {
            Some(peer) => write!(f, "{} peer {peer}/{}", net.addr(), net.prefix_len())?,
            None => net.fmt(f)?,
        }
        // A network of one or two addresses has none, unless somebody gave one.
        if let Some(broadcast) = self.broadcast.filter(|brd| net.prefix_len() < 31 || !brd.is_unspecified()) {
            write!(f, " brd {broadcast}")?;
        }
        // IPv6 addresses have theirs by what they are.
        if self.scope != RT_SCOPE_UNIVERSE && net.addr().is_ipv4() {
            write!(f, " scope {}", self.scope)?;
        }
        if !self.label.is_empty() {
            write!(f, " label {}", self.label)?;
        }
        if self.metric != 0 {
            write!(f, " metric {}", self.metric)?;
        }
        if self.flags & libc::IFA_F_NOPREFIXROUTE != 0 { f.write_str(" noprefixroute") } else { Ok(()) }
    }
}

impl FromStr for Address {
    type Err = ();

    fn from_str(text: &str) -> Result<Address, ()> {
        let mut words = text.split(' ');
        let (first, mut address) = (words.next().unwrap_or_default(), Address::default());
        let mut net: Option<IpNet> = first.parse().ok();
        while let Some(word) = words.next() {
            let value = words.next().unwrap_or_default();
            match word {
                "peer" => {
                    let peer: IpNet = value.parse().map_err(drop)?;
                    address.peer = Some(peer.addr());
                    net = first.parse().ok().and_then(|own| IpNet::new(own, peer.prefix_len()).ok());
                }
                "brd" => address.broadcast = value.parse().ok(),
                "scope" => address.scope = value.parse().map_err(drop)?,
                "label" => value.clone_into(&mut address.label),
                "metric" => address.metric = value.parse().map_err(drop)?,
                "noprefixroute" => address.flags = libc::IFA_F_NOPREFIXROUTE,
                _ => return Err(()),
            }
        }
        net.map(|net| Address { net, ..address }).ok_or(())
    }
}

/// `ip addr show dev DEV`, both families.
pub(super) fn encode_dump(index: u32, batch: &mut Batch) {
    batch.message(Rtm::Getaddr, NlmF::DUMP, &ifaddrmsg(0, 0, 0, 0, index), |_| {});
}

/// `ip addr add|del NET dev INDEX`.
pub(super) fn encode(kind: Rtm, flags: NlmF, index: u32, net: IpNet, nodad: bool, batch: &mut Batch) {
    let scope = if net.addr().is_loopback() { RT_SCOPE_HOST } else { RT_SCOPE_UNIVERSE };
    let address_flags = if nodad { libc::IFA_F_NODAD } else { 0 };
    let address = Address { index, net, scope, flags: address_flags, ..Address::default() };
    encode_whole(kind, flags, &address, batch);
}

/// As [`encode`], with everything that is known of the address. IPv4 prefixes shorter than 31 bits get a broadcast address,
/// as `brd +` does, when none is known.
pub(super) fn encode_whole(kind: Rtm, flags: NlmF, address: &Address, batch: &mut Batch) {
    let net = address.net;
    let (family, plus) = match net {
        IpNet::V4(v4) => (AF_INET, (v4.prefix_len() < 31).then(|| v4.broadcast().into())),
        IpNet::V6(_) => (AF_INET6, None),
    };
    // Flags beyond a byte have an attribute of their own.
    let byte = u8::try_from(address.flags).ok();
    let header = ifaddrmsg(family, net.prefix_len(), byte.unwrap_or(0), address.scope, address.index);
    batch.message(kind, flags, &header, |a| {
        a.ip(Ifa::Local, net.addr());
        a.ip(Ifa::Address, address.peer.unwrap_or(net.addr()));
        if let Some(broadcast) = address.broadcast.or(plus).filter(|_| kind == Rtm::Newaddr) {
            a.ip(Ifa::Broadcast, broadcast);
        }
        if !address.label.is_empty() {
            a.text(Ifa::Label, &address.label);
        }
        if address.metric != 0 {
            a.u32(IFA_RT_PRIORITY, address.metric);
        }
        if byte.is_none() {
            a.u32(Ifa::Flags, address.flags);
        }
    });
}

/// `struct ifaddrmsg`.
fn ifaddrmsg(family: u8, prefix: u8, flags: u8, scope: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix, flags, scope, a, b, c, d]
}
