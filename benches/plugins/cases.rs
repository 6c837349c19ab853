//! What is measured: each case runs its contenders in turns, so that a slow moment of the machine meets all of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::call::{Call, reap_orphans};
use crate::floor::{self, Floor, Shape};
use crate::node::{Netns, World, fill_leases};
use crate::stats::Samples;
use crate::{progress, warn};

/// Name of our contender in results.
pub const OURS: &str = "cni-all";
/// … with `CNI_ALL_WAIT=1`.
pub const OURS_WAITING: &str = "cni-all waiting";
/// … of the Go plugins.
pub const GO: &str = "go";
/// … of the kernel's own cost; DEL is detached.
pub const KERNEL: &str = "kernel";
/// … with a DEL that waits.
pub const KERNEL_WAITING: &str = "kernel waiting";

/// The times of one contender in one case.
pub struct Outcome {
    /// What was done.
    pub case: &'static str,
    /// Of how many: containers or leases; 0 where it does not matter.
    pub size: u32,
    /// Who did it.
    pub contender: &'static str,
    /// ADD, or the only thing that is done.
    pub add: Samples,
    /// DEL.
    pub del: Samples,
}

/// What is compared, and how long it may take.
pub struct Bench<'w> {
    /// The private world.
    pub world: &'w World,
    /// CNI_PATH of our executable.
    pub ours: PathBuf,
    /// CNI_PATH of the Go plugins, when they are installed.
    pub go: Option<PathBuf>,
    /// Rounds to aim at.
    pub rounds: usize,
    /// After this time a case ends early, though not before its third round.
    pub budget: Duration,
    /// Everything so far.
    pub outcomes: Vec<Outcome>,
    /// What went wrong.
    pub failures: Vec<String>,
}

/// Somebody who can do and undo a thing.
pub trait Contender {
    /// Does it; how long that took.
    fn add(&mut self) -> io::Result<Duration>;
    /// Undoes it.
    fn del(&mut self) -> io::Result<Duration>;
}

/// Who takes part in a case, by name.
pub type Contenders<'a> = Vec<(&'static str, Box<dyn Contender + 'a>)>;

