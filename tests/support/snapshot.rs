//! The state of a node as comparable lines: to prove that a failure or a DEL left nothing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Node;
use super::workdir::leases_in;

/// Links, addresses, routes, nftables rules and host-local leases of a node, one line each.
///
/// Left out: link-local addresses and multicast routes, which the kernel adds and removes with a link's carrier.
pub struct Snapshot(BTreeSet<String>);

impl Node {
    /// The node's state now.
    pub fn snapshot(&self) -> Snapshot {
        let mut lines = BTreeSet::new();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        for link in self.json("ip -j -d addr show").as_array().into_iter().flatten() {
            let name = text(&link["ifname"]);
            let kind = text(&link["linkinfo"]["info_kind"]);
            lines.insert(format!(
                "link {name} kind {kind} master {} promisc {}",
                link["master"], link["promiscuity"]
            ));
            for address in link["addr_info"].as_array().into_iter().flatten() {
                if address["scope"] != "link" {
                    lines.insert(format!(
                        "address {}/{} dev {name}",
                        text(&address["local"]),
                        address["prefixlen"]
                    ));
                }
            }
        }
        for family in [4, 6] {
            for route in self.routes(family, "table all") {
                let dst = text(&route["dst"]);
                let kernels =
                    ["multicast", "local", "broadcast", "anycast"].iter().any(|t| route["type"] == *t);
                if kernels || dst.starts_with("fe80:") || dst.starts_with("ff00:") {
                    continue;
                }
                let (via, dev) = (&route["gateway"], &route["dev"]);
                lines.insert(format!(
                    "route {dst} via {via} dev {dev} table {} metric {}",
                    route["table"], route["metric"]
                ));
            }
        }
        let mut place = Vec::new();
        for line in self.nft().lines().map(str::trim).filter(|line| !line.is_empty()) {
            if line == "}" {
                place.pop();
                continue;
            }
            lines.insert(format!("nft {} {line}", place.join(" / ")));
            if line.ends_with('{') {
                place.push(line.trim_end_matches(" {").to_owned());
            }
        }
        for network in std::fs::read_dir(self.data_dir()).into_iter().flatten().flatten() {
            for lease in leases_in(&network.path()) {
                lines.insert(format!("lease {lease} of {}", network.file_name().display()));
            }
        }
        Snapshot(lines)
    }
}

impl Snapshot {
    /// The lines that contain a text: a container's id, an address.
    pub fn mentions(&self, text: &str) -> Vec<&str> {
        self.0.iter().map(String::as_str).filter(|line| line.contains(text)).collect()
    }
}

/// Asserts that nothing was added and nothing is gone.
#[track_caller]
pub fn assert_same(before: &Snapshot, after: &Snapshot) {
    assert_same_after("", before, after);
}

/// As [`assert_same`], with the case that is to blame in the failure's text.
#[track_caller]
pub fn assert_same_after(what: &str, before: &Snapshot, after: &Snapshot) {
    let added: Vec<_> = after.0.difference(&before.0).collect();
    let gone: Vec<_> = before.0.difference(&after.0).collect();
    assert!(added.is_empty() && gone.is_empty(), "{what}\nadded: {added:#?}\ngone: {gone:#?}");
}
