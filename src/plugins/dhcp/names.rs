//! Domain names from servers: only what is safe in a resolv.conf is passed on.

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

/// Most names that are read from one option: pointers make them cheap to send.
const MOST: usize = 64;

/// Names as labels (RFC 1035 section 3.1), compressed within `bytes` (section 4.1.4) as RFC 3397 lets them be. What comes
/// after something malformed is not read; what [`is_domain`] refuses is left out.
pub fn domains(bytes: &[u8]) -> Vec<String> {
    let (mut names, mut at) = (Vec::new(), 0);
    while at < bytes.len() && names.len() < MOST {
        let Some((name, next)) = domain_at(bytes, at) else { break };
        names.push(name);
        at = next;
    }
    names.retain(|name| is_domain(name));
    names
}

/// The name at a place, and where the next one begins. Pointers lead backwards only, so that there is an end.
fn domain_at(bytes: &[u8], start: usize) -> Option<(String, usize)> {
    let (mut name, mut at, mut next, mut limit) = (String::new(), start, None, start);
    loop {
        let length = usize::from(*bytes.get(at)?);
        match length >> 6 {
            0 if length == 0 => return Some((name, next.unwrap_or(at + 1))),
            0 => {
                let label = bytes.get(at + 1..at + 1 + length)?;
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(&String::from_utf8_lossy(label));
                if name.len() > 4 * MAX {
                    return None;
                }
                at += 1 + length;
            }
            3 => {
                let to = (length & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
                if to >= limit {
                    return None;
                }
                next.get_or_insert(at + 2);
                (at, limit) = (to, to);
            }
            _ => return None,
        }
    }
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

    #[test]
    fn names_are_read_with_pointers_that_lead_back() {
        let bytes = [1, b'a', 1, b'b', 0, 1, b'c', 0xc0, 2, 0xc0, 5, 0, 0, 0];
        assert_eq!(domains(&bytes), ["a.b", "c.b", "c.b"]);
        for bad in
            [&[0xc0, 0][..], &[1, b'a', 0xc0, 0], &[1, b'a', 0xc0, 2], &[5, b'a'], &[0x40, 0], &[1, b'a']]
        {
            assert!(domains(bad).is_empty(), "{bad:?}");
        }
        let many = [&[1, b'a', 0][..], &[0xc0, 0].repeat(500)].concat();
        assert_eq!(domains(&many).len(), 64);
    }
}
