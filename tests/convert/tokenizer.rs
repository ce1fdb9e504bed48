//! Tokenizers, from tokenizer.json and from GGUF keys.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use torchless::format::convert::Quant;

use crate::gguf::{assert_cases_refused, write};
use crate::gguf_file::*;
use crate::hf::{edit, folder};
use crate::{assert_refused, try_convert};

fn tokenizer(folder: &Path) -> Value {
    try_convert(folder, Quant::F32).unwrap().0.header["tokenizer"].take()
}

fn metadata(folder: &Path, key: &str) -> String {
    try_convert(folder, Quant::F32).unwrap().0.metadata(key).to_owned()
}

const SPLIT_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SPLIT_1: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn split(regex: &str) -> Value {
    let split =
        json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({"type": "Sequence", "pretokenizers": [split, bytes]})
}

#[test]
fn byte_level_pre_tokenizers_are_recognised() {
    let gpt_2 = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true});
    let digits = json!({"type": "Digits", "individual_digits": true});
    let smollm = json!({"type": "Sequence", "pretokenizers": [digits, gpt_2]});
    let table = [
        (gpt_2, "gpt-2"),
        (smollm, "smollm"),
        (split(SPLIT_3), "llama-bpe"),
        (split(SPLIT_1), "qwen2"),
        (split(TEKKEN), "tekken"),
    ];
    for (pre, name) in table {
        let folder = folder();
        edit(folder.path(), "tokenizer.json", |json| json["pre_tokenizer"] = pre);
        let tokenizer = tokenizer(folder.path());
        assert_eq!((&tokenizer["kind"], &tokenizer["pre"]), (&json!("byte_level"), &json!(name)));
    }
}

#[test]
fn nfc_and_ignored_merges_are_kept() {
    let folder = folder();
    let plain = tokenizer(folder.path());
    assert_eq!((plain.get("nfc"), plain.get("ignore_merges")), (None, None));
    for ignore in [true, false] {
        edit(folder.path(), "tokenizer.json", |json| {
            json["normalizer"] = json!({"type": "NFC"});
            json["model"]["ignore_merges"] = json!(ignore);
        });
        let tokenizer = tokenizer(folder.path());
        assert_eq!((&tokenizer["nfc"], &tokenizer["ignore_merges"]), (&json!(true), &json!(ignore)));
    }
    make_metaspace(folder.path());
    edit(folder.path(), "tokenizer.json", |json| json["model"]["ignore_merges"] = json!(true));
    assert_refused(folder.path(), "ignore_merges");
}

/// Turns the fixture's tokenizer into Llama 2's kind.
fn make_metaspace(folder: &Path) {
    edit(folder, "tokenizer.json", |json| {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        json["normalizer"] =
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]});
        json["pre_tokenizer"] = Value::Null;
        let space = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        json["decoder"] = json!({"type": "Sequence", "decoders": [
            space, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]});
        json["model"]["byte_fallback"] = json!(true);
    });
}

#[test]
fn metaspace_is_recognised_in_both_spellings() {
    let folder = folder();
    make_metaspace(folder.path());
    let spelled_out = tokenizer(folder.path());
    assert_eq!(spelled_out["kind"], "metaspace");
    assert_eq!(spelled_out.get("pre"), None);
    for scheme in ["first", "always", "never"] {
        let step = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        edit(folder.path(), "tokenizer.json", |json| {
            json["normalizer"] = Value::Null;
            json["pre_tokenizer"] = step.clone();
        });
        let mut tokenizer = tokenizer(folder.path());
        let fields = tokenizer.as_object_mut().unwrap();
        assert_eq!(fields.remove("normalizer"), Some(json!([])));
        assert_eq!(fields.remove("pre_tokenizer"), Some(json!([step])));
        assert_eq!(tokenizer, spelled_out);
    }
}

