//! `torchless chat`: a conversation with a model.

mod input;
mod turns;

use std::ffi::OsString;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use torchless::Error;
use torchless::chat::{Chat, Message, Reply, Role};
use torchless::format::AtomicFile;
use torchless::runtime::{GenerateOptions, Session};

use self::input::{Input, Said};
use self::turns::{told_by, without_oldest};
use super::explain::explain;
use super::input::{names_model, read_stdin};
use super::interrupt::{self, Orderly};
use super::model::{ModelArgs, RunArgs};
use super::output::{count, emit, emit_json, note};
use super::report;
use super::sampling::{SamplingArgs, in_file};
use super::template::{Conversation, TemplateArgs};
use super::values::{self, positive};
use super::wrong_usage;

/// Talk with a model: each line is a message, and the model answers
///
/// With a question on the command line it answers that, and ends: - reads the question from stdin. A file's name is a model,
/// and so is a model's folder, hf:ORG/NAME, and a word that ends in .bin or .gguf; all else is a question.
///
/// The conversation stays in memory, so that a turn costs only its new words. Ctrl-C stops an answer; Ctrl-D or /quit
/// ends. A line that ends with \ goes on in the next, and text between two """ may have many lines. Without a terminal
/// messages are read from stdin.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    torchless chat\n  \
    torchless chat \"Why is the sky blue?\"\n  \
    torchless chat qwen3.bin --template-arg enable_thinking=false\n  \
    torchless chat mistral.bin --system \"You answer in rhymes.\" --temp 0.6\n  \
    printf 'I am Ada.\\nWho am I?\\n' | torchless chat --json | jq -r .text\n\n\
    With a schema or a grammar, an answer that is cut off inside it is said on stderr; where messages come from stdin, or one question \
    was asked, the exit code is 1 then.\n\
    Commands within: /help /reset /system TEXT /trim N /save FILE /load FILE /stats /quit; Tab completes them.\n\
    What is typed at a terminal is kept for the next time, in ~/.local/state/torchless/chat-history\n\
    ($XDG_STATE_HOME/torchless; where there is no such folder, in that of programs' data).")]
pub struct Args {
    /// The model file, the same as -m; or a question
    #[arg(value_name = "MODEL|QUESTION")]
    first: Option<OsString>,
    /// A question, after the model
    #[arg(value_name = "QUESTION")]
    second: Option<OsString>,
    #[command(flatten)]
    model: ModelArgs,
    /// What the model is told before all else
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    template: TemplateArgs,
    /// Begin with the conversation in a file: messages as JSON, as OpenAI's clients and /save write them
    #[arg(long, value_name = "FILE")]
    messages: Option<PathBuf>,
    /// Most tokens of an answer [default: as many as there is room for]
    #[arg(short = 'n', long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true,
        allow_negative_numbers = true, value_parser = values::count)]
    max_tokens: usize,
    /// End an answer before this string; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Do not keep what is typed for the next time, and do not offer what was
    #[arg(long)]
    no_history: bool,
    /// Print one JSON object a reply instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Positions to make room for where nothing is said, if the model allows so many.
const CONTEXT: usize = 8192;

/// The commands that end a chat.
const END: [&str; 3] = ["quit", "exit", "bye"];

const HELP: &str = "\
/help          show this (so does /?)
/reset         begin anew
/system TEXT   tell the model something before all else; without TEXT, show what it is told
/trim [N]      forget the N oldest turns [the older half], where the context is full
/save FILE     write the conversation to a file (JSON)
/load FILE     go on with a conversation from a file
/stats         how full the context is, and how fast the last answer was
/quit          end (so do /exit, /bye and Ctrl-D)
A line that ends with \\ goes on in the next; text between two \"\"\" may have many lines. Ctrl-C stops an answer.";

