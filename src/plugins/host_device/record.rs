//! What a device was like on the host: the state that DEL restores.
//!
//! The host's name of a device is in its alias while it is away, as the Go plugin keeps it: either plugin gives back what
//! the other took. Everything else is in a file for each attachment. A device that comes without one gets its name back.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnet::IpNet;
use nix::libc;
use serde::{Deserialize, Serialize};

use crate::attach::{Attachment, state};
use crate::cni::json::Value;
use crate::cni::{Error, Result};
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Address, Change, Dev, Handle, Link, Mac, NextHop, Route, RouteSpec, SetLink};

/// `RT_TABLE_LOCAL`, linux/rtnetlink.h: the kernel's own routes to addresses.
const TABLE_LOCAL: u32 = 255;
/// `RTN_UNICAST`, linux/rtnetlink.h.
const UNICAST: u8 = 1;
/// `RT_SCOPE_LINK`, linux/rtnetlink.h.
const SCOPE_LINK: u8 = 253;
/// `RTPROT_REDIRECT`, `RTPROT_KERNEL` and `RTPROT_RA`, linux/rtnetlink.h: made by the kernel from what it learns, again.
const KERNELS_ROUTES: [u8; 3] = [1, 2, 9];
/// `RTNH_F_ONLINK`, linux/rtnetlink.h.
const ONLINK: u32 = 4;

/// A device before it was moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Record {
    /// Whose it is.
    pub network: String,
    /// See `network`.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// Its name inside.
    pub ifname: String,
    /// Path of the namespace it was moved to.
    pub netns: String,
    /// Its name on the host.
    pub device: String,
    /// Its alias, in whose place the name was put.
    pub alias: String,
    /// Its address; empty when it is not known.
    pub mac: String,
    /// Bytes; 0 when it is not known.
    pub mtu: u32,
    /// It is no virtual link: it comes back by itself when its namespace ends.
    pub hardware: bool,
    /// It was up.
    pub up: bool,
    /// Name of the bridge (or other master) it was a port of; empty when there was none.
    pub master: String,
    /// Addresses that somebody gave it for good; those of DHCP clients and router advertisements come again by themselves.
    /// Earlier builds wrote no more than address and prefix length.
    pub addresses: Vec<AddressText>,
    /// Routes that somebody added.
    pub routes: Vec<RouteRecord>,
}

/// An [`Address`] as text.
type AddressText = String;
/// An address with its prefix length, as text.
type IpNetText = String;

/// A route out of the device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouteRecord {
    dst: IpNetText,
    gw: Option<IpAddr>,
    src: Option<IpAddr>,
    priority: u32,
    table: u32,
    scope: u8,
    protocol: u8,
    mtu: u32,
    advmss: u32,
    onlink: bool,
    hops: Vec<HopRecord>,
}

/// One way of a multipath route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct HopRecord {
    gw: Option<IpAddr>,
    /// Name of its interface.
    dev: String,
    weight: u16,
    onlink: bool,
}

/// A record and the file that it is in. Whose it is says the content: `a` + `b_c` and `a_b` + `c` have shared a name.
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// When the device was taken: who took it last has it.
    pub written: SystemTime,
    /// What is in it.
    pub record: Record,
}

/// Every record in the directory; files that are none, or that go away, are left out.
///
/// # Errors
/// The directory cannot be listed.
pub fn kept(dir: &Path) -> Result<Vec<Kept>> {
    let read = |path: PathBuf| {
        let written = fs::metadata(&path).and_then(|meta| meta.modified()).ok()?;
        Some(Kept { record: Record::read(&path).ok()??, path, written })
    };
    Ok(state::list(dir)?.into_iter().filter_map(read).collect())
}

/// The attachment's own of these records.
pub fn own<'a>(kept: &'a [Kept], of: &Attachment<'_>) -> Option<&'a Kept> {
    kept.iter().find(|kept| {
        let Record { network, container_id, ifname, .. } = &kept.record;
        (network.as_str(), container_id.as_str(), ifname.as_str()) == (of.network, of.container_id, of.ifname)
    })
}

/// The file for an attachment without a record: with the network's name, and in between what no name contains, when it
/// could be another's.
pub fn path(dir: &Path, of: &Attachment<'_>, kept: &[Kept]) -> PathBuf {
    let Attachment { network, container_id, ifname } = of;
    let path = dir.join(format!("{container_id}_{ifname}.json"));
    match ifname.contains('_') || kept.iter().any(|kept| kept.path == path) {
        true => dir.join(format!("{network}:{container_id}:{ifname}.json")),
        false => path,
    }
}

/// Whether another attachment has `link`, one of the container's `links`: its record is about this namespace and this link,
/// and, where `own` is too, from later. The namespace's path is used again, or the record was left behind.
pub fn is_anothers(
    kept: &[Kept],
    own: Option<&Kept>,
    container: &Netns,
    link: &Link,
    links: &[Link],
) -> bool {
    kept.iter().filter(|other| own.is_none_or(|own| other.written > own.written)).any(|other| {
        let is_there = || {
            Netns::find(&other.record.netns).is_ok_and(|netns| netns.is_some_and(|n| n.same_as(container)))
        };
        other.record.pick(links).is_some_and(|picked| picked.index == link.index) && is_there()
    })
}

