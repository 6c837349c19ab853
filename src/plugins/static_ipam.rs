//! static: the addresses that the configuration gives; keeps nothing (reference: ipam-and-meta.md 3).

use std::net::IpAddr;

use serde::Deserialize;

use super::keys::{self, Key, Shape, key};
use super::{Kind, Plugin};
use crate::cni::names::{Cidr, optional_ip, parse_ip};
use crate::cni::{CniResult, Code, Dns, Error, IpConfig, Request, Result, Route, Version};
use crate::kernel::Kernel;

/// The plugin.
pub struct Static;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AddressWire {
    /// Address with prefix length, required.
    address: Option<Cidr>,
    /// Default: none. Not checked against the address.
    #[serde(deserialize_with = "optional_ip")]
    gateway: Option<IpAddr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IpamWire {
    addresses: Vec<AddressWire>,
    /// Copied to the result; two routes to one destination stay two.
    routes: Vec<Route>,
    /// Copied to the result.
    dns: Dns,
}

/// `args.cni` and `runtimeConfig`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IpsWire {
    /// Unless empty, these replace every address said with less priority.
    ips: Vec<Cidr>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ArgsWire {
    cni: IpsWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    ipam: Option<IpamWire>,
    args: ArgsWire,
    runtime_config: IpsWire,
}

/// The checked configuration.
#[derive(Debug)]
struct Conf {
    addresses: Vec<IpConfig>,
    routes: Vec<Route>,
    dns: Dns,
}

impl Conf {
    /// Addresses by growing priority: `ipam.addresses` and after them those of `CNI_ARGS`; `args.cni.ips` instead of
    /// these; `runtimeConfig.ips` instead of all.
    fn read(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let ipam = wire.ipam.ok_or_else(|| Error::config("missing key ipam"))?;
        let mut addresses = Vec::with_capacity(ipam.addresses.len());
        for (n, given) in ipam.addresses.into_iter().enumerate() {
            let Some(Cidr(address)) = given.address else {
                let msg = format!("ipam.addresses[{n}].address: missing, give one such as \"10.1.0.5/16\"");
                return Err(Error::config(msg));
            };
            addresses.push(IpConfig { address, gateway: given.gateway, interface: None });
        }
        addresses.extend(from_environment(req)?);
        for ips in [wire.args.cni.ips, wire.runtime_config.ips] {
            if !ips.is_empty() {
                let without_gateway = |Cidr(address)| IpConfig { address, gateway: None, interface: None };
                addresses = ips.into_iter().map(without_gateway).collect();
            }
        }
        let ipv4 = addresses.iter().filter(|a| a.address.addr().is_ipv4()).count();
        let most = ipv4.max(addresses.len() - ipv4);
        let version = req.config.version;
        if version < Version::V0_3_0 && most > 1 {
            return Err(Error::config(format!(
                "ipam.addresses: {most} addresses of one family, but cniVersion {version} does not support more than \
                 one address per family, use 0.3.0 or later"
            )));
        }
        Ok(Conf { addresses, routes: ipam.routes, dns: ipam.dns })
    }
}

/// `IP` and `GATEWAY` of `CNI_ARGS`, both comma lists. A gateway is that of every address of `IP` whose network it is
/// in, and of none that the configuration gives.
fn from_environment(req: &Request) -> Result<Vec<IpConfig>> {
    let args = req.args()?;
    let items = |key| args.get(key).into_iter().flat_map(|list| list.split(',')).map(str::trim);
    let fault = |key: &str, msg: String| Error::new(Code::ENVIRONMENT, format!("CNI_ARGS {key}: {msg}"));
    let mut addresses = Vec::new();
    for text in items("IP") {
        let Cidr(address) = text.parse().map_err(|msg| fault("IP", msg))?;
        addresses.push(IpConfig { address, gateway: None, interface: None });
    }
    for text in items("GATEWAY") {
        let gateway =
            parse_ip(text).ok_or_else(|| fault("GATEWAY", format!("{text:?} is not an IP address")))?;
        for ip in addresses.iter_mut().filter(|ip| ip.address.contains(&gateway)) {
            ip.gateway = Some(gateway);
        }
    }
    Ok(addresses)
}

impl Plugin for Static {
    fn name(&self) -> &'static str {
        "static"
    }

    fn kind(&self) -> Kind {
        Kind::Ipam
    }

