//! `cni-all add`, `check`, `del`, `gc` and `status`, as an operator uses them.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::host::Host;
use super::support::{Container, Netns, executable, require_netns, require_tool};
use super::{Printed, ok, run};

/// A bridge with masquerading, and a second plugin after it. Few addresses.
fn list() -> String {
    json!({"cniVersion": "1.1.0", "name": "net", "plugins": [
        {"type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true, "capabilities": {"mac": true},
         "ipam": {"type": "host-local", "subnet": "10.1.0.0/29", "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "loopback"},
    ]})
    .to_string()
}

fn host() -> (Host, Container) {
    let host = Host::new();
    host.configure("10-net.conflist", &list());
    let container = host.node.container();
    (host, container)
}

/// A directory in which every plugin is an executable of its own: a copy, not a link to the one that is asked.
fn copies(host: &Host) -> String {
    let dir = host.path("copies");
    std::fs::create_dir(&dir).unwrap();
    for name in ["bridge", "host-local", "loopback"] {
        ok({
            let mut cp = Command::new("cp");
            cp.arg(executable()).arg(dir.join(name));
            cp
        });
    }
    dir.to_str().unwrap().to_owned()
}

/// What differs from one ADD to the next replaced: hardware addresses, and what the kernel numbers and times.
fn comparable(text: &str) -> String {
    let is_mac = |word: &str| word.len() == 17 && word.split(':').filter(|part| part.len() == 2).count() == 6;
    let plain = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_ascii_hexdigit());
        if is_mac(bare) { word.replace(bare, "MAC") } else { word.to_owned() }
    };
    let lines = text.lines().map(|line| line.split(' ').map(plain).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

/// What a shell prints inside a namespace.
fn shell(netns: &Netns, script: &str) -> String {
    let mut command = netns.command("sh -c");
    command.arg(script);
    ok(command)
}

/// What the kernel and the files hold, in words.
fn state(host: &Host, container: &Container) -> String {
    let script = "ip -o link show | sed -E 's/^[0-9]+: //; s/@if[0-9]+//; s/link-netns(id)? [^ ]+//'
        ip -o addr show | sed -E 's/^[0-9]+: //; /fe80/d; s/ brd [0-9.]+ scope/ scope/; s/valid_lft.*//'
        ip route show table all | grep -v fe80; nft -s list ruleset";
    let [outside, inside] = [&*host.node, container].map(|netns| shell(netns, script));
    let find = format!(
        "cd {} && find . -type f ! -path '*/results/*' | sort | xargs tail -n +1",
        host.path("state").display()
    );
    let files = shell(&host.node, &find);
    let cached: Vec<String> = host
        .cached()
        .iter()
        .map(|name| std::fs::read_to_string(host.path("state/results").join(name)).unwrap().replace('"', " "))
        .collect();
    comparable(&format!("{outside}\n{inside}\n{files}\n{}", cached.join("\n")))
}

#[test]
fn a_list_in_one_process_does_what_its_plugins_do_as_executables() {
    require_netns!();
    let (host, container) = host();
    let copies = copies(&host);
    let mut seen = Vec::new();
    for bin_dir in [None, Some(copies.as_str())] {
        let bin = bin_dir.map_or(Vec::new(), |dir| vec!["--bin-dir", dir]);
        let verb = |verb: &str, more: &[&str]| {
            ok(host.command("cni-all", &[&[verb, "net", container.path()], &bin[..], more].concat()))
        };
        let result = verb("add", &["--json", "--capability-args", r#"{"mac":"02:00:00:00:00:05"}"#]);
        assert!(result.contains("02:00:00:00:00:05") && result.ends_with("}\n"), "{result}");
        verb("check", &[]);
        verb("status", &[]);
        seen.push((comparable(&result), state(&host, &container)));
        verb("del", &[]);
        verb("del", &[]);
        host.assert_clean();
        if bin_dir.is_none() {
            shell(&host.node, "ip link del br0; nft flush ruleset; sysctl -qw net.ipv4.ip_forward=0");
            std::fs::remove_dir_all(host.path("state/networks")).unwrap();
        }
    }
    assert!(seen[0].1.contains("10.1.0.2/29") && seen[0].1.contains("masq"), "{}", seen[0].1);
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn a_list_of_built_in_plugins_is_one_process() {
    require_netns!();
    require_tool!("strace");
    let (host, container) = host();
    for verb in ["add", "check", "del"] {
        let log = host.path(&format!("trace.{verb}"));
        let calls = "trace=execve,fork,vfork,clone,clone3";
        let strace = ["-f", "-qq", "-e", calls, "-o", log.to_str().unwrap()];
        ok(host.command_through("strace", &strace, "cni-all", &[verb, "net", container.path()]));
        let log = std::fs::read_to_string(&log).unwrap();
        assert_eq!(log.matches("execve(").count(), 1, "{verb}: {log}");
        let children = log.matches("clone").count() + log.matches("fork").count();
        // DEL leaves the kernel's end of a link's removal to a child.
        assert!(children <= usize::from(verb == "del"), "{verb}: {log}");
    }
}

#[test]
fn what_is_attached_is_kept_as_libcni_keeps_it_and_forgotten_with_del() {
    require_netns!();
    let (host, container) = host();
    let netns = container.path();
    let printed = run(host.command(
        "cni-all",
        &["add", "net", netns, "--id", "c1", "--ifname", "net7", "--args", "IgnoreUnknown=1;K=v"],
    ));
    assert_eq!(
        (printed.status, printed.stdout.as_str()),
        (0, "net7: 10.1.0.2/29, gateway 10.1.0.1 (network net)\n"),
        "{}",
        printed.stderr
    );
    assert_eq!(host.cached(), ["net-c1-net7"]);
    let text = std::fs::read_to_string(host.path("state/results/net-c1-net7")).unwrap();
    let kept: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in [
        ("kind", json!("cniCacheV1")),
        ("containerId", json!("c1")),
        ("ifName", json!("net7")),
        ("networkName", json!("net")),
        ("netns", json!(netns)),
        ("cniArgs", json!([["IgnoreUnknown", "1"], ["K", "v"]])),
    ] {
        assert_eq!(kept[key], value, "{key}");
    }
    assert_eq!(kept["result"]["cniVersion"], "1.1.0");
    assert_eq!(kept["result"]["ips"][0]["address"], "10.1.0.2/29");
    // The configuration is there whole: DEL works when its file is gone, and needs nothing but the id.
    std::fs::remove_file(host.path("net.d/10-net.conflist")).unwrap();
    ok(host.command("cni-all", &["del", "net", "--id", "c1", "--ifname", "net7"]));
    host.assert_clean();
}

#[test]
fn a_failed_add_is_taken_back_unless_it_is_to_be_kept() {
    require_netns!();
    let (host, container) = host();
    host.node.workdir().script("bin2/fails", "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\necho '{\"code\":11,\"msg\":\"not today\",\"details\":\"why\"}'; exit 1\n");
    let bin = host.path("bin2");
    let config = list().replace(r#"{"type":"loopback"}"#, r#"{"type":"fails"}"#);
    host.configure("10-net.conflist", &config);
    let add = |more: &[&str]| {
        run(host.command(
            "cni-all",
            &[&["add", "net", container.path(), "--bin-dir", bin.to_str().unwrap()], more].concat(),
        ))
    };
    let printed = add(&[]);
    assert_eq!(printed.status, 1);
    assert_eq!(printed.stderr, "cni-all add: network net: plugin fails (ADD): not today; why\n");
    host.assert_clean();
    let failed: Value = serde_json::from_str(&add(&["--json"]).stdout).unwrap();
    assert_eq!((&failed["code"], &failed["details"]), (&json!(11), &json!("why")));
    add(&["--keep-failed"]);
    assert_eq!(host.node.links_of_kind("veth").len(), 1);
    ok(host.command("cni-all", &["del", "net", container.path(), "--bin-dir", bin.to_str().unwrap()]));
    host.assert_clean();
}

#[test]
fn an_add_over_an_attachment_fails_and_leaves_it_alone() {
    require_netns!();
    let (host, container) = host();
    host.node.workdir().script("bin2/fails", "#!/bin/sh\nexit 1\n");
    let bin = host.path("bin2");
    let other = host.node.container();
    let add = ["add", "net", container.path(), "--id", "c1"];
    let check = || ok(host.command("cni-all", &["check", "net", container.path(), "--id", "c1"]));
    ok(host.command("cni-all", &add));
    let before = state(&host, &container);
    let again = run(host.command("cni-all", &add));
    assert!(again.status == 1 && again.stderr.contains("already exists"), "{}", again.stderr);
    let elsewhere = run(host.command("cni-all", &["add", "net", other.path(), "--id", "c1"]));
    assert!(elsewhere.stderr.contains("duplicate allocation"), "{}", elsewhere.stderr);
    assert_eq!(state(&host, &container), before);
    check();
    // Neither when a plugin before or behind the one in question would be asked to take something back.
    let plugins = ["loopback", "bridge", "fails"].map(|name| match name {
        "bridge" => serde_json::from_str::<Value>(&list()).unwrap()["plugins"][0].clone(),
        name => json!({"type": name}),
    });
    let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": plugins});
    host.configure("10-net.conflist", &list.to_string());
    run(host.command("cni-all", &[&add[..], &["--bin-dir", bin.to_str().unwrap()]].concat()));
    assert_eq!(state(&host, &container), before);
    host.configure("10-net.conflist", &self::list());
    check();
    ok(host.command("cni-all", &["del", "net", container.path(), "--id", "c1"]));
    host.assert_clean();
}

#[test]
fn a_comparison_goes_by_the_arguments_that_were_kept() {
    require_netns!();
    let host = Host::new();
    let ipam = json!({"type": "static", "addresses": [{"address": "10.5.0.5/24"}]});
    let plugin = json!({"type": "bridge", "bridge": "br0", "capabilities": {"ips": true}, "ipam": ipam});
    let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]});
    host.configure("10-net.conflist", &list.to_string());
    let container = host.node.container();
    let wanted = r#"{"ips":["10.5.0.77/24"]}"#;
    ok(host.command("cni-all", &["add", "net", container.path(), "--capability-args", wanted]));
    ok(host.command("cni-all", &["check", "net", container.path()]));
    ok(host.command("cni-all", &["del", "net", container.path()]));
}

#[test]
fn what_is_attached_and_cannot_be_told_is_taken_back() {
    require_netns!();
    let (host, container) = host();
    let mut add = host.command("cni-all", &["add", "net", container.path(), "--json"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert_eq!(add.stdout(full).status().unwrap().code(), Some(1));
    host.assert_clean();
}

#[test]
fn what_is_built_in_is_used_whoever_assigns_the_addresses() {
    require_netns!();
    let host = Host::new();
    let answer = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.9/24"}]}"#;
    let script = format!("#!/bin/sh\n[ $CNI_COMMAND != ADD ] || echo '{answer}'\n");
    // Beside the executable, as another plugin of the main plugin's name is.
    let dir = host.path("elsewhere");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(executable(), dir.join("cni-all")).unwrap();
    host.node.workdir().script("elsewhere/my-ipam", &script);
    host.node.workdir().script("elsewhere/bridge", "#!/bin/sh\nexit 7\n");
    let plugin = json!({"type": "bridge", "bridge": "br0", "ipam": {"type": "my-ipam"}});
    let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [plugin]});
    host.configure("10-net.conflist", &list.to_string());
    let container = host.node.container();
    let program = dir.join("cni-all");
    let words = ["--conf-dir", host.path("net.d").to_str().unwrap()].join(" ");
    for verb in ["add", "check", "del"] {
        host.node.run(&format!(
            "{} {verb} net {} {words} --cache-dir {}",
            program.display(),
            container.path(),
            host.path("cache").display()
        ));
    }
}

#[test]
fn what_cannot_be_is_said_before_anything_is_executed() {
    require_netns!();
    let (host, container) = host();
    host.configure("20-bad.conflist", "{\"name\":\"bad\",\n\"plugins\":[{\"type\": 7}]}");
    let ran = host.path("ran");
    host.node.workdir().script("bin2/spy", &format!("#!/bin/sh\ntouch {}\necho '{{}}'\n", ran.display()));
    let bin = host.path("bin2");
    host.configure("30-spy.conflist", r#"{"cniVersion":"1.1.0","name":"spy","plugins":[{"type":"spy"}]}"#);
    host.configure(
        "40-no.conflist",
        r#"{"cniVersion":"1.1.0","name":"no","plugins":[{"type":"spy"},{"type":"absent"}]}"#,
    );
    let netns = container.path();
    for (args, status, says) in [
        (vec!["add", "nte", netns], 1, "there are: net, spy, no"),
        (
            vec!["add", "nte", netns],
            1,
            "20-bad.conflist: plugins[0]: type: expected a string at line 2 column 21",
        ),
        (vec!["add", "spy", "/run/netns/gone"], 1, "there is no network namespace /run/netns/gone"),
        (vec!["add", "spy", "gone"], 1, "there is no network namespace /run/netns/gone"),
        (vec!["add", "spy", "/etc/passwd"], 1, "/etc/passwd is no network namespace"),
        (vec!["add", "no", netns], 1, "failed to find plugin \"absent\""),
        (vec!["add", "spy", netns, "--ifname", "a/b"], 1, "interface name contains /"),
        (vec!["add", "spy", netns, "--id", "a b"], 1, "invalid characters in containerID"),
        (vec!["add", "spy", netns, "--args", "A"], 1, "invalid CNI_ARGS pair \"A\""),
        (vec!["add", "spy", netns, "--capability-args", "[]"], 1, "[] is not a JSON object"),
        (vec!["add", "spy", netns, "-p", "8080:80"], 1, "-p: no plugin of network spy"),
        (vec!["add", "spy", netns, "-p", "8080"], 2, "no port mapping"),
        (vec!["add", "spy", netns, "--timeout", "x"], 2, "not a number of seconds"),
        (vec!["add", "spy"], 2, "NETNS"),
        (vec!["del", "spy"], 2, "neither NETNS nor --id"),
        (vec!["gc", "spy", "--valid", "c1"], 2, "is not ID/IFNAME"),
        (vec!["gc", "spy", "--valid", "c1/eth0", "--all"], 2, "exclude each other"),
        (vec!["check", "spy", "gone"], 1, "there is no network namespace"),
    ] {
        let printed =
            run(host.command("cni-all", &[&args[..], &["--bin-dir", bin.to_str().unwrap()]].concat()));
        assert_eq!(printed.status, status, "{args:?}: {}", printed.stderr);
        assert!(printed.stderr.contains(says) && printed.stdout.is_empty(), "{args:?}: {}", printed.stderr);
    }
    assert!(!ran.exists());
}

#[test]
fn a_plugin_that_hangs_is_ended_and_reported() {
    require_netns!();
    let (host, container) = host();
    host.node.workdir().script("bin2/hangs", "#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\nsleep 600\n");
    let bin = host.path("bin2");
    host.configure(
        "10-net.conflist",
        r#"{"cniVersion":"1.1.0","name":"net","plugins":[{"type":"bridge","ipam":{"type":"hangs"}}]}"#,
    );
    let started = std::time::Instant::now();
    let args = ["add", "net", container.path(), "--bin-dir", bin.to_str().unwrap(), "--timeout", "0.3"];
    let printed = run(host.command("cni-all", &args));
    assert!(started.elapsed() < std::time::Duration::from_secs(10));
    assert_eq!(printed.status, 1);
    assert!(
        printed.stderr.contains("bin2/hangs did not end within 300ms and was killed"),
        "{}",
        printed.stderr
    );
    host.assert_clean();
}

#[test]
fn a_lock_that_another_process_keeps_is_given_up_and_its_holder_named() {
    require_netns!();
    let (host, container) = host();
    let dir = host.path("leases");
    let ipam = json!({"type": "host-local", "subnet": "10.1.0.0/29", "dataDir": dir});
    let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "bridge", "ipam": ipam}]});
    host.configure("10-net.conflist", &list.to_string());
    std::fs::create_dir_all(dir.join("net")).unwrap();
    let file = std::fs::File::create(dir.join("net/lock")).unwrap();
    let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let printed = run(host.command("cni-all", &["add", "net", container.path(), "--timeout", "0.1"]));
    let holder = format!("process {} did not release it within 100ms", std::process::id());
    assert!(printed.status == 1 && printed.stderr.contains(&holder), "{}", printed.stderr);
    drop(lock);
    ok(host.command("cni-all", &["add", "net", container.path(), "--timeout", "5"]));
    ok(host.command("cni-all", &["del", "net", container.path()]));
}

