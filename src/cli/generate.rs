//! `torchless generate`: a prompt in, text out.

mod reply;

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use torchless::Model;
use torchless::chat::ChatTemplate;
use torchless::runtime::{ChunkProgress, GenerateOptions, Generated, Session, SessionOptions};
use torchless::tokenizer::{EncodeOptions, Tokenizer};

use self::reply::Reply;
use super::input::{is_piped, read_stdin, read_text};
use super::interrupt::{self, Orderly};
use super::model::{ModelArgs, RunArgs};
use super::output::{count, emit, emit_json, emit_raw, note, note_part};
use super::report::{self, shown};
use super::sampling::{SamplingArgs, in_file};
use super::template::{Conversation, TemplateArgs};
use super::{check_text, values, wrong_usage};

/// Continue a prompt: prints what the model writes after it
///
/// The same command gives the same text on every machine, at any number of threads; another --seed gives another text.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless generate \"The capital of France is\"\n  \
    torchless generate -m mistral.bin -n 200 --temp 0 \"Once upon a time\"\n  \
    torchless generate -f story.txt --stop \"THE END\"\n  \
    head -3 story.txt | torchless generate\n  \
    torchless generate --json --seed 7 \"A haiku about rain:\" | jq -r .text\n  \
    torchless generate \"A cat as JSON:\" -j '{\"type\":\"object\",\"required\":[\"name\"]}'\n  \
    torchless generate --messages talk.json --tools tools.json --json | jq .message\n  \
    torchless generate \"The sky is\" -n 1 --json --logprobs 5 | jq .logprobs[0].top\n\n\
    --json gives {prompt_tokens, tokens, text, finish_reason: stop|length|cancelled, timings, seed}, \
    --json-lines {token, text} for each token and {finish_reason, timings} at the end; with a schema or a grammar also \
    {complete: true|false}, and to --messages {message: {role, content, reasoning_content, tool_calls}}.\n\
    A text that is cut off inside its schema or grammar, by -n, --ctx or --stop, is printed as far as it came, with one line \
    on stderr and exit code 1.")]
pub struct Args {
    /// The text to continue; - reads it from stdin, and so does none where stdin is a pipe
    #[arg(conflicts_with = "file")]
    prompt: Option<String>,
    /// Read the prompt from a file instead, without a newline at its end
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Answer a conversation instead: a file of messages as JSON, as OpenAI's clients write them; - reads it from stdin
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "file"])]
    messages: Option<PathBuf>,
    /// Tools that the answer may call: a file with a list of them as JSON. Calls are printed as JSON, one a line
    #[arg(long, value_name = "FILE", requires = "messages")]
    tools: Option<PathBuf>,
    #[command(flatten)]
    template: TemplateArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, allow_negative_numbers = true, value_parser = values::count)]
    max_tokens: usize,
    /// Go on past the end of the text, up to --max-tokens
    #[arg(long)]
    ignore_eos: bool,
    /// End the text before this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Recognise special tokens (such as <|im_start|>) written in the prompt
    #[arg(long)]
    special: bool,
    /// Print one JSON object instead of text
    #[arg(long, group = "machine")]
    json: bool,
    /// Print one JSON object a token, as they come, and one at the end
    #[arg(long, group = "machine")]
    json_lines: bool,
    /// Say how probable each token was (ln p at temperature 1), and the N most probable ones; with --json or --json-lines
    #[arg(long, value_name = "N", requires = "machine", allow_negative_numbers = true, value_parser = values::count)]
    logprobs: Option<usize>,
    /// Send control characters in the text to the terminal as they are, instead of showing them
    #[arg(long)]
    raw: bool,
    /// Report loading, tokens, layers and timings on stderr
    #[arg(long)]
    debug: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[expect(clippy::indexing_slicing, reason = "indexing is how a JSON object gets a member")]
pub fn run(args: Args) -> anyhow::Result<()> {
    let form = args.sampling.form_file();
    let grammar = args.sampling.grammar()?;
    check_text("generate", args.prompt.as_deref().unwrap_or_default(), &args.model)?;
    let asked = asked(&args)?;
    let model = args.model.open(args.debug)?;
    let sampling = args.sampling.settings(&model)?;
    let tokenizer = model.tokenizer();
    let Prompt { prompt, mut reply, end_of_turn } = match &asked {
        Asked::Answer(conversation) => {
            Prompt::of(conversation, &args.template.of_model(tokenizer)?, tokenizer)?
        }
        Asked::More(text) => {
            let special = EncodeOptions { special: args.special, ..Default::default() };
            Prompt { prompt: tokenizer.encode(text, special), reply: None, end_of_turn: None }
        }
    };
    let session_options = args.run.session_options(&model, prompt.len().saturating_add(args.max_tokens))?;
    let mut session = Session::new(&model, &session_options)?;
    if args.debug {
        report_start(&model, &prompt, &session_options);
    }
    session.observe(observer(prompt.len(), model.config().n_layers, args.debug));
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        sampling,
        stop: args.stop,
        ignore_eos: args.ignore_eos,
        grammar,
        logprobs: args.logprobs,
        stop_tokens: end_of_turn.into_iter().collect(),
    };
    let show = if args.raw { emit_raw } else { emit };
    let mut logprobs = Vec::new();
    let in_file = |error| in_file(error, form.as_deref());
    let result = session.install(|session| -> anyhow::Result<Generated> {
        let _orderly = Orderly::begin();
        let mut generation = session.generate(&prompt, &options).map_err(in_file)?;
        while let Some(piece) = generation.next().transpose().map_err(in_file)? {
            let said = reply.as_mut().map(|reply| reply.push(&piece));
            if args.json_lines {
                emit_json(&report::piece(&piece, tokenizer))?;
            } else if args.json {
                logprobs.extend(report::logprobs(&piece, tokenizer));
            } else {
                show(said.as_deref().unwrap_or(&piece.text))?;
            }
            if interrupt::happened() {
                generation.cancel();
            }
        }
        Ok(generation.finish())
    })?;
    let last = reply.as_mut().map(Reply::finish);
    let with_message = |mut object: serde_json::Value| {
        if let Some(reply) = &reply {
            object["message"] = reply.message();
        }
        object
    };
    if args.json_lines {
        emit_json(&with_message(report::end(&result)))?;
    } else if args.json {
        let mut object = with_message(report::generated(&prompt, &result));
        object["seed"] = options.sampling.seed.into();
        if args.logprobs.is_some() {
            object["logprobs"] = logprobs.into();
        }
        emit_json(&object)?;
    } else {
        let last = last.unwrap_or_default();
        show(&last)?;
        if last.ends_with('}') || !result.text.ends_with('\n') {
            emit("\n")?;
        }
    }
    if args.debug || !(args.json || args.json_lines) {
        note(report::timings(&result));
    }
    // The text is there as far as it came; whoever reads it as what the schema promises has to know.
    match report::incomplete(&result) {
        Some(problem) => anyhow::bail!(problem),
        None => Ok(()),
    }
}

