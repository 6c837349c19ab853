//! flannel: makes a bridge's configuration (or another plugin's) of the subnet that the flannel daemon got for this node,
//! and has that plugin do the work (reference: ipam-and-meta.md section 11).

mod delegate;
mod scratch;
mod subnet;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use self::scratch::{Kept, Scratch};
use self::subnet::SubnetEnv;
use super::keys::{Key, Shape, key};
use super::{Kind, Plugin};
use crate::attach::undo::or_take_back;
use crate::attach::verify::difference;
use crate::attach::{Attachment, state};
use crate::cni::config::Config;
use crate::cni::json::Value;
use crate::cni::version::negotiate;
use crate::cni::{CniResult, Code, Command, Error, Request, Result, ResultExt, ValidAttachment, Version};
use crate::invoke;
use crate::kernel::{Kernel, dry_run};

/// What the flannel daemon writes.
const SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Where the delegate's configurations are kept, as in the Go plugin.
const DATA_DIR: &str = "/var/lib/cni/flannel";

const KEYS: &[Key] = &[
    key("subnetFile", Shape::Path, "what the flannel daemon tells; default: /run/flannel/subnet.env"),
    key("dataDir", Shape::Path, "where delegates' configurations are kept; default: /var/lib/cni/flannel"),
    key(
        "delegate",
        Shape::Map(&Shape::Any),
        "configuration of the plugin that does the work, without name and ipam; default: a bridge",
    ),
    key(
        "ipam",
        Shape::Map(&Shape::Any),
        "keys for the delegate's ipam; default: host-local, with the node's subnets",
    ),
];

/// The JSON, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    subnet_file: String,
    data_dir: String,
}

/// What the delegate's configuration is made of, which DEL does not need; [`delegate`] reads it as it stands.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PartsWire {
    #[serde(rename = "delegate")]
    _delegate: BTreeMap<String, IgnoredAny>,
    #[serde(rename = "ipam")]
    _ipam: BTreeMap<String, IgnoredAny>,
}

/// The configuration.
struct Conf {
    subnet_file: String,
    data_dir: PathBuf,
    /// All of it.
    own: Value,
}

impl Conf {
    fn new(req: &Request) -> Result<Conf> {
        let wire = match req.config.read::<Wire>() {
            Err(_) if matches!(req.command, Command::Del | Command::Gc) => Wire::default(),
            wire => wire?,
        };
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        Ok(Conf {
            subnet_file: or(wire.subnet_file, SUBNET_FILE),
            data_dir: dry_run::files(or(wire.data_dir, DATA_DIR).into()),
            own: Value::parse(&req.stdin)?,
        })
    }

    fn check(&self, req: &Request) -> Result<()> {
        req.config.read::<PartsWire>()?;
        delegate::check(&self.own)
    }

    /// The delegate's configuration, with what the daemon tells now.
    fn delegate(&self, req: &Request) -> Result<Value> {
        self.check(req)?;
        delegate::config(&self.own, &req.config.name, &SubnetEnv::read(&self.subnet_file)?)
    }

    fn scratch(&self, req: &Request) -> Scratch {
        Scratch::of(&self.data_dir, &Attachment::of(req))
    }
}

/// The plugin.
pub struct Flannel;

