//! The directory that is installed into: what is there, and how it is changed.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Action, Link, failed};
use crate::cni::{Error, Result};

/// The file that all plugins share.
const EXECUTABLE: &str = "cni-all";

/// Where this executable is, also when its file was replaced after it was started.
const SELF: &str = "/proc/self/exe";

/// What files under construction are called. Whoever holds the lock on the directory owns them all.
pub const TEMPORARY: &str = ".cni-all.tmp.";

/// Permissions of the executable.
const MODE: u32 = 0o755;

/// In every cni-all executable, of any version: how a copy or a link to another version is told from foreign files.
#[used]
pub static MARK: &[u8] = b"\ncni-all: this file is every CNI plugin, under whatever name it is called\n";

/// A directory under installation, locked against other installations.
pub struct Site {
    dir: PathBuf,
    lock: Flock<File>,
}

/// What there is under a plugin's name.
pub enum Found {
    /// Nothing.
    Nothing,
    /// This executable, another version of it, or a link to one.
    Ours,
    /// A link that leads nowhere; described.
    Broken(String),
    /// Somebody else's file; described.
    Foreign(String),
}

/// The file that the plugins' names are to refer to.
pub enum Executable<'a> {
    /// `cni-all` in the directory is up to date.
    Installed,
    /// Written, and not yet called `cni-all`.
    New(Temporary<'a>),
}

/// A file under a temporary name; removed again unless it is renamed.
pub struct Temporary<'a> {
    site: &'a Site,
    path: PathBuf,
}

impl Site {
    /// Opens and locks the directory, which is made when it is missing.
    ///
    /// # Errors
    /// What could not be done, with the path.
    pub fn open(dir: &str) -> Result<Site> {
        fs::create_dir_all(dir).map_err(|e| failed(format_args!("mkdir -p {dir}"), &e))?;
        let open = File::open(dir).map_err(|e| failed(format_args!("open {dir}"), &e))?;
        let lock = Flock::lock(open, FlockArg::LockExclusive)
            .map_err(|(_, e)| failed(format_args!("flock {dir}"), &e.into()))?;
        Ok(Site { dir: dir.into(), lock })
    }

    /// Whether `cni-all` in the directory is this executable, and if not, what was there.
    ///
    /// # Errors
    /// A directory is in the way.
    pub fn executable(&self) -> Result<(Action, String)> {
        let path = self.path(EXECUTABLE);
        let Some(meta) = self.look(&path)? else { return Ok((Action::Created, String::new())) };
        if meta.is_symlink() {
            return Ok((Action::Replaced, self.describe_link(&path)));
        }
        if !meta.is_file() {
            return Ok((Action::Replaced, describe(&meta).to_owned()));
        }
        if meta.permissions().mode() & 0o7777 == MODE && is_this_executable(&path)? {
            return Ok((Action::Unchanged, String::new()));
        }
        let was = if has_mark(&path)? { "another build of cni-all" } else { "damaged: another program" };
        Ok((Action::Replaced, was.to_owned()))
    }

    /// What there is under a plugin's name.
    ///
    /// # Errors
    /// A directory is in the way, or something cannot be read.
    pub fn find(&self, name: &str) -> Result<Found> {
        let path = self.path(name);
        let Some(meta) = self.look(&path)? else { return Ok(Found::Nothing) };
        let target = match fs::metadata(&path) {
            Ok(target) => target,
            Err(e) if meta.is_symlink() && leads_nowhere(&e) => {
                // The link that is wanted, in a directory that lost its executable, is in order.
                return Ok(match fs::read_link(&path) {
                    Ok(to) if to == Path::new(EXECUTABLE) => Found::Ours,
                    _ => Found::Broken(self.describe_link(&path)),
                });
            }
            Err(e) => return Err(failed(format_args!("stat {}", path.display()), &e)),
        };
        // A name of the shared file is ours whatever was written into it.
        let shared = fs::metadata(self.path(EXECUTABLE)).is_ok_and(|exe| same_file(&exe, &target));
        if shared || (target.is_file() && has_mark(&path)?) {
            return Ok(Found::Ours);
        }
        Ok(Found::Foreign(match meta.is_symlink() {
            true => self.describe_link(&path),
            false => describe(&meta).to_owned(),
        }))
    }

