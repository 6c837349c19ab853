//! `cni-all run`: a command in a private network namespace that is attached to networks for as long as it runs.

pub mod command;
mod resolv;

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use argh::{ArgsInfo, FromArgs};
use serde::Serialize;
use serde_json::value::RawValue;

use super::networks::{self, Options, lines};
use super::usage;
use crate::cni::json::Value;
use crate::cni::{CniResult, Dns, Error, Result, Version};
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::{Change, Dev, Handle, SetLink};
use crate::personality::Process;
use crate::runtime::{Attachment, NetworkList, Runtime};
use command::{Outcome, Signals};

/// What this command calls itself.
const NAME: &str = "cni-all run";

/// Exit status when `run` itself failed, as of env(1), timeout(1) and container engines.
const FAILED: i32 = 125;

/// Exit status when the command was found and cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// Exit status when the command was not found.
const NOT_FOUND: i32 = 127;

/// Added to the number of the signal that ended the command, as shells do.
const SIGNALLED: i32 = 128;

/// The network that is used when none is configured and none is asked for.
const DEFAULT_NETWORK: &str = r#"{"cniVersion":"1.1.0","name":"mynet","plugins":[{"type":"bridge","bridge":"cni0",
"isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.22.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","capabilities":{"portMappings":true}}]}"#;

/// Arguments of `cni-all run`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "run",
    help_triggers("-h", "--help"),
    usage = "[--network FILE|NAME]... [-p MAPPING]... [OPTION]... [--] COMMAND [ARGUMENT...]",
    description = "run a command in a network namespace of its own\n\n\
        Makes a network namespace, attaches it to the networks (eth0, eth1, ...), runs the command\n\
        inside and removes everything when it ends, also when it fails or is interrupted. Without\n\
        --network, the first configuration in /etc/cni/net.d is used; when there is none, a bridge\n\
        cni0 with 10.22.0.0/16 and masquerading. Interfaces and addresses are shown on standard error.",
    example = "{command_name} ip addr",
    example = "{command_name} -- ping -c1 10.22.0.1",
    example = "{command_name} --network ./mynet.conflist --network backend -- sh",
    example = "{command_name} -p 8080:80 -- busybox httpd -f",
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

    /// map a port of the host: [ADDRESS:]HOST:CONTAINER[/PROTOCOL]; may be given several times
    #[argh(option, short = 'p', arg_name = "MAPPING", from_str_fn(networks::port_mapping))]
    publish: Vec<Value>,

    /// arguments for plugins that declare such capabilities, a JSON object; default: $CAP_ARGS
    #[argh(option, arg_name = "JSON")]
    capability_args: Option<String>,

    /// arguments for the plugins, KEY=VALUE;KEY=VALUE; default: $CNI_ARGS
    #[argh(option, arg_name = "ARGS")]
    args: Option<String>,

    /// directory of plugins; may be given several times; default: $CNI_PATH
    #[argh(option, arg_name = "DIR")]
    bin_dir: Vec<String>,

    /// directory in which results are kept; default: /var/lib/cni
    #[argh(option, arg_name = "DIR")]
    cache_dir: Option<String>,

    /// wait no longer for another process, be it a plugin (then it is ended), a lock's holder or the dhcp daemon
    #[argh(option, arg_name = "SECONDS", from_str_fn(networks::seconds))]
    timeout: Option<Duration>,

    /// give the namespace a name, and leave it and what is attached when the command ends
    #[argh(switch)]
    keep: bool,

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
            Ok(session) => session.run(&self.command, process),
            Err(e) => fail(process, NAME, &e),
        }
    }

    fn prepare(&self, process: &mut Process<'_>) -> Result<Session> {
        let networks = self.networks(process)?;
        let args = networks::args(process, self.args.as_deref())?;
        let mut capability_args = networks::capability_args(process, self.capability_args.as_deref())?;
        networks::add_port_mappings(&mut capability_args, &self.publish, &networks)?;
        let cache_dir = self.cache_dir.as_deref();
        let options = Options { bin_dirs: &self.bin_dir, cache_dir, timeout: self.timeout };
        let session = Session::new(NAME, networks, networks::runtime(process, options), self.keep)?;
        let show = match (self.quiet, self.json) {
            (true, _) => Show::Nothing,
            (_, true) => Show::Json,
            _ => Show::Lines,
        };
        Ok(Session { args, capability_args, show, ..session })
    }

    /// The networks to attach to. Without any named, the first that is configured, or one of our own.
    fn networks(&self, process: &mut Process<'_>) -> Result<Vec<NetworkList>> {
        let dir = networks::conf_dir(process, self.conf_dir.as_deref());
        if !self.network.is_empty() {
            let names: Vec<&str> = self.network.iter().map(String::as_str).collect();
            return networks::named(process, NAME, &names, &dir);
        }
        match networks::configured(process, NAME, &dir)?.first()? {
            Some(first) => Ok(vec![first.clone()]),
            None => NetworkList::parse(DEFAULT_NETWORK.as_bytes()).map(|default| vec![default]),
        }
    }
}

/// A namespace of its own and what it is to be attached to.
pub struct Session {
    /// What to call us in messages.
    name: &'static str,
    networks: Vec<NetworkList>,
    runtime: Runtime,
    signals: Signals,
    netns: Netns,
    container_id: String,
    /// Leave everything when the command ends.
    keep: bool,
    /// `CNI_ARGS` of every attachment.
    pub args: Vec<(String, String)>,
    /// Capability arguments of every attachment.
    pub capability_args: Vec<(String, Value)>,
    /// What to tell.
    pub show: Show,
}