impl Bench<'_> {
    /// Programs that do nothing: what starting a process costs.
    pub fn start(&mut self, netns: &Netns) -> io::Result<()> {
        let mut sides: Contenders<'_> = Vec::new();
        let compilers = [
            ("empty static glibc", "cc", &["-static"][..]),
            ("empty static musl", "musl-gcc", &["-static"]),
            ("empty dynamic", "cc", &[]),
        ];
        for (name, compiler, flags) in compilers {
            if let Some(program) = empty_program(self.world, name, compiler, flags)? {
                sides.push((name, Box::new(Started { netns, call: Call::bare(&program) })));
            }
        }
        for (name, bin) in [(Some(OURS), Some(&self.ours)), (Some(GO), self.go.as_ref())] {
            let (Some(name), Some(bin)) = (name, bin) else { continue };
            let call = Call::bare(&bin.join("bridge")).env("CNI_COMMAND", "VERSION");
            sides.push((name, Box::new(Started { netns, call })));
        }
        self.rounds *= 4;
        let done = self.measure("start", 0, sides);
        self.rounds /= 4;
        done
    }

    /// The plugin that every container needs.
    pub fn loopback(&mut self) -> io::Result<()> {
        let host = self.world.netns("host")?;
        let container = self.world.netns("container")?;
        let config = json!({"cniVersion": "1.0.0", "name": "lo", "type": "loopback"});
        let mut sides = self.plugins(&host, &container, |_| Ok(config.clone()))?;
        sides.push((KERNEL, Box::new(LoopbackFloor { host: &host, container: &container })));
        self.measure("loopback", 0, sides)
    }

    /// host-local called by itself, with this many leases in its directory.
    pub fn host_local(&mut self, leases: u32) -> io::Result<()> {
        let host = self.world.netns("host")?;
        let container = self.world.netns("container")?;
        let world = self.world;
        let sides = self.plugins(&host, &container, |name| {
            let data = world.data(&format!("{name}-{leases}"))?;
            fill_leases(&data.join("bench"), leases)?;
            Ok(json!({
                "cniVersion": "1.0.0", "name": "bench", "type": "host-local",
                "ipam": {"type": "host-local", "dataDir": data, "subnet": "10.64.0.0/16"},
            }))
        })?;
        self.measure("host-local", leases, sides)?;
        for name in [OURS, GO] {
            let _ = fs::remove_dir_all(self.world.data(&format!("{name}-{leases}"))?);
        }
        Ok(())
    }

    /// A network of containers: each of the sizes in turn is the number of those that are there already. The Go plugins
    /// take part up to `go_limit`.
    pub fn network(
        &mut self,
        case: &'static str,
        shape: Shape,
        masquerade: bool,
        sizes: &[u32],
        mut go_limit: u32,
    ) -> io::Result<()> {
        let world = self.world;
        let hosts = [world.netns("host-ours")?, world.netns("host-go")?, world.netns("host-kernel")?];
        let [ours, go, kernel] = &hosts;
        floor::prepare(kernel, shape, masquerade)?;
        let leases = world.data(&format!("{case}-kernel"))?;
        let config = |name: &str| -> io::Result<Value> {
            let kind = if shape == Shape::Bridge { "bridge" } else { "ptp" };
            Ok(json!({
                "cniVersion": "1.0.0", "name": "bench", "type": kind, "bridge": "cni0", "isGateway": true,
                "ipMasq": masquerade,
                "ipam": {
                    "type": "host-local", "dataDir": world.data(&format!("{case}-{name}"))?,
                    "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0"}],
                },
            }))
        };
        let container = world.netns("container")?;
        let mut present: Vec<Netns> = Vec::new();
        let mut count = 0;
        for size in sizes {
            for number in count..*size {
                progress(&format!("{case}: container {number}"));
                let id = format!("filler{number}");
                let fill = |name: &str, bin: &Path, host: &Netns| -> io::Result<Netns> {
                    let netns = world.netns(&format!("{name}-{number}"))?;
                    host.enter()?;
                    Call::plugin(bin, "ADD", &id, netns.path(), "eth0", &config(name)?).run()?;
                    Ok(netns)
                };
                present.push(fill(OURS, &self.ours, ours)?);
                let filled = self.go.as_ref().filter(|_| number < go_limit).map(|bin| fill(GO, bin, go));
                match filled {
                    None => {}
                    Some(Ok(netns)) => present.push(netns),
                    Some(Err(e)) => {
                        go_limit = 0;
                        self.failed(case, GO, &e);
                    }
                }
                let netns = world.netns(&format!("kernel-{number}"))?;
                kernel.enter()?;
                let number = number as u16;
                Floor::new(kernel, &netns, shape, masquerade, number, leases.clone()).add()?;
                present.push(netns);
            }
            count = *size;
            progress(&format!("{case}, {size}: waiting until new containers are silent"));
            if *size > 10 {
                quiet(Duration::from_secs(if *size > 100 { 40 } else { 5 }))?;
            }
            let mut sides: Contenders<'_> = Vec::new();
            sides.push((OURS, Box::new(Plugin::new(&self.ours, ours, &container, config(OURS)?))));
            if *size == sizes[0] {
                let waiting = Plugin::new(&self.ours, ours, &container, config(OURS)?).waiting();
                sides.push((OURS_WAITING, Box::new(waiting)));
            }
            if let Some(bin) = self.go.as_ref().filter(|_| *size <= go_limit) {
                sides.push((GO, Box::new(Plugin::new(bin, go, &container, config(GO)?))));
            }
            let floor =
                || Floor::new(kernel, &container, shape, masquerade, count as u16 + 1, leases.clone());
            sides.push((KERNEL, Box::new(NetworkFloor { host: kernel, floor: floor(), detached: true })));
            if *size == sizes[0] {
                let waiting = NetworkFloor { host: kernel, floor: floor(), detached: false };
                sides.push((KERNEL_WAITING, Box::new(waiting)));
            }
            self.measure(case, *size, sides)?;
        }
        drop(present);
        progress(&format!("{case}: waiting for the kernel to clean up"));
        hosts.iter().try_for_each(Netns::settle)
    }

    /// Our plugins and the Go plugins on the same namespaces, each with its own configuration.
    fn plugins<'a>(
        &self,
        host: &'a Netns,
        container: &'a Netns,
        config: impl Fn(&str) -> io::Result<Value>,
    ) -> io::Result<Contenders<'a>> {
        let mut sides: Contenders<'a> = Vec::new();
        for (name, bin) in [(OURS, Some(&self.ours)), (GO, self.go.as_ref())] {
            if let Some(bin) = bin {
                sides.push((name, Box::new(Plugin::new(bin, host, container, config(name)?))));
            }
        }
        Ok(sides)
    }

    /// Rounds in which every contender has its turn, after one that does not count.
    pub fn measure(&mut self, case: &'static str, size: u32, mut sides: Contenders<'_>) -> io::Result<()> {
        let mut samples = vec![(Samples::default(), Samples::default()); sides.len()];
        let started = Instant::now();
        let mut out = Vec::new();
        for round in 0..=self.rounds {
            if round > 3 && started.elapsed() > self.budget {
                break;
            }
            let of = if size == 0 { String::new() } else { format!(", {size}") };
            progress(&format!("{case}{of}: round {round} of {}", self.rounds));
            for (position, ((name, side), (add, del))) in sides.iter_mut().zip(&mut samples).enumerate() {
                if out.contains(&position) {
                    continue;
                }
                match side.add().and_then(|add| Ok((add, side.del()?))) {
                    Ok(_) if round == 0 => {}
                    Ok(times) => {
                        add.push(times.0);
                        del.push(times.1);
                    }
                    Err(e) => {
                        self.failed(&format!("{case}{of}"), name, &e);
                        out.push(position);
                    }
                }
            }
        }
        let outcomes = sides.iter().zip(samples);
        self.outcomes.extend(outcomes.map(|((contender, _), (add, del))| Outcome {
            case,
            size,
            contender,
            add,
            del,
        }));
        Ok(())
    }

    /// Says that a contender failed: it is left out of the rest of its case.
    fn failed(&mut self, case: &str, contender: &'static str, error: &io::Error) {
        self.failures.push(format!("{case}: {contender}: {error}"));
        warn(&format!("{case}: {contender}: {error}"));
    }

    /// Peak memory of ADD and of DEL on the network with masquerade, for our executable and the Go plugin.
    pub fn memory(&self) -> io::Result<Vec<(&'static str, u64)>> {
        let mut peaks = Vec::new();
        for (name, bin) in [(OURS, Some(&self.ours)), (GO, self.go.as_ref())] {
            let Some(bin) = bin else { continue };
            let host = self.world.netns("host")?;
            let container = self.world.netns("container")?;
            let config = json!({
                "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "cni0", "isGateway": true,
                "ipMasq": true,
                "ipam": {
                    "type": "host-local", "dataDir": self.world.data(&format!("memory-{name}"))?,
                    "subnet": "10.22.0.0/16", "routes": [{"dst": "0.0.0.0/0"}],
                },
            });
            let call = |command| Call::plugin(bin, command, "memory", container.path(), "eth0", &config);
            host.enter()?;
            peaks.push((name, call("ADD").peak_memory()?.max(call("DEL").peak_memory()?)));
        }
        Ok(peaks)
    }
}

