//! `cni-all update`: what is attached gets another configuration; seen in the kernel, by traffic, and in what is kept.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::sublinks::for_each_kind;
use crate::support::{
    Call, Container, Netns, Node, Outcome, Outside, executable, patience, require_netns, require_tool,
};
use crate::{bridge_config, with};

/// A node with the network `net` in a directory of configurations.
struct Site {
    node: Node,
}

impl Site {
    fn new(plugins: Value) -> Site {
        let site = Site { node: Node::new() };
        std::fs::create_dir(site.path("net.d")).unwrap();
        site.configure(plugins);
        site
    }

    /// A bridge with these keys, in front of these plugins.
    fn bridged(keys: Value, more: &[Value]) -> Site {
        let site = Site::new(json!([{"type": "loopback"}]));
        site.rewrite(keys, more);
        site
    }

    fn rewrite(&self, keys: Value, more: &[Value]) {
        let mut plugins = vec![with(bridge_config(&self.node), keys)];
        plugins.extend(more.iter().cloned());
        self.configure(Value::Array(plugins));
    }

    fn configure(&self, plugins: Value) {
        let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": plugins});
        self.node.workdir().file("net.d/10-net.conflist", list.to_string());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.node.workdir().root().join(name)
    }

    /// A call of `cni-all` on this node.
    fn call(&self, words: &[&str]) -> Call {
        let call = Call::new(&executable(), Path::new("/nonexistent")).bare().inside(&self.node);
        let call = words.iter().fold(call, |call, word| call.arg(*word));
        call.arg("--conf-dir").arg(self.path("net.d")).arg("--cache-dir").arg(self.path("cache"))
    }

    /// A command that must succeed; what it printed.
    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let outcome = self.call(words).run();
        assert_eq!(outcome.status, Some(0), "{outcome}");
        outcome.text().to_owned()
    }

    #[track_caller]
    fn add(&self, container: &Container, more: &[&str]) -> Value {
        let text =
            self.ok(&[&["add", "net", container.path(), "--json", "--id", container.id()], more].concat());
        serde_json::from_str(&text).unwrap()
    }

    #[track_caller]
    fn update(&self, container: &Container, more: &[&str]) -> String {
        self.ok(&[&["update", "net", container.path()], more].concat())
    }

    /// An update that must fail.
    fn refused(&self, container: &Container, more: &[&str]) -> Outcome {
        self.call(&[&["update", "net", container.path(), "--json"], more].concat()).run()
    }

    /// The file that is kept about a container.
    fn kept(&self, container: &Container) -> Value {
        let path = self.path(&format!("cache/results/net-{}-eth0", container.id()));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// An update that changes something and, repeated, nothing; CHECK succeeds with what is configured then.
    #[track_caller]
    fn settles(&self, container: &Container, more: &[&str]) -> String {
        let text = self.update(container, more);
        assert!(!text.contains("nothing to change"), "{text}");
        let again = self.update(container, more);
        assert_eq!(again, format!("# {} eth0: nothing to change\n", container.id()), "{text}");
        self.ok(&["check", "net", container.path(), "--id", container.id()]);
        text
    }

    /// DEL, after which nothing is left.
    #[track_caller]
    fn end(&self, container: &Container) {
        self.ok(&["del", "net", container.path(), "--id", container.id()]);
        for kind in ["veth", "ifb"] {
            let left = self.node.links_of_kind(kind);
            assert!(left.iter().all(|link| link == "uplink"), "{left:?}");
        }
        assert_eq!(self.node.leases("net"), Vec::<String>::new());
        assert_eq!(std::fs::read_dir(self.path("cache/results")).unwrap().count(), 0);
        let rules = self.node.nft();
        assert!(!rules.contains("elements") && !rules.contains("10.1.0."), "{rules}");
    }
}

/// Links and their flags, routes, queues, rules and what is kept, a line each.
fn state(site: &Site, container: &Container) -> BTreeSet<String> {
    let kept = site.path(&format!("cache/results/net-{}-eth0", container.id()));
    let mut all =
        vec![site.node.run("tc qdisc show"), std::fs::read_to_string(kept).unwrap(), site.node.nft()];
    for netns in [&*site.node, container] {
        all.extend(
            ["ip -o link show", "bridge -o -d link show", "ip route show table all"]
                .map(|line| netns.run(line)),
        );
    }
    // The kernel adds those of a link itself when that gets a carrier, a little later.
    let own = |line: &&str| !line.contains("fe80:") && !line.contains("ff00:");
    all.iter().flat_map(|text| text.lines()).filter(own).map(|line| line.trim().to_owned()).collect()
}

