//! The `tc-redirect-tap` plugin: a virtual machine gets the interface's frames, and nothing is left of it afterwards.

use std::fs::File;
use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::support::{Attachment, Container, Node, VERSIONS, require_netns, skip};
use crate::tap::monitor;
use crate::{dual_stack_config, with};

/// Ends the test with SKIP unless tap interfaces and redirections can be made here.
macro_rules! require_redirection {
    () => {
        require_netns!();
        if let Some(reason) = missing() {
            return skip(&reason);
        }
    };
}

fn missing() -> Option<String> {
    if let Err(e) = File::open("/dev/net/tun") {
        return Some(format!("/dev/net/tun: {e}"));
    }
    let scratch = Node::new();
    for line in [
        "tc qdisc add dev lo ingress",
        "tc filter add dev lo parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev lo",
    ] {
        let output = scratch.try_run(line);
        if !output.status.success() {
            return Some(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    None
}

fn config(main: &Attachment, keys: Value) -> Value {
    let base =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "tc-redirect-tap", "prevResult": main.result});
    with(base, keys)
}

/// Where what arrives at a link goes.
fn redirections(container: &Container, link: &str) -> Vec<String> {
    let text = container.run(&format!("tc filter show dev {link} ingress"));
    let to = |line: &str| {
        line.split("Redirect to device ").nth(1).map(|rest| rest.split(')').next().unwrap().to_owned())
    };
    text.lines().filter_map(to).collect()
}

fn bytes(mac: &str) -> Vec<u8> {
    mac.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect()
}

#[test]
fn a_virtual_machine_takes_the_interfaces_place() {
    require_redirection!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let redirect = node.attach(&container, "eth0", &config(&main, json!({})));
    let mut device = monitor(&container, "tap0");
    container.eventually("tap0 has a carrier", |c| c.link_has("tap0", "LOWER_UP"));
    // "Who has 10.1.0.1? Tell 10.1.0.2", with the interface's MAC address, behind an empty header of virtio-net.
    let own = bytes(container.link("eth0")["address"].as_str().unwrap());
    let mut frame = vec![0; 10];
    frame.extend([0xff; 6].iter().chain(&own).chain(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]).chain(&own));
    frame.extend([10, 1, 0, 2, 0, 0, 0, 0, 0, 0, 10, 1, 0, 1]);
    device.write_all(&frame).unwrap();
    let mut answer = [0; 2048];
    loop {
        let length = device.read(&mut answer).unwrap();
        assert!(length >= 24, "no frame of {length} bytes");
        // An answer to our address from the bridge.
        if answer[22..24] == [8, 6] && answer[30..32] == [0, 2] {
            assert_eq!(answer[10..16], own);
            assert_eq!(answer[38..42], [10, 1, 0, 1]);
            break;
        }
    }
    redirect.check();
}

#[test]
fn the_result_has_the_tap_and_the_machines_interface_with_its_addresses() {
    require_redirection!();
    let node = Node::new();
    for version in VERSIONS.into_iter().filter(|version| *version >= "0.3.0") {
        let container = node.container();
        let version = json!({"cniVersion": version});
        let mtu = json!({"mtu": 1400});
        let main =
            node.attach(&container, "eth0", &with(with(dual_stack_config(&node), version.clone()), mtu));
        let redirect = node.attach(&container, "eth0", &with(config(&main, json!({})), version));
        let (before, after) = (&main.result, &redirect.result);
        let mut interfaces = before["interfaces"].as_array().unwrap().clone();
        interfaces.push(
            json!({"name": "tap0", "mac": container.link("tap0")["address"], "sandbox": container.path()}),
        );
        interfaces.push(
            json!({"name": "tap0", "mac": container.link("eth0")["address"], "sandbox": container.id()}),
        );
        assert_eq!(after["interfaces"], json!(interfaces));
        let mut ips = before["ips"].as_array().unwrap().clone();
        ips.extend(ips.clone().into_iter().map(|ip| with(ip, json!({"interface": 4}))));
        assert_eq!(after["ips"], json!(ips));
        assert_eq!((&after["routes"], &after["cniVersion"]), (&before["routes"], &before["cniVersion"]));
        let tap = container.link("tap0");
        assert_eq!((&tap["mtu"], &tap["linkinfo"]["info_data"]["type"]), (&json!(1400), &json!("tap")));
        assert!(container.link_has("tap0", "UP"));
        assert_eq!(
            (redirections(&container, "tap0"), redirections(&container, "eth0")),
            (vec!["eth0".into()], vec!["tap0".into()])
        );
        if after["cniVersion"].as_str() >= Some("0.4.0") {
            redirect.check();
        }
        redirect.del();
        assert_eq!(container.links(), ["eth0"]);
        assert_eq!(container.run("tc qdisc show dev eth0 ingress").trim(), "");
        main.del();
    }
}