/// A plugin with its attachment.
pub struct Plugin<'a> {
    bin: PathBuf,
    host: &'a Netns,
    container: &'a Netns,
    config: Value,
    wait: bool,
    result: Value,
}

impl<'a> Plugin<'a> {
    /// With this configuration.
    pub fn new(bin: &Path, host: &'a Netns, container: &'a Netns, config: Value) -> Plugin<'a> {
        Plugin { bin: bin.to_owned(), host, container, config, wait: false, result: Value::Null }
    }

    fn waiting(mut self) -> Plugin<'a> {
        self.wait = true;
        self
    }

    fn call(&self, command: &str, config: &Value) -> Call {
        let call = Call::plugin(&self.bin, command, "measured", self.container.path(), "eth0", config);
        if self.wait { call.env("CNI_ALL_WAIT", "1") } else { call }
    }
}

impl Contender for Plugin<'_> {
    fn add(&mut self) -> io::Result<Duration> {
        self.host.enter()?;
        let done = self.call("ADD", &self.config).run()?;
        self.result = serde_json::from_slice(&done.stdout)?;
        Ok(done.elapsed)
    }

    fn del(&mut self) -> io::Result<Duration> {
        self.host.enter()?;
        let mut config = self.config.clone();
        config["prevResult"] = self.result.clone();
        Ok(self.call("DEL", &config).run()?.elapsed)
    }
}