#[test]
fn collecting_removes_what_has_no_namespace_and_nothing_else() {
    require_netns!();
    let host = Host::new();
    host.configure("10-net.conflist", &list().replace("10.1.0.0/29", "10.1.0.0/24"));
    let (alive, elsewhere) = (host.node.container(), host.node.container());
    let add = |container: &Container, id: &str| {
        ok(host.command("cni-all", &["add", "net", container.path(), "--id", id]));
    };
    add(&alive, "alive");
    add(&elsewhere, "elsewhere");
    {
        let gone = host.node.container();
        add(&gone, "gone");
    }
    assert_eq!(host.cached().len(), 3);
    // A child that another test is about to start may hold the namespace for a moment.
    host.node.eventually("the one without namespace is gone", |_| {
        ok(host.command("cni-all", &["gc", "net"]));
        host.cached().len() < 3
    });
    assert_eq!(host.cached(), ["net-alive-eth0", "net-elsewhere-eth0"]);
    assert_eq!(super::support::leases_in(&host.path("state/networks/net")), ["10.1.0.2", "10.1.0.3"]);
    ok(host.command("cni-all", &["check", "net", alive.path(), "--id", "alive"]));
    ok(host.command("cni-all", &["gc", "net", "--valid", "elsewhere/eth0"]));
    assert_eq!(host.cached(), ["net-elsewhere-eth0"]);
    ok(host.command("cni-all", &["gc", "net", "--all"]));
    host.assert_clean();
}

