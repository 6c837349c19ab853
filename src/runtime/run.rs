//! The verbs over a whole list: ADD forwards, DEL backwards (CNI spec, section 3; reference: core.md 3.2).

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::chain::configuration;
use super::conflist::{NetworkList, plugin_type};
use crate::cni::error::ResultExt;
use crate::cni::json::Value;
use crate::cni::{Accepts, CniResult, Command, Environment, Error, Request, Result, Version};
use crate::invoke;
use crate::kernel::Kernel;
use crate::plugins;

/// One container's interface in one network.
#[derive(Clone, Debug)]
pub struct Attachment<'a> {
    /// The network.
    pub network: &'a NetworkList,
    /// The container's id.
    pub container_id: &'a str,
    /// Path of its network namespace.
    pub netns: &'a str,
    /// The interface's name inside.
    pub ifname: &'a str,
    /// Where plugins are looked for.
    pub path: &'a PluginPath,
}

/// `CNI_PATH`: directories separated by colons.
#[derive(Clone, Debug)]
pub struct PluginPath {
    /// For plugins that are built in, as the IPAM plugin that they delegate to, if any.
    pub built_in: String,
    /// For all others.
    pub all: String,
}

impl PluginPath {
    fn of(&self, plugin: &Value) -> &str {
        let is_built_in = |name: String| plugins::find(&name).is_some();
        let ipam = plugin.get("ipam").and_then(|ipam| plugin_type(&ipam).ok());
        match plugin_type(plugin).is_ok_and(is_built_in) && ipam.is_none_or(is_built_in) {
            true => &self.built_in,
            false => &self.all,
        }
    }
}

/// Attaches: every plugin in order, each with the result of the one before. The result is the last plugin's.
///
/// After a failure the plugins that succeeded, and possibly parts of the one that did not, are still attached: call
/// [`del`].
///
/// # Errors
/// The first failure, naming network and plugin.
pub fn add(attachment: &Attachment<'_>, kernel: &mut Kernel) -> Result<CniResult> {
    let mut result = None;
    for plugin in &attachment.network.plugins {
        result = call(attachment, Command::Add, plugin, result.as_ref(), kernel)?;
    }
    Ok(result.unwrap_or_default())
}

/// Detaches: every plugin in reverse order, with the result of ADD where the version knows that and there is one.
///
/// # Errors
/// All failures together; every plugin was called.
pub fn del(attachment: &Attachment<'_>, result: Option<&CniResult>, kernel: &mut Kernel) -> Result<()> {
    let version = Version::from_text(&attachment.network.version).unwrap_or(Version::LATEST);
    let result = result.filter(|_| version >= Version::V0_4_0);
    let plugins = attachment.network.plugins.iter().rev();
    let failures = plugins.filter_map(|plugin| call(attachment, Command::Del, plugin, result, kernel).err());
    Error::all(failures.collect()).map_or(Ok(()), Err)
}

/// One plugin's verb. A panic is an error like any other: what was attached must still be detached.
fn call(
    attachment: &Attachment<'_>,
    command: Command,
    plugin: &Value,
    prev_result: Option<&CniResult>,
    kernel: &mut Kernel,
) -> Result<Option<CniResult>> {
    let name = &attachment.network.name;
    let plugin_type = plugin_type(plugin).context(format_args!("network {name}"))?;
    let run = || {
        let req = request(attachment, command, plugin, prev_result)?;
        invoke::run(&plugin_type, &req, kernel)
    };
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Error::internal("panicked, see standard error")))
        .context(format_args!("network {name}: plugin {plugin_type} ({command})"))
}

fn request(
    attachment: &Attachment<'_>,
    command: Command,
    plugin: &Value,
    prev_result: Option<&CniResult>,
) -> Result<Request> {
    let network = attachment.network;
    let version = Version::from_text(&network.version).unwrap_or(Version::LATEST);
    let prev_result = prev_result.map(|result| result.to_json(version)).transpose()?;
    let stdin = configuration(network, plugin, prev_result.as_deref())?;
    let environment = Environment::read(|name| {
        let value = match name {
            "CNI_COMMAND" => command.as_str(),
            "CNI_CONTAINERID" => attachment.container_id,
            "CNI_NETNS" => attachment.netns,
            "CNI_IFNAME" => attachment.ifname,
            "CNI_PATH" => attachment.path.of(plugin),
            _ => return None,
        };
        Some(value.to_owned())
    })?;
    // Which versions the plugin speaks is known where it is found: `invoke::run` asks.
    Request::new(environment, stdin, Accepts { versions: Version::ALL, nameless: false })
}
