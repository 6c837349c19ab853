//! `cni-all validate`: configurations against every plugin's own rules, without touching the system.

mod shape;

use std::fs;
use std::path::{Path, PathBuf};

use argh::{ArgsInfo, FromArgs};
use ipnet::IpNet;
use serde::Serialize;

use self::shape::did_you_mean_any_case;
use super::{FAILED, fail, print};
use crate::cni::convert::pretty;
use crate::cni::json::Value;
use crate::cni::names::Cidr;
use crate::cni::place::{Place, Position, position};
use crate::cni::{Environment, Error, Request, Result, Version};
use crate::personality::Process;
use crate::plugins::keys::{DNS, Key, Shape, key};
use crate::plugins::{self, Kind, PLUGINS, Plugin};
use crate::runtime::NetworkList;
use crate::runtime::conflist::{folder_files, plugin_type};

/// Keys of a list.
pub const LIST: &[Key] = &[
    key("cniVersion", Shape::Text, "protocol version of the list"),
    key("cniVersions", Shape::List(&Shape::Text), "versions to choose the highest known one from")
        .since(Version::V1_1_0),
    key("name", Shape::Text, "the network's name, unique on the host").required(),
    key("disableCheck", Shape::Any, "never CHECK this network; default: false").since(Version::V0_4_0),
    key("disableGC", Shape::Any, "never GC this network; default: false").since(Version::V1_1_0),
    key("loadOnlyInlinedPlugins", Shape::Any, "ignore the folder named after the network; default: false")
        .since(Version::V1_1_0),
    key("log", Shape::Text, "stderr or a file: a line for each operation of cni-all; default: none"),
    key("plugins", Shape::List(&Shape::Any), "called one after the other to attach a container"),
];

/// Keys that every plugin has.
pub const COMMON: &[Key] = &[
    key("cniVersion", Shape::Text, "protocol version; in a list the list's counts"),
    key("name", Shape::Text, "the network's name; in a list the list's counts"),
    key("type", Shape::Text, "the plugin").required(),
    key("args", Shape::Map(&Shape::Any), "arguments of the runtime; cni holds those for plugins"),
    key("capabilities", Shape::Map(&Shape::Bool), "runtimeConfig that the runtime shall pass to this plugin"),
    key("runtimeConfig", Shape::Map(&Shape::Any), "written by the runtime"),
    key("prevResult", Shape::Map(&Shape::Any), "written by the runtime"),
    key("log", Shape::Text, "stderr or a file: a line for each call of the plugin; default: none"),
    key("cni.dev/valid-attachments", Shape::List(&Shape::Any), "written by the runtime for GC"),
    key("cni.dev/attachments", Shape::List(&Shape::Any), "written by the runtime for GC"),
];

/// Keys that main plugins have besides.
pub const MAIN: &[Key] = &[
    key("ipam", Shape::Map(&Shape::Any), "who assigns addresses; default: nobody, layer 2 only"),
    key("dns", Shape::Object(DNS), "name servers for the container; default: those of ipam"),
];

/// Arguments of `cni-all validate`.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "validate",
    help_triggers("-h", "--help"),
    description = "check network configurations without touching the system\n\n\
        Every plugin's own rules, unknown keys, wrong types, overlapping subnets, capabilities, versions and the order \
        of a list. Each finding has its place. Plugins that are not built in are noted and not checked.\n\n\
        Exit status: 0 fine (there may be warnings), 1 there are errors, 2 usage.",
    example = "{command_name} /etc/cni/net.d/*.conflist",
    example = "{command_name} --json ./my.conflist | jq '.findings[]'"
)]
pub struct Validate {
    /// print a JSON object with ok and findings: file, line, column, severity, key, message
    #[argh(switch)]
    json: bool,
    /// warnings count as errors
    #[argh(switch)]
    strict: bool,
    /// a configuration, or a directory of them; default: NETCONFPATH or /etc/cni/net.d
    #[argh(positional, arg_name = "FILE")]
    files: Vec<PathBuf>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// ADD would fail.
    Error,
    /// Probably not what was meant.
    Warning,
    /// Nothing is known to be wrong.
    Note,
}

