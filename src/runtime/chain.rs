//! What each plugin of a list gets on standard input (CNI spec, section 3 "Deriving request configuration"; reference:
//! core.md 3.3). Numbers keep their text, members their order.

use super::conflist::{NetworkList, capabilities};
use crate::cni::json::Value;
use crate::cni::{Result, ValidAttachment};

/// What a request says besides the plugin's own object.
#[derive(Debug, Default)]
pub struct Injected<'a> {
    /// The result so far, JSON of the list's version.
    pub prev_result: Option<&'a str>,
    /// Capability arguments: a plugin gets, as `runtimeConfig`, those that it declares.
    pub capability_args: &'a [(String, Value)],
    /// For GC: the attachments that are in use; `None` when that is not known.
    pub valid_attachments: Option<&'a [ValidAttachment]>,
}

/// The configuration for `plugin`: its own object with the list's `name` and `cniVersion`, and with what is to be injected.
/// Other members stay, also a `prevResult` or `runtimeConfig` written in the file when there is no other.
///
/// # Errors
/// `prev_result` is not JSON, or the plugin's `capabilities` are no booleans.
pub fn configuration(list: &NetworkList, plugin: &Value, injected: &Injected<'_>) -> Result<Vec<u8>> {
    let mut members = vec![
        ("cniVersion".to_owned(), Value::String(list.version.clone())),
        ("name".to_owned(), Value::String(list.name.clone())),
    ];
    if let Some(text) = injected.prev_result {
        members.push(("prevResult".to_owned(), Value::parse(text.as_bytes())?));
    }
    let declared = capabilities(plugin)?;
    let passed: Vec<(String, Value)> =
        injected.capability_args.iter().filter(|(name, _)| declared.contains(name)).cloned().collect();
    if !passed.is_empty() {
        members.push(("runtimeConfig".to_owned(), Value::Object(passed)));
    }
    if let Some(valid) = injected.valid_attachments {
        // The second key is of a draft of the spec, and read by plugins of that time.
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            members.push((key.to_owned(), Value::Array(valid.iter().map(attachment).collect())));
        }
    }
    let replaced = |key: &str| members.iter().any(|(name, _)| name == key);
    let mut all: Vec<(String, Value)> = match plugin {
        Value::Object(own) => own.iter().filter(|(key, _)| !replaced(key)).cloned().collect(),
        _ => Vec::new(),
    };
    // Last, so that they win over the same key written in another case.
    all.append(&mut members);
    Ok(Value::Object(all).to_text().into_bytes())
}

fn attachment(valid: &ValidAttachment) -> Value {
    let text = |value: &str| Value::String(value.to_owned());
    Value::Object(vec![
        ("containerID".to_owned(), text(&valid.container_id)),
        ("ifname".to_owned(), text(&valid.ifname)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(list: &str, prev: Option<&str>) -> String {
        let list = NetworkList::parse(list.as_bytes()).unwrap();
        let injected = Injected { prev_result: prev, ..Injected::default() };
        String::from_utf8(configuration(&list, &list.plugins[0], &injected).unwrap()).unwrap()
    }

    #[test]
    fn a_plugin_gets_the_capability_arguments_it_declares() {
        let args = [("mac".to_owned(), Value::String("02::1".into())), ("ips".to_owned(), Value::Null)];
        let with = |capabilities: &str| {
            let text = format!(
                r#"{{"name":"n","plugins":[{{"type":"x","runtimeConfig":{{"a":1}}{capabilities}}}]}}"#
            );
            let list = NetworkList::parse(text.as_bytes()).unwrap();
            let injected = Injected { capability_args: &args, ..Injected::default() };
            let bytes = configuration(&list, &list.plugins[0], &injected).unwrap();
            Value::parse(&bytes).unwrap().get("runtimeConfig").unwrap().to_text()
        };
        assert_eq!(with(r#","capabilities":{"mac":true,"portMappings":true}"#), r#"{"mac":"02::1"}"#);
        assert_eq!(with(r#","capabilities":{"ips":true,"mac":false}"#), r#"{"ips":null}"#);
        assert_eq!(with(""), r#"{"a":1}"#);
    }

    #[test]
    fn an_empty_list_of_attachments_is_sent_and_no_list_is_not() {
        let list = NetworkList::parse(br#"{"name":"n","plugins":[{"type":"x"}]}"#).unwrap();
        let with = |valid| {
            let injected = Injected { valid_attachments: valid, ..Injected::default() };
            String::from_utf8(configuration(&list, &list.plugins[0], &injected).unwrap()).unwrap()
        };
        assert!(!with(None).contains("cni.dev"));
        assert!(with(Some(&[])).contains(r#""cni.dev/valid-attachments":[],"cni.dev/attachments":[]"#));
        let valid = ValidAttachment { container_id: "c".into(), ifname: "eth0".into() };
        assert!(with(Some(&[valid])).contains(r#"[{"containerID":"c","ifname":"eth0"}]"#));
    }

    #[test]
    fn name_version_and_previous_result_are_the_lists_and_the_rest_is_kept() {
        let list = r#"{"name":"n","cniVersion":"1.0.0","plugins":[
            {"name":"inner","cniVersion":"9","type":"x","mtu":1.50,"NAME":"odd","prevResult":{"a":1},"big":12345678901234567890}]}"#;
        assert_eq!(
            configured(list, None),
            r#"{"type":"x","mtu":1.50,"NAME":"odd","prevResult":{"a":1},"big":12345678901234567890,"cniVersion":"1.0.0","name":"n"}"#
        );
        assert_eq!(
            configured(list, Some(r#"{"ips": []}"#)),
            r#"{"type":"x","mtu":1.50,"NAME":"odd","big":12345678901234567890,"cniVersion":"1.0.0","name":"n","prevResult":{"ips":[]}}"#
        );
    }

    #[test]
    fn a_list_without_version_sends_an_empty_one() {
        let text = configured(r#"{"name":"n","plugins":[{"type":"x"}]}"#, None);
        assert_eq!(text, r#"{"type":"x","cniVersion":"","name":"n"}"#);
    }
}
