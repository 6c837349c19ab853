//! `hostShim`: a link of the host beside the containers' links, on the same master. What a master sends never reaches the
//! links on it, nor the other way round; through the shim host and containers talk.
//!
//! - The shim belongs to the network: its name is derived from it, its alias is `cni-all shim NETWORK`. It has no address.
//! - Each address of a container has a host route on it. The route's metric is a number derived from the attachment, so
//!   that DEL and GC know whose it is without namespace, prevResult or file. The shim goes with its last route.
//! - Host and container know each other's hardware address by permanent neighbour entries. Neither asks for it, so nobody
//!   else on the master's network ever sees one address of the host on two links.
//!
//! Making and removing is done under a lock: a DEL that found no route left must not remove the shim from below an ADD.

use std::fs::{DirBuilder, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest, Sha512};

use super::link::remove_all;
use crate::attach::Attachment;
use crate::attach::container::Container;
use crate::attach::verify::difference;
use crate::cni::{Error, Result, ResultExt, ValidAttachment};
use crate::hex::hex;
use crate::kernel::rtnl::{
    AddSubLink, Change, Dev, Handle, IpvlanMode, Link, Mac, Route, RouteSpec, SetLink, Step, SubKind,
};
use crate::kernel::{Kernel, sysctl};

/// Holds the lock; only root may enter it, so that nobody else can keep ADDs waiting.
const LOCK_DIR: &str = "/run/cni-all";

/// `RT_SCOPE_LINK`, linux/rtnetlink.h.
const SCOPE_LINK: u8 = 253;
/// `RT_TABLE_MAIN`, linux/rtnetlink.h.
const TABLE_MAIN: u32 = 254;
/// `RTN_UNICAST`, linux/rtnetlink.h.
const UNICAST: u8 = 1;

/// A container that is to reach the host.
pub struct Guest<'a> {
    /// Whose interface it is.
    pub attachment: Attachment<'a>,
    /// Kind and settings of the interface, and of the shim.
    pub kind: SubKind,
    /// The link below both.
    pub lower: &'a Link,
    /// The container's interface.
    pub link: &'a Link,
    /// Its addresses.
    pub addresses: &'a [IpNet],
}

/// An address of the container and the one that the host talks to it from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    container: IpAddr,
    host: IpAddr,
    /// The container takes the host's address for a neighbour's anyway.
    on_link: bool,
}

/// Whether a shim on this master would do anything.
///
/// # Errors
/// [`crate::cni::Code::INVALID_CONFIG`]: the master has no address, or the host would drop what containers send.
pub fn must_be_possible(host: &mut Handle, lower: &Link, kind: SubKind) -> Result<()> {
    let name = &lower.name;
    if host_addresses(host, lower)?.is_empty() {
        return Err(Error::config(format!("hostShim: {name:?} has no address that containers could reach")));
    }
    // From an ipvlan of mode l2 the kernel hands what is for the host to the master, where no route leads back.
    if kind == (SubKind::Ipvlan { mode: IpvlanMode::L2 }) {
        let read = |name: &str| sysctl::read(&format!("net/ipv4/conf/{name}/rp_filter")).unwrap_or_default();
        if read("all").max(read(name)) == "1" {
            return Err(Error::config(format!(
                "hostShim: /proc/sys/net/ipv4/conf/{name}/rp_filter is 1 (strict), and the host drops what an ipvlan of mode l2 \
                 sends it; set it to 2, or use mode l3"
            )));
        }
    }
    Ok(())
}

