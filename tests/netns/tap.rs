//! The `tap` plugin.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::libc;
use serde_json::{Value, json};

use crate::support::{Container, Node, VERSIONS, assert_same, patience, require_netns};
use crate::{dual_stack_config, with, with_static};

/// Ends the test with SKIP unless tap interfaces can be made here.
macro_rules! require_tap {
    () => {
        require_netns!();
        if let Err(e) = File::open("/dev/net/tun") {
            return crate::support::skip(&format!("/dev/net/tun: {e}"));
        }
    };
}

fn config(node: &Node) -> Value {
    with(dual_stack_config(node), json!({"type": "tap", "bridge": null}))
}

fn without_addresses() -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "tap"})
}

/// What `ip -d link show` tells about a tap.
fn tun(container: &Container, name: &str) -> Value {
    container.link(name)["linkinfo"]["info_data"].clone()
}

/// Attaches to a tap as a virtual machine monitor does: the descriptor that frames come from.
pub fn monitor(container: &Container, name: &str) -> File {
    let name = name.to_owned();
    container.enter(move || {
        let device = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        let mut request = [0_u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: the descriptor is open and the request has the size of a `struct ifreq`.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, request.as_mut_ptr()) };
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        device
    })
}

#[test]
fn the_result_says_what_the_kernel_says_and_nothing_waits_for_a_carrier() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    let add = node.request("ADD", &container, "tap0", &config(&node)).run();
    let link = container.link("tap0");
    assert_eq!(
        add.ok(),
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "tap0", "mac": link["address"], "mtu": 1500, "sandbox": container.path()}],
            "ips": [
                {"interface": 0, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
                {"interface": 0, "address": "fd00:1::2/64", "gateway": "fd00:1::1"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        })
    );
    assert!(container.link_has("tap0", "UP"));
    assert_eq!(container.addresses("tap0"), ["10.1.0.2/24", "fd00:1::2/64"]);
    assert_eq!(container.find_route(4, "default").unwrap()["gateway"], "10.1.0.1");
    assert_eq!(container.find_route(6, "default").unwrap()["gateway"], "fd00:1::1");
    assert!(add.elapsed < patience(Duration::from_millis(700)), "ADD waited: {:?}", add.elapsed);
}

#[test]
fn a_monitor_attaches_and_gets_the_frames_with_their_header() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    let config = with(without_addresses(), json!({"mac": "02:00:00:00:00:05"}));
    node.attach(&container, "tap0", &config);
    let mut device = monitor(&container, "tap0");
    container.ip(&["addr add 10.5.0.1/24 dev tap0", "link set tap0 up"]);
    container.eventually("tap0 has a carrier", |c| c.link_has("tap0", "LOWER_UP"));
    let pinged = container.command("ping -c 1 -W 0.2 10.5.0.2").output().unwrap();
    assert!(!pinged.status.success());
    let mut frame = [0; 2048];
    loop {
        let length = device.read(&mut frame).unwrap();
        // virtio-net header of 10 bytes, then the frame: an ARP request from the interface.
        assert!(length >= 24);
        if frame[22..24] == [0x08, 0x06] {
            assert_eq!(frame[16..22], [2, 0, 0, 0, 0, 5]);
            break;
        }
    }
}

#[test]
fn owner_group_queues_mac_and_mtu_all_apply_at_once() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    let all = json!({
        "owner": 0, "group": 107, "multiQueue": true, "mac": "02:00:00:00:00:05", "mtu": 1400,
        "selinuxContext": "system_u:system_r:container_t:s0",
    });
    let attachment = node.attach(&container, "tap0", &with(without_addresses(), all));
    let found = tun(&container, "tap0");
    assert_eq!((&found["type"], &found["persist"]), (&json!("tap"), &json!(true)));
    assert_eq!((&found["pi"], &found["vnet_hdr"]), (&json!(false), &json!(true)));
    assert_eq!(found["multi_queue"], true);
    let user = |key: &str| found[key].as_str().map_or_else(|| found[key].to_string(), str::to_owned);
    assert!(["0", "root"].contains(&user("user").as_str()), "{found}");
    assert!(!found["group"].is_null(), "{found}");
    let link = container.link("tap0");
    assert_eq!((&link["address"], &link["mtu"]), (&json!("02:00:00:00:00:05"), &json!(1400)));
    assert_eq!(
        (attachment.mac().as_str(), &attachment.result["interfaces"][0]["mtu"]),
        ("02:00:00:00:00:05", &json!(1400))
    );
    attachment.check();
}

#[test]
fn who_may_attach_is_not_restricted_unless_asked_for() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    node.attach(&container, "tap0", &without_addresses());
    let found = tun(&container, "tap0");
    assert!(found["user"].is_null() && found["group"].is_null() && found["multi_queue"] == false, "{found}");
}

#[test]
fn the_mac_comes_from_the_runtime_before_arguments_before_the_configuration() {
    require_tap!();
    let node = Node::new();
    let mac = |n: u8| format!("02:00:00:00:00:0{n}");
    let written = with(without_addresses(), json!({"mac": mac(1)}));
    let runtime = with(written.clone(), json!({"runtimeConfig": {"mac": mac(3)}}));
    let arguments = format!("MAC={}", mac(2));
    for (config, args, expected) in [
        (&written, "", mac(1)),
        (&written, arguments.as_str(), mac(2)),
        (&runtime, arguments.as_str(), mac(3)),
    ] {
        let container = node.container();
        node.request("ADD", &container, "tap0", config).env("CNI_ARGS", args).ok();
        assert_eq!(container.link("tap0")["address"], expected);
    }
    let bad = with(without_addresses(), json!({"mac": "01:00:00:00:00:01"}));
    node.request("ADD", &node.container(), "tap0", &bad).fails(7).names(&["mac", "01:00:00:00:00:01"]);
}

