//! Reservations of an earlier boot. The index says when a lease was made: tests change that.

use std::os::unix::fs::symlink;

use crate::support::{GO, Net, installed, names};

/// Makes every reservation that the index knows one of another boot.
fn reboot(net: &Net) {
    let index = net.dir().join(".cni-all");
    for name in names(&index) {
        let link = index.join(name);
        let target = std::fs::read_link(&link).unwrap().into_os_string().into_string().unwrap();
        let older = target.split(',').map(|entry| {
            let mut parts: Vec<String> = entry.split('/').map(str::to_owned).collect();
            parts[1] = format!("{:08x}", !u32::from_str_radix(&parts[1], 16).unwrap());
            parts.join("/")
        });
        let older = older.collect::<Vec<_>>().join(",");
        std::fs::remove_file(&link).unwrap();
        symlink(older, link).unwrap();
    }
}

#[test]
fn the_same_container_gets_its_address_back_after_a_reboot() {
    let net = Net::new("boot-same", r#""ranges":[[{"subnet":"10.1.2.0/24"}],[{"subnet":"fd00::/64"}]]"#);
    let first = net.add("c");
    net.add("d");
    assert!(net.call("ADD", "c").error().1.contains("duplicate"));
    reboot(&net);
    assert_eq!(net.add("c"), first);
    assert!(net.call("ADD", "c").error().1.contains("duplicate"), "it is of this boot now");
    net.del("c");
    assert_eq!(net.leases(), ["10.1.2.3", "fd00::3"]);
}

#[test]
fn others_get_addresses_of_an_earlier_boot_only_when_the_range_is_full() {
    let mut net = Net::new("boot-others", r#""subnet":"10.1.2.0/29""#);
    ["a", "b", "c"].iter().for_each(|id| drop(net.add(id)));
    reboot(&net);
    assert_eq!([net.add("d"), net.add("e")], [["10.1.2.5/29"], ["10.1.2.6/29"]]);
    net.version = "1.1.0";
    net.call("STATUS", "").ok();
    assert_eq!(
        [net.add("f"), net.add("g"), net.add("h")],
        [["10.1.2.2/29"], ["10.1.2.3/29"], ["10.1.2.4/29"]]
    );
    assert_eq!(net.call("STATUS", "").error().0, 50);
    assert_eq!(net.call("ADD", "i").error().0, 101);
    net.del("a");
    assert_eq!(net.leases().len(), 5, "what others hold now is not released");
}

#[test]
fn a_requested_address_is_free_when_its_holder_is_of_an_earlier_boot() {
    let mut net = Net::new("boot-requested", r#""subnet":"10.1.2.0/24""#);
    net.add("a");
    net.args = "IP=10.1.2.2".to_owned();
    assert_eq!(net.call("ADD", "b").error().0, 101);
    reboot(&net);
    assert_eq!(net.add("b"), ["10.1.2.2/24"]);
}

#[test]
fn leases_of_a_go_plugin_count_as_of_this_boot() {
    if !installed("leases_of_a_go_plugin_count_as_of_this_boot", GO[0]) {
        return;
    }
    let net = Net::new("boot-go", r#""subnet":"10.1.2.0/30""#);
    net.add("a");
    reboot(&net);
    net.by(GO, "DEL", "a").ok();
    net.by(GO, "ADD", "a").ok();
    assert!(net.call("ADD", "a").error().1.contains("duplicate"));
    assert_eq!(net.call("ADD", "b").error().0, 101);
}
