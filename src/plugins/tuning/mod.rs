//! tuning: kernel settings of the container's namespace and attributes of its interface
//! (reference: ipam-and-meta.md section 8).

mod allowlist;
mod backup;
mod conf;
mod update;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use self::backup::Backup;
use self::conf::{Conf, Sysctl};
use super::keys::{self, Key};
use super::{Kind, Plugin, Update};
use crate::attach::container::Container;
use crate::attach::undo::{Undo, or_take_back};
use crate::attach::verify::{self, difference};
use crate::attach::{Attachment, state};
use crate::cni::{CniResult, Code, Error, Request, Result, ResultExt};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{Change, Link, SetLink, Step};
use crate::kernel::sysctl;

/// The plugin.
pub struct Tuning;

impl Plugin for Tuning {
    fn name(&self) -> &'static str {
        "tuning"
    }

    fn kind(&self) -> Kind {
        Kind::Meta
    }

    fn about(&self) -> &'static str {
        "sets kernel settings and attributes of the container's interface"
    }

    fn keys(&self) -> &'static [Key] {
        conf::KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[keys::MAC]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &["sysctl", "mtu", "promisc", "allmulti", "txQLen"]
    }

    fn update(&self, update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        update::update(update, kernel)
    }

    fn validate(&self, req: &Request) -> Result<()> {
        conf::data_dir(req)?;
        Conf::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        let dir = conf::data_dir(req)?;
        let mut result = verify::prev_result(req)?;
        allowlist::check(&conf.sysctls)?;
        let mut container = Container::open(req)?;
        or_take_back(kernel, |_, undo| {
            set_sysctls(req, &conf.sysctls, &container, undo)?;
            if conf.changes_link() {
                set_link(req, &conf, &mut container, &backup::path(&dir, &Attachment::of(req)), undo)?;
            }
            Ok(())
        })?;
        tell(&mut result, req, &conf);
        Ok(result)
    }

    /// Gives the interface its attributes back. Settings stay, as with the Go plugin: they go with the namespace.
    ///
    /// That the kernel refuses a value is no failure: the list's DEL would end here, and the interface, which mostly is
    /// removed next, would stay.
    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let path = backup::path(&conf::data_dir(req)?, &Attachment::of(req));
        if let Some(backup) = Backup::read(&path)?
            && let Some(mut container) = Container::find(req)?
            && let Some(link) = container.rtnl.link(&req.ifname)?
            && container.is_own(&link, req, kernel.host()?)?.unwrap_or_else(|| backup.may_be_of(&link))
            && restore(&mut container, &link, &backup).is_err()
        {
            return Ok(());
        }
        state::remove(&path)
    }

    fn check(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        verify::prev_result(req)?;
        let mut container = Container::open(req)?;
        container.netns.enter(|| conf.sysctls.iter().try_for_each(check_sysctl))?;
        if !conf.changes_link() {
            return Ok(());
        }
        let link = container.rtnl.link(&req.ifname)?;
        let link = link.ok_or_else(|| difference(format!("interface {:?} is missing", req.ifname)))?;
        match link_difference(&link, &conf) {
            Some(what) => Err(difference(format!("interface {:?} {what}", link.name))),
            None => Ok(()),
        }
    }

    /// Backups of attachments that are not valid any more are removed: their interfaces are gone, or not ours to change.
    fn gc(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let Some(valid) = req.config.valid_attachments()? else { return Ok(()) };
        let dir = conf::data_dir(req)?;
        let network = req.config.name.as_str();
        let valid: Vec<PathBuf> = valid
            .iter()
            .map(|v| {
                backup::path(&dir, &Attachment { network, container_id: &v.container_id, ifname: &v.ifname })
            })
            .collect();
        let mut errors = Vec::new();
        for path in state::list(&dir)?.into_iter().filter(|path| !valid.contains(path)) {
            match Backup::read(&path) {
                Ok(Some(backup)) if backup.is_on(network) => errors.extend(state::remove(&path).err()),
                Ok(_) => {}
                Err(e) => errors.push(e),
            }
        }
        Error::all(errors).map_or(Ok(()), Err)
    }

    fn status(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        allowlist::check(&conf.sysctls).map_err(|e| e.with_code(Code::NOT_AVAILABLE))
    }
}

