//! A throw-away node: a host namespace, containers, the outside world, and the calls a runtime makes on it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::{Call, Netns, Workdir};

/// A node: its host network namespace (as which it can be used), its [`Workdir`], its containers.
pub struct Node {
    host: Netns,
    workdir: Arc<Workdir>,
    containers: AtomicU32,
}

/// A container: an id and a network namespace (as which it can be used).
pub struct Container {
    netns: Netns,
    id: String,
    // Keeps the directory that the namespace is mounted in.
    _workdir: Arc<Workdir>,
}

/// The world outside: a namespace (as which it can be used) on the other end of the node's link `uplink`.
pub struct Outside {
    netns: Netns,
    _workdir: Arc<Workdir>,
}

impl Outside {
    /// Its own addresses; it knows no way to the node's containers.
    pub const V4: &'static str = "203.0.113.1";
    /// As [`Outside::V4`].
    pub const V6: &'static str = "2001:db8:1::1";
    /// The node's addresses in the same networks (/24 and /64).
    pub const NODE_V4: &'static str = "203.0.113.2";
    /// As [`Outside::NODE_V4`].
    pub const NODE_V6: &'static str = "2001:db8:1::2";
}

impl Node {
    /// A fresh node with nothing but `lo`, which is up.
    pub fn new() -> Node {
        let workdir = Workdir::new();
        let host = Netns::create(&workdir.root().join("netns/host")).unwrap();
        host.ip(&["link set lo up"]);
        // A new namespace takes this over from the machine's own.
        host.set_sysctl("net/ipv4/ip_forward", "0");
        Node { host, workdir, containers: AtomicU32::new(0) }
    }

    /// The node's directory: plugins, host-local's store, scratch files.
    pub fn workdir(&self) -> &Workdir {
        &self.workdir
    }

    /// For `"dataDir"` of host-local.
    pub fn data_dir(&self) -> String {
        self.workdir.data_dir()
    }

    /// A fresh container with a name and network namespace of its own.
    pub fn container(&self) -> Container {
        let number = self.containers.fetch_add(1, Ordering::Relaxed);
        self.container_named(&format!("container-{number}"))
    }

    /// A fresh container with this id.
    pub fn container_named(&self, id: &str) -> Container {
        let path = self.workdir.root().join(format!("netns/{id}"));
        let netns = Netns::create(&path).unwrap();
        Container { netns, id: id.to_owned(), _workdir: self.workdir.clone() }
    }

    /// The outside world, on `uplink`: see [`Outside`] for the addresses. The node's default routes point there.
    pub fn outside(&self) -> Outside {
        let netns = Netns::create(&self.workdir.root().join("netns/outside")).unwrap();
        for ns in [&self.host, &netns] {
            ns.set_sysctl("net/ipv6/conf/default/accept_dad", "0");
        }
        let peer = format!("link add uplink type veth peer name out0 netns {}", netns.path());
        self.host.ip(&[
            peer.as_str(),
            "addr add 203.0.113.2/24 dev uplink",
            "addr add 2001:db8:1::2/64 dev uplink nodad",
            "link set uplink up",
        ]);
        netns.ip(&[
            "link set lo up",
            "addr add 203.0.113.1/24 dev out0",
            "addr add 2001:db8:1::1/64 dev out0 nodad",
            "link set out0 up",
        ]);
        self.host.ip(&["route add default via 203.0.113.1", "route add default via 2001:db8:1::1"]);
        // On a busy machine the kernel takes a while to let a new link's own IPv6 address speak.
        let speaks = |ns: &Netns, link: &str| ns.address_objects(link).iter().all(|a| a["tentative"] != true);
        self.eventually("uplink has its addresses", |host| speaks(host, "uplink"));
        netns.eventually("out0 has its addresses", |outside| speaks(outside, "out0"));
        for address in [Outside::V4, Outside::V6] {
            self.eventually("the outside answers the node", |host| host.pings(address));
        }
        Outside { netns, _workdir: self.workdir.clone() }
    }

    /// A call of a plugin inside the node's host namespace: see [`Call::new`] for what is set.
    pub fn call(&self, plugin: &str) -> Call {
        self.workdir.call(plugin).inside(&self.host)
    }

