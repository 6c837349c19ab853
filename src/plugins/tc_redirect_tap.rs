//! tc-redirect-tap: a tap interface beside the container's one, each sending on what arrives at the other, so that a
//! virtual machine in the container takes the interface's place: its MAC and IP addresses are told in the result under the
//! container's id. Compatible with the plugin of that name by awslabs, which firecracker-go-sdk and others read the result
//! of (their package `vmconf`).

use nix::unistd::{getegid, geteuid};

use super::keys::Key;
use super::{Kind, Plugin};
use crate::attach::container::Container;
use crate::attach::owner::{Owner, alias};
use crate::attach::undo::{Undo, or_take_back};
use crate::attach::verify::{self, difference};
use crate::attach::{Attachment, redirect};
use crate::cni::names::check_ifname;
use crate::cni::{CniResult, Code, Error, Interface, IpConfig, Request, Result, ResultExt, Version};
use crate::kernel::Kernel;
use crate::kernel::detach::remove_links;
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{AddVeth, Change, Dev, Handle, Link, SetLink, Step, VethPeer};
use crate::kernel::tun::{self, NewTap};

/// Most names of taps that are tried.
const NAMES: u32 = 1000;

/// The plugin.
pub struct TcRedirectTap;

/// What `CNI_ARGS` ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Conf {
    /// `TC_REDIRECT_TAP_NAME`; `None`: the first free one of `tap0`, `tap1`, ….
    name: Option<String>,
    /// `TC_REDIRECT_TAP_UID`; `None`: who runs the plugin.
    owner: Option<u32>,
    /// `TC_REDIRECT_TAP_GID`; `None`: the group of who runs the plugin.
    group: Option<u32>,
}

impl Conf {
    /// Other keys are other plugins', and need no `IgnoreUnknown`.
    fn new(args: &str) -> Result<Conf> {
        let fault = |msg: String| Error::new(Code::ENVIRONMENT, format!("CNI_ARGS: {msg}"));
        let mut conf = Conf::default();
        for pair in args.split(';').filter(|_| !args.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(fault(format!("invalid pair {pair:?}, expected KEY=VALUE")));
            };
            let id = || value.parse().map_err(|_| fault(format!("{key}: {value:?} is not a number")));
            match key {
                "TC_REDIRECT_TAP_NAME" if !value.is_empty() => {
                    check_ifname(value).map_err(|e| fault(format!("{key}: {value:?}: {}", e.msg())))?;
                    conf.name = Some(value.to_owned());
                }
                "TC_REDIRECT_TAP_UID" => conf.owner = Some(id()?),
                "TC_REDIRECT_TAP_GID" => conf.group = Some(id()?),
                _ => {}
            }
        }
        Ok(conf)
    }
}

impl Plugin for TcRedirectTap {
    fn name(&self) -> &'static str {
        "tc-redirect-tap"
    }

    fn kind(&self) -> Kind {
        Kind::Meta
    }

    fn about(&self) -> &'static str {
        "puts a tap interface in the place of the container's, for microVMs"
    }

    fn versions(&self) -> &'static [Version] {
        &Version::ALL[2..]
    }

    fn keys(&self) -> &'static [Key] {
        &[]
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
    }

    fn validate(&self, _req: &Request) -> Result<()> {
        Ok(())
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(&req.raw_args)?;
        let prev = req.config.prev_result()?.ok_or_else(|| {
            Error::config(
                "prevResult: missing; tc-redirect-tap must stand behind a plugin that makes an interface",
            )
        })?;
        let mut container = Container::open(req)?;
        let lock = container.netns.lock()?;
        let Some(link) = container.rtnl.link(&req.ifname)? else {
            return Err(Error::internal(format!("there is no interface {:?} in {}", req.ifname, req.netns)));
        };
        let before = redirect::targets(&mut container.rtnl, &link)?;
        if let Some(tap) = taps(&mut container.rtnl, &Attachment::of(req), &before)?.first() {
            let name = &tap.name;
            return Err(Error::internal(format!("{name} already belongs to this attachment: run DEL first")));
        }
        let result = or_take_back(kernel, |_, undo| attach(req, &conf, prev, &mut container, &link, undo));
        drop(lock);
        result
    }

    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        match Container::find(req)? {
            Some(mut container) => remove(req, &mut container, kernel.waits()),
            None => Ok(()),
        }
    }

    fn check(&self, req: &Request, _kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(&req.raw_args)?;
        let prev = verify::prev_result(req)?;
        check(req, &conf, &prev, &mut Container::open(req)?)
    }

    /// Taps are in the containers, and go with them.
    fn gc(&self, _req: &Request, _kernel: &mut Kernel) -> Result<()> {
        Ok(())
    }

    /// Tries redirection in a namespace of its own, and looks at the device for taps.
    fn status(&self, _req: &Request, _kernel: &mut Kernel) -> Result<()> {
        tun::status().and_then(|()| probe()).map_err(|e| e.with_code(Code::NOT_AVAILABLE))
    }
}

