//! The MAC address that somebody asked for the container's interface, for every plugin that can set one.

use serde::Deserialize;

use crate::cni::{Code, Command, Error, Request, Result};
use crate::kernel::rtnl::Mac;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    args: ArgsWire,
    runtime_config: MacWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ArgsWire {
    cni: MacWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MacWire {
    mac: String,
}

/// `runtimeConfig.mac` over `args.cni.mac` over `MAC` of `CNI_ARGS`; `None` when nobody asked.
///
/// # Errors
/// Not an address that an interface can have; DEL and GC take such a one for none.
pub fn requested(req: &Request) -> Result<Option<Mac>> {
    requested_or(req, ("", ""))
}

/// As [`requested`], and where that gives nothing the configuration's own key: its name, and what it says.
///
/// # Errors
/// As for [`requested`].
pub fn requested_or(req: &Request, configured: (&str, &str)) -> Result<Option<Mac>> {
    let wire: Wire = req.config.read()?;
    let cni_args = req.args()?;
    let sources = [
        ("runtimeConfig.mac", wire.runtime_config.mac.as_str()),
        ("args.cni.mac", wire.args.cni.mac.as_str()),
        ("CNI_ARGS: MAC", cni_args.get("MAC").unwrap_or_default()),
        configured,
    ];
    let Some((key, text)) = sources.into_iter().find(|(_, text)| !text.is_empty()) else { return Ok(None) };
    match of_interface(key, text) {
        Ok(mac) => Ok(Some(mac)),
        Err(_) if matches!(req.command, Command::Del | Command::Gc) => Ok(None),
        Err(e) if key.starts_with("CNI_ARGS") => Err(e.with_code(Code::ENVIRONMENT)),
        Err(e) => Err(e),
    }
}

/// The address that is written behind `key`.
///
/// # Errors
/// Not an address that an interface can have.
pub fn of_interface(key: &str, text: &str) -> Result<Mac> {
    match text.parse::<Mac>() {
        Ok(mac) if mac.0[0] & 1 == 0 && mac.0 != [0; 6] => Ok(mac),
        _ => Err(Error::config(format!(
            "{key}: {text:?} is not an interface's MAC address, such as \"02:00:00:00:00:05\""
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::{Accepts, Environment, Version};

    fn mac(keys: &str, args: &str) -> Result<Option<Mac>> {
        let environment = Environment::read(|name| {
            Some(match name {
                "CNI_COMMAND" => "ADD".to_owned(),
                "CNI_NETNS_OVERRIDE" => String::new(),
                "CNI_ARGS" => args.to_owned(),
                _ => "x".to_owned(),
            })
        })?;
        let json = format!(r#"{{"name":"n","cniVersion":"1.1.0"{keys}}}"#);
        let accepts = Accepts { versions: Version::ALL, nameless: false };
        requested(&Request::new(environment, json.into_bytes(), accepts)?)
    }

    #[test]
    fn the_mac_comes_from_the_strongest_of_three_sources() {
        let all =
            r#","args":{"cni":{"mac":"02:00:00:00:00:02"}},"RuntimeConfig":{"mac":"02:00:00:00:00:03"}"#;
        let text = |keys: &str, args: &str| mac(keys, args).unwrap().unwrap().to_string();
        assert_eq!(mac("", "").unwrap(), None);
        assert_eq!(text("", "MAC=02:00:00:00:00:01"), "02:00:00:00:00:01");
        assert_eq!(
            text(r#","args":{"cni":{"mac":"02:00:00:00:00:02"}}"#, "MAC=02:00:00:00:00:01"),
            "02:00:00:00:00:02"
        );
        assert_eq!(text(all, "MAC=02:00:00:00:00:01"), "02:00:00:00:00:03");
        assert_eq!(mac("", "MAC=x").unwrap_err().code(), Code::ENVIRONMENT);
        assert_eq!(mac(r#","runtimeConfig":{"mac":"x"}"#, "").unwrap_err().code(), Code::INVALID_CONFIG);
    }
}
