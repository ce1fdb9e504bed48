//! Temporary files and folders that say whether their owner still lives: it holds a lock on them, which the system releases
//! whatever way the process ends. So what a killed process left can be told from what is being written, and removed.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use tempfile::{Builder, NamedTempFile, TempDir};

/// The end of every temporary's name, by which people (and clean-up scripts) can tell one from a result.
const SUFFIX: &str = ".partial";

/// Characters between the prefix and the suffix.
const RANDOM: usize = 6;

/// How often a temporary is made anew because somebody took it for abandoned before it was locked.
const ATTEMPTS: usize = 10;

/// Makes a file in `folder`, `<prefix>XXXXXX.partial`, which is removed when dropped. Where it will replace another it has
/// that one's permissions from the start.
pub fn file(folder: &Path, prefix: &OsStr, replaced: Option<fs::Permissions>) -> io::Result<NamedTempFile> {
    let mut builder = builder(prefix);
    #[cfg(unix)]
    {
        // What any new file gets, less the umask; a temporary's default would keep others from reading the result.
        use std::os::unix::fs::PermissionsExt;
        let mode = replaced.as_ref().map_or(0o666, |replaced| replaced.mode() & 0o777);
        builder.permissions(fs::Permissions::from_mode(mode));
    }
    let file = locked(|| {
        let file = builder.tempfile_in(folder)?;
        let ours = lock(file.as_file()) && file.path().exists();
        Ok((file, ours))
    })?;
    #[cfg(unix)]
    if let Some(replaced) = replaced {
        // The umask has taken away what the other file had. A file system without permissions has none to keep.
        use std::os::unix::fs::PermissionsExt;
        let _ = file.as_file().set_permissions(fs::Permissions::from_mode(replaced.mode() & 0o777));
    }
    #[cfg(not(unix))]
    drop(replaced);
    Ok(file)
}

/// A temporary folder, locked as long as it lives.
pub struct Folder {
    folder: TempDir,
    _lock: Option<File>,
}

impl Folder {
    /// Makes a folder in `parent`, `<prefix>XXXXXX.partial`, which is removed when dropped.
    pub fn new(parent: &Path, prefix: &OsStr) -> io::Result<Self> {
        let builder = builder(prefix);
        locked(|| {
            let folder = builder.tempdir_in(parent)?;
            // Where folders cannot be opened (Windows) none is locked, and none taken for abandoned.
            let lock_file = File::open(folder.path()).ok();
            let ours = lock_file.as_ref().is_none_or(lock) && folder.path().exists();
            Ok((Self { folder, _lock: lock_file }, ours))
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Gives it a name to stay under, which nothing has yet.
    #[cfg(feature = "pull")]
    pub fn rename(self, path: &Path) -> io::Result<()> {
        fs::rename(self.folder.path(), path)?;
        // There is nothing left to remove.
        let _ = self.folder.keep();
        Ok(())
    }

    /// Removes it now, and says what stands in the way.
    #[cfg(feature = "pull")]
    pub fn remove(self) -> io::Result<()> {
        self.folder.close()
    }
}

fn builder<'a>(prefix: &'a OsStr) -> Builder<'a, 'static> {
    let mut builder = Builder::new();
    builder.prefix(prefix).suffix(SUFFIX).rand_bytes(RANDOM);
    builder
}

/// Makes a temporary until one is locked before somebody else removed it.
fn locked<T>(mut make: impl FnMut() -> io::Result<(T, bool)>) -> io::Result<T> {
    for _ in 0..ATTEMPTS {
        if let (temporary, true) = make()? {
            return Ok(temporary);
        }
    }
    Err(io::Error::other("temporary files are removed as soon as they are made"))
}

/// Locks a file or folder. A file system that has no locks counts as locked: nobody else can lock there either.
fn lock(file: &File) -> bool {
    !matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock))
}

/// Removes the temporaries in `folder` with this prefix whose owners are gone, as far as that goes.
pub fn remove_abandoned(folder: &Path, prefix: &OsStr) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        // To open a pipe would be to wait for its other end.
        let ours = entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir());
        if !ours || !is_temporary(&entry.file_name(), prefix) {
            continue;
        }
        let path = entry.path();
        let Ok(file) = File::open(&path) else { continue };
        // The lock is held until the temporary is gone, lest its owner locks it after all.
        if file.try_lock().is_ok() {
            let is_folder = file.metadata().is_ok_and(|found| found.is_dir());
            let remove = || if is_folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            // A program that outlived the one that started it may put files there in the meantime.
            let _ = remove().or_else(|_| remove()).or_else(|_| remove());
        }
    }
}

fn is_temporary(name: &OsStr, prefix: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let middle =
        name.strip_prefix(prefix.as_encoded_bytes()).and_then(|rest| rest.strip_suffix(SUFFIX.as_bytes()));
    middle.is_some_and(|middle| middle.len() == RANDOM && middle.iter().all(u8::is_ascii_alphanumeric))
}

#[cfg(test)]
mod tests {
    #[cfg(unix)]
    #[test]
    fn only_what_nobody_holds_is_abandoned() {
        use super::*;
        let names = |folder: &Path| {
            let entries = fs::read_dir(folder).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let folder = tempfile::tempdir().unwrap();
        let (prefix, other) = (OsStr::new(".a.bin."), OsStr::new(".b.bin."));
        let file = file(folder.path(), prefix, None).unwrap();
        let held = Folder::new(folder.path(), prefix).unwrap();
        fs::write(held.path().join("content"), "x").unwrap();
        let mut living = names(folder.path());

        fs::write(folder.path().join(".a.bin.abc123.partial"), "x").unwrap();
        fs::create_dir(folder.path().join(".a.bin.ABCdef.partial")).unwrap();
        fs::write(folder.path().join(".a.bin.ABCdef.partial/content"), "x").unwrap();
        let others = [".a.bin.abc1234.partial", ".a.bin.abc12..partial", ".b.bin.abc123.partial", "a.bin"];
        for name in others {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        remove_abandoned(folder.path(), prefix);
        living.extend(others.map(String::from));
        living.sort();
        assert_eq!(names(folder.path()), living);

        remove_abandoned(folder.path(), other);
        drop((file, held));
        assert_eq!(names(folder.path()).len(), 3);
    }
}
