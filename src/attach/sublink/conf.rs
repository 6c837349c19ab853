//! The keys that vlan, macvlan and ipvlan share.

use serde::Deserialize;

use crate::attach::mtu::Mtu;
use crate::cni::{Dns, Error, Request, Result};
use crate::plugins::keys::{Key, Shape, key};

/// `master`.
pub const MASTER: Key =
    key("master", Shape::Ifname, "link below the container's interface; default: that of the default route");

/// `linkInContainer`.
pub const LINK_IN_CONTAINER: Key =
    key("linkInContainer", Shape::Bool, "the master is in the container's namespace; default: false");

/// `linkContNs`.
pub const LINK_CONT_NS: Key = key("linkContNs", Shape::Bool, "another name of linkInContainer");

/// `hostShim`.
pub const HOST_SHIM: Key = key(
    "hostShim",
    Shape::Bool,
    "a link of the host on the same master, so that host and containers reach each other; default: false",
);

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    /// Name of the link below; empty: that of the default route.
    master: String,
    link_in_container: bool,
    /// The key's name in the Go plugins' sources.
    link_cont_ns: bool,
    mtu: Mtu,
    host_shim: bool,
}

/// The shared keys, checked.
#[derive(Clone, Debug)]
pub struct Conf {
    /// Name of the link below; `None`: that of the default route.
    pub master: Option<String>,
    /// The link below is in the container's namespace, not the host's.
    pub in_container: bool,
    /// As written: what it means depends on the master.
    pub mtu: Mtu,
    /// Host and containers reach each other.
    pub host_shim: bool,
    /// `ipam.type`.
    pub ipam: Option<String>,
    /// `dns`, when given.
    pub dns: Option<Dns>,
}

impl Conf {
    /// # Errors
    /// [`crate::cni::Code::INVALID_CONFIG`] naming key and value, [`crate::cni::Code::DECODING`] for a wrong JSON type.
    pub fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let common = req.config.common()?;
        let master = Some(wire.master).filter(|name| !name.is_empty());
        if let Some(name) = &master {
            crate::cni::names::check_ifname(name)
                .map_err(|e| Error::config(format!("master: {name:?}: {}", e.msg())))?;
        }
        if let Mtu::Bytes(bytes @ ..0) = wire.mtu {
            return Err(Error::config(format!("mtu: {bytes} is negative")));
        }
        let in_container = wire.link_in_container || wire.link_cont_ns;
        if in_container && wire.host_shim {
            return Err(Error::config(
                "hostShim cannot be combined with linkInContainer: the master is not the host's",
            ));
        }
        Ok(Conf {
            master,
            in_container,
            mtu: wire.mtu,
            host_shim: wire.host_shim,
            ipam: common.ipam,
            dns: common.dns,
        })
    }

    /// For a dummy, which has nothing but addresses: whatever else is configured is somebody else's key.
    ///
    /// # Errors
    /// As for [`Conf::new`].
    pub fn addresses_only(req: &Request) -> Result<Conf> {
        let common = req.config.common()?;
        Ok(Conf {
            master: None,
            in_container: true,
            mtu: Mtu::Unset,
            host_shim: false,
            ipam: common.ipam,
            dns: common.dns,
        })
    }

    /// `ipam.type`, for a plugin that cannot do without.
    ///
    /// # Errors
    /// It is not given.
    pub fn need_ipam(&self, plugin: &str) -> Result<String> {
        self.ipam.clone().ok_or_else(|| {
            Error::config(format!("ipam.type: {plugin} needs an IPAM plugin, such as \"host-local\""))
        })
    }
}