/// The file of a setting below /proc/sys: of the names it can have, one that exists.
fn file(sysctl: &Sysctl) -> Result<&str> {
    let exists = |path: &&String| Path::new("/proc/sys").join(path).exists();
    let found = sysctl.paths.iter().find(exists).or(sysctl.paths.first());
    found.map(String::as_str).ok_or_else(|| Error::internal(format!("sysctl: {:?} has no file", sysctl.name)))
}

/// What a setting is, however long.
fn value(path: &str) -> Result<String> {
    let file = format!("/proc/sys/{path}");
    let text = fs::read_to_string(&file).map_err(|e| Error::io(format_args!("read {file}"), &e))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Writes the settings in their order.
fn set_sysctls<'a>(
    req: &'a Request,
    sysctls: &[Sysctl],
    container: &Container,
    undo: &mut Undo<'a>,
) -> Result<()> {
    let mut former: Vec<(String, String)> = Vec::with_capacity(sysctls.len());
    let written = container.netns.enter(|| {
        for sysctl in sysctls {
            let path = file(sysctl).context("sysctl")?;
            // Some settings can only be written (net.ipv4.route.flush): there is nothing to go back to.
            let before = value(path).ok();
            sysctl::write(path, &sysctl.value).context(format_args!("sysctl: {}", sysctl.name))?;
            former.extend(before.map(|value| (path.to_owned(), value)));
        }
        Ok(())
    });
    undo.push(move |_| {
        let Some(container) = Container::find(req)? else { return Ok(()) };
        container.netns.enter(|| {
            let restored = former.iter().rev().map(|(path, value)| sysctl::write(path, value));
            Error::all(restored.filter_map(Result::err).collect()).map_or(Ok(()), Err)
        })
    });
    written
}

/// Notes the interface's attributes in the backup, and changes them.
fn set_link<'a>(
    req: &'a Request,
    conf: &Conf,
    container: &mut Container,
    path: &Path,
    undo: &mut Undo<'a>,
) -> Result<()> {
    let link = container.rtnl.link(&req.ifname)?;
    let link = link.ok_or_else(|| {
        Error::internal(format!("there is no interface {:?} in {} to tune", req.ifname, req.netns))
    })?;
    let before = Backup::of(&link, conf, &req.config.name);
    let former = before.clone().save(path)?;
    let path = path.to_owned();
    let there = link.clone();
    undo.push(move |_| {
        if let Some(mut container) = Container::find(req)? {
            restore(&mut container, &there, &before)?;
        }
        match former {
            Some(former) => former.write(&path),
            None => state::remove(&path),
        }
    });
    container.rtnl.apply(&changes(&link, conf))
}

/// What gives the interface the configured attributes, each change for itself, so that a refusal names its own.
fn changes(link: &Link, conf: &Conf) -> Vec<Change> {
    let set = || SetLink::of(link.dev());
    let changes = [
        conf.mac.map(|mac| SetLink { mac: Some(mac), ..set() }),
        conf.promisc.then(|| SetLink { promisc: Some(true), ..set() }),
        conf.mtu.map(|mtu| SetLink { mtu: Some(mtu), ..set() }),
        conf.allmulti.map(|on| SetLink { allmulti: Some(on), ..set() }),
        conf.tx_queue.map(|length| SetLink { tx_queue: Some(length), ..set() }),
    ];
    changes.into_iter().flatten().map(Change::SetLink).collect()
}

/// Gives an interface what a backup says; every value is tried.
fn restore(container: &mut Container, link: &Link, backup: &Backup) -> Result<()> {
    let steps: Vec<Step> = backup.changes(&link.dev()).into_iter().map(Step::Change).collect();
    let outcomes = container.rtnl.exchange(&steps)?;
    let errors = outcomes.into_iter().filter_map(|outcome| outcome.unless_gone().err());
    Error::all(errors.collect()).map_or(Ok(()), Err)
}