#[track_caller]
fn assert_restored(what: &str, before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let added: Vec<_> = after.difference(before).collect();
    let gone: Vec<_> = before.difference(after).collect();
    assert!(added.is_empty() && gone.is_empty(), "{what}\nadded: {added:#?}\ngone: {gone:#?}");
}

fn link(netns: &Netns, name: &str) -> Value {
    netns.json(&format!("ip -d -j link show dev {name}"))[0].clone()
}

/// The host's end of a container's veth pair, from the result of ADD.
fn host_end(result: &Value) -> String {
    let interfaces = result["interfaces"].as_array().unwrap();
    let names = interfaces.iter().map(|i| i["name"].as_str().unwrap());
    names.into_iter().find(|name| name.starts_with("veth")).unwrap().to_owned()
}

fn portmap() -> Value {
    json!({"type": "portmap", "capabilities": {"portMappings": true}})
}

#[test]
fn mtu_flags_and_spoof_check_follow_the_configuration() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let container = site.node.container();
    let result = site.add(&container, &[]);
    let end = host_end(&result);
    site.rewrite(
        json!({"mtu": 1400, "hairpinMode": true, "portIsolation": true, "macspoofchk": true, "ipMasq": true}),
        &[],
    );
    let text = site.settles(&container, &[]);
    for line in [
        "# container-0 eth0",
        "# bridge mtu: not set -> 1400",
        "# bridge hairpinMode: not set -> true",
        &format!("ip link set dev {end} mtu 1400"),
        "eth0 mtu 1400",
        "hairpin on isolated on",
        "nft add chain bridge nat PREROUTING",
        "nft create element ip cni-all masqueraded",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(
        (link(&site.node, &end)["mtu"].clone(), link(&container, "eth0")["mtu"].clone()),
        (1400.into(), 1400.into())
    );
    let port = &link(&site.node, &end)["linkinfo"]["info_slave_data"];
    assert_eq!((&port["hairpin"], &port["isolated"]), (&json!(true), &json!(true)));
    let kept = site.kept(&container);
    let mtus: Vec<&Value> =
        kept["result"]["interfaces"].as_array().unwrap().iter().map(|i| &i["mtu"]).collect();
    assert_eq!(mtus[1..], [&json!(1400), &json!(1400)]);

    site.rewrite(json!({"promiscMode": true, "ipMasq": true, "ipMasqBackend": "iptables"}), &[]);
    site.settles(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1500);
    let port = &link(&site.node, &end)["linkinfo"]["info_slave_data"];
    assert_eq!((&port["hairpin"], &port["isolated"]), (&json!(false), &json!(false)));
    assert!(link(&site.node, "cni0")["flags"].to_string().contains("PROMISC"));
    let rules = site.node.nft();
    assert!(rules.contains("POSTROUTING") && !rules.contains("masqueraded { 10"), "{rules}");
    assert!(!rules.contains("cni-br-iface"), "{rules}");

    site.rewrite(json!({}), &[]);
    site.settles(&container, &[]);
    assert!(!link(&site.node, "cni0")["flags"].to_string().contains("PROMISC"));
    assert!(!site.node.nft().contains("10.1.0.2"));
    site.end(&container);
}

#[test]
fn masquerading_that_is_turned_on_shows_the_hosts_address() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let outside = site.node.outside();
    let container = site.node.container();
    site.add(&container, &[]);
    assert_eq!(container.datagram_seen_by(&outside, Outside::V4).unwrap().to_string(), "10.1.0.2");
    site.rewrite(json!({"ipMasq": true}), &[]);
    site.settles(&container, &[]);
    assert_eq!(container.datagram_seen_by(&outside, Outside::V4).unwrap().to_string(), Outside::NODE_V4);
    site.rewrite(json!({"ipMasq": true, "ipMasqExempt": ["203.0.113.0/24"]}), &[]);
    let text = site.settles(&container, &[]);
    assert!(text.contains("ip daddr 203.0.113.0/24 return"), "{text}");
    assert_eq!(container.datagram_seen_by(&outside, Outside::V4).unwrap().to_string(), "10.1.0.2");
    site.rewrite(json!({"ipMasq": true, "ipMasqExempt": ["203.0.113"]}), &[]);
    site.refused(&container, &[]).err().names(&["ipMasqExempt[0]", "\"203.0.113\" is not a network"]);
    site.end(&container);
}

