//! vlan: a VLAN of a link of the host (IEEE 802.1Q), as the container's interface (reference: main-plugins.md section 12).

use serde::Deserialize;

use super::keys::{self, Key, Shape, key};
use super::{Kind, Plugin, Update};
use crate::attach::sublink::conf::{Conf, LINK_CONT_NS, LINK_IN_CONTAINER, MASTER};
use crate::attach::sublink::{self, Addresses, Spec};
use crate::cni::{CniResult, Error, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::SubKind;

const KEYS: &[Key] = &[
    MASTER,
    key(
        "vlanId",
        Shape::Int(0, 4094),
        "VLAN of the frames that the master carries; default: 0, priority tags only",
    ),
    keys::MTU,
    LINK_IN_CONTAINER,
    LINK_CONT_NS,
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    vlan_id: i64,
}

/// # Errors
/// A key or value that is not valid, named.
fn spec(req: &Request) -> Result<Spec> {
    let wire: Wire = req.config.read()?;
    let conf = Conf::new(req)?;
    let id = match wire.vlan_id {
        id @ 0..=4094 => id as u16,
        id => return Err(Error::config(format!("vlanId: {id} is not an id from 0 to 4094"))),
    };
    let conf = Conf { host_shim: false, ..conf };
    let addresses = Addresses::Ipam(conf.need_ipam("vlan")?);
    Ok(Spec { kind: SubKind::Vlan { id }, conf, mac: None, addresses })
}

/// The plugin.
pub struct Vlan;

impl Plugin for Vlan {
    fn name(&self) -> &'static str {
        "vlan"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "gives the container a VLAN of a link of the host"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
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
