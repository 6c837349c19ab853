//! What a link's alias says about whom it belongs to: `cni-all NETWORK CONTAINER IFNAME [ADDRESS…]`.
//!
//! The kernel keeps it with the link (`ip link show` prints it), so that DEL, GC, CHECK and `cni-all show` find what
//! belongs to an attachment with no namespace, no prevResult and no file; and what is gone needs no cleaning.

use std::net::IpAddr;

use ipnet::IpNet;
use sha2::{Digest, Sha512};

use super::Attachment;
use crate::hex::hex;

/// First word of every alias of ours.
const MARK: &str = "cni-all";

/// Network names and container ids longer than this are abbreviated: the kernel keeps 255 bytes of an alias.
const MAX_NAME: usize = 72;

/// Longest alias (`IFALIASZ` without its terminating zero, linux/if.h).
const MAX_ALIAS: usize = 255;

/// The owner that an alias names. Names may be abbreviated: compare with [`Owner::is`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    network: String,
    container_id: String,
    ifname: String,
    /// Addresses that the container got at ADD; all of them unless they were too many for an alias.
    pub addresses: Vec<IpAddr>,
}

impl Owner {
    /// Reads an alias; `None` for one that is not ours.
    pub fn parse(alias: &str) -> Option<Owner> {
        let mut words = alias.split(' ');
        if words.next()? != MARK {
            return None;
        }
        let mut word = || words.next().filter(|w| !w.is_empty()).map(str::to_owned);
        let (network, container_id, ifname) = (word()?, word()?, word()?);
        Some(Owner {
            network,
            container_id,
            ifname,
            addresses: words.filter_map(|w| w.parse().ok()).collect(),
        })
    }

    /// Network, container id and interface name as the alias has them: long ones abbreviated.
    pub fn names(&self) -> (&str, &str, &str) {
        (&self.network, &self.container_id, &self.ifname)
    }

    /// Whether it names this attachment.
    pub fn is(&self, of: &Attachment<'_>) -> bool {
        self.is_on(of.network) && self.is_interface(of)
    }

    /// Whether it names this interface of this container, on whatever network.
    pub fn is_interface(&self, of: &Attachment<'_>) -> bool {
        self.container_id == abbreviate(of.container_id) && self.ifname == of.ifname
    }

    /// Whether it names this network.
    pub fn is_on(&self, network: &str) -> bool {
        self.network == abbreviate(network)
    }
}

/// The alias of a link that belongs to an attachment with these addresses.
pub fn alias(of: &Attachment<'_>, addresses: &[IpNet]) -> String {
    let mut alias =
        format!("{MARK} {} {} {}", abbreviate(of.network), abbreviate(of.container_id), of.ifname);
    for address in addresses {
        let more = format!(" {}", address.addr());
        if alias.len() + more.len() <= MAX_ALIAS {
            alias.push_str(&more);
        }
    }
    alias
}

/// A name cut to [`MAX_NAME`] bytes, ending in `#` and a hash of the whole. `#` cannot stand in a name. A name that a GC says
/// is valid can be any text.
fn abbreviate(name: &str) -> String {
    if name.len() <= MAX_NAME {
        return name.to_owned();
    }
    let hash = hex(&Sha512::digest(name)[..8]);
    let beginning = &name.as_bytes()[..MAX_NAME - 1 - hash.len()];
    format!("{}#{hash}", String::from_utf8_lossy(beginning))
}

/// The host-side names a veth of this attachment may have, in order of preference. `veth` and eight hex digits, as the
/// Go plugins name them, but derived from the attachment: DEL can look them up.
pub fn host_names(of: &Attachment<'_>) -> [String; 3] {
    std::array::from_fn(|attempt| {
        let Attachment { network, container_id, ifname } = of;
        let digest = Sha512::digest(format!("{network}/{container_id}/{ifname}/{attempt}"));
        format!("veth{}", hex(&digest[..4]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF: Attachment<'_> = Attachment { network: "mynet", container_id: "c1", ifname: "eth0" };

    #[test]
    fn an_alias_names_its_attachment_and_addresses() {
        let addresses = ["10.22.0.5/16".parse().unwrap(), "fd00::5/64".parse().unwrap()];
        let alias = alias(&OF, &addresses);
        assert_eq!(alias, "cni-all mynet c1 eth0 10.22.0.5 fd00::5");
        let owner = Owner::parse(&alias).unwrap();
        assert!(owner.is(&OF) && owner.is_on("mynet") && !owner.is_on("my"));
        assert!(!owner.is(&Attachment { ifname: "eth1", ..OF }));
        assert_eq!(owner.addresses, ["10.22.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
    }

    #[test]
    fn other_aliases_are_not_ours() {
        for text in ["", "cni-all", "cni-all a b", "uplink to rack 3", "cni-all  b c"] {
            assert_eq!(Owner::parse(text), None, "{text}");
        }
    }

    #[test]
    fn long_names_are_abbreviated_and_still_told_apart() {
        let (a, b) = ("n".repeat(300), format!("{}x", "n".repeat(299)));
        let long = Attachment { network: &a, container_id: &b, ifname: "fifteenbytesabc" };
        let many: Vec<IpNet> =
            (0..40).map(|i| format!("fd00:1234:5678:9abc::{i:x}/64").parse().unwrap()).collect();
        let alias = alias(&long, &many);
        assert!(alias.len() <= 255, "{}", alias.len());
        let owner = Owner::parse(&alias).unwrap();
        assert!(owner.is(&long) && !owner.is(&Attachment { container_id: &a, ..long }) && !owner.is_on(&b));
        assert!(!owner.is_on(&"é".repeat(60)) && !owner.is_on(&format!("x{}", "é".repeat(60))));
    }

    #[test]
    fn host_names_differ_and_fit_the_kernel() {
        let names = host_names(&OF);
        assert!(names.iter().all(|n| n.len() == 12 && n.starts_with("veth")));
        assert!(names[0] != names[1] && names[1] != names[2]);
        assert_eq!(names, host_names(&OF));
    }
}