/// One thing to say about one place of a file.
#[derive(Debug, Serialize)]
struct Finding {
    file: String,
    line: usize,
    column: usize,
    severity: Severity,
    /// Path of the key, such as `plugins[0].ipam.subnet`; empty for the file as a whole.
    key: String,
    message: String,
}

/// What was found in one file.
pub struct Report {
    file: String,
    text: String,
    places: Place,
    /// In front of every path: the plugin of a list.
    prefix: String,
    findings: Vec<Finding>,
    /// Findings that are errors only if the plugin refuses the configuration.
    doubts: Vec<usize>,
    subnets: Vec<(String, IpNet)>,
}

#[derive(Serialize)]
struct Output<'a> {
    ok: bool,
    findings: &'a [Finding],
}

impl Validate {
    /// Checks and prints.
    pub fn run(&self, process: &mut Process<'_>) -> i32 {
        let default = || {
            (process.env)("NETCONFPATH")
                .filter(|dir| !dir.is_empty())
                .map_or("/etc/cni/net.d".into(), PathBuf::from)
        };
        let named = if self.files.is_empty() { vec![default()] } else { self.files.clone() };
        let mut findings = Vec::new();
        let mut subnets: Vec<(String, String, IpNet)> = Vec::new();
        let mut count = 0;
        for path in named {
            let files = match expand(&path) {
                Ok(files) => files,
                Err(e) => return fail(process, "cni-all validate", &e),
            };
            for file in files {
                count += 1;
                let mut report = validate(&file);
                let own = std::mem::take(&mut report.subnets);
                for (key, net) in &own {
                    let overlaps =
                        |(_, _, other): &&(String, String, IpNet)| net.contains(other) || other.contains(net);
                    if let Some((other_file, _, other)) = subnets.iter().find(overlaps) {
                        report.prefix.clear();
                        report.warning(key, format!("{net} overlaps {other} of {other_file}"));
                    }
                }
                subnets.extend(own.into_iter().map(|(key, net)| (report.file.clone(), key, net)));
                findings.append(&mut report.findings);
            }
        }
        let bad =
            |f: &Finding| f.severity == Severity::Error || (self.strict && f.severity == Severity::Warning);
        let ok = !findings.iter().any(bad);
        let text = match self.json {
            true => match pretty(&Output { ok, findings: &findings }) {
                Ok(text) => text,
                Err(e) => return fail(process, "cni-all validate", &e),
            },
            false => human(&findings, count),
        };
        match print(process, &text) {
            0 if !ok => FAILED,
            status => status,
        }
    }
}

