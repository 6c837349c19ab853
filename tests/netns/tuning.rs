//! The `tuning` plugin, behind an interface that the test made.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Call, Container, Node, VERSIONS, require_netns};
use crate::{dual_stack_config, with};

const MAC: &str = "02:00:00:00:00:05";

/// A container with a veth `eth0`; what tuning is called with after it.
struct Tuned<'a> {
    node: &'a Node,
    container: Container,
}

impl Tuned<'_> {
    fn new(node: &Node) -> Tuned<'_> {
        let container = node.container();
        container.ip(&["link add eth0 type veth peer name other", "link set eth0 up"]);
        Tuned { node, container }
    }

    fn dir(&self) -> PathBuf {
        self.node.workdir().root().join("tuning")
    }

    fn backup(&self) -> PathBuf {
        self.dir().join(format!("{}_eth0.json", self.container.id()))
    }

    /// A configuration with a `prevResult` that tells of `eth0`, and of a link of that name on the host.
    fn config(&self, changes: Value) -> Value {
        let config = json!({
            "cniVersion": "1.1.0", "name": "net", "type": "tuning", "dataDir": self.dir(),
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [
                    {"name": "eth0", "mac": "0a:00:00:00:00:01"},
                    {"name": "eth0", "mac": self.container.link("eth0")["address"], "sandbox": self.container.path()},
                ],
                "ips": [{"address": "10.1.0.2/24", "interface": 1}],
            },
        });
        with(config, changes)
    }

    fn call(&self, command: &str, changes: Value) -> Call {
        self.node.request(command, &self.container, "eth0", &self.config(changes))
    }

    /// The attributes of `eth0` that tuning can change.
    fn attributes(&self) -> Value {
        let link = self.container.link("eth0");
        let flag = |name: &str| self.container.link_has("eth0", name);
        json!({
            "mac": link["address"], "mtu": link["mtu"], "txQLen": link["txqlen"],
            "promisc": flag("PROMISC"), "allmulti": flag("ALLMULTI"),
        })
    }
}

fn everything() -> Value {
    json!({"mac": MAC, "mtu": 1400, "promisc": true, "allmulti": true, "txQLen": 500})
}

#[test]
fn every_attribute_is_set_checked_and_given_back() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    let before = tuned.attributes();
    let result = tuned.call("ADD", everything()).ok();
    assert_eq!(tuned.attributes(), everything());
    assert_eq!(
        result["interfaces"],
        json!([
            {"name": "eth0", "mac": "0a:00:00:00:00:01"},
            {"name": "eth0", "mac": MAC, "mtu": 1400, "sandbox": tuned.container.path()},
        ])
    );
    assert_eq!(result["ips"], json!([{"address": "10.1.0.2/24", "interface": 1}]));
    tuned.call("CHECK", everything()).silent();
    let upper = with(everything(), json!({"mac": "02-00-00-00-00-05"}));
    tuned.call("CHECK", upper).silent();
    for (change, back, named) in [
        ("mtu 1300", "mtu 1400", "1300"),
        ("allmulticast off", "allmulticast on", "allmulticast"),
        ("promisc off", "promisc on", "promiscuous"),
        ("txqueuelen 7", "txqueuelen 500", "7"),
        ("address 02:00:00:00:00:06", "address 02:00:00:00:00:05", "02:00:00:00:00:06"),
    ] {
        tuned.container.ip(&[&format!("link set eth0 {change}")]);
        tuned.call("CHECK", everything()).fails(100).names(&["eth0", named]);
        tuned.container.ip(&[&format!("link set eth0 {back}")]);
        tuned.call("CHECK", everything()).silent();
    }
    tuned.call("DEL", everything()).silent();
    assert_eq!(tuned.attributes(), before);
    assert!(!tuned.backup().exists());
    tuned.call("DEL", everything()).silent();
}

