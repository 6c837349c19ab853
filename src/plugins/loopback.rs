//! loopback: `lo` up in the container. `CNI_IFNAME` does not matter (reference: main-plugins.md section 15).

use ipnet::IpNet;

use super::keys::Key;
use super::{Kind, Plugin};
use crate::attach::container::Container;
use crate::attach::verify::difference;
use crate::cni::{CniResult, Error, Interface, IpConfig, Request, Result};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{Change, Dev, Link, SetLink};

/// Name and index of the loopback interface in every namespace.
const LO: &str = "lo";

/// The plugin.
pub struct Loopback;

impl Plugin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "sets the container's loopback interface up"
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

    /// Files from before 2018 consist of a type only, and the name is used for nothing here.
    fn nameless(&self) -> bool {
        true
    }

    fn add(&self, req: &Request, _kernel: &mut Kernel) -> Result<CniResult> {
        let prev = req.config.prev_result()?;
        let mut container = Container::open(req)?;
        let link = lo(&mut container)?;
        if let Some(foreign) =
            addresses(&mut container, &link)?.into_iter().find(|net| !net.addr().is_loopback())
        {
            return Err(Error::internal(format!(
                "loopback interface {LO:?} has the non-loopback address {foreign}"
            )));
        }
        set(&mut container, true)?;
        if let Some(prev) = prev {
            return Ok(prev);
        }
        // The kernel gives it its addresses as it comes up.
        let addresses = addresses(&mut container, &link)?;
        // The first of each family: 127.0.0.1/8, and ::1/128 unless IPv6 is off.
        let first = |v4: bool| addresses.iter().find(|net| net.addr().is_ipv4() == v4);
        let ips = [first(true), first(false)].into_iter().flatten();
        Ok(CniResult {
            interfaces: vec![Interface {
                name: LO.to_owned(),
                mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
                sandbox: req.netns.clone(),
                ..Interface::default()
            }],
            ips: ips.map(|net| IpConfig { address: *net, gateway: None, interface: Some(0) }).collect(),
            ..CniResult::default()
        })
    }

    fn del(&self, req: &Request, _kernel: &mut Kernel) -> Result<()> {
        match Container::find(req)? {
            Some(mut container) => set(&mut container, false),
            None => Ok(()),
        }
    }

    fn check(&self, req: &Request, _kernel: &mut Kernel) -> Result<()> {
        match lo(&mut Container::open(req)?)?.is_up() {
            true => Ok(()),
            false => Err(difference("loopback interface is down")),
        }
    }

    /// Nothing outlives the container's namespace.
    fn gc(&self, _req: &Request, _kernel: &mut Kernel) -> Result<()> {
        Ok(())
    }

    /// Every kernel has a loopback interface.
    fn status(&self, _req: &Request, _kernel: &mut Kernel) -> Result<()> {
        Ok(())
    }
}

fn set(container: &mut Container, up: bool) -> Result<()> {
    container.rtnl.apply(&[Change::SetLink(SetLink { up: Some(up), ..SetLink::of(Dev::named(LO)) })])
}

fn lo(container: &mut Container) -> Result<Link> {
    container.rtnl.link(LO)?.ok_or_else(|| difference(format!("interface {LO:?} is missing")))
}

fn addresses(container: &mut Container, link: &Link) -> Result<Vec<IpNet>> {
    Ok(container.rtnl.addresses(link.index)?.into_iter().map(|address| address.net).collect())
}