/// A program that is started for nothing.
struct Started<'a> {
    netns: &'a Netns,
    call: Call,
}

impl Contender for Started<'_> {
    fn add(&mut self) -> io::Result<Duration> {
        self.netns.enter()?;
        Ok(self.call.run()?.elapsed)
    }

    fn del(&mut self) -> io::Result<Duration> {
        self.add()
    }
}

struct LoopbackFloor<'a> {
    host: &'a Netns,
    container: &'a Netns,
}

impl LoopbackFloor<'_> {
    fn set(&self, up: bool) -> io::Result<Duration> {
        self.host.enter()?;
        let started = Instant::now();
        floor::loopback(self.host, self.container, up)?;
        Ok(started.elapsed())
    }
}

impl Contender for LoopbackFloor<'_> {
    fn add(&mut self) -> io::Result<Duration> {
        self.set(true)
    }

    fn del(&mut self) -> io::Result<Duration> {
        self.set(false)
    }
}

struct NetworkFloor<'a> {
    host: &'a Netns,
    floor: Floor<'a>,
    detached: bool,
}

impl Contender for NetworkFloor<'_> {
    fn add(&mut self) -> io::Result<Duration> {
        self.host.enter()?;
        let started = Instant::now();
        self.floor.add()?;
        Ok(started.elapsed())
    }

    fn del(&mut self) -> io::Result<Duration> {
        self.host.enter()?;
        let started = Instant::now();
        if !self.detached {
            self.floor.del()?;
            return Ok(started.elapsed());
        }
        let waiter = self.floor.del_detached()?;
        let elapsed = started.elapsed();
        waiter.join().map_err(|_| io::Error::other("the waiting thread panicked"))??;
        reap_orphans();
        Ok(elapsed)
    }
}

/// Waits until network interfaces receive little: new containers announce themselves over IPv6 for some seconds, and a
/// bridge passes each packet on to all of them.
fn quiet(limit: Duration) -> io::Result<()> {
    let received = || -> io::Result<u64> {
        let counts = fs::read_to_string("/proc/softirqs")?;
        let line = counts.lines().find_map(|line| line.trim_start().strip_prefix("NET_RX:"));
        Ok(line.unwrap_or_default().split_whitespace().filter_map(|n| n.parse::<u64>().ok()).sum())
    };
    let started = Instant::now();
    let mut silent = 0;
    // Router solicitations are 4 s apart (RFC 4861, RTR_SOLICITATION_INTERVAL).
    while silent < 9 && started.elapsed() < limit {
        let before = received()?;
        std::thread::sleep(Duration::from_millis(500));
        silent = if received()? - before < 1_000 { silent + 1 } else { 0 };
    }
    Ok(())
}

/// An empty C program; `None` when there is no C compiler (or no static C library).
fn empty_program(world: &World, name: &str, compiler: &str, flags: &[&str]) -> io::Result<Option<PathBuf>> {
    let (source, program) = (world.path("empty.c"), world.path(&name.replace(' ', "-")));
    fs::write(&source, "int main(void) { return 0; }\n")?;
    let compiled =
        Command::new(compiler).args(flags).arg("-O1").arg("-o").arg(&program).arg(&source).output();
    Ok(compiled.is_ok_and(|output| output.status.success()).then_some(program))
}
