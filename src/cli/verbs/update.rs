//! `cni-all update`: what is attached gets the configuration as it is now.

use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use super::names::{id_of, resolve};
use super::{Call, fail};
use crate::cli::networks::{self, Options};
use crate::cli::{FAILED, print, usage};
use crate::cni::convert::error_json;
use crate::cni::json::Value;
use crate::cni::{Error, Result, Version};
use crate::kernel::netns::Netns;
use crate::personality::Process;
use crate::runtime::{Attachment, CachedAttachment, KeyChange, NetworkList, Runtime, Updated};

/// The command, as messages name it.
const NAME: &str = "cni-all update";

/// Arguments of `cni-all update`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "update",
    help_triggers("-h", "--help"),
    description = "apply a changed configuration to what is attached\n\n\
        Compares the configuration that was kept when the container was attached, by add or by a container\n\
        runtime that uses libcni, with the one that there is now; prints what it changes, as ip, tc and nft\n\
        commands, and does it. Addresses stay, and so do connections. When anything is different that only\n\
        a new attachment can have, nothing at all is done: key, old and new value are named.",
    example = "{command_name} mynet /run/netns/demo --dry-run",
    example = "{command_name} mynet 0123abcd -p 8080:80 -p 8443:443",
    example = "{command_name} mynet --all",
    note = "What can change while a container is attached, besides what the network's list says of itself:\n\
        bandwidth, firewall, portmap: every key, and what the runtime gives; they may join the list or leave it\n\
        bridge: mtu, hairpinMode, portIsolation, promiscMode, macspoofchk, ipMasq, ipMasqBackend,\n\
        ipMasqExempt, isDefaultGateway, dns, and of ipam routes and name servers\n\
        ptp: mtu, ipMasq, ipMasqBackend, ipMasqExempt, dns, and of ipam routes and name servers\n\
        macvlan, vlan: mtu, dns, and of ipam routes and name servers; ipvlan, dummy: the same without mtu\n\
        tuning: mtu, promisc, allmulti, txQLen, and the values of sysctl",
    error_code(1, "it failed, and everything is as it was; or something needs a new attachment (code 103)"),
    error_code(2, "wrong arguments")
)]
pub struct Update {
    /// name of the interface in the container; default: $CNI_IFNAME, or else the container's only one, or eth0
    #[argh(option, arg_name = "NAME")]
    ifname: Option<String>,

    /// the container's id; default: that of what is attached in NETNS
    #[argh(option, arg_name = "ID")]
    id: Option<String>,

    /// arguments for the plugins, KEY=VALUE;KEY=VALUE; must be those of ADD
    #[argh(option, arg_name = "ARGS")]
    args: Option<String>,

    /// arguments for plugins that declare such capabilities, a JSON object: each member takes the place of what was kept,
    /// null removes it
    #[argh(option, arg_name = "JSON")]
    capability_args: Option<String>,

    /// map a port of the host: [ADDRESS:]HOST:CONTAINER[/PROTOCOL]; may be given several times: only these are mapped then
    #[argh(option, short = 'p', arg_name = "MAPPING", from_str_fn(networks::port_mapping))]
    publish: Vec<Value>,

    /// directory in which results are kept; default: /var/lib/cni
    #[argh(option, arg_name = "DIR")]
    cache_dir: Option<String>,

    /// directory of network configurations; default: $NETCONFPATH, or else /etc/cni/net.d
    #[argh(option, arg_name = "DIR")]
    conf_dir: Option<String>,

    /// directory of plugins; may be given several times; default: $CNI_PATH
    #[argh(option, arg_name = "DIR")]
    bin_dir: Vec<String>,

    /// wait no longer for another process, be it a plugin (then it is ended) or a lock's holder
    #[argh(option, arg_name = "SECONDS", from_str_fn(networks::seconds))]
    timeout: Option<Duration>,

    /// print the changes, or the error, as JSON
    #[argh(switch)]
    json: bool,

    /// print what would be done, and do nothing
    #[argh(switch)]
    dry_run: bool,

    /// update everything that is attached to the network
    #[argh(switch)]
    all: bool,

    /// the network's name, or a file
    #[argh(positional, arg_name = "NETWORK")]
    network: String,

