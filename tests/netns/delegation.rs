//! How IPAM plugins are called: in this process when they are us, otherwise as libcni does.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::support::{Node, executable, foreign_plugins, require_netns, require_tool};
use crate::{bridge_config, dual_stack_config, with};

/// A foreign `host-local` in a directory of its own: keeps what it was given in `DIR/COMMAND.stdin` and `.env`.
fn recording_ipam(node: &Node) -> String {
    let dir = node.workdir().root().join("foreign");
    let d = dir.display();
    let answer = r#"{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.99/24","gateway":"10.1.0.1"}],"routes":[{"dst":"0.0.0.0/0"}]}"#;
    let body = format!(
        "#!/bin/sh\ncat >'{d}'/$CNI_COMMAND.stdin\nenv >'{d}'/$CNI_COMMAND.env\n\
         [ \"$CNI_COMMAND\" = ADD ] && printf '%s' '{answer}'\nexit 0\n"
    );
    node.workdir().script("foreign/host-local", &body);
    dir.to_str().unwrap().to_owned()
}

#[test]
fn no_second_program_is_started() {
    require_netns!();
    require_tool!("strace");
    let node = Node::new();
    for (plugin, backend) in
        [("bridge", "nftables"), ("bridge", "iptables"), ("ptp", "nftables"), ("ptp", "iptables")]
    {
        let container = node.container();
        let mut config = with(
            dual_stack_config(&node),
            json!({"type": plugin, "ipMasq": true, "ipMasqBackend": backend, "macspoofchk": plugin == "bridge"}),
        );
        for command in ["STATUS", "ADD", "CHECK", "GC", "DEL"] {
            let log = node.workdir().root().join(format!("{plugin}.{backend}.{command}"));
            let options = ["-f", "-qq", "-e", "trace=execve,execveat", "-o", log.to_str().unwrap()];
            let call =
                node.request(command, &container, "eth0", &config).through("/usr/bin/strace", &options);
            let result = call.ok();
            if command == "ADD" {
                config["prevResult"] = result;
                config["cni.dev/valid-attachments"] =
                    json!([{"containerID": container.id(), "ifname": "eth0"}]);
            }
            let trace = fs::read_to_string(log).unwrap();
            let started: Vec<&str> = trace.lines().filter(|line| line.contains("exec")).collect();
            assert_eq!(started.len(), 1, "{plugin} {command} with {backend} started others: {started:#?}");
        }
    }
}

#[test]
fn another_plugin_of_that_name_earlier_in_cni_path_is_executed_as_libcni_does() {
    require_netns!();
    let node = Node::new();
    let dir = recording_ipam(&node);
    let container = node.container();
    // Spaces, a number that must keep its text and an unknown key: the bytes must arrive as they were given.
    let config = bridge_config(&node).to_string();
    let config = config.replacen('{', "{ \"vendor\":  {\"n\": 1.50, \"big\": 12345678901234567890},\n\t", 1);
    let path = format!("{dir}:{}", node.workdir().bin().display());
    let call = |command: &str, stdin: &str| {
        let call = node.request(command, &container, "eth0", &bridge_config(&node)).stdin(stdin);
        call.env("CNI_PATH", &path)
            .env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web-0")
            .env("TRACEPARENT", "00-01-02-03")
    };
    let result = call("ADD", &config).ok();
    assert_eq!(container.addresses("eth0"), ["10.1.0.99/24"]);
    let later = config.replacen('{', &format!("{{\"prevResult\":{result},"), 1);
    call("CHECK", &later).silent();
    call("STATUS", &config).silent();
    call("DEL", &later).silent();
    for (command, stdin) in [("ADD", &config), ("CHECK", &later), ("STATUS", &config), ("DEL", &later)] {
        assert_eq!(&fs::read_to_string(format!("{dir}/{command}.stdin")).unwrap(), stdin, "{command}");
        let env = fs::read_to_string(format!("{dir}/{command}.env")).unwrap();
        for line in [
            format!("CNI_COMMAND={command}"),
            format!("CNI_CONTAINERID={}", container.id()),
            format!("CNI_NETNS={}", container.path()),
            "CNI_IFNAME=eth0".to_owned(),
            format!("CNI_PATH={path}"),
            "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web-0".to_owned(),
            "TRACEPARENT=00-01-02-03".to_owned(),
        ] {
            assert!(env.lines().any(|l| l == line), "{command}: {line} is not in\n{env}");
        }
    }
}

