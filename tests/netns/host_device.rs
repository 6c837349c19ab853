//! The `host-device` plugin. The device is one end of a veth pair (or a tap) of the node, the other end stays there.

use std::process::Command;

use serde_json::{Value, json};

use crate::support::{Container, Node, VERSIONS, assert_same, require_netns, skip_for_kernel};
use crate::{with, with_static};

/// A node with the device `dev0`, up, and its other end `far0` (10.5.0.1/24, fd00:5::1/64).
pub fn node() -> Node {
    let node = Node::new();
    node.ip(&[
        "link add dev0 type veth peer name far0",
        "addr add 10.5.0.1/24 dev far0",
        "addr add fd00:5::1/64 dev far0 nodad",
        "link set far0 up",
        "link set dev0 up",
    ]);
    node
}

/// The device by name, without addresses.
pub fn config(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "host-device", "device": "dev0",
        "dataDir": node.workdir().root().join("host-device"),
    })
}

fn addressed(node: &Node) -> Value {
    let addresses = json!([{"address": "10.5.0.2/24", "gateway": "10.5.0.1"}, {"address": "fd00:5::2/64"}]);
    with_static(config(node), addresses, json!([{"dst": "0.0.0.0/0"}]))
}

pub fn records(node: &Node) -> usize {
    let dir = std::fs::read_dir(node.workdir().root().join("host-device"));
    dir.map_or(0, Iterator::count)
}

/// What belongs to `dev0` on the host: flags, MTU, MAC, alias, master, addresses and routes.
pub fn state(node: &Node) -> Value {
    let link = node.link("dev0");
    let mut routes = Vec::new();
    for family in [4, 6] {
        for mut route in node.routes(family, "table all") {
            let text = route.to_string();
            let kernels = route["table"] == "local" || text.contains("fe80:") || text.contains("ff00:");
            if kernels || !text.contains("dev0") {
                continue;
            }
            // Depends on the carrier, which comes a little later.
            route["flags"] = Value::Null;
            for hop in route["nexthops"].as_array_mut().into_iter().flatten() {
                hop["flags"] = Value::Null;
            }
            routes.push(route.to_string());
        }
    }
    routes.sort();
    json!({
        "up": node.link_has("dev0", "UP"), "mtu": link["mtu"], "mac": link["address"], "alias": link["ifalias"],
        "master": link["master"], "addresses": node.addresses("dev0"), "routes": routes,
    })
}

#[test]
fn the_device_is_the_containers_until_del() {
    require_netns!();
    let node = node();
    let container = node.container();
    let mac = node.link("dev0")["address"].clone();
    let attachment = node.attach(&container, "net1", &addressed(&node));
    assert_eq!(
        attachment.result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "net1", "mac": mac, "mtu": 1500, "sandbox": container.path()}],
            "ips": [
                {"interface": 0, "address": "10.5.0.2/24", "gateway": "10.5.0.1"},
                {"interface": 0, "address": "fd00:5::2/64"},
            ],
            "routes": [{"dst": "0.0.0.0/0"}],
        })
    );
    assert_eq!((node.links(), container.links()), (vec!["far0".to_owned()], vec!["net1".to_owned()]));
    // Where the Go plugin looks for the name when it gives the device back.
    assert_eq!(container.link("net1")["ifalias"], "dev0");
    assert!(container.pings("10.5.0.1") && container.pings("fd00:5::1"));
    attachment.check();
    attachment.del();
    assert!(container.links().is_empty());
    assert_eq!((node.links(), records(&node)), (vec!["dev0".to_owned(), "far0".to_owned()], 0));
    assert!(node.link_has("dev0", "UP") && node.link("dev0")["ifalias"].is_null());
    attachment.del();
    assert!(node.link_has("dev0", "UP"));
}

