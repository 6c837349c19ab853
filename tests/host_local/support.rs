//! A network with a directory of its own, and calls of host-local for it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// Our executable.
pub const OURS: &[&str] = &[env!("CARGO_BIN_EXE_cni-all"), "host-local"];
/// Debian's package containernetworking-plugins.
pub const GO: &[&str] = &["/usr/lib/cni/host-local"];

/// A network whose directory is removed at the end of the test.
pub struct Net {
    root: PathBuf,
    /// Members of `ipam` beside type and dataDir.
    pub ipam: String,
    /// Members of the configuration beside name, cniVersion and ipam.
    pub rest: String,
    pub version: &'static str,
    pub args: String,
}

impl Net {
    /// `name` is unique among the tests; `ipam` holds members such as `"subnet":"10.1.2.0/24"`.
    pub fn new(name: &str, ipam: &str) -> Net {
        let root = std::env::temp_dir().join(format!("cni-all-host-local-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        Net { root, ipam: ipam.to_owned(), rest: String::new(), version: "1.0.0", args: String::new() }
    }

    /// The directory with the leases.
    pub fn dir(&self) -> PathBuf {
        self.root.join("net")
    }

    pub fn config(&self) -> String {
        format!(
            r#"{{"name":"net","cniVersion":"{}","ipam":{{"type":"host-local","dataDir":"{}",{}}}{}}}"#,
            self.version,
            self.root.display(),
            self.ipam,
            self.rest
        )
    }

    pub fn spawn(&self, program: &[&str], verb: &str, id: &str) -> Child {
        self.spawn_with(program, verb, id, "eth0", &self.config())
    }

    pub fn spawn_with(&self, program: &[&str], verb: &str, id: &str, ifname: &str, config: &str) -> Child {
        let mut child = Command::new(program[0])
            .args(&program[1..])
            .env_clear()
            .envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)])
            .envs([("CNI_NETNS", "/x"), ("CNI_PATH", "/x"), ("CNI_ARGS", &self.args)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A process that is killed or fails early does not read it.
        let _ = child.stdin.take().unwrap().write_all(config.as_bytes());
        child
    }

    pub fn by(&self, program: &[&str], verb: &str, id: &str) -> Answer {
        Answer::new(self.spawn(program, verb, id).wait_with_output().unwrap())
    }

    pub fn call(&self, verb: &str, id: &str) -> Answer {
        self.by(OURS, verb, id)
    }

    pub fn with(&self, verb: &str, id: &str, ifname: &str, config: &str) -> Answer {
        Answer::new(self.spawn_with(OURS, verb, id, ifname, config).wait_with_output().unwrap())
    }

    pub fn add(&self, id: &str) -> Vec<String> {
        self.call("ADD", id).addresses()
    }

    pub fn del(&self, id: &str) {
        self.call("DEL", id).ok();
    }

    /// Makes a file in the network's directory.
    pub fn put(&self, name: &str, content: &str) {
        std::fs::create_dir_all(self.dir()).unwrap();
        std::fs::write(self.dir().join(name), content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir().join(name)).unwrap()
    }

    /// The addresses that are reserved, as text, in order.
    pub fn leases(&self) -> Vec<String> {
        let mut names = names(&self.dir());
        names.retain(|name| name.parse::<std::net::IpAddr>().is_ok());
        names
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What a call printed, and whether it succeeded.
#[derive(Debug)]
pub struct Answer {
    pub succeeded: bool,
    pub text: String,
}

impl Answer {
    fn new(output: Output) -> Answer {
        Answer { succeeded: output.status.success(), text: String::from_utf8(output.stdout).unwrap() }
    }

    #[track_caller]
    pub fn ok(&self) -> &Answer {
        assert!(self.succeeded, "{}", self.text);
        self
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }

    /// The addresses of a successful ADD.
    #[track_caller]
    pub fn addresses(&self) -> Vec<String> {
        let ips = self.ok().json()["ips"].as_array().unwrap().clone();
        ips.iter().map(|ip| ip["address"].as_str().unwrap().to_owned()).collect()
    }

    /// Code and message of a failure.
    #[track_caller]
    pub fn error(&self) -> (u64, String) {
        assert!(!self.succeeded, "succeeded: {}", self.text);
        let json = self.json();
        (json["code"].as_u64().unwrap(), json["msg"].as_str().unwrap().to_owned())
    }
}

/// Whether `program` is installed; says that the test is skipped otherwise, or fails if everything must run.
pub fn installed(test: &str, program: &str) -> bool {
    if Path::new(program).exists() {
        return true;
    }
    assert!(std::env::var("CNI_ALL_STRICT").as_deref() != Ok("1"), "{test}: {program} is not installed");
    println!("SKIP {test}: {program} is not installed");
    false
}
