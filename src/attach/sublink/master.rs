//! The link below the container's interface.

use super::Spec;
use crate::attach::container::Container;
use crate::cni::{Error, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{Handle, Link};

/// rtnetlink of the namespace that the master is in.
///
/// # Errors
/// The socket cannot be opened.
pub fn side<'a>(spec: &Spec, kernel: &'a mut Kernel, container: &'a mut Container) -> Result<&'a mut Handle> {
    if spec.conf.in_container { Ok(&mut container.rtnl) } else { kernel.host() }
}

/// The master: the named link, else the default route's.
///
/// # Errors
/// [`crate::cni::Code::INVALID_CONFIG`]: there is no such link, or no default route.
pub fn find(name: Option<&str>, rtnl: &mut Handle) -> Result<Link> {
    if let Some(name) = name {
        return rtnl.link(name)?.ok_or_else(|| Error::config(format!("master: there is no link {name:?}")));
    }
    for route in rtnl.default_routes()? {
        for index in route.oif.into_iter().chain(route.nexthops.iter().map(|hop| hop.dev.index)) {
            if let Some(link) = rtnl.link_by_index(index)? {
                return Ok(link);
            }
        }
    }
    Err(Error::config("master: not given, and there is no default route whose link could be taken"))
}

/// The one interface that an earlier plugin of the list made, by name: the master of a chained plugin. `None` when there
/// was no earlier plugin.
///
/// # Errors
/// It made none, or several.
pub fn of_prev_result(req: &Request) -> Result<Option<String>> {
    let Some(prev) = req.config.prev_result()? else { return Ok(None) };
    match prev.interfaces.as_slice() {
        [one] if !one.name.is_empty() => Ok(Some(one.name.clone())),
        all => Err(Error::config(format!(
            "master: not given, and prevResult has {} interfaces where one is needed to be the master \
             (chained master failure)",
            all.len()
        ))),
    }
}
