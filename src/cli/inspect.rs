//! `torchless inspect`: what a model file holds.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::ValueEnum;
use serde_json::{Map, Value, json};
use torchless::Model;
use torchless::arch::Config;
use torchless::format::bin::{Dtype, Tensor};
use torchless::runtime::{Memory, Session, SessionOptions};
use torchless::tokenizer::Kind;

use super::model::{Kv, NamedModel, RunArgs, note_chat_template};
use super::output::{bytes, count, emit, emit_json};

/// Show a model's configuration, tokenizer, tensors, and the memory it needs
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  torchless inspect\n  torchless inspect model.bin --ctx 4096 --json")]
pub struct Args {
    #[command(flatten)]
    model: NamedModel,
    /// Show every tensor, instead of those of all layers as one
    #[arg(long)]
    tensors: bool,
    /// Print one JSON object; it names every tensor
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let model = args.model.either().open(false)?;
    let options = args.run.session_options(&model, model.config().max_position_embeddings)?;
    Session::check_length(&model, &options)?;
    let memory = Session::memory(&model, &options);
    let caches = Kv::value_variants().iter().filter_map(|&kv| {
        let memory = Session::memory(&model, &SessionOptions { kv: kv.into(), ..options.clone() });
        Some((kv.to_possible_value()?.get_name().to_owned(), memory.kv_cache))
    });
    let caches: Vec<_> = caches.collect();
    note_chat_template(model.tokenizer());
    match args.json {
        true => emit_json(&to_json(&model, options.ctx, memory, &caches))?,
        false => emit(&to_text(&model, options.ctx, memory, &caches, args.tensors))?,
    }
    Ok(())
}

/// Bytes of all tensors of each dtype.
fn bytes_by_dtype(tensors: &[Tensor]) -> BTreeMap<&'static str, usize> {
    let mut by_dtype = BTreeMap::new();
    for tensor in tensors {
        *by_dtype.entry(tensor.dtype().name()).or_default() += tensor.bytes();
    }
    by_dtype
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Metaspace => "metaspace",
        Kind::ByteLevel => "byte_level",
    }
}

/// How the model's publisher wants tokens chosen, each setting by its name.
fn generation(model: &Model) -> [(String, Value); 5] {
    let defaults = model.file().generation();
    // A JSON number as short as it was given.
    let float = |value: Option<f32>| value.and_then(|value| value.to_string().parse().ok());
    [
        ("temperature", float(defaults.temperature)),
        ("top_k", defaults.top_k.map(Value::from)),
        ("top_p", float(defaults.top_p)),
        ("min_p", float(defaults.min_p)),
        ("repetition_penalty", float(defaults.repetition_penalty)),
    ]
    .map(|(name, value)| (name.to_owned(), value.unwrap_or_default()))
}

/// A type of cache (`--kv`), and the bytes that keys and values take in it.
type Cache = (String, usize);

fn to_json(model: &Model, ctx: usize, memory: Memory, caches: &[Cache]) -> Value {
    let (config, tokenizer, file) = (model.config(), model.tokenizer(), model.file());
    let spec = tokenizer.spec();
    let tensor = |t: &Tensor| json!({"name": t.name(), "dtype": t.dtype().name(), "shape": t.shape(), "bytes": t.bytes()});
    json!({
        "file": file.path().display().to_string(),
        "bytes": file.bytes(),
        "config": {
            "architecture": config.architecture,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size,
            "n_layers": config.n_layers,
            "n_heads": config.n_heads,
            "n_kv_heads": config.n_kv_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
            "sliding_window": config.sliding_window,
            "full_attention_layers": config.full_attention_layers,
            "rope_theta": config.rope.theta,
            "rope_magnitude": config.rope.magnitude,
            "window_rope_theta": config.window_rope.map(|rope| rope.theta),
            "long_rope_beyond": config.long_rope.map(|long| long.beyond),
            "rotary_dim": config.rotary_dim(),
            "no_rope_layers": config.no_rope_layers,
            "attention_temperature": config.attention_temperature.map(|temperature| temperature.beta),
            "norm_eps": config.norm_eps,
            "rope_factors": model.rope_factors()[0],
            "long_rope_factors": model.rope_factors()[2],
            "act_type": config.activation.name(),
            "post_norms": config.post_norms,
            "embedding_multiplier": config.embedding_multiplier,
            "residual_multiplier": config.residual_multiplier,
            "attention_multiplier": config.attention_multiplier,
            "logits_scaling": config.logits_scaling,
            "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping,
            "qkv_bias": config.qkv_bias,
            "o_bias": config.o_bias,
            "qk_norm": config.qk_norm,
            "tie_word_embeddings": config.tie_word_embeddings,
        },
        "tokenizer": {
            "kind": kind_name(spec.kind),
            "pre": spec.pre,
            "pieces": spec.vocab.len(),
            "merges": spec.merges.len(),
            "special_tokens": spec.special_tokens.len(),
            "bos_token_id": tokenizer.bos(),
            "eos_token_ids": tokenizer.eos_ids(),
            "add_bos": tokenizer.adds_bos(),
            "chat_template": spec.chat_template.is_some(),
        },
        "generation": generation(model).into_iter().collect::<Map<_, _>>(),
        "tensors": file.tensors().iter().map(tensor).collect::<Vec<_>>(),
        "bytes_by_dtype": bytes_by_dtype(file.tensors()),
        "bytes_a_token": model.bytes_a_token(),
        "memory": {
            "ctx": ctx,
            "kv_cache": memory.kv_cache,
            "kv_cache_by_type": caches.iter().cloned().collect::<BTreeMap<_, _>>(),
            "scratch": memory.scratch,
        },
    })
}

