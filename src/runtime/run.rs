//! The verbs over a whole list (CNI spec, section 3; reference: core.md 3.2, 4.1, 4.3).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use super::cache::{Cache, CachedAttachment, Lock};
use super::chain::{Injected, configuration};
use super::conflist::{NetworkList, plugin_type};
use crate::cni::json::Value;
use crate::cni::names::{check_container_id, check_former_ifname, check_ifname};
use crate::cni::{
    Accepts, CniResult, Code, Command, Environment, Error, Execution, Request, Result, ResultExt,
    ValidAttachment, Version,
};
use crate::kernel::netns::Netns;
use crate::kernel::rtnl::Handle;
use crate::kernel::{Kernel, lock};
use crate::log::{Log, Operation, phase};
use crate::{invoke, plugins};

/// Where libcni keeps results.
pub const CACHE_DIR: &str = "/var/lib/cni";

/// One container's interface in one network: what an operation is about.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attachment {
    /// The container's id.
    pub container_id: String,
    /// Path of the container's network namespace; may be empty for DEL.
    pub netns: String,
    /// The interface's name inside.
    pub ifname: String,
    /// `CNI_ARGS`: names and values.
    pub args: Vec<(String, String)>,
    /// What the plugins get as `runtimeConfig`: name and value. Each gets those that it declares as `capabilities`.
    pub capability_args: Vec<(String, Value)>,
}

impl Attachment {
    /// An attachment without arguments.
    pub fn new(
        container_id: impl Into<String>,
        netns: impl Into<String>,
        ifname: impl Into<String>,
    ) -> Attachment {
        Attachment {
            container_id: container_id.into(),
            netns: netns.into(),
            ifname: ifname.into(),
            ..Attachment::default()
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        check_container_id(&self.container_id)?;
        check_ifname(&self.ifname)
    }
}

/// What libcni is to a container runtime written in Go: runs the plugins of a network and remembers what they returned.
///
/// A value holds settings only, and can be used from several threads at once. As the protocol demands, no two operations
/// may run at once for one container; GC waits for the other operations of every process that uses the same cache
/// through this library, and they for it.
#[derive(Clone, Debug)]
pub struct Runtime {
    /// Where plugins are looked for (`CNI_PATH`). One that is found nowhere, and is built in, runs in this process; so does
    /// one whose file is this very executable.
    pub plugin_dirs: Vec<PathBuf>,
    /// Plugins that are built in run in this process, whatever files of their names there are.
    pub prefer_built_in: bool,
    /// Where results are kept, in its folder `results`; [`CACHE_DIR`] for everybody.
    pub cache_dir: PathBuf,
    /// How long another process is waited for: an executable that takes longer is killed; a lock that it holds, or an
    /// answer of the dhcp daemon, is given up. The operation has failed then.
    pub timeout: Option<Duration>,
    /// What a failed ADD left is not removed: somebody wants to look at it, and calls [`Runtime::del`] later.
    pub keep_failed: bool,
    /// A child process waits for the kernel to finish the removal of links (some 16 ms), not this one. For programs that
    /// end soon: one that lives on would have to wait for that child.
    pub detach_removal: bool,
    /// The containers' namespace may be this process's own.
    pub netns_override: bool,
    /// Variables that executables get besides the protocol's and this process's own, such as `TRACEPARENT`. Of these,
    /// built-in plugins look at `DBUS_SYSTEM_BUS_ADDRESS`, where firewalld is asked for.
    pub environment: Vec<(String, String)>,
    /// Where a line about every operation goes: `stderr`, or a file; empty: where the network's key `log` says.
    pub log: String,
    /// The `TRACEPARENT` (W3C Trace Context) that those lines name; executables get it as one of their variables.
    pub trace: Option<String>,
}

/// What an ADD finds in its place.
#[derive(Clone, Copy)]
enum There {
    /// Nothing that is known.
    Nothing,
    /// An interface of that name in the container.
    Interface,
    /// This attachment: it is kept, and its interface is there.
    Attachment,
}

impl Runtime {
    /// A runtime that looks for plugins in these directories, with libcni's cache and no time limit.
    pub fn new<P: Into<PathBuf>>(plugin_dirs: impl IntoIterator<Item = P>) -> Runtime {
        Runtime {
            plugin_dirs: plugin_dirs.into_iter().map(Into::into).collect(),
            prefer_built_in: false,
            cache_dir: CACHE_DIR.into(),
            timeout: None,
            keep_failed: false,
            detach_removal: false,
            netns_override: false,
            environment: Vec::new(),
            log: String::new(),
            trace: None,
        }
    }

