//! Network interfaces as the kernel describes them.

use std::fmt;

use neli::consts::{
    nl::NlmF,
    rtnl::{Ifla, IflaInfo, Rtm},
};
use nix::libc;

use super::{
    SubKind,
    mac::Mac,
    uapi::*,
    wire::{Attrs, Batch, ifinfomsg, text_of, u8_at, u16_at, u32_at},
};
use crate::cni::{Error, Result};

/// Which interface is meant: by index, or by name when the index is 0.
///
/// A name also reaches a link that is created earlier in the same datagram.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Dev {
    /// Index, 0 when not known.
    pub index: u32,
    /// Name; may be empty when the index is known.
    pub name: String,
}

impl Dev {
    /// The interface of this name, whatever its index.
    pub fn named(name: impl Into<String>) -> Dev {
        Dev { index: 0, name: name.into() }
    }

    /// The interface of this index.
    pub fn indexed(index: u32) -> Dev {
        Dev { index, name: String::new() }
    }

    /// The index, or an error for `what` when it is not known: addresses, routes and masters have no other way to say it.
    pub(super) fn need_index(&self, what: &dyn fmt::Display) -> Result<u32> {
        match self.index {
            0 => Err(Error::internal(format!("{what}: the index of {self} is not known"))),
            index => Ok(index),
        }
    }

    /// The index for the fixed header and the name to send beside it.
    pub(super) fn address(&self, what: &dyn fmt::Display) -> Result<(u32, Option<&str>)> {
        if self.index != 0 {
            return Ok((self.index, None));
        }
        check_name(&self.name, what)?;
        Ok((0, Some(&self.name)))
    }
}

/// As `ip` writes it; an interface without a known name is `if7`.
impl fmt::Display for Dev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.is_empty() { write!(f, "if{}", self.index) } else { f.write_str(&self.name) }
    }
}

/// An error for `what` when the kernel could not have an interface of this name (linux/if.h, IFNAMSIZ).
pub(super) fn check_name(name: &str, what: &dyn fmt::Display) -> Result<()> {
    if name.is_empty() || name.len() >= IFNAMSIZ || name.contains('\0') {
        let max = IFNAMSIZ - 1;
        return Err(Error::config(format!("{what}: interface name \"{name}\" is not 1 to {max} bytes long")));
    }
    Ok(())
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Index in its namespace.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Address, when it is an Ethernet-like interface.
    pub mac: Option<Mac>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// `IFF_*`, linux/if.h.
    pub flags: u32,
    /// `IF_OPER_*`, linux/if.h (RFC 2863).
    pub oper_state: u8,
    /// Index of the bridge (or other master) this is a port of.
    pub master: Option<u32>,
    /// `IFLA_LINK`: index of a veth's other end in its namespace, or of the interface this one sits on.
    pub peer: Option<u32>,
    /// Kind as in `ip link add type KIND`; empty for hardware and `lo`.
    pub kind: String,
    /// `ip link set alias`; empty when there is none.
    pub alias: String,
    /// Routing table of a VRF.
    pub vrf_table: Option<u32>,
    /// How many users want to see all packets.
    pub promiscuity: u32,
    /// Length of the transmit queue, packets.
    pub tx_queue: u32,
    /// What is special to a bridge.
    pub bridge: Option<Bridge>,
    /// What is special to a bridge's port.
    pub port: Option<Port>,
    /// What is special to a tun or tap interface.
    pub tun: Option<Tun>,
    /// What is special to a vlan, macvlan, ipvlan or dummy.
    pub sub: Option<SubKind>,
    /// `IFLA_LINK_NETNSID`: number of the namespace that [`Link::peer`] is in (see [`super::Handle::number_of`]); `None`
    /// when it is the same one.
    pub lower_netns: Option<u32>,
}

/// Settings of a tun or tap interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tun {
    /// It carries Ethernet frames; otherwise IP packets.
    pub is_tap: bool,
    /// User who may attach to it; `None` for any.
    pub owner: Option<u32>,
    /// Group that may attach to it; `None` for any.
    pub group: Option<u32>,
    /// Several processes or threads may each have a queue.
    pub multi_queue: bool,
}

/// Settings of a bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// Ports have VLANs.
    pub vlan_filtering: bool,
    /// Spanning tree is on: a new port forwards only after a delay.
    pub stp: bool,
    /// VLAN that a new port gets (PVID, untagged); `None` when the kernel has no VLAN filtering.
    pub default_pvid: Option<u16>,
}

/// State of a bridge's port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// `BR_STATE_*`, linux/if_bridge.h: 0 disabled, 3 forwarding.
    pub state: u8,
    /// Frames may leave through the port they came in by.
    pub hairpin: bool,
    /// No frames between isolated ports.
    pub isolated: bool,
}

impl Link {
    /// This interface, for a change.
    pub fn dev(&self) -> Dev {
        Dev { index: self.index, name: self.name.clone() }
    }

    /// Administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }

    /// Set to see all packets (`ip link set promisc on`); [`Link::promiscuity`] also counts other users.
    pub fn is_promisc(&self) -> bool {
        self.flags & libc::IFF_PROMISC as u32 != 0
    }

    /// Set to receive all multicast frames (`ip link set allmulticast on`).
    pub fn is_allmulti(&self) -> bool {
        self.flags & libc::IFF_ALLMULTI as u32 != 0
    }

