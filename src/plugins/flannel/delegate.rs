//! The configuration of the plugin that does the work, made of flannel's own and of what the daemon tells.

use super::subnet::SubnetEnv;
use crate::cni::json::Value;
use crate::cni::{Error, Result};

/// The keys of a JSON object.
type Members = Vec<(String, Value)>;

/// `delegate` and `ipam` of flannel's configuration, checked.
///
/// # Errors
/// A key that flannel sets itself, or of the wrong type.
pub fn check(own: &Value) -> Result<()> {
    parts(own).map(drop)
}

/// The delegate's configuration. What its own says goes before what the daemon tells; `name`, `cniVersion` and the ranges
/// of `ipam` are flannel's.
///
/// # Errors
/// As for [`check`].
pub fn config(own: &Value, name: &str, env: &SubnetEnv) -> Result<Value> {
    let (mut delegate, mut ipam, mut routes) = parts(own)?;
    set_unless_given(&mut delegate, "type", text("bridge"));
    set(&mut delegate, "name", text(name));
    if let Some(version) = own.get("cniVersion").filter(|v| **v != text("")) {
        set(&mut delegate, "cniVersion", version.into_owned());
    }
    set_unless_given(&mut delegate, "ipMasq", Value::Bool(!env.ip_masq));
    if Value::Object(delegate.clone()).get("ipMasq").as_deref() == Some(&Value::Bool(true)) {
        // As the daemon does it: containers of other nodes see each other's addresses.
        let networks = env.networks.iter().map(|net| text(&net.to_string())).collect();
        set_unless_given(&mut delegate, "ipMasqExempt", Value::Array(networks));
    }
    set_unless_given(&mut delegate, "mtu", Value::Number(env.mtu.to_string()));
    if plugin_type(&Value::Object(delegate.clone())).is_some_and(|t| t == "bridge") {
        set_unless_given(&mut delegate, "isGateway", Value::Bool(true));
    }
    if let Some(runtime) = own.get("runtimeConfig") {
        set(&mut delegate, "runtimeConfig", runtime.into_owned());
    }
    let object =
        |key: &str, net: &ipnet::IpNet| Value::Object(vec![(key.to_owned(), text(&net.to_string()))]);
    let ranges = env.subnets.iter().map(|net| Value::Array(vec![object("subnet", net)]));
    routes.extend(env.networks.iter().map(|net| object("dst", net)));
    set_unless_given(&mut ipam, "type", text("host-local"));
    set(&mut ipam, "ranges", Value::Array(ranges.collect()));
    set(&mut ipam, "routes", Value::Array(routes));
    set(&mut delegate, "ipam", Value::Object(ipam));
    Ok(Value::Object(delegate))
}

/// The same configuration with keys of `own` that only some verbs have.
pub fn with(config: Value, own: &Value, keys: &[&str]) -> Value {
    let Value::Object(mut members) = config else { return config };
    for key in keys {
        if let Some(value) = own.get(key) {
            set(&mut members, key, value.into_owned());
        }
    }
    Value::Object(members)
}

/// `type`.
pub fn plugin_type(config: &Value) -> Option<String> {
    match config.get("type").as_deref() {
        Some(Value::String(plugin)) => Some(plugin.clone()),
        _ => None,
    }
}

