//! What the operating system tells about this process and its machine.

use std::fs;

/// Memory of this process that is in RAM, in bytes.
#[derive(Clone, Copy, Default)]
pub struct Resident {
    /// Its own: buffers, keys and values.
    pub anonymous: usize,
    /// Of mapped files: the weights. The system can take it back.
    pub file: usize,
}

impl Resident {
    /// As it is now; `None` where the system is not Linux.
    pub fn now() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let bytes = |name: &str| {
            let kilobytes = field(&status, name)?.strip_suffix("kB")?.trim().parse::<usize>().ok()?;
            kilobytes.checked_mul(1024)
        };
        Some(Self { anonymous: bytes("RssAnon")?, file: bytes("RssFile")? })
    }

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self { anonymous: self.anonymous.max(other.anonymous), file: self.file.max(other.file) }
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