#[test]
fn steps_without_a_name_of_ours_are_kept_as_they_are() {
    let folder = folder();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "use_regex": false});
    let digits = json!({"type": "Digits", "individual_digits": false});
    let words =
        json!({"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Removed", "invert": true});
    let nested = json!({"type": "Sequence", "pretokenizers": [digits, words]});
    let strip = json!({"type": "Strip", "strip_left": true, "strip_right": false});
    edit(folder.path(), "tokenizer.json", |json| {
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [nested, bytes]});
        json["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = json!(true);
        json["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, strip]});
    });
    let tokenizer = tokenizer(folder.path());
    assert_eq!(tokenizer["pre_tokenizer"], json!([digits, words, bytes]));
    assert_eq!(tokenizer["normalizer"], json!([{"type": "NFC"}, strip]));
    assert_eq!((tokenizer.get("pre"), tokenizer.get("nfc")), (None, None));
}

#[test]
fn what_decoding_drops_at_the_start_is_kept() {
    let folder = folder();
    make_metaspace(folder.path());
    let space = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let bytes = json!({"type": "ByteFallback"});
    let fuse = json!({"type": "Fuse"});
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    let [never, first] = ["never", "first"]
        .map(|scheme| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme}));
    let set = |steps: &[&Value]| {
        edit(folder.path(), "tokenizer.json", |json| {
            json["decoder"] = json!({"type": "Sequence", "decoders": steps});
        });
    };
    let table = [
        (vec![&space, &bytes, &fuse, &strip], None),
        (vec![&space, &bytes, &fuse], Some(json!("keep"))),
        (vec![&bytes, &never], Some(json!("keep"))),
        (vec![&bytes, &first], Some(json!("spaces"))),
    ];
    for (steps, expected) in table {
        set(&steps);
        assert_eq!(tokenizer(folder.path()).get("decode_start"), expected.as_ref());
    }
    // Of every piece, or without what makes spaces of ▁.
    for steps in [vec![&space, &bytes, &strip], vec![&bytes, &fuse], vec![&space, &fuse]] {
        set(&steps);
        assert_refused(folder.path(), "decoder");
    }
}

#[test]
fn front_ends_that_are_not_ours_are_refused_and_quoted() {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
    let then = |first: &Value, second: &Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
    let regex = |regex: &str| then(&split(regex)["pretokenizers"][0], &bytes);
    let cases = [
        ("/pre_tokenizer", json!({"type": "BertPreTokenizer"}), "BertPreTokenizer"),
        ("/pre_tokenizer", json!({"type": "ByteLevel", "add_prefix_space": false, "odd": 1}), "odd"),
        (
            "/pre_tokenizer",
            then(&bytes, &json!({"type": "Digits", "individual_digits": true})),
            "the last step",
        ),
        ("/pre_tokenizer", regex(r"a(b"), "a(b"),
        ("/pre_tokenizer", regex(r"[[:alpha:]]+"), "POSIX"),
        ("/pre_tokenizer", regex(r"(?m:a.b)"), "option m"),
        ("/pre_tokenizer", regex(&"a?".repeat(50_000)), "longer than"),
        ("/pre_tokenizer", regex(r"(\p{L}{1000}){1000}"), "cannot be used"),
        ("/pre_tokenizer", json!({"type": "Whitespace"}), "byte_fallback"),
        ("/pre_tokenizer", metaspace, "byte_fallback"),
        ("/normalizer", json!({"type": "Precompiled", "precompiled_charsmap": ""}), "Precompiled"),
        ("/normalizer", json!({"type": "Strip"}), "strip_left"),
        ("/decoder", json!({"type": "WordPiece"}), "WordPiece"),
        ("/post_processor", json!({"type": "RobertaProcessing"}), "RobertaProcessing"),
        ("/model/type", json!("Unigram"), "Unigram"),
        ("/model/byte_fallback", json!(true), "byte_fallback"),
        ("/model/dropout", json!(0.1), "dropout"),
        ("/model/continuing_subword_prefix", json!("##"), "continuing_subword_prefix"),
        ("/model/vocab", json!([]), "model.vocab"),
        ("/model/vocab/a", json!(-1), "model.vocab"),
        ("/model/vocab/a", json!(0), "share id 0"),
        ("/model/merges", json!({}), "model.merges"),
        ("/model/merges/0", json!("ab"), "\"ab\" is not two pieces"),
        ("/model/merges/0", json!(["a", "b", "c"]), "is not two pieces"),
        ("/added_tokens/0/id", json!(77), "<|endoftext|>"),
        ("/added_tokens/0/content", json!(null), "added_tokens"),
        ("/post_processor", json!({"type": "BertProcessing"}), "BertProcessing"),
    ];
    for (place, value, expected) in cases {
        let folder = folder();
        edit(folder.path(), "tokenizer.json", |json| match json.pointer_mut(place) {
            Some(at) => *at = value,
            None => json["model"][place.rsplit('/').next().unwrap()] = value,
        });
        assert_refused(folder.path(), expected);
    }
}

