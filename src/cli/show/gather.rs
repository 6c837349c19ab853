//! What there is, read from where it is: nothing is changed, and what cannot be read is left out or said.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Serialize;

use crate::attach::Attachment;
use crate::attach::masquerade::names::element_comment;
use crate::attach::owner::Owner;
use crate::cli::validate::expand;
use crate::cni::Result;
use crate::cni::json::Value;
use crate::cni::names::{Cidr, parse_ip};
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Handle, Link};
use crate::kernel::{namespaces, nft};
use crate::plugins::host_device::{self, Record};
use crate::plugins::portmap;
use crate::runtime::conflist::plugin_type;
use crate::runtime::{CachedAttachment, NetworkList, Runtime};

/// Where host-local keeps leases unless `ipam.dataDir` says otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// In the place of a link's name.
const NO_LINK: &str = "no link on the host";

/// Everything.
#[derive(Debug, Default, Serialize)]
pub struct State {
    /// Configured networks, and others that have leases.
    pub networks: Vec<Network>,
    /// Bridges of the host.
    pub bridges: Vec<Bridge>,
    /// Host links that carry an owner's alias, containers' interfaces on them, devices that were moved, and what a runtime keeps.
    pub attachments: Vec<Attached>,
    /// What belongs to nothing that exists.
    pub stale: Vec<Stale>,
    /// Configurations that cannot be used.
    pub broken: Vec<String>,
}

/// A network.
#[derive(Debug, Serialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Its configuration; `None` when there are only leases.
    pub file: Option<PathBuf>,
    /// The plugins' types.
    pub plugins: Vec<String>,
    /// Ranges with the number of addresses in them, as text: IPv6 ranges exceed what JSON readers hold.
    pub ranges: Vec<Range>,
    /// Reserved addresses.
    pub leases: Vec<Lease>,
}

/// A range of addresses.
#[derive(Debug, Serialize)]
pub struct Range {
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
    /// Addresses in it that are not reserved; the gateway's is not counted.
    pub free: String,
}

/// A reserved address.
#[derive(Debug, Serialize)]
pub struct Lease {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub container: String,
    /// Its interface; empty in files of older releases.
    pub ifname: String,
    /// The file.
    pub file: PathBuf,
    /// An interface of some namespace has it, or a link's alias names it.
    pub in_use: bool,
}

/// A bridge.
#[derive(Debug, Serialize)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Its ports.
    pub ports: Vec<String>,
}

/// A container's interface.
#[derive(Debug, Serialize)]
pub struct Attached {
    /// The network.
    pub network: String,
    /// The container's id.
    pub container: String,
    /// The interface in the container.
    pub ifname: String,
    /// The link on the host.
    pub link: String,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
    /// A path of the container's namespace, when one was found.
    pub netns: Option<String>,
    /// Addresses that the interface has; those of the alias when the namespace was not found.
    pub addresses: Vec<String>,
    /// Ports of the host that lead to it, such as `tcp 0.0.0.0:8080 to 10.1.0.2:80`.
    pub mappings: Vec<String>,
}

/// Something left over.
#[derive(Debug, Serialize)]
pub struct Stale {
    /// What.
    pub what: String,
    /// Why.
    pub reason: String,
}

/// A namespace other than ours, with its links and addresses.
struct Namespace {
    path: String,
    /// The number by which it knows ours; `None` when none of its links has to do with ours.
    ours: Option<u32>,
    links: Vec<(Link, Vec<IpNet>)>,
}

impl State {
    /// Leaves only what has to do with a network, a container or a namespace of this name.
    pub fn keep(&mut self, only: &str) {
        let netns = only.strip_prefix("/var/run/").map_or(only.to_owned(), |rest| format!("/run/{rest}"));
        self.attachments.retain(|a| {
            a.network == only || a.container == only || a.netns.as_deref().is_some_and(|path| path == netns)
        });
        let attached = &self.attachments;
        self.networks.retain(|n| {
            n.name == only
                || attached.iter().any(|a| a.network == n.name)
                || n.leases.iter().any(|lease| lease.container == only)
        });
        self.bridges.retain(|b| attached.iter().any(|a| a.bridge.as_deref() == Some(&b.name)));
        self.stale.retain(|s| s.what.contains(only));
    }
}