/// Lets host and container reach each other; the shim is made if this is its first container.
///
/// # Errors
/// The kernel refuses; [`leave`] takes back what was done.
pub fn join(kernel: &mut Kernel, container: &mut Container, guest: &Guest<'_>) -> Result<()> {
    let host = host_addresses(kernel.host()?, guest.lower)?;
    let pairs = pairs(guest.addresses, &host);
    let shim = {
        let _lock = lock()?;
        let shim = ensure(kernel, guest)?;
        let own = metric(&guest.attachment);
        let outdated = |route: &Route| {
            route.priority != own && pairs.iter().any(|pair| route.dst.addr() == pair.container)
        };
        let routes = routes(kernel.host()?, &shim)?;
        let stale: Vec<Route> = routes.into_iter().filter(outdated).collect();
        apply_if_there(kernel.host()?, removal(&shim, &stale))?;
        kernel.host()?.apply(&host_side(&shim.dev(), &pairs, guest))?;
        shim
    };
    container.rtnl.apply(&container_side(&shim, &pairs, guest))
}

/// Removes the attachment's routes, and the shim if they were the last.
///
/// # Errors
/// What is there but cannot be removed.
pub fn leave(kernel: &mut Kernel, of: &Attachment<'_>) -> Result<()> {
    let own = metric(of);
    remove_routes(kernel, of.network, |route| route.priority == own)
}

/// Removes the routes of attachments that are not valid, and the shim if they were the last.
///
/// # Errors
/// What is there but cannot be removed.
pub fn gc(kernel: &mut Kernel, network: &str, valid: &[ValidAttachment]) -> Result<()> {
    let of = |v: &ValidAttachment| {
        metric(&Attachment { network, container_id: &v.container_id, ifname: &v.ifname })
    };
    let valid: Vec<u32> = valid.iter().map(of).collect();
    remove_routes(kernel, network, |route| !valid.contains(&route.priority))
}

/// Compares the shim and the attachment's routes on it with what [`join`] made.
///
/// # Errors
/// The first difference.
pub fn check(kernel: &mut Kernel, guest: &Guest<'_>) -> Result<()> {
    let host = host_addresses(kernel.host()?, guest.lower)?;
    let name = name(guest.attachment.network);
    let Some(shim) = kernel.host()?.link(&name)?.filter(|shim| is_beside(shim, guest)) else {
        return Err(difference(format!("the host's link {name:?} beside the container's is missing")));
    };
    if !shim.is_up() {
        return Err(difference(format!("interface {name:?} is down")));
    }
    let present = routes(kernel.host()?, &shim)?;
    let own = metric(&guest.attachment);
    for pair in pairs(guest.addresses, &host) {
        if !present.iter().any(|route| route.priority == own && route.dst.addr() == pair.container) {
            return Err(difference(format!("the host has no route to {} on {name:?}", pair.container)));
        }
    }
    Ok(())
}

fn remove_routes(kernel: &mut Kernel, network: &str, is_to_go: impl Fn(&Route) -> bool) -> Result<()> {
    let name = name(network);
    if kernel.host()?.link(&name)?.is_none() {
        return Ok(());
    }
    let _lock = lock()?;
    let Some(shim) = kernel.host()?.link(&name)?.filter(|shim| is_ours(shim, network)) else { return Ok(()) };
    let (gone, left): (Vec<Route>, Vec<Route>) =
        routes(kernel.host()?, &shim)?.into_iter().partition(is_to_go);
    if left.is_empty() {
        return remove_shim(kernel, &shim);
    }
    apply_if_there(kernel.host()?, removal(&shim, &gone))
}

fn remove_shim(kernel: &mut Kernel, shim: &Link) -> Result<()> {
    let wait = kernel.waits();
    remove_all(kernel.host()?, std::slice::from_ref(shim), wait)
}

