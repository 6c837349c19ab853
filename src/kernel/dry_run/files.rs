//! Files of plugins while changes are recorded: written for real, into copies. What is different in those afterwards are
//! the changes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cni::{Error, Result};

/// Copies of directories, removed with the value.
#[derive(Default)]
pub(super) struct Copies {
    root: Option<PathBuf>,
    copies: Vec<Copy>,
    failure: Option<Error>,
}

/// A directory and the copy that is written to in its place.
struct Copy {
    original: PathBuf,
    copy: PathBuf,
    before: Files,
}

/// Files below a directory, by their relative paths, and what is in them.
type Files = BTreeMap<PathBuf, Vec<u8>>;

impl Copies {
    /// The copy of a directory, which is made when it is first asked for. One that cannot be made fails the recording in
    /// the end; nothing is written to the original.
    pub(super) fn of(&mut self, dir: &Path) -> PathBuf {
        if let Some(known) = self.copies.iter().find(|copy| copy.original == dir) {
            return known.copy.clone();
        }
        let place = self.root().join(self.copies.len().to_string());
        let copy = dir.file_name().map_or_else(|| place.clone(), |name| place.join(name));
        let made = read(dir).and_then(|before| {
            let failed = |e: std::io::Error| Error::io(format_args!("copy {}", dir.display()), &e);
            fs::create_dir_all(&place).map_err(failed)?;
            for (path, content) in &before {
                let (original, path) = (dir.join(path), copy.join(path));
                fs::create_dir_all(path.parent().unwrap_or(&copy)).map_err(failed)?;
                fs::write(&path, content).map_err(failed)?;
                // Which one is from later counts; where times cannot be set, they are as good as equal.
                let time = fs::metadata(original).and_then(|meta| meta.modified());
                let _ =
                    time.and_then(|time| fs::OpenOptions::new().write(true).open(path)?.set_modified(time));
            }
            Ok(before)
        });
        let before = made.unwrap_or_else(|e| {
            self.failure.get_or_insert(e);
            Files::new()
        });
        self.copies.push(Copy { original: dir.to_owned(), copy: copy.clone(), before });
        copy
    }

    fn root(&mut self) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let made = self.root.get_or_insert_with(|| {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("cni-all-dry-run.{}.{count}", std::process::id()));
            // Of a process that was killed and had the same number.
            let _ = fs::remove_dir_all(&path);
            path
        });
        made.clone()
    }

    /// For each directory what would be different, as commands.
    ///
    /// # Errors
    /// A copy cannot be made or read.
    pub(super) fn lines(&mut self) -> Result<Vec<(PathBuf, Vec<String>)>> {
        match self.failure.take() {
            Some(e) => Err(e),
            None => self.copies.iter().map(|copy| Ok((copy.original.clone(), copy.lines()?))).collect(),
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        if let Some(root) = &self.root {
            let _ = fs::remove_dir_all(root);
        }
    }
}

impl Copy {
    /// What is different now, as commands on the original.
    fn lines(&self) -> Result<Vec<String>> {
        let after = read(&self.copy)?;
        let mut lines = Vec::new();
        if self.before.is_empty() && !after.is_empty() && !self.original.exists() {
            lines.push(format!("mkdir -p {}", self.original.display()));
        }
        for (path, content) in &after {
            if self.before.get(path) != Some(content) {
                let text = escaped(&String::from_utf8_lossy(content));
                lines.push(format!("printf '{text}' >{}", self.original.join(path).display()));
            }
        }
        let gone = self.before.keys().filter(|path| !after.contains_key(*path));
        lines.extend(gone.map(|path| format!("rm {}", self.original.join(path).display())));
        Ok(lines)
    }
}

/// The regular files below a directory. Hidden folders hold indexes that can be made again, and are left out.
fn read(dir: &Path) -> Result<Files> {
    let failed = |path: &Path, e: &std::io::Error| Error::io(format_args!("read {}", path.display()), e);
    let mut files = Files::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let path = dir.join(&folder);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(failed(&path, &e)),
        };
        for entry in entries {
            let entry = entry.map_err(|e| failed(&path, &e))?;
            let kind = entry.file_type().map_err(|e| failed(&path, &e))?;
            let relative = folder.join(entry.file_name());
            if kind.is_dir() && !entry.file_name().to_string_lossy().starts_with('.') {
                folders.push(relative);
            } else if kind.is_file() {
                let content = fs::read(entry.path()).map_err(|e| failed(&entry.path(), &e))?;
                files.insert(relative, content);
            }
        }
    }
    Ok(files)
}

/// As printf(1) takes it, in single quotes.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\'' => out.push_str("'\\''"),
            '%' => out.push_str("%%"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_into_copies_and_the_lines_are_about_the_originals() {
        let data = std::env::temp_dir().join(format!("cni-all-dry-files.{}", std::process::id()));
        let net = data.join("net");
        for (file, text) in [("10.1.0.2", "c1\r\neth0"), (".cni-all/x", "index")] {
            fs::create_dir_all(net.join(file).parent().unwrap()).unwrap();
            fs::write(net.join(file), text).unwrap();
        }
        let mut copies = Copies::default();
        let copy = copies.of(&net);
        assert_eq!(copies.of(&net), copy);
        assert_eq!(fs::read(copy.join("10.1.0.2")).unwrap(), b"c1\r\neth0");
        fs::remove_file(copy.join("10.1.0.2")).unwrap();
        fs::write(copy.join("10.1.0.3"), "it's 5%\r\n").unwrap();
        let fresh = copies.of(&data.join("fresh"));
        fs::create_dir_all(&fresh).unwrap();
        fs::write(fresh.join("a"), "b").unwrap();
        let lines: Vec<String> = copies.lines().unwrap().into_iter().flat_map(|(_, lines)| lines).collect();
        let (net, new) = (net.display(), data.join("fresh"));
        let new = new.display();
        assert_eq!(
            lines,
            [
                format!(r"printf 'it'\''s 5%%\r\n' >{net}/10.1.0.3"),
                format!("rm {net}/10.1.0.2"),
                format!("mkdir -p {new}"),
                format!("printf 'b' >{new}/a"),
            ]
        );
        drop(copies);
        assert!(!copy.exists());
        fs::remove_dir_all(&data).unwrap();
    }
}