/// Reads everything; `runtime` knows where results are kept. `also` is a network that need not be in the directory.
///
/// # Errors
/// Configurations or the host's links cannot be listed.
pub fn state(conf_dir: &Path, runtime: &Runtime, also: Option<&NetworkList>) -> Result<State> {
    let mut state = State::default();
    let mut host = Handle::open()?;
    let links = host.links(None)?;
    let cached = runtime.cached_attachments(None).unwrap_or_default();
    let namespaces = namespaces(&cached);
    let name_of = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    for link in links.iter().filter(|link| link.kind == "bridge") {
        let addresses = host.addresses(link.index).unwrap_or_default();
        state.bridges.push(Bridge {
            name: link.name.clone(),
            up: link.is_up(),
            addresses: addresses.iter().map(|a| a.net.to_string()).collect(),
            ports: links
                .iter()
                .filter(|port| port.master == Some(link.index))
                .map(|port| port.name.clone())
                .collect(),
        });
    }
    let mut seen: HashSet<IpAddr> = HashSet::new();
    seen.extend(namespaces.iter().flat_map(|ns| &ns.links).flat_map(|(_, nets)| nets).map(IpNet::addr));
    for link in &links {
        let Some(owner) = Owner::parse(&link.alias) else { continue };
        seen.extend(&owner.addresses);
        let (network, container, ifname) = owner.names();
        let other = namespaces.iter().find_map(|ns| {
            let end = |(end, _): &&(Link, Vec<IpNet>)| {
                // Inside, anybody may have renamed it.
                end.lower_netns.is_some_and(|number| Some(number) == ns.ours)
                    && end.peer == Some(link.index)
                    && link.peer.map_or(end.name == ifname, |peer| peer == end.index)
            };
            ns.links.iter().find(end).map(|(_, nets)| (ns.path.clone(), nets))
        });
        if other.is_none() {
            state.stale.push(Stale {
                what: format!("link {} of network {network}, container {container} {ifname}", link.name),
                reason: "no namespace with a name or a process has its other end".to_owned(),
            });
        }
        state.attachments.push(Attached {
            network: network.to_owned(),
            container: container.to_owned(),
            ifname: ifname.to_owned(),
            link: link.name.clone(),
            bridge: link.master.and_then(name_of),
            addresses: match &other {
                Some((_, nets)) => nets.iter().map(ToString::to_string).collect(),
                None => owner.addresses.iter().map(ToString::to_string).collect(),
            },
            netns: other.map(|(path, _)| path),
            mappings: Vec::new(),
        });
    }
    kept(&mut state, &cached, &namespaces);
    for ns in &namespaces {
        state
            .attachments
            .extend(ns.links.iter().filter_map(|(link, nets)| on_host_link(ns, link, nets, name_of)));
    }
    let mut dirs = vec![None];
    if conf_dir.is_dir() {
        for file in expand(conf_dir)? {
            match NetworkList::load(&file) {
                Ok(list) => {
                    dirs.extend(list.plugins.iter().map(data_dir));
                    state.networks.push(network(&list, Some(file)));
                }
                Err(e) => state.broken.push(e.to_string()),
            }
        }
    }
    if let Some(list) = also {
        dirs.extend(list.plugins.iter().map(data_dir));
        if !state.networks.iter().any(|n| n.name == list.name) {
            state.networks.push(network(list, None));
        }
    }
    dirs.sort_unstable();
    dirs.dedup();
    for dir in dirs {
        moved(&mut state, &host_device::moved(dir.as_deref()), &namespaces);
    }
    mappings(&mut state.attachments, &cached);
    let known: HashSet<String> = state.networks.iter().map(|n| n.name.clone()).collect();
    for entry in fs::read_dir(DATA_DIR).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let leases = leases(&entry.path());
        if !known.contains(&name) && !leases.is_empty() {
            state.networks.push(Network {
                name,
                file: None,
                plugins: Vec::new(),
                ranges: Vec::new(),
                leases,
            });
        }
    }
    for network in &mut state.networks {
        for lease in &mut network.leases {
            lease.in_use = seen.contains(&lease.address);
            if !lease.in_use {
                state.stale.push(Stale {
                    what: format!(
                        "lease {} of network {}, container {}",
                        lease.address, network.name, lease.container
                    ),
                    reason: "no interface of a namespace with a name or a process has the address".to_owned(),
                });
            }
        }
    }
    Ok(state)
}