#[test]
fn merges_split_at_the_first_ascii_space_only() {
    let folder = folder();
    let merges = json!(["a b", "\r \u{a0}", "\u{a0}x \u{2003}y", ["c", "d"]]);
    edit(folder.path(), "tokenizer.json", |json| json["model"]["merges"] = merges);
    let expected = json!(["a b", "\r \u{a0}", "\u{a0}x \u{2003}y", "c d"]);
    assert_eq!(tokenizer(folder.path())["merges"], expected);
}

#[test]
fn added_tokens_are_special_where_they_say_so_and_pieces_in_any_case() {
    let folder = folder();
    edit(folder.path(), "tokenizer.json", |json| {
        let added = json["added_tokens"].as_array_mut().unwrap();
        added.push(json!({"id": 290, "content": "<pad>", "special": true, "lstrip": true}));
        added.push(json!({"id": 291, "content": "<tool>", "special": false}));
        added.push(json!({"id": 301, "content": "<beyond>", "special": true}));
    });
    let (bin, report) = try_convert(folder.path(), Quant::F32).unwrap();
    let tokenizer = &bin.header["tokenizer"];
    let special = json!({"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "<pad>": 290});
    assert_eq!(tokenizer["special_tokens"], special);
    assert_eq!((&tokenizer["vocab"]["<pad>"], &tokenizer["vocab"]["<tool>"]), (&json!(290), &json!(291)));
    assert_eq!(tokenizer["vocab"].get("<beyond>"), None, "there is no row for it");
    assert_eq!(tokenizer["added_tokens"], json!({"<tool>": 291}));
    assert_eq!(tokenizer["token_rules"], json!({"<pad>": ["lstrip"]}));
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
}

#[test]
fn the_rules_of_added_tokens_are_kept() {
    let folder = folder();
    edit(folder.path(), "tokenizer.json", |json| {
        let id = json["model"]["vocab"]["a"].clone();
        let added = json["added_tokens"].as_array_mut().unwrap();
        added.push(json!({"id": id, "content": "a", "special": false, "single_word": true}));
        added
            .push(json!({"id": 291, "content": "<b>", "special": false, "rstrip": true, "normalized": true}));
    });
    let rules = json!({"a": ["single_word", "mergeable"], "<b>": ["rstrip", "normalized"]});
    assert_eq!(tokenizer(folder.path())["token_rules"], rules);
    edit(folder.path(), "tokenizer.json", |json| {
        json["added_tokens"].as_array_mut().unwrap().push(json!({"id": 291, "content": "<b>"}));
    });
    assert_refused(folder.path(), "\"<b>\" stands twice");
}

fn template(before: &[&str], after: &[&str]) -> Value {
    let token = |name: &&str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = before.iter().map(token).chain([text]).chain(after.iter().map(token)).collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]},
        "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]},
    }})
}

