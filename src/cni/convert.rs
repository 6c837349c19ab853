//! [`CniResult`] ⇄ the JSON of every version, and how JSON is printed.
//! Rules: reference core.md 2.2–2.4; shapes: the CNI spec at tags v0.2.0, v0.4.0 and v1.1.0.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::error::{Code, Error, Result};
use super::json::Value;
use super::names::{Cidr, optional_ip};
use super::result::{CniResult, Dns, Interface, IpConfig, Route};
use super::version::{Family, Version};

/// `value` as JSON with four spaces of indentation, no newline at the end, and `<`, `>`, `&`, U+2028 and U+2029
/// escaped as Go does, so that output is equal byte for byte.
///
/// # Errors
/// [`Code::INTERNAL`] when `value` cannot be JSON.
pub fn pretty<T: Serialize>(value: &T) -> Result<String> {
    let mut out = Vec::with_capacity(1024);
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    value.serialize(&mut serializer).map_err(|e| Error::internal(format!("encode JSON: {e}")))?;
    let text = String::from_utf8(out).map_err(|e| Error::internal(format!("encode JSON: {e}")))?;
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return Ok(text);
    }
    // These characters can only stand inside strings, where an escape means the same.
    let escaped = text.replace('<', "\\u003c").replace('>', "\\u003e").replace('&', "\\u0026");
    Ok(escaped.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"))
}

/// The error object of CNI spec section 5, with the version of the protocol in use.
pub fn error_json(error: &Error, version: Version) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire<'a> {
        cni_version: &'static str,
        code: u32,
        msg: &'a str,
        #[serde(skip_serializing_if = "str::is_empty")]
        details: &'a str,
    }
    let wire = Wire {
        cni_version: version.as_str(),
        code: error.code().0,
        msg: error.msg(),
        details: error.details(),
    };
    pretty(&wire).unwrap_or_else(|_| r#"{"code": 999, "msg": "the error could not be encoded"}"#.to_owned())
}

impl CniResult {
    /// Reads a result of the given version.
    ///
    /// # Errors
    /// [`Code::DECODING`] or [`Code::INVALID_CONFIG`] with the path of the offending key.
    pub fn from_json(value: &Value, version: Version) -> Result<CniResult> {
        match version.family() {
            Family::Ip4Ip6 => value.read_result::<Ip4Ip6>().map(CniResult::from),
            Family::Versioned => value.read_result::<Versioned>().map(CniResult::from),
            Family::Current => value.read_result::<Current>().map(CniResult::from),
        }
    }

    /// The result as JSON of the given version, as ADD prints it.
    ///
    /// # Errors
    /// [`Code::UNSUPPORTED_FIELD`] `cannot convert: no valid IP addresses`: 0.1.0 and 0.2.0 cannot say anything about
    /// a container without addresses (see [`CniResult::fits`]).
    pub fn to_json(&self, version: Version) -> Result<String> {
        match version.family() {
            Family::Ip4Ip6 => {
                CniResult::fits(!self.ips.is_empty(), version)?;
                pretty(&Ip4Ip6::new(self, version))
            }
            Family::Versioned => pretty(&Versioned::new(self, version)),
            Family::Current => pretty(&Current::new(self, version)),
        }
    }

    /// Whether a result with or without addresses can be expressed in `version`: to be asked before anything is done.
    ///
    /// # Errors
    /// As for [`CniResult::to_json`].
    pub fn fits(has_addresses: bool, version: Version) -> Result<()> {
        if has_addresses || version.family() != Family::Ip4Ip6 {
            return Ok(());
        }
        Err(Error::new(Code::UNSUPPORTED_FIELD, "cannot convert: no valid IP addresses").with_details(
            format!("results of cniVersion {version} cannot describe an attachment without addresses"),
        ))
    }
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// 0.1.0 and 0.2.0.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Ip4Ip6 {
    cni_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip4: Option<IpOfFamily>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip6: Option<IpOfFamily>,
    dns: DnsDeclared,
}

#[derive(Serialize, Deserialize)]
struct IpOfFamily {
    ip: Cidr,
    #[serde(default, deserialize_with = "optional_ip", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<RouteDeclared>,
}

/// 0.3.0, 0.3.1 and 0.4.0.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Versioned {
    cni_version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<InterfaceVersioned>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<IpVersioned>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<RouteDeclared>,
    dns: DnsDeclared,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct InterfaceVersioned {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    sandbox: String,
}

#[derive(Serialize, Deserialize)]
struct IpVersioned {
    #[serde(default)]
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
    address: Cidr,
    #[serde(default, deserialize_with = "optional_ip", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
}

