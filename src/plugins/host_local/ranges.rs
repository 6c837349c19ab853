//! The configuration of host-local: `ipam`, and what runtimes add to it (reference: ipam-and-meta.md 2.1).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

use super::alloc::{Range, RangeSet};
use crate::cni::names::{Cidr, next_after_network, optional_ip, parse_ip};
use crate::cni::{Code, Error, Request, Result, Route, Version};
use crate::kernel::dry_run;
use crate::plugins::keys::{Key, ROUTE, Shape, key};

/// Parent of the directories of all networks, unless `ipam.dataDir` says otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// Keys of one range.
pub(super) const RANGE: &[Key] = &[SUBNET, RANGE_START, RANGE_END, GATEWAY];

/// Keys of `ipam`.
pub(super) const KEYS: &[Key] = &[
    SUBNET,
    RANGE_START,
    RANGE_END,
    GATEWAY,
    key(
        "ranges",
        Shape::List(&Shape::List(&Shape::Object(RANGE))),
        "one address per outer entry, taken from any of the inner ones",
    ),
    key("routes", Shape::List(&Shape::Object(ROUTE)), "routes, copied to the result"),
    key("dataDir", Shape::Path, "parent of the network's directory; default: /var/lib/cni/networks"),
    key("resolvConf", Shape::Path, "a resolv.conf(5) file whose content becomes dns; default: none"),
];

const SUBNET: Key = key("subnet", Shape::Cidr, "the network, required");
const RANGE_START: Key =
    key("rangeStart", Shape::Ip, "first address to hand out; default: the first one of the network");
const RANGE_END: Key = key(
    "rangeEnd",
    Shape::Ip,
    "last address to hand out; default: the last one before the broadcast address",
);
const GATEWAY: Key = key("gateway", Shape::Ip, "default: the first address of the network");

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RangeWire {
    /// The network, required.
    subnet: Option<Cidr>,
    /// First address to hand out; default: the first one of the network.
    #[serde(deserialize_with = "optional_ip")]
    range_start: Option<IpAddr>,
    /// Last address to hand out; default: the last one that is not the IPv4 broadcast address.
    #[serde(deserialize_with = "optional_ip")]
    range_end: Option<IpAddr>,
    /// Default: the first address of the network.
    #[serde(deserialize_with = "optional_ip")]
    gateway: Option<IpAddr>,
}

