//! Kernel changes as values. `change_text.rs` prints them, this file makes the netlink messages.

use std::{net::IpAddr, os::fd::RawFd};

use ipnet::IpNet;
use neli::consts::{
    nl::NlmF,
    rtnl::{Ifla, IflaInfo, Rtm},
};
use nix::libc;

use super::{
    AddSubLink, Address, Dev, Mac, PortVlan, RouteSpec, RuleSpec, VlanRange, address,
    link::check_name,
    neighbour, port_vlan, route, rule, sublink,
    tc::{AddIfb, TcChange},
    uapi::*,
    vrf::AddVrf,
    wire::{Attributes, Batch, ifinfomsg},
};
use crate::cni::{Error, Result};

/// One change; prints as the command an operator would type.
///
/// Unless said otherwise a [`Dev`] is addressed by name when its index is 0, which also reaches a link created earlier in
/// the same datagram. Addresses, routes, masters and port VLANs need an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `ip link add NAME type bridge`; EEXIST when there is a link of that name.
    AddBridge(AddBridge),
    /// `ip link add NAME type ifb`, down; EEXIST when there is a link of that name.
    AddIfb(AddIfb),
    /// `ip link add NAME type veth peer name PEER`: both ends in one message; EEXIST when one of the names is taken.
    AddVeth(AddVeth),
    /// `ip link add link LOWER name NAME type KIND`: vlan, macvlan, ipvlan or dummy.
    AddSubLink(AddSubLink),
    /// `ip link add NAME type vrf`; EEXIST when there is a link of that name.
    AddVrf(AddVrf),
    /// `ip link del NAME`: costs some 16 ms (see [`crate::kernel::detach`]).
    DelLink(Dev),
    /// `ip link set dev NAME ...`, and port flags as `bridge link set dev NAME ...`.
    SetLink(SetLink),
    /// `ip addr add NET dev NAME`; EEXIST when the interface has it.
    AddAddress(AddAddress),
    /// An address as it was, without duplicate address detection.
    RestoreAddress {
        /// The interface; its index must be known.
        dev: Dev,
        /// The address; only of what [`Address`] as text says.
        address: Address,
    },
    /// `ip addr del NET dev NAME`; EADDRNOTAVAIL when the interface does not have it.
    DelAddress {
        /// The interface; its index must be known.
        dev: Dev,
        /// Address and prefix length.
        net: IpNet,
    },
    /// `ip route add ROUTE`; EEXIST when there is one to the same destination.
    AddRoute(RouteSpec),
    /// `ip route prepend ROUTE`: in front of those to the same destination (IPv4), or one more next hop of theirs (IPv6);
    /// EEXIST only when there is an equal one.
    PrependRoute(RouteSpec),
    /// `ip route replace ROUTE`: in the place of one to the same destination with the same metric, if there is one.
    ReplaceRoute(RouteSpec),
    /// `ip route del ROUTE`; ESRCH when there is no such route. What is set must match, metrics (`mtu`, `advmss`) too.
    DelRoute(RouteSpec),
    /// `ip neigh replace IP lladdr MAC dev NAME nud permanent`.
    SetNeighbour {
        /// The interface; its index must be known.
        dev: Dev,
        /// Whose hardware address is told.
        ip: IpAddr,
        /// The hardware address.
        mac: Mac,
    },
    /// `ip neigh del IP dev NAME`; ENOENT when there is no such entry.
    DelNeighbour {
        /// The interface; its index must be known.
        dev: Dev,
        /// Whose entry.
        ip: IpAddr,
    },
    /// `ip rule add from SRC lookup TABLE`; EEXIST when there is an equal one.
    AddRule(RuleSpec),
    /// `ip rule del from SRC lookup TABLE`; ENOENT when there is none.
    DelRule(RuleSpec),
    /// `bridge vlan add dev NAME vid RANGE`; EOPNOTSUPP when the kernel has no bridge VLAN filtering. A `pvid` must be a
    /// single VLAN.
    AddPortVlan {
        /// The port; its index must be known.
        dev: Dev,
        /// Ids and flags.
        vlan: PortVlan,
    },
    /// `bridge vlan del dev NAME vid RANGE`.
    DelPortVlan {
        /// The port; its index must be known.
        dev: Dev,
        /// Ids.
        range: VlanRange,
    },
    /// `tc …`.
    Tc(TcChange),
}

