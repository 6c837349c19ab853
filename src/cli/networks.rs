//! What commands that attach have in common: which networks, which plugins, which arguments; and what was attached.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cni::json::Value;
use crate::cni::{CniResult, Error, IpConfig, Result};
use crate::decimal::scaled;
use crate::personality::Process;
use crate::runtime::{CACHE_DIR, Directory, NetworkList, Runtime};

/// Where network configurations are.
const CONF_DIR: &str = "/etc/cni/net.d";

/// Where plugins are, besides the directory of our own executable.
const PLUGIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];

/// A variable of the environment that is set to something.
pub fn variable(process: &Process<'_>, name: &str) -> Option<String> {
    (process.env)(name).filter(|value| !value.is_empty())
}

/// What an option says, or else a variable of the environment.
pub fn given(process: &Process<'_>, option: Option<&str>, name: &str) -> Option<String> {
    option.map(str::to_owned).or_else(|| variable(process, name))
}

/// The directory of configurations: the option, `NETCONFPATH`, or the usual one.
pub fn conf_dir(process: &Process<'_>, option: Option<&str>) -> PathBuf {
    given(process, option, "NETCONFPATH").unwrap_or_else(|| CONF_DIR.to_owned()).into()
}

/// Whether an argument names a file and not a network.
pub fn is_file(network: &str) -> bool {
    network.contains('/') || [".conf", ".conflist", ".json"].iter().any(|e| network.ends_with(e))
}

/// All configurations of a directory. Broken files are reported and do no harm to the others.
///
/// # Errors
/// The directory cannot be read.
pub fn configured(process: &mut Process<'_>, command: &str, dir: &Path) -> Result<Directory> {
    let read = Directory::read(dir)?;
    for broken in &read.broken {
        let _ = writeln!(process.stderr, "{command}: ignored {broken}");
    }
    Ok(read)
}

/// The networks that arguments name, as files or by their names in the directory of configurations.
///
/// # Errors
/// A file cannot be used; there is no such network: then those that there are, are listed.
pub fn named(
    process: &mut Process<'_>,
    command: &str,
    names: &[&str],
    dir: &Path,
) -> Result<Vec<NetworkList>> {
    let directory = match names.iter().all(|name| is_file(name)) {
        true => None,
        false => Some(configured(process, command, dir)?),
    };
    let load = |name: &&str| match &directory {
        Some(directory) if !is_file(name) => directory.find(name).cloned(),
        _ => NetworkList::load(Path::new(name)),
    };
    names.iter().map(load).collect()
}

/// What is to be known about running plugins.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// `--bin-dir`, each perhaps several separated by colons.
    pub bin_dirs: &'a [String],
    /// `--cache-dir`.
    pub cache_dir: Option<&'a str>,
    /// `--timeout`.
    pub timeout: Option<Duration>,
}

/// Plugins are looked for in the directories given, or in `CNI_PATH`. When neither is there: what is built in is used, and
/// others are looked for beside this executable and in the usual directories; what happens to be installed there must not
/// take the place of what this executable can do itself.
pub fn runtime(process: &Process<'_>, options: Options<'_>) -> Runtime {
    let given = match options.bin_dirs {
        [] => variable(process, "CNI_PATH"),
        dirs => Some(dirs.join(":")),
    };
    let own = || std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let dirs: Vec<PathBuf> = match &given {
        Some(given) => given.split(':').map(PathBuf::from).collect(),
        None => own().into_iter().chain(PLUGIN_DIRS.map(PathBuf::from)).collect(),
    };
    let netns_override = variable(process, "CNI_NETNS_OVERRIDE")
        .is_some_and(|value| value == "1" || value.eq_ignore_ascii_case("true"));
    Runtime {
        prefer_built_in: given.is_none(),
        cache_dir: options.cache_dir.unwrap_or(CACHE_DIR).into(),
        timeout: options.timeout,
        detach_removal: variable(process, "CNI_ALL_WAIT").is_none_or(|value| value != "1"),
        netns_override,
        log: variable(process, "CNI_ALL_LOG").unwrap_or_default(),
        trace: variable(process, "TRACEPARENT"),
        environment: ["DBUS_SYSTEM_BUS_ADDRESS"]
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), variable(process, name)?)))
            .collect(),
        ..Runtime::new(dirs)
    }
}