    /// A call for one attachment of a container: the plugin is what the configuration's `type` names.
    pub fn request(&self, command: &str, container: &Container, ifname: &str, config: &Value) -> Call {
        self.workdir
            .request(command, config)
            .inside(&self.host)
            .env("CNI_CONTAINERID", container.id())
            .env("CNI_NETNS", container.path())
            .env("CNI_IFNAME", ifname)
    }

    /// ADD, which must succeed.
    #[track_caller]
    pub fn attach<'a>(&'a self, container: &'a Container, ifname: &str, config: &Value) -> Attachment<'a> {
        let result = self.request("ADD", container, ifname, config).ok();
        Attachment {
            node: self,
            _container: container,
            config: config.clone(),
            id: container.id().to_owned(),
            netns: container.path().to_owned(),
            ifname: ifname.to_owned(),
            result,
        }
    }

    /// The addresses that host-local's store holds for a network, sorted as text.
    pub fn leases(&self, network: &str) -> Vec<String> {
        self.workdir.leases(network)
    }
}

impl Container {
    /// The id for `CNI_CONTAINERID`.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Deref for Node {
    type Target = Netns;
    fn deref(&self) -> &Netns {
        &self.host
    }
}

impl Deref for Container {
    type Target = Netns;
    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Deref for Outside {
    type Target = Netns;
    fn deref(&self) -> &Netns {
        &self.netns
    }
}

/// What an ADD made: the request and its result, for the verbs that follow.
pub struct Attachment<'a> {
    node: &'a Node,
    // An attachment does not outlive its container: the kernel removes the links with the namespace.
    _container: &'a Container,
    /// The configuration that ADD was given.
    pub config: Value,
    /// `CNI_CONTAINERID`.
    pub id: String,
    /// `CNI_NETNS`.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// What ADD printed.
    pub result: Value,
}

impl Attachment<'_> {
    /// A call of another verb for the same attachment, with the result as `prevResult` (as runtimes do from 0.4.0 on).
    pub fn call(&self, command: &str) -> Call {
        let mut config = self.config.clone();
        if config["cniVersion"].as_str().is_some_and(|v| v >= "0.4.0") {
            config["prevResult"] = self.result.clone();
        }
        self.call_with(command, &config)
    }

    /// A call of another verb for the same attachment, with this configuration.
    pub fn call_with(&self, command: &str, config: &Value) -> Call {
        self.node
            .workdir
            .request(command, config)
            .inside(self.node)
            .env("CNI_CONTAINERID", &self.id)
            .env("CNI_NETNS", &self.netns)
            .env("CNI_IFNAME", &self.ifname)
    }

    /// CHECK, which must succeed.
    #[track_caller]
    pub fn check(&self) {
        self.call("CHECK").silent();
    }

    /// DEL, which must succeed.
    #[track_caller]
    pub fn del(&self) {
        self.call("DEL").silent();
    }

    /// The address of `ips[n]`, without its prefix length.
    #[track_caller]
    pub fn ip(&self, n: usize) -> String {
        let address = self.result["ips"][n]["address"].as_str();
        let address = address.unwrap_or_else(|| panic!("no ips[{n}] in {:#}", self.result));
        address.split('/').next().unwrap().to_owned()
    }

    /// The name of the host's end of the veth pair, from the result.
    #[track_caller]
    pub fn host_veth(&self) -> String {
        let interfaces = self.result["interfaces"].as_array().unwrap();
        let found =
            interfaces.iter().filter_map(|i| i["name"].as_str()).find(|name| name.starts_with("veth"));
        found.unwrap_or_else(|| panic!("no host veth in {:#}", self.result)).to_owned()
    }

    /// The MAC address of the container's interface, from the result.
    #[track_caller]
    pub fn mac(&self) -> String {
        let interfaces = self.result["interfaces"].as_array().unwrap();
        let own = interfaces.iter().find(|i| i["sandbox"] == json!(self.netns));
        own.and_then(|i| i["mac"].as_str())
            .unwrap_or_else(|| panic!("no mac in {:#}", self.result))
            .to_owned()
    }
}