/// A new bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddBridge {
    /// Name.
    pub name: String,
    /// Administratively up from the start.
    pub up: bool,
    /// Bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Fixed address; without one the bridge takes the lowest of its ports and changes it with them.
    pub mac: Option<Mac>,
    /// Ports have VLANs; EOPNOTSUPP when the kernel cannot.
    pub vlan_filtering: bool,
}

/// A new pair of veth ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddVeth {
    /// Name of this end.
    pub name: String,
    /// This end administratively up from the start. (The other cannot be: ENOTCONN.)
    pub up: bool,
    /// Bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Address; `None` for a random one.
    pub mac: Option<Mac>,
    /// Bridge this end is a port of; its index must be known.
    pub master: Option<Dev>,
    /// The other end.
    pub peer: VethPeer,
}

/// The other end of a new veth pair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VethPeer {
    /// Name in its namespace.
    pub name: String,
    /// Bytes; `None` for the kernel's default.
    pub mtu: Option<u32>,
    /// Address; `None` for a random one.
    pub mac: Option<Mac>,
    /// Where it is created; `None` for the namespace of the first end.
    pub netns: Option<PeerNetns>,
}

/// A namespace named by an open descriptor; see [`crate::kernel::netns::Netns::for_peer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerNetns {
    /// Must stay open until the change was applied.
    pub fd: RawFd,
    /// For the printed change only.
    pub path: String,
}

/// Changes to a link; `None` leaves a setting as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetLink {
    /// Which link.
    pub dev: Dev,
    /// Administrative state.
    pub up: Option<bool>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Address.
    pub mac: Option<Mac>,
    /// `Some(None)` takes the link out of its bridge; the index of a new master must be known.
    pub master: Option<Option<Dev>>,
    /// At most 255 bytes; an empty text removes it.
    pub alias: Option<String>,
    /// See all packets.
    pub promisc: Option<bool>,
    /// Announce IPv4 addresses when the link comes up or its address is set: `arp_notify` in ip-sysctl.
    pub arp_notify: Option<bool>,
    /// Receive all multicast frames.
    pub allmulti: Option<bool>,
    /// Length of the transmit queue, packets.
    pub tx_queue: Option<u32>,
    /// Another namespace, in which everything else of this change is made: the link arrives down and without addresses,
    /// and keeps its alias. When its name is taken there it arrives under the new one; when both are, EEXIST and nothing
    /// is changed (`do_setlink` and `__dev_change_net_namespace` in net/core).
    pub netns: Option<PeerNetns>,
    /// New name; `dev` must be given by index, and most kernels want the link to be down.
    pub rename: Option<String>,
    /// Flags of a bridge port; applied after `master`.
    pub port: Option<PortFlags>,
    /// Setting of a bridge.
    pub vlan_filtering: Option<bool>,
}

impl SetLink {
    /// No change to `dev` yet.
    pub fn of(dev: Dev) -> SetLink {
        SetLink { dev, ..SetLink::default() }
    }
}

/// Flags of a bridge port; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortFlags {
    /// Frames may leave through the port they came in by.
    pub hairpin: Option<bool>,
    /// No frames between isolated ports (Linux 4.18).
    pub isolated: Option<bool>,
}

/// A new address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddAddress {
    /// The interface; its index must be known.
    pub dev: Dev,
    /// Address and prefix length; host bits are kept.
    pub net: IpNet,
    /// Usable at once, without duplicate address detection; IPv6 only.
    pub nodad: bool,
}

