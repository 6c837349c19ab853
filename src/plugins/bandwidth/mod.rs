//! bandwidth: limits what a container sends and receives, at the host's end of its veth pair (reference:
//! ipam-and-meta.md section 7). Names and numbers are the Go plugin's, so that either can check and remove the other's.

mod conf;
mod links;
mod shape;
mod update;

use nix::errno::Errno;

use self::conf::{Limit, Limits, Subnets};
use self::shape::Remote;
use super::keys::{Key, Shape, key};
use super::{Kind, Plugin, Update};
use crate::attach::container::Container;
use crate::attach::owner::alias;
use crate::attach::undo::{Undo, or_take_back};
use crate::attach::verify::{self, difference};
use crate::attach::{Attachment, redirect};
use crate::cni::{CniResult, Code, Error, Interface, Request, Result, ResultExt, Version};
use crate::kernel::Kernel;
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::tc::AddIfb;
use crate::kernel::rtnl::{Change, Dev, Handle, Link, SetLink, Step};

/// Packets that wait in a class without limit: the length that links have by default.
const CLASS_QUEUE: u32 = 1000;

const RATE_MAX: i64 = i64::MAX;
const BURST_MAX: i64 = 8 * u32::MAX as i64 - 1;

/// The keys, at top level and in `runtimeConfig.bandwidth`.
const LIMITS: &[Key] = &[
    key(
        "ingressRate",
        Shape::Int(0, RATE_MAX),
        "bits per second towards the container; default: 0, no limit",
    ),
    key("ingressBurst", Shape::Int(0, BURST_MAX), "bits towards the container at once; needed with the rate"),
    key("egressRate", Shape::Int(0, RATE_MAX), "bits per second from the container; default: 0, no limit"),
    key("egressBurst", Shape::Int(0, BURST_MAX), "bits from the container at once; needed with the rate"),
    key("shapedSubnets", Shape::List(&Shape::Cidr), "limit only traffic with these networks"),
    key("unshapedSubnets", Shape::List(&Shape::Cidr), "limit all traffic but that with these networks"),
];

/// The plugin.
pub struct Bandwidth;

impl Plugin for Bandwidth {
    fn name(&self) -> &'static str {
        "bandwidth"
    }

    fn kind(&self) -> Kind {
        Kind::Meta
    }

    fn about(&self) -> &'static str {
        "limits what the container sends and receives"
    }

    fn versions(&self) -> &'static [Version] {
        &Version::ALL[2..]
    }

    fn keys(&self) -> &'static [Key] {
        LIMITS
    }

    fn capabilities(&self) -> &'static [Key] {
        const BANDWIDTH: Key =
            key("bandwidth", Shape::Object(LIMITS), "limits; not used if the configuration itself has any");
        &[BANDWIDTH]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &[
            "runtimeConfig.bandwidth",
            "ingressRate",
            "ingressBurst",
            "egressRate",
            "egressBurst",
            "shapedSubnets",
            "unshapedSubnets",
        ]
    }

    fn joins(&self) -> bool {
        true
    }

    fn update(&self, update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        update::update(update, kernel)
    }

    fn leave(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        update::leave(req, kernel)
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Limits::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let limits = Limits::new(req)?;
        let mut result = req.config.prev_result()?.ok_or_else(|| {
            Error::config("prevResult: missing; bandwidth must stand behind a plugin that makes a veth pair")
        })?;
        if limits.is_none() {
            return Ok(result);
        }
        let mut container = Container::open(req)?;
        let end = links::host_end(&req.ifname, &result, &mut container, kernel.host()?)?;
        // What an earlier ADD set, with other limits perhaps.
        links::remove(req, std::slice::from_ref(&end), kernel)?;
        let ifb = or_take_back(kernel, |kernel, undo| set(req, &limits, &end, kernel, undo))?;
        tell(&mut result, ifb.as_ref());
        Ok(result)
    }

    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let mut errors = Vec::new();
        let ends = links::host_ends(req, kernel).unwrap_or_else(|e| {
            errors.push(e);
            Vec::new()
        });
        errors.extend(links::remove(req, &ends, kernel).err());
        Error::all(errors).map_or(Ok(()), Err)
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let limits = Limits::new(req)?;
        let prev = verify::prev_result(req)?;
        if limits.is_none() {
            return Ok(());
        }
        let mut container = Container::open(req)?;
        let end = links::host_end(&req.ifname, &prev, &mut container, kernel.host()?)
            .map_err(|e| e.with_code(Code::CHECK_FAILED))?;
        check(req, &limits, &end, kernel.host()?)
    }

    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        match req.config.valid_attachments()? {
            Some(valid) => links::collect(&req.config.name, &valid, kernel),
            None => Ok(()),
        }
    }

    /// Tries everything that ADD does in a namespace of its own.
    fn status(&self, req: &Request, _kernel: &mut Kernel) -> Result<()> {
        let limits = Limits::new(req)?;
        probe(&limits).map_err(|e| lacking(e).with_code(Code::NOT_AVAILABLE))
    }
}

/// Enters the link that carries what the container sends in the result.
fn tell(result: &mut CniResult, ifb: Option<&Link>) {
    let told = |ifb: &&Link| result.interfaces.iter().any(|i| i.name == ifb.name && i.sandbox.is_empty());
    if let Some(ifb) = ifb.filter(|ifb| !told(ifb)) {
        result.interfaces.push(Interface {
            name: ifb.name.clone(),
            mac: ifb.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            ..Interface::default()
        });
    }
}

