//! ipMasq on a real kernel.

use super::*;
use crate::kernel::nft::testing::{in_namespace, ruleset, sh};

const AT: Attachment = Attachment { network: "mynet", container_id: "c1", ifname: "eth0" };

fn nets(text: &str) -> Vec<IpNet> {
    text.split_whitespace().map(|net| net.parse().unwrap()).collect()
}

#[test]
fn add_makes_one_map_entry_per_address_and_del_takes_all_back() {
    in_namespace("add_makes_one_map_entry_per_address_and_del_takes_all_back", || {
        let mut nft = Socket::open().unwrap();
        let addresses = nets("10.1.0.5/16 fd00:1::5/64");
        add(&mut nft, &AT, &addresses, Backend::Nftables).unwrap();
        println!("{}", ruleset());
        check(&mut nft, &AT, &addresses, Backend::Nftables).unwrap();
        let once = ruleset();
        add(&mut nft, &AT, &addresses, Backend::Nftables).unwrap();
        assert_eq!(ruleset(), once);
        del(&mut nft, &AT, &[]).unwrap();
        println!("{}", ruleset());
    });
}
