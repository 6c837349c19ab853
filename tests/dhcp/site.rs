//! A node with a network that has a DHCP server, and a daemon of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Attachment, Container, Node, Outcome, patience};

/// A process that ends with the test.
pub struct Process(pub Child);

impl Process {
    /// SIGKILL, and waits.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A node whose bridge `cni0` has the address 10.7.0.1/24 (and fd07::1/64), on which servers listen.
pub struct Site {
    pub node: Node,
    daemon: Mutex<Option<Process>>,
    servers: Mutex<Vec<Process>>,
}

/// The servers' address.
pub const SERVER: &str = "10.7.0.1";

impl Site {
    /// No server, no daemon.
    pub fn new() -> Site {
        let node = Node::new();
        // Servers want a link-local address at once.
        node.set_sysctl("net/ipv6/conf/default/accept_dad", "0");
        node.ip(&["link add cni0 type bridge", "link set cni0 up", "addr add 10.7.0.1/24 dev cni0"]);
        // A bridge without ports has no carrier, and servers look for one.
        node.ip(&[
            "link add port0 type veth peer name port1",
            "link set port0 master cni0 up",
            "link set port1 up",
        ]);
        node.ip(&["addr add fd07::1/64 dev cni0 nodad"]);
        node.eventually("the bridge is up", |n| n.link("cni0")["operstate"] == "UP");
        Site { node, daemon: Mutex::default(), servers: Mutex::default() }
    }

    /// With [`Site::dnsmasq`] as the server, and a daemon.
    pub fn with_dnsmasq(more: &str) -> Site {
        let site = Site::new();
        site.dnsmasq(more);
        site.start_daemon("");
        site
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.node.workdir().root().join("dhcp.sock")
    }

    /// A file of the test's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.node.workdir().root().join(name)
    }

    /// Starts a server in the node's namespace.
    pub fn serve(&self, line: &str) {
        let log =
            std::fs::File::create(self.path(&format!("server{}.log", self.servers.lock().unwrap().len())))
                .unwrap();
        let mut command = self.node.command(line);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.servers.lock().unwrap().push(Process(command.spawn().unwrap()));
    }

    /// Ends the servers, by SIGKILL.
    pub fn stop_servers(&self) {
        self.servers.lock().unwrap().iter_mut().for_each(Process::kill);
    }

    /// What the servers said.
    pub fn server_log(&self) -> String {
        let logs = (0..self.servers.lock().unwrap().len()).map(|n| self.path(&format!("server{n}.log")));
        logs.map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    /// A dnsmasq that gives 10.7.0.50 to .99 for two minutes (the shortest it knows), with these more arguments.
    pub fn dnsmasq(&self, more: &str) {
        let leases = self.path("dnsmasq.leases");
        self.serve(&format!(
            "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --interface=cni0 --bind-dynamic --no-ping \
             --user=root --pid-file= --dhcp-leasefile={} --log-dhcp --log-facility=- --dhcp-authoritative \
             --dhcp-range=10.7.0.50,10.7.0.99,255.255.255.0,2m {more}",
            leases.display()
        ));
        self.eventually("dnsmasq is ready", |site| site.server_log().contains("DHCP, IP range"));
    }

    /// Starts the daemon, with these more flags, and waits until it listens.
    pub fn start_daemon(&self, flags: &str) {
        self.stop_daemon();
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let mut command = self.daemon_command(flags);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        *self.daemon.lock().unwrap() = Some(Process(command.spawn().unwrap()));
        self.eventually("the daemon listens", |site| {
            std::os::unix::net::UnixStream::connect(site.socket()).is_ok()
        });
    }

    /// A daemon to start in the node's namespace.
    pub fn daemon_command(&self, flags: &str) -> Command {
        let mut command = self.node.command("env");
        command.arg(self.node.workdir().bin().join("dhcp")).args(["daemon", "-socketpath"]);
        command.arg(self.socket()).args(flags.split_whitespace());
        command
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> u32 {
        self.daemon.lock().unwrap().as_ref().unwrap().0.id()
    }

    /// Sends the daemon a signal.
    pub fn signal_daemon(&self, signal: nix::sys::signal::Signal) {
        self.daemon.lock().unwrap().as_ref().unwrap().signal(signal);
    }

    /// SIGKILL.
    pub fn stop_daemon(&self) {
        *self.daemon.lock().unwrap() = None;
    }

    /// What the daemon said.
    pub fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// A bridge with addresses from DHCP, with these more keys in `ipam`.
    pub fn config(&self, more: Value) -> Value {
        let mut ipam = json!({"type": "dhcp", "daemonSocketPath": self.socket()});
        for (key, value) in more.as_object().unwrap() {
            ipam[key] = value.clone();
        }
        json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "cni0", "ipam": ipam})
    }

    /// ADD of a container on the bridge.
    #[track_caller]
    pub fn attach<'a>(&'a self, container: &'a Container, more: Value) -> Attachment<'a> {
        self.node.attach(container, "eth0", &self.config(more))
    }

    /// The dhcp plugin's own ADD for an attachment that there is: what it says.
    #[track_caller]
    pub fn attach_again(&self, attachment: &Attachment<'_>) -> Value {
        let mut config = attachment.config.clone();
        config["type"] = json!("dhcp");
        let mut result = attachment.call_with("ADD", &config).ok();
        // The bridge plugin has put these in.
        result["interfaces"] = attachment.result["interfaces"].clone();
        result["ips"][0]["interface"] = json!(2);
        result
    }

    /// ADD of a container on the bridge, whatever comes of it.
    pub fn add(&self, container: &Container, more: Value) -> Outcome {
        self.node.request("ADD", container, "eth0", &self.config(more)).run()
    }

    /// A veth pair: this port of the bridge, and `eth0` of the container, which is not up.
    pub fn connect(&self, port: &str, container: &Container) {
        self.node.ip(&[&format!(
            "link add {port} up master cni0 type veth peer name eth0 netns {}",
            container.path()
        )]);
    }

    /// A call of the dhcp plugin itself for an `eth0` that is there.
    pub fn dhcp(&self, command: &str, container: &Container, more: Value) -> Outcome {
        let mut config = self.config(more);
        config["type"] = json!("dhcp");
        self.node.request(command, container, "eth0", &config).run()
    }

    /// What `dhcp leases --json` prints.
    pub fn leases(&self) -> Vec<Value> {
        let output = Command::new(self.node.workdir().bin().join("dhcp"))
            .args(["leases", "--json", "--socket"])
            .arg(self.socket())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
    }

    /// Waits until a condition holds, ten seconds at most.
    #[track_caller]
    pub fn eventually(&self, what: &str, condition: impl Fn(&Site) -> bool) {
        self.within(10, what, condition);
    }

    /// Waits until a condition holds; longer on a slow machine.
    #[track_caller]
    pub fn within(&self, seconds: u64, what: &str, condition: impl Fn(&Site) -> bool) {
        let deadline = Instant::now() + patience(Duration::from_secs(seconds));
        while !condition(self) {
            let logs = || format!("daemon:\n{}\nserver:\n{}", self.daemon_log(), self.server_log());
            assert!(Instant::now() < deadline, "still not so after {seconds} s: {what}\n{}", logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The files of leases in a daemon's directory.
pub fn records(site: &Site) -> Vec<PathBuf> {
    let dir = site.socket().with_extension("leases");
    let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.filter(|p: &PathBuf| has_extension(p, "json")).collect()
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|e| e == extension)
}