/// The shim, up. Whatever an ADD that was killed left of it is completed; one on another master is replaced when no
/// container uses it.
fn ensure(kernel: &mut Kernel, guest: &Guest<'_>) -> Result<Link> {
    let network = guest.attachment.network;
    let name = name(network);
    let found = kernel.host()?.link(&name)?;
    if let Some(other) = found.as_ref().filter(|shim| !is_beside(shim, guest)) {
        if !is_ours(other, network) || !routes(kernel.host()?, other)?.is_empty() {
            return Err(Error::internal(format!(
                "hostShim: {name:?} is there already, on another master or for another purpose than {:?}",
                guest.lower.name
            )));
        }
        remove_shim(kernel, other)?;
    }
    let host = kernel.host()?;
    let shim = match found.filter(|shim| is_beside(shim, guest)) {
        Some(shim) if shim.is_up() && shim.alias == alias(network) => return Ok(shim),
        Some(shim) => shim,
        None => create(host, &name, guest)?,
    };
    // It answers no questions of others for the host's addresses, and has no address of its own.
    sysctl::write(&format!("net/ipv4/conf/{name}/arp_ignore"), "8").context("hostShim")?;
    for (key, value) in [("addr_gen_mode", "1"), ("accept_ra", "0")] {
        // A kernel without IPv6 has no such files.
        let _ = sysctl::write(&format!("net/ipv6/conf/{name}/{key}"), value);
    }
    let up = SetLink { alias: Some(alias(network)), up: Some(true), ..SetLink::of(shim.dev()) };
    host.apply(&[Change::SetLink(up)])?;
    Ok(shim)
}

fn create(host: &mut Handle, name: &str, guest: &Guest<'_>) -> Result<Link> {
    let mac = match guest.kind {
        SubKind::Macvlan { .. } => guest.lower.mac.map(|master| mac(guest.attachment.network, master)),
        _ => None,
    };
    let add = Change::AddSubLink(AddSubLink {
        name: name.to_owned(),
        mtu: None,
        mac,
        lower: Some(guest.lower.dev()),
        netns: None,
        kind: guest.kind,
    });
    let mut outcomes = host.exchange(&[Step::Change(add), Step::Link(Dev::named(name))])?.into_iter();
    outcomes.next().unwrap_or(Ok(None)).context("hostShim")?;
    let link = outcomes.next().unwrap_or(Ok(None))?;
    link.ok_or_else(|| Error::internal(format!("{name} vanished while it was being set up")))
}

/// What the host gets: a hardware address and a route for each address of the container.
fn host_side(shim: &Dev, pairs: &[Pair], guest: &Guest<'_>) -> Vec<Change> {
    let mut changes = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        if let Some(mac) = guest.link.mac.filter(|_| has_neighbours(guest.kind)) {
            changes.push(Change::SetNeighbour { dev: shim.clone(), ip: pair.container, mac });
        }
        changes.push(Change::AddRoute(RouteSpec {
            src: Some(pair.host),
            priority: metric(&guest.attachment),
            scope: Some(SCOPE_LINK),
            ..RouteSpec::new(IpNet::from(pair.container), shim.clone())
        }));
    }
    changes
}

/// What the container gets: a hardware address for each address of the host, and a route where it would take another way.
fn container_side(shim: &Link, pairs: &[Pair], guest: &Guest<'_>) -> Vec<Change> {
    let dev = guest.link.dev();
    // Links of an ipvlan share the master's address; the kernel tells them apart by the packet's.
    let mac = shim.mac.filter(|_| has_neighbours(guest.kind));
    let mut done: Vec<IpAddr> = Vec::new();
    let mut changes = Vec::new();
    for pair in pairs {
        if done.contains(&pair.host) {
            continue;
        }
        done.push(pair.host);
        if let Some(mac) = mac {
            changes.push(Change::SetNeighbour { dev: dev.clone(), ip: pair.host, mac });
        }
        if !pair.on_link {
            let scope = Some(SCOPE_LINK);
            changes.push(Change::AddRoute(RouteSpec {
                scope,
                ..RouteSpec::new(IpNet::from(pair.host), dev.clone())
            }));
        }
    }
    changes
}

/// Links of an ipvlan of mode l3 or l3s have no hardware addresses to ask for.
fn has_neighbours(kind: SubKind) -> bool {
    !matches!(kind, SubKind::Ipvlan { mode: IpvlanMode::L3 | IpvlanMode::L3s })
}

