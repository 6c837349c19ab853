//! One call of a plugin: `CNI_*` variables and standard input, checked once, in the order the Go library checks them
//! (reference: core.md 1.1–1.3), because callers depend on which of several faults is reported.

use std::fmt;
use std::time::Duration;

use super::args::Args;
use super::config::Config;
use super::error::{Code, Error, Result};
use super::json::Value;
use super::names;
use super::version::{self, Version};

/// What a plugin is asked to do: the value of `CNI_COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Attach a container to a network.
    Add,
    /// Detach it and release everything.
    Del,
    /// Is the attachment as ADD made it?
    Check,
    /// Remove what belongs to attachments that are not in use any more.
    Gc,
    /// Could ADD be served now?
    Status,
    /// Which protocol versions are spoken?
    Version,
}

impl Command {
    /// Every command.
    pub const ALL: [Command; 6] =
        [Command::Add, Command::Del, Command::Check, Command::Gc, Command::Status, Command::Version];

    /// The value of `CNI_COMMAND`.
    pub fn as_str(self) -> &'static str {
        match self {
            Command::Add => "ADD",
            Command::Del => "DEL",
            Command::Check => "CHECK",
            Command::Gc => "GC",
            Command::Status => "STATUS",
            Command::Version => "VERSION",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The `CNI_*` variables of one call, checked for its command.
#[derive(Clone, Debug)]
pub struct Environment {
    command: Result<Command, String>,
    container_id: String,
    netns: String,
    ifname: String,
    args: String,
    path: String,
    netns_override: bool,
}

impl Environment {
    /// Reads the variables through `get`, which answers `None` for one that is not set.
    ///
    /// Only variables that the command needs are checked; a value that is not valid is reported at once, missing ones
    /// together. An unknown command needs nothing: it is refused by [`Request::new`], after the configuration.
    ///
    /// # Errors
    /// [`Code::ENVIRONMENT`] naming the variables.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Environment> {
        let value = |name: &str| get(name).unwrap_or_default();
        let written = value("CNI_COMMAND");
        let command = Command::ALL.into_iter().find(|c| c.as_str() == written).ok_or(written);
        let environment = Environment {
            container_id: value("CNI_CONTAINERID"),
            netns: value("CNI_NETNS"),
            ifname: value("CNI_IFNAME"),
            args: value("CNI_ARGS"),
            path: value("CNI_PATH"),
            netns_override: matches!(value("CNI_NETNS_OVERRIDE").to_ascii_uppercase().as_str(), "1" | "TRUE"),
            command,
        };
        environment.check()?;
        Ok(environment)
    }

    fn check(&self) -> Result<()> {
        use Command::{Add, Check, Del, Gc, Status};
        type Variable<'a> = (&'static str, &'a str, &'static [Command], Option<fn(&str) -> Result<()>>);
        let command = match &self.command {
            Ok(command) => *command,
            Err(written) if written.is_empty() => {
                return Err(Error::new(Code::ENVIRONMENT, "required env variables [CNI_COMMAND] missing"));
            }
            Err(_) => return Ok(()),
        };
        let ifname = if command == Del { names::check_former_ifname } else { names::check_ifname };
        let variables: [Variable<'_>; 4] = [
            ("CNI_CONTAINERID", &self.container_id, &[Add, Check, Del], Some(names::check_container_id)),
            ("CNI_NETNS", &self.netns, &[Add, Check], None),
            ("CNI_IFNAME", &self.ifname, &[Add, Check, Del], Some(ifname)),
            ("CNI_PATH", &self.path, &[Add, Check, Del, Gc, Status], None),
        ];
        let mut missing = Vec::new();
        for (name, value, needed_by, check) in variables {
            match (needed_by.contains(&command), value.is_empty(), check) {
                (true, true, _) => missing.push(name),
                (true, false, Some(check)) => check(value)?,
                _ => {}
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(Error::new(Code::ENVIRONMENT, format!("required env variables [{}] missing", missing.join(","))))
    }

    /// Whether this is VERSION, which is answered without reading standard input.
    pub fn is_version(&self) -> bool {
        self.command == Ok(Command::Version)
    }
}

/// One call of a plugin, checked. Only plugin-specific configuration is still to be decoded.
#[derive(Clone, Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// `CNI_CONTAINERID`; empty for GC and STATUS.
    pub container_id: String,
    /// `CNI_NETNS` exactly as given: path of the container's network namespace; may be empty on DEL.
    pub netns: String,
    /// `CNI_IFNAME`: the interface's name inside the container; empty for GC and STATUS.
    pub ifname: String,
    /// `CNI_ARGS` as given; see [`Request::args`].
    pub raw_args: String,
    /// `CNI_PATH`: directories to look for delegates in, separated by colons.
    pub path: String,
    /// `CNI_NETNS_OVERRIDE`: the container's namespace may be the host's.
    pub netns_override: bool,
    /// The network configuration.
    pub config: Config,
    /// The configuration's bytes as received, for delegates that are other executables.
    pub stdin: Vec<u8>,
    /// How delegates that are other executables are run.
    pub execution: Execution,
}

/// How plugins are run for a request, where the protocol leaves it open.
#[derive(Clone, Debug, Default)]
pub struct Execution {
    /// An executable that takes longer is killed; `None`: it may take as long as it likes.
    pub timeout: Option<Duration>,
    /// Variables that executables get besides those of the protocol and of this process.
    pub environment: Vec<(String, String)>,
    /// Plugins that are built in run in this process, whatever files of their names there are.
    pub prefer_built_in: bool,
}

/// What a plugin accepts, for [`Request::new`].
#[derive(Clone, Copy, Debug)]
pub struct Accepts {
    /// Protocol versions, oldest first.
    pub versions: &'static [Version],
    /// Whether a configuration without `name` is accepted.
    pub nameless: bool,
}

impl Request {
    /// Checks the configuration and puts it together with the environment.
    ///
    /// Order: JSON and `name` (6, 7), the command (4), `cniVersion` (6, 1), keys that every plugin knows (6, 7).
    ///
    /// # Errors
    /// See the order above; codes of [`Code`].
    pub fn new(environment: Environment, stdin: Vec<u8>, accepts: Accepts) -> Result<Request> {
        let req = Request::negotiate(environment, stdin, accepts)?;
        req.check()?;
        Ok(req)
    }

