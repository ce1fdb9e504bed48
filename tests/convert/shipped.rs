//! Models as their publishers ship them, and as tools save them anew.

use std::fs;
use std::path::Path;

use base64::Engine;
use safetensors::Dtype;
use serde_json::{Value, json};
use torchless::format::convert::{Quant, Report};

use crate::bin_file::BinFile;
use crate::common::family::Family;
use crate::gguf_file::{GgufFile, Tensor, str_value, typed, u32_value};
use crate::hf::{edit, edit_tensors};
use crate::{assert_refused, try_convert};

fn converted(folder: &Path) -> (BinFile, Report) {
    try_convert(folder, Quant::F32).unwrap()
}

/// Gives every tensor another name.
fn rename(folder: &Path, name: impl Fn(&str) -> String) {
    edit_tensors(folder, |tensors| {
        *tensors = std::mem::take(tensors).into_iter().map(|(old, tensor)| (name(&old), tensor)).collect();
    });
}

#[test]
fn tensors_that_a_model_without_its_head_has() {
    let folder = Family::named("smollm3").folder();
    let (plain, _) = converted(folder.path());
    rename(folder.path(), |name| name.strip_prefix("model.").unwrap().to_owned());
    edit(folder.path(), "config.json", |config| config["architectures"] = json!(["SmolLM3Model"]));
    let (bare, _) = converted(folder.path());
    assert!(plain.file == bare.file);
}

#[test]
fn the_text_model_of_one_that_sees() {
    for (prefix, head) in
        [("model.language_model.", "lm_head."), ("language_model.model.", "language_model.lm_head.")]
    {
        let folder = Family::named("ministral3").folder();
        let (plain, _) = converted(folder.path());
        rename(folder.path(), |name| match name.strip_prefix("lm_head.") {
            Some(rest) => format!("{head}{rest}"),
            None => name.replace("model.", prefix),
        });
        edit_tensors(folder.path(), |tensors| {
            for name in ["vision_tower.patch_conv.weight", "multi_modal_projector.norm.weight"] {
                // Not even of a type or shape that text models have.
                tensors.insert(name.to_owned(), (Dtype::I64, vec![1, 2, 1, 1], vec![0; 16]));
            }
        });
        edit(folder.path(), "config.json", |config| {
            let mut text = std::mem::take(config);
            let ids = text.as_object_mut().unwrap().remove("eos_token_id").unwrap();
            text["architectures"] = Value::Null;
            *config = json!({"model_type": "mistral3", "architectures": ["Mistral3ForConditionalGeneration"],
                "text_config": text, "vision_config": {"hidden_size": 8}, "eos_token_id": ids});
        });
        let (bin, report) = converted(folder.path());
        assert!(plain.file == bin.file, "{prefix}");
        let note = "the model takes more than text: 2 tensors for that are left out";
        assert_eq!(report.notes.last().unwrap(), note);
    }
}

#[test]
fn a_head_that_is_missing_is_the_embedding() {
    let folder = Family::named("qwen3").folder();
    edit_tensors(folder.path(), |tensors| drop(tensors.remove("lm_head.weight")));
    let (bin, report) = converted(folder.path());
    assert_eq!(bin.metadata("tie_word_embeddings"), "True");
    assert!(report.notes.last().unwrap().contains("there is no lm_head.weight"), "{:?}", report.notes);
}

