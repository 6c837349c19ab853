//! `cni-all update`: what is attached gets another configuration; seen in the kernel, by traffic, and in what is kept.
//! Tests are filed by what changes (`links`, `ports`, `meta`), by how the command is called (`command`), by who else had
//! a part in the attachment (`others`), and by what goes wrong (`failures`).

mod command;
mod failures;
mod links;
mod meta;
mod others;
mod ports;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Call, Container, Netns, Node, Outcome, Outside, executable, patience};
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
