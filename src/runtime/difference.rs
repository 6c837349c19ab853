//! What differs between two configurations of one network, key by key, as far as a plugin reads it.

use std::fmt;

use super::conflist::{NetworkList, plugin_type};
use crate::cni::Result;
use crate::cni::json::Value;
use crate::plugins::{Kind, Plugin};

/// What a network list says besides its plugins.
const LIST: &str = "network";

/// A key that is different. It prints as `bridge mtu: 1500 -> 1400`.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyChange {
    /// The plugin's type; `network` for a key of the list.
    pub plugin: String,
    /// The key, with dots: `ipam.routes`, `runtimeConfig.portMappings`; `type` for a plugin that joins the list or leaves
    /// it.
    pub key: String,
    /// What it was; `None` when it was not there.
    pub from: Option<Value>,
    /// What it is; `None` when it is not there.
    pub to: Option<Value>,
}

impl KeyChange {
    /// A plugin that was not in the list, or is not any more.
    pub(super) fn of_list(plugin: &str, joins: bool) -> KeyChange {
        let there = Some(Value::String(plugin.to_owned()));
        let (from, to) = if joins { (None, there) } else { (there, None) };
        KeyChange { plugin: plugin.to_owned(), key: "type".to_owned(), from, to }
    }
}

impl fmt::Display for KeyChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nothing = if self.key == "type" { "not in the list" } else { "not set" };
        let shown = |value: &Option<Value>| value.as_ref().map_or(nothing.to_owned(), Value::to_text);
        write!(f, "{} {}: {} -> {}", self.plugin, self.key, shown(&self.from), shown(&self.to))
    }
}

/// Whether two values mean the same: the order of an object's members is of no account.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(_), Value::Object(_)) => {
            let mut found = Vec::new();
            compare("", Some(a), Some(b), &mut found);
            found.is_empty()
        }
        _ => a == b,
    }
}

/// A key that differs: path, before, after.
type Found = (String, Option<Value>, Option<Value>);

/// The keys below `path` that differ; an object that is not there is as good as an empty one, and so is null.
fn compare(path: &str, from: Option<&Value>, to: Option<&Value>, found: &mut Vec<Found>) {
    let there = |value: &&Value| **value != Value::Null;
    let (from, to) = (from.filter(there), to.filter(there));
    let is_object = |value: Option<&Value>| matches!(value, None | Some(Value::Object(_)));
    match (from, to) {
        (None, None) => {}
        (Some(from), Some(to)) if !is_object(Some(from)) && same(from, to) => {}
        _ if is_object(from) && is_object(to) => {
            let mut seen: Vec<&str> = Vec::new();
            for key in members(from).chain(members(to)) {
                if seen.iter().any(|known| known.eq_ignore_ascii_case(key)) {
                    continue;
                }
                seen.push(key);
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                let value =
                    |of: Option<&Value>| of.and_then(|object| object.get(key)).map(|v| v.into_owned());
                compare(&path, value(from).as_ref(), value(to).as_ref(), found);
            }
        }
        _ => found.push((path.to_owned(), from.cloned(), to.cloned())),
    }
}

fn members(object: Option<&Value>) -> impl Iterator<Item = &str> {
    let members = match object {
        Some(Value::Object(members)) => members.as_slice(),
        _ => &[],
    };
    members.iter().map(|(key, _)| key.as_str())
}

