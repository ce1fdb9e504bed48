//! `torchless tokenize`: text to token ids and back.

use std::io;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use serde_json::json;
use torchless::tokenizer::{EncodeOptions, Tokenizer};

use super::input::{is_piped, read_stdin};
use super::model::ModelArgs;
use super::output::{Pieces, emit_json, emit_line};
use super::report::shown;
use super::{check_text, wrong_usage};

/// Show the tokens of a text, or the text of tokens
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless tokenize \"Hello world\"\n  \
    torchless tokenize --json < book.txt\n  \
    torchless tokenize --decode \"504 3575 282 4649 314\"\n\n\
    --json gives {ids, pieces, tokens: [{id, token, bytes}]}, or {text} with --decode. Pieces are as the vocabulary spells \
    them, tokens as text.")]
pub struct Args {
    /// The text; - reads it from stdin, and so does none where stdin is a pipe
    #[arg(conflicts_with_all = ["stdin", "decode"])]
    text: Option<String>,
    /// Read the text (or, with --decode -, the ids) from stdin
    #[arg(long)]
    stdin: bool,
    /// Token ids to turn into text, between commas or white space; - reads them from stdin
    #[arg(long, value_name = "IDS", allow_negative_numbers = true, value_parser = ids)]
    decode: Option<String>,
    /// Do not begin with BOS where the model would
    #[arg(long)]
    no_bos: bool,
    /// Recognise special tokens in the text; with --decode, show them
    #[arg(long)]
    special: bool,
    #[command(flatten)]
    model: ModelArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    if args.text.is_none() && !args.stdin && args.decode.is_none() && !is_piped() {
        let missing = "no text: give one between quotes, or a pipe on stdin";
        return Err(wrong_usage("tokenize", ErrorKind::MissingRequiredArgument, missing));
    }
    check_text("tokenize", args.text.as_deref().unwrap_or_default(), &args.model)?;
    let model = args.model.open(false)?;
    let tokenizer = model.tokenizer();
    if let Some(ids) = &args.decode {
        let ids = if ids == "-" { read_stdin()? } else { ids.clone() };
        return decode(tokenizer, &parse_ids(&ids)?, &args);
    }
    let text = match args.text.as_deref() {
        None | Some("-") => read_stdin()?,
        Some(text) => text.to_owned(),
    };
    let ids = tokenizer.encode(&text, EncodeOptions { bos: !args.no_bos, special: args.special });
    drop(text);
    Ok(if args.json { json_of(tokenizer, &ids) } else { lines(tokenizer, &ids) }?)
}

fn lines(tokenizer: &Tokenizer, ids: &[u32]) -> io::Result<()> {
    let mut out = Pieces::default();
    for &id in ids {
        out.push(&format!("{id}\t{}\n", shown(tokenizer, id)))?;
    }
    out.finish()
}

/// `{"ids": […], "pieces": […], "tokens": […]}`, written as it is made: a value of JSON takes two hundred times the memory of
/// its id.
fn json_of(tokenizer: &Tokenizer, ids: &[u32]) -> io::Result<()> {
    let mut out = Pieces::default();
    let mut list = |name: &str, item: &dyn Fn(u32) -> io::Result<String>, end: &str| {
        out.push(name)?;
        for (at, &id) in ids.iter().enumerate() {
            out.push(if at == 0 { "" } else { "," })?;
            out.push(&item(id)?)?;
        }
        out.push(end)
    };
    list("{\"ids\":[", &|id| Ok(id.to_string()), "]")?;
    let piece = |id| Ok(serde_json::to_string(tokenizer.piece(id).unwrap_or_default())?);
    list(",\"pieces\":[", &piece, "]")?;
    let token = |id| {
        let bytes = tokenizer.bytes_of(id).unwrap_or_default();
        Ok(json!({ "id": id, "token": String::from_utf8_lossy(&bytes), "bytes": bytes }).to_string())
    };
    list(",\"tokens\":[", &token, "]}\n")?;
    out.finish()
}

fn decode(tokenizer: &Tokenizer, ids: &[u32], args: &Args) -> anyhow::Result<()> {
    if let Some(id) = ids.iter().find(|&&id| tokenizer.piece(id).is_none()) {
        bail!(
            "token id {id} is not in the vocabulary, which ends at {}",
            tokenizer.vocab_len().saturating_sub(1)
        );
    }
    let text = if args.special { tokenizer.decode_with_special(ids) } else { tokenizer.decode(ids) };
    match args.json {
        true => emit_json(&json!({ "text": text }))?,
        false => emit_line(&text)?,
    }
    Ok(())
}

/// Ids on the command line, or `-`.
fn ids(text: &str) -> Result<String, String> {
    if text != "-" {
        parse_ids(text).map_err(|e| e.to_string())?;
    }
    Ok(text.to_owned())
}

fn parse_ids(text: &str) -> anyhow::Result<Vec<u32>> {
    let words = text.split(|c: char| c == ',' || c.is_whitespace()).filter(|w| !w.is_empty());
    words.map(|word| word.parse().with_context(|| format!("{word:?} is not a token id"))).collect()
}
