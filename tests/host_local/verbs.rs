//! DEL, CHECK, GC and STATUS.

use std::os::unix::fs::PermissionsExt;

use crate::support::Net;

const ONE: &str = r#""subnet":"10.1.2.0/24""#;

#[test]
fn del_needs_only_name_and_data_directory() {
    for (n, ipam) in [r#""ranges":[]"#, r#""ranges":5"#, r#""subnet":"nonsense""#, r#""routes":"x""#]
        .into_iter()
        .enumerate()
    {
        let mut net = Net::new(&format!("del{n}"), ONE);
        net.add("c");
        net.ipam = ipam.to_owned();
        net.del("c");
        assert!(net.leases().is_empty(), "{ipam}");
        net.del("c");
    }
}

#[test]
fn a_failed_add_gives_back_what_it_reserved_and_nothing_else() {
    let mut net = Net::new("undo", ONE);
    net.add("c");
    net.ipam = r#""ranges":[[{"subnet":"10.3.0.0/24"}],[{"subnet":"10.4.0.0/30"}]]"#.to_owned();
    net.put("10.4.0.2", "x\r\neth0");
    assert_eq!(net.call("ADD", "c").error().0, 101);
    assert_eq!(net.leases(), ["10.1.2.2", "10.4.0.2"]);
    net.del("c");
    assert_eq!(net.leases(), ["10.4.0.2"]);
}

#[test]
fn check_names_the_address_that_is_not_reserved() {
    let mut net = Net::new("check", ONE);
    assert_eq!(net.call("CHECK", "c").error().0, 100);
    net.add("c");
    net.call("CHECK", "c").ok();
    net.rest = r#","prevResult":{"ips":[{"address":"10.1.2.2/24"},{"address":"192.0.2.1/24"}]}"#.to_owned();
    net.call("CHECK", "c").ok();
    net.rest = r#","prevResult":{"ips":[{"address":"10.1.2.3/24"}]}"#.to_owned();
    let (code, msg) = net.call("CHECK", "c").error();
    assert!(code == 100 && msg.starts_with("10.1.2.3 is not reserved for container \"c\""), "{code} {msg}");
    assert_eq!(net.call("CHECK", "d").error().0, 100);
}

#[test]
fn gc_removes_what_no_valid_attachment_holds() {
    let mut net = Net::new("gc", ONE);
    net.version = "1.1.0";
    net.call("GC", "").ok();
    assert!(!net.dir().exists());
    ["a", "b", "c"].iter().for_each(|id| drop(net.add(id)));
    net.put("10.1.2.9", "a");
    net.put("10.1.2.10", "z");
    net.put("10.1.2.11", "");
    net.call("GC", "").ok();
    assert_eq!(net.leases().len(), 6, "no list of attachments says nothing about any of them");
    net.ipam = r#""ranges":5"#.to_owned();
    net.rest = r#","cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"},
        {"containerID":"b","ifname":"eth1"}]"#
        .to_owned();
    net.call("GC", "").ok();
    assert_eq!(net.leases(), ["10.1.2.2", "10.1.2.9"]);
    assert_eq!(net.read("last_reserved_ip.0"), "10.1.2.4");
    net.rest = r#","cni.dev/valid-attachments":[]"#.to_owned();
    net.call("GC", "").ok();
    assert!(net.leases().is_empty());
}

#[test]
fn status_tells_whether_an_address_could_be_reserved() {
    let mut net = Net::new("status", r#""subnet":"10.1.2.0/30""#);
    net.version = "1.1.0";
    net.call("STATUS", "").ok();
    assert!(!net.dir().exists());
    net.add("c");
    let expected = "no IP addresses available in range set: 10.1.2.1-10.1.2.2";
    assert_eq!(net.call("STATUS", "").error(), (50, expected.to_owned()));
    net.del("c");
    net.call("STATUS", "").ok();
    net.ipam = r#""ranges":[]"#.to_owned();
    assert_eq!(net.call("STATUS", "").error().0, 7);
    if nix::unistd::geteuid().is_root() {
        return; // permissions do not stop root
    }
    net.ipam = ONE.to_owned();
    std::fs::set_permissions(net.dir(), std::fs::Permissions::from_mode(0o555)).unwrap();
    assert_eq!(net.call("STATUS", "").error().0, 50);
    std::fs::set_permissions(net.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
}