#[test]
fn lists_can_switch_checks_and_collection_off() {
    require_netns!();
    let (host, container) = host();
    let off = list().replacen('{', r#"{"disableCheck":true,"disableGC":"TRUE","#, 1);
    host.configure("10-net.conflist", &off);
    ok(host.command("cni-all", &["add", "net", container.path()]));
    container.run("ip addr flush dev eth0");
    ok(host.command("cni-all", &["check", "net", container.path()]));
    ok(host.command("cni-all", &["gc", "net", "--all"]));
    assert_eq!(host.cached().len(), 1);
    host.configure("10-net.conflist", &list().replace("1.1.0", "1.0.0"));
    let printed: Printed = run(host.command("cni-all", &["check", "net", container.path(), "--json"]));
    let failed: Value = serde_json::from_str(&printed.stdout).unwrap();
    assert_eq!((printed.status, &failed["code"], &failed["cniVersion"]), (1, &json!(100), &json!("1.0.0")));
    ok(host.command("cni-all", &["del", "net", container.path()]));
    host.assert_clean();
}

#[test]
fn the_namespace_may_be_gone_when_it_is_detached() {
    require_netns!();
    let host = Host::new();
    host.configure("10-net.conflist", &list());
    let path = {
        let container = host.node.container();
        ok(host.command("cni-all", &["add", "net", container.path()]));
        container.path().to_owned()
    };
    assert!(!Path::new(&path).exists() || std::fs::metadata(&path).is_ok());
    ok(host.command("cni-all", &["del", "net", &path]));
    host.assert_clean();
}

/// Runs the lines of a dry run as an operator would type them.
fn type_in(host: &Host, container: &Container, lines: &str) {
    let mac = |netns: &Netns, name: &str| netns.link(name)["address"].as_str().unwrap().to_owned();
    for line in lines.lines() {
        let mut line = line.to_owned();
        while let Some((before, rest)) = line.split_once("<address of ") {
            let (name, after) = rest.split_once('>').unwrap();
            let netns = if name == "eth0" { &**container } else { &*host.node };
            line = format!("{before}{}{after}", mac(netns, name));
        }
        let mut command = match line.strip_prefix("nft ") {
            Some(change) => {
                let mut nft = host.node.command("nft");
                nft.arg(change);
                nft
            }
            None => {
                let mut sh = host.node.command("sh -c");
                // The node's own directory, in the place of the machine's.
                sh.arg(line.replace("/var/lib/cni", host.path("state").to_str().unwrap()));
                sh
            }
        };
        let printed: Printed = command.output().unwrap().into();
        assert_eq!(printed.status, 0, "{line}: {}{}", printed.stdout, printed.stderr);
    }
}

#[test]
fn the_lines_of_a_dry_run_typed_in_are_what_add_does() {
    require_netns!();
    let (host, container) = host();
    let before = state(&host, &container);
    let add = |more: &[&str]| {
        let args = [
            "add",
            "net",
            container.path(),
            "--id",
            "c1",
            "--capability-args",
            r#"{"mac":"02:00:00:00:00:05"}"#,
        ];
        ok(host.command("cni-all", &[&args[..], more].concat()))
    };
    let lines = add(&["--dry-run"]);
    assert_eq!(state(&host, &container), before, "a dry run changes nothing");
    assert_eq!(add(&["--dry-run"]), lines);
    add(&[]);
    let added = state(&host, &container);
    ok(host.command("cni-all", &["del", "net", container.path(), "--id", "c1"]));
    shell(&host.node, "ip link del br0; nft flush ruleset; sysctl -qw net.ipv4.ip_forward=0");
    std::fs::remove_dir_all(host.path("state")).unwrap();
    std::fs::create_dir(host.path("state")).unwrap();
    type_in(&host, &container, &lines);
    // The index of the leases is not among the files that count.
    assert_eq!(state(&host, &container), added, "{lines}");
    ok(host.command("cni-all", &["check", "net", container.path(), "--id", "c1"]));
    let lines = ok(host.command("cni-all", &["del", "net", container.path(), "--id", "c1", "--dry-run"]));
    assert_eq!(state(&host, &container), added, "a dry run changes nothing");
    for line in [
        "ip link del veth",
        "nft destroy element ip cni-all masqueraded { 10.1.0.2 }",
        "nft delete chain ip cni-all masq-",
        "rm /var/lib/cni/networks/net/10.1.0.2",
        "rm /var/lib/cni/results/net-c1-eth0",
    ] {
        assert!(lines.lines().any(|l| l.starts_with(line)), "{line} in {lines}");
    }
    ok(host.command("cni-all", &["del", "net", container.path(), "--id", "c1"]));
    host.assert_clean();
}

#[test]
fn a_dry_run_knows_the_routes_that_later_plugins_move() {
    require_netns!();
    let (host, container) = host();
    let route = |dst: &str| json!({"dst": dst});
    let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [
        {"type": "bridge", "bridge": "br0", "isGateway": true, "ipam": {
            "type": "host-local", "ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd00:1::/64"}]],
            "routes": [route("0.0.0.0/0"), route("192.0.2.0/24"), route("::/0")],
        }},
        {"type": "sbr", "gateways": ["10.1.0.6"]},
    ]});
    host.configure("10-net.conflist", &list.to_string());
    let call = |verb: &str, more: &[&str]| {
        ok(host.command("cni-all", &[&[verb, "net", container.path(), "--id", "c1"], more].concat()))
    };
    let state = || {
        let show =
            "for t in main 100 101; do ip -d -4 route show table $t; ip -d -6 route show table $t; done
            ip rule; ip -6 rule";
        container
            .eventually("IPv6 works", |netns| !shell(netns, "ip addr show dev eth0").contains("tentative"));
        shell(&container, show)
    };
    let lines = call("add", &["--dry-run"]);
    call("add", &[]);
    let added = state();
    call("del", &[]);
    shell(&host.node, "ip link del br0; sysctl -qw net.ipv4.ip_forward=0");
    std::fs::remove_dir_all(host.path("state")).unwrap();
    std::fs::create_dir(host.path("state")).unwrap();
    type_in(&host, &container, &lines);
    assert_eq!(state(), added, "{lines}");
    call("del", &[]);
    host.assert_clean();
}