impl Record {
    /// What `link` of the host is like now.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn of(host: &mut Handle, link: &Link, of: &Attachment<'_>, netns: &str) -> Result<Record> {
        let addresses = host.addresses(link.index)?;
        let routes = host.routes(link.index)?;
        let master = link.master.map(|index| host.link_by_index(index)).transpose()?.flatten();
        let mut record = Record {
            network: of.network.to_owned(),
            container_id: of.container_id.to_owned(),
            ifname: of.ifname.to_owned(),
            netns: netns.to_owned(),
            device: link.name.clone(),
            alias: link.alias.clone(),
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: link.mtu,
            hardware: link.kind.is_empty(),
            up: link.is_up(),
            master: master.map(|master| master.name).unwrap_or_default(),
            addresses: Vec::new(),
            routes: Vec::new(),
        };
        for mut address in addresses.into_iter().filter(is_lasting) {
            if address.label == link.name {
                address.label.clear();
            }
            record.addresses.push(address.to_string());
        }
        for route in routes.iter().filter(|route| is_somebodys(route)) {
            let mut hops = Vec::with_capacity(route.nexthops.len());
            for hop in &route.nexthops {
                let dev = host.link_by_index(hop.dev.index)?.map(|link| link.name).unwrap_or_default();
                hops.push(HopRecord { gw: hop.gw, dev, weight: hop.weight, onlink: hop.onlink });
            }
            record.routes.push(RouteRecord::of(route, hops));
        }
        // A gateway must be on the link when a route through it is added.
        record.routes.sort_by_key(|route| (route.gw.is_some() || !route.hops.is_empty(), route.priority));
        Ok(record)
    }

    /// A device of which only the alias tells where it came from.
    pub fn of_alias(link: &Link, ifname: &str) -> Record {
        Record { device: link.alias.clone(), ifname: ifname.to_owned(), ..Record::default() }
    }

    /// The record in a file; `None` when there is none, or what is in the file is no record.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> Result<Option<Record>> {
        let record = state::read(path)?
            .and_then(|content| Value::parse(&content).and_then(|v| v.read::<Record>()).ok());
        Ok(record.filter(|record| !record.device.is_empty()))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self);
        state::write(path, &text.map_err(|e| Error::internal(format!("encode {}: {e}", path.display())))?)
    }

    /// Whether a link inside a container is this device: it has the host's name as its alias, wherever the container took
    /// its name; or its address, under one of the names it can have, when the container changed the alias.
    pub fn pick<'a>(&self, links: impl IntoIterator<Item = &'a Link> + Clone) -> Option<&'a Link> {
        let by_alias = |l: &&Link| l.alias == self.device;
        let by_mac = |l: &&Link| {
            let same = !self.mac.is_empty() && l.mac.is_some_and(|mac| mac.to_string() == self.mac);
            same && (l.name == self.ifname || l.name == self.device)
        };
        let all = || links.clone().into_iter();
        let named = all().find(|l| l.name == self.ifname && by_alias(l));
        named.or_else(|| all().find(by_alias)).or_else(|| all().find(by_mac))
    }

    /// What makes `link`, back under its name, what it was; the alias last: as long as it is the name, this is not done.
    ///
    /// # Errors
    /// The kernel cannot be asked.
    pub fn changes(&self, link: &Link, host: &mut Handle) -> Result<Vec<Change>> {
        let dev = link.dev();
        let set = || SetLink::of(dev.clone());
        let mut changes = Vec::new();
        let mac: Option<Mac> = self.mac.parse().ok();
        if let Some(mac) = mac.filter(|mac| link.mac != Some(*mac)) {
            changes.push(Change::SetLink(SetLink { mac: Some(mac), ..set() }));
        }
        if self.mtu != 0 && self.mtu != link.mtu {
            changes.push(Change::SetLink(SetLink { mtu: Some(self.mtu), ..set() }));
        }
        if !self.master.is_empty()
            && let Some(master) = host.link(&self.master)?
            && link.master != Some(master.index)
        {
            changes.push(Change::SetLink(SetLink { master: Some(Some(master.dev())), ..set() }));
        }
        if self.up && !link.is_up() {
            changes.push(Change::SetLink(SetLink { up: Some(true), ..set() }));
        }
        // Nobody else can have got its addresses while it was away; routes from them must be possible at once.
        let addresses = self.addresses.iter().filter_map(|text| text.parse().ok());
        changes.extend(addresses.map(|address| Change::RestoreAddress { dev: dev.clone(), address }));
        for route in &self.routes {
            changes.extend(route.spec(&dev, host)?.map(Change::AddRoute));
        }
        changes.push(Change::SetLink(SetLink { alias: Some(self.alias.clone()), ..set() }));
        Ok(changes)
    }
}

