//! Addresses on interfaces.

use std::net::IpAddr;

use ipnet::IpNet;
use neli::consts::{
    nl::NlmF,
    rtnl::{Ifa, Rtm},
};
use nix::libc;

use super::{
    uapi::*,
    wire::{Attrs, Batch, ip_of, u8_at, u32_at},
};

/// An address that the kernel has on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The interface's own address and its prefix length.
    pub net: IpNet,
    /// `RT_SCOPE_*`, linux/rtnetlink.h: 0 global, 253 link, 254 host.
    pub scope: u8,
    /// `IFA_F_*`, linux/if_addr.h.
    pub flags: u32,
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
        let address = ip_of(attrs.find(Ifa::Local).or_else(|| attrs.find(Ifa::Address))?)?;
        let flags = attrs.find(Ifa::Flags).map_or(u32::from(u8_at(payload, 2)), |b| u32_at(b, 0));
        Some(Address {
            index: u32_at(payload, 4),
            net: IpNet::new(address, u8_at(payload, 1)).ok()?,
            scope: u8_at(payload, 3),
            flags,
        })
    }
}

/// `ip addr show dev DEV`, both families.
pub(super) fn encode_dump(index: u32, batch: &mut Batch) {
    batch.message(Rtm::Getaddr, NlmF::DUMP, &ifaddrmsg(0, 0, 0, 0, index), |_| {});
}

/// `ip addr add|del NET dev INDEX`. IPv4 prefixes shorter than 31 bits get a broadcast address, as `brd +` does.
pub(super) fn encode(kind: Rtm, flags: NlmF, index: u32, net: IpNet, nodad: bool, batch: &mut Batch) {
    let (family, loopback) = match net.addr() {
        IpAddr::V4(v4) => (AF_INET, v4.is_loopback()),
        IpAddr::V6(v6) => (AF_INET6, v6.is_loopback()),
    };
    let scope = if loopback { RT_SCOPE_HOST } else { RT_SCOPE_UNIVERSE };
    let address_flags = if nodad { libc::IFA_F_NODAD as u8 } else { 0 };
    batch.message(kind, flags, &ifaddrmsg(family, net.prefix_len(), address_flags, scope, index), |a| {
        a.ip(Ifa::Local, net.addr());
        a.ip(Ifa::Address, net.addr());
        if let (IpNet::V4(v4), true) = (net, net.prefix_len() < 31 && kind == Rtm::Newaddr) {
            a.bytes(Ifa::Broadcast, &v4.broadcast().octets());
        }
    });
}

/// `struct ifaddrmsg`.
fn ifaddrmsg(family: u8, prefix: u8, flags: u8, scope: u8, index: u32) -> [u8; 8] {
    let [a, b, c, d] = index.to_ne_bytes();
    [family, prefix, flags, scope, a, b, c, d]
}
