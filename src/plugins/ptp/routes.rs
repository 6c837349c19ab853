//! Addresses and routes of a point-to-point link, as changes. Each address has its gateway, which is the host.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::attach::address;
use crate::cni::{CniResult, Error, Result};
use crate::kernel::rtnl::{Change, Dev, RouteSpec};

/// `RT_SCOPE_LINK` and `RT_SCOPE_HOST`, linux/rtnetlink.h.
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;

/// `RTPROT_KERNEL`, linux/rtnetlink.h: the route that the kernel makes for an address's network.
const PROTOCOL_KERNEL: u8 = 2;

/// An address and the gateway it is reached through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The container's address with its prefix length.
    pub address: IpNet,
    /// The host's address on this link.
    pub gateway: IpAddr,
}

/// The addresses with their gateways.
///
/// # Errors
/// An address has no gateway, or one of the other family.
pub fn hops(result: &CniResult) -> Result<Vec<Hop>> {
    let hop = |(i, ip): (usize, &crate::cni::IpConfig)| match ip.gateway {
        Some(gateway) if gateway.is_ipv4() == ip.address.addr().is_ipv4() => {
            Ok(Hop { address: ip.address, gateway })
        }
        Some(gateway) => {
            Err(Error::config(format!("ips[{i}].gateway: {gateway} is not of the family of {}", ip.address)))
        }
        None => Err(Error::config(format!(
            "ips[{i}].gateway: {} has none; ptp routes everything through it, so the IPAM configuration must name one",
            ip.address
        ))),
    };
    result.ips.iter().enumerate().map(hop).collect()
}

fn host_net(ip: IpAddr) -> IpNet {
    IpNet::from(ip)
}

/// The gateways as the host's end has them: one address each, once.
pub fn gateways(hops: &[Hop]) -> Vec<IpNet> {
    let mut nets: Vec<IpNet> = Vec::new();
    for hop in hops {
        let net = host_net(hop.gateway);
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    nets
}

/// The host's routes to the container's addresses.
pub fn to_container(hops: &[Hop], host: &Dev) -> Vec<RouteSpec> {
    let route = |hop: &Hop| RouteSpec {
        scope: Some(SCOPE_HOST),
        ..RouteSpec::new(host_net(hop.address.addr()), host.clone())
    };
    hops.iter().map(route).collect()
}

/// The container's routes: to each gateway on the link, and to each address's network through it.
pub fn from_container(hops: &[Hop], dev: &Dev) -> Vec<RouteSpec> {
    let mut routes: Vec<RouteSpec> = Vec::new();
    for Hop { address, gateway } in hops {
        let src = Some(address.addr());
        let to_gateway =
            RouteSpec { src, scope: Some(SCOPE_LINK), ..RouteSpec::new(host_net(*gateway), dev.clone()) };
        let network = RouteSpec { src, gw: Some(*gateway), ..RouteSpec::new(address.trunc(), dev.clone()) };
        let is_wide = address.prefix_len() < address.max_prefix_len();
        for route in [Some(to_gateway), is_wide.then_some(network)].into_iter().flatten() {
            if !routes.iter().any(|r| r.dst == route.dst) {
                routes.push(route);
            }
        }
    }
    routes
}

/// Everything on the container's interface, in order: addresses, up, the result's routes, the kernel's own network routes
/// away, by which the result's may have found their next hops, and those through the gateway that the result has not.
///
/// # Errors
/// As for [`address::changes`].
pub fn container_changes(dev: &Dev, result: &CniResult, hops: &[Hop], interface: i64) -> Result<Vec<Change>> {
    let mut changes = address::changes(dev, result, interface, false)?;
    let mut own = from_container(hops, dev);
    own.retain(|own| !changes.iter().any(|change| is_same(change, own)));
    let mut networks: Vec<IpNet> = Vec::new();
    for hop in hops {
        let net = hop.address.trunc();
        // The kernel makes none for a single address, and one for several addresses of a network... each has its own.
        if hop.address.prefix_len() < hop.address.max_prefix_len()
            && !(net.addr().is_ipv6() && networks.contains(&net))
        {
            networks.push(net);
            changes.push(Change::DelRoute(RouteSpec {
                src: net.addr().is_ipv4().then_some(hop.address.addr()),
                protocol: Some(PROTOCOL_KERNEL),
                ..RouteSpec::new(net, dev.clone())
            }));
        }
    }
    changes.extend(own.into_iter().map(Change::PrependRoute));
    Ok(changes)
}

/// Whether a change makes a route that leads to the same network in the same way.
fn is_same(change: &Change, route: &RouteSpec) -> bool {
    let whither = |r: &RouteSpec| (r.dst.trunc(), r.gw, r.table, r.priority);
    matches!(change, Change::PrependRoute(made) if made.nexthops.is_empty() && whither(made) == whither(route))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::IpConfig;

    fn result(ips: &[(&str, Option<&str>)]) -> CniResult {
        let ip = |(address, gateway): &(&str, Option<&str>)| IpConfig {
            address: address.parse().unwrap(),
            gateway: gateway.map(|gw| gw.parse().unwrap()),
            interface: Some(1),
        };
        CniResult { ips: ips.iter().map(ip).collect(), ..CniResult::default() }
    }

    fn printed(ips: &[(&str, Option<&str>)]) -> Vec<String> {
        let result = result(ips);
        let dev = Dev { index: 3, name: "eth0".into() };
        let changes = container_changes(&dev, &result, &hops(&result).unwrap(), 1).unwrap();
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_network_is_reached_through_the_gateway() {
        assert_eq!(
            printed(&[("10.1.0.5/16", Some("10.1.0.1"))]),
            [
                "ip addr add 10.1.0.5/16 dev eth0",
                "ip link set dev eth0 up && sysctl net/ipv4/conf/eth0/arp_notify=1",
                "ip route del 10.1.0.0/16 dev eth0 src 10.1.0.5 proto 2",
                "ip route prepend 10.1.0.1/32 dev eth0 src 10.1.0.5 scope link",
                "ip route prepend 10.1.0.0/16 via 10.1.0.1 dev eth0 src 10.1.0.5",
            ]
        );
    }

    #[test]
    fn a_single_address_needs_only_the_route_to_its_gateway() {
        let lines = printed(&[("10.1.0.5/32", Some("10.0.0.1"))]);
        assert_eq!(lines[2..], ["ip route prepend 10.0.0.1/32 dev eth0 src 10.1.0.5 scope link"]);
    }

    #[test]
    fn an_address_without_gateway_is_refused() {
        let err = hops(&result(&[("10.1.0.5/16", None)])).unwrap_err();
        assert!(err.msg().starts_with("ips[0].gateway: 10.1.0.5/16 has none"), "{err}");
        assert!(hops(&result(&[("10.1.0.5/16", Some("fd00::1"))])).is_err());
    }

    #[test]
    fn two_addresses_behind_one_gateway_share_it() {
        let both = [("10.1.0.5/16", Some("10.1.0.1")), ("10.1.0.6/16", Some("10.1.0.1"))];
        let hops = hops(&result(&both)).unwrap();
        assert_eq!(gateways(&hops).len(), 1);
        assert_eq!(to_container(&hops, &Dev::named("x")).len(), 2);
        assert_eq!(from_container(&hops, &Dev::named("x")).len(), 2);
    }
}
