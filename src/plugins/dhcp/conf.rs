//! The configuration (reference: ipam-and-meta.md 4.1).

use std::path::PathBuf;

use serde::Deserialize;

use super::options::{self, TYPES};
use super::v4::packet::code;
use super::wanted::{ClientId, Ipv6, Key as Owner, Wanted};
use crate::cni::{Error, Request, Result};
use crate::plugins::keys::{Key, Shape, key};

/// Where the daemon listens unless told otherwise.
pub const SOCKET: &str = "/run/cni/dhcp.sock";

/// What is asked for unless `skipDefault` is given. Classless routes come before routers (RFC 3442).
const REQUEST: &[u8] = &[
    code::SUBNET_MASK,
    code::CLASSLESS_ROUTES,
    code::STATIC_ROUTES,
    code::ROUTERS,
    code::DNS,
    code::DOMAIN,
    code::SEARCH,
    code::MTU,
    code::NTP,
];

/// With `skipDefault` and nothing requested: what the Go plugin's library then asks for.
const REQUEST_NOTHING: &[u8] = &[code::SUBNET_MASK, code::ROUTERS, code::DOMAIN, code::DNS];

/// Options that belong to the exchange itself: a value of the user's would break it.
const OWN: &[u8] = &[
    0,
    code::REQUESTED,
    code::OVERLOAD,
    code::TYPE,
    code::SERVER,
    code::REQUEST_LIST,
    code::T1,
    code::T2,
    255,
];

/// Keys inside `ipam`.
pub const KEYS: &[Key] = {
    const PROVIDE: &[Key] = &[
        key("option", Shape::Text, "the option's name as in dhcp-options(5), or its number").required(),
        key("value", Shape::Text, "what to send; empty: nothing is sent"),
        key("fromArg", Shape::Text, "key of CNI_ARGS whose value is sent instead of value, when it is there"),
        key(
            "type",
            Shape::OneOf(TYPE_NAMES),
            "how the value is written; default: what the option's name implies",
        ),
    ];
    const ASK: &[Key] = &[
        key("option", Shape::Text, "the option's name as in dhcp-options(5), or its number"),
        key("skipDefault", Shape::Bool, "ask for no other options than those of this list; default: false"),
    ];
    &[
        key("daemonSocketPath", Shape::Path, "socket of the DHCP daemon; default: /run/cni/dhcp.sock"),
        key(
            "daemon",
            Shape::OneOf(&["auto", "required"]),
            "without a daemon: start one (auto), or fail (required); default: auto if its socket does not exist",
        ),
        key(
            "priority",
            Shape::Int(0, u32::MAX as i64),
            "metric of every route that is returned; default: none",
        ),
        key("provide", Shape::List(&Shape::Object(PROVIDE)), "DHCP options to send"),
        key("request", Shape::List(&Shape::Object(ASK)), "DHCP options to ask for, besides the usual ones"),
        key("ipv4", Shape::Bool, "get an IPv4 address; default: true"),
        key(
            "ipv6",
            Shape::OneOf(&["none", "slaac", "dhcpv6", "both"]),
            "how to get IPv6 addresses; default: none",
        ),
        key("prefixDelegation", Shape::Bool, "ask for an IPv6 prefix as well; default: false"),
        key(
            "clientID",
            Shape::OneOf(&["name", "duid", "mac"]),
            "what the server knows the client by: container, network and interface (as the Go plugin), RFC 4361, or \
             the MAC; default: name",
        ),
        key(
            "conflictDetection",
            Shape::Bool,
            "ask the link whether somebody has the address before it is used; default: true",
        ),
    ]
};

const TYPE_NAMES: &[&str] =
    &["text", "ip", "ips", "bool", "u8", "u16", "u32", "hex", "domains", "classes", "routes"];

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ProvideWire {
    option: String,
    value: String,
    from_arg: String,
    r#type: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RequestWire {
    /// Empty: this entry is for `skipDefault` alone.
    option: String,
    skip_default: bool,
}

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct IpamWire {
    daemon_socket_path: String,
    daemon: String,
    priority: i64,
    provide: Vec<ProvideWire>,
    request: Vec<RequestWire>,
    ipv4: bool,
    ipv6: String,
    prefix_delegation: bool,
    #[serde(rename = "clientID")]
    client_id: String,
    conflict_detection: bool,
}