/// A route with its keys in the order of the Go type, as versions before 1.0.0 print it.
#[derive(Serialize, Deserialize)]
struct RouteDeclared {
    dst: Cidr,
    #[serde(default, deserialize_with = "optional_ip", skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    advmss: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct DnsDeclared {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

/// 1.0.0 and 1.1.0: keys in alphabetical order, as the Go library prints them.
#[derive(Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Current {
    cni_version: String,
    #[serde(skip_serializing_if = "DnsSorted::is_empty")]
    dns: DnsSorted,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    interfaces: Vec<InterfaceSorted>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ips: Vec<IpSorted>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    routes: Vec<RouteSorted>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct DnsSorted {
    #[serde(skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
}

impl DnsSorted {
    fn is_empty(&self) -> bool {
        self.domain.is_empty()
            && self.nameservers.is_empty()
            && self.options.is_empty()
            && self.search.is_empty()
    }
}

#[derive(Serialize, Deserialize, Default)]
#[serde(default)]
struct InterfaceSorted {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: i64,
    name: String,
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pci_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    sandbox: String,
    #[serde(rename = "socketPath", skip_serializing_if = "String::is_empty")]
    socket_path: String,
}

#[derive(Serialize, Deserialize)]
struct IpSorted {
    address: Cidr,
    #[serde(default, deserialize_with = "optional_ip", skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    interface: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct RouteSorted {
    #[serde(default, skip_serializing_if = "is_zero")]
    advmss: i64,
    dst: Cidr,
    #[serde(default, deserialize_with = "optional_ip", skip_serializing_if = "Option::is_none")]
    gw: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
}

impl Ip4Ip6 {
    /// The first address of each family; of routes only destination and next hop; routes of a family without address
    /// cannot be told.
    fn new(result: &CniResult, version: Version) -> Ip4Ip6 {
        let family = |v4: bool| {
            let ip = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4)?;
            let routes = result.routes.iter().filter(|r| r.dst.addr().is_ipv4() == v4);
            let routes = routes.map(|r| RouteDeclared::from(Route::new(r.dst, r.gw))).collect();
            Some(IpOfFamily { ip: Cidr(ip.address), gateway: ip.gateway, routes })
        };
        Ip4Ip6 {
            cni_version: version.to_string(),
            ip4: family(true),
            ip6: family(false),
            dns: result.dns.clone().into(),
        }
    }
}

impl From<Ip4Ip6> for CniResult {
    fn from(wire: Ip4Ip6) -> CniResult {
        let mut result = CniResult { dns: wire.dns.into(), ..CniResult::default() };
        for ip in [wire.ip4, wire.ip6].into_iter().flatten() {
            result.ips.push(IpConfig { address: ip.ip.0, gateway: ip.gateway, interface: None });
            result.routes.extend(ip.routes.into_iter().map(Route::from));
        }
        result
    }
}

impl Versioned {
    fn new(result: &CniResult, version: Version) -> Versioned {
        let interface = |i: &Interface| InterfaceVersioned {
            name: i.name.clone(),
            mac: i.mac.clone(),
            sandbox: i.sandbox.clone(),
        };
        let ip = |ip: &IpConfig| IpVersioned {
            version: if ip.address.addr().is_ipv4() { "4" } else { "6" }.to_owned(),
            interface: ip.interface,
            address: Cidr(ip.address),
            gateway: ip.gateway,
        };
        Versioned {
            cni_version: version.to_string(),
            interfaces: result.interfaces.iter().map(interface).collect(),
            ips: result.ips.iter().map(ip).collect(),
            routes: result.routes.iter().cloned().map(RouteDeclared::from).collect(),
            dns: result.dns.clone().into(),
        }
    }
}

impl From<Versioned> for CniResult {
    fn from(wire: Versioned) -> CniResult {
        let interface = |i: InterfaceVersioned| Interface {
            name: i.name,
            mac: i.mac,
            sandbox: i.sandbox,
            ..Interface::default()
        };
        let ip = |ip: IpVersioned| IpConfig {
            address: ip.address.0,
            gateway: ip.gateway,
            interface: ip.interface,
        };
        CniResult {
            interfaces: wire.interfaces.into_iter().map(interface).collect(),
            ips: wire.ips.into_iter().map(ip).collect(),
            routes: wire.routes.into_iter().map(Route::from).collect(),
            dns: wire.dns.into(),
        }
    }
}

