//! firewall: rules as the Go plugin writes them, and nothing left of them.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::{
    Attachment, Call, Container, Node, VERSIONS, assert_same, require_netns, require_tool, skip,
};
use crate::{dual_stack_config, with};

pub const GO_PLUGINS: &str = "/usr/lib/cni";

/// A firewall configuration of this network, to which `changes` are made.
pub fn config(changes: Value) -> Value {
    with(json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "backend": "iptables"}), changes)
}

/// A container on the bridge `cni0` that both plugins were called for, as a runtime does.
pub struct Chained<'a> {
    pub bridge: Attachment<'a>,
    pub firewall: Attachment<'a>,
}

impl<'a> Chained<'a> {
    pub fn new(node: &'a Node, container: &'a Container, bridge: &Value, firewall: &Value) -> Chained<'a> {
        let bridge = node.attach(container, "eth0", bridge);
        let firewall = with(firewall.clone(), json!({"prevResult": bridge.result}));
        Chained { firewall: node.attach(container, "eth0", &firewall), bridge }
    }

    /// DEL of both, last plugin first.
    #[track_caller]
    pub fn del(&self) {
        self.firewall.del();
        self.bridge.del();
    }
}

/// What iptables lists of table filter, IPv4 and then IPv6.
pub fn listed(node: &Node) -> Vec<String> {
    let text = node.run("iptables-nft -S") + &node.run("ip6tables-nft -S");
    text.lines().map(str::to_owned).collect()
}

fn result(ips: &[&str]) -> Value {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"address": ip, "interface": 0})).collect();
    json!({"cniVersion": "1.0.0", "interfaces": [{"name": "cni0"}], "ips": ips, "dns": {}})
}

/// A call for a container that needs no namespace: the plugin works on the host only.
fn call(node: &Node, command: &str, id: &str, config: &Value) -> Call {
    node.call("firewall").command(command).config(config).env("CNI_CONTAINERID", id)
}

fn go_call(node: &Node, command: &str, id: &str, config: &Value) -> Call {
    let plugin = Path::new(GO_PLUGINS).join("firewall");
    Call::new(&plugin, Path::new(GO_PLUGINS))
        .inside(node)
        .command(command)
        .config(config)
        .env("CNI_CONTAINERID", id)
}

fn no_go_plugin() -> Option<&'static str> {
    (!Path::new(GO_PLUGINS).join("firewall").exists())
        .then_some("Debian's containernetworking-plugins are not installed")
}

/// The rules as nf_tables has them, each with its chain, without handles; chains in order of name.
fn encoded(node: &Node) -> Vec<String> {
    let mut rules: Vec<String> = Vec::new();
    for line in node.run("nft -s --debug=netlink list ruleset").lines() {
        match (line.starts_with("  ["), rules.last_mut()) {
            (true, Some(rule)) => rule.push_str(line),
            _ if line.starts_with("ip") => {
                rules.push(line.trim_end_matches(|c: char| c.is_ascii_digit() || c == ' ').to_owned());
            }
            _ => {}
        }
    }
    rules.sort_by_key(|rule| rule.split("  [").next().map(str::to_owned));
    rules
}

#[test]
fn rules_are_those_of_the_go_plugin_bit_by_bit() {
    require_netns!();
    require_tool!("iptables-nft");
    if let Some(reason) = no_go_plugin() {
        return skip(reason);
    }
    for changes in [json!({}), json!({"iptablesAdminChainName": "NOMAD-ADMIN"})] {
        let config = with(config(changes), json!({"cniVersion": "1.0.0"}));
        let config =
            with(config, json!({"prevResult": result(&["10.1.0.5/24", "fd00:1::5/64", "10.2.0.9/16"])}));
        let (ours, theirs) = (Node::new(), Node::new());
        call(&ours, "ADD", "c1", &config).ok();
        go_call(&theirs, "ADD", "c1", &config).ok();
        assert_eq!(listed(&ours), listed(&theirs));
        assert_eq!(encoded(&ours), encoded(&theirs));
        // Either implementation takes the other's rules for its own.
        call(&theirs, "CHECK", "c1", &config).silent();
        go_call(&ours, "CHECK", "c1", &config).silent();
        let before = listed(&ours);
        go_call(&ours, "ADD", "c1", &config).ok();
        call(&theirs, "ADD", "c1", &config).ok();
        assert_eq!(listed(&ours), before);
        assert_eq!(listed(&theirs), before);
        go_call(&ours, "DEL", "c1", &config).silent();
        call(&theirs, "DEL", "c1", &config).silent();
        assert_eq!(listed(&ours), listed(&theirs));
        assert!(!listed(&ours).iter().any(|line| line.contains("ACCEPT") && line.starts_with("-A")));
    }
}

