//! The keys of a plugin's configuration as data: what JSON Schemas, `cni-all validate` and its "did you mean" are made
//! of. The decoders (`Wire` structures) stay the truth for what is accepted; these tables name and explain it.

use crate::cni::Version;

/// One key of a JSON object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// As written, in its usual case.
    pub name: &'static str,
    /// What may stand behind it.
    pub shape: Shape,
    /// One sentence: meaning, unit, default.
    pub about: &'static str,
    /// The first protocol version whose results can say it; `None` for all.
    pub since: Option<Version>,
    /// Nothing works without it.
    pub required: bool,
}

impl Key {
    /// The same key, for configurations of this version and later ones.
    pub const fn since(self, version: Version) -> Key {
        Key { since: Some(version), ..self }
    }

    /// The same key, which must be given.
    pub const fn required(self) -> Key {
        Key { required: true, ..self }
    }
}

/// What a value looks like in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `true` or `false`.
    Bool,
    /// A whole number within these bounds.
    Int(i64, i64),
    /// A whole number within these bounds, or one of these strings.
    IntOr(i64, i64, &'static [&'static str]),
    /// Any string.
    Text,
    /// One of these strings.
    OneOf(&'static [&'static str]),
    /// A MAC address, `02:00:00:00:00:05`.
    Mac,
    /// An IP address.
    Ip,
    /// An IP address with a prefix length.
    Cidr,
    /// An interface's name.
    Ifname,
    /// An absolute path.
    Path,
    /// An array of such values.
    List(&'static Shape),
    /// An object with these keys.
    Object(&'static [Key]),
    /// An object with keys of the user's choice, and such values.
    Map(&'static Shape),
    /// Anything; another program's business.
    Any,
}

/// A key; for the tables.
pub const fn key(name: &'static str, shape: Shape, about: &'static str) -> Key {
    Key { name, shape, about, since: None, required: false }
}

/// `mtu` of interface plugins.
pub const MTU: Key = key(
    "mtu",
    Shape::IntOr(0, u32::MAX as i64, &["auto"]),
    "MTU of the interface in bytes, or \"auto\" for that of the host's default route; default: the kernel's",
);

/// `ipMasq` of interface plugins.
pub const IP_MASQ: Key =
    key("ipMasq", Shape::Bool, "masquerade what the container sends out of its network; default: false");

/// `ipMasqBackend` of interface plugins.
pub const IP_MASQ_BACKEND: Key = key(
    "ipMasqBackend",
    Shape::OneOf(&["nftables", "iptables"]),
    "how masquerading is written; default: nftables maps",
);

/// `ipMasqExempt` of interface plugins.
pub const IP_MASQ_EXEMPT: Key = key(
    "ipMasqExempt",
    Shape::List(&Shape::Cidr),
    "networks that see the container's own address, besides the container's; default: none",
);

/// Keys of a route, in `ipam.routes`.
pub const ROUTE: &[Key] = &[
    key("dst", Shape::Cidr, "destination network").required(),
    key("gw", Shape::Ip, "next hop; default: the gateway of the address"),
    key("mtu", Shape::Int(0, u32::MAX as i64), "MTU along the route in bytes").since(Version::V1_1_0),
    key("advmss", Shape::Int(0, u32::MAX as i64), "TCP segment size to advertise, in bytes")
        .since(Version::V1_1_0),
    key("priority", Shape::Int(0, u32::MAX as i64), "metric; lower ones are preferred")
        .since(Version::V1_1_0),
    key("table", Shape::Int(0, u32::MAX as i64), "routing table; default: 254, main").since(Version::V1_1_0),
    key("scope", Shape::Int(0, 255), "0 global, 253 link, 254 host").since(Version::V1_1_0),
];

/// Keys of `dns`.
pub const DNS: &[Key] = &[
    key("nameservers", Shape::List(&Shape::Text), "addresses of name servers, best first"),
    key("domain", Shape::Text, "local domain for short names"),
    key("search", Shape::List(&Shape::Text), "domains to search for short names, best first"),
    key("options", Shape::List(&Shape::Text), "options as in resolv.conf(5)"),
];

/// `mac` of `runtimeConfig`.
pub const MAC: Key = key("mac", Shape::Mac, "MAC address of the container's interface; default: random");

/// `ips` of `runtimeConfig`.
pub const IPS: Key =
    key("ips", Shape::List(&Shape::Text), "addresses to assign, with or without prefix length");