#[test]
fn bos_comes_from_the_post_processor_unless_the_configuration_says_otherwise() {
    let folder = folder();
    let set = |post: Value, add_bos: Value| {
        edit(folder.path(), "tokenizer.json", |json| json["post_processor"] = post);
        edit(folder.path(), "tokenizer_config.json", |json| json["add_bos_token"] = add_bos);
    };
    let outcome = || {
        let (bin, report) = try_convert(folder.path(), Quant::F32).unwrap();
        let add_bos = bin.header["tokenizer"]["add_bos"].as_bool().unwrap();
        (add_bos, bin.metadata("bos_token_id").to_owned(), report.notes.len())
    };
    set(Value::Null, Value::Null);
    assert_eq!(outcome(), (false, "1".into(), 0));
    set(template(&["<|endoftext|>"], &[]), Value::Null);
    assert_eq!(outcome(), (true, "0".into(), 0));
    let sequence = json!({"type": "Sequence", "processors": [
        {"type": "ByteLevel"}, template(&["<|endoftext|>"], &["<|im_end|>"])]});
    set(sequence, Value::Null);
    assert_eq!(outcome(), (true, "0".into(), 1));
    set(template(&["<|endoftext|>"], &[]), json!(false));
    assert!(!outcome().0);
    set(template(&[], &[]), json!(true));
    assert_eq!(outcome(), (true, "1".into(), 0));
    // What a tokenizer begins a text with is its own affair, not the model's.
    edit(folder.path(), "config.json", |json| json["bos_token_id"] = json!(2));
    assert_eq!(outcome(), (true, "1".into(), 0));
    // Several are all put before a text.
    set(template(&["<|im_end|>", "<|endoftext|>"], &[]), Value::Null);
    assert_eq!(outcome(), (true, "2".into(), 0));
    assert_eq!(tokenizer(folder.path())["start_tokens"], json!([2, 0]));
    set(template(&["<other>"], &[]), Value::Null);
    assert_refused(folder.path(), "post_processor");
}

#[test]
fn end_tokens_are_gathered_from_every_file() {
    let folder = folder();
    assert_eq!(metadata(folder.path(), "eos_token_id"), "2,0");
    edit(folder.path(), "config.json", |json| json["eos_token_id"] = Value::Null);
    assert_eq!(metadata(folder.path(), "eos_token_id"), "2,0");
    fs::remove_file(folder.path().join("generation_config.json")).unwrap();
    assert_eq!(metadata(folder.path(), "eos_token_id"), "2", "by name, from tokenizer_config.json");
    fs::remove_file(folder.path().join("tokenizer_config.json")).unwrap();
    fs::write(folder.path().join("special_tokens_map.json"), r#"{"eos_token": "<|endoftext|>"}"#).unwrap();
    assert_eq!(metadata(folder.path(), "eos_token_id"), "0");
}

#[test]
fn the_chat_template_is_the_default_one() {
    let folder = folder();
    assert!(tokenizer(folder.path())["chat_template"].as_str().unwrap().contains("message in messages"));
    let named = json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]);
    edit(folder.path(), "tokenizer_config.json", |json| json["chat_template"] = named);
    assert_eq!(tokenizer(folder.path())["chat_template"], "yes");
    fs::write(folder.path().join("chat_template.jinja"), "from its own file").unwrap();
    assert_eq!(tokenizer(folder.path())["chat_template"], "from its own file");
    fs::remove_file(folder.path().join("chat_template.jinja")).unwrap();
    edit(folder.path(), "tokenizer_config.json", |json| json["chat_template"] = Value::Null);
    assert_eq!(tokenizer(folder.path()).get("chat_template"), None);
}

fn gguf_tokenizer(change: fn(&mut GgufFile)) -> Value {
    let mut file = GgufFile::tiny();
    change(&mut file);
    let (_folder, path) = write(&file.bytes());
    try_convert(&path, Quant::F32).unwrap().0.header["tokenizer"].take()
}

