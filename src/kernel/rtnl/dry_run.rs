//! Changes of links and addresses that are recorded and not made; see [`crate::kernel::dry_run`].

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;

use ipnet::{IpNet, Ipv6Net};
use nix::errno::Errno;
use nix::libc;

use super::uapi::{
    IF_OPER_UP, RT_SCOPE_LINK, RT_TABLE_MAIN, RTN_UNICAST, RTNH_F_ONLINK, RTPROT_BOOT, RTPROT_KERNEL,
};
use super::{
    AddAddress, AddBridge, AddVeth, Address, Bridge, Change, Dev, Handle, Link, Mac, PeerNetns, Port, Route,
    RouteSpec, SetLink, Step, Tun,
};
use crate::cni::{Error, Result};
use crate::kernel::dry_run::{Difference, Place, Recording, with};
use crate::kernel::netns::Netns;

/// What a new link has.
#[derive(Default)]
struct New<'a> {
    name: &'a str,
    kind: &'static str,
    up: bool,
    mtu: Option<u32>,
    mac: Option<Mac>,
    master: Option<u32>,
}

impl New<'_> {
    fn named(name: &str) -> New<'_> {
        New { name, ..New::default() }
    }
}

impl Handle {
    /// As [`Handle::exchange`], in the namespace `place`, whose commands begin with `prefix`.
    pub(super) fn exchange_dry(
        &mut self,
        place: Place,
        prefix: &str,
        steps: &[Step],
    ) -> Vec<Result<Option<Link>>> {
        let mut outcomes = Vec::with_capacity(steps.len());
        for step in steps {
            outcomes.push(match step {
                Step::Link(dev) => self.link_dry(place, dev),
                Step::Change(change) => self.change_dry(place, prefix, change).map(|()| None),
            });
        }
        outcomes
    }

    /// A link as it would be.
    fn link_dry(&mut self, place: Place, dev: &Dev) -> Result<Option<Link>> {
        let changed = with(|recording| {
            let links = &recording.places.get(&place)?.links;
            let is_meant = |link: &Link| match dev.index {
                0 => link.name == dev.name,
                index => link.index == index,
            };
            match links.values().flatten().find(|link| is_meant(link)) {
                Some(link) => Some(Some(link.clone())),
                None => links.get(&dev.index).cloned(),
            }
        });
        if let Some(Some(link)) = changed {
            return Ok(link);
        }
        let found = self.exchange_real(&[Step::Link(dev.clone())])?.pop().unwrap_or(Ok(None))?;
        // Renamed or removed ones are not what the kernel says they are.
        let is_changed = |link: &Link| {
            with(|r| r.places.get(&place).is_some_and(|p| p.links.contains_key(&link.index))) == Some(true)
        };
        Ok(found.filter(|link| !is_changed(link)))
    }

