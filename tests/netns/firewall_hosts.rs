//! firewall under the rule sets of other programs, written as those write them: containers reach the world.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::firewall::{Chained, config, listed};
use crate::support::{Container, Node, Outside, require_netns, require_tool};
use crate::{dual_stack_config, with};

/// `iptables -P FORWARD DROP`, as iptables-nft-restore reads it.
const PLAIN: &str = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n";

/// Docker 27, one network (`docker run` with a published port would add to DOCKER).
const DOCKER: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
";

/// Docker 28, which moved its rules of FORWARD into chains of its own.
const DOCKER_28: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i docker0 -o docker0 -j DROP
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
";

/// ufw 0.36 after `ufw enable`, chains of FORWARD only (`ufw-` is `ufw6-` for IPv6).
const UFW: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-after-forward - [0:0]
:ufw-after-logging-forward - [0:0]
:ufw-before-forward - [0:0]
:ufw-before-logging-forward - [0:0]
:ufw-reject-forward - [0:0]
:ufw-skip-to-policy-forward - [0:0]
:ufw-track-forward - [0:0]
:ufw-user-forward - [0:0]
-A FORWARD -j ufw-before-logging-forward
-A FORWARD -j ufw-before-forward
-A FORWARD -j ufw-after-forward
-A FORWARD -j ufw-after-logging-forward
-A FORWARD -j ufw-reject-forward
-A FORWARD -j ufw-track-forward
-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-forward -j ufw-user-forward
-A ufw-skip-to-policy-forward -j DROP
COMMIT
";

/// The forward chain of firewalld 1.3 (nftables backend), with zone public on the uplink and `trusted` for these sources.
fn firewalld(sources: &[&str]) -> String {
    let mut text = "table inet firewalld {
chain filter_FWD_trusted { accept; }
chain filter_FWD_public { }
chain filter_FORWARD_ZONES {
"
    .to_owned();
    for source in sources {
        let family = if source.contains(':') { "ip6" } else { "ip" };
        text.push_str(&format!("{family} saddr {source} goto filter_FWD_trusted\n"));
    }
    text.push_str(
        "goto filter_FWD_public
}
chain filter_FORWARD {
type filter hook forward priority filter + 10; policy accept;
ct state { established, related } accept
ct status dnat accept
iifname \"lo\" accept
ct state invalid drop
jump filter_FORWARD_ZONES
reject with icmpx admin-prohibited
}
}
",
    );
    text
}

/// Gives a program its standard input.
pub fn feed(node: &Node, line: &str, text: &str) {
    let mut child = node.command(line).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn restore(node: &Node, rules: &str) {
    feed(node, "iptables-nft-restore", rules);
    feed(node, "ip6tables-nft-restore", &rules.replace("ufw-", "ufw6-"));
}

/// A bridge with masquerading, so that the outside can answer.
pub fn bridge(node: &Node) -> Value {
    with(dual_stack_config(node), json!({"ipMasq": true}))
}

/// Asserts that a container reaches the outside, over both families, or does not.
#[track_caller]
pub fn assert_reaches(container: &Container, outside: &Outside, expected: bool, what: &str) {
    for to in [Outside::V4, Outside::V6] {
        match expected {
            true => drop(container.seen_by(outside, to).unwrap_or_else(|e| panic!("{what}: {to}: {e}"))),
            false => assert!(!container.pings_within(to, "0.3"), "{what}: {to} answers"),
        }
    }
}

#[test]
fn containers_reach_the_world_where_forward_drops() {
    require_netns!();
    require_tool!("iptables-nft");
    for (name, rules) in [("plain", PLAIN), ("Docker 27", DOCKER), ("Docker 28", DOCKER_28), ("ufw", UFW)] {
        let node = Node::new();
        let outside = node.outside();
        restore(&node, rules);
        let (without, container) = (node.container(), node.container());
        node.attach(&without, "eth0", &bridge(&node));
        assert_reaches(&without, &outside, false, name);
        let before = listed(&node);
        let chained = Chained::new(&node, &container, &bridge(&node), &config(json!({})));
        assert_reaches(&container, &outside, true, name);
        let during = listed(&node);
        assert!(before.iter().all(|line| during.contains(line)), "{name}: {during:#?}");
        // New connections from outside are not this plugin's business.
        node.ip(&["route add 192.0.2.0/24 dev uplink"]);
        outside.ip(&["route add 10.1.0.0/24 via 203.0.113.2"]);
        assert!(!outside.pings_within(&chained.firewall.ip(0), "0.3"), "{name}");
        chained.del();
    }
}

/// The order of start does not matter: Docker puts its own rules in front, and those of others stay.
#[test]
fn containers_reach_the_world_when_docker_starts_after_them() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    let outside = node.outside();
    let container = node.container();
    let chained = Chained::new(&node, &container, &bridge(&node), &config(json!({})));
    let added: String =
        DOCKER.lines().filter(|line| !line.starts_with(":INPUT")).fold(String::new(), |text, line| {
            text + &line.replace("-A FORWARD -j DOCKER-", "-I FORWARD -j DOCKER-") + "\n"
        });
    feed(&node, "iptables-nft-restore --noflush", &added);
    feed(&node, "ip6tables-nft-restore --noflush", &added);
    assert_reaches(&container, &outside, true, "accepted");
    chained.firewall.check();
    chained.del();
}

