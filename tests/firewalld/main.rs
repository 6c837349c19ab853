//! firewall and firewalld: Debian's own, in a namespace of the test's, on a bus of the test's. A target of its own,
//! because it needs Python, a bus, and what `packaging/debian-unpacked` unpacks.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use support::{Call, Container, Node, Outside, require_netns, require_tool, skip};

/// Where `packaging/debian-unpacked` puts firewalld and what it needs, for `tests/run`.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/firewalld");

/// A configuration with some of its keys set anew.
fn with(config: Value, changes: Value) -> Value {
    let (mut config, Value::Object(changes)) = (config, changes) else { panic!("changes are an object") };
    for (key, value) in changes {
        config[&key] = value;
    }
    config
}

/// A bridge with masquerading, so that the outside can answer.
fn bridge(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true,
        "ipam": {
            "type": "host-local", "dataDir": node.data_dir(),
            "ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    })
}

/// Asserts that a container reaches the outside, over both families, or does not.
#[track_caller]
fn assert_reaches(container: &Container, outside: &Outside, expected: bool, what: &str) {
    for to in [Outside::V4, Outside::V6] {
        match expected {
            true => drop(container.seen_by(outside, to).unwrap_or_else(|e| panic!("{what}: {to}: {e}"))),
            false => assert!(!container.pings_within(to, "0.3"), "{what}: {to} answers"),
        }
    }
}

/// A message bus, and firewalld on it; both end on drop.
struct Services<'a> {
    node: &'a Node,
    bus: Child,
    firewalld: Option<Child>,
    address: String,
}

impl Drop for Services<'_> {
    fn drop(&mut self) {
        self.stop();
        let _ = self.bus.kill();
        let _ = self.bus.wait();
    }
}

/// Why there is no firewalld to test with.
fn missing() -> Option<&'static str> {
    (!Path::new(UNPACKED).join("usr/sbin/firewalld").exists())
        .then_some("firewalld is not unpacked (packaging/debian-unpacked, see tests/run)")
}

impl<'a> Services<'a> {
    fn start(node: &'a Node) -> Services<'a> {
        let socket = node.workdir().root().join("bus");
        let address = format!("unix:path={}", socket.display());
        let policy = "<policy context=\"default\"><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>\
                      <allow own=\"*\"/></policy>";
        let config = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
             <busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth>{policy}</busconfig>"
        );
        let config = node.workdir().file("bus.conf", config);
        let mut bus =
            node.command(&format!("dbus-daemon --nofork --nopidfile --config-file={}", config.display()));
        let bus = bus.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        node.eventually("the bus is there", |_| socket.exists());
        let mut services = Services { node, bus, firewalld: None, address };
        services.run();
        services
    }

