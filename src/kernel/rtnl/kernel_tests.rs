//! What the real kernel makes of our messages.

use std::time::Duration;

use nix::errno::Errno;

use super::{private_netns::private_netns, uapi::*, *};
use crate::kernel::{netns::Netns, sysctl};

const BUDGET: Duration = Duration::from_secs(5);

fn set_up(dev: Dev) -> Change {
    Change::SetLink(SetLink { up: Some(true), ..SetLink::of(dev) })
}

fn add_address(dev: &Dev, net: &str) -> Change {
    Change::AddAddress(AddAddress { dev: dev.clone(), net: net.parse().unwrap(), nodad: true })
}

fn add_bridge(handle: &mut Handle, name: &str) -> Link {
    let bridge = AddBridge { name: name.into(), up: true, ..AddBridge::default() };
    handle.apply(&[Change::AddBridge(bridge)]).unwrap();
    handle.link(name).unwrap().unwrap()
}

/// A pair with both ends here, both up; returns the first end.
fn add_pair(handle: &mut Handle, name: &str, peer: &str) -> Link {
    let veth = AddVeth {
        name: name.into(),
        up: true,
        peer: VethPeer { name: peer.into(), ..VethPeer::default() },
        ..AddVeth::default()
    };
    handle.apply(&[Change::AddVeth(veth), set_up(Dev::named(peer))]).unwrap();
    handle.link(name).unwrap().unwrap()
}

#[test]
fn a_veth_across_namespaces_is_made_with_port_flags_and_alias_in_one_datagram() {
    private_netns("a_veth_across_namespaces", || {
        let mut host = Handle::open().unwrap();
        let container = Netns::create_unnamed().unwrap();
        let mut inside = container.enter(Handle::open).unwrap();
        let bridge = add_bridge(&mut host, "cni0");
        let mac: Mac = "0a:58:0a:16:00:02".parse().unwrap();
        let veth = AddVeth {
            name: "vethab".into(),
            up: true,
            mtu: Some(1400),
            mac: None,
            master: Some(bridge.dev()),
            peer: VethPeer {
                name: "eth0".into(),
                mtu: Some(1400),
                mac: Some(mac),
                netns: Some(container.for_peer()),
            },
        };
        let flags = SetLink {
            alias: Some("cni-all net=x id=1".into()),
            port: Some(PortFlags { hairpin: Some(true), isolated: Some(true) }),
            ..SetLink::of(Dev::named("vethab"))
        };
        let mut watch = LinkWatch::open().unwrap();
        let steps = [
            Step::Change(Change::AddVeth(veth)),
            Step::Change(Change::SetLink(flags)),
            Step::Link(Dev::named("vethab")),
        ];
        let mut outcomes = host.exchange(&steps).unwrap();
        let link = outcomes.pop().unwrap().unwrap().unwrap();
        assert!(outcomes.iter().all(|outcome| outcome == &Ok(None)), "{outcomes:?}");
        assert_eq!((link.master, link.mtu, link.is_up()), (Some(bridge.index), 1400, true));
        assert_eq!((link.alias.as_str(), link.kind.as_str()), ("cni-all net=x id=1", "veth"));
        let port = link.port.unwrap();
        assert!(port.hairpin && port.isolated, "{port:?}");

        let eth0 = inside.link("eth0").unwrap().unwrap();
        assert_eq!((Some(eth0.index), eth0.mac, eth0.mtu), (link.peer, Some(mac), 1400));
        assert_eq!(eth0.peer, Some(link.index));
        let late = host.wait_port_up(link.index, Duration::from_millis(30)).unwrap_err();
        assert!(late.msg().contains("vethab is not up after 30 ms"), "{late}");
        inside.apply(&[set_up(eth0.dev())]).unwrap();
        let link = host.wait_port_up(link.index, BUDGET).unwrap();
        assert_eq!((link.oper_state, link.port.unwrap().state), (IF_OPER_UP, BR_FORWARDING));

        let gone = host.apply(&[Change::DelLink(link.dev())]).and_then(|()| {
            watch.wait(BUDGET, |event| (event == Event::Gone { index: link.index }).then_some(()))
        });
        assert_eq!(gone, Ok(Some(())));
        assert_eq!(inside.link("eth0"), Ok(None));
        let lost = host.wait_port_up(link.index, BUDGET).unwrap_err();
        assert_eq!(lost.errno(), Some(Errno::ENODEV));
    });
}

