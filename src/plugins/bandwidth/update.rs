//! Other limits for a container that is attached: each direction by itself, so that the one that stays is not touched.

use super::conf::{Limit, Limits, Subnets};
use super::shape::{self, Remote};
use super::{lacking, links, set_egress, tell};
use crate::attach::container::Container;
use crate::attach::{Attachment, redirect, verify};
use crate::cni::{CniResult, Code, Interface, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::tc::TcHandle;
use crate::kernel::rtnl::{Change, Handle, Link, SetLink};
use crate::plugins::Update;

/// Makes the limits those of the new configuration.
///
/// # Errors
/// As for [`crate::plugins::Plugin::update`].
pub fn update(update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
    let req = update.to;
    let (from, to) = (Limits::new(update.from)?, Limits::new(req)?);
    let result = verify::prev_result(req)?;
    match from.is_none() && to.is_none() {
        true => Ok(result),
        false => change(req, &from, &to, result, kernel),
    }
}

/// Takes all limits away.
///
/// # Errors
/// As for [`crate::plugins::Plugin::leave`].
pub fn leave(req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
    let from = Limits::new(req)?;
    change(req, &from, &Limits::default(), verify::prev_result(req)?, kernel)
}

fn change(
    req: &Request,
    from: &Limits,
    to: &Limits,
    mut result: CniResult,
    kernel: &mut Kernel,
) -> Result<CniResult> {
    let of = Attachment::of(req);
    let mut container = Container::open(req)?;
    let rtnl = kernel.host()?;
    let end = links::host_end(&req.ifname, &result, &mut container, rtnl)?;
    let mut changes = Vec::new();
    let same = from.subnets == to.subnets;
    let limit = |limit, remote| Wanted { limit, subnets: &to.subnets, remote, same };
    if from.ingress.is_some() || to.ingress.is_some() {
        queue(rtnl, &end, limit(to.ingress, Remote::Source), &mut changes)?;
    }
    let targets = redirect::targets(rtnl, &end)?;
    let (used, mut left): (Vec<Link>, Vec<Link>) =
        links::ifbs(rtnl, &of)?.into_iter().partition(|ifb| targets.contains(&ifb.index));
    // What an ADD or an update left that was killed.
    left.retain(|ifb| links::is_own(&of, ifb));
    match (to.egress, used.first()) {
        (Some(_), Some(ifb)) => {
            queue(rtnl, ifb, limit(to.egress, Remote::Destination), &mut changes)?;
            // What a larger frame would need: it takes the MTU of the pair.
            if ifb.mtu != end.mtu {
                let set = SetLink { mtu: Some(end.mtu), ..SetLink::of(ifb.dev()) };
                changes.push(Change::SetLink(set));
            }
            tell(&mut result, Some(ifb));
        }
        (Some(limit), None) => {
            links::remove_all(kernel, &left)?;
            let ifb = set_egress(&of, limit, &to.subnets, &end, kernel.host()?, &mut changes)?;
            tell(&mut result, Some(&ifb));
        }
        (None, first) => {
            if first.is_some() {
                let indexes: Vec<u32> = used.iter().map(|ifb| ifb.index).collect();
                redirect::stop(rtnl, &end, &indexes)?;
            }
            links::remove_all(kernel, &[used, left].concat())?;
            forget(&mut result, &links::ifb_names(&of));
        }
    }
    kernel.host()?.apply(&changes).map_err(lacking)?;
    Ok(result)
}

/// Takes links of the host out of the result; addresses point at the interfaces that they pointed at.
fn forget(result: &mut CniResult, names: &[String]) {
    let is_meant = |i: &Interface| i.sandbox.is_empty() && names.contains(&i.name);
    while let Some(place) = result.interfaces.iter().position(is_meant) {
        result.interfaces.remove(place);
        for index in result.ips.iter_mut().filter_map(|ip| ip.interface.as_mut()) {
            if *index > place as i64 {
                *index -= 1;
            }
        }
    }
}

/// What shall leave by a link.
struct Wanted<'a> {
    limit: Option<Limit>,
    subnets: &'a Subnets,
    remote: Remote,
    /// The subnets are those that it was limited for.
    same: bool,
}

/// Limits what leaves by a link, or no longer, unless it is so.
fn queue(rtnl: &mut Handle, link: &Link, wanted: Wanted<'_>, changes: &mut Vec<Change>) -> Result<()> {
    let Wanted { limit, subnets, remote, same } = wanted;
    let present = rtnl.qdisc(link.index, TcHandle::ROOT)?.filter(shape::is_ours);
    match (limit, present) {
        (Some(limit), Some(present)) => match shape::check(rtnl, link, limit, subnets, remote) {
            Ok(()) if same => {}
            Err(e) if e.code() != Code::CHECK_FAILED => return Err(e),
            _ => changes.extend(shape::change(&link.dev(), &present, limit, subnets, remote)),
        },
        (Some(limit), None) => changes.extend(shape::limit(&link.dev(), limit, subnets, remote)),
        (None, Some(_)) => changes.push(shape::stop(&link.dev())),
        (None, None) => {}
    }
    Ok(())
}
