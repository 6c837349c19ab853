//! DEL, whatever happened in between: nothing of the attachment is left.

use serde_json::{Value, json};

use crate::support::{Attachment, Call, Container, Node, assert_same_after, require_netns};
use crate::{dual_stack_config, with};

/// What happens to an attachment before DEL, and the DEL that follows.
type Case = fn(&Node, &Container, &Attachment<'_>) -> Call;

const CASES: &[(&str, Case)] = &[
    ("nothing", |_, _, a| a.call("DEL")),
    ("no prevResult", |_, _, a| a.call_with("DEL", &a.config)),
    ("no CNI_NETNS", |_, _, a| a.call("DEL").unset("CNI_NETNS")),
    ("no CNI_NETNS, no prevResult", |_, _, a| a.call_with("DEL", &a.config).unset("CNI_NETNS")),
    ("empty CNI_NETNS", |_, _, a| a.call_with("DEL", &a.config).env("CNI_NETNS", "")),
    ("namespace path gone", |_, c, a| {
        c.unmount();
        a.call_with("DEL", &a.config)
    }),
    ("namespace path is a plain file", |n, c, a| {
        c.unmount();
        n.workdir().file(&format!("netns/{}", c.id()), "");
        a.call_with("DEL", &a.config)
    }),
    ("namespace path is a file of /proc", |_, c, a| {
        c.unmount();
        a.call_with("DEL", &a.config).env("CNI_NETNS", "/proc/self/status")
    }),
    ("interface gone", |_, c, a| {
        c.ip(&["link del eth0"]);
        a.call_with("DEL", &a.config)
    }),
    ("interface renamed", |_, c, a| {
        c.ip(&["link set eth0 down", "link set eth0 name other"]);
        a.call_with("DEL", &a.config)
    }),
    ("addresses flushed", |_, c, a| {
        c.ip(&["addr flush dev eth0"]);
        a.call_with("DEL", &a.config)
    }),
    ("addresses changed", |_, c, a| {
        c.ip(&["addr flush dev eth0", "addr add 10.1.0.200/24 dev eth0"]);
        a.call_with("DEL", &a.config)
    }),
    ("lease gone", |n, _, a| {
        n.workdir()
            .call("host-local")
            .command("DEL")
            .config(&a.config)
            .env("CNI_CONTAINERID", &a.id)
            .silent();
        a.call("DEL")
    }),
    ("options gone from the configuration", |n, _, a| {
        let ipam = json!({"type": "host-local", "dataDir": n.data_dir(), "subnet": "10.1.0.0/24"});
        let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": a.config["type"], "ipam": ipam});
        a.call_with("DEL", &bare).unset("CNI_NETNS")
    }),
    ("prevResult of somebody else", |_, _, a| {
        let prev = json!({"cniVersion": "1.1.0", "interfaces": [{"name": "cni0"}], "ips": [{"address": "192.0.2.9/24"}]});
        a.call_with("DEL", &with(a.config.clone(), json!({"prevResult": prev})))
    }),
];

fn every_case(changes: &Value) {
    let node = Node::new();
    let config = with(dual_stack_config(&node), changes.clone());
    // Keeps a second attachment: DEL must take its own things only.
    let other = node.container_named("warm-up");
    let kept = node.attach(&other, "eth0", &config);
    let before = node.snapshot();
    for (what, case) in CASES {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        let call = case(&node, &container, &attachment);
        for _ in 0..2 {
            let outcome = call.run();
            assert_eq!((outcome.status, outcome.text()), (Some(0), ""), "{what}\n{outcome}");
        }
        let after = node.snapshot();
        let left = after.mentions(container.id());
        assert!(left.is_empty(), "{what}: {left:?}");
        assert_same_after(what, &before, &after);
        assert!(container.links().is_empty(), "{what}: {:?}", container.links());
    }
    kept.check();
    assert!(other.pings("10.1.0.1") && other.pings("fd00:1::1"));
}

#[test]
fn a_bridge_attachment_with_nftables_masquerade_leaves_nothing() {
    require_netns!();
    every_case(&json!({"ipMasq": true, "macspoofchk": true}));
}

#[test]
fn a_bridge_attachment_with_iptables_masquerade_leaves_nothing() {
    require_netns!();
    every_case(&json!({"ipMasq": true, "ipMasqBackend": "iptables"}));
}

#[test]
fn a_ptp_attachment_with_nftables_masquerade_leaves_nothing() {
    require_netns!();
    every_case(&json!({"type": "ptp", "ipMasq": true}));
}

#[test]
fn a_ptp_attachment_with_iptables_masquerade_leaves_nothing() {
    require_netns!();
    every_case(&json!({"type": "ptp", "ipMasq": true, "ipMasqBackend": "iptables"}));
}

#[test]
fn del_of_what_was_never_added_succeeds_and_makes_nothing() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    for plugin in ["bridge", "ptp"] {
        for version in crate::support::VERSIONS {
            let config = with(
                dual_stack_config(&node),
                json!({"type": plugin, "cniVersion": version, "ipMasq": true}),
            );
            node.request("DEL", &container, "eth0", &config).silent();
        }
    }
    assert!(node.links().is_empty());
    assert_eq!(node.nft().trim(), "");
}

