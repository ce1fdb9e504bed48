//! One file from the hub: what is here already of it is kept, and nothing that it should not be.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::digest::{Digest, Hasher};
use super::http::{Client, Failure, Tries};
use crate::Error;
use crate::format::convert::{OnProgress, Progress, report};

/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// Bytes after which a download that breaks has got somewhere.
const SOME_WAY: u64 = 1 << 20;

/// The content to fetch.
pub struct Wanted<'a> {
    /// What it is called.
    pub name: &'a str,
    /// Where it is.
    pub address: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    /// Of what is fetched together: the bytes done before this file, and those in all.
    pub before: u64,
    pub total: u64,
}

/// A file's beginning, on the disk.
pub struct Partial<'a> {
    wanted: &'a Wanted<'a>,
    file: File,
    path: PathBuf,
    hash: Hasher,
    /// Bytes that are there.
    len: u64,
}

impl<'a> Partial<'a> {
    /// Opens what is there already, or makes it.
    pub fn open(path: PathBuf, wanted: &'a Wanted<'a>, progress: &mut OnProgress) -> Result<Self, Error> {
        let options = &mut File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(&path))?;
        let hash = wanted.digest.hasher(wanted.size);
        let mut partial = Self { wanted, file, path, hash, len: 0 };
        partial.take_in(progress)?;
        Ok(partial)
    }

    /// Hashes what is there.
    #[expect(clippy::indexing_slicing, reason = "a reader gives no more than there is room for")]
    fn take_in(&mut self, progress: &mut OnProgress) -> Result<(), Error> {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = self.file.read(&mut buffer).map_err(Error::io(&self.path))?;
            self.hash.update(&buffer[..read]);
            self.len += read as u64;
            if self.len > self.wanted.size {
                return self.restart();
            }
            if read == 0 {
                return Ok(());
            }
            report(progress, self.progress())?;
        }
    }

    fn progress(&self) -> Progress<'a> {
        let Wanted { name, before, total, .. } = *self.wanted;
        Progress { step: name, done: (before + self.len).min(total), total }
    }

    /// Forgets what is there.
    fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(Error::io(&self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(Error::io(&self.path))?;
        self.hash = self.wanted.digest.hasher(self.wanted.size);
        self.len = 0;
        Ok(())
    }

    /// Fetches what is missing, and gives the content its name in the cache, `blob`, once it is what it should be.
    pub fn complete(
        mut self,
        client: &Client,
        pause: Tries,
        progress: &mut OnProgress,
    ) -> Result<PathBuf, Failure> {
        let (mut tries, mut was_wrong) = (pause, false);
        loop {
            let before = self.len;
            match self.stream(client, progress) {
                Ok(()) if self.hash.clone().finish() == self.wanted.digest.as_str() => break,
                Ok(()) if was_wrong => {
                    let (found, expected) = (self.hash.clone().finish(), self.wanted.digest.as_str());
                    self.restart()?;
                    return Err(Failure::Broken(format!(
                        "it comes to the checksum {found}, not {expected}, twice"
                    )));
                }
                // Perhaps its beginning was damaged here.
                Ok(()) => {
                    was_wrong = true;
                    self.restart()?;
                }
                Err(failure) => {
                    if self.len >= before + SOME_WAY {
                        tries.forget();
                    }
                    let failure = match failure {
                        Failure::Unreachable(why) => Failure::Later { why, after: None },
                        failure => failure,
                    };
                    tries.wait(failure, progress, self.progress())?;
                }
            }
        }
        self.file.sync_all().map_err(Error::io(&self.path))?;
        Ok(self.path)
    }

    /// Fetches what is missing, as far as it comes.
    #[expect(clippy::indexing_slicing, reason = "a reader gives no more than there is room for")]
    fn stream(&mut self, client: &Client, progress: &mut OnProgress) -> Result<(), Failure> {
        let Wanted { size, address, .. } = self.wanted;
        if self.len == *size {
            return Ok(());
        }
        let later = |why: String| Failure::Later { why, after: None };
        let answer = match client.get(address, self.len, false) {
            Err(Failure::Refused { status: 416, .. }) => {
                self.restart()?;
                return Err(later("the server has no such range".to_owned()));
            }
            answer => answer?,
        };
        if self.len > 0 && answer.response.status() != 206 {
            self.restart()?;
        }
        let starts = format!("bytes {}-", self.len);
        if self.len > 0 && !answer.header("content-range").is_some_and(|range| range.starts_with(&starts)) {
            self.restart()?;
            return Err(later("the server sends another range".to_owned()));
        }
        let mut body = answer.response.into_body().into_reader();
        let mut buffer = vec![0; PIECE];
        while self.len < *size {
            let read = body.read(&mut buffer).map_err(|problem| later(format!("broken off: {problem}")))?;
            if read == 0 {
                return Err(later(format!("broken off after {} of {size} bytes", self.len)));
            }
            let piece = &buffer[..read];
            if self.len + read as u64 > *size {
                self.restart()?;
                return Err(Failure::Broken(format!("it is longer than {size} bytes")));
            }
            self.file.write_all(piece).map_err(Error::io(&self.path))?;
            self.hash.update(piece);
            self.len += read as u64;
            report(progress, self.progress())?;
        }
        Ok(())
    }
}

/// Gives a complete file its name.
pub fn rename(from: &std::path::Path, to: &std::path::Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(Error::io(to))
}
