//! The daemon's flags, as Go's `flag` package reads them: `-name value`, `-name=value`, with one dash or two.

use std::path::PathBuf;

use super::super::conf::SOCKET;
use super::super::rpc::state_of;
use crate::cni::{Error, Result};
use crate::decimal::scaled;
use crate::plugins::dhcp::clock::Millis;

/// What `dhcp daemon -help` prints.
pub const HELP: &str = "usage: dhcp daemon [flags]

keeps the DHCP leases of containers alive; called by the dhcp plugin through a socket

  -socketpath PATH       socket to listen on (default /run/cni/dhcp.sock)
  -pidfile PATH          file to write the process id to; absolute
  -hostprefix PATH       put in front of the socket's path and of every namespace's
  -statedir PATH         where leases are kept across restarts (default: the socket's path, ending in .leases)
  -timeout DURATION      first wait for an answer (default 4s, RFC 2131 section 4.1)
  -resendmax DURATION    longest wait for an answer (default 1m2s)
  -resendtimeout DURATION
                         longest time to get a lease (default 3m28s)
  -broadcast             ask servers to answer by broadcast
  -exit-when-idle DURATION
                         end this long after the last lease (default: never)
  -ready                 say so on standard output when the socket is there

Listens on a socket of systemd's when LISTEN_FDS says so. SIGTERM and SIGINT end it, leases stay; SIGHUP starts the
executable anew on the same socket.
";

/// The flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// Socket to listen on, prefix included.
    pub socket: PathBuf,
    /// Where the process id goes.
    pub pidfile: Option<PathBuf>,
    /// In front of every namespace's path.
    pub host_prefix: String,
    /// Where leases are kept.
    pub state: PathBuf,
    /// First wait for an answer, ms.
    pub timeout: Millis,
    /// Longest wait for an answer, ms.
    pub resend_max: Millis,
    /// Longest time to get a lease, ms.
    pub resend_timeout: Millis,
    /// Ask for answers by broadcast.
    pub broadcast: bool,
    /// End this long after the last lease, ms.
    pub exit_when_idle: Option<Millis>,
    /// Say so when listening.
    pub ready: bool,
}

impl Flags {
    /// Reads the words after `daemon`; `None` when help is asked for.
    ///
    /// # Errors
    /// The flag and value that are not valid.
    pub fn parse(words: &[String]) -> Result<Option<Flags>> {
        let (mut socket, mut state, mut prefix) = (SOCKET.to_owned(), None, String::new());
        let mut flags = Flags {
            socket: PathBuf::new(),
            pidfile: None,
            host_prefix: String::new(),
            state: PathBuf::new(),
            timeout: 4_000,
            resend_max: 62_000,
            resend_timeout: 208_000,
            broadcast: false,
            exit_when_idle: None,
            ready: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|n| !n.is_empty());
            let name = name.ok_or_else(|| Error::config(format!("dhcp daemon: {word:?} is no flag")))?;
            let (name, inline) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (name, None),
            };
            let switch = |value: Option<&str>| match value {
                None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
                Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
                Some(value) => Err(Error::config(format!("-{name}: {value:?} is neither true nor false"))),
            };
            match name {
                "h" | "help" => return Ok(None),
                "broadcast" => {
                    flags.broadcast = switch(inline)?;
                    continue;
                }
                "ready" => {
                    flags.ready = switch(inline)?;
                    continue;
                }
                _ => {}
            }
            let value = inline.map(str::to_owned).or_else(|| words.next().cloned());
            let value = || value.clone().ok_or_else(|| Error::config(format!("-{name}: needs a value")));
            let time = || value().and_then(|text| duration(name, &text));
            match name {
                "socketpath" => socket = value()?,
                "pidfile" => {
                    let path = PathBuf::from(value()?);
                    if !path.is_absolute() {
                        return Err(Error::config(format!("-pidfile: {} is not absolute", path.display())));
                    }
                    flags.pidfile = Some(path);
                }
                "hostprefix" => prefix = value()?,
                "statedir" => state = Some(PathBuf::from(value()?)),
                "timeout" => flags.timeout = time()?.max(1),
                "resendmax" => flags.resend_max = time()?.max(1),
                "resendtimeout" => flags.resend_timeout = time()?,
                "exit-when-idle" => flags.exit_when_idle = Some(time()?),
                _ => {
                    return Err(Error::config(format!(
                        "dhcp daemon: no flag -{name}; see: dhcp daemon -help"
                    )));
                }
            }
        }
        flags.socket = PathBuf::from(format!("{prefix}{socket}"));
        flags.state = state.unwrap_or_else(|| state_of(&flags.socket));
        flags.host_prefix = prefix;
        Ok(Some(flags))
    }
}

/// A duration as Go writes it: `10s`, `1m30s`, `1.5h`, `250ms`, `0`.
fn duration(name: &str, text: &str) -> Result<Millis> {
    let invalid = || Error::config(format!("-{name}: {text:?} is no duration, such as 10s or 1m30s"));
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut nanos) = (text, 0_i64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let unit = rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.');
        let end = unit.map_or(rest.len(), |n| digits + n);
        let (places, factor) = match &rest[digits..end] {
            "ms" => (6, 1),
            "s" => (9, 1),
            "m" => (9, 60),
            "h" => (9, 3_600),
            _ => return Err(invalid()),
        };
        let number = scaled(&rest[..digits], places).and_then(|(number, _)| number.checked_mul(factor));
        nanos = number.and_then(|number| nanos.checked_add(number)).ok_or_else(invalid)?;
        rest = &rest[end..];
    }
    if text.is_empty() { Err(invalid()) } else { Ok(nanos.unsigned_abs() / 1_000_000) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Flags>> {
        Flags::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let flags = parse("-hostprefix /host --socketpath=/s.sock -timeout 1m1.5s -broadcast -pidfile /p")
            .unwrap()
            .unwrap();
        assert_eq!(flags.socket, PathBuf::from("/host/s.sock"));
        assert_eq!(flags.state, PathBuf::from("/host/s.leases"));
        assert_eq!((flags.timeout, flags.broadcast), (61_500, true));
        assert!(!parse("-broadcast=false").unwrap().unwrap().broadcast);
        assert_eq!(parse("").unwrap().unwrap().socket, PathBuf::from(SOCKET));
        assert_eq!(parse("-help").unwrap(), None);
    }

    #[test]
    fn faults_name_the_flag() {
        for (line, words) in [
            ("-pidfile rel", "-pidfile: rel is not absolute"),
            ("-timeout", "-timeout: needs a value"),
            ("-timeout 5", "-timeout: \"5\" is no duration"),
            ("-timeout s", "-timeout: \"s\" is no duration"),
            ("-nonsense 1", "no flag -nonsense"),
            ("word", "\"word\" is no flag"),
            ("-broadcast=x", "-broadcast: \"x\" is neither"),
        ] {
            let err = parse(line).unwrap_err();
            assert!(err.msg().contains(words), "{line}: {err}");
        }
    }
}
