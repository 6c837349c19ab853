//! VLANs of a bridge port, as changes (bridge(8), "bridge vlan").

use super::conf::Vlans;
use crate::kernel::rtnl::{Change, Dev, PortVlan, VlanRange};

/// VLAN of untagged frames when only tagged ones are configured.
const DEFAULT_NATIVE: u16 = 1;

/// What gives a new port its VLANs. `default`: the VLAN that the bridge gives every new port (`vlan_default_pvid`).
pub fn vlan_changes(port: &Dev, vlans: &Vlans, default: Option<u16>) -> Vec<Change> {
    if vlans.native.is_none() && vlans.trunk.is_empty() {
        return Vec::new();
    }
    let native = vlans.native.unwrap_or(DEFAULT_NATIVE);
    let mut changes = Vec::new();
    if let Some(default) = default.filter(|d| *d != 0 && *d != native && !vlans.keep_default) {
        changes.push(Change::DelPortVlan {
            dev: port.clone(),
            range: VlanRange { first: default, last: default },
        });
    }
    changes.push(add(port, native, native, true));
    changes.extend(ranges(&vlans.trunk).into_iter().map(|(first, last)| add(port, first, last, false)));
    changes
}

fn add(port: &Dev, first: u16, last: u16, native: bool) -> Change {
    let vlan = PortVlan { range: VlanRange { first, last }, pvid: native, untagged: native };
    Change::AddPortVlan { dev: port.clone(), vlan }
}

/// Runs of consecutive ids: the kernel takes a run in one message.
fn ranges(ids: &[u16]) -> Vec<(u16, u16)> {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *id => *last = *id,
            _ => runs.push((*id, *id)),
        }
    }
    runs
}

/// Whether the port has the VLANs that it was given.
///
/// The first difference, as a sentence.
pub fn vlan_difference(present: &[PortVlan], vlans: &Vlans) -> Option<String> {
    if vlans.native.is_none() && vlans.trunk.is_empty() {
        return None;
    }
    let has = |id: u16| present.iter().find(|vlan| (vlan.range.first..=vlan.range.last).contains(&id));
    let native = vlans.native.unwrap_or(DEFAULT_NATIVE);
    match has(native) {
        Some(vlan) if vlan.pvid && vlan.untagged => {}
        Some(_) => return Some(format!("VLAN {native} is not the untagged one")),
        None => return Some(format!("VLAN {native} is missing")),
    }
    vlans.trunk.iter().find(|id| has(**id).is_none()).map(|id| format!("VLAN {id} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(vlans: Vlans, default: Option<u16>) -> Vec<String> {
        let port = Dev { index: 5, name: "veth1".into() };
        vlan_changes(&port, &vlans, default).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_access_port_has_its_vlan_only() {
        let access = Vlans { native: Some(100), ..Vlans::default() };
        assert_eq!(
            printed(access.clone(), Some(1)),
            ["bridge vlan del dev veth1 vid 1", "bridge vlan add dev veth1 vid 100 pvid untagged"]
        );
        assert_eq!(printed(Vlans { keep_default: true, ..access.clone() }, Some(1)).len(), 1);
        assert_eq!(printed(access.clone(), Some(100)).len(), 1);
        assert_eq!(printed(access, None).len(), 1);
    }

    #[test]
    fn a_trunk_is_added_in_ranges_and_keeps_an_untagged_vlan() {
        let trunk = Vlans { native: None, trunk: vec![101, 200, 201, 202], keep_default: false };
        assert_eq!(
            printed(trunk, Some(1)),
            [
                "bridge vlan add dev veth1 vid 1 pvid untagged",
                "bridge vlan add dev veth1 vid 101",
                "bridge vlan add dev veth1 vid 200-202"
            ]
        );
        assert!(printed(Vlans::default(), Some(1)).is_empty());
    }

    #[test]
    fn a_missing_vlan_is_named() {
        let vlans = Vlans { native: Some(100), trunk: vec![200, 201], keep_default: false };
        let vlan = |first, last, native| PortVlan {
            range: VlanRange { first, last },
            pvid: native,
            untagged: native,
        };
        assert_eq!(vlan_difference(&[vlan(100, 100, true), vlan(200, 201, false)], &vlans), None);
        let named = vlan_difference(&[vlan(100, 100, true), vlan(200, 200, false)], &vlans);
        assert_eq!(named.unwrap(), "VLAN 201 is missing");
        let tagged = vlan_difference(&[vlan(100, 201, false)], &vlans);
        assert_eq!(tagged.unwrap(), "VLAN 100 is not the untagged one");
    }
}