    /// path of the container's network namespace, its name in /run/netns, or the container's id
    #[argh(positional, arg_name = "NETNS")]
    netns: Option<String>,
}

/// An attachment, and what became of its update.
type Outcome = (Attachment, Result<Updated>);

impl Update {
    /// Updates.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        let one = self.netns.is_some() || self.id.is_some();
        if self.all && (one || self.ifname.is_some() || !self.publish.is_empty()) {
            return usage(process, NAME, "--all excludes NETNS, --id, --ifname and -p");
        }
        if !self.all && !one {
            return usage(process, NAME, "neither NETNS, --id nor --all is given");
        }
        let mut spoken = Version::LATEST;
        let updated = self.update(process, &mut spoken);
        let json = self.json.then_some(spoken);
        match updated {
            Err(e) => fail(process, NAME, json, &e),
            Ok((network, outcomes)) => match outcomes.as_slice() {
                [(_, Err(e))] if !self.all => fail(process, NAME, json, e),
                _ => self.tell(process, &network, json, &outcomes),
            },
        }
    }

    /// The network's name, and what became of each attachment.
    fn update(&self, process: &mut Process<'_>, spoken: &mut Version) -> Result<(String, Vec<Outcome>)> {
        let call = Call {
            conf_dir: self.conf_dir.as_deref(),
            options: Options {
                bin_dirs: &self.bin_dir,
                cache_dir: self.cache_dir.as_deref(),
                timeout: self.timeout,
            },
            network: &self.network,
            ..Call::default()
        };
        let network = call.network(process, NAME, spoken)?;
        let runtime = call.runtime(process);
        let args = networks::args(process, self.args.as_deref())?;
        let mut capability_args = networks::capability_args(process, self.capability_args.as_deref())?;
        networks::add_port_mappings(&mut capability_args, &self.publish, std::slice::from_ref(&network))?;
        let mut kept = runtime.cached_attachments(None)?;
        kept.retain(|kept| kept.network == network.name);
        if self.all {
            let is_there = |kept: &CachedAttachment| {
                kept.namespace().is_none_or(|path| matches!(Netns::find(&path), Ok(Some(_))))
            };
            let (there, gone): (Vec<_>, Vec<_>) = kept.into_iter().partition(is_there);
            for CachedAttachment { container_id, ifname, .. } in gone {
                let what = "its namespace is gone";
                let _ = writeln!(process.stderr, "{NAME}: left out {container_id} {ifname}: {what}");
            }
            kept = there;
        } else {
            let ifname = networks::given(process, self.ifname.as_deref(), "CNI_IFNAME");
            kept = vec![self.find(kept, ifname.as_deref(), &network)?];
        }
        let update = |kept: CachedAttachment| {
            let attachment = Attachment {
                args: args.clone(),
                capability_args: capability_args.clone(),
                ..Attachment::new(kept.container_id, "", kept.ifname)
            };
            let updated = run(&runtime, &network, &attachment, self.dry_run);
            (attachment, updated)
        };
        let outcomes = kept.into_iter().map(update).collect();
        Ok((network.name, outcomes))
    }

    /// The one attachment that is meant.
    fn find(
        &self,
        mut kept: Vec<CachedAttachment>,
        ifname: Option<&str>,
        network: &NetworkList,
    ) -> Result<CachedAttachment> {
        let word = self.netns.as_deref().unwrap_or_default();
        let path = resolve(word)?;
        let netns = if path.is_empty() { None } else { Netns::find(&path).ok().flatten() };
        let is_in = |kept: &CachedAttachment| {
            kept.container_id == word || kept.container_id == id_of(&path) || {
                let own = kept.namespace().unwrap_or_default();
                let found = Netns::find(&own).ok().flatten();
                own == path || found.zip(netns.as_ref()).is_some_and(|(own, netns)| own.same_as(netns))
            }
        };
        kept.retain(|kept| match (&self.id, word) {
            (Some(id), "") => kept.container_id == *id,
            (Some(id), _) => kept.container_id == *id && is_in(kept),
            (None, _) => is_in(kept),
        });
        kept.retain(|kept| ifname.is_none_or(|ifname| kept.ifname == ifname));
        if kept.len() > 1 && kept.iter().any(|kept| kept.ifname == "eth0") {
            kept.retain(|kept| kept.ifname == "eth0");
        }
        let shown: Vec<String> = kept.iter().map(|k| format!("{} {}", k.container_id, k.ifname)).collect();
        match (kept.pop(), shown.len()) {
            (Some(one), 1) => Ok(one),
            (None, _) => {
                let who = self.id.as_deref().unwrap_or(word);
                let ifname = ifname.map_or(String::new(), |ifname| format!(" with interface {ifname}"));
                let msg = format!("{who:?} is not attached to network {}{ifname}", network.name);
                let dir = self.cache_dir.as_deref().unwrap_or(crate::runtime::CACHE_DIR);
                Err(Error::internal(msg).with_details(format!("attachments are kept in {dir}/results")))
            }
            _ => {
                let msg = format!("--id, --ifname: several attachments are meant: {}", shown.join(", "));
                Err(Error::internal(msg))
            }
        }
    }

    fn tell(
        &self,
        process: &mut Process<'_>,
        network: &str,
        json: Option<Version>,
        outcomes: &[Outcome],
    ) -> i32 {
        let printed = match json {
            Some(version) => print(process, &self.json(network, version, outcomes).to_text()),
            None => {
                let mut text: String = outcomes.iter().map(|outcome| self.lines(outcome)).collect();
                if outcomes.is_empty() {
                    text = format!("# nothing is attached to network {network}\n");
                }
                let printed = print(process, &text);
                for (Attachment { container_id, ifname, .. }, outcome) in outcomes {
                    if let Err(e) = outcome {
                        let _ = writeln!(process.stderr, "{NAME}: {container_id} {ifname}: {e}");
                    }
                }
                printed
            }
        };
        if outcomes.iter().any(|(_, outcome)| outcome.is_err()) { FAILED } else { printed }
    }

    /// Commands as a shell would take them, with comments.
    fn lines(&self, (attachment, outcome): &Outcome) -> String {
        let Attachment { container_id, ifname, .. } = attachment;
        let Ok(updated) = outcome else { return String::new() };
        if updated.is_nothing() {
            return format!("# {container_id} {ifname}: nothing to change\n");
        }
        let about = format!("# {container_id} {ifname}\n");
        let keys = updated.keys.iter().map(|change| format!("# {change}\n"));
        let commands = updated.commands.iter().map(|command| format!("{command}\n"));
        std::iter::once(about).chain(keys).chain(commands).collect()
    }

    fn json(&self, network: &str, version: Version, outcomes: &[Outcome]) -> Value {
        let text = |text: &str| Value::String(text.to_owned());
        let or_null = |value: &Option<Value>| value.clone().unwrap_or(Value::Null);
        let change = |change: &KeyChange| {
            object([
                ("plugin", text(&change.plugin)),
                ("key", text(&change.key)),
                ("from", or_null(&change.from)),
                ("to", or_null(&change.to)),
            ])
        };
        let attachment = |(attachment, outcome): &Outcome| {
            let mut members =
                vec![("containerID", text(&attachment.container_id)), ("ifname", text(&attachment.ifname))];
            match outcome {
                Ok(updated) => members.extend([
                    ("netns", text(&updated.attachment.netns)),
                    ("changes", Value::Array(updated.keys.iter().map(change).collect())),
                    ("commands", Value::Array(updated.commands.iter().map(|line| text(line)).collect())),
                ]),
                Err(e) => {
                    let error = Value::parse(error_json(e, version).as_bytes());
                    members.push(("error", error.unwrap_or_else(|_| text(e.msg()))));
                }
            }
            object(members)
        };
        object([
            ("network", text(network)),
            ("dryRun", Value::Bool(self.dry_run)),
            ("attachments", Value::Array(outcomes.iter().map(attachment).collect())),
        ])
    }
}

fn run(runtime: &Runtime, network: &NetworkList, of: &Attachment, dry_run: bool) -> Result<Updated> {
    if dry_run { runtime.preview_update(network, of) } else { runtime.update(network, of) }
}

fn object<'a>(members: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    Value::Object(members.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}