/// Makes the tap and connects it; its interface and the virtual machine's go into the result.
fn attach<'a>(
    req: &'a Request,
    conf: &Conf,
    mut result: CniResult,
    container: &mut Container,
    link: &Link,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    undo.push(move |kernel| remove(req, &mut Container::open(req)?, kernel.waits()));
    let tap = create(conf, container)?;
    let set = SetLink {
        up: Some(true),
        mtu: Some(link.mtu),
        alias: Some(alias(&Attachment::of(req), &[])),
        ..SetLink::of(tap.dev())
    };
    let mut changes = vec![Change::SetLink(set)];
    changes.extend(redirect::all(&mut container.rtnl, &tap, &link.dev(), 0, None)?);
    changes.extend(redirect::all(&mut container.rtnl, link, &tap.dev(), 0, None)?);
    if let Err(e) = container.rtnl.apply(&changes) {
        // Not to be found by its alias, perhaps.
        let _ = container.rtnl.apply(&[Change::DelLink(tap.dev())]);
        return Err(e);
    }
    let mac = |link: &Link| link.mac.map(|mac| mac.to_string()).unwrap_or_default();
    let of_machine = i64::try_from(result.interfaces.len() + 1).unwrap_or(i64::MAX);
    let is_own = |ip: &&IpConfig| {
        let index = ip.interface.and_then(|index| usize::try_from(index).ok());
        let interface = index.and_then(|index| result.interfaces.get(index));
        interface.is_some_and(|i| i.name == req.ifname && i.sandbox == req.netns)
    };
    let ips: Vec<IpConfig> = result.ips.iter().filter(is_own).cloned().collect();
    result.ips.extend(ips.into_iter().map(|ip| IpConfig { interface: Some(of_machine), ..ip }));
    for (mac, sandbox) in [(mac(&tap), &req.netns), (mac(link), &req.container_id)] {
        result.interfaces.push(Interface {
            name: tap.name.clone(),
            mac,
            sandbox: sandbox.clone(),
            ..Interface::default()
        });
    }
    Ok(result)
}

/// Makes the tap: down, under the name that was asked for or the first that is free.
fn create(conf: &Conf, container: &mut Container) -> Result<Link> {
    let make = |container: &mut Container, name: &str| {
        let tap = NewTap {
            name,
            owner: Some(conf.owner.unwrap_or_else(|| geteuid().as_raw())),
            group: Some(conf.group.unwrap_or_else(|| getegid().as_raw())),
            // Firecracker has one queue for each direction.
            multi_queue: false,
            selinux_context: None,
        };
        container.netns.enter(|| tun::create(&tap))?;
        let link = container.rtnl.link(name)?;
        link.ok_or_else(|| Error::internal(format!("{name} vanished while it was set up")))
    };
    if let Some(name) = &conf.name {
        container.must_be_free(name).context("TC_REDIRECT_TAP_NAME")?;
        return make(container, name);
    }
    for name in (0..NAMES).map(|number| format!("tap{number}")) {
        if container.rtnl.link(&name)?.is_none() {
            return make(container, &name);
        }
    }
    Err(Error::internal(format!("none of the names tap0 to tap{} is free", NAMES - 1)))
}

/// The taps of an attachment: by their alias, or, as awslabs' plugin sets none, those that the interface's traffic goes
/// to.
fn taps(rtnl: &mut Handle, of: &Attachment<'_>, targets: &[u32]) -> Result<Vec<Link>> {
    let is_own = |link: &Link| match Owner::parse(&link.alias) {
        Some(owner) => owner.is(of) && link.name != of.ifname,
        None => link.alias.is_empty() && targets.contains(&link.index),
    };
    Ok(rtnl.links(Some("tun"))?.into_iter().filter(is_own).collect())
}