impl Change {
    /// Adds the messages of this change: one, or two for a [`SetLink`] of both master and port flags.
    /// Fails, adding none, when the change cannot be said in netlink (a name too long, an index not known).
    pub(in crate::kernel) fn encode(&self, batch: &mut Batch) -> Result<()> {
        match self {
            Change::AddBridge(bridge) => self.encode_bridge(bridge, batch)?,
            Change::AddIfb(ifb) => ifb.encode(self, batch)?,
            Change::AddVrf(vrf) => vrf.encode(batch)?,
            Change::AddVeth(veth) => self.encode_veth(veth, batch)?,
            Change::AddSubLink(add) => sublink::encode(add, batch)?,
            Change::DelLink(dev) => {
                let (index, name) = dev.address(self)?;
                batch.message(Rtm::Dellink, NlmF::empty(), &ifinfomsg(0, index, 0, 0), |a| {
                    if let Some(name) = name {
                        a.text(Ifla::Ifname, name);
                    }
                });
            }
            Change::SetLink(set) => self.encode_set(set, batch)?,
            Change::AddAddress(AddAddress { dev, net, nodad }) => {
                let flags = NlmF::CREATE | NlmF::EXCL;
                let nodad = *nodad && net.addr().is_ipv6();
                address::encode(Rtm::Newaddr, flags, dev.need_index(self)?, *net, nodad, batch);
            }
            Change::RestoreAddress { dev, address } => {
                let nodad = if address.net.addr().is_ipv6() { libc::IFA_F_NODAD } else { 0 };
                let (index, flags) = (dev.need_index(self)?, address.flags | nodad);
                let address = Address { index, flags, ..address.clone() };
                address::encode_whole(Rtm::Newaddr, NlmF::CREATE | NlmF::EXCL, &address, batch);
            }
            Change::DelAddress { dev, net } => {
                address::encode(Rtm::Deladdr, NlmF::empty(), dev.need_index(self)?, *net, false, batch);
            }
            Change::AddRoute(route) => {
                let flags = NlmF::CREATE | NlmF::EXCL;
                route::encode(Rtm::Newroute, flags, route, self, batch)?;
            }
            Change::PrependRoute(route) => {
                route::encode(Rtm::Newroute, NlmF::CREATE, route, self, batch)?;
            }
            Change::ReplaceRoute(route) => {
                let flags = NlmF::CREATE | NlmF::REPLACE;
                route::encode(Rtm::Newroute, flags, route, self, batch)?;
            }
            Change::AddRule(rule) => rule::encode(Rtm::Newrule, NlmF::CREATE | NlmF::EXCL, rule, batch),
            Change::DelRule(rule) => rule::encode(Rtm::Delrule, NlmF::empty(), rule, batch),
            Change::DelRoute(route) => route::encode(Rtm::Delroute, NlmF::empty(), route, self, batch)?,
            Change::SetNeighbour { dev, ip, mac } => {
                neighbour::encode(dev.need_index(self)?, *ip, Some(*mac), batch);
            }
            Change::DelNeighbour { dev, ip } => {
                neighbour::encode(dev.need_index(self)?, *ip, None, batch);
            }
            Change::AddPortVlan { dev, vlan } => {
                port_vlan::encode(Rtm::Setlink, dev.need_index(self)?, *vlan, batch);
            }
            Change::DelPortVlan { dev, range } => {
                let vlan = PortVlan { range: *range, pvid: false, untagged: false };
                port_vlan::encode(Rtm::Dellink, dev.need_index(self)?, vlan, batch);
            }
            Change::Tc(change) => change.encode(batch)?,
        }
        Ok(())
    }

    fn encode_bridge(&self, bridge: &AddBridge, batch: &mut Batch) -> Result<()> {
        check_name(&bridge.name, self)?;
        let up = if bridge.up { libc::IFF_UP as u32 } else { 0 };
        batch.message(Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, &ifinfomsg(0, 0, up, up), |a| {
            encode_new(a, &bridge.name, bridge.mtu, bridge.mac);
            a.nest(Ifla::Linkinfo, |a| {
                a.bytes(IflaInfo::Kind, b"bridge");
                if bridge.vlan_filtering {
                    a.nest(IflaInfo::Data, |a| a.u8(IFLA_BR_VLAN_FILTERING, 1));
                }
            });
        });
        Ok(())
    }

    fn encode_veth(&self, veth: &AddVeth, batch: &mut Batch) -> Result<()> {
        check_name(&veth.name, self)?;
        check_name(&veth.peer.name, self)?;
        let master = veth.master.as_ref().map(|dev| dev.need_index(self)).transpose()?;
        let up = if veth.up { libc::IFF_UP as u32 } else { 0 };
        batch.message(Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, &ifinfomsg(0, 0, up, up), |a| {
            encode_new(a, &veth.name, veth.mtu, veth.mac);
            encode_one_queue(a);
            if let Some(master) = master {
                a.u32(Ifla::Master, master);
            }
            a.nest(Ifla::Linkinfo, |a| {
                a.bytes(IflaInfo::Kind, b"veth");
                a.nest(IflaInfo::Data, |a| {
                    a.nest_after(VETH_INFO_PEER, &ifinfomsg(0, 0, 0, 0), |a| {
                        encode_new(a, &veth.peer.name, veth.peer.mtu, veth.peer.mac);
                        encode_one_queue(a);
                        if let Some(netns) = &veth.peer.netns {
                            a.bytes(Ifla::NetNsFd, &netns.fd.to_ne_bytes());
                        }
                    });
                });
            });
        });
        Ok(())
    }

