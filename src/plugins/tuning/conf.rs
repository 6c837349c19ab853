//! tuning's configuration (reference: ipam-and-meta.md section 8).

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::attach::{mac, mtu};
use crate::cni::{Code, Command, Error, Request, Result};
use crate::kernel::dry_run;
use crate::kernel::rtnl::Mac;
use crate::plugins::keys::{Key, Shape, key};

/// Where backups are kept, as in the Go plugin.
const DATA_DIR: &str = "/run/cni/tuning";

/// Stands for `CNI_IFNAME` in the name of a setting.
const IFNAME: &str = "IFNAME";

/// Every key, explained.
pub const KEYS: &[Key] = &[
    key("sysctl", Shape::Map(&Shape::Text), "settings below net.; IFNAME stands for the interface's name"),
    key("mac", Shape::Mac, "MAC address of the interface"),
    key("mtu", Shape::Int(0, u32::MAX as i64), "MTU of the interface in bytes; default: as it is"),
    key("promisc", Shape::Bool, "the interface receives every frame; default: unchanged"),
    key("allmulti", Shape::Bool, "the interface receives every multicast frame; default: unchanged"),
    key(
        "txQLen",
        Shape::Int(0, i32::MAX as i64),
        "length of the transmit queue in packets; default: unchanged",
    ),
    key("dataDir", Shape::Path, "where original values are kept; default: /run/cni/tuning"),
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    sysctl: Sysctls,
    mac: String,
    /// Bytes; 0 and less mean "not set".
    mtu: i64,
    /// False means "not set".
    promisc: bool,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue: Option<i64>,
    args: ArgsWire,
    runtime_config: RuntimeWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeWire {
    mac: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ArgsWire {
    cni: OverrideWire,
}

/// `args.cni`: goes before everything else.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct OverrideWire {
    sysctl: Sysctls,
    mac: Option<String>,
    mtu: Option<i64>,
    promisc: Option<bool>,
    allmulti: Option<bool>,
    #[serde(rename = "txQLen")]
    tx_queue: Option<i64>,
}

/// Names and values in the order they are written; a name that stands twice is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sysctls(pub Vec<(String, String)>);

impl<'de> Deserialize<'de> for Sysctls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sysctls, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Sysctls;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Sysctls, A::Error> {
                let mut found: Vec<(String, String)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, Option<String>>()? {
                    if found.iter().any(|(earlier, _)| *earlier == name) {
                        let what =
                            format_args!("{name:?} stands twice: duplicated sysctl keys are not allowed");
                        return Err(A::Error::custom(what));
                    }
                    found.push((name, value.unwrap_or_default()));
                }
                Ok(Sysctls(found))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

/// A setting below /proc/sys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// As the configuration has it: what the allowlist is about.
    pub name: String,
    /// Files it can mean, below /proc/sys; the first that exists is meant.
    pub paths: Vec<String>,
    /// What to write.
    pub value: String,
}

/// What to change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conf {
    /// Settings, in order.
    pub sysctls: Vec<Sysctl>,
    /// New address.
    pub mac: Option<Mac>,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Receive every frame.
    pub promisc: bool,
    /// Receive every multicast frame.
    pub allmulti: Option<bool>,
    /// Packets.
    pub tx_queue: Option<u32>,
}

impl Conf {
    /// Reads and checks the configuration of a request.
    ///
    /// # Errors
    /// [`Code::INVALID_CONFIG`] naming key and value, [`Code::DECODING`] for a wrong JSON type,
    /// [`Code::ENVIRONMENT`] for `MAC` of `CNI_ARGS`.
    pub fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let over = wire.args.cni;
        let mut written = wire.sysctl.0;
        for (name, value) in over.sysctl.0 {
            match written.iter_mut().find(|(n, _)| *n == name) {
                Some(entry) => entry.1 = value,
                None => written.push((name, value)),
            }
        }
        // STATUS is about no attachment: any name will do.
        let ifname = if req.ifname.is_empty() { "eth0" } else { req.ifname.as_str() };
        let sysctls = written.into_iter().map(|(name, value)| {
            let paths = paths(&name, ifname)?;
            Ok(Sysctl { name, paths, value })
        });
        Ok(Conf {
            sysctls: sysctls.collect::<Result<_>>()?,
            mac: strongest_mac(req, over.mac.as_deref(), &wire.runtime_config.mac, &wire.mac)?,
            mtu: mtu::of_number(over.mtu.unwrap_or(wire.mtu))?,
            promisc: over.promisc.unwrap_or(wire.promisc),
            allmulti: over.allmulti.or(wire.allmulti),
            tx_queue: over.tx_queue.or(wire.tx_queue).map(tx_queue).transpose()?,
        })
    }

    /// Whether anything of the interface itself is to be changed.
    pub fn changes_link(&self) -> bool {
        let Conf { sysctls: _, mac, mtu, promisc, allmulti, tx_queue } = self;
        mac.is_some() || mtu.is_some() || *promisc || allmulti.is_some() || tx_queue.is_some()
    }
}

