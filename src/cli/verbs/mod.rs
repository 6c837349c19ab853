//! `cni-all add`, `check`, `del`, `update`, `gc` and `status`: the runtime's operations on one network.

mod collect;
mod dry_run;
mod names;
mod update;

use std::time::Duration;

use argh::{ArgsInfo, FromArgs};

use self::dry_run::{Order, preview};
use self::names::{container_id, namespace, resolve};
use super::networks::{self, Options, lines};
use super::{FAILED, print, usage};
use crate::cni::convert::error_json;
use crate::cni::json::Value;
use crate::cni::names::is_identifier;
use crate::cni::{Error, Result, ValidAttachment, Version};
use crate::personality::Process;
use crate::runtime::{Attachment, CachedAttachment, NetworkList, Runtime};

pub use self::names::{absolute, id_of};
pub use self::update::Update;

/// Defines the arguments of an operation on one attachment: what they have in common, and more.
macro_rules! attachment_verb {
    ($(#[$meta:meta])* $name:ident ($($netns:tt)+) { $($more:tt)* }) => {
        $(#[$meta])*
        pub struct $name {
            /// name of the interface in the container; default: $CNI_IFNAME, or else eth0
            #[argh(option, arg_name = "NAME")]
            ifname: Option<String>,

            /// the container's id; default: made from the path of the namespace, as cnitool does it
            #[argh(option, arg_name = "ID")]
            id: Option<String>,

            /// arguments for the plugins, KEY=VALUE;KEY=VALUE; default: $CNI_ARGS
            #[argh(option, arg_name = "ARGS")]
            args: Option<String>,

            /// arguments for plugins that declare such capabilities, a JSON object; default: $CAP_ARGS
            #[argh(option, arg_name = "JSON")]
            capability_args: Option<String>,

            /// directory in which results are kept; default: /var/lib/cni
            #[argh(option, arg_name = "DIR")]
            cache_dir: Option<String>,

            /// directory of network configurations; default: $NETCONFPATH, or else /etc/cni/net.d
            #[argh(option, arg_name = "DIR")]
            conf_dir: Option<String>,

            /// directory of plugins; may be given several times; default: $CNI_PATH
            #[argh(option, arg_name = "DIR")]
            bin_dir: Vec<String>,

            /// wait no longer for another process, be it a plugin (then it is ended), a lock's holder or the dhcp daemon
            #[argh(option, arg_name = "SECONDS", from_str_fn(networks::seconds))]
            timeout: Option<Duration>,

            /// print the result, or the error, as the protocol's JSON object
            #[argh(switch)]
            json: bool,

            $($more)*

            /// the network's name, or a file
            #[argh(positional, arg_name = "NETWORK")]
            network: String,

            /// path of the container's network namespace, or its name in /run/netns
            #[argh(positional, arg_name = "NETNS")]
            netns: $($netns)+,
        }

        impl $name {
            fn call(&self) -> Call<'_> {
                Call {
                    ifname: self.ifname.as_deref(),
                    id: self.id.as_deref(),
                    args: self.args.as_deref(),
                    capability_args: self.capability_args.as_deref(),
                    conf_dir: self.conf_dir.as_deref(),
                    options: Options {
                        bin_dirs: &self.bin_dir,
                        cache_dir: self.cache_dir.as_deref(),
                        timeout: self.timeout,
                    },
                    network: &self.network,
                }
            }
        }
    };
}

/// Defines the arguments of an operation on a network as a whole.
macro_rules! network_verb {
    ($(#[$meta:meta])* $name:ident { $($more:tt)* }) => {
        $(#[$meta])*
        pub struct $name {
            /// directory in which results are kept; default: /var/lib/cni
            #[argh(option, arg_name = "DIR")]
            cache_dir: Option<String>,

            /// directory of network configurations; default: $NETCONFPATH, or else /etc/cni/net.d
            #[argh(option, arg_name = "DIR")]
            conf_dir: Option<String>,

            /// directory of plugins; may be given several times; default: $CNI_PATH
            #[argh(option, arg_name = "DIR")]
            bin_dir: Vec<String>,

            /// wait no longer for another process, be it a plugin (then it is ended), a lock's holder or the dhcp daemon
            #[argh(option, arg_name = "SECONDS", from_str_fn(networks::seconds))]
            timeout: Option<Duration>,

            /// print the error as the protocol's JSON object
            #[argh(switch)]
            json: bool,

            $($more)*

            /// the network's name, or a file
            #[argh(positional, arg_name = "NETWORK")]
            network: String,

            /// taken as by cnitool, and not used
            #[argh(positional, arg_name = "NETNS")]
            _netns: Option<String>,
        }

        impl $name {
            fn call(&self) -> Call<'_> {
                Call {
                    conf_dir: self.conf_dir.as_deref(),
                    options: Options {
                        bin_dirs: &self.bin_dir,
                        cache_dir: self.cache_dir.as_deref(),
                        timeout: self.timeout,
                    },
                    network: &self.network,
                    ..Call::default()
                }
            }
        }
    };
}

attachment_verb! {
    /// Arguments of `cni-all add`.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "add",
        help_triggers("-h", "--help"),
        description = "attach a container to a network\n\n\
            Runs ADD of the network's plugins, in this process where they are built in, and keeps the\n\
            result for the other operations. When it fails, what was done is taken back.",
        example = "{command_name} mynet /run/netns/demo",
        example = "{command_name} ./mynet.conflist demo --ifname eth1 --json",
        note = "When neither --bin-dir nor CNI_PATH is given, plugins that are built in are used, and others\n\
            are looked for beside this executable, in /opt/cni/bin and in /usr/lib/cni.",
        error_code(1, "it failed; the reason is on standard error, or with --json on standard output"),
        error_code(2, "wrong arguments")
    )]
    Add (String) {
        /// map a port of the host: [ADDRESS:]HOST:CONTAINER[/PROTOCOL]; may be given several times
        #[argh(option, short = 'p', arg_name = "MAPPING", from_str_fn(networks::port_mapping))]
        publish: Vec<Value>,

        /// print what would be done, as ip, nft and file commands, and do nothing
        #[argh(switch)]
        dry_run: bool,

        /// when it fails, leave what was done, to be looked at
        #[argh(switch)]
        keep_failed: bool,
    }
}