pub fn run(mut args: Args) -> anyhow::Result<()> {
    let question = question(&mut args)?;
    let form = args.sampling.form_file();
    let grammar = args.sampling.grammar()?;
    let messages = args.messages.as_deref().map(conversation).transpose()?;
    let model = args.model.open(false)?;
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        grammar,
        sampling: args.sampling.settings(&model)?,
        stop: args.stop,
        ..GenerateOptions::default()
    };
    let template = args.template.of_model(model.tokenizer())?;
    let told = told_by(&template);
    let session = Session::new(&model, &args.run.session_options(&model, CONTEXT)?)?;
    let mut chat = Chat::new(session, template);
    chat.observe(|_| interrupt::check());
    chat.set_messages(messages.unwrap_or_default());
    if args.messages.is_none() || args.system.is_some() {
        chat.set_system(args.system.as_deref().unwrap_or_default());
    }
    let mut inputs = vec![model.file().path().to_owned()];
    inputs.extend(args.template.asked().map(PathBuf::from));
    inputs.extend(args.messages);
    inputs.extend(form.clone());
    // Where that is a file.
    inputs.extend(cfg!(unix).then(|| "/dev/stdin".into()));
    let mut talk = Talk { chat, options, json: args.json, form, inputs, told, last: None };
    if let Some(question) = question {
        return match talk.turn(&question)? {
            Some(problem) => Err(anyhow::anyhow!("the answer: {problem}")),
            None => Ok(()),
        };
    }
    // What was said of the last answer that ended before its schema or grammar did.
    let mut incomplete = None;
    let mut input = Input::open(!args.no_history)?;
    if input.is_editor() {
        let ctx = talk.chat.session().ctx();
        note(format_args!("Context of {ctx} tokens. /help lists the commands, Ctrl-D ends."));
    }
    while let Some(said) = input.next()? {
        let result = match said {
            Said::Command(name, argument) if END.contains(&&*name) && argument.is_empty() => break,
            Said::Command(name, argument) => talk.command(&name, &argument),
            Said::Message(text) => talk.turn(&text).map(|problem| {
                problem.inspect(|problem| note(problem));
                incomplete = problem.or(incomplete);
            }),
        };
        // It was the answer that was to be stopped.
        interrupt::forget_ctrl_c();
        match result {
            // Someone who types can do something about it; a script cannot.
            Err(error) if input.is_editor() && !super::is_broken_pipe(&error) => {
                note(format_args!("error: {}", explain(&error)));
            }
            result => result?,
        }
        if interrupt::happened() {
            break;
        }
    }
    // Each such answer had its line: scripts also get the exit code.
    match incomplete {
        Some(problem) if !input.is_editor() && !interrupt::happened() => {
            anyhow::bail!("an answer: {problem}")
        }
        _ => Ok(()),
    }
}

/// The one question that is asked, if there is one. A model that is named beside it becomes that of the options.
fn question(args: &mut Args) -> anyhow::Result<Option<String>> {
    let question = match (args.first.take(), args.second.take()) {
        (Some(model), question) if args.model.model.is_none() && names_model(&model) => {
            args.model.model = Some(model.into());
            question
        }
        (question, None) => question,
        (_, Some(_)) => {
            let problem = "a chat takes a model and one question: put the question between quotes";
            return Err(wrong_usage("chat", ErrorKind::TooManyValues, problem));
        }
    };
    let Some(question) = question else { return Ok(None) };
    if question == "-" {
        let text = read_stdin()?;
        return Ok(Some(text.strip_suffix('\n').unwrap_or(&text).to_owned()));
    }
    match question.into_string() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(wrong_usage("chat", ErrorKind::InvalidUtf8, "the question is not UTF-8 text")),
    }
}

/// The conversation in a file.
fn conversation(file: &Path) -> anyhow::Result<Vec<Message>> {
    let Conversation { messages, tools } = Conversation::read(file, None)?;
    if !tools.is_empty() {
        anyhow::bail!("{}: a chat has no tools: torchless generate --messages answers it", file.display());
    }
    Ok(messages)
}

/// A conversation at the command line.
struct Talk {
    chat: Chat,
    options: GenerateOptions,
    json: bool,
    /// The file that the answers' form is read from.
    form: Option<PathBuf>,
    /// Files that a conversation is not saved over.
    inputs: Vec<PathBuf>,
    /// What the template tells the model where nobody else does.
    told: Option<String>,
    last: Option<Reply>,
}

impl Talk {
    /// Says something, and shows the answer as it comes; gives what is to be said of one that ended before its schema or grammar
    /// did.
    #[expect(clippy::indexing_slicing, reason = "indexing is how a JSON object gets a member")]
    fn turn(&mut self, text: &str) -> anyhow::Result<Option<&'static str>> {
        let mut failed: Option<io::Error> = None;
        let quiet = self.json;
        let orderly = Orderly::begin();
        let reply = self.chat.send(text, &self.options, |piece| {
            if !quiet && let Err(error) = emit(&piece.text) {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            interrupt::check()
        });
        drop(orderly);
        let reply = reply.map_err(|error| full(error, self.form.as_deref()))?;
        // Other choices for the same question asked again, and still the same conversation for the same first seed.
        let seed = &mut self.options.sampling.seed;
        *seed = seed.wrapping_add(1);
        if let Some(error) = failed {
            return Err(error.into());
        }
        if self.json {
            let mut object = report::generated(&reply.prompt_tokens, &reply.generated);
            object["text"] = reply.content.as_str().into();
            object["cached_tokens"] = reply.cached_tokens.into();
            emit_json(&object)?;
        } else if !reply.content.ends_with('\n') {
            emit("\n")?;
        }
        let incomplete = report::incomplete(&reply.generated);
        if reply.context_full {
            let (ctx, max) =
                (self.chat.session().ctx(), self.chat.session().model().config().max_position_embeddings);
            let longer = if ctx < max {
                format!(", or start with a longer --ctx (up to {max})")
            } else {
                String::new()
            };
            note(format_args!(
                "The context of {ctx} tokens is full: /trim forgets the oldest turns, /reset all{longer}."
            ));
        }
        self.last = Some(reply);
        Ok(incomplete)
    }

