//! Ethernet addresses.

use std::{fmt, str::FromStr};

use crate::cni::Error;

/// An EUI-48 address; prints as `0a:58:0a:16:00:02`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = Error;

    /// Reads `0a:58:0a:16:00:02`, `0a-58-0a-16-00-02` and `0a58.0a16.0002`, in either case, as Go's `net.ParseMAC` does.
    fn from_str(text: &str) -> Result<Mac, Error> {
        let invalid = || Error::config(format!("\"{text}\" is not an Ethernet address"));
        let separator = text.chars().find(|c| !c.is_ascii_hexdigit()).ok_or_else(invalid)?;
        let group = match separator {
            ':' | '-' => 2,
            '.' => 4,
            _ => return Err(invalid()),
        };
        let mut bytes = [0; 6];
        let mut filled = 0;
        for part in text.split(separator) {
            if part.len() != group || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(invalid());
            }
            for at in (0..group).step_by(2) {
                let slot = bytes.get_mut(filled).ok_or_else(invalid)?;
                *slot = u8::from_str_radix(&part[at..at + 2], 16).map_err(|_| invalid())?;
                filled += 1;
            }
        }
        if filled == bytes.len() { Ok(Mac(bytes)) } else { Err(invalid()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_written_forms_are_the_same_address() {
        for text in ["0A:58:0a:16:00:02", "0a-58-0a-16-00-02", "0a58.0a16.0002"] {
            assert_eq!(text.parse::<Mac>().unwrap().to_string(), "0a:58:0a:16:00:02");
        }
    }

    #[test]
    fn other_lengths_separators_and_digits_are_refused() {
        for text in [
            "",
            "0a",
            "0a:58:0a:16:00",
            "0a:58:0a:16:00:02:03",
            "0a:58-0a:16:00:02",
            "0g:58:0a:16:00:02",
            "a:58:0a:16:00:02",
            "0a5.80a1.60002",
            "é:58:0a:16:00:02",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
