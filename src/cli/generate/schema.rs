//! JSON Schema (draft 2020-12) of network configurations, made from the plugins' tables of keys.
//!
//! Unknown keys are allowed, as the specification has it; `cni-all validate` is what finds misspelt ones.

use serde_json::{Map, Value, json};

use crate::cli::validate::{COMMON, LIST, MAIN};
use crate::cni::{Error, Result};
use crate::plugins::keys::{Key, Shape};
use crate::plugins::{Kind, PLUGINS, Plugin};

/// The schema of every configuration.
///
/// # Errors
/// It cannot be written as JSON.
pub fn text() -> Result<String> {
    let mut definitions = Map::new();
    for plugin in PLUGINS {
        definitions.insert(plugin.name().to_owned(), of_plugin(*plugin));
    }
    let by_type = |kinds: &[Kind]| -> Vec<Value> {
        let chosen = PLUGINS.iter().filter(|p| kinds.contains(&p.kind()));
        chosen
            .map(|p| {
                json!({
                    "if": {"properties": {"type": {"const": p.name()}}, "required": ["type"]},
                    "then": {"$ref": format!("#/$defs/{}", p.name())},
                })
            })
            .collect()
    };
    let open = json!({"type": "object", "required": ["type"], "properties": {"type": {"type": "string"}}});
    let with = |conditions: Vec<Value>| {
        let mut schema = open.clone();
        if !conditions.is_empty() {
            schema["allOf"] = Value::Array(conditions);
        }
        schema
    };
    definitions.insert("any-plugin".to_owned(), with(by_type(&[Kind::Main, Kind::Meta])));
    definitions.insert("any-ipam".to_owned(), with(by_type(&[Kind::Ipam])));
    let mut list = object(LIST);
    list["required"] = json!(["name", "plugins"]);
    list["properties"]["plugins"]["items"] = json!({"$ref": "#/$defs/any-plugin"});
    definitions.insert("list".to_owned(), list);
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "CNI network configuration, for the plugins of cni-all",
        "if": {"required": ["plugins"]},
        "then": {"$ref": "#/$defs/list"},
        "else": {"$ref": "#/$defs/any-plugin"},
        "$defs": definitions,
    });
    let text = serde_json::to_string_pretty(&schema);
    text.map(|text| text + "\n").map_err(|e| Error::internal(format!("write the schema: {e}")))
}

/// A main or meta plugin's object; for IPAM plugins the object `ipam`.
fn of_plugin(plugin: &dyn Plugin) -> Value {
    let mut schema = match plugin.kind() {
        Kind::Ipam => object(plugin.keys()),
        Kind::Main => object(&[COMMON, MAIN, plugin.keys()].concat()),
        Kind::Meta => object(&[COMMON, plugin.keys()].concat()),
    };
    schema["description"] = json!(plugin.about());
    schema["properties"]["type"] = json!({"const": plugin.name()});
    if plugin.kind() == Kind::Main {
        schema["properties"]["ipam"] = json!({"anyOf": [
            {"$ref": "#/$defs/any-ipam"},
            {"type": "object", "maxProperties": 0},
        ]});
    }
    schema
}

fn object(keys: &[Key]) -> Value {
    let mut properties = Map::new();
    for key in keys {
        let mut value = of_shape(&key.shape);
        let since = key.since.map_or(String::new(), |v| format!(" (cniVersion {v} and later)"));
        value["description"] = json!(format!("{}{since}", key.about));
        properties.insert(key.name.to_owned(), value);
    }
    let mut schema = json!({"type": "object", "properties": properties});
    let required: Vec<&str> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn of_shape(shape: &Shape) -> Value {
    match shape {
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Int(low, high) => json!({"type": "integer", "minimum": low, "maximum": high}),
        Shape::IntOr(low, high, words) => json!({"anyOf": [
            {"type": "integer", "minimum": low, "maximum": high},
            {"enum": words},
        ]}),
        Shape::Text => json!({"type": "string"}),
        Shape::OneOf(words) => json!({"enum": words}),
        Shape::Mac => json!({"type": "string", "pattern": "^([0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}$"}),
        Shape::Ip => json!({"type": "string", "anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}),
        Shape::Cidr => json!({"type": "string", "pattern": "^[0-9A-Fa-f.:]+/[0-9]{1,3}$"}),
        Shape::Ifname => json!({"type": "string", "minLength": 1, "maxLength": 15, "pattern": "^[^/: ]+$"}),
        Shape::Path => json!({"type": "string", "pattern": "^/"}),
        Shape::List(of) => json!({"type": "array", "items": of_shape(of)}),
        Shape::Object(keys) => object(keys),
        Shape::Map(of) => json!({"type": "object", "additionalProperties": of_shape(of)}),
        Shape::Any => json!({}),
    }
}