/// Sets the limits at the host's end; the link that carries what the container sends, if that is limited.
fn set<'a>(
    req: &'a Request,
    limits: &Limits,
    end: &Link,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<Option<Link>> {
    let made = end.clone();
    undo.push(move |kernel| links::remove(req, &[made], kernel));
    let rtnl = kernel.host()?;
    let mut changes = Vec::new();
    if let Some(limit) = limits.ingress {
        changes.extend(shape::limit(&end.dev(), limit, &limits.subnets, Remote::Source));
    }
    let ifb = match limits.egress {
        Some(limit) => {
            Some(set_egress(&Attachment::of(req), limit, &limits.subnets, end, rtnl, &mut changes)?)
        }
        None => None,
    };
    rtnl.apply(&changes).map_err(lacking)?;
    Ok(ifb)
}

/// Makes the link that carries what the container sends; what limits it, and sends that through it, goes to `changes`.
fn set_egress(
    of: &Attachment<'_>,
    limit: Limit,
    subnets: &Subnets,
    end: &Link,
    rtnl: &mut Handle,
    changes: &mut Vec<Change>,
) -> Result<Link> {
    let queue = if *subnets == Subnets::All { 0 } else { CLASS_QUEUE };
    let link = add_ifb(rtnl, &links::ifb_names(of), end.mtu, queue)?;
    // The queue first: changing that of a link which is up waits for packets under way.
    changes.extend(shape::limit(&link.dev(), limit, subnets, Remote::Destination));
    let named = SetLink { up: Some(true), alias: Some(alias(of, &[])), ..SetLink::of(link.dev()) };
    changes.push(Change::SetLink(named));
    changes.extend(redirect::all(rtnl, end, &link.dev(), 1, Some(shape::UNSHAPED))?);
    Ok(link)
}

/// Makes the link under the first name that is free. Two interfaces of a container on one network want the same first.
fn add_ifb(rtnl: &mut Handle, names: &[String], mtu: u32, queue: u32) -> Result<Link> {
    let mut refused = None;
    for name in names {
        let add = Change::AddIfb(AddIfb { name: name.clone(), mtu, queue });
        let mut outcomes = rtnl.exchange(&[Step::Change(add), Step::Link(Dev::named(name))])?.into_iter();
        let (added, link) = (outcomes.next().unwrap_or(Ok(None)), outcomes.next().unwrap_or(Ok(None)));
        match (added, link?) {
            (Ok(_), Some(link)) => return Ok(link),
            (Ok(_), None) => {
                return Err(Error::internal(format!("{name} vanished while it was being set up")));
            }
            (Err(e), _) if e.is_exists() => refused = Some(e),
            (Err(e), _) => return Err(lacking(e)),
        }
    }
    Err(refused.unwrap_or_else(|| Error::internal("no name for an ifb link")))
}

/// Names what the kernel may lack, where its answer says that it does not know a kind of link, queue, filter or action.
fn lacking(err: Error) -> Error {
    match err.errno() {
        Some(Errno::EOPNOTSUPP | Errno::ENOENT) => {
            let details = "the kernel needs CONFIG_IFB, CONFIG_NET_SCH_TBF, CONFIG_NET_SCH_INGRESS, \
                CONFIG_NET_CLS_U32, CONFIG_NET_CLS_ACT and CONFIG_NET_ACT_MIRRED, and CONFIG_NET_SCH_HTB for subnets";
            err.with_code(Code::UNSUPPORTED_FIELD).with_details(details)
        }
        _ => err,
    }
}

fn check(req: &Request, limits: &Limits, end: &Link, rtnl: &mut Handle) -> Result<()> {
    if let Some(limit) = limits.ingress {
        shape::check(rtnl, end, limit, &limits.subnets, Remote::Source).context("ingress")?;
    }
    let Some(limit) = limits.egress else { return Ok(()) };
    let targets = redirect::targets(rtnl, end)?;
    let candidates = links::ifbs(rtnl, &Attachment::of(req))?;
    let Some(ifb) = candidates.iter().find(|ifb| targets.contains(&ifb.index)) else {
        let names: Vec<&str> = candidates.iter().map(|ifb| ifb.name.as_str()).collect();
        return Err(difference(match names.as_slice() {
            [] => format!("egress: the ifb link {:?} is missing", links::ifb_names(&Attachment::of(req))[0]),
            names => format!(
                "egress: what arrives at {} is not redirected to {}: it is not limited",
                end.name,
                names.join(" or ")
            ),
        }));
    };
    verify::is_up(ifb).context("egress")?;
    shape::check(rtnl, ifb, limit, &limits.subnets, Remote::Destination).context("egress")
}

/// Sets limits on a link that nothing uses.
fn probe(limits: &Limits) -> Result<()> {
    let netns = Netns::create_unnamed()?;
    let mut rtnl = netns.enter(Handle::open)?;
    let some = Limit { rate: 1_000_000, burst: 10_000 };
    let link = add_ifb(&mut rtnl, &["probe0".to_owned()], 1500, 0)?;
    let dev = link.dev();
    let mut changes = shape::limit(&dev, some, &limits.subnets, Remote::Source);
    changes.extend(redirect::all(&mut rtnl, &link, &dev, 1, Some(shape::UNSHAPED))?);
    rtnl.apply(&changes)
}
