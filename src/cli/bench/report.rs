//! Printing the rows: as a table with a footer, as CSV, or as JSON.

use std::collections::BTreeMap;
use std::io;

use serde_json::{Map, Value};
use torchless::bench::Test;
use torchless::runtime::SessionOptions;

use super::{Format, Row, Setting};
use crate::cli::output::{bytes, count, emit_json, emit_line};

/// Prints each row of a table as soon as it is known; JSON at the end.
pub struct Report<'a> {
    format: Format,
    setting: &'a Setting,
    rows: Vec<Row<'a>>,
    isa_width: usize,
    test_width: usize,
}

impl<'a> Report<'a> {
    pub fn new(format: Format, setting: &'a Setting, tests: &[Test], options: &[SessionOptions]) -> Self {
        let test_width = tests.iter().map(|test| test.to_string().len()).max().unwrap_or(0).max(4);
        let isa_width = options.iter().map(|o| o.kernels.isa().name().len()).max().unwrap_or(0).max(4);
        Self { format, setting, rows: Vec::new(), isa_width, test_width }
    }

    pub fn add(&mut self, row: Row<'a>) -> io::Result<()> {
        match self.format {
            Format::Json => (),
            Format::Md => {
                if self.rows.is_empty() {
                    // What is the same in all rows is no column: a table fits a terminal of 80.
                    let Setting { model, model_bytes, model_params, .. } = self.setting;
                    let (size, params) = (bytes(*model_bytes), params(*model_params));
                    emit_line(&format!("{model}: {size}, {params} parameters\n"))?;
                    self.emit_columns(["isa", "threads", "test"], ["t/s", "GB/s", "of memory"])?;
                    let (isa, test) = ("-".repeat(self.isa_width), "-".repeat(self.test_width - 1) + ":");
                    let left = [&isa, "------:", &test];
                    self.emit_columns(left, ["---------------:", "-----:", "--------:"])?;
                }
                self.emit_row(&row)?;
            }
            Format::Csv => {
                let fields = fields(&row)?;
                if self.rows.is_empty() {
                    emit_line(&fields.keys().map(String::as_str).collect::<Vec<_>>().join(","))?;
                }
                emit_line(&fields.values().map(csv).collect::<Vec<_>>().join(","))?;
            }
        }
        self.rows.push(row);
        Ok(())
    }

    /// Prints what comes after the rows, and gives them back.
    pub fn finish(self) -> anyhow::Result<Vec<Row<'a>>> {
        match self.format {
            Format::Md => emit_line(&format!("\n{}", self.footer()))?,
            Format::Json => emit_json(&self.rows)?,
            Format::Csv => (),
        }
        Ok(self.rows)
    }

    fn emit_row(&self, row: &Row) -> io::Result<()> {
        let threads = row.threads.to_string();
        let rate = format!("{:.2} ± {:.2}", row.tokens_per_s, row.stddev);
        // A prompt is limited by arithmetic, and its share of the memory's speed would only mislead.
        let (gb, share) = match row.prompt_tokens {
            0 => (format!("{:.1}", row.gb_per_s), format!("{:.0} %", 100.0 * row.bandwidth_share)),
            _ => ("–".to_owned(), "–".to_owned()),
        };
        self.emit_columns([row.isa, &threads, &row.test], [&rate, &gb, &share])
    }

    fn emit_columns(&self, left: [&str; 3], right: [&str; 3]) -> io::Result<()> {
        let ([isa, threads, test], [rate, gb, share]) = (left, right);
        let (i, t) = (self.isa_width, self.test_width);
        emit_line(&format!("| {isa:<i$} | {threads:>7} | {test:>t$} | {rate:>16} | {gb:>6} | {share:>9} |"))
    }

    fn footer(&self) -> String {
        let mut memory = BTreeMap::new();
        for row in &self.rows {
            let fastest: &mut f64 = memory.entry(row.threads).or_default();
            *fastest = fastest.max(row.memory_gb_per_s);
        }
        let memory: Vec<_> =
            memory.iter().map(|(&n, gb)| format!("{gb:.1} GB/s on {}", count(n, "thread"))).collect();
        let most = |bytes: fn(&Row) -> Option<usize>| self.rows.iter().filter_map(bytes).max();
        let anonymous = most(|row| row.resident_anonymous_bytes);
        let huge = most(|row| row.resident_file_huge_bytes).unwrap_or_default();
        let resident = match (anonymous, most(|row| row.resident_file_bytes)) {
            (Some(own), Some(file)) => format!(
                "\nin RAM: {} of its own, {} of files, {} of that in huge pages",
                bytes(own),
                bytes(file),
                bytes(huge)
            ),
            _ => String::new(),
        };
        let Setting { load_ms, cpu, version, revision, .. } = self.setting;
        let kv = self.rows.first().map_or("", |row| &row.kv);
        let cpu = cpu.as_deref().unwrap_or("unknown CPU");
        format!(
            "model opened in {load_ms:.0} ms{resident}\n\
             memory read by a plain loop: {}\n\
             torchless {version} ({revision}), kv {kv}\n{cpu}",
            memory.join(", ")
        )
    }
}

fn fields(row: &Row) -> io::Result<Map<String, Value>> {
    match serde_json::to_value(row)? {
        Value::Object(fields) => Ok(fields),
        _ => Ok(Map::new()),
    }
}

/// A field as CSV has it: text in quotes, several numbers between spaces.
fn csv(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => format!("\"{}\"", text.replace('"', "\"\"")),
        Value::Array(values) => values.iter().map(csv).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// A number of parameters as people read it: `134.5 M`.
fn params(n: usize) -> String {
    match n {
        1_000_000_000.. => format!("{:.2} B", n as f64 * 1e-9),
        1_000_000.. => format!("{:.1} M", n as f64 * 1e-6),
        _ => format!("{:.1} k", n as f64 * 1e-3),
    }
}
