//! Other settings and attributes for a container that is attached.

use super::backup::{self, Backup};
use super::conf::{self, Conf};
use super::{allowlist, changes, file, tell};
use crate::attach::container::Container;
use crate::attach::live::{self, Pair, needs_new};
use crate::attach::{Attachment, verify};
use crate::cni::{CniResult, Error, Request, Result, ResultExt};
use crate::kernel::rtnl::Link;
use crate::kernel::{Kernel, sysctl};
use crate::plugins::Update;

/// Makes settings and attributes those of the new configuration. An attribute that it does not name gets the value that the
/// backup has, the MTU of a pair that of the other end; of a setting nobody knows that.
///
/// # Errors
/// As for [`crate::plugins::Plugin::update`].
pub fn update(update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
    let req = update.to;
    let (from, to) = (Conf::new(update.from)?, Conf::new(req)?);
    let mut result = verify::prev_result(req)?;
    let named = |conf: &Conf, name: &str| conf.sysctls.iter().any(|sysctl| sysctl.name == name);
    for (conf, other) in [(&from, &to), (&to, &from)] {
        if let Some(lost) = conf.sysctls.iter().find(|sysctl| !named(other, &sysctl.name)) {
            return Err(needs_new(format!("sysctl: {}: its value without tuning is not known", lost.name)));
        }
    }
    allowlist::check(&to.sysctls)?;
    let mut container = Container::open(req)?;
    container.netns.enter(|| {
        to.sysctls.iter().filter(|sysctl| !from.sysctls.contains(sysctl)).try_for_each(|sysctl| {
            let path = file(sysctl).context("sysctl")?;
            sysctl::write(path, &sysctl.value).context(format_args!("sysctl: {}", sysctl.name))
        })
    })?;
    if from.changes_link() || to.changes_link() {
        set_link((req, &from, &to), &mut container, kernel, &mut result)?;
    }
    Ok(result)
}

fn set_link(
    (req, from, to): (&Request, &Conf, &Conf),
    container: &mut Container,
    kernel: &mut Kernel,
    result: &mut CniResult,
) -> Result<()> {
    let link = container.rtnl.link(&req.ifname)?;
    let missing = || Error::internal(format!("there is no interface {:?} in {}", req.ifname, req.netns));
    let link = link.ok_or_else(missing)?;
    let path = backup::path(&conf::data_dir(req)?, &Attachment::of(req));
    let mut dropped = Backup::read(&path)?.unwrap_or_default().of_dropped(from, to).ok_or_else(|| {
        let what = "an attribute is not named any more, and what it was before is not known";
        needs_new(format!("mtu, promisc, allmulti, txQLen: {what}"))
    })?;
    if dropped.mtu().is_some()
        && let Ok(pair) = Pair::find(req, kernel)
    {
        // An earlier plugin may have given the pair another one since.
        dropped.set_mtu(pair.host.mtu);
    }
    let new = unlike(&link, to);
    if let Some(mtu) = new.mtu {
        live::keeps_addresses(mtu, result)?;
    }
    if new.changes_link() {
        Backup::of(&link, &new, &req.config.name).save(&path)?;
    }
    let mut all = dropped.changes(&link.dev());
    all.extend(changes(&link, &new));
    container.rtnl.apply(&all)?;
    tell(result, req, &Conf { mtu: to.mtu.or(dropped.mtu()), ..to.clone() });
    Ok(())
}

/// What of the configuration the link does not have. The MAC address stays.
fn unlike(link: &Link, conf: &Conf) -> Conf {
    Conf {
        sysctls: Vec::new(),
        mac: None,
        mtu: conf.mtu.filter(|mtu| link.mtu != *mtu),
        promisc: conf.promisc && !link.is_promisc(),
        allmulti: conf.allmulti.filter(|on| link.is_allmulti() != *on),
        tx_queue: conf.tx_queue.filter(|length| link.tx_queue != *length),
    }
}