/// What differs between the lists besides their plugins.
pub(super) fn of_lists(from: &NetworkList, to: &NetworkList) -> Vec<KeyChange> {
    let change = |key: &str, from: Value, to: Value| {
        let (plugin, key) = (LIST.to_owned(), key.to_owned());
        (from != to).then_some(KeyChange { plugin, key, from: Some(from), to: Some(to) })
    };
    let text = |text: &str| Value::String(text.to_owned());
    [
        change("cniVersion", text(&from.version), text(&to.version)),
        change("disableCheck", Value::Bool(from.disable_check), Value::Bool(to.disable_check)),
        change("disableGC", Value::Bool(from.disable_gc), Value::Bool(to.disable_gc)),
        change("log", text(&from.log), text(&to.log)),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Who reads the configuration of an entry of the list.
#[derive(Clone, Copy)]
pub(super) struct Readers {
    /// The plugin; `None` when it is another program.
    pub plugin: Option<&'static dyn Plugin>,
    /// The plugin that assigns addresses; `None` without one, or when it is another program.
    pub ipam: Option<&'static dyn Plugin>,
}

impl Readers {
    /// What differs between two configurations of an entry, as the plugin gets them, and is read by it. What another
    /// program reads is not known: everything.
    pub fn differences(self, from: &Value, to: &Value) -> Result<Vec<KeyChange>> {
        let name = plugin_type(to)?;
        let mut found = Vec::new();
        compare("", Some(from), Some(to), &mut found);
        let change = |(key, from, to): Found| KeyChange { plugin: name.clone(), key, from, to };
        Ok(found.into_iter().filter(|(key, ..)| self.read(key)).map(change).collect())
    }

    fn read(self, path: &str) -> bool {
        let (first, rest) = path.split_once('.').unwrap_or((path, ""));
        let is = |key: &str| first.eq_ignore_ascii_case(key);
        // The network's own, or without meaning for a plugin.
        if ["name", "cniVersion", "type", "capabilities", "prevResult"].iter().any(|key| is(key)) {
            return false;
        }
        let Some(plugin) = self.plugin else { return true };
        let has = |key: &str| plugin.keys().iter().any(|known| known.name.eq_ignore_ascii_case(key));
        if is("runtimeConfig") {
            let argument = rest.split('.').next().unwrap_or_default();
            let readers = [Some(plugin), self.ipam].into_iter().flatten();
            let known = |reader: &dyn Plugin| reader.capabilities().iter().any(|key| key.name == argument);
            // A delegate gets all of them.
            return has("delegate") || readers.into_iter().any(known);
        }
        is("args") || has(first) || (plugin.kind() == Kind::Main && (is("ipam") || is("dns")))
    }

    /// Whether the key can change while a container is attached.
    pub fn is_live(self, path: &str) -> bool {
        let Some(plugin) = self.plugin else { return false };
        let within = |path: &str, key: &str| {
            let start = path.get(..key.len()).is_some_and(|start| start.eq_ignore_ascii_case(key));
            start && matches!(path.as_bytes().get(key.len()), None | Some(b'.'))
        };
        let listed = |plugin: &dyn Plugin, path: &str| plugin.live_keys().iter().any(|key| within(path, key));
        match path.split_once('.').filter(|(first, _)| first.eq_ignore_ascii_case("ipam")) {
            Some((_, rest)) => listed(plugin, "ipam") && self.ipam.is_some_and(|ipam| listed(ipam, rest)),
            None => path != "ipam" && listed(plugin, path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins;

    fn value(json: &str) -> Value {
        Value::parse(json.as_bytes()).unwrap()
    }

    fn readers(plugin: &str, ipam: &str) -> Readers {
        Readers { plugin: plugins::find(plugin), ipam: plugins::find(ipam) }
    }

    fn lines(readers: Readers, from: &str, to: &str) -> Vec<String> {
        let typed = |keys: &str| value(&format!(r#"{{"type":"x"{keys}}}"#));
        let changes = readers.differences(&typed(from), &typed(to)).unwrap();
        changes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn differences_are_named_by_path_and_value() {
        let bridge = readers("bridge", "host-local");
        assert_eq!(
            lines(
                bridge,
                r#","mtu":1500,"dns":{"domain":"a"},"ipam":{"type":"host-local","routes":[]}"#,
                r#","MTU":1400,"ipMasq":true,"dns":null,"ipam":{"type":"host-local","routes":[{"dst":"::/0"}]}"#
            ),
            [
                "x mtu: 1500 -> 1400",
                r#"x dns.domain: "a" -> not set"#,
                r#"x ipam.routes: [] -> [{"dst":"::/0"}]"#,
                "x ipMasq: not set -> true",
            ]
        );
    }

    #[test]
    fn what_means_the_same_or_is_not_read_is_no_difference() {
        let bridge = readers("bridge", "host-local");
        for (from, to) in [
            (r#","ipam":{"a":1,"b":[{"c":1,"d":null}]}"#, r#","IPAM":{"b":[{"c":1}],"a":1}"#),
            (r#","dns":{}"#, ""),
            (r#","comment":"one","capabilities":{"mac":true}"#, r#","comment":"two""#),
            (r#","runtimeConfig":{"aliases":["a"]}"#, ""),
        ] {
            assert!(lines(bridge, from, to).is_empty(), "{from} {to}");
        }
        let changed = lines(bridge, "", r#","runtimeConfig":{"mac":"02::1","ipRanges":[]}"#);
        assert_eq!(changed.len(), 2, "{changed:?}");
        let other = Readers { plugin: None, ipam: None };
        assert_eq!(lines(other, "", r#","whatever":0"#), ["x whatever: not set -> 0"]);
    }

    #[test]
    fn the_address_plugin_says_which_of_its_keys_can_change() {
        let bridge = readers("bridge", "host-local");
        for key in ["mtu", "dns", "dns.domain", "ipam.routes", "ipam.resolvConf", "HairpinMode"] {
            assert!(bridge.is_live(key), "{key}");
        }
        for key in ["bridge", "ipam.subnet", "ipam.type", "ipam", "vlan", "mtus", "runtimeConfig.mac", "args"]
        {
            assert!(!bridge.is_live(key), "{key}");
        }
        assert!(!readers("bridge", "dhcp").is_live("ipam.routes"));
        assert!(!readers("loopback", "host-local").is_live("ipam.routes"));
        assert!(readers("portmap", "").is_live("runtimeConfig.portMappings"));
        assert!(!Readers { plugin: None, ipam: None }.is_live("mtu"));
    }
}
