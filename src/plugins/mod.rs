//! The personalities: one trait, one static table. A new plugin is one file and one row here.

mod bandwidth;
mod bridge;
pub mod dhcp;
mod dummy;
pub mod firewall;
mod flannel;
pub mod host_device;
mod host_local;
mod ipvlan;
pub mod keys;
mod loopback;
mod macvlan;
pub mod portmap;
mod ptp;
mod sbr;
mod static_ipam;
mod tap;
mod tc_redirect_tap;
mod tuning;
mod vlan;
mod vrf;

use self::keys::Key;
use crate::cni::{Accepts, CniResult, Code, Command, Error, Request, Result, Version};
use crate::kernel::Kernel;
use crate::kernel::netns::Netns;
use crate::personality::Process;

/// A command of a plugin's own, as `dhcp daemon`: given the words after the plugin's name it returns the exit status, or
/// `None` when they are none of its.
pub type OwnCommand = fn(&[String], &mut Process<'_>) -> Option<i32>;

/// What a plugin is for; the order of chapters in lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Makes an interface.
    Main,
    /// Assigns addresses; called by a main plugin.
    Ipam,
    /// Changes what an earlier plugin of the list made.
    Meta,
}

impl Kind {
    /// `main`, `ipam` or `meta`, the directory names of the Go repository.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Main => "main",
            Kind::Ipam => "ipam",
            Kind::Meta => "meta",
        }
    }
}

/// Another configuration for an attachment that exists: what [`Plugin::update`] is about.
#[derive(Clone, Copy)]
pub struct Update<'a> {
    /// An ADD with the configuration as it was applied.
    pub from: &'a Request,
    /// An ADD with the configuration as it shall be. Its `prevResult` is the attachment's result, as far as it is new.
    pub to: &'a Request,
    /// Whether the two differ in what the plugin reads; otherwise its result, or something that it goes by, may have
    /// changed.
    pub is_changed: bool,
}

/// One CNI plugin. Verbs are functions from a checked [`Request`] to a result or an error: they read no environment,
/// print nothing, exit nowhere and leave the thread in the namespace it was in, so that they can serve as a process of
/// their own and as a delegate inside another one alike.
pub trait Plugin: Sync {
    /// `type` in a configuration, and the name of the symlink.
    fn name(&self) -> &'static str;

    /// What it is for.
    fn kind(&self) -> Kind;

    /// One line for lists, completions and the README's table.
    fn about(&self) -> &'static str;

    /// Protocol versions, oldest first.
    fn versions(&self) -> &'static [Version] {
        Version::ALL
    }

    /// Whether a configuration without `name` is accepted: only where the name is used for nothing.
    fn nameless(&self) -> bool {
        false
    }

    /// The keys of its configuration besides those that every plugin has (`cniVersion`, `name`, `type`, `args`,
    /// `capabilities`, `runtimeConfig`, `prevResult`, and `ipam` and `dns` of main plugins); an IPAM plugin's are those
    /// inside `ipam`.
    fn keys(&self) -> &'static [Key];

    /// The keys of `runtimeConfig` that it understands: what `capabilities` may declare.
    fn capabilities(&self) -> &'static [Key];

    /// Whether it needs the container's interface, connected: then a main plugin calls its ADD when the link is there, and
    /// its DEL before the link is removed. Others assign addresses before there is a link, and release them after.
    fn needs_link(&self) -> bool {
        false
    }

    /// What it does when it is not called as a plugin.
    fn command(&self) -> Option<OwnCommand> {
        None
    }

    /// The keys that [`Plugin::update`] can change while a container is attached, with all that is in them; `ipam` for
    /// those that the IPAM plugin has in its own list. Any other key needs a new attachment.
    fn live_keys(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether it can be put into the list of an attachment that exists (by ADD), or leave it ([`Plugin::leave`]).
    fn joins(&self) -> bool {
        false
    }

    /// What an IPAM plugin's result has by the configuration alone, whatever the address: routes and name servers.
    /// `None` when it does not say.
    ///
    /// # Errors
    /// The configuration is not valid.
    fn given(&self, _req: &Request) -> Result<Option<CniResult>> {
        Ok(None)
    }

    /// Makes an attachment that exists what the other configuration says, and nothing else: addresses stay. What is as it
    /// shall be is not touched. Half done, it can be done back: with the two configurations exchanged.
    ///
    /// # Errors
    /// [`Code::NEEDS_NEW_ATTACHMENT`] for what only DEL and ADD can change; as for ADD.
    fn update(&self, update: Update<'_>, _kernel: &mut Kernel) -> Result<CniResult> {
        Ok(update.to.config.prev_result()?.unwrap_or_default())
    }

    /// Takes the plugin out of the list of an attachment that exists; the attachment's result without it.
    ///
    /// # Errors
    /// As for DEL.
    fn leave(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        self.del(req, kernel)?;
        Ok(req.config.prev_result()?.unwrap_or_default())
    }

    /// Reads the configuration as ADD would, and touches nothing else: for `cni-all validate`.
    ///
    /// # Errors
    /// The first value that is not valid, named.
    fn validate(&self, req: &Request) -> Result<()>;

    /// ADD: attach. On error everything done is taken back.
    ///
    /// # Errors
    /// Codes of [`crate::cni::Code`].
    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult>;

    /// DEL: detach. Succeeds when there is nothing left, whatever the reason; tries every step and reports all
    /// failures together.
    ///
    /// # Errors
    /// What could not be removed although it is there.
    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()>;

    /// CHECK: is everything as ADD made it?
    ///
    /// # Errors
    /// The first difference, with [`crate::cni::Code::CHECK_FAILED`].
    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()>;

    /// GC: remove what belongs to this network and to no attachment of `cni.dev/valid-attachments`.
    ///
    /// # Errors
    /// All failures together; everything else has been removed.
    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()>;

    /// STATUS: could ADD be served now?
    ///
    /// # Errors
    /// The reason why not, with [`crate::cni::Code::NOT_AVAILABLE`] or [`crate::cni::Code::LIMITED_CONNECTIVITY`].
    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()>;
}