impl Current {
    fn new(result: &CniResult, version: Version) -> Current {
        let interface = |i: &Interface| InterfaceSorted {
            mac: i.mac.clone(),
            mtu: i.mtu,
            name: i.name.clone(),
            pci_id: i.pci_id.clone(),
            sandbox: i.sandbox.clone(),
            socket_path: i.socket_path.clone(),
        };
        let ip = |ip: &IpConfig| IpSorted {
            address: Cidr(ip.address),
            gateway: ip.gateway,
            interface: ip.interface,
        };
        let dns = result.dns.clone();
        Current {
            cni_version: version.to_string(),
            dns: DnsSorted {
                domain: dns.domain,
                nameservers: dns.nameservers,
                options: dns.options,
                search: dns.search,
            },
            interfaces: result.interfaces.iter().map(interface).collect(),
            ips: result.ips.iter().map(ip).collect(),
            routes: result.routes.iter().cloned().map(RouteSorted::from).collect(),
        }
    }
}

impl From<Current> for CniResult {
    fn from(wire: Current) -> CniResult {
        let interface = |i: InterfaceSorted| Interface {
            name: i.name,
            mac: i.mac,
            mtu: i.mtu,
            sandbox: i.sandbox,
            socket_path: i.socket_path,
            pci_id: i.pci_id,
        };
        let ip =
            |ip: IpSorted| IpConfig { address: ip.address.0, gateway: ip.gateway, interface: ip.interface };
        CniResult {
            interfaces: wire.interfaces.into_iter().map(interface).collect(),
            ips: wire.ips.into_iter().map(ip).collect(),
            routes: wire.routes.into_iter().map(Route::from).collect(),
            dns: Dns {
                nameservers: wire.dns.nameservers,
                domain: wire.dns.domain,
                search: wire.dns.search,
                options: wire.dns.options,
            },
        }
    }
}

macro_rules! route_wire {
    ($wire:ident) => {
        impl From<Route> for $wire {
            fn from(Route { dst, gw, mtu, advmss, priority, table, scope }: Route) -> $wire {
                $wire { dst: Cidr(dst), gw, mtu, advmss, priority, table, scope }
            }
        }

        impl From<$wire> for Route {
            fn from($wire { dst, gw, mtu, advmss, priority, table, scope }: $wire) -> Route {
                Route { dst: dst.0, gw, mtu, advmss, priority, table, scope }
            }
        }
    };
}
route_wire!(RouteDeclared);
route_wire!(RouteSorted);

impl From<Dns> for DnsDeclared {
    fn from(Dns { nameservers, domain, search, options }: Dns) -> DnsDeclared {
        DnsDeclared { nameservers, domain, search, options }
    }
}

impl From<DnsDeclared> for Dns {
    fn from(DnsDeclared { nameservers, domain, search, options }: DnsDeclared) -> Dns {
        Dns { nameservers, domain, search, options }
    }
}

/// A route as configurations write it (`ipam.routes`): the same keys as in a result.
impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Route, D::Error> {
        RouteSorted::deserialize(deserializer).map(Route::from)
    }
}

