//! The Hugging Face cache: the layout that all tools for the hub share.
//!
//! `models--org--name/blobs/<etag>` holds the files, `snapshots/<commit>/<name>` links to them, and `refs/<revision>` says which
//! commit a branch was at. `blobs/<etag>.incomplete` is a file's beginning; whoever fetches it holds a lock in `.locks`.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::digest::Digest;
use super::reference::is_inside;
use crate::Error;
use crate::format::convert::{OnProgress, Progress, report};

/// Folders in folders that a snapshot is searched for files, and files that are listed, at most.
const DEPTH: usize = 8;
const FILES: usize = 20_000;

/// One repository in the cache.
pub struct Store {
    folder: PathBuf,
    locks: PathBuf,
}

impl Store {
    /// Of `org/name`, in this cache; nothing need be there yet.
    pub fn new(cache: &Path, repository: &str) -> Self {
        let name = format!("models--{}", repository.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Which commit a revision was at when it was last asked for.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        let said = fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        let commit = said.map_or(revision.to_owned(), |said| said.trim().to_owned());
        is_commit(&commit).then_some(commit)
    }

    /// Notes which commit a revision is at.
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<(), Error> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let folder = made(parent(&path))?;
        let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
            file.write_all(commit.as_bytes())?;
            file.persist(&path).map_err(|failed| failed.error)
        });
        written.map(drop).map_err(Error::io(&path))
    }

    /// The names of the files that are here of a commit, as far as they can be read.
    pub fn files_of(&self, commit: &str) -> Vec<String> {
        let mut names = Vec::new();
        collect(&self.snapshot(commit), "", DEPTH, &mut names);
        names.sort();
        names
    }

    /// Where a file's content is kept, or will be.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.as_str())
    }

    /// Where the beginning of a file's content is kept.
    pub fn incomplete(&self, digest: &Digest) -> Result<PathBuf, Error> {
        let blobs = self.folder.join("blobs");
        made(&blobs)?;
        Ok(blobs.join(format!("{}.incomplete", digest.as_str())))
    }

    /// Waits until no other process fetches this file. The lock ends with what is returned.
    pub fn lock(&self, digest: &Digest, progress: &mut OnProgress) -> Result<File, Error> {
        let path = self.locks.join(format!("{}.lock", digest.as_str()));
        made(parent(&path))?;
        let file = File::options().create(true).append(true).open(&path).map_err(Error::io(&path))?;
        // A file system without locks has none to wait for.
        while matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            report(progress, Progress { step: "another process fetches this", done: 0, total: 0 })?;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(file)
    }

    /// Gives a file's content its name in a commit.
    pub fn link(&self, digest: &Digest, commit: &str, name: &str) -> Result<(), Error> {
        let path = self.snapshot(commit).join(name);
        made(parent(&path))?;
        let depth = Path::new(name).components().count() + 1;
        let blob: PathBuf = std::iter::repeat_n("..", depth).chain(["blobs", digest.as_str()]).collect();
        match linked(&blob, &self.blob(digest), &path) {
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.exists() => Ok(()),
            // A link that leads nowhere.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => fs::remove_file(&path)
                .and_then(|()| linked(&blob, &self.blob(digest), &path))
                .map_err(Error::io(&path)),
            result => result.map_err(Error::io(&path)),
        }
    }
}

#[cfg(unix)]
fn linked(relative: &Path, _blob: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, path)
}

/// Where links need a privilege.
#[cfg(not(unix))]
fn linked(_relative: &Path, blob: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop))
}

/// Whether this names a commit in full.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

/// The folder, which is made where it is missing.
fn made(folder: &Path) -> Result<&Path, Error> {
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    Ok(folder)
}

fn collect(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (path, name) = (entry.path(), format!("{prefix}{name}"));
        if names.len() >= FILES || !is_inside(&name) {
            continue;
        }
        match fs::metadata(&path) {
            Ok(found) if found.is_file() => names.push(name),
            Ok(found) if found.is_dir() && depth > 0 => collect(&path, &format!("{name}/"), depth - 1, names),
            _ => {}
        }
    }
}