/// Where backups are kept. However wrong the configuration is, DEL can read this.
///
/// # Errors
/// `dataDir` is no string; DEL and GC then take the default.
pub fn data_dir(req: &Request) -> Result<PathBuf> {
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Wire {
        data_dir: String,
    }
    let dir = match req.config.read::<Wire>() {
        Ok(wire) => wire.data_dir,
        Err(_) if matches!(req.command, Command::Del | Command::Gc) => String::new(),
        Err(e) => return Err(e),
    };
    Ok(dry_run::files(PathBuf::from(if dir.is_empty() { DATA_DIR } else { &dir })))
}

/// Weakest first: configuration, `CNI_ARGS`, `runtimeConfig`, `args.cni`: another order than that of main plugins.
fn strongest_mac(req: &Request, over: Option<&str>, runtime: &str, written: &str) -> Result<Option<Mac>> {
    let args = req.args()?;
    let sources = [
        ("args.cni.mac", over.unwrap_or_default()),
        ("runtimeConfig.mac", runtime),
        ("CNI_ARGS: MAC", args.get("MAC").unwrap_or_default()),
        ("mac", written),
    ];
    let Some((key, text)) = sources.into_iter().find(|(_, text)| !text.is_empty()) else { return Ok(None) };
    match mac::of_interface(key, text) {
        Ok(mac) => Ok(Some(mac)),
        Err(e) if key.starts_with("CNI_ARGS") => Err(e.with_code(Code::ENVIRONMENT)),
        Err(e) => Err(e),
    }
}

fn tx_queue(written: i64) -> Result<u32> {
    // The kernel keeps it as unsigned, and refuses what is no int (dev_change_tx_queue_len).
    let length = i32::try_from(written).ok().and_then(|n| u32::try_from(n).ok());
    length.ok_or_else(|| Error::config(format!("txQLen: {written} is not a length from 0 to {}", i32::MAX)))
}