#[test]
fn a_failing_step_has_its_own_outcome_and_the_others_are_carried_out() {
    private_netns("a_failing_step", || {
        let mut handle = Handle::open().unwrap();
        let bridge = add_bridge(&mut handle, "cni0");
        let steps = [
            Step::Link(Dev::named("cni0")),
            Step::Change(add_address(&bridge.dev(), "10.1.0.1/16")),
            Step::Change(add_address(&bridge.dev(), "10.1.0.1/16")),
            Step::Link(Dev::named("absent0")),
            Step::Link(Dev::named("a-name-that-no-link-can-have")),
            Step::Change(Change::DelLink(Dev::named("a-name-that-no-link-can-have"))),
            Step::Change(add_address(&Dev::named("cni0"), "10.3.0.1/16")),
            Step::Change(add_address(&bridge.dev(), "10.2.0.1/16")),
        ];
        let outcomes = handle.exchange(&steps).unwrap();
        assert_eq!(outcomes[0].as_ref().unwrap().as_ref().unwrap().index, bridge.index);
        assert_eq!(outcomes[1], Ok(None));
        let exists = outcomes[2].as_ref().unwrap_err();
        assert!(exists.is_exists());
        assert_eq!(exists.msg(), "ip addr add 10.1.0.1/16 dev cni0: File exists");
        assert_eq!((&outcomes[3], &outcomes[4]), (&Ok(None), &Ok(None)));
        assert!(outcomes[5].as_ref().unwrap_err().msg().contains("not 1 to 15 bytes long"));
        assert!(outcomes[6].as_ref().unwrap_err().msg().contains("the index of cni0 is not known"));
        assert_eq!(outcomes[7], Ok(None));
        let nets: Vec<String> =
            handle.addresses(bridge.index).unwrap().iter().map(|a| a.net.to_string()).collect();
        assert!(nets.contains(&"10.1.0.1/16".into()) && nets.contains(&"10.2.0.1/16".into()), "{nets:?}");
    });
}

#[test]
fn the_kernels_explanation_is_in_the_details() {
    private_netns("the_kernels_explanation", || {
        let mut handle = Handle::open().unwrap();
        let bridge = add_bridge(&mut handle, "cni0");
        let route = default_via("203.0.113.7".parse().unwrap(), bridge.dev());
        let err = handle.apply(&[Change::AddRoute(route)]).unwrap_err();
        assert_eq!(err.msg(), "ip route add default via 203.0.113.7 dev cni0: Network is unreachable");
        assert_eq!(err.details(), "Nexthop has invalid gateway");
    });
}

