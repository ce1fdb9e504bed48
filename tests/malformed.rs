//! Damaged and foreign `.bin` files are refused with one line that names the file, the place and the reason.

mod common {
    pub mod fixture;
}

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use torchless::Error;
use torchless::Model;
use torchless::format::convert::{Quant, convert};
use torchless::kv::KvType;
use torchless::perplexity::{Divergence, Perplexity};
use torchless::runtime::{GenerateOptions, Session, SessionOptions, generate};
use torchless::sampling::Sampling;

use common::fixture::fixture;

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

/// `mistral-int8.bin` with its matrices in panels.
fn panels() -> Vec<u8> {
    let file = TempFile::new(&[]);
    convert(&fixture("mistral-int8.bin"), &file.path(), Quant::Int8, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    std::fs::read(file.path()).unwrap()
}

/// A `.bin` file taken apart.
#[derive(Clone)]
struct Parts {
    header: Value,
    payload: Vec<u8>,
}

impl Parts {
    fn of(name: &str) -> Self {
        Self::of_bytes(&bytes_of(name))
    }

    /// The matrices of `mistral-int8.bin` in panels.
    fn panels() -> Self {
        Self::of_bytes(&panels())
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let size = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let json = bytes[8..8 + size].split(|b| *b == 0).next().unwrap();
        let payload = bytes[(8 + size).next_multiple_of(64)..].to_vec();
        Self { header: serde_json::from_slice(json).unwrap(), payload }
    }

    /// A copy of a tensor's entry, for bytes of its own at the end.
    fn copy_of(&mut self, tensor: &str) -> Value {
        let mut entry = self.header["tensors"][tensor].clone();
        let from = entry["offset"].as_u64().unwrap() as usize;
        let len = 4 * entry["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product::<u64>();
        let at = self.payload.len().next_multiple_of(64);
        self.payload.resize(at, 0);
        self.payload.extend_from_within(from..from + len as usize);
        entry["offset"] = json!(at);
        entry
    }

    fn bytes(&self) -> Vec<u8> {
        assemble(&self.header.to_string(), &self.payload)
    }
}

fn assemble(header: &str, payload: &[u8]) -> Vec<u8> {
    let mut header = header.as_bytes().to_vec();
    header.resize((8 + header.len()).next_multiple_of(64) - 8, b' ');
    [&(header.len() as u64).to_le_bytes(), header.as_slice(), payload].concat()
}

struct TempFile {
    folder: tempfile::TempDir,
}

impl TempFile {
    fn new(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("model.bin"), bytes).unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.bin")
    }
}

/// The error of opening these bytes.
fn refusal(bytes: &[u8]) -> String {
    let file = TempFile::new(bytes);
    let error = Model::open(file.path()).expect_err("a damaged file was opened").to_string();
    assert!(error.starts_with(&file.path().display().to_string()), "{error}: does not name the file");
    assert!(!error.contains('\n'), "{error:?}: more than one line");
    error
}

fn assert_refused(what: &str, bytes: &[u8], reason: &str) {
    let error = refusal(bytes);
    assert!(error.contains(reason), "{what}: {error:?} does not say {reason:?}");
}

const V: &str = "model.layers.0.self_attn.v_proj.weight";

#[test]
fn the_parts_put_together_again_are_a_model() {
    for name in ["mistral-f32.bin", "mistral-int8.bin", "ragged-int8.bin"] {
        let file = TempFile::new(&Parts::of(name).bytes());
        Arc::new(Model::open(file.path()).unwrap());
    }
}

#[test]
fn metadata() {
    let cases: [(&str, Value, &str); 20] = [
        ("hidden_size", json!([64]), "metadata.hidden_size: \"[64]\""),
        ("vocab_size", json!("16777217"), "vocab_size is 16777217"),
        ("max_position_embeddings", json!("0"), "max_position_embeddings is 0"),
        ("hidden_size", Value::Null, "metadata.hidden_size is missing"),
        ("hidden_size", json!("sixty-four"), "metadata.hidden_size: \"sixty-four\""),
        ("hidden_size", json!("-64"), "metadata.hidden_size"),
        ("hidden_size", json!("0"), "hidden_size is 0"),
        ("hidden_size", json!("18446744073709551616"), "metadata.hidden_size"),
        ("hidden_size", json!("128"), "the metadata ask for"),
        ("n_layers", json!("3"), "tensor model.layers.2.input_layernorm.weight is missing"),
        ("n_layers", json!("1"), "tensor model.layers.1.input_layernorm.weight: not part"),
        ("n_heads", json!("3"), "do not divide into 3 heads"),
        ("n_kv_heads", json!("3"), "n_heads 4 is not a multiple of n_kv_heads 3"),
        ("head_dim", json!("31"), "head_dim 31 is odd"),
        ("head_dim", json!("2000000"), "head_dim is 2000000"),
        ("sliding_window", json!("0"), "sliding_window is 0"),
        ("rope_theta", json!("nan"), "rope_theta is NaN"),
        ("norm_eps", json!("-1"), "norm_eps is -1"),
        ("act_type", json!("gelu"), "act_type is \"gelu\""),
        ("eos_token_id", json!("2,x"), "metadata.eos_token_id: \"2,x\""),
    ];
    for (key, value, reason) in cases {
        let mut parts = Parts::of("mistral-f32.bin");
        parts.header["metadata"][key] = value;
        assert_refused(key, &parts.bytes(), reason);
    }
}

#[test]
fn tensors_that_lie_over_each_other() {
    const K: &str = "model.layers.0.self_attn.k_proj.weight";
    for (name, of_v, of_k) in [
        ("mistral-f32.bin", "offset", "offset"),
        ("mistral-int8.bin", "offset", "offset"),
        ("mistral-int8.bin", "scale_offset", "scale_offset"),
        ("mistral-int8.bin", "scale_offset", "offset"),
    ] {
        let mut parts = Parts::of(name);
        let offset = parts.header["tensors"][K][of_k].as_u64().unwrap();
        parts.header["tensors"][V][of_v] = json!(offset);
        assert_refused(name, &parts.bytes(), "lie over each other");
    }
}

#[test]
fn tensors() {
    let big = usize::MAX / 2;
    let cases: [(&str, Value, &str); 16] = [
        ("offset", json!(-64), "header: invalid value: integer `-64`"),
        ("offset", json!(1e300), "header: invalid type: floating point"),
        ("shape", json!([1u64 << 32, (1u64 << 32) + 1]), "overflows"),
        (
            "dtype",
            json!("q4_0"),
            "unknown dtype \"q4_0\": f32, int8, int8_panels, int4, int4_by_32, int4_by_32_minimum are",
        ),
        ("dtype", json!("f32"), "is not aligned"),
        ("shape", json!([4096]), "shape [4096], but the metadata ask for [64, 64]"),
        ("shape", json!([32, 128]), "shape [32, 128], but the metadata ask for [64, 64]"),
        ("shape", json!([64, 0]), "none of them zero"),
        ("shape", json!([]), "one or two dimensions"),
        ("shape", json!([1, 64, 64]), "one or two dimensions"),
        ("shape", json!([big, 4]), "overflows"),
        ("shape", json!([-64, -64]), "header:"),
        ("offset", json!(big), "ends past the file"),
        ("scale_offset", json!(big), "ends past the file"),
        ("scale_size", json!(127), "scale_size is 127, but 4096 values have 64 scales"),
        ("scale_offset", Value::Null, "int8 without a scale_offset"),
    ];
    for (key, value, reason) in cases {
        let mut parts = Parts::of("mistral-int8.bin");
        if (key, &value) == ("dtype", &json!("f32")) {
            parts.header["tensors"][V]["offset"] = json!(2);
        }
        parts.header["tensors"][V][key] = value;
        assert_refused(key, &parts.bytes(), reason);
    }
    let mut parts = Parts::of("mistral-int8.bin");
    parts.header["tensors"]["model.layers.0.mlp.up_proj.bias"] = parts.copy_of("model.norm.weight");
    assert_refused("a bias", &parts.bytes(), "up_proj.bias: not part of a model of this kind");
    let mut parts = Parts::of("mistral-int8.bin");
    parts.header["tensors"].as_object_mut().unwrap().remove("model.norm.weight");
    assert_refused("no norm", &parts.bytes(), "tensor model.norm.weight is missing");
    let mut parts = Parts::of("mistral-int8.bin");
    let mut norm = parts.copy_of("model.norm.weight");
    // Its own bytes hold both.
    let scales = norm["offset"].as_u64().unwrap() + 64;
    (norm["dtype"], norm["scale_offset"]) = (json!("int8"), json!(scales));
    parts.header["tensors"]["model.norm.weight"] = norm;
    assert_refused("an int8 norm", &parts.bytes(), "tensor model.norm.weight: ");
}

/// All layers' keys of one position are counted before anybody multiplies with them.
#[test]
fn more_keys_than_can_be() {
    let mut parts = Parts::of("mistral-f32.bin");
    for (key, value) in
        [("n_layers", "4096"), ("n_heads", "16384"), ("n_kv_heads", "16384"), ("head_dim", "1024")]
    {
        parts.header["metadata"][key] = json!(value);
    }
    assert_refused("keys", &parts.bytes(), "4096 layers of 16777216 keys a position");
}

/// Some files have a huge number for "no limit": it is as good as the longest context there can be.
#[test]
fn contexts_longer_than_any_are_cut_to_the_longest() {
    for claim in ["2147483648", "18446744073709551615"] {
        let mut parts = Parts::of("mistral-f32.bin");
        parts.header["metadata"]["max_position_embeddings"] = json!(claim);
        parts.header["metadata"]["sliding_window"] = json!(claim);
        let model = Arc::new(Model::open(TempFile::new(&parts.bytes()).path()).unwrap());
        assert_eq!(model.config().max_position_embeddings, 1 << 30);
        assert_eq!(model.config().sliding_window, Some(1 << 30));
    }
}

fn split(regex: &str) -> Value {
    json!([{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"}])
}

#[test]
fn tokenizers() {
    let cases: [(&str, Value, &str); 21] = [
        ("/vocab", json!([]), "header: invalid type: sequence"),
        ("/vocab/a", json!(-1), "header: invalid value: integer `-1`"),
        ("/vocab/a", json!("7"), "header: invalid type: string"),
        ("/vocab/a", json!(1u64 << 32), "header: invalid value: integer `4294967296`"),
        ("/vocab/a", json!(1 << 24), "piece \"a\" has id 16777216, above the limit"),
        ("/vocab/a", json!(1), "share id 1"),
        ("/merges", json!(["ab"]), "merge \"ab\" has no space"),
        ("/merges", json!([["a", "b", "c"]]), "a merge is of two pieces"),
        ("/merges", json!([7]), "a merge: "),
        ("/kind", json!("wordpiece"), "tokenizer.kind is \"wordpiece\""),
        ("/special_tokens", json!({"<s>": 9}), "special token \"<s>\" has id 9, but 1"),
        ("/special_tokens", json!({"": 9}), "special token 9 is empty"),
        ("/normalizer", json!([{"type": "Upper"}]), "header: unknown variant `Upper`"),
        ("/normalizer", json!([{"type": "NFC", "more": 1}]), "header: unknown field `more`"),
        ("/normalizer", json!(vec![json!({"type": "NFC"}); 33]), "33 steps"),
        ("/pre_tokenizer", split(r"a(b"), "the expression \"a(b\" cannot be used"),
        ("/pre_tokenizer", split(r"(\w{1000}){1000}"), "cannot be used"),
        ("/scores", json!([0.5]), "merges and scores"),
        ("/token_rules", json!({"a": ["lstrip"]}), "tokenizer.token_rules: \"a\" is neither"),
        ("/decode_start", json!("drop"), "tokenizer.decode_start is \"drop\""),
        ("/start_tokens", json!([1 << 20]), "the start token's id 1048576"),
    ];
    for (place, value, reason) in cases {
        let mut parts = Parts::of("mistral-f32.bin");
        let tokenizer = &mut parts.header["tokenizer"];
        match tokenizer.pointer_mut(place) {
            Some(at) => *at = value,
            None => tokenizer[&place[1..]] = value,
        }
        assert_refused(place, &parts.bytes(), reason);
    }
    let mut parts = Parts::of("mistral-f32.bin");
    parts.header["tokenizer"]["merges"] = json!(["no such", "\u{1b}[2J x"]);
    Model::open(TempFile::new(&parts.bytes()).path()).expect("merges of unknown pieces never apply");
}

#[test]
fn unsound_rope_factors() {
    let mut parts = Parts::of("mistral-f32.bin");
    let norm = parts.copy_of("model.norm.weight");
    let at = norm["offset"].as_u64().unwrap() as usize + 4 * 5;
    let factors = json!({"dtype": "f32", "shape": [16], "offset": norm["offset"]});
    parts.header["tensors"]["model.rotary_emb.factors"] = factors;
    Arc::new(Model::open(TempFile::new(&parts.bytes()).path()).unwrap());
    for factor in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
        let mut parts = parts.clone();
        parts.payload[at..at + 4].copy_from_slice(&factor.to_le_bytes());
        assert_refused("factor", &parts.bytes(), &format!("the rotary embedding's factor 5 is {factor}"));
    }
    parts.header["tensors"]["model.rotary_emb.factors"]["shape"] = json!([8]);
    assert_refused("shape", &parts.bytes(), "model.rotary_emb.factors has shape [8]");
}

#[test]
fn unsound_scales() {
    let parts = Parts::of("mistral-int8.bin");
    let at = parts.header["tensors"][V]["scale_offset"].as_u64().unwrap() as usize + 4 * 5;
    for scale in [0.0f32, -1.0, f32::NAN, f32::NEG_INFINITY, 1e-40] {
        let mut parts = parts.clone();
        parts.payload[at..at + 4].copy_from_slice(&scale.to_le_bytes());
        assert_refused("scale", &parts.bytes(), &format!("tensor {V}: the scale of group 5 is {scale}"));
    }
}

/// What is checked of rows is checked of panels.
#[test]
fn panels_that_are_not_as_they_should_be() {
    let file = TempFile::new(&Parts::panels().bytes());
    Model::open(file.path()).unwrap();
    let big = usize::MAX / 64 * 64;
    let cases: [(&str, Value, &str); 11] = [
        ("shape", json!([64, 80]), "shape [64, 80] is not of whole groups of 64 columns"),
        ("shape", json!([80]), "shape [80] is not of whole groups"),
        ("shape", json!([big, 64]), "overflows"),
        ("shape", json!([1u64 << 40, 1u64 << 30]), "overflows"),
        ("shape", json!([64, 128]), "scale_size is 64, but 8192 values have 128 scales"),
        ("shape", json!([128, 32]), "shape [128, 32] is not of whole groups"),
        ("offset", json!(big), "ends past the file"),
        ("offset", json!(32), "data at offset 32 is not aligned to 64 bytes"),
        ("scale_offset", json!(1), "scales at offset 1 is not aligned to 2 bytes"),
        ("scale_offset", Value::Null, "int8_panels without a scale_offset"),
        ("scale_size", json!(63), "scale_size is 63, but 4096 values have 64 scales"),
    ];
    for (key, value, reason) in cases {
        let mut parts = Parts::panels();
        parts.header["tensors"][V][key] = value;
        assert_refused(key, &parts.bytes(), reason);
    }
    for (of_v, of_k) in [("offset", "offset"), ("scale_offset", "scale_offset"), ("scale_offset", "offset")] {
        let mut parts = Parts::panels();
        let offset = parts.header["tensors"]["model.layers.0.self_attn.k_proj.weight"][of_k].clone();
        parts.header["tensors"][V][of_v] = offset;
        assert_refused(of_v, &parts.bytes(), "lie over each other");
    }
    let bytes = panels();
    for len in (0..bytes.len()).step_by(9973).chain(bytes.len() - 8..bytes.len()) {
        refusal(&bytes[..len]);
    }
}

#[test]
fn unsound_scales_of_panels() {
    let parts = Parts::panels();
    // Two panels of one group before it, then row 5.
    let at = parts.header["tensors"][V]["scale_offset"].as_u64().unwrap() as usize + 2 * (2 * 16 + 5);
    for (scale, shown) in
        [(0x8000u16, "-0"), (0xbc00, "-1"), (0x7c00, "inf"), (0xfc00, "-inf"), (0x7e00, "NaN")]
    {
        let mut parts = parts.clone();
        parts.payload[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        assert_refused(
            "scale",
            &parts.bytes(),
            &format!("tensor {V}: the scale of row 37, group 0 is {shown}"),
        );
    }
    for scale in [0u16, 1, 0x7bff] {
        let mut parts = parts.clone();
        parts.payload[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        Model::open(TempFile::new(&parts.bytes()).path()).unwrap();
    }
}

/// The embedding has 301 rows: 13 in the last panel.
#[test]
fn padding_of_panels_that_is_not_zero() {
    let parts = Parts::panels();
    let place = |key: &str| parts.header["tensors"][EMBED][key].as_u64().unwrap() as usize;
    let (values, scales) = (place("offset") + 18 * 1024, place("scale_offset") + 18 * 32);
    for (at, sound) in [
        (values + 12 * 4 + 3, true),
        (values + 13 * 4, false),
        (values + 15 * 64 + 63, false),
        (scales + 2 * 12, true),
        (scales + 2 * 13, false),
        (scales + 2 * 15 + 1, false),
    ] {
        let mut parts = parts.clone();
        parts.payload[at] ^= 1;
        let bytes = parts.bytes();
        match sound {
            true => drop(Model::open(TempFile::new(&bytes).path()).unwrap()),
            false => {
                assert_refused("padding", &bytes, &format!("{EMBED}: behind its 301 rows the last panel"))
            }
        }
    }
}

const INT4: [&str; 3] = ["int4", "int4_by_32", "int4_by_32_minimum"];

/// 128 columns: a panel is two groups.
const O: &str = "model.layers.0.self_attn.o_proj.weight";
/// 301 rows: 13 in the last panel.
const EMBED: &str = "model.embed_tokens.weight";

/// A file one of whose tensors is int4, by docs/format.md.
#[derive(Clone)]
struct InInt4 {
    parts: Parts,
    tensor: &'static str,
    dtype: &'static str,
    /// Where they begin in the payload: nibbles, codes, row scales, scales.
    places: [usize; 4],
}

impl InInt4 {
    fn new(tensor: &'static str, dtype: &'static str) -> Self {
        let mut parts = Parts::panels();
        let shape = parts.header["tensors"][tensor]["shape"].as_array().unwrap();
        let [rows, cols] = [0, 1].map(|i| shape[i].as_u64().unwrap() as usize);
        let (panels, groups) = (rows.div_ceil(16), rows.div_ceil(16) * cols / 64);
        let offset = parts.payload.len().next_multiple_of(64);
        let codes = offset + 512 * groups;
        let scales = codes + 64 + 64 * panels;
        let size = 64 + 64 * panels + if dtype == INT4[2] { 128 } else { 64 } * groups;
        parts.payload.resize(codes + size, 0);
        let table = [-31i8, -26, -20, -15, -12, -8, -5, -2, 1, 3, 6, 9, 12, 16, 21, 27];
        parts.payload[codes..codes + 16].copy_from_slice(&table.map(|code| code as u8));
        for row in 0..rows {
            let at = codes + 64 + 4 * row;
            parts.payload[at..at + 4].copy_from_slice(&0.001f32.to_le_bytes());
        }
        parts.header["tensors"][tensor] = json!({
            "dtype": dtype, "shape": [rows, cols], "offset": offset, "scale_offset": codes, "scale_size": size,
        });
        Self { parts, tensor, dtype, places: [offset, codes, codes + 64, scales] }
    }

    /// With some bytes of the payload changed.
    fn with(&self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut parts = self.parts.clone();
        parts.payload[at..at + bytes.len()].copy_from_slice(bytes);
        parts.bytes()
    }

    /// With a key of its entry changed.
    fn with_key(&self, key: &str, value: Value) -> Vec<u8> {
        let mut parts = self.parts.clone();
        parts.header["tensors"][self.tensor][key] = value;
        parts.bytes()
    }

    fn assert_refused(&self, bytes: &[u8], reason: &str) {
        assert_refused(self.dtype, bytes, &format!("tensor {}: {reason}", self.tensor));
    }
}

fn assert_opens(bytes: &[u8]) {
    Model::open(TempFile::new(bytes).path()).unwrap();
}

#[test]
fn int4_that_does_not_lie_as_it_should() {
    let big = usize::MAX / 64 * 64;
    for dtype in INT4 {
        let file = InInt4::new(O, dtype);
        assert_opens(&file.parts.bytes());
        let [offset, codes, ..] = file.places;
        let size = file.parts.header["tensors"][O]["scale_size"].as_u64().unwrap();
        let cases: [(&str, Value, String); 12] = [
            ("shape", json!([64, 80]), "shape [64, 80] is not of whole groups of 64 columns".to_owned()),
            ("shape", json!([80]), "shape [80] is not of whole groups".to_owned()),
            ("shape", json!([big, 64]), format!("shape [{big}, 64] overflows")),
            ("shape", json!([64, 64]), format!("scale_size is {size}, but")),
            (
                "shape",
                json!([1u64 << 40, 1u64 << 30]),
                "shape [1099511627776, 1073741824] overflows".to_owned(),
            ),
            ("offset", json!(big), format!("data at offset {big}, 4096 bytes, ends past the file")),
            (
                "offset",
                json!(offset + 32),
                format!("data at offset {} is not aligned to 64 bytes", offset + 32),
            ),
            (
                "scale_offset",
                json!(codes - 32),
                format!("scales at offset {} is not aligned to 64", codes - 32),
            ),
            (
                "scale_offset",
                json!(codes + 64),
                format!("scales at offset {}, {size} bytes, ends past", codes + 64),
            ),
            ("scale_offset", Value::Null, format!("{dtype} without a scale_offset")),
            (
                "scale_size",
                json!(size - 1),
                format!("scale_size is {}, but 8192 values have {size}", size - 1),
            ),
            ("scale_size", json!(size / 2), format!("scale_size is {}, but", size / 2)),
        ];
        for (key, value, reason) in cases {
            file.assert_refused(&file.with_key(key, value), &reason);
        }
        for (key, at) in [("scale_offset", offset), ("scale_offset", 0), ("offset", 0)] {
            let error = refusal(&file.with_key(key, json!(at)));
            assert!(error.contains("lie over each other"), "{dtype}, {key}: {error}");
        }
        // A vector is one row, and none of the model's is int4.
        let mut parts = file.parts.clone();
        let norm = "model.norm.weight";
        let mut entry = parts.header["tensors"][O].clone();
        (entry["shape"], entry["scale_size"]) = (json!([64]), Value::Null);
        let old = parts.header["tensors"][O].clone();
        parts.header["tensors"][norm] = entry;
        parts.header["tensors"][O] = Parts::panels().header["tensors"][O].clone();
        assert_refused(dtype, &parts.bytes(), &format!("tensor {norm}: "));
        parts.header["tensors"][O] = old;
        let bytes = file.parts.bytes();
        for len in (0..bytes.len()).step_by(9973).chain(bytes.len() - 8..bytes.len()) {
            refusal(&bytes[..len]);
        }
    }
}

#[test]
fn unsound_tables_of_codes() {
    for dtype in INT4 {
        let file = InInt4::new(O, dtype);
        let codes = file.places[1];
        for (first, last) in [(-37i8, 27i8), (0, 64), (-1, 63), (-128, 0), (127, 0)] {
            let mut table = [0u8; 16];
            (table[0], table[15]) = (first as u8, last as u8);
            file.assert_refused(&file.with(codes, &table), &format!("its codes [{first}, 0, "));
        }
        for sound in [[0u8; 16], [63; 16], [-63i8 as u8; 16], [-128i8 as u8; 16]] {
            assert_opens(&file.with(codes, &sound));
        }
        for at in [16, 40, 63] {
            file.assert_refused(&file.with(codes + at, &[1]), "behind its 16 codes is something");
        }
    }
}

#[test]
fn unsound_scales_of_int4() {
    for dtype in INT4 {
        let file = InInt4::new(O, dtype);
        let [_, _, row_scales, scales] = file.places;
        let at = row_scales + 4 * 37;
        for scale in [-0.0f32, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, 1.187e34, 3e38] {
            let bytes = file.with(at, &scale.to_le_bytes());
            file.assert_refused(&bytes, &format!("the scale of row 37 is {scale}"));
        }
        for scale in [0.0f32, 1e-45, 1.0, 1.1868e34] {
            assert_opens(&file.with(at, &scale.to_le_bytes()));
        }
        // The scale of row 37, panel 2, and of its group 1 the second half; where there are minimums they follow.
        let group = 2 * 2 + 1;
        let (at, whole): (usize, &[(i32, i32, bool)]) = match dtype {
            "int4" => (scales + 64 * group + 3 * 16 + 5, &[(127, 0, true), (-128, 0, true)]),
            // 31 is the largest magnitude of a code: 31 · 924 = 28644.
            "int4_by_32" => (
                scales + 64 * group + 32 + 2 * 5,
                &[
                    (924, 0, true),
                    (-924, 0, true),
                    (925, 0, false),
                    (-925, 0, false),
                    (i16::MIN.into(), 0, false),
                ],
            ),
            _ => (
                scales + 128 * group + 32 + 2 * 5,
                &[
                    (0, 28672, true),
                    (0, -28672, true),
                    (0, 28673, false),
                    (0, i16::MIN.into(), false),
                    (924, 28, true),
                    (924, 29, false),
                    // 27 is the largest code: 27 · 924 = 24948.
                    (924, -3724, true),
                    (924, -3725, false),
                    (1000, 0, false),
                ],
            ),
        };
        for &(scale, minimum, sound) in whole {
            let mut other = file.clone();
            let payload = &mut other.parts.payload;
            match dtype {
                "int4" => payload[at] = scale as u8,
                _ => payload[at..at + 2].copy_from_slice(&(scale as i16).to_le_bytes()),
            }
            if dtype == INT4[2] {
                payload[at + 64..at + 66].copy_from_slice(&(minimum as i16).to_le_bytes());
            }
            let bytes = other.parts.bytes();
            match sound {
                true => assert_opens(&bytes),
                false => file.assert_refused(&bytes, "a weight of rows 32 to 47, group 1, is beyond 28672"),
            }
        }
    }
}

#[test]
fn padding_of_int4_that_is_not_zero() {
    for dtype in INT4 {
        let file = InInt4::new(EMBED, dtype);
        let [nibbles, _, row_scales, scales] = file.places;
        let (nibbles, width) = (nibbles + 18 * 512, if dtype == "int4" { 1 } else { 2 });
        let group_bytes = if dtype == INT4[2] { 128 } else { 64 };
        let scales = scales + 18 * group_bytes;
        for (at, sound) in [
            (nibbles + 12 * 4 + 3, true),
            (nibbles + 13 * 4, false),
            (nibbles + 7 * 64 + 63, false),
            (row_scales + 4 * 300, true),
            (row_scales + 4 * 301, false),
            (row_scales + 4 * 303, false),
            (scales + width * 12, true),
            (scales + width * 13, false),
            (scales + group_bytes - 4 * width, true),
            (scales + group_bytes - 3 * width, false),
            (scales + group_bytes - 1, false),
        ] {
            let bytes = file.with(at, &[1]);
            match sound {
                true => assert_opens(&bytes),
                false => file.assert_refused(&bytes, "behind its 301 rows the last panel is not zero"),
            }
        }
    }
}

#[test]
fn headers() {
    let parts = Parts::of("mistral-f32.bin");
    let (text, payload) = (parts.header.to_string(), parts.payload.as_slice());
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        assemble(&text.replacen(from, to, 1), payload)
    };
    let deep = format!("{{\"metadata\":{{\"x\":{}", "[".repeat(100_000));
    let cases: [(&str, Vec<u8>, &str); 15] = [
        (
            "metadata twice",
            with("\"tokenizer\":", "\"metadata\":{},\"tokenizer\":"),
            "duplicate field `metadata`",
        ),
        ("vocab twice", with("\"merges\":", "\"vocab\":{},\"merges\":"), "duplicate field `vocab`"),
        ("a shape twice", with("\"shape\":", "\"shape\":[],\"shape\":"), "duplicate field `shape`"),
        ("a tensor twice", with("\"model.norm.weight\":", &format!("{V:?}:")), "stands twice"),
        (
            "a number without end",
            with("\"offset\":0", &format!("\"offset\":1{}", "0".repeat(400))),
            "header: number out of range",
        ),
        ("empty file", Vec::new(), "shorter than its header says"),
        ("seven bytes", vec![1; 7], "shorter than its header says"),
        (
            "a size past the end",
            [u64::MAX.to_le_bytes().as_slice(), b"{}"].concat(),
            "shorter than its header",
        ),
        ("no JSON", assemble("PK", payload), "not a torchless .bin file"),
        (
            "GGUF",
            [b"GGUF\x03\0\0\0".as_slice(), &[0; 64]].concat(),
            "a GGUF file, not a .bin model file: convert it first",
        ),
        ("half a header", assemble(&text[..text.len() / 2], payload), "header: EOF"),
        ("nested deeply", assemble(&deep, payload), "header: recursion limit"),
        ("a key twice", with("\"n_heads\"", "\"hidden_size\""), "the key \"hidden_size\" stands twice"),
        ("a piece twice", with("\"<s>\"", "\"<unk>\""), "stands twice"),
        ("no tensors", with("\"tensors\"", "\"tensor\""), "missing field `tensors`"),
    ];
    for (what, bytes, reason) in cases {
        assert_refused(what, &bytes, reason);
    }
}

/// The header's size is checked before a byte of it is read: this file is sparse.
#[test]
fn a_header_longer_than_any() {
    let file = TempFile::new(&[&100_000_001u64.to_le_bytes()[..], b"{"].concat());
    std::fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(200_000_000).unwrap();
    let error = Model::open(file.path()).unwrap_err().to_string();
    assert!(error.contains("a header of 100000001 bytes"), "{error}");
}

/// Whatever the weights are, what comes out is text or one error.
#[test]
fn weights_that_are_not_numbers() {
    let names = ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.mlp.down_proj.weight", V];
    let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45];
    for (name, value) in names.into_iter().flat_map(|name| values.map(|value| (name, value))) {
        let mut parts = Parts::of("mistral-f32.bin");
        let tensor = &parts.header["tensors"][name];
        let len: u64 = tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        let start = tensor["offset"].as_u64().unwrap() as usize;
        for at in (start..start + 4 * len as usize).step_by(4) {
            parts.payload[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        let model = Arc::new(Model::open(TempFile::new(&parts.bytes()).path()).unwrap());
        for temperature in [0.0, 0.8] {
            let mut session =
                Session::new(&model, &SessionOptions { threads: 1, ..SessionOptions::new(&model) }).unwrap();
            let options = GenerateOptions {
                max_tokens: 3,
                sampling: Sampling { temperature, ..Sampling::default() },
                ignore_eos: true,
                ..GenerateOptions::default()
            };
            match generate(&mut session, &[1, 5, 6], &options, |_| ControlFlow::Continue(())) {
                Ok(generated) => assert_eq!(generated.tokens.len(), 3, "{name} of {value}"),
                Err(error) => assert!(matches!(error, Error::NotANumber), "{name} of {value}: {error}"),
            }
        }
    }
}

/// A model whose logits of token 7 are NaN.
fn broken_head() -> TempFile {
    let mut parts = Parts::of("llama-f32.bin");
    let head = &parts.header["tensors"]["lm_head.weight"];
    let (start, cols) =
        (head["offset"].as_u64().unwrap() as usize, head["shape"][1].as_u64().unwrap() as usize);
    let row = start + 4 * 7 * cols;
    parts.payload[row..row + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    TempFile::new(&parts.bytes())
}

/// Logits of a token that the text does not have.
#[test]
fn a_nan_is_noticed_wherever_it_is_predicted() {
    for tokens in [[1, 5, 6].as_slice(), &[1, 7], &[7, 1]] {
        let model = Arc::new(Model::open(broken_head().path()).unwrap());
        let mut session =
            Session::new(&model, &SessionOptions { threads: 1, ..SessionOptions::new(&model) }).unwrap();
        let error = Perplexity::measure(&mut session, tokens, || {}).unwrap_err();
        assert!(matches!(error, Error::NotANumber), "{tokens:?}: {error}");
    }
}

#[test]
fn of_two_models_the_one_that_computes_nan_is_named() {
    let broken = broken_head();
    let [sound, nan] =
        [fixture("llama-f32.bin"), broken.path()].map(|path| Arc::new(Model::open(path).unwrap()));
    for (model, reference) in [(&sound, &nan), (&nan, &sound)] {
        let [mut session, mut against] = [model, reference].map(|model| {
            Session::new(model, &SessionOptions { ctx: 3, threads: 1, ..SessionOptions::new(model) }).unwrap()
        });
        let error = Divergence::measure(&mut session, &mut against, &[1, 5, 6], None, |_| {}).unwrap_err();
        let Error::File { path, problem } = error else { panic!("{error}") };
        assert_eq!((path, problem.0), (broken.path().to_owned(), Error::NotANumber.to_string()));
    }
}

/// Keys and values that f32 can hold, and f16 cannot.
#[test]
fn keys_and_values_beyond_f16() {
    for name in ["model.layers.0.self_attn.k_proj.weight", V] {
        let mut parts = Parts::of("mistral-f32.bin");
        let tensor = &parts.header["tensors"][name];
        let len: u64 = tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        let start = tensor["offset"].as_u64().unwrap() as usize;
        for at in parts.payload[start..start + 4 * len as usize].as_chunks_mut::<4>().0 {
            *at = (f32::from_le_bytes(*at) * 1e6).to_le_bytes();
        }
        let model = Arc::new(Model::open(TempFile::new(&parts.bytes()).path()).unwrap());
        let feed = |kv| {
            let options = SessionOptions { threads: 1, kv, ..SessionOptions::new(&model) };
            let mut session = Session::new(&model, &options).unwrap();
            session.feed(&[1, 5, 6]).map(|logits| logits.iter().all(|l| l.is_finite()))
        };
        assert!(feed(KvType::F32).unwrap(), "{name}");
        assert!(feed(KvType::Int8).unwrap(), "{name}");
        let error = feed(KvType::F16).unwrap_err();
        assert!(matches!(error, Error::CacheOverflow), "{name}: {error}");
    }
}

/// Cut anywhere, a file is refused: nothing is read past its end.
#[test]
fn truncated_files() {
    let bytes = bytes_of("ragged-int8.bin");
    for len in (0..bytes.len()).step_by(997).chain(bytes.len() - 8..bytes.len()) {
        refusal(&bytes[..len]);
    }
}
