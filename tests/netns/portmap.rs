//! portmap, seen by those who connect: from outside, from the host and its localhost, from the container itself and from
//! its neighbours, over TCP and UDP, IPv4 and IPv6.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage};
use serde_json::{Value, json};

use crate::support::{
    Attachment, Container, Netns, Node, Outside, assert_same, patience, require_netns, require_tool,
    skip_for_kernel,
};
use crate::{dual_stack_config, with, with_static};

const LIMIT: Duration = Duration::from_millis(700);

/// Both transport protocols that sockets of the standard library speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

const BOTH: [Transport; 2] = [Transport::Tcp, Transport::Udp];

/// Sends a word from `client` to an address, where a socket of `server` at `port` should get it and answer; the source
/// address that the server sees.
pub fn reach(
    transport: Transport,
    client: &Netns,
    to: (&str, u16),
    server: &Netns,
    port: u16,
) -> io::Result<String> {
    let to: SocketAddr = (to.0.parse::<IpAddr>().unwrap(), to.1).into();
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let mut word = [0; 4];
    let seen = match transport {
        Transport::Tcp => {
            let listener = bind(|| server.enter(|| TcpListener::bind((any, port))))?;
            let mut near = client.connect(to, LIMIT)?;
            let (mut far, from) = listener.accept()?;
            near.set_read_timeout(Some(patience(LIMIT)))?;
            near.write_all(b"ping")?;
            far.read_exact(&mut word)?;
            far.write_all(&word)?;
            near.read_exact(&mut word)?;
            from
        }
        Transport::Udp => {
            let far = bind(|| server.enter(|| UdpSocket::bind((any, port))))?;
            far.set_read_timeout(Some(patience(LIMIT)))?;
            let near = client.udp(any, 0);
            near.set_read_timeout(Some(patience(LIMIT)))?;
            client.enter(|| near.connect(to))?;
            near.send(b"ping")?;
            let (_, from) = far.recv_from(&mut word)?;
            far.send_to(&word, from)?;
            // Connected: an answer from another address does not come through.
            near.recv(&mut word)?;
            from
        }
    };
    assert_eq!(&word, b"ping");
    Ok(seen.ip().to_string())
}

/// An SCTP socket for one association, bound to an address: with several addresses a peer would tell of all of them, past
/// what is translated. To the standard library it is as good as one of TCP.
fn sctp_socket(at: SocketAddr) -> io::Result<TcpStream> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let made = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)?;
    socket::setsockopt(&made, socket::sockopt::ReuseAddr, &true)?;
    socket::bind(made.as_raw_fd(), &SockaddrStorage::from(at))?;
    let made = TcpStream::from(made);
    // For connecting as well.
    made.set_write_timeout(Some(patience(LIMIT)))?;
    made.set_read_timeout(Some(patience(LIMIT)))?;
    Ok(made)
}

/// Sends a word over SCTP from an address of `client` to an address where a socket of `server` at `at` should get it and
/// answer; the source address that the server sees.
fn reach_by_sctp(client: (&Netns, &str), to: (&str, u16), server: (&Netns, &str, u16)) -> io::Result<String> {
    let address = |text: &str, port: u16| -> SocketAddr { (text.parse::<IpAddr>().unwrap(), port).into() };
    let listener = bind(|| server.0.enter(|| sctp_socket(address(server.1, server.2))))?;
    socket::listen(&listener, Backlog::new(1)?)?;
    let listener = TcpListener::from(OwnedFd::from(listener));
    let mut near = client.0.enter(|| sctp_socket(address(client.1, 0)))?;
    socket::connect(near.as_raw_fd(), &SockaddrStorage::from(address(to.0, to.1)))?;
    let (mut far, from) = listener.accept()?;
    let mut word = [0; 4];
    near.write_all(b"ping")?;
    far.read_exact(&mut word)?;
    far.write_all(&word)?;
    near.read_exact(&mut word)?;
    assert_eq!(&word, b"ping");
    Ok(from.ip().to_string())
}

/// A bound socket. The one before it on the same port may live on for a moment in a process that a parallel test is about
/// to start.
fn bind<T>(make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + patience(Duration::from_secs(2));
    loop {
        match make() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            other => return other,
        }
    }
}

pub fn mapping(protocol: &str, host: u32, container: u32) -> Value {
    json!({"hostPort": host, "containerPort": container, "protocol": protocol})
}