#[test]
fn the_device_comes_back_with_everything_it_had() {
    require_netns!();
    let node = node();
    node.ip(&[
        "link set dev0 alias uplink",
        "link set dev0 mtu 1400",
        "link set dev0 address 02:00:00:00:00:05",
        "addr add 192.0.2.5/24 dev dev0",
        "addr add 192.0.2.6/32 dev dev0",
        "addr add 2001:db8:5::5/64 dev dev0 nodad",
        "addr add 192.0.2.9/24 dev dev0 valid_lft 500 preferred_lft 500",
        "route add 198.51.100.0/24 via 192.0.2.1 dev dev0 metric 50 src 192.0.2.6 mtu 1300 advmss 1200",
        "route add default via 192.0.2.1 dev dev0 table 100 proto static",
        "route add 198.18.0.0/15 dev dev0 scope link",
        "route add 203.0.113.0/24 via 10.99.0.1 dev dev0 onlink",
        "route add 203.0.114.0/24 nexthop via 192.0.2.1 dev dev0 weight 3 nexthop via 10.5.0.9 dev far0",
        "route add 2001:db8:6::/64 via 2001:db8:5::1 dev dev0 metric 7",
    ]);
    let before = state(&node);
    let container = node.container();
    let attachment = node.attach(&container, "net1", &addressed(&node));
    // What a container may do to its interface.
    container.ip(&[
        "link set net1 mtu 1300",
        "link set net1 down",
        "link set net1 address 02:00:00:00:00:06",
    ]);
    attachment.del();
    let mut expected = before;
    // A lease's address comes from its client again.
    let addresses = expected["addresses"].as_array_mut().unwrap();
    addresses.retain(|address| address != "192.0.2.9/24");
    let routes = expected["routes"].as_array_mut().unwrap();
    routes.retain(|route| !route.as_str().unwrap().contains("192.0.2.9"));
    assert_eq!(state(&node), expected);
}

#[test]
fn addresses_come_back_with_peer_broadcast_scope_label_and_metric() {
    require_netns!();
    let node = node();
    node.ip(&[
        "addr add 10.9.9.1 peer 10.9.9.2/32 dev dev0",
        "addr add 10.8.8.1/24 brd 10.8.8.200 scope link label dev0:1 dev dev0",
        "addr add 10.7.7.1/24 dev dev0",
        "addr add 10.7.7.2/24 brd + dev dev0 metric 77 noprefixroute",
        "addr add 10.7.6.1/31 dev dev0",
        "addr add 2001:db8:7::1/64 dev dev0 nodad noprefixroute",
        "addr add 2001:db8:8::1 peer 2001:db8:8::2/128 dev dev0 nodad metric 5",
    ]);
    let addresses = || {
        let mut all = node.address_objects("dev0");
        all.retain(|address| address["scope"] != "link" || address["family"] == "inet");
        // IPv6 ones are newest first, and said to have been added without duplicate address detection.
        all.sort_by_key(Value::to_string);
        all
    };
    let (before, routes) = (addresses(), state(&node));
    assert_eq!(before.len(), 7, "{before:#?}");
    node.attach(&node.container(), "net1", &config(&node)).del();
    assert_eq!(addresses(), before);
    assert_eq!(state(&node)["routes"], routes["routes"]);
    // The JSON of earlier builds.
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config(&node));
    let record = node.workdir().root().join(format!("host-device/{}_net1.json", container.id()));
    let mut text: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    text["addresses"] = json!(["10.7.7.1/24"]);
    std::fs::write(&record, text.to_string()).unwrap();
    attachment.del();
    let found = addresses();
    assert_eq!(
        (found.len(), &found[0]["local"], &found[0]["broadcast"]),
        (1, &json!("10.7.7.1"), &json!("10.7.7.255"))
    );
}

#[test]
fn a_port_is_a_port_of_its_bridge_again() {
    require_netns!();
    let node = node();
    node.ip(&["link add br0 type bridge", "link set br0 up", "link set dev0 master br0"]);
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config(&node));
    attachment.del();
    assert_eq!(node.link("dev0")["master"], "br0");
    // A bridge that is gone meanwhile is no reason to fail.
    let attachment = node.attach(&container, "net1", &config(&node));
    node.ip(&["link del br0"]);
    attachment.del();
    assert!(node.link("dev0")["master"].is_null());
}

