//! An interface into a VRF, or out of it, with its addresses and routes.
//!
//! The kernel sets the interface down and up again (`cycle_netdev` in drivers/net/vrf.c): IPv6 addresses go, unless
//! `keep_addr_on_down` is set, and all routes but those that the kernel makes for the addresses.

use ipnet::IpNet;

use crate::attach::container::{Container, wait_usable};
use crate::cni::{Error, Result};
use crate::kernel::rtnl::{AddAddress, Address, Change, Dev, Link, Route, RouteSpec, SetLink};

/// linux/rtnetlink.h.
pub const TABLE_MAIN: u32 = 254;
const TABLE_LOCAL: u32 = 255;
const RTN_UNICAST: u8 = 1;
const RTPROT_KERNEL: u8 = 2;
const RT_SCOPE_UNIVERSE: u8 = 0;

/// Sets an interface's master (`None`: none) and moves its routes from table `from` to `to`; those in other tables stay
/// where they are. What the kernel would not let back is returned: an address or a route, the first of them.
///
/// # Errors
/// The master cannot be set; nothing has changed.
pub fn transfer(
    container: &mut Container,
    link: &Link,
    master: Option<Dev>,
    from: u32,
    to: u32,
) -> Result<Option<Error>> {
    let rtnl = &mut container.rtnl;
    let (addresses, routes) = (rtnl.addresses(link.index)?, rtnl.routes(link.index)?);
    let watch = rtnl.watch_addresses()?;
    rtnl.apply(&[Change::SetLink(SetLink { master: Some(master), ..SetLink::of(link.dev()) })])?;
    let kept = rtnl.addresses(link.index)?;
    let wanted: Vec<IpNet> = addresses.iter().filter(|a| is_global_v6(a)).map(|a| a.net).collect();
    let lost = wanted.iter().filter(|net| !kept.iter().any(|a| a.net == **net));
    let add = |net: &IpNet| Change::AddAddress(AddAddress { dev: link.dev(), net: *net, nodad: true });
    let changes: Vec<Change> = lost.map(add).collect();
    let addressed = rtnl.apply(&changes);
    // A link that is down is not set up again, and says nothing.
    if link.is_up() {
        wait_usable(Some(watch), link.index, &wanted)?;
    }
    let now = rtnl.routes(link.index)?;
    Ok(addressed.and_then(|()| rtnl.apply(&moves(&routes, &now, &link.dev(), from, to))).err())
}

fn is_global_v6(address: &Address) -> bool {
    address.net.addr().is_ipv6() && address.scope == RT_SCOPE_UNIVERSE
}