/// Adds what the result cache knows, where no link on the host tells it.
fn kept(state: &mut State, cached: &[CachedAttachment], namespaces: &[Namespace]) {
    for kept in cached {
        let result = kept.result().ok().flatten().unwrap_or_default();
        let path = kept.namespace().unwrap_or_default();
        let identity = fs::metadata(&path).ok().map(|meta| (meta.dev(), meta.ino()));
        if identity.is_none() && !path.is_empty() {
            state.stale.push(Stale {
                what: format!(
                    "result kept of network {}, container {} {}",
                    kept.network, kept.container_id, kept.ifname
                ),
                reason: format!("there is no namespace {path}"),
            });
        }
        let known = |a: &Attached| a.container == kept.container_id && a.ifname == kept.ifname;
        if identity.is_none() || state.attachments.iter().any(known) {
            continue;
        }
        let links = namespaces
            .iter()
            .filter(|ns| fs::metadata(&ns.path).is_ok_and(|meta| Some((meta.dev(), meta.ino())) == identity));
        let own = links.flat_map(|ns| &ns.links).find(|(link, _)| link.name == kept.ifname);
        let host = result.interfaces.iter().find(|i| i.sandbox.is_empty());
        state.attachments.push(Attached {
            network: kept.network.clone(),
            container: kept.container_id.clone(),
            link: host.map_or_else(|| NO_LINK.to_owned(), |i| i.name.clone()),
            bridge: None,
            addresses: match own {
                Some((_, nets)) => nets.iter().map(ToString::to_string).collect(),
                None => result.ips.iter().map(|ip| ip.address.to_string()).collect(),
            },
            ifname: kept.ifname.clone(),
            netns: Some(path),
            mappings: Vec::new(),
        });
    }
}

/// `dataDir` of a host-device.
fn data_dir(plugin: &Value) -> Option<String> {
    match plugin.get("dataDir").as_deref() {
        Some(Value::String(dir))
            if !dir.is_empty() && plugin_type(plugin).is_ok_and(|t| t == "host-device") =>
        {
            Some(dir.clone())
        }
        _ => None,
    }
}

/// Adds the devices of the host that are in a container.
fn moved(state: &mut State, records: &[Record], namespaces: &[Namespace]) {
    let mut done: Vec<(&str, u32)> = Vec::new();
    for record in records {
        let found = namespaces.iter().find_map(|ns| {
            let links = ns.links.iter().map(|(link, _)| link);
            record.pick(links).map(|link| (ns, link))
        });
        let Some((ns, link)) = found.filter(|(ns, link)| !done.contains(&(&ns.path, link.index))) else {
            continue;
        };
        done.push((&ns.path, link.index));
        let known = |a: &Attached| {
            (&a.network, &a.container, &a.ifname) == (&record.network, &record.container_id, &record.ifname)
        };
        if state.attachments.iter().any(known) {
            continue;
        }
        let nets = ns.links.iter().filter(|(other, _)| other.index == link.index).flat_map(|(_, nets)| nets);
        state.attachments.push(Attached {
            network: record.network.clone(),
            container: record.container_id.clone(),
            ifname: record.ifname.clone(),
            link: NO_LINK.to_owned(),
            bridge: None,
            addresses: nets.map(ToString::to_string).collect(),
            netns: Some(ns.path.clone()),
            mappings: Vec::new(),
        });
    }
}

/// Adds the port mappings: those that the kernel's maps have, and where they are rules of iptables, those that the
/// runtime asked for.
fn mappings(attachments: &mut [Attached], cached: &[CachedAttachment]) {
    let in_kernel = nft::Socket::open().and_then(|mut nft| portmap::listed(&mut nft)).unwrap_or_default();
    for attached in attachments {
        let (network, container_id, ifname) = (&attached.network, &attached.container, &attached.ifname);
        let comment = element_comment(&Attachment { network, container_id, ifname });
        let own = in_kernel.iter().filter(|(of, _)| *of == comment);
        attached.mappings = own.map(|(_, line)| line.clone()).collect();
        let known = |kept: &&CachedAttachment| {
            (&kept.network, &kept.container_id, &kept.ifname) == (network, container_id, ifname)
        };
        let asked = cached.iter().find(known).and_then(|kept| {
            kept.capability_args.iter().find(|(name, _)| name == "portMappings").map(|(_, value)| value)
        });
        if let Some(asked) = asked.filter(|_| attached.mappings.is_empty()) {
            let bare = |text: &String| parse_ip(text.split('/').next()?);
            let global = |addr: &IpAddr| !matches!(addr, IpAddr::V6(v6) if v6.is_unicast_link_local());
            let addresses: Vec<IpAddr> = attached.addresses.iter().filter_map(bare).filter(global).collect();
            attached.mappings = portmap::requested(asked, &addresses);
        }
        attached.mappings.sort_unstable();
    }
}

/// A container's interface that stands on a link of this host (macvlan, ipvlan, vlan): it is known by its own alias.
fn on_host_link(
    ns: &Namespace,
    link: &Link,
    nets: &[IpNet],
    name_of: impl Fn(u32) -> Option<String>,
) -> Option<Attached> {
    let owner = Owner::parse(&link.alias)?;
    link.lower_netns.filter(|number| Some(*number) == ns.ours)?;
    let (network, container, ifname) = owner.names();
    Some(Attached {
        network: network.to_owned(),
        container: container.to_owned(),
        ifname: ifname.to_owned(),
        link: name_of(link.peer?)?,
        bridge: None,
        netns: Some(ns.path.clone()),
        mappings: Vec::new(),
        addresses: nets.iter().map(ToString::to_string).collect(),
    })
}