#[test]
fn a_device_that_was_down_comes_back_down() {
    require_netns!();
    let node = node();
    node.ip(&["link set dev0 down"]);
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config(&node));
    assert!(container.link_has("net1", "UP"));
    attachment.del();
    assert!(!node.link_has("dev0", "UP"));
}

#[test]
fn names_in_use_on_the_way_are_no_obstacle() {
    require_netns!();
    let node = node();
    let container = node.container();
    container.ip(&["link add dev0 type bridge"]);
    node.ip(&["link add net1 type bridge"]);
    let attachment = node.attach(&container, "net1", &config(&node));
    assert_eq!(
        (container.links(), node.links()),
        (vec!["dev0".into(), "net1".into()], vec!["far0".into(), "net1".into()])
    );
    attachment.del();
    assert_eq!(
        (container.links(), node.links()),
        (vec!["dev0".into()], vec!["dev0".into(), "far0".into(), "net1".into()])
    );
    // The same name on both sides.
    let attachment = node.attach(&node.container(), "dev0", &config(&node)).result;
    assert_eq!(attachment["interfaces"][0]["name"], "dev0");
}

#[test]
fn a_name_that_is_taken_in_the_container_leaves_the_device_where_it_is() {
    require_netns!();
    let node = node();
    let container = node.container();
    container.ip(&["link add net1 type bridge"]);
    node.ip(&["addr add 192.0.2.5/24 dev dev0"]);
    let before = state(&node);
    node.request("ADD", &container, "net1", &config(&node)).err().names(&["net1"]);
    assert_eq!((state(&node), records(&node)), (before, 0));
    assert_eq!(container.link("net1")["linkinfo"]["info_kind"], "bridge");
}

#[test]
fn a_name_that_was_taken_on_the_host_keeps_the_device_and_its_address_until_it_is_free() {
    require_netns!();
    let node = node();
    let container = node.container();
    let mut config = config(&node);
    config["ipam"] = json!({"type": "host-local", "dataDir": node.data_dir(), "subnet": "10.5.0.0/24"});
    let attachment = node.attach(&container, "net1", &config);
    node.ip(&["link add dev0 type bridge"]);
    attachment.call("DEL").err().names(&["dev0", "net1"]);
    assert!(container.link_has("net1", "UP") && node.leases("net").len() == 1);
    node.ip(&["link del dev0"]);
    attachment.del();
    assert_eq!((node.links(), node.leases("net").len()), (vec!["dev0".to_owned(), "far0".to_owned()], 0));
}

#[test]
fn an_add_that_fails_gives_the_device_back_as_it_was() {
    require_netns!();
    let node = node();
    node.ip(&["addr add 192.0.2.5/24 dev dev0", "route add 198.51.100.0/24 via 192.0.2.1"]);
    let (before, snapshot) = (state(&node), node.snapshot());
    let container = node.container();
    let route = json!([{"dst": "10.9.0.0/16", "gw": "192.0.2.77"}]);
    let bad = with_static(config(&node), json!([{"address": "10.5.0.2/24"}]), route);
    node.request("ADD", &container, "net1", &bad).err().names(&["10.9.0.0/16"]);
    assert_eq!((state(&node), records(&node)), (before.clone(), 0));
    assert_same(&snapshot, &node.snapshot());
    let none = with(config(&node), json!({"ipam": {"type": "static"}}));
    node.request("ADD", &container, "net1", &none).err();
    assert_eq!((state(&node), container.links().len()), (before, 0));
}