#[test]
fn dumps_hold_what_was_asked_for_and_nothing_else() {
    private_netns("dumps_hold_what_was_asked_for", || {
        let mut handle = Handle::open().unwrap();
        let bridge = add_bridge(&mut handle, "cni0");
        let veth = add_pair(&mut handle, "va", "vb");
        handle
            .apply(&[
                add_address(&bridge.dev(), "10.1.0.1/16"),
                add_address(&bridge.dev(), "fd00:1::1/64"),
                add_address(&veth.dev(), "10.2.0.1/31"),
            ])
            .unwrap();
        let of_bridge = handle.addresses(bridge.index).unwrap();
        assert!(of_bridge.iter().all(|a| a.index == bridge.index));
        let has = |net: &str| of_bridge.iter().any(|a| a.net == net.parse().unwrap() && !a.is_tentative());
        assert!(has("10.1.0.1/16") && has("fd00:1::1/64"), "{of_bridge:?}");
        assert!(!of_bridge.iter().any(|a| a.net.addr().to_string() == "10.2.0.1"));
        assert_eq!(handle.addresses(9999).unwrap_err().errno(), Some(Errno::ENODEV));

        let bridges = handle.links(Some("bridge")).unwrap();
        assert_eq!(bridges.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["cni0"]);
        assert!(bridges[0].bridge.is_some());
        assert_eq!(handle.links(Some("veth")).unwrap().len(), 2);
        assert_eq!(handle.links(Some("no-such-kind")).unwrap(), []);
        assert!(handle.links(None).unwrap().iter().any(|l| l.name == "lo" && l.kind.is_empty()));
        // Without bridge VLAN filtering in the kernel there is nothing to see; with it, the port would have VLAN 1.
        assert!(handle.port_vlans(veth.index).is_ok());

        handle
            .apply(&[Change::DelAddress { dev: bridge.dev(), net: "10.1.0.1/16".parse().unwrap() }])
            .unwrap();
        let again = Change::DelAddress { dev: bridge.dev(), net: "10.1.0.1/16".parse().unwrap() };
        assert!(handle.apply(&[again]).unwrap_err().is_gone());
    });
}

#[test]
fn routes_come_back_with_everything_that_was_set() {
    private_netns("routes_come_back", || {
        let mut handle = Handle::open().unwrap();
        let dev = add_pair(&mut handle, "va", "vb").dev();
        handle.apply(&[add_address(&dev, "10.1.0.1/16"), add_address(&dev, "fd00:1::1/64")]).unwrap();
        for (dst, gw, src) in
            [("10.9.7.7/16", "10.1.0.9", "10.1.0.1"), ("fd09::7/64", "fd00:1::9", "fd00:1::1")]
        {
            let spec = RouteSpec {
                gw: Some(gw.parse().unwrap()),
                src: Some(src.parse().unwrap()),
                priority: 5,
                table: Some(1000),
                mtu: 1400,
                advmss: 1300,
                ..RouteSpec::new(dst.parse().unwrap(), dev.clone())
            };
            handle.apply(&[Change::AddRoute(spec.clone())]).unwrap();
            assert!(handle.apply(&[Change::AddRoute(spec.clone())]).unwrap_err().is_exists());
            let routes = handle.routes(dev.index).unwrap();
            let route = routes.iter().find(|r| r.table == 1000 && r.dst == spec.dst.trunc()).unwrap();
            assert_eq!((route.gw, route.src, route.oif), (spec.gw, spec.src, Some(dev.index)));
            assert_eq!((route.priority, route.mtu, route.advmss), (5, 1400, 1300));
            assert_eq!((route.protocol, route.scope, route.kind), (RTPROT_BOOT, 0, RTN_UNICAST));
            handle.apply(&[Change::DelRoute(spec.clone())]).unwrap();
            assert!(handle.apply(&[Change::DelRoute(spec)]).unwrap_err().is_gone());
        }
        let onlink = RouteSpec { onlink: true, ..default_via("192.0.2.1".parse().unwrap(), dev.clone()) };
        let link = RouteSpec {
            scope: Some(RT_SCOPE_LINK),
            ..RouteSpec::new("198.51.100.0/24".parse().unwrap(), dev.clone())
        };
        let other_family = RouteSpec {
            gw: Some("fd00:1::9".parse().unwrap()),
            ..RouteSpec::new("198.18.0.0/15".parse().unwrap(), dev.clone())
        };
        for spec in [onlink, link, other_family] {
            handle.apply(&[Change::AddRoute(spec.clone())]).unwrap();
            let routes = handle.routes(dev.index).unwrap();
            let route = routes.iter().find(|r| r.dst == spec.dst).unwrap();
            assert_eq!(
                (route.gw, route.flags & RTNH_F_ONLINK != 0, route.table),
                (spec.gw, spec.onlink, RT_TABLE_MAIN)
            );
            assert_eq!(route.scope, spec.scope.unwrap_or(RT_SCOPE_UNIVERSE));
        }
    });
}