/// What makes the routes `before` out of those `now`: all that were in `from` are in `to`, the others where they were. The
/// kernel has made routes for the networks of addresses anew: those that somebody had taken away go again. Routes of other
/// interfaces to the same destinations stay.
fn moves(before: &[Route], now: &[Route], dev: &Dev, from: u32, to: u32) -> Vec<Change> {
    let unicast = |r: &&Route| r.kind == RTN_UNICAST && r.table != TABLE_LOCAL;
    let is_kernels = |r: &Route| r.protocol == RTPROT_KERNEL && r.gw.is_none();
    let is_there = |r: &RouteSpec| now.iter().any(|n| n.spec(dev, n.table) == *r);
    let mut wanted: Vec<RouteSpec> = before
        .iter()
        .filter(unicast)
        .filter(|r| !is_kernels(r))
        .flat_map(|r| r.legs(dev))
        .map(|r| r.spec(dev, if r.table == from { to } else { r.table }))
        .filter(|r| !is_there(r))
        .collect();
    // Gateways are reached by routes without one.
    wanted.sort_by_key(|r| r.gw.is_some() || r.nexthops.iter().any(|hop| hop.gw.is_some()));
    let had = |r: &Route| before.iter().any(|b| is_kernels(b) && b.dst == r.dst);
    let is_link_local = |r: &Route| matches!(r.dst, IpNet::V6(v6) if v6.addr().is_unicast_link_local());
    let is_new = |r: &Route| r.table == to && is_kernels(r) && !had(r) && !is_link_local(r);
    // A next hop of a route that has others elsewhere is only dead while the interface is down.
    let is_left = |r: &Route| r.table == from && !is_kernels(r);
    let excess = now.iter().filter(unicast).filter(|r| is_new(r) || is_left(r));
    let excess = excess.flat_map(|r| r.legs(dev)).map(|r| Change::DelRoute(r.spec(dev, r.table)));
    excess.chain(wanted.into_iter().map(Change::PrependRoute)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::NextHop;

    fn route(dst: &str, gw: Option<&str>, table: u32, protocol: u8) -> Route {
        let dst: IpNet = dst.parse().unwrap();
        Route {
            dst,
            gw: gw.map(|gw| gw.parse().unwrap()),
            oif: Some(3),
            src: None,
            priority: if dst.addr().is_ipv6() { 1024 } else { 0 },
            table,
            scope: if gw.is_none() { 253 } else { 0 },
            protocol,
            kind: RTN_UNICAST,
            flags: 0,
            mtu: 0,
            advmss: 0,
            nexthops: Vec::new(),
        }
    }

    #[test]
    fn of_a_route_with_next_hops_elsewhere_only_its_own_moves() {
        let hop = |gw: &str, index: u32| NextHop {
            gw: Some(gw.parse().unwrap()),
            dev: Dev { index, name: format!("eth{}", index - 3) },
            weight: 1,
            onlink: false,
        };
        let nexthops = vec![hop("fd00::1", 3), hop("fd00:2::1", 4)];
        let shared = Route { nexthops, oif: None, ..route("::/0", None, TABLE_MAIN, 3) };
        let now = [shared.clone()];
        assert_eq!(
            printed(&[shared], &now, TABLE_MAIN, 10),
            [
                "ip -6 route del default via fd00::1 dev eth0 metric 1024 proto 3",
                "ip -6 route prepend default via fd00::1 dev eth0 metric 1024 table 10 proto 3",
            ]
        );
    }

    fn printed(before: &[Route], now: &[Route], from: u32, to: u32) -> Vec<String> {
        let dev = Dev { index: 3, name: "eth0".into() };
        moves(before, now, &dev, from, to).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_route_that_the_kernel_does_not_make_moves_also_those_on_the_link() {
        let before = [
            route("0.0.0.0/0", Some("10.1.0.1"), TABLE_MAIN, 3),
            route("172.16.0.9/32", None, TABLE_MAIN, 3),
            route("10.1.0.0/24", None, TABLE_MAIN, RTPROT_KERNEL),
            route("fe80::/64", None, TABLE_MAIN, RTPROT_KERNEL),
            route("::/0", Some("fd00::1"), TABLE_MAIN, 3),
            route("203.0.113.0/24", Some("10.1.0.1"), 55, 3),
            Route { kind: 2, ..route("10.1.0.5/32", None, TABLE_LOCAL, RTPROT_KERNEL) },
        ];
        let now =
            [route("10.1.0.0/24", None, 10, RTPROT_KERNEL), route("fe80::/64", None, 10, RTPROT_KERNEL)];
        assert_eq!(
            printed(&before, &now, TABLE_MAIN, 10),
            [
                "ip route prepend 172.16.0.9/32 dev eth0 table 10 proto 3 scope link",
                "ip route prepend default via 10.1.0.1 dev eth0 table 10 proto 3 scope global",
                "ip -6 route prepend default via fd00::1 dev eth0 metric 1024 table 10 proto 3",
                "ip route prepend 203.0.113.0/24 via 10.1.0.1 dev eth0 table 55 proto 3 scope global",
            ]
        );
    }

    #[test]
    fn networks_that_are_reached_through_a_gateway_do_not_come_onto_the_link() {
        // As ptp has it.
        let before = [
            route("10.1.0.1/32", None, TABLE_MAIN, 3),
            route("10.1.0.0/24", Some("10.1.0.1"), TABLE_MAIN, 3),
            route("fd00::/64", Some("fd00::1"), TABLE_MAIN, 3),
        ];
        let now = [
            route("10.1.0.0/24", None, 10, RTPROT_KERNEL),
            Route { priority: 256, ..route("fd00::/64", None, 10, RTPROT_KERNEL) },
        ];
        assert_eq!(
            printed(&before, &now, TABLE_MAIN, 10)[..2],
            [
                "ip route del 10.1.0.0/24 dev eth0 table 10 proto 2 scope link",
                "ip -6 route del fd00::/64 dev eth0 metric 256 table 10 proto 2",
            ]
        );
    }
}