#[test]
fn a_device_that_came_back_under_another_name_is_renamed_and_restored() {
    require_netns!();
    let node = node();
    node.ip(&["addr add 192.0.2.5/24 dev dev0"]);
    let before = state(&node);
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config(&node));
    // As the kernel does with hardware when its namespace ends.
    container.ip(&[&format!("link set net1 netns {}", node.path())]);
    container.unmount();
    attachment.call("DEL").env("CNI_NETNS", "").silent();
    assert_eq!((state(&node), records(&node)), (before, 0));
}

#[test]
fn hardware_is_waited_for_and_restored_later_when_it_does_not_come() {
    require_netns!();
    let node = node();
    let before = state(&node);
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config(&node));
    // There is no hardware to play with: say that the veth is some.
    let record = node.workdir().root().join(format!("host-device/{}_net1.json", container.id()));
    let text = std::fs::read_to_string(&record).unwrap();
    std::fs::write(&record, text.replace("\"hardware\": false", "\"hardware\": true")).unwrap();
    container.unmount();
    attachment.del();
    assert_eq!((records(&node), node.links()), (1, vec!["far0".to_owned()]));
    let back = format!("link set net1 netns {}", node.path());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            container.ip(&[&back]);
        });
        let gc = with(config(&node), json!({"cni.dev/valid-attachments": []}));
        node.call("host-device").command("GC").config(&gc).silent();
    });
    assert_eq!((records(&node), state(&node)), (0, before));
}

#[test]
fn del_succeeds_when_device_and_namespace_are_gone() {
    require_netns!();
    let node = node();
    let mut config = config(&node);
    config["ipam"] = json!({"type": "host-local", "dataDir": node.data_dir(), "subnet": "10.5.0.0/24"});
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config);
    node.ip(&["link del far0"]);
    container.unmount();
    attachment.del();
    assert_eq!((records(&node), node.leases("net").len()), (0, 0));
    attachment.del();
    node.request("DEL", &node.container(), "net1", &config).silent();
    // Nor does DEL need to know the device any more.
    node.request("DEL", &node.container(), "net1", &with(config, json!({"device": "a/b", "dataDir": 5})))
        .silent();
}

#[test]
fn del_gives_the_device_back_also_when_ipam_is_not_valid_any_more() {
    require_netns!();
    let node = node();
    let before = state(&node);
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config(&node));
    attachment.call_with("DEL", &with(config(&node), json!({"ipam": 5}))).run().err().names(&["ipam"]);
    assert_eq!((state(&node), records(&node)), (before, 0));
}

#[test]
fn a_missing_netns_variable_is_made_up_for_by_the_record() {
    require_netns!();
    let node = node();
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config(&node));
    attachment.call_with("DEL", &with(config(&node), json!({"device": ""}))).env("CNI_NETNS", "").silent();
    assert_eq!((node.links(), container.links().len()), (vec!["dev0".to_owned(), "far0".to_owned()], 0));
}

#[test]
fn a_path_that_leads_to_no_network_namespace_is_made_up_for_by_the_record() {
    require_netns!();
    let node = node();
    let container = node.container();
    let before = state(&node);
    let attachment = node.attach(&container, "eth0", &addressed(&node));
    let call = attachment.call_with("DEL", &attachment.config).env("CNI_NETNS", "/proc/self/status/x");
    for _ in 0..2 {
        call.silent();
        assert_eq!((state(&node), records(&node)), (before.clone(), 0));
    }
}

/// Moves the device as containernetworking/plugins does: the name in the alias, and nothing else kept.
fn taken_by_go(node: &Node, container: &Container) {
    node.ip(&["link set dev0 down", &format!("link set dev0 netns {}", container.path())]);
    container.ip(&["link set dev0 name net1", "link set net1 alias dev0", "link set net1 up"]);
}