impl Plugin for Flannel {
    fn name(&self) -> &'static str {
        "flannel"
    }

    fn kind(&self) -> Kind {
        Kind::Meta
    }

    fn about(&self) -> &'static str {
        "a bridge, or another plugin, with the subnet that flannel got for this node"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn capabilities(&self) -> &'static [Key] {
        &[]
    }

    fn validate(&self, req: &Request) -> Result<()> {
        Conf::new(req)?.check(req)
    }

    fn add(&self, req: &Request, kernel: &mut Kernel) -> Result<CniResult> {
        let conf = Conf::new(req)?;
        let config = conf.delegate(req)?;
        let scratch = conf.scratch(req);
        let text = config.to_text();
        or_take_back(kernel, |kernel, undo| {
            // Kept before anything is made, so that DEL finds whatever a crash leaves.
            let former = scratch.write(text.as_bytes())?;
            let is_repeated = former.is_some();
            undo.push(move |_| match former {
                Some(former) => scratch.write(&former).map(drop),
                None => scratch.remove(),
            });
            let outcome = run(Command::Add, req, &config, kernel);
            if outcome.is_err() && !is_repeated {
                // CNI spec, section 4: so that nothing stays of what the delegate did. Why ADD failed matters more.
                let _ = run(Command::Del, req, &config, kernel);
            }
            outcome?.ok_or_else(|| Error::internal("the delegate gave no result"))
        })
    }

    /// The configuration is kept until the delegate's DEL has succeeded. Without one there is nothing to detach.
    fn del(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let scratch = conf.scratch(req);
        let Some(content) = scratch.read()? else { return Ok(()) };
        // Neither is there when a crash cut the file off and the daemon has gone, too: then nobody knows more.
        if let Some(config) = kept_config(&content).or_else(|| conf.delegate(req).ok()) {
            run(Command::Del, req, &config, kernel)?;
        }
        scratch.remove()
    }

    fn check(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let kept = conf.scratch(req).read()?;
        let kept = kept.ok_or_else(|| {
            difference(format!("no configuration of this attachment is kept in {}", conf.data_dir.display()))
        })?;
        let config = Value::parse(&kept).context(conf.data_dir.display())?;
        let config = delegate::with(config, &conf.own, &["prevResult"]);
        run(Command::Check, req, &config, kernel).map(drop)
    }

    fn gc(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let conf = Conf::new(req)?;
        let kept: Vec<(Kept, Value)> = scratch::list(&conf.data_dir)?
            .into_iter()
            .filter_map(|kept| {
                let config = kept_config(&state::read(&kept.path).ok()??)?;
                (Config::name_of(&config, false).ok()? == req.config.name).then_some((kept, config))
            })
            .collect();
        let mut errors = Vec::new();
        if let Some(valid) = req.config.valid_attachments()? {
            for (kept, config) in kept.iter().filter(|(kept, _)| !is_valid(kept, &valid)) {
                errors.extend(collect(req, &conf, kept, config, kernel).err());
            }
        }
        // Without the daemon an attachment tells which plugin it was, and what it needs.
        let config = conf.delegate(req).ok().or_else(|| kept.into_iter().next().map(|(_, config)| config));
        if let Some(config) = config {
            let keys = ["cni.dev/valid-attachments", "cni.dev/attachments", "cniVersion"];
            let config = delegate::with(config, &conf.own, &keys);
            errors.extend(run(Command::Gc, req, &config, kernel).err());
        }
        Error::all(errors).map_or(Ok(()), Err)
    }

    fn status(&self, req: &Request, kernel: &mut Kernel) -> Result<()> {
        let config = Conf::new(req)?.delegate(req).map_err(|e| e.with_code(Code::NOT_AVAILABLE))?;
        run(Command::Status, req, &config, kernel).map(drop)
    }
}

/// The configuration that a file has, if it has one that a delegate can be called with.
fn kept_config(content: &[u8]) -> Option<Value> {
    let config = Value::parse(content).ok()?;
    let is_one = delegate::plugin_type(&config).is_some()
        && Config::name_of(&config, false).is_ok()
        && Config::version_of(&config).is_ok();
    is_one.then_some(config)
}

/// Has the delegate that `config` names serve `command`.
fn run(command: Command, req: &Request, config: &Value, kernel: &mut Kernel) -> Result<Option<CniResult>> {
    let plugin = delegate::plugin_type(config).unwrap_or_default();
    let version = negotiate(command, &Config::version_of(config)?, Version::ALL)?;
    let request = Request {
        command,
        config: Config::new(config.clone(), Config::name_of(config, false)?, version),
        stdin: config.to_text().into_bytes(),
        ..req.clone()
    };
    invoke::run_as(command, &plugin, &request, kernel).context(format_args!("delegate {plugin}"))
}

fn is_valid(kept: &Kept, valid: &[ValidAttachment]) -> bool {
    valid.iter().any(|v| {
        v.container_id == kept.container_id && kept.ifname.as_ref().is_none_or(|ifname| *ifname == v.ifname)
    })
}

/// Detaches what is kept but not valid. Of the Go plugin's attachments it is not known which interface they were: the
/// delegate's GC finds what is left of them.
fn collect(req: &Request, conf: &Conf, kept: &Kept, config: &Value, kernel: &mut Kernel) -> Result<()> {
    let Some(ifname) = &kept.ifname else { return state::remove(&kept.path) };
    let del = Request {
        command: Command::Del,
        container_id: kept.container_id.clone(),
        ifname: ifname.clone(),
        netns: String::new(),
        ..req.clone()
    };
    run(Command::Del, &del, config, kernel)?;
    conf.scratch(&del).remove()
}