/// What takes routes back, with the hardware addresses of their destinations.
fn removal(shim: &Link, routes: &[Route]) -> Vec<Change> {
    let dev = shim.dev();
    let of = |route: &Route| {
        let spec = RouteSpec { priority: route.priority, ..RouteSpec::new(route.dst, dev.clone()) };
        [Change::DelRoute(spec), Change::DelNeighbour { dev: dev.clone(), ip: route.dst.addr() }]
    };
    routes.iter().flat_map(of).collect()
}

fn apply_if_there(host: &mut Handle, changes: Vec<Change>) -> Result<()> {
    let steps: Vec<Step> = changes.into_iter().map(Step::Change).collect();
    let outcomes = host.exchange(&steps)?;
    outcomes.into_iter().try_for_each(|outcome| outcome.unless_gone().map(drop))
}

/// Containers' routes on the shim: those to single addresses.
fn routes(host: &mut Handle, shim: &Link) -> Result<Vec<Route>> {
    let mut routes = host.routes(shim.index)?;
    routes.retain(|route| {
        route.table == TABLE_MAIN
            && route.kind == UNICAST
            && route.dst.prefix_len() == route.dst.max_prefix_len()
    });
    Ok(routes)
}

/// The master's addresses that others can reach.
fn host_addresses(host: &mut Handle, lower: &Link) -> Result<Vec<IpNet>> {
    let addresses = host.addresses(lower.index)?;
    Ok(addresses.into_iter().filter(|a| a.scope == 0 && !a.is_dad_failed()).map(|a| a.net).collect())
}

/// For each address of the container the host's: one of the same network if there is one, else the first of the family.
fn pairs(container: &[IpNet], host: &[IpNet]) -> Vec<Pair> {
    let pair = |net: &IpNet| {
        let mut family = host.iter().map(IpNet::addr).filter(|ip| ip.is_ipv4() == net.addr().is_ipv4());
        let first = family.clone().next()?;
        let host = family.find(|ip| net.contains(ip)).unwrap_or(first);
        let on_link = container.iter().any(|net| net.contains(&host));
        Some(Pair { container: net.addr(), host, on_link })
    };
    container.iter().filter_map(pair).collect()
}

/// The shim's name, which tells the network.
fn name(network: &str) -> String {
    let digest = Sha512::digest(format!("shim/{network}"));
    format!("shim{}", hex(&digest[..4]))
}

fn alias(network: &str) -> String {
    // Letters, digits and punctuation of ASCII; the kernel keeps 255 bytes.
    format!("cni-all shim {}", &network[..network.len().min(200)])
}

/// The metric of an attachment's routes: not 0, for which IPv6 has another number.
fn metric(of: &Attachment<'_>) -> u32 {
    let digest = Sha512::digest(format!("{}/{}/{}", of.network, of.container_id, of.ifname));
    digest.first_chunk().map_or(1, |bytes| u32::from_be_bytes(*bytes).max(1))
}

/// A shim's hardware address: the same whenever it is made, so that containers still know it, and another on each host.
fn mac(network: &str, master: Mac) -> Mac {
    let digest = Sha512::digest(format!("shim/{network}/{master}"));
    let mut bytes = digest.first_chunk::<6>().copied().unwrap_or_default();
    // Locally administered, not a group's.
    bytes[0] = bytes[0] & 0xfc | 0x02;
    Mac(bytes)
}

/// The shim of this network, or what a killed ADD left of it.
fn is_ours(link: &Link, network: &str) -> bool {
    link.alias == alias(network) || (link.alias.is_empty() && link.sub.is_some())
}

/// It stands on the guest's master and passes frames to links of the guest's kind.
fn is_beside(shim: &Link, guest: &Guest<'_>) -> bool {
    shim.kind == guest.kind.name()
        && shim.peer == Some(guest.lower.index)
        && shim.lower_netns.is_none()
        && is_ours(shim, guest.attachment.network)
}

