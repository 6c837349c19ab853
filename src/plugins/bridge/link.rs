//! The bridge itself, and the link that carries the gateway of a VLAN: made when missing, used as found.

use super::conf::{Conf, Vlans};
use super::{is_unsupported, port, up};
use crate::attach::Attachment;
use crate::attach::owner::host_names;
use crate::attach::veth::quiet_ipv6;
use crate::cni::{Code, Error, Result};
use crate::kernel::rtnl::{AddBridge, AddVeth, Change, Dev, Handle, Link, SetLink, Step, VethPeer};

/// Alias of a bridge whose MAC was fixed.
const PINNED: &str = "cni-all bridge";

/// The configured bridge, up. An existing one keeps its MTU and address; VLAN filtering and promiscuous mode are turned
/// on when the configuration needs them.
///
/// # Errors
/// A link of that name is no bridge; the kernel cannot do what is asked for ([`Code::UNSUPPORTED_FIELD`]).
pub fn ensure(host: &mut Handle, conf: &Conf) -> Result<Link> {
    let filtering = conf.vlans.is_some();
    let link = match host.link(&conf.bridge)? {
        Some(link) => link,
        None => create(host, conf, filtering)?,
    };
    must_be_bridge(&link)?;
    let mut changes = Vec::new();
    if link.alias != PINNED {
        // A bridge takes the lowest MAC of its ports and changes it with them, unless it was set: set what it has. The
        // alias remembers that, unless an operator wrote one.
        let alias = link.alias.is_empty().then(|| PINNED.to_owned());
        changes.push(Change::SetLink(SetLink { mac: link.mac, alias, ..SetLink::of(link.dev()) }));
    }
    if !link.is_up() {
        quiet_ipv6(&link.name, true);
        changes.push(up(&link));
    }
    if conf.promisc && !link.is_promisc() {
        changes.push(Change::SetLink(SetLink { promisc: Some(true), ..SetLink::of(link.dev()) }));
    }
    if filtering && !link.bridge.is_some_and(|b| b.vlan_filtering) {
        changes.push(Change::SetLink(SetLink { vlan_filtering: Some(true), ..SetLink::of(link.dev()) }));
    }
    if !changes.is_empty() {
        host.apply(&changes).map_err(explain_vlan)?;
    }
    Ok(link)
}

/// `ip link add BRIDGE type bridge`: down, so that IPv6 can be set up before. Another ADD may do the same at this moment:
/// then its bridge is used.
fn create(host: &mut Handle, conf: &Conf, vlan_filtering: bool) -> Result<Link> {
    let mtu = conf.mtu.bytes(host)?;
    let add = AddBridge { name: conf.bridge.clone(), up: false, mtu, mac: None, vlan_filtering };
    let steps = [Step::Change(Change::AddBridge(add)), Step::Link(Dev::named(&conf.bridge))];
    let mut outcomes = host.exchange(&steps)?.into_iter();
    match outcomes.next() {
        Some(Err(e)) if !e.is_exists() => return Err(explain_vlan(e)),
        _ => {}
    }
    let link = outcomes.next().unwrap_or(Ok(None))?;
    let link =
        link.ok_or_else(|| Error::internal(format!("{} vanished while it was being set up", conf.bridge)))?;
    Ok(link)
}

/// # Errors
/// The link is something else.
pub fn must_be_bridge(link: &Link) -> Result<()> {
    if link.kind == "bridge" {
        return Ok(());
    }
    let kind = if link.kind.is_empty() { "a physical or loopback link" } else { &link.kind };
    Err(Error::config(format!("bridge: {:?} already exists but is not a bridge (it is {kind})", link.name)))
}

/// Says what a kernel without bridge VLAN filtering lacks.
pub fn explain_vlan(err: Error) -> Error {
    if !is_unsupported(&err) {
        return err;
    }
    err.context("vlan, vlanTrunk: this kernel has no bridge VLAN filtering (CONFIG_BRIDGE_VLAN_FILTERING)")
        .with_code(Code::UNSUPPORTED_FIELD)
}

/// The link `name` (`cni0.100`) that carries the gateway address of the bridge's native VLAN: one end of a veth pair on
/// the host, the other end a port of the bridge in that VLAN. It belongs to the network and stays.
///
/// # Errors
/// A link of that name is something else.
pub fn ensure_vlan_gateway(host: &mut Handle, conf: &Conf, bridge: &Link, name: &str) -> Result<Link> {
    let link = match host.link(name)? {
        Some(link) => link,
        None => {
            let names =
                host_names(&Attachment { network: &conf.bridge, container_id: "vlan-gateway", ifname: name });
            let add = Change::AddVeth(AddVeth {
                name: name.to_owned(),
                up: false,
                mtu: Some(bridge.mtu).filter(|mtu| *mtu > 0),
                mac: None,
                master: None,
                peer: VethPeer { name: names[0].clone(), mtu: Some(bridge.mtu), mac: None, netns: None },
            });
            let mut outcomes = host.exchange(&[Step::Change(add), Step::Link(Dev::named(name))])?.into_iter();
            match (outcomes.next().unwrap_or(Ok(None)), outcomes.next().unwrap_or(Ok(None))?) {
                (Err(e), None) => return Err(e),
                (Err(e), _) if !e.is_exists() => return Err(e),
                (_, None) => {
                    return Err(Error::internal(format!("{name} vanished while it was being set up")));
                }
                (_, Some(link)) => {
                    quiet_ipv6(&link.name, true);
                    link
                }
            }
        }
    };
    // Whoever made it may have been interrupted before its other end was in the bridge.
    if let Some(peer) = link.peer.filter(|_| link.kind == "veth") {
        let port = host.link_by_index(peer)?;
        if let Some(port) = port.filter(|port| port.master != Some(bridge.index)) {
            let enslave =
                SetLink { master: Some(Some(bridge.dev())), up: Some(true), ..SetLink::of(port.dev()) };
            let mut changes = vec![Change::SetLink(enslave)];
            let vlans = conf.vlans.as_ref();
            let native = Vlans { trunk: Vec::new(), ..vlans.cloned().unwrap_or_default() };
            changes.extend(port::vlan_changes(
                &port.dev(),
                &native,
                bridge.bridge.and_then(|b| b.default_pvid),
            ));
            host.apply(&changes).map_err(explain_vlan)?;
        }
    }
    if !link.is_up() {
        host.apply(&[up(&link)])?;
    }
    Ok(link)
}