    fn about(&self) -> &'static str {
        "the addresses that the configuration gives"
    }

    fn keys(&self) -> &'static [Key] {
        const ADDRESS: &[Key] = &[
            key("address", Shape::Cidr, "address with prefix length").required(),
            key("gateway", Shape::Ip, "gateway of this address; default: none"),
        ];
        const KEYS: &[Key] = &[
            key("addresses", Shape::List(&Shape::Object(ADDRESS)), "the addresses to give"),
            key("routes", Shape::List(&Shape::Object(keys::ROUTE)), "routes, copied to the result"),
            key("dns", Shape::Object(keys::DNS), "name servers, copied to the result"),
        ];
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[keys::IPS]
    }

    fn live_keys(&self) -> &'static [&'static str] {
        &["routes", "dns"]
    }

    fn given(&self, req: &Request) -> Result<Option<CniResult>> {
        let Conf { routes, dns, .. } = Conf::read(req)?;
        Ok(Some(CniResult { routes, dns, ..CniResult::default() }))
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::read(req).map(drop)
    }

    fn add(&self, req: &Request, _: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::read(req)?;
        CniResult::fits(!conf.addresses.is_empty(), req.config.version)?;
        Ok(CniResult { interfaces: Vec::new(), ips: conf.addresses, routes: conf.routes, dns: conf.dns })
    }

    /// Nothing is kept, so there is nothing to release; the configuration does not matter.
    fn del(&self, _: &Request, _: &mut Kernel) -> Result<()> {
        Ok(())
    }

    fn check(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        let conf = Conf::read(req)?;
        let prev = req.config.prev_result()?;
        let prev =
            prev.ok_or_else(|| Error::config("prevResult: missing, CHECK compares addresses with it"))?;
        let differs = |msg: String| Err(Error::new(Code::CHECK_FAILED, msg));
        for wanted in &conf.addresses {
            let Some(found) = prev.ips.iter().find(|ip| ip.address == wanted.address) else {
                return differs(format!("{} is configured, but not in prevResult", wanted.address));
            };
            if let Some(gateway) = wanted.gateway.filter(|_| found.gateway != wanted.gateway) {
                let found = found.gateway.map_or("none".to_owned(), |gateway| gateway.to_string());
                let address = wanted.address;
                return differs(format!("gateway of {address} is {found} in prevResult, expected {gateway}"));
            }
        }
        Ok(())
    }

    /// Nothing is kept, so there is nothing to collect.
    fn gc(&self, _: &Request, _: &mut Kernel) -> Result<()> {
        Ok(())
    }

    /// Addresses are there whenever the configuration is valid.
    fn status(&self, req: &Request, _: &mut Kernel) -> Result<()> {
        Conf::read(req).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::{Environment, Request};

    fn request(command: &str, args: &str, version: &str, rest: &str) -> Request {
        let vars = [
            ("CNI_COMMAND", command),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/x"),
            ("CNI_ARGS", args),
        ];
        let get = |name: &str| vars.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let stdin = format!(r#"{{"cniVersion":"{version}","name":"n"{rest}}}"#);
        Request::new(Environment::read(get).unwrap(), stdin.into_bytes(), crate::plugins::accepts(&Static))
            .unwrap()
    }

    fn add(args: &str, version: &str, rest: &str) -> Result<CniResult> {
        Static.add(&request("ADD", args, version, rest), &mut Kernel::new(false))
    }

    fn ips(args: &str, rest: &str) -> Vec<String> {
        let ips = add(args, "1.0.0", rest).unwrap().ips;
        let show = |ip: &IpConfig| match ip.gateway {
            Some(gateway) => format!("{} via {gateway}", ip.address),
            None => ip.address.to_string(),
        };
        ips.iter().map(show).collect()
    }

    const TWO: &str = r#","ipam":{"type":"static","addresses":[{"address":"10.10.0.1/24","gateway":"10.10.0.254"},
        {"address":"3ffe:ffff:0:1ff::1/64","gateway":""}]}"#;

    #[test]
    fn addresses_are_returned_in_order_with_routes_and_dns() {
        assert_eq!(ips("", TWO), ["10.10.0.1/24 via 10.10.0.254", "3ffe:ffff:0:1ff::1/64"]);
        let rest = r#","ipam":{"routes":[{"dst":"0.0.0.0/0","gw":"10.10.0.1"},{"dst":"0.0.0.0/0","gw":"10.10.0.2"}],
            "dns":{"nameservers":["8.8.8.8"],"search":["a"]}}"#;
        let result = add("", "1.0.0", rest).unwrap();
        assert_eq!((result.routes.len(), result.dns.search.len(), result.ips.len()), (2, 1, 0));
    }

    #[test]
    fn the_environment_appends_and_its_gateways_reach_only_its_addresses() {
        assert_eq!(
            ips("IP=10.10.0.9/24, 10.11.0.9/24;GATEWAY=10.10.0.253,10.11.0.1", TWO)[..],
            [
                "10.10.0.1/24 via 10.10.0.254",
                "3ffe:ffff:0:1ff::1/64",
                "10.10.0.9/24 via 10.10.0.253",
                "10.11.0.9/24 via 10.11.0.1"
            ]
        );
    }

    #[test]
    fn args_replace_and_runtime_configuration_replaces_all() {
        let args = format!(r#"{TWO},"args":{{"cni":{{"ips":["10.1.0.1/24"]}}}}"#);
        assert_eq!(ips("IP=10.10.0.9/24", &args), ["10.1.0.1/24"]);
        let runtime = format!(r#"{args},"RuntimeConfig":{{"ips":["10.2.0.1/24","fd00::1/64"]}}"#);
        assert_eq!(ips("IP=10.10.0.9/24", &runtime), ["10.2.0.1/24", "fd00::1/64"]);
        let empty = format!(r#"{TWO},"runtimeConfig":{{"ips":[]}}"#);
        assert_eq!(ips("", &empty).len(), 2);
    }

    #[test]
    fn what_is_not_valid_is_named() {
        let fails = |args, version, rest| {
            let err = add(args, version, rest).unwrap_err();
            (err.code(), err.msg().to_owned())
        };
        assert_eq!(fails("", "1.0.0", ""), (Code::INVALID_CONFIG, "missing key ipam".into()));
        let (code, msg) = fails("", "1.0.0", r#","ipam":{"addresses":[{"address":"10.0.0.1"}]}"#);
        assert_eq!(code, Code::INVALID_CONFIG);
        assert!(msg.starts_with("ipam.addresses[0].address: \"10.0.0.1\" is not"), "{msg}");
        let (_, msg) = fails("", "1.0.0", r#","ipam":{"addresses":[{"gateway":"10.0.0.1"}]}"#);
        assert!(msg.starts_with("ipam.addresses[0].address: missing"), "{msg}");
        let (_, msg) = fails("", "1.0.0", r#","ipam":{},"runtimeConfig":{"ips":["10.0.0.1"]}"#);
        assert!(msg.starts_with("runtimeConfig.ips[0]: \"10.0.0.1\" is not"), "{msg}");
        let (code, msg) = fails("IP=10.0.0.1", "1.0.0", TWO);
        assert_eq!(code, Code::ENVIRONMENT);
        assert!(msg.starts_with("CNI_ARGS IP: \"10.0.0.1\" is not"), "{msg}");
        assert!(fails("GATEWAY=x", "1.0.0", TWO).1.starts_with("CNI_ARGS GATEWAY: \"x\""));
        let (code, msg) = fails("IP=10.0.0.1/8", "0.2.0", TWO);
        assert_eq!(code, Code::INVALID_CONFIG);
        assert!(msg.contains("does not support more than one address per family"), "{msg}");
        assert_eq!(fails("", "0.1.0", r#","ipam":{}"#).0, Code::UNSUPPORTED_FIELD);
    }

    #[test]
    fn check_finds_every_address_and_its_gateway_in_the_previous_result() {
        let check = |prev: &str| {
            let rest = format!("{TWO}{prev}");
            Static.check(&request("CHECK", "", "1.0.0", &rest), &mut Kernel::new(false))
        };
        let prev = |first: &str| {
            check(&format!(
                r#","prevResult":{{"ips":[{first},{{"address":"3ffe:ffff:0:1ff::1/64","gateway":"fe80::1"}}]}}"#
            ))
        };
        assert_eq!(prev(r#"{"address":"10.10.0.1/24","gateway":"10.10.0.254"}"#), Ok(()));
        let err = prev(r#"{"address":"10.10.0.1/24","gateway":"10.10.0.253"}"#).unwrap_err();
        assert_eq!(
            (err.code(), err.msg()),
            (
                Code::CHECK_FAILED,
                "gateway of 10.10.0.1/24 is 10.10.0.253 in prevResult, expected 10.10.0.254"
            )
        );
        let err = prev(r#"{"address":"10.10.0.2/24"}"#).unwrap_err();
        assert_eq!(err.msg(), "10.10.0.1/24 is configured, but not in prevResult");
        assert_eq!(check("").unwrap_err().code(), Code::INVALID_CONFIG);
    }

    #[test]
    fn del_and_gc_do_not_look_at_the_configuration() {
        let mut kernel = Kernel::new(false);
        assert_eq!(Static.del(&request("DEL", "bad;", "1.1.0", r#","ipam":5"#), &mut kernel), Ok(()));
        assert_eq!(Static.gc(&request("GC", "", "1.1.0", r#","ipam":5"#), &mut kernel), Ok(()));
        assert!(Static.status(&request("STATUS", "", "1.1.0", ""), &mut kernel).is_err());
        assert_eq!(Static.status(&request("STATUS", "", "1.1.0", TWO), &mut kernel), Ok(()));
    }
}
