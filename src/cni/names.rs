//! Names as the protocol allows them, and addresses as configurations write them: valid by construction.
//! Rules: reference core.md 1.3 and 2.3; `dev_valid_name()` in the kernel's net/core/dev.c.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::error::{Code, Error, Result};

/// Longest link name the kernel takes, in bytes (`IFNAMSIZ` without its terminating zero).
pub const MAX_IFNAME: usize = 15;

/// Whether `text` is a container id or network name: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`.
pub fn is_identifier(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Checks the value of `CNI_CONTAINERID`.
///
/// # Errors
/// [`Code::ENVIRONMENT`], the value in `details`.
pub fn check_container_id(id: &str) -> Result<()> {
    match is_identifier(id) {
        true => Ok(()),
        false => Err(Error::new(Code::ENVIRONMENT, "invalid characters in containerID").with_details(id)),
    }
}

/// Checks a network's `name`.
///
/// # Errors
/// [`Code::INVALID_CONFIG`], the value in `details`.
pub fn check_network_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::config("missing network name"));
    }
    match is_identifier(name) {
        true => Ok(()),
        false => Err(Error::config("invalid characters found in network name").with_details(name)),
    }
}

/// Checks the name of an interface: the value of `CNI_IFNAME`, or that of a key.
///
/// # Errors
/// [`Code::ENVIRONMENT`].
pub fn check_ifname(name: &str) -> Result<()> {
    check_former_ifname(name)?;
    if name.contains('%') {
        let msg = "interface name contains %, for which the kernel puts a number";
        return Err(Error::new(Code::ENVIRONMENT, msg).with_details(format!("{name:?}")));
    }
    Ok(())
}

/// As [`check_ifname`], for DEL: it takes `%` (`dev_alloc_name()`), as the ADD did that could only fail.
///
/// # Errors
/// [`Code::ENVIRONMENT`].
pub fn check_former_ifname(name: &str) -> Result<()> {
    let fault = if name.is_empty() {
        "interface name is empty"
    } else if name.len() > MAX_IFNAME {
        return Err(Error::new(Code::ENVIRONMENT, "interface name is too long")
            .with_details(format!("{name:?} has {} bytes, the kernel takes {MAX_IFNAME}", name.len())));
    } else if name == "." || name == ".." {
        "interface name is . or .."
    } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        "interface name contains / or : or whitespace characters"
    } else {
        return Ok(());
    };
    Err(Error::new(Code::ENVIRONMENT, fault).with_details(format!("{name:?}")))
}

/// Parses an address. IPv4-mapped IPv6 (`::ffff:10.0.0.2`) is IPv4, as in Go.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

/// An address with a prefix length, host bits kept: `10.9.0.5/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(pub IpNet);

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Cidr, String> {
        let invalid = || format!("{text:?} is not an address with a prefix length, such as \"10.1.0.5/16\"");
        let (addr, len) = text.split_once('/').ok_or_else(invalid)?;
        if len.is_empty() || len.len() > 8 || !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(invalid());
        }
        let len: u8 = len.parse().map_err(|_| invalid())?;
        let addr: IpAddr = addr.parse().map_err(|_| invalid())?;
        let (addr, len) = match addr.to_canonical() {
            IpAddr::V4(v4) if addr.is_ipv6() => (IpAddr::V4(v4), len.checked_sub(96).ok_or_else(invalid)?),
            canonical => (canonical, len),
        };
        IpNet::new(addr, len).map(Cidr).map_err(|_| invalid())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Cidr, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// For `#[serde(deserialize_with)]`: an address, where the empty string means "not set".
///
/// # Errors
/// The deserializer's error, naming the text that is not an address.
pub fn optional_ip<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    parse_ip(&text).map(Some).ok_or_else(|| de::Error::custom(format_args!("{text:?} is not an IP address")))
}

/// The network's first address after the network address itself: the default gateway of a subnet.
///
/// For `10.1.2.5/32` this is `10.1.2.6`, as in the Go plugins; `None` past the end of the address space.
pub fn next_after_network(net: IpNet) -> Option<IpAddr> {
    match net.network() {
        IpAddr::V4(addr) => u32::from(addr).checked_add(1).map(|n| IpAddr::V4(n.into())),
        IpAddr::V6(addr) => u128::from(addr).checked_add(1).map(|n| IpAddr::V6(Ipv6Addr::from(n))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_begin_alphanumeric_and_stay_plain() {
        for good in ["a", "9", "a_b.c-d", &"x".repeat(300)] {
            assert!(is_identifier(good), "{good}");
        }
        for bad in ["", "-a", ".a", "_a", "a b", "a/b", "a:b", "é", "a\n"] {
            assert!(!is_identifier(bad), "{bad:?}");
        }
    }

    #[test]
    fn interface_names_follow_the_kernel() {
        for good in ["eth0", "...", "a@b", "fifteenbytesabc", "ééééééé"] {
            assert!(check_ifname(good).is_ok(), "{good}");
        }
        let long = "interface name is too long";
        let chars = "interface name contains / or : or whitespace characters";
        for (bad, msg) in [
            ("sixteenbytesabcd", long),
            ("éééééééé", long),
            (".", "interface name is . or .."),
            ("a/b", chars),
            ("a:b", chars),
            ("a b", chars),
            ("a\u{a0}b", chars),
            ("a\u{85}b", chars),
            ("eth%d", "interface name contains %, for which the kernel puts a number"),
        ] {
            let err = check_ifname(bad).unwrap_err();
            assert_eq!((err.code(), err.msg()), (Code::ENVIRONMENT, msg), "{bad:?}");
        }
        assert!(check_former_ifname("eth%d").is_ok() && check_former_ifname("a/b").is_err());
    }

    #[test]
    fn addresses_with_prefix_are_read_as_go_reads_them() {
        for (text, read) in [
            ("10.9.0.5/024", "10.9.0.5/24"),
            ("FD00::0:5/64", "fd00::5/64"),
            ("::ffff:10.0.0.2/120", "10.0.0.2/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), read);
        }
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.1/33",
            "010.0.0.1/8",
            "fe80::1%eth0/64",
            "10.0.0.1/",
            "10.0.0.1/+8",
            "x/8",
        ] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_gateway_is_the_address_after_the_network() {
        for (net, gateway) in
            [("10.1.2.5/16", "10.1.0.1"), ("10.1.2.5/32", "10.1.2.6"), ("fd00::9/64", "fd00::1")]
        {
            let gateway: IpAddr = gateway.parse().unwrap();
            assert_eq!(next_after_network(net.parse().unwrap()), Some(gateway), "{net}");
        }
    }
}