#[test]
fn a_backup_is_what_the_go_plugin_reads_and_one_of_its_own_is_given_back() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    tuned.call("ADD", json!({"mtu": 1400, "allmulti": false})).ok();
    let text = std::fs::read_to_string(tuned.backup()).unwrap();
    let mac = tuned.container.link("eth0")["address"].to_string();
    let expected = format!(
        "{{\n \"mtu\": 1500,\n \"allmulti\": false,\n \"network\": \"net\",\n \"tunedMac\": {mac}\n}}"
    );
    assert_eq!(text, expected);
    // As containernetworking/plugins writes it.
    let theirs =
        "{\n \"mac\": \"02:00:00:00:00:07\",\n \"promisc\": false,\n \"mtu\": 1450,\n \"txQLen\": 800\n}";
    std::fs::write(tuned.backup(), theirs).unwrap();
    tuned.call("DEL", json!({})).silent();
    let found = tuned.attributes();
    assert_eq!((&found["mac"], &found["mtu"]), (&json!("02:00:00:00:00:07"), &json!(1450)));
    assert_eq!(found["txQLen"], 800);
    assert!(!tuned.backup().exists());
}

#[test]
fn originals_survive_a_repeated_add_and_a_second_tuning() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    let before = tuned.attributes();
    tuned.call("ADD", json!({"mtu": 1400})).ok();
    tuned.call("ADD", json!({"mtu": 1400})).ok();
    tuned.call("ADD", json!({"mtu": 1300, "mac": MAC})).ok();
    for _ in 0..2 {
        tuned.call("DEL", json!({})).silent();
        assert_eq!(tuned.attributes(), before);
    }
}

#[test]
fn settings_are_made_in_their_order_and_checked() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    tuned.container.ip(&["link add v.5 type veth peer name w"]);
    // As text, because `json!` would sort the keys: forwarding for all writes that of every interface, so that the other
    // order would leave eth0 without.
    let sysctl = r#"{
        "net.ipv4.conf.IFNAME.arp_filter": "1",
        "net/ipv4/conf/v.5/arp_filter": "1",
        "net.ipv4.conf.v/5.arp_ignore": "2",
        "net.ipv4.ping_group_range": "5 4000",
        "net/ipv4/conf/all/forwarding": "0",
        "net.ipv4.conf.eth0.forwarding": "1"
    }"#;
    let config = tuned.config(json!({"sysctl": "SETTINGS"})).to_string().replace("\"SETTINGS\"", sysctl);
    let call = |command: &str| tuned.call(command, json!({})).stdin(config.as_str());
    for old in ["0", "1"] {
        tuned.container.set_sysctl("net/ipv4/conf/all/forwarding", old);
        call("ADD").ok();
        assert_eq!(tuned.container.sysctl("net/ipv4/conf/eth0/forwarding"), "1", "after {old} for all");
    }
    let read = |key: &str| tuned.container.sysctl(key);
    assert_eq!(read("net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(
        (read("net/ipv4/conf/v.5/arp_filter"), read("net/ipv4/conf/v.5/arp_ignore")),
        ("1".into(), "2".into())
    );
    assert_eq!(read("net/ipv4/ping_group_range"), "5\t4000");
    assert!(!tuned.dir().exists(), "settings alone need no backup");
    call("CHECK").silent();
    tuned.container.set_sysctl("net/ipv4/ping_group_range", "5 4001");
    call("CHECK").fails(100).names(&["net.ipv4.ping_group_range", "4001", "4000"]);
}

#[test]
fn a_setting_that_can_only_be_written_is_not_compared() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    let flush = json!({"sysctl": {"net.ipv4.route.flush": "1", "net.ipv4.conf.IFNAME.arp_filter": "1"}});
    tuned.call("ADD", flush.clone()).ok();
    tuned.call("CHECK", flush.clone()).silent();
    tuned.container.set_sysctl("net/ipv4/conf/eth0/arp_filter", "0");
    tuned.call("CHECK", flush).fails(100).names(&["arp_filter"]);
    tuned
        .call("CHECK", json!({"sysctl": {"net.ipv4.no_such_setting": "1"}}))
        .err()
        .names(&["no_such_setting"]);
}