/// portmap behind an attachment of another plugin.
pub fn portmap(to: &Attachment, mappings: Value) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": to.config["name"], "type": "portmap",
        "capabilities": {"portMappings": true}, "runtimeConfig": {"portMappings": mappings},
        "prevResult": to.result,
    })
}

/// A container on a bridge with 8080 → 80 mapped for TCP and UDP.
pub fn mapped<'a>(node: &'a Node, container: &'a Container, more: Value) -> (Attachment<'a>, Attachment<'a>) {
    let link = node.attach(container, "eth0", &dual_stack_config(node));
    let both = json!([mapping("tcp", 8080, 80), mapping("udp", 8080, 80)]);
    let ports = node.attach(container, "eth0", &with(portmap(&link, both), more));
    assert_eq!(ports.result, link.result, "the result is passed on");
    (link, ports)
}

#[test]
fn a_mapped_port_leads_to_the_container_from_everywhere() {
    require_netns!();
    // With br_netfilter in force, the kernel translates while frames still pass the bridge.
    for (backend, in_bridge) in [("nftables", "0"), ("nftables", "1"), ("iptables", "0"), ("iptables", "1")] {
        let node = Node::new();
        for key in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
            if node.enter(|| std::path::Path::new("/proc/sys").join(key).exists()) {
                node.set_sysctl(key, in_bridge);
            }
        }
        everywhere(&node, backend, &format!("{backend}, in bridges {in_bridge}"));
    }
}

fn everywhere(node: &Node, backend: &str, what: &str) {
    let outside = node.outside();
    let (one, two) = (node.container(), node.container());
    let (link, ports) = mapped(node, &one, json!({"backend": backend}));
    node.attach(&two, "eth0", &dual_stack_config(node));
    for transport in BOTH {
        for (name, client, to, seen) in [
            ("outside", &*outside, Outside::NODE_V4, Outside::V4),
            ("outside", &*outside, Outside::NODE_V6, Outside::V6),
            ("host", node, Outside::NODE_V4, Outside::NODE_V4),
            ("host", node, Outside::NODE_V6, Outside::NODE_V6),
            ("localhost", node, "127.0.0.1", "10.1.0.1"),
            ("itself", &*one, Outside::NODE_V4, "10.1.0.1"),
            ("itself", &*one, Outside::NODE_V6, "fd00:1::1"),
            ("itself by the gateway's address", &*one, "10.1.0.1", "10.1.0.1"),
            ("neighbour", &*two, Outside::NODE_V4, "10.1.0.1"),
            ("neighbour", &*two, Outside::NODE_V6, "fd00:1::1"),
            ("neighbour by the gateway's address", &*two, "fd00:1::1", "fd00:1::1"),
        ] {
            let found = reach(transport, client, (to, 8080), &one, 80);
            let found = found.unwrap_or_else(|e| panic!("{what}: {transport:?} from {name} to {to}: {e}"));
            assert_eq!(found, seen, "{what}: {transport:?} from {name} to {to}");
        }
        // Directly: nobody's address is hidden.
        let seen = reach(transport, &two, ("10.1.0.2", 80), &one, 80).unwrap();
        assert_eq!(seen, "10.1.0.3", "{what}: {transport:?}");
    }
    ports.check();
    link.check();
    ports.del();
    for transport in BOTH {
        for (client, to) in [(&*outside, Outside::NODE_V4), (&*outside, Outside::NODE_V6)] {
            let found = reach(transport, client, (to, 8080), &one, 80);
            assert!(found.is_err(), "{what}: {transport:?} to {to} after DEL");
        }
    }
}