/// Every plugin, in order of name.
pub static PLUGINS: &[&dyn Plugin] = &[
    &bandwidth::Bandwidth,
    &bridge::Bridge,
    &dhcp::Dhcp,
    &dummy::Dummy,
    &firewall::Firewall,
    &flannel::Flannel,
    &host_device::HostDevice,
    &host_local::HostLocal,
    &ipvlan::Ipvlan,
    &loopback::Loopback,
    &macvlan::Macvlan,
    &portmap::Portmap,
    &ptp::Ptp,
    &sbr::Sbr,
    &static_ipam::Static,
    &tap::Tap,
    &tc_redirect_tap::TcRedirectTap,
    &tuning::Tuning,
    &vlan::Vlan,
    &vrf::Vrf,
];

/// The plugin of that exact name.
pub fn find(name: &str) -> Option<&'static dyn Plugin> {
    PLUGINS.iter().copied().find(|p| p.name() == name)
}

/// What `plugin` accepts, for [`Request::new`].
pub fn accepts(plugin: &dyn Plugin) -> Accepts {
    Accepts { versions: plugin.versions(), nameless: plugin.nameless() }
}

/// Refuses ADD and DEL that would work on the namespace this process is in, before anything is touched. (The Go library
/// finds that out when the work is done.) To be asked once for each call from outside, not for delegates.
///
/// # Errors
/// [`Code::INVALID_NETNS`].
pub fn refuse_own_netns(req: &Request) -> Result<()> {
    if !matches!(req.command, Command::Add | Command::Del) || req.netns_override || req.netns.is_empty() {
        return Ok(());
    }
    // A path that cannot be opened is the plugin's business: it may not need the namespace.
    match Netns::find(&req.netns).and_then(|found| found.map_or(Ok(false), |ns| ns.is_current())) {
        Ok(true) => {
            let msg = "plugin's netns and netns from CNI_NETNS should not be the same";
            Err(Error::new(Code::INVALID_NETNS, msg).with_details(format!("CNI_NETNS={}", req.netns)))
        }
        _ => Ok(()),
    }
}

/// Runs the verb that the request names. ADD gives a result, the others nothing.
///
/// # Errors
/// Those of the verb.
pub fn call(plugin: &dyn Plugin, req: &Request, kernel: &mut Kernel) -> Result<Option<CniResult>> {
    match req.command {
        Command::Add => plugin.add(req, kernel).map(Some),
        Command::Del => plugin.del(req, kernel).map(|()| None),
        Command::Check => plugin.check(req, kernel).map(|()| None),
        Command::Gc => plugin.gc(req, kernel).map(|()| None),
        Command::Status => plugin.status(req, kernel).map(|()| None),
        Command::Version => Err(Error::internal("VERSION is answered before a request is made")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_sorted_and_described_in_one_line() {
        assert!(
            PLUGINS.is_sorted_by(|a, b| a.name() < b.name()),
            "PLUGINS must be in order of name, once each"
        );
        for plugin in PLUGINS {
            let about = plugin.about();
            assert!(!about.is_empty() && about.len() <= 90 && !about.contains('\n'), "{}", plugin.name());
            assert!(
                !about.ends_with('.') && plugin.versions().contains(&Version::LATEST),
                "{}",
                plugin.name()
            );
        }
    }
    #[test]
    fn the_readme_lists_every_plugin_as_the_table_does() {
        let readme = include_str!("../../README.md");
        for plugin in PLUGINS {
            let row = format!("| {} | {} | {} |", plugin.name(), plugin.kind().as_str(), plugin.about());
            assert!(readme.contains(&row), "README.md lacks the row {row:?}");
        }
    }

    #[test]
    fn readme_and_help_tell_which_keys_can_change() {
        let readme = include_str!("../../README.md");
        let help = include_str!("../cli/verbs/update.rs");
        for plugin in PLUGINS.iter().filter(|plugin| !plugin.live_keys().is_empty()) {
            let keys: Vec<String> = plugin.live_keys().iter().map(|key| format!("`{key}`")).collect();
            let joins = if plugin.joins() { "joins and leaves; " } else { "" };
            let row = format!("| {} | {joins}{} |", plugin.name(), keys.join(", "));
            assert!(readme.contains(&row), "README.md lacks the row {row:?}");
            if plugin.kind() != Kind::Ipam {
                assert!(
                    help.contains(plugin.name()),
                    "cni-all update --help does not name {}",
                    plugin.name()
                );
            }
        }
    }

    #[test]
    fn keys_that_can_change_are_keys() {
        for plugin in PLUGINS {
            for key in plugin.live_keys() {
                let known = |keys: &[Key], name: &str| keys.iter().any(|known| known.name == name);
                let is_key = match key.split_once('.') {
                    Some((_, argument)) => known(plugin.capabilities(), argument),
                    None => known(plugin.keys(), key) || ["dns", "ipam"].contains(key),
                };
                assert!(is_key, "{}: {key}", plugin.name());
            }
        }
    }
}
