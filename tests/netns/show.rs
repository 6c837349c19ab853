//! `cni-all show` and `doctor` on a node with a running container.

use std::os::unix::fs::MetadataExt;
use std::process::Child;

use serde_json::Value;

use crate::support::{Container, Node, executable, require_netns, require_tool};
use crate::{bridge_config, with};

/// A process in a container's namespace, as every running container has; killed in the end.
struct Running(Child);

impl Running {
    fn start(container: &Container) -> Running {
        Running(container.command("sleep 600").spawn().unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The node's network as the only configuration of a directory.
fn configuration(node: &Node, config: &Value) -> String {
    let dir = node.workdir().root().join("net.d");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("10-net.conf"), config.to_string()).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn show_tells_which_container_is_on_which_link_of_the_host() {
    crate::support::require_kind!("macvlan");
    let node = Node::new();
    let _outside = node.outside();
    let mut config = with(bridge_config(&node), serde_json::json!({"type": "macvlan", "master": "uplink"}));
    config["ipam"]["routes"] = serde_json::json!([]);
    let dir = configuration(&node, &config);
    let container = node.container();
    node.attach(&container, "eth0", &config);
    let _running = Running::start(&container);
    let state =
        node.json(&format!("{} show net --json --conf-dir {dir} --cache-dir {dir}", executable().display()));
    let attached = &state["attachments"][0];
    assert_eq!((&attached["container"], &attached["link"]), (&container.id().into(), &"uplink".into()));
    let addresses = attached["addresses"].as_array().unwrap();
    assert!(addresses.contains(&"10.1.0.2/24".into()), "{addresses:?}");
    assert_eq!(state["stale"], Value::Array(Vec::new()));
}

#[test]
fn show_tells_which_container_is_attached_to_which_bridge_with_which_address() {
    require_netns!();
    let node = Node::new();
    let config = bridge_config(&node);
    let dir = configuration(&node, &config);
    let show = |options: &str| {
        node.run(&format!("{} show net {options} --conf-dir {dir} --cache-dir {dir}", executable().display()))
    };
    // The container of another host on this machine: all names and numbers are the same.
    let elsewhere = Node::new();
    let decoy = elsewhere.container();
    elsewhere.attach(&decoy, "eth0", &bridge_config(&elsewhere));
    let _decoy_running = Running::start(&decoy);
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    let _running = Running::start(&container);

    // Another test's child is in there too, for a moment before it starts its program, and may be what is found.
    let inside = |path: &str| std::fs::metadata(path).map(|meta| meta.ino()).ok();
    let expected = inside(container.path());
    let shown = || -> Value { serde_json::from_str(&show("--json")).unwrap() };
    let found_it = |state: &Value| {
        state["attachments"][0]["netns"].as_str().is_some_and(|path| inside(path) == expected)
    };
    let again = |_| {
        let state = shown();
        // The process may be on its way into the namespace.
        std::thread::sleep(std::time::Duration::from_millis(if found_it(&state) { 0 } else { 200 }));
        state
    };
    let state = (0..25).map(again).find(found_it).expect("the container's namespace");
    let attached = &state["attachments"][0];
    assert_eq!(attached["container"], container.id());
    assert_eq!((&attached["network"], &attached["ifname"]), (&"net".into(), &"eth0".into()));
    assert_eq!((&attached["bridge"], &attached["link"]), (&"cni0".into(), &attachment.host_veth().into()));
    let addresses: Vec<&str> =
        attached["addresses"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(addresses.contains(&"10.1.0.2/24"), "{addresses:?}");
    assert_eq!(state["bridges"][0]["ports"][0], attachment.host_veth());
    let lease = &state["networks"][0]["leases"][0];
    assert_eq!((&lease["address"], &lease["in_use"]), (&"10.1.0.2".into(), &true.into()));
    assert_eq!(state["networks"][0]["ranges"][0]["free"], "252");
    assert_eq!(state["stale"], Value::Array(Vec::new()));
    for picture in ["--dot", "--svg"] {
        let text = show(picture);
        let short: String = container.id().chars().take(12).collect();
        for word in ["net", "cni0", &short, "10.1.0.2/24"] {
            assert!(text.contains(word), "{picture} without {word}: {text}");
        }
    }

    attachment.del();
    let state: Value = serde_json::from_str(&show("--json")).unwrap();
    assert_eq!(state["attachments"], Value::Array(Vec::new()));
    assert_eq!(state["networks"][0]["leases"], Value::Array(Vec::new()));
}

#[test]
fn doctor_warns_of_a_forward_chain_that_drops() {
    require_netns!();
    require_tool!("nft");
    let node = Node::new();
    let dir = configuration(&node, &with(bridge_config(&node), serde_json::json!({"ipMasq": true})));
    let findings = || {
        let line = format!("{} doctor --json --conf-dir {dir}", executable().display());
        let output = node.try_run(&line);
        let all: Value = serde_json::from_slice(&output.stdout).unwrap();
        let all = all["findings"].as_array().unwrap().clone();
        all.into_iter().filter(|f| f["subject"] == "iptables FORWARD").collect::<Vec<_>>()
    };
    node.run("nft add table ip filter");
    for (policy, found) in [("accept", 0), ("drop", 1)] {
        let chain = format!("type filter hook forward priority 0 ; policy {policy} ;");
        node.run(&format!("nft add chain ip filter FORWARD {{ {chain} }}"));
        assert_eq!(findings().len(), found, "{policy}");
    }
    assert_eq!(findings()[0]["mend"], "iptables -P FORWARD ACCEPT");
}

/// What `cni-all doctor` says of a subject, with a list that has these plugins: severity, reason, mend.
fn doctor(node: &Node, plugins: Value, subject: &str) -> Vec<[String; 3]> {
    let dir = node.workdir().root().join("doctor.d");
    std::fs::create_dir_all(&dir).unwrap();
    let list = serde_json::json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins});
    std::fs::write(dir.join("10-net.conflist"), list.to_string()).unwrap();
    let line = format!("{} doctor --json --conf-dir {}", executable().display(), dir.display());
    let mut command = node.command(&line);
    command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus");
    let all: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let found = all["findings"].as_array().unwrap().iter().filter(|f| f["subject"] == subject);
    found.map(|f| ["severity", "reason", "mend"].map(|key| f[key].as_str().unwrap().to_owned())).collect()
}

#[test]
fn doctor_knows_which_drops_the_firewall_plugin_can_overrule() {
    require_netns!();
    require_tool!("nft");
    let node = Node::new();
    let without = serde_json::json!([{"type": "bridge", "bridge": "br7"}]);
    let with = serde_json::json!([{"type": "bridge", "bridge": "br7"}, {"type": "firewall"}]);
    let rules =
        serde_json::json!([{"type": "bridge", "bridge": "br7"}, {"type": "firewall", "backend": "iptables"}]);
    for (table, chain) in [("ip filter", "FORWARD"), ("inet own", "through")] {
        node.run(&format!("nft add table {table}"));
        let base = "{ type filter hook forward priority 0 ; policy drop ; }";
        node.run(&format!("nft add chain {table} {chain} {base}"));
    }
    node.run("nft add table inet firewalld");
    assert_eq!(doctor(&node, without.clone(), "iptables FORWARD")[0][0], "warning");
    assert_eq!(doctor(&node, with.clone(), "iptables FORWARD")[0][0], "note");
    for list in [&without, &with] {
        let found = doctor(&node, list.clone(), "nft chain inet own through");
        assert_eq!(found[0][0], "warning");
        // The command mends it.
        assert!(found[0][2].contains("iifname \"br7\" accept"), "{found:?}");
    }
    let mend = &doctor(&node, with.clone(), "nft chain inet own through")[0][2];
    let mended = node.workdir().script("mend", &format!("#!/bin/sh -e\n{mend}\n"));
    node.run(mended.to_str().unwrap());
    assert!(node.nft().contains("iifname \"br7\" accept"));
    for (list, words) in [(without, "zone trusted"), (with, "cannot ask it"), (rules, "backend \"iptables\"")]
    {
        let found = doctor(&node, list, "firewalld");
        assert_eq!(found.len(), 1);
        assert!(found[0][1].contains(words), "{found:?}");
    }
}

#[test]
fn doctor_tells_of_old_tables_that_drop_or_have_rules() {
    require_netns!();
    require_tool!("iptables-legacy");
    let node = Node::new();
    if !node.try_run("iptables-legacy -S").status.success() {
        return crate::support::skip_for_kernel("this kernel does not have the old ip_tables");
    }
    let plugins = serde_json::json!([{"type": "bridge"}, {"type": "firewall"}]);
    let found = || doctor(&node, plugins.clone(), "iptables-legacy");
    assert_eq!((found().len(), found()[0][0].as_str()), (1, "note"));
    node.run("iptables-legacy -A FORWARD -s 192.0.2.0/24 -j DROP");
    assert!(found()[0][0] == "warning" && found()[0][1].contains("has rules"), "{:?}", found());
    node.run("iptables-legacy -P FORWARD DROP");
    assert!(
        found()[0][1].contains("FORWARD") && found()[0][2].contains("-P FORWARD ACCEPT"),
        "{:?}",
        found()
    );
}

#[test]
fn show_lists_port_mappings_of_both_layouts() {
    require_netns!();
    for backend in ["nftables", "iptables"] {
        let node = Node::new();
        let bridge = bridge_config(&node);
        let portmap = serde_json::json!({
            "type": "portmap", "backend": backend, "capabilities": {"portMappings": true},
        });
        let list = serde_json::json!({"cniVersion": "1.0.0", "name": "net", "plugins": [bridge, portmap]});
        let dir = node.workdir().root().join("net.d");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("10-net.conflist"), list.to_string()).unwrap();
        let container = node.container();
        let mappings = r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;
        let program = executable().display().to_string();
        node.run(&format!(
            "{program} add net {} --id {} --conf-dir {} --capability-args {mappings}",
            container.path(),
            container.id(),
            dir.display()
        ));
        let state =
            node.json(&format!("{program} show {} --json --conf-dir {}", container.id(), dir.display()));
        let mappings = &state["attachments"][0]["mappings"];
        assert_eq!(*mappings, serde_json::json!(["tcp 0.0.0.0:8080 to 10.1.0.2:80"]), "{backend}: {state}");
    }
}

#[test]
fn doctor_asks_for_a_dhcp_daemon_where_plugins_may_not_start_one() {
    require_netns!();
    let node = Node::new();
    let socket = node.workdir().root().join("dhcp.sock");
    let found = |daemon: &str| {
        let ipam = serde_json::json!({"type": "dhcp", "daemonSocketPath": socket, "daemon": daemon});
        let plugins = serde_json::json!([{"type": "macvlan", "ipam": ipam}]);
        let found = doctor(&node, plugins, "dhcp daemon");
        found.into_iter().map(|[severity, ..]| severity).collect::<Vec<_>>()
    };
    assert_eq!((found("required"), found("auto")), (vec!["error".to_owned()], vec!["note".to_owned()]));
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert_eq!(found("required"), Vec::<String>::new());
    drop(listener);
    // Left from a daemon that was killed.
    assert_eq!((found("required"), found("auto")), (vec!["error".to_owned()], vec!["note".to_owned()]));
}

#[test]
fn doctor_finds_nothing_missing_in_a_kernel_that_limits_masquerades_and_maps_ports() {
    require_netns!();
    let node = Node::new();
    let plugins = serde_json::json!([
        {"type": "bridge", "ipMasq": true},
        {"type": "portmap", "capabilities": {"portMappings": true}},
        {"type": "bandwidth", "ingressRate": 1_000_000, "unshapedSubnets": ["10.0.0.0/8"]},
        {"type": "tc-redirect-tap"},
    ]);
    for subject in [
        "nf_tables",
        "masquerading by nftables",
        "port mappings by nftables",
        "token bucket (tc tbf)",
        "classes (tc htb)",
        "redirection (tc ingress, u32, mirred)",
    ] {
        assert_eq!(doctor(&node, plugins.clone(), subject), Vec::<[String; 3]>::new(), "{subject}");
    }
}