#[test]
fn isolation_is_listed_as_that_of_the_go_plugin() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    let prev = json!({"prevResult": result(&["10.1.0.5/24"])});
    let config = with(config(json!({"ingressPolicy": "isolated"})), prev);
    call(&node, "ADD", "c1", &config).ok();
    let rules: Vec<String> = node
        .run("iptables-nft -S")
        .lines()
        .filter(|line| line.starts_with("-A"))
        .map(str::to_owned)
        .collect();
    let shared = r#"-m comment --comment "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)""#;
    let own = r#"-m comment --comment "CNI firewall plugin rules (ingressPolicy: isolated)""#;
    assert_eq!(
        rules,
        [
            format!("-A FORWARD {shared} -j CNI-ISOLATION-STAGE-1"),
            "-A FORWARD -m comment --comment \"CNI firewall plugin rules\" -j CNI-FORWARD".to_owned(),
            "-A CNI-FORWARD -m comment --comment \"CNI firewall plugin admin overrides\" -j CNI-ADMIN"
                .to_owned(),
            "-A CNI-FORWARD -d 10.1.0.5/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
            "-A CNI-FORWARD -s 10.1.0.5/32 -j ACCEPT".to_owned(),
            format!("-A CNI-ISOLATION-STAGE-1 -i cni0 -o cni0 {own} -j DROP"),
            format!("-A CNI-ISOLATION-STAGE-1 -i cni0 ! -o cni0 {own} -j CNI-ISOLATION-STAGE-2"),
            format!("-A CNI-ISOLATION-STAGE-1 {shared} -j RETURN"),
            format!("-A CNI-ISOLATION-STAGE-2 -o cni0 {shared} -j DROP"),
            format!("-A CNI-ISOLATION-STAGE-2 {shared} -j RETURN"),
        ]
    );
}

#[test]
fn add_again_changes_nothing_and_del_again_succeeds() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let config = config(json!({"ingressPolicy": "isolated"}));
    let chained = Chained::new(&node, &container, &dual_stack_config(&node), &config);
    let before = node.snapshot();
    let again = node.attach(&container, "eth0", &chained.firewall.config);
    assert_eq!(again.result, chained.firewall.result);
    assert_same(&before, &node.snapshot());
    chained.firewall.check();
    chained.del();
    let left = node.snapshot();
    chained.del();
    assert_same(&left, &node.snapshot());
    assert_eq!(left.mentions("10.1.0.2"), [""; 0]);
    assert_eq!(left.mentions("fd00:1::2"), [""; 0]);
}

#[test]
fn del_needs_neither_prev_result_nor_namespace_nor_a_valid_configuration() {
    require_netns!();
    let node = Node::new();
    let (kept, container) = (node.container_named("kept"), node.container_named("c1"));
    let kept = Chained::new(&node, &kept, &dual_stack_config(&node), &config(json!({})));
    let before = node.snapshot();
    let chained = Chained::new(&node, &container, &dual_stack_config(&node), &config(json!({})));
    chained.bridge.del();
    let bare = json!({"ingressPolicy": "no-such-policy", "backend": "no-such-backend", "iptablesAdminChainName": "a b"});
    let bare = with(config(bare), json!({"prevResult": {"ips": "nonsense"}}));
    call(&node, "DEL", "c1", &bare).env("CNI_NETNS", "").silent();
    assert_same(&before, &node.snapshot());
    kept.firewall.check();
}