#[test]
fn routes_and_name_servers_change_without_the_address() {
    require_netns!();
    for kind in ["bridge", "ptp"] {
        let site = Site::new(json!([{"type": "loopback"}]));
        let configure = |routes: Value, dns: Value| {
            let mut main = bridge_config(&site.node);
            main["type"] = json!(kind);
            main["ipam"]["routes"] = routes;
            main["dns"] = dns;
            site.configure(json!([main]));
        };
        let container = site.node.container();
        configure(
            json!([{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16"}]),
            json!({"nameservers": ["10.1.0.1"]}),
        );
        let before = site.add(&container, &[]);
        configure(
            json!([{"dst": "0.0.0.0/0"}, {"dst": "10.9.0.0/16", "mtu": 1300}, {"dst": "10.8.1.0/24"}]),
            json!({"nameservers": ["10.1.0.9"], "search": ["example"]}),
        );
        let text = site.settles(&container, &[]);
        assert!(text.contains("ip route add 10.9.0.0/16 via 10.1.0.1 dev eth0 mtu 1300"), "{text}");
        assert!(text.contains("ip route del 10.8.0.0/16 via 10.1.0.1 dev eth0"), "{text}");
        assert!(
            text.contains(r#"# "#) && text.contains(r#"dns.nameservers: ["10.1.0.1"] -> ["10.1.0.9"]"#),
            "{text}"
        );
        let routes = container.run("ip route show");
        assert!(
            routes.contains("default via 10.1.0.1")
                && routes.contains("10.9.0.0/16 via 10.1.0.1 dev eth0 mtu 1300"),
            "{routes}"
        );
        assert!(!routes.contains("10.8.0.0/16") && routes.contains("10.8.1.0/24"), "{routes}");
        let kept = site.kept(&container);
        assert_eq!(kept["result"]["dns"], json!({"nameservers": ["10.1.0.9"], "search": ["example"]}));
        assert_eq!(kept["result"]["ips"], before["ips"]);
        assert_eq!(kept["result"]["routes"].as_array().unwrap().len(), 3);

        // A route that is different is replaced: there is no moment without one.
        configure(json!([{"dst": "0.0.0.0/0", "mtu": 1200}]), json!({}));
        let text = site.settles(&container, &[]);
        assert!(text.contains("ip route replace default via 10.1.0.1 dev eth0 mtu 1200"), "{text}");
        assert_eq!(site.kept(&container)["result"]["dns"], Value::Null, "what the IPAM plugin said");
        site.end(&container);
    }
}

#[test]
fn a_default_route_comes_and_goes_with_is_default_gateway() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let ipam = |site: &Site| with(bridge_config(&site.node)["ipam"].clone(), json!({"routes": []}));
    let keys = |site: &Site, on: bool| json!({"isDefaultGateway": on, "ipam": ipam(site)});
    site.rewrite(keys(&site, false), &[]);
    let container = site.node.container();
    site.add(&container, &[]);
    assert!(!container.run("ip route show").contains("default"));
    site.rewrite(keys(&site, true), &[]);
    site.settles(&container, &[]);
    assert!(container.run("ip route show").contains("default via 10.1.0.1"));
    site.rewrite(keys(&site, false), &[]);
    site.settles(&container, &[]);
    assert!(!container.run("ip route show").contains("default"));
    site.end(&container);
}

fn has_ifb() -> bool {
    Node::new().try_run("ip link add probe type ifb").status.success()
}

/// The rates of the `tbf` queues of all links, bytes per second, by link.
fn rates(netns: &Netns) -> Vec<(String, u64)> {
    let shown = netns.json("tc -j qdisc show");
    let all = shown.as_array().unwrap().iter().filter(|qdisc| qdisc["kind"] == "tbf");
    let mut rates: Vec<(String, u64)> = all
        .map(|qdisc| (qdisc["dev"].as_str().unwrap().to_owned(), qdisc["options"]["rate"].as_u64().unwrap()))
        .collect();
    rates.sort();
    rates
}

#[test]
fn limits_change_in_place_and_come_and_go() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    if !has_ifb() {
        return crate::support::skip("this kernel has no ifb");
    }
    let limits = |to: u64, from: u64| json!({"type": "bandwidth", "ingressRate": to, "ingressBurst": 80_000, "egressRate": from, "egressBurst": 80_000});
    site.rewrite(json!({}), &[limits(8_000_000, 16_000_000)]);
    let container = site.node.container();
    let end = host_end(&site.add(&container, &[]));
    let ifb = site.node.links_of_kind("ifb").pop().unwrap();
    let index = link(&site.node, &ifb)["ifindex"].clone();
    assert_eq!(rates(&site.node), [(ifb.clone(), 2_000_000), (end.clone(), 1_000_000)]);

    site.rewrite(json!({}), &[limits(8_000_000, 32_000_000)]);
    let text = site.settles(&container, &[]);
    assert!(text.contains("# bandwidth egressRate: 16000000 -> 32000000"), "{text}");
    assert!(
        text.contains(&format!("tc qdisc replace dev {ifb} root handle 1: tbf rate 32000000bit")),
        "{text}"
    );
    assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 1, "{text}");
    assert_eq!(rates(&site.node), [(ifb.clone(), 4_000_000), (end.clone(), 1_000_000)]);
    assert_eq!(link(&site.node, &ifb)["ifindex"], index, "the same link");

    // Networks that are not limited, then one less of them, with another MTU besides.
    for nets in [json!(["10.9.0.0/16", "10.8.0.0/16"]), json!(["10.9.0.0/16"])] {
        site.rewrite(
            json!({"mtu": 1400}),
            &[with(limits(8_000_000, 32_000_000), json!({"unshapedSubnets": nets}))],
        );
        site.settles(&container, &[]);
        let filters = site.node.run(&format!("tc filter show dev {end} parent 1:"));
        assert_eq!(filters.matches("match ").count(), nets.as_array().unwrap().len(), "{filters}");
        assert_eq!(link(&site.node, &ifb)["mtu"], 1400);
    }

    site.rewrite(json!({}), &[limits(0, 0)]);
    // A burst without rate is no limit, and refused.
    assert!(site.refused(&container, &[]).err().msg.contains("ingressBurst"));
    site.rewrite(
        json!({}),
        &[json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 80_000})],
    );
    site.settles(&container, &[]);
    assert_eq!(rates(&site.node), [(end.clone(), 1_000_000)]);
    assert_eq!(site.node.links_of_kind("ifb"), Vec::<String>::new());
    assert!(!site.kept(&container)["result"].to_string().contains(&ifb));

    // Out of the list, and into it.
    site.rewrite(json!({}), &[]);
    let text = site.settles(&container, &[]);
    assert!(text.contains(r#"# bandwidth type: "bandwidth" -> not in the list"#), "{text}");
    assert_eq!(rates(&site.node), []);
    site.rewrite(json!({}), &[limits(24_000_000, 40_000_000)]);
    site.settles(&container, &[]);
    assert_eq!(rates(&site.node), [(ifb.clone(), 5_000_000), (end.clone(), 3_000_000)]);
    assert!(site.kept(&container)["result"].to_string().contains(&ifb));
    site.rewrite(json!({}), &[]);
    site.settles(&container, &[]);
    assert!(!site.kept(&container)["result"].to_string().contains(&ifb));
    site.end(&container);
}

/// A connection from a client to a port, and the other end of it in the container.
fn connected(client: &Netns, port: u16, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let to: SocketAddr = (Outside::NODE_V4.parse::<IpAddr>().unwrap(), port).into();
    let near = client.connect(to, Duration::from_secs(2)).unwrap_or_else(|e| panic!("{to}: {e}"));
    let (far, _) = listener.accept().unwrap();
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(patience(Duration::from_secs(2)))).unwrap();
    }
    (near, far)
}