/// `ipam`. The single range of the oldest configurations stands in the object itself.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IpamWire {
    /// One address per outer entry, taken from any of the inner ones.
    ranges: Vec<Vec<RangeWire>>,
    subnet: Option<Cidr>,
    #[serde(deserialize_with = "optional_ip")]
    range_start: Option<IpAddr>,
    #[serde(deserialize_with = "optional_ip")]
    range_end: Option<IpAddr>,
    #[serde(deserialize_with = "optional_ip")]
    gateway: Option<IpAddr>,
    /// Copied to the result.
    routes: Vec<Route>,
    /// Parent of the network's directory; default [`DATA_DIR`].
    data_dir: String,
    /// A resolv.conf(5) file whose content becomes `dns`; default: none.
    resolv_conf: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeWire {
    /// As `ipam.ranges`, put in front of them.
    ip_ranges: Vec<Vec<RangeWire>>,
    /// Requested addresses; a prefix length is allowed and ignored.
    ips: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CniArgsWire {
    /// Requested addresses; a prefix length is allowed and ignored.
    ips: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ArgsWire {
    cni: CniArgsWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    ipam: Option<IpamWire>,
    runtime_config: RuntimeWire,
    args: ArgsWire,
}

/// The checked configuration.
#[derive(Debug)]
pub(super) struct Conf {
    /// The network's directory.
    pub directory: PathBuf,
    /// One address is taken from each; at least one, without overlap. The position numbers `last_reserved_ip.N`.
    pub sets: Vec<RangeSet>,
    /// Addresses asked for, without duplicates; each must lie in a set of its own.
    pub requested: Vec<IpAddr>,
    /// For the result, unchanged.
    pub routes: Vec<Route>,
    /// File to take `dns` from.
    pub resolv_conf: Option<PathBuf>,
}

impl Conf {
    /// Decodes and checks the configuration.
    ///
    /// # Errors
    /// [`Code::INVALID_CONFIG`] naming key and value, [`Code::ENVIRONMENT`] for `CNI_ARGS`, those of
    /// [`crate::cni::Config::read`].
    pub(super) fn read(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let ipam = wire.ipam.ok_or_else(|| Error::config("missing key ipam"))?;
        let requested = requested(req, &wire.args.cni.ips, &wire.runtime_config.ips)?;
        let single = ipam.subnet.is_some().then_some(RangeWire {
            subnet: ipam.subnet,
            range_start: ipam.range_start,
            range_end: ipam.range_end,
            gateway: ipam.gateway,
        });

        let mut sets: Vec<(String, RangeSet)> = Vec::new();
        for (n, set) in wire.runtime_config.ip_ranges.iter().enumerate() {
            let key = format!("runtimeConfig.ipRanges[{n}]");
            sets.push((key.clone(), range_set(&key, set)?));
        }
        if let Some(single) = single {
            sets.push(("ipam.subnet".to_owned(), RangeSet::new(vec![range("ipam", &single)?])));
        }
        for (n, set) in ipam.ranges.iter().enumerate() {
            let key = format!("ipam.ranges[{n}]");
            sets.push((key.clone(), range_set(&key, set)?));
        }
        check_sets(&sets, req.config.version)?;
        Ok(Conf {
            directory: directory(&ipam.data_dir, &req.config.name),
            sets: sets.into_iter().map(|(_, set)| set).collect(),
            requested,
            routes: ipam.routes,
            resolv_conf: Some(PathBuf::from(ipam.resolv_conf)).filter(|p| !p.as_os_str().is_empty()),
        })
    }

    /// The network's directory and nothing else: what DEL and GC need. Whatever else is wrong with the configuration
    /// does not keep them from releasing addresses.
    ///
    /// # Errors
    /// [`Code::DECODING`] when `ipam.dataDir` is not a string.
    pub(super) fn directory(req: &Request) -> Result<PathBuf> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Ipam {
            data_dir: String,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Wire {
            ipam: Ipam,
        }
        Ok(directory(&req.config.read::<Wire>()?.ipam.data_dir, &req.config.name))
    }
}

/// `ipam.routes` and `ipam.resolvConf`, without a look at anything else.
///
/// # Errors
/// [`Code::DECODING`] for a wrong JSON type.
pub(super) fn given(req: &Request) -> Result<(Vec<Route>, Option<PathBuf>)> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Ipam {
        routes: Vec<Route>,
        resolv_conf: String,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Wire {
        ipam: Ipam,
    }
    let Ipam { routes, resolv_conf } = req.config.read::<Wire>()?.ipam;
    Ok((routes, Some(PathBuf::from(resolv_conf)).filter(|path| !path.as_os_str().is_empty())))
}

/// `<dataDir>/<network name>`; the name has been checked to be a plain file name.
fn directory(data_dir: &str, name: &str) -> PathBuf {
    dry_run::files(Path::new(if data_dir.is_empty() { DATA_DIR } else { data_dir }).join(name))
}

/// The addresses asked for in `CNI_ARGS`, `args.cni.ips` and `runtimeConfig.ips`: all of them count.
fn requested(req: &Request, args: &[String], runtime: &[String]) -> Result<Vec<IpAddr>> {
    let mut requested = Vec::new();
    let environment = req.args()?.get("IP").map(str::to_owned);
    let environment = environment.iter().map(|text| (Code::ENVIRONMENT, "CNI_ARGS IP", text));
    let args = args.iter().map(|text| (Code::INVALID_CONFIG, "args.cni.ips", text));
    let runtime = runtime.iter().map(|text| (Code::INVALID_CONFIG, "runtimeConfig.ips", text));
    for (code, key, text) in environment.chain(args).chain(runtime) {
        let addr = match text.contains('/') {
            true => text.parse::<Cidr>().ok().map(|cidr| cidr.0.addr()),
            false => parse_ip(text),
        };
        let addr = addr.ok_or_else(|| {
            let msg = format!("{key}: {text:?} is not an address such as \"10.1.0.5\" or \"10.1.0.5/16\"");
            Error::new(code, msg)
        })?;
        if !requested.contains(&addr) {
            requested.push(addr);
        }
    }
    Ok(requested)
}

/// One set: every range valid, all of one family, none overlapping another.
fn range_set(key: &str, wires: &[RangeWire]) -> Result<RangeSet> {
    if wires.is_empty() {
        return Err(Error::config(format!("{key}: empty, a set needs at least one range with a subnet")));
    }
    let mut ranges: Vec<Range> = Vec::with_capacity(wires.len());
    for (n, wire) in wires.iter().enumerate() {
        let range = range(&format!("{key}[{n}]"), wire)?;
        if let Some(first) = ranges.first().filter(|first| first.start.is_ipv4() != range.start.is_ipv4()) {
            return Err(Error::config(format!(
                "{key}[{n}].subnet: {} and {} are mixed families, a set gives one address of one family",
                range.subnet, first.subnet
            )));
        }
        if let Some(other) = ranges.iter().find(|other| other.overlaps(&range)) {
            return Err(Error::config(format!("{key}[{n}]: range {range} overlaps {other} of the same set")));
        }
        ranges.push(range);
    }
    Ok(RangeSet::new(ranges))
}

/// One range, with what is not given filled in.
fn range(key: &str, wire: &RangeWire) -> Result<Range> {
    let fault = |field: &str, msg: String| Err(Error::config(format!("{key}.{field}: {msg}")));
    let Some(Cidr(subnet)) = wire.subnet else {
        return fault("subnet", "missing, a range needs one, such as \"10.1.2.0/24\"".to_owned());
    };
    let longest = subnet.max_prefix_len() - 2;
    if subnet.prefix_len() > longest {
        let msg = format!("\"{subnet}\" is too small to allocate from, the longest prefix is /{longest}");
        return fault("subnet", msg);
    }
    if subnet.addr() != subnet.network() {
        let msg = format!("\"{subnet}\" has host bits set, the network is {}", subnet.trunc());
        return fault("subnet", msg);
    }
    let Some(first) = next_after_network(subnet) else {
        return fault("subnet", format!("\"{subnet}\" has no address to hand out"));
    };
    let start = wire.range_start.unwrap_or(first);
    let end = wire.range_end.unwrap_or_else(|| last_address(subnet));
    for (field, addr) in [("rangeStart", start), ("rangeEnd", end)] {
        if !subnet.contains(&addr) {
            return fault(field, format!("\"{addr}\" is not in network {subnet}"));
        }
    }
    if start > end {
        return fault("rangeStart", format!("\"{start}\" is not in network part up to rangeEnd \"{end}\""));
    }
    Ok(Range { subnet, start, end, gateway: wire.gateway.unwrap_or(first) })
}

/// The last address that can be handed out: IPv4's broadcast address cannot, IPv6 has none.
fn last_address(subnet: IpNet) -> IpAddr {
    match subnet.broadcast() {
        IpAddr::V4(broadcast) => IpAddr::V4((u32::from(broadcast) - 1).into()),
        last => last,
    }
}

/// What must hold between sets.
fn check_sets(sets: &[(String, RangeSet)], version: Version) -> Result<()> {
    if sets.is_empty() {
        return Err(Error::config(
            "ipam: no IP ranges specified, give \"ranges\": [[{\"subnet\": \"10.1.2.0/24\"}]]",
        ));
    }
    let is_ipv4 = |set: &RangeSet| set.ranges().iter().any(|r| r.start.is_ipv4());
    let ipv4 = sets.iter().filter(|(_, set)| is_ipv4(set)).count();
    let most = ipv4.max(sets.len() - ipv4);
    if version < Version::V0_3_0 && most > 1 {
        return Err(Error::config(format!(
            "ipam.ranges: {most} sets of one family, but cniVersion {version} does not support more than one address \
             per family, use 0.3.0 or later"
        )));
    }
    for (n, (key, set)) in sets.iter().enumerate() {
        for (other_key, other) in &sets[..n] {
            for range in set.ranges() {
                if let Some(overlap) = other.ranges().iter().find(|o| o.overlaps(range)) {
                    return Err(Error::config(format!("{key}: {range} overlaps {overlap} of {other_key}")));
                }
            }
        }
    }
    Ok(())
}
