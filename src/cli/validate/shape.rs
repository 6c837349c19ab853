//! Values against the tables of keys ([`crate::plugins::keys`]).

use std::net::IpAddr;

use super::Report;
use crate::cli::suggest::did_you_mean;
use crate::cni::Version;
use crate::cni::json::Value;
use crate::cni::names::{Cidr, check_ifname, parse_ip};
use crate::kernel::rtnl::Mac;
use crate::plugins::keys::{Key, Shape};

/// Checks the members of an object. `path` ends in a dot unless it is empty.
pub fn object(report: &mut Report, path: &str, members: &[(String, Value)], keys: &[Key], version: Version) {
    for (name, value) in members {
        let here = format!("{path}{name}");
        let Some(key) = keys.iter().find(|key| key.name.eq_ignore_ascii_case(name)) else {
            let near = did_you_mean_any_case(name, keys.iter().map(|key| key.name));
            // Administrators and runtimes keep keys of their own, by convention with a domain in front.
            match near {
                None if name.contains(['/', '.']) || name.starts_with('_') => {}
                near => report.unknown_key(&here, near),
            }
            continue;
        };
        if *value == Value::Null {
            continue;
        }
        if let Some(since) = key.since.filter(|since| *since > version) {
            report.warning(&here, format!("needs cniVersion {since}, and the configuration says {version}"));
        }
        check(report, &here, value, &key.shape, version);
    }
    for key in keys.iter().filter(|key| key.required) {
        let given =
            |(name, value): &(String, Value)| key.name.eq_ignore_ascii_case(name) && *value != Value::Null;
        if !members.iter().any(given) {
            report.error(path.trim_end_matches('.'), format!("{} is missing: {}", key.name, key.about));
        }
    }
    gateway(report, path, members);
}

/// The known word that is nearest, whatever its case.
pub fn did_you_mean_any_case<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let words: Vec<(&str, String)> =
        known.map(|word| (word, word.to_ascii_lowercase().replace('_', "-"))).collect();
    let near = did_you_mean(written, words.iter().map(|(_, lower)| lower.as_str()))?;
    words.iter().find(|(_, lower)| lower == near).map(|(word, _)| *word)
}

/// Checks one value.
pub fn check(report: &mut Report, path: &str, value: &Value, shape: &Shape, version: Version) {
    let found = match (value, shape) {
        (_, Shape::Any) | (Value::Bool(_), Shape::Bool) | (Value::String(_), Shape::Text) => return,
        (Value::String(text), Shape::IntOr(_, _, words)) if words.contains(&text.as_str()) => return,
        (Value::Number(text), Shape::Int(low, high) | Shape::IntOr(low, high, _)) => {
            match text.parse::<i64>() {
                Ok(n) if (low..=high).contains(&&n) => return,
                Ok(n) => return report.doubt(path, format!("{n} is not from {low} to {high}")),
                Err(_) => format!("the number {text}"),
            }
        }
        // Empty strings are "not given" to most decoders; which ones is theirs to say.
        (Value::String(text), shape) if is_text(shape) => {
            if let Some(expected) = text_fault(text, shape).filter(|_| !text.is_empty()) {
                report.doubt(path, format!("{text:?} is not {expected}"));
            }
            return;
        }
        (Value::Array(items), Shape::List(of)) => {
            for (n, item) in items.iter().enumerate() {
                check(report, &format!("{path}[{n}]"), item, of, version);
            }
            return;
        }
        (Value::Object(members), Shape::Object(keys)) => {
            return object(report, &format!("{path}."), members, keys, version);
        }
        (Value::Object(members), Shape::Map(of)) => {
            for (name, value) in members {
                check(report, &format!("{path}.{name}"), value, of, version);
            }
            return;
        }
        (Value::Null, _) => return,
        (Value::Bool(on), _) => format!("the boolean {on}"),
        (Value::Number(text), _) => format!("the number {text}"),
        (Value::String(text), _) => format!("the string {text:?}"),
        (Value::Array(_), _) => "a list".to_owned(),
        (Value::Object(_), _) => "an object".to_owned(),
    };
    report.error(path, format!("expected {}, found {found}", expected(shape)));
}

fn is_text(shape: &Shape) -> bool {
    use Shape::{Cidr, Ifname, Ip, Mac, OneOf, Path, Text};
    matches!(shape, Text | OneOf(_) | Mac | Ip | Cidr | Ifname | Path)
}

fn text_fault(text: &str, shape: &Shape) -> Option<String> {
    let good = match shape {
        Shape::OneOf(words) => words.contains(&text),
        Shape::Mac => text.parse::<Mac>().is_ok(),
        Shape::Ip => parse_ip(text).is_some(),
        Shape::Cidr => text.parse::<Cidr>().is_ok(),
        Shape::Ifname => check_ifname(text).is_ok(),
        Shape::Path => text.starts_with('/'),
        _ => true,
    };
    (!good).then(|| expected(shape))
}

/// What a shape wants, in words.
fn expected(shape: &Shape) -> String {
    match shape {
        Shape::Bool => "true or false".to_owned(),
        Shape::Int(..) => "an integer".to_owned(),
        Shape::IntOr(_, _, words) => format!("an integer or \"{}\"", words.join("\", \"")),
        Shape::Text => "a string".to_owned(),
        Shape::OneOf(words) => format!("one of {}", words.join(", ")),
        Shape::Mac => "a MAC address such as \"02:00:00:00:00:05\"".to_owned(),
        Shape::Ip => "an IP address".to_owned(),
        Shape::Cidr => "an address with prefix length such as \"10.1.0.0/16\"".to_owned(),
        Shape::Ifname => "an interface's name of 1 to 15 bytes, without %".to_owned(),
        Shape::Path => "an absolute path".to_owned(),
        Shape::List(_) => "a list".to_owned(),
        Shape::Object(_) | Shape::Map(_) => "an object".to_owned(),
        Shape::Any => "anything".to_owned(),
    }
}

/// A gateway beside a network that does not contain it is reached only with routes of one's own.
fn gateway(report: &mut Report, path: &str, members: &[(String, Value)]) {
    let text = |name: &str| {
        members.iter().rev().find_map(|(key, value)| match value {
            Value::String(text) if key.eq_ignore_ascii_case(name) => Some(text.as_str()),
            _ => None,
        })
    };
    let gateway: Option<IpAddr> = text("gateway").and_then(parse_ip);
    let Some(gateway) = gateway else { return };
    for key in ["subnet", "address"] {
        if let Some(Cidr(net)) = text(key).and_then(|text| text.parse().ok())
            && !net.contains(&gateway)
        {
            report
                .warning(&format!("{path}gateway"), format!("{gateway} is outside of {key} {}", net.trunc()));
        }
    }
}
