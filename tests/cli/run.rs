//! `cni-all run`: the command is attached while it runs, and nothing is left however it ends.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::host::Host;
use super::support::{Call, executable, require_netns, require_tool};
use super::{Printed, ok, run};

/// A command that says when it runs, and then waits to be ended.
const WAITS: &str = "trap 'exit 33' TERM; trap 'exit 44' HUP; echo ready; while :; do sleep 0.05; done";

/// Waits until the command says that it runs.
fn wait_until_ready(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

#[test]
fn without_any_configuration_the_command_reaches_the_gateway_of_a_bridge() {
    require_netns!();
    require_tool!("ping");
    let host = Host::new();
    let script = "ip -o -4 addr show dev eth0; ip -o addr show dev lo; ping -c1 -W2 10.22.0.1";
    let printed = run(host.run(&["sh", "-c", script]));
    assert_eq!(printed.status, 0, "{}{}", printed.stdout, printed.stderr);
    assert!(
        printed.stdout.contains("10.22.0.2/16") && printed.stdout.contains("127.0.0.1/8"),
        "{}",
        printed.stdout
    );
    assert!(printed.stdout.contains(" 0% packet loss"), "{}", printed.stdout);
    assert_eq!(printed.stderr, "eth0: 10.22.0.2/16, gateway 10.22.0.1 (network mynet)\n");
    host.assert_clean();
}

#[test]
fn a_port_of_the_host_leads_to_the_command() {
    require_netns!();
    require_tool!("busybox");
    let host = Host::new();
    let file = host.node.workdir().file("www/page", "a page\n");
    let www = file.parent().unwrap().to_str().unwrap();
    let mut child =
        start(host.run(&["-q", "-p", "8080:80", "busybox", "httpd", "-f", "-p", "80", "-h", www]));
    // From a neighbour of the node, as from any other host.
    let client = host.node.container();
    host.node.ip(&[
        &format!("link add out0 type veth peer name eth0 netns {}", client.path()),
        "addr add 192.0.2.1/24 dev out0",
        "link set out0 up",
    ]);
    client.ip(&["addr add 192.0.2.2/24 dev eth0", "link set eth0 up"]);
    client.eventually("the page is there", |client| {
        let mut fetch = client.command("sh -c");
        fetch.arg(r"printf 'GET /page HTTP/1.0\r\n\r\n' | busybox nc -w 2 192.0.2.1 8080");
        fetch.output().unwrap().stdout.ends_with(b"a page\n")
    });
    signal(&child, Signal::SIGTERM);
    child.wait().unwrap();
    host.node.ip(&["link del out0"]);
    host.assert_clean();
}

#[test]
fn a_kept_namespace_stays_attached_and_says_how_to_remove_it() {
    require_netns!();
    let host = Host::new();
    let config = json!({"cniVersion": "1.1.0", "name": "net", "type": "ptp",
        "ipam": {"type": "host-local", "dataDir": host.node.data_dir(), "subnet": "10.77.0.0/24"}});
    let file = host.node.workdir().file("net.conf", config.to_string());
    // Not in a mount namespace of its own: the name would go with it.
    let command = |args: &[&str]| {
        let mut call = Call::new(&executable(), Path::new("/nonexistent")).bare();
        for arg in args {
            call = call.arg(*arg);
        }
        let mut command = call.inside(&host.node).to_command();
        command.args(["--cache-dir", host.path("state").to_str().unwrap()]);
        command
    };
    let mut kept = command(&["run", "-q", "--keep", "--network", file.to_str().unwrap()]);
    kept.arg("true");
    let printed = run(kept);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    assert_eq!((host.node.links_of_kind("veth").len(), host.cached().len()), (1, 1));
    let del = printed.stderr.lines().find_map(|l| l.strip_prefix("  cni-all ")).unwrap();
    let words: Vec<&str> = del.split_whitespace().collect();
    assert!(words[2].starts_with("/run/netns/") && Path::new(words[2]).exists(), "{del}");
    // The network is configured nowhere: what was kept with the result is used.
    ok(command(&words));
    let mut remove = Command::new("ip");
    remove.args(["netns", "delete", words[4]]);
    ok(remove);
    assert_eq!(host.node.leases("net"), Vec::<String>::new());
    host.assert_clean();
}

#[test]
fn the_status_is_the_commands_and_nothing_is_left() {
    require_netns!();
    let host = Host::new();
    for (command, status, says) in [
        (&["sh", "-c", "exit 7"][..], 7, ""),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9, ""),
        (&["no-such-command"], 127, "no-such-command: No such file or directory"),
        (&["/etc"], 126, "/etc: Permission denied"),
        (&["--", "sh", "-c", "exit 0"], 0, ""),
    ] {
        let printed = run(host.run(&[&["--quiet"], command].concat()));
        assert_eq!(printed.status, status, "{command:?}: {}", printed.stderr);
        assert!(
            printed.stderr.contains(says) && printed.stderr.is_empty() == says.is_empty(),
            "{}",
            printed.stderr
        );
        host.assert_clean();
    }
}

