//! `cnitool` and the scripts' names, as people's scripts use them.

use std::process::Command;

use serde_json::Value;

use super::host::Host;
use super::support::{Container, require_netns};
use super::{ok, run};

const SINGLE: &str = r#"{"cniVersion":"1.0.0","name":"back","type":"ptp","ipam":{"type":"host-local","subnet":"10.77.0.0/24"}}"#;

fn host() -> (Host, Container) {
    let host = Host::new();
    host.configure("10-back.conf", SINGLE);
    let container = host.node.container();
    (host, container)
}

/// `cnitool ARGS…` with the plugins of the test.
fn cnitool(host: &Host, args: &[&str]) -> Command {
    let mut command = host.command("cnitool", args);
    command.env("CNI_PATH", host.node.workdir().bin());
    command
}

#[test]
fn cnitool_adds_checks_and_deletes_with_its_own_ids() {
    require_netns!();
    let (host, container) = host();
    let result: Value =
        serde_json::from_str(&ok(cnitool(&host, &["add", "back", container.path()]))).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.77.0.2/24");
    assert_eq!(result["cniVersion"], "1.0.0");
    let cached = host.cached();
    assert!(
        cached.len() == 1 && cached[0].starts_with("back-cnitool-") && cached[0].ends_with("-eth0"),
        "{cached:?}"
    );
    assert_eq!(ok(cnitool(&host, &["check", "back", container.path(), "more", "words"])), "");
    // status of a version that knows none; the namespace is not looked at.
    assert_eq!(ok(cnitool(&host, &["status", "back", "/nonexistent"])), "");
    assert_eq!(ok(cnitool(&host, &["del", "back", container.path()])), "");
    host.assert_clean();
}

#[test]
fn cnitool_takes_its_arguments_from_the_environment() {
    require_netns!();
    let (host, container) = host();
    let mut command = cnitool(&host, &["add", "back", container.path()]);
    command.env("CNI_IFNAME", "net1").env("CNI_ARGS", "IgnoreUnknown=1;IP=10.77.0.9");
    let result: Value = serde_json::from_str(&ok(command)).unwrap();
    assert_eq!(result["ips"][0]["address"], "10.77.0.9/24");
    assert!(host.cached()[0].ends_with("-net1"));
    // Everything of the network is stale for cnitool.
    ok(cnitool(&host, &["gc", "back", container.path()]));
    host.assert_clean();
}

#[test]
fn cnitool_fails_with_one_line_and_status_1() {
    require_netns!();
    let (host, container) = host();
    let netns = container.path();
    for (args, env, says) in [
        (vec!["add", "nosuch", netns], ("X", ""), "no net configuration with name \"nosuch\""),
        (vec!["add", "back", netns], ("CNI_ARGS", "A=b;"), "invalid CNI_ARGS pair \"\""),
        (vec!["add", "back", netns], ("CAP_ARGS", "[]"), "not a JSON object"),
        (vec!["add", "back", netns], ("CNI_IFNAME", ""), "interface name is empty"),
        (vec!["frob", "back", netns], ("X", ""), "unknown command \"frob\""),
        (vec!["add", "back", "/nonexistent"], ("X", ""), "failed to Statfs \"/nonexistent\""),
    ] {
        let mut command = cnitool(&host, &args);
        command.env(env.0, env.1);
        let printed = run(command);
        assert_eq!((printed.status, printed.stdout.as_str()), (1, ""), "{args:?}");
        assert!(
            printed.stderr.contains(says) && printed.stderr.lines().count() == 1,
            "{args:?}: {}",
            printed.stderr
        );
    }
    let usage = run(cnitool(&host, &["add", "back"]));
    assert!(
        usage.status == 1 && usage.stdout.is_empty() && usage.stderr.contains("cnitool gc     <net> <netns>"),
        "{}",
        usage.stderr
    );
    host.assert_clean();
}

