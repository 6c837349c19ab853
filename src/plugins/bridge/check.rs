//! CHECK of a bridge attachment, on both sides: container, port, bridge, gateway, rules.

use super::conf::Conf;
use super::{gateway, port};
use crate::attach::verify::{self, difference};
use crate::attach::{Attachment, ipam, masquerade, spoofcheck, veth};
use crate::cni::{CniResult, Interface, Request, Result, ResultExt};
use crate::kernel::Kernel;
use crate::kernel::rtnl::Link;

/// Compares what ADD made, as `prevResult` tells it, with what is there.
///
/// # Errors
/// The first difference.
pub fn check(req: &Request, conf: &Conf, kernel: &mut Kernel) -> Result<()> {
    if let Some(plugin) = &conf.ipam {
        ipam::forward(plugin, req, kernel)?;
    }
    let prev = verify::prev_result(req)?;
    let (mut container, index, interface) = verify::sandbox(req, &prev)?;

    let bridge = match prev.interfaces.iter().find(|i| i.name == conf.bridge) {
        Some(named) if !named.sandbox.is_empty() => {
            return Err(difference(format!("prevResult: bridge {:?} is inside a sandbox", conf.bridge)));
        }
        Some(named) => named.clone(),
        None => Interface { name: conf.bridge.clone(), ..Interface::default() },
    };
    let bridge = verify::link(kernel.host()?, &bridge, "bridge").context("bridge")?;
    verify::is_up(&bridge)?;
    if conf.promisc && !bridge.is_promisc() {
        return Err(difference(format!("bridge {:?} is not promiscuous", bridge.name)));
    }

    let inside = verify::link(&mut container.rtnl, interface, "veth").context("container")?;
    let host = host_end(kernel, conf, &prev, &bridge, &inside)?;
    if !conf.leave_down {
        verify::is_up(&inside).context("container")?;
        verify::addresses(&mut container.rtnl, &inside, verify::expected_addresses(&prev, index))
            .context("container")?;
        verify::routes(&mut container.rtnl, &inside, &prev).context("container")?;
    }
    gateway_side(kernel, conf, &bridge, &prev)?;

    let of = Attachment::of(req);
    let addresses: Vec<_> = verify::expected_addresses(&prev, index).collect();
    if let Some(wanted) = conf.masquerade.as_ref().filter(|_| !addresses.is_empty()) {
        masquerade::check(kernel.nft()?, &of, &addresses, wanted)?;
    }
    if let (true, Some(mac)) = (conf.macspoofchk, inside.mac) {
        spoofcheck::check(kernel.nft()?, of.container_id, of.ifname, &host.name, mac.0)?;
    }
    Ok(())
}

/// The container end's other end: in this bridge, up, with the port settings of the configuration.
fn host_end(
    kernel: &mut Kernel,
    conf: &Conf,
    prev: &CniResult,
    bridge: &Link,
    inside: &Link,
) -> Result<Link> {
    let Some(host) = veth::peer(kernel.host()?, inside)? else {
        return Err(difference(format!("the host's end of {:?} is missing", inside.name)));
    };
    let name = host.name.as_str();
    if host.master != Some(bridge.index) {
        return Err(difference(format!("{name} is not a port of bridge {:?}", bridge.name)));
    }
    if let Some(told) = prev.interfaces.iter().find(|i| i.name == host.name && i.sandbox.is_empty()) {
        verify::link(kernel.host()?, told, "veth").context("host")?;
    }
    verify::is_up(&host).context("host")?;
    let set = host.port.unwrap_or_default();
    // portmap, later in the list, may have turned hairpin on.
    for (what, wanted, is) in
        [("hairpin", conf.hairpin, conf.hairpin && set.hairpin), ("isolated", conf.isolated, set.isolated)]
    {
        if wanted != is {
            let state = |on: bool| if on { "on" } else { "off" };
            return Err(difference(format!("{name}: {what} is {}, expected {}", state(is), state(wanted))));
        }
    }
    if let Some(vlans) = &conf.vlans {
        let present = kernel.host()?.port_vlans(host.index)?;
        if let Some(what) = port::vlan_difference(&present, vlans) {
            return Err(difference(format!("{name}: {what}")));
        }
    }
    Ok(host)
}

/// The gateway's addresses, on the bridge or on the link of its native VLAN.
fn gateway_side(kernel: &mut Kernel, conf: &Conf, bridge: &Link, prev: &CniResult) -> Result<()> {
    if !conf.is_gateway || conf.ipam.is_none() {
        return Ok(());
    }
    let host = kernel.host()?;
    let target = match conf.vlan_gateway() {
        None => bridge.clone(),
        Some(name) => {
            host.link(&name)?.ok_or_else(|| difference(format!("interface {name:?} is missing")))?
        }
    };
    verify::addresses(host, &target, gateway::addresses(prev)).context("gateway")
}
