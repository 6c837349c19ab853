//! Another configuration for an attachment that exists. The protocol knows no such verb; plugins that are built in can do it
//! ([`Plugin::update`]), in as far as no address, name or link has to be another one.
//!
//! What was kept at ADD says how things are. All is decided before anything is done: the whole update runs once with
//! changes that are recorded and not made, and once for real.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::cache::CachedAttachment;
use super::chain::{Injected, configuration};
use super::conflist::{NetworkList, plugin_type};
use super::difference::{self, KeyChange, Readers};
use super::run::{Attachment, Runtime, version};
use crate::cni::json::Value;
use crate::cni::version::negotiate;
use crate::cni::{CniResult, Code, Command, Error, Request, Result, ResultExt};
use crate::kernel::dry_run::{is_on, record};
use crate::kernel::netns::Netns;
use crate::kernel::{Kernel, lock};
use crate::plugins::{self, Plugin, Update};

/// What an update changed, or would change.
#[derive(Clone, Debug, Default)]
pub struct Updated {
    /// The attachment: what was not given is as it was kept.
    pub attachment: Attachment,
    /// The keys of the configuration that are different.
    pub keys: Vec<KeyChange>,
    /// The changes, as an operator would type them.
    pub commands: Vec<String>,
    /// The result of ADD, as it is now.
    pub result: CniResult,
}

impl Updated {
    /// Everything was as it should be.
    pub fn is_nothing(&self) -> bool {
        self.keys.is_empty() && self.commands.is_empty()
    }
}

/// One entry of the old or the new list.
#[derive(Clone, Copy)]
enum Step<'a> {
    /// It is in both.
    Stay { from: &'a Value, to: &'a Value, plugin: Option<&'static dyn Plugin>, is_changed: bool },
    /// It is new.
    Join { to: &'a Value, plugin: &'static dyn Plugin },
    /// It is in the old list only.
    Leave { from: &'a Value, plugin: &'static dyn Plugin },
}

/// A network as an attachment has it.
#[derive(Clone, Copy)]
struct Side<'a> {
    network: &'a NetworkList,
    attachment: &'a Attachment,
}

/// What is to be done.
struct Plan<'a> {
    from: Side<'a>,
    to: Side<'a>,
    steps: Vec<Step<'a>>,
    keys: Vec<KeyChange>,
    result: CniResult,
}