    fn change_dry(&mut self, place: Place, prefix: &str, change: &Change) -> Result<()> {
        match change {
            Change::AddBridge(add) => {
                let AddBridge { name, up, mtu, mac, vlan_filtering } = add;
                self.must_be_free(place, name, change)?;
                note(prefix, change);
                let new = New { kind: "bridge", up: *up, mtu: *mtu, mac: *mac, ..New::named(name) };
                let bridge = Bridge { vlan_filtering: *vlan_filtering, stp: false, default_pvid: Some(1) };
                make(place, &new, |link| link.bridge = Some(bridge));
            }
            Change::AddVeth(add) => self.veth_dry(place, prefix, change, add)?,
            Change::AddIfb(add) => {
                self.must_be_free(place, &add.name, change)?;
                note(prefix, change);
                let new = New { kind: "ifb", mtu: Some(add.mtu), ..New::named(&add.name) };
                make(place, &new, |_| {});
            }
            Change::AddVrf(add) => {
                self.must_be_free(place, &add.name, change)?;
                note(prefix, change);
                let new = New { kind: "vrf", ..New::named(&add.name) };
                make(place, &new, |link| link.vrf_table = Some(add.table));
            }
            Change::AddSubLink(add) => {
                let there = add.netns.as_ref().map_or(Ok(place), |netns| place_of(netns, change))?;
                if there == place {
                    self.must_be_free(place, &add.name, change)?;
                }
                note(prefix, change);
                let new = New { kind: add.kind.name(), mtu: add.mtu, mac: add.mac, ..New::named(&add.name) };
                make(there, &new, |link| {
                    link.sub = Some(add.kind);
                    link.peer = add.lower.as_ref().map(|lower| lower.index);
                });
            }
            Change::DelLink(dev) => {
                let link = self.existing(place, dev, change)?;
                note(prefix, change);
                with(|recording| {
                    let peer = difference(recording, place).peers.remove(&link.index);
                    difference(recording, place).links.insert(link.index, None);
                    if let Some((there, index)) = peer {
                        difference(recording, there).links.insert(index, None);
                    }
                });
            }
            Change::SetLink(set) => {
                let link = self.existing(place, &set.dev, change)?;
                note(prefix, change);
                let there = set.netns.as_ref().map_or(Ok(place), |netns| place_of(netns, change))?;
                let mut link = changed(link, set);
                with(|recording| {
                    difference(recording, place).links.insert(link.index, None);
                    if there != place {
                        // Its number may be taken there.
                        link.index = recording.next_index();
                    }
                    difference(recording, there).links.insert(link.index, Some(link));
                });
            }
            Change::AddAddress(AddAddress { dev, net, .. }) => {
                note(prefix, change);
                let address = Address { index: dev.index, net: *net, ..Address::default() };
                with(|recording| {
                    let different = difference(recording, place);
                    different.added.push(address);
                    different.routes.extend(network_routes(dev, *net).into_iter().map(Change::AddRoute));
                });
            }
            Change::DelAddress { dev, net } => {
                note(prefix, change);
                let address = Address { index: dev.index, net: *net, ..Address::default() };
                with(|recording| difference(recording, place).removed.push(address));
            }
            Change::AddRoute(_) | Change::PrependRoute(_) | Change::ReplaceRoute(_) | Change::DelRoute(_) => {
                note(prefix, change);
                with(|recording| difference(recording, place).routes.push(change.clone()));
            }
            _ => note(prefix, change),
        }
        Ok(())
    }

    fn veth_dry(&mut self, place: Place, prefix: &str, change: &Change, add: &AddVeth) -> Result<()> {
        self.must_be_free(place, &add.name, change)?;
        let there = match &add.peer.netns {
            None => place,
            Some(netns) => place_of(netns, change)?,
        };
        note(prefix, change);
        let AddVeth { name, up, mtu, mac, master, peer } = add;
        let master = master.as_ref().map(|dev| dev.index);
        let new = New { name, kind: "veth", up: *up, mtu: *mtu, mac: *mac, master };
        let here = make(place, &new, |_| {});
        let other = New { kind: "veth", mtu: peer.mtu, mac: peer.mac, ..New::named(&peer.name) };
        let index = make(there, &other, |link| link.peer = Some(here));
        with(|recording| {
            if let Some(Some(link)) = difference(recording, place).links.get_mut(&here) {
                link.peer = Some(index);
            }
            difference(recording, place).peers.insert(here, (there, index));
            difference(recording, there).peers.insert(index, (place, here));
        });
        Ok(())
    }

    /// The addresses of a link as they would be; `listed` are those that the kernel tells.
    pub(super) fn addresses_dry(&self, place: Place, index: u32, listed: Vec<Address>) -> Vec<Address> {
        let merge = |recording: &mut Recording| {
            let different = difference(recording, place);
            let stays = |a: &Address| !different.removed.iter().any(|r| r.index == index && r.net == a.net);
            let added = different.added.iter().filter(|a| a.index == index).cloned();
            listed.iter().cloned().chain(added).filter(stays).collect()
        };
        with(merge).unwrap_or_default()
    }