#[test]
fn a_port_mapped_for_sctp_leads_to_the_container() {
    require_netns!();
    if let Err(err) = sctp_socket(([127, 0, 0, 1], 0).into()) {
        return skip_for_kernel(&format!("this kernel has no SCTP: {err}"));
    }
    for backend in ["nftables", "iptables"] {
        let node = Node::new();
        let outside = node.outside();
        let (one, two) = (node.container(), node.container());
        let link = node.attach(&one, "eth0", &dual_stack_config(&node));
        let ports = with(portmap(&link, json!([mapping("sctp", 8080, 80)])), json!({"backend": backend}));
        let ports = node.attach(&one, "eth0", &ports);
        node.attach(&two, "eth0", &dual_stack_config(&node));
        for (name, client, own, to, seen) in [
            ("outside", &*outside, Outside::V4, Outside::NODE_V4, Outside::V4),
            ("outside", &*outside, Outside::V6, Outside::NODE_V6, Outside::V6),
            ("host", &*node, Outside::NODE_V4, Outside::NODE_V4, Outside::NODE_V4),
            ("localhost", &*node, "127.0.0.1", "127.0.0.1", "10.1.0.1"),
            ("itself", &*one, "10.1.0.2", Outside::NODE_V4, "10.1.0.1"),
            ("neighbour", &*two, "10.1.0.3", Outside::NODE_V4, "10.1.0.1"),
            ("neighbour", &*two, "fd00:1::3", Outside::NODE_V6, "fd00:1::1"),
        ] {
            let at = if to.contains(':') { "fd00:1::2" } else { "10.1.0.2" };
            let found = reach_by_sctp((client, own), (to, 8080), (&one, at, 80));
            let found = found.unwrap_or_else(|e| panic!("{backend}: from {name} to {to}: {e}"));
            assert_eq!(found, seen, "{backend}: from {name} to {to}");
        }
        ports.check();
        ports.del();
        let found = reach_by_sctp((&outside, Outside::V4), (Outside::NODE_V4, 8080), (&one, "10.1.0.2", 80));
        assert!(found.is_err(), "{backend} after DEL");
    }
}

#[test]
fn every_address_of_the_loopback_link_reaches_the_container() {
    require_netns!();
    let node = Node::new();
    let one = node.container();
    let (_link, _ports) = mapped(&node, &one, json!({}));
    assert_eq!(reach(Transport::Tcp, &node, ("127.0.0.53", 8080), &one, 80).unwrap(), "10.1.0.1");
}

#[test]
fn conditions_are_those_of_each_container() {
    require_netns!();
    for words in [json!(["ip", "saddr", "203.0.113.1"]), json!(["-s", "203.0.113.1"])] {
        for backend in [None, Some("nftables"), Some("iptables")] {
            let language = if words[0] == "ip" { "nftables" } else { "iptables" };
            if backend.is_some_and(|backend| backend != language) {
                continue;
            }
            let node = Node::new();
            let outside = node.outside();
            outside.ip(&["addr add 203.0.113.77/24 dev out0"]);
            let (one, two) = (node.container(), node.container());
            let mut more = json!({"conditionsV4": words});
            if let Some(backend) = backend {
                more["backend"] = json!(backend);
            }
            let (_link, ports) = mapped(&node, &one, more.clone());
            let second = node.attach(&two, "eth0", &dual_stack_config(&node));
            let config = portmap(&second, json!([mapping("tcp", 9090, 80)]));
            let other =
                node.attach(&two, "eth0", &with(config, json!({"backend": backend.unwrap_or("nftables")})));
            let what = format!("{words} {backend:?}");
            let from = |address: &str, port: u16, server: &Container| {
                let source = format!("route replace 203.0.113.2 dev out0 src {address}");
                outside.ip(&[&source]);
                reach(Transport::Tcp, &outside, (Outside::NODE_V4, port), server, 80)
            };
            assert_eq!(
                from("203.0.113.1", 8080, &one).unwrap_or_else(|e| panic!("{what}: {e}")),
                "203.0.113.1"
            );
            assert!(from("203.0.113.77", 8080, &one).is_err(), "{what}");
            assert_eq!(from("203.0.113.77", 9090, &two).unwrap(), "203.0.113.77", "{what}");
            ports.check();
            // Without conditions after all, and with them again.
            let config = with(ports.config.clone(), json!({"conditionsV4": null}));
            node.request("ADD", &one, "eth0", &config).ok();
            assert_eq!(from("203.0.113.77", 8080, &one).unwrap(), "203.0.113.77", "{what}");
            assert!(!node.nft().contains("chain cond-"), "{what}");
            node.request("ADD", &one, "eth0", &ports.config).ok();
            assert!(from("203.0.113.77", 8080, &one).is_err(), "{what}");
            let gc = json!({"cni.dev/valid-attachments": [{"containerID": two.id(), "ifname": "eth0"}]});
            node.call("portmap").command("GC").config(&with(ports.config.clone(), gc)).silent();
            let nft = node.nft();
            assert!(!nft.contains(one.id()) && !nft.contains("chain cond-"), "{what}\n{nft}");
            other.check();
        }
    }
}

