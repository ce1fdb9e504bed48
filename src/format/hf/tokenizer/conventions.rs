//! What a text begins and ends with, and the chat template, from whichever files say.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use super::super::json::{Json, excerpt, read_file};
use super::{as_id, steps};
use crate::Error;
use crate::tokenizer::Spec;

/// BOS, EOS and the chat template, from whichever files say.
pub fn read(
    folder: &Path,
    config: &Json,
    json: &Json,
    spec: &mut Spec,
    notes: &mut Vec<String>,
) -> Result<(), Error> {
    let generation = Json::read(&folder.join("generation_config.json"))?;
    let tokenizer_config = Json::read(&folder.join("tokenizer_config.json"))?;
    let special_map = Json::read(&folder.join("special_tokens_map.json"))?;
    let with_ids = [Some(config), generation.as_ref()];
    let with_names = || [tokenizer_config.as_ref(), special_map.as_ref()].into_iter().flatten();

    // First the tokenizer's own: that is what it begins a text with, and what a chat template means by `eos_token`.
    let mut bos: Vec<u32> = with_names().filter_map(|file| named(file, "bos_token", spec)).collect();
    bos.extend(all_ids("bos_token_id", with_ids)?);
    let mut eos: Vec<u32> = with_names().filter_map(|file| named(file, "eos_token", spec)).collect();
    eos.extend(all_ids("eos_token_id", with_ids)?);
    spec.eos_token_ids = once_each(eos);

    let template = template(json, notes)?;
    let asked = tokenizer_config.as_ref().map(|file| file.bool("add_bos_token")).transpose()?.flatten();
    spec.add_bos = Some(asked.unwrap_or(!template.is_empty()));
    spec.bos_token_id = template.first().or(bos.first()).copied();
    spec.start_tokens = if template.len() > 1 { template } else { Vec::new() };
    if spec.add_bos == Some(true) && spec.bos_token_id.is_none() {
        return Err(json.error("a text begins with BOS, but no file says which token that is"));
    }
    spec.chat_template = chat_template(folder, tokenizer_config.as_ref())?;
    Ok(())
}

/// The tokens that end a text, as the files of ids have them.
pub fn eos(folder: &Path, config: &Json) -> Result<Vec<u32>, Error> {
    let generation = Json::read(&folder.join("generation_config.json"))?;
    all_ids("eos_token_id", [Some(config), generation.as_ref()])
}

/// Each id where it stands first.
pub fn once_each(mut ids: Vec<u32>) -> Vec<u32> {
    let mut seen = HashSet::new();
    ids.retain(|&id| seen.insert(id));
    ids
}

/// The ids in a field of several files.
fn all_ids(key: &str, files: [Option<&Json>; 2]) -> Result<Vec<u32>, Error> {
    files
        .into_iter()
        .flatten()
        .map(|file| ids(file, key))
        .collect::<Result<Vec<_>, _>>()
        .map(|ids| ids.concat())
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

/// The tokens that the post-processor puts before a text.
fn template(json: &Json, notes: &mut Vec<String>) -> Result<Vec<u32>, Error> {
    let mut start = Vec::new();
    let Some(post) = json.get("post_processor") else { return Ok(start) };
    for step in steps(post, "processors") {
        let refuse = || json.error(format!("post_processor {} is not supported", excerpt(step)));
        match step["type"].as_str() {
            // Moves offsets only.
            Some("ByteLevel") => {}
            Some("TemplateProcessing") if start.is_empty() => {
                let items = step["single"].as_array().ok_or_else(refuse)?;
                let mut parts = items.splitn(2, |item| item["Sequence"].is_object());
                let (Some(before), Some(after)) = (parts.next(), parts.next()) else { return Err(refuse()) };
                for item in before {
                    let name = item["SpecialToken"]["id"].as_str().ok_or_else(refuse)?;
                    let ids = step["special_tokens"][name]["ids"].as_array().ok_or_else(refuse)?;
                    for id in ids {
                        start.push(as_id(id).ok_or_else(refuse)?);
                    }
                }
                if !after.is_empty() {
                    notes.push("the tokenizer adds tokens after a text: that is not done".to_owned());
                }
            }
            _ => return Err(refuse()),
        }
    }
    Ok(start)
}

/// The chat template: `chat_template.jinja`, or the one in `tokenizer_config.json`, of several the one named "default".
pub fn chat_template(folder: &Path, tokenizer_config: Option<&Json>) -> Result<Option<String>, Error> {
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