/// A time limit as an argument: seconds, `5`, `0.5` or `5s`.
///
/// # Errors
/// It is none.
pub fn seconds(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a number of seconds greater than 0, such as 5 or 0.5");
    // In nanoseconds.
    let limit = scaled(text.strip_suffix('s').unwrap_or(text), 9).and_then(|(n, _)| u64::try_from(n).ok());
    limit.filter(|limit| *limit > 0).map(Duration::from_nanos).ok_or_else(invalid)
}

/// Arguments for the plugins: the option, or `CNI_ARGS`.
///
/// # Errors
/// The pair that is none.
pub fn args(process: &Process<'_>, option: Option<&str>) -> Result<Vec<(String, String)>> {
    pairs(&given(process, option, "CNI_ARGS").unwrap_or_default())
}

/// `KEY=VALUE;KEY=VALUE`, strictly.
fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let pair = |text: &str| match text.split('=').collect::<Vec<_>>().as_slice() {
        [key, value] if !key.is_empty() && !value.is_empty() => Ok(((*key).to_owned(), (*value).to_owned())),
        _ => Err(Error::config(format!("invalid CNI_ARGS pair {text:?}"))),
    };
    text.split(';').map(pair).collect()
}

/// Capability arguments: the option, or `CAP_ARGS`.
///
/// # Errors
/// It is no JSON object.
pub fn capability_args(process: &Process<'_>, option: Option<&str>) -> Result<Vec<(String, Value)>> {
    members(&given(process, option, "CAP_ARGS").unwrap_or_default())
}

/// The members of a JSON object, `{"mac": "02:00:00:00:00:05"}`.
fn members(text: &str) -> Result<Vec<(String, Value)>> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    match Value::parse(text.as_bytes()) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(Value::Null) => Ok(Vec::new()),
        Ok(_) => Err(Error::config(format!("capability arguments: {text} is not a JSON object"))),
        Err(e) => Err(Error::config(format!("capability arguments: {text} is not a JSON object"))
            .with_details(e.msg().replace("the network configuration is ", ""))),
    }
}

