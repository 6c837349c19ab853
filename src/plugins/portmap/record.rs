//! A mapping in full, for one family: from where to where.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::conf::{Mapping, protocol_name};
use crate::kernel::nft::Family;

/// A port of the host, and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// `IPPROTO_*`
    pub protocol: u8,
    /// The host's address; unspecified for all of the family.
    pub host_ip: IpAddr,
    /// The port at the host.
    pub host_port: u16,
    /// The container's address.
    pub container_ip: IpAddr,
    /// The port in the container.
    pub container_port: u16,
}

impl Record {
    /// What the mappings are for one address of the container, each once. Of those of one port, the ones at an address
    /// of the host come first: everything else is in the order given.
    pub fn all(mappings: &[Mapping], container_ip: IpAddr) -> Vec<Record> {
        let mut all: Vec<Record> = Vec::new();
        let mut seen = HashSet::new();
        for mapping in mappings {
            let Some(host_ip) = mapping.host_ip_of(Family::of(container_ip)) else { continue };
            let record = Record {
                protocol: mapping.protocol,
                host_ip,
                host_port: mapping.host_port,
                container_ip,
                container_port: mapping.container_port,
            };
            if !seen.insert(record) {
                continue;
            }
            let general = |other: &Record| {
                !host_ip.is_unspecified()
                    && other.host_ip.is_unspecified()
                    && (other.protocol, other.host_port) == (record.protocol, record.host_port)
            };
            all.insert(all.iter().position(general).unwrap_or(all.len()), record);
        }
        all
    }

    /// As a line for people: `tcp 0.0.0.0:8080 to 10.1.0.2:80`.
    pub fn line(&self) -> String {
        let (protocol, host) = (protocol_name(self.protocol), SocketAddr::new(self.host_ip, self.host_port));
        format!("{protocol} {host} to {}", SocketAddr::new(self.container_ip, self.container_port))
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.container_ip)
    }
}