fn human(findings: &[Finding], files: usize) -> String {
    let mut text = String::new();
    for f in findings {
        let severity = match f.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let key = if f.key.is_empty() { String::new() } else { format!("{}: ", f.key) };
        let at = Position { line: f.line, column: f.column };
        text.push_str(&format!("{}:{at}: {severity}: {key}{}\n", f.file, f.message));
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    text.push_str(&format!("files checked: {files}, errors: {errors}, warnings: {warnings}\n"));
    text
}

/// The configurations of a directory in order of names, or the file itself.
pub fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |e| Error::io(format_args!("read {}", path.display()), &e);
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        let known =
            file.extension().is_some_and(|e| ["conf", "conflist", "json"].iter().any(|known| e == *known));
        if known && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Checks one file.
fn validate(path: &Path) -> Report {
    let mut report = Report {
        file: String::new(),
        text: String::new(),
        places: Place::default(),
        prefix: String::new(),
        findings: Vec::new(),
        doubts: Vec::new(),
        subnets: Vec::new(),
    };
    let Some(document) = report.open(path) else { return report };
    let list = NetworkList::load(path);
    let folder = match document.get("plugins") {
        Some(_) => folder_files(&document, path),
        None => Vec::new(),
    };
    // What is wrong with a file of the folder is said when that file is looked at.
    let is_of_folder =
        |e: &Error| folder.iter().any(|file| e.msg().starts_with(&format!("{}:", file.display())));
    if let Some(e) = list.as_ref().err().filter(|e| !is_of_folder(e)) {
        let message = e.to_string();
        let message = message.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&message);
        // The place is found again, and told apart from the message.
        let message = message.split_once(" at line ").map_or(message, |(message, _)| message).to_owned();
        report.say_at_path(Severity::Error, &message);
    }
    let Value::Object(members) = &document else { return report };
    let written = |key: &str| match document.get(key).as_deref() {
        Some(Value::String(text)) => Some(text.clone()),
        _ => None,
    };
    let text = list
        .as_ref()
        .map(|l| l.version.clone())
        .unwrap_or_else(|_| written("cniVersion").unwrap_or_default());
    let version = Version::from_text(&text).unwrap_or_else(|| {
        let known: Vec<&str> = Version::ALL.iter().map(|v| v.as_str()).collect();
        report.error("cniVersion", format!("{text:?} is not spoken; known are {}", known.join(", ")));
        Version::LATEST
    });
    let name = list.as_ref().map(|l| l.name.clone()).unwrap_or_else(|_| written("name").unwrap_or_default());
    match document.get("plugins").as_deref() {
        Some(Value::Array(inlined)) => {
            shape::object(&mut report, "", members, LIST, version);
            report.settle(true);
            let mut earlier: Vec<Value> = Vec::new();
            for (n, config) in inlined.iter().enumerate() {
                report.prefix = format!("plugins[{n}].");
                plugin(&mut report, config, &name, version, &earlier);
                earlier.push(config.clone());
            }
            report.prefix.clear();
            for file in folder {
                let Some(config) = report.open(&file) else { continue };
                if let Err(e) = plugin_type(&config) {
                    report.error("type", e.to_string());
                }
                plugin(&mut report, &config, &name, version, &earlier);
                earlier.push(config);
            }
        }
        _ => plugin(&mut report, &document, &name, version, &[]),
    }
    report
}

/// Checks a plugin's object, which stands behind `earlier` ones in its list.
fn plugin(report: &mut Report, config: &Value, name: &str, version: Version, earlier: &[Value]) {
    let Value::Object(members) = config else { return };
    let Some(plugin) = known(report, config, "") else { return };
    let kind = plugin.kind();
    let delegates = plugin.keys().iter().any(|key| key.name == "delegate");
    match kind {
        Kind::Meta if earlier.is_empty() && !delegates => report.error(
            "type",
            format!("{} changes what an earlier plugin made, and is the first", plugin.name()),
        ),
        Kind::Main if makes_another(plugin, config, earlier) => report.warning(
            "type",
            format!(
                "{} makes an interface of its own, and is not the first of its list to do so",
                plugin.name()
            ),
        ),
        Kind::Ipam => {
            report.warning("type", format!("{} assigns addresses only; it belongs into ipam", plugin.name()))
        }
        _ => {}
    }
    let mut keys: Vec<Key> = COMMON.iter().chain(plugin.keys()).copied().collect();
    if kind != Kind::Meta || delegates {
        keys.extend(MAIN.iter().filter(|main| !plugin.keys().iter().any(|key| key.name == main.name)));
    }
    shape::object(report, "", members, &keys, version);
    let ipam = config.get("ipam").map(|ipam| ipam.into_owned());
    let mut served = vec![plugin];
    if let Some(Value::Object(inner)) = &ipam
        && let Some(assigns) =
            ipam.as_ref().filter(|i| i.get("type").is_some()).and_then(|i| known(report, i, "ipam."))
    {
        if assigns.kind() != Kind::Ipam {
            report.error("ipam.type", format!("{} assigns no addresses", assigns.name()));
        }
        let own = [key("type", Shape::Text, "the IPAM plugin")];
        let keys: Vec<Key> = own.iter().chain(assigns.keys()).copied().collect();
        shape::object(report, "ipam.", inner, &keys, version);
        served.push(assigns);
    }
    if let Some(ipam) = &ipam {
        subnets(report, "ipam", ipam);
    }
    capabilities(report, config, &served, members.len() == 1);
    let mut refused = false;
    for plugin in served {
        // What delegates adds to ipam what is not known before ADD.
        if delegates && plugin.kind() == Kind::Ipam {
            continue;
        }
        if let Err(e) = own_rules(plugin, members, name, version, earlier.len()) {
            refused = true;
            report.say_at_path(Severity::Error, &e.to_string());
        }
    }
    report.settle(refused);
}

