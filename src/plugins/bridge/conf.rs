//! bridge's configuration (reference: main-plugins.md section 10).

use serde::Deserialize;

use crate::attach::mac;
use crate::attach::masquerade::Masquerade;
use crate::attach::mtu::Mtu;
use crate::cni::{Dns, Error, Request, Result};
use crate::kernel::rtnl::Mac;
use crate::plugins::keys::{IP_MASQ, IP_MASQ_BACKEND, IP_MASQ_EXEMPT, Key, MTU, Shape, key};

/// Every key, explained.
pub const KEYS: &[Key] = &[
    key("bridge", Shape::Ifname, "name of the bridge, made when it is missing; default: cni0"),
    key("isGateway", Shape::Bool, "give the bridge the gateway addresses, and forward; default: false"),
    key("isDefaultGateway", Shape::Bool, "isGateway, and a default route through it; default: false"),
    key(
        "forceAddress",
        Shape::Bool,
        "remove other addresses of the bridge that stand in the way; default: false",
    ),
    IP_MASQ,
    IP_MASQ_BACKEND,
    IP_MASQ_EXEMPT,
    MTU,
    key("hairpinMode", Shape::Bool, "frames may go back through the port they came from; default: false"),
    key("promiscMode", Shape::Bool, "the bridge receives every frame; default: false"),
    key("vlan", Shape::Int(0, 4094), "VLAN of the container's untagged frames; default: 0, none"),
    key("vlanTrunk", Shape::List(&Shape::Object(TRUNK)), "VLANs that reach the container tagged"),
    key(
        "preserveDefaultVlan",
        Shape::Bool,
        "keep the VLAN that the bridge gives every new port; default: false",
    ),
    key("macspoofchk", Shape::Bool, "drop frames with another source address; default: false"),
    key("enabledad", Shape::Bool, "IPv6 addresses go through duplicate address detection; default: false"),
    key("disableContainerInterface", Shape::Bool, "leave the container's interface down; default: false"),
    key("portIsolation", Shape::Bool, "no traffic between isolated ports; default: false"),
];

