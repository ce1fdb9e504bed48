//! Files that appear under their name only when they are complete.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::temporary;
use crate::Error;

/// A file being written beside its destination, under a temporary name of its own.
///
/// [`AtomicFile::commit`] puts it in place; dropping it removes it. A process that is killed leaves the temporary
/// (`.<name>.XXXXXX.partial`), which nothing reads, and which the next one to write the same file removes.
pub struct AtomicFile {
    file: NamedTempFile,
    destination: PathBuf,
}

impl AtomicFile {
    /// Starts a file that will become `destination`, replacing what is there and keeping its permissions. `inputs` are the
    /// files that its content is made from.
    ///
    /// # Errors
    /// When `destination` is one of `inputs`, exists and is not a regular file, or its folder is missing or not writable.
    pub fn create(destination: &Path, inputs: &[PathBuf]) -> Result<Self, Error> {
        let replaced = fs::metadata(destination).ok();
        match &replaced {
            Some(found) if found.is_dir() => {
                return Err(Error::file(destination, "is a folder: give the name of the file to write"));
            }
            Some(found) if !found.is_file() => {
                return Err(Error::file(destination, "exists and is not a regular file: give another name"));
            }
            _ => {}
        }
        check_inputs(destination, inputs)?;
        let Some(name) = destination.file_name() else {
            return Err(Error::file(destination, "is not a file name: give the name of the file to write"));
        };
        let folder = folder_of(destination);
        if !folder.is_dir() {
            return Err(Error::file(destination, "its folder does not exist: create it first"));
        }
        let mut prefix = OsString::from(".");
        prefix.push(name);
        prefix.push(".");
        temporary::remove_abandoned(folder, &prefix);
        let replaced = replaced.map(|found| found.permissions());
        let file = temporary::file(folder, &prefix, replaced).map_err(Error::io(destination))?;
        Ok(Self { file, destination: destination.to_owned() })
    }

    /// The temporary, to write to.
    pub fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// Where the file will be.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Makes the content durable, then gives the file its name.
    pub fn commit(self) -> Result<(), Error> {
        let Self { file, destination } = self;
        file.as_file().sync_all().map_err(Error::io(&destination))?;
        file.persist(&destination).map_err(|failed| Error::io(&destination)(failed.error))?;
        sync_folder(folder_of(&destination)).map_err(Error::io(&destination))
    }
}

/// Refuses a `destination` that is one of `inputs`, by whatever name: a run that replaces what it reads takes it away.
///
/// # Errors
/// When they are the same file, directly or by a link.
pub fn check_inputs(destination: &Path, inputs: &[PathBuf]) -> Result<(), Error> {
    match inputs.iter().find(|input| is_same(destination, input)) {
        Some(input) => {
            let problem = format!("{} is read for it: give another name for the result", input.display());
            Err(Error::file(destination, problem))
        }
        None => Ok(()),
    }
}

/// Whether two paths lead to one file that exists.
fn is_same(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        // Hard links have different paths.
        use std::os::unix::fs::MetadataExt;
        let place = |path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        if place(a).is_some_and(|of_a| place(b) == Some(of_a)) {
            return true;
        }
    }
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename inside `folder` durable, where the platform lets a folder be opened.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}
