//! The protocol versions we speak, and what each allows (CNI spec, "Version"; reference: core.md 1.8).

use std::fmt;

use super::error::{Code, Error, Result};
use super::request::Command;

/// A released version of the CNI spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.1.0: ADD and DEL, result with `ip4` and `ip6`.
    V0_1_0,
    /// 0.2.0: VERSION.
    V0_2_0,
    /// 0.3.0: interfaces, several addresses, chains.
    V0_3_0,
    /// 0.3.1: as 0.3.0, with its typo mended.
    V0_3_1,
    /// 0.4.0: CHECK, prevResult on DEL.
    V0_4_0,
    /// 1.0.0: no `version` in addresses.
    V1_0_0,
    /// 1.1.0: GC, STATUS, more fields for interfaces and routes.
    V1_1_0,
}

impl Version {
    /// Every version, oldest first.
    pub const ALL: &'static [Version] = &[
        Version::V0_1_0,
        Version::V0_2_0,
        Version::V0_3_0,
        Version::V0_3_1,
        Version::V0_4_0,
        Version::V1_0_0,
        Version::V1_1_0,
    ];

    /// The newest version.
    pub const LATEST: Version = Version::V1_1_0;

    /// The version's text, `1.1.0`.
    pub fn as_str(self) -> &'static str {
        match self {
            Version::V0_1_0 => "0.1.0",
            Version::V0_2_0 => "0.2.0",
            Version::V0_3_0 => "0.3.0",
            Version::V0_3_1 => "0.3.1",
            Version::V0_4_0 => "0.4.0",
            Version::V1_0_0 => "1.0.0",
            Version::V1_1_0 => "1.1.0",
        }
    }

    /// The version with exactly this text; empty means 0.1.0.
    pub fn from_text(text: &str) -> Option<Version> {
        match text {
            "" => Some(Version::V0_1_0),
            _ => Version::ALL.iter().copied().find(|v| v.as_str() == text),
        }
    }

    /// The shape a result has in this version.
    pub fn family(self) -> Family {
        match self {
            Version::V0_1_0 | Version::V0_2_0 => Family::Ip4Ip6,
            Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0 => Family::Versioned,
            Version::V1_0_0 | Version::V1_1_0 => Family::Current,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Versions whose results have the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// 0.1.0 and 0.2.0: `ip4`, `ip6`, `dns`.
    Ip4Ip6,
    /// 0.3.0 to 0.4.0: `ips` that carry their IP version.
    Versioned,
    /// 1.0.0 and later.
    Current,
}

/// Decides whether `command` may be served for a configuration whose `cniVersion` is `text`.
///
/// ADD and DEL only ask for membership; CHECK, GC and STATUS first compare numbers, so that a version that is not a
/// number is a decoding failure there and an incompatible one for ADD and DEL (reference: core.md 1.2, 1.8).
///
/// # Errors
/// [`Code::INCOMPATIBLE_VERSION`], or [`Code::DECODING`] for a text that is not a version number.
pub fn negotiate(command: Command, text: &str, supported: &[Version]) -> Result<Version> {
    let minimum = match command {
        Command::Check => Some((Version::V0_4_0, "CHECK")),
        Command::Gc => Some((Version::V1_1_0, "GC")),
        Command::Status => Some((Version::V1_1_0, "STATUS")),
        _ => None,
    };
    if let Some((minimum, verb)) = minimum {
        let asked = numbers(text).ok_or_else(|| {
            Error::new(Code::DECODING, format!("cniVersion: {text:?} is not a version such as \"1.1.0\""))
        })?;
        if Some(asked) < numbers(minimum.as_str()) {
            let msg = format!("config version does not allow {verb}");
            return Err(Error::new(Code::INCOMPATIBLE_VERSION, msg)
                .with_details(format!("cniVersion is {text:?}, {verb} needs at least \"{minimum}\"")));
        }
    }
    if let (Some((_, verb)), Some(newest)) = (minimum, supported.last())
        && numbers(text) > numbers(newest.as_str())
    {
        let msg = format!("plugin version does not allow {verb}");
        return Err(Error::new(Code::INCOMPATIBLE_VERSION, msg).with_details(format!(
            "cniVersion is {text:?}, the newest version of the plugin is \"{newest}\""
        )));
    }
    Version::from_text(text).filter(|v| supported.contains(v)).ok_or_else(|| {
        let shown = if text.is_empty() { "0.1.0" } else { text };
        let list: Vec<String> = supported.iter().map(|v| format!("{:?}", v.as_str())).collect();
        Error::new(Code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
            .with_details(format!("config is {shown:?}, plugin supports [{}]", list.join(" ")))
    })
}

/// Major, minor and patch of up to three dot-separated integers; empty means 0.1.0.
fn numbers(text: &str) -> Option<[i64; 3]> {
    let mut parsed = [0; 3];
    let text = if text.is_empty() { "0.1.0" } else { text };
    for (i, part) in text.split('.').enumerate() {
        *parsed.get_mut(i)? = part.parse().ok()?;
    }
    Some(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(command: Command, text: &str, supported: &[Version]) -> u32 {
        negotiate(command, text, supported).map_or_else(|e| e.code().0, |_| 0)
    }

    #[test]
    fn membership_is_by_text_and_gates_are_by_number() {
        let all = Version::ALL;
        assert_eq!(code(Command::Add, "", all), 0);
        assert_eq!(code(Command::Add, "1.1.0", all), 0);
        for odd in ["1.1", "01.1.0", "1.1.0-rc1", " 1.1.0", "2.0.0", "0.10.0"] {
            assert_eq!(code(Command::Add, odd, all), 1, "{odd}");
        }
        assert_eq!(code(Command::Check, "0.3.1", all), 1);
        assert_eq!(code(Command::Check, "", all), 1);
        assert_eq!(code(Command::Check, "0.4.0", all), 0);
        assert_eq!(code(Command::Check, "1.1.0-rc1", all), 6);
        assert_eq!(code(Command::Check, "1..0", all), 6);
        assert_eq!(code(Command::Gc, "1.0.0", all), 1);
        assert_eq!(code(Command::Status, "1.1.0", all), 0);
    }

    #[test]
    fn a_mismatch_lists_what_is_supported() {
        let err = negotiate(Command::Add, "", &Version::ALL[4..]).unwrap_err();
        assert_eq!(err.msg(), "incompatible CNI versions");
        assert_eq!(err.details(), r#"config is "0.1.0", plugin supports ["0.4.0" "1.0.0" "1.1.0"]"#);
    }
}