/// Somebody gave it for good: not for a lease's time, and not the kernel for IPv6's sake.
fn is_lasting(address: &Address) -> bool {
    let kernels = address.net.addr().is_ipv6() && address.scope == SCOPE_LINK;
    address.flags & libc::IFA_F_PERMANENT != 0 && !kernels
}

fn is_somebodys(route: &Route) -> bool {
    route.kind == UNICAST && route.table != TABLE_LOCAL && !KERNELS_ROUTES.contains(&route.protocol)
}

impl RouteRecord {
    fn of(route: &Route, hops: Vec<HopRecord>) -> RouteRecord {
        RouteRecord {
            dst: route.dst.to_string(),
            gw: route.gw,
            src: route.src,
            priority: route.priority,
            table: route.table,
            scope: route.scope,
            protocol: route.protocol,
            mtu: route.mtu,
            advmss: route.advmss,
            onlink: route.flags & ONLINK != 0,
            hops,
        }
    }

    /// The route to add again out of `dev`; next hops whose interface is gone are left out.
    fn spec(&self, dev: &Dev, host: &mut Handle) -> Result<Option<RouteSpec>> {
        let Ok(dst) = self.dst.parse::<IpNet>() else { return Ok(None) };
        let mut nexthops = Vec::with_capacity(self.hops.len());
        for hop in &self.hops {
            let found = match hop.dev == dev.name {
                true => Some(dev.clone()),
                false => host.link(&hop.dev)?.map(|link| link.dev()),
            };
            nexthops.extend(found.map(|dev| NextHop {
                gw: hop.gw,
                dev,
                weight: hop.weight,
                onlink: hop.onlink,
            }));
        }
        Ok(Some(RouteSpec {
            gw: self.gw,
            src: self.src,
            priority: self.priority,
            table: Some(self.table),
            // The kernel has no scopes for IPv6 routes.
            scope: dst.addr().is_ipv4().then_some(self.scope),
            mtu: self.mtu,
            advmss: self.advmss,
            onlink: self.onlink,
            protocol: Some(self.protocol),
            nexthops,
            ..RouteSpec::new(dst, dev.clone())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, alias: &str, mac: u8) -> Link {
        Link {
            name: name.into(),
            alias: alias.into(),
            mac: Some(Mac([2, 0, 0, 0, 0, mac])),
            ..Link::default()
        }
    }

    #[test]
    fn the_device_is_told_by_alias_then_by_address() {
        let record = Record {
            device: "eth1".into(),
            ifname: "net1".into(),
            mac: "02:00:00:00:00:01".into(),
            ..Record::default()
        };
        let found = |links: &[Link]| record.pick(links).map(|l| l.name.clone());
        let name = |n: &str| Some(n.to_owned());
        assert_eq!(found(&[link("x", "eth1", 9), link("net1", "eth1", 1)]), name("net1"));
        assert_eq!(found(&[link("net1", "", 7), link("renamed", "eth1", 9)]), name("renamed"));
        assert_eq!(found(&[link("net1", "changed", 1)]), name("net1"));
        assert_eq!(found(&[link("eth1", "", 1)]), name("eth1"), "moved, but not named yet");
        assert_eq!(found(&[link("net1", "", 7), link("other", "", 1)]), None);
    }

    #[test]
    fn files_are_named_so_that_no_two_attachments_share_one() {
        let path = |network, container_id, ifname, kept: &[Kept]| {
            let path = path(Path::new(""), &Attachment { network, container_id, ifname }, kept);
            path.into_os_string().into_string().unwrap()
        };
        assert_eq!(path("net", "c1", "net1", &[]), "c1_net1.json");
        assert_eq!(path("net", "a_b", "c", &[]), "a_b_c.json");
        assert_eq!(path("net", "a", "b_c", &[]), "net:a:b_c.json");
        // An earlier build's, or another network's.
        let taken = Kept { path: "a_b_c.json".into(), written: SystemTime::now(), record: Record::default() };
        assert_eq!(path("net", "a_b", "c", &[taken]), "net:a_b:c.json");
    }

    #[test]
    fn a_record_is_read_back_and_anything_else_is_none() {
        let dir = std::env::temp_dir().join(format!("cni-all-host-device-{}", std::process::id()));
        let path = path(&dir, &Attachment { network: "net", container_id: "c1", ifname: "net1" }, &[]);
        let record = Record {
            device: "eth1".into(),
            addresses: vec!["10.0.0.2/24".into()],
            routes: vec![RouteRecord {
                dst: "0.0.0.0/0".into(),
                gw: "10.0.0.1".parse().ok(),
                ..RouteRecord::default()
            }],
            ..Record::default()
        };
        record.write(&path).unwrap();
        assert_eq!(Record::read(&dir.join("c1_net1.json")), Ok(Some(record)));
        for other in ["", "{}", "{\"device\":5}"] {
            fs::write(&path, other).unwrap();
            assert_eq!(Record::read(&path), Ok(None), "{other}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }
}
