//! What the command is told: a dry run, one attachment or all of a network, one that there is not.

use serde_json::{Value, json};

use super::{Site, assert_restored, link, portmap, state};
use crate::support::require_netns;
use crate::{bridge_config, with};

#[test]
fn a_dry_run_prints_the_changes_and_makes_none() {
    require_netns!();
    let site = Site::bridged(json!({}), &[portmap()]);
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let before = state(&site, &container);
    site.rewrite(json!({"mtu": 1400, "ipMasq": true, "dns": {"domain": "x"}}), &[portmap()]);
    let words = ["-p", "8081:80"];
    let shown = site.update(&container, &[&words[..], &["--dry-run"]].concat());
    assert_restored("", &before, &state(&site, &container));
    assert!(shown.contains("mtu 1400") && shown.contains("8081") && shown.contains("dns.domain"), "{shown}");
    let json: Value =
        serde_json::from_str(&site.update(&container, &[&words[..], &["--dry-run", "--json"]].concat()))
            .unwrap();
    assert_eq!((&json["network"], &json["dryRun"]), (&json!("net"), &json!(true)));
    let one = &json["attachments"][0];
    assert_eq!((&one["containerID"], &one["ifname"]), (&json!(container.id()), &json!("eth0")));
    let mtu = json!({"plugin": "bridge", "key": "mtu", "from": null, "to": 1400});
    assert!(one["changes"].as_array().unwrap().contains(&mtu), "{one:#}");
    let lines: Vec<&str> = shown.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(one["commands"], json!(lines));
    // What is done is what was shown.
    assert_eq!(site.update(&container, &words), shown);
    site.end(&container);
}

#[test]
fn all_attachments_of_a_network_follow_at_once() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let containers = [site.node.container(), site.node.container(), site.node.container()];
    let [one, two, gone] = &containers;
    containers.iter().for_each(|container| drop(site.add(container, &[])));
    site.rewrite(json!({"mtu": 1400}), &[]);
    gone.unmount();
    // By id, which is that of a runtime.
    site.ok(&["update", "net", two.id()]);
    assert_eq!(
        (link(one, "eth0")["mtu"].clone(), link(two, "eth0")["mtu"].clone()),
        (1500.into(), 1400.into())
    );
    let outcome = site.call(&["update", "net", "--all"]).run();
    assert_eq!(outcome.status, Some(0), "{outcome}");
    assert!(outcome.text().contains(&format!("# {} eth0\n# bridge mtu", one.id())), "{outcome}");
    assert!(outcome.text().contains(&format!("# {} eth0: nothing to change", two.id())), "{outcome}");
    assert!(outcome.stderr.contains(&format!("left out {} eth0", gone.id())), "{outcome}");
    assert_eq!(link(one, "eth0")["mtu"], 1400);
    // One that fails does not keep the others.
    site.rewrite(json!({"mtu": 1300}), &[]);
    one.ip(&["link set eth0 down", "link set eth0 name other"]);
    let outcome = site.call(&["update", "net", "--all", "--json"]).run();
    assert_eq!(outcome.status, Some(1), "{outcome}");
    let json = outcome.json();
    assert!(
        json["attachments"][0]["error"]["msg"].as_str().unwrap().contains("not attached any more"),
        "{json:#}"
    );
    assert_eq!(link(two, "eth0")["mtu"], 1300);
}

#[test]
fn what_is_not_attached_is_said() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let ipam = with(bridge_config(&site.node)["ipam"].clone(), json!({"routes": []}));
    site.rewrite(json!({"ipam": ipam}), &[]);
    let (one, two) = (site.node.container(), site.node.container());
    site.add(&one, &[]);
    site.add(&one, &["--ifname", "eth1"]);
    site.refused(&two, &[]).err().names(&["is not attached to network net", "cache/results"]);
    site.refused(&one, &["--ifname", "eth2"]).err().names(&["with interface eth2"]);
    site.call(&["update", "net", two.path(), "--id", one.id(), "--json"])
        .run()
        .err()
        .names(&["is not attached"]);
    site.rewrite(json!({"mtu": 1400, "ipam": ipam}), &[]);
    site.update(&one, &["--ifname", "eth1"]);
    assert_eq!(
        (link(&one, "eth0")["mtu"].clone(), link(&one, "eth1")["mtu"].clone()),
        (1500.into(), 1400.into())
    );
    site.update(&one, &[]);
    assert_eq!(link(&one, "eth0")["mtu"], 1400, "eth0 unless said otherwise");
}