#[test]
fn what_the_go_plugin_took_is_given_back() {
    require_netns!();
    let node = node();
    let container = node.container();
    taken_by_go(&node, &container);
    node.request("DEL", &container, "net1", &config(&node)).silent();
    assert_eq!((node.links(), container.links().len()), (vec!["dev0".to_owned(), "far0".to_owned()], 0));
    assert!(node.link("dev0")["ifalias"].is_null() && !node.link_has("dev0", "UP"));
    // The same after the end of the namespace.
    taken_by_go(&node, &container);
    container.ip(&[&format!("link set net1 netns {}", node.path())]);
    node.request("DEL", &container, "net1", &config(&node)).env("CNI_NETNS", "/nonexistent/netns").silent();
    assert_eq!(node.links(), ["dev0", "far0"]);
    assert!(node.link("dev0")["ifalias"].is_null());
}

#[test]
fn interfaces_of_others_are_left_in_the_container() {
    require_netns!();
    let node = node();
    let container = node.container();
    container.ip(&["link add net1 type veth peer name net2", "link set net2 alias \"cni-all net c1 net2\""]);
    for ifname in ["net1", "net2"] {
        node.request("DEL", &container, ifname, &config(&node)).silent();
    }
    assert_eq!(container.links(), ["net1", "net2"]);
    // A user-space device has a namesake of somebody else.
    container.ip(&["link set net1 alias dev7"]);
    node.request("DEL", &container, "net1", &with(config(&node), json!({"DPDKMode": true}))).silent();
    assert_eq!(container.links(), ["net1", "net2"]);
}

#[test]
fn the_device_is_found_by_address_path_pci_and_auxiliary_name() {
    require_netns!();
    let node = node();
    let sys = node.workdir().root().join("sys");
    for dir in [
        "devices/pci0000:00/0000:00:05.0/net/dev0",
        "bus/pci/devices/0000:00:06.0/virtio2/net/dev0",
        "bus/auxiliary/devices/mlx5_core.sf.4/net/dev0",
    ] {
        std::fs::create_dir_all(sys.join(dir)).unwrap();
    }
    let mac = node.link("dev0")["address"].clone();
    for (how, pci_id) in [
        (json!({"hwaddr": mac}), Value::Null),
        (json!({"kernelpath": "/sys/devices/pci0000:00/0000:00:05.0"}), Value::Null),
        (json!({"pciBusID": "0000:00:06.0"}), json!("0000:00:06.0")),
        (
            json!({"runtimeConfig": {"deviceID": "0000:00:06.0"}, "pciBusID": "0000:00:07.0"}),
            json!("0000:00:06.0"),
        ),
        (json!({"runtimeConfig": {"deviceID": "mlx5_core.sf.4"}}), Value::Null),
    ] {
        let config = with(with(config(&node), json!({"device": null})), how);
        let container = node.container();
        let call = |command: &str| node.request(command, &container, "net1", &config).mount(&sys, "/sys");
        let result = call("ADD").ok();
        assert_eq!(
            (&result["interfaces"][0]["mac"], &result["interfaces"][0]["pciID"]),
            (&mac, &pci_id),
            "{config}"
        );
        assert_eq!(container.links(), ["net1"]);
        call("DEL").silent();
        assert_eq!(node.links(), ["dev0", "far0"]);
    }
    let nowhere = with(config(&node), json!({"device": null, "pciBusID": "0000:00:09.0"}));
    let add =
        |config: &Value| node.request("ADD", &node.container(), "net1", config).mount(&sys, "/sys").err();
    add(&nowhere).names(&["pciBusID", "0000:00:09.0"]);
    add(&with(config(&node), json!({"device": null}))).names(&["device", "pciBusID"]);
    add(&with(config(&node), json!({"device": "dev1"}))).names(&["device", "dev1"]);
    add(&with(config(&node), json!({"device": null, "hwaddr": "02:00:00:00:00:99"})))
        .names(&["02:00:00:00:00:99"]);
}

/// The network card of the virtual machine (tests/vm/boot), which nobody else uses.
const CARD: &str = "0000:00:1d.0";

