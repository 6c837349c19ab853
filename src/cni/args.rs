//! `CNI_ARGS`: `KEY=VALUE;KEY=VALUE` (CNI spec, "Parameters"; reference: core.md 1.11).

use std::collections::BTreeMap;

use super::error::{Code, Error, Result};

/// Keys of the CNI conventions. They are addressed to one plugin of a delegation and reach all of them, so every
/// plugin knows them, whether it uses them or not.
const CONVENTIONAL: [&str; 3] = ["GATEWAY", "IP", "MAC"];

/// The parsed pairs. Keys match exactly; of duplicates the last wins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args(BTreeMap<String, String>);

impl Args {
    /// Parses the text of `CNI_ARGS`; empty means none.
    ///
    /// Each piece between `;` must hold exactly one `=`. Keys beyond `GATEWAY`, `IP` and `MAC` are refused unless
    /// `IgnoreUnknown=1` (or `true`) stands anywhere among the pairs.
    ///
    /// # Errors
    /// [`Code::ENVIRONMENT`] naming the offending pair.
    pub fn parse(text: &str) -> Result<Args> {
        let fault = |msg: String| Error::new(Code::ENVIRONMENT, format!("CNI_ARGS: {msg}"));
        let mut pairs = BTreeMap::new();
        let pieces = text.split(';').filter(|_| !text.is_empty());
        for piece in pieces {
            match piece.split_once('=') {
                Some((key, value)) if !value.contains('=') => pairs.insert(key.to_owned(), value.to_owned()),
                _ => {
                    return Err(fault(format!(
                        "invalid pair {piece:?}, expected KEY=VALUE with one equals sign"
                    )));
                }
            };
        }
        let ignore_unknown = match pairs.remove("IgnoreUnknown").map(|v| v.to_ascii_lowercase()).as_deref() {
            Some("1" | "true") => true,
            None | Some("0" | "false") => false,
            Some(other) => {
                return Err(fault(format!("IgnoreUnknown is {other:?}, expected 1, true, 0 or false")));
            }
        };
        let known = |key: &String| CONVENTIONAL.contains(&key.as_str());
        let unknown: Vec<String> = pairs
            .iter()
            .filter(|(k, _)| !known(k))
            .map(|(k, v)| format!("{:?}", format!("{k}={v}")))
            .collect();
        if !ignore_unknown && !unknown.is_empty() {
            return Err(Error::new(Code::ENVIRONMENT, format!("ARGS: unknown args [{}]", unknown.join(" ")))
                .with_details("add IgnoreUnknown=1 to CNI_ARGS to have keys ignored that no plugin knows"));
        }
        Ok(Args(pairs))
    }

    /// The value of `key`; `None` when absent or empty.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str).filter(|v| !v.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_need_exactly_one_equals_sign() {
        for bad in ["A", "A=b=c;IgnoreUnknown=1", "MAC=x;", ";", "IP=1;;MAC=2"] {
            assert_eq!(Args::parse(bad).unwrap_err().code(), Code::ENVIRONMENT, "{bad}");
        }
        let args = Args::parse("MAC=;IP=10.1.2.3;IP=10.1.2.4").unwrap();
        assert_eq!((args.get("MAC"), args.get("IP")), (None, Some("10.1.2.4")));
        assert_eq!(Args::parse("").unwrap(), Args::default());
    }

    #[test]
    fn unknown_keys_are_refused_unless_told_otherwise() {
        let err = Args::parse("K8S_POD_NAME=a;mac=b").unwrap_err();
        assert_eq!(err.msg(), r#"ARGS: unknown args ["K8S_POD_NAME=a" "mac=b"]"#);
        for ignore in ["IgnoreUnknown=1;X=y", "X=y;IgnoreUnknown=TRUE"] {
            assert_eq!(Args::parse(ignore).unwrap().get("X"), Some("y"));
        }
        assert!(Args::parse("IgnoreUnknown=0;X=y").is_err());
        assert!(Args::parse("IgnoreUnknown=yes").is_err());
    }
}
