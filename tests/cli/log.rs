//! `CNI_ALL_LOG` and the key `log`: a line for each operation, never on standard output.

use serde_json::{Value, json};

use super::host::Host;
use super::support::{Container, require_netns};
use super::{Printed, ok, run};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn config(host: &Host) -> Value {
    json!({"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "dataDir": host.node.data_dir(), "subnet": "10.1.0.0/24"}})
}

fn host() -> (Host, Container) {
    let host = Host::new();
    let container = host.node.container();
    (host, container)
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_plugin_writes_one_line_for_each_call() {
    require_netns!();
    let (host, container) = host();
    let log = host.path("log");
    let call = |command: &str| {
        let request = host.node.request(command, &container, "eth0", &config(&host));
        request.env("CNI_ALL_LOG", &log).env("TRACEPARENT", TRACE)
    };
    call("ADD").ok();
    call("ADD").err();
    call("DEL").silent();
    let lines = lines(&std::fs::read_to_string(&log).unwrap());
    let seen: Vec<_> = lines.iter().map(|line| (&line["op"], &line["ok"])).collect();
    assert_eq!(json!(seen), json!([["ADD", true], ["ADD", false], ["DEL", true]]));
    for line in &lines {
        assert_eq!(
            (&line["plugin"], &line["network"], &line["ifname"]),
            (&json!("bridge"), &json!("net"), &json!("eth0"))
        );
        assert_eq!((&line["container"], &line["netns"]), (&json!(container.id()), &json!(container.path())));
        assert_eq!(line["traceparent"], TRACE);
        let phases = line["phases"].as_object().unwrap();
        let sum: u64 = phases.values().map(|us| us.as_u64().unwrap()).sum();
        assert!(sum <= line["us"].as_u64().unwrap(), "{line}");
    }
    for phase in ["bridge", "host-local", "rtnetlink", "nftables", "wait until links are up"] {
        assert!(lines[0]["phases"][phase].is_u64(), "{phase} in {}", lines[0]);
    }
    assert!(lines[1]["error"].as_str().unwrap().contains("already exists") && lines[1]["code"].is_u64());
}

#[test]
fn a_line_to_standard_error_leaves_the_result_alone() {
    require_netns!();
    let (host, container) = host();
    let outcome =
        host.node.request("ADD", &container, "eth0", &config(&host)).env("CNI_ALL_LOG", "stderr").run();
    outcome.ok();
    assert_eq!(lines(&outcome.stderr).len(), 1, "{}", outcome.stderr);
    // The key of a configuration does the same; a log that cannot be written fails nothing.
    let mut logged = config(&host);
    logged["log"] = json!("stderr");
    let outcome = host.node.request("DEL", &container, "eth0", &logged).run();
    outcome.ok();
    assert_eq!(lines(&outcome.stderr)[0]["op"], "DEL");
    logged["log"] = json!("/nonexistent/log");
    let outcome = host.node.request("DEL", &container, "eth0", &logged).run();
    outcome.ok();
    assert!(outcome.stderr.contains("cannot write the log to /nonexistent/log"), "{}", outcome.stderr);
    logged["log"] = json!({"level": "of another program"});
    assert_eq!(host.node.request("DEL", &container, "eth0", &logged).run().stderr, "");
}

#[test]
fn an_operation_on_a_list_is_one_line_and_its_trace_reaches_other_programs() {
    require_netns!();
    let (host, container) = host();
    let told = host.path("told");
    let body = format!(
        "#!/bin/sh\necho \"$CNI_COMMAND $TRACEPARENT\" >>{}\necho '{{\"cniVersion\":\"1.0.0\"}}'\n",
        told.display()
    );
    host.node.workdir().script("bin2/spy", &body);
    let log = host.path("log");
    let list = json!({"cniVersion": "1.0.0", "name": "net", "log": log, "plugins": [config(&host), {"type": "spy"}]});
    host.configure("10-net.conflist", &list.to_string());
    for verb in ["add", "del"] {
        let bin = host.path("bin2");
        let mut command =
            host.command("cni-all", &[verb, "net", container.path(), "--bin-dir", bin.to_str().unwrap()]);
        command.env("TRACEPARENT", TRACE);
        ok(command);
    }
    let lines = lines(&std::fs::read_to_string(&log).unwrap());
    let seen: Vec<_> = lines.iter().map(|line| &line["op"]).collect();
    assert_eq!(json!(seen), json!(["ADD", "DEL"]));
    for phase in ["bridge", "host-local", "exec spy", "result cache"] {
        assert!(lines[0]["phases"][phase].is_u64(), "{phase} in {}", lines[0]);
    }
    let told = std::fs::read_to_string(told).unwrap();
    assert_eq!(told, format!("ADD {TRACE}\nDEL {TRACE}\n"));
    // The environment goes before the configuration, and nothing is on standard output.
    let mut command = host.command("cni-all", &["status", "net"]);
    command.env("CNI_ALL_LOG", "stderr");
    let printed: Printed = run(command);
    assert!(printed.stdout.is_empty() && printed.stderr.contains(r#""op":"STATUS""#), "{}", printed.stderr);
}
