//! Another configuration for a container that is attached to a bridge.

use super::conf::Conf;
use super::{CONTAINER, gateway};
use crate::attach::live::{self, Pair};
use crate::attach::{Attachment, spoofcheck, verify};
use crate::cni::{CniResult, Error, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{Change, PortFlags, SetLink};
use crate::plugins::Update;

/// Keys that can change, whoever made the attachment.
pub const LIVE_KEYS: &[&str] = &[
    "mtu",
    "hairpinMode",
    "portIsolation",
    "promiscMode",
    "macspoofchk",
    "ipMasq",
    "ipMasqBackend",
    "ipMasqExempt",
    "isDefaultGateway",
    "dns",
    "ipam",
];

/// Makes the attachment what the new configuration says.
///
/// # Errors
/// As for [`crate::plugins::Plugin::update`].
pub fn update(update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
    let req = update.to;
    let (from, to) = (Conf::new(update.from)?, Conf::new(req)?);
    let mut result = verify::prev_result(req)?;
    if from.is_gateway != to.is_gateway {
        // The bridge, or the address, would have to get a gateway.
        return Err(live::needs_new("isGateway: cannot change, and isDefaultGateway implies it"));
    }
    let of = Attachment::of(req);
    let mut pair = Pair::find(req, kernel)?;
    pair.set_mtu((from.mtu, to.mtu), kernel, &mut result)?;
    set_flags(&from, &to, &pair, kernel)?;
    let given = (live::given(update.from, from.ipam.as_deref())?, live::given(req, to.ipam.as_deref())?);
    let completed = |conf: &Conf, given: Option<&CniResult>| {
        let mut routed = live::with_routes(&result, given, CONTAINER);
        gateway::complete(&mut routed, CONTAINER, conf.is_gateway, conf.is_default_gateway);
        routed
    };
    let routed = (completed(&from, given.0.as_ref()), completed(&to, given.1.as_ref()));
    pair.inside.set_routes(&routed.0, &routed.1, &mut result)?;
    live::set_masquerade(&of, &result, (from.masquerade.as_ref(), to.masquerade.as_ref()), kernel)?;
    if from.macspoofchk && !to.macspoofchk {
        spoofcheck::del(kernel.nft()?, of.container_id, of.ifname)?;
    } else if let (false, true, Some(mac)) = (from.macspoofchk, to.macspoofchk, pair.inside.link.mac) {
        spoofcheck::add(kernel.nft()?, of.container_id, of.ifname, &pair.host.name, mac.0)?;
    }
    live::set_dns((from.dns.as_ref(), to.dns.as_ref()), (given.0.as_ref(), given.1.as_ref()), &mut result)?;
    Ok(result)
}

/// Sets the flags of port and bridge that are different.
fn set_flags(from: &Conf, to: &Conf, pair: &Pair, kernel: &mut Kernel) -> Result<()> {
    let host = kernel.host()?;
    let name = &pair.host.name;
    let Some(port) = pair.host.port else {
        return Err(Error::internal(format!("{name} is not a port of bridge {:?} any more", to.bridge)));
    };
    // What is set without having been asked for is another plugin's (portmap) or an operator's.
    let differs = |from: bool, to: bool, is: bool| (from != to && is != to).then_some(to);
    let flags = PortFlags {
        hairpin: differs(from.hairpin, to.hairpin, port.hairpin),
        isolated: differs(from.isolated, to.isolated, port.isolated),
    };
    if flags != PortFlags::default() {
        host.apply(&[Change::SetLink(SetLink { port: Some(flags), ..SetLink::of(pair.host.dev()) })])?;
    }
    let Some(bridge) = host.link(&to.bridge)? else {
        return Err(Error::internal(format!("bridge {:?} is missing", to.bridge)));
    };
    match differs(from.promisc, to.promisc, bridge.is_promisc()) {
        Some(on) => {
            host.apply(&[Change::SetLink(SetLink { promisc: Some(on), ..SetLink::of(bridge.dev()) })])
        }
        None => Ok(()),
    }
}
