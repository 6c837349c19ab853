//! resolv.conf(5) → the `dns` of a result, read as the Go plugin reads it (reference: ipam-and-meta.md 2.5).

use crate::cni::Dns;

/// Reads the four keywords a result can carry; anything else is skipped, and so is a keyword without argument.
///
/// `nameserver` gives one address per line, the last `domain` wins, `search` and `options` add up over several lines.
pub(super) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        let mut words = line.split_whitespace();
        let (Some(keyword), Some(first)) = (words.next(), words.next()) else { continue };
        let arguments = std::iter::once(first).chain(words).map(str::to_owned);
        match keyword {
            "nameserver" => dns.nameservers.push(first.to_owned()),
            "domain" => dns.domain = first.to_owned(),
            "search" => dns.search.extend(arguments),
            "options" => dns.options.extend(arguments),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keywords_are_collected_as_the_go_plugin_does() {
        let dns = parse(
            "# comment\n; comment\n\n  nameserver 192.0.2.1 ignored\nnameserver\nnameserver 2001:db8::1\r\n\
             domain first.example\ndomain last.example\nsearch a.example b.example\nsearch c.example # kept\n\
             options ndots:5\noptions rotate\tedns0\nsortlist 1.2.3.4\nNAMESERVER 192.0.2.9",
        );
        assert_eq!(dns.nameservers, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(dns.domain, "last.example");
        assert_eq!(dns.search, ["a.example", "b.example", "c.example", "#", "kept"]);
        assert_eq!(dns.options, ["ndots:5", "rotate", "edns0"]);
    }
}