attachment_verb! {
    /// Arguments of `cni-all check`.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "check",
        help_triggers("-h", "--help"),
        description = "compare an attachment with what add made\n\n\
            Runs CHECK of the network's plugins with the result that was kept. Prints nothing when all is well.",
        example = "{command_name} mynet /run/netns/demo",
        error_code(1, "the first difference is on standard error, or with --json on standard output"),
        error_code(2, "wrong arguments")
    )]
    Check (String) {}
}

attachment_verb! {
    /// Arguments of `cni-all del`.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "del",
        help_triggers("-h", "--help"),
        description = "detach a container from a network\n\n\
            Runs DEL of the network's plugins, last one first, with the result that was kept. The namespace\n\
            may be gone. Succeeds when there is nothing to detach. A network that is no longer configured\n\
            is detached from with the configuration that add kept.",
        example = "{command_name} mynet /run/netns/demo",
        example = "{command_name} mynet --id 0123abcd",
        note = "Namespace and arguments that are not given are those of add, when it kept a result.",
        error_code(1, "it failed; the reason is on standard error, or with --json on standard output"),
        error_code(2, "wrong arguments")
    )]
    Del (Option<String>) {
        /// print what would be done, as ip, nft and file commands, and do nothing
        #[argh(switch)]
        dry_run: bool,
    }
}

network_verb! {
    /// Arguments of `cni-all gc`.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "gc",
        help_triggers("-h", "--help"),
        description = "remove what attachments that are gone have left\n\n\
            Detaches the attachments of a network that were kept and whose namespace is gone, then runs GC\n\
            of its plugins. In use, and left alone, is what has a namespace: what is kept with a path that\n\
            exists, and what `cni-all show` finds.",
        example = "{command_name} mynet",
        example = "{command_name} mynet --valid 0123abcd/eth0 --valid 4567cdef/eth0",
        error_code(1, "something could not be removed; everything else was"),
        error_code(2, "wrong arguments")
    )]
    Gc {
        /// an attachment that is in use, ID/IFNAME; may be given several times: only these are
        #[argh(option, arg_name = "ID/IFNAME")]
        valid: Vec<String>,

        /// no attachment of the network is in use
        #[argh(switch)]
        all: bool,
    }
}