#[test]
fn del_works_when_bridge_and_tables_are_gone() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(
        &container,
        "eth0",
        &with(dual_stack_config(&node), json!({"ipMasq": true, "macspoofchk": true})),
    );
    node.ip(&["link del cni0"]);
    node.run("nft flush ruleset");
    attachment.del();
    assert!(node.links().is_empty() && node.leases("net").is_empty());
}

#[test]
fn del_does_not_touch_a_link_of_the_same_name_that_is_not_ours() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add eth0 type veth peer name other"]);
    let container = node.container();
    for call in [
        node.request("DEL", &container, "eth0", &dual_stack_config(&node)),
        node.request("DEL", &container, "eth0", &dual_stack_config(&node)).unset("CNI_NETNS"),
    ] {
        call.silent();
        assert_eq!(node.links(), ["eth0", "other"]);
    }
}

#[test]
fn del_with_a_stale_namespace_path_spares_the_interface_of_another_container() {
    require_netns!();
    let node = Node::new();
    // A path as /proc/PID/ns/net, after the process number was used again by another container.
    let (old, new) = (node.container(), node.container());
    for plugin in ["bridge", "ptp"] {
        let config = with(dual_stack_config(&node), json!({"type": plugin}));
        let stale = node.attach(&old, "eth0", &config);
        let kept = node.attach(&new, "eth0", &config);
        stale.call("DEL").env("CNI_NETNS", new.path()).silent();
        assert!(old.links().is_empty(), "the attachment's own interface is still there");
        kept.check();
        kept.del();
    }
}

/// Paths that lead to no network namespace: below a file, in a circle, too long, to files, a directory and another kind
/// of namespace in /proc.
fn paths_to_none(node: &Node) -> Vec<String> {
    let workdir = node.workdir();
    let file = workdir.file("file", "").display().to_string();
    let circle = workdir.root().join("circle");
    std::os::unix::fs::symlink(&circle, &circle).unwrap();
    let proc = ["/proc/self/status", "/proc", "/proc/self/ns/mnt"].map(str::to_owned);
    let mut paths =
        vec![format!("{file}/x"), file, circle.display().to_string(), format!("/{}", "x".repeat(256))];
    paths.extend(proc);
    paths
}