    /// Operationally up: has a carrier and can pass packets.
    ///
    /// A link whose carrier was there from the start is in state UNKNOWN, and works (the kernel's `netif_oper_up`): `lo`, a
    /// dummy, up to 6.12 at least also a bridge. Not so a veth: its UNKNOWN is a carrier that has yet to be noticed; until then the
    /// kernel drops what is sent through it.
    pub fn is_oper_up(&self) -> bool {
        let has_carrier = self.flags & IFF_LOWER_UP != 0;
        let unknown = self.oper_state == IF_OPER_UNKNOWN && self.kind != "veth";
        self.oper_state == IF_OPER_UP || unknown && has_carrier
    }

    /// Up, and what it stands on is up too: frames get through.
    pub fn has_carrier(&self) -> bool {
        self.flags & libc::IFF_LOWER_UP as u32 != 0
    }

    /// Reads the payload of an RTM_NEWLINK or RTM_DELLINK.
    pub(super) fn decode(payload: &[u8]) -> Link {
        let mut link = Link { index: u32_at(payload, 4), flags: u32_at(payload, 8), ..Link::default() };
        for (kind, value) in Attrs::after(payload, 16) {
            match Ifla::from(kind) {
                Ifla::Ifname => link.name = text_of(value),
                Ifla::Address => link.mac = <[u8; 6]>::try_from(value).ok().map(Mac),
                Ifla::Mtu => link.mtu = u32_at(value, 0),
                Ifla::Operstate => link.oper_state = u8_at(value, 0),
                Ifla::Master => link.master = Some(u32_at(value, 0)),
                Ifla::Link => link.peer = Some(u32_at(value, 0)),
                Ifla::LinkNetnsid => link.lower_netns = Some(u32_at(value, 0)),
                Ifla::Ifalias => link.alias = text_of(value),
                Ifla::Promiscuity => link.promiscuity = u32_at(value, 0),
                Ifla::Txqlen => link.tx_queue = u32_at(value, 0),
                Ifla::Linkinfo => link.decode_info(Attrs(value)),
                // Only in AF_BRIDGE messages; LINKINFO says the same in the others.
                Ifla::Protinfo => link.port = Some(Port::decode(Attrs(value))),
                _ => {}
            }
        }
        link
    }

    fn decode_info(&mut self, info: Attrs<'_>) {
        self.kind = info.find(IflaInfo::Kind).map(text_of).unwrap_or_default();
        if self.kind == "bridge" {
            self.bridge = info.find(IflaInfo::Data).map(|data| Bridge::decode(Attrs(data)));
        }
        if self.kind == "tun" {
            self.tun = info.find(IflaInfo::Data).map(|data| Tun::decode(Attrs(data)));
        }
        self.sub = SubKind::decode(&self.kind, info.find(IflaInfo::Data).map(Attrs));
        if self.kind == "vrf" {
            let table = info.find(IflaInfo::Data).and_then(|data| Attrs(data).find(IFLA_VRF_TABLE));
            self.vrf_table = table.map(|b| u32_at(b, 0));
        }
        if info.find(IflaInfo::SlaveKind).is_some_and(|kind| text_of(kind) == "bridge") {
            self.port = info.find(IflaInfo::SlaveData).map(|data| Port::decode(Attrs(data)));
        }
    }
}

impl Bridge {
    fn decode(attrs: Attrs<'_>) -> Bridge {
        Bridge {
            vlan_filtering: attrs.find(IFLA_BR_VLAN_FILTERING).is_some_and(|b| u8_at(b, 0) != 0),
            stp: attrs.find(IFLA_BR_STP_STATE).is_some_and(|b| u32_at(b, 0) != 0),
            default_pvid: attrs.find(IFLA_BR_VLAN_DEFAULT_PVID).map(|b| u16_at(b, 0)),
        }
    }
}

impl Tun {
    fn decode(attrs: Attrs<'_>) -> Tun {
        let byte = |kind: u16| attrs.find(kind).map_or(0, |b| u8_at(b, 0));
        Tun {
            is_tap: i32::from(byte(IFLA_TUN_TYPE)) == libc::IFF_TAP,
            owner: attrs.find(IFLA_TUN_OWNER).map(|b| u32_at(b, 0)),
            group: attrs.find(IFLA_TUN_GROUP).map(|b| u32_at(b, 0)),
            multi_queue: byte(IFLA_TUN_MULTI_QUEUE) != 0,
        }
    }
}

impl Port {
    fn decode(attrs: Attrs<'_>) -> Port {
        let byte = |kind: u16| attrs.find(kind).map_or(0, |b| u8_at(b, 0));
        Port {
            state: byte(IFLA_BRPORT_STATE),
            hairpin: byte(IFLA_BRPORT_MODE) != 0,
            isolated: byte(IFLA_BRPORT_ISOLATED) != 0,
        }
    }
}

/// `ip link show dev DEV`, without the counters.
pub(super) fn encode_get(dev: &Dev, batch: &mut Batch) -> Result<()> {
    let (index, name) = dev.address(&format_args!("ip link show dev {dev}"))?;
    batch.message(Rtm::Getlink, NlmF::empty(), &ifinfomsg(0, index, 0, 0), |a| {
        a.u32(Ifla::ExtMask, RTEXT_FILTER_SKIP_STATS);
        if let Some(name) = name {
            a.text(Ifla::Ifname, name);
        }
    });
    Ok(())
}

/// `ip link show [type KIND]`, without the counters.
pub(super) fn encode_dump(kind: Option<&str>, batch: &mut Batch) {
    batch.message(Rtm::Getlink, NlmF::DUMP, &ifinfomsg(0, 0, 0, 0), |a| {
        a.u32(Ifla::ExtMask, RTEXT_FILTER_SKIP_STATS);
        if let Some(kind) = kind {
            a.nest(Ifla::Linkinfo, |a| a.text(IflaInfo::Kind, kind));
        }
    });
}