#[test]
fn del_of_a_former_owner_of_an_address_leaves_the_rules_of_the_new_one() {
    require_netns!();
    let node = Node::new();
    let config = with(config(json!({})), json!({"prevResult": result(&["10.1.0.5/24"])}));
    call(&node, "ADD", "new", &config).ok();
    call(&node, "DEL", "old", &config).silent();
    call(&node, "CHECK", "new", &config).silent();
    call(&node, "DEL", "new", &config).silent();
    call(&node, "CHECK", "new", &config).fails(100).names(&["10.1.0.5"]);
}

#[test]
fn an_address_that_is_no_longer_the_attachments_goes_with_the_next_add() {
    require_netns!();
    let node = Node::new();
    let with_ips = |ips: &[&str]| with(config(json!({})), json!({"prevResult": result(ips)}));
    call(&node, "ADD", "c1", &with_ips(&["10.1.0.5/24", "10.1.0.6/24"])).ok();
    call(&node, "ADD", "c1", &with_ips(&["10.1.0.6/24", "10.1.0.7/24"])).ok();
    let rules = listed(&node).join("\n");
    assert!(
        !rules.contains("10.1.0.5") && rules.contains("10.1.0.6") && rules.contains("10.1.0.7"),
        "{rules}"
    );
}

#[test]
fn other_rules_of_the_host_are_left_as_they_are() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    for line in
        ["-P FORWARD DROP", "-N OWN", "-A OWN -j RETURN", "-A FORWARD -s 192.0.2.0/24 -j OWN", "-N CNI-ADMIN"]
    {
        node.run(&format!("iptables-nft {line}"));
    }
    node.run("iptables-nft -A CNI-ADMIN -d 192.0.2.7 -j DROP");
    let before = listed(&node);
    let config = with(config(json!({})), json!({"prevResult": result(&["10.1.0.5/24"])}));
    call(&node, "ADD", "c1", &config).ok();
    let during = listed(&node);
    assert!(before.iter().all(|line| during.contains(line)), "{during:#?}");
    call(&node, "DEL", "c1", &config).silent();
    let after = listed(&node);
    assert!(before.iter().all(|line| after.contains(line)), "{after:#?}");
    assert_eq!(after.iter().filter(|line| line.contains("10.1.0.5")).count(), 0);
}

#[test]
fn check_finds_what_is_missing_and_makes_nothing() {
    require_netns!();
    require_tool!("iptables-nft");
    let prev = json!({"prevResult": result(&["10.1.0.5/24"])});
    let config = with(config(json!({"ingressPolicy": "isolated"})), prev);
    for (damage, named) in [
        ("-D CNI-FORWARD -s 10.1.0.5 -j ACCEPT", "-s 10.1.0.5/32"),
        ("-F CNI-FORWARD", "-j CNI-ADMIN"),
        ("-D FORWARD 2", "-j CNI-FORWARD"),
        ("-D FORWARD 1", "-j CNI-ISOLATION-STAGE-1"),
        ("-I FORWARD -j CNI-FORWARD", "behind the jump"),
        ("-D CNI-ISOLATION-STAGE-1 1", "-i cni0 -o cni0"),
        ("-F CNI-ISOLATION-STAGE-2", "CNI-ISOLATION-STAGE-2 -o cni0"),
    ] {
        let node = Node::new();
        call(&node, "ADD", "c1", &config).ok();
        call(&node, "CHECK", "c1", &config).silent();
        node.run(&format!("iptables-nft {damage}"));
        let before = node.snapshot();
        call(&node, "CHECK", "c1", &config).fails(100).names(&[named]);
        assert_same(&before, &node.snapshot());
        // ADD mends it.
        call(&node, "ADD", "c1", &config).ok();
        call(&node, "CHECK", "c1", &config).silent();
    }
    let node = Node::new();
    call(&node, "CHECK", "c1", &config).fails(100);
    assert_eq!(node.nft(), "");
}