    fn encode_set(&self, set: &SetLink, batch: &mut Batch) -> Result<()> {
        let (index, name) = set.dev.address(self)?;
        if let Some(new) = &set.rename {
            check_name(new, self)?;
            set.dev.need_index(self)?;
        }
        if set.alias.as_ref().is_some_and(|alias| alias.len() >= IFALIASZ) {
            return Err(Error::internal(format!("{self}: the alias is longer than {} bytes", IFALIASZ - 1)));
        }
        let master = match &set.master {
            None => None,
            Some(None) => Some(0),
            Some(Some(dev)) => Some(dev.need_index(self)?),
        };
        let (mut flags, mut change) = (0, 0);
        for (wanted, bit) in [
            (set.up, libc::IFF_UP as u32),
            (set.promisc, libc::IFF_PROMISC as u32),
            (set.allmulti, libc::IFF_ALLMULTI as u32),
        ] {
            if let Some(on) = wanted {
                change |= bit;
                flags |= if on { bit } else { 0 };
            }
        }
        // The kernel hands port flags to the bridge the port is in before it looks at IFLA_MASTER (rtnl_changelink).
        let port_apart = if master.is_some() { set.port } else { None };
        let port_along = if master.is_some() { None } else { set.port };
        batch.message(Rtm::Newlink, NlmF::empty(), &ifinfomsg(0, index, flags, change), |a| {
            if let Some(name) = set.rename.as_deref().or(name) {
                a.text(Ifla::Ifname, name);
            }
            if let Some(mtu) = set.mtu {
                a.u32(Ifla::Mtu, mtu);
            }
            if let Some(mac) = set.mac {
                a.bytes(Ifla::Address, &mac.0);
            }
            if let Some(master) = master {
                a.u32(Ifla::Master, master);
            }
            if let Some(length) = set.tx_queue {
                a.u32(Ifla::Txqlen, length);
            }
            if let Some(netns) = &set.netns {
                a.bytes(Ifla::NetNsFd, &netns.fd.to_ne_bytes());
            }
            if let Some(alias) = &set.alias {
                a.bytes(Ifla::Ifalias, alias.as_bytes());
            }
            if let Some(on) = set.arp_notify {
                a.nest(Ifla::AfSpec, |a| {
                    a.nest(u16::from(AF_INET), |a| {
                        a.nest(IFLA_INET_CONF, |a| a.u32(IPV4_DEVCONF_ARP_NOTIFY, on.into()));
                    });
                });
            }
            if let Some(on) = set.vlan_filtering {
                a.nest(Ifla::Linkinfo, |a| {
                    a.bytes(IflaInfo::Kind, b"bridge");
                    a.nest(IflaInfo::Data, |a| a.u8(IFLA_BR_VLAN_FILTERING, on.into()));
                });
            }
            if let Some(port) = port_along {
                encode_port(a, port);
            }
        });
        if let Some(port) = port_apart {
            let name = if set.rename.is_some() { None } else { name };
            batch.message(Rtm::Newlink, NlmF::empty(), &ifinfomsg(0, index, 0, 0), |a| {
                if let Some(name) = name {
                    a.text(Ifla::Ifname, name);
                }
                encode_port(a, port);
            });
        }
        Ok(())
    }
}

/// What both a link and a veth's other end are created with.
fn encode_new(a: &mut Attributes<'_>, name: &str, mtu: Option<u32>, mac: Option<Mac>) {
    a.text(Ifla::Ifname, name);
    if let Some(mtu) = mtu {
        a.u32(Ifla::Mtu, mtu);
    }
    if let Some(mac) = mac {
        a.bytes(Ifla::Address, &mac.0);
    }
}

/// One queue in each direction. A veth end uses one unless `ethtool -L` says otherwise; not told so, the kernel makes one
/// for each processor and then waits for an RCU grace period, for each end, to set the others aside (`veth_init_queues`
/// in drivers/net/veth.c).
fn encode_one_queue(a: &mut Attributes<'_>) {
    a.u32(Ifla::NumTxQueues, 1);
    a.u32(Ifla::NumRxQueues, 1);
}

/// `ip link set ... type bridge_slave hairpin on isolated on`: unlike `bridge link set` this takes the port's name.
fn encode_port(a: &mut Attributes<'_>, port: PortFlags) {
    a.nest(Ifla::Linkinfo, |a| {
        a.bytes(IflaInfo::SlaveKind, b"bridge");
        a.nest(IflaInfo::SlaveData, |a| {
            for (kind, value) in [(IFLA_BRPORT_MODE, port.hairpin), (IFLA_BRPORT_ISOLATED, port.isolated)] {
                if let Some(on) = value {
                    a.u8(kind, on.into());
                }
            }
        });
    });
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