/// One ADD or DEL at a time makes or removes a shim. Released by unlocking when dropped: a detached child may keep the
/// descriptor.
fn lock() -> Result<Flock<File>> {
    let path = format!("{LOCK_DIR}/shim.lock");
    let failed =
        |what: &str, e: &std::io::Error| Error::io(format_args!("{what} {path}"), e).context("hostShim");
    let made = DirBuilder::new().recursive(true).mode(0o700).create(LOCK_DIR);
    made.map_err(|e| failed("create the directory of", &e))?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(|e| failed("open", &e))?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, e)| failed("flock", &e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::rtnl::MacvlanMode;

    const OF: Attachment<'_> = Attachment { network: "mynet", container_id: "c1", ifname: "eth0" };

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn link(index: u32, name: &str, mac: &str) -> Link {
        Link { index, name: name.into(), mac: mac.parse().ok(), ..Link::default() }
    }

    fn printed(kind: SubKind, container: &[&str], host: &[&str]) -> [Vec<String>; 2] {
        let (lower, inside) = (link(2, "eth1", "02:00:00:00:00:01"), link(9, "eth0", "02:00:00:00:00:09"));
        let shim = link(7, "shim0", "02:00:00:00:00:07");
        let addresses = nets(container);
        let guest = Guest { attachment: OF, kind, lower: &lower, link: &inside, addresses: &addresses };
        let pairs = pairs(&addresses, &nets(host));
        let text = |changes: Vec<Change>| changes.iter().map(ToString::to_string).collect();
        [text(host_side(&shim.dev(), &pairs, &guest)), text(container_side(&shim, &pairs, &guest))]
    }

    const MACVLAN: SubKind = SubKind::Macvlan { mode: MacvlanMode::Bridge, bc_queue_len: None };

    #[test]
    fn host_and_container_know_each_others_hardware_address() {
        let metric = metric(&OF);
        let [host, container] = printed(MACVLAN, &["192.0.2.5/24"], &["203.0.113.2/24", "192.0.2.1/24"]);
        assert_eq!(
            host,
            [
                "ip neigh replace 192.0.2.5 lladdr 02:00:00:00:00:09 dev shim0 nud permanent".to_owned(),
                format!("ip route add 192.0.2.5/32 dev shim0 src 192.0.2.1 metric {metric} scope link"),
            ]
        );
        assert_eq!(container, ["ip neigh replace 192.0.2.1 lladdr 02:00:00:00:00:07 dev eth0 nud permanent"]);
    }

    #[test]
    fn an_address_of_the_host_outside_the_containers_networks_gets_a_route_once() {
        let [host, container] =
            printed(MACVLAN, &["10.1.0.5/24", "10.2.0.5/24", "fd00::5/64"], &["192.0.2.1/24"]);
        assert_eq!(host.len(), 4);
        assert_eq!(container.len(), 2);
        assert_eq!(container[1], "ip route add 192.0.2.1/32 dev eth0 scope link");
    }

    #[test]
    fn links_without_hardware_addresses_get_routes_alone() {
        let kind = SubKind::Ipvlan { mode: IpvlanMode::L3 };
        let [host, container] = printed(kind, &["192.0.2.5/24"], &["192.0.2.1/24"]);
        assert!(host.len() == 1 && host[0].starts_with("ip route add") && container.is_empty());
    }

    #[test]
    fn names_numbers_and_hardware_addresses_stay_the_same_and_fit() {
        assert_eq!((name("mynet").len(), name("mynet")), (12, name("mynet")));
        assert!(name("mynet") != name("other") && alias(&"n".repeat(300)).len() < 256);
        assert!(metric(&OF) != metric(&Attachment { ifname: "eth1", ..OF }) && metric(&OF) == metric(&OF));
        let master: Mac = "02:00:00:00:00:01".parse().unwrap();
        assert_eq!(mac("mynet", master).0[0] & 3, 2);
        assert!(mac("mynet", master) != mac("mynet", "02:00:00:00:00:02".parse().unwrap()));
    }
}
