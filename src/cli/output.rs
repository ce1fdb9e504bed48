//! Writing results to stdout, and everything else to stderr.
//!
//! What a model says or a file contains can hold control sequences, and a terminal obeys them: it could be renamed, cleared, or
//! made to type. So on a terminal control characters are shown, not sent. Files and pipes get every byte as it is.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

/// Writes `text` to stdout at once, fit for a terminal where that is one.
///
/// # Errors
/// If stdout is closed: unlike `print!`, which panics.
pub fn emit(text: &str) -> io::Result<()> {
    match io::stdout().is_terminal() {
        true => emit_raw(&visible(text)),
        false => emit_raw(text),
    }
}

/// Writes `text` to stdout at once, control characters and all.
///
/// # Errors
/// If stdout is closed.
pub fn emit_raw(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| io::Error::new(error.kind(), format!("stdout: {error}")))
}

/// Writes a line to stderr, fit for a terminal. Where stderr is closed nothing happens: unlike `eprintln!`, which panics.
pub fn note(line: impl Display) {
    note_part(&format!("{}\n", visible(&line.to_string())));
}

/// Writes `text` to stderr as it is; nothing happens where that is closed.
pub fn note_part(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// `text` with every control character but line feed and tab as a picture of itself (U+2400 and up), or as U+FFFD where
/// there is none (C1).
fn visible(text: &str) -> Cow<'_, str> {
    let is_control = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let show = |c: char| match c {
        '\u{7f}' => '\u{2421}',
        '\0'..='\x1f' if is_control(c) => char::from_u32(0x2400 + u32::from(c)).unwrap_or('\u{fffd}'),
        _ if is_control(c) => '\u{fffd}',
        _ => c,
    };
    Cow::Owned(text.chars().map(show).collect())
}

/// Text on its way to stdout, as [`emit`] writes it: what is too long to be held in memory at once.
#[derive(Default)]
pub struct Pieces(String);

impl Pieces {
    /// Bytes that are written together.
    const CHUNK: usize = 1 << 16;

    /// Writes `text`, now or later.
    ///
    /// # Errors
    /// If stdout is closed.
    pub fn push(&mut self, text: &str) -> io::Result<()> {
        self.0.push_str(text);
        if self.0.len() >= Self::CHUNK {
            emit(&self.0)?;
            self.0.clear();
        }
        Ok(())
    }

    /// Writes what remains.
    ///
    /// # Errors
    /// If stdout is closed.
    pub fn finish(self) -> io::Result<()> {
        emit(&self.0)
    }
}

/// Writes `text` and a newline to stdout.
///
/// # Errors
/// If stdout is closed.
pub fn emit_line(text: &str) -> io::Result<()> {
    emit(&format!("{text}\n"))
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// If stdout is closed.
pub fn emit_json(value: &impl serde::Serialize) -> io::Result<()> {
    emit_line(&serde_json::to_string(value)?)
}

/// `text` on one line, whatever a file made it contain.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A number of things, which are called by their singular: `1 token`, `2 tokens`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A number of bytes as people read it: `135.2 MB`.
pub fn bytes(n: usize) -> String {
    const UNITS: [(&str, f64); 4] = [("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match UNITS.iter().find(|(_, size)| n as f64 >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", n as f64 / size),
        None => format!("{n} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_sequence_survives() {
        assert_eq!(visible("a\tb\nc é ▁"), "a\tb\nc é ▁");
        assert_eq!(visible("\x1b]0;title\x07\r\0\u{7f}\u{9b}2J"), "␛]0;title␇␍␀␡\u{fffd}2J");
        let all: String = ('\0'..='\u{ff}').collect();
        assert_eq!(visible(&all).chars().filter(|c| c.is_control()).collect::<String>(), "\t\n");
        assert_eq!(visible(&all).chars().count(), 256);
    }
}