#[track_caller]
fn talk((near, far): &mut (TcpStream, TcpStream)) {
    let mut word = [0; 4];
    near.write_all(b"ping").unwrap();
    far.read_exact(&mut word).unwrap();
    far.write_all(b"pong").unwrap();
    near.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"pong");
}

fn refuses(client: &Netns, port: u16) -> bool {
    let to: SocketAddr = (Outside::NODE_V4.parse::<IpAddr>().unwrap(), port).into();
    client.connect(to, Duration::from_millis(500)).is_err()
}

#[test]
fn a_connection_outlives_updates_of_other_ports() {
    require_netns!();
    for backend in ["nftables", "iptables"] {
        let site = Site::bridged(json!({}), &[with(portmap(), json!({"backend": backend}))]);
        let outside = site.node.outside();
        let container = site.node.container();
        site.add(&container, &["-p", "8080:80"]);
        let listener = container.listen(IpAddr::from([0; 4]), 80);
        let mut open = connected(&outside, 8080, &listener);
        talk(&mut open);

        let text = site.settles(&container, &["-p", "8080:80", "-p", "8443:80"]);
        assert!(text.contains("# portmap runtimeConfig.portMappings: "), "{text}");
        assert!(text.contains("8443"), "{text}");
        assert!(backend == "iptables" || !text.contains("tcp . 8080"), "what stays is not touched: {text}");
        talk(&mut open);
        talk(&mut connected(&outside, 8443, &listener));

        // What is kept is the default from now on.
        assert!(site.update(&container, &[]).contains("nothing to change"));
        let kept = site.kept(&container)["capabilityArgs"]["portMappings"].clone();
        assert_eq!(kept.as_array().unwrap().len(), 2, "{kept}");

        // Another target for one, and one less.
        site.settles(&container, &["-p", "8080:80", "-p", "8444:81"]);
        talk(&mut open);
        assert!(refuses(&outside, 8443), "{backend}");
        let other = container.listen(IpAddr::from([0; 4]), 81);
        talk(&mut connected(&outside, 8444, &other));
        talk(&mut open);

        // The other layout: a connection stands, a new one gets through.
        let next = if backend == "nftables" { "iptables" } else { "nftables" };
        site.rewrite(json!({}), &[with(portmap(), json!({"backend": next}))]);
        site.settles(&container, &[]);
        talk(&mut open);
        talk(&mut connected(&outside, 8444, &other));
        let rules = site.node.nft();
        let (maps, chains) = (rules.contains("elements = { tcp . 8080"), rules.contains("chain CNI-DN-"));
        assert_eq!((maps, chains), (next == "nftables", next == "iptables"), "{rules}");

        // Nobody's snat chain is left when nobody needs it.
        site.rewrite(json!({}), &[with(portmap(), json!({"backend": "nftables", "snat": false}))]);
        site.settles(&container, &[]);
        assert!(!site.node.nft().contains("hairpin-net"), "{}", site.node.nft());

        site.settles(&container, &["--capability-args", r#"{"portMappings": null}"#]);
        assert!(refuses(&outside, 8080) && refuses(&outside, 8444));
        assert_eq!(site.kept(&container)["capabilityArgs"], Value::Null);
        talk(&mut open);
        drop(open);
        site.end(&container);
    }
}

#[test]
fn policies_of_the_firewall_follow_the_configuration() {
    require_netns!();
    let firewall = |keys: Value| with(json!({"type": "firewall", "backend": "iptables"}), keys);
    let site = Site::bridged(json!({}), &[]);
    let container = site.node.container();
    site.add(&container, &[]);
    site.rewrite(json!({}), &[firewall(json!({}))]);
    site.settles(&container, &[]);
    let rules = site.node.nft();
    assert!(rules.contains("CNI-FORWARD") && !rules.contains("CNI-ISOLATION"), "{rules}");
    site.rewrite(
        json!({}),
        &[firewall(json!({"ingressPolicy": "same-bridge", "iptablesAdminChainName": "MINE"}))],
    );
    let text = site.settles(&container, &[]);
    assert!(text.contains(r#"# firewall ingressPolicy: not set -> "same-bridge""#), "{text}");
    let rules = site.node.nft();
    assert!(rules.contains("iifname \"cni0\" oifname != \"cni0\"") && rules.contains("jump MINE"), "{rules}");
    site.rewrite(json!({}), &[firewall(json!({"ingressPolicy": "open"}))]);
    site.settles(&container, &[]);
    assert!(!site.node.nft().contains("iifname \"cni0\""), "{}", site.node.nft());
    site.rewrite(json!({}), &[]);
    site.settles(&container, &[]);
    assert!(!site.node.nft().contains("10.1.0.2"));
    site.end(&container);
}

#[test]
fn tuning_changes_values_and_gives_back_what_is_not_named_any_more() {
    require_netns!();
    let tuning = |site: &Site, keys: Value| {
        let data = site.path("tuning");
        with(json!({"type": "tuning", "dataDir": data, "sysctl": {"net.core.somaxconn": "500"}}), keys)
    };
    let site = Site::bridged(json!({}), &[]);
    site.rewrite(json!({}), &[tuning(&site, json!({"mtu": 1300}))]);
    let container = site.node.container();
    site.add(&container, &[]);
    let keys = json!({"sysctl": {"net.core.somaxconn": "600"}, "mtu": 1200, "txQLen": 7, "promisc": true});
    site.rewrite(json!({}), &[tuning(&site, keys.clone())]);
    let text = site.settles(&container, &[]);
    assert!(text.contains(r#"# tuning sysctl.net.core.somaxconn: "500" -> "600""#), "{text}");
    assert!(text.contains("sysctl -w net/core/somaxconn=600"), "{text}");
    let shown = link(&container, "eth0");
    assert_eq!(
        (&shown["mtu"], &shown["txqlen"], &shown["promiscuity"]),
        (&json!(1200), &json!(7), &json!(1))
    );
    assert_eq!(container.sysctl("net/core/somaxconn"), "600");

    // The MTU of the pair changes below; what is tuned stays tuned.
    site.rewrite(json!({"mtu": 1400}), &[tuning(&site, keys)]);
    site.settles(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1200);

    site.rewrite(json!({"mtu": 1400}), &[tuning(&site, json!({"sysctl": {"net.core.somaxconn": "600"}}))]);
    site.settles(&container, &[]);
    let shown = link(&container, "eth0");
    assert_eq!(
        (&shown["mtu"], &shown["txqlen"], &shown["promiscuity"]),
        (&json!(1500), &json!(1000), &json!(0))
    );
    site.rewrite(json!({"mtu": 1400}), &[tuning(&site, json!({"sysctl": {}}))]);
    let failure = site.refused(&container, &[]).err();
    assert_eq!(failure.code, 103);
    failure.names(&["net.core.somaxconn"]);
    site.end(&container);
}

#[test]
fn an_automatic_mtu_follows_the_default_route() {
    require_netns!();
    let site = Site::bridged(json!({"mtu": "auto"}), &[]);
    let _outside = site.node.outside();
    let container = site.node.container();
    site.add(&container, &[]);
    assert!(site.update(&container, &[]).contains("nothing to change"));
    site.node.run("ip link set uplink mtu 1380");
    let text = site.settles(&container, &[]);
    assert_eq!(text.matches("mtu 1380").count(), 2, "{text}");
    assert_eq!(link(&container, "eth0")["mtu"], 1380);
    site.end(&container);
}

#[test]
fn ipv6_addresses_routes_and_ports_stay() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let ipam = crate::dual_stack_config(&site.node)["ipam"].clone();
    let keys = |keys: Value| with(json!({"ipam": ipam}), keys);
    site.rewrite(keys(json!({"ipMasq": true})), &[portmap()]);
    let outside = site.node.outside();
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let listener = container.listen(IpAddr::from([0_u16; 8]), 80);
    let to: SocketAddr = (Outside::NODE_V6.parse::<IpAddr>().unwrap(), 8080).into();
    let near = outside.connect(to, Duration::from_secs(2)).unwrap();
    let mut open = (near, listener.accept().unwrap().0);
    talk(&mut open);
    site.rewrite(keys(json!({"ipMasq": true, "mtu": 1280, "hairpinMode": true})), &[portmap()]);
    site.settles(&container, &["-p", "8080:80", "-p", "[::]:8443:80"]);
    talk(&mut open);
    assert!(container.run("ip -6 route").contains("default via fd00:1::1"));
    assert!(container.run("ip -6 addr show dev eth0").contains("fd00:1::2/64"));
    site.rewrite(keys(json!({"mtu": 1279})), &[portmap()]);
    let failure = site.refused(&container, &[]).err();
    assert_eq!(failure.code, 103);
    failure.names(&["mtu: 1279 is less than the 1280 that IPv6 needs: fd00:1::2/64 would be lost"]);
    talk(&mut open);
    drop(open);
    site.end(&container);
}

#[test]
fn a_port_stays_in_hairpin_mode_for_mapped_ports() {
    require_netns!();
    let key = "net/bridge/bridge-nf-call-iptables";
    let site = Site::bridged(json!({"hairpinMode": true}), &[portmap()]);
    if !site.node.enter(|| Path::new("/proc/sys").join(key).exists()) {
        // Loaded, it would change what other tests are about: in the virtual machine it is not.
        if std::env::var("CNI_ALL_VM").is_ok() {
            return eprintln!("SKIP: br_netfilter is not loaded");
        }
        return crate::support::skip("this kernel has no br_netfilter");
    }
    site.node.set_sysctl(key, "1");
    let container = site.node.container();
    let end = host_end(&site.add(&container, &["-p", "8080:80"]));
    site.rewrite(json!({}), &[portmap()]);
    site.settles(&container, &[]);
    assert_eq!(link(&site.node, &end)["linkinfo"]["info_slave_data"]["hairpin"], true);
    site.end(&container);
}

for_each_kind!(a_link_on_a_master_gets_another_mtu_and_other_routes);

fn a_link_on_a_master_gets_another_mtu_and_other_routes(kind: &str) {
    let site = Site::new(json!([{"type": "loopback"}]));
    site.node.ip(&["link add up0 type veth peer name up1", "link set up0 up", "link set up1 up"]);
    let config = |keys: Value, routes: Value| {
        let address = json!({"address": "10.1.0.2/24", "gateway": "10.1.0.1"});
        let ipam = json!({"type": "static", "addresses": [address], "routes": routes});
        let main = json!({"type": kind, "master": "up0", "ipam": ipam});
        let main = if kind == "vlan" { with(main, json!({"vlanId": 5})) } else { main };
        site.configure(json!([with(main, keys)]));
    };
    config(json!({}), json!([]));
    let container = site.node.container();
    site.add(&container, &[]);
    config(json!({"dns": {"domain": "x"}}), json!([{"dst": "0.0.0.0/0"}]));
    site.settles(&container, &[]);
    assert!(container.run("ip route").contains("default via 10.1.0.1 dev eth0"));
    assert_eq!(site.kept(&container)["result"]["dns"]["domain"], "x");
    config(json!({"mtu": 1400}), json!([]));
    if kind == "ipvlan" {
        // It shares that of its master.
        site.refused(&container, &[]).err().names(&["ipvlan mtu: not set -> 1400"]);
        return;
    }
    site.settles(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1400);
    assert!(!container.run("ip route").contains("default"));
    config(json!({}), json!([]));
    site.settles(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1500);
    config(json!({"mtu": 1501}), json!([]));
    site.refused(&container, &[]).err().names(&["mtu: 1501 is not from 0 to 1500"]);
}

#[test]
fn what_the_ipam_plugin_tells_changes_too() {
    require_netns!();
    let site = Site::bridged(json!({}), &[]);
    let dns = |resolver: &str| site.node.workdir().file(resolver, format!("nameserver {resolver}\n"));
    let ipam = |resolver: &str| {
        with(bridge_config(&site.node)["ipam"].clone(), json!({"resolvConf": dns(resolver)}))
    };
    site.rewrite(json!({"ipam": ipam("192.0.2.1")}), &[]);
    let container = site.node.container();
    site.add(&container, &[]);
    site.rewrite(json!({"ipam": ipam("192.0.2.2")}), &[]);
    site.settles(&container, &[]);
    assert_eq!(site.kept(&container)["result"]["dns"], json!({"nameservers": ["192.0.2.2"]}));
    // sbr has moved the routes: where new ones belong is not known.
    let routes = with(ipam("192.0.2.2"), json!({"routes": []}));
    site.rewrite(json!({"ipam": ipam("192.0.2.2")}), &[]);
    site.end(&container);
    site.rewrite(json!({"ipam": ipam("192.0.2.2")}), &[json!({"type": "sbr"})]);
    site.add(&container, &[]);
    site.rewrite(json!({"ipam": routes, "mtu": 1400}), &[json!({"type": "sbr"})]);
    site.refused(&container, &[]).err().names(&["needs a new attachment: bridge ipam.routes: "]);
    site.rewrite(json!({"ipam": ipam("192.0.2.2"), "mtu": 1400}), &[json!({"type": "sbr"})]);
    site.update(&container, &[]);
    assert_eq!(link(&container, "eth0")["mtu"], 1400);
}

#[test]
fn an_update_that_is_killed_is_finished_by_the_next() {
    require_netns!();
    require_tool!("strace");
    let limits = |rate: u64| json!({"type": "bandwidth", "egressRate": rate, "egressBurst": 80_000});
    let site = Site::bridged(json!({}), &[portmap(), limits(8_000_000)]);
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let kept = site.kept(&container);
    let mut killed = 0;
    // Netlink messages are sent with one of these; the first half of them only asks what there is.
    for number in (1..).step_by(7) {
        let calls = "trace=sendmsg,sendto,rename,renameat";
        let inject = format!("inject=sendmsg,sendto,rename,renameat:signal=KILL:when={number}");
        let strace = ["-f", "-qq", "-o", "/dev/null", "-e", calls, "-e", &inject];
        site.rewrite(json!({"mtu": 1400, "ipMasq": true}), &[portmap(), limits(16_000_000)]);
        let words = ["update", "net", container.path(), "-p", "8081:80", "-p", "8082:80"];
        let outcome = site.call(&words).through("strace", &strace).run();
        if outcome.status == Some(0) {
            break;
        }
        killed += 1;
        assert_eq!(site.kept(&container), kept, "{outcome}");
        site.update(&container, &words[3..]);
        site.ok(&["check", "net", container.path(), "--id", container.id()]);
        site.rewrite(json!({}), &[portmap(), limits(8_000_000)]);
        site.update(&container, &["-p", "8080:80"]);
        assert_eq!(site.kept(&container), kept);
    }
    assert!(killed > 5, "{killed}");
    site.end(&container);
}

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

#[test]
fn a_failure_in_the_middle_restores_everything() {
    require_netns!();
    let limits = json!({"type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 80_000});
    let site = Site::bridged(json!({"hairpinMode": true}), &[portmap(), limits]);
    let container = site.node.container();
    site.add(&container, &["-p", "8080:80"]);
    let before = state(&site, &container);
    // The kernel refuses a gateway that no network has; MTU and flags are set before.
    let mut ipam = bridge_config(&site.node)["ipam"].clone();
    ipam["routes"] =
        json!([{"dst": "0.0.0.0/0"}, {"dst": "10.8.0.0/16"}, {"dst": "10.9.0.0/16", "gw": "192.0.2.1"}]);
    let limits = json!({"type": "bandwidth", "ingressRate": 16_000_000, "ingressBurst": 80_000});
    site.rewrite(json!({"mtu": 1400, "ipMasq": true, "ipam": ipam}), &[portmap(), limits.clone()]);
    let failure = site.refused(&container, &["-p", "8081:80"]).err();
    failure.names(&["plugin bridge (update)", "ip route add 10.9.0.0/16 via 192.0.2.1 dev eth0"]);
    assert!(!failure.details.contains("not taken back"), "{}", failure.details);
    assert_restored("", &before, &state(&site, &container));

    // Everything is done, and cannot be kept.
    require_tool!("strace");
    let good = json!({"mtu": 1400, "ipMasq": true, "macspoofchk": true, "dns": {"domain": "x"}});
    site.rewrite(good, &[portmap(), limits, json!({"type": "firewall", "backend": "iptables"})]);
    let words = ["update", "net", container.path(), "--json", "-p", "8081:80"];
    let inject = ["-f", "-qq", "-o", "/dev/null", "-e", "trace=rename", "-e", "inject=rename:error=EIO"];
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
