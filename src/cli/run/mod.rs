//! `cni-all run`: a command in a private network namespace that is attached to networks for as long as it runs.

mod command;
mod resolv;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use argh::{ArgsInfo, FromArgs};
use serde::Serialize;
use serde_json::value::RawValue;

use super::usage;
use crate::cni::json::Value;
use crate::cni::{CniResult, Dns, Error, Result, Version};
use crate::kernel::Kernel;
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Change, Dev, Handle, SetLink};
use crate::personality::Process;
use crate::runtime::conflist::Directory;
use crate::runtime::{self, Attachment, NetworkList, PluginPath};
use command::{Outcome, Signals};

/// Exit status when `run` itself failed, as of env(1), timeout(1) and container engines.
const FAILED: i32 = 125;

/// Exit status when the command was found and cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// Exit status when the command was not found.
const NOT_FOUND: i32 = 127;

/// Added to the number of the signal that ended the command, as shells do.
const SIGNALLED: i32 = 128;

/// Where network configurations are.
const CONF_DIR: &str = "/etc/cni/net.d";

/// Where plugins are, besides the directory of our own executable.
const PLUGIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// The network that is used when none is configured and none is asked for.
const DEFAULT_NETWORK: &str = r#"{"cniVersion":"1.1.0","name":"mynet","plugins":[{"type":"bridge","bridge":"cni0",
"isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.22.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}]}"#;

/// Arguments of `cni-all run`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "run",
    help_triggers("-h", "--help"),
    usage = "[--network FILE|NAME]... [--conf-dir DIR] [--quiet | --json] [--] COMMAND [ARGUMENT...]",
    description = "run a command in a network namespace of its own\n\n\
        Makes a network namespace, attaches it to the networks (eth0, eth1, ...), runs the command\n\
        inside and removes everything when it ends, also when it fails or is interrupted. Without\n\
        --network, the first configuration in /etc/cni/net.d is used; when there is none, a bridge\n\
        cni0 with 10.22.0.0/16 and masquerading. Interfaces and addresses are shown on standard error.",
    example = "{command_name} ip addr",
    example = "{command_name} -- ping -c1 10.22.0.1",
    example = "{command_name} --network ./mynet.conflist --network backend -- sh",
    note = "SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the command; cleaning up comes after it.\n\
        Plugins are looked for in CNI_PATH; when it is not set, beside this executable, and those that\n\
        are no part of it in /opt/cni/bin and /usr/lib/cni, too. When the network names DNS servers,\n\
        the command sees an /etc/resolv.conf with them.",
    error_code(125, "the network could not be set up, or another failure of run itself"),
    error_code(126, "the command cannot be executed"),
    error_code(127, "the command was not found")
)]
pub struct Run {
    /// a file (with a / in it, or .conf, .conflist or .json at its end), or the name of a network in the directory of
    /// configurations; may be given several times
    #[argh(option, arg_name = "FILE|NAME")]
    network: Vec<String>,

    /// directory of network configurations; default: $NETCONFPATH, or else /etc/cni/net.d
    #[argh(option, arg_name = "DIR")]
    conf_dir: Option<String>,

    /// do not show what was attached
    #[argh(switch, short = 'q')]
    quiet: bool,

    /// show what was attached as one line of JSON, on standard error
    #[argh(switch)]
    json: bool,

    /// the command and its arguments
    #[argh(positional, greedy, arg_name = "COMMAND")]
    command: Vec<String>,
}

/// What is attached, for `--json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Attached<'a> {
    #[serde(rename = "containerID")]
    container_id: &'a str,
    attachments: Vec<AttachedTo<'a>>,
}

#[derive(Serialize)]
struct AttachedTo<'a> {
    network: &'a str,
    ifname: &'a str,
    result: Box<RawValue>,
}

