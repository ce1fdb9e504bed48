//! `torchless cache`: the conversions that are kept.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use clap::error::ErrorKind;
use serde_json::json;
use torchless::pull::{Conversion, Conversions, Origin};

use super::output::{bytes, count, emit, emit_json, note};
use super::wrong_usage;

/// List the models that were converted to be used, or remove some
///
/// What -m names and is no model file yet is converted once and kept here. Whatever is removed is converted anew when it is used
/// again. What the hub's files become is here; the files themselves are in the Hugging Face cache, for whose care there is `hf cache`.
#[derive(clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    torchless cache\n  \
    torchless cache rm llama-3.2-1b.Q4_K_M-auto-1f0c6a8e2b\n  \
    torchless cache rm ./Mistral-7B-v0.1              (whatever it was converted into)\n  \
    torchless cache rm --all"
)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(clap::Subcommand)]
enum Action {
    Rm(Rm),
}

/// Remove conversions
#[derive(clap::Args)]
struct Rm {
    /// What a conversion is called in the list, what it was made from, or its model file
    #[arg(value_name = "NAME|PATH", required_unless_present = "all")]
    names: Vec<String>,
    /// Remove all of them
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Print one JSON object: what was removed
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let conversions = Conversions::in_cache_folder()?;
    let list = conversions.list();
    match args.action {
        None if args.json => show_json(&conversions, &list)?,
        None => show(&conversions, &list)?,
        Some(Action::Rm(rm)) => {
            let chosen = if rm.all { list } else { choose(&rm.names, &list)? };
            for kept in &chosen {
                conversions.remove(kept)?;
            }
            if rm.json {
                show_json(&conversions, &chosen)?;
            } else {
                note(format_args!(
                    "{} removed, {}",
                    count(chosen.len(), "conversion"),
                    bytes(total(&chosen))
                ));
            }
        }
    }
    Ok(())
}

fn total(list: &[Conversion]) -> usize {
    list.iter().map(|kept| kept.bytes as usize).sum()
}

/// The conversions that these words name; all of them must name one, lest only some are removed.
fn choose(names: &[String], list: &[Conversion]) -> anyhow::Result<Vec<Conversion>> {
    let mut chosen: Vec<Conversion> = Vec::new();
    for name in names {
        if name.is_empty() {
            return Err(wrong_usage("cache", ErrorKind::InvalidValue, "an empty name names no conversion"));
        }
        let origin = Origin::of_path(Path::new(name)).ok();
        let whole = Path::new(name).canonicalize().ok();
        let is_meant = |kept: &&Conversion| {
            let is_source = origin.as_ref().is_some_and(|origin| origin.name() == kept.source);
            let is_model = whole.is_some() && whole == kept.model.canonicalize().ok();
            kept.name == *name || kept.source == *name || is_source || is_model
        };
        let found: Vec<_> = list.iter().filter(is_meant).collect();
        if found.is_empty() {
            bail!("{name}: no conversion is called so, or made from it: `torchless cache` lists them");
        }
        let new = found.into_iter().filter(|kept| chosen.iter().all(|other| other.name != kept.name));
        chosen.extend(new.cloned().collect::<Vec<_>>());
    }
    Ok(chosen)
}

fn show_json(conversions: &Conversions, list: &[Conversion]) -> anyhow::Result<()> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    let one = |kept: &Conversion| {
        json!({
            "name": kept.name,
            "source": kept.source,
            "quant": kept.quant,
            "file": kept.model.display().to_string(),
            "bytes": kept.bytes,
            "used": seconds(kept.used),
        })
    };
    let list: Vec<_> = list.iter().map(one).collect();
    emit_json(&json!({"folder": conversions.folder().display().to_string(), "conversions": list}))?;
    Ok(())
}

fn show(conversions: &Conversions, list: &[Conversion]) -> anyhow::Result<()> {
    let width = list.iter().map(|kept| kept.name.chars().count()).max().unwrap_or(0);
    for kept in list {
        let (size, used) = (bytes(kept.bytes as usize), ago(kept.used));
        emit(&format!("{:width$}  {size:>8}  {used:>12}  {}\n", kept.name, kept.source))?;
    }
    let folder = conversions.folder().display();
    note(format_args!("{}, {} in {folder}", count(list.len(), "conversion"), bytes(total(list))));
    Ok(())
}

/// How long ago something was, in its largest unit.
fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().map_or(0, |passed| passed.as_secs()) as usize;
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute")];
    match units.iter().find(|(length, _)| seconds >= *length) {
        Some((length, unit)) => format!("{} ago", count(seconds / length, unit)),
        None => "just now".to_owned(),
    }
}