    /// Whether a name that is ours is linked in the wanted way to what will be the executable.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn is_linked(&self, name: &str, link: Link, executable: &Executable<'_>) -> Result<bool> {
        let path = self.path(name);
        let stat = |path: &Path| {
            fs::symlink_metadata(path).map_err(|e| failed(format_args!("stat {}", path.display()), &e))
        };
        let meta = stat(&path)?;
        match link {
            Link::Symlink => Ok(fs::read_link(&path).is_ok_and(|to| to == Path::new(EXECUTABLE))),
            Link::Hard => match executable {
                Executable::Installed => Ok(same_file(&meta, &stat(&self.path(EXECUTABLE))?)),
                Executable::New(_) => Ok(false),
            },
            Link::Copy => Ok(meta.is_file()
                && meta.permissions().mode() & 0o7777 == MODE
                && !same_file(&meta, &stat(&self.path(EXECUTABLE))?)
                && is_this_executable(&path)?),
        }
    }

    /// This executable under a temporary name, complete and on disk, to be called `name`.
    ///
    /// # Errors
    /// What could not be done, with the path.
    pub fn copy_executable(&self, name: &str) -> Result<Temporary<'_>> {
        let temporary = self.temporary(name);
        let at = |e: std::io::Error| failed(format_args!("write {}", temporary.path.display()), &e);
        let mut from = File::open(SELF).map_err(|e| failed(format_args!("open {SELF}"), &e))?;
        let mut to =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary.path).map_err(at)?;
        std::io::copy(&mut from, &mut to).map_err(at)?;
        to.set_permissions(Permissions::from_mode(MODE)).map_err(at)?;
        to.sync_all().map_err(at)?;
        Ok(temporary)
    }

    /// Equivalent to: `ln -s cni-all DIR/NAME`, replacing what is there.
    ///
    /// # Errors
    /// What could not be done, with the path.
    pub fn symlink(&self, name: &str) -> Result<()> {
        let temporary = self.temporary(name);
        symlink(EXECUTABLE, &temporary.path)
            .map_err(|e| failed(format_args!("ln -s {EXECUTABLE} {}", temporary.path.display()), &e))?;
        temporary.rename_to(name)
    }

    /// Equivalent to: `ln DIR/cni-all DIR/NAME`, replacing what is there.
    ///
    /// # Errors
    /// What could not be done, with the path.
    pub fn hard_link(&self, name: &str, executable: &Executable<'_>) -> Result<()> {
        let temporary = self.temporary(name);
        let from = match executable {
            Executable::Installed => self.path(EXECUTABLE),
            Executable::New(new) => new.path.clone(),
        };
        fs::hard_link(&from, &temporary.path)
            .map_err(|e| failed(format_args!("ln {} {}", from.display(), temporary.path.display()), &e))?;
        temporary.rename_to(name)
    }

    /// Removes what interrupted installations left.
    ///
    /// # Errors
    /// What could not be removed.
    pub fn remove_leftovers(&self) -> Result<()> {
        let dir = self.dir.display();
        for entry in fs::read_dir(&self.dir).map_err(|e| failed(format_args!("read {dir}"), &e))? {
            let entry = entry.map_err(|e| failed(format_args!("read {dir}"), &e))?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                let path = entry.path();
                fs::remove_file(&path).map_err(|e| failed(format_args!("rm {}", path.display()), &e))?;
            }
        }
        Ok(())
    }

    /// Waits until the directory's entries are on disk.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync(&self) -> Result<()> {
        self.lock.sync_all().map_err(|e| failed(format_args!("sync {}", self.dir.display()), &e))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn temporary(&self, name: &str) -> Temporary<'_> {
        Temporary { site: self, path: self.path(&format!("{TEMPORARY}{name}")) }
    }

    /// lstat(2); `None` when there is nothing.
    fn look(&self, path: &Path) -> Result<Option<Metadata>> {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_dir() => Err(Error::internal(format!(
                "{} is a directory: it is in the way, move it away",
                path.display()
            ))),
            Ok(meta) => Ok(Some(meta)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed(format_args!("stat {}", path.display()), &e)),
        }
    }

    fn describe_link(&self, path: &Path) -> String {
        let to = fs::read_link(path).unwrap_or_default();
        let dangling = if fs::metadata(path).is_err() { "dangling " } else { "" };
        format!("a {dangling}link to {}", to.display())
    }
}

impl Temporary<'_> {
    /// Takes the place of whatever is called `name`, at once.
    ///
    /// # Errors
    /// What could not be done, with the path.
    pub fn rename_to(self, name: &str) -> Result<()> {
        let to = self.site.path(name);
        fs::rename(&self.path, &to)
            .map_err(|e| failed(format_args!("mv {} {}", self.path.display(), to.display()), &e))
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn same_file(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// A link whose target is missing, or that leads back to itself.
fn leads_nowhere(err: &std::io::Error) -> bool {
    let errno = err.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP))
}

fn describe(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    match () {
        () if kind.is_file() => "a file of another program",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

/// Whether the file has exactly the content of the running executable.
fn is_this_executable(path: &Path) -> Result<bool> {
    let at = |e: std::io::Error| failed(format_args!("compare {SELF} {}", path.display()), &e);
    let (own, other) = (File::open(SELF).map_err(at)?, File::open(path).map_err(at)?);
    let (meta, other_meta) = (own.metadata().map_err(at)?, other.metadata().map_err(at)?);
    if same_file(&meta, &other_meta) {
        return Ok(true);
    }
    if meta.len() != other_meta.len() {
        return Ok(false);
    }
    let (mut own, mut other) = (Chunks::new(own), Chunks::new(other));
    loop {
        match (own.next().map_err(at)?, other.next().map_err(at)?) {
            (a, b) if a != b => return Ok(false),
            ([], _) => return Ok(true),
            _ => {}
        }
    }
}

/// Whether the file is a cni-all executable of any version.
fn has_mark(path: &Path) -> Result<bool> {
    let at = |e: std::io::Error| failed(format_args!("read {}", path.display()), &e);
    let mut chunks = Chunks::new(File::open(path).map_err(at)?);
    // The end of one chunk goes in front of the next, for a mark that lies across.
    let mut window: Vec<u8> = Vec::new();
    loop {
        let chunk = chunks.next().map_err(at)?;
        if chunk.is_empty() {
            return Ok(false);
        }
        window.extend_from_slice(chunk);
        if window.split(|byte| *byte == b'\n').any(|line| line == MARK.trim_ascii()) {
            return Ok(true);
        }
        window.drain(..window.len().saturating_sub(MARK.len() - 1));
    }
}

/// A file in pieces of equal size; the last one is shorter, then they are empty.
struct Chunks {
    file: File,
    buffer: Vec<u8>,
}

impl Chunks {
    fn new(file: File) -> Chunks {
        Chunks { file, buffer: Vec::new() }
    }

    fn next(&mut self) -> std::io::Result<&[u8]> {
        self.buffer.clear();
        Read::by_ref(&mut self.file).take(64 * 1024).read_to_end(&mut self.buffer)?;
        Ok(&self.buffer)
    }
}
