//! What arrives at a link, sent on by another one: filters that redirect, beside those of others.

use crate::cni::Result;
use crate::kernel::rtnl::tc::{
    AddFilter, ETH_P_ALL, Filter, Qdisc, QdiscKind, TcChange, TcHandle, is_no_qdisc,
};
use crate::kernel::rtnl::{Change, Dev, Handle, Link};

/// Where filters on what arrives at a link belong: a qdisc of their own, or one that is there already.
fn place(qdisc: &Qdisc) -> TcHandle {
    if qdisc.kind == "clsact" { TcHandle::CLSACT_ARRIVING } else { TcHandle::ARRIVING }
}

/// Sends everything that arrives at `link` to `target`, as changes. `priority` and `class` are for those who read filters:
/// 0 is the kernel's choice.
///
/// # Errors
/// The kernel cannot be asked.
pub fn all(
    rtnl: &mut Handle,
    link: &Link,
    target: &Dev,
    priority: u16,
    class: Option<TcHandle>,
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    let parent = match rtnl.qdisc(link.index, TcHandle::INGRESS)? {
        Some(qdisc) => place(&qdisc),
        None => {
            changes.push(Change::Tc(TcChange::AddQdisc {
                dev: link.dev(),
                parent: TcHandle::INGRESS,
                handle: TcHandle::ARRIVING,
                kind: QdiscKind::Ingress,
            }));
            TcHandle::ARRIVING
        }
    };
    changes.push(Change::Tc(TcChange::AddFilter(AddFilter {
        dev: link.dev(),
        parent,
        priority,
        protocol: ETH_P_ALL,
        keys: Vec::new(),
        class,
        redirect: Some(target.clone()),
    })));
    Ok(changes)
}

/// The indexes of the links that what arrives at a link is redirected to; 0 for one that is gone.
///
/// # Errors
/// The kernel cannot be asked.
pub fn targets(rtnl: &mut Handle, link: &Link) -> Result<Vec<u32>> {
    let Some(qdisc) = rtnl.qdisc(link.index, TcHandle::INGRESS)? else { return Ok(Vec::new()) };
    Ok(rtnl.filters(link.index, place(&qdisc))?.iter().filter_map(|filter| filter.redirect).collect())
}

/// Takes the redirections to some links away, and those to links that are gone; which ones those were. Filters of others
/// stay, and with them the qdisc that they are at.
///
/// # Errors
/// What is there but cannot be removed.
pub fn stop(rtnl: &mut Handle, link: &Link, to: &[u32]) -> Result<Vec<u32>> {
    let Some(qdisc) = rtnl.qdisc(link.index, TcHandle::INGRESS)? else { return Ok(Vec::new()) };
    let dev = link.dev();
    let ours = |filter: &Filter| filter.redirect.filter(|index| *index == 0 || to.contains(index));
    let filters = rtnl.filters(link.index, place(&qdisc))?;
    let (mine, others): (Vec<Filter>, Vec<Filter>) = filters.into_iter().partition(|f| ours(f).is_some());
    let redirected = mine.iter().filter_map(ours).collect();
    let mut changes = Vec::new();
    if others.is_empty() && qdisc.kind == "ingress" {
        changes.push(Change::Tc(TcChange::DelQdisc { dev, parent: TcHandle::INGRESS }));
    } else {
        let same = |a: &Filter, b: &Filter| (a.priority, a.protocol) == (b.priority, b.protocol);
        changes.extend(mine.into_iter().map(|filter| {
            // With the last one its table goes too.
            let alone = !others.iter().any(|other| same(other, &filter));
            let handle = if alone { TcHandle(0) } else { filter.handle };
            Change::Tc(TcChange::DelFilter { dev: dev.clone(), filter: Filter { handle, ..filter } })
        }));
    }
    match rtnl.apply(&changes) {
        Err(e) if !is_no_qdisc(&e) => Err(e),
        _ => Ok(redirected),
    }
}
