//! Text from files and from stdin.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, ensure};

/// Bytes of text that are read at most: more than any context holds, and an end where a device or a pipe has none.
pub const MAX_TEXT: usize = 64 << 20;

/// The text of a file.
pub fn read_file(file: &Path) -> anyhow::Result<String> {
    let name = file.display().to_string();
    let opened = std::fs::File::open(file).with_context(|| name.clone())?;
    text(opened, &name)
}

/// All text on stdin.
pub fn read_stdin() -> anyhow::Result<String> {
    text(std::io::stdin().lock(), "stdin")
}

fn text(from: impl Read, name: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    from.take(MAX_TEXT as u64 + 1).read_to_end(&mut bytes).with_context(|| name.to_owned())?;
    check_size(&bytes, name)?;
    utf8(bytes, name)
}

/// Refuses what was read with a limit of [`MAX_TEXT`] and a byte, and reached it.
pub fn check_size(bytes: &[u8], name: &str) -> anyhow::Result<()> {
    ensure!(bytes.len() <= MAX_TEXT, "{name}: more than {} MiB of text: give less", MAX_TEXT >> 20);
    Ok(())
}

pub fn utf8(bytes: Vec<u8>, name: &str) -> anyhow::Result<String> {
    String::from_utf8(bytes)
        .map_err(|e| anyhow::anyhow!("{name}: not UTF-8 text (byte {})", e.utf8_error().valid_up_to()))
}