#[test]
fn gc_removes_the_rules_of_attachments_that_are_not_named() {
    require_netns!();
    let node = Node::new();
    let with_ip = |ip: &str, name: &str| {
        with(
            config(json!({"name": name, "ingressPolicy": "same-bridge"})),
            json!({"prevResult": result(&[ip])}),
        )
    };
    call(&node, "ADD", "kept", &with_ip("10.1.0.5/24", "net")).ok();
    call(&node, "ADD", "other", &with_ip("10.1.0.6/24", "other")).ok();
    let before = node.snapshot();
    call(&node, "ADD", "stale", &with_ip("10.1.0.7/24", "net")).ok();
    let gc = |valid: Value| {
        let config = with(config(json!({})), json!({"cni.dev/valid-attachments": valid}));
        node.call("firewall").command("GC").config(&config).silent();
    };
    gc(json!([{"containerID": "kept", "ifname": "eth0"}]));
    assert_same(&before, &node.snapshot());
    gc(Value::Null);
    assert_same(&before, &node.snapshot());
    gc(json!([]));
    call(&node, "CHECK", "other", &with_ip("10.1.0.6/24", "other")).silent();
    assert!(!listed(&node).iter().any(|line| line.contains("10.1.0.5")));
}

#[test]
fn what_is_wrong_in_the_configuration_is_named_before_anything_is_done() {
    require_netns!();
    let node = Node::new();
    let prev = json!({"prevResult": result(&["10.1.0.5/24"])});
    for (changes, named) in [
        (json!({"ingressPolicy": "closed"}), "ingressPolicy: \"closed\""),
        (json!({"iptablesAdminChainName": "a chain"}), "iptablesAdminChainName: \"a chain\""),
        (json!({"iptablesAdminChainName": "CNI-FORWARD"}), "iptablesAdminChainName: \"CNI-FORWARD\""),
        (json!({"iptablesAdminChainName": "x".repeat(29)}), "iptablesAdminChainName"),
    ] {
        call(&node, "ADD", "c1", &with(config(changes), prev.clone())).fails(7).names(&[named]);
    }
    call(&node, "ADD", "c1", &config(json!({}))).fails(7).says("missing prevResult from earlier plugin");
    let inside = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}], "ips": []});
    let policy = json!({"ingressPolicy": "same-bridge", "prevResult": inside});
    call(&node, "ADD", "c1", &config(policy)).fails(7).names(&["same-bridge", "bridge"]);
    assert_eq!(node.nft(), "");
}

#[test]
fn the_previous_result_is_passed_on() {
    require_netns!();
    let node = Node::new();
    for version in VERSIONS {
        let container = node.container();
        let bridge = with(dual_stack_config(&node), json!({"cniVersion": version}));
        let chained = Chained::new(&node, &container, &bridge, &config(json!({"cniVersion": version})));
        assert_eq!(chained.firewall.result, chained.bridge.result);
        if version >= "0.4.0" {
            chained.firewall.check();
        }
        chained.del();
    }
}

#[test]
fn status_is_healthy_and_changes_nothing() {
    require_netns!();
    let node = Node::new();
    node.call("firewall").command("STATUS").config(&config(json!({}))).silent();
    assert_eq!(node.nft(), "");
}

#[test]
fn a_bus_without_firewalld_and_no_bus_mean_rules() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let chained = Chained::new(
        &node,
        &container,
        &dual_stack_config(&node),
        &with(config(json!({})), json!({"backend": ""})),
    );
    assert!(listed(&node).iter().any(|line| line.contains("10.1.0.2/32")));
    chained.firewall.check();
    chained.firewall.del();
    let explicit = with(chained.firewall.config.clone(), json!({"backend": "firewalld"}));
    let before = node.snapshot();
    node.request("ADD", &container, "eth0", &explicit).fails(999).names(&["/nonexistent/bus"]);
    assert_same(&before, &node.snapshot());
}

#[test]
fn a_bus_that_never_answers_means_rules_after_a_while() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attached = node.attach(&container, "eth0", &dual_stack_config(&node));
    let socket = node.workdir().root().join("dumb");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let config =
        with(with(config(json!({})), json!({"backend": ""})), json!({"prevResult": attached.result}));
    let call = node.request("ADD", &container, "eth0", &config);
    call.env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", socket.display())).ok();
    assert!(listed(&node).iter().any(|line| line.contains("10.1.0.2/32")));
}
