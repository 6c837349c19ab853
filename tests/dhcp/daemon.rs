//! The daemon as a process: socket, flags, starts and ends, and the callers that go away.

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::site::{Process, Site, records};
use crate::support::{require_netns, require_tool};

/// The process id that a daemon has written into its lock file.
fn pid_of_daemon(site: &Site) -> Pid {
    let text = std::fs::read_to_string(site.socket().with_extension("leases").join("lock")).unwrap();
    Pid::from_raw(text.parse().unwrap())
}

#[test]
fn without_a_daemon_one_is_started_unless_it_is_required() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::new();
    site.dnsmasq("");
    let container = site.node.container();
    let failure = site.add(&container, json!({"daemon": "required"})).err();
    failure.names(&[
        "dhcp daemon at",
        "it does not exist",
        "systemctl start cni-all-dhcp.socket",
        "daemon -socketpath",
    ]);
    assert!(container.links().is_empty());

    let attachment = site.attach(&container, json!({}));
    let daemon = pid_of_daemon(&site);
    attachment.check();
    attachment.del();
    assert_eq!(pid_of_daemon(&site), daemon);
    kill(daemon, Signal::SIGTERM).unwrap();
    site.eventually("the socket is gone", |s| !s.socket().exists());
    // Nothing is left to release, and no daemon is started for it.
    attachment.del();
    assert!(!site.socket().exists());
}

#[test]
fn a_daemon_that_a_plugin_started_is_started_again_by_the_next_add_when_it_was_killed() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::new();
    site.dnsmasq("");
    let containers = [site.node.container(), site.node.container()];
    let first = site.attach(&containers[0], json!({}));
    kill(pid_of_daemon(&site), Signal::SIGKILL).unwrap();
    site.eventually("nobody listens", |s| UnixStream::connect(s.socket()).is_err());
    assert!(site.socket().exists());
    site.add(&containers[1], json!({"daemon": "required"})).err().names(&["nobody listens on it"]);
    let second = site.attach(&containers[1], json!({}));
    first.check();
    second.check();
    assert_eq!(site.leases().len(), 2);
    kill(pid_of_daemon(&site), Signal::SIGTERM).unwrap();
}

#[test]
fn callers_at_once_start_one_daemon() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::new();
    site.dnsmasq("");
    let containers: Vec<_> = (0..6).map(|_| site.node.container()).collect();
    let site = &site;
    std::thread::scope(|scope| {
        for container in &containers {
            scope.spawn(move || site.attach(container, json!({})).check());
        }
    });
    assert_eq!(site.leases().len(), 6);
    kill(pid_of_daemon(site), Signal::SIGTERM).unwrap();
}

#[test]
fn a_killed_daemon_is_continued_and_nothing_is_asked_twice() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    let (address, before) = (attachment.result["ips"][0]["address"].clone(), site.server_log());
    site.stop_daemon();
    // The killed daemon's socket is still there.
    assert!(site.socket().exists());
    attachment.call("CHECK").fails(100);
    site.start_daemon("");
    assert_eq!(site.leases()[0]["ipv4"]["address"], address);
    attachment.check();
    assert_eq!(site.attach_again(&attachment), attachment.result, "ADD of what there is");
    assert_eq!(site.server_log(), before, "the server was asked again");
    attachment.del();
    site.eventually("released", |s| s.server_log().contains("DHCPRELEASE"));
}

#[test]
fn without_its_daemon_a_lease_is_released_by_del_itself() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    site.stop_daemon();
    attachment.del();
    site.eventually("released", |s| s.server_log().contains("DHCPRELEASE"));
    assert!(records(&site).is_empty());
    attachment.del();
}

#[test]
fn a_second_daemon_names_the_first_and_leaves_it_alone() {
    require_netns!();
    let site = Site::new();
    site.start_daemon("");
    let output = site.daemon_command("").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("process id {} serves", site.daemon_pid())), "{said}");
    assert!(UnixStream::connect(site.socket()).is_ok());
}

#[test]
fn a_signal_ends_the_daemon_and_leases_stay() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::new();
    site.dnsmasq("");
    let pidfile = site.path("daemon.pid");
    site.start_daemon(&format!("-pidfile {}", pidfile.display()));
    assert_eq!(std::fs::read_to_string(&pidfile).unwrap(), site.daemon_pid().to_string());
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    site.signal_daemon(Signal::SIGTERM);
    site.eventually("socket and pid file are gone", |s| !s.socket().exists() && !pidfile.exists());
    assert!(!site.server_log().contains("DHCPRELEASE"));
    site.start_daemon("");
    attachment.check();
}

