//! Many a `tokenizer.json`, each as Hugging Face's tokenizers follow it (see fixtures/tokenizer/variations.py).

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use flate2::read::GzDecoder;
use safetensors::tensor::{Dtype, TensorView};
use serde::Deserialize;
use serde_json::{Value, json};
use torchless::format::convert::Convertible;
use torchless::tokenizer::{EncodeOptions, Tokenizer};

#[allow(dead_code)]
#[path = "fixtures/tokenizer/load.rs"]
mod load;

#[derive(Deserialize)]
struct Variations {
    limit: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    vocabulary: String,
    file: Value,
    texts: Vec<String>,
    ids: Vec<Vec<u32>>,
    decoded: Vec<Option<String>>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The fixture's model with as many tokens, without a tokenizer.
fn folder(vocab_size: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config: Value =
        serde_json::from_slice(&fs::read(fixture("convert/hf/config.json")).unwrap()).unwrap();
    config["vocab_size"] = json!(vocab_size);
    // What is special is for the tokenizer to say.
    for key in ["bos_token_id", "eos_token_id"] {
        config[key] = Value::Null;
    }
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let file = fs::read(fixture("convert/hf/model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let hidden = config["hidden_size"].as_u64().unwrap() as usize;
    let rows = vec![0; 2 * vocab_size * hidden];
    let rows = TensorView::new(Dtype::F16, vec![vocab_size, hidden], &rows).unwrap();
    let tensors = tensors.iter().map(|(name, view)| match name {
        "model.embed_tokens.weight" | "lm_head.weight" => (name, rows.clone()),
        _ => (name, view),
    });
    let file = safetensors::serialize(tensors, None).unwrap();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

/// The vocabulary and merges as variations.py cuts them.
fn model(name: &str, limit: usize) -> (Value, Value) {
    let spec = load::spec(name);
    let one = |piece: &str| name == "mistral" && piece.chars().count() == 1;
    let kept = spec.vocab.iter().filter(|(piece, id)| (*id as usize) < limit || one(piece));
    let vocab: HashMap<&str, u32> = kept.map(|(piece, _)| piece.as_str()).zip(0..).collect();
    let known =
        |l: &String, r: &String| [l, r, &format!("{l}{r}")].iter().all(|piece| vocab.contains_key(&***piece));
    let merges: Vec<_> = spec.merges.iter().filter(|(l, r)| known(l, r)).collect();
    (json!(vocab), json!(merges))
}

fn tokenizer(folder: &Path, file: &Value) -> Tokenizer {
    fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
    let spec = Convertible::open(folder).unwrap_or_else(|error| panic!("{error}")).tokenizer().spec().clone();
    Tokenizer::new(spec).unwrap()
}

#[test]
fn every_tokenizer_json_is_followed() {
    let path =
        std::env::var("VARIATIONS").map_or_else(|_| fixture("tokenizer/variations.json.gz"), Into::into);
    let file = GzDecoder::new(fs::File::open(path).unwrap());
    let Variations { limit, cases } = serde_json::from_reader(file).unwrap();
    let models: HashMap<&str, _> = ["mistral", "smollm2"].map(|name| (name, model(name, limit))).into();
    let folder = folder(limit + 8000);
    let mut wrong = Vec::new();
    let mut texts = 0;
    for Case { vocabulary, mut file, texts: of_case, ids, decoded } in cases {
        let described = file.to_string();
        (file["model"]["vocab"], file["model"]["merges"]) = models[&*vocabulary].clone();
        let tokenizer = tokenizer(folder.path(), &file);
        for ((text, ids), decoded) in of_case.iter().zip(&ids).zip(&decoded) {
            texts += 1;
            let ours = tokenizer.encode(text, RECOGNISED);
            let back = tokenizer.decode(ids);
            if ours != *ids {
                wrong.push(format!("{text:?}: {ours:?}, not {ids:?}: {described}"));
            } else if decoded.as_ref().is_some_and(|decoded| back != *decoded) {
                wrong.push(format!("{text:?}: decoded {back:?}, not {decoded:?}: {described}"));
            }
        }
    }
    assert!(texts >= 600);
    assert!(
        wrong.is_empty(),
        "{} of {texts} are wrong, such as\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n\n")
    );
}

/// Mistral's first vocabulary with these added tokens from 32000 on.
fn mistral(change: impl Fn(&mut Value), added: &[(&str, &[&str])]) -> Tokenizer {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| folder(32_010));
    let (vocab, merges) = model("mistral", usize::MAX);
    let token = |(id, (content, flags)): (u32, &(&str, &[&str]))| {
        let mut token = json!({"id": id, "content": content, "special": false});
        for flag in *flags {
            token[*flag] = json!(true);
        }
        token
    };
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut file = json!({
        "added_tokens": (32_000..).zip(added).map(token).collect::<Vec<_>>(),
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, space]},
        "model": {"type": "BPE", "byte_fallback": true, "vocab": vocab, "merges": merges},
    });
    change(&mut file);
    // One test at a time: they share the folder.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    tokenizer(FOLDER.path(), &file)
}

const RECOGNISED: EncodeOptions = EncodeOptions { bos: false, special: true };

#[test]
fn metaspace_prepends_nothing_to_what_begins_with_a_space() {
    let with = |scheme: &str| {
        let scheme =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
        mistral(
            |file| {
                file["normalizer"] = Value::Null;
                file["pre_tokenizer"] = scheme.clone();
            },
            &[("<|im_start|>", &[]), ("<|im_end|>", &[])],
        )
    };
    let (first, always, never) = (with("first"), with("always"), with("never"));
    assert_eq!(first.encode(" <|im_start|>x", RECOGNISED), [28705, 32000, 28744]);
    assert_eq!(always.encode("Hi<|im_end|> there", RECOGNISED), [15359, 32001, 736]);
    assert_eq!(first.encode("Hi<|im_end|>there", RECOGNISED)[..2], [15359, 32001]);
    assert_eq!(never.decode(&never.encode("Hi there", RECOGNISED)), "Hi there");
    assert_ne!(never.encode("Hi", RECOGNISED), always.encode("Hi", RECOGNISED));
    // The normalizer of older files does prepend it.
    let older = mistral(|_| {}, &[("<|im_start|>", &[])]);
    assert_eq!(older.encode(" <|im_start|>x", RECOGNISED)[..2], [259, 32000]);
}

#[test]
fn white_space_goes_with_the_tokens_that_strip_it() {
    let ids = |flags: &[&str]| mistral(|_| {}, &[("<mask>", flags)]).encode("a <mask> b", RECOGNISED);
    assert_eq!(ids(&["lstrip"]), [264, 32000, 28705, 287]);
    assert_eq!(ids(&["rstrip"]), [264, 28705, 32000, 287]);
    assert_eq!(ids(&["lstrip", "rstrip"]), [264, 32000, 287]);
}

#[test]
fn a_normalised_token_is_found_in_the_normalised_text() {
    let tokenizer = mistral(|_| {}, &[("user name", &["normalized"])]);
    assert_eq!(tokenizer.encode("my user name is", RECOGNISED), [586, 32000, 349]);
    assert_eq!(tokenizer.decode(&[586, 32000, 349]), "myuser name is");
}

#[test]
fn a_single_word_is_not_found_within_another() {
    let tokenizer = mistral(|_| {}, &[("zmask", &["single_word"])]);
    let found = |text: &str| tokenizer.encode(text, RECOGNISED).contains(&32_000);
    assert!(found("a zmask!") && found("zmask") && found("(zmask)"));
    assert!(!found("zmasks") && !found("unzmask") && !found("zmask_") && !found("é\u{301}zmask"));
}
