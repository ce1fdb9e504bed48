//! The command line: one file a subcommand. Results go to stdout, everything else to stderr.

mod bench;
mod cache;
mod chat;
mod completions;
mod convert;
mod explain;
mod generate;
mod input;
mod inspect;
mod interrupt;
#[allow(clippy::indexing_slicing, reason = "shapes of its own making")]
mod kernels;
mod machine;
mod man;
mod model;
mod output;
mod perplexity;
mod plot;
mod progress;
mod pull;
mod render;
mod report;
mod sampling;
mod serve;
mod template;
mod tokenize;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use torchless::kernels::{Isa, Kernels};

/// Runs language models of the Mistral, Llama and Qwen families on the CPU.
///
/// A model is a file, a folder or a name on the hub. Without one named, everything uses SmolLM2-135M-Instruct, which is fetched
/// on first use.
#[derive(Parser)]
#[command(
    name = "torchless",
    version,
    long_version = LONG_VERSION.as_str(),
    override_usage = "torchless <COMMAND> [OPTIONS]\n       torchless <MODEL> <PROMPT> [OPTIONS]   (generate -m MODEL PROMPT)",
    after_help = "Examples:\n  \
        torchless chat\n  \
        torchless generate \"The capital of France is\"\n  \
        torchless serve\n  \
        torchless chat -m llama-3.2-1b.Q4_K_M.gguf\n  \
        torchless chat -m hf:HuggingFaceTB/SmolLM2-360M-Instruct\n  \
        torchless convert ./Mistral-7B-v0.1 mistral.bin\n  \
        torchless mistral.bin \"Once upon a time\" --debug\n\n\
        Results go to stdout, everything else to stderr; --json gives results for machines.\n\
        Exit codes: 0 good, 1 the operation failed, or a text was cut off inside its schema or grammar, 2 wrong usage, 130 interrupted, 143 terminated."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Generate(generate::Args),
    Chat(chat::Args),
    Serve(serve::Args),
    Perplexity(perplexity::Args),
    Tokenize(tokenize::Args),
    Render(render::Args),
    Inspect(inspect::Args),
    Convert(convert::Args),
    Pull(pull::Args),
    Cache(cache::Args),
    Bench(bench::Args),
    Kernels(kernels::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// What `--version` says: everything a bug report needs.
static LONG_VERSION: LazyLock<String> = LazyLock::new(|| {
    let (version, revision) = (env!("CARGO_PKG_VERSION"), env!("TORCHLESS_REVISION"));
    let (rustc, target) = (env!("TORCHLESS_RUSTC"), env!("TORCHLESS_TARGET"));
    let available: Vec<_> = Isa::ALL.into_iter().filter(|isa| isa.is_available()).map(Isa::name).collect();
    let chosen = match Kernels::choose(None) {
        Ok(kernels) => kernels.isa().name().to_owned(),
        Err(e) => e.to_string(),
    };
    let kernels = format!("kernels: {chosen} (this CPU has {})", available.join(", "));
    format!("{version} ({revision})\n{rustc}, {target}\n{kernels}")
});

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args = expand_short_form(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => return say(&with_tip(error, &args)),
    };
    interrupt::listen();
    keep_quiet_of_templates();
    let result = match cli.command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Render(args) => render::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Cache(args) => cache::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    };
    match result {
        Ok(()) => ExitCode::from(interrupt::exit_code()),
        // Whoever read our output has seen enough (`torchless … | head -1`).
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            if let Some(usage) = e.downcast_ref::<clap::Error>() {
                return say(usage);
            }
            output::note(format_args!("error: {}", explain::explain(&e)));
            if interrupt::happened() { ExitCode::from(interrupt::exit_code()) } else { ExitCode::FAILURE }
        }
    }
}

/// Refuses a model where a text is expected, and no model is named: a slip of the hand, not something to say.
fn check_text(command: &str, text: &str, model: &model::ModelArgs) -> anyhow::Result<()> {
    let path = Path::new(text);
    let like_a_model = path
        .extension()
        .is_some_and(|ending| ["bin", "gguf"].iter().any(|known| ending.eq_ignore_ascii_case(known)));
    // A word that happens to be another file's name may well be said.
    if model.model.is_some() || !like_a_model || !path.is_file() {
        return Ok(());
    }
    let problem = format!("{text} is a file, and a text is expected: a model is named by -m {text}");
    Err(wrong_usage(command, ErrorKind::InvalidValue, problem))
}

/// A panic of the engine that renders chat templates is caught, and becomes one line: its own words are not shown before.
fn keep_quiet_of_templates() {
    let show = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some("chat template") {
            show(panic);
        }
    }));
}

/// Wrong usage that shows only when a command has begun.
fn wrong_usage(command: &str, kind: ErrorKind, message: impl std::fmt::Display) -> anyhow::Error {
    let mut cli = Cli::command();
    cli.build();
    let error = match cli.find_subcommand_mut(command) {
        Some(command) => command.error(kind, message),
        None => cli.error(kind, message),
    };
    error.into()
}

/// Prints what clap has to say: wrong usage to stderr, help and versions to stdout.
fn say(what: &clap::Error) -> ExitCode {
    match what.print().and_then(|()| io::stdout().flush()) {
        Err(e) if !what.use_stderr() && e.kind() != io::ErrorKind::BrokenPipe => {
            output::note(format_args!("error: stdout: {e}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::from(what.exit_code() as u8),
    }
}

/// Says where the model goes when it stands where a text is expected, and the text is one argument too many.
fn with_tip(mut error: clap::Error, args: &[OsString]) -> clap::Error {
    let command = args.get(1).and_then(|command| command.to_str());
    let reads_text = matches!(command, Some("generate" | "tokenize" | "perplexity"));
    if error.kind() == ErrorKind::UnknownArgument && reads_text {
        let named = |before: &OsString| matches!(before.to_str(), Some("-m" | "--model" | "--against"));
        let mut pairs = args.iter().zip(args.iter().skip(1)).skip(1);
        let model = pairs.find(|(before, arg)| !named(before) && input::names_model(arg));
        if let Some((_, model)) = model {
            let tip = format!("this command takes its model as an option: -m {}", Path::new(model).display());
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
        }
    }
    error
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Turns `torchless MODEL PROMPT …` into `torchless generate -m MODEL PROMPT …`.
///
/// The first argument is a model when it is no command and looks like a path (a mistyped command does not).
fn expand_short_form(mut args: Vec<OsString>) -> Vec<OsString> {
    let is_model = args.get(1).is_some_and(|first| {
        let text = first.to_string_lossy();
        let is_command = Cli::command().get_subcommands().any(|c| c.get_name() == text) || text == "help";
        let looks_like_path =
            text.contains(['/', '.', std::path::MAIN_SEPARATOR]) || Path::new(first).exists();
        !is_command && !text.starts_with('-') && looks_like_path
    });
    if is_model {
        args.splice(1..1, ["generate".into(), "-m".into()]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(args: &[&str]) -> Vec<String> {
        let args = args.iter().map(OsString::from).collect();
        expand_short_form(args).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_path_and_a_prompt_are_short_for_generate() {
        assert_eq!(
            expand(&["torchless", "m.bin", "hi", "--debug"])[1..],
            ["generate", "-m", "m.bin", "hi", "--debug"]
        );
        for unchanged in
            [&["torchless", "generate", "hi"][..], &["torchless", "generat", "hi"], &["torchless", "-V"]]
        {
            assert_eq!(expand(unchanged), unchanged);
        }
    }
}
