//! Delegation to the IPAM plugin that `ipam.type` names (reference: main-plugins.md section 3).

use super::undo::Undo;
use crate::cni::{CniResult, Code, Command, Error, Request, Result};
use crate::invoke;
use crate::kernel::Kernel;
use crate::plugins::{self, Kind};

/// Whether `plugin` needs the container's interface: then it is asked when the link is there and passes frames, and
/// releases before the link is removed. It goes by the name, whoever's executable it is.
pub fn needs_link(plugin: &str) -> bool {
    plugins::find(plugin).is_some_and(|plugin| plugin.needs_link())
}

/// For main plugins whose interface leads to no server: refuses an IPAM plugin that [`needs_link`]. `why` completes the
/// sentence "it asks a server over the interface, but …".
///
/// # Errors
/// The key and value.
pub fn must_not_need_link(plugin: &str, why: &str) -> Result<()> {
    if needs_link(plugin) {
        let msg = format!("ipam.type: {plugin:?} asks a server over the interface, but {why}");
        return Err(Error::config(msg));
    }
    Ok(())
}

/// Asks `plugin` for addresses. What releases them when a later step fails is pushed on `undo`; an answer without any is
/// taken back at once. So is one that is none, of a plugin that died. One that refuses gets no DEL (the CNI spec, section 4,
/// recommends it; the Go plugins run none either): it may do so because this attachment has addresses, which would be freed.
///
/// # Errors
/// The plugin's own error; [`Code::INTERNAL`] `missing IP config` when it gave no address.
pub fn add<'a>(
    plugin: &'a str,
    req: &'a Request,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let result = match run_as(Command::Add, plugin, req, kernel) {
        Ok(result) => result.unwrap_or_default(),
        Err(err) => {
            if !err.is_answer() && !invoke::is_ours(plugin, &req.path, &req.execution) {
                // Why ADD failed matters more than that DEL, which is a precaution, failed as well.
                let _ = del(plugin, req, kernel);
            }
            return Err(err);
        }
    };
    if result.ips.is_empty() {
        del(plugin, req, kernel)?;
        return Err(Error::new(Code::INTERNAL, "IPAM plugin returned missing IP config")
            .with_details(format!("ipam plugin {plugin:?} succeeded without giving an address")));
    }
    undo.push(move |kernel| del(plugin, req, kernel));
    Ok(CniResult { interfaces: Vec::new(), ..result })
}

/// Releases what `plugin` assigned to this attachment.
///
/// # Errors
/// The plugin's own error.
pub fn del(plugin: &str, req: &Request, kernel: &mut Kernel) -> Result<()> {
    run_as(Command::Del, plugin, req, kernel).map(drop)
}

/// Takes links away with `remove`, and has the IPAM plugin `release` ([`del`] or [`forward`]) their addresses: afterwards, so
/// that none is handed out again while a link still answers for it; before, when it [`needs_link`] for that.
///
/// # Errors
/// All failures together; both were tried.
pub fn around(
    req: &Request,
    kernel: &mut Kernel,
    release: fn(&str, &Request, &mut Kernel) -> Result<()>,
    remove: impl FnOnce(&mut Kernel) -> Vec<Error>,
) -> Result<()> {
    let plugin = req.config.ipam();
    let (mut errors, mut remove) = (Vec::new(), Some(remove));
    if !matches!(&plugin, Ok(Some(plugin)) if needs_link(plugin)) {
        errors.extend(remove.take().into_iter().flat_map(|remove| remove(kernel)));
    }
    match plugin {
        Ok(Some(plugin)) => errors.extend(release(&plugin, req, kernel).err()),
        Ok(None) => {}
        Err(e) => errors.push(e),
    }
    errors.extend(remove.into_iter().flat_map(|remove| remove(kernel)));
    Error::all(errors).map_or(Ok(()), Err)
}

/// Asks `plugin` whether the attachment's addresses are still assigned, serves GC, or STATUS: the request's own verb.
///
/// # Errors
/// The plugin's own error.
pub fn forward(plugin: &str, req: &Request, kernel: &mut Kernel) -> Result<()> {
    run_as(req.command, plugin, req, kernel).map(drop)
}

/// Runs a verb of the IPAM plugin.
fn run_as(command: Command, plugin: &str, req: &Request, kernel: &mut Kernel) -> Result<Option<CniResult>> {
    // One of ours that is none would ask the plugin that `ipam.type` names: itself.
    if plugins::find(plugin).is_some_and(|plugin| plugin.kind() != Kind::Ipam) {
        return Err(Error::config(format!("ipam.type: {plugin:?} assigns no addresses")));
    }
    invoke::run_as(command, plugin, req, kernel)
}