/// What is asked for.
enum Asked {
    /// More of a text.
    More(String),
    /// An answer.
    Answer(Conversation),
}

/// Reads what is asked for, from wherever it comes.
fn asked(args: &Args) -> anyhow::Result<Asked> {
    if let Some(file) = &args.messages {
        return Ok(Asked::Answer(Conversation::read(file, args.tools.as_ref())?));
    }
    if args.template.is_given() {
        let problem = "--chat-template and --template-arg are for a conversation (--messages)";
        return Err(wrong_usage("generate", ErrorKind::MissingRequiredArgument, problem));
    }
    Ok(Asked::More(prompt(args.prompt.as_deref(), args.file.as_deref())?))
}

/// What the model is fed, and what becomes of its answer.
struct Prompt {
    prompt: Vec<u32>,
    /// Takes an answer apart.
    reply: Option<Reply>,
    end_of_turn: Option<u32>,
}

impl Prompt {
    fn of(
        conversation: &Conversation,
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> anyhow::Result<Self> {
        let Conversation { messages, tools } = conversation;
        let prompt = template.encode_with_tools(tokenizer, messages, tools, true)?;
        let reply = Some(Reply::new(tokenizer, template, conversation, &prompt));
        Ok(Self { prompt, reply, end_of_turn: template.end_of_turn(tokenizer) })
    }
}

/// The prompt, from wherever it comes. Editors end a file with a newline that is not meant to be part of it.
fn prompt(given: Option<&str>, file: Option<&Path>) -> anyhow::Result<String> {
    let mut text = match (given, file) {
        (Some("-"), _) => read_stdin()?,
        (Some(text), _) => return Ok(text.to_owned()),
        (None, Some(file)) => read_text(file)?,
        (None, None) if is_piped() => read_stdin()?,
        (None, None) => {
            let missing = "no prompt: give one between quotes, a file (-f FILE), or a pipe on stdin";
            return Err(wrong_usage("generate", ErrorKind::MissingRequiredArgument, missing));
        }
    };
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

fn report_start(model: &Model, prompt: &[u32], options: &SessionOptions) {
    let config = model.config();
    note(format_args!(
        "model: {}, {} layers of {}, {} heads on {}, vocabulary {}",
        config.architecture,
        config.n_layers,
        config.hidden_size,
        config.n_heads,
        config.n_kv_heads,
        config.vocab_size
    ));
    note(format_args!(
        "run: {}, {}, context {}",
        options.kernels.isa(),
        count(options.threads, "thread"),
        options.ctx
    ));
    let pieces: Vec<_> = prompt.iter().map(|&id| format!("\"{}\"", shown(model.tokenizer(), id))).collect();
    note(format_args!("prompt: {} [{}]", count(prompt.len(), "token"), pieces.join(", ")));
}

/// Reports layers if `debug`, and ends the process if Ctrl-C was pressed before the prompt's last token is done: then there
/// is no text yet that could end in an orderly way.
fn observer(
    prompt: usize,
    n_layers: usize,
    debug: bool,
) -> impl FnMut(ChunkProgress) -> ControlFlow<()> + Send {
    let mut report = report_layer(prompt, n_layers);
    move |at| {
        if debug && at.tokens > 0 {
            report(at);
        }
        if at.position < prompt && interrupt::happened() {
            note(format_args!(
                "interrupted after {} of the prompt's {}",
                at.position,
                count(prompt, "token")
            ));
            interrupt::end();
        }
        ControlFlow::Continue(())
    }
}

/// On a terminal a line that is rewritten after each layer, elsewhere one line for each chunk of the prompt and one for the
/// answer's first token: a line for each token would be read by nobody.
fn report_layer(prompt: usize, n_layers: usize) -> impl FnMut(ChunkProgress) + Send {
    let live = io::stderr().is_terminal();
    move |at| {
        let positions = at.position..at.position + at.tokens;
        let (start, end) = if live { ("\r", "") } else { ("", "\n") };
        if live || (at.layers == n_layers && at.position <= prompt) {
            note_part(&format!("{start}positions {positions:?}: layer {}/{n_layers}{end}", at.layers));
        }
    }
}
