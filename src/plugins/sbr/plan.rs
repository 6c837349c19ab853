//! Which rules and routes are added, and which leave the main table. Pure: addresses and what was seen in, changes out.

use std::net::IpAddr;

use ipnet::IpNet;

use super::conf::Conf;
use crate::cni::IpConfig;
use crate::kernel::rtnl::{Change, Dev, Route, RouteSpec, Rule, RuleSpec, free_table};

/// Who made them (`RTPROT_*`, linux/rtnetlink.h), on rules, and on routes that were not in the main table before. A number
/// that nobody else has (iproute2, etc/iproute2/rt_protos).
pub const OWN: u8 = 67;

/// The first table that is tried, as in the Go plugin.
const FIRST_TABLE: u32 = 100;

/// linux/rtnetlink.h.
const TABLE_MAIN: u32 = 254;
const RTN_UNICAST: u8 = 1;

/// What is added to the metric of a default route that a gateway which the user named goes before. So it is kept, for DEL.
const DISPLACED: u32 = 1 << 31;

/// What there is in the container before anything is changed.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All rules.
    pub rules: Vec<Rule>,
    /// The interface's routes, in all tables.
    pub routes: Vec<Route>,
    /// Tables that are not free.
    pub tables: Vec<u32>,
}

/// The changes of an ADD.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Tables that were free before.
    pub tables: Vec<u32>,
    /// First: rules, and routes in their new tables.
    pub add: Vec<Change>,
    /// Then: routes out of the main table.
    pub move_out: Vec<Change>,
}

impl Plan {
    /// Rules for `ips`, the addresses of `dev`; unless the user named a table, the interface's routes of their families
    /// move.
    pub fn new(conf: &Conf, ips: &[IpConfig], dev: &Dev, observed: &Observed) -> Plan {
        let mut plan = Plan::default();
        let mut taken = observed.tables.clone();
        let mut next = FIRST_TABLE;
        let own: Vec<Route> = observed.routes.iter().flat_map(|r| r.legs(dev)).collect();
        let movable: Vec<&Route> = own.iter().filter(|r| is_movable(r, dev)).collect();
        for ip in ips {
            let there = made(&observed.rules, &observed.routes, ip, conf);
            let table = match (conf.table, there) {
                (Some(table), _) => table,
                (None, Some(rule)) => rule.table,
                (None, None) => free_table(next, &taken).unwrap_or(next),
            };
            if there.is_none() {
                next = next.max(table.saturating_add(1));
                taken.push(table);
                let src = IpNet::from(ip.address.addr());
                plan.add.push(Change::AddRule(RuleSpec { src, table, priority: None, protocol: OWN }));
            }
            if conf.table.is_some() {
                continue;
            }
            if there.is_none() {
                plan.tables.push(table);
            }
            // Of a repeated ADD: the copy is there, and the one in the main table has a source hint.
            let is_copied = |r: &RouteSpec| {
                observed.routes.iter().any(|o| o.table == table && is_hint(&o.spec(dev, table), r))
            };
            let copies = movable.iter().filter(|r| belongs(r, ip, ips)).map(|r| r.spec(dev, table));
            let mut copies: Vec<RouteSpec> = copies.filter(|r| !is_copied(r)).collect();
            if let Some(mut default) = conf.default_route(ip, dev) {
                // A gateway that the user named goes before those in the routes.
                let named = conf.names_gateway(&default.dst);
                if named {
                    default.priority = least_metric(&default.dst);
                    let behind =
                        copies.iter_mut().filter(|r| r.dst == default.dst && r.priority <= default.priority);
                    behind.for_each(|r| r.priority += DISPLACED);
                }
                if named || !copies.iter().any(|r| r.dst == default.dst) {
                    copies.push(RouteSpec { table: Some(table), protocol: Some(OWN), ..default });
                }
            }
            copies.sort_by_key(needs_gateway);
            plan.add.extend(copies.into_iter().map(Change::ReplaceRoute));
        }
        if conf.table.is_none() {
            plan.move_out = move_out(conf, ips, dev, &movable);
        }
        plan
    }
}