#[test]
fn the_command_has_its_own_namespace_and_the_host_keeps_its_own() {
    require_netns!();
    let host = Host::new();
    let read = "readlink /proc/self/ns/net; ip -br link";
    let printed = ok(host.run(&["-q", "sh", "-c", read]));
    let outside = host.node.run("readlink /proc/self/ns/net");
    assert!(!printed.contains(outside.trim()) && !printed.contains("cni0"), "{printed}");
    assert!(host.node.find_link("eth0").is_none());
}

#[test]
fn signals_go_to_the_command_and_cleaning_up_comes_after_it() {
    require_netns!();
    let host = Host::new();
    for (sent, status) in [(Signal::SIGTERM, 33), (Signal::SIGHUP, 44), (Signal::SIGINT, 128 + 2)] {
        let mut child = start(host.run(&["-q", "sh", "-c", WAITS]));
        wait_until_ready(&mut child);
        assert_eq!(host.node.links_of_kind("veth").len(), 1);
        signal(&child, sent);
        let printed: Printed = child.wait_with_output().unwrap().into();
        assert_eq!((printed.status, printed.stderr.as_str()), (status, ""), "{sent}");
        host.assert_clean();
    }
}

#[test]
fn more_signals_do_not_break_off_the_cleaning_up() {
    require_netns!();
    let host = Host::new();
    for _ in 0..5 {
        let mut child = start(host.run(&["-q", "sh", "-c", WAITS]));
        wait_until_ready(&mut child);
        for _ in 0..50 {
            signal(&child, Signal::SIGTERM);
            signal(&child, Signal::SIGHUP);
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
        let printed: Printed = child.wait_with_output().unwrap().into();
        assert!([33, 44].contains(&printed.status), "{}: {}", printed.status, printed.stderr);
        host.assert_clean();
    }
}

#[test]
fn a_signal_before_the_command_starts_ends_it_all() {
    require_netns!();
    let host = Host::new();
    for delay in 0..12 {
        let child = start(host.run(&["-q", "sleep", "30"]));
        std::thread::sleep(std::time::Duration::from_micros(delay * 1500));
        signal(&child, Signal::SIGTERM);
        let output = child.wait_with_output().unwrap();
        let by = std::os::unix::process::ExitStatusExt::signal(&output.status);
        assert!(output.status.code() == Some(143) || by == Some(15), "{output:?}");
        host.assert_clean();
    }
}

#[test]
fn several_networks_by_file_and_by_name_give_eth0_and_eth1() {
    require_netns!();
    let host = Host::new();
    let workdir = host.node.workdir();
    workdir.file("net.d/00-broken.conflist", "{\n\"name\": \"x\",\n oops }");
    workdir.file(
        "net.d/10-back.conf",
        r#"{"cniVersion":"1.0.0","name":"back","type":"ptp","ipam":{"type":"host-local","subnet":"10.77.0.0/24"}}"#,
    );
    let file = workdir.file(
        "front.conflist",
        r#"{"cniVersion":"0.4.0","name":"front","plugins":[{"type":"bridge","bridge":"br7","isGateway":true,
            "ipam":{"type":"host-local","subnet":"10.78.0.0/24"}}]}"#,
    );
    let networks = ["--network", file.to_str().unwrap(), "--network", "back"];
    let printed = run(host.run(&[&networks[..], &["ip", "-br", "-4", "addr"]].concat()));
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    for (ifname, address) in [("eth0", "10.78.0.2/24"), ("eth1", "10.77.0.2")] {
        assert!(
            printed.stdout.lines().any(|l| l.starts_with(ifname) && l.contains(address)),
            "{}",
            printed.stdout
        );
    }
    assert!(
        printed.stderr.contains("00-broken.conflist") && printed.stderr.contains("line 3 column 2"),
        "{}",
        printed.stderr
    );
    host.assert_clean();
    // Without --network, the first that can be used.
    let printed = run(host.run(&["true"]));
    assert!(printed.status == 0 && printed.stderr.contains("(network back)"), "{}", printed.stderr);
    let unknown = run(host.run(&["--network", "none", "true"]));
    assert!(unknown.status == 125 && unknown.stderr.contains("there are: back"), "{}", unknown.stderr);
    host.assert_clean();
}

#[test]
fn a_network_that_cannot_be_joined_takes_back_those_before_it() {
    require_netns!();
    let host = Host::new();
    let workdir = host.node.workdir();
    workdir.file(
        "net.d/a.conf",
        r#"{"cniVersion":"1.1.0","name":"a","type":"ptp","ipam":{"type":"host-local","subnet":"10.77.0.0/24"}}"#,
    );
    workdir.file(
        "net.d/b.conflist",
        r#"{"cniVersion":"1.1.0","name":"b","plugins":[{"type":"ptp","ipam":{"type":"host-local","subnet":"10.79.0.0/24"}},
            {"type":"no-such-plugin"}]}"#,
    );
    let marker = host.path("ran");
    let printed = run(host.run(&["--network", "a", "--network", "b", "touch", marker.to_str().unwrap()]));
    assert_eq!(printed.status, 125);
    assert!(printed.stderr.contains("network b: plugin no-such-plugin (ADD)"), "{}", printed.stderr);
    assert!(!marker.exists());
    host.assert_clean();
}