#[test]
fn gguf_sentencepiece_has_its_merges_from_the_scores() {
    let tokenizer = gguf_tokenizer(|_| {});
    let vocab = json!({"<unk>": 0, "<s>": 1, "</s>": 2, "<0x0A>": 3, "▁": 4, "a": 5, "b": 6, "▁a": 7});
    assert_eq!(tokenizer["kind"], "metaspace");
    assert_eq!(tokenizer["vocab"], vocab);
    assert_eq!(tokenizer["merges"], json!(["▁ a"]));
    assert_eq!(tokenizer["special_tokens"], json!({"<unk>": 0, "<s>": 1, "</s>": 2}));
    assert_eq!(tokenizer["add_bos"], true);

    // A control token is never the result of a merge, though its parts are pieces.
    let tokenizer = gguf_tokenizer(|file| {
        file.set("tokenizer.ggml.tokens", strings(&["<unk>", "<s>", "ab", "<0x0A>", "▁", "a", "b", "▁a"]));
        file.set("tokenizer.ggml.add_bos_token", bool_value(0));
    });
    assert_eq!(tokenizer["merges"], json!(["▁ a"]));
    assert_eq!(tokenizer["add_bos"], false);
}

#[test]
fn gguf_byte_level_names_its_pre_tokenizer() {
    fn byte_level(file: &mut GgufFile) {
        file.set("tokenizer.ggml.model", str_value("gpt2"));
        file.set("tokenizer.ggml.pre", str_value("llama3"));
        file.set("tokenizer.ggml.tokens", strings(&["<s>", "a", "b", "ab", "ba", "x", "<tool>", "[PAD7]"]));
        file.set("tokenizer.ggml.token_type", i32s(&[3, 1, 1, 1, 1, 1, 4, 5]));
        file.set("tokenizer.ggml.merges", strings(&["a b", "b a"]));
        file.set("tokenizer.chat_template", str_value("hello"));
    }
    let tokenizer = gguf_tokenizer(byte_level);
    let expected = json!({
        "kind": "byte_level",
        "pre": "llama-bpe",
        "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 3, "ba": 4, "x": 5, "<tool>": 6},
        "merges": ["a b", "b a"],
        "special_tokens": {"<s>": 0},
        "added_tokens": {"<tool>": 6},
        "add_bos": true,
        "chat_template": "hello",
    });
    assert_eq!(tokenizer, expected);
}

#[test]
fn gguf_sentencepiece_without_a_prefix() {
    let tokenizer = gguf_tokenizer(|file| file.set("tokenizer.ggml.add_space_prefix", bool_value(0)));
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    assert_eq!(tokenizer["normalizer"], json!([spaces]));
    assert_eq!(tokenizer["decode_start"], "keep");
    let tokenizer = gguf_tokenizer(|file| file.set("tokenizer.ggml.add_space_prefix", bool_value(1)));
    assert_eq!((tokenizer.get("normalizer"), tokenizer.get("decode_start")), (None, None));
}