const TRUNK: &[Key] = &[
    key("id", Shape::Int(1, 4094), "a VLAN"),
    key("minID", Shape::Int(1, 4094), "first VLAN of a range"),
    key("maxID", Shape::Int(1, 4094), "last VLAN of a range"),
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    /// Name of the bridge; `cni0` when absent.
    bridge: Option<String>,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: String,
    ip_masq_exempt: Vec<String>,
    mtu: Mtu,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: i64,
    vlan_trunk: Option<Vec<TrunkWire>>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TrunkWire {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min_id: Option<i64>,
    #[serde(rename = "maxID")]
    max_id: Option<i64>,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Conf {
    /// The bridge's name.
    pub bridge: String,
    /// The bridge gets the gateway addresses, and the host forwards.
    pub is_gateway: bool,
    /// The container gets a default route through each family's gateway.
    pub is_default_gateway: bool,
    /// Addresses of the bridge that stand in the way are removed.
    pub force_address: bool,
    /// Masquerade the container's addresses; `None`: do not.
    pub masquerade: Option<Masquerade>,
    /// Of both ends, and of a bridge that is made.
    pub mtu: Mtu,
    /// Frames may go back through the port they came from.
    pub hairpin: bool,
    /// The bridge receives every frame.
    pub promisc: bool,
    /// VLANs of the port; `None`: the bridge's defaults.
    pub vlans: Option<Vlans>,
    /// Frames with another source address than the container's are dropped.
    pub macspoofchk: bool,
    /// IPv6 addresses go through duplicate address detection.
    pub dad: bool,
    /// The container's interface stays down.
    pub leave_down: bool,
    /// No traffic between isolated ports.
    pub isolated: bool,
    /// The container interface's address; `None`: random.
    pub mac: Option<Mac>,
    /// `ipam.type`.
    pub ipam: Option<String>,
    /// `dns`, when given.
    pub dns: Option<Dns>,
}

/// VLANs of a container's port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vlans {
    /// VLAN of untagged frames; `None`: not set, which is 1 when there are trunk VLANs.
    pub native: Option<u16>,
    /// Tagged VLANs, ascending, without [`Vlans::native`].
    pub trunk: Vec<u16>,
    /// Keep the VLANs that the bridge gives every new port.
    pub keep_default: bool,
}

impl Conf {
    /// Reads and checks the configuration of a request. On DEL and GC only what they need has to be right.
    ///
    /// # Errors
    /// [`crate::cni::Code::INVALID_CONFIG`] naming key and value, [`crate::cni::Code::DECODING`] for a wrong JSON type.
    pub fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let common = req.config.common()?;
        let bridge = wire.bridge.unwrap_or_else(|| "cni0".to_owned());
        crate::cni::names::check_ifname(&bridge)
            .map_err(|e| Error::config(format!("bridge: {bridge:?}: {}", e.msg())))?;
        if wire.disable_container_interface && common.ipam.is_some() {
            return Err(Error::config(
                "disableContainerInterface: true cannot be combined with ipam: an interface that is down has no use for addresses",
            ));
        }
        if wire.hairpin_mode && wire.promisc_mode {
            return Err(Error::config("hairpinMode and promiscMode cannot both be true"));
        }
        let conf = Conf {
            bridge,
            is_gateway: wire.is_gateway || wire.is_default_gateway,
            is_default_gateway: wire.is_default_gateway,
            force_address: wire.force_address,
            masquerade: Masquerade::of(wire.ip_masq, &wire.ip_masq_backend, &wire.ip_masq_exempt)?,
            mtu: wire.mtu,
            hairpin: wire.hairpin_mode,
            promisc: wire.promisc_mode,
            vlans: vlans(wire.vlan, wire.vlan_trunk.as_deref(), wire.preserve_default_vlan)?,
            macspoofchk: wire.macspoofchk,
            dad: wire.enabledad,
            leave_down: wire.disable_container_interface,
            isolated: wire.port_isolation,
            mac: mac::requested(req)?,
            ipam: common.ipam,
            dns: common.dns,
        };
        if let Some(name) = conf.vlan_gateway().filter(|_| conf.is_gateway) {
            crate::cni::names::check_ifname(&name).map_err(|_| {
                Error::config(format!("bridge, vlan: the gateway's link {name:?} is longer than 15 bytes"))
            })?;
        }
        Ok(conf)
    }

    /// Name of the interface that carries the gateway address of the native VLAN: `cni0.100`.
    pub fn vlan_gateway(&self) -> Option<String> {
        let native = self.vlans.as_ref()?.native?;
        Some(format!("{}.{native}", self.bridge))
    }
}

