//! A result's addresses and routes onto the container's interface, as changes (reference: main-plugins.md section 4).
//! Pure: what is decided here is applied by the caller in one datagram.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::cni::{CniResult, Error, Result, Route};
use crate::kernel::rtnl::{AddAddress, Change, Dev, NextHop, RouteSpec, SetLink};

/// Routes of this scope or narrower (rtnetlink(7): link 253, host 254) have no next hop.
const SCOPE_LINK: i64 = 253;

/// `RT_TABLE_MAIN`.
const TABLE_MAIN: i64 = 254;

/// What gives interface number `interface` of the result, the link `dev`, its addresses, sets it up and adds the
/// routes, in this order: an address has to be there when the link comes up, and a route needs both.
///
/// The routes may have the destination of others: of the kernel's to the interface's own network, or of another
/// interface's default route.
///
/// `dad`: IPv6 addresses go through duplicate address detection (RFC 4862), which takes one to two seconds. Without it
/// they are usable at once; an IPAM plugin has already seen to it that nobody else has them.
///
/// # Errors
/// [`crate::cni::Code::INVALID_CONFIG`] for an interface index or a number that cannot be, naming it.
pub fn changes(dev: &Dev, result: &CniResult, interface: i64, dad: bool) -> Result<Vec<Change>> {
    let mut changes = Vec::with_capacity(result.ips.len() + result.routes.len() + 1);
    for (i, ip) in result.ips.iter().enumerate() {
        match ip.interface {
            // An address that is said to belong to no interface is nobody's business (CI-2).
            None => {}
            Some(index) if index == interface => {
                changes.push(Change::AddAddress(AddAddress {
                    dev: dev.clone(),
                    net: ip.address,
                    nodad: !dad,
                }));
            }
            Some(index) => {
                return Err(Error::config(format!(
                    "ips[{i}].interface: {index} is not the interface {dev} (number {interface})"
                )));
            }
        }
    }
    let up = SetLink { up: Some(true), arp_notify: Some(true), ..SetLink::of(dev.clone()) };
    changes.push(Change::SetLink(up));
    for route in routes(dev, result)? {
        changes.push(Change::PrependRoute(route));
    }
    Ok(changes)
}

/// The gateway that routes of the family take when they name none: that of the first address which has one.
pub fn default_gateway(result: &CniResult, v4: bool) -> Option<IpAddr> {
    let addressed = result.ips.iter().filter(|ip| ip.interface.is_some());
    addressed.filter_map(|ip| ip.gateway).find(|gw| gw.is_ipv4() == v4)
}

/// The result's routes as the kernel takes them: next hops filled in, equal ones once, several next hops to one
/// destination as one multipath route.
pub fn routes(dev: &Dev, result: &CniResult) -> Result<Vec<RouteSpec>> {
    let mut specs: Vec<RouteSpec> = Vec::with_capacity(result.routes.len());
    for (i, route) in result.routes.iter().enumerate() {
        let spec = spec(dev, route, result).map_err(|e| e.context(format!("routes[{i}]")))?;
        match specs.iter_mut().find(|s| same_destination(s, &spec)) {
            Some(first) => join(first, spec),
            None => specs.push(spec),
        }
    }
    Ok(specs)
}

/// One route. Negative metrics, MTUs and segment sizes are as good as none (CI-10).
fn spec(dev: &Dev, route: &Route, result: &CniResult) -> Result<RouteSpec> {
    let on_link = route.scope.is_some_and(|scope| scope >= SCOPE_LINK);
    let gw = match route.gw {
        None if !on_link => default_gateway(result, route.dst.addr().is_ipv4()),
        gw => gw,
    };
    Ok(RouteSpec {
        gw,
        priority: number("priority", route.priority.max(0))?,
        table: match route.table {
            // Table 0 is "unspecified", which the kernel takes for main.
            None | Some(0) => None,
            Some(table) => Some(number("table", table)?),
        },
        scope: route.scope.map(|scope| number("scope", scope)).transpose()?,
        mtu: number("mtu", route.mtu.max(0))?,
        advmss: number("advmss", route.advmss.max(0))?,
        onlink: gw.is_some_and(|gw| is_gateway(gw, result) && !is_reachable(gw, result)),
        ..RouteSpec::new(route.dst, dev.clone())
    })
}

fn number<T: TryFrom<i64>>(key: &str, value: i64) -> Result<T> {
    T::try_from(value).map_err(|_| Error::config(format!("{key}: {value} is out of range")))
}

/// Whether IPAM says that `gw` is on the link, as the gateway of an address.
fn is_gateway(gw: IpAddr, result: &CniResult) -> bool {
    result.ips.iter().any(|ip| ip.gateway == Some(gw))
}

