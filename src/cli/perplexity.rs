//! `torchless perplexity`: how well a model predicts a text.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;
use torchless::Model;
use torchless::perplexity::Perplexity;
use torchless::runtime::Session;

use super::input::read_file;
use super::model::{ModelArgs, RunArgs};
use super::output::{emit_json, emit_line};
use super::progress;

/// Measure how well the model predicts a text (lower is better)
///
/// A text longer than the context is worked out in windows of that size, each from its own start.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless perplexity book.txt\n  \
    torchless perplexity -m model.bin --tokens ids.txt --json\n\n\
    --json gives {tokens, nll, ppl, logprobs}: nll in nats a token, ppl = e^nll,\n\
    logprobs[i] = ln p(token i+1 | tokens 0..=i).")]
pub struct Args {
    /// A text file (UTF-8)
    #[arg(required_unless_present = "tokens")]
    file: Option<PathBuf>,
    /// A file of token ids between white space, used as they are: no BOS is added
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    tokens: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let model = args.model.open(false)?;
    let tokens = match (&args.tokens, &args.file) {
        (Some(file), _) => read_ids(file)?,
        (None, Some(file)) => encode_file(&model, file)?,
        (None, None) => bail!("no file given"),
    };
    if tokens.is_empty() {
        bail!("no tokens to predict: the file is empty");
    }
    let mut session = Session::new(&model, &args.run.session_options(&model, tokens.len())?)?;
    let bar = progress::tokens(tokens.len());
    let result = Perplexity::measure(&mut session, &tokens, || bar.inc(1))?;
    bar.finish_and_clear();
    if args.json {
        emit_json(&json!({
            "tokens": tokens.len(),
            "nll": result.nll(),
            "ppl": result.ppl(),
            "logprobs": result.logprobs,
        }))?;
    } else {
        let windows = tokens.len().div_ceil(session.ctx());
        let how =
            if windows > 1 { format!(" in {windows} windows of {}", session.ctx()) } else { String::new() };
        emit_line(&format!(
            "{} tokens{how}: perplexity {:.4}, {:.4} nats a token",
            tokens.len(),
            result.ppl(),
            result.nll()
        ))?;
    }
    Ok(())
}

fn read_ids(file: &Path) -> anyhow::Result<Vec<u32>> {
    let text = read_file(file)?;
    let parse =
        |word: &str| word.parse().with_context(|| format!("{}: {word:?} is not a token id", file.display()));
    text.split_whitespace().map(parse).collect()
}

fn encode_file(model: &Model, file: &Path) -> anyhow::Result<Vec<u32>> {
    Ok(model.tokenizer().encode(&read_file(file)?, Default::default()))
}