/// Whether it makes an interface where an earlier plugin made one already. One without `master` stands on the earlier
/// plugin's, and loopback, which has its own, is in nobody's way.
fn makes_another(plugin: &dyn Plugin, config: &Value, earlier: &[Value]) -> bool {
    let is_loopback = |plugin: &dyn Plugin| plugin.name() == "loopback";
    let makes = |config: &Value| {
        let found = plugin_type(config).ok().and_then(|name| plugins::find(&name));
        found.is_some_and(|found| found.kind() == Kind::Main && !is_loopback(found))
    };
    let stands_on_earlier =
        plugin.keys().iter().any(|key| key.name == "master") && config.get("master").is_none();
    !is_loopback(plugin) && !stands_on_earlier && earlier.iter().any(makes)
}

/// The built-in plugin of an object's `type`; a note for others.
fn known(report: &mut Report, config: &Value, path: &str) -> Option<&'static dyn Plugin> {
    let Some(Value::String(name)) = config.get("type").as_deref().cloned() else { return None };
    let found = plugins::find(&name);
    if found.is_none() && !name.is_empty() {
        let near = did_you_mean_any_case(&name, PLUGINS.iter().map(|p| p.name()));
        let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
        let message = format!("{name:?} is not built in, its configuration is not checked{near}");
        report.say(Severity::Note, &format!("{path}type"), message);
    }
    found
}

/// What is declared and what is understood must be the same.
fn capabilities(report: &mut Report, config: &Value, served: &[&dyn Plugin], bare: bool) {
    let understood: Vec<&str> = served.iter().flat_map(|p| p.capabilities()).map(|key| key.name).collect();
    let declared: Vec<(String, Value)> = match config.get("capabilities").as_deref() {
        Some(Value::Object(members)) => members.clone(),
        _ => Vec::new(),
    };
    // An IPAM plugin that is not built in may understand what we cannot know.
    let unknown_ipam = config
        .get("ipam")
        .and_then(|i| i.get("type").map(|t| t.into_owned()))
        .is_some_and(|t| !matches!(&t, Value::String(name) if plugins::find(name).is_some()));
    let names: Vec<&str> = served.iter().map(|p| p.name()).collect();
    for (name, _) in declared.iter().filter(|(name, _)| !understood.contains(&name.as_str()) && !unknown_ipam)
    {
        let near = did_you_mean_any_case(name, understood.iter().copied());
        let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
        let message = format!("{} does not understand this capability{near}", names.join(" or "));
        report.say_key(Severity::Warning, &format!("capabilities.{name}"), message);
    }
    if let Some(Value::Object(passed)) = config.get("runtimeConfig").as_deref() {
        for (name, _) in passed {
            if !declared.iter().any(|(known, value)| known == name && *value == Value::Bool(true)) {
                let message = "not declared in capabilities: runtimes do not pass it".to_owned();
                report.say_key(Severity::Warning, &format!("runtimeConfig.{name}"), message);
            }
        }
    }
    let meta = served.iter().all(|p| p.kind() == Kind::Meta);
    if bare && meta && !understood.is_empty() {
        let message = format!(
            "does nothing: no key is set, and none of {} is declared in capabilities",
            understood.join(", ")
        );
        report.warning("", message);
    }
}