#[test]
fn del_succeeds_with_a_path_that_leads_to_no_network_namespace() {
    require_netns!();
    let node = Node::new();
    for path in paths_to_none(&node) {
        for plugin in
            ["bridge", "ptp", "macvlan", "tap", "dummy", "loopback", "host-device", "tc-redirect-tap"]
        {
            let config = with(
                dual_stack_config(&node),
                json!({"type": plugin, "dataDir": node.workdir().root().join("records")}),
            );
            let call = |command: &str| {
                node.call(plugin).command(command).config(&config).env("CNI_NETNS", path.as_str())
            };
            call("DEL").silent();
            if ["bridge", "loopback"].contains(&plugin) {
                call("ADD").err().names(&[&path]);
            }
        }
    }
    assert!(node.links().is_empty() && node.leases("net").is_empty());
}

#[test]
fn del_with_a_path_that_nobody_may_look_at_fails() {
    require_netns!();
    let node = Node::new();
    let secret = node.workdir().root().join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "loopback"});
    let call = node.call("loopback").command("DEL").config(&config);
    let call = call.env("CNI_NETNS", secret.join("netns").to_str().unwrap()).env("CNI_IFNAME", "lo");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    call.through("/usr/bin/setpriv", &nobody).err().names(&["secret/netns", "Permission denied"]);
}

#[test]
fn del_with_a_stale_namespace_path_spares_what_is_no_veth_of_its_own() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    // A virtual device of the host (its alias is its name there), an interface that has an owner, and one without.
    let others = [
        "link add eth0 type veth peer name far0; link set eth0 alias dev0",
        "link add eth0 type veth peer name far0; link set eth0 alias \"cni-all nb c2 eth0\"",
        "tuntap add dev eth0 mode tap; link set eth0 alias \"cni-all nb c2 eth0\"",
        "link add eth0 type bridge",
    ];
    for other in others {
        container.ip(&other.split("; ").collect::<Vec<_>>());
        if container.find_link("far0").is_some() {
            container.ip(&[&format!("link set far0 netns {}", node.path())]);
        }
        for plugin in ["bridge", "ptp"] {
            let config = with(dual_stack_config(&node), json!({"type": plugin}));
            node.request("DEL", &container, "eth0", &config).silent();
            assert_eq!(container.links(), ["eth0"], "{plugin}: {other}");
        }
        container.ip(&["link del eth0"]);
    }
}

#[test]
fn del_removes_a_pair_of_a_go_plugin() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    for plugin in ["bridge", "ptp"] {
        container.ip(&[&format!("link add eth0 type veth peer name veth01020304 netns {}", node.path())]);
        let config = with(dual_stack_config(&node), json!({"type": plugin}));
        node.request("DEL", &container, "eth0", &config).silent();
        assert!(container.links().is_empty() && node.links().is_empty(), "{plugin}");
    }
}

#[test]
fn del_tries_every_step_when_ipam_fails_and_reports_it() {
    require_netns!();
    let node = Node::new();
    let answer = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.7/24","gateway":"10.1.0.1"}]}"#;
    let body = format!(
        "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = ADD ] && {{ echo '{answer}'; exit 0; }}\n\
         echo '{{\"cniVersion\":\"1.1.0\",\"code\":11,\"msg\":\"pool is locked\"}}'\nexit 1\n"
    );
    node.workdir().script("bin/my-ipam", &body);
    for plugin in ["bridge", "ptp"] {
        let container = node.container();
        let config = with(
            dual_stack_config(&node),
            json!({"type": plugin, "ipMasq": true, "ipam": {"type": "my-ipam"}}),
        );
        let attachment = node.attach(&container, "eth0", &config);
        attachment.call("DEL").fails(11).names(&["pool is locked"]);
        assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty());
        assert_eq!(node.snapshot().mentions(container.id()), [""; 0]);
    }
}

#[test]
fn del_is_done_when_it_returns_if_asked_to_wait() {
    require_netns!();
    let node = Node::new();
    for wait in ["0", "1"] {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &dual_stack_config(&node));
        attachment.call("DEL").env("CNI_ALL_WAIT", wait).silent();
        assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty());
        // The name is free at once.
        node.attach(&container, "eth0", &dual_stack_config(&node)).del();
    }
}
