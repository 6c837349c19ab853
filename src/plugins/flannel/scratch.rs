//! The delegate's configuration of each attachment, kept from ADD to DEL, when the node's subnet may be another.
//!
//! ```text
//! DATADIR/CONTAINER:IFNAME    ours; a colon can be in neither name
//! DATADIR/CONTAINER           the Go plugin's, which knows one attachment for each container
//! ```
//!
//! The first attachment of a container is linked under the Go plugin's name, too: either finds what the other attached.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::attach::{Attachment, state};
use crate::cni::Result;

/// The files of one attachment.
pub struct Scratch {
    own: PathBuf,
    go: PathBuf,
}

impl Scratch {
    /// Those in a directory.
    pub fn of(dir: &Path, of: &Attachment<'_>) -> Scratch {
        let own = dir.join(format!("{}:{}", of.container_id, of.ifname));
        Scratch { own, go: dir.join(of.container_id) }
    }

    /// What is kept; `None` when nothing is.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self) -> Result<Option<Vec<u8>>> {
        match state::read(&self.own)? {
            Some(content) => Ok(Some(content)),
            // With a second name it is another attachment of ours.
            None if links(&self.go) == 1 => state::read(&self.go),
            None => Ok(None),
        }
    }

    /// Keeps this. Returns what was kept before under our name.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, content: &[u8]) -> Result<Option<Vec<u8>>> {
        let former = state::read(&self.own)?;
        let first = links(&self.go) == 0 || self.is_linked();
        state::write(&self.own, content)?;
        if first {
            state::remove(&self.go)?;
            // Only a Go plugin would miss it, where links cannot be made.
            let _ = fs::hard_link(&self.own, &self.go);
        }
        Ok(former)
    }

    /// Forgets the attachment.
    ///
    /// # Errors
    /// A file is there but cannot be removed.
    pub fn remove(&self) -> Result<()> {
        if self.is_linked() || links(&self.own) == 0 && links(&self.go) == 1 {
            state::remove(&self.go)?;
        }
        state::remove(&self.own)
    }

    /// Both names are of one file.
    fn is_linked(&self) -> bool {
        let identity = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        identity(&self.own).is_some_and(|own| Some(own) == identity(&self.go))
    }
}

/// How many names a file has; 0 when it is not there.
fn links(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.nlink())
}

/// A file of a directory, and whose it is.
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// The container's id.
    pub container_id: String,
    /// The interface's name; `None` in a file of the Go plugin, which does not say.
    pub ifname: Option<String>,
}

/// Every attachment that is kept in a directory.
///
/// # Errors
/// It is there but cannot be read.
pub fn list(dir: &Path) -> Result<Vec<Kept>> {
    let mut found = Vec::new();
    for path in state::list(dir)? {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let (container_id, ifname) = match name.split_once(':') {
            Some((container_id, ifname)) => (container_id.to_owned(), Some(ifname.to_owned())),
            // The second name of a file of ours.
            None if links(&path) > 1 => continue,
            None => (name.to_owned(), None),
        };
        found.push(Kept { path, container_id, ifname });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(test: &str) -> Dir {
            let dir = std::env::temp_dir().join(format!("cni-all-flannel-{test}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Dir(dir)
        }

        fn of(&self, ifname: &str) -> Scratch {
            Scratch::of(&self.0, &Attachment { network: "net", container_id: "c1", ifname })
        }

        fn names(&self) -> Vec<String> {
            let files = state::list(&self.0).unwrap();
            files.iter().map(|f| f.file_name().unwrap().to_str().unwrap().to_owned()).collect()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn two_interfaces_of_a_container_are_kept_apart_and_the_first_is_the_go_plugins_too() {
        let dir = Dir::new("two");
        let (first, second) = (dir.of("eth0"), dir.of("eth1"));
        assert_eq!(first.write(b"one").unwrap(), None);
        assert_eq!(second.write(b"two").unwrap(), None);
        assert_eq!(dir.names(), ["c1", "c1:eth0", "c1:eth1"]);
        assert_eq!(fs::read(dir.0.join("c1")).unwrap(), b"one");
        assert_eq!(first.write(b"three").unwrap(), Some(b"one".to_vec()));
        assert_eq!(fs::read(dir.0.join("c1")).unwrap(), b"three");
        assert_eq!(list(&dir.0).unwrap().len(), 2);
        second.remove().unwrap();
        assert_eq!((second.read(), dir.names().len()), (Ok(None), 2), "the other's is not taken for it");
        assert_eq!(first.read(), Ok(Some(b"three".to_vec())));
        first.remove().unwrap();
        assert!(dir.names().is_empty());
    }

    #[test]
    fn a_file_of_the_go_plugin_is_found_and_removed() {
        let dir = Dir::new("go");
        fs::write(dir.0.join("c1"), "theirs").unwrap();
        assert_eq!(list(&dir.0).unwrap()[0].ifname, None);
        let scratch = dir.of("eth0");
        assert_eq!(scratch.read(), Ok(Some(b"theirs".to_vec())));
        scratch.remove().unwrap();
        assert!(dir.names().is_empty());
        // And one that it removed is not missed.
        scratch.write(b"ours").unwrap();
        fs::remove_file(dir.0.join("c1")).unwrap();
        assert_eq!(scratch.read(), Ok(Some(b"ours".to_vec())));
        scratch.remove().unwrap();
        assert!(dir.names().is_empty());
    }
}