/// `delegate`, `ipam` without its routes, and those.
fn parts(own: &Value) -> Result<(Members, Members, Vec<Value>)> {
    let object = |key: &str| match own.get(key).as_deref() {
        None => Ok(Vec::new()),
        Some(Value::Object(members)) => Ok(members.clone()),
        Some(_) => Err(Error::config(format!("{key}: expected an object"))),
    };
    let (delegate, ipam) = (object("delegate")?, object("ipam")?);
    for key in ["name", "ipam"] {
        if delegate.iter().any(|(k, _)| k.eq_ignore_ascii_case(key)) {
            let msg = format!("delegate.{key}: the delegate must not have it, flannel sets it");
            return Err(Error::config(msg));
        }
    }
    let is_text = |(key, value): &(String, Value)| {
        !key.eq_ignore_ascii_case("type") || matches!(value, Value::String(_) | Value::Null)
    };
    if !delegate.iter().all(is_text) {
        return Err(Error::config("delegate.type: expected a string"));
    }
    let routes = match Value::Object(ipam.clone()).get("routes").as_deref() {
        None => Vec::new(),
        Some(Value::Array(routes)) => routes.clone(),
        Some(_) => return Err(Error::config("ipam.routes: expected a list")),
    };
    Ok((delegate, ipam, routes))
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Gives a key this value and no other, in whatever case it is written.
fn set(members: &mut Members, key: &str, value: Value) {
    members.retain(|(k, _)| !k.eq_ignore_ascii_case(key));
    members.push((key.to_owned(), value));
}

fn set_unless_given(members: &mut Members, key: &str, value: Value) {
    if !members.iter().any(|(k, v)| k.eq_ignore_ascii_case(key) && *v != Value::Null) {
        set(members, key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(ip_masq: bool) -> SubnetEnv {
        SubnetEnv {
            networks: ["10.244.0.0/16", "fd00::/48"].iter().map(|n| n.parse().unwrap()).collect(),
            subnets: ["10.244.1.0/24", "fd00:0:0:1::/64"].iter().map(|n| n.parse().unwrap()).collect(),
            mtu: 1450,
            ip_masq,
        }
    }

    fn made(own: &str) -> serde_json::Value {
        let own = Value::parse(own.as_bytes()).unwrap();
        serde_json::from_str(&config(&own, "cbr0", &env(true)).unwrap().to_text()).unwrap()
    }

    #[test]
    fn nothing_given_makes_a_bridge_with_the_nodes_subnets() {
        assert_eq!(
            made(
                r#"{"cniVersion":"1.0.0","name":"cbr0","type":"flannel","dns":{"domain":"x"},"args":{"cni":{}}}"#
            ),
            serde_json::json!({
                "type": "bridge", "name": "cbr0", "cniVersion": "1.0.0", "ipMasq": false, "mtu": 1450,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:0:0:1::/64"}]],
                    "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00::/48"}],
                },
            })
        );
    }

    #[test]
    fn what_is_given_goes_before_what_the_daemon_tells() {
        let own = r#"{"cniVersion":"","name":"cbr0","type":"flannel","runtimeConfig":{"mac":"x"},
            "delegate":{"type":"ptp","cniVersion":"0.4.0","ipMasq":true,"MTU":1300,"big":12345678901234567890},
            "ipam":{"type":"static","subnet":"x","ranges":5,"routes":[{"dst":"0.0.0.0/0","gw":"10.244.1.9"}]}}"#;
        let made = made(own);
        assert_eq!(made["ipMasq"], true);
        assert_eq!((&made["MTU"], &made["mtu"], &made["isGateway"]), (&1300.into(), &().into(), &().into()));
        assert_eq!((&made["cniVersion"], &made["type"]), (&"0.4.0".into(), &"ptp".into()));
        assert_eq!(made["runtimeConfig"]["mac"], "x");
        assert_eq!((&made["ipam"]["type"], &made["ipam"]["subnet"]), (&"static".into(), &"x".into()));
        assert_eq!(made["ipam"]["ranges"].as_array().unwrap().len(), 2);
        assert_eq!(made["ipam"]["routes"][0]["gw"], "10.244.1.9");
        assert_eq!(made["ipam"]["routes"].as_array().unwrap().len(), 3);
        assert_eq!(made["big"].to_string(), "12345678901234567890");
    }

    #[test]
    fn the_delegate_masquerades_when_the_daemon_does_not() {
        let own = Value::parse(br#"{"name":"n"}"#).unwrap();
        let made = config(&own, "n", &env(false)).unwrap();
        assert_eq!(made.get("ipMasq").as_deref(), Some(&Value::Bool(true)));
        let exempt = made.get("ipMasqExempt").unwrap().to_text();
        assert_eq!(exempt, r#"["10.244.0.0/16","fd00::/48"]"#, "but for traffic between nodes");
    }

    #[test]
    fn keys_that_are_flannels_are_refused() {
        for (own, named) in [
            (r#"{"delegate":{"name":"x"}}"#, "delegate.name"),
            (r#"{"delegate":{"IPAM":{}}}"#, "delegate.ipam"),
            (r#"{"delegate":{"type":5}}"#, "delegate.type"),
            (r#"{"delegate":"bridge"}"#, "delegate"),
            (r#"{"ipam":[]}"#, "ipam"),
            (r#"{"ipam":{"routes":{}}}"#, "ipam.routes"),
        ] {
            let err = check(&Value::parse(own.as_bytes()).unwrap()).unwrap_err();
            assert!(err.msg().starts_with(&format!("{named}: ")), "{err}");
        }
    }
}
