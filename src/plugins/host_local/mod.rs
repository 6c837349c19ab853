//! host-local: addresses from ranges, one file per reserved address on this host (reference: ipam-and-meta.md 2).

mod alloc;
mod index;
mod ranges;
mod resolv_conf;
mod store;

use std::iter::once;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

use self::alloc::RangeSet;
use self::index::{Boot, Entry};
use self::ranges::Conf;
use self::store::{Store, content};
use super::keys::{self, Key, Shape, key};
use super::{Kind, Plugin};
use crate::cni::{CniResult, Code, Dns, Error, IpConfig, Request, Result};
use crate::kernel::Kernel;

/// So many addresses after the last one are tried before the directory is listed to see which are free.
const TRIES: usize = 32;

/// The plugin.
pub struct HostLocal;

impl Plugin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn kind(&self) -> Kind {
        Kind::Ipam
    }

    fn about(&self) -> &'static str {
        "addresses from ranges, reserved in files on this host"
    }

    fn keys(&self) -> &'static [Key] {
        ranges::KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        const RANGES: Key = key(
            "ipRanges",
            Shape::List(&Shape::List(&Shape::Object(ranges::RANGE))),
            "as ipam.ranges, put in front of them",
        );
        &[RANGES, keys::IPS]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &["routes", "resolvConf"]
    }

    fn given(&self, req: &Request) -> Result<Option<CniResult>> {
        let (routes, resolv_conf) = ranges::given(req)?;
        let dns = read_dns(resolv_conf.as_deref())?;
        Ok(Some(CniResult { routes, dns, ..CniResult::default() }))
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::read(req).map(drop)
    }

    fn add(&self, req: &Request, _: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::read(req)?;
        let dns = read_dns(conf.resolv_conf.as_deref())?;
        let mut store = Store::create(&conf.directory, Boot::current())?;
        let added = reserve_all(&mut store, &conf, req);
        store.seal();
        Ok(CniResult { interfaces: Vec::new(), ips: added?, routes: conf.routes, dns })
    }

    /// Needs nothing but the network's name and `dataDir`: an address is released whatever became of the ranges.
    /// `last_reserved_ip.N` stays, so that a released address is used again as late as possible.
    fn del(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let Some(mut store) = Store::open(&Conf::directory(req)?, Boot::current())? else { return Ok(()) };
        let mut errors = Vec::new();
        for content in [content(&req.container_id, &req.ifname), req.container_id.clone()] {
            let leases: Vec<IpAddr> = store.find(&content).iter().map(|lease| lease.addr).collect();
            errors.extend(store.release(&content, &leases));
            if !leases.is_empty() {
                break;
            }
        }
        store.seal();
        Error::all(errors).map_or(Ok(()), Err)
    }

    fn check(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let conf = Conf::read(req)?;
        let own = [content(&req.container_id, &req.ifname), req.container_id.clone()];
        let who = format!("container {:?} interface {:?}", req.container_id, req.ifname);
        let missing = |what: String| {
            let msg = format!("{what} is not reserved for {who} in {}", conf.directory.display());
            Err(Error::new(Code::CHECK_FAILED, msg))
        };
        let Some(mut store) = Store::open(&conf.directory, Boot::current())? else {
            return missing("any address".to_owned())
                .map_err(|e| e.with_details("there is no such directory"));
        };
        // A result may also hold addresses that others assigned; ours are those in our ranges.
        let expected =
            req.config.prev_result()?.unwrap_or_default().ips.into_iter().map(|ip| ip.address.addr());
        let expected: Vec<IpAddr> =
            expected.filter(|&addr| conf.sets.iter().any(|set| set.range_of(addr).is_some())).collect();
        for &addr in &expected {
            let holder = store.holder(addr).unwrap_or_default();
            if !own.iter().any(|own| own.as_bytes() == holder) {
                return missing(addr.to_string());
            }
        }
        let found = !expected.is_empty() || own.iter().any(|own| !store.find(own).is_empty());
        store.seal();
        if found { Ok(()) } else { missing("any address".to_owned()) }
    }

    /// Leases of older releases name no interface: they stay as long as any attachment of their container is valid.
    fn gc(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let Some(valid) = req.config.valid_attachments()? else { return Ok(()) };
        let Some(mut store) = Store::open(&Conf::directory(req)?, Boot::current())? else { return Ok(()) };
        let keep = valid.iter().flat_map(|v| [content(&v.container_id, &v.ifname), v.container_id.clone()]);
        let keep: std::collections::HashSet<Vec<u8>> = keep.map(String::into_bytes).collect();
        let errors = store.retain(&|content| keep.contains(content));
        store.seal();
        Error::all(errors).map_or(Ok(()), Err)
    }

    fn status(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let conf = Conf::read(req)?;
        let unavailable = |e: Error| e.with_code(Code::NOT_AVAILABLE);
        store::check_writable(&conf.directory).map_err(unavailable)?;
        let Some(store) = Store::open(&conf.directory, Boot::current()).map_err(unavailable)? else {
            return Ok(());
        };
        for (number, set) in conf.sets.iter().enumerate() {
            if !has_free(&store, number, set).map_err(unavailable)? {
                return Err(unavailable(exhausted(set)));
            }
        }
        Ok(())
    }
}

fn read_dns(resolv_conf: Option<&Path>) -> Result<Dns> {
    let Some(path) = resolv_conf else { return Ok(Dns::default()) };
    let bytes = std::fs::read(path)
        .map_err(|e| Error::io(format_args!("ipam.resolvConf: read {}", path.display()), &e))?;
    Ok(resolv_conf::parse(&String::from_utf8_lossy(&bytes)))
}

