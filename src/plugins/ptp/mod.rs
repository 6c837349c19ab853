//! ptp: a routed veth pair between container and host, without a bridge (reference: main-plugins.md section 11).
//! The container reaches everything, its own network too, through the host; every host end has the gateway's address.

mod routes;

use ipnet::IpNet;
use serde::Deserialize;

use super::keys::{self, Key};
use super::{Kind, Plugin, Update};
use crate::attach::container::{Container, Ipv6, wait_usable};
use crate::attach::live::{self, Pair};
use crate::attach::masquerade::Masquerade;
use crate::attach::mtu::Mtu;
use crate::attach::undo::{Undo, or_take_back};
use crate::attach::verify::{self, difference};
use crate::attach::{Attachment, address, forwarding, ipam, masquerade, teardown, veth};
use crate::cni::{CniResult, Code, Dns, Error, Interface, Request, Result, ResultExt};
use crate::kernel::Kernel;
use crate::kernel::rtnl::{AddAddress, AddressWatch, Change, PortFlags};

/// Number of the container's interface in the result: after the host's end.
const CONTAINER: i64 = 1;

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    ip_masq: bool,
    ip_masq_backend: String,
    ip_masq_exempt: Vec<String>,
    mtu: Mtu,
}

/// The configuration, checked.
struct Conf {
    masquerade: Option<Masquerade>,
    mtu: Mtu,
    ipam: Option<String>,
    dns: Option<Dns>,
}

impl Conf {
    fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let common = req.config.common()?;
        Ok(Conf {
            masquerade: Masquerade::of(wire.ip_masq, &wire.ip_masq_backend, &wire.ip_masq_exempt)?,
            mtu: wire.mtu,
            ipam: common.ipam,
            dns: common.dns,
        })
    }

    fn ipam(&self) -> Result<&str> {
        let missing = || Error::config("ipam.type: ptp needs an IPAM plugin, such as \"host-local\"");
        let plugin = self.ipam.as_deref().ok_or_else(missing)?;
        ipam::must_not_need_link(plugin, "a ptp interface leads to its host alone")?;
        Ok(plugin)
    }
}

/// The plugin.
pub struct Ptp;

impl Plugin for Ptp {
    fn name(&self) -> &'static str {
        "ptp"
    }

    fn kind(&self) -> Kind {
        Kind::Main
    }

    fn about(&self) -> &'static str {
        "connects the container to the host by a routed veth pair"
    }

    fn keys(&self) -> &'static [Key] {
        &[keys::IP_MASQ, keys::IP_MASQ_BACKEND, keys::IP_MASQ_EXEMPT, keys::MTU]
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &["mtu", "ipMasq", "ipMasqBackend", "ipMasqExempt", "dns", "ipam"]
    }

    fn update(&self, update: Update<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        let req = update.to;
        let (from, to) = (Conf::new(update.from)?, Conf::new(req)?);
        let mut result = verify::prev_result(req)?;
        let mut pair = Pair::find(req, kernel)?;
        pair.set_mtu((from.mtu, to.mtu), kernel, &mut result)?;
        let (was, is) = (live::given(update.from, Some(from.ipam()?))?, live::given(req, Some(to.ipam()?))?);
        let routed = [&was, &is].map(|given| live::with_routes(&result, given.as_ref(), CONTAINER));
        let [former, wanted] = &routed;
        pair.inside.set_routes(former, wanted, &mut result)?;
        live::set_masquerade(
            &Attachment::of(req),
            &result,
            (from.masquerade.as_ref(), to.masquerade.as_ref()),
            kernel,
        )?;
        live::set_dns((from.dns.as_ref(), to.dns.as_ref()), (was.as_ref(), is.as_ref()), &mut result)?;
        Ok(result)
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::new(req)?.ipam().map(drop)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        conf.ipam()?;
        let mut container = Container::open(req)?;
        container.must_be_free(&req.ifname)?;
        or_take_back(kernel, |kernel, undo| attach(req, &conf, &mut container, kernel, undo))
    }

    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        teardown::del(req, kernel)
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        check(req, &Conf::new(req)?, kernel)
    }

    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        teardown::gc(req, kernel)
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        if conf.masquerade.is_some() {
            kernel.nft().and_then(masquerade::status).map_err(|e| e.with_code(Code::NOT_AVAILABLE))?;
        }
        conf.ipam.as_deref().map_or(Ok(()), |plugin| ipam::forward(plugin, req, kernel))
    }
}