    /// Runs an operation with its line in the log.
    pub(super) fn logged<T>(
        &self,
        verb: &str,
        network: &NetworkList,
        attachment: &Attachment,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let log = Log::to(if self.log.is_empty() { &network.log } else { &self.log });
        let about = Operation {
            plugin: "",
            network: &network.name,
            container_id: &attachment.container_id,
            ifname: &attachment.ifname,
            netns: &attachment.netns,
            trace: self.trace.as_deref(),
        };
        log.operation(verb, &about, work)
    }

    /// ADD: every plugin in order, each with the result of the one before. The result is the last plugin's; it is kept
    /// for the operations that follow.
    ///
    /// When it fails, the DEL of those plugins is run that have succeeded, and of the one that failed if it is another
    /// executable; unless [`Runtime::keep_failed`] is set. None is run when the attachment was there before, and that of
    /// another executable not when something else in the container has the interface's name.
    ///
    /// # Errors
    /// The first failure, naming network and plugin; `details` say what could not be taken back. Before anything is
    /// done: ids and names that are not valid, and a plugin that is not there.
    pub fn add(&self, network: &NetworkList, attachment: &Attachment) -> Result<CniResult> {
        self.logged(Command::Add.as_str(), network, attachment, || self.attach(network, attachment))
    }

    fn attach(&self, network: &NetworkList, attachment: &Attachment) -> Result<CniResult> {
        attachment.check()?;
        for plugin in &network.plugins {
            self.find(network, plugin)?;
        }
        let _lock = match network.name.is_empty() {
            true => None,
            false => Some(self.lock(false, true)?),
        };
        let mut kernel = self.kernel();
        let there = self.what_is_there(&network.name, attachment);
        let added = self.add_each(network, attachment, &mut kernel).and_then(|result| {
            let all = network.plugins.len();
            self.keep(network, attachment, &result).map_err(|failure| (all, failure))?;
            Ok(result)
        });
        let (done, failure) = match added {
            Ok(result) => return Ok(result),
            Err((_, failure)) if self.keep_failed => return Err(failure),
            Err(failed) => failed,
        };
        let plugins = self.to_take_back(network, done, there);
        match self.del_each(network, plugins, attachment, None, &mut kernel) {
            Ok(()) => Err(failure),
            Err(left) => Err(failure.with_left(&left)),
        }
    }

    /// What an ADD of this attachment finds. What cannot be looked at is not there.
    fn what_is_there(&self, network: &str, attachment: &Attachment) -> There {
        let Attachment { container_id, netns, ifname, .. } = attachment;
        let has_interface = |path: &str| {
            let found = Netns::find(path).ok().flatten();
            found.is_some_and(|netns| {
                netns.enter(|| Handle::open()?.link(ifname)).is_ok_and(|link| link.is_some())
            })
        };
        let kept = self.cached((network, container_id, ifname)).ok().flatten();
        match kept.and_then(|kept| kept.namespace()).is_some_and(|path| has_interface(&path)) {
            true => There::Attachment,
            false if has_interface(netns) => There::Interface,
            false => There::Nothing,
        }
    }