    /// Starts firewalld and waits until it answers.
    fn run(&mut self) {
        let root = PathBuf::from(UNPACKED);
        let system = self.node.workdir().root().join("etc-firewalld");
        std::fs::create_dir_all(&system).unwrap();
        // A private /run, where firewalld keeps its temporary files.
        let script = format!(
            "#!/bin/sh\nmount -t tmpfs tmpfs /run\nexec /usr/bin/python3 {root}/usr/sbin/firewalld --nofork --nopid \
             --system-config={system} --default-config={root}/usr/lib/firewalld --log-file={system}/log\n",
            root = root.display(),
            system = system.display(),
        );
        let script = self.node.workdir().script("firewalld", &script);
        let mut command =
            self.node.command(&format!("unshare --mount --propagation private {}", script.display()));
        self.environment(&mut command);
        let log = std::fs::File::create(system.join("output")).unwrap();
        self.firewalld = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        let status = |node: &Node| {
            let config =
                json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall", "backend": "firewalld"});
            let call = node.call("firewall").command("STATUS").config(&config);
            call.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address).run().status == Some(0)
        };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !status(self.node) {
            let told = std::fs::read_to_string(system.join("output")).unwrap_or_default();
            assert!(std::time::Instant::now() < deadline, "firewalld does not start: {told}");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.firewalld.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn environment(&self, command: &mut Command) {
        let root = PathBuf::from(UNPACKED);
        command
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .env("PYTHONPATH", root.join("usr/lib/python3/dist-packages"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("GI_TYPELIB_PATH", root.join("usr/lib/x86_64-linux-gnu/girepository-1.0"));
    }

    /// What `firewall-cmd` answers, whether it succeeds or not.
    fn cmd(&self, arguments: &str) -> String {
        let program = Path::new(UNPACKED).join("usr/bin/firewall-cmd");
        let mut command = self.node.command(&format!("/usr/bin/python3 {} {arguments}", program.display()));
        self.environment(&mut command);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8_lossy(&text).trim().to_owned()
    }

    fn request(&self, command: &str, container: &Container, config: &Value) -> Call {
        let call = self.node.request(command, container, "eth0", config);
        call.env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
    }
}

fn config(changes: Value) -> Value {
    with(json!({"cniVersion": "1.1.0", "name": "net", "type": "firewall"}), changes)
}

/// ADD of the bridge plugin and then of firewall; the configuration of the latter, with prevResult.
fn attach(services: &Services, container: &Container, changes: Value) -> Value {
    let attached = services.node.attach(container, "eth0", &bridge(services.node));
    let config = with(config(changes), json!({"prevResult": attached.result}));
    services.request("ADD", container, &config).ok();
    config
}

macro_rules! require_firewalld {
    () => {
        require_netns!();
        require_tool!("dbus-daemon");
        if let Some(reason) = missing() {
            return skip(reason);
        }
    };
}

#[test]
fn containers_reach_the_world_through_firewalld() {
    require_firewalld!();
    let node = Node::new();
    let outside = node.outside();
    let services = Services::start(&node);
    // Within one zone firewalld forwards by itself.
    assert_eq!(services.cmd("--zone=external --add-interface=uplink"), "success");
    let (without, container) = (node.container(), node.container());
    node.attach(&without, "eth0", &bridge(&node));
    assert_reaches(&without, &outside, false, "without a source");

    let config = attach(&services, &container, json!({}));
    assert_reaches(&container, &outside, true, "as a source of zone trusted");
    assert_eq!(services.cmd("--get-zone-of-source=10.1.0.3/32"), "trusted");
    assert_eq!(services.cmd("--get-zone-of-source=fd00:1::3/128"), "trusted");
    assert!(!node.nft().contains("CNI-FORWARD"), "no rules beside firewalld's");
    services.request("CHECK", &container, &config).silent();
    // ADD again is fine, and moves to another zone when the configuration names one.
    services.request("ADD", &container, &config).ok();
    let moved = with(config.clone(), json!({"firewalldZone": "internal"}));
    services.request("CHECK", &container, &moved).fails(100).names(&["--zone=internal", "10.1.0.3/32"]);
    services.request("ADD", &container, &moved).ok();
    assert_eq!(services.cmd("--get-zone-of-source=10.1.0.3/32"), "internal");
    services.request("ADD", &container, &config).ok();

    // firewalld forgets at a reload; CHECK tells, ADD mends.
    assert_eq!(services.cmd("--reload"), "success");
    services.request("CHECK", &container, &config).fails(100).names(&["--add-source=10.1.0.3/32"]);
    services.request("ADD", &container, &config).ok();
    services.request("CHECK", &container, &config).silent();
}

#[test]
fn an_update_moves_between_zones_and_backends() {
    require_firewalld!();
    let node = Node::new();
    let services = Services::start(&node);
    let container = node.container_named("c1");
    let root = node.workdir().root();
    let configure = |firewall: Value| {
        let firewall = with(json!({"type": "firewall"}), firewall);
        let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [bridge(&node), firewall]});
        node.workdir().file("net.conflist", list.to_string());
    };
    let cni_all = |verb: &str| {
        let call = Call::new(&support::executable(), Path::new("/nonexistent")).bare().inside(&node);
        let call = call.env("DBUS_SYSTEM_BUS_ADDRESS", &services.address).arg(verb);
        let call = call
            .arg(root.join("net.conflist"))
            .arg(container.path())
            .arg("--cache-dir")
            .arg(root.join("cache"));
        let outcome = call.run();
        assert_eq!(outcome.status, Some(0), "{outcome}");
        outcome.text().to_owned()
    };
    let zone = || services.cmd("--get-zone-of-source=10.1.0.2/32");
    configure(json!({}));
    cni_all("add");
    assert_eq!(zone(), "trusted");
    for (keys, expected, rules) in [
        (json!({"firewalldZone": "internal"}), "internal", false),
        (json!({"backend": "iptables"}), "no zone", true),
        (json!({"backend": "firewalld", "firewalldZone": "internal"}), "internal", false),
        (json!({}), "trusted", false),
    ] {
        configure(keys.clone());
        let told = cni_all("update");
        assert!(!told.contains("nothing to change"), "{keys}: {told}");
        assert_eq!(zone(), expected, "{keys}: {told}");
        // firewalld's own rules name the address, too.
        let chain = node.try_run("nft list chain ip filter CNI-FORWARD").stdout;
        let chain = String::from_utf8_lossy(&chain);
        assert_eq!(chain.contains("10.1.0.2"), rules, "{keys}: {told}\n{chain}");
        assert!(cni_all("update").contains("nothing to change"), "{keys}");
        cni_all("check");
    }
    cni_all("del");
    assert_eq!(zone(), "no zone");
}

#[test]
fn forward_that_drops_beside_firewalld_gets_rules_as_well() {
    require_firewalld!();
    require_tool!("iptables-nft");
    let node = Node::new();
    let outside = node.outside();
    let services = Services::start(&node);
    for tool in ["iptables-nft", "ip6tables-nft"] {
        node.run(&format!("{tool} -P FORWARD DROP"));
    }
    let container = node.container();
    let config = attach(&services, &container, json!({}));
    assert_reaches(&container, &outside, true, "source and rules");
    services.request("CHECK", &container, &config).silent();
    node.run("iptables-nft -F CNI-FORWARD");
    services.request("CHECK", &container, &config).fails(100).names(&["CNI-ADMIN"]);
    services.request("DEL", &container, &config).silent();
    let listed = node.run("iptables-nft -S") + &node.run("ip6tables-nft -S");
    assert!(!listed.contains("10.1.0.2") && !listed.contains("fd00:1::2"), "{listed}");
}

#[test]
fn del_and_gc_remove_sources_without_prev_result() {
    require_firewalld!();
    let node = Node::new();
    let mut services = Services::start(&node);
    let (container, other) = (node.container_named("c1"), node.container_named("c2"));
    let config = attach(&services, &container, json!({"ingressPolicy": "isolated"}));
    let bare = with(self::config(json!({"firewalldZone": "dmz"})), json!({"prevResult": null}));
    services.request("DEL", &container, &bare).silent();
    assert_eq!(services.cmd("--get-zone-of-source=10.1.0.2/32"), "no zone");
    assert!(!node.nft().contains("\"cni0\""), "isolation goes with the last attachment: {}", node.nft());

    // The address is another container's by now: it stays a source.
    services.request("ADD", &container, &config).ok();
    services.request("ADD", &other, &config).ok();
    services.request("DEL", &container, &config).silent();
    assert_eq!(services.cmd("--get-zone-of-source=10.1.0.2/32"), "trusted");
    let gc = |valid: Value| {
        let config = with(self::config(json!({})), json!({"cni.dev/valid-attachments": valid}));
        let call = node.call("firewall").command("GC").config(&config);
        call.env("DBUS_SYSTEM_BUS_ADDRESS", &services.address).silent();
    };
    gc(json!([{"containerID": "c2", "ifname": "eth0"}]));
    assert_eq!(services.cmd("--get-zone-of-source=10.1.0.2/32"), "trusted");
    gc(json!([]));
    assert_eq!(services.cmd("--get-zone-of-source=10.1.0.2/32"), "no zone");

    // A Go plugin leaves no record: what prevResult names is removed from the zone, unless it is someone's.
    services.cmd("--zone=trusted --add-source=10.1.0.2/32");
    services.request("DEL", &container, &config).silent();
    assert_eq!(services.cmd("--get-zone-of-source=10.1.0.2/32"), "no zone");

    // firewalld is gone when DEL comes.
    services.request("ADD", &container, &config).ok();
    services.stop();
    services.request("DEL", &container, &config).silent();
    let status = |backend: &str| {
        let config = self::config(json!({"backend": backend}));
        let call = node.call("firewall").command("STATUS").config(&config);
        call.env("DBUS_SYSTEM_BUS_ADDRESS", &services.address)
    };
    status("firewalld").fails(50).names(&["firewalld is not running"]);
    status("").silent();
    let explicit = with(config, json!({"backend": "firewalld"}));
    services.request("ADD", &container, &explicit).fails(999).names(&["firewalld is not running"]);
}

#[test]
fn what_firewalld_refuses_is_named_and_taken_back() {
    require_firewalld!();
    let node = Node::new();
    let services = Services::start(&node);
    let container = node.container();
    let attached = node.attach(&container, "eth0", &bridge(&node));
    let prev = json!({"prevResult": attached.result});
    let config = |changes: Value| with(config(changes), prev.clone());
    let unknown = config(json!({"firewalldZone": "no-such-zone", "ingressPolicy": "isolated"}));
    services.request("ADD", &container, &unknown).fails(999).names(&[
        "firewall-cmd",
        "no-such-zone",
        "INVALID_ZONE",
    ]);
    // The IPv6 address is another's: the IPv4 one is taken back.
    services.cmd("--zone=dmz --add-source=fd00:1::2/128");
    services
        .request("ADD", &container, &config(json!({})))
        .fails(999)
        .names(&["fd00:1::2/128", "ZONE_CONFLICT"]);
    assert_eq!(services.cmd("--get-zone-of-source=10.1.0.2/32"), "no zone");
    assert_eq!(services.cmd("--get-zone-of-source=fd00:1::2/128"), "dmz");
    services.request("DEL", &container, &self::config(json!({}))).silent();
    assert_eq!(services.cmd("--get-zone-of-source=fd00:1::2/128"), "dmz");
}