#[test]
fn gguf_phi_3_drops_white_space_after_its_tokens() {
    let tokenizer = gguf_tokenizer(|file| {
        file.set("general.name", str_value("My-Phi-3-mini"));
        file.set(
            "tokenizer.ggml.tokens",
            strings(&["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "<|end|>", "▁a"]),
        );
        file.set("tokenizer.ggml.token_type", i32s(&[2, 3, 3, 6, 1, 1, 3, 1]));
    });
    assert_eq!(tokenizer["token_rules"], json!({"</s>": ["rstrip"], "<|end|>": ["rstrip"]}));
}

#[test]
fn gguf_ends_are_those_of_the_keys_and_those_with_a_name() {
    let mut file = GgufFile::tiny();
    file.set(
        "tokenizer.ggml.tokens",
        strings(&["<unk>", "<s>", "</s>", "<end_of_turn>", "▁", "a", "<eos>", "▁a"]),
    );
    file.set("tokenizer.ggml.token_type", i32s(&[2, 3, 3, 3, 1, 1, 1, 1]));
    file.set("tokenizer.ggml.eos_token_id", u32_value(1));
    file.set("tokenizer.ggml.eom_token_id", u32_value(6));
    file.set("tokenizer.ggml.add_eos_token", bool_value(1));
    let (_folder, path) = write(&file.bytes());
    let (bin, report) = try_convert(&path, Quant::F32).unwrap();
    assert_eq!(bin.metadata("eos_token_id"), "1,6,2,3");
    assert!(report.notes.iter().any(|note| note.contains("EOS")), "{:?}", report.notes);
}

#[test]
fn gguf_pre_tokenizers_have_llama_cpps_names() {
    let of = |name: &'static str| {
        let mut file = GgufFile::tiny();
        file.set("tokenizer.ggml.model", str_value("gpt2"));
        file.set("tokenizer.ggml.pre", str_value(name));
        file.set("tokenizer.ggml.merges", strings(&["▁ a"]));
        let (_folder, path) = write(&file.bytes());
        try_convert(&path, Quant::F32).unwrap().0.header["tokenizer"].take()
    };
    let table = [
        ("phi-2", "gpt-2", None, false),
        ("refact", "smollm", None, false),
        ("llama-bpe", "llama-bpe", None, true),
        ("dbrx", "llama-bpe", Some(false), false),
        ("smaug-bpe", "llama-bpe", Some(false), false),
        ("deepseek-r1-qwen", "qwen2", None, false),
        ("tekken", "tekken", None, true),
    ];
    for (name, pre, ignore, bos) in table {
        let tokenizer = of(name);
        let ignores = tokenizer.get("ignore_merges").and_then(Value::as_bool);
        assert_eq!(
            (&tokenizer["pre"], ignores, &tokenizer["add_bos"]),
            (&json!(pre), ignore, &json!(bos)),
            "{name}"
        );
    }
    for (name, splits) in [("gpt-4o", 1), ("deepseek-llm", 6), ("deepseek-coder", 5), ("deepseek-v3", 3)] {
        let steps = of(name)["pre_tokenizer"].as_array().unwrap().clone();
        assert_eq!(steps.iter().filter(|step| step["type"] == "Split").count(), splits, "{name}");
        assert_eq!(steps.last().unwrap()["type"], "ByteLevel", "{name}");
    }
}

#[test]
fn gguf_tokenizers_that_are_not_ours_are_refused() {
    assert_cases_refused(&[
        (|f| f.set("tokenizer.ggml.model", str_value("bert")), "bert"),
        (|f| f.remove("tokenizer.ggml.model"), "tokenizer.ggml.model is missing"),
        (|f| f.set("tokenizer.ggml.model", str_value("gpt2")), "tokenizer.ggml.pre is missing"),
        (
            |f| {
                f.set("tokenizer.ggml.model", str_value("gpt2"));
                f.set("tokenizer.ggml.pre", str_value("default"));
            },
            "tokenizer.ggml.pre is default: only gpt-2, phi-2",
        ),
        (
            |f| {
                f.set("tokenizer.ggml.model", str_value("gpt2"));
                f.set("tokenizer.ggml.pre", str_value("smollm"));
                f.set("tokenizer.ggml.merges", strings(&["ab"]));
            },
            "\"ab\" is not two pieces",
        ),
        (|f| f.set("tokenizer.ggml.remove_extra_whitespaces", bool_value(1)), "remove_extra_whitespaces"),
        (|f| f.remove("tokenizer.ggml.scores"), "tokenizer.ggml.scores is missing"),
        (|f| f.set("tokenizer.ggml.scores", f32s(&[0.0])), "1 scores"),
        (|f| f.set("tokenizer.ggml.scores", f32s(&[f32::NAN; 8])), "NaN"),
        (|f| f.set("tokenizer.ggml.token_type", i32s(&[1])), "1 token types"),
        (|f| f.set("tokenizer.ggml.tokens", i32s(&[1; 8])), "not an array of strings"),
        (|f| f.set("tokenizer.ggml.tokens", strings(&["a"; 8])), "\"a\" occurs twice"),
        (|f| f.set("tokenizer.ggml.eos_token_id", u32_value(8)), "tokenizer.ggml.eos_token_id is 8"),
    ]);
}