    fn command(&mut self, name: &str, argument: &str) -> anyhow::Result<()> {
        match (name, argument) {
            ("help" | "?", _) => note(HELP),
            ("reset", _) => {
                self.chat.reset();
                note("The conversation begins anew.");
            }
            ("system", "") => match self.chat.messages().first().filter(|m| m.role == Role::System) {
                Some(system) => note(system.content.text()),
                None => match &self.told {
                    Some(told) => note(format_args!("The template tells the model: {told}")),
                    None => note("The model is told nothing; /system TEXT tells it something."),
                },
            },
            ("system", text) => self.chat.set_system(text),
            ("trim", n) => self.trim(n)?,
            ("save" | "load", "") => anyhow::bail!("/{name} needs a file's name"),
            ("save", file) => self.save(Path::new(file))?,
            ("load", file) => self.load(Path::new(file))?,
            ("stats", _) => self.stats(),
            (name, _) if END.contains(&name) => note(format_args!("/{name} takes nothing after it.")),
            // A path, or a slip of the hand: no reason to end what is going on.
            _ => note(format_args!(
                "There is no command /{name}: /help lists them. To say the line put it between two \"\"\"."
            )),
        }
        Ok(())
    }

    fn trim(&mut self, n: &str) -> anyhow::Result<()> {
        let n = match n {
            "" => None,
            _ => Some(positive(n).map_err(|what| anyhow::anyhow!("/trim {n}: {what}"))?),
        };
        let (messages, dropped) = without_oldest(self.chat.messages(), n);
        self.chat.set_messages(messages);
        const LATER: &str = "; what is left is read anew with the next message.";
        match dropped {
            0 => note("There are no turns, and nothing to drop."),
            1 => note(format_args!("The oldest turn is dropped{LATER}")),
            n => note(format_args!("The {n} oldest turns are dropped{LATER}")),
        }
        Ok(())
    }

    fn save(&self, file: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_string_pretty(self.chat.messages())?;
        let mut saved = AtomicFile::create(file, &self.inputs)?;
        saved.file().write_all((json + "\n").as_bytes()).map_err(Error::io(file))?;
        saved.commit()?;
        let messages = count(self.chat.messages().len(), "message");
        note(format_args!("{messages} saved to {}.", file.display()));
        Ok(())
    }

    fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        let messages = conversation(file)?;
        note(format_args!("{} from {}.", count(messages.len(), "message"), file.display()));
        self.chat.set_messages(messages);
        Ok(())
    }

    fn stats(&self) {
        let session = self.chat.session();
        note(format_args!("context: {} of {} tokens", session.position(), session.ctx()));
        if let Some(reply) = &self.last {
            note(format_args!("last turn: {} there already", count(reply.cached_tokens, "token")));
            note(report::timings(&reply.generated));
        }
    }
}

/// What someone who talks can do about a full context.
fn full(error: Error, form: Option<&Path>) -> anyhow::Error {
    match error {
        Error::ContextFull { tokens, ctx, max } => {
            let longer = match max > ctx {
                true => format!(", or a longer context (--ctx, up to {max})"),
                false => String::new(),
            };
            anyhow::anyhow!(
                "the context is full: the conversation has come to {tokens} tokens, and {ctx} fit. \
                 Forget the oldest turns (/trim), begin anew (/reset), or choose a shorter message{longer}"
            )
        }
        other => in_file(other, form),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_context_says_what_can_be_done_about_it() {
        let text = |ctx| full(Error::ContextFull { tokens: 40, ctx, max: 256 }, None).to_string();
        for part in ["the context is full", "40 tokens", "32 fit", "/reset", "/trim", "(--ctx, up to 256)"] {
            assert!(text(32).contains(part), "{}", text(32));
        }
        assert!(!text(256).contains("--ctx"), "{}", text(256));
    }
}
