//! DHCPv4 options as configurations name and write them.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::v4::packet::code;

/// How a value is written in a configuration, and sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// The text as it is: what the Go plugin does with every value.
    Text,
    /// An address.
    Ip,
    /// Addresses with commas between them.
    Ips,
    /// `true` or `false`.
    Bool,
    /// A number of one byte.
    U8,
    /// A number of two bytes.
    U16,
    /// A number of four bytes.
    U32,
    /// Bytes as hexadecimal digits; colons and spaces between bytes are allowed.
    Hex,
    /// Domain names with commas between them (RFC 1035 labels).
    Domains,
    /// Classes with commas between them, each with its length (RFC 3004).
    Classes,
    /// `NETWORK via ROUTER` with commas between them (RFC 3442).
    Routes,
}

/// Names of types, for the key `type` of `provide`.
pub const TYPES: &[(&str, Type)] = &[
    ("text", Type::Text),
    ("ip", Type::Ip),
    ("ips", Type::Ips),
    ("bool", Type::Bool),
    ("u8", Type::U8),
    ("u16", Type::U16),
    ("u32", Type::U32),
    ("hex", Type::Hex),
    ("domains", Type::Domains),
    ("classes", Type::Classes),
    ("routes", Type::Routes),
];

/// Names as in dhcp-options(5), codes and types of RFC 2132 and its successors.
const OPTIONS: &[(&str, u8, Type)] = &[
    ("subnet-mask", code::SUBNET_MASK, Type::Ip),
    ("time-offset", 2, Type::U32),
    ("routers", code::ROUTERS, Type::Ips),
    ("time-servers", 4, Type::Ips),
    ("ien116-name-servers", 5, Type::Ips),
    ("domain-name-servers", code::DNS, Type::Ips),
    ("log-servers", 7, Type::Ips),
    ("cookie-servers", 8, Type::Ips),
    ("lpr-servers", 9, Type::Ips),
    ("impress-servers", 10, Type::Ips),
    ("resource-location-servers", 11, Type::Ips),
    ("host-name", code::HOST_NAME, Type::Text),
    ("boot-size", 13, Type::U16),
    ("merit-dump", 14, Type::Text),
    ("domain-name", code::DOMAIN, Type::Text),
    ("swap-server", 16, Type::Ip),
    ("root-path", 17, Type::Text),
    ("extensions-path", 18, Type::Text),
    ("ip-forwarding", 19, Type::Bool),
    ("non-local-source-routing", 20, Type::Bool),
    ("policy-filter", 21, Type::Ips),
    ("max-dgram-reassembly", 22, Type::U16),
    ("default-ip-ttl", 23, Type::U8),
    ("path-mtu-aging-timeout", 24, Type::U32),
    ("interface-mtu", code::MTU, Type::U16),
    ("all-subnets-local", 27, Type::Bool),
    ("broadcast-address", 28, Type::Ip),
    ("perform-mask-discovery", 29, Type::Bool),
    ("mask-supplier", 30, Type::Bool),
    ("router-discovery", 31, Type::Bool),
    ("router-solicitation-address", 32, Type::Ip),
    ("static-routes", code::STATIC_ROUTES, Type::Ips),
    ("trailer-encapsulation", 34, Type::Bool),
    ("arp-cache-timeout", 35, Type::U32),
    ("ieee802-3-encapsulation", 36, Type::Bool),
    ("default-tcp-ttl", 37, Type::U8),
    ("tcp-keepalive-interval", 38, Type::U32),
    ("tcp-keepalive-garbage", 39, Type::Bool),
    ("nis-domain", 40, Type::Text),
    ("nis-servers", 41, Type::Ips),
    ("ntp-servers", code::NTP, Type::Ips),
    ("vendor-encapsulated-options", 43, Type::Hex),
    ("netbios-name-servers", 44, Type::Ips),
    ("netbios-dd-server", 45, Type::Ips),
    ("netbios-node-type", 46, Type::U8),
    ("netbios-scope", 47, Type::Text),
    ("font-servers", 48, Type::Ips),
    ("x-display-manager", 49, Type::Ips),
    ("dhcp-requested-address", code::REQUESTED, Type::Ip),
    ("dhcp-lease-time", code::LEASE_TIME, Type::U32),
    ("dhcp-option-overload", code::OVERLOAD, Type::U8),
    ("dhcp-message-type", code::TYPE, Type::U8),
    ("dhcp-server-identifier", code::SERVER, Type::Ip),
    ("dhcp-parameter-request-list", code::REQUEST_LIST, Type::Hex),
    ("dhcp-message", code::MESSAGE, Type::Text),
    ("dhcp-max-message-size", code::MAX_SIZE, Type::U16),
    ("dhcp-renewal-time", code::T1, Type::U32),
    ("dhcp-rebinding-time", code::T2, Type::U32),
    ("vendor-class-identifier", code::VENDOR_CLASS, Type::Text),
    ("dhcp-client-identifier", code::CLIENT_ID, Type::Text),
    ("nwip-domain", 62, Type::Text),
    ("nisplus-domain", 64, Type::Text),
    ("nisplus-servers", 65, Type::Ips),
    ("tftp-server-name", 66, Type::Text),
    ("bootfile-name", 67, Type::Text),
    ("mobile-ip-home-agent", 68, Type::Ips),
    ("smtp-server", 69, Type::Ips),
    ("pop-server", 70, Type::Ips),
    ("nntp-server", 71, Type::Ips),
    ("www-server", 72, Type::Ips),
    ("finger-server", 73, Type::Ips),
    ("irc-server", 74, Type::Ips),
    ("streettalk-server", 75, Type::Ips),
    ("streettalk-directory-assistance-server", 76, Type::Ips),
    ("user-class", code::USER_CLASS, Type::Text),
    ("slp-directory-agent", 78, Type::Hex),
    ("slp-service-scope", 79, Type::Hex),
    ("fqdn", 81, Type::Hex),
    ("nds-servers", 85, Type::Ips),
    ("nds-tree-name", 86, Type::Text),
    ("nds-context", 87, Type::Text),
    ("bcms-controller-names", 88, Type::Domains),
    ("bcms-controller-address", 89, Type::Ips),
    ("pxe-system-type", 93, Type::U16),
    ("pxe-interface-id", 94, Type::Hex),
    ("pxe-client-id", 97, Type::Hex),
    ("uap-servers", 98, Type::Text),
    ("geoconf-civic", 99, Type::Hex),
    ("pcode", 100, Type::Text),
    ("tcode", 101, Type::Text),
    ("v6-only-preferred", 108, Type::U32),
    ("captive-portal", 114, Type::Text),
    ("auto-config", 116, Type::U8),
    ("name-service-search", 117, Type::Hex),
    ("subnet-selection", 118, Type::Ip),
    ("domain-search", code::SEARCH, Type::Domains),
    ("sip-servers", 120, Type::Hex),
    ("classless-static-routes", code::CLASSLESS_ROUTES, Type::Routes),
    ("vivco", 124, Type::Hex),
    ("vivso", 125, Type::Hex),
    ("tftp-server-address", 150, Type::Ips),
];