#[test]
fn name_servers_of_the_network_are_in_resolv_conf_and_only_for_the_command() {
    require_netns!();
    let host = Host::new();
    host.node.workdir().file(
        "net.d/dns.conf",
        r#"{"cniVersion":"1.1.0","name":"dns","type":"ptp","ipam":{"type":"host-local","subnet":"10.77.0.0/24"},
            "dns":{"nameservers":["10.99.0.53"],"search":["example.org"]}}"#,
    );
    let before = std::fs::read("/etc/resolv.conf").unwrap();
    let printed = ok(host.run(&["-q", "cat", "/etc/resolv.conf"]));
    assert_eq!(printed, "nameserver 10.99.0.53\nsearch example.org\n");
    assert_eq!(std::fs::read("/etc/resolv.conf").unwrap(), before);
    host.assert_clean();
}

#[test]
fn what_was_attached_can_be_had_as_one_line_of_json() {
    require_netns!();
    let host = Host::new();
    let printed = run(host.run(&["--json", "sh", "-c", "echo later >&2"]));
    let (json, later) = printed.stderr.split_once('\n').unwrap();
    let attached: Value = serde_json::from_str(json).unwrap();
    assert_eq!(later, "later\n");
    assert_eq!(attached["attachments"][0]["ifname"], "eth0");
    assert_eq!(attached["attachments"][0]["result"]["ips"][0]["address"], "10.22.0.2/16");
    assert!(attached["containerID"].as_str().is_some_and(|id| !id.is_empty()), "{attached}");
}

#[test]
fn other_executables_in_cni_path_are_used_and_see_what_libcni_would_give_them() {
    require_netns!();
    let host = Host::new();
    let workdir = host.node.workdir();
    let log = host.path("log");
    let body = format!(
        "#!/bin/sh\n(echo \"$CNI_COMMAND $CNI_IFNAME\"; cat; echo) >>{}\n\
         [ \"$CNI_COMMAND\" = ADD ] && echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"10.5.0.2/24\"}}]}}'\nexit 0\n",
        log.display()
    );
    workdir.script("plugins/logger", &body);
    workdir.file(
        "net.d/x.conflist",
        r#"{"cniVersion":"1.0.0","name":"x","plugins":[{"type":"logger","big":12345678901234567890},{"type":"logger","second":1.50}]}"#,
    );
    let mut command = host.run(&["true"]);
    command.env("CNI_PATH", host.path("plugins"));
    let printed = run(command);
    assert_eq!(printed.status, 0, "{}", printed.stderr);
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<&str> = log.lines().filter(|l| !l.is_empty()).collect();
    assert_eq!((lines[0], lines[2], lines[4], lines[6]), ("ADD eth0", "ADD eth0", "DEL eth0", "DEL eth0"));
    assert_eq!(lines[1], r#"{"type":"logger","big":12345678901234567890,"cniVersion":"1.0.0","name":"x"}"#);
    for (line, key) in [
        (lines[3], "\"second\":1.50"),
        (lines[5], "\"second\":1.50"),
        (lines[7], "\"big\":12345678901234567890"),
    ] {
        assert!(
            line.contains(key) && line.contains("\"prevResult\":{") && line.contains("10.5.0.2/24"),
            "{line}"
        );
    }
}

#[test]
fn an_ordinary_user_is_told_what_is_missing() {
    require_netns!();
    require_tool!("setpriv");
    let host = Host::new();
    // In a place that every user can execute from.
    let exe = host.path("cni-all");
    ok({
        let mut cp = Command::new("cp");
        cp.arg(executable()).arg(&exe);
        cp
    });
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]);
    command.arg(&exe).args(["run", "true"]).env_remove("CNI_PATH").env("NETCONFPATH", "/nonexistent");
    let printed = run(command);
    assert_eq!(printed.status, 125);
    assert!(
        printed.stderr.contains("root") && printed.stderr.contains("unshare -Urnm"),
        "{}",
        printed.stderr
    );
}

#[test]
fn a_user_namespace_is_enough() {
    require_netns!();
    require_tool!("unshare");
    let script = "mount -t tmpfs tmpfs /var/lib && exec \"$0\" run -q ip -br -4 addr show dev eth0";
    let mut command = Command::new("unshare");
    command.args(["-Urnm", "sh", "-c", script]).arg(executable());
    command.env_remove("CNI_PATH").env("NETCONFPATH", "/nonexistent");
    let printed = run(command);
    assert!(
        printed.status == 0 && printed.stdout.contains("10.22.0.2/16"),
        "{}{}",
        printed.stdout,
        printed.stderr
    );
}
