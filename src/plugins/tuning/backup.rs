//! What an interface was like before it was tuned: a file per container and interface, in the Go plugin's format.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::conf::Conf;
use crate::attach::{Attachment, state};
use crate::cni::json::Value;
use crate::cni::{Error, Result};
use crate::kernel::rtnl::{Change, Dev, Link, Mac, SetLink};

/// Original values of what was changed. The Go plugin ignores `network`, which GC needs, and `tunedMac`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Backup {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "is_zero")]
    mtu: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    network: String,
    /// The MAC address since then, by which DEL knows the interface.
    #[serde(skip_serializing_if = "String::is_empty")]
    tuned_mac: String,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// The file of an attachment.
pub fn path(dir: &Path, of: &Attachment<'_>) -> PathBuf {
    dir.join(format!("{}_{}.json", of.container_id, of.ifname))
}

impl Backup {
    /// The values that `link` has of what is about to be changed.
    pub fn of(link: &Link, conf: &Conf, network: &str) -> Backup {
        Backup {
            mac: conf.mac.and(link.mac).map(|mac| mac.to_string()).unwrap_or_default(),
            promisc: conf.promisc.then_some(link.is_promisc()),
            mtu: conf.mtu.map_or(0, |_| link.mtu),
            allmulti: conf.allmulti.map(|_| link.is_allmulti()),
            tx_queue: conf.tx_queue.map(|_| link.tx_queue),
            network: network.to_owned(),
            tuned_mac: conf.mac.or(link.mac).map(|mac| mac.to_string()).unwrap_or_default(),
        }
    }

    /// These values, and those of `more` for what these do not know. What was noted first stays: a second tuning of the
    /// same interface sees values that were tuned already.
    fn with(self, more: Backup) -> Backup {
        Backup {
            mac: if self.mac.is_empty() { more.mac } else { self.mac },
            promisc: self.promisc.or(more.promisc),
            mtu: if self.mtu == 0 { more.mtu } else { self.mtu },
            allmulti: self.allmulti.or(more.allmulti),
            tx_queue: self.tx_queue.or(more.tx_queue),
            network: if self.network.is_empty() { more.network } else { self.network },
            tuned_mac: more.tuned_mac,
        }
    }

