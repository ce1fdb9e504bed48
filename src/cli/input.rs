//! Text from files and from stdin.

use std::ffi::OsStr;
use std::io::{Read, stdin};
use std::path::Path;

use anyhow::{Context, ensure};
use torchless::pull::Reference;

/// Bytes of text that are read at most: more than any context holds, and an end where a device or a pipe has none.
pub const MAX_TEXT: usize = 64 << 20;

/// The text of a file, or of stdin where that is named `-`.
pub fn read_text(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") { read_stdin() } else { read_file(file) }
}

/// Whether a word is a model rather than something to say: a file's name, or one that only a model would have.
pub fn names_model(word: &OsStr) -> bool {
    let (path, text) = (Path::new(word), word.to_string_lossy());
    let is_one = |ending: &OsStr| ["bin", "gguf"].iter().any(|known| ending.eq_ignore_ascii_case(known));
    let like_a_model = path.extension().is_some_and(is_one) || text.starts_with(Reference::PREFIX);
    path.is_file()
        || path.join("config.json").is_file()
        || (text.contains(std::path::MAIN_SEPARATOR) && path.exists())
        || (like_a_model && !text.contains(char::is_whitespace))
}

/// Whether stdin is a pipe or a file, so that someone sends text. A terminal sends none unasked, nor does `/dev/null`.
#[cfg(unix)]
pub fn is_piped() -> bool {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileTypeExt;
    let Ok(stdin) = stdin().as_fd().try_clone_to_owned() else { return false };
    let kind = std::fs::File::from(stdin).metadata().map(|m| m.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_file() || kind.is_socket())
}

#[cfg(not(unix))]
pub fn is_piped() -> bool {
    use std::io::IsTerminal;
    !stdin().is_terminal()
}

/// The text of a file.
pub fn read_file(file: &Path) -> anyhow::Result<String> {
    let name = file.display().to_string();
    let opened = std::fs::File::open(file).with_context(|| name.clone())?;
    text(opened, &name)
}

/// All text on stdin.
pub fn read_stdin() -> anyhow::Result<String> {
    text(stdin().lock(), "stdin")
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
