//! The one error type: what a plugin prints when it fails (CNI spec, section 5 "Error").

use std::fmt;

use nix::errno::Errno;

/// Result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Error codes of the CNI spec (1–99), and ours from 100 on. The README lists them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Code(pub u32);

impl Code {
    /// A plugin failed without saying why in a way that could be decoded (libcni makes this one up).
    pub const UNKNOWN: Code = Code(0);
    /// The configuration's `cniVersion` is not one this plugin speaks, or does not allow the command.
    pub const INCOMPATIBLE_VERSION: Code = Code(1);
    /// The configuration asks for something that this plugin, kernel or version cannot do; `details` names key and value.
    pub const UNSUPPORTED_FIELD: Code = Code(2);
    /// The container is not known: the caller has nothing to clean.
    pub const UNKNOWN_CONTAINER: Code = Code(3);
    /// A `CNI_*` environment variable is missing or not valid.
    pub const ENVIRONMENT: Code = Code(4);
    /// Reading standard input or writing standard output failed.
    pub const IO: Code = Code(5);
    /// The configuration, or a field of it, is not JSON of the expected shape.
    pub const DECODING: Code = Code(6);
    /// The configuration can be read but what it says is not valid.
    pub const INVALID_CONFIG: Code = Code(7);
    /// `CNI_NETNS` is the namespace the plugin itself runs in (constant of the Go library; not in the spec's table).
    pub const INVALID_NETNS: Code = Code(8);
    /// A condition that passes: the caller should try again later.
    pub const TRY_AGAIN: Code = Code(11);
    /// STATUS: the plugin cannot serve ADD now.
    pub const NOT_AVAILABLE: Code = Code(50);
    /// STATUS: the plugin cannot serve ADD now, and existing attachments may have limited connectivity.
    pub const LIMITED_CONNECTIVITY: Code = Code(51);
    /// CHECK: what ADD made is no longer as it was made.
    pub const CHECK_FAILED: Code = Code(100);
    /// ADD: the address pool has no free address.
    pub const NO_ADDRESS: Code = Code(101);
    /// ADD: another attachment has the host port.
    pub const PORT_IN_USE: Code = Code(102);
    /// Update of a running attachment: what differs can only be applied by DEL and ADD.
    pub const NEEDS_NEW_ATTACHMENT: Code = Code(103);
    /// Anything that has no better code (what the Go plugins answer to everything).
    pub const INTERNAL: Code = Code(999);
}

/// A failure, as a CNI error object says it.
///
/// `msg` is one sentence a person can act on, lower case, no full stop; context is put in front of it:
/// `bridge: ip link add cni0 type bridge: Operation not permitted (is CAP_NET_ADMIN missing?)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    code: Code,
    msg: String,
    details: String,
    errno: Option<Errno>,
    is_answer: bool,
}

impl Error {
    /// An error with the given code and message.
    pub fn new(code: Code, msg: impl Into<String>) -> Error {
        Error { code, msg: msg.into(), details: String::new(), errno: None, is_answer: false }
    }

    /// An error with [`Code::INTERNAL`].
    pub fn internal(msg: impl Into<String>) -> Error {
        Error::new(Code::INTERNAL, msg)
    }

    /// A configuration that can be read but is not valid ([`Code::INVALID_CONFIG`]); name the key and the value.
    pub fn config(msg: impl Into<String>) -> Error {
        Error::new(Code::INVALID_CONFIG, msg)
    }

    /// A failed system call: `what` says what was tried, as an operator would type or read it.
    ///
    /// EPERM and EACCES get the hint that a capability may be missing.
    pub fn system(what: impl fmt::Display, errno: Errno) -> Error {
        let hint = if errno == Errno::EPERM { " (is CAP_NET_ADMIN missing?)" } else { "" };
        Error {
            code: Code::INTERNAL,
            msg: format!("{what}: {}{hint}", errno.desc()),
            details: String::new(),
            errno: Some(errno),
            is_answer: false,
        }
    }

    /// A failed file operation of the standard library: `what` says what was tried, with the path.
    pub fn io(what: impl fmt::Display, err: &std::io::Error) -> Error {
        match err.raw_os_error() {
            Some(errno) => Error::system(what, Errno::from_raw(errno)),
            None => Error::internal(format!("{what}: {err}")),
        }
    }

    /// The same error with `what` and a colon in front of its message.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Error {
        self.msg = format!("{what}: {}", self.msg);
        self
    }

    /// The same error with another code.
    #[must_use]
    pub fn with_code(mut self, code: Code) -> Error {
        self.code = code;
        self
    }

    /// The same error with `details`, the spec's longer description.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Error {
        self.details = details.into();
        self
    }

    /// The same error, which is another program's answer: an error object of its own, and no accident.
    #[must_use]
    pub(crate) fn answered(mut self) -> Error {
        self.is_answer = true;
        self
    }

    /// Whether another program has answered so.
    pub(crate) fn is_answer(&self) -> bool {
        self.is_answer
    }

    /// The same error; its details also say what could not be taken back after it.
    pub(crate) fn with_left(self, left: &dyn fmt::Display) -> Error {
        let separator = if self.details.is_empty() { "" } else { "; " };
        let details = format!("{}{separator}not taken back: {left}", self.details);
        self.with_details(details)
    }

    /// The CNI error code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The one-sentence message.
    pub fn msg(&self) -> &str {
        &self.msg
    }

    /// The longer description; empty when there is none.
    pub fn details(&self) -> &str {
        &self.details
    }

    /// The error number, when a system call was the cause.
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// What was to be made exists already.
    pub fn is_exists(&self) -> bool {
        self.errno == Some(Errno::EEXIST)
    }

    /// What was to be used or removed is not there: file, link, address, route, process or nftables object.
    pub fn is_gone(&self) -> bool {
        use Errno::{EADDRNOTAVAIL, ENODEV, ENOENT, ENXIO, ESRCH};
        matches!(self.errno, Some(ENOENT | ENODEV | ENXIO | ESRCH | EADDRNOTAVAIL))
    }

    /// All failures of a teardown as one: the first one's code, the messages joined by `; `. `None` when there are none.
    pub fn all(errors: Vec<Error>) -> Option<Error> {
        let mut errors = errors.into_iter();
        let mut first = errors.next()?;
        for next in errors {
            first.msg = format!("{}; {}", first.msg, next.msg);
        }
        Some(first)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.msg)?;
        if !self.details.is_empty() {
            write!(f, "; {}", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Puts context in front of a failure: `handle.link(name).context("bridge")?`.
pub trait ResultExt<T> {
    /// `what` and a colon in front of the message of an error.
    fn context(self, what: impl fmt::Display) -> Result<T>;
    /// `None` instead of an error that says the object is not there ([`Error::is_gone`]).
    fn unless_gone(self) -> Result<Option<T>>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|e| e.context(what))
    }

    fn unless_gone(self) -> Result<Option<T>> {
        match self {
            Ok(value) => Ok(Some(value)),
            Err(e) if e.is_gone() => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permission_error_says_which_capability_is_missing() {
        let err = Error::system("ip link add cni0 type bridge", Errno::EPERM).context("bridge");
        assert_eq!(
            err.to_string(),
            "bridge: ip link add cni0 type bridge: Operation not permitted (is CAP_NET_ADMIN missing?)"
        );
    }

    #[test]
    fn several_failures_are_reported_together_under_the_first_code() {
        let all = Error::all(vec![Error::config("a"), Error::internal("b")]).unwrap();
        assert_eq!((all.code(), all.msg()), (Code::INVALID_CONFIG, "a; b"));
        assert_eq!(Error::all(vec![]), None);
    }
}
