//! Writing a file from front to back, in pieces of 2 MiB that start at multiples of 2 MiB.
//!
//! Linux keeps what is written in its page cache, in pages as large as the writes (ext4 since 6.16, XFS before). A file
//! that comes in such pieces is mapped in huge pages as soon as it is written: see [`map_file`](super::map::map_file).

use std::io::Write;

use super::atomic::AtomicFile;
use crate::Error;

/// A huge page of x86-64 and, with 4 KiB pages, of aarch64.
const PIECE: usize = 2 << 20;

/// A file being written.
pub struct Pieces {
    file: AtomicFile,
    /// Bytes that are written.
    written: u64,
    /// What comes next: less than a piece.
    next: Vec<u8>,
}

impl Pieces {
    pub fn new(file: AtomicFile) -> Self {
        Self { file, written: 0, next: Vec::with_capacity(PIECE) }
    }

    /// Appends `bytes`.
    pub fn append(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while let Some((now, later)) = bytes.split_at_checked(PIECE - self.next.len()) {
            self.next.extend(now);
            self.flush()?;
            bytes = later;
        }
        self.next.extend(bytes);
        Ok(())
    }

    /// Appends zeros until `position` bytes are there. No more than an alignment is expected to be missing.
    pub fn pad_to(&mut self, position: u64) -> Result<(), Error> {
        while self.position() < position {
            self.append(&[0])?;
        }
        Ok(())
    }

    /// Bytes appended so far.
    pub fn position(&self) -> u64 {
        self.written + self.next.len() as u64
    }

    /// Writes what is left, makes the file durable and gives it its name.
    pub fn commit(mut self) -> Result<(), Error> {
        self.flush()?;
        self.file.commit()
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.file.file().write_all(&self.next).map_err(Error::io(self.file.destination()))?;
        self.written += self.next.len() as u64;
        self.next.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_bytes_arrive_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut pieces = Pieces::new(AtomicFile::create(&path, &[]).unwrap());
        let mut expected = Vec::new();
        for (i, len) in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 0, 5].into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|k| (k % 251 + i) as u8).collect();
            pieces.append(&bytes).unwrap();
            expected.extend(bytes);
            assert_eq!(pieces.position(), expected.len() as u64);
        }
        expected.extend([0; 63]);
        pieces.pad_to(expected.len() as u64).unwrap();
        pieces.commit().unwrap();
        assert!(std::fs::read(path).unwrap() == expected);
    }
}