/// How to tell what was attached, on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Not at all.
    Nothing,
    /// One line per address.
    Lines,
    /// One line of JSON.
    Json,
}

impl Session {
    /// Makes the namespace; from here on until the end, signals wait until they are asked for: nothing is left half done.
    ///
    /// # Errors
    /// Not allowed, or the kernel refuses.
    pub fn new(
        name: &'static str,
        networks: Vec<NetworkList>,
        runtime: Runtime,
        keep: bool,
    ) -> Result<Session> {
        let signals = Signals::block()?;
        let container_id = container_id()?;
        let made = if keep { Netns::create_named(&container_id) } else { Netns::create_unnamed() };
        let netns = made.map_err(|e| match e.errno() {
            Some(nix::errno::Errno::EPERM) => Error::internal("a network namespace can only be made by root")
                .with_details(
                    "without root: unshare -Urnm sh -c 'mount -t tmpfs tmpfs /var/lib && exec cni-all run …'",
                ),
            _ => e,
        })?;
        let up = Change::SetLink(SetLink { up: Some(true), ..SetLink::of(Dev::named("lo")) });
        netns.enter(|| Handle::open()?.apply(&[up]))?;
        Ok(Session {
            name,
            networks,
            runtime: Runtime { keep_failed: keep, ..runtime },
            signals,
            netns,
            container_id,
            keep,
            args: Vec::new(),
            capability_args: Vec::new(),
            show: Show::Nothing,
        })
    }

    /// Attaches, runs the command and detaches; the command's exit status.
    pub fn run(&self, command: &[String], process: &mut Process<'_>) -> i32 {
        let attachments: Vec<(&NetworkList, Attachment)> = self
            .networks
            .iter()
            .enumerate()
            .map(|(n, network)| {
                let attachment = Attachment {
                    args: self.args.clone(),
                    capability_args: self.capability_args.clone(),
                    ..Attachment::new(&self.container_id, self.netns.path(), format!("eth{n}"))
                };
                (network, attachment)
            })
            .collect();
        let mut results = Vec::new();
        let outcome = self.attach_and_run(command, &attachments, &mut results, process);
        let status = outcome.unwrap_or_else(|e| fail(process, self.name, &e));
        if self.keep {
            let path = self.netns.path();
            let kept =
                format!("{}: kept {path}; to look into it: nsenter --net={path}; to remove it:\n", self.name);
            let _ = process.stderr.write_all(kept.as_bytes());
            for (network, attachment) in &attachments {
                let (name, id, ifname) = (&network.name, &self.container_id, &attachment.ifname);
                let _ = writeln!(process.stderr, "  cni-all del {name} {path} --id {id} --ifname {ifname}");
            }
            let _ = writeln!(process.stderr, "  ip netns delete {}", self.container_id);
            return status;
        }
        // An attachment that failed half-way was taken back when it failed.
        for (network, attachment) in attachments.iter().take(results.len()).rev() {
            if let Err(e) = self.runtime.del(network, attachment) {
                let _ = fail(process, self.name, &e.context("could not remove everything"));
            }
        }
        status
    }

    fn attach_and_run(
        &self,
        words: &[String],
        attachments: &[(&NetworkList, Attachment)],
        results: &mut Vec<CniResult>,
        process: &mut Process<'_>,
    ) -> Result<i32> {
        for (network, attachment) in attachments {
            if let Some(signal) = self.signals.pending()? {
                return Ok(SIGNALLED + signal);
            }
            results.push(self.runtime.add(network, attachment)?);
        }
        let attached = attachments.iter().zip(results.iter());
        let shown = match self.show {
            Show::Nothing => String::new(),
            Show::Lines => attached.map(|((network, a), r)| lines(&network.name, &a.ifname, r)).collect(),
            Show::Json => json(&self.container_id, attachments, results)?,
        };
        let _ = process.stderr.write_all(shown.as_bytes());
        let dns = merged_dns(results);
        match command::run(words, &self.netns, dns.as_ref(), &self.signals)? {
            Outcome::Ended(status) => Ok(status),
            Outcome::NotStarted(e) => {
                let status = match e.kind() {
                    std::io::ErrorKind::NotFound => NOT_FOUND,
                    _ => NOT_EXECUTABLE,
                };
                let program = &words[0];
                let reason = nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or_default()).desc();
                let _ = fail(process, self.name, &Error::internal(format!("{program}: {reason}")));
                Ok(status)
            }
        }
    }
}

/// An id that no other container has.
fn container_id() -> Result<String> {
    let mut random = [0; 8];
    let read = File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random));
    read.map_err(|e| Error::io("read /dev/urandom", &e))?;
    Ok(format!("cni-all-run-{:016x}", u64::from_ne_bytes(random)))
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

/// What is attached, as one line of JSON with results of the newest version.
fn json(
    container_id: &str,
    attachments: &[(&NetworkList, Attachment)],
    results: &[CniResult],
) -> Result<String> {
    let encode = |e: serde_json::Error| Error::internal(format!("encode JSON: {e}"));
    let mut shown = Attached { container_id, attachments: Vec::new() };
    for ((network, attachment), result) in attachments.iter().zip(results) {
        let on_one_line = Value::parse(result.to_json(Version::LATEST)?.as_bytes())?.to_text();
        let result = RawValue::from_string(on_one_line).map_err(encode)?;
        shown.attachments.push(AttachedTo { network: &network.name, ifname: &attachment.ifname, result });
    }
    serde_json::to_string(&shown).map(|text| text + "\n").map_err(encode)
}

/// Says what failed on standard error.
fn fail(process: &mut Process<'_>, name: &str, err: &Error) -> i32 {
    let _ = writeln!(process.stderr, "{name}: {err}");
    FAILED
}
