//! `tokenizer.json` and the small files beside it.

#![expect(clippy::indexing_slicing, reason = "a JSON value indexed by a name that it lacks is null")]

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde_json::Value;

use super::json::{Json, excerpt, read_file};
use crate::Error;
use crate::tokenizer::{Kind, Spec};

/// The expressions by which models cut a text. Llama 3's and Qwen 2's differ in how many digits stand together.
const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer of the model in `folder`, and what the user should know about it.
pub fn read(folder: &Path, config: &Json, vocab_size: usize) -> Result<(Spec, Vec<String>), Error> {
    let Some(json) = Json::read(&folder.join("tokenizer.json"))? else {
        let problem = "has no tokenizer.json (tokenizer.model alone is not supported): save one with transformers' \
                       AutoTokenizer.save_pretrained";
        return Err(Error::file(folder, problem));
    };
    let mut notes = Vec::new();
    let (kind, pre) = front_end(&json)?;
    // Llama 3's files from before the field existed mean true; so does our default for them.
    let ignore_merges = json.get("model").and_then(|model| model["ignore_merges"].as_bool());
    let ignore_merges = ignore_merges.filter(|_| kind == Kind::ByteLevel);
    let nfc = json.get("normalizer").is_some_and(|normalizer| normalizer["type"] == "NFC");
    let prefix_first = kind == Kind::Metaspace
        && json.get("pre_tokenizer").is_some_and(|pre| pre["prepend_scheme"] == "first");
    let mut spec = Spec { kind, pre, ignore_merges, nfc, prefix_first, ..Spec::default() };
    let mut vocab = vocab(&json)?;
    add_tokens(&json, &mut vocab, &mut spec, &mut notes)?;

    let mut entries: Vec<(String, u32)> = vocab.into_iter().collect();
    entries.sort_unstable_by_key(|&(_, id)| id);
    let has_row = |&(_, id): &(String, u32)| (id as usize) < vocab_size;
    let without_row = entries.iter().filter(|entry| !has_row(entry)).count();
    if without_row > 0 {
        notes.push(format!(
            "tokens beyond the {vocab_size} rows of the embedding are left out ({without_row} in number)"
        ));
        entries.retain(has_row);
        spec.special_tokens.retain(has_row);
        spec.added_tokens.retain(has_row);
    }
    spec.vocab = entries;
    spec.merges = merges(&json)?;
    conventions(folder, config, &json, &mut spec, &mut notes)?;
    Ok((spec, notes))
}

/// What the text goes through before the merges: the kind, and for byte-level tokenizers the pre-tokenizer's name.
fn front_end(json: &Json) -> Result<(Kind, Option<String>), Error> {
    let null = Value::Null;
    let part = |key: &str| json.get(key).unwrap_or(&null);
    let (model, normalizer, pre) = (part("model"), part("normalizer"), part("pre_tokenizer"));
    check_model(json, model)?;
    let refuse =
        |what: &str, value: &Value| json.error(format!("{what} {} is not supported", excerpt(value)));
    let byte_fallback = model["byte_fallback"] == true;

    let (kind, name) = if steps(pre, "pretokenizers").iter().any(|step| step["type"] == "ByteLevel") {
        let name = byte_level_name(pre).ok_or_else(|| refuse("pre_tokenizer", pre))?;
        if !(normalizer.is_null() || normalizer["type"] == "NFC") {
            return Err(refuse("normalizer", normalizer));
        }
        (Kind::ByteLevel, Some(name))
    } else {
        if !is_metaspace(normalizer, pre) {
            return Err(match pre {
                Value::Null => refuse("normalizer", normalizer),
                _ => refuse("pre_tokenizer", pre),
            });
        }
        (Kind::Metaspace, None)
    };
    if byte_fallback != (kind == Kind::Metaspace) {
        return Err(json
            .error(format!("model.byte_fallback {byte_fallback} is not supported with this pre_tokenizer")));
    }
    if model["ignore_merges"] == true && kind == Kind::Metaspace {
        return Err(json.error("model.ignore_merges is not supported with this pre_tokenizer"));
    }
    let decoder = part("decoder");
    let decodes = match kind {
        Kind::ByteLevel => "ByteLevel",
        Kind::Metaspace => "ByteFallback",
    };
    if !decoder.is_null() && !steps(decoder, "decoders").iter().any(|step| step["type"] == decodes) {
        return Err(refuse("decoder", decoder));
    }
    Ok((kind, name.map(str::to_owned)))
}

fn check_model(json: &Json, model: &Value) -> Result<(), Error> {
    // Old files leave the type out; only BPE has merges.
    if !(model["type"] == "BPE" || model["type"].is_null() && model["merges"].is_array()) {
        return Err(json.error(format!("model.type is {}: only BPE is supported", excerpt(&model["type"]))));
    }
    for key in ["continuing_subword_prefix", "end_of_word_suffix", "dropout"] {
        let value = &model[key];
        if !(value.is_null() || value == "" || value.as_f64() == Some(0.0)) {
            return Err(json.error(format!("model.{key} {} is not supported", excerpt(value))));
        }
    }
    Ok(())
}