    /// The plugins whose DEL takes back an ADD that failed when so many had succeeded. One that runs in this process has
    /// taken back its own; another's DEL would remove the interface that it found in its way.
    fn to_take_back<'a>(&self, network: &'a NetworkList, done: usize, there: There) -> &'a [Value] {
        let is_ours = |plugin: &Value| {
            plugin_type(plugin).is_ok_and(|name| invoke::is_ours(&name, &self.path(), &self.execution()))
        };
        let failed = network.plugins.get(done);
        let end = match (there, failed) {
            (There::Attachment, _) => 0,
            (There::Nothing, Some(plugin)) if !is_ours(plugin) => done + 1,
            _ => done,
        };
        network.plugins.get(..end).unwrap_or_default()
    }

    /// DEL: every plugin in reverse order, with the result of ADD where it was kept and the version knows that. Succeeds
    /// when there is nothing to remove. What was kept about the attachment is forgotten when everything succeeded.
    ///
    /// # Errors
    /// All failures together; every plugin was called.
    pub fn del(&self, network: &NetworkList, attachment: &Attachment) -> Result<()> {
        self.logged(Command::Del.as_str(), network, attachment, || self.detach(network, attachment))
    }

    fn detach(&self, network: &NetworkList, attachment: &Attachment) -> Result<()> {
        check_container_id(&attachment.container_id)?;
        check_former_ifname(&attachment.ifname)?;
        let _lock = self.lock(false, false)?;
        let _own = self.lock_attachment(&network.name, attachment, false)?;
        self.del_cached(network, attachment)
    }

    /// DEL, for one who holds the lock.
    fn del_cached(&self, network: &NetworkList, attachment: &Attachment) -> Result<()> {
        let of = (network.name.as_str(), attachment.container_id.as_str(), attachment.ifname.as_str());
        // A result that cannot be read must not keep anything from being removed.
        let result = self.cached(of).ok().flatten().and_then(|cached| cached.result().ok().flatten());
        let result = result.filter(|_| version(network) >= Version::V0_4_0);
        self.del_each(network, &network.plugins, attachment, result.as_ref(), &mut self.kernel())?;
        match network.name.is_empty() {
            true => Ok(()),
            false => self.cache().remove(of.0, of.1, of.2),
        }
    }

    /// CHECK: every plugin in order, each with the result of ADD if it was kept. Does nothing for a network with
    /// `disableCheck`.
    ///
    /// # Errors
    /// The first failure. [`Code::INCOMPATIBLE_VERSION`] for a network whose version (before 0.4.0) knows no CHECK; a
    /// result that was kept and cannot be read.
    pub fn check(&self, network: &NetworkList, attachment: &Attachment) -> Result<()> {
        self.logged(Command::Check.as_str(), network, attachment, || self.compare(network, attachment))
    }

    fn compare(&self, network: &NetworkList, attachment: &Attachment) -> Result<()> {
        attachment.check()?;
        if version(network) < Version::V0_4_0 {
            let msg =
                format!("configuration version {:?} does not support the CHECK command", network.version);
            return Err(Error::new(Code::INCOMPATIBLE_VERSION, msg));
        }
        if network.disable_check {
            return Ok(());
        }
        let of = (network.name.as_str(), attachment.container_id.as_str(), attachment.ifname.as_str());
        let result = self.cached(of).and_then(|cached| cached.map_or(Ok(None), |cached| cached.result()));
        let result =
            result.context(format_args!("failed to get network {:?} cached result", network.name))?;
        let mut kernel = self.kernel();
        let prev_result = result.as_ref().map(|result| result.to_json(version(network))).transpose()?;
        let injected = Injected {
            prev_result: prev_result.as_deref(),
            capability_args: &attachment.capability_args,
            valid_attachments: None,
        };
        network.plugins.iter().try_for_each(|plugin| {
            self.call(network, attachment, Command::Check, plugin, &injected, &mut kernel).map(drop)
        })
    }

    /// GC: DEL of the attachments of this network that are kept in the cache and not in `valid`, then (from version 1.1.0
    /// on) GC of every plugin. Does nothing for a network with `disableGC`.
    ///
    /// `None`, as in libcni: every attachment in the cache is stale, and the plugins are given no list, so that they
    /// remove nothing else. An empty list: everything of this network is stale.
    ///
    /// # Errors
    /// All failures together; everything else was removed.
    pub fn gc(&self, network: &NetworkList, valid: Option<&[ValidAttachment]>) -> Result<()> {
        let nobody = Attachment::default();
        self.logged(Command::Gc.as_str(), network, &nobody, || self.collect(network, valid))
    }

    fn collect(&self, network: &NetworkList, valid: Option<&[ValidAttachment]>) -> Result<()> {
        if network.disable_gc {
            return Ok(());
        }
        let _lock = self.lock(true, false)?;
        self.cache().tidy();
        let is_valid = |cached: &CachedAttachment| {
            valid.unwrap_or_default().iter().any(|v| {
                (v.container_id.as_str(), v.ifname.as_str()) == (&cached.container_id, &cached.ifname)
            })
        };
        let mut errors = Vec::new();
        for cached in self.cache().list()?.into_iter().filter(|c| c.network == network.name) {
            if is_valid(&cached) {
                continue;
            }
            let CachedAttachment { container_id, ifname, netns, args, capability_args, .. } = cached;
            let what = format!("stale attachment {container_id} {ifname}");
            let stale = Attachment { container_id, netns, ifname, args, capability_args };
            errors.extend(self.del_cached(network, &stale).context(what).err());
        }
        if version(network) >= Version::V1_1_0 {
            let mut kernel = self.kernel();
            let injected = Injected { valid_attachments: valid, ..Injected::default() };
            let nobody = Attachment::default();
            errors.extend(network.plugins.iter().filter_map(|plugin| {
                self.call(network, &nobody, Command::Gc, plugin, &injected, &mut kernel).err()
            }));
        }
        Error::all(errors).map_or(Ok(()), Err)
    }

    /// STATUS: could every plugin serve ADD now? Always so for versions before 1.1.0, which know no STATUS.
    ///
    /// # Errors
    /// The first plugin's reason why not.
    pub fn status(&self, network: &NetworkList) -> Result<()> {
        let nobody = Attachment::default();
        self.logged(Command::Status.as_str(), network, &nobody, || self.ask(network))
    }

    fn ask(&self, network: &NetworkList) -> Result<()> {
        if version(network) < Version::V1_1_0 {
            return Ok(());
        }
        let mut kernel = self.kernel();
        let nobody = Attachment::default();
        network.plugins.iter().try_for_each(|plugin| {
            let injected = Injected::default();
            self.call(network, &nobody, Command::Status, plugin, &injected, &mut kernel).map(drop)
        })
    }

    /// Whether every plugin of the network is there and speaks its version. The capabilities that they declare.
    ///
    /// # Errors
    /// All failures together.
    pub fn validate(&self, network: &NetworkList) -> Result<Vec<String>> {
        let wanted = if network.version.is_empty() { "0.1.0" } else { &network.version };
        let check = |plugin: &Value| {
            let name = plugin_type(plugin)?;
            let spoken = invoke::versions(&name, &self.path(), &self.execution())?;
            match spoken.iter().any(|version| version == wanted) {
                true => Ok(()),
                false => Err(Error::new(
                    Code::INCOMPATIBLE_VERSION,
                    format!("plugin {name} does not support config version {wanted:?}"),
                )),
            }
        };
        let failures: Vec<Error> = network.plugins.iter().filter_map(|plugin| check(plugin).err()).collect();
        Error::all(failures).map_or_else(|| Ok(network.capabilities()), Err)
    }

    /// The protocol versions that a plugin says it speaks.
    ///
    /// # Errors
    /// There is no such plugin, or it does not answer.
    pub fn versions(&self, plugin: &str) -> Result<Vec<String>> {
        invoke::versions(plugin, &self.path(), &self.execution())
    }

    /// What the cache holds about an attachment; `None` when there is nothing.
    ///
    /// # Errors
    /// [`Code::DECODING`] for a file that cannot be understood.
    pub fn cached_attachment(
        &self,
        network: &str,
        container_id: &str,
        ifname: &str,
    ) -> Result<Option<CachedAttachment>> {
        self.cached((network, container_id, ifname))
    }

    /// Everything the cache holds, in order of file names; of one container when `container_id` is given.
    ///
    /// # Errors
    /// The directory is there and cannot be listed.
    pub fn cached_attachments(&self, container_id: Option<&str>) -> Result<Vec<CachedAttachment>> {
        let mut all = self.cache().list()?;
        all.retain(|cached| container_id.is_none_or(|id| cached.container_id == id));
        Ok(all)
    }

    pub(super) fn cached(
        &self,
        (network, container_id, ifname): (&str, &str, &str),
    ) -> Result<Option<CachedAttachment>> {
        match network.is_empty() || container_id.is_empty() || ifname.is_empty() {
            true => Ok(None),
            false => self.cache().read(network, container_id, ifname),
        }
    }

    pub(super) fn cache(&self) -> Cache {
        Cache::below(&self.cache_dir)
    }

    pub(super) fn lock(&self, exclusive: bool, make: bool) -> Result<Lock> {
        lock::patiently(self.timeout, || self.cache().lock(exclusive, make))
    }

    pub(super) fn lock_attachment(&self, network: &str, of: &Attachment, exclusive: bool) -> Result<Lock> {
        let of = (network, of.container_id.as_str(), of.ifname.as_str());
        lock::patiently(self.timeout, || self.cache().lock_attachment(of, exclusive))
    }

    pub(super) fn kernel(&self) -> Kernel {
        let given = |name: &str| self.environment.iter().find(|(key, _)| key == name);
        let bus = given("DBUS_SYSTEM_BUS_ADDRESS").map(|(_, value)| value.clone());
        Kernel::new(!self.detach_removal).with_system_bus(bus)
    }

    fn execution(&self) -> Execution {
        let trace = self.trace.iter().map(|trace| ("TRACEPARENT".to_owned(), trace.clone()));
        Execution {
            timeout: self.timeout,
            environment: self.environment.iter().cloned().chain(trace).collect(),
            prefer_built_in: self.prefer_built_in,
        }
    }

    /// `CNI_PATH`. It may not be empty; the root directory has no plugins.
    fn path(&self) -> String {
        let dirs: Vec<String> = self
            .plugin_dirs
            .iter()
            .map(|dir| dir.display().to_string())
            .filter(|dir| !dir.is_empty())
            .collect();
        if dirs.is_empty() { "/".to_owned() } else { dirs.join(":") }
    }

    /// The plugin's type, when there is such a plugin.
    fn find(&self, network: &NetworkList, plugin: &Value) -> Result<()> {
        let name = plugin_type(plugin).context(format_args!("network {}", network.name))?;
        invoke::exists(&name, &self.path(), &self.execution())
            .context(format_args!("network {}: plugin {name} (ADD)", network.name))
    }

    /// Every plugin's ADD. A failure comes with the number of plugins that succeeded before.
    fn add_each(
        &self,
        network: &NetworkList,
        attachment: &Attachment,
        kernel: &mut Kernel,
    ) -> Result<CniResult, (usize, Error)> {
        let mut result: Option<CniResult> = None;
        for (done, plugin) in network.plugins.iter().enumerate() {
            let prev_result = result.as_ref().map(|result| result.to_json(version(network))).transpose();
            let prev_result = prev_result.map_err(|failure| (done, failure))?;
            let injected = Injected {
                prev_result: prev_result.as_deref(),
                capability_args: &attachment.capability_args,
                valid_attachments: None,
            };
            let added = self.call(network, attachment, Command::Add, plugin, &injected, kernel);
            result = added.map_err(|failure| (done, failure))?;
        }
        Ok(result.unwrap_or_default())
    }

    /// The DEL of these of the network's plugins, the last first.
    fn del_each(
        &self,
        network: &NetworkList,
        plugins: &[Value],
        attachment: &Attachment,
        result: Option<&CniResult>,
        kernel: &mut Kernel,
    ) -> Result<()> {
        let prev_result = result.and_then(|result| result.to_json(version(network)).ok());
        let injected = Injected {
            prev_result: prev_result.as_deref(),
            capability_args: &attachment.capability_args,
            valid_attachments: None,
        };
        let failures = plugins.iter().rev().filter_map(|plugin| {
            self.call(network, attachment, Command::Del, plugin, &injected, kernel).err()
        });
        Error::all(failures.collect()).map_or(Ok(()), Err)
    }

    /// Remembers what ADD returned. A network without a name has nothing that could be asked for later.
    pub(super) fn keep(
        &self,
        network: &NetworkList,
        attachment: &Attachment,
        result: &CniResult,
    ) -> Result<()> {
        if network.name.is_empty() {
            return Ok(());
        }
        let Attachment { container_id, netns, ifname, args, capability_args } = attachment.clone();
        let result = Value::parse(result.to_json(version(network))?.as_bytes())?;
        let kept = CachedAttachment {
            network: network.name.clone(),
            container_id,
            ifname,
            netns,
            args,
            capability_args,
            config: network.bytes.clone(),
            result: Some(result),
        };
        phase("result cache", || self.cache().write(&kept))
            .context(format_args!("failed to set network {:?} cached result", network.name))
    }

    /// One plugin's verb. A panic is an error like any other: what was attached must still be detached.
    fn call(
        &self,
        network: &NetworkList,
        attachment: &Attachment,
        command: Command,
        plugin: &Value,
        injected: &Injected<'_>,
        kernel: &mut Kernel,
    ) -> Result<Option<CniResult>> {
        let name = &network.name;
        let plugin_type = plugin_type(plugin).context(format_args!("network {name}"))?;
        let run = || {
            let req = self.request(network, attachment, command, plugin, injected)?;
            if plugins::find(&plugin_type).is_some() {
                plugins::refuse_own_netns(&req)?;
            }
            invoke::run(&plugin_type, &req, kernel)
        };
        catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|_| Err(Error::internal("panicked, see standard error")))
            .context(format_args!("network {name}: plugin {plugin_type} ({command})"))
    }

    pub(super) fn request(
        &self,
        network: &NetworkList,
        attachment: &Attachment,
        command: Command,
        plugin: &Value,
        injected: &Injected<'_>,
    ) -> Result<Request> {
        let stdin = configuration(network, plugin, injected)?;
        let args: Vec<String> = attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let environment = Environment::read(|name| {
            Some(match name {
                "CNI_COMMAND" => command.as_str().to_owned(),
                "CNI_CONTAINERID" => attachment.container_id.clone(),
                "CNI_NETNS" => attachment.netns.clone(),
                "CNI_IFNAME" => attachment.ifname.clone(),
                "CNI_ARGS" => args.join(";"),
                "CNI_PATH" => self.path(),
                "CNI_NETNS_OVERRIDE" if self.netns_override => "1".to_owned(),
                _ => return None,
            })
        })?;
        // Which versions the plugin speaks is known where it is found: `invoke::run` asks.
        let nameless =
            plugin_type(plugin).ok().and_then(|name| plugins::find(&name)).is_some_and(|p| p.nameless());
        let mut req = Request::new(environment, stdin, Accepts { versions: Version::ALL, nameless })?;
        req.execution = self.execution();
        Ok(req)
    }
}

/// The version that a network's results have. One that nobody speaks is refused by the plugins.
pub(super) fn version(network: &NetworkList) -> Version {
    Version::from_text(&network.version).unwrap_or(Version::LATEST)
}