#[test]
fn the_tap_is_a_port_of_a_bridge_inside_the_container() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    let config = with(without_addresses(), json!({"bridge": "br0"}));
    node.request("ADD", &container, "tap0", &config).fails(7).names(&["bridge", "br0"]);
    assert!(container.links().is_empty());
    container.ip(&["link add br0 type bridge", "link set br0 up"]);
    let attachment = node.attach(&container, "tap0", &config);
    assert_eq!(container.link("tap0")["master"], "br0");
    assert_eq!(attachment.mac(), container.link("tap0")["address"]);
    attachment.check();
    container.ip(&["link set tap0 nomaster"]);
    attachment.call("CHECK").fails(100).names(&["tap0", "br0"]);
    attachment.del();
    assert_eq!(container.links(), ["br0"]);
}

#[test]
fn a_name_that_is_taken_is_refused_and_left_as_it_is() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    container.ip(&["tuntap add dev tap0 mode tap"]);
    let before = container.link("tap0");
    node.request("ADD", &container, "tap0", &config(&node)).err().names(&["tap0"]);
    assert_eq!((container.link("tap0"), node.leases("net").len()), (before, 0));
}

#[test]
fn an_add_that_fails_leaves_nothing() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    let before = node.snapshot();
    for changes in [json!({"mtu": 70000}), json!({"mtu": 20})] {
        let config = with(config(&node), changes);
        node.request("ADD", &container, "tap0", &config).err().names(&["mtu"]);
        assert!(container.links().is_empty());
        assert_same(&before, &node.snapshot());
    }
    let route = json!([{"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]);
    let config = with_static(config(&node), json!([{"address": "10.1.0.5/24"}]), route);
    node.request("ADD", &container, "tap0", &config).err().names(&["10.9.0.0/16"]);
    assert!(container.links().is_empty());
}

#[test]
fn check_notices_what_changed() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    let config = with(config(&node), json!({"owner": 0}));
    let attachment = node.attach(&container, "tap0", &config);
    attachment.check();
    container.ip(&["addr del 10.1.0.2/24 dev tap0"]);
    attachment.call("CHECK").fails(100).names(&["10.1.0.2/24"]);
    container.ip(&["addr add 10.1.0.2/24 dev tap0"]);
    attachment.call("CHECK").fails(100).names(&["default"]);
    container.ip(&["link del tap0"]);
    attachment.call("CHECK").fails(100).names(&["tap0"]);

    let plain = node.container();
    let attachment = node.attach(&plain, "tap0", &without_addresses());
    attachment.check();
    plain.ip(&["link set tap0 down"]);
    attachment.call("CHECK").fails(100).names(&["tap0", "down"]);
    plain.ip(&["link del tap0", "link add tap0 type bridge"]);
    attachment.call("CHECK").fails(100).names(&["tap0", "tun"]);
}

#[test]
fn every_version_attaches_and_detaches_twice_and_without_namespace() {
    require_tap!();
    let node = Node::new();
    for version in VERSIONS {
        let container = node.container();
        let attachment =
            node.attach(&container, "tap0", &with(config(&node), json!({"cniVersion": version})));
        assert_eq!(attachment.result["cniVersion"], version);
        if version >= "0.4.0" {
            attachment.check();
        }
        attachment.del();
        assert!(container.links().is_empty() && node.leases("net").is_empty());
        attachment.del();
        let again = node.attach(&container, "tap0", &with(config(&node), json!({"cniVersion": version})));
        container.unmount();
        again.del();
        assert!(node.leases("net").is_empty());
    }
    for version in ["0.1.0", "0.2.0"] {
        let config = with(without_addresses(), json!({"cniVersion": version}));
        let container = node.container();
        node.request("ADD", &container, "tap0", &config).fails(2);
        assert!(container.links().is_empty());
    }
}

#[test]
fn del_leaves_the_tap_of_another_attachment_and_other_links_alone() {
    require_tap!();
    let node = Node::new();
    let (old, new) = (node.container(), node.container());
    node.attach(&new, "tap0", &without_addresses());
    let moved = node.request("DEL", &old, "tap0", &without_addresses()).env("CNI_NETNS", new.path());
    moved.silent();
    assert_eq!(new.links(), ["tap0"]);
    old.ip(&["link add tap0 type bridge"]);
    node.request("DEL", &old, "tap0", &without_addresses()).silent();
    assert_eq!(old.links(), ["tap0"]);
}

#[test]
fn status_and_gc_reach_the_ipam_plugin() {
    require_tap!();
    let node = Node::new();
    let container = node.container();
    let config = config(&node);
    let attachment = node.attach(&container, "tap0", &config);
    node.call("tap").command("STATUS").config(&config).silent();
    let gc = |valid: Value| with(config.clone(), json!({"cni.dev/valid-attachments": valid}));
    let valid = json!([{"containerID": attachment.id, "ifname": "tap0"}]);
    node.call("tap").command("GC").config(&gc(valid)).silent();
    assert_eq!(node.leases("net").len(), 2);
    node.call("tap").command("GC").config(&gc(json!([]))).silent();
    assert!(node.leases("net").is_empty());
}
