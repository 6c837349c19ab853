//! Port mappings: what ADD and DEL cost with many containers, and how long connections take to stand through them.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

use crate::call::Call;
use crate::cases::{Bench, Contender, GO, OURS, Plugin};
use crate::node::Netns;
use crate::stats::Samples;
use crate::{progress, warn};

/// Mappings of each container in [`Bench::ports`].
const PER_CONTAINER: u32 = 3;
/// The first mapped port.
const FIRST_PORT: u32 = 10_000;
/// The address of the host that connections are made to.
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The container that the measured mapping leads to.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 22, 0, 2);
/// Two grace periods.
const GRACE: Duration = Duration::from_millis(40);
/// Connections of one layout before the next has its turn.
const IN_A_ROW: usize = 20;

/// How mappings are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// None: connections to the container itself, through the same host.
    Routed,
    /// Ours.
    Ours,
    /// The Go plugin's rules for its backend `iptables`.
    GoIptables,
    /// The Go plugin's rules for its backend `nftables` (releases from 1.6 on).
    GoNftables,
}

impl Layout {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Layout::Routed => "routed, no mapping",
            Layout::Ours => OURS,
            Layout::GoIptables => "go, iptables",
            Layout::GoNftables => "go, nftables",
        }
    }
}

/// The times until connections stood, with this many mappings.
pub struct Connections {
    /// How the mappings were written.
    pub layout: Layout,
    /// Of how many the measured one was the last.
    pub mappings: u32,
    /// The times.
    pub times: Samples,
}

/// The configuration of container number `number`, with `count` mappings.
fn config(container: &Netns, number: u32, count: u32) -> Value {
    let address = Ipv4Addr::from(u32::from(SERVER) + number);
    let mappings: Vec<Value> = (0..count)
        .map(|n| json!({"hostPort": FIRST_PORT + number * count + n, "containerPort": 80 + n, "protocol": "tcp"}))
        .collect();
    json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "portmap", "runtimeConfig": {"portMappings": mappings},
        "prevResult": {
            "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": container.path()}],
            "ips": [{"address": format!("{address}/16"), "interface": 0}],
        },
    })
}

impl Bench<'_> {
    /// ADD and DEL of a container with three mappings, where each of the sizes in turn is the number of such containers
    /// that are there already. The Go plugin takes part up to `go_limit`.
    pub fn ports(&mut self, sizes: &[u32], go_limit: u32) -> io::Result<()> {
        let hosts = [self.world.netns("host-ours")?, self.world.netns("host-go")?];
        let container = self.world.netns("container")?;
        for host in &hosts {
            run(host, "ip", &["link", "add", "cni0", "type", "bridge"])?;
            run(host, "ip", &["addr", "add", "10.22.0.1/16", "dev", "cni0"])?;
            run(host, "ip", &["link", "set", "cni0", "up"])?;
        }
        let [ours, go] = &hosts;
        let bins = [(OURS, Some(self.ours.clone()), ours), (GO, self.go.clone(), go)];
        let mut count = 0;
        for size in sizes {
            for number in count..*size {
                progress(&format!("portmap: container {number}"));
                for (name, bin, host) in &bins {
                    let Some(bin) = bin.as_ref().filter(|_| *name == OURS || number < go_limit) else {
                        continue;
                    };
                    host.enter()?;
                    let config = config(&container, number, PER_CONTAINER);
                    Call::plugin(bin, "ADD", &format!("filler{number}"), container.path(), "eth0", &config)
                        .run()?;
                }
            }
            count = *size;
            let mut sides: crate::cases::Contenders<'_> = Vec::new();
            for (name, bin, host) in &bins {
                let Some(bin) = bin.as_ref().filter(|_| *name == OURS || *size <= go_limit) else { continue };
                let config = config(&container, count, PER_CONTAINER);
                sides.push((name, Box::new(Settled(Plugin::new(bin, host, &container, config)))));
            }
            self.measure("portmap, 3 ports", *size, sides)?;
        }
        Ok(())
    }

    /// The time until a connection stands, through the last of this many mappings.
    pub fn connections(&mut self, sizes: &[u32]) -> io::Result<Vec<Connections>> {
        let mut all = Vec::new();
        for mappings in sizes {
            let mut paths = Vec::new();
            for layout in [Layout::Routed, Layout::Ours, Layout::GoIptables, Layout::GoNftables] {
                progress(&format!("connections: {}, {mappings} mappings", layout.name()));
                match Path::new(self, layout, *mappings) {
                    Ok(path) => paths.push((path, Samples::default())),
                    Err(e) => warn(&format!("connections: {}: {e}", layout.name())),
                }
            }
            for round in 0..self.rounds {
                progress(&format!("connections, {mappings} mappings: round {round}"));
                for (path, times) in &mut paths {
                    path.client.enter()?;
                    for number in 0..IN_A_ROW {
                        let time = path.connect()?;
                        // Caches are other layouts' after a change.
                        if number > 2 {
                            times.push(time);
                        }
                    }
                }
            }
            for (path, times) in paths {
                let layout = path.layout;
                path.finish()?;
                all.push(Connections { layout, mappings: *mappings, times });
            }
        }
        Ok(all)
    }
}

