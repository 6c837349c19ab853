//! Changes as the commands an operator would type.

use std::fmt::{self, Display, Formatter};

use ipnet::IpNet;

use super::{
    AddAddress, AddBridge, AddVeth, Change, Mac, NextHop, RouteSpec, RuleSpec, SetLink, VlanRange, uapi::*,
};

impl Display for Change {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddBridge(AddBridge { name, up, mtu, mac, vlan_filtering }) => {
                write_add(f, name, *up, *mtu, *mac)?;
                f.write_str(" type bridge")?;
                if *vlan_filtering { f.write_str(" vlan_filtering 1") } else { Ok(()) }
            }
            Change::AddIfb(ifb) => ifb.fmt(f),
            Change::AddVrf(vrf) => vrf.fmt(f),
            Change::AddVeth(veth) => write_veth(f, veth),
            Change::AddSubLink(add) => add.fmt(f),
            Change::DelLink(dev) => write!(f, "ip link del {dev}"),
            Change::SetLink(set) => write_set(f, set),
            Change::AddAddress(AddAddress { dev, net, nodad }) => {
                write!(f, "{} addr add {net} dev {dev}", ip(net))?;
                if *nodad && net.addr().is_ipv6() { f.write_str(" nodad") } else { Ok(()) }
            }
            Change::RestoreAddress { dev, address } => {
                write!(f, "{} addr add {address} dev {dev}", ip(&address.net))?;
                write_if(f, address.net.addr().is_ipv6(), " nodad")
            }
            Change::DelAddress { dev, net } => write!(f, "{} addr del {net} dev {dev}", ip(net)),
            Change::AddRoute(route) => write_route(f, "add", route),
            Change::PrependRoute(route) => write_route(f, "prepend", route),
            Change::ReplaceRoute(route) => write_route(f, "replace", route),
            Change::AddRule(rule) => write_rule(f, "add", rule),
            Change::DelRule(rule) => write_rule(f, "del", rule),
            Change::DelRoute(route) => write_route(f, "del", route),
            Change::SetNeighbour { dev, ip, mac } => {
                write!(f, "ip neigh replace {ip} lladdr {mac} dev {dev} nud permanent")
            }
            Change::DelNeighbour { dev, ip } => write!(f, "ip neigh del {ip} dev {dev}"),
            Change::AddPortVlan { dev, vlan } => {
                write!(f, "bridge vlan add dev {dev} vid {}", vlan.range)?;
                write_if(f, vlan.pvid, " pvid")?;
                write_if(f, vlan.untagged, " untagged")
            }
            Change::DelPortVlan { dev, range } => write!(f, "bridge vlan del dev {dev} vid {range}"),
            Change::Tc(change) => change.fmt(f),
        }
    }
}

impl Display for VlanRange {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

fn ip(net: &IpNet) -> &'static str {
    if net.addr().is_ipv6() { "ip -6" } else { "ip" }
}

fn write_if(f: &mut Formatter<'_>, condition: bool, text: &str) -> fmt::Result {
    if condition { f.write_str(text) } else { Ok(()) }
}

fn write_opt(f: &mut Formatter<'_>, key: &str, value: Option<impl Display>) -> fmt::Result {
    match value {
        Some(value) => write!(f, " {key} {value}"),
        None => Ok(()),
    }
}

fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

fn write_add(f: &mut Formatter<'_>, name: &str, up: bool, mtu: Option<u32>, mac: Option<Mac>) -> fmt::Result {
    write!(f, "ip link add {name}")?;
    write_if(f, up, " up")?;
    write_opt(f, "mtu", mtu)?;
    write_opt(f, "address", mac)
}

/// What each end of a veth pair is given.
const ONE_QUEUE: &str = " numtxqueues 1 numrxqueues 1";

fn write_veth(f: &mut Formatter<'_>, veth: &AddVeth) -> fmt::Result {
    write_add(f, &veth.name, veth.up, veth.mtu, veth.mac)?;
    f.write_str(ONE_QUEUE)?;
    write_opt(f, "master", veth.master.as_ref())?;
    write!(f, " type veth peer name {}", veth.peer.name)?;
    write_opt(f, "mtu", veth.peer.mtu)?;
    write_opt(f, "address", veth.peer.mac)?;
    f.write_str(ONE_QUEUE)?;
    write_opt(f, "netns", veth.peer.netns.as_ref().map(|netns| &netns.path))
}

