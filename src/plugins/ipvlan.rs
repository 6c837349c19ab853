//! ipvlan: a link that shares MAC address and link of the host, told apart by its IP addresses (reference:
//! main-plugins.md section 14). Without `ipam` it takes the addresses that an earlier plugin of the list was given.

use serde::Deserialize;

use super::keys::{self, Key, Shape, key};
use super::{Kind, Plugin, Update};
use crate::attach::ipam;
use crate::attach::sublink::conf::{Conf, HOST_SHIM, LINK_CONT_NS, LINK_IN_CONTAINER, MASTER};
use crate::attach::sublink::{self, Addresses, Spec, master};
use crate::cni::{CniResult, Command, Error, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{IpvlanMode, SubKind};

const KEYS: &[Key] = &[
    MASTER,
    key(
        "mode",
        Shape::OneOf(&["l2", "l3", "l3s"]),
        "l2 switches; l3 and l3s route through the host, l3s through its netfilter hooks; default: l2",
    ),
    keys::MTU,
    LINK_IN_CONTAINER,
    LINK_CONT_NS,
    HOST_SHIM,
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    mode: String,
}

/// # Errors
/// `mode` is not valid.
fn mode(req: &Request) -> Result<IpvlanMode> {
    let wire: Wire = req.config.read()?;
    let found = match wire.mode.as_str() {
        "" => Some(IpvlanMode::L2),
        mode => IpvlanMode::ALL.into_iter().find(|(name, _)| *name == mode).map(|(_, mode)| mode),
    };
    found.ok_or_else(|| Error::config(format!("mode: {:?} is not one of l2, l3, l3s", wire.mode)))
}

/// # Errors
/// A key or value that is not valid, named.
fn spec(req: &Request) -> Result<Spec> {
    let mode = mode(req)?;
    let mut conf = Conf::new(req)?;
    // CHECK gets the final result, in which the master cannot be told from what the list made after it.
    if conf.master.is_none() && req.command == Command::Add {
        conf.master = master::of_prev_result(req)?;
    }
    let given = req.config.prev_result()?.filter(|prev| !prev.ips.is_empty());
    let addresses = match (&conf.ipam, given) {
        (None, Some(prev)) => Addresses::Given(prev),
        _ => {
            Addresses::Ipam(conf.need_ipam("ipvlan, unless an earlier plugin of the list gives addresses,")?)
        }
    };
    if let (Addresses::Ipam(plugin), true) = (&addresses, mode != IpvlanMode::L2) {
        ipam::must_not_need_link(plugin, "an ipvlan of this mode passes no broadcasts (mode: \"l2\" does)")?;
    }
    Ok(Spec { kind: SubKind::Ipvlan { mode }, conf, mac: None, addresses })
}

/// The plugin.
pub struct Ipvlan;

impl Plugin for Ipvlan {
    fn name(&self) -> &'static str {
        "ipvlan"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "gives the container a link that shares MAC address and link of the host"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &["dns", "ipam"]
    }

    fn update(&self, update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        sublink::update(update, &spec(update.from)?, &spec(update.to)?, kernel)
    }

    fn validate(&self, req: &Request) -> Result<()> {
        // Whether it needs an IPAM plugin is known when the plugins before it have run.
        mode(req)?;
        Conf::new(req).map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        sublink::add(req, &spec(req)?, kernel)
    }

    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        sublink::del(req, self.name(), kernel)
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        sublink::check(req, &spec(req)?, kernel)
    }

    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        sublink::gc(req, self.name(), kernel)
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        sublink::status(req, &spec(req)?, kernel)
    }
}
