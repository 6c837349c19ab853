//! Links on top of another one (vlan, macvlan, ipvlan), and the dummy, which stands on none.

use std::fmt::{self, Display, Formatter};

use neli::consts::{
    nl::NlmF,
    rtnl::{Ifla, IflaInfo, Rtm},
};

use super::{
    Dev, Mac, PeerNetns,
    link::check_name,
    uapi::*,
    wire::{Attributes, Attrs, Batch, ifinfomsg, u16_at, u32_at},
};
use crate::cni::Result;

/// A new link of one of these kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddSubLink {
    /// Name. A kernel before 6.15 also refuses one that a link of the requesting namespace has (EEXIST).
    pub name: String,
    /// Bytes; `None` for that of the link below.
    pub mtu: Option<u32>,
    /// Address; `None` for a random one, or that of the link below where the kind shares it.
    pub mac: Option<Mac>,
    /// The link below, in the namespace of the request; its index must be known. `None` for a dummy.
    pub lower: Option<Dev>,
    /// Where it is created; `None` for the namespace of the request.
    pub netns: Option<PeerNetns>,
    /// Kind and settings.
    pub kind: SubKind,
}

/// Kind and settings of a link on another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubKind {
    /// `ip link add ... type vlan id ID`: IEEE 802.1Q.
    Vlan {
        /// 0 (priority tags only) to 4094.
        id: u16,
    },
    /// `ip link add ... type macvlan mode MODE [bcqueuelen N]`.
    Macvlan {
        /// What passes between links of one lower link.
        mode: MacvlanMode,
        /// Broadcast frames that may wait; `None` for the kernel's 1000. Linux 5.11; older ones ignore it.
        bc_queue_len: Option<u32>,
    },
    /// `ip link add ... type ipvlan mode MODE`.
    Ipvlan {
        /// Where packets are routed.
        mode: IpvlanMode,
    },
    /// `ip link add ... type dummy`.
    Dummy,
}

/// `MACVLAN_MODE_*`, linux/if_link.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MacvlanMode {
    /// Links of one lower link do not reach each other.
    Private,
    /// Everything goes out; a switch may send it back.
    Vepa,
    /// Links of one lower link reach each other.
    Bridge,
    /// The one link takes the lower link over, address and all.
    Passthru,
}

/// `IPVLAN_MODE_*`, linux/if_link.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpvlanMode {
    /// Frames are switched by IP address.
    L2,
    /// Packets are routed in the lower link's namespace.
    L3,
    /// As L3, and seen by that namespace's netfilter hooks.
    L3s,
}

impl SubKind {
    /// As in `ip link add type KIND`.
    pub fn name(self) -> &'static str {
        match self {
            SubKind::Vlan { .. } => "vlan",
            SubKind::Macvlan { .. } => "macvlan",
            SubKind::Ipvlan { .. } => "ipvlan",
            SubKind::Dummy => "dummy",
        }
    }

    /// From kind and IFLA_INFO_DATA; `None` for other kinds and for settings that this does not know.
    pub(super) fn decode(kind: &str, data: Option<Attrs<'_>>) -> Option<SubKind> {
        let find = |attribute: u16| data.and_then(|data| data.find(attribute));
        Some(match kind {
            "vlan" => SubKind::Vlan { id: u16_at(find(IFLA_VLAN_ID)?, 0) },
            "macvlan" => SubKind::Macvlan {
                mode: MacvlanMode::of(u32_at(find(IFLA_MACVLAN_MODE)?, 0))?,
                bc_queue_len: find(IFLA_MACVLAN_BC_QUEUE_LEN).map(|b| u32_at(b, 0)),
            },
            "ipvlan" => SubKind::Ipvlan { mode: IpvlanMode::of(u16_at(find(IFLA_IPVLAN_MODE)?, 0))? },
            "dummy" => SubKind::Dummy,
            _ => return None,
        })
    }

    fn encode(self, a: &mut Attributes<'_>) {
        a.bytes(IflaInfo::Kind, self.name().as_bytes());
        match self {
            SubKind::Vlan { id } => {
                a.nest(IflaInfo::Data, |a| a.bytes(IFLA_VLAN_ID, &id.to_ne_bytes()));
            }
            SubKind::Macvlan { mode, bc_queue_len } => a.nest(IflaInfo::Data, |a| {
                if let Some(length) = bc_queue_len {
                    a.u32(IFLA_MACVLAN_BC_QUEUE_LEN, length);
                }
                a.u32(IFLA_MACVLAN_MODE, mode.number());
            }),
            SubKind::Ipvlan { mode } => a.nest(IflaInfo::Data, |a| {
                a.bytes(IFLA_IPVLAN_MODE, &mode.number().to_ne_bytes());
                a.bytes(IFLA_IPVLAN_FLAGS, &0u16.to_ne_bytes());
            }),
            SubKind::Dummy => {}
        }
    }
}

