//! Delegation to the IPAM plugin that `ipam.type` names (reference: main-plugins.md section 3).

use super::undo::Undo;
use crate::cni::{CniResult, Code, Command, Error, Request, Result};
use crate::invoke;
use crate::kernel::Kernel;
use crate::plugins;

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

/// Asks `plugin` for addresses. When it fails, or answers without any, its DEL is run before the error is returned
/// (CNI spec, section 4), so that nothing stays reserved; what releases the addresses when a later step fails is pushed on
/// `undo`.
///
/// # Errors
/// The plugin's own error; [`Code::INTERNAL`] `missing IP config` when it gave no address.
pub fn add<'a>(
    plugin: &'a str,
    req: &'a Request,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let result = match invoke::run_as(Command::Add, plugin, req, kernel) {
        Ok(result) => result.unwrap_or_default(),
        Err(err) => {
            // Why ADD failed matters more than that DEL, which is a precaution, failed as well.
            let _ = del(plugin, req, kernel);
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
    invoke::run_as(Command::Del, plugin, req, kernel).map(drop)
}

/// Asks `plugin` whether the attachment's addresses are still assigned, serves GC, or STATUS: the request's own verb.
///
/// # Errors
/// The plugin's own error.
pub fn forward(plugin: &str, req: &Request, kernel: &mut Kernel) -> Result<()> {
    invoke::run(plugin, req, kernel).map(drop)
}