/// A plugin that the kernel has time to clean up behind, before it is called again: what nftables removes waits for a
/// grace period, and what comes next for that.
struct Settled<'a>(Plugin<'a>);

impl Contender for Settled<'_> {
    fn add(&mut self) -> io::Result<Duration> {
        std::thread::sleep(GRACE);
        self.0.add()
    }

    fn del(&mut self) -> io::Result<Duration> {
        std::thread::sleep(GRACE);
        self.0.del()
    }
}

/// A client, a host and a server: three namespaces.
struct Path {
    layout: Layout,
    client: Netns,
    _host: Netns,
    to: SocketAddr,
    stop: Arc<AtomicBool>,
    server: std::thread::JoinHandle<()>,
}

impl Path {
    fn new(bench: &Bench<'_>, layout: Layout, mappings: u32) -> io::Result<Path> {
        let name = |part: &str| format!("{part}-{layout:?}-{mappings}");
        let world = bench.world;
        let (client, host, server) =
            (world.netns(&name("client"))?, world.netns(&name("host"))?, world.netns(&name("server"))?);
        for (netns, link, address) in
            [(&client, "client", "192.0.2.2/24"), (&server, "server", "10.22.0.2/16")]
        {
            let path = netns.path().to_string_lossy().into_owned();
            run(&host, "ip", &["link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", &path])?;
            run(&host, "ip", &["link", "set", link, "up"])?;
            run(netns, "ip", &["addr", "add", address, "dev", "eth0"])?;
            run(netns, "ip", &["link", "set", "eth0", "up"])?;
        }
        run(&host, "ip", &["addr", "add", "192.0.2.1/24", "dev", "client"])?;
        run(&host, "ip", &["addr", "add", "10.22.0.1/16", "dev", "server"])?;
        run(&client, "ip", &["route", "add", "default", "via", "192.0.2.1"])?;
        run(&server, "ip", &["route", "add", "default", "via", "10.22.0.1"])?;
        host.enter()?;
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        match layout {
            Layout::Routed => {}
            Layout::Ours => {
                for number in (0..mappings).rev() {
                    let config = config(&server, number, 1);
                    let id = format!("filler{number}");
                    Call::plugin(&bench.ours, "ADD", &id, server.path(), "eth0", &config).run()?;
                }
            }
            Layout::GoIptables => {
                feed(&host, "iptables-nft-restore", &["--noflush"], &go_iptables(mappings))?
            }
            Layout::GoNftables => feed(&host, "nft", &["-f", "-"], &go_nftables(mappings))?,
        }
        server.enter()?;
        let listener = TcpListener::bind((SERVER, 80))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let server = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _ = listener.accept();
            }
        });
        let to = match layout {
            Layout::Routed => (SERVER, 80).into(),
            _ => (HOST, FIRST_PORT as u16).into(),
        };
        Ok(Path { layout, client, _host: host, to, stop, server })
    }

    /// The calling thread must be in the client's namespace.
    fn connect(&self) -> io::Result<Duration> {
        let started = Instant::now();
        let stream = TcpStream::connect(self.to)?;
        let elapsed = started.elapsed();
        // Reset instead of closed: no state is left that slows the next ones.
        setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
        Ok(elapsed)
    }

    fn finish(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.client.enter()?;
        self.connect()?;
        self.server.join().map_err(|_| io::Error::other("the server panicked"))
    }
}

