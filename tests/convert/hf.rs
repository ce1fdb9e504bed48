//! Hugging Face folders: values, layout, and the models that are refused.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use approx::assert_relative_eq;
use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;
use torchless::format::convert::{Quant, RowLayout};

use crate::bin_file::{BinFile, f32s};
use crate::{assert_refused, fixture, refusal, try_convert};

/// A copy of the fixture's folder, to change.
pub fn folder() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("hf")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

/// Changes a JSON file of `folder`.
pub fn edit(folder: &Path, name: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(name);
    let mut value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Changes the tensors of `folder`: name to type, shape and bytes.
type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

pub fn edit_tensors(folder: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = folder.join("model.safetensors");
    let mut tensors = read_tensors(&path);
    change(&mut tensors);
    write_tensors(&path, &tensors);
}

fn read_tensors(path: &Path) -> Tensors {
    let file = fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let owned = |(name, view): (&str, TensorView<'_>)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    tensors.iter().map(owned).collect()
}

fn write_tensors(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The fixture's tensors as f32, decoded independently.
fn source_values() -> HashMap<String, Vec<f32>> {
    let halves = |data: &[u8]| -> Vec<u16> {
        data.chunks_exact(2).map(|two| u16::from_le_bytes(two.try_into().unwrap())).collect()
    };
    let values = |dtype, data: &[u8]| match dtype {
        Dtype::F32 => f32s(data),
        Dtype::F16 => halves(data).into_iter().map(|bits| f16::from_bits(bits).to_f32()).collect(),
        Dtype::BF16 => halves(data).into_iter().map(|bits| bf16::from_bits(bits).to_f32()).collect(),
        other => panic!("{other:?}"),
    };
    let tensors = read_tensors(&fixture("hf/model.safetensors"));
    let kinds: Vec<Dtype> = tensors.values().map(|tensor| tensor.0).collect();
    assert!([Dtype::F32, Dtype::F16, Dtype::BF16].iter().all(|kind| kinds.contains(kind)));
    tensors.into_iter().map(|(name, (dtype, _, data))| (name, values(dtype, &data))).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn f32_keeps_every_value() {
    let (bin, report) = try_convert(&fixture("hf"), Quant::F32).unwrap();
    let source = source_values();
    assert_eq!(bin.names().len(), source.len());
    assert_eq!(report.tensors, source.len());
    assert_eq!(report.notes, [""; 0]);
    for (name, values) in source {
        assert_eq!(bits(&bin.f32s(&name)), bits(&values), "{name}");
    }
}

#[test]
fn int8_is_what_numpy_makes_of_the_weights() {
    let (bin, _) = try_convert(&fixture("hf"), Quant::Int8.laid_out(RowLayout::Rows)).unwrap();
    let file = fs::read(fixture("int8.safetensors")).unwrap();
    let goldens = SafeTensors::deserialize(&file).unwrap();
    let mut matrices = 0;
    for (name, values) in source_values() {
        if bin.shape(&name).len() == 1 {
            assert_eq!(bits(&bin.f32s(&name)), bits(&values), "{name}");
            continue;
        }
        let (values, scales) = bin.int8s(&name);
        let expected = goldens.tensor(&format!("{name}.q")).unwrap();
        let expected: Vec<i8> = expected.data().iter().map(|&byte| byte as i8).collect();
        assert_eq!(values, expected, "{name}");
        let expected = f32s(goldens.tensor(&format!("{name}.scales")).unwrap().data());
        assert_eq!(bits(&scales), bits(&expected), "{name}");
        matrices += 1;
    }
    assert_eq!(2 * matrices, goldens.len(), "every golden is compared");
    let (_, scales) = bin.int8s("model.layers.0.self_attn.q_proj.weight");
    let infinite: Vec<bool> = scales.iter().map(|scale| scale.is_infinite()).collect();
    assert_eq!(infinite[..5], [true, true, false, true, false], "zeros, tiny, small, subnormal, ordinary");
}

#[test]
fn int8_proj_touches_gate_and_up_only() {
    let (bin, _) = try_convert(&fixture("hf"), Quant::Int8Proj).unwrap();
    assert_eq!(bin.metadata("quant"), "int8");
    for name in bin.names() {
        let proj = name.contains("mlp.gate_proj") || name.contains("mlp.up_proj");
        assert_eq!(bin.dtype(name), if proj { "int8" } else { "f32" }, "{name}");
    }
}

#[test]
fn the_metadata_are_python_style_strings() {
    let (bin, _) = try_convert(&fixture("hf"), Quant::F32).unwrap();
    let expected = json!({
        "format_version": "1.1",
        "architecture": "llama",
        "hidden_size": "32",
        "intermediate_size": "48",
        "n_layers": "2",
        "n_heads": "4",
        "n_kv_heads": "2",
        "head_dim": "16",
        "vocab_size": "301",
        "max_position_embeddings": "2048",
        "sliding_window": "None",
        "rope_theta": "500000.0",
        "norm_eps": "1e-05",
        "act_type": "silu",
        "tie_word_embeddings": "False",
        "quant": "f32",
        "bos_token_id": "1",
        "eos_token_id": "2,0",
    });
    assert_eq!(bin.header["metadata"], expected);
    assert_eq!(bin.names()[0], "model.embed_tokens.weight");
    assert_eq!(bin.names()[20], "lm_head.weight");
    assert_eq!(bin.shape("model.layers.1.self_attn.q_proj.weight"), [64, 32]);
}

/// Splits the fixture into two shards.
fn shard(folder: &Path) {
    let single = folder.join("model.safetensors");
    let tensors = read_tensors(&single);
    let (one, two): (Tensors, Tensors) =
        tensors.into_iter().partition(|(name, _)| name.contains("layers.0") || name.contains("embed"));
    let mut weight_map = json!({});
    for (file, tensors) in
        [("model-00001-of-00002.safetensors", &one), ("model-00002-of-00002.safetensors", &two)]
    {
        for name in tensors.keys() {
            weight_map[name] = json!(file);
        }
        write_tensors(&folder.join(file), tensors);
    }
    fs::remove_file(single).unwrap();
    let index = json!({"metadata": {}, "weight_map": weight_map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_convert_to_the_same_file() {
    let folder = folder();
    shard(folder.path());
    let (sharded, _) = try_convert(folder.path(), Quant::Int8).unwrap();
    let (single, _) = try_convert(&fixture("hf"), Quant::Int8).unwrap();
    assert!(sharded.file == single.file);
}

#[test]
fn damaged_shards_are_refused() {
    let index = "model.safetensors.index.json";
    for name in ["../model.safetensors", "/etc/passwd", "", "..", "a/b.safetensors", "./x"] {
        let folder = folder();
        shard(folder.path());
        edit(folder.path(), index, |value| value["weight_map"]["lm_head.weight"] = json!(name));
        assert_refused(folder.path(), "not a file in this folder");
    }
    let folder = folder();
    shard(folder.path());
    edit(folder.path(), index, |value| value["weight_map"]["lm_head.weight"] = json!("gone.safetensors"));
    assert_refused(folder.path(), "gone.safetensors");
    edit(folder.path(), index, |value| value["weight_map"] = json!([]));
    assert_refused(folder.path(), "weight_map");
    fs::write(folder.path().join(index), "{").unwrap();
    assert_refused(folder.path(), "not a JSON object");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = folder();
    shard(folder.path());
    let [one, two] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut tensors = read_tensors(&folder.path().join(two));
    tensors.extend(read_tensors(&folder.path().join(one)).into_iter().take(1));
    write_tensors(&folder.path().join(two), &tensors);
    assert_refused(folder.path(), "in another shard as well");
}

fn is_tied(bin: &BinFile) -> bool {
    let tied = bin.metadata("tie_word_embeddings") == "True";
    assert_eq!(tied, !bin.names().contains(&"lm_head.weight"), "a tied head is not stored");
    tied
}

#[test]
fn a_tied_head_is_left_out() {
    let folder = folder();
    edit(folder.path(), "config.json", |config| config["tie_word_embeddings"] = json!(true));
    let (bin, report) = try_convert(folder.path(), Quant::Int8).unwrap();
    assert!(!is_tied(&bin), "another head than the embedding is used, as transformers 5 does");
    assert!(report.notes.iter().any(|note| note.contains("tie_word_embeddings")), "{:?}", report.notes);

    edit_tensors(folder.path(), |tensors| {
        let copy = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_owned(), copy);
    });
    let (bin, report) = try_convert(folder.path(), Quant::Int8).unwrap();
    assert!(is_tied(&bin), "a stored copy is ignored");
    assert_eq!(report.notes, [""; 0]);

    edit_tensors(folder.path(), |tensors| drop(tensors.remove("lm_head.weight")));
    assert!(is_tied(&try_convert(folder.path(), Quant::Int8).unwrap().0));

    edit(folder.path(), "config.json", |config| config["tie_word_embeddings"] = json!(false));
    let (bin, report) = try_convert(folder.path(), Quant::Int8).unwrap();
    assert!(is_tied(&bin));
    assert!(report.notes[0].contains("there is no lm_head.weight"), "{:?}", report.notes);

    edit(folder.path(), "config.json", |config| config["tie_word_embeddings"] = Value::Null);
    assert!(is_tied(&try_convert(folder.path(), Quant::Int8).unwrap().0));
}

#[test]
fn defaults_are_those_of_transformers() {
    let folder = folder();
    let metadata = |change: fn(&mut Value), key: &str| {
        edit(folder.path(), "config.json", change);
        try_convert(folder.path(), Quant::F32).unwrap().0.metadata(key).to_owned()
    };
    assert_eq!(
        metadata(|config| config["sliding_window"] = json!(16), "sliding_window"),
        "None",
        "Llama has none"
    );
    let as_mistral = |config: &mut Value| {
        config["model_type"] = json!("mistral");
        config["architectures"] = json!(["MistralForCausalLM"]);
    };
    assert_eq!(metadata(as_mistral, "sliding_window"), "16");
    assert_eq!(metadata(|config| config["sliding_window"] = Value::Null, "sliding_window"), "None");
    let without = |config: &mut Value| drop(config.as_object_mut().unwrap().remove("sliding_window"));
    assert_eq!(metadata(without, "sliding_window"), "4096");
    assert_eq!(metadata(|config| config["rms_norm_eps"] = Value::Null, "norm_eps"), "1e-06");
    let theta = |config: &mut Value| {
        config["rope_theta"] = Value::Null;
        config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1e6});
    };
    assert_eq!(metadata(theta, "rope_theta"), "1000000.0");
    assert_eq!(metadata(|config| config["rope_parameters"] = Value::Null, "rope_theta"), "10000.0");
}

/// What transformers 5.24's `convert_rope_params_to_dict` makes of each, or a refusal where the file contradicts itself.
#[test]
fn rope_parameters_are_read_where_transformers_reads_them() {
    let linear = |theta: Value| json!({"rope_type": "linear", "factor": 2.0, "rope_theta": theta});
    let cases = [
        (json!({"rope_scaling": linear(json!(123))}), Ok("123.0")),
        (json!({"rope_scaling": linear(json!(123)), "rope_theta": 1e4}), Ok("123.0")),
        (json!({"rope_scaling": linear(Value::Null), "rope_theta": 5e5}), Ok("500000.0")),
        (json!({"rope_parameters": {"rope_theta": 5e5}, "rope_theta": 1e4}), Ok("500000.0")),
        (json!({"rope_parameters": {"rope_type": "default"}, "rope_theta": 7e5}), Ok("700000.0")),
        (json!({"rope_scaling": {}, "rope_parameters": {"rope_theta": 5e5}}), Ok("500000.0")),
        (json!({"rope_scaling": linear(json!(9)), "rope_parameters": linear(json!(9))}), Ok("9.0")),
        (
            json!({"rope_scaling": linear(json!(9)), "rope_parameters": linear(json!(8))}),
            Err("rope_parameters"),
        ),
        (
            json!({"rope_scaling": linear(json!(9)), "rope_parameters": {"rope_theta": 9}}),
            Err("rope_parameters"),
        ),
        (
            json!({"rope_scaling": {"type": "default"}, "rope_parameters": linear(json!(1e4))}),
            Err("rope_parameters"),
        ),
        (json!({"rope_parameters": {"rope_theta": "1e4"}}), Err("rope_theta")),
        (json!({"rope_parameters": {"rope_theta": -1}}), Err("rope_theta")),
        (json!({"rope_scaling": {"rope_type": 7, "factor": 2}}), Err("rope scaling")),
        (
            json!({"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 2}}),
            Err("rope scaling"),
        ),
    ];
    for (fields, expected) in cases {
        let folder = folder();
        edit(folder.path(), "config.json", |config| {
            let config = config.as_object_mut().unwrap();
            config.remove("rope_theta");
            config.remove("rope_scaling");
            config.extend(fields.as_object().unwrap().clone());
        });
        match expected {
            Ok(theta) => {
                let bin = try_convert(folder.path(), Quant::F32)
                    .unwrap_or_else(|error| panic!("{fields}: {error}"))
                    .0;
                assert_eq!(bin.metadata("rope_theta"), theta, "{fields}");
                let scaled = fields.to_string().contains("linear");
                assert_eq!(bin.names().iter().any(|name| name.contains("rotary_emb")), scaled, "{fields}");
            }
            Err(part) => assert_refused(folder.path(), part),
        }
    }
}

/// The length that Llama 3's scaling starts from: transformers takes the outer one first, and the context's length last.
#[test]
fn the_original_length_of_llama_3_may_stand_in_three_places() {
    let factors = |outer: Value, inner: Value, context: u32| {
        let folder = folder();
        edit(folder.path(), "config.json", |config| {
            config["rope_scaling"] = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": inner});
            config["original_max_position_embeddings"] = outer;
            config["max_position_embeddings"] = json!(context);
        });
        try_convert(folder.path(), Quant::F32).unwrap().0.f32s("model.rotary_emb.factors")
    };
    let expected = factors(Value::Null, json!(64), 2048);
    assert_eq!(factors(json!(64), json!(64), 2048), expected);
    assert_eq!(factors(json!(64), json!(128), 2048), expected);
    assert_eq!(factors(json!(64), Value::Null, 2048), expected);
    assert_eq!(factors(Value::Null, Value::Null, 64), expected);
    assert_ne!(factors(Value::Null, json!(128), 2048), expected);
}

/// Mistral's window is every layer's in transformers, whatever `layer_types` says; Qwen's only if it is asked for.
#[test]
fn layer_types_that_contradict_the_window_are_refused() {
    for (model_type, class, fields) in [
        ("mistral", "MistralForCausalLM", json!({"layer_types": ["full_attention", "full_attention"]})),
        ("mistral", "MistralForCausalLM", json!({"layer_types": ["full_attention", "sliding_attention"]})),
        ("qwen3", "Qwen3ForCausalLM", json!({"layer_types": ["sliding_attention", "sliding_attention"]})),
        (
            "qwen3",
            "Qwen3ForCausalLM",
            json!({"layer_types": ["sliding_attention", "full_attention"],
            "use_sliding_window": false, "sliding_window": 4096}),
        ),
    ] {
        let folder = folder();
        edit(folder.path(), "config.json", |config| {
            config["model_type"] = json!(model_type);
            config["architectures"] = json!([class]);
            config["sliding_window"] = json!(16);
            config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        });
        assert_refused(folder.path(), "layer_types");
    }
}

#[test]
fn qwens_window_is_taken_where_every_layer_has_it() {
    let folder = folder();
    edit_tensors(folder.path(), |tensors| {
        for i in 0..2 {
            for (name, len) in [("q", 64), ("k", 32), ("v", 32)] {
                let name = format!("model.layers.{i}.self_attn.{name}_proj.bias");
                tensors.insert(name, (Dtype::F32, vec![len], vec![0; 4 * len]));
            }
        }
    });
    edit(folder.path(), "config.json", |config| {
        config["model_type"] = json!("qwen2");
        config["architectures"] = json!(["Qwen2ForCausalLM"]);
        config["sliding_window"] = json!(16);
    });
    let window = |values: Value| {
        edit(folder.path(), "config.json", |config| {
            config.as_object_mut().unwrap().extend(values.as_object().unwrap().clone())
        });
        try_convert(folder.path(), Quant::F32).unwrap().0.metadata("sliding_window").to_owned()
    };
    assert_eq!(window(json!({})), "None", "only where asked for");
    assert_eq!(window(json!({"use_sliding_window": true})), "None", "from layer 28 on");
    assert_eq!(window(json!({"max_window_layers": 0})), "16");
    assert_eq!(
        window(json!({"max_window_layers": 1, "sliding_window": 2048})),
        "None",
        "no context is longer"
    );
    assert_eq!(window(json!({"sliding_window": null})), "None");
    assert_eq!(
        window(json!({"sliding_window": 16, "layer_types": ["sliding_attention", "sliding_attention"]})),
        "16"
    );
    assert_eq!(window(json!({"layer_types": ["full_attention", "full_attention"]})), "None");
    let later = json!({"layer_types": ["full_attention", "sliding_attention"]});
    for fields in [later, json!({"layer_types": null, "max_window_layers": 1})] {
        assert_eq!(window(fields), "16");
        let (bin, _) = try_convert(folder.path(), Quant::F32).unwrap();
        assert_eq!(bin.metadata("full_attention_layers"), "0");
    }
    for (types, expected) in [
        (json!(["sliding_attention"]), "layer_types"),
        (json!(["sliding_attention", "linear_attention"]), "layer_types"),
    ] {
        edit(folder.path(), "config.json", |config| config["layer_types"] = types);
        assert_refused(folder.path(), expected);
    }
}

/// transformers' `_compute_llama3_parameters` for theta 500000, head_dim 16, factor 8, low 1, high 4, original 64.
#[test]
fn scaled_frequencies_become_factors() {
    let folder = folder();
    let factors = |scaling: Value| {
        edit(folder.path(), "config.json", |config| config["rope_scaling"] = scaling);
        try_convert(folder.path(), Quant::Int8).unwrap().0.f32s("model.rotary_emb.factors")
    };
    assert_eq!(factors(json!({"type": "linear", "factor": 2.5})), [2.5; 8]);
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let expected = [1.0, 2.442259, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0];
    for (found, expected) in factors(llama3).into_iter().zip(expected) {
        assert_relative_eq!(found, expected, epsilon = 0.0, max_relative = 1e-6);
    }
    edit(folder.path(), "config.json", |config| config["rope_scaling"] = json!({"type": "default"}));
    let (bin, _) = try_convert(folder.path(), Quant::Int8).unwrap();
    assert!(!bin.names().contains(&"model.rotary_emb.factors"));
}

#[test]
fn models_that_compute_something_else_are_refused() {
    let llama_3 = json!({"rope_type": "llama3", "factor": 8.0});
    let table = [
        ("model_type", json!("gemma"), "gemma"),
        ("model_type", json!("qwen2"), "qwen2 (Qwen2ForCausalLM)"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        ("rope_scaling", llama_3.clone(), "rope scaling"),
        (
            "rope_scaling",
            json!({"type": "spiral", "factor": 2.0}),
            "linear, dynamic, llama3, yarn and longrope",
        ),
        ("rope_scaling", json!({"type": "longrope", "factor": 2.0}), "not part of a llama model"),
        (
            "rope_scaling",
            json!({"type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 1.0}),
            "llama_4_scaling_beta",
        ),
        ("rope_scaling", json!({"type": "yarn", "factor": 2.0, "beta_fast": "32"}), "a positive beta_fast"),
        ("llama_4_scaling", json!({"beta": 0.1}), "llama_4_scaling"),
        ("rope_scaling", json!({"type": "linear"}), "a positive factor"),
        ("rope_scaling", json!({"type": "linear", "factor": 0.0}), "a positive factor"),
        ("rope_scaling", json!({"type": "linear", "factor": 1e39}), "a positive factor"),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0, "beta_fast": 1.0}), "with beta_fast"),
        ("rope_scaling", json!({"type": "default", "mrope_section": [1, 2]}), "with mrope_section"),
        ("rope_scaling", json!(7), "rope scaling"),
        ("rope_parameters", llama_3, "rope scaling"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor"),
        ("attention_bias", json!(true), "self_attn.q_proj.bias is missing"),
        ("mlp_bias", json!(true), "biases"),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("attn_logit_softcapping", json!(50.0), "attn_logit_softcapping"),
        ("final_logit_softcapping", json!(30.0), "final_logit_softcapping"),
        ("num_local_experts", json!(8), "num_local_experts"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantization_config"),
        ("hidden_size", json!(null), "hidden_size is missing"),
        ("hidden_size", json!("32"), "hidden_size is \"32\""),
        ("hidden_size", json!(-1), "hidden_size"),
        ("hidden_size", json!(0), "hidden_size is 0"),
        ("hidden_size", json!(64), "has shape"),
        ("num_hidden_layers", json!(3), "model.layers.2.input_layernorm.weight is missing"),
        ("num_hidden_layers", json!(1), "model.layers.1"),
        ("num_hidden_layers", json!(u32::MAX), "n_layers is 4294967295"),
        ("num_hidden_layers", json!(u64::MAX), "n_layers"),
        ("num_attention_heads", json!(0), "n_heads is 0"),
        ("num_key_value_heads", json!(3), "not a multiple"),
        ("num_key_value_heads", json!(4), "has shape"),
        ("head_dim", json!(15), "odd"),
        ("head_dim", json!(u32::MAX), "head_dim is 4294967295"),
        ("head_dim", json!(null), "has shape"),
        ("vocab_size", json!(300), "has shape"),
        ("rope_theta", json!(0.0), "rope_theta is 0"),
        ("rms_norm_eps", json!(-1.0), "norm_eps is -1"),
        ("eos_token_id", json!("</s>"), "eos_token_id"),
        ("eos_token_id", json!([2, 301]), "token 301"),
        ("bos_token_id", json!(301), "token 301"),
    ];
    for (key, value, expected) in table {
        let folder = folder();
        edit(folder.path(), "config.json", |config| config[key] = value);
        assert_refused(folder.path(), expected);
    }
}

#[test]
fn tensors_beyond_the_plain_model_are_refused_or_ignored_on_purpose() {
    let zeros = |len: usize| (Dtype::F32, vec![len], vec![0; 4 * len]);
    let folder = folder();
    let add = |name: &str, len| {
        edit_tensors(folder.path(), |tensors| drop(tensors.insert(name.into(), zeros(len))))
    };
    add("model.layers.0.self_attn.rotary_emb.inv_freq", 8);
    try_convert(folder.path(), Quant::Int8).expect("the frequencies follow from rope_theta");
    add("model.layers.0.self_attn.q_proj.bias", 64);
    assert_refused(folder.path(), "biases");
    edit_tensors(folder.path(), |tensors| drop(tensors.remove("model.layers.0.self_attn.q_proj.bias")));
    add("model.layers.0.self_attn.q_norm.weight", 16);
    assert_refused(folder.path(), "q_norm");
}

#[test]
fn tensors_that_cannot_be_read_are_refused() {
    let name = "model.layers.1.mlp.down_proj.weight";
    let with = |change: fn(&mut (Dtype, Vec<usize>, Vec<u8>))| {
        let folder = folder();
        edit_tensors(folder.path(), |tensors| {
            change(tensors.get_mut("model.layers.1.mlp.down_proj.weight").unwrap())
        });
        let message = refusal(folder.path());
        assert!(message.contains(name), "{message}");
        message
    };
    assert!(with(|tensor| tensor.0 = Dtype::I16).contains("I16"));
    assert!(with(|tensor| tensor.1 = vec![48, 32]).contains("[48, 32]"));
    assert!(with(|tensor| tensor.1 = vec![2, 16, 48]).contains("[2, 16, 48]"));
    assert!(
        with(|tensor| tensor.2[99 * 2..][..2].copy_from_slice(&[0xc0, 0x7f]))
            .contains("NaN at row 2, column 3")
    );
    assert!(with(|tensor| tensor.2[..2].copy_from_slice(&[0x80, 0xff])).contains("-inf at row 0, column 0"));
}

#[test]
fn a_cut_off_safetensors_file_is_refused() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for len in [0, 7, 8, 100, 2000, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        assert_refused(folder.path(), "not a whole safetensors file");
    }
}

/// The header's JSON, and the whole file with another.
fn with_header(change: impl FnOnce(String) -> String) -> TempDir {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    let size = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header = change(String::from_utf8(whole[8..8 + size].to_vec()).unwrap());
    let parts = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &whole[8 + size..]];
    fs::write(path, parts.concat()).unwrap();
    folder
}

#[test]
fn damaged_safetensors_headers_are_refused() {
    try_convert(with_header(|header| header).path(), Quant::F32).unwrap();
    let with = |change: &dyn Fn(&mut Value)| {
        let folder = with_header(|header| {
            let mut json: Value = serde_json::from_str(&header).unwrap();
            change(&mut json["model.norm.weight"]);
            json.to_string()
        });
        refusal(folder.path())
    };
    with(&|norm| norm["shape"] = json!([0]));
    with(&|norm| norm["shape"] = json!([0, 0, 0, 0, 0, 0, 0, 0]));
    with(&|norm| norm["shape"] = json!([1u64 << 33, 1u64 << 33]));
    with(&|norm| norm["shape"] = json!([1u64 << 62, 4, 32]));
    with(&|norm| norm["shape"] = json!([-1]));
    with(&|norm| norm["dtype"] = json!("Q4_0"));
    with(&|norm| norm["data_offsets"] = json!([0, u64::MAX]));
    with(&|norm| norm["data_offsets"] = json!([u64::MAX - 3, u64::MAX]));
    with(&|norm| norm["data_offsets"] = json!([128, 0]));
    with(&|norm| norm["data_offsets"] = json!([0, 128]));
    with(&|norm| norm["data_offsets"] = json!([0]));
    with(&|norm| *norm = json!([]));
    // Twice the same: of two, one would go unseen.
    let twice = |header: String| {
        header.replacen(
            "{",
            "{\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[0,0]},",
            1,
        )
    };
    refusal(with_header(twice).path());
    refusal(with_header(|_| "[".repeat(1_000_000)).path());
    refusal(with_header(|_| String::new()).path());

    let folder = folder();
    let path = folder.path().join("model.safetensors");
    for size in [u64::MAX, 1 << 63, 1 << 40, 1 << 30, 0] {
        fs::write(&path, [&size.to_le_bytes()[..], b"{}"].concat()).unwrap();
        assert_refused(folder.path(), "not a whole safetensors file");
    }
}

#[test]
fn json_files_that_are_no_such_thing_are_refused() {
    let bombs: [(&str, Vec<u8>); 5] = [
        ("not a JSON object", b"[]".to_vec()),
        ("not a JSON object", vec![b'['; 1_000_000]),
        ("not a JSON object", b"{\"a\":\"\xff\"}".to_vec()),
        ("not a JSON object", b"{\"a\":1e999}".to_vec()),
        ("not a JSON object", Vec::new()),
    ];
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        for (expected, content) in &bombs {
            let folder = folder();
            fs::write(folder.path().join(name), content).unwrap();
            assert_refused(folder.path(), expected);
        }
        // Sparse: no more than the limit is read.
        let folder = folder();
        let path = folder.path().join(name);
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 36).unwrap();
        assert_refused(folder.path(), "larger than");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_refused(folder.path(), "not a regular file");
    }
}

/// Neither read without end nor waited for.
#[cfg(unix)]
#[test]
fn files_without_an_end_are_refused() {
    for name in ["config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"] {
        let folder = folder();
        let path = folder.path().join(name);
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert_refused(folder.path(), "not a regular file");
    }
}

#[test]
fn a_folder_that_lacks_a_file_is_told_which() {
    let folder = folder();
    let rename = |from: &str, to: &str| fs::rename(folder.path().join(from), folder.path().join(to)).unwrap();
    rename("model.safetensors", "pytorch_model.bin");
    assert_refused(folder.path(), "has pytorch_model.bin but no model.safetensors");
    rename("pytorch_model.bin", "consolidated.safetensors");
    assert_refused(folder.path(), "consolidated.safetensors");
    rename("consolidated.safetensors", "x");
    assert_refused(folder.path(), "neither");
    rename("tokenizer.json", "y");
    assert_refused(folder.path(), "tokenizer.json");
    rename("config.json", "z");
    assert_refused(folder.path(), "no config.json");
}