/// What `-p` asks for, as an entry of `portMappings`: `[ADDRESS:]HOST:CONTAINER[/PROTOCOL]`, an IPv6 address in brackets.
///
/// # Errors
/// It is none.
pub fn port_mapping(text: &str) -> Result<Value, String> {
    let invalid =
        || format!("{text:?} is no port mapping, such as 8080:80, 127.0.0.1:53:53/udp or [::1]:8080:80");
    let (ports, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    if !["tcp", "udp", "sctp"].contains(&protocol) {
        return Err(invalid());
    }
    let (ports, container) = ports.rsplit_once(':').ok_or_else(invalid)?;
    let (address, host) =
        ports.rsplit_once(':').map_or((None, ports), |(address, host)| (Some(address), host));
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(invalid);
    let number = |key: &str, port: u16| (key.to_owned(), Value::Number(port.to_string()));
    let mut members = vec![
        number("hostPort", port(host)?),
        number("containerPort", port(container)?),
        ("protocol".to_owned(), Value::String(protocol.to_owned())),
    ];
    if let Some(written) = address {
        let bare = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address: std::net::IpAddr = bare.unwrap_or(written).parse().map_err(|_| invalid())?;
        if address.is_ipv6() != bare.is_some() {
            return Err(invalid());
        }
        members.push(("hostIP".to_owned(), Value::String(address.to_string())));
    }
    Ok(Value::Object(members))
}

/// Adds the port mappings of `-p` to capability arguments.
///
/// # Errors
/// No plugin of the networks would take them.
pub fn add_port_mappings(
    args: &mut Vec<(String, Value)>,
    mappings: &[Value],
    networks: &[NetworkList],
) -> Result<()> {
    const NAME: &str = "portMappings";
    if mappings.is_empty() {
        return Ok(());
    }
    if !networks.iter().any(|network| network.capabilities().iter().any(|name| name == NAME)) {
        let names: Vec<&str> = networks.iter().map(|network| network.name.as_str()).collect();
        return Err(Error::config(format!(
            "-p: no plugin of network {} has \"capabilities\": {{\"portMappings\": true}}",
            names.join(", ")
        )));
    }
    let mut all = mappings.to_vec();
    if let Some(at) = args.iter().position(|(name, _)| name == NAME)
        && let (_, Value::Array(given)) = args.remove(at)
    {
        all.splice(0..0, given);
    }
    args.push((NAME.to_owned(), Value::Array(all)));
    Ok(())
}

/// `eth0: 10.22.0.2/16, gateway 10.22.0.1 (network mynet)`, one line per address.
pub fn lines(network: &str, ifname: &str, result: &CniResult) -> String {
    if result.ips.is_empty() {
        return format!("{ifname}: no address (network {network})\n");
    }
    let line = |ip: &IpConfig| {
        let gateway = ip.gateway.map_or(String::new(), |gateway| format!(", gateway {gateway}"));
        format!("{ifname}: {}{gateway} (network {network})\n", ip.address)
    };
    result.ips.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_mappings_are_written_as_container_engines_take_them() {
        for (text, json) in [
            ("8080:80", r#"{"hostPort":8080,"containerPort":80,"protocol":"tcp"}"#),
            (
                "127.0.0.1:53:5353/udp",
                r#"{"hostPort":53,"containerPort":5353,"protocol":"udp","hostIP":"127.0.0.1"}"#,
            ),
            ("[::1]:1:2", r#"{"hostPort":1,"containerPort":2,"protocol":"tcp","hostIP":"::1"}"#),
        ] {
            assert_eq!(port_mapping(text).unwrap().to_text(), json);
        }
        for bad in ["80", "0:80", "80:65536", "a:80:80", "::1:80:80", "80:80/icmp", "[1.2.3.4]:80:80", ":80"]
        {
            assert!(port_mapping(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_mappings_join_those_given_as_json_and_need_a_plugin_that_takes_them() {
        let list = |keys: &str| {
            NetworkList::parse(format!(r#"{{"name":"n","plugins":[{{"type":"x"{keys}}}]}}"#).as_bytes())
                .unwrap()
        };
        let mapping = [port_mapping("2:2").unwrap()];
        let mut args = members(r#"{"mac":"x","portMappings":[{"hostPort":1}]}"#).unwrap();
        assert!(add_port_mappings(&mut args, &mapping, &[list("")]).unwrap_err().msg().starts_with("-p: "));
        let takes = list(r#","capabilities":{"portMappings":true}"#);
        add_port_mappings(&mut args, &mapping, &[list(""), takes]).unwrap();
        let text = Value::Object(args).to_text();
        assert!(text.contains(r#""portMappings":[{"hostPort":1},{"hostPort":2,"#), "{text}");
    }

    #[test]
    fn arguments_are_read_strictly() {
        assert_eq!(pairs("IP=1.2.3.4;A=b").unwrap().len(), 2);
        for bad in ["A", "A=", "=b", "A=b;", "A=b=c"] {
            assert!(pairs(bad).unwrap_err().msg().starts_with("invalid CNI_ARGS pair"), "{bad}");
        }
        assert!(members("[]").is_err() && members("{").is_err());
        assert_eq!(seconds("0.5").unwrap(), Duration::from_millis(500));
        assert_eq!(seconds("5s").unwrap(), Duration::from_secs(5));
        for bad in ["0", "-1", "x", "", "inf", "nan"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
