//! What `cni-all gc` leaves alone though no result of it was kept here: what has a namespace.

use serde_json::{Value, json};

use super::host::Host;
use super::ok;
use super::support::{Container, leases_in, require_netns};

fn ipam(host: &Host) -> Value {
    json!({"type": "host-local", "subnet": "10.1.0.0/24", "dataDir": host.path("leases")})
}

/// Attaches as another runtime does, which keeps its results elsewhere.
fn add(host: &Host, container: &Container, network: &str) {
    let cache = host.path("other-cache");
    let args = ["add", network, container.path(), "--id", container.id()];
    ok(host.command("cni-all", &[&args[..], &["--cache-dir", cache.to_str().unwrap()]].concat()));
}

fn gc(host: &Host, network: &str) {
    ok(host.command("cni-all", &["gc", network]));
}

#[test]
fn a_link_is_in_use_whatever_its_name_is_inside() {
    require_netns!();
    let host = Host::new();
    let list =
        json!({"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "bridge", "ipam": ipam(&host)}]});
    host.configure("10-net.conflist", &list.to_string());
    let (plain, renamed) = (host.node.container(), host.node.container());
    add(&host, &plain, "net");
    add(&host, &renamed, "net");
    renamed.ip(&["link set eth0 down", "link set eth0 name net0", "link set net0 up"]);
    gc(&host, "net");
    assert_eq!((plain.links(), renamed.links()), (vec!["eth0".to_owned()], vec!["net0".to_owned()]));
    assert_eq!(leases_in(&host.path("leases/net")), ["10.1.0.2", "10.1.0.3"]);
    // An interface's end that is in no container any more.
    drop(plain);
    host.node.eventually("what has no namespace is gone", |_| {
        gc(&host, "net");
        leases_in(&host.path("leases/net")) == ["10.1.0.3"]
    });
}

#[test]
fn a_device_that_was_moved_is_in_use_where_it_is() {
    require_netns!();
    let host = Host::new();
    host.node.ip(&["link add dev0 type veth peer name far0", "link add dev1 type veth peer name far1"]);
    let list = |device: &str, name: &str| {
        let plugin = json!({"type": "host-device", "device": device, "dataDir": host.path("moved")});
        json!({"cniVersion": "1.1.0", "name": name, "plugins": [plugin]}).to_string()
    };
    host.configure("10-net.conflist", &list("dev0", "net"));
    host.node.workdir().file("elsewhere.conflist", list("dev1", "other"));
    let elsewhere = host.path("elsewhere.conflist");
    let (first, second) = (host.node.container(), host.node.container());
    for (container, network) in [(&first, "net"), (&second, elsewhere.to_str().unwrap())] {
        add(&host, container, network);
        gc(&host, network);
        assert_eq!(container.links(), ["eth0"], "{network}");
    }
    // Back on the host, but not given back: nobody's.
    first.ip(&[&format!("link set eth0 netns {}", host.node.path())]);
    gc(&host, "net");
    assert_eq!(
        (host.node.links(), second.links().len()),
        (["dev0", "far0", "far1"].map(str::to_owned).to_vec(), 1)
    );
}

#[test]
fn an_address_is_in_use_of_a_network_that_is_not_among_the_configured() {
    require_netns!();
    let host = Host::new();
    let list =
        json!({"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "tap", "ipam": ipam(&host)}]});
    host.node.workdir().file("elsewhere.conflist", list.to_string());
    let file = host.path("elsewhere.conflist");
    let container = host.node.container();
    add(&host, &container, file.to_str().unwrap());
    gc(&host, file.to_str().unwrap());
    assert_eq!(leases_in(&host.path("leases/net")), ["10.1.0.2"]);
}