#[test]
fn arguments_name_the_tap_and_its_owner() {
    require_redirection!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let args = "TC_REDIRECT_TAP_NAME=vm7;TC_REDIRECT_TAP_UID=1234;TC_REDIRECT_TAP_GID=0;OTHER=x";
    let config = config(&main, json!({}));
    let result = node.request("ADD", &container, "eth0", &config).env("CNI_ARGS", args).ok();
    assert_eq!(result["interfaces"][4]["name"], "vm7");
    let tun = &container.link("vm7")["linkinfo"]["info_data"];
    assert_eq!((&tun["user"], &tun["group"]), (&json!(1234), &json!("root")));
    let check = with(config, json!({"prevResult": result}));
    let call = |args: &str| node.request("CHECK", &container, "eth0", &check).env("CNI_ARGS", args);
    call(args).silent();
    call("").silent();
    call("TC_REDIRECT_TAP_UID=5").fails(100).names(&["vm7", "owner 1234", "5"]);
}

#[test]
fn names_that_are_taken_are_passed_over_or_refused() {
    require_redirection!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    container.ip(&["link add tap0 type bridge", "tuntap add dev tap1 mode tap"]);
    let args =
        |args: &str| node.request("ADD", &container, "eth0", &config(&main, json!({}))).env("CNI_ARGS", args);
    args("TC_REDIRECT_TAP_NAME=tap1").err().names(&["TC_REDIRECT_TAP_NAME", "tap1"]);
    args("TC_REDIRECT_TAP_UID=me").fails(4).names(&["TC_REDIRECT_TAP_UID", "me"]);
    args("oops").fails(4).names(&["oops"]);
    assert_eq!(container.links(), ["eth0", "tap0", "tap1"]);
    let redirect = node.attach(&container, "eth0", &config(&main, json!({})));
    assert_eq!(redirect.result["interfaces"][3]["name"], "tap2");
    args("").err().names(&["tap2", "DEL"]);
    redirect.check();
    redirect.del();
    assert_eq!(container.links(), ["eth0", "tap0", "tap1"]);
}

#[test]
fn what_cannot_be_redirected_is_refused_and_nothing_is_left() {
    require_redirection!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let add = |keys: Value, ifname: &str| node.request("ADD", &container, ifname, &config(&main, keys));
    add(json!({"prevResult": null}), "eth0").fails(7).names(&["prevResult"]);
    add(json!({}), "eth9").err().names(&["eth9"]);
    add(json!({"cniVersion": "0.2.0"}), "eth0").fails(1);
    assert_eq!(container.links(), ["eth0"]);
    assert!(container.pings("10.1.0.1"));
}

#[test]
fn filters_of_others_stay() {
    require_redirection!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    container.run("tc qdisc add dev eth0 clsact");
    container.run("tc filter add dev eth0 ingress protocol ip pref 5 u32 match u32 0 0 action mirred egress mirror dev lo");
    let filters = || container.run("tc filter show dev eth0 ingress");
    let before = filters();
    let redirect = node.attach(&container, "eth0", &config(&main, json!({})));
    redirect.check();
    redirect.del();
    assert_eq!(filters(), before);
}

#[test]
fn check_finds_every_damage() {
    require_redirection!();
    let node = Node::new();
    let damages: [(&str, &[&str]); 5] = [
        ("tc qdisc del dev eth0 ingress", &["eth0", "not redirected to tap0"]),
        ("tc qdisc del dev tap0 ingress", &["tap0", "not redirected to eth0"]),
        ("ip link set tap0 down", &["tap0", "down"]),
        ("ip link del tap0", &["tap0", "missing"]),
        ("ip link del eth0", &["eth0", "missing"]),
    ];
    for (damage, names) in damages {
        let container = node.container();
        let main = node.attach(&container, "eth0", &dual_stack_config(&node));
        let redirect = node.attach(&container, "eth0", &config(&main, json!({})));
        container.run(damage);
        redirect.call("CHECK").fails(100).names(names);
        redirect.del();
        assert!(container.find_link("tap0").is_none());
        main.del();
    }
}

#[test]
fn del_needs_no_result_and_no_namespace() {
    require_redirection!();
    let node = Node::new();
    let container = node.container();
    let main = node.attach(&container, "eth0", &dual_stack_config(&node));
    let bare = json!({"cniVersion": "1.1.0", "name": "net", "type": "tc-redirect-tap"});
    let redirect = node.attach(&container, "eth0", &config(&main, json!({})));
    for netns in ["", "/nonexistent/netns"] {
        redirect.call_with("DEL", &bare).env("CNI_NETNS", netns).silent();
    }
    assert_eq!(container.links(), ["eth0", "tap0"]);
    // Of awslabs' plugin there is no alias to find it by.
    container.command("ip link set tap0 alias").arg("").status().unwrap();
    for _ in 0..2 {
        redirect.call_with("DEL", &bare).env("CNI_ARGS", "oops").silent();
        assert_eq!(container.links(), ["eth0"]);
    }
    assert!(container.pings("10.1.0.1"));
    let again = node.attach(&container, "eth0", &config(&main, json!({})));
    main.del();
    again.del();
    assert!(container.links().is_empty());
    node.call("tc-redirect-tap").command("STATUS").config(&bare).silent();
    node.call("tc-redirect-tap")
        .command("GC")
        .config(&with(bare, json!({"cni.dev/valid-attachments": []})))
        .silent();
}
