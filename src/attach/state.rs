//! Files that keep what DEL needs to know of an ADD. Written beside and renamed, so that a reader never sees half a
//! file; for root's eyes only, as they say who runs here.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::cni::{Error, Result};

/// What a file holds; `None` when there is none.
///
/// # Errors
/// It is there but cannot be read.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(Error::io(format_args!("read {}", path.display()), &e)),
    }
}

/// Makes the file, or replaces its content, and makes its directory when it is missing.
///
/// # Errors
/// The file system refuses; what was there is still there.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(format_args!("write {}", path.display()), &e);
    if let Some(dir) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    }
    let aside = aside(path);
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside);
    let written = file.and_then(|mut file| file.write_all(content)).and_then(|()| fs::rename(&aside, path));
    written.map_err(|e| {
        let _ = fs::remove_file(&aside);
        failed(e)
    })
}

/// Removes the file, and what an interrupted [`write`] left of it.
///
/// # Errors
/// It is there but cannot be removed.
pub fn remove(path: &Path) -> Result<()> {
    for path in [&aside(path), path] {
        match fs::remove_file(path) {
            Err(e) if !is_gone(&e) => return Err(Error::io(format_args!("rm {}", path.display()), &e)),
            _ => {}
        }
    }
    Ok(())
}

/// The files of a directory, in order of name; none when it is missing. Hidden files are left out.
///
/// # Errors
/// It is there but cannot be read.
pub fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| Error::io(format_args!("ls {}", dir.display()), &e);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if is_gone(&e) => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().as_encoded_bytes().starts_with(b".") {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Where the content is until the file is complete: hidden, which no container id is.
fn aside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

fn is_gone(e: &std::io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn dir(test: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("cni-all-state-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn a_file_is_made_replaced_listed_and_removed() {
        let dir = dir("a_file_is_made");
        let path = dir.join("deep").join("c1_eth0.json");
        assert_eq!((read(&path), list(&dir)), (Ok(None), Ok(vec![])));
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(read(&path), Ok(Some(b"two".to_vec())));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.join("deep")).unwrap().permissions().mode() & 0o777, 0o700);
        // What a killed process left.
        fs::write(aside(&path), "half").unwrap();
        assert_eq!(list(&dir.join("deep")), Ok(vec![path.clone()]));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(dir.join("deep")).unwrap().count(), 0);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_failure_names_the_file() {
        let dir = dir("a_failure_names_the_file");
        fs::write(&dir, "").unwrap();
        let err = write(&dir.join("x"), b"").unwrap_err();
        assert!(err.msg().starts_with(&format!("write {}/x: ", dir.display())), "{err}");
        fs::remove_file(&dir).unwrap();
    }
}
