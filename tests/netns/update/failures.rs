//! Updates that are refused, that fail in the middle, and that are killed.

use std::fs::File;

use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

use super::{Site, assert_restored, portmap, state};
use crate::support::{require_netns, require_tool};
use crate::{bridge_config, with};

#[test]
fn what_needs_a_new_attachment_is_named_and_nothing_is_done() {
    require_netns!();
    let site = Site::bridged(json!({}), &[portmap()]);
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let before = state(&site, &container);
    let ipam = with(bridge_config(&site.node)["ipam"].clone(), json!({"subnet": "10.2.0.0/24"}));
    for (keys, more, named) in [
        (json!({"ipam": ipam}), vec![portmap()], r#"bridge ipam.subnet: "10.1.0.0/24" -> "10.2.0.0/24""#),
        (json!({"bridge": "cni1"}), vec![portmap()], r#"bridge bridge: "cni0" -> "cni1""#),
        (json!({"vlan": 5}), vec![portmap()], "bridge vlan: not set -> 5"),
        (json!({"isGateway": false}), vec![portmap()], "bridge isGateway: true -> false"),
        (json!({"type": "ptp"}), vec![portmap()], r#"bridge type: "bridge" -> not in the list"#),
        (json!({}), vec![portmap(), json!({"type": "sbr"})], r#"sbr type: not in the list -> "sbr""#),
        (json!({}), vec![portmap(), json!({"type": "portmap"})], "portmap type: not in the list"),
    ] {
        site.rewrite(with(json!({"mtu": 1400}), keys.clone()), &more);
        let failure = site.refused(&container, &[]).err();
        assert_eq!(failure.code, 103, "{keys}: {}", failure.msg);
        failure.names(&[named, "needs a new attachment", "nothing was changed"]);
        assert_restored(named, &before, &state(&site, &container));
    }
    site.rewrite(json!({}), &[portmap()]);
    let failure = site.refused(&container, &["--args", "IP=10.1.0.9"]).err();
    assert_eq!(failure.code, 103);
    failure.names(&["CNI_ARGS: not set -> \"IP=10.1.0.9\""]);
    let mac = json!({"capabilities": {"mac": true}});
    site.rewrite(mac, &[portmap()]);
    let args = r#"{"mac": "02:00:00:00:00:05"}"#;
    site.refused(&container, &["--capability-args", args]).err().names(&["runtimeConfig.mac"]);
    // A plugin in front of the bridge, or two in another order.
    site.configure(json!([portmap(), bridge_config(&site.node)]));
    site.refused(&container, &[])
        .err()
        .names(&[r#"network plugins: ["bridge","portmap"] -> ["portmap","bridge"]"#]);
    assert_restored("", &before, &state(&site, &container));
}

#[test]
fn a_failure_in_the_middle_restores_everything() {
    require_netns!();
    let limits = json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 80_000});
    let site = Site::bridged(json!({}), &[]);
    // What an earlier plugin sets, it sets once more.
    let tuning = json!({"type": "tuning", "dataDir": site.path("tuning"), "mtu": 1300});
    site.rewrite(json!({"hairpinMode": true}), &[portmap(), limits, tuning.clone()]);
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let before = state(&site, &container);
    // The kernel refuses a gateway that no network has; MTU and flags are set before.
    let mut ipam = bridge_config(&site.node)["ipam"].clone();
    ipam["routes"] =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16"}, {"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]);
    let limits = json!({"type": "bandwidth", "ingressRate": 16_000_000, "ingressBurst": 80_000});
    site.rewrite(
        json!({"mtu": 1400, "ipMasq": true, "ipam": ipam}),
        &[portmap(), limits.clone(), tuning.clone()],
    );
    let failure = site.refused(&container, &["-p", "8081:80"]).err();
    failure.names(&["plugin bridge (update)", "ip route prepend 10.9.0.0/16 via 192.0.2.1 dev eth0"]);
    assert!(!failure.details.contains("not taken back"), "{}", failure.details);
    assert_restored("", &before, &state(&site, &container));

    // Everything is done, and cannot be kept: that is the third file, after what tuning notes in the preview and in earnest.
    require_tool!("strace");
    let good = json!({"mtu": 1400, "ipMasq": true, "macspoofchk": true, "dns": {"domain": "x"}});
    site.rewrite(good, &[portmap(), limits, tuning, json!({"type": "firewall", "backend": "iptables"})]);
    let words = ["update", "net", container.path(), "--json", "-p", "8081:80"];
    let inject =
        ["-f", "-qq", "-o", "/dev/null", "-e", "trace=rename", "-e", "inject=rename:error=EIO:when=3"];
    let failure = site.call(&words).through("strace", &inject).run().err();
    failure.names(&["I/O error", "failed to set network"]);
    assert!(!failure.details.contains("not taken back"), "{}", failure.details);
    // Chains and jumps that all containers share stay, as after DEL.
    let mut after = state(&site, &container);
    let is_own =
        |line: &String| before.contains(line) || line.contains("10.1.0.2") || line.contains("container-0");
    after.retain(is_own);
    assert_restored("", &before, &after);
    assert!(!site.node.nft().contains("masq-net"), "{}", site.node.nft());
    site.settles(&container, &["-p", "8081:80"]);
    site.end(&container);
}

#[test]
fn an_update_that_is_killed_is_finished_by_the_next() {
    require_netns!();
    require_tool!("strace");
    let plain = json!({"type": "bandwidth"});
    let limits = json!({"type": "bandwidth", "egressRate": 16_000_000, "egressBurst": 80_000});
    let site = Site::bridged(json!({}), &[portmap(), plain.clone()]);
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let kept = site.kept(&container);
    let words = ["update", "net", container.path(), "-p", "8081:80", "-p", "8082:80"];
    let change = || site.rewrite(json!({"mtu": 1400, "ipMasq": true}), &[portmap(), limits.clone()]);
    let words_back = ["update", "net", container.path(), "-p", "8080:80"];
    let change_back = || {
        site.rewrite(json!({}), &[portmap(), plain.clone()]);
        site.update(&container, &words_back[3..]);
        assert_eq!(site.kept(&container), kept);
    };
    // The links that the result has, and their MTU.
    let links = || {
        let result = site.kept(&container)["result"].clone();
        let all = result["interfaces"].as_array().unwrap().iter();
        all.map(|interface| format!("{} {}", interface["name"], interface["mtu"])).collect::<Vec<_>>()
    };
    change();
    site.update(&container, &words[3..]);
    let changed = links();
    change_back();
    let mut killed = 0;
    // When everything is done, and before each seventh of the netlink messages; the first half of them only asks what there is.
    let messages = (1..).step_by(7).map(|number| format!("sendmsg,sendto:signal=KILL:when={number}"));
    for point in std::iter::once("rename:signal=KILL".to_owned()).chain(messages) {
        let inject = format!("inject={point}");
        let strace = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=sendmsg,sendto,rename", "-e", &inject];
        change();
        let outcome = site.call(&words).through("strace", &strace).run();
        if outcome.status == Some(0) {
            break;
        }
        killed += 1;
        assert_eq!(site.kept(&container), kept, "{outcome}");
        site.update(&container, &words[3..]);
        site.ok(&["check", "net", container.path(), "--id", container.id()]);
        assert_eq!(links(), changed, "killed at {point}");
        site.rewrite(json!({}), &[portmap(), plain.clone()]);
        site.call(&words_back).through("strace", &strace).run();
        change_back();
        assert_eq!(site.node.links_of_kind("ifb"), Vec::<String>::new(), "killed at {point}");
    }
    assert!(killed > 5, "{killed}");
    site.end(&container);
}

#[test]
fn updates_of_one_container_wait_for_each_other_and_del_for_them() {
    require_netns!();
    let site = Site::bridged(json!({}), &[portmap()]);
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let before = state(&site, &container);
    let path = site.path(&format!("cache/results/net-{}-eth0", container.id()));
    let held = Flock::lock(File::open(path).unwrap(), FlockArg::LockExclusive).unwrap();
    let holder = format!("process {} did not release it within 100ms", std::process::id());
    let words = |verb: &'static str| [verb, "net", container.path(), "--id", container.id()];
    for call in [site.call(&words("update")).arg("-p").arg("8081:80"), site.call(&words("del"))] {
        call.arg("--json").arg("--timeout").arg("0.1").fails(11).names(&[&holder]);
        assert_restored("", &before, &state(&site, &container));
    }
    drop(held);

    // Each maps another port; whoever comes last, what is there is what is kept.
    std::thread::scope(|scope| {
        for port in 9001..9009 {
            let call = site.call(&words("update")).arg("-p").arg(format!("{port}:80"));
            scope.spawn(move || assert_eq!(call.run().status, Some(0)));
        }
    });
    let kept = site.kept(&container)["capabilityArgs"]["portMappings"][0]["hostPort"].clone();
    let rules = site.node.nft();
    let mapped: Vec<_> = (9001..9009).filter(|port| rules.contains(&format!(" {port} "))).collect();
    assert_eq!(json!(mapped), json!([kept]), "{rules}");
    site.ok(&["check", "net", container.path(), "--id", container.id()]);
    site.end(&container);
}