    /// What the file says; `None` when there is none, or what is in it is no backup.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(path: &Path) -> Result<Option<Backup>> {
        Ok(state::read(path)?.and_then(|content| Value::parse(&content).and_then(|v| v.read()).ok()))
    }

    /// Adds these values to the file. Returns what it said before.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn save(self, path: &Path) -> Result<Option<Backup>> {
        let former = Backup::read(path)?;
        former.clone().unwrap_or_default().with(self).write(path)?;
        Ok(former)
    }

    /// Makes the file say this.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
        self.serialize(&mut serializer)
            .map_err(|e| Error::internal(format!("encode {}: {e}", path.display())))?;
        state::write(path, &text)
    }

    /// What gives the interface these values back, each change for itself, so that one that fails keeps no other from
    /// being made.
    pub fn changes(&self, dev: &Dev) -> Vec<Change> {
        let set = || SetLink::of(dev.clone());
        let mac: Option<Mac> = self.mac.parse().ok();
        let changes = [
            (self.mtu != 0).then(|| SetLink { mtu: Some(self.mtu), ..set() }),
            mac.map(|mac| SetLink { mac: Some(mac), ..set() }),
            self.promisc.map(|on| SetLink { promisc: Some(on), ..set() }),
            self.allmulti.map(|on| SetLink { allmulti: Some(on), ..set() }),
            self.tx_queue.map(|length| SetLink { tx_queue: Some(length), ..set() }),
        ];
        changes.into_iter().flatten().map(Change::SetLink).collect()
    }

    /// What it says about attributes that `from` sets and `to` does not. `None` when it does not know one of them.
    pub fn of_dropped(&self, from: &Conf, to: &Conf) -> Option<Backup> {
        let dropped = Backup {
            promisc: self.promisc.filter(|_| from.promisc && !to.promisc),
            mtu: if from.mtu.is_some() && to.mtu.is_none() { self.mtu } else { 0 },
            allmulti: self.allmulti.filter(|_| from.allmulti.is_some() && to.allmulti.is_none()),
            tx_queue: self.tx_queue.filter(|_| from.tx_queue.is_some() && to.tx_queue.is_none()),
            ..Backup::default()
        };
        let known = (!from.promisc || to.promisc || dropped.promisc.is_some())
            && (from.mtu.is_none() || to.mtu.is_some() || dropped.mtu != 0)
            && (from.allmulti.is_none() || to.allmulti.is_some() || dropped.allmulti.is_some())
            && (from.tx_queue.is_none() || to.tx_queue.is_some() || dropped.tx_queue.is_some());
        known.then_some(dropped)
    }

    /// The MTU that it knows.
    pub fn mtu(&self) -> Option<u32> {
        Some(self.mtu).filter(|mtu| *mtu != 0)
    }

    /// Makes it know another MTU.
    pub fn set_mtu(&mut self, mtu: u32) {
        self.mtu = mtu;
    }

    /// Whether the link may be the one that was tuned: it has the MAC address from then or from before.
    pub fn may_be_of(&self, link: &Link) -> bool {
        let is_its = |text: &str| text.parse().ok().is_some_and(|mac: Mac| link.mac == Some(mac));
        self.tuned_mac.is_empty() || is_its(&self.tuned_mac) || is_its(&self.mac)
    }

    /// Whether it was made for this network. Those of the Go plugin do not say.
    pub fn is_on(&self, network: &str) -> bool {
        self.network == network
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::libc;

    fn link() -> Link {
        Link {
            index: 4,
            name: "eth0".into(),
            mac: "0a:58:0a:16:00:02".parse().ok(),
            mtu: 1500,
            flags: libc::IFF_ALLMULTI as u32,
            tx_queue: 1000,
            ..Link::default()
        }
    }

    #[test]
    fn a_backup_is_what_the_go_plugin_writes_the_network_and_the_new_mac() {
        let conf = Conf {
            mac: "0a:58:0a:16:00:03".parse().ok(),
            mtu: Some(1400),
            promisc: true,
            allmulti: Some(false),
            tx_queue: Some(0),
            ..Conf::default()
        };
        let dir = std::env::temp_dir().join(format!("cni-all-tuning-backup-{}", std::process::id()));
        let path = path(&dir, &Attachment { network: "net", container_id: "c1", ifname: "eth0" });
        assert_eq!(Backup::of(&link(), &conf, "net").save(&path), Ok(None));
        let text = std::fs::read_to_string(dir.join("c1_eth0.json")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(
            text,
            "{\n \"mac\": \"0a:58:0a:16:00:02\",\n \"promisc\": false,\n \"mtu\": 1500,\n \"allmulti\": true,\n \
             \"txQLen\": 1000,\n \"network\": \"net\",\n \"tunedMac\": \"0a:58:0a:16:00:03\"\n}"
        );
    }

    #[test]
    fn what_was_noted_first_stays() {
        let dir = std::env::temp_dir().join(format!("cni-all-tuning-first-{}", std::process::id()));
        let path = dir.join("x.json");
        let first = Conf { mtu: Some(1400), ..Conf::default() };
        Backup::of(&link(), &first, "net").save(&path).unwrap();
        let tuned = Link { mtu: 1400, ..link() };
        let second = Conf { mtu: Some(1300), tx_queue: Some(5), ..Conf::default() };
        let former = Backup::of(&tuned, &second, "net").save(&path).unwrap();
        assert_eq!(former.unwrap().tx_queue, None);
        let kept = Backup::read(&path).unwrap().unwrap();
        assert_eq!((kept.mtu, kept.tx_queue), (1500, Some(1000)));
        assert!(kept.may_be_of(&link()));
        let another = Link { mac: "0a:58:0a:16:00:09".parse().ok(), ..link() };
        assert!(!kept.may_be_of(&another) && Backup::default().may_be_of(&another));
        std::fs::write(&path, "{\"mtu\":").unwrap();
        assert_eq!(Backup::read(&path), Ok(None));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn values_are_given_back_one_by_one_the_mtu_first() {
        let backup: Backup = serde_json::from_str(
            r#"{"mac":"0a:58:0a:16:00:02","promisc":false,"mtu":1500,"allmulti":false,"txQLen":1000}"#,
        )
        .unwrap();
        let printed: Vec<String> = backup.changes(&link().dev()).iter().map(ToString::to_string).collect();
        assert_eq!(
            printed,
            [
                "ip link set dev eth0 mtu 1500",
                "ip link set dev eth0 address 0a:58:0a:16:00:02",
                "ip link set dev eth0 promisc off",
                "ip link set dev eth0 allmulticast off",
                "ip link set dev eth0 txqueuelen 1000",
            ]
        );
        assert!(Backup::default().changes(&link().dev()).is_empty());
    }
}
