//! Many processes at once, and processes killed at any moment.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::{Net, OURS, names};

#[test]
fn sixty_four_processes_at_once_never_get_the_same_address() {
    let net = Net::new("parallel", r#""subnet":"10.1.2.0/24""#);
    let children: Vec<_> = (0..64).map(|n| net.spawn(OURS, "ADD", &format!("c{n}"))).collect();
    let addresses: HashSet<String> = children
        .into_iter()
        .map(|child| {
            let output = child.wait_with_output().unwrap();
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            json["ips"][0]["address"].as_str().unwrap_or_else(|| panic!("{json}")).to_owned()
        })
        .collect();
    assert_eq!((addresses.len(), net.leases().len()), (64, 64));
}

#[test]
fn a_process_killed_at_any_moment_leaves_nothing_that_del_does_not_remove() {
    let net = Net::new("killed", r#""ranges":[[{"subnet":"10.1.0.0/16"}],[{"subnet":"fd00::/64"}]]"#);
    net.add("stays");
    for n in 0..150_u32 {
        let id = format!("c{n}");
        let verb = if n % 3 == 0 { "DEL" } else { "ADD" };
        if verb == "DEL" {
            net.add(&id);
        }
        let children: Vec<_> = [id.as_str(), "other"].map(|id| net.spawn(OURS, verb, id)).into();
        std::thread::sleep(Duration::from_micros(u64::from(n) * 40));
        for mut child in children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        for lease in net.leases() {
            let content = net.read(&lease);
            assert!(content.ends_with("\r\neth0"), "{lease}: {content:?}");
        }
        net.del(&id);
        net.del("other");
        assert_eq!(net.leases().len(), 2, "after {verb} {n}");
        assert!(net.call("ADD", "stays").error().1.contains("duplicate"));
    }
    net.del("stays");
    assert!(net.leases().is_empty());
    let left = names(&net.dir().join(".cni-all"));
    assert!(left.iter().all(|name| name == "new"), "{left:?}");
}

#[test]
fn what_killed_go_plugins_leave_does_not_block_addresses() {
    let net = Net::new("leftovers", r#""subnet":"10.1.2.0/29""#);
    (2..7).for_each(|n| net.put(&format!("10.1.2.{n}"), ""));
    assert_eq!(net.add("c"), ["10.1.2.2/29"]);
    assert_eq!(net.leases(), ["10.1.2.2"]);
}

#[test]
fn a_lease_that_is_still_linked_to_the_file_being_written_is_not_damaged() {
    let net = Net::new("linked", r#""subnet":"10.1.2.0/24""#);
    net.add("a");
    std::fs::hard_link(net.dir().join("10.1.2.2"), net.dir().join(".cni-all/new")).unwrap();
    net.add("b");
    assert_eq!(
        (net.read("10.1.2.2"), net.read("10.1.2.3")),
        ("a\r\neth0".to_owned(), "b\r\neth0".to_owned())
    );
}