/// One address of every set. When one cannot be had, those that this very call reserved are given back, and no other.
fn reserve_all(store: &mut Store, conf: &Conf, req: &Request) -> Result<Vec<IpConfig>> {
    let own = content(&req.container_id, &req.ifname);
    let mut reserved = Vec::with_capacity(conf.sets.len());
    let ips = reserve_each(store, conf, req, &own, &mut reserved);
    store.record(&own, &reserved);
    ips.map_err(|err| {
        let addrs: Vec<IpAddr> = reserved.iter().rev().map(|entry| entry.addr).collect();
        let undo = Error::all(store.release(&own, &addrs));
        match undo {
            None => err,
            Some(undo) => err.with_details(format!("not released: {undo}")),
        }
    })
}

fn reserve_each(
    store: &mut Store,
    conf: &Conf,
    req: &Request,
    own: &str,
    reserved: &mut Vec<Entry>,
) -> Result<Vec<IpConfig>> {
    let mut requested = conf.requested.clone();
    let held: Vec<_> = [own, req.container_id.as_str()]
        .into_iter()
        .flat_map(|content| store.find(content).into_iter().map(move |lease| (content, lease)))
        .collect();
    let mut ips = Vec::with_capacity(conf.sets.len());
    for (number, set) in conf.sets.iter().enumerate() {
        let mut wanted =
            requested.iter().position(|&a| set.range_of(a).is_some()).map(|n| requested.remove(n));
        if let Some((addr, range)) = wanted.and_then(|a| Some((a, set.range_of(a)?)))
            && addr == range.gateway
        {
            return Err(Error::config(format!("requested ip {addr} is the gateway of its range {range}")));
        }
        for (content, lease) in held.iter().filter(|(_, lease)| set.range_of(lease.addr).is_some()) {
            if !lease.outdated {
                return Err(Error::internal(format!(
                    "{} has been allocated to {} interface {}, duplicate allocation is not allowed",
                    lease.addr, req.container_id, req.ifname
                )));
            }
            // Of before the host was restarted: the container asks for it again, and gets it in today's format.
            Error::all(store.release(content, &[lease.addr])).map_or(Ok(()), Err)?;
            wanted = wanted.or(Some(lease.addr));
        }
        let entry = reserve_in(store, number, set, wanted, own)?;
        reserved.push(entry);
        store.set_last_reserved(number, entry.addr)?;
        ips.push(address(set, entry.addr)?);
    }
    if !requested.is_empty() {
        let list: Vec<String> = requested.iter().map(IpAddr::to_string).collect();
        return Err(Error::config(format!(
            "failed to allocate all requested IPs: {}: each must be in a range set of its own",
            list.join(", ")
        )));
    }
    Ok(ips)
}

/// The wanted address, or the next free one; only if there is none, one that was reserved during an earlier boot.
fn reserve_in(
    store: &mut Store,
    number: usize,
    set: &RangeSet,
    wanted: Option<IpAddr>,
    own: &str,
) -> Result<Entry> {
    if let Some(addr) = wanted {
        if let Some(entry) = store.reserve(own, once(addr))? {
            return Ok(entry);
        }
        store.free_outdated(addr)?;
        return store.reserve(own, once(addr))?.ok_or_else(|| {
            let msg = format!("requested ip {addr} is not available in range set {set}, it is reserved");
            Error::new(Code::NO_ADDRESS, msg)
        });
    }
    let candidates = set.candidates(store.last_reserved(number));
    if let Some(entry) = store.reserve(own, candidates.clone().take(TRIES))? {
        return Ok(entry);
    }
    let taken = store.addresses()?;
    if let Some(entry) = store.reserve(own, candidates.clone().filter(|addr| !taken.contains(addr)))? {
        return Ok(entry);
    }
    let outdated = store.outdated();
    for addr in candidates.filter(|addr| outdated.contains(addr)) {
        if store.free_outdated(addr)?
            && let Some(entry) = store.reserve(own, once(addr))?
        {
            return Ok(entry);
        }
    }
    Err(exhausted(set))
}

/// Whether [`reserve_in`] would find an address.
fn has_free(store: &Store, number: usize, set: &RangeSet) -> Result<bool> {
    let mut candidates = set.candidates(store.last_reserved(number));
    if candidates.clone().take(TRIES).any(|addr| !store.is_reserved(addr)) {
        return Ok(true);
    }
    let taken = store.addresses()?;
    if candidates.clone().any(|addr| !taken.contains(&addr)) {
        return Ok(true);
    }
    let outdated = store.outdated();
    Ok(candidates.any(|addr| outdated.contains(&addr) && store.is_outdated_lease(addr)))
}

fn exhausted(set: &RangeSet) -> Error {
    Error::new(Code::NO_ADDRESS, format!("no IP addresses available in range set: {set}"))
}

/// A reserved address as the result says it: with the prefix length of its subnet.
fn address(set: &RangeSet, addr: IpAddr) -> Result<IpConfig> {
    let ip = set.range_of(addr).and_then(|range| {
        let address = IpNet::new(addr, range.subnet.prefix_len()).ok()?;
        Some(IpConfig { address, gateway: Some(range.gateway), interface: None })
    });
    ip.ok_or_else(|| Error::internal(format!("{addr} is not in range set {set}")))
}