    /// The routes out of a link as they would be; `listed` are those that the kernel tells.
    pub(super) fn routes_dry(&self, place: Place, index: u32, mut listed: Vec<Route>) -> Vec<Route> {
        with(|recording| {
            for change in &difference(recording, place).routes {
                let (Change::AddRoute(spec)
                | Change::PrependRoute(spec)
                | Change::ReplaceRoute(spec)
                | Change::DelRoute(spec)) = change
                else {
                    continue;
                };
                let route = route_of(spec);
                if !route.leaves_by(index) {
                    continue;
                }
                let is_removed = matches!(change, Change::DelRoute(_));
                let is_any = is_removed && spec.priority == 0;
                let is_beside = matches!(change, Change::PrependRoute(_));
                listed.retain(|r| {
                    is_beside
                        || (r.dst, r.table) != (route.dst, route.table)
                        || !(is_any || r.priority == route.priority)
                });
                listed.extend((!is_removed).then_some(route));
            }
        });
        listed
    }

    /// The route to an address by what would be added, if any: the narrowest, and no default route.
    pub(super) fn route_dry(&self, place: Place, to: IpAddr) -> Option<Route> {
        with(|recording| {
            let added = difference(recording, place).routes.iter().filter_map(|change| match change {
                Change::AddRoute(spec) | Change::PrependRoute(spec) | Change::ReplaceRoute(spec) => {
                    Some(route_of(spec))
                }
                _ => None,
            });
            let leads = added.filter(|route| route.dst.prefix_len() > 0 && route.dst.contains(&to));
            leads.max_by_key(|route| route.dst.prefix_len())
        })
        .flatten()
    }

    /// The links of the namespace as they would be; `listed` are those that the kernel tells.
    pub(super) fn links_dry(&self, place: Place, listed: Vec<Link>) -> Vec<Link> {
        let merge = |recording: &mut Recording| {
            let links = &difference(recording, place).links;
            let same = listed.iter().filter(|link| !links.contains_key(&link.index)).cloned();
            same.chain(links.values().flatten().cloned()).collect()
        };
        with(merge).unwrap_or_default()
    }

    fn must_be_free(&mut self, place: Place, name: &str, change: &Change) -> Result<()> {
        match self.link_dry(place, &Dev::named(name))? {
            Some(_) => Err(Error::system(change, Errno::EEXIST)),
            None => Ok(()),
        }
    }

    fn existing(&mut self, place: Place, dev: &Dev, change: &Change) -> Result<Link> {
        self.link_dry(place, dev)?.ok_or_else(|| Error::system(change, Errno::ENODEV))
    }
}

/// A namespace that is known by its descriptor.
fn place_of(netns: &PeerNetns, change: &Change) -> Result<Place> {
    let meta = std::fs::metadata(format!("/proc/self/fd/{}", netns.fd));
    meta.map(|meta| (meta.dev(), meta.ino())).map_err(|e| Error::io(change, &e))
}

/// Adds the tap interface `name` to the namespace that the thread is in: `ip tuntap add …`, which `line` is.
pub(in crate::kernel) fn make_tap(name: &str, line: &str, tun: Tun) -> Result<()> {
    let place = Netns::current()?.identity();
    with(|recording| {
        let prefix = recording.prefix();
        recording.push(&prefix, line);
    });
    make(place, &New { kind: "tun", ..New::named(name) }, |link| link.tun = Some(tun));
    Ok(())
}

/// The routes that the kernel makes in the main table for an address of a link: to its network, and in IPv6 to the link's.
fn network_routes(dev: &Dev, net: IpNet) -> Vec<RouteSpec> {
    /// `IP6_RT_PRIO_ADDRCONF`, net/ip6_route.h.
    const METRIC: u32 = 256;
    let new = |dst: IpNet| RouteSpec { protocol: Some(RTPROT_KERNEL), ..RouteSpec::new(dst, dev.clone()) };
    let mut routes = match net {
        IpNet::V4(_) => vec![RouteSpec { src: Some(net.addr()), scope: Some(RT_SCOPE_LINK), ..new(net) }],
        IpNet::V6(_) => {
            let link = Ipv6Net::new_assert(std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 64).into();
            [net, link].map(|dst| RouteSpec { priority: METRIC, ..new(dst) }).into()
        }
    };
    routes.retain(|route| route.dst.prefix_len() < route.dst.max_prefix_len());
    routes
}