fn vlans(vlan: i64, trunk: Option<&[TrunkWire]>, keep_default: bool) -> Result<Option<Vlans>> {
    let native = match vlan {
        0 => None,
        1..=4094 => Some(vlan as u16),
        _ => return Err(Error::config(format!("vlan: {vlan} is not an id from 0 to 4094"))),
    };
    let Some(entries) = trunk else {
        return Ok(native.map(|native| Vlans { native: Some(native), trunk: Vec::new(), keep_default }));
    };
    let mut ids = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let id = |key: &str, value: i64| match value {
            1..=4094 => Ok(value as u16),
            _ => Err(Error::config(format!("vlanTrunk[{i}].{key}: {value} is not an id from 1 to 4094"))),
        };
        match (entry.min_id, entry.max_id) {
            (None, None) => {}
            (None, Some(_)) => return Err(Error::config(format!("vlanTrunk[{i}]: maxID without minID"))),
            (Some(_), None) => return Err(Error::config(format!("vlanTrunk[{i}]: minID without maxID"))),
            (Some(min), Some(max)) => {
                let (min, max) = (id("minID", min)?, id("maxID", max)?);
                if max < min {
                    let msg = format!("vlanTrunk[{i}]: maxID {max} is less than minID {min}");
                    return Err(Error::config(msg));
                }
                ids.extend(min..=max);
            }
        }
        if let Some(single) = entry.id {
            ids.push(id("id", single)?);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    // The native VLAN stays untagged, also when the trunk names it.
    let untagged = native.or((!ids.is_empty()).then_some(1));
    ids.retain(|id| Some(*id) != untagged);
    Ok(Some(Vlans { native, trunk: ids, keep_default }))
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
                _ => "x".to_owned(),
            })
        })?;
        let json = format!(r#"{{"name":"n","cniVersion":"1.1.0"{keys}}}"#);
        Conf::new(&Request::new(
            environment,
            json.into_bytes(),
            Accepts { versions: Version::ALL, nameless: false },
        )?)
    }

    fn message(keys: &str) -> String {
        conf(keys, "").unwrap_err().msg().to_owned()
    }

    #[test]
    fn absent_keys_have_the_documented_defaults() {
        let conf = conf("", "").unwrap();
        assert_eq!((conf.bridge.as_str(), conf.mtu, conf.vlans.clone()), ("cni0", Mtu::Unset, None));
        assert!(!conf.is_gateway && conf.masquerade.is_none() && conf.ipam.is_none() && conf.mac.is_none());
    }

    #[test]
    fn is_default_gateway_implies_is_gateway() {
        assert!(conf(r#","isDefaultGateway":true"#, "").unwrap().is_gateway);
    }

    #[test]
    fn contradictions_and_bad_values_are_named() {
        assert!(message(r#","hairpinMode":true,"promiscMode":true"#).contains("hairpinMode and promiscMode"));
        assert!(
            message(r#","disableContainerInterface":true,"ipam":{"type":"x"}"#)
                .contains("disableContainerInterface")
        );
        assert_eq!(message(r#","bridge":"""#), r#"bridge: "": interface name is empty"#);
        assert_eq!(
            message(r#","bridge":"pc%d""#),
            r#"bridge: "pc%d": interface name contains %, for which the kernel puts a number"#
        );
        assert_eq!(message(r#","vlan":5000"#), "vlan: 5000 is not an id from 0 to 4094");
        assert_eq!(message(r#","vlan":-100"#), "vlan: -100 is not an id from 0 to 4094");
        assert_eq!(message(r#","vlanTrunk":[{"minID":5}]"#), "vlanTrunk[0]: minID without maxID");
        assert_eq!(message(r#","vlanTrunk":[{"id":1},{"maxID":5}]"#), "vlanTrunk[1]: maxID without minID");
        assert_eq!(
            message(r#","vlanTrunk":[{"minID":9,"maxID":5}]"#),
            "vlanTrunk[0]: maxID 5 is less than minID 9"
        );
        assert_eq!(
            message(r#","vlanTrunk":[{"id":4095}]"#),
            "vlanTrunk[0].id: 4095 is not an id from 1 to 4094"
        );
        assert!(message(r#","ipMasq":true,"ipMasqBackend":"ipfw""#).contains("ipMasqBackend"));
        assert_eq!(
            message(r#","portIsolation":"true""#),
            "portIsolation: expected true or false, found the string \"true\""
        );
    }

    #[test]
    fn trunk_vlans_are_ascending_without_repeats_and_without_the_native_one() {
        let vlans = |keys: &str| conf(keys, "").unwrap().vlans.unwrap();
        let trunk =
            r#","vlanTrunk":[{"minID":200,"maxID":202},{"id":101},{"id":201,"minID":100,"maxID":101}]"#;
        assert_eq!(
            vlans(trunk),
            Vlans { native: None, trunk: vec![100, 101, 200, 201, 202], keep_default: false }
        );
        assert_eq!(vlans(&format!(r#"{trunk},"vlan":100"#)).trunk, [101, 200, 201, 202]);
        assert_eq!(vlans(r#","vlanTrunk":[]"#), Vlans::default());
        assert_eq!(conf(r#","vlan":0"#, "").unwrap().vlans, None);
    }
}