#[test]
fn multipath_routes_are_made_in_one_message() {
    private_netns("multipath_routes", || {
        let mut handle = Handle::open().unwrap();
        let dev = add_pair(&mut handle, "va", "vb").dev();
        handle.apply(&[add_address(&dev, "10.1.0.1/16"), add_address(&dev, "fd00:1::1/64")]).unwrap();
        let gateways = |route: &Route| route.nexthops.iter().filter_map(|hop| hop.gw).collect::<Vec<_>>();
        for (dst, gws) in
            [("10.9.0.0/16", ["10.1.0.8", "10.1.0.9"]), ("fd09::/64", ["fd00:1::8", "fd00:1::9"])]
        {
            let gws = gws.map(|gw| gw.parse().unwrap());
            let hop = |gw, weight| NextHop { gw: Some(gw), dev: dev.clone(), weight, onlink: false };
            let spec = RouteSpec {
                nexthops: vec![hop(gws[0], 1), hop(gws[1], 3)],
                ..RouteSpec::new(dst.parse().unwrap(), Dev::default())
            };
            handle.apply(&[Change::AddRoute(spec.clone())]).unwrap();
            let routes = handle.routes(dev.index).unwrap();
            let route = routes.iter().find(|r| r.dst == spec.dst).unwrap();
            assert_eq!((gateways(route), route.gw), (gws.to_vec(), None));
            assert_eq!(route.nexthops[1].weight, 3);
            handle.apply(&[Change::DelRoute(spec)]).unwrap();
        }
    });
}

#[test]
fn a_link_takes_every_setting() {
    private_netns("a_link_takes_every_setting", || {
        let mut handle = Handle::open().unwrap();
        let bridge = add_bridge(&mut handle, "cni0");
        let dev = add_pair(&mut handle, "va", "vb").dev();
        let mac: Mac = "0a:58:0a:16:00:03".parse().unwrap();
        // Master and port flags together: the flags belong to the new master.
        let set = SetLink {
            dev: dev.clone(),
            up: Some(false),
            mtu: Some(1300),
            mac: Some(mac),
            master: Some(Some(bridge.dev())),
            alias: Some("alias".into()),
            promisc: Some(true),
            arp_notify: Some(true),
            allmulti: Some(true),
            tx_queue: Some(500),
            netns: None,
            rename: Some("vc".into()),
            port: Some(PortFlags { hairpin: Some(true), isolated: None }),
            vlan_filtering: None,
        };
        handle.apply(&[Change::SetLink(set)]).unwrap();
        let link = handle.link("vc").unwrap().unwrap();
        assert_eq!((link.index, link.mtu, link.mac), (dev.index, 1300, Some(mac)));
        assert_eq!((link.is_up(), link.is_promisc(), link.alias.as_str()), (false, true, "alias"));
        assert_eq!((link.master, link.port.unwrap().hairpin), (Some(bridge.index), true));
        assert_eq!(sysctl::read("net/ipv4/conf/vc/arp_notify").unwrap(), "1");
        assert_eq!((link.is_allmulti(), link.tx_queue), (true, 500));
        let unset = SetLink {
            master: Some(None),
            alias: Some(String::new()),
            promisc: Some(false),
            ..SetLink::of(link.dev())
        };
        handle.apply(&[Change::SetLink(unset)]).unwrap();
        let link = handle.link("vc").unwrap().unwrap();
        assert_eq!((link.master, link.port, link.is_promisc()), (None, None, false));
        assert_eq!(link.alias, "");
    });
}

#[test]
fn forwarding_is_read_for_each_family() {
    private_netns("forwarding_is_read", || {
        let mut handle = Handle::open().unwrap();
        for (v4, path) in [(true, "net/ipv4/ip_forward"), (false, "net/ipv6/conf/all/forwarding")] {
            for (value, expected) in [("1", true), ("0", false)] {
                sysctl::write(path, value).unwrap();
                assert_eq!(handle.is_forwarding(v4), Ok(expected), "{path}");
            }
        }
    });
}

