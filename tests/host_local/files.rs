//! The format on disk, and a Go plugin working on the same directory.

use std::os::unix::fs::PermissionsExt;

use crate::support::{GO, Net, OURS, installed, names};

fn mode(net: &Net, name: &str) -> u32 {
    std::fs::metadata(net.dir().join(name)).unwrap().permissions().mode() & 0o777
}

#[test]
fn files_have_the_names_modes_and_bytes_of_the_go_plugin() {
    let net = Net::new("bytes", r#""ranges":[[{"subnet":"10.1.2.0/24"}],[{"subnet":"fd00:0:0:1::/64"}]]"#);
    assert_eq!(net.add("c1"), ["10.1.2.2/24", "fd00:0:0:1::2/64"]);
    assert_eq!(
        names(&net.dir()),
        [".cni-all", "10.1.2.2", "fd00:0:0:1::2", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]
    );
    assert_eq!(net.read("10.1.2.2"), "c1\r\neth0");
    assert_eq!(net.read("last_reserved_ip.0"), "10.1.2.2");
    assert_eq!(net.read("last_reserved_ip.1"), "fd00:0:0:1::2");
    assert_eq!(net.read("lock"), "");
    assert_eq!([mode(&net, "10.1.2.2"), mode(&net, "last_reserved_ip.0")], [0o600, 0o600]);
    assert_eq!((mode(&net, "."), mode(&net, "lock")), (0o755, 0o750));
    net.del("c1");
    assert_eq!(names(&net.dir()), [".cni-all", "last_reserved_ip.0", "last_reserved_ip.1", "lock"]);
    assert!(names(&net.dir().join(".cni-all")).is_empty());
}

#[test]
fn a_go_plugin_on_the_same_directory_sees_and_removes_what_is_ours_and_the_other_way_round() {
    if !installed("a_go_plugin_on_the_same_directory", GO[0]) {
        return;
    }
    let net = Net::new("go", r#""ranges":[[{"subnet":"10.1.2.0/24"}],[{"subnet":"fd00::/64"}]]"#);
    for n in 0..20 {
        let (first, second) = if n % 2 == 0 { (OURS, GO) } else { (GO, OURS) };
        let id = format!("c{n}");
        let host = n + 2;
        let expected = [format!("10.1.2.{host}/24"), format!("fd00::{host:x}/64")];
        assert_eq!(net.by(first, "ADD", &id).addresses(), expected);
        let (_, msg) = net.by(second, "ADD", &id).error();
        assert!(msg.contains("duplicate allocation is not allowed"), "{msg}");
        net.by(second, "CHECK", &id).ok();
    }
    for n in 0..20 {
        let program = if n % 2 == 0 { GO } else { OURS };
        net.by(program, "DEL", &format!("c{n}")).ok();
        assert_eq!(net.leases().len(), 2 * (19 - n));
        net.by(OURS, "DEL", &format!("c{n}")).ok();
    }
    assert_eq!(net.by(GO, "ADD", "x").addresses(), ["10.1.2.22/24", "fd00::16/64"]);
    assert_eq!(net.by(OURS, "ADD", "y").addresses(), ["10.1.2.23/24", "fd00::17/64"]);
}

#[test]
fn changes_by_a_go_plugin_within_one_tick_of_the_clock_are_noticed() {
    if !installed("changes_by_a_go_plugin_within_one_tick", GO[0]) {
        return;
    }
    let net = Net::new("tick", r#""subnet":"10.1.0.0/16""#);
    for n in 0..50 {
        let (ours, go) = (format!("ours{n}"), format!("go{n}"));
        net.by(OURS, "ADD", &ours).ok();
        net.by(GO, "ADD", &go).ok();
        assert!(net.by(OURS, "ADD", &go).error().1.contains("duplicate"));
        net.by(OURS, "DEL", &go).ok();
        net.by(GO, "DEL", &ours).ok();
        net.by(OURS, "DEL", &ours).ok();
    }
    assert!(net.leases().is_empty());
}

#[test]
fn leases_of_old_releases_without_interface_are_honoured() {
    let net = Net::new("legacy", r#""subnet":"10.1.2.0/24""#);
    net.put("10.1.2.2", "old\n");
    net.put("10.1.2.3", " other ");
    assert!(net.call("ADD", "old").error().1.contains("10.1.2.2 has been allocated to old"));
    net.call("CHECK", "old").ok();
    net.del("old");
    assert_eq!(net.leases(), ["10.1.2.3"]);
}

#[test]
fn only_the_interface_asked_for_is_released() {
    let net = Net::new("ifname", r#""subnet":"10.1.2.0/24""#);
    for ifname in ["eth0", "eth1"] {
        net.with("ADD", "c1", ifname, &net.config()).ok();
    }
    net.del("c1");
    assert_eq!((net.leases(), net.read("10.1.2.3")), (vec!["10.1.2.3".to_owned()], "c1\r\neth1".to_owned()));
}

#[test]
fn an_id_that_looks_like_the_last_address_does_not_remove_bookkeeping() {
    let net = Net::new("id-as-address", r#""subnet":"10.1.2.0/24""#);
    net.add("c1");
    net.del("10.1.2.2");
    assert_eq!(net.read("last_reserved_ip.0"), "10.1.2.2");
    assert_eq!(net.leases(), ["10.1.2.2"]);
}

#[test]
fn del_and_check_do_not_make_a_directory() {
    let net = Net::new("no-directory", r#""subnet":"10.1.2.0/24""#);
    net.del("c1");
    assert_eq!(net.call("CHECK", "c1").error().0, 100);
    assert!(!net.dir().exists());
}

#[test]
fn an_unreadable_index_costs_nothing_but_time() {
    let net = Net::new("no-index", r#""subnet":"10.1.2.0/24""#);
    net.add("c1");
    std::fs::remove_dir_all(net.dir().join(".cni-all")).unwrap();
    assert!(net.call("ADD", "c1").error().1.contains("duplicate"));
    std::fs::remove_dir_all(net.dir().join(".cni-all")).unwrap();
    std::fs::write(net.dir().join(".cni-all"), "").unwrap();
    net.call("CHECK", "c1").ok();
    net.del("c1");
    assert!(net.leases().is_empty());
}
