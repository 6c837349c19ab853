//! What each plugin of a list gets on standard input (CNI spec, section 3 "Deriving request configuration"; reference:
//! core.md 3.3). Numbers keep their text, members their order.

use super::conflist::NetworkList;
use crate::cni::Result;
use crate::cni::json::Value;

/// The configuration for `plugin`: its own object with the list's `name` and `cniVersion`, and with `prevResult`, JSON of
/// the list's version, if there is one. Other members stay, also a `prevResult` written in the file when there is no other.
///
/// # Errors
/// `prev_result` is not JSON.
pub fn configuration(list: &NetworkList, plugin: &Value, prev_result: Option<&str>) -> Result<Vec<u8>> {
    let mut injected = vec![
        ("cniVersion".to_owned(), Value::String(list.version.clone())),
        ("name".to_owned(), Value::String(list.name.clone())),
    ];
    if let Some(text) = prev_result {
        injected.push(("prevResult".to_owned(), Value::parse(text.as_bytes())?));
    }
    let replaced = |key: &str| injected.iter().any(|(name, _)| name == key);
    let mut members: Vec<(String, Value)> = match plugin {
        Value::Object(members) => members.iter().filter(|(key, _)| !replaced(key)).cloned().collect(),
        _ => Vec::new(),
    };
    // Last, so that they win over the same key written in another case.
    members.append(&mut injected);
    Ok(Value::Object(members).to_text().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(list: &str, prev: Option<&str>) -> String {
        let list = NetworkList::parse(list.as_bytes()).unwrap();
        String::from_utf8(configuration(&list, &list.plugins[0], prev).unwrap()).unwrap()
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