/// Remembers the networks that `subnet` keys name, for comparison between files.
fn subnets(report: &mut Report, path: &str, value: &Value) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let here = format!("{path}.{key}");
                match value {
                    Value::String(text) if key.eq_ignore_ascii_case("subnet") => {
                        let key = format!("{}{here}", report.prefix);
                        report.subnets.extend(text.parse::<Cidr>().ok().map(|net| (key, net.0)));
                    }
                    inner => subnets(report, &here, inner),
                }
            }
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                subnets(report, &format!("{path}[{n}]"), item);
            }
        }
        _ => {}
    }
}

/// The plugin's own check of the request that ADD would bring.
fn own_rules(
    plugin: &dyn Plugin,
    members: &[(String, Value)],
    name: &str,
    version: Version,
    n: usize,
) -> Result<()> {
    let injected = ["name", "cniVersion", "prevResult"];
    let mut members: Vec<(String, Value)> =
        members.iter().filter(|(key, _)| !injected.contains(&key.as_str())).cloned().collect();
    let text = |text: &str| Value::String(text.to_owned());
    members.push(("name".to_owned(), text(name)));
    members.push(("cniVersion".to_owned(), text(version.as_str())));
    if n > 0 && version >= Version::V0_3_0 {
        let interface =
            vec![("name".to_owned(), text("eth0")), ("sandbox".to_owned(), text("/run/netns/validate"))];
        let result = vec![
            ("cniVersion".to_owned(), text(version.as_str())),
            ("interfaces".to_owned(), Value::Array(vec![Value::Object(interface)])),
        ];
        members.push(("prevResult".to_owned(), Value::Object(result)));
    }
    let environment = Environment::read(|name| {
        let value = match name {
            "CNI_COMMAND" => "ADD",
            "CNI_CONTAINERID" => "validate",
            "CNI_NETNS" => "/run/netns/validate",
            "CNI_IFNAME" => "eth0",
            "CNI_PATH" => "/opt/cni/bin",
            _ => return None,
        };
        Some(value.to_owned())
    })?;
    let stdin = Value::Object(members).to_text().into_bytes();
    plugin.validate(&Request::new(environment, stdin, plugins::accepts(plugin))?)
}

