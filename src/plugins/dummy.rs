//! dummy: a link that leads nowhere, to hold addresses (reference: main-plugins.md section 17).

use super::keys::Key;
use super::{Kind, Plugin, Update};
use crate::attach::ipam;
use crate::attach::sublink::conf::Conf;
use crate::attach::sublink::{self, Addresses, Spec};
use crate::cni::{CniResult, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::SubKind;

/// # Errors
/// There is no IPAM plugin, or it needs a network.
fn spec(req: &Request) -> Result<Spec> {
    let conf = Conf::addresses_only(req)?;
    let plugin = conf.need_ipam("dummy")?;
    ipam::must_not_need_link(&plugin, "a dummy leads nowhere")?;
    Ok(Spec { kind: SubKind::Dummy, conf, mac: None, addresses: Addresses::Ipam(plugin) })
}

/// The plugin.
pub struct Dummy;

impl Plugin for Dummy {
    fn name(&self) -> &'static str {
        "dummy"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "gives the container an interface that leads nowhere, to hold addresses"
    }

    fn keys(&self) -> &'static [Key] {
        &[]
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
        // A dummy leads nowhere and ends with the container: that it is still there harms nobody.
        sublink::gc_addresses(req, kernel)
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        sublink::status(req, &spec(req)?, kernel)
    }
}
