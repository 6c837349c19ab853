//! dnsmasq as the server.

use serde_json::json;

use crate::site::{SERVER, Site, records};
use crate::support::{require_netns, require_tool};

#[test]
fn a_container_on_a_bridge_gets_an_address_and_gives_it_back() {
    require_netns!();
    require_tool!("dnsmasq");
    let site = Site::with_dnsmasq(
        "--dhcp-option=option:dns-server,10.7.0.2,10.7.0.3 --domain=example.org \
         --dhcp-option=option:domain-search,a.example.org,b.example.org --dhcp-option=option:ntp-server,10.7.0.4 \
         --dhcp-option=option:mtu,1400",
    );
    let container = site.node.container();
    let attachment = site.attach(&container, json!({}));
    let address = attachment.ip(0);
    assert!(address.starts_with("10.7.0."), "{address}");
    assert_eq!(attachment.result["ips"][0]["gateway"], SERVER);
    assert_eq!(attachment.result["routes"], json!([{"dst": "0.0.0.0/0", "gw": SERVER}]));
    assert_eq!(
        attachment.result["dns"],
        json!({"nameservers": ["10.7.0.2", "10.7.0.3"], "domain": "example.org",
               "search": ["a.example.org", "b.example.org"]})
    );
    assert!(container.pings(SERVER));
    assert_eq!(container.link("eth0")["mtu"], 1400);
    attachment.check();

    let lease = site.leases().remove(0);
    assert_eq!(lease["ipv4"]["state"], "BOUND");
    assert_eq!(lease["ipv4"]["options"]["ntp-servers"], "10.7.0.4");
    assert_eq!(records(&site).len(), 1);

    attachment.del();
    site.eventually("the server has it back", |s| {
        s.server_log().contains(&format!("DHCPRELEASE(cni0) {address}"))
    });
    assert!(site.leases().is_empty() && records(&site).is_empty());
    attachment.del();
    attachment.call("CHECK").fails(100);
}
