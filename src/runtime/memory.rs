//! How much memory this process may still take, as far as Linux says; other systems find out by trying.

use std::fs;
use std::path::Path;

/// Bytes that can still be allocated *and used*: what the machine has available, and no more than the limits on this
/// process' cgroup (v2 or v1) and address space leave. `None` where the system does not say.
pub fn available() -> Option<usize> {
    let limits = [machine(), cgroup_v2(), cgroup_v1(), address_space()];
    limits.into_iter().flatten().min()
}

fn machine() -> Option<usize> {
    let kilobytes = field(&read("/proc/meminfo")?, "MemAvailable:")?;
    kilobytes.checked_mul(1024)
}

/// The tightest limit among the process' cgroup and those around it.
fn cgroup_v2() -> Option<usize> {
    let own = read("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
    let groups = Path::new(&path).ancestors();
    let left = |group: &Path| {
        let folder = Path::new("/sys/fs/cgroup").join(group);
        let limit = number(&read(folder.join("memory.max"))?)?;
        // Pages of files (weights among them) are given up where memory is short.
        let stat = read(folder.join("memory.stat"))?;
        Some(limit.saturating_sub(field(&stat, "anon ")?))
    };
    groups.filter_map(left).min()
}

fn cgroup_v1() -> Option<usize> {
    let own = read("/proc/self/cgroup")?;
    let path = own.lines().find_map(|line| line.split_once(":memory:/")).map(|(_, path)| path.to_owned())?;
    let left = |group: &Path| {
        let folder = Path::new("/sys/fs/cgroup/memory").join(group);
        let limit = number(&read(folder.join("memory.limit_in_bytes"))?)?;
        let stat = read(folder.join("memory.stat"))?;
        Some(limit.saturating_sub(field(&stat, "total_rss ")?))
    };
    Path::new(&path).ancestors().filter_map(left).min()
}

/// What `ulimit -v` leaves.
fn address_space() -> Option<usize> {
    let limit = field(&read("/proc/self/limits")?, "Max address space")?;
    let used = field(&read("/proc/self/status")?, "VmSize:")?;
    Some(limit.saturating_sub(used.checked_mul(1024)?))
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// The number that follows `name` at the beginning of a line.
fn field(text: &str, name: &str) -> Option<usize> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    number(rest.split_whitespace().next()?)
}

/// A number; what stands for no limit (`max`, `unlimited`) is none.
fn number(text: &str) -> Option<usize> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_whole_words() {
        let stat = "anon_thp 5\nanon 7\nMax address space  unlimited  unlimited bytes\n";
        assert_eq!(field(stat, "Max address space"), None);
        assert_eq!(field("MemAvailable:   23277440 kB\n", "MemAvailable:"), Some(23_277_440));
        assert_eq!(field(stat, "anon "), Some(7));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_says() {
        let bytes = available().unwrap();
        assert!(bytes > 1 << 20, "{bytes}");
    }
}