#[test]
fn the_first_hit_in_cni_path_wins() {
    require_netns!();
    let node = Node::new();
    let dir = recording_ipam(&node);
    let container = node.container();
    let path = format!("{}:{dir}", node.workdir().bin().display());
    let result = node.request("ADD", &container, "eth0", &bridge_config(&node)).env("CNI_PATH", path).ok();
    assert_eq!(result["ips"][0]["address"], "10.1.0.2/24");
    assert!(!fs::exists(format!("{dir}/ADD.stdin")).unwrap());
}

#[test]
fn a_built_in_plugin_need_not_be_in_cni_path() {
    require_netns!();
    if foreign_plugins().is_some() {
        return;
    }
    let node = Node::new();
    let container = node.container();
    let call = |command: &str| {
        let call = node.request(command, &container, "eth0", &bridge_config(&node));
        call.env("CNI_PATH", "/nonexistent/a::/nonexistent/b:")
    };
    call("ADD").ok();
    assert_eq!(container.addresses("eth0"), ["10.1.0.2/24"]);
    call("DEL").silent();
    assert!(node.leases("net").is_empty());
}

#[test]
fn a_plugin_that_is_nowhere_is_named_with_the_path() {
    require_netns!();
    let node = Node::new();
    for plugin in ["bridge", "ptp"] {
        let container = node.container();
        let config = with(bridge_config(&node), json!({"type": plugin, "ipam": {"type": "no-such-ipam"}}));
        let call =
            node.request("ADD", &container, "eth0", &config).env("CNI_PATH", "/nonexistent/a:/nonexistent/b");
        call.err()
            .names(&[r#"failed to find plugin "no-such-ipam" in path [/nonexistent/a /nonexistent/b]"#]);
        assert!(node.links_of_kind("veth").is_empty() && container.links().is_empty());
    }
}

#[test]
fn a_type_that_is_a_path_is_refused() {
    require_netns!();
    let node = Node::new();
    let container = node.container();
    for name in ["../bin/host-local", "/bin/true", "a/b"] {
        let config = with(bridge_config(&node), json!({"ipam": {"type": name}}));
        node.request("ADD", &container, "eth0", &config).fails(7).names(&[name]);
        assert!(node.links().is_empty());
    }
}

#[test]
fn a_directory_or_dangling_link_of_that_name_is_passed_over() {
    require_netns!();
    let node = Node::new();
    let root = node.workdir().root();
    fs::create_dir_all(root.join("a/host-local")).unwrap();
    fs::create_dir_all(root.join("b")).unwrap();
    symlink("/nonexistent", root.join("b/host-local")).unwrap();
    let path = format!("{0}/a:{0}/b:{1}", root.display(), node.workdir().bin().display());
    let container = node.container();
    node.request("ADD", &container, "eth0", &bridge_config(&node)).env("CNI_PATH", path).ok();
    assert_eq!(container.addresses("eth0"), ["10.1.0.2/24"]);
}

#[test]
fn in_process_and_as_a_program_give_the_same_result() {
    require_netns!();
    let node = Node::new();
    let dir = node.workdir().root().join("wrapped");
    for name in ["host-local", "static"] {
        let target = node.workdir().bin().join(name);
        node.workdir()
            .script(&format!("wrapped/{name}"), &format!("#!/bin/sh\nexec '{}'\n", target.display()));
    }
    let local = dual_stack_config(&node);
    let fixed = crate::with_static(
        bridge_config(&node),
        json!([{"address": "10.1.0.50/24"}]),
        json!([{"dst": "192.0.2.0/24", "mtu": 1400, "scope": 0}]),
    );
    for config in [local, fixed] {
        let answers: Vec<Value> = [node.workdir().bin(), dir.clone()]
            .iter()
            .map(|path| {
                let container = node.container();
                let call = |command: &str| {
                    let call =
                        node.request(command, &container, "eth0", &config).env("CNI_ARGS", "IgnoreUnknown=1");
                    call.env("CNI_PATH", path)
                };
                let mut result = call("ADD").ok();
                call("DEL").silent();
                // The next free address and the random MAC differ from call to call.
                result["interfaces"] = Value::Null;
                if config["ipam"]["type"] == "host-local" {
                    result["ips"][0]["address"] = Value::Null;
                    result["ips"][1]["address"] = Value::Null;
                }
                result
            })
            .collect();
        assert_eq!(answers[0], answers[1]);
        let errors: Vec<Value> = [node.workdir().bin(), dir.clone()]
            .iter()
            .map(|path| {
                let container = node.container();
                let bad = with(config.clone(), json!({"runtimeConfig": {"ips": ["203.0.113.77/x"]}}));
                node.request("ADD", &container, "eth0", &bad).env("CNI_PATH", path).err().json
            })
            .collect();
        assert_eq!(errors[0], errors[1]);
    }
}

#[test]
fn a_copy_of_the_executable_will_do_as_well() {
    require_netns!();
    if foreign_plugins().is_some() {
        return;
    }
    let node = Node::new();
    let dir = node.workdir().root().join("copies");
    fs::create_dir_all(&dir).unwrap();
    // Copied by another process: see Workdir::script.
    let copied =
        std::process::Command::new("cp").args([executable(), dir.join("host-local")]).status().unwrap();
    assert!(copied.success());
    let container = node.container();
    node.request("ADD", &container, "eth0", &bridge_config(&node)).env("CNI_PATH", &dir).ok();
    assert_eq!(node.leases("net"), ["10.1.0.2"]);
}

#[test]
fn an_answer_in_an_old_version_is_understood() {
    require_netns!();
    let node = Node::new();
    let ip4 = r#""ip4":{"ip":"10.1.0.7/24","gateway":"10.1.0.1","routes":[{"dst":"0.0.0.0/0"}]},"dns":{"domain":"example.org"}"#;
    for (name, version) in [("v1", "0.1.0"), ("v2", "0.2.0")] {
        let body = format!(
            "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = ADD ] && echo '{{\"cniVersion\":\"{version}\",{ip4}}}'\nexit 0\n"
        );
        node.workdir().script(&format!("bin/{name}"), &body);
        let container = node.container();
        let attachment =
            node.attach(&container, "eth0", &with(bridge_config(&node), json!({"ipam": {"type": name}})));
        assert_eq!(
            attachment.result["ips"],
            json!([{"interface": 2, "address": "10.1.0.7/24", "gateway": "10.1.0.1"}])
        );
        assert_eq!(attachment.result["dns"], json!({"domain": "example.org"}));
        assert_eq!(container.find_route(4, "default").unwrap()["gateway"], "10.1.0.1");
        attachment.del();
    }
}

#[test]
fn an_answer_without_version_is_read_in_that_of_the_request() {
    require_netns!();
    let node = Node::new();
    let body = "#!/bin/sh\ncat >/dev/null\n[ \"$CNI_COMMAND\" = ADD ] && echo '{\"ips\":[{\"version\":\"4\",\"address\":\"10.1.0.7/24\",\"interface\":5}]}'\nexit 0\n";
    node.workdir().script("bin/old-ipam", body);
    for version in ["0.4.0", "1.0.0", "1.1.0"] {
        let config = with(bridge_config(&node), json!({"cniVersion": version, "ipam": {"type": "old-ipam"}}));
        let container = node.container();
        let attachment = node.attach(&container, "eth0", &config);
        assert_eq!(attachment.result["ips"][0]["interface"], 2);
        attachment.del();
    }
}

#[test]
fn what_a_delegate_says_on_standard_error_is_passed_on() {
    require_netns!();
    let node = Node::new();
    let body = "#!/bin/sh\ncat >/dev/null\necho 'pool is 90% full' >&2\n[ \"$CNI_COMMAND\" = ADD ] && echo '{\"cniVersion\":\"1.1.0\",\"ips\":[{\"address\":\"10.1.0.7/24\"}]}'\nexit 0\n";
    node.workdir().script("bin/chatty", body);
    let container = node.container();
    let config = with(bridge_config(&node), json!({"ipam": {"type": "chatty"}}));
    let outcome = node.request("ADD", &container, "eth0", &config).run();
    outcome.ok();
    assert!(outcome.stderr.contains("pool is 90% full"), "{outcome}");
}
