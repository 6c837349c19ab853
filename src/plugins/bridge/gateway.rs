//! The gateway's side of a bridge: which addresses it gets, and which routes point at them.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::attach::address::{default_destination, has_default_route};
use crate::cni::names::next_after_network;
use crate::cni::{CniResult, Error, Result, Route};
use crate::kernel::rtnl::{AddAddress, Change, Link, SetLink};

/// Gives every address the container's interface, and with `is_gateway` a gateway where IPAM named none: the first
/// address of its network. With `is_default_gateway`, each family's first gateway becomes the default route, unless
/// IPAM gave one already.
pub fn complete(result: &mut CniResult, interface: i64, is_gateway: bool, is_default_gateway: bool) {
    for ip in &mut result.ips {
        ip.interface = Some(interface);
        if is_gateway && ip.gateway.is_none() {
            ip.gateway = next_after_network(ip.address);
        }
    }
    for v4 in [true, false].into_iter().filter(|_| is_default_gateway) {
        let first = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4);
        if let (Some(gw), false) = (first.and_then(|ip| ip.gateway), has_default_route(result, v4)) {
            result.routes.push(Route::new(default_destination(v4), Some(gw)));
        }
    }
}

/// The addresses that a gateway has for this result: each address's gateway with its prefix length, once.
pub fn addresses(result: &CniResult) -> Vec<IpNet> {
    let mut wanted = Vec::new();
    for ip in &result.ips {
        if let Some(net) = ip.gateway.and_then(|gw| IpNet::new(gw, ip.address.prefix_len()).ok())
            && !wanted.contains(&net)
        {
            wanted.push(net);
        }
    }
    wanted
}

/// What gives `link` the address `wanted` besides those it has (`present`).
///
/// The link's MAC is set to what it is: a bridge whose MAC was ever set keeps it, instead of taking the lowest of its
/// ports, and the gateway's neighbours need not ask again (net/bridge/br_if.c, `br_stp_recalculate_bridge_id`).
///
/// # Errors
/// A different IPv4 address, or an IPv6 one of the same network, is there and `force` is not given.
pub fn address_changes(link: &Link, present: &[IpNet], wanted: IpNet, force: bool) -> Result<Vec<Change>> {
    if present.contains(&wanted) {
        return Ok(Vec::new());
    }
    let mut changes = Vec::new();
    for other in present.iter().copied().filter(|other| conflict(*other, wanted)) {
        if !force {
            return Err(Error::config(format!(
                "{:?} already has an IP address different from {wanted}: {other}; remove it, or set forceAddress",
                link.name
            )));
        }
        changes.push(Change::DelAddress { dev: link.dev(), net: other });
    }
    changes.push(Change::AddAddress(AddAddress { dev: link.dev(), net: wanted, nodad: true }));
    changes.push(Change::SetLink(SetLink { mac: link.mac, ..SetLink::of(link.dev()) }));
    Ok(changes)
}

fn conflict(present: IpNet, wanted: IpNet) -> bool {
    match (present.addr(), wanted.addr()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => true,
        (IpAddr::V6(there), IpAddr::V6(_)) => {
            !there.is_unicast_link_local()
                && (present.contains(&wanted.addr()) || wanted.contains(&IpAddr::V6(there)))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::IpConfig;

    fn result(addresses: &[(&str, Option<&str>)]) -> CniResult {
        let ip = |(address, gateway): &(&str, Option<&str>)| IpConfig {
            address: address.parse().unwrap(),
            gateway: gateway.map(|gw| gw.parse().unwrap()),
            interface: None,
        };
        CniResult { ips: addresses.iter().map(ip).collect(), ..CniResult::default() }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn link() -> Link {
        Link {
            index: 3,
            name: "cni0".into(),
            mac: Some("02:00:00:00:00:01".parse().unwrap()),
            ..Link::default()
        }
    }

    fn printed(present: &[&str], wanted: &str, force: bool) -> Result<Vec<String>> {
        let present: Vec<IpNet> = present.iter().map(|p| net(p)).collect();
        Ok(address_changes(&link(), &present, net(wanted), force)?.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_missing_gateway_is_the_first_address_of_the_network() {
        let mut with = result(&[("10.1.2.3/16", None), ("fd00::9/64", Some("fd00::7"))]);
        complete(&mut with, 2, true, false);
        assert_eq!(addresses(&with), [net("10.1.0.1/16"), net("fd00::7/64")]);
        assert!(with.routes.is_empty() && with.ips.iter().all(|ip| ip.interface == Some(2)));
        let mut without = result(&[("10.1.2.3/16", None)]);
        complete(&mut without, 2, false, false);
        assert!(addresses(&without).is_empty());
    }

    #[test]
    fn each_familys_first_gateway_becomes_the_default_route() {
        let mut both = result(&[("10.1.2.3/16", None), ("10.9.2.3/16", None), ("fd00::9/64", None)]);
        complete(&mut both, 2, true, true);
        let routes: Vec<String> =
            both.routes.iter().map(|r| format!("{} {:?}", r.dst, r.gw.unwrap())).collect();
        assert_eq!(routes, ["0.0.0.0/0 10.1.0.1", "::/0 fd00::1"]);
    }

    #[test]
    fn a_default_route_from_ipam_is_not_doubled_with_or_without_its_gateway() {
        for gw in [None, Some("10.1.0.9".parse().unwrap())] {
            let mut given = result(&[("10.1.2.3/16", None)]);
            given.routes.push(Route::new(net("0.0.0.0/0"), gw));
            complete(&mut given, 2, true, true);
            assert_eq!(given.routes.len(), 1);
        }
        let mut other_table = result(&[("10.1.2.3/16", None)]);
        other_table.routes.push(Route { table: Some(100), ..Route::new(net("0.0.0.0/0"), None) });
        complete(&mut other_table, 2, true, true);
        assert_eq!(other_table.routes.len(), 2);
    }

    #[test]
    fn an_address_that_is_there_is_left_alone_wherever_it_stands() {
        assert!(printed(&["10.2.0.1/16", "10.1.0.1/16"], "10.1.0.1/16", false).unwrap().is_empty());
    }

    #[test]
    fn a_new_address_pins_the_mac() {
        assert_eq!(
            printed(&["fe80::1/64"], "fd00::1/64", false).unwrap(),
            ["ip -6 addr add fd00::1/64 dev cni0 nodad", "ip link set dev cni0 address 02:00:00:00:00:01"]
        );
    }

    #[test]
    fn conflicts_need_force() {
        let err = printed(&["10.2.0.1/16"], "10.1.0.1/16", false).unwrap_err();
        assert!(err.msg().contains("already has an IP address different from 10.1.0.1/16: 10.2.0.1/16"));
        let lines = printed(&["10.2.0.1/16", "fd00::1/64"], "10.1.0.1/16", true).unwrap();
        assert_eq!(lines[0], "ip addr del 10.2.0.1/16 dev cni0");
        assert_eq!(lines.len(), 3);
        assert!(printed(&["fd00::9/64"], "fd00::1/80", false).is_err());
        assert_eq!(printed(&["fd01::9/64"], "fd00::1/64", false).unwrap().len(), 2);
    }
}
