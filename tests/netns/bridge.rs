//! The `bridge` plugin: links, addresses, results, DNS.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Node, VERSIONS, patience, require_netns};
use crate::{bridge_config, dual_stack_config, with, with_static};

#[test]
fn add_joins_the_container_to_a_bridge_it_makes() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    assert_eq!(container.addresses("eth0"), ["10.1.0.2/24"]);
    assert_eq!(node.addresses("cni0"), ["10.1.0.1/24"]);
    assert_eq!(container.find_route(4, "default").unwrap()["gateway"], "10.1.0.1");
    assert_eq!(node.link(&attachment.host_veth())["master"], "cni0");
    assert_eq!(node.link("cni0")["linkinfo"]["info_kind"], "bridge");
    assert!(container.pings("10.1.0.1") && node.pings("10.1.0.2"));
}

#[test]
fn the_result_says_what_the_kernel_says() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    let veth = attachment.host_veth();
    assert_eq!(
        attachment.result,
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "cni0", "mac": node.link("cni0")["address"]},
                {"name": veth, "mac": node.link(&veth)["address"], "mtu": 1500},
                {"name": "eth0", "mac": container.link("eth0")["address"], "mtu": 1500, "sandbox": container.path()},
            ],
            "ips": [{"interface": 2, "address": "10.1.0.2/24", "gateway": "10.1.0.1"}],
            "routes": [{"dst": "0.0.0.0/0"}],
        })
    );
}

#[test]
fn the_ends_of_a_veth_pair_have_one_queue_in_each_direction() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &bridge_config(&node));
    for link in [node.link(&attachment.host_veth()), container.link("eth0")] {
        assert_eq!((&link["num_tx_queues"], &link["num_rx_queues"]), (&json!(1), &json!(1)), "{link}");
    }
}

#[test]
fn every_version_attaches_checks_and_detaches() {
    require_netns!();
    let node = Node::new();
    for version in VERSIONS {
        let container = node.container();
        let config = with(dual_stack_config(&node), json!({"cniVersion": version}));
        let attachment = node.attach(&container, "eth0", &config);
        let result = &attachment.result;
        assert_eq!((&result["cniVersion"], container.addresses("eth0").len()), (&json!(version), 2));
        let addresses = container.addresses("eth0");
        match version {
            "0.1.0" | "0.2.0" => {
                let routes = |dst: &str| json!([{"dst": dst}]);
                let ip4 = json!({"ip": addresses[0], "gateway": "10.1.0.1", "routes": routes("0.0.0.0/0")});
                let ip6 = json!({"ip": addresses[1], "gateway": "fd00:1::1", "routes": routes("::/0")});
                assert_eq!(result, &json!({"cniVersion": version, "ip4": ip4, "ip6": ip6, "dns": {}}));
            }
            _ => {
                let ips = result["ips"].as_array().unwrap();
                let shown: Vec<&str> = ips.iter().map(|ip| ip["address"].as_str().unwrap()).collect();
                assert_eq!(shown, addresses);
                assert!(ips.iter().all(|ip| ip["interface"] == 2));
                let versions = json!([ips[0]["version"], ips[1]["version"]]);
                assert_eq!(versions, if version < "1.0.0" { json!(["4", "6"]) } else { json!([null, null]) });
                assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
            }
        }
        if version >= "0.4.0" {
            attachment.check();
        }
        attachment.del();
        assert_eq!(node.links_of_kind("veth"), [""; 0]);
        assert!(node.leases("net").is_empty());
    }
}

#[test]
fn an_existing_bridge_is_used_as_it_is() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add cni0 type bridge", "link set cni0 mtu 1400", "addr add 10.1.0.1/24 dev cni0"]);
    let index = node.link("cni0")["ifindex"].clone();
    let container = node.container();
    node.attach(&container, "eth0", &with(bridge_config(&node), json!({"mtu": 1300})));
    assert_eq!(node.link("cni0")["ifindex"], index);
    assert_eq!(node.addresses("cni0"), ["10.1.0.1/24"]);
    assert!(node.link_has("cni0", "UP"));
    assert!(container.pings("10.1.0.1"));
}

#[test]
fn a_link_of_another_kind_in_the_bridges_place_is_refused() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add cni0 type veth peer name other"]);
    let container = node.container();
    let failure = node.request("ADD", &container, "eth0", &bridge_config(&node)).err();
    failure.names(&["cni0", "not a bridge"]);
    assert_eq!((node.links().len(), container.links().len()), (2, 0));
    assert!(node.leases("net").is_empty());
}