#[test]
fn a_dry_run_names_other_programs_and_does_not_start_them() {
    require_netns!();
    let (host, container) = host();
    let ran = host.path("ran");
    let spy =
        host.node.workdir().script("bin2/spy", &format!("#!/bin/sh\ntouch {}\necho '{{}}'\n", ran.display()));
    host.configure("10-net.conflist", &list().replace(r#"{"type":"loopback"}"#, r#"{"type":"spy"}"#));
    let bin = host.path("bin2");
    let add = |netns: &str| {
        run(host.command("cni-all", &["add", "net", netns, "--dry-run", "--bin-dir", bin.to_str().unwrap()]))
    };
    let printed = add(container.path());
    assert!(
        printed.stdout.contains(&format!("CNI_COMMAND=ADD {}  # another program", spy.display())),
        "{}{}",
        printed.stdout,
        printed.stderr
    );
    assert!(!ran.exists());
    // What would fail fails.
    container.ip(&["link add eth0 type veth peer name other"]);
    let printed = add(container.path());
    assert!(printed.status == 1 && printed.stderr.contains("\"eth0\" already exists"), "{}", printed.stderr);
    host.assert_clean();
}

#[test]
fn a_dry_run_knows_the_link_that_would_lead_to_the_container() {
    require_netns!();
    let addresses = json!({"type": "host-local", "ranges": [[{"subnet": "10.1.0.0/24"}]]});
    for (main, link) in [
        (json!({"type": "bridge", "bridge": "br5", "isGateway": true, "ipam": addresses}), "br5"),
        (json!({"type": "ptp", "ipam": addresses}), "veth"),
    ] {
        let host = Host::new();
        let container = host.node.container();
        // Another way, which the kernel would name.
        shell(
            &host.node,
            "ip link add up0 type veth peer name up1; ip link set up0 up; ip link set up1 up
            ip addr add 192.0.2.1/24 dev up0; ip route add default via 192.0.2.2",
        );
        let ports = json!({"type": "portmap", "capabilities": {"portMappings": true}});
        let list = json!({"cniVersion": "1.1.0", "name": "net", "plugins": [main, ports]});
        host.configure("10-net.conflist", &list.to_string());
        let wanted = r#"{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}"#;
        let add = |more: &[&str]| {
            let args = ["add", "net", container.path(), "--id", "c1", "--capability-args", wanted];
            ok(host.command("cni-all", &[&args[..], more].concat()))
        };
        let lines = add(&["--dry-run"]);
        let is_setting = |line: &&str| line.contains("route_localnet");
        let told: Vec<&str> = lines.lines().filter(is_setting).collect();
        let [told] = told.as_slice() else { panic!("{link}: {told:?} in {lines}") };
        assert!(told.starts_with(&format!("sysctl -w net/ipv4/conf/{link}")), "{told}");
        add(&[]);
        let set = shell(&host.node, "cd /proc/sys/net/ipv4/conf; grep -lx 1 */route_localnet");
        assert_eq!(*told, format!("sysctl -w net/ipv4/conf/{}=1", set.trim()));
        ok(host.command("cni-all", &["del", "net", container.path(), "--id", "c1"]));
    }
}

#[test]
fn a_dry_run_leaves_the_files_of_delegates_alone_too() {
    require_netns!();
    let host = Host::new();
    let container = host.node.container();
    let env = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let file = host.node.workdir().file("subnet.env", env);
    let config = json!({"cniVersion": "1.0.0", "name": "net", "type": "flannel", "subnetFile": file});
    host.configure("10-net.conf", &config.to_string());
    let call = |verb: &str, more: &[&str]| {
        ok(host.command("cni-all", &[&[verb, "net", container.path(), "--id", "c1"], more].concat()))
    };
    let before = state(&host, &container);
    let lines = call("add", &["--dry-run"]);
    assert_eq!(state(&host, &container), before, "a dry run changes nothing");
    for line in
        ["printf 'c1\\r\\neth0' >/var/lib/cni/networks/net/10.244.1.2", "mkdir -p /var/lib/cni/flannel"]
    {
        assert!(lines.lines().any(|l| l == line), "{line} in {lines}");
    }
    call("add", &[]);
    let added = state(&host, &container);
    let lines = call("del", &["--dry-run"]);
    assert_eq!(state(&host, &container), added, "a dry run changes nothing");
    for line in ["rm /var/lib/cni/networks/net/10.244.1.2", "rm /var/lib/cni/flannel/", "ip link del veth"] {
        assert!(lines.lines().any(|l| l.starts_with(line)), "{line} in {lines}");
    }
    call("del", &[]);
    host.assert_clean();
}