/// As Nomad runs its bridge networks: it fills the administrators' chain itself, and parses it later.
#[test]
fn nomads_list_lets_mapped_ports_in_where_forward_drops() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    let outside = node.outside();
    restore(&node, DOCKER);
    node.run("iptables-nft -N NOMAD-ADMIN");
    node.run("iptables-nft -A NOMAD-ADMIN -o nomad -d 10.1.0.0/24 -j ACCEPT");
    let container = node.container();
    let list = |plugin: Value| with(json!({"cniVersion": "0.4.0", "name": "nomad"}), plugin);
    node.attach(&container, "lo", &list(json!({"type": "loopback"})));
    let ipam = json!({
        "type": "host-local", "dataDir": node.data_dir(), "ranges": [[{"subnet": "10.1.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    });
    let bridge = list(json!({
        "type": "bridge", "bridge": "nomad", "ipMasq": true, "isGateway": true, "forceAddress": true, "hairpinMode": false,
        "ipam": ipam,
    }));
    let firewall =
        list(json!({"type": "firewall", "backend": "iptables", "iptablesAdminChainName": "NOMAD-ADMIN"}));
    let chained = Chained::new(&node, &container, &bridge, &firewall);
    let portmap = list(json!({
        "type": "portmap", "capabilities": {"portMappings": true}, "snat": true,
        "runtimeConfig": {"portMappings": [{"hostPort": 20001, "containerPort": 8080, "protocol": "tcp"}]},
        "prevResult": chained.firewall.result,
    }));
    let portmap = node.attach(&container, "eth0", &portmap);
    container.seen_by(&outside, Outside::V4).unwrap();
    let listener = container.listen([0, 0, 0, 0], 8080);
    let limit = std::time::Duration::from_secs(2);
    let near = outside.connect((Outside::NODE_V4.parse::<std::net::IpAddr>().unwrap(), 20001).into(), limit);
    near.unwrap_or_else(|e| panic!("{e}: {}", node.nft()));
    drop(listener);
    let rules = node.run("iptables-nft -S");
    let first = rules.lines().find(|line| line.starts_with("-A CNI-FORWARD")).unwrap();
    assert!(first.ends_with("-j NOMAD-ADMIN"), "{rules}");
    for attachment in [&portmap, &chained.firewall, &chained.bridge] {
        attachment.check();
    }
    for attachment in [&portmap, &chained.firewall, &chained.bridge] {
        attachment.del();
    }
    let rules = node.run("iptables-nft -S");
    assert!(
        rules.contains("-A NOMAD-ADMIN -d 10.1.0.0/24 -o nomad -j ACCEPT") && !rules.contains("10.1.0.2"),
        "{rules}"
    );
}

/// What no rule in FORWARD can do: an accept there does not overrule a drop of a later base chain.
#[test]
fn no_rule_in_forward_helps_against_the_drop_of_another_base_chain() {
    require_netns!();
    require_tool!("iptables-nft");
    let node = Node::new();
    let outside = node.outside();
    feed(&node, "nft -f -", &firewalld(&[]));
    let container = node.container();
    let chained = Chained::new(&node, &container, &bridge(&node), &config(json!({})));
    assert_reaches(&container, &outside, false, "rejected");
    node.run("nft delete table inet firewalld");
    feed(&node, "nft -f -", &firewalld(&[&chained.firewall.ip(0), &chained.firewall.ip(1)]));
    assert_reaches(&container, &outside, true, "accepted");
}
