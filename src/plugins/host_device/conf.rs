//! host-device's configuration (reference: main-plugins.md section 16).

use std::path::PathBuf;

use serde::Deserialize;

use crate::cni::{Command, Dns, Error, Request, Result};
use crate::kernel::dry_run;
use crate::kernel::rtnl::Mac;
use crate::plugins::keys::{Key, Shape, key};

/// Where records are kept.
pub const DATA_DIR: &str = "/run/cni/host-device";

/// Every key, explained.
pub const KEYS: &[Key] = &[
    key("device", Shape::Ifname, "name of the device on the host; goes before the other ways to name it"),
    key("hwaddr", Shape::Mac, "MAC address of the device"),
    key("kernelpath", Shape::Path, "the device's directory below /sys/devices/"),
    key("pciBusID", Shape::Text, "PCI address of the device, such as 0000:00:1f.6"),
    key(
        "DPDKMode",
        Shape::Bool,
        "the device has a user-space driver: it is not moved; default: by its driver",
    ),
    key("dataDir", Shape::Path, "where it is kept what the device was like; default: /run/cni/host-device"),
];

/// `runtimeConfig`.
pub const CAPABILITIES: &[Key] = &[key(
    "deviceID",
    Shape::Text,
    "PCI address or auxiliary device that the runtime chose, in place of pciBusID",
)];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    device: String,
    hwaddr: String,
    kernelpath: String,
    #[serde(rename = "pciBusID")]
    pci_bus_id: String,
    #[serde(rename = "DPDKMode")]
    dpdk_mode: bool,
    runtime_config: RuntimeWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeWire {
    #[serde(rename = "deviceID")]
    device_id: String,
}

/// How the device is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// By its interface's name.
    Name(String),
    /// By its interface's address.
    Hwaddr(Mac),
    /// By its directory, without the leading `/sys/`.
    KernelPath(String),
    /// By its PCI address.
    Pci(String),
    /// A PCI address, or the name of an auxiliary device.
    DeviceId(String),
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Conf {
    /// The device; `None` when only the runtime can say.
    pub selector: Option<Selector>,
    /// The device has a user-space driver, whatever sysfs says; for devices that are not named by a PCI address.
    pub userspace: bool,
    /// `ipam.type`.
    pub ipam: Option<String>,
    /// `dns`, when given.
    pub dns: Option<Dns>,
}

impl Conf {
    /// Reads and checks the configuration of a request.
    ///
    /// # Errors
    /// [`crate::cni::Code::INVALID_CONFIG`] naming key and value, [`crate::cni::Code::DECODING`] for a wrong JSON type.
    pub fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let common = req.config.common()?;
        data_dir(req)?;
        Ok(Conf { selector: selector(&wire)?, userspace: wire.dpdk_mode, ipam: common.ipam, dns: common.dns })
    }

    /// The device.
    ///
    /// # Errors
    /// None is named.
    pub fn device(&self) -> Result<&Selector> {
        self.selector.as_ref().ok_or_else(|| {
            Error::config(
                "one of device, hwaddr, kernelpath, pciBusID or runtimeConfig.deviceID must name the device",
            )
        })
    }
}

/// Where records are kept. However wrong the configuration is, DEL can read this.
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

/// The first that is given of device, hwaddr, kernelpath, deviceID, pciBusID.
fn selector(wire: &Wire) -> Result<Option<Selector>> {
    let refused = |key: &str, value: &str, what: &str| Err(Error::config(format!("{key}: {value:?} {what}")));
    if !wire.device.is_empty() {
        return match crate::cni::names::check_ifname(&wire.device) {
            Ok(()) => Ok(Some(Selector::Name(wire.device.clone()))),
            Err(e) => refused("device", &wire.device, &format!("cannot be: {}", e.msg())),
        };
    }
    if !wire.hwaddr.is_empty() {
        return match wire.hwaddr.parse() {
            Ok(mac) => Ok(Some(Selector::Hwaddr(mac))),
            Err(_) => refused("hwaddr", &wire.hwaddr, "is not an Ethernet address"),
        };
    }
    if !wire.kernelpath.is_empty() {
        let path = wire.kernelpath.strip_prefix("/sys/").filter(|path| path.starts_with("devices/"));
        return match path.filter(|path| !path.split('/').any(|part| part == "..")) {
            Some(path) => Ok(Some(Selector::KernelPath(path.to_owned()))),
            None => refused("kernelpath", &wire.kernelpath, "is not a directory below /sys/devices/"),
        };
    }
    let is_name = |id: &str| !id.contains('/') && !matches!(id, "." | "..");
    if !wire.runtime_config.device_id.is_empty() {
        return match wire.runtime_config.device_id.as_str() {
            id if is_name(id) => Ok(Some(Selector::DeviceId(id.to_owned()))),
            id => refused("runtimeConfig.deviceID", id, "is not the name of a device"),
        };
    }
    match wire.pci_bus_id.as_str() {
        "" => Ok(None),
        id if is_name(id) => Ok(Some(Selector::Pci(id.to_owned()))),
        id => refused("pciBusID", id, "is not a PCI address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<Option<Selector>> {
        let value = crate::cni::json::Value::parse(json.as_bytes()).unwrap();
        selector(&value.read::<Wire>().unwrap())
    }

    #[test]
    fn the_first_way_to_name_the_device_counts() {
        let id = r#""runtimeConfig":{"deviceID":"0000:00:02.0"}"#;
        let name = |n: &str| Some(Selector::Name(n.into()));
        assert_eq!(of(&format!(r#"{{"device":"eth1","hwaddr":"x",{id}}}"#)).unwrap(), name("eth1"));
        let pci = of(r#"{"pciBusID":"0000:00:01.0"}"#).unwrap();
        assert_eq!(pci, Some(Selector::Pci("0000:00:01.0".into())));
        let chosen = of(&format!(r#"{{"pciBusID":"0000:00:01.0",{id}}}"#)).unwrap();
        assert_eq!(chosen, Some(Selector::DeviceId("0000:00:02.0".into())));
        let path = of(r#"{"kernelPath":"/sys/devices/pci0000:00/0000:00:03.0"}"#).unwrap();
        assert_eq!(path, Some(Selector::KernelPath("devices/pci0000:00/0000:00:03.0".into())));
        assert_eq!(of("{}").unwrap(), None);
    }

    #[test]
    fn what_cannot_be_a_device_is_named() {
        for (json, named) in [
            (r#"{"device":"a/b"}"#, "device: \"a/b\""),
            (r#"{"hwaddr":"01"}"#, "hwaddr: \"01\""),
            (r#"{"kernelpath":"/etc/x"}"#, "kernelpath: \"/etc/x\""),
            (r#"{"kernelpath":"/sys/devices/../x"}"#, "kernelpath: \"/sys/devices/../x\""),
            (r#"{"pciBusID":"../x"}"#, "pciBusID: \"../x\""),
            (r#"{"runtimeConfig":{"deviceID":".."}}"#, "runtimeConfig.deviceID: \"..\""),
        ] {
            let err = of(json).unwrap_err();
            assert!(err.msg().starts_with(named), "{err}");
        }
    }
}