/// A route as the kernel would tell it.
fn route_of(spec: &RouteSpec) -> Route {
    /// `IP6_RT_PRIO_USER`, linux/ipv6_route.h: the metric of those without one.
    const METRIC: u32 = 1024;
    let priority = if spec.priority == 0 && spec.dst.addr().is_ipv6() { METRIC } else { spec.priority };
    Route {
        dst: spec.dst.trunc(),
        gw: spec.gw,
        oif: spec.nexthops.is_empty().then_some(spec.dev.index),
        src: spec.src,
        priority,
        table: spec.table.unwrap_or(RT_TABLE_MAIN),
        scope: spec.scope.unwrap_or_default(),
        protocol: spec.protocol.unwrap_or(RTPROT_BOOT),
        kind: RTN_UNICAST,
        flags: if spec.onlink { RTNH_F_ONLINK } else { 0 },
        mtu: spec.mtu,
        advmss: spec.advmss,
        nexthops: spec.nexthops.clone(),
    }
}

fn note(prefix: &str, change: &Change) {
    with(|recording| recording.push(prefix, &change.to_string()));
}

fn difference(recording: &mut Recording, place: Place) -> &mut Difference {
    recording.places.entry(place).or_default()
}

/// Adds a new link; its index.
fn make(place: Place, new: &New<'_>, finish: impl FnOnce(&mut Link)) -> u32 {
    let make = |recording: &mut Recording| {
        let index = recording.next_index();
        let mac = new.mac.unwrap_or_else(|| Mac(recording.invent(new.name)));
        let mut link = Link {
            index,
            name: new.name.to_owned(),
            mac: Some(mac),
            mtu: new.mtu.unwrap_or(1500),
            kind: new.kind.to_owned(),
            master: new.master,
            port: new.master.map(|_| Port::default()),
            ..Link::default()
        };
        finish(&mut link);
        if new.up {
            set_up(&mut link, true);
        }
        difference(recording, place).links.insert(index, Some(link));
        index
    };
    with(make).unwrap_or_default()
}

fn set_up(link: &mut Link, up: bool) {
    let flag = libc::IFF_UP as u32;
    link.flags = if up { link.flags | flag } else { link.flags & !flag };
    link.oper_state = if up { IF_OPER_UP } else { 0 };
}

/// The link after a change.
fn changed(mut link: Link, set: &SetLink) -> Link {
    if let Some(up) = set.up {
        set_up(&mut link, up);
    }
    if let Some(on) = set.promisc {
        let flag = libc::IFF_PROMISC as u32;
        link.flags = if on { link.flags | flag } else { link.flags & !flag };
    }
    if let Some(on) = set.allmulti {
        let flag = libc::IFF_ALLMULTI as u32;
        link.flags = if on { link.flags | flag } else { link.flags & !flag };
    }
    link.tx_queue = set.tx_queue.unwrap_or(link.tx_queue);
    if set.netns.is_some() {
        set_up(&mut link, set.up == Some(true));
    }
    link.mtu = set.mtu.unwrap_or(link.mtu);
    link.mac = set.mac.or(link.mac);
    if let Some(master) = &set.master {
        link.master = master.as_ref().map(|dev| dev.index);
        link.port = link.master.map(|_| Port::default());
    }
    link.alias = set.alias.clone().unwrap_or(link.alias);
    link.name = set.rename.clone().unwrap_or(link.name);
    if let (Some(port), Some(flags)) = (&mut link.port, set.port) {
        port.hairpin = flags.hairpin.unwrap_or(port.hairpin);
        port.isolated = flags.isolated.unwrap_or(port.isolated);
    }
    if let (Some(bridge), Some(on)) = (&mut link.bridge, set.vlan_filtering) {
        bridge.vlan_filtering = on;
    }
    link
}
