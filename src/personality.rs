//! What the executable is: `argv[0]` names a plugin, or it is `cni-all` with commands of its own.
//!
//! `main.rs` owns the process and hands it over as a [`Process`]; nothing here touches it directly.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::cli;
use crate::cni::convert::error_json;
use crate::cni::{Code, Command, Environment, Error, Request, Result, Version};
use crate::kernel::Kernel;
use crate::log::{Log, Operation, phase};
use crate::plugins::{self, PLUGINS, Plugin};

/// The Go release whose behaviour we are compatible with. Callers such as Nomad compare it as a semantic version.
pub(crate) const COMPATIBLE_WITH: &str = "v1.9.1";

/// The process, as far as a personality may use it.
pub struct Process<'a> {
    /// argv, the program's own name first.
    pub args: Vec<OsString>,
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Standard input.
    pub stdin: &'a mut dyn Read,
    /// Standard output.
    pub stdout: &'a mut dyn Write,
    /// Standard error.
    pub stderr: &'a mut dyn Write,
}

/// Does what argv and the environment ask for and returns the exit status.
pub fn run(mut process: Process<'_>) -> i32 {
    let called = process.args.first().map(Path::new).and_then(Path::file_name);
    let name = called.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let word = process.args.get(1).map(|a| a.to_string_lossy().into_owned());
    let own = is_cni_all(&name);
    let plugin = plugins::find(&name).or_else(|| plugins::find(word.as_deref().filter(|_| own)?));
    if let Some(plugin) = plugin {
        if let Some(command) = plugin.command() {
            let own_words = if own { 2 } else { 1 };
            let words: Vec<String> =
                process.args.iter().skip(own_words).map(|a| a.to_string_lossy().into_owned()).collect();
            if let Some(status) = command(&words, &mut process) {
                return status;
            }
        }
        return run_plugin(plugin, &mut process);
    }
    if let Some(tool) = cli::tools::find(&name) {
        return match cli::words(&process) {
            Ok(words) => (tool.run)(&words, &mut process),
            Err(msg) => {
                let _ = writeln!(process.stderr, "{name}: {msg}");
                1
            }
        };
    }
    let as_plugin = (process.env)("CNI_COMMAND").is_some_and(|c| !c.is_empty());
    if own && (!as_plugin || word.as_deref().is_some_and(cli::is_own)) {
        return cli::run(&mut process);
    }
    let asked = word.filter(|_| own).unwrap_or(name);
    if as_plugin {
        let err = Error::new(Code::ENVIRONMENT, format!("{asked:?} is no plugin of cni-all"))
            .with_details(format!("plugins: {}", plugin_names()));
        return fail(&mut process, &err, Version::LATEST);
    }
    let names = plugin_names();
    let _ = writeln!(
        process.stderr,
        "cni-all: called as {asked:?}, which is no plugin of cni-all; plugins: {names}\nsee: cni-all --help"
    );
    1
}

/// `cni-all`, and what people rename it to: `cni-all-0.1.0`, `cni-all.static`.
fn is_cni_all(name: &str) -> bool {
    name.strip_prefix("cni-all").is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.', '_']))
}

fn plugin_names() -> String {
    PLUGINS.iter().map(|p| p.name()).collect::<Vec<_>>().join(", ")
}