impl MacvlanMode {
    /// All, by the names of macvlan(8) and of the plugin's `mode`.
    pub const ALL: [(&'static str, MacvlanMode); 4] = [
        ("bridge", MacvlanMode::Bridge),
        ("private", MacvlanMode::Private),
        ("vepa", MacvlanMode::Vepa),
        ("passthru", MacvlanMode::Passthru),
    ];

    fn number(self) -> u32 {
        match self {
            MacvlanMode::Private => 1,
            MacvlanMode::Vepa => 2,
            MacvlanMode::Bridge => 4,
            MacvlanMode::Passthru => 8,
        }
    }

    fn of(number: u32) -> Option<MacvlanMode> {
        MacvlanMode::ALL.into_iter().map(|(_, mode)| mode).find(|mode| mode.number() == number)
    }
}

impl IpvlanMode {
    /// All, by the names of `ip link` and of the plugin's `mode`.
    pub const ALL: [(&'static str, IpvlanMode); 3] =
        [("l2", IpvlanMode::L2), ("l3", IpvlanMode::L3), ("l3s", IpvlanMode::L3s)];

    fn number(self) -> u16 {
        match self {
            IpvlanMode::L2 => 0,
            IpvlanMode::L3 => 1,
            IpvlanMode::L3s => 2,
        }
    }

    fn of(number: u16) -> Option<IpvlanMode> {
        IpvlanMode::ALL.into_iter().map(|(_, mode)| mode).find(|mode| mode.number() == number)
    }
}

impl Display for MacvlanMode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(MacvlanMode::ALL.iter().find(|(_, mode)| mode == self).map_or("", |(name, _)| name))
    }
}

impl Display for IpvlanMode {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(IpvlanMode::ALL.iter().find(|(_, mode)| mode == self).map_or("", |(name, _)| name))
    }
}

/// Settings as `ip link` takes them: `macvlan mode bridge`.
impl Display for SubKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            SubKind::Vlan { id } => write!(f, " id {id}"),
            SubKind::Macvlan { mode, bc_queue_len: None } => write!(f, " mode {mode}"),
            SubKind::Macvlan { mode, bc_queue_len: Some(length) } => {
                write!(f, " mode {mode} bcqueuelen {length}")
            }
            SubKind::Ipvlan { mode } => write!(f, " mode {mode}"),
            SubKind::Dummy => Ok(()),
        }
    }
}

/// `ip link add [link LOWER] name NAME ... type KIND`.
impl Display for AddSubLink {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("ip link add ")?;
        if let Some(lower) = &self.lower {
            write!(f, "link {lower} ")?;
        }
        write!(f, "name {}", self.name)?;
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(mac) = self.mac {
            write!(f, " address {mac}")?;
        }
        if let Some(netns) = &self.netns {
            write!(f, " netns {}", netns.path)?;
        }
        write!(f, " type {}", self.kind)
    }
}

/// The message, attributes in the order in which iproute2 sends them.
pub(super) fn encode(add: &AddSubLink, batch: &mut Batch) -> Result<()> {
    check_name(&add.name, add)?;
    let lower = add.lower.as_ref().map(|dev| dev.need_index(add)).transpose()?;
    batch.message(Rtm::Newlink, NlmF::CREATE | NlmF::EXCL, &ifinfomsg(0, 0, 0, 0), |a| {
        if let Some(mtu) = add.mtu {
            a.u32(Ifla::Mtu, mtu);
        }
        if let Some(mac) = add.mac {
            a.bytes(Ifla::Address, &mac.0);
        }
        if let Some(netns) = &add.netns {
            a.bytes(Ifla::NetNsFd, &netns.fd.to_ne_bytes());
        }
        if let Some(lower) = lower {
            a.u32(Ifla::Link, lower);
        }
        a.text(Ifla::Ifname, &add.name);
        a.nest(Ifla::Linkinfo, |a| add.kind.encode(a));
    });
    Ok(())
}