impl Report {
    /// Reads the file that the next findings are about; what is wrong with it as a whole is a finding.
    fn open(&mut self, path: &Path) -> Option<Value> {
        self.file = path.display().to_string();
        (self.text, self.places) = (String::new(), Place::default());
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) => {
                self.error("", Error::io("read", &e).to_string());
                return None;
            }
        };
        self.text = String::from_utf8_lossy(&bytes).into_owned();
        match Value::parse(&bytes) {
            Ok(document) => {
                self.places = Place::of(&self.text);
                Some(document)
            }
            Err(e) => {
                self.broken(&e);
                None
            }
        }
    }

    fn say(&mut self, severity: Severity, key: &str, message: String) {
        let key = format!("{}{key}", self.prefix);
        self.push(self.places.find(&key), severity, key, message);
    }

    fn say_key(&mut self, severity: Severity, key: &str, message: String) {
        let key = format!("{}{key}", self.prefix);
        self.push(self.places.find_key(&key), severity, key, message);
    }

    fn push(&mut self, at: usize, severity: Severity, key: String, message: String) {
        let Position { line, column } = position(&self.text, at);
        let (file, key) = (self.file.clone(), key.trim_end_matches('.').to_owned());
        self.findings.push(Finding { file, line, column, severity, key, message });
    }

    /// ADD would fail.
    pub fn error(&mut self, key: &str, message: String) {
        self.say(Severity::Error, key, message);
    }

    /// Probably not what was meant.
    pub fn warning(&mut self, key: &str, message: String) {
        self.say(Severity::Warning, key, message);
    }

    /// The table of keys says it is wrong; the plugin has the last word ([`Report::settle`]).
    pub fn doubt(&mut self, key: &str, message: String) {
        self.doubts.push(self.findings.len());
        self.error(key, message);
    }

    /// A key that nothing reads.
    pub fn unknown_key(&mut self, key: &str, near: Option<&str>) {
        let near = near.map_or(String::new(), |near| format!("; did you mean {near}?"));
        self.say_key(Severity::Warning, key, format!("unknown key, nothing reads it{near}"));
    }

    /// What the plugin accepted is no error, whatever the table says.
    fn settle(&mut self, refused: bool) {
        for n in std::mem::take(&mut self.doubts) {
            if let Some(finding) = self.findings.get_mut(n).filter(|_| !refused) {
                finding.severity = Severity::Warning;
            }
        }
    }

    /// A message that begins with the path of its key, unless that key was spoken of already.
    fn say_at_path(&mut self, severity: Severity, message: &str) {
        let is_path = |text: &&str| !text.is_empty() && !text.contains([' ', '"', '/']);
        let path = message.split_once(": ").map(|(path, _)| path).filter(is_path);
        let full = path.map(|path| format!("{}{path}", self.prefix));
        let spoken = |f: &Finding| {
            f.severity == Severity::Error
                && full.as_deref().is_some_and(|key| f.key.eq_ignore_ascii_case(key))
        };
        if self.findings.iter().any(spoken) {
            return;
        }
        let rest = path.and_then(|path| message.get(path.len() + 2..)).unwrap_or(message).to_owned();
        self.say(severity, path.unwrap_or_default(), rest);
    }

    /// Not JSON: the parser says where.
    fn broken(&mut self, e: &Error) {
        let message = e.to_string();
        let number = |word: &str| {
            let rest = message.rsplit_once(word)?.1;
            rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<usize>().ok()
        };
        let (line, column) = (number("line ").unwrap_or(1), number("column ").unwrap_or(1));
        let said = message.split(" at line ").next().unwrap_or(&message);
        let said = said
            .replace("the network configuration is ", "")
            .replace("the network configuration on standard input is ", "");
        self.findings.push(Finding {
            file: self.file.clone(),
            line,
            column: column.max(1),
            severity: Severity::Error,
            key: String::new(),
            message: said,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cni::json::read_keys;

    #[test]
    fn the_table_of_keys_has_what_the_plugin_reads_and_nothing_else() {
        let mut wrong = Vec::new();
        for plugin in PLUGINS {
            let r#type = ("type".to_owned(), Value::String(plugin.name().to_owned()));
            let mut members = vec![r#type.clone()];
            if plugin.kind() == Kind::Ipam {
                members.push(("ipam".to_owned(), Value::Object(vec![r#type])));
            }
            let read = read_keys::during(|| {
                // That keys are missing is the plugin's business; it has looked for them.
                let _ = own_rules(*plugin, &members, "net", Version::LATEST, 0);
            });
            // vlan has its decoder in common with macvlan and ipvlan.
            let everybodys = |name: &str| {
                COMMON.iter().chain(MAIN).any(|key| key.name == name)
                    || plugin.name() == "vlan" && name == "hostShim"
            };
            let listed = |name: &str| plugin.keys().iter().any(|key| key.name == name);
            let unlisted = read.iter().copied().filter(|name| !listed(name) && !everybodys(name));
            let unread = plugin.keys().iter().map(|key| key.name).filter(|name| !read.contains(name));
            wrong.extend(unlisted.map(|key| format!("{} reads {key}, which is not listed", plugin.name())));
            wrong.extend(unread.map(|key| format!("{} lists {key}, and does not read it", plugin.name())));
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
}
