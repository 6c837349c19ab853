//! macvlan: a link with a MAC address of its own on a link of the host (reference: main-plugins.md section 13).

use serde::Deserialize;

use super::keys::{self, Key, Shape, key};
use super::{Kind, Plugin, Update};
use crate::attach::mac;
use crate::attach::sublink::conf::{Conf, HOST_SHIM, LINK_CONT_NS, LINK_IN_CONTAINER, MASTER};
use crate::attach::sublink::{self, Addresses, Spec};
use crate::cni::{CniResult, Error, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{MacvlanMode, SubKind};

const KEYS: &[Key] = &[
    MASTER,
    key(
        "mode",
        Shape::OneOf(&["bridge", "private", "vepa", "passthru"]),
        "what passes between containers on one master; default: bridge",
    ),
    keys::MTU,
    key("mac", Shape::Mac, "MAC address of the interface; CNI_ARGS and runtimeConfig go first"),
    LINK_IN_CONTAINER,
    LINK_CONT_NS,
    HOST_SHIM,
    key(
        "bcqueuelen",
        Shape::Int(0, u32::MAX as i64),
        "broadcast frames that may wait for delivery; default: 0, the kernel's 1000",
    ),
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "lowercase")]
struct Wire {
    mode: String,
    mac: String,
    /// Frames; 0: the kernel's default.
    bcqueuelen: u32,
}

/// # Errors
/// A key or value that is not valid, named.
fn spec(req: &Request) -> Result<Spec> {
    let wire: Wire = req.config.read()?;
    let conf = Conf::new(req)?;
    let mode = match wire.mode.as_str() {
        "" => Some(MacvlanMode::Bridge),
        mode => MacvlanMode::ALL.into_iter().find(|(name, _)| *name == mode).map(|(_, mode)| mode),
    };
    let mode = mode.ok_or_else(|| {
        Error::config(format!("mode: {:?} is not one of bridge, private, vepa, passthru", wire.mode))
    })?;
    let addresses = conf.ipam.clone().map_or(Addresses::None, Addresses::Ipam);
    if conf.host_shim && mode != MacvlanMode::Bridge {
        return Err(Error::config(format!(
            "hostShim needs mode bridge: links of mode {mode} do not reach each other"
        )));
    }
    if conf.host_shim && conf.ipam.is_none() {
        return Err(Error::config("hostShim needs ipam: the host finds the container by its addresses"));
    }
    let bc_queue_len = Some(wire.bcqueuelen).filter(|length| *length > 0);
    let mac = mac::requested_or(req, ("mac", &wire.mac))?;
    Ok(Spec { kind: SubKind::Macvlan { mode, bc_queue_len }, conf, mac, addresses })
}

/// The plugin.
pub struct Macvlan;

impl Plugin for Macvlan {
    fn name(&self) -> &'static str {
        "macvlan"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "gives the container a link with its own MAC address on a link of the host"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[keys::MAC]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &["mtu", "dns", "ipam"]
    }

    fn update(&self, update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        sublink::update(update, &spec(update.from)?, &spec(update.to)?, kernel)
    }

    fn validate(&self, req: &Request) -> Result<()> {
        spec(req).map(drop)
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