impl Run {
    /// Runs the command; its exit status, 128 + n when signal n ended it.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        if self.command.is_empty() {
            return usage(process, "cni-all run", "no command given");
        }
        match self.prepare(process) {
            Ok(prepared) => self.run_attached(&prepared, process),
            Err(e) => fail(process, &e),
        }
    }

    fn prepare(&self, process: &mut Process<'_>) -> Result<Prepared> {
        let networks = self.networks(process)?;
        // From here on until the end, signals wait until they are asked for: nothing is left half done.
        let signals = Signals::block()?;
        let netns = Netns::create_unnamed().map_err(|e| match e.errno() {
            Some(nix::errno::Errno::EPERM) => Error::internal("a network namespace can only be made by root")
                .with_details(
                    "without root: unshare -Urnm sh -c 'mount -t tmpfs tmpfs /var/lib && exec cni-all run …'",
                ),
            _ => e,
        })?;
        let up = Change::SetLink(SetLink { up: Some(true), ..SetLink::of(Dev::named("lo")) });
        netns.enter(|| Handle::open()?.apply(&[up]))?;
        let wait = (process.env)("CNI_ALL_WAIT").is_some_and(|v| v == "1");
        Ok(Prepared {
            networks,
            path: plugin_path(process),
            signals,
            netns,
            container_id: container_id()?,
            wait,
            system_bus: (process.env)("DBUS_SYSTEM_BUS_ADDRESS"),
        })
    }

    /// The networks to attach to. Broken files that stand beside them are reported and do no harm.
    fn networks(&self, process: &mut Process<'_>) -> Result<Vec<NetworkList>> {
        let dir = self.conf_dir.clone().or_else(|| (process.env)("NETCONFPATH").filter(|d| !d.is_empty()));
        let dir = dir.unwrap_or_else(|| CONF_DIR.to_owned());
        let (files, names): (Vec<&String>, Vec<&String>) = self.network.iter().partition(|n| is_file(n));
        let configured = match files.is_empty() || !names.is_empty() {
            true => Some(Directory::read(Path::new(&dir))?),
            false => None,
        };
        for broken in configured.iter().flat_map(|c| &c.broken) {
            let _ = writeln!(process.stderr, "cni-all run: ignored {broken}");
        }
        let Some(configured) = configured else {
            return files.into_iter().map(|file| NetworkList::load(Path::new(file))).collect();
        };
        if self.network.is_empty() {
            return match configured.first()? {
                Some(first) => Ok(vec![first.clone()]),
                None => NetworkList::parse(DEFAULT_NETWORK.as_bytes()).map(|default| vec![default]),
            };
        }
        let load = |network: &String| match is_file(network) {
            true => NetworkList::load(Path::new(network)),
            false => configured.find(network).cloned(),
        };
        self.network.iter().map(load).collect()
    }

    fn run_attached(&self, prepared: &Prepared, process: &mut Process<'_>) -> i32 {
        let ifnames: Vec<String> = (0..prepared.networks.len()).map(|n| format!("eth{n}")).collect();
        let attachments: Vec<Attachment<'_>> = prepared
            .networks
            .iter()
            .zip(&ifnames)
            .map(|(network, ifname)| Attachment {
                network,
                container_id: &prepared.container_id,
                netns: prepared.netns.path(),
                ifname,
                path: &prepared.path,
            })
            .collect();
        let mut results = Vec::new();
        let outcome = self.attach_and_run(&attachments, &mut results, prepared, process);
        let status = outcome.unwrap_or_else(|e| fail(process, &e));
        // What was attempted is detached, newest first, also the attachment that failed half-way.
        let attempted = attachments.len().min(results.len() + 1);
        let mut kernel = Kernel::new(prepared.wait).with_system_bus(prepared.system_bus.clone());
        for (n, attachment) in attachments.iter().enumerate().take(attempted).rev() {
            if let Err(e) = runtime::del(attachment, results.get(n), &mut kernel) {
                let _ = fail(process, &e.context("could not remove everything"));
            }
        }
        status
    }

    fn attach_and_run(
        &self,
        attachments: &[Attachment<'_>],
        results: &mut Vec<CniResult>,
        prepared: &Prepared,
        process: &mut Process<'_>,
    ) -> Result<i32> {
        let mut kernel = Kernel::new(prepared.wait).with_system_bus(prepared.system_bus.clone());
        for attachment in attachments {
            if let Some(signal) = prepared.signals.pending()? {
                return Ok(SIGNALLED + signal);
            }
            results.push(runtime::add(attachment, &mut kernel)?);
        }
        if !self.quiet {
            let shown = match self.json {
                true => json(attachments, results)?,
                false => attachments.iter().zip(results.iter()).map(|(a, r)| lines(a, r)).collect(),
            };
            let _ = process.stderr.write_all(shown.as_bytes());
        }
        let dns = merged_dns(results);
        match command::run(&self.command, &prepared.netns, dns.as_ref(), &prepared.signals)? {
            Outcome::Ended(status) => Ok(status),
            Outcome::NotStarted(e) => {
                let status = match e.kind() {
                    std::io::ErrorKind::NotFound => NOT_FOUND,
                    _ => NOT_EXECUTABLE,
                };
                let program = &self.command[0];
                let reason = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or_default()).desc();
                let _ = fail(process, &Error::internal(format!("{program}: {reason}")));
                Ok(status)
            }
        }
    }
}

