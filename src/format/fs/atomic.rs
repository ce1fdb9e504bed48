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
    /// Starts a file that will become `destination`, replacing what is there.
    ///
    /// # Errors
    /// When `destination` exists and is not a regular file, or its folder is missing or not writable.
    pub fn create(destination: &Path) -> Result<Self, Error> {
        match fs::metadata(destination) {
            Ok(found) if found.is_dir() => {
                return Err(Error::file(destination, "is a folder: give the name of the file to write"));
            }
            Ok(found) if !found.is_file() => {
                return Err(Error::file(destination, "exists and is not a regular file: give another name"));
            }
            _ => {}
        }
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
        let file = temporary::file(folder, &prefix).map_err(Error::io(destination))?;
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

fn folder_of(path: &Path) -> &Path {
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