/// Attaches the container; every step that leaves something is pushed on `undo`.
fn attach<'a>(
    req: &'a Request,
    conf: &'a Conf,
    container: &mut Container,
    kernel: &mut Kernel,
    undo: &mut Undo<'a>,
) -> Result<CniResult> {
    let of = Attachment::of(req);
    let plugin = conf.ipam()?;
    let mut result = ipam::add(plugin, req, kernel, undo)?;
    for ip in &mut result.ips {
        ip.interface = Some(CONTAINER);
    }
    let hops = routes::hops(&result)?;
    let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    let has_ipv6 = addresses.iter().any(|net| net.addr().is_ipv6());
    forwarding::ensure(kernel.host()?, &addresses).context("a routed container needs the host to forward")?;

    let mtu = conf.mtu.bytes(kernel.host()?)?;
    let wanted = veth::Wanted {
        attachment: of,
        addresses: addresses.clone(),
        mtu,
        mac: None,
        master: None,
        is_first_port: false,
        port: PortFlags::default(),
        is_gateway: true,
    };
    let pair = veth::create(kernel.host()?, container, &wanted)?;
    undo.push(move |kernel| teardown::links(req, kernel));
    let host = pair.host;

    let mut host_side: Vec<Change> = routes::gateways(&hops)
        .into_iter()
        .map(|net| Change::AddAddress(AddAddress { dev: host.dev(), net, nodad: true }))
        .collect();
    host_side.extend(routes::to_container(&hops, &host.dev()).into_iter().map(Change::AddRoute));
    let outside = has_ipv6.then(AddressWatch::open).transpose()?;
    kernel.host()?.apply(&host_side)?;

    let dev = pair.container.dev();
    let inside = container.prepare(if has_ipv6 { Ipv6::NoDad } else { Ipv6::None }, &req.ifname)?;
    container.rtnl.apply(&routes::container_changes(&dev, &result, &hops, CONTAINER)?)?;
    if let Some(wanted) = &conf.masquerade {
        masquerade::add(kernel.nft()?, &of, &addresses, wanted)?;
        undo.push(move |kernel| masquerade::del(kernel.nft()?, &of, &[]));
    }
    kernel.host()?.wait_port_up(host.index, veth::UP_BUDGET).context("host")?;
    wait_usable(outside, host.index, &routes::gateways(&hops))?;
    wait_usable(inside, pair.container.index, &addresses)?;
    let mac = pair.container.mac.ok_or_else(|| Error::internal(format!("{} has no MAC", req.ifname)))?;

    result.interfaces = vec![
        Interface {
            name: host.name,
            mac: host.mac.map(|m| m.to_string()).unwrap_or_default(),
            mtu: host.mtu.into(),
            ..Interface::default()
        },
        Interface {
            name: req.ifname.clone(),
            mac: mac.to_string(),
            mtu: pair.container.mtu.into(),
            sandbox: req.netns.clone(),
            ..Interface::default()
        },
    ];
    if let Some(dns) = &conf.dns {
        result.dns = dns.clone();
    }
    Ok(result)
}

/// Compares both ends, their addresses and routes, and the rules with what ADD made.
fn check(req: &Request, conf: &Conf, kernel: &mut Kernel) -> Result<()> {
    ipam::forward(conf.ipam()?, req, kernel)?;
    let prev = verify::prev_result(req)?;
    let (mut container, index, interface) = verify::sandbox(req, &prev)?;
    let inside = verify::link(&mut container.rtnl, interface, "veth").context("container")?;
    verify::is_up(&inside).context("container")?;
    let addresses: Vec<IpNet> = verify::expected_addresses(&prev, index).collect();
    verify::addresses(&mut container.rtnl, &inside, addresses.iter().copied()).context("container")?;
    verify::routes(&mut container.rtnl, &inside, &prev).context("container")?;
    let hops = routes::hops(&prev)?;
    let own = routes::from_container(&hops, &inside.dev());
    verify::specific_routes(&mut container.rtnl, &inside, &own).context("container")?;

    let rtnl = kernel.host()?;
    let Some(host) = veth::peer(rtnl, &inside)? else {
        return Err(difference(format!("the host's end of {:?} is missing", inside.name)));
    };
    if let Some(told) = prev.interfaces.iter().find(|i| i.name == host.name && i.sandbox.is_empty()) {
        verify::link(rtnl, told, "veth").context("host")?;
    }
    verify::is_up(&host).context("host")?;
    verify::addresses(rtnl, &host, routes::gateways(&hops)).context("host")?;
    // The Go plugins give this route the scope "host", which says as much: look at the destination only.
    let mut back = routes::to_container(&hops, &host.dev());
    back.iter_mut().for_each(|route| route.scope = None);
    verify::specific_routes(rtnl, &host, &back).context("host")?;
    if let Some(wanted) = &conf.masquerade {
        masquerade::check(kernel.nft()?, &Attachment::of(req), &addresses, wanted)?;
    }
    address::routes(&inside.dev(), &prev).map(drop)
}