#[test]
fn one_ipv4_and_two_ipv6_subnets_at_once() {
    require_netns!();
    let node = Node::new();
    let config = with(
        bridge_config(&node),
        json!({"ipam": {
            "type": "host-local", "dataDir": node.data_dir(),
            "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}], [{"subnet": "fd00:2::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }}),
    );
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &config);
    assert_eq!(container.addresses("eth0").len(), 3);
    assert_eq!(node.addresses("cni0").len(), 3);
    for gateway in ["10.1.0.1", "fd00:1::1", "fd00:2::1"] {
        assert!(container.pings(gateway), "{gateway}");
    }
    attachment.check();
    attachment.del();
    assert!(node.leases("net").is_empty());
}

#[test]
fn dns_comes_from_ipam_unless_the_configuration_has_any() {
    require_netns!();
    let node = Node::new();
    let resolv = node
        .workdir()
        .file("resolv.conf", "nameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:2\n");
    let mut config = bridge_config(&node);
    config["ipam"]["resolvConf"] = resolv.to_str().unwrap().into();
    let from_file =
        json!({"nameservers": ["192.0.2.53"], "search": ["a.example", "b.example"], "options": ["ndots:2"]});
    for (dns, expected) in [
        (Value::Null, from_file.clone()),
        (json!({}), from_file),
        (json!({"domain": "example.org"}), json!({"domain": "example.org"})),
        (json!({"nameservers": ["10.1.0.1"]}), json!({"nameservers": ["10.1.0.1"]})),
        (json!({"nameservers": []}), Value::Null),
    ] {
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &with(config.clone(), json!({"dns": dns})));
        assert_eq!(attachment.result["dns"], expected, "dns in the configuration: {dns}");
    }
}

#[test]
fn dns_of_the_runtime_is_not_taken() {
    require_netns!();
    let node = Node::new();
    let config = with(bridge_config(&node), json!({"runtimeConfig": {"dns": {"servers": ["192.0.2.53"]}}}));
    let container = node.container();
    assert_eq!(node.attach(&container, "eth0", &config).result["dns"], Value::Null);
}

#[test]
fn without_ipam_the_container_is_on_the_bridge_and_nothing_more() {
    require_netns!();
    let node = Node::new();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge"});
    let (one, two) = (node.container(), node.container());
    let attachments = [node.attach(&one, "eth0", &config), node.attach(&two, "eth0", &config)];
    assert!(attachments[0].result.get("ips").is_none());
    assert!(one.link_has("eth0", "UP"));
    assert!(one.addresses("eth0").is_empty());
    one.ip(&["addr add 192.0.2.1/24 dev eth0"]);
    two.ip(&["addr add 192.0.2.2/24 dev eth0"]);
    assert!(one.pings("192.0.2.2"));
    for attachment in attachments {
        attachment.check();
        attachment.del();
    }
    assert!(node.links_of_kind("veth").is_empty());
}

#[test]
fn without_ipam_an_old_version_is_refused_before_any_change() {
    require_netns!();
    let node = Node::new();
    for version in ["", "0.1.0", "0.2.0"] {
        let container = node.container();
        let config = json!({"cniVersion": version, "name": "net", "type": "bridge"});
        let failure = node.request("ADD", &container, "eth0", &config).err();
        failure.names(&["cannot convert: no valid IP addresses"]);
        assert!(node.links().is_empty() && container.links().is_empty());
        node.request("DEL", &container, "eth0", &config).silent();
    }
}

#[test]
fn the_containers_end_stays_down_when_asked() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "disableContainerInterface": true});
    let call = node.request("ADD", &container, "eth0", &config).run();
    call.ok();
    assert!(
        call.elapsed < patience(Duration::from_millis(500)),
        "waits for a port that cannot come up: {:?}",
        call.elapsed
    );
    assert!(!container.link_has("eth0", "UP"));
    assert_eq!(node.links_of_kind("veth").len(), 1);
}

#[test]
fn the_container_is_joined_to_two_bridges_by_two_interfaces() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let first = node.attach(&container, "eth0", &bridge_config(&node));
    let second = with(bridge_config(&node), json!({"name": "second", "bridge": "cni1"}));
    let second = with_static(second, json!([{"address": "10.2.0.2/24", "gateway": "10.2.0.1"}]), json!([]));
    let second = node.attach(&container, "eth1", &second);
    assert!(container.pings("10.1.0.1") && container.pings("10.2.0.1"));
    first.del();
    assert_eq!(container.links(), ["eth1"]);
    assert!(container.pings("10.2.0.1"));
    second.check();
    second.del();
    assert!(node.links_of_kind("veth").is_empty());
}