/// The metric that goes before all others of a family. IPv6 takes 0 for 1024.
fn least_metric(dst: &IpNet) -> u32 {
    u32::from(dst.addr().is_ipv6())
}

/// Gateways are reached by routes without one, which therefore have to be there first, and to leave last.
fn needs_gateway(route: &RouteSpec) -> bool {
    route.gw.is_some() || route.nexthops.iter().any(|hop| hop.gw.is_some())
}

/// Routes of the main table that leave by this interface only.
fn is_movable(route: &Route, dev: &Dev) -> bool {
    let alone = match route.nexthops.as_slice() {
        [] => route.oif == Some(dev.index),
        hops => hops.iter().all(|hop| hop.dev.index == dev.index),
    };
    route.table == TABLE_MAIN && route.kind == RTN_UNICAST && alone
}

/// Whether a route goes into the table of `ip`: it is of its family, and it leads through its network (by gateway or
/// source address) or through that of none of the others. So every route gets to at least one table.
fn belongs(route: &Route, ip: &IpConfig, ips: &[IpConfig]) -> bool {
    let v4 = ip.address.addr().is_ipv4();
    let through = |ip: &IpConfig| hops(route).chain(route.src).any(|address| ip.address.contains(&address));
    route.dst.addr().is_ipv4() == v4 && (through(ip) || !ips.iter().any(through))
}

fn hops(route: &Route) -> impl Iterator<Item = IpAddr> + '_ {
    route.gw.into_iter().chain(route.nexthops.iter().filter_map(|hop| hop.gw))
}

/// Whether a route's gateways are in the network of an address.
pub fn leads_through(route: &RouteSpec, ip: &IpConfig) -> bool {
    let gateways = route.gw.iter().chain(route.nexthops.iter().filter_map(|hop| hop.gw.as_ref()));
    gateways.into_iter().any(|gw| ip.address.contains(gw))
}

/// Takes the routes of the families in question out of the main table. Those of IPv6 link-local addresses stay: such
/// addresses are nobody's to route from, and neighbours are asked with them.
fn move_out(conf: &Conf, ips: &[IpConfig], dev: &Dev, movable: &[&Route]) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut hinted: Vec<IpNet> = Vec::new();
    for route in movable {
        let v4 = route.dst.addr().is_ipv4();
        if is_link_local(route.dst) || !ips.iter().any(|ip| ip.address.addr().is_ipv4() == v4) {
            continue;
        }
        let of_network = ips.iter().find(|ip| ip.address.trunc() == route.dst);
        match of_network.filter(|_| conf.keep_networks && !hinted.contains(&route.dst)) {
            Some(ip) => {
                hinted.push(route.dst);
                if route.src != Some(ip.address.addr()) {
                    let src = Some(ip.address.addr());
                    changes.push(Change::ReplaceRoute(RouteSpec { src, ..route.spec(dev, TABLE_MAIN) }));
                }
            }
            // What gateways are reached by.
            None if conf.keep_networks && hops(route).next().is_none() => {}
            None => changes.push(Change::DelRoute(route.spec(dev, TABLE_MAIN))),
        }
    }
    if conf.keep_networks {
        for ip in ips {
            let single = ip.address.prefix_len() == ip.address.max_prefix_len();
            if !single && !hinted.contains(&ip.address.trunc()) {
                hinted.push(ip.address.trunc());
                let src = Some(ip.address.addr());
                let protocol = Some(OWN);
                let route = RouteSpec { src, protocol, ..RouteSpec::new(ip.address.trunc(), dev.clone()) };
                changes.push(Change::ReplaceRoute(on_link(route)));
            }
        }
    }
    changes.sort_by_key(|change| match change {
        Change::DelRoute(route) => !needs_gateway(route),
        _ => false,
    });
    changes
}

