//! `torchless perplexity`: how well a model predicts a text.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use serde_json::json;
use torchless::perplexity::Perplexity;
use torchless::runtime::Session;

use super::input::{is_piped, read_text};
use super::model::{ModelArgs, RunArgs};
use super::output::{count, emit_json, emit_line};
use super::progress;
use super::wrong_usage;

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
    /// A text file (UTF-8); - reads stdin, and so does none where stdin is a pipe
    file: Option<PathBuf>,
    /// A file of token ids between white space, used as they are: no BOS is added; - reads stdin
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
    let stdin = Path::new("-");
    let file = args.file.as_deref().or_else(|| is_piped().then_some(stdin));
    let open = || args.model.open(false);
    let (model, tokens) = match (&args.tokens, file) {
        (Some(ids), _) => (open()?, read_ids(ids)?),
        (None, Some(file)) => {
            let model = open()?;
            let tokens = model.tokenizer().encode(&read_text(file)?, Default::default());
            (model, tokens)
        }
        (None, None) => {
            let missing = "no text: give a file, or a pipe on stdin";
            return Err(wrong_usage("perplexity", ErrorKind::MissingRequiredArgument, missing));
        }
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
            "{}{how}: perplexity {:.4}, {:.4} nats a token",
            count(tokens.len(), "token"),
            result.ppl(),
            result.nll()
        ))?;
    }
    Ok(())
}

fn read_ids(file: &Path) -> anyhow::Result<Vec<u32>> {
    let text = read_text(file)?;
    let name = if file == Path::new("-") { "stdin".into() } else { file.display().to_string() };
    let parse = |word: &str| word.parse().with_context(|| format!("{name}: {word:?} is not a token id"));
    text.split_whitespace().map(parse).collect()
}