/// Old and new list, entry by entry.
enum Pair<'a> {
    Both(&'a Value, &'a Value),
    Old(&'a Value),
    New(&'a Value),
}

impl Runtime {
    /// Makes an attachment what `network` says now, as against what was kept at ADD, without another address: limits,
    /// port mappings, policies, MTU, routes and others (README, "Change what is attached"). What is kept is then the new
    /// configuration and result, so that DEL and CHECK with it succeed.
    ///
    /// Of the attachment, container id and interface name are needed. A namespace and `args` that are given must be those
    /// of ADD. A capability argument takes the place of the one of that name; null takes it away.
    ///
    /// # Errors
    /// Nothing is kept about the attachment. [`Code::NEEDS_NEW_ATTACHMENT`], naming key, old and new value, when something
    /// else is different: then nothing is done at all. A failure, after which everything is as it was; `details` say what
    /// could not be taken back.
    pub fn update(&self, network: &NetworkList, attachment: &Attachment) -> Result<Updated> {
        self.logged("UPDATE", network, attachment, || {
            attachment.check()?;
            let _lock = self.lock(false, false)?;
            let _own = self.lock_attachment(&network.name, attachment, true)?;
            self.with_plan(network, attachment, |plan| {
                let updated = self.preview(plan)?;
                if updated.is_nothing() {
                    return Ok(updated);
                }
                let result = self.apply(plan)?;
                Ok(Updated { result, ..updated })
            })
        })
    }

    /// What [`Runtime::update`] would change. Nothing is done.
    ///
    /// # Errors
    /// As for [`Runtime::update`].
    pub fn preview_update(&self, network: &NetworkList, attachment: &Attachment) -> Result<Updated> {
        attachment.check()?;
        self.with_plan(network, attachment, |plan| self.preview(plan))
    }

    /// Reads what is kept, and decides what is to be done.
    fn with_plan<T>(
        &self,
        network: &NetworkList,
        given: &Attachment,
        work: impl FnOnce(&Plan<'_>) -> Result<T>,
    ) -> Result<T> {
        let Attachment { container_id, ifname, .. } = given;
        let missing = |what: &str| {
            let msg =
                format!("container {container_id} interface {ifname} on network {}: {what}", network.name);
            let dir = self.cache_dir.join("results");
            Error::internal(msg).with_details(format!("attachments are kept in {}", dir.display()))
        };
        let kept = self.cached((&network.name, container_id, ifname))?;
        let kept = kept.ok_or_else(|| missing("nothing is kept about such an attachment"))?;
        let result = kept.result()?.ok_or_else(|| missing("the result of ADD was not kept"))?;
        if kept.config.is_empty() {
            return Err(missing("the configuration of ADD was not kept (libcni before 0.8)"));
        }
        let former = NetworkList::parse(&kept.config).context("the configuration that was kept")?;
        must_be_inlined(network)?;
        let was = was(kept, given)?;
        let will = wanted(&network.name, &was, given)?;
        let (from, to) = (Side { network: &former, attachment: &was }, Side { network, attachment: &will });
        let (steps, keys) = steps(from, to)?;
        work(&Plan { from, to, steps, keys, result })
    }

    fn preview(&self, plan: &Plan<'_>) -> Result<Updated> {
        let (outcome, recorded) = record(|| self.run(plan, &mut self.kernel()));
        let result = outcome?;
        let recorded = recorded?;
        let files = recorded.files.into_iter().flat_map(|(_, lines)| lines);
        Ok(Updated {
            attachment: plan.to.attachment.clone(),
            keys: plan.keys.clone(),
            commands: recorded.lines.into_iter().chain(files).collect(),
            result,
        })
    }

    fn apply(&self, plan: &Plan<'_>) -> Result<CniResult> {
        let mut kernel = self.kernel();
        let result = self.run(plan, &mut kernel)?;
        match self.keep(&as_kept(plan), plan.to.attachment, &result) {
            Ok(()) => Ok(result),
            Err(failure) => Err(self.take_back(plan, plan.steps.len(), failure, &mut kernel)),
        }
    }

    /// Runs the steps in the order of the lists. When one fails, those before it and itself are taken back.
    fn run(&self, plan: &Plan<'_>, kernel: &mut Kernel) -> Result<CniResult> {
        let mut result = plan.result.clone();
        for (done, step) in plan.steps.iter().enumerate() {
            match self.step((plan.from, plan.to), *step, &result, kernel) {
                Ok(next) => result = next,
                Err(failure) if is_on() => return Err(failure),
                Err(failure) => return Err(self.take_back(plan, done + 1, failure, kernel)),
            }
        }
        Ok(result)
    }

    /// Does so many steps back: `failure`, with what could not be taken back. In the order of the list, as any update, with
    /// the entries behind that stay: they may set once more what an earlier one sets.
    fn take_back(&self, plan: &Plan<'_>, steps: usize, failure: Error, kernel: &mut Kernel) -> Error {
        let concerned = |(at, step): &(usize, &Step<'_>)| *at < steps || matches!(step, Step::Stay { .. });
        let back = plan
            .steps
            .iter()
            .enumerate()
            .filter(concerned)
            .map(|(_, step)| self.step((plan.to, plan.from), step.reversed(), &plan.result, kernel));
        match Error::all(back.filter_map(Result::err).collect()) {
            None => failure,
            Some(left) => failure.with_left(&left),
        }
    }

    /// One step; the result after it. A panic is an error like any other: what was done must still be taken back.
    fn step(
        &self,
        (from, to): (Side<'_>, Side<'_>),
        step: Step<'_>,
        result: &CniResult,
        kernel: &mut Kernel,
    ) -> Result<CniResult> {
        let (entry, plugin) = match step {
            // Another program is left alone: its configuration is the same.
            Step::Stay { plugin: None, .. } => return Ok(result.clone()),
            Step::Stay { to: entry, plugin: Some(plugin), .. }
            | Step::Join { to: entry, plugin }
            | Step::Leave { from: entry, plugin } => (entry, plugin),
        };
        let run = || match step {
            Step::Stay { from: old, is_changed, .. } => {
                let from = self.asked(from, Command::Add, old, result)?;
                let to = self.asked(to, Command::Add, entry, result)?;
                plugins::refuse_own_netns(&to)?;
                negotiate(Command::Add, to.config.version.as_str(), plugin.versions())?;
                plugin.update(Update { from: &from, to: &to, is_changed }, kernel)
            }
            Step::Join { .. } => {
                let req = self.asked(to, Command::Add, entry, result)?;
                negotiate(Command::Add, req.config.version.as_str(), plugin.versions())?;
                plugin.add(&req, kernel)
            }
            Step::Leave { .. } => plugin.leave(&self.asked(from, Command::Del, entry, result)?, kernel),
        };
        catch_unwind(AssertUnwindSafe(|| lock::patiently(self.timeout, run)))
            .unwrap_or_else(|_| Err(Error::internal("panicked, see standard error")))
            .context(format_args!("network {}: plugin {} (update)", to.network.name, plugin.name()))
    }

    fn asked(&self, side: Side<'_>, command: Command, entry: &Value, result: &CniResult) -> Result<Request> {
        let prev_result = result.to_json(version(side.network))?;
        let injected = Injected {
            prev_result: Some(&prev_result),
            capability_args: &side.attachment.capability_args,
            valid_attachments: None,
        };
        self.request(side.network, side.attachment, command, entry, &injected)
    }
}

impl<'a> Step<'a> {
    /// The step that takes it back.
    fn reversed(self) -> Step<'a> {
        match self {
            Step::Stay { from, to, plugin, is_changed } => {
                Step::Stay { from: to, to: from, plugin, is_changed }
            }
            Step::Join { to, plugin } => Step::Leave { from: to, plugin },
            Step::Leave { from, plugin } => Step::Join { to: from, plugin },
        }
    }
}

/// The steps from one list to the other, and all that differs.
///
/// # Errors
/// [`Code::NEEDS_NEW_ATTACHMENT`] for everything that cannot be done.
fn steps<'a>(from: Side<'a>, to: Side<'a>) -> Result<(Vec<Step<'a>>, Vec<KeyChange>)> {
    let mut keys = difference::of_lists(from.network, to.network);
    let (mut steps, mut refused) = (Vec::new(), Vec::new());
    let Some(pairs) = pairs(&from.network.plugins, &to.network.plugins)? else {
        let types = |list: &NetworkList| {
            let names = list.plugins.iter().map(plugin_type).collect::<Result<Vec<_>>>()?;
            Ok::<_, Error>(Some(Value::Array(names.into_iter().map(Value::String).collect())))
        };
        let (plugin, key) = ("network".to_owned(), "plugins".to_owned());
        let change = KeyChange { plugin, key, from: types(from.network)?, to: types(to.network)? };
        return Err(needs_new(&to.network.name, &[change]));
    };
    let sets_routes = |key: &str| ["ipam.routes", "isDefaultGateway"].contains(&key);
    let moves_routes =
        |value: &Value| plugin_type(value).is_ok_and(|name| ["sbr", "vrf"].contains(&name.as_str()));
    let routes_are_moved = to.network.plugins.iter().any(moves_routes);
    for pair in pairs {
        match pair {
            Pair::Both(old, new) => {
                let readers = readers(new)?;
                let (was, is) = (derived(from, old)?, derived(to, new)?);
                let changes = readers.differences(&was, &is)?;
                let (live, stuck): (Vec<_>, Vec<_>) = changes.into_iter().partition(|change| {
                    readers.is_live(&change.key) && !(routes_are_moved && sets_routes(&change.key))
                });
                let (plugin, is_changed) = (readers.plugin, !live.is_empty());
                steps.push(Step::Stay { from: old, to: new, plugin, is_changed });
                keys.extend(live);
                refused.extend(stuck);
            }
            Pair::New(entry) | Pair::Old(entry) => {
                let joins = matches!(pair, Pair::New(_));
                let name = plugin_type(entry)?;
                let change = KeyChange::of_list(&name, joins);
                // What two of a kind have made is not told apart.
                let all = from.network.plugins.iter().chain(&to.network.plugins);
                let alone = all.filter(|other| plugin_type(other).is_ok_and(|n| n == name)).count() == 1;
                match readers(entry)?.plugin.filter(|plugin| alone && plugin.joins()) {
                    Some(plugin) if joins => steps.push(Step::Join { to: entry, plugin }),
                    Some(plugin) => steps.push(Step::Leave { from: entry, plugin }),
                    None => {
                        refused.push(change);
                        continue;
                    }
                }
                keys.push(change);
            }
        }
    }
    match refused.is_empty() {
        true => Ok((steps, keys)),
        false => Err(needs_new(&to.network.name, &refused)),
    }
}

/// Who is to read an entry. A plugin whose name is built in is ours, whatever file of that name did ADD: no file can do this.
fn readers(entry: &Value) -> Result<Readers> {
    let ipam = entry.get("ipam").and_then(|ipam| plugin_type(&ipam).ok());
    Ok(Readers { plugin: plugins::find(&plugin_type(entry)?), ipam: ipam.as_deref().and_then(plugins::find) })
}

/// Refuses a list with a folder of plugins: neither libcni nor we keep what was in that.
fn must_be_inlined(network: &NetworkList) -> Result<()> {
    match NetworkList::parse(&network.bytes) {
        Ok(inlined) if inlined.plugins.len() == network.plugins.len() => Ok(()),
        _ => Err(Error::config(format!(
            "network {}: some of its plugins are files of a folder, of which nothing is kept at ADD: what changed is not known",
            network.name
        ))),
    }
}

/// The attachment as it was kept.
///
/// # Errors
/// What is given about it says that another one is meant.
fn was(kept: CachedAttachment, given: &Attachment) -> Result<Attachment> {
    let netns = kept.namespace().unwrap_or_else(|| given.netns.clone());
    let CachedAttachment { container_id, ifname, args, capability_args, .. } = kept;
    let is_same = given.netns.is_empty() || given.netns == netns || {
        let (is, wanted) = (Netns::find(&netns)?, Netns::find(&given.netns)?);
        is.zip(wanted).is_some_and(|(is, wanted)| is.same_as(&wanted))
    };
    if !is_same {
        let msg = format!("container {container_id} is attached in {netns}, not in {}", given.netns);
        return Err(Error::internal(msg));
    }
    Ok(Attachment { container_id, netns, ifname, args, capability_args })
}

/// The attachment with the arguments that are given.
fn wanted(network: &str, was: &Attachment, given: &Attachment) -> Result<Attachment> {
    let mut will = was.clone();
    if !given.args.is_empty() && given.args != was.args {
        let text = |pairs: &[(String, String)]| {
            let pairs: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
            (!pairs.is_empty()).then(|| Value::String(pairs.join(";")))
        };
        let (plugin, key) = ("network".to_owned(), "CNI_ARGS".to_owned());
        let change = KeyChange { plugin, key, from: text(&was.args), to: text(&given.args) };
        return Err(needs_new(network, &[change]));
    }
    for (name, value) in &given.capability_args {
        let place = will.capability_args.iter().position(|(known, _)| known == name);
        match (place, value) {
            (Some(place), Value::Null) => drop(will.capability_args.remove(place)),
            (None, Value::Null) => {}
            (Some(place), value) => will.capability_args[place].1 = value.clone(),
            (None, value) => will.capability_args.push((name.clone(), value.clone())),
        }
    }
    Ok(will)
}

/// What cannot be changed.
fn needs_new(network: &str, changes: &[KeyChange]) -> Error {
    let all: Vec<String> = changes.iter().map(ToString::to_string).collect();
    let msg = format!("network {network}: needs a new attachment: {}", all.join("; "));
    let details = "nothing was changed; detach the container and attach it again, or take these changes back";
    Error::new(Code::NEEDS_NEW_ATTACHMENT, msg).with_details(details)
}

/// An entry's configuration as the plugin gets it.
fn derived(side: Side<'_>, entry: &Value) -> Result<Value> {
    let injected = Injected { capability_args: &side.attachment.capability_args, ..Injected::default() };
    Value::parse(&configuration(side.network, entry, &injected)?)
}

/// Which entry of the old list is which of the new one: by type, in order. `None` when the order is another one.
fn pairs<'a>(old: &'a [Value], new: &'a [Value]) -> Result<Option<Vec<Pair<'a>>>> {
    let typed = |list: &'a [Value]| -> Result<Vec<(String, &'a Value)>> {
        list.iter().map(|entry| Ok((plugin_type(entry)?, entry))).collect()
    };
    let (old, new) = (typed(old)?, typed(new)?);
    let (mut i, mut j) = (0, 0);
    let mut pairs = Vec::new();
    loop {
        let has = |list: &[(String, &Value)], name: &str| list.iter().any(|(other, _)| other == name);
        let (rest_old, rest_new) = (old.get(i..).unwrap_or_default(), new.get(j..).unwrap_or_default());
        match (rest_old.first(), rest_new.first()) {
            (None, None) => return Ok(Some(pairs)),
            (Some((a, was)), Some((b, is))) if a == b => {
                pairs.push(Pair::Both(was, is));
                (i, j) = (i + 1, j + 1);
            }
            (Some((a, was)), _) if !has(rest_new, a) => {
                pairs.push(Pair::Old(was));
                i += 1;
            }
            (_, Some((b, is))) if !has(rest_old, b) => {
                pairs.push(Pair::New(is));
                j += 1;
            }
            _ => return Ok(None),
        }
    }
}

/// The network with the bytes that are to be kept: a list where a list was kept. Runtimes keep a single configuration as a
/// list of one, and read it as such.
fn as_kept(plan: &Plan<'_>) -> NetworkList {
    let mut network = plan.to.network.clone();
    let is_list = |bytes: &[u8]| Value::parse(bytes).is_ok_and(|value| value.get("plugins").is_some());
    if is_list(&plan.from.network.bytes) && !is_list(&network.bytes) {
        let list = Value::Object(vec![
            ("cniVersion".to_owned(), Value::String(network.version.clone())),
            ("name".to_owned(), Value::String(network.name.clone())),
            ("plugins".to_owned(), Value::Array(network.plugins.clone())),
        ]);
        network.bytes = list.to_text().into_bytes();
    }
    network
}
