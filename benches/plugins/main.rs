//! `cargo bench`: what ADD and DEL cost, seen by a container runtime, against the Go plugins and against the kernel.
//!
//! Options stand after `--`: `cargo bench -- --quick`. Times are reported, never asserted. Everything happens in
//! namespaces and on a file system that go with this process.
#![allow(unsafe_code, clippy::print_stdout, clippy::print_stderr, clippy::exit)]

mod call;
mod cases;
mod floor;
mod netlink;
mod node;
mod ports;
mod report;
mod stats;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use argh::FromArgs;

use cases::Bench;
use floor::Shape;
use node::World;
use report::Report;

/// What ADD and DEL cost, against the Go plugins and against the kernel's own work.
#[derive(FromArgs)]
struct Options {
    /// the executable to measure (default: the one cargo built with the benchmark's profile)
    #[argh(option)]
    exe: Option<PathBuf>,
    /// where the Go plugins are (default: /usr/lib/cni; left out when they are not there)
    #[argh(option, default = "PathBuf::from(\"/usr/lib/cni\")")]
    go: PathBuf,
    /// keep leases in this directory, on a disk say (default: a file system in memory)
    #[argh(option)]
    dir: Option<PathBuf>,
    /// less than a minute: fewer rounds, growth to 100 containers with masquerade only
    #[argh(switch)]
    quick: bool,
    /// print JSON instead of a table
    #[argh(switch)]
    json: bool,
    /// cargo adds this; without it (`cargo test --benches`) nothing is measured
    #[argh(switch)]
    bench: bool,
    /// only cases whose name contains this
    #[argh(positional)]
    only: Option<String>,
}

fn main() {
    let options: Options = argh::from_env();
    if !options.bench && options.exe.is_none() && !options.quick {
        println!("nothing measured: run cargo bench");
        return;
    }
    let strict = std::env::var("CNI_ALL_STRICT").is_ok_and(|v| v == "1");
    let world = match World::enter(options.dir.as_deref()) {
        Ok(world) => world,
        Err(e) => {
            println!(
                "SKIP benchmark: namespaces cannot be made ({e}): run it as root or under unshare -Urnm"
            );
            std::process::exit(i32::from(strict));
        }
    };
    let measured = measure(&world, &options);
    drop(world);
    match measured {
        Ok(report) => {
            if options.json {
                println!("{:#}", report.json());
            } else {
                print!("{}", report.text());
            }
            std::process::exit(i32::from(!report.failures.is_empty()));
        }
        Err(e) => {
            eprintln!("benchmark: {e}");
            std::process::exit(1);
        }
    }
}

fn measure(world: &World, options: &Options) -> io::Result<Report> {
    let exe =
        options.exe.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_cni-all"))).canonicalize()?;
    let _ = nix::sys::prctl::set_child_subreaper(true);
    let go = options.go.join("bridge").is_file();
    let mut bench = Bench {
        world,
        ours: world.links("bin", |_| exe.clone())?,
        go: if go { Some(world.links("go", |name| options.go.join(name))?) } else { None },
        rounds: if options.quick { 15 } else { 60 },
        budget: Duration::from_secs(if options.quick { 4 } else { 20 }),
        outcomes: Vec::new(),
        failures: Vec::new(),
    };
    let wanted = |case: &str| options.only.as_ref().is_none_or(|only| case.contains(only.as_str()));

    bench.start(&world.netns("start")?)?;
    if wanted("loopback") {
        bench.loopback()?;
    }
    if wanted("host-local") {
        for leases in [10, 1_000, 60_000] {
            progress(&format!("host-local: writing {leases} leases"));
            bench.host_local(leases)?;
        }
    }
    let few: &[u32] = &[1];
    let growing: &[u32] = if options.quick { few } else { &[1, 100, 1_000] };
    let masquerading: &[u32] = if options.quick { &[1, 100] } else { growing };
    // A thousand containers are too many for the Go plugins, of which an ADD with masquerade takes 30 ms.
    let go_limit = if options.quick { 1 } else { 100 };
    for (case, shape, masquerade, sizes) in [
        ("bridge", Shape::Bridge, false, growing),
        ("bridge + masquerade", Shape::Bridge, true, masquerading),
        ("ptp + masquerade", Shape::Ptp, true, few),
    ] {
        if wanted(case) {
            bench.network(case, shape, masquerade, sizes, go_limit)?;
        }
    }
    let sizes: &[u32] = if options.quick { &[1, 100] } else { &[1, 100, 1_000] };
    if wanted("portmap") {
        bench.ports(sizes, go_limit)?;
    }
    let connections = if wanted("connections") { bench.connections(sizes)? } else { Vec::new() };
    progress("peak memory");
    let memory = bench.memory()?;
    let go_size = go.then(|| go_size(&options.go)).transpose()?;
    let (outcomes, failures) = (bench.outcomes, bench.failures);
    Ok(Report { memory, size: stripped_size(world, &exe)?, go_size, outcomes, connections, failures })
}

/// The size without symbols: what a package ships.
fn stripped_size(world: &World, exe: &Path) -> io::Result<u64> {
    let copy = world.path("stripped");
    fs::copy(exe, &copy)?;
    let stripped = Command::new("strip").arg(&copy).output();
    let measured = if stripped.is_ok_and(|output| output.status.success()) { &copy } else { exe };
    Ok(fs::metadata(measured)?.len())
}

fn go_size(directory: &Path) -> io::Result<u64> {
    let own = ["bridge", "host-local", "loopback", "ptp", "static"];
    own.iter().map(|name| Ok(fs::metadata(directory.join(name))?.len())).sum()
}

/// Says on standard error what went wrong.
fn warn(what: &str) {
    eprintln!("benchmark: {what}");
}

/// Says on standard error what is going on, once a second at most.
fn progress(what: &str) {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let Ok(mut last) = LAST.lock() else { return };
    if last.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
        *last = Some(Instant::now());
        let _ = writeln!(io::stderr(), "  {what}");
    }
}