/// The files below /proc/sys that a name can mean, the first `IFNAME` in it replaced.
///
/// The Go plugin makes every dot a slash. sysctl(8) takes a name whose first separator is a slash literally, and otherwise
/// swaps dots and slashes: that is how a name of an interface with dots is written (`net/ipv4/conf/eth0.5/forwarding`,
/// `net.ipv4.conf.eth0/5.forwarding`). Both readings are tried, that of the Go plugin last where they differ: it cannot
/// exist then.
fn paths(name: &str, ifname: &str) -> Result<Vec<String>> {
    let separator = name.chars().find(|c| matches!(c, '.' | '/'));
    let as_sysctl: String = match separator {
        Some('.') => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    };
    let mut paths = Vec::with_capacity(2);
    for path in [as_sysctl, name.replace('.', "/")] {
        let path = path.replacen(IFNAME, ifname, 1);
        let path = path.trim_start_matches('/');
        let parts = || path.split('/');
        let below_net = parts().next() == Some("net") && parts().count() > 1;
        if below_net
            && parts().all(|part| !matches!(part, "" | "." | ".."))
            && !paths.contains(&path.to_owned())
        {
            paths.push(path.to_owned());
        }
    }
    if paths.is_empty() {
        let msg =
            format!("sysctl: {name:?} does not name a setting below net., such as \"net.core.somaxconn\"");
        return Err(Error::config(msg));
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::{Accepts, Environment, Version};

    fn conf(keys: &str, args: &str) -> Result<Conf> {
        let environment = Environment::read(|name| {
            Some(match name {
                "CNI_COMMAND" => "ADD".to_owned(),
                "CNI_NETNS_OVERRIDE" => String::new(),
                "CNI_ARGS" => args.to_owned(),
                "CNI_IFNAME" => "eth0.5".to_owned(),
                _ => "x".to_owned(),
            })
        })?;
        let json = format!(r#"{{"name":"n","cniVersion":"1.1.0"{keys}}}"#);
        let accepts = Accepts { versions: Version::ALL, nameless: false };
        Conf::new(&Request::new(environment, json.into_bytes(), accepts)?)
    }

    #[test]
    fn names_with_dots_and_slashes_mean_files() {
        let of = |name: &str| paths(name, "eth0.5").unwrap();
        assert_eq!(of("net.core.somaxconn"), ["net/core/somaxconn"]);
        assert_eq!(of("net/core/somaxconn"), ["net/core/somaxconn"]);
        assert_eq!(of("/net/core/somaxconn"), ["net/core/somaxconn"]);
        assert_eq!(of("net.ipv4.conf.IFNAME.arp_filter"), ["net/ipv4/conf/eth0.5/arp_filter"]);
        assert_eq!(of("net.ipv4.conf.eth0/5.arp_filter")[0], "net/ipv4/conf/eth0.5/arp_filter");
        assert_eq!(of("net/ipv4/conf/eth0.5/arp_filter")[0], "net/ipv4/conf/eth0.5/arp_filter");
        assert_eq!(of("net/ipv4.conf.all/arp_filter")[1], "net/ipv4/conf/all/arp_filter");
    }

    #[test]
    fn names_outside_net_are_refused() {
        for bad in ["kernel.hostname", "net", "", "net/../kernel/hostname", "net...kernel", "network.x"] {
            let err = paths(bad, "eth0").unwrap_err();
            assert!(err.msg().contains(&format!("{bad:?}")), "{bad}");
        }
    }

    #[test]
    fn settings_keep_their_order_and_arguments_go_before() {
        let keys =
            r#","sysctl":{"net.b":"1","net.a":"2"},"args":{"cni":{"sysctl":{"net.b":"3","net.c":"4"}}}"#;
        let conf = conf(keys, "").unwrap();
        let written: Vec<(&str, &str)> =
            conf.sysctls.iter().map(|s| (s.name.as_str(), s.value.as_str())).collect();
        assert_eq!(written, [("net.b", "3"), ("net.a", "2"), ("net.c", "4")]);
        assert!(!conf.changes_link());
    }

    #[test]
    fn a_setting_that_stands_twice_is_refused() {
        let err = conf(r#","sysctl":{"net.a":"1","net.a":"2"}"#, "").unwrap_err();
        assert_eq!(err.code(), Code::INVALID_CONFIG);
        assert!(err.msg().contains("net.a"), "{err}");
        assert_eq!(conf(r#","sysctl":{"net.a":1}"#, "").unwrap_err().code(), Code::DECODING);
    }

    #[test]
    fn the_mac_of_the_arguments_is_the_strongest() {
        let mac = |n: u8| format!("02:00:00:00:00:0{n}");
        let all = format!(
            r#","mac":"{}","runtimeConfig":{{"mac":"{}"}},"args":{{"cni":{{"mac":"{}"}}}}"#,
            mac(1),
            mac(3),
            mac(4)
        );
        let text = |keys: &str, args: &str| conf(keys, args).unwrap().mac.unwrap().to_string();
        assert_eq!(text(&all, "MAC=02:00:00:00:00:02"), mac(4));
        assert_eq!(text(&format!(r#","mac":"{}""#, mac(1)), "MAC=02:00:00:00:00:02"), mac(2));
        assert_eq!(text(&format!(r#","MAC":"{}""#, mac(1)), ""), mac(1));
        assert_eq!(conf("", "MAC=x").unwrap_err().code(), Code::ENVIRONMENT);
    }

    #[test]
    fn zero_counts_where_it_is_a_value() {
        let zero = conf(r#","mtu":0,"txQLen":0,"allmulti":false"#, "").unwrap();
        assert_eq!(
            (zero.mtu, zero.tx_queue, zero.allmulti, zero.promisc),
            (None, Some(0), Some(false), false)
        );
        assert!(zero.changes_link());
        for bad in ["-1", "2147483648"] {
            let err = conf(&format!(r#","txQLen":{bad}"#), "").unwrap_err();
            assert!(err.msg().contains(bad), "{err}");
        }
    }

    #[test]
    fn arguments_override_every_attribute() {
        let keys = r#","mtu":1400,"promisc":true,"allmulti":true,"txQLen":5,
            "args":{"cni":{"mtu":1300,"promisc":false,"allmulti":false,"txQLen":6}}"#;
        let conf = conf(keys, "").unwrap();
        assert_eq!(
            (conf.mtu, conf.promisc, conf.allmulti, conf.tx_queue),
            (Some(1300), false, Some(false), Some(6))
        );
    }
}