/// Settings, port flags and those of a bridge are commands of their own, after ` && `.
fn write_set(f: &mut Formatter<'_>, set: &SetLink) -> fmt::Result {
    let dev = &set.dev;
    let plain = set.up.is_some()
        || set.mtu.is_some()
        || set.mac.is_some()
        || set.master.is_some()
        || set.alias.is_some()
        || set.promisc.is_some()
        || set.allmulti.is_some()
        || set.tx_queue.is_some()
        || set.netns.is_some()
        || set.rename.is_some();
    let mut and = "";
    let other = set.arp_notify.is_some() || set.port.is_some() || set.vlan_filtering.is_some();
    if plain || !other {
        write!(f, "ip link set dev {dev}")?;
        write_if(f, set.up == Some(true), " up")?;
        write_if(f, set.up == Some(false), " down")?;
        write_opt(f, "mtu", set.mtu)?;
        write_opt(f, "address", set.mac)?;
        match &set.master {
            Some(Some(master)) => write!(f, " master {master}")?,
            Some(None) => f.write_str(" nomaster")?,
            None => {}
        }
        write_opt(f, "alias", set.alias.as_ref().map(|alias| Word(alias)))?;
        write_opt(f, "promisc", set.promisc.map(on_off))?;
        write_opt(f, "allmulticast", set.allmulti.map(on_off))?;
        write_opt(f, "txqueuelen", set.tx_queue)?;
        write_opt(f, "netns", set.netns.as_ref().map(|netns| &netns.path))?;
        write_opt(f, "name", set.rename.as_ref())?;
        and = " && ";
    }
    if let Some(on) = set.arp_notify {
        write!(f, "{and}sysctl net/ipv4/conf/{dev}/arp_notify={}", u8::from(on))?;
        and = " && ";
    }
    if let Some(on) = set.vlan_filtering {
        write!(f, "{and}ip link set dev {dev} type bridge vlan_filtering {}", u8::from(on))?;
        and = " && ";
    }
    if let Some(port) = set.port {
        write!(f, "{and}bridge link set dev {dev}")?;
        write_opt(f, "hairpin", port.hairpin.map(on_off))?;
        write_opt(f, "isolated", port.isolated.map(on_off))?;
    }
    Ok(())
}

fn write_route(f: &mut Formatter<'_>, verb: &str, route: &RouteSpec) -> fmt::Result {
    let dst = route.dst.trunc();
    write!(f, "{} route {verb} ", ip(&dst))?;
    if dst.prefix_len() == 0 {
        f.write_str("default")?
    } else {
        write!(f, "{dst}")?
    }
    if route.nexthops.is_empty() {
        write_via(f, route.gw, dst)?;
        write!(f, " dev {}", route.dev)?;
    }
    write_opt(f, "src", route.src)?;
    write_opt(f, "mtu", Some(route.mtu).filter(|v| *v != 0))?;
    write_opt(f, "advmss", Some(route.advmss).filter(|v| *v != 0))?;
    write_opt(f, "metric", Some(route.priority).filter(|v| *v != 0))?;
    write_opt(f, "table", route.table.filter(|t| *t != RT_TABLE_MAIN))?;
    write_opt(f, "proto", route.protocol)?;
    match route.scope {
        Some(RT_SCOPE_UNIVERSE) => f.write_str(" scope global")?,
        Some(RT_SCOPE_LINK) => f.write_str(" scope link")?,
        Some(RT_SCOPE_HOST) => f.write_str(" scope host")?,
        scope => write_opt(f, "scope", scope)?,
    }
    write_if(f, route.onlink, " onlink")?;
    for NextHop { gw, dev, weight, onlink } in &route.nexthops {
        f.write_str(" nexthop")?;
        write_via(f, *gw, dst)?;
        write!(f, " dev {dev} weight {weight}")?;
        write_if(f, *onlink, " onlink")?;
    }
    Ok(())
}

fn write_rule(f: &mut Formatter<'_>, verb: &str, rule: &RuleSpec) -> fmt::Result {
    let src = rule.src.trunc();
    write!(f, "{} rule {verb} from {src} lookup {}", ip(&src), rule.table)?;
    write_opt(f, "pref", rule.priority)?;
    write_opt(f, "protocol", Some(rule.protocol).filter(|p| *p != 0))
}

fn write_via(f: &mut Formatter<'_>, gw: Option<std::net::IpAddr>, dst: IpNet) -> fmt::Result {
    match gw {
        Some(gw) if gw.is_ipv6() == dst.addr().is_ipv6() => write!(f, " via {gw}"),
        Some(gw) if gw.is_ipv6() => write!(f, " via inet6 {gw}"),
        Some(gw) => write!(f, " via inet {gw}"),
        None => Ok(()),
    }
}

/// A shell word: in single quotes when it holds more than names do.
struct Word<'a>(&'a str);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
        if !self.0.is_empty() && self.0.chars().all(plain) {
            f.write_str(self.0)
        } else {
            write!(f, "'{}'", self.0.replace('\'', r"'\''"))
        }
    }
}