impl Default for IpamWire {
    fn default() -> IpamWire {
        IpamWire {
            daemon_socket_path: String::new(),
            daemon: String::new(),
            priority: 0,
            provide: Vec::new(),
            request: Vec::new(),
            ipv4: true,
            ipv6: String::new(),
            prefix_delegation: false,
            client_id: String::new(),
            conflict_detection: true,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wire {
    ipam: Option<IpamWire>,
}

/// What to do when nobody listens on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// Not said: start one if the socket does not exist, or is left from one that was started like that.
    Default,
    /// Start one.
    Auto,
    /// Fail.
    Required,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Conf {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// What to do without a daemon.
    pub daemon: Daemon,
    /// What to ask the daemon for.
    pub wanted: Wanted,
}

impl Conf {
    /// Reads the configuration of an attachment.
    ///
    /// # Errors
    /// The key and value that are not valid.
    pub fn read(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let ipam = wire.ipam.ok_or_else(|| Error::config("missing key ipam"))?;
        let ipv6 = one_of(
            "ipam.ipv6",
            &ipam.ipv6,
            &[
                ("", Ipv6::None),
                ("none", Ipv6::None),
                ("slaac", Ipv6::Slaac),
                ("dhcpv6", Ipv6::Dhcpv6),
                ("both", Ipv6::Both),
            ],
        )?;
        if !ipam.ipv4 && ipv6 == Ipv6::None {
            return Err(Error::config(
                "ipam.ipv4: false, and ipam.ipv6 is none: there is nothing to ask for",
            ));
        }
        let client_id = one_of(
            "ipam.clientID",
            &ipam.client_id,
            &[
                ("", ClientId::Name),
                ("name", ClientId::Name),
                ("duid", ClientId::Duid),
                ("mac", ClientId::Mac),
            ],
        )?;
        let priority = u32::try_from(ipam.priority)
            .map_err(|_| Error::config(format!("ipam.priority: {} is out of range", ipam.priority)))?;
        let wanted = Wanted {
            key: owner(req),
            netns: absolute(&req.netns),
            ipv4: ipam.ipv4,
            ipv6,
            prefix_delegation: ipam.prefix_delegation,
            provide: provide(&ipam.provide, &req.raw_args)?,
            request: request(&ipam.request)?,
            client_id,
            priority,
            conflict_detection: ipam.conflict_detection,
        };
        let daemon = one_of(
            "ipam.daemon",
            &ipam.daemon,
            &[("", Daemon::Default), ("auto", Daemon::Auto), ("required", Daemon::Required)],
        )?;
        Ok(Conf { socket: socket_of(&ipam.daemon_socket_path), daemon, wanted })
    }

    /// The daemon's socket alone: all that DEL and GC need, however wrong the rest is.
    pub fn socket(req: &Request) -> PathBuf {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Ipam {
            daemon_socket_path: String,
        }
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Wire {
            ipam: Ipam,
        }
        socket_of(&req.config.read::<Wire>().unwrap_or_default().ipam.daemon_socket_path)
    }
}

/// Whose lease a request is about.
pub fn owner(req: &Request) -> Owner {
    Owner {
        container: req.container_id.clone(),
        network: req.config.name.clone(),
        ifname: req.ifname.clone(),
    }
}

fn socket_of(written: &str) -> PathBuf {
    PathBuf::from(if written.is_empty() { SOCKET } else { written })
}

/// The daemon has another working directory.
fn absolute(path: &str) -> String {
    match std::path::absolute(path) {
        Ok(absolute) if !path.is_empty() => absolute.to_string_lossy().into_owned(),
        _ => path.to_owned(),
    }
}

fn one_of<T: Copy>(key: &str, value: &str, known: &[(&str, T)]) -> Result<T> {
    known.iter().find(|(name, _)| *name == value).map(|(_, meaning)| *meaning).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        Error::config(format!("{key}: {value:?} is none of {}", names.join(", ")))
    })
}

/// The options to send.
fn provide(entries: &[ProvideWire], args: &str) -> Result<Vec<(u8, Vec<u8>)>> {
    let mut options = Vec::with_capacity(entries.len());
    for (n, entry) in entries.iter().enumerate() {
        let at = format!("ipam.provide[{n}]");
        let Some((code, mut kind)) = options::find(&entry.option) else {
            return Err(Error::config(format!("{at}.option: cannot parse option {:?}", entry.option)));
        };
        if OWN.contains(&code) {
            return Err(Error::config(format!(
                "{at}.option: {:?} belongs to the exchange itself and cannot be provided",
                entry.option
            )));
        }
        if !entry.r#type.is_empty() {
            kind = one_of(&format!("{at}.type"), &entry.r#type, TYPES)?;
        }
        let from_arg = if entry.from_arg.is_empty() { None } else { arg(args, &entry.from_arg) };
        let value = from_arg.unwrap_or(&entry.value);
        if value.is_empty() {
            continue;
        }
        let bytes = kind.encode(value).map_err(|expected| {
            let source = if from_arg.is_some() {
                format!(" (from CNI_ARGS {})", entry.from_arg)
            } else {
                String::new()
            };
            Error::config(format!("{at}.value: {value:?}{source} is not {expected}"))
        })?;
        if bytes.len() > 255 {
            let length = bytes.len();
            return Err(Error::config(format!(
                "{at}.value: {length} bytes, more than the 255 an option takes"
            )));
        }
        options.push((code, bytes));
    }
    Ok(options)
}

/// The options to ask for: the user's in order, then the usual ones.
fn request(entries: &[RequestWire]) -> Result<Vec<u8>> {
    let mut list: Vec<u8> = Vec::new();
    let add = |code: u8, list: &mut Vec<u8>| {
        if !list.contains(&code) {
            list.push(code);
        }
    };
    for (n, entry) in entries.iter().enumerate().filter(|(_, entry)| !entry.option.is_empty()) {
        match options::find(&entry.option) {
            Some((code, _)) if code != 0 && code != 255 => add(code, &mut list),
            _ => {
                let option = &entry.option;
                return Err(Error::config(format!(
                    "ipam.request[{n}].option: cannot parse option {option:?}"
                )));
            }
        }
    }
    let skip = entries.iter().any(|entry| entry.skip_default);
    let more = match (skip, list.is_empty()) {
        (false, _) => REQUEST,
        (true, true) => REQUEST_NOTHING,
        (true, false) => &[],
    };
    more.iter().for_each(|code| add(*code, &mut list));
    Ok(list)
}

/// A value of `CNI_ARGS`, read as leniently as the Go plugin does: pieces without `=` are skipped, values may hold `=`.
fn arg<'a>(args: &'a str, name: &str) -> Option<&'a str> {
    let pairs = args.split(';').filter_map(|piece| piece.split_once('='));
    pairs.rev().find(|(key, _)| *key == name).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::{Code, Environment};
    use crate::plugins::{accepts, find};

    fn conf(ipam: &str, args: &str) -> Result<Conf> {
        let vars = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_NETNS", "/x"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_PATH", "/x"),
            ("CNI_ARGS", args),
        ];
        let get = |name: &str| vars.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned());
        let stdin = format!(r#"{{"cniVersion":"1.0.0","name":"n","ipam":{ipam}}}"#);
        let accepts = accepts(find("dhcp").unwrap());
        let req = Request::new(Environment::read(get).unwrap(), stdin.into_bytes(), accepts).unwrap();
        Conf::read(&req)
    }

    fn provided(ipam: &str, args: &str) -> Vec<(u8, Vec<u8>)> {
        conf(ipam, args).unwrap().wanted.provide
    }

    #[test]
    fn an_empty_configuration_has_the_defaults_of_the_go_plugin() {
        let conf = conf("{}", "").unwrap();
        assert_eq!(conf.socket, PathBuf::from(SOCKET));
        assert_eq!(conf.wanted.request, REQUEST);
        assert_eq!(conf.wanted.key.to_string(), "c1/n/eth0");
        assert!(
            conf.wanted.ipv4 && conf.wanted.ipv6 == Ipv6::None && conf.wanted.client_id == ClientId::Name
        );
    }

    #[test]
    fn values_of_args_go_before_written_ones_and_empty_ones_are_not_sent() {
        let ipam = r#"{"provide":[{"option":"12","value":"a","fromArg":"K8S_POD_NAME"},
            {"option":"host-name","value":""},{"option":"user-class","fromArg":"NONE"}]}"#;
        assert_eq!(provided(ipam, "junk;K8S_POD_NAME=p=q;"), [(12, b"p=q".to_vec())]);
        assert_eq!(provided(ipam, ""), [(12, b"a".to_vec())]);
    }

    #[test]
    fn named_options_are_typed_and_numbered_ones_are_text() {
        let ipam = r#"{"provide":[{"option":"ntp-servers","value":"10.0.0.1"},{"option":"42","value":"10.0.0.1"},
            {"option":"77","value":"a,b","type":"classes"}]}"#;
        assert_eq!(
            provided(ipam, ""),
            [(42, vec![10, 0, 0, 1]), (42, b"10.0.0.1".to_vec()), (77, vec![1, b'a', 1, b'b'])]
        );
    }

    #[test]
    fn the_request_list_is_the_users_then_the_usual_one() {
        let list = |ipam: &str| conf(ipam, "").unwrap().wanted.request;
        assert_eq!(list(r#"{"request":[{"option":"200"},{"option":"routers"}]}"#)[..3], [200, 3, 1]);
        assert_eq!(list(r#"{"request":[{"option":"200","skipDefault":true}]}"#), [200]);
        assert_eq!(list(r#"{"request":[{"skipDefault":true}]}"#), REQUEST_NOTHING);
    }

    #[test]
    fn faults_name_key_and_value() {
        for (ipam, msg) in [
            (
                r#"{"provide":[{"option":"nonsense"}]}"#,
                "ipam.provide[0].option: cannot parse option \"nonsense\"",
            ),
            (
                r#"{"provide":[{"option":"53","value":"x"}]}"#,
                "ipam.provide[0].option: \"53\" belongs to the exchange",
            ),
            (
                r#"{"provide":[{"option":"routers","value":"x"}]}"#,
                "ipam.provide[0].value: \"x\" is not IPv4 addresses",
            ),
            (
                r#"{"provide":[{"option":"1","value":"x","type":"y"}]}"#,
                "ipam.provide[0].type: \"y\" is none of text,",
            ),
            (r#"{"request":[{"option":"256"}]}"#, "ipam.request[0].option: cannot parse option \"256\""),
            (r#"{"ipv6":"x"}"#, "ipam.ipv6: \"x\" is none of none, slaac, dhcpv6, both"),
            (r#"{"ipv4":false}"#, "ipam.ipv4: false, and ipam.ipv6 is none"),
            (r#"{"daemon":"x"}"#, "ipam.daemon: \"x\" is none of auto, required"),
            (r#"{"priority":-1}"#, "ipam.priority: -1 is out of range"),
            ("null", "missing key ipam"),
        ] {
            let err = conf(ipam, "").unwrap_err();
            assert_eq!(err.code(), Code::INVALID_CONFIG);
            assert!(err.msg().starts_with(msg), "{err}");
        }
        let long = format!(r#"{{"provide":[{{"option":"12","value":"{}"}}]}}"#, "x".repeat(256));
        assert!(conf(&long, "").unwrap_err().msg().contains("256 bytes"));
    }

    #[test]
    fn the_names_of_types_are_those_of_the_schema() {
        assert!(TYPES.iter().map(|(name, _)| *name).eq(TYPE_NAMES.iter().copied()));
    }
}