#[test]
fn options_of_the_other_backend_are_refused() {
    require_netns!();
    let node = Node::new();
    let one = node.container();
    let link = node.attach(&one, "eth0", &dual_stack_config(&node));
    for (more, says) in [
        (
            json!({"backend": "nftables", "conditionsV4": ["-s", "1.2.3.4"], "externalSetMarkChain": "X"}),
            "nftables backend was requested but configuration contains iptables-specific options \
             [externalSetMarkChain conditionsV4]",
        ),
        (
            json!({"backend": "iptables", "conditionsV6": ["iifname", "eth0"]}),
            "iptables backend was requested but configuration contains nftables-specific options [conditionsV6]",
        ),
        (json!({"backend": "ipfw"}), "unrecognized backend \"ipfw\""),
        (json!({"markMasqBit": 32}), "markMasqBit: 32 is not a bit of a mark (0 to 31)"),
        (
            json!({"markMasqBit": 1, "externalSetMarkChain": "X"}),
            "Cannot specify externalSetMarkChain and markMasqBit",
        ),
    ] {
        let config = with(portmap(&link, json!([mapping("tcp", 1, 1)])), more);
        let config = config.as_object().unwrap().iter();
        let config = config.map(|(key, value)| (key.clone(), value.clone())).collect();
        node.request("ADD", &one, "eth0", &Value::Object(config)).fails(7).says(says);
    }
    assert_eq!(node.nft(), "");
}