/// The code and type of an option that is named, or numbered (its value is then text, as in the Go plugin).
pub fn find(option: &str) -> Option<(u8, Type)> {
    match OPTIONS.iter().find(|(name, ..)| *name == option) {
        Some((_, code, kind)) => Some((*code, *kind)),
        None => {
            // Go reads "+5" as well; digits are what people write.
            let digits = !option.is_empty() && option.bytes().all(|b| b.is_ascii_digit());
            option.parse().ok().filter(|_| digits).map(|code| (code, Type::Text))
        }
    }
}

/// The name of an option; its number when it has none.
pub fn name(code: u8) -> String {
    let found = OPTIONS.iter().find(|(_, c, _)| *c == code);
    found.map_or_else(|| code.to_string(), |(name, ..)| (*name).to_owned())
}

/// A value for people: as its type is written, or as hexadecimal digits.
pub fn show(code: u8, value: &[u8]) -> String {
    let kind = OPTIONS.iter().find(|(_, c, _)| *c == code).map_or(Type::Hex, |(.., kind)| *kind);
    let hex = || value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
    match (kind, value.len()) {
        (Type::Ip | Type::Ips, length) if length > 0 && length.is_multiple_of(4) => {
            let ips = value.chunks_exact(4).map(|b| Ipv4Addr::new(b[0], b[1], b[2], b[3]).to_string());
            ips.collect::<Vec<_>>().join(",")
        }
        (Type::U8 | Type::U16 | Type::U32, 1..=4) => {
            value.iter().fold(0u32, |n, byte| n << 8 | u32::from(*byte)).to_string()
        }
        (Type::Bool, 1) => (value[0] != 0).to_string(),
        (Type::Text, _) => match std::str::from_utf8(value) {
            Ok(text) if !text.contains(char::is_control) => text.to_owned(),
            _ => hex(),
        },
        _ => hex(),
    }
}