    /// As [`Request::new`], without [`Request::check`]: for those who want to know the version whatever that finds.
    ///
    /// # Errors
    /// As for [`Request::new`].
    pub fn negotiate(environment: Environment, stdin: Vec<u8>, accepts: Accepts) -> Result<Request> {
        let document = Value::parse(&stdin)?;
        let name = Config::name_of(&document, accepts.nameless)?;
        let command = environment
            .command
            .map_err(|written| Error::new(Code::ENVIRONMENT, format!("unknown CNI_COMMAND: {written}")))?;
        let version = version::negotiate(command, &Config::version_of(&document)?, accepts.versions)?;
        let config = Config::new(document, name, version);
        Ok(Request {
            command,
            container_id: environment.container_id,
            netns: environment.netns,
            ifname: environment.ifname,
            raw_args: environment.args,
            path: environment.path,
            netns_override: environment.netns_override,
            config,
            stdin,
            execution: Execution::default(),
        })
    }

    /// A wrong type in a key that every plugin knows is refused by all, used or not; on DEL and GC by none.
    ///
    /// # Errors
    /// [`Code::DECODING`], [`Code::INVALID_CONFIG`].
    pub fn check(&self) -> Result<()> {
        match self.command {
            Command::Del | Command::Gc => Ok(()),
            _ => self.config.common().map(drop),
        }
    }