/// `dns` as configurations write it: the same keys as in a result.
impl<'de> Deserialize<'de> for Dns {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Dns, D::Error> {
        DnsDeclared::deserialize(deserializer).map(Dns::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compact(json: &str) -> String {
        serde_json::from_str::<serde_json::Value>(json).map(|_| ()).unwrap();
        json.lines().map(str::trim_start).collect::<String>().replace("\": ", "\":")
    }

    fn result(json: &str, version: Version) -> CniResult {
        CniResult::from_json(&Value::parse(json.as_bytes()).unwrap(), version).unwrap()
    }

    /// core.md 2.5: one result, three shapes.
    const OLD: &str = r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.9.0.5/24","gateway":"10.9.0.1","routes":[{"dst":"0.0.0.0/0"}]},"dns":{}}"#;
    const MIDDLE: &str = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:05","sandbox":"/run/netns/x"}],"ips":[{"version":"4","interface":0,"address":"10.9.0.5/24","gateway":"10.9.0.1"}],"routes":[{"dst":"0.0.0.0/0"}],"dns":{}}"#;
    const NEW: &str = r#"{"cniVersion":"1.1.0","interfaces":[{"mac":"02:00:00:00:00:05","mtu":1400,"name":"eth0","sandbox":"/run/netns/x"}],"ips":[{"address":"10.9.0.5/24","gateway":"10.9.0.1","interface":0}],"routes":[{"dst":"0.0.0.0/0"}]}"#;

    #[test]
    fn one_result_prints_in_the_shape_of_each_version() {
        let new = result(NEW, Version::V1_1_0);
        assert_eq!(compact(&new.to_json(Version::V1_1_0).unwrap()), NEW);
        assert_eq!(compact(&new.to_json(Version::V1_0_0).unwrap()), NEW.replace("1.1.0", "1.0.0"));
        assert_eq!(compact(&new.to_json(Version::V0_4_0).unwrap()), MIDDLE);
        assert_eq!(compact(&new.to_json(Version::V0_3_1).unwrap()), MIDDLE.replace("0.4.0", "0.3.1"));
        assert_eq!(compact(&new.to_json(Version::V0_2_0).unwrap()), OLD);
        assert_eq!(compact(&new.to_json(Version::V0_1_0).unwrap()), OLD.replace("0.2.0", "0.1.0"));
    }

    #[test]
    fn older_results_are_read_into_the_newest_shape() {
        let middle = result(MIDDLE, Version::V0_4_0);
        assert_eq!(compact(&middle.to_json(Version::V0_4_0).unwrap()), MIDDLE);
        assert_eq!(compact(&middle.to_json(Version::V1_1_0).unwrap()), NEW.replace(r#""mtu":1400,"#, ""));
        let old = result(OLD, Version::V0_2_0);
        assert_eq!(compact(&old.to_json(Version::V0_2_0).unwrap()), OLD);
        assert_eq!(old.ips[0].interface, None);
    }

    #[test]
    fn the_oldest_versions_keep_the_first_address_and_plain_routes_of_each_family() {
        let full = result(
            r#"{"ips":[{"address":"10.0.0.2/24"},{"address":"10.0.1.2/24"},{"address":"fd00::2/64","gateway":"fd00::1"}],
               "routes":[{"dst":"::/0","gw":"fd00::1","mtu":1400},{"dst":"10.0.0.0/8","table":5}]}"#,
            Version::V1_1_0,
        );
        assert_eq!(
            compact(&full.to_json(Version::V0_1_0).unwrap()),
            r#"{"cniVersion":"0.1.0","ip4":{"ip":"10.0.0.2/24","routes":[{"dst":"10.0.0.0/8"}]},"ip6":{"ip":"fd00::2/64","gateway":"fd00::1","routes":[{"dst":"::/0","gw":"fd00::1"}]},"dns":{}}"#
        );
    }

    #[test]
    fn a_result_without_addresses_cannot_be_told_to_the_oldest_versions() {
        let err = CniResult::default().to_json(Version::V0_2_0).unwrap_err();
        assert_eq!(err.msg(), "cannot convert: no valid IP addresses");
        assert_eq!(
            compact(&CniResult::default().to_json(Version::V0_4_0).unwrap()),
            r#"{"cniVersion":"0.4.0","dns":{}}"#
        );
        assert_eq!(
            compact(&CniResult::default().to_json(Version::V1_0_0).unwrap()),
            r#"{"cniVersion":"1.0.0"}"#
        );
    }

    #[test]
    fn table_and_scope_zero_are_told_and_other_zeros_are_not() {
        let json = r#"{"cniVersion":"1.1.0","routes":[{"dst":"10.0.0.0/8","scope":0,"table":0}]}"#;
        let with_zeros = json.replace(r#""dst""#, r#""mtu":0,"priority":0,"gw":"","dst""#);
        assert_eq!(compact(&result(&with_zeros, Version::V1_1_0).to_json(Version::V1_1_0).unwrap()), json);
    }

    #[test]
    fn what_is_not_a_result_is_refused_with_its_path() {
        for (json, msg) in [
            (r#"{"ips":[null]}"#, "ips[0]: expected an object, found null"),
            (r#"{"ips":[{}]}"#, "ips[0]: missing field `address`"),
            (
                r#"{"routes":[{"dst":"10.0.0.0"}]}"#,
                "routes[0].dst: \"10.0.0.0\" is not an address with a prefix length, such as \"10.1.0.5/16\"",
            ),
            (
                r#"{"ips":[{"address":"10.0.0.1/8","gateway":"x"}]}"#,
                "ips[0].gateway: \"x\" is not an IP address",
            ),
        ] {
            let value = Value::parse(json.as_bytes()).unwrap();
            assert_eq!(CniResult::from_json(&value, Version::V1_1_0).unwrap_err().msg(), msg);
        }
    }

    #[test]
    fn text_is_escaped_as_go_escapes_it() {
        assert_eq!(pretty(&"a<b>&\u{2028}").unwrap(), r#""a\u003cb\u003e\u0026\u2028""#);
    }

    #[test]
    fn an_error_object_carries_the_version_and_has_no_empty_details() {
        let err = Error::config("missing network name");
        assert_eq!(
            error_json(&err, Version::V1_0_0),
            "{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": 7,\n    \"msg\": \"missing network name\"\n}"
        );
    }
}
