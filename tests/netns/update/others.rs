//! What other programs had a part in: a plugin of the list, a configuration that a runtime kept, what the Go plugins made.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::{Site, connected, has_ifb, link, portmap, rates, talk};
use crate::support::{require_netns, require_tool};
use crate::{bridge_config, with};

#[test]
fn a_plugin_of_others_is_left_alone_unless_its_configuration_changed() {
    require_netns!();
    let other = |note: &str| json!({"type": "other", "note": note});
    let site = Site::bridged(json!({}), &[other("a")]);
    let log = site.path("calls");
    let script = format!(
        "#!/bin/sh\necho $CNI_COMMAND >>{}\nread -r asked\nprev=${{asked#*\\\"prevResult\\\":}}\n\
         [ $CNI_COMMAND = ADD ] && printf %s \"${{prev%\\}}}}\"\nexit 0\n",
        log.display()
    );
    let dir =
        site.node.workdir().script("others/other", &script).parent().unwrap().to_str().unwrap().to_owned();
    let bin = ["--bin-dir", dir.as_str()];
    let container = site.node.container();
    site.add(&container, &bin);
    site.rewrite(json!({"mtu": 1400}), &[other("a")]);
    site.update(&container, &bin);
    assert_eq!(link(&container, "eth0")["mtu"], 1400);
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "ADD\n");
    site.rewrite(json!({}), &[other("b")]);
    let failure = site.refused(&container, &bin).err();
    assert_eq!(failure.code, 103);
    failure.names(&[r#"other note: "a" -> "b""#]);
    assert_eq!(link(&container, "eth0")["mtu"], 1400);
}

/// Base 64 (RFC 4648, section 4).
fn decoded(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |c: char| DIGITS.find(c).unwrap() as u32;
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0, 0_u32);
    for c in text.trim_end_matches('=').chars() {
        (held, bits) = (held << 6 | digit(c), bits + 6);
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    bytes
}

#[test]
fn what_a_runtime_kept_is_understood_and_kept_the_same_way() {
    require_netns!();
    // A single configuration, which containerd and podman keep as a list of one.
    let site = Site::bridged(json!({}), &[]);
    let container = site.node.container();
    site.add(&container, &[]);
    std::fs::remove_file(site.path("net.d/10-net.conflist")).unwrap();
    let single = with(bridge_config(&site.node), json!({"mtu": 1400}));
    site.node.workdir().file("net.d/10-net.conf", single.to_string());
    let text = site.settles(&container, &["--id", container.id()]);
    assert!(text.contains("# bridge mtu: not set -> 1400") && !text.contains("cniVersion"), "{text}");
    let config: Value =
        serde_json::from_slice(&decoded(site.kept(&container)["config"].as_str().unwrap())).unwrap();
    assert_eq!(config["plugins"][0]["mtu"], 1400);
    // A runtime's DEL: new configuration, kept result, through the plugin itself.
    let request = with(single, json!({"prevResult": site.kept(&container)["result"]}));
    site.node.request("CHECK", &container, "eth0", &request).silent();
    site.node.request("DEL", &container, "eth0", &request).silent();
    assert_eq!(site.node.leases("net"), Vec::<String>::new());
}

#[test]
fn what_the_go_plugins_attached_changes_as_well() {
    require_netns!();
    require_tool!("iptables-nft");
    if !Path::new("/usr/lib/cni/bridge").exists() {
        return crate::support::skip("Debian's containernetworking-plugins are not installed");
    }
    if !has_ifb() {
        return crate::support::skip("this kernel has no ifb");
    }
    let main = json!({"cniVersion": "1.0.0", "ipMasq": true});
    let limits = |rate: u64| json!({"type": "bandwidth", "ingressRate": rate, "ingressBurst": 80_000, "egressRate": rate, "egressBurst": 80_000});
    let site = Site::new(json!([{"type": "loopback"}]));
    let configure = |keys: Value, more: &[Value]| {
        let plugins = [&[with(with(bridge_config(&site.node), main.clone()), keys)], more].concat();
        let list = json!({"cniVersion": "1.0.0", "name": "net", "plugins": plugins});
        site.node.workdir().file("net.d/10-net.conflist", list.to_string());
    };
    configure(json!({}), &[portmap(), limits(8_000_000)]);
    let outside = site.node.outside();
    let container = site.node.container();
    let added = site.add(&container, &["-p", "8080:80", "--bin-dir", "/usr/lib/cni"]);
    assert_eq!(added["cniVersion"], "1.0.0");
    let listener = container.listen(IpAddr::from([0; 4]), 80);
    let mut open = connected(&outside, 8080, &listener);
    talk(&mut open);
    let rules = site.node.run("iptables-nft -t nat -S");
    assert!(rules.contains("CNI-DN-") && !site.node.nft().contains("cni-all"), "{rules}");

    configure(json!({"mtu": 1400, "ipMasq": false}), &[portmap(), limits(16_000_000)]);
    let text = site.update(&container, &["-p", "8080:80", "-p", "8081:80"]);
    talk(&mut open);
    talk(&mut connected(&outside, 8081, &listener));
    talk(&mut connected(&outside, 8080, &listener));
    assert_eq!(link(&container, "eth0")["mtu"], 1400);
    assert_eq!(
        rates(&site.node).iter().map(|(_, rate)| *rate).collect::<Vec<_>>(),
        [2_000_000, 2_000_000],
        "{text}"
    );
    let rules = site.node.run("iptables-nft -t nat -S");
    assert!(!rules.contains("10.1.0.2"), "masquerading and mappings of the Go plugins are gone: {rules}");
    assert!(site.update(&container, &[]).contains("nothing to change"));
    site.ok(&["check", "net", container.path(), "--id", container.id()]);
    drop(open);
    site.end(&container);
}
