//! What the operating system tells about this process and its machine.

use std::fs;

/// Memory of this process that is in RAM, in bytes.
#[derive(Clone, Copy, Default)]
pub struct Resident {
    /// Its own: buffers, keys and values.
    pub anonymous: usize,
    /// Of mapped files: the weights. The system can take it back.
    pub file: usize,
    /// As much of `file` as is mapped in huge pages.
    pub file_huge: usize,
}

impl Resident {
    /// As it is now; `None` where the system is not Linux.
    pub fn now() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let maps = fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
        Some(Self {
            anonymous: bytes(&status, "RssAnon")?,
            file: bytes(&status, "RssFile")?,
            file_huge: bytes(&maps, "FilePmdMapped").unwrap_or_default(),
        })
    }

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            anonymous: self.anonymous.max(other.anonymous),
            file: self.file.max(other.file),
            file_huge: self.file_huge.max(other.file_huge),
        }
    }
}

/// What the CPU calls itself; `None` where it does not say.
pub fn cpu_name() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    field(&info, "model name").map(str::to_owned)
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim())
}

/// The value of the first line `name : value kB`, in bytes.
fn bytes(text: &str, name: &str) -> Option<usize> {
    let kilobytes = field(text, name)?.strip_suffix("kB")?.trim().parse::<usize>().ok()?;
    kilobytes.checked_mul(1024)
}