/// The parts of a `Sequence`; of anything else, itself.
fn steps<'a>(value: &'a Value, key: &str) -> Vec<&'a Value> {
    match value[key].as_array() {
        Some(parts) if value["type"] == "Sequence" => parts.iter().collect(),
        _ => vec![value],
    }
}

/// GGUF's name of a byte-level pre-tokenizer.
fn byte_level_name(pre: &Value) -> Option<&'static str> {
    let (bytes, before) =
        steps(pre, "pretokenizers").split_last().map(|(last, before)| (*last, before.to_vec()))?;
    if bytes["type"] != "ByteLevel" || bytes["add_prefix_space"] != false {
        return None;
    }
    // True unless it says otherwise: then it cuts as GPT-2 does.
    let gpt_2 = bytes["use_regex"] != false;
    match (&before[..], gpt_2) {
        ([], true) => Some("gpt-2"),
        ([digits], true) if digits["type"] == "Digits" && digits["individual_digits"] == true => {
            Some("smollm")
        }
        ([split], false)
            if split["type"] == "Split" && split["behavior"] == "Isolated" && split["invert"] != true =>
        {
            match split["pattern"]["Regex"].as_str()? {
                LLAMA_3 => Some("llama-bpe"),
                QWEN_2 => Some("qwen2"),
                TEKKEN => Some("tekken"),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether this is SentencePiece's treatment of spaces: one `▁` in front, and one for every space, nothing split.
///
/// Either a normalizer does it (Prepend, then Replace) or the pre-tokenizer (Metaspace). The latter adds none before a
/// text that begins with a space; SentencePiece, which these tokenizers were trained with, does, and so do we.
fn is_metaspace(normalizer: &Value, pre: &Value) -> bool {
    let is_replace = |step: &Value| {
        step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁"
    };
    let by_normalizer = match steps(normalizer, "normalizers")[..] {
        [prepend, replace] => {
            prepend["type"] == "Prepend" && prepend["prepend"] == "▁" && is_replace(replace)
        }
        _ => false,
    };
    let by_pre = pre["type"] == "Metaspace"
        && pre["replacement"] == "▁"
        && pre["split"] == false
        && matches!(pre["prepend_scheme"].as_str(), Some("first" | "always"));
    by_normalizer && pre.is_null() || by_pre && normalizer.is_null()
}

/// The ordinary pieces.
fn vocab(json: &Json) -> Result<HashMap<String, u32>, Error> {
    let Some(vocab) = json.get("model").and_then(|model| model["vocab"].as_object()) else {
        return Err(json.error("model.vocab is not an object"));
    };
    let entry = |(piece, id): (&String, &Value)| match as_id(id) {
        Some(id) => Ok((piece.clone(), id)),
        None => Err(json.error(format!("model.vocab: the id of {piece:?} is {}", excerpt(id)))),
    };
    vocab.iter().map(entry).collect()
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Adds `added_tokens`: to the vocabulary, and to the special tokens where they are marked so, else to the added ones.
fn add_tokens(
    json: &Json,
    vocab: &mut HashMap<String, u32>,
    spec: &mut Spec,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let mut stripping = 0usize;
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let (Some(piece), Some(id)) = (token["content"].as_str(), as_id(&token["id"])) else {
            return Err(json.error(format!("added_tokens: {} has no content or id", excerpt(token))));
        };
        if vocab.insert(piece.to_owned(), id).is_some_and(|other| other != id) {
            return Err(
                json.error(format!("added_tokens: {piece:?} has another id in model.vocab than {id}"))
            );
        }
        let list = match token["special"] == true {
            true => &mut spec.special_tokens,
            false => &mut spec.added_tokens,
        };
        list.push((piece.to_owned(), id));
        let strips = token["lstrip"] == true || token["rstrip"] == true;
        stripping = stripping.saturating_add(strips.into());
    }
    if stripping > 0 {
        notes.push(format!(
            "{stripping} added tokens ask for the spaces around them to be dropped: they are kept"
        ));
    }
    Ok(())
}

/// The merges, `"left right"` or `["left", "right"]`.
fn merges(json: &Json) -> Result<Vec<(String, String)>, Error> {
    let Some(merges) = json.get("model").and_then(|model| model["merges"].as_array()) else {
        return Err(json.error("model.merges is not an array"));
    };
    let merge = |merge: &Value| {
        let pair = match merge {
            // At the first U+0020 only: pieces may hold other white space.
            Value::String(text) => text.split_once(' '),
            Value::Array(pair) => match &pair[..] {
                [left, right] => left.as_str().zip(right.as_str()),
                _ => None,
            },
            _ => None,
        };
        match pair {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(json.error(format!("model.merges: {} is not two pieces", excerpt(merge)))),
        }
    };
    merges.iter().map(merge).collect()
}

/// BOS, EOS and the chat template, from whichever files say.
fn conventions(
    folder: &Path,
    config: &Json,
    json: &Json,
    spec: &mut Spec,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let generation = Json::read(&folder.join("generation_config.json"))?;
    let tokenizer_config = Json::read(&folder.join("tokenizer_config.json"))?;
    let special_map = Json::read(&folder.join("special_tokens_map.json"))?;
    let with_ids = || [Some(config), generation.as_ref()].into_iter().flatten();
    let with_names = || [tokenizer_config.as_ref(), special_map.as_ref()].into_iter().flatten();

    // First the tokenizer's own: that is what it begins a text with, and what a chat template means by `eos_token`.
    let mut bos: Vec<u32> = with_names().filter_map(|file| named(file, "bos_token", spec)).collect();
    bos.extend(with_ids().map(|file| ids(file, "bos_token_id")).collect::<Result<Vec<_>, _>>()?.concat());
    let mut eos: Vec<u32> = with_names().filter_map(|file| named(file, "eos_token", spec)).collect();
    eos.extend(with_ids().map(|file| ids(file, "eos_token_id")).collect::<Result<Vec<_>, _>>()?.concat());
    let mut seen = HashSet::new();
    eos.retain(|&id| seen.insert(id));
    spec.eos_token_ids = eos;

    let template = template(json, notes)?;
    let asked = tokenizer_config.as_ref().map(|file| file.bool("add_bos_token")).transpose()?.flatten();
    spec.add_bos = Some(asked.unwrap_or(template.is_some()));
    spec.bos_token_id = template.or(bos.first().copied());
    if spec.add_bos == Some(true) && spec.bos_token_id.is_none() {
        return Err(json.error("a text begins with BOS, but no file says which token that is"));
    }
    spec.chat_template = chat_template(folder, tokenizer_config.as_ref())?;
    Ok(())
}

/// The ids in a field that is one id or a list of ids.
pub fn ids(file: &Json, key: &str) -> Result<Vec<u32>, Error> {
    let Some(value) = file.get(key) else {
        return Ok(Vec::new());
    };
    let ids: Option<Vec<u32>> = match value {
        Value::Array(ids) => ids.iter().map(as_id).collect(),
        _ => as_id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| file.error(format!("{key} is {}, not a token id or a list of them", excerpt(value))))
}

/// The id of the token a field names, as a string or as an object with `content`.
fn named(file: &Json, key: &str, spec: &Spec) -> Option<u32> {
    let value = file.get(key)?;
    let piece = value.as_str().or_else(|| value["content"].as_str())?;
    let find = |tokens: &[(String, u32)]| tokens.iter().find(|(token, _)| token == piece).map(|&(_, id)| id);
    find(&spec.special_tokens).or_else(|| find(&spec.vocab))
}

/// The token that the post-processor puts before a text.
fn template(json: &Json, notes: &mut Vec<String>) -> Result<Option<u32>, Error> {
    let Some(post) = json.get("post_processor") else {
        return Ok(None);
    };
    let mut bos = None;
    for step in steps(post, "processors") {
        let refuse = || json.error(format!("post_processor {} is not supported", excerpt(step)));
        match step["type"].as_str() {
            // Moves offsets only.
            Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let items = step["single"].as_array().ok_or_else(refuse)?;
                let mut parts = items.splitn(2, |item| item["Sequence"].is_object());
                let (Some(before), Some(after)) = (parts.next(), parts.next()) else { return Err(refuse()) };
                match before {
                    [] => {}
                    [item] => {
                        let name = item["SpecialToken"]["id"].as_str().ok_or_else(refuse)?;
                        let ids = step["special_tokens"][name]["ids"].as_array().ok_or_else(refuse)?;
                        match ids[..] {
                            [ref id] => bos = Some(as_id(id).ok_or_else(refuse)?),
                            _ => return Err(refuse()),
                        }
                    }
                    _ => return Err(refuse()),
                }
                if !after.is_empty() {
                    notes.push("the tokenizer adds tokens after a text: that is not done".to_owned());
                }
            }
            _ => return Err(refuse()),
        }
    }
    Ok(bos)
}

/// The chat template: `chat_template.jinja`, or the one in `tokenizer_config.json`, of several the one named "default".
fn chat_template(folder: &Path, tokenizer_config: Option<&Json>) -> Result<Option<String>, Error> {
    let path = folder.join("chat_template.jinja");
    if let Some(template) = read_file(&path)? {
        return String::from_utf8(template).map(Some).map_err(|_| Error::file(&path, "not UTF-8 text"));
    }
    let template = tokenizer_config.and_then(|file| file.get("chat_template"));
    Ok(template
        .and_then(|value| match value {
            Value::Array(named) => named
                .iter()
                .find(|entry| entry["name"] == "default")
                .and_then(|entry| entry["template"].as_str()),
            _ => value.as_str(),
        })
        .map(str::to_owned))
}