network_verb! {
    /// Arguments of `cni-all status`.
    #[derive(FromArgs, ArgsInfo)]
    #[argh(
        subcommand,
        name = "status",
        help_triggers("-h", "--help"),
        description = "tell whether containers could be attached now\n\n\
            Runs STATUS of the network's plugins (from cniVersion 1.1.0 on). Prints nothing when all is well.",
        example = "{command_name} mynet",
        error_code(1, "the reason why not is on standard error, or with --json on standard output"),
        error_code(2, "wrong arguments")
    )]
    Status {}
}

/// What the operations have in common.
#[derive(Clone, Copy, Default)]
struct Call<'a> {
    ifname: Option<&'a str>,
    id: Option<&'a str>,
    args: Option<&'a str>,
    capability_args: Option<&'a str>,
    conf_dir: Option<&'a str>,
    options: Options<'a>,
    network: &'a str,
}

impl Call<'_> {
    fn runtime(&self, process: &Process<'_>) -> Runtime {
        networks::runtime(process, self.options)
    }

    /// The network; its version is `spoken` from then on.
    fn network(&self, process: &mut Process<'_>, command: &str, spoken: &mut Version) -> Result<NetworkList> {
        let dir = networks::conf_dir(process, self.conf_dir);
        let mut found = networks::named(process, command, &[self.network], &dir)?;
        let network = found.pop().ok_or_else(|| Error::internal("no network was named"))?;
        *spoken = Version::from_text(&network.version).unwrap_or(Version::LATEST);
        Ok(network)
    }

    fn ifname(&self, process: &Process<'_>) -> String {
        networks::given(process, self.ifname, "CNI_IFNAME").unwrap_or("eth0".to_owned())
    }

    /// The attachment that the arguments name.
    fn attachment(&self, process: &Process<'_>, netns: &str) -> Result<Attachment> {
        let netns = resolve(netns)?;
        let id = container_id(self.id, &netns);
        Ok(Attachment {
            args: networks::args(process, self.args)?,
            capability_args: networks::capability_args(process, self.capability_args)?,
            ..Attachment::new(id, netns, self.ifname(process))
        })
    }
}

impl Add {
    /// Attaches; prints the result.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        end(process, "cni-all add", self.json, &mut |process, spoken| self.add(process, spoken))
    }

    fn add(&self, process: &mut Process<'_>, spoken: &mut Version) -> Result<i32> {
        let call = self.call();
        let network = call.network(process, "cni-all add", spoken)?;
        let mut attachment = call.attachment(process, &self.netns)?;
        let networks = std::slice::from_ref(&network);
        networks::add_port_mappings(&mut attachment.capability_args, &self.publish, networks)?;
        namespace(&attachment.netns)?;
        let runtime = Runtime { keep_failed: self.keep_failed, ..call.runtime(process) };
        if self.dry_run {
            let text = preview(&runtime, &network, Order::FilesFirst, |runtime, network| {
                runtime.add(network, &attachment)
            })?;
            return Ok(print(process, &text));
        }
        let result = runtime.add(&network, &attachment)?;
        let text = match self.json {
            true => result.to_json(*spoken)?,
            false => lines(&network.name, &attachment.ifname, &result),
        };
        let status = print(process, &text);
        if status != 0 {
            // Nobody knows of it.
            runtime.del(&network, &attachment)?;
        }
        Ok(status)
    }
}

impl Check {
    /// Compares.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        end(process, "cni-all check", self.json, &mut |process, spoken| {
            let call = self.call();
            let network = call.network(process, "cni-all check", spoken)?;
            let mut attachment = call.attachment(process, &self.netns)?;
            namespace(&attachment.netns)?;
            let runtime = call.runtime(process);
            let Attachment { container_id, ifname, .. } = &attachment;
            // What cannot be read is what the comparison says then.
            if let Ok(Some(kept)) = runtime.cached_attachment(&network.name, container_id, ifname) {
                complete(&mut attachment, kept);
            }
            runtime.check(&network, &attachment).map(|()| 0)
        })
    }
}