/// The port and the address of each mapping of the Go layouts: the measured one is the last.
fn go_mappings(count: u32) -> impl Iterator<Item = (u32, u32, Ipv4Addr)> {
    (0..count).rev().map(|number| (number, FIRST_PORT + number, Ipv4Addr::from(u32::from(SERVER) + number)))
}

/// What the Go plugin's backend `iptables` makes of this many containers with a mapping each.
fn go_iptables(count: u32) -> String {
    let mut text = String::from("*nat\n:CNI-HOSTPORT-DNAT - [0:0]\n:CNI-HOSTPORT-SETMARK - [0:0]\n");
    text.push_str(":CNI-HOSTPORT-MASQ - [0:0]\n");
    for chain in ["PREROUTING", "OUTPUT"] {
        let _ = writeln!(text, "-A {chain} -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT");
    }
    text.push_str("-A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000\n");
    text.push_str("-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n");
    text.push_str("-A POSTROUTING -j CNI-HOSTPORT-MASQ\n");
    for (number, port, address) in go_mappings(count) {
        let chain = format!("CNI-DN-{number:021}");
        let mapped = format!("-A {chain} -p tcp --dport {port}");
        let _ = writeln!(text, ":{chain} - [0:0]");
        let _ = writeln!(text, "{mapped} -s 10.22.0.0/16 -j CNI-HOSTPORT-SETMARK");
        let _ = writeln!(text, "{mapped} -s 127.0.0.1 -j CNI-HOSTPORT-SETMARK");
        let _ = writeln!(text, "{mapped} -j DNAT --to-destination {address}:80");
        let comment = format!("-m comment --comment \"dnat name: \\\"bench\\\" id: \\\"filler{number}\\\"\"");
        let _ = writeln!(
            text,
            "-A CNI-HOSTPORT-DNAT -p tcp {comment} -m multiport --destination-ports {port} -j {chain}"
        );
    }
    text + "COMMIT\n"
}

/// What the Go plugin's backend `nftables` makes of them.
fn go_nftables(count: u32) -> String {
    let (mut ports, mut masquerading) = (String::new(), String::new());
    for (number, port, address) in go_mappings(count) {
        let _ = writeln!(ports, "tcp dport {port} dnat to {address}:80 comment \"filler{number}\"");
        for source in [address, Ipv4Addr::LOCALHOST] {
            let _ = writeln!(
                masquerading,
                "ip saddr {source} ip daddr {address} masquerade comment \"filler{number}\""
            );
        }
    }
    format!(
        "table ip cni_hostport {{\n\
         chain hostports {{\n{ports}}}\n\
         chain hostip_hostports {{\n}}\n\
         chain hostports_all {{\njump hostip_hostports\njump hostports\n}}\n\
         chain prerouting {{ type nat hook prerouting priority dstnat;\nfib daddr type local jump hostports_all\n}}\n\
         chain output {{ type nat hook output priority -100;\nfib daddr type local jump hostports_all\n}}\n\
         chain masquerading {{ type nat hook postrouting priority srcnat;\n{masquerading}}}\n\
         }}\n"
    )
}

fn run(netns: &Netns, program: &str, args: &[&str]) -> io::Result<()> {
    feed(netns, program, args, "")
}

/// Runs a program inside a namespace, with this text on standard input.
fn feed(netns: &Netns, program: &str, args: &[&str], text: &str) -> io::Result<()> {
    netns.enter()?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| io::Error::other(format!("{program}: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)))),
    }
}