#[test]
fn a_real_network_card_is_moved_by_its_pci_address_and_told_with_a_user_space_driver() {
    require_netns!();
    if std::env::var("CNI_ALL_VM").is_err() {
        return skip_for_kernel("the machine's own network cards are not moved");
    }
    let node = node();
    for module in ["virtio_pci", "virtio_net", "uio_pci_generic"] {
        node.run(&format!("modprobe {module}"));
    }
    // The card gets its link by what modprobe started.
    let links = std::path::Path::new("/sys/bus/pci/devices").join(CARD).join("virtio0/net");
    let found = (0..100).find_map(|_| {
        let found = std::fs::read_dir(&links).ok()?.next();
        std::thread::sleep(std::time::Duration::from_millis(if found.is_some() { 0 } else { 100 }));
        found
    });
    let link = found.expect("the card has a link").unwrap().file_name().into_string().unwrap();
    assert!(
        Command::new("ip").args(["link", "set", &link, "netns", node.path()]).status().unwrap().success()
    );
    // What is in /sys/class/net, and in a card's directory, depends on the namespace that it was mounted in.
    let sys = node.workdir().root().join("sys");
    std::fs::create_dir(&sys).unwrap();
    node.run(&format!("mount -t sysfs sysfs {}", sys.display()));
    let config = with(config(&node), json!({"device": null, "pciBusID": CARD}));
    let container = node.container();
    let call = |command: &str| node.request(command, &container, "net1", &config).mount(&sys, "/sys");
    let before = node.link(&link);

    let result = call("ADD").ok();
    let interface = &result["interfaces"][0];
    assert_eq!((&interface["mac"], &interface["pciID"]), (&before["address"], &json!(CARD)));
    assert_eq!(container.links(), ["net1"]);
    call("DEL").silent();
    let after = node.link(&link);
    for key in ["address", "mtu", "ifalias", "flags"] {
        assert_eq!(after[key], before[key], "{key}");
    }

    let driver =
        |file: String, text: &str| std::fs::write(&file, text).unwrap_or_else(|e| panic!("{file}: {e}"));
    driver(format!("/sys/bus/pci/devices/{CARD}/driver/unbind"), CARD);
    driver(format!("/sys/bus/pci/devices/{CARD}/driver_override"), "uio_pci_generic");
    driver("/sys/bus/pci/drivers_probe".to_owned(), CARD);
    let result = call("ADD").ok();
    let interface = json!([{"name": "net1", "sandbox": container.path(), "pciID": CARD}]);
    assert_eq!(result["interfaces"], interface);
    assert!(container.links().is_empty() && records(&node) == 0);
    call("DEL").silent();
    nix::mount::umount(&sys).unwrap();
}

#[test]
fn a_device_with_a_user_space_driver_is_told_and_not_touched() {
    require_netns!();
    let node = node();
    let sys = node.workdir().root().join("sys");
    let device = sys.join("bus/pci/devices/0000:00:05.0");
    std::fs::create_dir_all(&device).unwrap();
    std::os::unix::fs::symlink("../../drivers/vfio-pci", device.join("driver")).unwrap();
    let mut config = with(addressed(&node), json!({"device": null, "pciBusID": "0000:00:05.0"}));
    let container = node.container();
    let call =
        |command: &str, config: &Value| node.request(command, &container, "net1", config).mount(&sys, "/sys");
    let result = call("ADD", &config).ok();
    let interface = json!([{"name": "net1", "sandbox": container.path(), "pciID": "0000:00:05.0"}]);
    assert_eq!((&result["interfaces"], &result["ips"][0]["address"]), (&interface, &json!("10.5.0.2/24")));
    assert!(container.links().is_empty() && node.links() == ["dev0", "far0"] && records(&node) == 0);
    config["prevResult"] = result;
    call("CHECK", &config).silent();
    call("DEL", &config).silent();
    let by_name = with(self::config(&node), json!({"DPDKMode": true}));
    let result = call("ADD", &by_name).ok();
    assert_eq!(result["interfaces"], json!([{"name": "net1", "sandbox": container.path()}]));
    assert!(container.links().is_empty());
}