/// With the scope of a route without gateway; IPv6 has none.
fn on_link(route: RouteSpec) -> RouteSpec {
    const SCOPE_LINK: u8 = 253;
    RouteSpec { scope: route.dst.addr().is_ipv4().then_some(SCOPE_LINK), ..route }
}

fn is_link_local(net: IpNet) -> bool {
    matches!(net, IpNet::V6(v6) if v6.addr().is_unicast_link_local())
}

/// The way back: what is in `tables` and was in the main one goes there as it was, and all of it out of them.
pub fn back(routes: &[Route], dev: &Dev, tables: &[u32]) -> Vec<Change> {
    let mut copies: Vec<RouteSpec> =
        routes.iter().filter(|r| tables.contains(&r.table)).map(|r| r.spec(dev, r.table)).collect();
    copies.sort_by_key(needs_gateway);
    let returned: Vec<RouteSpec> = copies.iter().filter(|r| r.protocol != Some(OWN)).map(original).collect();
    // What source hints made of them, and added.
    let hinted = routes.iter().filter(|r| r.table == TABLE_MAIN && !tables.is_empty()).filter_map(|route| {
        let there = route.spec(dev, TABLE_MAIN);
        (route.protocol == OWN || returned.iter().any(|r| is_hint(r, &there))).then_some(there)
    });
    let mut changes: Vec<Change> = hinted.map(Change::DelRoute).collect();
    changes.extend(returned.iter().cloned().map(Change::PrependRoute));
    changes.extend(copies.iter().rev().cloned().map(Change::DelRoute));
    changes
}

/// Whether `hint` is what a source hint made of a route.
fn is_hint(route: &RouteSpec, hint: &RouteSpec) -> bool {
    let with = |src: Option<IpAddr>| RouteSpec { src, ..route.clone() };
    route.src != hint.src && with(hint.src) == *hint
}

/// What a copy was in the main table.
fn original(copy: &RouteSpec) -> RouteSpec {
    let was_displaced =
        copy.priority.checked_sub(DISPLACED).filter(|priority| *priority <= least_metric(&copy.dst));
    let priority = was_displaced.filter(|_| copy.dst.prefix_len() == 0).unwrap_or(copy.priority);
    RouteSpec { table: Some(TABLE_MAIN), priority, ..copy.clone() }
}

/// Whether a rule asks a table (`table`, if given) for what comes from exactly one of these addresses, and nothing else.
pub fn is_of(rule: &Rule, ips: &[IpConfig], table: &Option<u32>) -> bool {
    let from = |ip: &IpConfig| rule.src == Some(IpNet::from(ip.address.addr()));
    rule.is_plain && table.is_none_or(|table| rule.table == table) && ips.iter().any(from)
}

/// The rule that sbr made for an address, if it did: with our number, with the table that the user named, or, as the Go
/// plugin makes them, with none. That one's table has routes of the interface, whose network's the main table has not:
/// rules of others are told from it by that. `routes` are the interface's.
pub fn made<'a>(rules: &'a [Rule], routes: &[Route], ip: &IpConfig, conf: &Conf) -> Option<&'a Rule> {
    let own = std::slice::from_ref(ip);
    let mut all = rules.iter().filter(|rule| is_of(rule, own, &conf.table));
    let is_there = |table: u32, dst: Option<IpNet>| {
        routes.iter().any(|r| r.table == table && dst.is_none_or(|dst| r.dst == dst))
    };
    let is_moved = conf.keep_networks || !is_there(TABLE_MAIN, Some(ip.address.trunc()));
    let is_gos =
        |rule: &Rule| rule.protocol == 0 && !is_kernels(rule.table) && is_there(rule.table, None) && is_moved;
    all.clone()
        .find(|rule| rule.protocol == OWN)
        .or_else(|| all.find(|rule| conf.table.is_some() || is_gos(rule)))
}

/// Whether a table is one that is always there: default, main, local.
pub fn is_kernels(table: u32) -> bool {
    (253..=255).contains(&table)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
