//! `torchless perplexity`: how well a model predicts a text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::error::ErrorKind;
use serde_json::json;
use torchless::Model;
use torchless::kv::KvType;
use torchless::perplexity::{Divergence, Perplexity};
use torchless::runtime::{Session, SessionOptions, Threads};

use super::input::{is_piped, read_text};
use super::model::{Kv, ModelArgs, RunArgs};
use super::output::{count, emit, emit_json, emit_line};
use super::progress;
use super::wrong_usage;

/// Tokens of a chunk where models are compared and `--ctx` says nothing: llama.cpp's default.
const CHUNK: usize = 512;

/// Measure how well the model predicts a text (lower is better)
///
/// A text longer than the context is worked out in windows of that size, each from its own start.
///
/// With --against the model is compared with a reference as llama.cpp's `llama-perplexity --kl-divergence` does it. The text is
/// cut into chunks of --ctx tokens, and what is left at its end is not used. A chunk's first token becomes BOS where the
/// tokenizer adds that to texts. The predictions of a chunk's second half are counted: of its tokens ctx/2+1 to ctx-1, the
/// first being 0.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless perplexity book.txt\n  \
    torchless perplexity -m model.bin --tokens ids.txt --json\n  \
    torchless perplexity -m int8.bin --against f32.bin book.txt\n\n\
    --json gives {tokens, nll, ppl, logprobs}: nll in nats a token, ppl = e^nll,\n\
    logprobs[i] = ln p(token i+1 | tokens 0..=i).\n\
    With --against it gives {tokens, ctx, chunks, counted, nll, ppl, ppl_against, ppl_ratio, kl_mean, kl_median, kl_99, \
    kl_max, same_top}, all of the counted predictions: kl_… of KL(reference || model) in nats, same_top the share whose most \
    probable token is the reference's.")]
pub struct Args {
    /// A text file (UTF-8); - reads stdin, and so does none where stdin is a pipe
    file: Option<PathBuf>,
    /// A file of token ids between white space, used as they are: no BOS is added; - reads stdin
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    tokens: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    /// Compare with this model, the reference, usually the same with wider weights: perplexities and Kullback-Leibler divergence,
    /// in chunks of --ctx tokens [there 512 by default]
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// What the reference's keys and values are kept as [default: as --kv has it]
    #[arg(long, value_name = "TYPE", requires = "against")]
    against_kv: Option<Kv>,
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
    if let Some(path) = &args.against {
        let adds_bos = args.tokens.is_none() && model.tokenizer().adds_bos();
        let bos = model.tokenizer().bos().filter(|_| adds_bos);
        return compare(&args, &model, path, &tokens, bos);
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

/// Compares `model` with the one at `path`.
fn compare(
    args: &Args,
    model: &Arc<Model>,
    path: &Path,
    tokens: &[u32],
    bos: Option<u32>,
) -> anyhow::Result<()> {
    let reference = ModelArgs { model: Some(path.to_owned()), ..ModelArgs::default() }.open(false)?;
    let longest = |model: &Model| model.config().max_position_embeddings;
    let ctx = CHUNK.min(longest(model)).min(longest(&reference));
    let options = args.run.session_options(model, ctx)?;
    let threads = Arc::new(Threads::new(options.threads)?);
    let session = |model: &Arc<Model>, options: &SessionOptions| {
        // Of two models, it has to be said which does not allow it.
        Session::on_threads(model, options, &threads)
            .with_context(|| model.file().path().display().to_string())
    };
    let kv = args.against_kv.or(args.run.kv).map_or(SessionOptions::new(&reference).kv, KvType::from);
    let mut against = session(&reference, &SessionOptions { kv, ..options.clone() })?;
    let mut session = session(model, &options)?;
    let bar = progress::tokens(2 * (tokens.len() - tokens.len() % options.ctx));
    let found =
        Divergence::measure(&mut session, &mut against, tokens, bos, |tokens| bar.inc(tokens as u64))?;
    bar.finish_and_clear();
    let (kl_median, kl_99, kl_max) =
        (found.kl_quantile(0.5), found.kl_quantile(0.99), found.kl_quantile(1.0));
    if args.json {
        emit_json(&json!({
            "tokens": tokens.len(),
            "ctx": found.ctx(),
            "chunks": found.chunks(),
            "counted": found.counted(),
            "nll": found.nll(),
            "ppl": found.ppl(),
            "ppl_against": found.ppl_against(),
            "ppl_ratio": found.ppl_ratio(),
            "kl_mean": found.kl_mean(),
            "kl_median": kl_median,
            "kl_99": kl_99,
            "kl_max": kl_max,
            "same_top": found.same_top(),
        }))?;
        return Ok(());
    }
    let rows = [
        (
            "tokens",
            format!(
                "{} in {} of {}, {} counted",
                tokens.len(),
                count(found.chunks(), "chunk"),
                found.ctx(),
                found.counted()
            ),
        ),
        (
            "perplexity",
            format!(
                "{:.4}, of the reference {:.4}, ratio {:.6}",
                found.ppl(),
                found.ppl_against(),
                found.ppl_ratio()
            ),
        ),
        (
            "KL, in nats",
            format!(
                "mean {:.6}, median {kl_median:.6}, 99 % {kl_99:.6}, largest {kl_max:.6}",
                found.kl_mean()
            ),
        ),
        ("same top token", format!("{:.3} %", 100.0 * found.same_top())),
    ];
    let line = |(name, value): &(_, String)| format!("{name:<14} {value}\n");
    emit(&rows.iter().map(line).collect::<String>())?;
    Ok(())
}

fn read_ids(file: &Path) -> anyhow::Result<Vec<u32>> {
    let text = read_text(file)?;
    let name = if file == Path::new("-") { "stdin".into() } else { file.display().to_string() };
    let parse = |word: &str| word.parse().with_context(|| format!("{name}: {word:?} is not a token id"));
    text.split_whitespace().map(parse).collect()
}