#[test]
fn check_notices_what_changed() {
    require_netns!();
    let node = node();
    let container = node.container();
    let attachment = node.attach(&container, "net1", &addressed(&node));
    attachment.check();
    container.ip(&["addr del fd00:5::2/64 dev net1"]);
    attachment.call("CHECK").fails(100).names(&["fd00:5::2/64"]);
    container.ip(&["addr add fd00:5::2/64 dev net1 nodad", "route del default"]);
    attachment.call("CHECK").fails(100).names(&["default"]);
    container.ip(&["route add default via 10.5.0.1", "link set net1 address 02:00:00:00:00:05"]);
    attachment.call("CHECK").fails(100).names(&["MAC", "02:00:00:00:00:05"]);
    // Linux renames a link that is up only since 6.2.
    container.ip(&["link set net1 down", "link set net1 name net2"]);
    attachment.call("CHECK").fails(100).names(&["net1"]);
    // The container renamed it; it is found by its alias.
    attachment.del();
    assert_eq!((node.links(), container.links().len()), (vec!["dev0".to_owned(), "far0".to_owned()], 0));
}

#[test]
fn gc_gives_back_the_devices_of_attachments_that_are_not_valid() {
    require_netns!();
    let node = node();
    node.ip(&["link add dev1 type veth peer name far1", "link add dev2 type veth peer name far2"]);
    let (kept, stale, other) = (node.container(), node.container(), node.container());
    node.attach(&kept, "net1", &config(&node));
    node.attach(&stale, "net1", &with(config(&node), json!({"device": "dev1"})));
    node.attach(&other, "net1", &with(config(&node), json!({"device": "dev2", "name": "other"})));
    let gc = |changes: Value| node.call("host-device").command("GC").config(&with(config(&node), changes));
    gc(json!({})).silent();
    assert_eq!(records(&node), 3);
    gc(json!({"cni.dev/valid-attachments": [{"containerID": kept.id(), "ifname": "net1"}]})).silent();
    assert_eq!(node.links(), ["dev1", "far0", "far1", "far2"]);
    assert_eq!((kept.links().len(), other.links().len(), records(&node)), (1, 1, 2));
}

#[test]
fn status_says_when_the_device_is_not_there() {
    require_netns!();
    let node = node();
    let status =
        |changes: Value| node.call("host-device").command("STATUS").config(&with(config(&node), changes));
    status(json!({})).silent();
    status(json!({"device": "dev1"})).fails(50).names(&["dev1"]);
    // Which one the runtime will choose is not known.
    status(json!({"device": null, "capabilities": {"deviceID": true}})).silent();
    let container = node.container();
    node.attach(&container, "net1", &config(&node));
    status(json!({})).fails(50).names(&["dev0"]);
}

#[test]
fn every_version_attaches_and_detaches() {
    require_netns!();
    let node = node();
    for version in VERSIONS {
        let container = node.container();
        let attachment =
            node.attach(&container, "net1", &with(addressed(&node), json!({"cniVersion": version})));
        assert_eq!(attachment.result["cniVersion"], version);
        if version >= "0.4.0" {
            attachment.check();
        }
        attachment.del();
        assert_eq!(node.links(), ["dev0", "far0"]);
        let plain = with(config(&node), json!({"cniVersion": version}));
        match version < "0.3.0" {
            true => drop(node.request("ADD", &container, "net1", &plain).fails(2)),
            false => node.attach(&container, "net1", &plain).del(),
        }
        assert_eq!(node.links(), ["dev0", "far0"]);
    }
}

#[test]
fn a_tap_is_a_device_too() {
    require_netns!();
    let node = Node::new();
    if !node.try_run("ip tuntap add dev dev0 mode tap").status.success() {
        return crate::support::skip("no tap interfaces can be made here");
    }
    let container = node.container();
    let attachment = node.attach(&container, "net1", &config(&node));
    assert_eq!(container.link("net1")["linkinfo"]["info_kind"], "tun");
    attachment.del();
    assert_eq!(node.links(), ["dev0"]);
}
