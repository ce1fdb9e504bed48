//! Memory-mapped files.

use std::fs::{self, File};
use std::path::Path;

use memmap2::Mmap;

use crate::Error;

/// Maps the whole of a regular file, read-only: in huge pages where the system has them, since looking up pages of 4 KiB
/// takes a fifth to a third of the time that reading the file takes.
///
/// # Errors
/// When `path` cannot be opened or is not a regular file (a folder, a pipe, …).
#[allow(unsafe_code)]
pub fn map_file(path: &Path) -> Result<Mmap, Error> {
    // Asked before opening, which would wait for a pipe's other end.
    if !fs::metadata(path).map_err(Error::io(path))?.is_file() {
        return Err(Error::file(path, "not a regular file"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is read-only and nothing in this process writes to the file. Another process may, and no
    // operating system offers a way to rule that out: a file that is truncated while mapped ends this process with
    // SIGBUS, one that is overwritten in place changes the bytes under the reader. Those who read a map bound-check
    // against its length and treat its bytes as untrusted, so that changed bytes mean wrong numbers; text is copied
    // out before it outlives the reading of a header. Our own files are replaced by renaming, never written in place.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    // Linux reads a file into huge pages where its file system can hold such (ext4 since 6.16, XFS). What is in its cache
    // already stays in the pages it came in. Without, it is slower, no more.
    #[cfg(target_os = "linux")]
    map.advise(memmap2::Advice::HugePage).ok();
    Ok(map)
}

/// Checks that the file which was mapped with `len` bytes still has as many.
///
/// # Errors
/// When it has another length: somebody is writing to it.
pub fn check_len(path: &Path, len: usize) -> Result<(), Error> {
    let now = fs::metadata(path).map_err(Error::io(path))?.len();
    if usize::try_from(now) != Ok(len) {
        let problem =
            format!("was {len} bytes and is now {now}: it is still being written, wait and try again");
        return Err(Error::file(path, problem));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_changes_its_length_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(100).unwrap();
        let map = map_file(file.path()).unwrap();
        check_len(file.path(), map.len()).unwrap();
        for len in [99, 101, 0] {
            file.as_file().set_len(len).unwrap();
            let error = check_len(file.path(), map.len()).unwrap_err().to_string();
            assert!(error.contains(&format!("was 100 bytes and is now {len}")), "{error}");
        }
    }
}