impl Type {
    /// The bytes of a value.
    ///
    /// # Errors
    /// What was expected, as the end of a sentence.
    pub fn encode(self, value: &str) -> Result<Vec<u8>, &'static str> {
        let items = || value.split(',').map(str::trim);
        match self {
            Type::Text => Ok(value.as_bytes().to_vec()),
            Type::Ip => {
                value.parse::<Ipv4Addr>().map(|ip| ip.octets().to_vec()).map_err(|_| "an IPv4 address")
            }
            Type::Ips => {
                let ips: Result<Vec<Ipv4Addr>, _> = items().map(str::parse).collect();
                let ips = ips.map_err(|_| "IPv4 addresses with commas between them")?;
                Ok(ips.iter().flat_map(|ip| ip.octets()).collect())
            }
            Type::Bool => match value {
                "true" | "1" => Ok(vec![1]),
                "false" | "0" => Ok(vec![0]),
                _ => Err("true or false"),
            },
            Type::U8 => value.parse::<u8>().map(|n| vec![n]).map_err(|_| "a number up to 255"),
            Type::U16 => {
                value.parse::<u16>().map(|n| n.to_be_bytes().to_vec()).map_err(|_| "a number up to 65535")
            }
            Type::U32 => value
                .parse::<u32>()
                .map(|n| n.to_be_bytes().to_vec())
                .map_err(|_| "a number up to 4294967295"),
            Type::Hex => hex(value).ok_or("bytes as pairs of hexadecimal digits"),
            Type::Domains => {
                let mut bytes = Vec::new();
                for name in items() {
                    let name = name.trim_end_matches('.');
                    if !super::names::is_domain(name) {
                        return Err("domain names with commas between them");
                    }
                    for label in name.split('.') {
                        bytes.push(label.len() as u8);
                        bytes.extend_from_slice(label.as_bytes());
                    }
                    bytes.push(0);
                }
                Ok(bytes)
            }
            Type::Classes => {
                let mut bytes = Vec::new();
                for class in items() {
                    let length = u8::try_from(class.len()).ok().filter(|length| *length > 0);
                    bytes.push(length.ok_or("classes of 1 to 255 bytes with commas between them")?);
                    bytes.extend_from_slice(class.as_bytes());
                }
                Ok(bytes)
            }
            Type::Routes => {
                let mut bytes = Vec::new();
                for route in items() {
                    let (net, router) = route_of(route).ok_or("routes as \"10.1.0.0/16 via 10.0.0.1\"")?;
                    bytes.push(net.prefix_len());
                    let significant = usize::from(net.prefix_len()).div_ceil(8);
                    bytes.extend_from_slice(&net.network().octets()[..significant]);
                    bytes.extend_from_slice(&router.octets());
                }
                Ok(bytes)
            }
        }
    }
}

fn route_of(text: &str) -> Option<(Ipv4Net, Ipv4Addr)> {
    let (net, router) = text.split_once(" via ")?;
    Some((net.trim().parse().ok()?, router.trim().parse().ok()?))
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|b| !matches!(b, b':' | b' ')).collect();
    if digits.is_empty() || !digits.len().is_multiple_of(2) {
        return None;
    }
    let pairs = digits.chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_known_by_name_and_by_number() {
        assert_eq!(find("routers"), Some((3, Type::Ips)));
        assert_eq!(find("121"), Some((121, Type::Text)));
        for unknown in ["", "router", "256", "+3", "-1", "0x3"] {
            assert_eq!(find(unknown), None, "{unknown}");
        }
        assert_eq!((name(42).as_str(), name(200).as_str()), ("ntp-servers", "200"));
    }

    #[test]
    fn every_name_and_code_stands_once_in_order() {
        assert!(OPTIONS.is_sorted_by(|a, b| a.1 < b.1));
        let mut names: Vec<&str> = OPTIONS.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), OPTIONS.len());
    }

    #[test]
    fn values_are_sent_as_their_type_says() {
        for (kind, value, bytes) in [
            (Type::Text, "a b", b"a b".as_slice()),
            (Type::Ip, "10.0.0.1", &[10, 0, 0, 1]),
            (Type::Ips, "10.0.0.1, 10.0.0.2", &[10, 0, 0, 1, 10, 0, 0, 2]),
            (Type::Bool, "true", &[1]),
            (Type::U8, "7", &[7]),
            (Type::U16, "1500", &[5, 220]),
            (Type::U32, "1", &[0, 0, 0, 1]),
            (Type::Hex, "00:ff 0a", &[0, 255, 10]),
            (Type::Domains, "a.b,c.", &[1, b'a', 1, b'b', 0, 1, b'c', 0]),
            (Type::Classes, "ab,c", &[2, b'a', b'b', 1, b'c']),
            (
                Type::Routes,
                "10.1.0.0/16 via 10.0.0.1,0.0.0.0/0 via 10.0.0.2",
                &[16, 10, 1, 10, 0, 0, 1, 0, 10, 0, 0, 2],
            ),
        ] {
            assert_eq!(kind.encode(value).as_deref(), Ok(bytes), "{kind:?}");
        }
        for (kind, value) in [
            (Type::Ip, "x"),
            (Type::Ips, "10.0.0.1,"),
            (Type::Bool, "yes"),
            (Type::U8, "256"),
            (Type::Hex, "0"),
            (Type::Hex, "zz"),
            (Type::Hex, "é0"),
            (Type::Domains, "a b"),
            (Type::Classes, ""),
            (Type::Routes, "10.1.0.0/16"),
        ] {
            assert!(kind.encode(value).is_err(), "{kind:?} {value}");
        }
    }
}