/// Disconnects the interface, and removes the tap.
fn remove(req: &Request, container: &mut Container, wait: bool) -> Result<()> {
    let of = Attachment::of(req);
    let rtnl = &mut container.rtnl;
    let link = rtnl.link(&req.ifname)?;
    let targets = match &link {
        Some(link) => redirect::targets(rtnl, link)?,
        None => Vec::new(),
    };
    let taps = taps(rtnl, &of, &targets)?;
    let indexes: Vec<u32> = taps.iter().map(|tap| tap.index).collect();
    let mut errors = Vec::new();
    if let Some(link) = &link
        && !targets.is_empty()
    {
        errors.extend(redirect::stop(rtnl, link, &indexes).err());
    }
    if !taps.is_empty() {
        let devs: Vec<Dev> = taps.iter().map(Link::dev).collect();
        let outcomes = remove_links(rtnl, &devs, wait)?;
        errors.extend(outcomes.into_iter().filter_map(|outcome| outcome.unless_gone().err()));
    }
    Error::all(errors).map_or(Ok(()), Err)
}

/// Compares the tap and both redirections with what ADD made.
fn check(req: &Request, conf: &Conf, prev: &CniResult, container: &mut Container) -> Result<()> {
    let rtnl = &mut container.rtnl;
    let Some(machine) = prev.interfaces.iter().find(|i| i.sandbox == req.container_id) else {
        return Err(difference(format!(
            "prevResult has no interface of the virtual machine, in sandbox {:?}",
            req.container_id
        )));
    };
    let expected = Interface { name: machine.name.clone(), ..Interface::default() };
    let tap = verify::link(rtnl, &expected, "tun")?;
    verify::is_up(&tap)?;
    let tun = tap.tun.unwrap_or_default();
    for (what, wanted, is) in [("owner", conf.owner, tun.owner), ("group", conf.group, tun.group)] {
        if wanted.is_some() && wanted != is {
            let is = is.map_or_else(|| "any".to_owned(), |id| id.to_string());
            let name = &tap.name;
            return Err(difference(format!(
                "interface {name:?} has {what} {is}, expected {}",
                wanted.unwrap_or(0)
            )));
        }
    }
    let Some(link) = rtnl.link(&req.ifname)? else {
        return Err(difference(format!("interface {:?} is missing", req.ifname)));
    };
    for (from, to) in [(&tap, &link), (&link, &tap)] {
        if !redirect::targets(rtnl, from)?.contains(&to.index) {
            return Err(difference(format!(
                "what arrives at {} is not redirected to {}",
                from.name, to.name
            )));
        }
    }
    Ok(())
}

/// Redirects between the ends of a veth pair that nothing uses.
fn probe() -> Result<()> {
    let netns = Netns::create_unnamed()?;
    let mut rtnl = netns.enter(Handle::open)?;
    let peer = VethPeer { name: "probe1".to_owned(), ..VethPeer::default() };
    let add = Change::AddVeth(AddVeth { name: "probe0".to_owned(), peer, ..AddVeth::default() });
    let mut outcomes = rtnl.exchange(&[Step::Change(add), Step::Link(Dev::named("probe0"))])?.into_iter();
    outcomes.next().unwrap_or(Ok(None))?;
    let link = outcomes.next().unwrap_or(Ok(None))?;
    let link = link.ok_or_else(|| Error::internal("probe0 vanished while it was set up"))?;
    let changes = redirect::all(&mut rtnl, &link, &link.dev(), 0, None)?;
    let needs = "the kernel needs sch_ingress, cls_u32 and act_mirred";
    rtnl.apply(&changes).map_err(|e| e.with_details(needs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_of_others_are_theirs() {
        let conf = Conf::new(
            "IP=10.0.0.1;TC_REDIRECT_TAP_NAME=vm0;TC_REDIRECT_TAP_UID=7;TC_REDIRECT_TAP_GID=0;X=a=b",
        );
        let expected = Conf { name: Some("vm0".into()), owner: Some(7), group: Some(0) };
        assert_eq!(conf.unwrap(), expected);
        assert_eq!(Conf::new("").unwrap(), Conf::default());
    }

    #[test]
    fn what_is_not_valid_is_named() {
        for (args, msg) in [
            ("X", r#"CNI_ARGS: invalid pair "X", expected KEY=VALUE"#),
            ("TC_REDIRECT_TAP_UID=root", r#"CNI_ARGS: TC_REDIRECT_TAP_UID: "root" is not a number"#),
            ("TC_REDIRECT_TAP_GID=-1", r#"CNI_ARGS: TC_REDIRECT_TAP_GID: "-1" is not a number"#),
        ] {
            let err = Conf::new(args).unwrap_err();
            assert_eq!((err.code(), err.msg()), (Code::ENVIRONMENT, msg));
        }
        assert!(Conf::new("TC_REDIRECT_TAP_NAME=a/b").is_err());
    }
}
