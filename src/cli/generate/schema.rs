//! JSON Schema (draft 2020-12) of network configurations, made from the plugins' tables of keys.
//!
//! Unknown keys are allowed, as the specification has it; `cni-all validate` is what finds misspelt ones.

use crate::cli::validate::{COMMON, LIST, MAIN};
use crate::cni::Result;
use crate::cni::json::Value;
use crate::plugins::keys::{Key, Shape};
use crate::plugins::{Kind, PLUGINS, Plugin};

/// The schema of every configuration.
///
/// # Errors
/// What was put together is no JSON.
pub fn text() -> Result<String> {
    let mut definitions: Vec<(&str, String)> =
        PLUGINS.iter().map(|plugin| (plugin.name(), of_plugin(*plugin))).collect();
    let by_type = |kinds: &[Kind]| {
        let chosen = PLUGINS.iter().filter(|plugin| kinds.contains(&plugin.kind()));
        let conditions: Vec<String> = chosen
            .map(|plugin| {
                let name = plugin.name();
                format!(
                    r##"{{"if":{{"properties":{{"type":{{"const":"{name}"}}}},"required":["type"]}},
                    "then":{{"$ref":"#/$defs/{name}"}}}}"##
                )
            })
            .collect();
        format!(
            r#"{{"type":"object","required":["type"],"properties":{{"type":{{"type":"string"}}}},"allOf":[{}]}}"#,
            conditions.join(",")
        )
    };
    definitions.push(("any-plugin", by_type(&[Kind::Main, Kind::Meta])));
    definitions.push(("any-ipam", by_type(&[Kind::Ipam])));
    let about = LIST.iter().find(|key| key.name == "plugins").map(describe).unwrap_or_default();
    let plugins = format!(r##"{{{about},"type":"array","items":{{"$ref":"#/$defs/any-plugin"}}}}"##);
    definitions.push(("list", object(LIST, &[("plugins", plugins)], &["plugins"], "")));
    let schema = format!(
        r##"{{"$schema":"https://json-schema.org/draft/2020-12/schema",
        "title":"CNI network configuration, for the plugins of cni-all",
        "if":{{"required":["plugins"]}},"then":{{"$ref":"#/$defs/list"}},"else":{{"$ref":"#/$defs/any-plugin"}},
        "$defs":{{{}}}}}"##,
        members(&definitions)
    );
    let mut out = String::new();
    write(&Value::parse(schema.as_bytes())?, "\n", &mut out);
    out.push('\n');
    Ok(out)
}

/// A main or meta plugin's object; for IPAM plugins the object `ipam`.
fn of_plugin(plugin: &dyn Plugin) -> String {
    let keys = match plugin.kind() {
        Kind::Ipam => plugin.keys().to_vec(),
        Kind::Main => [COMMON, MAIN, plugin.keys()].concat(),
        Kind::Meta => [COMMON, plugin.keys()].concat(),
    };
    let mut own = vec![("type", format!(r#"{{"const":"{}"}}"#, plugin.name()))];
    if plugin.kind() == Kind::Main {
        let ipam = r##"{"anyOf":[{"$ref":"#/$defs/any-ipam"},{"type":"object","maxProperties":0}]}"##;
        own.push(("ipam", ipam.to_owned()));
    }
    object(&keys, &own, &[], &format!(r#","description":{}"#, quoted(plugin.about())))
}

/// An object with these keys; `own` has the schemas of some, `needed` names some that are required besides those that say
/// so, and `more` is what else is said about the object.
fn object(keys: &[Key], own: &[(&str, String)], needed: &[&str], more: &str) -> String {
    let mut properties = own.to_vec();
    for key in keys.iter().filter(|key| !own.iter().any(|(name, _)| *name == key.name)) {
        let shape = of_shape(&key.shape);
        let comma = if shape.is_empty() { "" } else { "," };
        properties.push((key.name, format!("{{{}{comma}{shape}}}", describe(key))));
    }
    let required = keys.iter().filter(|key| key.required).map(|key| key.name);
    let required: Vec<String> = required.chain(needed.iter().copied()).map(quoted).collect();
    let required = match required.is_empty() {
        true => String::new(),
        false => format!(r#","required":[{}]"#, required.join(",")),
    };
    format!(r#"{{"type":"object","properties":{{{}}}{required}{more}}}"#, members(&properties))
}

fn describe(key: &Key) -> String {
    let since = key.since.map_or(String::new(), |v| format!(" (cniVersion {v} and later)"));
    format!(r#""description":{}"#, quoted(&format!("{}{since}", key.about)))
}

/// The members of a shape's schema.
fn of_shape(shape: &Shape) -> String {
    let words = |words: &[&str]| words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(",");
    let inside = |object: &str| object.get(1..object.len() - 1).unwrap_or_default().to_owned();
    let constant = match shape {
        Shape::Bool => r#""type":"boolean""#,
        Shape::Text => r#""type":"string""#,
        Shape::Mac => r#""type":"string","pattern":"^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$""#,
        Shape::Ip => r#""type":"string","anyOf":[{"format":"ipv4"},{"format":"ipv6"}]"#,
        Shape::Cidr => r#""type":"string","pattern":"^[0-9A-Fa-f.:]+/[0-9]{1,3}$""#,
        Shape::Ifname => r#""type":"string","minLength":1,"maxLength":15,"pattern":"^[^/: ]+$""#,
        Shape::Path => r#""type":"string","pattern":"^/""#,
        Shape::Any => "",
        Shape::Int(low, high) => return format!(r#""type":"integer","minimum":{low},"maximum":{high}"#),
        Shape::IntOr(low, high, other) => {
            let number = format!(r#""type":"integer","minimum":{low},"maximum":{high}"#);
            return format!(r#""anyOf":[{{{number}}},{{"enum":[{}]}}]"#, words(other));
        }
        Shape::OneOf(known) => return format!(r#""enum":[{}]"#, words(known)),
        Shape::List(of) => return format!(r#""type":"array","items":{{{}}}"#, of_shape(of)),
        Shape::Object(keys) => return inside(&object(keys, &[], &[], "")),
        Shape::Map(of) => return format!(r#""type":"object","additionalProperties":{{{}}}"#, of_shape(of)),
    };
    constant.to_owned()
}

fn members(all: &[(&str, String)]) -> String {
    all.iter().map(|(name, value)| format!("{}:{value}", quoted(name))).collect::<Vec<_>>().join(",")
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_text()
}

/// Writes a value for people, members in order of their names. `line` is how a line of it begins.
fn write(value: &Value, line: &str, out: &mut String) {
    let deeper = format!("{line}  ");
    let (brackets, mut parts) = match value {
        Value::Array(items) => ("[]", items.iter().map(|item| (String::new(), item)).collect::<Vec<_>>()),
        Value::Object(members) => {
            ("{}", members.iter().map(|(name, value)| (quoted(name) + ": ", value)).collect())
        }
        plain => return out.push_str(&plain.to_text()),
    };
    if let Value::Object(_) = value {
        parts.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    }
    let (open, close) = brackets.split_at(1);
    out.push_str(open);
    for (place, (name, part)) in parts.iter().enumerate() {
        out.push_str(if place == 0 { "" } else { "," });
        out.push_str(&deeper);
        out.push_str(name);
        write(part, &deeper, out);
    }
    out.push_str(if parts.is_empty() { "" } else { line });
    out.push_str(close);
}