#[test]
fn a_bridge_is_made_with_its_address_and_mtu() {
    private_netns("a_bridge_is_made", || {
        let mut handle = Handle::open().unwrap();
        let mac = Some("0a:58:0a:16:00:01".parse().unwrap());
        let bridge = AddBridge { name: "cni0".into(), up: true, mtu: Some(1400), mac, vlan_filtering: false };
        handle.apply(&[Change::AddBridge(bridge.clone())]).unwrap();
        let link = handle.link("cni0").unwrap().unwrap();
        assert_eq!((link.mac, link.mtu, link.is_up(), link.kind.as_str()), (mac, 1400, true, "bridge"));
        assert!(!link.bridge.unwrap().vlan_filtering);
        assert!(handle.apply(&[Change::AddBridge(bridge)]).unwrap_err().is_exists());
        add_pair(&mut handle, "va", "vb");
    });
}

#[test]
fn ipv6_addresses_are_waited_for_and_a_duplicate_is_named() {
    private_netns("ipv6_addresses_are_waited_for", || {
        let mut handle = Handle::open().unwrap();
        let a = add_pair(&mut handle, "va", "vb").dev();
        let b = handle.link("vb").unwrap().unwrap().dev();
        let mut watch = handle.watch_addresses().unwrap();
        let add = |dev: &Dev, net: &str| {
            Change::AddAddress(AddAddress { dev: dev.clone(), net: net.parse().unwrap(), nodad: false })
        };
        handle.apply(&[add(&a, "fd00::1/64")]).unwrap();
        assert!(handle.addresses(a.index).unwrap().iter().any(Address::is_tentative));
        handle.wait_addresses_settled(&mut watch, a.index, BUDGET).unwrap();
        assert!(!handle.addresses(a.index).unwrap().iter().any(Address::is_tentative));

        handle.wait_addresses_settled(&mut watch, b.index, BUDGET).unwrap();
        handle.apply(&[add(&b, "fd00::1/64")]).unwrap();
        let err = handle.wait_addresses_settled(&mut watch, b.index, BUDGET).unwrap_err();
        assert_eq!(err.msg(), "fd00::1/64: another host on the link has this address");
    });
}

/// `BR_STATE_FORWARDING`, linux/if_bridge.h.
const BR_FORWARDING: u8 = 3;

/// The default route of `gw`'s family.
fn default_via(gw: std::net::IpAddr, dev: Dev) -> RouteSpec {
    let dst = if gw.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    RouteSpec { gw: Some(gw), ..RouteSpec::new(dst.parse().unwrap(), dev) }
}

#[test]
fn a_link_moves_to_another_namespace_under_a_new_name() {
    private_netns("a_link_moves_to_another_namespace", || {
        let mut handle = Handle::open().unwrap();
        let dev = add_pair(&mut handle, "va", "vb").dev();
        let other = Netns::create_unnamed().unwrap();
        let mut inside = other.enter(Handle::open).unwrap();
        // A link there has the old name: the kernel uses the new one at once.
        add_pair(&mut inside, "va", "vx");
        let set = |rename: &str| {
            Change::SetLink(SetLink {
                netns: Some(other.for_peer()),
                rename: Some(rename.into()),
                alias: Some("va".into()),
                ..SetLink::of(dev.clone())
            })
        };
        assert!(handle.apply(&[set("vx")]).unwrap_err().is_exists());
        assert!(handle.link("va").unwrap().is_some());
        handle.apply(&[set("eth0")]).unwrap();
        assert!(handle.link("va").unwrap().is_none());
        let moved = inside.link("eth0").unwrap().unwrap();
        assert_eq!((moved.alias.as_str(), moved.is_up()), ("va", false));
    });
}