impl Del {
    /// Detaches.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        if self.netns.is_none() && self.id.is_none() {
            return usage(process, "cni-all del", "neither NETNS nor --id is given");
        }
        end(process, "cni-all del", self.json, &mut |process, spoken| self.del(process, spoken))
    }

    fn del(&self, process: &mut Process<'_>, spoken: &mut Version) -> Result<i32> {
        let call = self.call();
        let runtime = call.runtime(process);
        let mut attachment = call.attachment(process, self.netns.as_deref().unwrap_or_default())?;
        let configured = call.network(process, "cni-all del", spoken);
        let name = configured.as_ref().map_or(self.network.as_str(), |network| &network.name).to_owned();
        // What is kept and cannot be read is as good as nothing.
        let kept = runtime.cached_attachment(&name, &attachment.container_id, &attachment.ifname);
        let kept = kept.ok().flatten();
        let network = match (configured, &kept) {
            (Ok(network), _) => network,
            (Err(_), Some(kept)) if !kept.config.is_empty() => NetworkList::parse(&kept.config)?,
            (Err(e), _) => return Err(e),
        };
        if let Some(kept) = kept {
            if self.netns.is_none() {
                attachment.netns.clone_from(&kept.netns);
            }
            complete(&mut attachment, kept);
        }
        if self.dry_run {
            let text = preview(&runtime, &network, Order::FilesLast, |runtime, network| {
                runtime.del(network, &attachment)
            })?;
            return Ok(if text.is_empty() { 0 } else { print(process, &text) });
        }
        runtime.del(&network, &attachment).map(|()| 0)
    }
}

impl Gc {
    /// Collects.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        if self.all && !self.valid.is_empty() {
            return usage(process, "cni-all gc", "--all and --valid exclude each other");
        }
        let mut valid = Vec::new();
        for word in &self.valid {
            match word.split_once('/').filter(|(id, ifname)| is_identifier(id) && !ifname.is_empty()) {
                Some((id, ifname)) => {
                    valid.push(ValidAttachment { container_id: id.to_owned(), ifname: ifname.to_owned() });
                }
                None => {
                    let msg = format!("--valid: {word:?} is not ID/IFNAME, such as 0123abcd/eth0");
                    return usage(process, "cni-all gc", &msg);
                }
            }
        }
        end(process, "cni-all gc", self.json, &mut |process, spoken| {
            let call = self.call();
            let network = call.network(process, "cni-all gc", spoken)?;
            let runtime = call.runtime(process);
            if !self.all && valid.is_empty() {
                let dir = networks::conf_dir(process, call.conf_dir);
                valid = collect::in_use(&runtime, &network, &dir)?;
            }
            runtime.gc(&network, Some(&valid)).map(|()| 0)
        })
    }
}

impl Status {
    /// Asks.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        end(process, "cni-all status", self.json, &mut |process, spoken| {
            let network = self.call().network(process, "cni-all status", spoken)?;
            self.call().runtime(process).status(&network).map(|()| 0)
        })
    }
}

/// Arguments that are not given are those that were kept at ADD.
fn complete(attachment: &mut Attachment, kept: CachedAttachment) {
    if attachment.args.is_empty() {
        attachment.args = kept.args;
    }
    if attachment.capability_args.is_empty() {
        attachment.capability_args = kept.capability_args;
    }
}

/// An operation: its exit status. It says which version of the protocol is spoken, once it knows.
type Work<'a> = &'a mut dyn FnMut(&mut Process<'_>, &mut Version) -> Result<i32>;

/// Does the work, and says what failed; the exit status.
fn end(process: &mut Process<'_>, command: &str, json: bool, work: Work<'_>) -> i32 {
    let mut spoken = Version::LATEST;
    work(process, &mut spoken).unwrap_or_else(|e| fail(process, command, json.then_some(spoken), &e))
}

/// Says what failed: for people, or as that version of the protocol does.
fn fail(process: &mut Process<'_>, command: &str, json: Option<Version>, err: &Error) -> i32 {
    if let Some(version) = json {
        let _ = print(process, &error_json(err, version));
        return FAILED;
    }
    super::fail(process, command, err)
}