#[test]
fn the_pid_file_and_socket_of_a_killed_daemon_are_replaced() {
    require_netns!();
    let site = Site::new();
    let pidfile = site.path("daemon.pid");
    let flags = format!("-pidfile {}", pidfile.display());
    std::fs::write(&pidfile, "4194304000\n").unwrap();
    for _ in 0..2 {
        site.start_daemon(&flags);
        assert_eq!(std::fs::read_to_string(&pidfile).unwrap(), site.daemon_pid().to_string());
        assert!(site.leases().is_empty());
        site.stop_daemon();
        assert!(pidfile.exists() && site.socket().exists(), "SIGKILL leaves both");
    }
    // A second daemon does not take the file of the first.
    site.start_daemon(&flags);
    assert_eq!(site.daemon_command(&flags).output().unwrap().status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&pidfile).unwrap(), site.daemon_pid().to_string());
}

#[test]
fn sighup_starts_the_executable_anew_and_no_caller_is_turned_away() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    site.signal_daemon(Signal::SIGHUP);
    for _ in 0..20 {
        attachment.check();
    }
    site.eventually("it was started anew", |s| s.daemon_log().contains("resumed"));
    assert_eq!(pid_of_daemon(&site).as_raw(), site.daemon_pid() as i32);
    attachment.check();
    site.signal_daemon(Signal::SIGTERM);
    site.eventually("the socket is removed, as it is its own", |s| !s.socket().exists());
}

#[test]
fn a_socket_of_systemds_is_used_and_left() {
    require_netns!();
    let site = Site::new();
    let listener = UnixListener::bind(site.socket()).unwrap();
    let fd = listener.as_raw_fd();
    let daemon = site.node.workdir().bin().join("dhcp");
    let mut command = site.node.command("sh");
    command.arg("-c").arg("LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" daemon -socketpath \"$1\"");
    command.arg(daemon).arg(site.socket()).stderr(Stdio::null());
    // SAFETY: two system calls.
    unsafe {
        command.pre_exec(move || match (libc::dup2(fd, 3), libc::fcntl(3, libc::F_SETFD, 0)) {
            (3, 0) => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut process = Process(command.spawn().unwrap());
    drop(listener);
    assert!(site.leases().is_empty());
    process.signal(Signal::SIGTERM);
    assert!(process.0.wait().unwrap().success());
    assert!(site.socket().exists(), "it is systemd's");
}

#[test]
fn add_without_a_server_fails_in_time_and_leaves_nothing() {
    require_netns!();
    let site = Site::new();
    site.start_daemon("-resendtimeout 700ms -timeout 100ms");
    let container = site.node.container();
    let outcome = site.add(&container, json!({}));
    outcome.err().names(&["no DHCP server answers", "no more tries"]);
    assert!(outcome.elapsed < Duration::from_secs(3), "{:?}", outcome.elapsed);
    assert!(site.leases().is_empty() && records(&site).is_empty() && container.links().is_empty());
}

#[test]
fn a_caller_that_goes_away_cancels_its_acquisition() {
    require_netns!();
    let site = Site::new();
    site.start_daemon("");
    let container = site.node.container();
    container.ip(&["link set lo up"]);
    let mut command = site.node.request("ADD", &container, "eth0", &site.config(json!({}))).to_command();
    let mut caller = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    use std::io::Write;
    caller.stdin.take().unwrap().write_all(site.config(json!({})).to_string().as_bytes()).unwrap();
    site.eventually("the lease is being got", |s| !s.leases().is_empty());
    assert_eq!(site.leases()[0]["ipv4"]["state"], "SELECTING");
    caller.kill().unwrap();
    caller.wait().unwrap();
    let killed = Instant::now();
    site.eventually("it is given up", |s| s.leases().is_empty());
    assert!(killed.elapsed() < Duration::from_secs(1));
}

#[test]
fn the_lease_of_a_namespace_that_vanished_is_released() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("");
    let container = site.node.container();
    site.attach(&container, json!({}));
    container.unmount();
    site.eventually("released", |s| s.server_log().contains("DHCPRELEASE"));
    assert!(site.leases().is_empty() && records(&site).is_empty());
}

#[test]
fn the_lease_of_an_interface_that_vanished_is_forgotten() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("");
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    container.ip(&["link del eth0"]);
    site.eventually("forgotten", |s| s.leases().is_empty() && records(s).is_empty());
    attachment.call("CHECK").fails(100);
    attachment.del();
}

#[test]
fn gc_releases_what_is_not_valid_any_more() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq("");
    let (one, two) = (site.node.container(), site.node.container());
    let (kept, _stale) = (site.attach(&one, json!({})), site.attach(&two, json!({})));
    let mut config = site.config(json!({}));
    config["cni.dev/valid-attachments"] = json!([{"containerID": kept.id, "ifname": "eth0"}]);
    site.node.request("GC", &one, "eth0", &config).silent();
    assert_eq!(site.leases().len(), 1);
    kept.check();
}

#[test]
fn status_says_whether_add_could_be_served() {
    require_netns!();
    let site = Site::new();
    let status = |site: &Site, more| {
        let container = site.node.container_named(if more == json!({}) { "a" } else { "b" });
        let call = site.node.request("STATUS", &container, "eth0", &site.config(more));
        call.run()
    };
    assert_eq!(status(&site, json!({"daemon": "required"})).err().code, 50);
    site.start_daemon("");
    status(&site, json!({})).ok();
}
