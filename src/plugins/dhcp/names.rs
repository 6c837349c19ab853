//! Domain names from servers: only what is safe in a resolv.conf is passed on.

use dhcproto::Name;

/// Longest name (RFC 1035 section 2.3.4).
const MAX: usize = 253;

/// Whether `name` is made of labels of letters, digits, `-` and `_`. A server could otherwise write lines of its own
/// into a container's resolv.conf.
pub fn is_domain(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len()) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (1..=MAX).contains(&name.len()) && name.split('.').all(label)
}

/// Names as text, without the root's dot; what [`is_domain`] refuses is left out.
pub fn domains(names: &[Name]) -> Vec<String> {
    let texts = names.iter().map(|name| name.to_ascii());
    texts.map(|t| t.trim_end_matches('.').to_owned()).filter(|t| is_domain(t)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_passed_on() {
        for good in ["example.org", "a", "_tcp.x-y.0"] {
            assert!(is_domain(good), "{good}");
        }
        for bad in ["", ".", "a..b", "a b", "a\nnameserver 6.6.6.6", "é", &"x".repeat(64), &"x.".repeat(130)]
        {
            assert!(!is_domain(bad), "{bad:?}");
        }
    }
}
