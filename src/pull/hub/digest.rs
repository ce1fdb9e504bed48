//! Checksums of files, as the hub names them.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::pull::hexadecimal;

/// What a file's bytes come to: a large file's SHA-256, or git's SHA-1 of a small one. The hub gives it as the file's etag, and
/// the cache names the file by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest(String);

impl Digest {
    /// Takes an etag that is one.
    pub fn of_etag(etag: &str) -> Option<Self> {
        let hexadecimal = etag.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        (hexadecimal && matches!(etag.len(), 40 | 64)).then(|| Self(etag.to_owned()))
    }

    /// In lower-case hexadecimal.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Begins to take in a file of so many bytes.
    pub fn hasher(&self, size: u64) -> Hasher {
        match self.0.len() {
            64 => Hasher::Sha256(Sha256::new()),
            _ => Hasher::GitBlob(Sha1::new_with_prefix(format!("blob {size}\0"))),
        }
    }
}

/// Takes in a file's bytes.
#[derive(Clone)]
pub enum Hasher {
    Sha256(Sha256),
    GitBlob(Sha1),
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::GitBlob(hash) => hash.update(bytes),
        }
    }

    /// What they came to, in lower-case hexadecimal.
    pub fn finish(self) -> String {
        match self {
            Self::Sha256(hash) => hexadecimal(&hash.finalize()),
            Self::GitBlob(hash) => hexadecimal(&hash.finalize()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_to_what_git_and_sha256sum_say() {
        // `printf hello | git hash-object --stdin`, and `printf hello | sha256sum`.
        for etag in [
            "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0",
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
        ] {
            let mut hasher = Digest::of_etag(etag).unwrap().hasher(5);
            hasher.update(b"hel");
            hasher.update(b"lo");
            assert_eq!(hasher.finish(), etag);
        }
        for etag in [
            "",
            "../../../../../../../../../../../../../../",
            "B6FC4C620B67D95F953A5C1C1230AAAB5DB5A1B0",
            "b6fc4c62",
        ] {
            assert_eq!(Digest::of_etag(etag), None, "{etag}");
        }
    }
}