/// Everything that is needed before the first plugin is called.
struct Prepared {
    networks: Vec<NetworkList>,
    path: PluginPath,
    signals: Signals,
    netns: Netns,
    container_id: String,
    wait: bool,
    system_bus: Option<String>,
}

/// Whether `--network` names a file.
fn is_file(network: &str) -> bool {
    network.contains('/') || [".conf", ".conflist", ".json"].iter().any(|e| network.ends_with(e))
}

/// An id that no other container has.
fn container_id() -> Result<String> {
    let mut random = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random));
    read.map_err(|e| Error::io("read /dev/urandom", &e))?;
    Ok(format!("cni-all-run-{:016x}", u64::from_ne_bytes(random)))
}

/// `CNI_PATH`; when it is not set, the directory of this executable, and the usual ones for plugins that are no part of it:
/// what happens to be installed there must not take the place of what this executable can do itself.
fn plugin_path(process: &Process<'_>) -> PluginPath {
    if let Some(path) = (process.env)("CNI_PATH").filter(|path| !path.is_empty()) {
        return PluginPath { all: path.clone(), built_in: path };
    }
    let own = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_str()?.to_owned()));
    let all = own.iter().map(String::as_str).chain(PLUGIN_DIRS).collect::<Vec<_>>().join(":");
    PluginPath { built_in: own.unwrap_or_else(|| all.clone()), all }
}

/// The name servers of all networks; `None` when none names any.
fn merged_dns(results: &[CniResult]) -> Option<Dns> {
    let mut merged = Dns::default();
    for CniResult { dns, .. } in results {
        if merged.domain.is_empty() {
            merged.domain.clone_from(&dns.domain);
        }
        for (all, more) in [
            (&mut merged.nameservers, &dns.nameservers),
            (&mut merged.search, &dns.search),
            (&mut merged.options, &dns.options),
        ] {
            let new: Vec<String> = more.iter().filter(|word| !all.contains(word)).cloned().collect();
            all.extend(new);
        }
    }
    Some(merged).filter(|dns| !dns.is_empty())
}

/// `eth0: 10.22.0.2/16, gateway 10.22.0.1 (network mynet)`, one line per address.
fn lines(attachment: &Attachment<'_>, result: &CniResult) -> String {
    let Attachment { network, ifname, .. } = attachment;
    let network = &network.name;
    if result.ips.is_empty() {
        return format!("{ifname}: no address (network {network})\n");
    }
    let line = |ip: &crate::cni::IpConfig| {
        let gateway = ip.gateway.map_or(String::new(), |gateway| format!(", gateway {gateway}"));
        format!("{ifname}: {}{gateway} (network {network})\n", ip.address)
    };
    result.ips.iter().map(line).collect()
}

/// What is attached, as one line of JSON with results of the newest version.
fn json(attachments: &[Attachment<'_>], results: &[CniResult]) -> Result<String> {
    let encode = |e: serde_json::Error| Error::internal(format!("encode JSON: {e}"));
    let mut shown = Attached {
        container_id: attachments.first().map_or("", |first| first.container_id),
        attachments: Vec::new(),
    };
    for (attachment, result) in attachments.iter().zip(results) {
        let on_one_line = Value::parse(result.to_json(Version::LATEST)?.as_bytes())?.to_text();
        let result = RawValue::from_string(on_one_line).map_err(encode)?;
        shown.attachments.push(AttachedTo {
            network: &attachment.network.name,
            ifname: attachment.ifname,
            result,
        });
    }
    serde_json::to_string(&shown).map(|text| text + "\n").map_err(encode)
}

/// Says what failed on standard error.
fn fail(process: &mut Process<'_>, err: &Error) -> i32 {
    let _ = writeln!(process.stderr, "cni-all run: {err}");
    FAILED
}