/// Enters the changes in the result: in the container's interface, or when no interface has a sandbox (as some earlier
/// plugins leave it) in those of that name.
fn tell(result: &mut CniResult, req: &Request, conf: &Conf) {
    let named = |name: &str| name == req.ifname;
    let sandboxed = result.interfaces.iter().any(|i| named(&i.name) && !i.sandbox.is_empty());
    for interface in &mut result.interfaces {
        if !named(&interface.name) || (sandboxed && interface.sandbox.is_empty()) {
            continue;
        }
        if let Some(mac) = conf.mac {
            interface.mac = mac.to_string();
        }
        if let Some(mtu) = conf.mtu {
            interface.mtu = i64::from(mtu);
        }
    }
}

/// Compares a setting with what it was set to, unless it can only be written; white space between several values does not
/// count.
fn check_sysctl(sysctl: &Sysctl) -> Result<()> {
    let path = file(sysctl)?;
    let mode =
        fs::metadata(Path::new("/proc/sys").join(path)).map_or(0o444, |meta| meta.permissions().mode());
    if mode & 0o444 == 0 {
        return Ok(());
    }
    let found = value(path)?;
    match found.split_whitespace().eq(sysctl.value.split_whitespace()) {
        true => Ok(()),
        false => Err(difference(format!("sysctl {} is {found:?}, expected {:?}", sysctl.name, sysctl.value))),
    }
}

/// The first attribute that is not as configured, as the end of a sentence. Promiscuous mode may be somebody else's: that
/// it is on without having been asked for is none.
fn link_difference(link: &Link, conf: &Conf) -> Option<String> {
    let on_off = |on: bool| if on { "on" } else { "off" };
    let mac = |mac: Option<crate::kernel::rtnl::Mac>| mac.map_or_else(String::new, |mac| mac.to_string());
    if conf.mac.is_some() && link.mac != conf.mac {
        return Some(format!("has MAC {}, expected {}", mac(link.mac), mac(conf.mac)));
    }
    if conf.promisc && !link.is_promisc() {
        return Some("is not promiscuous".to_owned());
    }
    if let Some(mtu) = conf.mtu.filter(|mtu| link.mtu != *mtu) {
        return Some(format!("has MTU {}, expected {mtu}", link.mtu));
    }
    if let Some(allmulti) = conf.allmulti.filter(|on| link.is_allmulti() != *on) {
        return Some(format!("has allmulticast {}, expected {}", on_off(!allmulti), on_off(allmulti)));
    }
    let tx_queue = conf.tx_queue.filter(|length| link.tx_queue != *length);
    tx_queue.map(|length| format!("has a transmit queue of {}, expected {length}", link.tx_queue))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attribute_that_differs_is_named() {
        let link =
            Link { mac: "0a:58:0a:16:00:02".parse().ok(), mtu: 1500, tx_queue: 1000, ..Link::default() };
        let named = |conf: Conf| link_difference(&link, &conf).unwrap_or_default();
        assert_eq!(
            named(Conf { mac: link.mac, mtu: Some(1500), tx_queue: Some(1000), ..Conf::default() }),
            ""
        );
        let mac = "0a:58:0a:16:00:03".parse().ok();
        assert_eq!(
            named(Conf { mac, ..Conf::default() }),
            "has MAC 0a:58:0a:16:00:02, expected 0a:58:0a:16:00:03"
        );
        assert_eq!(named(Conf { promisc: true, ..Conf::default() }), "is not promiscuous");
        assert_eq!(named(Conf { mtu: Some(9000), ..Conf::default() }), "has MTU 1500, expected 9000");
        assert_eq!(
            named(Conf { allmulti: Some(true), ..Conf::default() }),
            "has allmulticast off, expected on"
        );
        assert_eq!(
            named(Conf { tx_queue: Some(0), ..Conf::default() }),
            "has a transmit queue of 1000, expected 0"
        );
    }
}
