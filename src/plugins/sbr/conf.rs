//! The configuration of sbr.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

use crate::cni::{Error, IpConfig, Request, Result};
use crate::kernel::rtnl::{Dev, RouteSpec};

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    table: Option<i64>,
    gateways: Vec<String>,
    add_source_hints: bool,
}

/// The configuration, checked.
#[derive(Clone, Debug, Default)]
pub struct Conf {
    /// Only add rules that ask this table; `None`: a free one for each address, and the routes move there.
    pub table: Option<u32>,
    /// Default gateways in place of the result's, at most one of each family.
    pub gateways: Vec<IpAddr>,
    /// The networks' own routes stay in the main table.
    pub keep_networks: bool,
}

impl Conf {
    /// Reads and checks the configuration of a request.
    ///
    /// # Errors
    /// [`crate::cni::Code::INVALID_CONFIG`] naming key and value, [`crate::cni::Code::DECODING`] for a wrong JSON type.
    pub fn new(req: &Request) -> Result<Conf> {
        let wire: Wire = req.config.read()?;
        let mut gateways: Vec<IpAddr> = Vec::new();
        for (i, text) in wire.gateways.iter().enumerate() {
            let gateway: IpAddr = text
                .parse()
                .map_err(|_| Error::config(format!("gateways[{i}]: {text:?} is not an IP address")))?;
            if let Some(other) = gateways.iter().find(|gw| gw.is_ipv4() == gateway.is_ipv4()) {
                return Err(Error::config(format!(
                    "gateways[{i}]: {gateway} is a second one of its family, after {other}"
                )));
            }
            gateways.push(gateway);
        }
        Ok(Conf { table: wire.table.map(table).transpose()?, gateways, keep_networks: wire.add_source_hints })
    }

    /// `table` alone: all that DEL has to know.
    ///
    /// # Errors
    /// As for [`Conf::new`].
    pub fn table_of(req: &Request) -> Result<Option<u32>> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Wire {
            table: Option<i64>,
        }
        req.config.read::<Wire>()?.table.map(table).transpose()
    }

    /// Whether the user named a gateway for what this route leads to: it is a default route.
    pub fn names_gateway(&self, dst: &IpNet) -> bool {
        dst.prefix_len() == 0 && self.gateways.iter().any(|gw| gw.is_ipv4() == dst.addr().is_ipv4())
    }

    /// The default route of an address: through the configured gateway of its family, else through its own.
    pub fn default_route(&self, ip: &IpConfig, dev: &Dev) -> Option<RouteSpec> {
        let v4 = ip.address.addr().is_ipv4();
        let gw = self.gateways.iter().copied().find(|gw| gw.is_ipv4() == v4).or(ip.gateway)?;
        let any = if v4 { ipnet::Ipv4Net::default().into() } else { ipnet::Ipv6Net::default().into() };
        Some(RouteSpec { gw: Some(gw), ..RouteSpec::new(any, dev.clone()) })
    }
}

fn table(written: i64) -> Result<u32> {
    match u32::try_from(written) {
        Ok(table) if table > 0 => Ok(table),
        _ => Err(Error::config(format!("table: {written} is not a number from 1 to {}", u32::MAX))),
    }
}
