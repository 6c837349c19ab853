//! The personalities: one trait, one static table. A new plugin is one file and one row here.

mod bandwidth;
mod bridge;
mod dhcp;
mod dummy;
pub mod firewall;
mod flannel;
mod host_device;
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
}