/// Every namespace but ours that has a name in /run/netns, is known to a runtime, is mounted somewhere, or has a process; a
/// path that lasts is preferred to a process's.
fn namespaces(cached: &[CachedAttachment]) -> Vec<Namespace> {
    let mut known: Vec<PathBuf> = Vec::new();
    for dir in ["/run/netns", "/run/docker/netns"] {
        known.extend(fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    known.extend(cached.iter().filter(|kept| !kept.netns.is_empty()).map(|kept| PathBuf::from(&kept.netns)));
    let read = |netns: Netns| {
        let mut handle = netns.enter(Handle::open)?;
        let links = handle.links(None)?;
        // The kernel numbers a namespace when a link is the first to tell of it.
        let ours = handle.number_of(&Netns::current()?)?;
        let links = links
            .into_iter()
            .map(|link| {
                let nets = handle.addresses(link.index)?;
                let nets = nets.iter().map(|a| a.net).filter(|net| !net.addr().is_loopback());
                Ok((link, nets.collect()))
            })
            .collect::<Result<Vec<_>>>();
        links.map(|links| Namespace { path: netns.path().to_owned(), ours, links })
    };
    // A namespace may go away while it is looked at, and a name need not be one.
    namespaces::others(known).filter_map(|netns| read(netns).ok()).collect()
}

fn network(list: &NetworkList, file: Option<PathBuf>) -> Network {
    let mut found = Network {
        name: list.name.clone(),
        file,
        plugins: list.plugins.iter().filter_map(|p| plugin_type(p).ok()).collect(),
        ranges: Vec::new(),
        leases: Vec::new(),
    };
    for plugin in &list.plugins {
        let Some(ipam) = plugin.get("ipam").filter(|i| plugin_type(i).is_ok_and(|name| name == "host-local"))
        else {
            continue;
        };
        let dir = match ipam.get("dataDir").as_deref() {
            Some(Value::String(dir)) if !dir.is_empty() => dir.clone(),
            _ => DATA_DIR.to_owned(),
        };
        found.leases.extend(leases(&Path::new(&dir).join(&list.name)));
        let reserved: Vec<IpAddr> = found.leases.iter().map(|lease| lease.address).collect();
        ranges(&ipam, &reserved, &mut found.ranges);
    }
    found
}

/// Every object with a `subnet` below a value.
fn ranges(value: &Value, reserved: &[IpAddr], found: &mut Vec<Range>) {
    match value {
        Value::Object(_) => {
            found.extend(range(value, reserved));
            if let Some(more) = value.get("ranges") {
                ranges(&more, reserved, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| ranges(item, reserved, found)),
        _ => {}
    }
}

fn range(value: &Value, reserved: &[IpAddr]) -> Option<Range> {
    let text = |key: &str| match value.get(key).as_deref() {
        Some(Value::String(text)) => Some(text.clone()),
        _ => None,
    };
    let Cidr(net) = text("subnet")?.parse().ok()?;
    let number = |addr: IpAddr| match addr {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    let address = |number: u128| match net {
        IpNet::V4(_) => IpAddr::V4(u32::try_from(number).unwrap_or(u32::MAX).into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    };
    let begin = address(number(net.network()).saturating_add(1));
    let end = address(number(net.broadcast()).saturating_sub(u128::from(net.addr().is_ipv4())));
    let given = |key: &str| text(key).as_deref().and_then(parse_ip);
    let (first, last) = (given("rangeStart").unwrap_or(begin), given("rangeEnd").unwrap_or(end));
    let gateway = given("gateway").unwrap_or(begin);
    let within = |addr: &IpAddr| (first..=last).contains(addr) && *addr != gateway;
    let all = number(last).saturating_sub(number(first)).saturating_add(1);
    let taken =
        reserved.iter().filter(|addr| within(addr)).count() + usize::from((first..=last).contains(&gateway));
    Some(Range { first, last, free: all.saturating_sub(taken as u128).to_string() })
}

/// The leases of a network's directory, in order of address. Reading takes no lock: they appear complete.
fn leases(dir: &Path) -> Vec<Lease> {
    let mut leases: Vec<Lease> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            // Names of addresses are as host-local writes them; older releases replaced colons.
            let name = entry.file_name().to_string_lossy().replace('_', ":");
            let address = parse_ip(&name)?;
            let content = fs::read_to_string(entry.path()).ok()?;
            let mut lines = content.lines().map(str::trim);
            let container = lines.next().unwrap_or_default().to_owned();
            let ifname = lines.next().unwrap_or_default().to_owned();
            Some(Lease { address, container, ifname, file: entry.path(), in_use: false })
        })
        .collect();
    leases.sort_unstable_by_key(|lease| lease.address);
    leases
}