/// The window, and which layers have it.
fn window(config: &Config) -> String {
    match (config.sliding_window, config.full_attention_layers.len()) {
        (None, _) => "none".to_owned(),
        (Some(window), 0) => window.to_string(),
        (Some(window), full) => {
            format!("{window} in {} of {} layers", config.n_layers - full, config.n_layers)
        }
    }
}

/// The rotary embeddings.
fn rope(model: &Model) -> String {
    let (config, [factors, _, long]) = (model.config(), model.rope_factors());
    let divided = |factors: &[f32]| {
        let (least, most) = factors.iter().fold((f32::MAX, 0.0f32), |(a, b), &f| (a.min(f), b.max(f)));
        format!("frequencies divided by {least} to {most}")
    };
    let mut text = config.rope.theta.to_string();
    if let Some(factors) = factors {
        text += &format!(" ({})", divided(factors));
    }
    if let Some(rope) = config.window_rope {
        text += &format!(", {} within the window", rope.theta);
    }
    if let (Some(beyond), Some(factors)) = (config.long_rope, long) {
        text += &format!(", {} in sequences longer than {}", divided(factors), beyond.beyond);
    }
    match config.no_rope_layers.len() {
        0 => text,
        none => text + &format!(", none in {none} layers"),
    }
}

fn to_text(model: &Model, ctx: usize, memory: Memory, caches: &[Cache], all: bool) -> String {
    let of_type = |(kv, size): &Cache| format!("{kv} {}", bytes(*size));
    let (config, tokenizer, file) = (model.config(), model.tokenizer(), model.file());
    let spec = tokenizer.spec();
    let tied = if config.tie_word_embeddings { "tied to the embedding" } else { "its own" };
    let extras = [
        (config.qkv_bias, ", q/k/v biases"),
        (config.o_bias, ", output bias"),
        (config.qk_norm, ", q/k norms"),
        (config.attn_logit_softcapping.is_some(), ", capped scores"),
    ];
    let extras: String = extras.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
    let ids: Vec<_> = tokenizer.eos_ids().iter().map(u32::to_string).collect();
    let bos = tokenizer.bos().map_or("none".to_owned(), |id| id.to_string());
    let by_dtype = bytes_by_dtype(file.tensors());
    let by_dtype: Vec<_> = Dtype::ALL
        .iter()
        .filter_map(|dtype| {
            by_dtype.get(dtype.name()).map(|n| format!("{} {}", bytes(*n), long_name(*dtype)))
        })
        .collect();
    let sampling = generation(model).into_iter().filter(|(_, value)| !value.is_null());
    let sampling: Vec<_> = sampling.map(|(name, value)| format!("{name} {value}")).collect();
    let rows = [
        ("file", format!("{} ({})", file.path().display(), bytes(file.bytes()))),
        ("architecture", config.architecture.clone()),
        ("layers", config.n_layers.to_string()),
        ("hidden size", format!("{}, MLP {}", config.hidden_size, config.intermediate_size)),
        (
            "heads",
            format!(
                "{} on {} key/value heads of {}{extras}",
                config.n_heads, config.n_kv_heads, config.head_dim
            ),
        ),
        ("context", format!("{}, sliding window {}", config.max_position_embeddings, window(config))),
        ("rope theta", format!("{}, norm eps {:e}", rope(model), config.norm_eps)),
        ("vocabulary", format!("{}, head {tied}", config.vocab_size)),
        (
            "tokenizer",
            format!(
                "{}{}, {} pieces, {}, {} special",
                kind_name(spec.kind),
                spec.pre.as_deref().map_or(String::new(), |p| format!(" ({p})")),
                spec.vocab.len(),
                match spec.scores.len() {
                    0 => format!("{} merges", spec.merges.len()),
                    _ => "merged by their scores".to_owned(),
                },
                spec.special_tokens.len()
            ),
        ),
        (
            "begin, end",
            format!(
                "begin {bos} ({}), end {}",
                if tokenizer.adds_bos() { "added" } else { "not added" },
                if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
            ),
        ),
        (
            "sampling",
            if sampling.is_empty() { "no defaults of its own".to_owned() } else { lines(&sampling) },
        ),
        ("weights", lines(&by_dtype)),
        ("a token reads", bytes(model.bytes_a_token())),
        (
            "memory",
            format!(
                "{} of keys and values at context {ctx}, {} of buffers",
                bytes(memory.kv_cache),
                bytes(memory.scratch)
            ),
        ),
        ("", format!("keys and values in {}", caches.iter().map(of_type).collect::<Vec<_>>().join(", "))),
        ("", "(the weights stay in the system's cache of the file)".to_owned()),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<14} {value}");
    }
    text.push('\n');
    for group in groups(file.tensors(), all) {
        let (dtype, size) = (group.dtype, bytes(group.bytes));
        let times = if group.n == 1 { String::new() } else { format!("{} ×", group.n) };
        let _ = writeln!(text, "{times:>4} {dtype:<5} {:>12} {size:>9} {}", group.shape, group.name);
    }
    if !all {
        let n = file.tensors().len();
        let _ = writeln!(text, "\n{}; --tensors shows each", count(n, "tensor"));
    }
    text
}