#[test]
fn localhost_of_ipv6_is_refused_at_once_instead_of_lost() {
    require_netns!();
    let node = Node::new();
    let one = node.container();
    let (_link, _ports) = mapped(&node, &one, json!({}));
    let refused = reach(Transport::Tcp, &node, ("::1", 8080), &one, 80).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn traffic_through_the_host_to_another_machines_same_port_is_not_touched() {
    // CVE-2025-67499
    require_netns!();
    let node = Node::new();
    let outside = node.outside();
    let (one, two) = (node.container(), node.container());
    let (_link, ports) = mapped(&node, &one, json!({}));
    node.attach(&two, "eth0", &dual_stack_config(&node));
    outside.ip(&["route add 10.1.0.0/24 via 203.0.113.2", "route add fd00:1::/64 via 2001:db8:1::2"]);
    for (backend, transport) in
        [("nftables", BOTH[0]), ("iptables", BOTH[0]), ("iptables", BOTH[1]), ("nftables", BOTH[1])]
    {
        let config = with(ports.config.clone(), json!({"backend": backend}));
        ports.del();
        node.request("ADD", &one, "eth0", &config).ok();
        for (to, seen) in [(Outside::V4, "10.1.0.3"), (Outside::V6, "fd00:1::3")] {
            let found = reach(transport, &two, (to, 8080), &outside, 8080);
            assert_eq!(found.unwrap_or_else(|e| panic!("{transport:?} {to}: {e}")), seen);
        }
        for (to, seen) in [("10.1.0.3", Outside::V4), ("fd00:1::3", Outside::V6)] {
            let found = reach(transport, &outside, (to, 8080), &two, 8080);
            assert_eq!(found.unwrap_or_else(|e| panic!("{transport:?} {to}: {e}")), seen);
        }
    }
}

#[test]
fn rules_of_others_for_the_same_port_come_first() {
    // CVE-2019-9946: whatever was there first, in the tool's own table and before or after ours.
    require_netns!();
    for (backend, before) in [("nftables", true), ("nftables", false), ("iptables", true)] {
        let node = Node::new();
        let outside = node.outside();
        let (one, two) = (node.container(), node.container());
        let other = || {
            node.run("iptables-nft -t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to 10.1.0.3:81");
        };
        if before {
            other();
        }
        let (_link, _ports) = mapped(&node, &one, json!({"backend": backend}));
        node.attach(&two, "eth0", &dual_stack_config(&node));
        if !before {
            other();
        }
        let seen = reach(Transport::Tcp, &outside, (Outside::NODE_V4, 8080), &two, 81);
        assert_eq!(seen.unwrap_or_else(|e| panic!("{before}: {e}")), Outside::V4);
    }
}

#[test]
fn a_host_address_restricts_a_mapping_and_goes_before_one_without() {
    require_netns!();
    let node = Node::new();
    let outside = node.outside();
    node.ip(&["addr add 203.0.113.9/24 dev uplink"]);
    let (one, two) = (node.container(), node.container());
    let (first, second) = (
        node.attach(&one, "eth0", &dual_stack_config(&node)),
        node.attach(&two, "eth0", &dual_stack_config(&node)),
    );
    let at = |host: &str, port: u16| json!({"hostPort": port, "containerPort": 80, "protocol": "TCP", "hostIP": host});
    let ports = json!([at("203.0.113.9", 8080), at("127.0.0.1", 8081), at("0.0.0.0", 8082), at("::", 8083)]);
    let specific = node.attach(&one, "eth0", &portmap(&first, ports));
    let all = node.attach(&two, "eth0", &portmap(&second, json!([mapping("tcp", 8080, 80)])));
    let tcp = |client: &Netns, to, server: &Container| reach(Transport::Tcp, client, to, server, 80);
    tcp(&outside, ("203.0.113.9", 8080), &one).unwrap();
    tcp(&outside, (Outside::NODE_V4, 8080), &two).unwrap();
    tcp(&node, ("127.0.0.1", 8081), &one).unwrap();
    assert!(tcp(&outside, (Outside::NODE_V4, 8081), &one).is_err());
    tcp(&outside, (Outside::NODE_V4, 8082), &one).unwrap();
    assert!(tcp(&outside, (Outside::NODE_V6, 8082), &one).is_err());
    tcp(&outside, (Outside::NODE_V6, 8083), &one).unwrap();
    assert!(tcp(&outside, (Outside::NODE_V4, 8083), &one).is_err());
    specific.check();
    all.check();
    specific.del();
    tcp(&outside, ("203.0.113.9", 8080), &two).unwrap();
}

#[test]
fn a_neighbour_cannot_reach_what_listens_on_localhost() {
    // CVE-2020-8558: route_localnet alone would let it.
    require_netns!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    let (_link, _ports) = mapped(&node, &one, json!({}));
    node.attach(&two, "eth0", &dual_stack_config(&node));
    assert_eq!(node.sysctl("net/ipv4/conf/cni0/route_localnet"), "1");
    two.ip(&["route add 127.0.0.0/8 via 10.1.0.1"]);
    two.set_sysctl("net/ipv4/conf/eth0/route_localnet", "1");
    let secret = node.udp([127, 0, 0, 1], 9000);
    secret.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let attack = two.udp([10, 1, 0, 3], 0);
    attack.send_to(b"x", "127.0.0.1:9000").unwrap();
    assert!(secret.recv_from(&mut [0; 4]).is_err(), "a packet of a neighbour got to 127.0.0.1");
    // It is the rule that keeps it out.
    node.run("nft flush chain ip cni-all martians");
    attack.send_to(b"x", "127.0.0.1:9000").unwrap();
    secret.recv_from(&mut [0; 4]).unwrap();
}

#[test]
fn without_snat_nothing_is_masqueraded_and_with_masq_all_everything() {
    require_netns!();
    let node = Node::new();
    let outside = node.outside();
    let one = node.container();
    let (_link, ports) = mapped(&node, &one, json!({"snat": false}));
    assert!(reach(Transport::Tcp, &one, (Outside::NODE_V4, 8080), &one, 80).is_err());
    assert_eq!(node.sysctl("net/ipv4/conf/cni0/route_localnet"), "0");
    let seen = reach(Transport::Tcp, &outside, (Outside::NODE_V4, 8080), &one, 80).unwrap();
    assert_eq!(seen, Outside::V4);
    ports.check();
    // The same attachment again, otherwise.
    let ports = node.attach(&one, "eth0", &with(ports.config, json!({"snat": true, "masqAll": true})));
    for (to, seen) in [(Outside::NODE_V4, "10.1.0.1"), (Outside::NODE_V6, "fd00:1::1")] {
        assert_eq!(reach(Transport::Udp, &outside, (to, 8080), &one, 80).unwrap(), seen);
    }
    reach(Transport::Tcp, &one, (Outside::NODE_V4, 8080), &one, 80).unwrap();
    ports.check();
}

#[test]
fn a_host_port_that_another_container_has_is_refused_by_its_name() {
    require_netns!();
    for (backend, owner) in [
        ("nftables", "container first (network net, interface eth0)"),
        ("iptables", "container first (network net, interface eth0)"),
    ] {
        let node = Node::new();
        let (one, two) = (node.container_named("first"), node.container_named("second"));
        let (_link, ports) = mapped(&node, &one, json!({"backend": backend}));
        let second = node.attach(&two, "eth0", &dual_stack_config(&node));
        let before = node.snapshot();
        let mappings = json!([mapping("tcp", 9090, 90), mapping("udp", 8080, 80)]);
        let config = with(portmap(&second, mappings), json!({"backend": backend}));
        let failure = node.request("ADD", &two, "eth0", &config).fails(102);
        failure.says(&format!("host port udp . 8080 is mapped already, by {owner}"));
        assert_same(&before, &node.snapshot());
        // At an address of its own it does not contend.
        let mut own = mapping("udp", 8080, 80);
        own["hostIP"] = json!("10.1.0.1");
        let config = with(config, json!({"runtimeConfig": {"portMappings": [own]}}));
        node.attach(&two, "eth0", &config).check();
        ports.check();
        ports.del();
        let config = with(config, json!({"runtimeConfig": {"portMappings": [mapping("udp", 8080, 80)]}}));
        node.attach(&two, "eth0", &config).check();
    }
}

#[test]
fn an_address_given_anew_takes_the_ports_of_whom_it_was_taken_from() {
    require_netns!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    let (link, _ports) = mapped(&node, &one, json!({}));
    // The first container vanished without DEL of portmap.
    link.del();
    let config = with(
        dual_stack_config(&node),
        json!({"ipam": {"type": "static", "addresses": [
        {"address": "10.1.0.2/24"}, {"address": "fd00:1::2/64"}]}}),
    );
    let again = node.attach(&two, "eth0", &config);
    let ports = node.attach(&two, "eth0", &portmap(&again, json!([mapping("tcp", 8080, 80)])));
    ports.check();
    reach(Transport::Tcp, &node, ("127.0.0.1", 8080), &two, 80).unwrap();
}

#[test]
fn del_needs_nothing_but_the_attachments_name_and_leaves_other_attachments_alone() {
    require_netns!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    let (first, _ports) = mapped(&node, &one, json!({}));
    let inside = node.attach(
        &one,
        "eth1",
        &with_static(
            with(dual_stack_config(&node), json!({"name": "other"})),
            json!([{"address": "10.1.0.9/24"}]),
            json!([]),
        ),
    );
    let second = node.attach(&two, "eth0", &dual_stack_config(&node));
    let kept = [
        node.attach(&one, "eth1", &portmap(&inside, json!([mapping("tcp", 8081, 80)]))),
        node.attach(&two, "eth0", &portmap(&second, json!([mapping("sctp", 8080, 80)]))),
    ];
    let config =
        json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap", "backend": 5, "runtimeConfig": []});
    for _ in 0..2 {
        let call = node.request("DEL", &one, "eth0", &config).env("CNI_NETNS", "");
        call.silent();
    }
    let nft = node.nft();
    assert!(!nft.contains("net net if eth0 id container-0\""), "{nft}");
    kept.iter().for_each(Attachment::check);
    drop(first);
    for attachment in kept {
        attachment.del();
    }
    let nft = node.nft();
    assert!(!nft.contains("elements") && !nft.contains("hairpin-"), "{nft}");
}

#[test]
fn add_again_replaces_the_mappings_by_those_of_now() {
    require_netns!();
    require_tool!("iptables-nft");
    for backend in ["nftables", "iptables"] {
        let node = Node::new();
        let one = node.container();
        let (_link, ports) = mapped(&node, &one, json!({"backend": backend}));
        let again = |mappings: Value| {
            let config = with(ports.config.clone(), json!({"runtimeConfig": {"portMappings": mappings}}));
            node.attach(&one, "eth0", &config).check();
        };
        let at = |host: &str| with(mapping("tcp", 9090, 80), json!({"hostIP": host}));
        // nft does not show all that xtables targets say.
        let rules = || match backend {
            "iptables" => node.run("iptables-nft -t nat -S") + &node.run("ip6tables-nft -t nat -S"),
            _ => node.nft(),
        };
        again(json!([at("0.0.0.0")]));
        let found = rules();
        assert!(found.contains("9090") && !found.contains("8080") && !found.contains("fd00:1::2"), "{found}");
        again(json!([at("::")]));
        let found = rules();
        assert!(found.contains("fd00:1::2"), "{found}");
        assert!(!found.contains("10.1.0.2"), "{found}");
        again(json!([]));
        let found = rules();
        assert!(!found.contains("9090") && !found.contains(one.id()), "{found}");
        again(json!([at("")]));
        again(json!([at("")]));
        ports.del();
        assert!(!rules().contains(one.id()));
    }
}

#[test]
fn gc_removes_mappings_of_what_is_not_valid_any_more() {
    require_netns!();
    let node = Node::new();
    let (one, two) = (node.container(), node.container());
    let (_link, ports) = mapped(&node, &one, json!({}));
    let second = node.attach(&two, "eth0", &dual_stack_config(&node));
    let kept = node.attach(&two, "eth0", &portmap(&second, json!([mapping("tcp", 80, 80)])));
    let gc = |config: &Value, valid: Value| {
        let list = json!({"cni.dev/valid-attachments": valid});
        node.call("portmap").command("GC").config(&with(config.clone(), list)).silent();
    };
    let before = node.snapshot();
    gc(&with(ports.config.clone(), json!({"name": "other"})), json!([]));
    assert_same(&before, &node.snapshot());
    gc(&ports.config, json!([{"containerID": two.id(), "ifname": "eth0"}]));
    assert!(!node.nft().contains(one.id()));
    kept.check();
    gc(&ports.config, json!([]));
    assert!(!node.nft().contains("elements"));
}

#[test]
fn check_names_what_is_missing() {
    require_netns!();
    let node = Node::new();
    let one = node.container();
    let (_link, ports) = mapped(&node, &one, json!({}));
    for (damage, word) in [
        ("nft delete element ip cni-all hostports { tcp . 8080 }", "hostports does not have { tcp . 8080 "),
        ("nft flush set ip6 cni-all mapped", "mapped does not have { tcp . fd00:1::2 . 80 . 8080"),
        (
            "nft flush chain ip cni-all portmap-local",
            "nft add rule ip cni-all portmap-local fib daddr type local",
        ),
        ("nft flush chain ip cni-all martians", "martians"),
    ] {
        ports.check();
        node.run(damage);
        let failure = ports.call("CHECK").fails(100);
        failure.names(&[word.trim_start_matches("nft add rule ")]);
        node.run("nft flush ruleset");
        node.request("ADD", &one, "eth0", &ports.config).ok();
    }
    node.set_sysctl("net/ipv4/conf/cni0/route_localnet", "0");
    ports.call("CHECK").fails(100).names(&["/proc/sys/net/ipv4/conf/cni0/route_localnet is not 1"]);
}

#[test]
fn a_mapping_that_is_not_valid_is_refused_by_its_place() {
    require_netns!();
    let node = Node::new();
    let one = node.container();
    let link = node.attach(&one, "eth0", &dual_stack_config(&node));
    let ok = mapping("tcp", 1, 1);
    for (mappings, says) in [
        (
            json!([ok, mapping("tcp", 0, 80)]),
            "runtimeConfig.portMappings[1].hostPort: 0 is not a port (1 to 65535)",
        ),
        (
            json!([mapping("tcp", 80, 65536)]),
            "runtimeConfig.portMappings[0].containerPort: 65536 is not a port (1 to 65535)",
        ),
        (
            json!([mapping("icmp", 8, 8)]),
            "runtimeConfig.portMappings[0].protocol: \"icmp\" is not tcp, udp or sctp",
        ),
        (
            json!([with(mapping("tcp", 8, 8), json!({"hostIP": "nowhere"}))]),
            "runtimeConfig.portMappings[0].hostIP: \"nowhere\" is not an IP address",
        ),
        (
            json!([mapping("tcp", 8, 8), with(mapping("tcp", 8, 9), json!({"hostIP": "::"}))]),
            "runtimeConfig.portMappings[1].hostPort: 8/tcp is mapped to container port 8 as well",
        ),
    ] {
        node.request("ADD", &one, "eth0", &portmap(&link, mappings)).fails(7).says(says);
    }
    let lonely = json!({"cniVersion": "1.1.0", "name": "net", "type": "portmap"});
    node.request("ADD", &one, "eth0", &lonely).fails(7).says("must be called as chained plugin");
    assert_eq!(node.nft(), "");
    // Nothing to map: nothing is done.
    let result = node.request("ADD", &one, "eth0", &portmap(&link, json!([]))).ok();
    assert_eq!(result, link.result);
    assert_eq!(node.nft(), "");
}

#[test]
fn udp_clients_follow_a_port_from_container_to_container() {
    require_netns!();
    let node = Node::new();
    let outside = node.outside();
    let (one, two) = (node.container(), node.container());
    let link = node.attach(&one, "eth0", &dual_stack_config(&node));
    // Connections are tracked from the first mapping on.
    let first = json!([mapping("tcp", 1, 1)]);
    node.attach(&one, "eth0", &with(portmap(&link, first), json!({"name": "first"})));
    let servers = [&one, &two].map(|container| container.udp([0; 4], 80));
    let client = outside.udp([0; 4], 4000);
    let foreign = node.udp([0; 4], 4001);
    foreign.send_to(b"x", (Outside::V4, 8080)).unwrap();
    let arrives = |at: &UdpSocket| {
        client.send_to(b"x", (Outside::NODE_V4, 8080)).unwrap();
        at.recv_from(&mut [0; 4]).map(|(_, from)| from.ip().to_string())
    };
    let tracked = || node.run("cat /proc/net/nf_conntrack");
    // Nobody is there yet, and the kernel remembers that.
    client.send_to(b"x", (Outside::NODE_V4, 8080)).unwrap();
    let seen = tracked();
    assert!(seen.contains("sport=4000 dport=8080"), "{seen}");
    let first = node.attach(&one, "eth0", &portmap(&link, json!([mapping("udp", 8080, 80)])));
    assert_eq!(arrives(&servers[0]).unwrap(), Outside::V4);
    assert!(tracked().contains("src=203.0.113.2 dst=203.0.113.1 sport=4001 dport=8080"), "{}", tracked());
    // ADD again keeps what is right: the answer's way is remembered.
    node.request("ADD", &one, "eth0", &first.config).ok();
    assert!(tracked().contains("sport=4000 dport=8080"), "{}", tracked());
    first.del();
    assert!(!tracked().contains("sport=4000 dport=8080"), "{}", tracked());
    let second = node.attach(&two, "eth0", &dual_stack_config(&node));
    node.attach(&two, "eth0", &portmap(&second, json!([mapping("udp", 8080, 80)])));
    assert_eq!(arrives(&servers[1]).unwrap(), Outside::V4);
    assert!(tracked().contains("sport=4001 dport=8080"), "{}", tracked());
}

#[test]
fn a_list_as_nomad_writes_it_works_under_a_forward_chain_that_drops() {
    require_netns!();
    require_tool!("iptables-nft");
    for backend in [json!(null), json!("iptables")] {
        let node = Node::new();
        let outside = node.outside();
        node.run("iptables-nft -P FORWARD DROP");
        let one = node.container();
        let version = json!({"cniVersion": "0.4.0", "name": "nomad", "bridge": "nomad", "ipMasq": true});
        let link = node.attach(&one, "eth0", &with(dual_stack_config(&node), version));
        let firewall = json!({
            "cniVersion": "0.4.0", "name": "nomad", "type": "firewall", "backend": "iptables",
            "iptablesAdminChainName": "NOMAD-ADMIN", "prevResult": link.result,
        });
        let firewall = node.attach(&one, "eth0", &firewall);
        // Nomad itself writes this one.
        node.run("iptables-nft -A NOMAD-ADMIN -o nomad -d 10.1.0.0/24 -j ACCEPT");
        let ports = with(
            portmap(&link, json!([mapping("tcp", 8080, 80)])),
            json!({"cniVersion": "0.4.0", "snat": true, "backend": backend, "prevResult": firewall.result}),
        );
        let ports = node.attach(&one, "eth0", &ports);
        let seen = reach(Transport::Tcp, &outside, (Outside::NODE_V4, 8080), &one, 80);
        assert_eq!(seen.unwrap_or_else(|e| panic!("{backend}: {e}")), Outside::V4);
        reach(Transport::Tcp, &one, (Outside::NODE_V4, 8080), &one, 80).unwrap();
        for attachment in [&ports, &firewall, &link] {
            attachment.check();
        }
        for attachment in [&ports, &firewall, &link] {
            attachment.del();
        }
        assert!(!node.nft().contains(one.id()), "{}", node.nft());
    }
}