#[test]
fn numbers_that_only_python_has() {
    let folder = Family::named("granite").folder();
    let path = folder.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let extra = r#"{"time_step_limit": [0.0, Infinity, -Infinity, NaN], "name": "\"Infinity", "#;
    fs::write(&path, text.replacen('{', extra, 1)).unwrap();
    converted(folder.path());
    fs::write(&path, text.replacen(r#""hidden_size":64"#, r#""hidden_size":NaN"#, 1)).unwrap();
    assert_refused(folder.path(), "hidden_size is missing");
    fs::write(&path, text.replacen('{', r#"{"x": Infinite, "#, 1)).unwrap();
    assert_refused(folder.path(), "not a JSON object");
}

/// The tiny model in three parts, as llama.cpp splits them: all keys in the first, some tensors in each.
#[test]
fn a_gguf_file_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    fs::write(&whole, GgufFile::tiny().bytes()).unwrap();
    let part = |i: usize| folder.path().join(format!("model-{:05}-of-00003.gguf", i + 1));
    let u16_value = |value: u16| typed(2, &value.to_le_bytes());
    let tensors: Vec<Tensor> = GgufFile::tiny().tensors;
    for i in 0..3 {
        let mut file = GgufFile::tiny();
        if i > 0 {
            file.keys.clear();
        }
        file.set("split.count", u16_value(3));
        file.set("split.no", u16_value(i as u16));
        let per_part = tensors.len().div_ceil(3);
        file.tensors = tensors.chunks(per_part).nth(i).unwrap().to_vec();
        fs::write(part(i), file.bytes()).unwrap();
    }
    let (expected, _) = converted(&whole);
    for i in 0..3 {
        assert!(converted(&part(i)).0.file == expected.file, "part {i} is named");
    }
    fs::rename(part(1), folder.path().join("elsewhere.gguf")).unwrap();
    let missing = try_convert(&part(0), Quant::F32).err().unwrap().to_string();
    assert!(missing.contains("00002-of-00003.gguf") && missing.contains("is missing"), "{missing}");
    let unnamed = folder.path().join("elsewhere.gguf");
    assert_refused(&unnamed, "its name must end in");
    fs::copy(part(2), part(1)).unwrap();
    let wrong = try_convert(&part(0), Quant::F32).err().unwrap().to_string();
    assert!(wrong.contains("not the part that its name says"), "{wrong}");
}

#[test]
fn what_other_architectures_have_is_refused() {
    let mut file = GgufFile::tiny();
    file.set("llama.logit_scale", typed(6, &3f32.to_le_bytes()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, file.bytes()).unwrap();
    assert_refused(&path, "llama.logit_scale");
    file.remove("llama.logit_scale");
    file.set("general.architecture", str_value("gpt2"));
    file.set("gpt2.block_count", u32_value(1));
    fs::write(&path, file.bytes()).unwrap();
    assert_refused(&path, "supported are llama");
}

#[test]
fn queries_are_scaled_as_the_configuration_says() {
    let folder = Family::named("gemma2").folder();
    edit(folder.path(), "config.json", |config| config["query_pre_attn_scalar"] = json!(16));
    assert_eq!(converted(folder.path()).0.metadata("attention_multiplier"), "0.25");
}

/// As PyTorch's `float8_e4m3fn` has it.
#[test]
fn weights_in_8_bit_floats() {
    let name = "model.layers.0.mlp.down_proj.weight";
    let known =
        [(0x00, 0.0), (0x01, 0.001953125), (0x08, 0.015625), (0x38, 1.0), (0x7e, 448.0), (0xb9, -1.125)];
    let folder = Family::named("ministral3").folder();
    let ask = |block: Value| {
        edit(folder.path(), "config.json", |config| {
            config["quantization_config"] =
                json!({"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": block});
        });
    };
    let bytes: Vec<u8> = known.iter().map(|(byte, _)| *byte).cycle().take(64 * 128).collect();
    let scale = |values: &[f32]| values.iter().flat_map(|scale| scale.to_le_bytes()).collect::<Vec<u8>>();
    edit_tensors(folder.path(), |tensors| {
        let shape = tensors[name].1.clone();
        tensors.insert(name.into(), (Dtype::F8_E4M3, shape, bytes));
    });
    assert_refused(folder.path(), "has no scales");
    ask(Value::Null);
    assert_refused(folder.path(), "has no scales");
    edit_tensors(folder.path(), |tensors| {
        tensors.insert(format!("{name}_scale_inv"), (Dtype::F32, vec![], scale(&[0.5])));
        let of_activations = name.replace("weight", "activation_scale");
        tensors.insert(of_activations, (Dtype::F32, vec![], scale(&[0.5])));
    });
    let values = converted(folder.path()).0.f32s(name);
    for (i, value) in values.iter().enumerate() {
        assert_eq!(*value, 0.5 * known[i % known.len()].1, "{i}");
    }
    // Blocks of 32 rows and 64 columns.
    let scales = [1.0, 2.0, 4.0, 8.0];
    edit_tensors(folder.path(), |tensors| {
        tensors.insert(format!("{name}_scale_inv"), (Dtype::F32, vec![2, 2], scale(&scales)));
    });
    assert_refused(folder.path(), "another shape");
    ask(json!([32, 64]));
    let values = converted(folder.path()).0.f32s(name);
    for (i, value) in values.iter().enumerate() {
        let (row, col) = (i / 128, i % 128);
        assert_eq!(*value, scales[row / 32 * 2 + col / 64] * known[i % known.len()].1, "{row}, {col}");
    }
    ask(json!([16, 64]));
    assert_refused(folder.path(), "another shape");
}

/// Two special tokens that have names, one that has none, the bytes, and three pieces; ids by hand.
#[test]
fn a_tokenizer_that_mistral_ships() {
    let folder = Family::named("ministral3").folder();
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    assert_refused(folder.path(), "has no tokenizer.json");
    // Of "abc" the pieces are "a" and "bc", since "bc" has the lower rank.
    let pieces = (0..=255).map(|byte| vec![byte]).chain([b"bc".to_vec(), b"ab".to_vec(), b"abab".to_vec()]);
    let vocab: Vec<Value> = pieces
        .enumerate()
        .map(|(rank, bytes)| json!({"rank": rank, "token_bytes": base64::prelude::BASE64_STANDARD.encode(bytes)}))
        .collect();
    let named =
        json!([{"rank": 1, "token_str": "<s>", "is_control": true}, {"rank": 2, "token_str": "</s>"}]);
    let pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\s+";
    let mut tekken = json!({"vocab": vocab, "special_tokens": named, "config":
        {"pattern": pattern, "default_vocab_size": 262, "default_num_special_tokens": 3}});
    let write = |tekken: &Value| fs::write(folder.path().join("tekken.json"), tekken.to_string()).unwrap();
    write(&tekken);
    edit(folder.path(), "config.json", |config| config["vocab_size"] = json!(262));
    edit_tensors(folder.path(), |tensors| {
        for name in ["model.embed_tokens.weight", "lm_head.weight"] {
            let (_, shape, bytes) = tensors.get_mut(name).unwrap();
            (shape[0], *bytes) = (262, vec![0; 4 * 262 * 64]);
        }
    });
    let (_folder, model) = crate::common::converted::converted(folder.path(), Quant::F32);
    let tokenizer = model.tokenizer();
    let ids = |text: &str| tokenizer.encode(text, Default::default());
    let (byte, bc, ab, abab) = (|byte: u8| u32::from(byte) + 3, 259, 260, 261);
    assert_eq!(ids("abc"), [1, byte(b'a'), bc]);
    assert_eq!(ids("abab"), [1, abab]);
    assert_eq!(ids("ababab \u{e9}"), [1, abab, ab, byte(b' '), byte(0xc3), byte(0xa9)]);
    assert_eq!(tokenizer.decode(&[1, abab, byte(b' '), byte(0xc3), byte(0xa9), 2]), "abab \u{e9}");
    assert_eq!((tokenizer.piece(0), tokenizer.eos_ids()), (Some("<SPECIAL_0>"), &[2][..]));

    tekken["vocab"][5]["rank"] = json!(6);
    write(&tekken);
    assert_refused(folder.path(), "not the piece of rank 5");
    tekken["vocab"][5] = json!({"rank": 5, "token_bytes": "no base64!"});
    write(&tekken);
    assert_refused(folder.path(), "not the piece of rank 5");
    tekken["special_tokens"][0]["rank"] = json!(3);
    write(&tekken);
    assert_refused(folder.path(), "has no rank below 3");
}

/// Gemma 3's own configuration leaves out what transformers has as defaults.
#[test]
fn what_a_configuration_leaves_out() {
    let folder = Family::named("gemma3").folder();
    edit(folder.path(), "config.json", |config| {
        let mut text =
            json!({"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}});
        for key in ["hidden_size", "intermediate_size", "num_hidden_layers", "sliding_window"] {
            text[key] = config[key].take();
        }
        *config = json!({"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": text, "eos_token_id": [1, 106]});
    });
    edit_tensors(folder.path(), |tensors| {
        let resize = |name: &str, rows: usize, cols: usize| {
            (name.to_owned(), (Dtype::BF16, vec![rows, cols], vec![0; 2 * rows * cols]))
        };
        tensors.extend([resize("model.embed_tokens.weight", 262_208, 64)]);
        for layer in 0..7 {
            let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}.weight");
            for (part, rows) in [("q_proj", 2048), ("k_proj", 1024), ("v_proj", 1024)] {
                tensors.extend([resize(&name(part), rows, 64)]);
            }
            tensors.extend([resize(&name("o_proj"), 64, 2048)]);
            for part in ["q_norm", "k_norm"] {
                tensors.insert(name(part), (Dtype::BF16, vec![256], vec![0; 512]));
            }
        }
    });
    let (bin, _) = try_convert(folder.path(), Quant::Int8).unwrap();
    for (key, value) in [
        ("n_heads", "8"),
        ("n_kv_heads", "4"),
        ("head_dim", "256"),
        ("vocab_size", "262208"),
        ("max_position_embeddings", "131072"),
        ("rope_theta", "1000000.0"),
        ("window_rope_theta", "10000.0"),
        ("full_attention_layers", "5"),
        ("act_type", "gelu_pytorch_tanh"),
        ("attention_multiplier", "0.0625"),
        ("embedding_multiplier", "8.0"),
        ("tie_word_embeddings", "True"),
    ] {
        assert_eq!(bin.metadata(key), value, "{key}");
    }
}

/// As Qwen's model cards say: `max_position_embeddings` stays what it was.
#[test]
fn a_context_that_yarn_makes_longer() {
    let folder = Family::named("qwen3").folder();
    edit(folder.path(), "config.json", |config| {
        config["rope_parameters"] = Value::Null;
        config["rope_theta"] = json!(1e6);
        config["rope_scaling"] =
            json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 200});
    });
    assert_eq!(converted(folder.path()).0.metadata("max_position_embeddings"), "800");
}