#[test]
fn arguments_merge_their_settings_without_any_in_the_configuration() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    let args = json!({"args": {"cni": {"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}, "mtu": 1350}}});
    tuned.call("ADD", args).ok();
    assert_eq!(tuned.container.sysctl("net/ipv4/conf/eth0/arp_filter"), "1");
    assert_eq!(tuned.container.link("eth0")["mtu"], 1350);
}

#[test]
fn an_add_that_fails_takes_settings_and_attributes_back() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    let before = tuned.attributes();
    let filter = tuned.container.sysctl("net/ipv4/conf/eth0/arp_filter");
    let sysctl = json!({"net.ipv4.conf.IFNAME.arp_filter": "1"});
    let bad = with(everything(), json!({"mtu": 70000, "sysctl": sysctl}));
    tuned.call("ADD", bad).err().names(&["ip link set dev eth0 mtu 70000"]);
    assert_eq!(tuned.attributes(), before);
    assert_eq!(tuned.container.sysctl("net/ipv4/conf/eth0/arp_filter"), filter);
    assert!(!tuned.backup().exists());
    let sysctl = json!({"net.ipv4.conf.IFNAME.arp_filter": "1", "net.ipv4.no_such_setting": "1"});
    tuned
        .call("ADD", json!({"sysctl": sysctl}))
        .err()
        .names(&["net.ipv4.no_such_setting", "/proc/sys/net/ipv4"]);
    assert_eq!(tuned.container.sysctl("net/ipv4/conf/eth0/arp_filter"), filter);
    // A failed second ADD leaves the first as it was.
    tuned.call("ADD", json!({"mtu": 1400})).ok();
    tuned.call("ADD", json!({"mtu": 70000, "mac": MAC})).err();
    assert_eq!(tuned.container.link("eth0")["mtu"], 1400);
    tuned.call("DEL", json!({})).silent();
    assert_eq!(tuned.attributes(), before);
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_touched() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    for (changes, code, named) in [
        (json!({"prevResult": null}), 7, "prevResult"),
        (json!({"sysctl": {"kernel.hostname": "x"}}), 7, "kernel.hostname"),
        (json!({"sysctl": {"net/../kernel/hostname": "x"}}), 7, "kernel/hostname"),
        (json!({"mac": "x"}), 7, "mac"),
        (json!({"txQLen": -5}), 7, "txQLen"),
        (json!({"promisc": "yes"}), 6, "promisc"),
    ] {
        tuned.call("ADD", with(json!({"mtu": 1400}), changes)).fails(code).names(&[named]);
    }
    let text =
        tuned.config(json!({})).to_string().replacen('{', r#"{"sysctl":{"net.x":"1","net.x":"2"},"#, 1);
    tuned.call("ADD", json!({})).stdin(text).fails(7).names(&["net.x", "duplicated"]);
    assert_eq!(tuned.container.link("eth0")["mtu"], 1500);
    tuned.container.ip(&["link del eth0"]);
    let gone = json!({"cniVersion": "1.1.0", "ips": [], "interfaces": []});
    let config = json!({
        "cniVersion": "1.1.0", "name": "net", "type": "tuning", "dataDir": tuned.dir(), "mtu": 1400, "prevResult": gone,
    });
    node.request("ADD", &tuned.container, "eth0", &config).err().names(&["eth0"]);
}

#[test]
fn the_allowlist_is_obeyed_by_add_and_status() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    let etc = node.workdir().root().join("etc");
    let list = |content: &str| node.workdir().file("etc/cni/tuning/allowlist.conf", content);
    let config = json!({"sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}});
    let add = || tuned.call("ADD", config.clone()).mount(&etc, "/etc");
    let status =
        || node.call("tuning").command("STATUS").config(&tuned.config(config.clone())).mount(&etc, "/etc");
    std::fs::create_dir_all(&etc).unwrap();
    add().ok();
    list("^net\\.core\\.\n^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n");
    add().ok();
    status().silent();
    list("^net\\.core\\.\n");
    add().fails(7).names(&["net.ipv4.conf.IFNAME.arp_filter", "^net\\.core\\.", "allowlist.conf"]);
    status().fails(50).names(&["net.ipv4.conf.IFNAME.arp_filter"]);
    list("");
    add().fails(7);
    tuned.call("ADD", json!({"mtu": 1400})).mount(&etc, "/etc").ok();
    list("net\n(\n");
    add().fails(7).names(&["allowlist.conf line 2"]);
    // What was allowed once is checked and given back whatever the list says now.
    tuned.call("CHECK", config.clone()).mount(&etc, "/etc").silent();
    tuned.call("DEL", config.clone()).mount(&etc, "/etc").silent();
    assert_eq!(tuned.container.link("eth0")["mtu"], 1500);
}

#[test]
fn del_removes_the_backup_when_interface_or_namespace_are_gone() {
    require_netns!();
    let node = Node::new();
    let tuned = Tuned::new(&node);
    tuned.call("ADD", everything()).ok();
    assert!(tuned.backup().exists());
    let del = tuned.call("DEL", everything());
    tuned.container.ip(&["link del eth0"]);
    del.silent();
    assert!(!tuned.backup().exists());

    let tuned = Tuned::new(&node);
    tuned.call("ADD", everything()).ok();
    let del =
        tuned.call("DEL", with(everything(), json!({"prevResult": null, "mac": "x", "sysctl": {"x": "y"}})));
    tuned.container.unmount();
    del.env("CNI_NETNS", "").silent();
    assert!(!tuned.backup().exists());
}

#[test]
fn del_leaves_the_interface_of_another_container_alone() {
    require_netns!();
    let node = Node::new();
    let (old, new) = (Tuned::new(&node), Tuned::new(&node));
    for changes in [everything(), json!({"mtu": 1400})] {
        old.call("ADD", changes.clone()).ok();
        let before = new.attributes();
        // The path names the other's namespace by now.
        old.call("DEL", changes).env("CNI_NETNS", new.container.path()).silent();
        assert_eq!(new.attributes(), before);
        assert!(!old.backup().exists());
    }
    // Whatever happened to the MAC address, the host's end says whose it is; the list may have another name.
    let (one, two) = (node.container(), node.container());
    let bridged = dual_stack_config(&node);
    let mains = [&one, &two].map(|container| node.attach(container, "eth0", &bridged));
    let config = |n: usize| {
        let base = json!({"cniVersion": "1.1.0", "name": "behind", "type": "tuning", "dataDir": old.dir()});
        with(with(base, everything()), json!({"prevResult": mains[n].result}))
    };
    let tunings = [(&one, 0), (&two, 1)].map(|(container, n)| node.attach(container, "eth0", &config(n)));
    tunings[0].call("DEL").env("CNI_NETNS", two.path()).silent();
    assert_eq!(two.link("eth0")["address"], MAC);
    two.ip(&["link set eth0 address 02:00:00:00:00:09"]);
    tunings[1].del();
    assert_eq!(
        (&two.link("eth0")["address"], &two.link("eth0")["mtu"]),
        (&json!(mains[1].mac()), &json!(1500))
    );
}

#[test]
fn gc_removes_the_backups_of_this_network_only() {
    require_netns!();
    let node = Node::new();
    let (kept, stale, other) = (Tuned::new(&node), Tuned::new(&node), Tuned::new(&node));
    for tuned in [&kept, &stale] {
        tuned.call("ADD", json!({"mtu": 1400})).ok();
    }
    other.call("ADD", json!({"mtu": 1400, "name": "other"})).ok();
    let theirs = node.workdir().file("tuning/gone_eth0.json", "{\n \"mtu\": 1500\n}");
    let valid = json!([{"containerID": kept.container.id(), "ifname": "eth0"}]);
    let gc = |changes: Value| node.call("tuning").command("GC").config(&kept.config(changes));
    gc(json!({})).silent();
    assert!(stale.backup().exists());
    gc(json!({"cni.dev/valid-attachments": valid})).silent();
    assert!(kept.backup().exists() && !stale.backup().exists() && other.backup().exists() && theirs.exists());
    gc(json!({"cni.dev/valid-attachments": []})).silent();
    assert!(!kept.backup().exists() && other.backup().exists());
}

#[test]
fn the_result_of_every_version_passes_through() {
    require_netns!();
    let node = Node::new();
    for version in VERSIONS {
        let tuned = Tuned::new(&node);
        let old = version < "0.3.0";
        let prev = match old {
            true => json!({"cniVersion": version, "ip4": {"ip": "10.1.0.2/24"}, "dns": {}}),
            false => json!({
                "cniVersion": version, "dns": {},
                "interfaces": [{"name": "eth0", "mac": "0a:00:00:00:00:01", "sandbox": tuned.container.path()}],
                "ips": [match version < "1.0.0" {
                    true => json!({"version": "4", "address": "10.1.0.2/24", "interface": 0}),
                    false => json!({"address": "10.1.0.2/24", "interface": 0}),
                }],
            }),
        };
        let result = tuned.call("ADD", json!({"cniVersion": version, "mac": MAC, "prevResult": prev})).ok();
        assert_eq!(result["cniVersion"], version);
        if !old {
            assert_eq!(result["interfaces"][0]["mac"], MAC);
        }
        tuned.call("DEL", json!({"cniVersion": version, "prevResult": null})).silent();
        assert_eq!(tuned.container.links(), ["eth0", "other"]);
    }
}
