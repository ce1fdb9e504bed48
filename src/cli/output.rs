//! Writing results to stdout.

use std::io::{self, Write};

/// Writes `text` to stdout at once.
///
/// # Errors
/// If stdout is closed: unlike `print!`, which panics.
pub fn emit(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
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

/// A number of bytes as people read it: `135.2 MB`.
pub fn bytes(n: usize) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let power = (n.max(1).ilog10() / 3).min(UNITS.len() as u32 - 1);
    match power {
        0 => format!("{n} B"),
        _ => format!("{:.1} {}", n as f64 / 1000f64.powi(power as i32), UNITS[power as usize]),
    }
}