    /// `CNI_ARGS`, parsed. On DEL and GC faults in it are ignored, as they must not keep anything from being cleaned, and
    /// on STATUS, which is about no attachment.
    ///
    /// # Errors
    /// [`Code::ENVIRONMENT`] naming the offending pair.
    pub fn args(&self) -> Result<Args> {
        match self.command {
            Command::Del | Command::Gc | Command::Status => {
                Ok(Args::parse(&self.raw_args).unwrap_or_default())
            }
            _ => Args::parse(&self.raw_args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Result<Environment> {
        Environment::read(|name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()))
    }

    const ACCEPTS: Accepts = Accepts { versions: Version::ALL, nameless: false };

    fn request(pairs: &[(&str, &str)], stdin: &str) -> Result<Request> {
        Request::new(environment(pairs)?, stdin.as_bytes().to_vec(), ACCEPTS)
    }

    #[test]
    fn missing_variables_are_reported_together_in_a_fixed_order() {
        for (command, missing) in [
            ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
            ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
            ("GC", "CNI_PATH"),
            ("STATUS", "CNI_PATH"),
        ] {
            let err = environment(&[("CNI_COMMAND", command), ("CNI_IFNAME", "")]).unwrap_err();
            assert_eq!(err.msg(), format!("required env variables [{missing}] missing"));
        }
        assert!(environment(&[("CNI_COMMAND", "VERSION")]).is_ok());
    }

    #[test]
    fn a_value_that_is_not_valid_hides_what_is_missing() {
        let err = environment(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "a/b")]).unwrap_err();
        assert_eq!(err.msg(), "interface name contains / or : or whitespace characters");
        assert!(
            environment(&[("CNI_COMMAND", "STATUS"), ("CNI_CONTAINERID", "!"), ("CNI_PATH", "x")]).is_ok()
        );
    }

    #[test]
    fn an_unknown_command_is_refused_only_after_the_configuration() {
        let unknown = [("CNI_COMMAND", "add")];
        assert_eq!(request(&unknown, "").unwrap_err().code(), Code::DECODING);
        assert_eq!(request(&unknown, "{}").unwrap_err().code(), Code::INVALID_CONFIG);
        assert_eq!(request(&unknown, "null").unwrap_err().code(), Code::INVALID_CONFIG);
        let err = request(&unknown, r#"{"name":"n","cniVersion":"9"}"#).unwrap_err();
        assert_eq!((err.code(), err.msg()), (Code::ENVIRONMENT, "unknown CNI_COMMAND: add"));
    }

    #[test]
    fn name_and_version_must_be_strings() {
        let status = [("CNI_COMMAND", "STATUS"), ("CNI_PATH", "x")];
        assert_eq!(request(&status, r#"{"name":5}"#).unwrap_err().code(), Code::DECODING);
        assert_eq!(request(&status, r#"{"name":"n","cniVersion":1}"#).unwrap_err().code(), Code::DECODING);
        assert_eq!(request(&status, r#"{"Name":"n","CNIVERSION":"1.1.0"}"#).unwrap().config.name, "n");
    }

    #[test]
    fn the_namespace_override_is_a_boolean_of_go() {
        for (text, on) in [("1", true), ("true", true), ("TrUe", true), ("yes", false), ("", false)] {
            let read = environment(&[("CNI_COMMAND", "VERSION"), ("CNI_NETNS_OVERRIDE", text)]).unwrap();
            assert_eq!(read.netns_override, on, "{text}");
        }
    }

    #[test]
    fn no_list_of_valid_attachments_is_not_an_empty_list() {
        let gc = [("CNI_COMMAND", "GC"), ("CNI_PATH", "x")];
        let list = |keys: &str| {
            request(&gc, &format!(r#"{{"name":"n","cniVersion":"1.1.0"{keys}}}"#))
                .unwrap()
                .config
                .valid_attachments()
        };
        assert_eq!(list("").unwrap(), None);
        assert_eq!(list(r#","cni.dev/valid-attachments":null"#).unwrap(), None);
        assert_eq!(list(r#","cni.dev/valid-attachments":[]"#).unwrap(), Some(vec![]));
        let old = list(r#","cni.dev/attachments":[{"containerID":"c","ifname":"eth0"}]"#).unwrap().unwrap();
        assert_eq!((old[0].container_id.as_str(), old[0].ifname.as_str()), ("c", "eth0"));
    }
}