#[test]
fn exec_plugins_attaches_to_every_conf_file_and_detaches_again() {
    require_netns!();
    let (host, container) = host();
    host.configure(
        "20-list.conf",
        r#"{"cniVersion":"0.4.0","name":"front","plugins":[{"type":"bridge","bridge":"br7","ipam":{"type":"host-local","subnet":"10.78.0.0/24"}}]}"#,
    );
    host.configure("30-not.conflist", "ignored");
    host.configure("99-loopback.conf", r#"{"type":"loopback"}"#);
    for name in ["exec-plugins", "exec-plugins.sh"] {
        assert_eq!(ok(host.command(name, &["add", "c1", container.path()])), "");
        let inside = container.run("ip -br addr");
        for (ifname, address) in [("lo", "127.0.0.1/8"), ("eth0", "10.77.0."), ("eth1", "10.78.0.")] {
            assert!(inside.lines().any(|l| l.starts_with(ifname) && l.contains(address)), "{inside}");
        }
        assert_eq!(ok(host.command(name, &["del", "c1", container.path()])), "");
        host.assert_clean();
    }
    let usage = run(host.command("exec-plugins", &["add"]));
    assert!(
        usage.status == 1 && usage.stdout.starts_with("Usage: exec-plugins add|del CONTAINER-ID NETNS-PATH")
    );
}

#[test]
fn exec_plugins_takes_back_what_it_did_before_a_failure() {
    require_netns!();
    let (host, container) = host();
    host.configure("20-bad.conf", r#"{"cniVersion":"1.0.0","name":"bad","type":"absent"}"#);
    let printed = run(host.command("exec-plugins", &["add", "c1", container.path()]));
    assert_eq!(printed.status, 1);
    assert!(printed.stdout.starts_with("bad : error executing ADD: "), "{}", printed.stdout);
    host.assert_clean();
}

#[test]
fn priv_net_run_runs_a_command_in_all_networks() {
    require_netns!();
    let (host, _) = host();
    host.configure("99-loopback.conf", r#"{"type":"loopback"}"#);
    let printed = run(host.command("priv-net-run", &["sh", "-c", "ip -br -4 addr show; exit 9"]));
    assert_eq!((printed.status, printed.stderr.as_str()), (9, ""));
    assert!(
        printed.stdout.contains("10.77.0.2/24") && printed.stdout.contains("127.0.0.1/8"),
        "{}",
        printed.stdout
    );
    host.assert_clean();
}

#[test]
fn docker_run_makes_the_network_of_a_container_with_plugins() {
    require_netns!();
    let (host, _) = host();
    // Stands for an engine: a container is a process in a namespace of its own.
    let log = host.path("log");
    let engine = host.node.workdir().script(
        "engine",
        &format!(
            "#!/bin/sh\necho \"$@\" >>{log}\ncase $1 in\n\
             run) if [ $2 = -d ]; then unshare -n sleep 600 </dev/null >/dev/null 2>&1 & echo $! >{log}.pid; sleep 0.2; echo c0ffee\n\
             else nsenter --net=/proc/$(cat {log}.pid)/ns/net ip -br -4 addr; exit 5; fi;;\n\
             inspect) cat {log}.pid;;\n\
             rm) kill $(cat {log}.pid);;\nesac\n",
            log = log.display()
        ),
    );
    for name in ["docker-run", "docker-run.sh", "cni-all"] {
        let args: &[&str] =
            if name == "cni-all" { &["docker-run", "--rm", "image", "sh"] } else { &["--rm", "image", "sh"] };
        let mut command = host.command(name, args);
        command.env("CNI_ALL_ENGINE", &engine).env("CNI_ALL_IMAGE", "holder");
        let printed = run(command);
        assert_eq!(printed.status, 5, "{}", printed.stderr);
        assert!(printed.stdout.contains("eth0") && printed.stdout.contains("10.77.0."), "{}", printed.stdout);
        host.assert_clean();
    }
    let calls = std::fs::read_to_string(&log).unwrap();
    let first: Vec<&str> = calls.lines().take(4).collect();
    assert_eq!(
        first,
        [
            "run -d --net=none holder /bin/sleep 10000000",
            "inspect -f {{ .State.Pid }} c0ffee",
            "run --net=container:c0ffee --rm image sh",
            "rm -f c0ffee"
        ]
    );
    assert_eq!(calls.lines().count(), 12);
}