/// Parts with commas, in lines of 65 characters at the most that begin where the first does.
fn lines(parts: &[String]) -> String {
    let mut text = String::new();
    let mut length = 0;
    for part in parts {
        let separator = match length {
            0 => "",
            _ if length + part.len() + 2 > 65 => ",\n               ",
            _ => ", ",
        };
        length = if separator.contains('\n') { 0 } else { length + separator.len() } + part.len();
        text += separator;
        text += part;
    }
    text
}

/// The name of a format, and what it is called where there is little room.
fn long_name(dtype: Dtype) -> String {
    match (dtype.name(), short_name(dtype)) {
        (name, short) if name == short => name.to_owned(),
        (name, short) => format!("{name} ({short})"),
    }
}

/// The name of a format where there is little room.
fn short_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Int8Panels => "i8x16",
        Dtype::Int4By32 => "i4/32",
        Dtype::Int4By32Minimum => "i4m32",
        other => other.name(),
    }
}

/// Tensors of one name in all layers, of one type and shape.
struct Group {
    n: usize,
    dtype: &'static str,
    shape: String,
    /// Of all of them.
    bytes: usize,
    name: String,
}

/// The tensors in the order of the file, those that differ only in their layer as one; each by itself if `all`.
fn groups(tensors: &[Tensor], all: bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for tensor in tensors {
        let shape: Vec<_> = tensor.shape().iter().map(usize::to_string).collect();
        let (dtype, shape) = (short_name(tensor.dtype()), shape.join(" x "));
        let name = if all { tensor.name().to_owned() } else { of_any_layer(tensor.name()) };
        match groups.iter_mut().find(|g| g.name == name && g.dtype == dtype && g.shape == shape) {
            Some(group) => {
                group.n += 1;
                group.bytes += tensor.bytes();
            }
            None => groups.push(Group { n: 1, dtype, shape, bytes: tensor.bytes(), name }),
        }
    }
    groups
}

/// A tensor's name with `*` in place of the layer's number.
fn of_any_layer(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').map(|part| if is_number(part) { "*" } else { part }).collect::<Vec<_>>().join(".")
}