#[test]
fn one_container_may_join_one_network_twice() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let first = node.attach(&container, "eth0", &with(bridge_config(&node), json!({"ipMasq": true})));
    let mut config = with(bridge_config(&node), json!({"ipMasq": true}));
    config["ipam"]["routes"] = json!([]);
    let second = node.attach(&container, "eth1", &config);
    first.del();
    assert_eq!(
        (container.links(), node.leases("net")),
        (vec!["eth1".to_owned()], vec!["10.1.0.3".to_owned()])
    );
    second.check();
    second.del();
    assert!(node.leases("net").is_empty());
}

#[test]
fn a_second_add_for_the_same_interface_fails_and_leaves_the_first_intact() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let attachment = node.attach(&container, "eth0", &with(bridge_config(&node), json!({"ipMasq": true})));
    let before = node.snapshot();
    node.request("ADD", &container, "eth0", &attachment.config).err();
    crate::support::assert_same(&before, &node.snapshot());
    attachment.check();
    assert!(container.pings("10.1.0.1"));
    attachment.del();
}

#[test]
fn an_interface_that_is_there_already_is_left_alone() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    container.ip(&["link add eth0 type veth peer name other"]);
    let failure = node.request("ADD", &container, "eth0", &bridge_config(&node)).err();
    failure.names(&["eth0"]);
    assert_eq!(container.links(), ["eth0", "other"]);
    assert!(node.leases("net").is_empty() && node.links_of_kind("veth").is_empty());
}

#[test]
fn the_bridges_mac_does_not_change_as_ports_come_and_go() {
    require_netns!();
    let node = Node::new();
    node.ip(&["link add given type bridge", "addr add 10.3.0.1/24 dev given", "link set given up"]);
    let made = bridge_config(&node);
    let given = with_static(
        with(bridge_config(&node), json!({"name": "given", "bridge": "given"})),
        json!([{"address": "10.3.0.2/24"}]),
        json!([]),
    );
    let layer2 = json!({"cniVersion": "1.1.0", "name": "l2", "type": "bridge", "bridge": "l2"});
    for (name, mut config) in [("cni0", made), ("given", given), ("l2", layer2)] {
        let containers: Vec<_> = (0..3).map(|_| node.container()).collect();
        let mut attachments = vec![node.attach(&containers[0], "eth0", &config)];
        let mac = node.link(name)["address"].clone();
        for (n, container) in containers.iter().enumerate().skip(1) {
            if name == "given" {
                config["ipam"]["addresses"][0]["address"] = format!("10.3.0.{}/24", n + 2).into();
            }
            attachments.push(node.attach(container, "eth0", &config));
            assert_eq!(node.link(name)["address"], mac, "{name} after ADD");
        }
        for attachment in attachments {
            attachment.check();
            attachment.del();
            assert_eq!(node.link(name)["address"], mac, "{name} after DEL");
        }
    }
}

#[test]
fn an_unset_bridge_name_is_cni0() {
    require_netns!();
    let node = Node::new();
    let mut config = bridge_config(&node);
    config.as_object_mut().unwrap().remove("bridge");
    let container = node.container();
    node.attach(&container, "eth0", &config);
    assert_eq!(node.links_of_kind("bridge"), ["cni0"]);
}

#[test]
fn keys_match_without_regard_to_case() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    let config = json!({
        "CniVersion": "1.1.0", "Name": "net", "type": "bridge", "BRIDGE": "br7", "ISGateway": true, "Mtu": 1400,
        "RuntimeConfig": {"MAC": "02:00:00:00:00:07"},
        "IPAM": {"Type": "host-local", "DATADIR": node.data_dir(), "SubNet": "10.1.0.0/24"},
    });
    node.attach(&container, "eth0", &config);
    assert_eq!(node.addresses("br7"), ["10.1.0.1/24"]);
    let link = container.link("eth0");
    assert_eq!((&link["mtu"], &link["address"]), (&json!(1400), &json!("02:00:00:00:00:07")));
}

#[test]
fn lo_is_left_to_the_loopback_plugin() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    node.attach(&container, "eth0", &dual_stack_config(&node));
    assert!(!container.link_has("lo", "UP"));
}

#[test]
fn two_containers_on_a_bridge_reach_each_other() {
    require_netns!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    node.attach(&one, "eth0", &dual_stack_config(&node));
    let other = node.attach(&two, "eth0", &dual_stack_config(&node));
    for n in 0..2 {
        let seen = one.seen_by(&two, &other.ip(n)).unwrap().to_string();
        assert!(one.addresses("eth0")[n].starts_with(&format!("{seen}/")));
    }
}