/// Whether an address or a gateway-less route says that `gw` is on the link. If nothing does, as with a /32 address,
/// the kernel has to be told.
fn is_reachable(gw: IpAddr, result: &CniResult) -> bool {
    let link_local = matches!(gw, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let on_link =
        |r: &Route| r.gw.is_none() && r.scope.is_some_and(|s| s >= SCOPE_LINK) && r.dst.contains(&gw);
    link_local || result.ips.iter().any(|ip| ip.address.contains(&gw)) || result.routes.iter().any(on_link)
}

fn same_destination(a: &RouteSpec, b: &RouteSpec) -> bool {
    (a.dst.trunc(), a.table, a.priority, a.scope) == (b.dst.trunc(), b.table, b.priority, b.scope)
}

/// Makes `other` one more next hop of `first`, unless it is one already.
fn join(first: &mut RouteSpec, other: RouteSpec) {
    let hop = |r: &RouteSpec| NextHop { gw: r.gw, dev: r.dev.clone(), weight: 1, onlink: r.onlink };
    let more = hop(&other);
    if first.nexthops.is_empty() && hop(first) != more {
        first.nexthops = vec![hop(first), more];
        (first.gw, first.onlink) = (None, false);
    } else if !first.nexthops.is_empty() && !first.nexthops.contains(&more) {
        first.nexthops.push(more);
    }
}

/// Whether the result has a default route of the family in the main table.
pub fn has_default_route(result: &CniResult, v4: bool) -> bool {
    let in_main = |r: &Route| matches!(r.table, None | Some(0 | TABLE_MAIN));
    result.routes.iter().any(|r| r.dst.prefix_len() == 0 && r.dst.addr().is_ipv4() == v4 && in_main(r))
}

/// `0.0.0.0/0` or `::/0`.
pub fn default_destination(v4: bool) -> IpNet {
    match v4 {
        true => IpNet::V4(ipnet::Ipv4Net::default()),
        false => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::Version;
    use crate::cni::json::Value;

    fn printed(json: &str) -> Vec<String> {
        let mut result =
            CniResult::from_json(&Value::parse(json.as_bytes()).unwrap(), Version::V1_1_0).unwrap();
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(2));
        let dev = Dev { index: 7, name: "eth0".into() };
        changes(&dev, &result, 2, false).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn addresses_come_before_up_and_routes_after_it() {
        assert_eq!(
            printed(
                r#"{"ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1"},{"address":"fd00::5/64"}],
                    "routes":[{"dst":"0.0.0.0/0"},{"dst":"fd01::/64","gw":"fd00::9","mtu":1400,"advmss":1300,
                    "priority":5,"table":100}]}"#
            ),
            [
                "ip addr add 10.1.0.5/16 dev eth0",
                "ip -6 addr add fd00::5/64 dev eth0 nodad",
                "ip link set dev eth0 up && sysctl net/ipv4/conf/eth0/arp_notify=1",
                "ip route prepend default via 10.1.0.1 dev eth0",
                "ip -6 route prepend fd01::/64 via fd00::9 dev eth0 mtu 1400 advmss 1300 metric 5 table 100",
            ]
        );
    }

    #[test]
    fn negative_numbers_are_as_good_as_none() {
        let route = r#""priority":-1,"mtu":-2,"advmss":-3"#;
        let json = format!(r#"{{"ips":[],"routes":[{{"dst":"10.9.0.0/16",{route}}}]}}"#);
        assert_eq!(printed(&json)[1], "ip route prepend 10.9.0.0/16 dev eth0");
        let result = CniResult {
            routes: vec![Route { priority: 1 << 40, ..Route::new("10.9.0.0/16".parse().unwrap(), None) }],
            ..CniResult::default()
        };
        let err = routes(&Dev::named("eth0"), &result).unwrap_err();
        assert_eq!(err.msg(), format!("routes[0]: priority: {} is out of range", 1_i64 << 40));
    }

    #[test]
    fn a_link_scope_route_gets_no_gateway() {
        let lines = printed(
            r#"{"ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1"}],"routes":[{"dst":"10.9.0.0/16","scope":253}]}"#,
        );
        assert_eq!(lines[2], "ip route prepend 10.9.0.0/16 dev eth0 scope link");
    }

    #[test]
    fn a_gateway_outside_every_network_is_on_the_link() {
        let lines = printed(
            r#"{"ips":[{"address":"10.1.0.5/32","gateway":"10.0.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}"#,
        );
        assert_eq!(lines[2], "ip route prepend default via 10.0.0.1 dev eth0 onlink");
    }

    #[test]
    fn one_destination_with_two_gateways_is_one_multipath_route_and_repeats_are_dropped() {
        let lines = printed(
            r#"{"ips":[{"address":"10.1.0.5/16"}],"routes":[{"dst":"10.9.0.0/16","gw":"10.1.0.1"},
               {"dst":"10.9.1.0/16","gw":"10.1.0.2"},{"dst":"10.9.0.0/16","gw":"10.1.0.1"},
               {"dst":"10.9.0.0/16","gw":"10.1.0.1","table":9}]}"#,
        );
        assert_eq!(lines.len(), 4, "{lines:#?}");
        assert!(lines[2].contains("nexthop via 10.1.0.1") && lines[2].contains("nexthop via 10.1.0.2"));
    }

    #[test]
    fn an_address_of_another_interface_is_refused() {
        let json = r#"{"ips":[{"address":"10.1.0.5/16","interface":1},{"address":"10.1.0.6/16"}]}"#;
        let mut result =
            CniResult::from_json(&Value::parse(json.as_bytes()).unwrap(), Version::V1_1_0).unwrap();
        assert!(changes(&Dev::named("eth0"), &result, 0, false).is_err());
        result.ips.remove(0);
        assert_eq!(changes(&Dev::named("eth0"), &result, 0, false).unwrap().len(), 1);
    }
}
