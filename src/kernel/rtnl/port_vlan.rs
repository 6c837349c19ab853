//! VLANs of a bridge's ports (linux/if_bridge.h).

use neli::consts::{
    nl::NlmF,
    rtnl::{Ifla, Rtm},
};

use super::{
    uapi::*,
    wire::{Attributes, Attrs, Batch, ifinfomsg, u8_at, u16_at, u32_at},
};

/// VLAN ids from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanRange {
    /// Lowest id, from 1.
    pub first: u16,
    /// Highest id, up to 4094; `first` for a single VLAN.
    pub last: u16,
}

/// VLANs that a port has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortVlan {
    /// The ids.
    pub range: VlanRange,
    /// Untagged frames that come in belong to it.
    pub pvid: bool,
    /// Frames leave without tag.
    pub untagged: bool,
}

/// `bridge vlan show`: there is no filter for one port.
pub(super) fn encode_dump(batch: &mut Batch) {
    batch.message(Rtm::Getlink, NlmF::DUMP, &ifinfomsg(AF_BRIDGE, 0, 0, 0), |a| {
        a.u32(Ifla::ExtMask, RTEXT_FILTER_BRVLAN_COMPRESSED);
    });
}

/// Reads the VLANs out of an AF_BRIDGE RTM_NEWLINK; nothing when it is another port's.
pub(super) fn decode(payload: &[u8], index: u32) -> Vec<PortVlan> {
    if u8_at(payload, 0) != AF_BRIDGE || u32_at(payload, 4) != index {
        return Vec::new();
    }
    let mut vlans = Vec::new();
    let mut first = None;
    for (kind, value) in Attrs(Attrs::after(payload, 16).find(Ifla::AfSpec).unwrap_or_default()) {
        if kind != IFLA_BRIDGE_VLAN_INFO {
            continue;
        }
        let (flags, id) = (u16_at(value, 0), u16_at(value, 2));
        if flags & BRIDGE_VLAN_INFO_RANGE_BEGIN != 0 {
            first = Some(id);
            continue;
        }
        vlans.push(PortVlan {
            range: VlanRange { first: first.take().unwrap_or(id), last: id },
            pvid: flags & BRIDGE_VLAN_INFO_PVID != 0,
            untagged: flags & BRIDGE_VLAN_INFO_UNTAGGED != 0,
        });
    }
    vlans
}

/// `bridge vlan add|del dev INDEX vid RANGE [pvid] [untagged]`: one message, whatever the size of the range.
pub(super) fn encode(kind: Rtm, index: u32, vlan: PortVlan, batch: &mut Batch) {
    let mut flags = 0;
    if vlan.pvid {
        flags |= BRIDGE_VLAN_INFO_PVID;
    }
    if vlan.untagged {
        flags |= BRIDGE_VLAN_INFO_UNTAGGED;
    }
    batch.message(kind, NlmF::empty(), &ifinfomsg(AF_BRIDGE, index, 0, 0), |a| {
        a.nest(Ifla::AfSpec, |a| {
            let VlanRange { first, last } = vlan.range;
            if first == last {
                encode_info(a, flags, first);
            } else {
                encode_info(a, flags | BRIDGE_VLAN_INFO_RANGE_BEGIN, first);
                encode_info(a, flags | BRIDGE_VLAN_INFO_RANGE_END, last);
            }
        });
    });
}

/// `struct bridge_vlan_info`.
fn encode_info(a: &mut Attributes<'_>, flags: u16, id: u16) {
    let mut info = [0; 4];
    info[..2].copy_from_slice(&flags.to_ne_bytes());
    info[2..].copy_from_slice(&id.to_ne_bytes());
    a.bytes(IFLA_BRIDGE_VLAN_INFO, &info);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::wire::Messages;

    #[test]
    fn ranges_of_a_compressed_dump_are_read_as_ranges() {
        let mut batch = Batch::default();
        batch.message(Rtm::Newlink, NlmF::empty(), &ifinfomsg(AF_BRIDGE, 7, 0, 0), |a| {
            a.nest(Ifla::AfSpec, |a| {
                encode_info(a, BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED, 1);
                encode_info(a, BRIDGE_VLAN_INFO_RANGE_BEGIN, 100);
                encode_info(a, BRIDGE_VLAN_INFO_RANGE_END, 200);
            });
        });
        let payload = Messages(batch.bytes()).next().unwrap().payload;
        let vlan =
            |first, last, pvid, untagged| PortVlan { range: VlanRange { first, last }, pvid, untagged };
        assert_eq!(decode(payload, 7), [vlan(1, 1, true, true), vlan(100, 200, false, false)]);
        assert_eq!(decode(payload, 8), []);
    }
}
