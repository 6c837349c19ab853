//! Which option of the kernel's configuration (Kconfig, `/boot/config-*`) a change needs: for errors and `cni-all doctor`.

use std::net::IpAddr;

use nix::errno::Errno;

use super::Change;
use super::tc::{QdiscKind, TcChange};

/// The option that brings a kind of link, as `ip link` calls it.
#[must_use]
pub fn option_of_kind(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "bridge" => "CONFIG_BRIDGE",
        "dummy" => "CONFIG_DUMMY",
        "ifb" => "CONFIG_IFB",
        "ipvlan" => "CONFIG_IPVLAN",
        "macvlan" => "CONFIG_MACVLAN",
        "tun" => "CONFIG_TUN",
        "veth" => "CONFIG_VETH",
        "vlan" => "CONFIG_VLAN_8021Q",
        "vrf" => "CONFIG_NET_VRF",
        _ => return None,
    })
}

/// What a kernel lacks that answers a change with this errno, as a sentence; `None` when the errno has other reasons.
pub(super) fn lacking(change: &Change, errno: Errno) -> Option<String> {
    let options = match errno {
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT => options(change),
        // The kernel's answer for a queue, filter or action that it has no module for.
        Errno::ENOENT if matches!(change, Change::Tc(_)) => options(change),
        _ => None,
    };
    options.map(|options| format!("the kernel needs {options}"))
}

fn options(change: &Change) -> Option<&'static str> {
    let of_family = |ip: IpAddr| ip.is_ipv6().then_some("CONFIG_IPV6");
    match change {
        Change::AddBridge(bridge) if bridge.vlan_filtering => {
            Some("CONFIG_BRIDGE and CONFIG_BRIDGE_VLAN_FILTERING")
        }
        Change::AddBridge(_) => option_of_kind("bridge"),
        Change::AddIfb(_) => option_of_kind("ifb"),
        Change::AddVeth(_) => option_of_kind("veth"),
        Change::AddSubLink(link) => option_of_kind(link.kind.name()),
        Change::AddVrf(_) => option_of_kind("vrf"),
        Change::AddPortVlan { .. } => Some("CONFIG_BRIDGE_VLAN_FILTERING"),
        Change::AddRule(_) => Some("CONFIG_IP_MULTIPLE_TABLES, and CONFIG_IPV6_MULTIPLE_TABLES for IPv6"),
        Change::AddAddress(address) => of_family(address.net.addr()),
        Change::AddRoute(route) | Change::PrependRoute(route) | Change::ReplaceRoute(route) => {
            of_family(route.dst.addr())
        }
        Change::Tc(TcChange::AddQdisc { kind, .. }) => Some(match kind {
            QdiscKind::Tbf(_) => "CONFIG_NET_SCH_TBF",
            QdiscKind::Htb { .. } => "CONFIG_NET_SCH_HTB",
            QdiscKind::Bfifo { .. } => "CONFIG_NET_SCHED",
            QdiscKind::Ingress => "CONFIG_NET_SCH_INGRESS",
        }),
        Change::Tc(TcChange::AddFilter(_)) => {
            Some("CONFIG_NET_CLS_U32, CONFIG_NET_CLS_ACT and CONFIG_NET_ACT_MIRRED")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::{AddBridge, Dev};

    #[test]
    fn a_kernel_without_a_kind_of_link_is_told_which_option_it_lacks() {
        let bridge = Change::AddBridge(AddBridge::default());
        assert_eq!(lacking(&bridge, Errno::EOPNOTSUPP).unwrap(), "the kernel needs CONFIG_BRIDGE");
        assert_eq!(lacking(&bridge, Errno::EEXIST), None);
        assert_eq!(lacking(&Change::DelLink(Dev::named("x")), Errno::EOPNOTSUPP), None);
    }
}
