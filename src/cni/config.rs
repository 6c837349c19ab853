//! The fields of a network configuration that every plugin shares (CNI spec, section 1).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::error::{Code, Error, Result};
use super::json::Value;
use super::names;
use super::result::{CniResult, Dns};
use super::version::Version;

/// A network configuration as one plugin gets it on standard input.
#[derive(Clone, Debug)]
pub struct Config {
    /// `name`: the network's name. Empty only for plugins that use it for nothing.
    pub name: String,
    /// `cniVersion`, negotiated.
    pub version: Version,
    document: Value,
}

/// One entry of `cni.dev/valid-attachments`: an attachment that is still in use.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct ValidAttachment {
    /// The container's id.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface's name in the container.
    pub ifname: String,
}

/// `ipam`: which plugin assigns addresses; the rest of the object is that plugin's business.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Ipam {
    r#type: String,
}

/// `dns` of a main plugin's configuration, told apart from "not given".
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct DnsWire {
    nameservers: Option<Vec<String>>,
    domain: Option<String>,
    search: Option<Vec<String>>,
    options: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CommonWire {
    #[serde(rename = "args")]
    _args: BTreeMap<String, IgnoredAny>,
    #[serde(rename = "runtimeConfig")]
    _runtime_config: BTreeMap<String, IgnoredAny>,
    #[serde(rename = "prevResult")]
    _prev_result: BTreeMap<String, IgnoredAny>,
    #[serde(rename = "capabilities")]
    _capabilities: BTreeMap<String, bool>,
    ipam: Ipam,
    dns: DnsWire,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GcWire {
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<ValidAttachment>>,
    #[serde(rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
}

/// The shared fields of a main plugin, checked.
#[derive(Clone, Debug, Default)]
pub struct Common {
    /// `ipam.type`; `None` for an attachment without addresses (layer 2 only).
    pub ipam: Option<String>,
    /// `dns`, when any of its keys is given: it then replaces the IPAM plugin's as a whole.
    pub dns: Option<Dns>,
}

impl Config {
    /// The document whose `name` is checked and whose version was negotiated.
    pub(crate) fn new(document: Value, name: String, version: Version) -> Config {
        Config { name, version, document }
    }

    /// The `name` of a document. Must be a string; `nameless` allows it to be missing.
    pub(crate) fn name_of(document: &Value, nameless: bool) -> Result<String> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Wire {
            name: String,
        }
        if *document == Value::Null {
            return Err(Error::config("missing network name"));
        }
        let name = document.read::<Wire>()?.name;
        if !(nameless && name.is_empty()) {
            names::check_network_name(&name)?;
        }
        Ok(name)
    }

    /// The `cniVersion` of a document as written; empty when absent or null.
    pub(crate) fn version_of(document: &Value) -> Result<String> {
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Wire {
            cni_version: String,
        }
        Ok(document.read::<Wire>()?.cni_version)
    }

    /// Decodes the whole document into a plugin's own structure (keys without regard to case, see [`super::json`]).
    ///
    /// # Errors
    /// [`Code::DECODING`] for a wrong JSON type, [`Code::INVALID_CONFIG`] for a value that is not valid.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        self.document.read()
    }

    /// The fields shared by main plugins.
    ///
    /// # Errors
    /// As for [`Config::read`].
    pub fn common(&self) -> Result<Common> {
        let wire: CommonWire = self.read()?;
        let plugin = wire.ipam.r#type;
        if plugin.contains('/') || plugin == "." || plugin == ".." {
            return Err(Error::config(format!("ipam.type: invalid plugin name: {plugin:?}")));
        }
        let dns = wire.dns;
        let given = dns.nameservers.is_some()
            || dns.domain.is_some()
            || dns.search.is_some()
            || dns.options.is_some();
        Ok(Common {
            ipam: Some(plugin).filter(|t| !t.is_empty()),
            dns: given.then(|| Dns {
                nameservers: dns.nameservers.unwrap_or_default(),
                domain: dns.domain.unwrap_or_default(),
                search: dns.search.unwrap_or_default(),
                options: dns.options.unwrap_or_default(),
            }),
        })
    }

    /// `ipam.type` alone: what DEL and GC need, however wrong the rest of the configuration is.
    ///
    /// # Errors
    /// `ipam` or its `type` has the wrong JSON type.
    pub fn ipam(&self) -> Result<Option<String>> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Wire {
            ipam: Ipam,
        }
        Ok(Some(self.read::<Wire>()?.ipam.r#type).filter(|t| !t.is_empty()))
    }

    /// `log`: where a line about this call goes; empty when it is not given. A wrong one fails nothing.
    pub fn log(&self) -> String {
        match self.document.get("log").as_deref() {
            Some(Value::String(target)) => target.clone(),
            _ => String::new(),
        }
    }

    /// `prevResult`: what earlier plugins of the list, or the ADD that this call belongs to, returned.
    ///
    /// # Errors
    /// [`Code::INVALID_CONFIG`] when it is not a result of the configuration's version family.
    pub fn prev_result(&self) -> Result<Option<CniResult>> {
        let Some(value) = self.document.get("prevResult") else { return Ok(None) };
        let written = match value.get("cniVersion").as_deref() {
            None => self.version.as_str().to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(_) => return Err(Error::new(Code::DECODING, "prevResult.cniVersion: expected a string")),
        };
        let version = Version::from_text(&written).filter(|v| v.family() == self.version.family());
        let Some(version) = version else {
            let family: Vec<&str> = Version::ALL
                .iter()
                .filter(|v| v.family() == self.version.family())
                .map(|v| v.as_str())
                .collect();
            return Err(Error::config(format!(
                "could not parse prevResult: result type supports [{}] but unmarshalled CNIVersion is {written:?}",
                family.join(" ")
            )));
        };
        match CniResult::from_json(&value, version) {
            Ok(result) => Ok(Some(result)),
            Err(e) => {
                let msg = format!("could not parse prevResult: prevResult.{}", e.msg());
                Err(Error::new(e.code(), msg))
            }
        }
    }

    /// GC: the attachments still in use. `None` when the caller gave no list, which says nothing about any of them;
    /// an empty list says that every attachment of this network is stale (reference: core.md 3.7).
    ///
    /// # Errors
    /// As for [`Config::read`].
    pub fn valid_attachments(&self) -> Result<Option<Vec<ValidAttachment>>> {
        let wire: GcWire = self.read()?;
        Ok(wire.valid.or(wire.attachments))
    }
}