/// One call of a plugin, as the Go library serves it (reference: core.md 1).
fn run_plugin(plugin: &'static dyn Plugin, process: &mut Process<'_>) -> i32 {
    if (process.env)("CNI_COMMAND").unwrap_or_default().is_empty() {
        let _ = write!(process.stderr, "{}", about(plugin));
        return 0;
    }
    let wait = (process.env)("CNI_ALL_WAIT").is_some_and(|v| v == "1");
    let mut kernel = Kernel::new(wait).with_system_bus((process.env)("DBUS_SYSTEM_BUS_ADDRESS"));
    let mut request = None;
    let answer = catch_unwind(AssertUnwindSafe(|| answer(plugin, process, &mut kernel, &mut request)));
    let answer = answer.unwrap_or_else(|_| {
        Err(Error::internal(format!("{} panicked, see its standard error", plugin.name())))
    });
    // An error object says which version of the protocol is in use, once the configuration could be read.
    let version = request.as_ref().map_or(Version::LATEST, |req| req.config.version);
    let text = match answer {
        Ok(text) => text,
        Err(err) => return fail(process, &err, version),
    };
    match process.stdout.write_all(text.as_bytes()).and_then(|()| process.stdout.flush()) {
        Ok(()) => 0,
        Err(e) => {
            let mut err = Error::io("write the result to standard output", &e).with_code(Code::IO);
            // Nobody knows of what ADD made: take it back.
            if let Some(req) = request.filter(|req| req.command == Command::Add) {
                let del = Request { command: Command::Del, ..req };
                if let Err(left) = plugins::call(plugin, &del, &mut kernel) {
                    err = err.with_left(&left);
                }
            }
            fail(process, &err, version)
        }
    }
}

/// What goes to standard output on success; empty for every command but ADD and VERSION. The request is kept for the
/// caller as soon as it is known to be one.
fn answer(
    plugin: &'static dyn Plugin,
    process: &mut Process<'_>,
    kernel: &mut Kernel,
    request: &mut Option<Request>,
) -> Result<String> {
    let environment = Environment::read(process.env)?;
    if environment.is_version() {
        return Ok(version_json(plugin));
    }
    let mut stdin = Vec::with_capacity(4096);
    process.stdin.read_to_end(&mut stdin).map_err(|e| {
        Error::io("read the network configuration from standard input", &e).with_code(Code::IO)
    })?;
    let req = request.insert(Request::negotiate(environment, stdin, plugins::accepts(plugin))?);
    req.check()?;
    let trace = (process.env)("TRACEPARENT");
    let about = Operation {
        plugin: plugin.name(),
        network: &req.config.name,
        container_id: &req.container_id,
        ifname: &req.ifname,
        netns: &req.netns,
        trace: trace.as_deref(),
    };
    log(process, req).operation(req.command.as_str(), &about, || {
        plugins::refuse_own_netns(req)?;
        let result = phase(plugin.name(), || plugins::call(plugin, req, kernel))?;
        result.map_or(Ok(String::new()), |r| r.to_json(req.config.version))
    })
}

/// Where this call is logged: as the environment says, or else the configuration.
fn log(process: &Process<'_>, req: &Request) -> Log {
    let target = (process.env)("CNI_ALL_LOG").filter(|target| !target.is_empty());
    Log::to(&target.unwrap_or_else(|| req.config.log()))
}

/// Prints the error object; exit status 1.
fn fail(process: &mut Process<'_>, err: &Error, version: Version) -> i32 {
    let written =
        process.stdout.write_all(error_json(err, version).as_bytes()).and_then(|()| process.stdout.flush());
    if let Err(e) = written {
        let _ = writeln!(process.stderr, "Error writing error JSON to stdout: {e} (the error was: {err})");
    }
    1
}

/// VERSION's answer: one line, always of the newest version, whatever is on standard input.
fn version_json(plugin: &dyn Plugin) -> String {
    let supported: Vec<String> = plugin.versions().iter().map(|v| format!("\"{v}\"")).collect();
    format!("{{\"cniVersion\":\"{}\",\"supportedVersions\":[{}]}}\n", Version::LATEST, supported.join(","))
}

/// What a plugin says about itself when it is started without `CNI_COMMAND`. Nomad and nerdctl parse the first line.
fn about(plugin: &dyn Plugin) -> String {
    let versions: Vec<&str> = plugin.versions().iter().map(|v| v.as_str()).collect();
    format!(
        "CNI {} plugin {COMPATIBLE_WITH}+cni-all.{}\nCNI protocol versions supported: {}\n",
        plugin.name(),
        env!("CARGO_PKG_VERSION"),
        versions.join(", ")
    )
}
