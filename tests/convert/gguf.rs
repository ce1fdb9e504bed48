//! GGUF files: the same model as the Hugging Face folder, and everything that can be wrong with one.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;

use approx::abs_diff_eq;
use proptest::prelude::*;
use tempfile::TempDir;
use torchless::Model;
use torchless::format::convert::{Convertible, Quant, RowLayout, convert};
use torchless::kernels::Kernels;

use crate::gguf_file::*;
use crate::{assert_refused, fixture, refusal, try_convert};

/// Writes a file; it lives as long as the folder.
pub fn write(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn converts_to_the_bytes_that_the_hugging_face_folder_converts_to() {
    for quant in [Quant::F32, Quant::Int8, Quant::Int8Proj] {
        let (from_gguf, _) = try_convert(&fixture("tiny.gguf"), quant).unwrap();
        let (from_folder, _) = try_convert(&fixture("hf"), quant).unwrap();
        assert_eq!(from_gguf.header, from_folder.header);
        assert!(from_gguf.file == from_folder.file, "{quant:?}: weights differ");
    }
}

#[test]
fn how_tokens_are_chosen_is_taken_over() {
    let mut file = GgufFile::tiny();
    file.set("general.sampling.temp", f32_value(0.7));
    file.set("general.sampling.top_k", u32_value(20));
    file.set("general.sampling.top_p", f32_value(1e-5));
    file.set("general.sampling.penalty_repeat", f32_value(-1.0));
    file.set("general.sampling.min_p", str_value("x"));
    let (_folder, path) = write(&file.bytes());
    let (bin, report) = try_convert(&path, Quant::F32).unwrap();
    assert_eq!((bin.metadata("temperature"), bin.metadata("top_k")), ("0.7", "20"));
    assert_eq!(bin.metadata("top_p"), "1e-05");
    for left_out in ["repetition_penalty", "min_p"] {
        assert!(bin.header["metadata"].get(left_out).is_none(), "{left_out}");
    }
    assert_eq!(
        report.notes,
        [
            "key general.sampling.min_p is not a number, and left out",
            "general.sampling: repetition_penalty is -1: a number above 0 is needed, and left out",
        ]
    );
}

#[test]
fn versions_2_and_3_and_every_alignment() {
    let (_folder, path) = write(&GgufFile::tiny().bytes());
    let (expected, _) = try_convert(&path, Quant::F32).unwrap();
    assert_eq!(expected.metadata("tie_word_embeddings"), "True", "there is no output.weight");
    assert_eq!(expected.metadata("n_kv_heads"), "2", "as many as heads where the file does not say");
    assert_eq!(expected.metadata("rope_theta"), "10000.0");
    for change in [
        |file: &mut GgufFile| file.version = 2,
        |file: &mut GgufFile| file.set("general.alignment", u32_value(32)),
        |file: &mut GgufFile| file.set("general.alignment", u32_value(1)),
        |file: &mut GgufFile| file.set("llama.rope.scaling.type", str_value("none")),
        |file: &mut GgufFile| file.set("llama.rope.scaling.factor", f32_value(1.0)),
        |file: &mut GgufFile| file.set("llama.rope.scale_linear", f32_value(0.0)),
        |file: &mut GgufFile| file.set("llama.expert_count", u32_value(0)),
        |file: &mut GgufFile| file.set("llama.attention.sliding_window", u32_value(0)),
        |file: &mut GgufFile| file.set("llama.block_count", u64_value(1)),
        |file: &mut GgufFile| file.set("anything.else", array_value(7, &[vec![1], vec![0]])),
    ] {
        let mut file = GgufFile::tiny();
        change(&mut file);
        let mut bytes = file.bytes();
        if file.keys.iter().any(|(key, value)| key == "general.alignment" && value == &u32_value(1)) {
            // Aligned to 1, the data follows the header at once.
            bytes = without_padding(&file);
        }
        let (_folder, path) = write(&bytes);
        let (bin, _) = try_convert(&path, Quant::F32).unwrap();
        assert!(bin.file == expected.file);
    }
}

/// The file's bytes with no padding between the header and the data.
fn without_padding(file: &GgufFile) -> Vec<u8> {
    let bytes = file.bytes();
    let data: usize = file.tensors.iter().map(|tensor| tensor.data.len().next_multiple_of(32)).sum();
    let mut headless = file.clone();
    headless.tensors.iter_mut().for_each(|tensor| tensor.data.clear());
    let mut offset = 0;
    for (tensor, whole) in headless.tensors.iter_mut().zip(&file.tensors) {
        tensor.offset = Some(offset);
        offset += whole.data.len().next_multiple_of(32) as u64;
    }
    let header = headless.bytes();
    let last = file.tensors.last().unwrap();
    // The last description ends with its name, one dimension, type and offset.
    let end = header.windows(last.name.len()).rposition(|window| window == last.name.as_bytes()).unwrap();
    let end = end + last.name.len() + 4 + 8 * last.dims.len() + 4 + 8;
    [&header[..end], &bytes[bytes.len() - data..]].concat()
}

/// Of 4 MB of pieces that are all parts of each other there are 1.7 GB of merges.
#[test]
fn a_vocabulary_of_parts_of_itself_is_refused() {
    let mut random = 1u32;
    let letter = |_| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b'a' + (random >> 24) as u8 % 26)
    };
    let text: String = (0..600).map(letter).collect();
    let parts = |len: usize| (0..text.len() - len).map(move |at| (at, len));
    let parts: std::collections::BTreeSet<&str> =
        (1..=128).flat_map(parts).map(|(at, len)| &text[at..at + len]).collect();
    let tokens: Vec<&str> = ["<unk>", "<s>", "</s>"].into_iter().chain(parts).collect();
    assert!(tokens.len() > 60_000);
    let mut file = GgufFile::tiny();
    file.set("tokenizer.ggml.tokens", strings(&tokens));
    file.set("tokenizer.ggml.scores", f32s(&vec![0.0; tokens.len()]));
    file.set("tokenizer.ggml.token_type", i32s(&vec![1; tokens.len()]));
    file.tensors.retain(|tensor| tensor.name != "token_embd.weight");
    file.add("token_embd", &[8, tokens.len() as u64]);
    let (_folder, path) = write(&file.bytes());
    assert_refused(&path, "too many ways");
}

/// What could not be opened is not written.
#[test]
fn a_header_that_is_too_long_is_refused() {
    let mut file = GgufFile::tiny();
    // Six bytes each in JSON.
    file.set("tokenizer.chat_template", str_value(&"\u{1}".repeat(17_000_000)));
    let (_folder, path) = write(&file.bytes());
    assert_refused(&path, "up to 100000000 are supported");
}

/// What the scores say of equals is in the file: it tokenizes as the source does.
#[test]
fn equal_scores_are_kept() {
    let mut file = GgufFile::tiny();
    file.set("tokenizer.ggml.tokens", strings(&["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "ba", "b"]));
    file.set("tokenizer.ggml.scores", f32s(&[0.0, 0.0, 0.0, 0.0, -2.0, -3.0, -1.0, -4.0]));
    let (_folder, path) = write(&file.bytes());
    let tokenizer =
        |path: &std::path::Path| try_convert(path, Quant::F32).unwrap().0.header["tokenizer"].clone();
    assert!(tokenizer(&path).get("equal_merges").is_none(), "nothing is equal");
    file.set("tokenizer.ggml.tokens", strings(&["<unk>", "<s>", "</s>", "ab", "▁", "a", "ba", "b"]));
    file.set("tokenizer.ggml.scores", f32s(&[0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -1.0, -4.0]));
    file.set("tokenizer.ggml.token_type", i32s(&[2, 3, 3, 1, 1, 1, 1, 1]));
    let (folder, path) = write(&file.bytes());
    assert_eq!(tokenizer(&path)["equal_merges"], serde_json::json!([[0, 2]]));
    let bin = folder.path().join("model.bin");
    convert(&path, &bin, Quant::F32, &mut |_| ControlFlow::Continue(())).unwrap();
    let model = Model::open(&bin).unwrap();
    let options = torchless::tokenizer::EncodeOptions { bos: false, special: false };
    assert_eq!(model.tokenizer().encode("bab", options), [4, 6, 7]);
    assert_eq!(model.tokenizer().encode("aba", options), [4, 3, 5]);
}

#[test]
fn a_sliding_window_is_kept() {
    let mut file = GgufFile::tiny();
    file.set("llama.attention.sliding_window", u32_value(16));
    let (_folder, path) = write(&file.bytes());
    assert_eq!(try_convert(&path, Quant::F32).unwrap().0.metadata("sliding_window"), "16");
}

#[test]
fn groups_run_across_the_blocks_of_rows_that_a_large_tensor_is_written_in() {
    // Rows of 43691 values: 6 of them, the first block, end 2 values into a group.
    let cols = 43691;
    let mut file = GgufFile::tiny();
    file.set("llama.feed_forward_length", u32_value(cols));
    file.tensors.retain(|tensor| !tensor.name.contains("ffn_") || tensor.name.contains("norm"));
    file.add("blk.0.ffn_gate", &[8, cols.into()]);
    file.add("blk.0.ffn_up", &[8, cols.into()]);
    file.add("blk.0.ffn_down", &[cols.into(), 8]);
    let values: Vec<f32> = (0..8 * cols).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 - 8e6).collect();
    file.tensor("blk.0.ffn_down.weight").data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (_folder, path) = write(&file.bytes());

    let name = "model.layers.0.mlp.down_proj.weight";
    let (quants, scales) = try_convert(&path, Quant::Int8).unwrap().0.int8s(name);
    for ((group, quants), scale) in values.chunks(64).zip(quants.chunks(64)).zip(scales) {
        let max = group.iter().map(|value| value.abs()).fold(0.0, f32::max);
        assert_eq!(scale, 127.0 / max);
        let expected: Vec<i8> = group.iter().map(|value| (value * scale).round_ties_even() as i8).collect();
        assert_eq!(quants, expected);
    }
    assert!(try_convert(&path, Quant::F32).unwrap().0.f32s(name) == values);
}

/// A change to a good file and what the refusal must say.
pub type Case = (fn(&mut GgufFile), &'static str);

pub fn assert_cases_refused(cases: &[Case]) {
    for (change, expected) in cases {
        let mut file = GgufFile::tiny();
        change(&mut file);
        let (_folder, path) = write(&file.bytes());
        assert_refused(&path, expected);
    }
}

#[test]
fn models_that_compute_something_else_are_refused() {
    assert_cases_refused(&[
        (|f| f.set("general.architecture", str_value("gemma")), "gemma"),
        (|f| f.remove("general.architecture"), "general.architecture"),
        (|f| f.set("llama.rope.scaling.type", str_value("spiral")), "spiral"),
        (|f| f.set("llama.rope.scaling.factor", f32_value(-4.0)), "rope scaling by -4"),
        (|f| f.set("llama.rope.scale_linear", f32_value(f32::INFINITY)), "rope scaling by inf"),
        (|f| f.set("llama.rope.scaling.attn_factor", f32_value(-1.1)), "rope_magnitude is -1.1"),
        (|f| f.set("llama.attn_logit_softcapping", f32_value(50.0)), "llama.attn_logit_softcapping"),
        (|f| f.set("llama.rope.dimension_sections", i32s(&[1, 1])), "llama.rope.dimension_sections"),
        (|f| f.set("llama.expert_count", u32_value(8)), "experts"),
        (|f| f.set("llama.attention.causal", bool_value(0)), "causal"),
        (|f| f.set("split.count", u32_value(2)), "one of 2 parts"),
        (|f| f.set("llama.rope.dimension_count", u32_value(2)), "llama.rope.dimension_count"),
        (|f| f.set("llama.attention.value_length", u32_value(8)), "llama.attention.value_length"),
        (|f| f.add("rope_freqs", &[3]), "model.rotary_emb.factors has shape [3]"),
        (
            |f| {
                f.add("rope_freqs", &[2]);
                f.set("llama.rope.scaling.factor", f32_value(2.0));
            },
            "at once",
        ),
        (|f| f.add("blk.0.attn_q_norm", &[4]), "self_attn.q_norm"),
        (
            |f| {
                f.add("x", &[8]);
                f.tensor("x.weight").name = "blk.0.attn_q.bias".into()
            },
            "k_proj.bias is missing",
        ),
        (|f| f.tensor("token_embd.weight").kind = 20, "IQ4_NL"),
        (|f| f.tensor("token_embd.weight").kind = 99, "99"),
    ]);
}

#[test]
fn files_that_contradict_themselves_are_refused() {
    assert_cases_refused(&[
        (|f| f.version = 1, "version 1"),
        (|f| f.tensor("blk.0.attn_k.weight").offset = Some(0), "lie over each other"),
        (
            |f| f.tensor("blk.0.attn_k.weight").offset = Some(32),
            "token_embd.weight and blk.0.attn_k.weight lie over",
        ),
        (|f| f.version = 4, "version 4"),
        (|f| f.version = 0, "version 0"),
        (|f| f.version = 3 << 24, "big-endian"),
        (|f| f.keys.push(("llama.block_count".into(), u32_value(1))), "occurs twice"),
        (|f| f.keys.push(("bad\nname".into(), u32_value(1))), "not printable"),
        (|f| f.keys.push(("n".repeat(300), u32_value(1))), "too long"),
        (|f| f.set("general.alignment", u32_value(0)), "general.alignment is 0"),
        (|f| f.set("general.alignment", u32_value(48)), "general.alignment is 48"),
        (|f| f.set("general.alignment", u64_value(1 << 40)), "general.alignment"),
        (|f| f.set("general.alignment", str_value("32")), "general.alignment"),
        (|f| f.set("general.alignment", u32_value(1 << 31)), "end past the file"),
        (|f| f.set("llama.block_count", str_value("1")), "llama.block_count is not"),
        (|f| f.set("llama.block_count", f32_value(1.0)), "llama.block_count is not"),
        (|f| f.set("llama.block_count", i32s(&[1])), "llama.block_count is not"),
        (|f| f.remove("llama.block_count"), "llama.block_count is missing"),
        (|f| f.set("llama.block_count", u64_value(u64::MAX)), "n_layers"),
        (|f| f.set("llama.block_count", u32_value(2)), "model.layers.1"),
        (|f| f.set("llama.attention.head_count", u32_value(0)), "heads"),
        (|f| f.set("llama.attention.head_count", u32_value(3)), "heads"),
        (|f| f.set("llama.attention.head_count_kv", u32_value(0)), "n_kv_heads"),
        (|f| f.set("llama.attention.key_length", u32_value(0)), "head_dim"),
        (|f| f.set("llama.attention.key_length", u32_value(3)), "odd"),
        (|f| f.set("llama.attention.layer_norm_rms_epsilon", f32_value(f32::NAN)), "norm_eps is NaN"),
        (|f| f.set("llama.attention.causal", bool_value(7)), "a bool is 7"),
        (|f| f.set("x", [13u32.to_le_bytes(), [0; 4]].concat()), "value type 13"),
        (|f| f.set("x", array_of_len(9, 1, &[0; 64])), "array of arrays"),
        (|f| f.set("x", array_of_len(13, 1, &[0; 64])), "value type 13"),
        (|f| f.set("x", array_of_len(4, u64::MAX, &[])), "cannot be"),
        (|f| f.set("x", array_of_len(4, 1 << 40, &[])), "cut off"),
        (|f| f.set("x", array_of_len(8, u64::MAX, &[])), "key x"),
        (|f| f.set("x", [&8u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat()), "cut off"),
        (|f| f.set("x", [&8u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[0xff]].concat()), "UTF-8"),
        (|f| f.set("x", array_of_len(9, 0, &[])), "array of arrays"),
        (|f| f.set("x", array_of_len(13, 0, &[])), "value type 13"),
        (|f| f.set("x", array_of_len(9, 1 << 30, &[0; 64])), "array of arrays"),
        (|f| f.set("x", array_of_len(4, 1 << 28, &[])), "1073741824 bytes needed"),
        (|f| f.set("x", array_of_len(8, 1 << 30, &[])), "key x"),
        (
            |f| f.set("x", [&8u32.to_le_bytes()[..], &(1u64 << 30).to_le_bytes()].concat()),
            "1073741824 bytes needed",
        ),
        (|f| f.keys.insert(0, (String::new(), u32_value(1))), "name at 24 is empty"),
        (|f| f.tensor("output_norm.weight").name = String::new(), "is empty"),
        (|f| f.keys.push(f.keys[0].clone()), "occurs twice"),
        (|f| f.set("general.alignment", u32_value(1 << 30)), "end past the file"),
        (|f| f.set("general.alignment", u32_value(0)), "general.alignment is 0"),
        (|f| f.set("general.alignment", f32_value(32.0)), "general.alignment"),
        // Elements narrower and wider than those that are read.
        (|f| f.set("tokenizer.ggml.scores", array_of_len(0, 8, &[1; 8])), "not an array of floats"),
        (|f| f.set("tokenizer.ggml.token_type", f32s(&[1.0; 8])), "not an array of integers"),
        (
            |f| f.set("tokenizer.ggml.token_type", array_value(10, &[vec![0xff; 8]])),
            "not an array of integers",
        ),
        (|f| f.set("tokenizer.ggml.tokens", array_value(0, &[vec![1]])), "not an array of strings"),
        (|f| f.tensor("token_embd.weight").kind = 4, "tensor type 4"),
        (|f| f.tensor("token_embd.weight").kind = 16, "IQ2_XXS"),
        (|f| f.tensor("token_embd.weight").kind = u32::MAX, "tensor type 4294967295"),
        // 2^64, which wraps to 0, and 2^64 + 2^32, which wraps to 2^32.
        (|f| f.tensor("token_embd.weight").dims = vec![8, 1 << 61], "counted"),
        (|f| f.tensor("token_embd.weight").dims = vec![1 << 32, (1 << 32) + 1], "counted"),
        (|f| f.tensor("token_embd.weight").dims = vec![1 << 62], "token_embd.weight"),
        (|f| f.tensors.push(f.tensors[0].clone()), "occurs twice"),
        (|f| f.tensor("token_embd.weight").dims = vec![], "0 dimensions"),
        (|f| f.tensor("token_embd.weight").dims = vec![1; 5], "5 dimensions"),
        (|f| f.tensor("token_embd.weight").dims = vec![8, 0], "dimension of 0"),
        (|f| f.tensor("token_embd.weight").dims = vec![1 << 33, 1 << 33], "counted"),
        (|f| f.tensor("token_embd.weight").dims = vec![u64::MAX], "token_embd.weight"),
        (|f| f.tensor("token_embd.weight").dims = vec![4, 2, 8], "token_embd.weight has shape [8, 2, 4]"),
        (|f| f.tensor("token_embd.weight").dims = vec![8, 4], "8 tokens, but the embedding has only 4 rows"),
        (|f| f.tensor("blk.0.attn_q.weight").dims = vec![8, 4], "has shape"),
        (|f| f.tensor("token_embd.weight").offset = Some(8), "multiple of the alignment"),
        (|f| f.tensor("token_embd.weight").offset = Some(1 << 20), "end past the file"),
        (|f| f.tensor("token_embd.weight").offset = Some(u64::MAX - 31), "end past the file"),
        (|f| f.tensor("token_embd.weight").kind = 2, "whole blocks"),
        (|f| f.tensors.retain(|t| t.name != "output_norm.weight"), "model.norm.weight is missing"),
        (|f| f.tensors.retain(|t| t.name != "token_embd.weight"), "token_embd.weight is missing"),
        (
            |f| f.tensor("output_norm.weight").data[..4].copy_from_slice(&f32::INFINITY.to_le_bytes()),
            "inf at row 0",
        ),
    ]);
}

/// Neither is believed before there is something to show for it.
#[test]
fn counts_that_cannot_be() {
    let whole = GgufFile::tiny().bytes();
    for at in [8, 16] {
        for count in [u64::MAX, 1 << 63, 1 << 40, 1 << 30] {
            let mut bytes = whole.clone();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            let (_folder, path) = write(&bytes);
            refusal(&path);
        }
    }
}

#[test]
fn a_cut_off_file_is_refused_wherever_it_ends() {
    let whole = GgufFile::tiny().bytes();
    let (_folder, path) = write(&whole);
    Convertible::open(&path).map(drop).unwrap();
    for len in 0..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(Convertible::open(&path).is_err(), "cut to {len} bytes");
    }
}

#[test]
fn no_damaged_byte_makes_a_panic() {
    let whole = GgufFile::tiny().bytes();
    let data: usize = GgufFile::tiny().tensors.iter().map(|tensor| tensor.data.len()).sum();
    let (_folder, path) = write(&whole);
    let mut damaged = whole.clone();
    let mut refused = 0;
    for at in 0..whole.len() - data {
        for flip in [0x01, 0x80, 0xff] {
            damaged[at] = whole[at] ^ flip;
            fs::write(&path, &damaged).unwrap();
            refused += usize::from(Convertible::open(&path).is_err());
        }
        damaged[at] = whole[at];
    }
    assert!(refused > whole.len() / 4, "only {refused} were refused");
}

#[test]
fn what_is_neither_is_named() {
    let (_folder, path) = write(b"");
    assert_refused(&path, "neither GGUF nor");
    let (_folder, path) = write(b"PK\x03\x04");
    assert_refused(&path, "zip archive");
    let safetensors = fs::read(fixture("hf/model.safetensors")).unwrap();
    let (_folder, path) = write(&safetensors);
    assert_refused(&path, "a safetensors file");
    assert_refused(&fixture("nothing"), "No such file");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A weight that was stored as int8 and read back is off by half a step of its group at most.
    #[test]
    fn what_comes_back_is_within_half_a_step(
        bits in prop::collection::vec(any::<u32>(), 128),
        scale in prop::sample::select(vec![1e-30f32, 1e-6, 1.0, 1e6, 1e30]),
    ) {
        // Finite, of very different magnitudes, with zeros among them.
        let weight = |bits: &u32| match bits % 5 {
            0 => 0.0,
            1 => f32::from_bits(bits & 0x807f_ffff | 0x3f80_0000) * scale,
            _ => (*bits as i32 as f32) * 1e-9 * scale,
        };
        let weights: Vec<f32> = bits.iter().map(weight).collect();
        let mut file = GgufFile::tiny();
        file.tensor("blk.0.ffn_down.weight").data = weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let (folder, path) = write(&file.bytes());
        let converted = folder.path().join("model.bin");
        let storage = Quant::Int8.laid_out(RowLayout::Rows);
        convert(&path, &converted, storage, &mut |_| ControlFlow::Continue(())).unwrap();

        let model = Model::open(&converted).unwrap();
        let name = "model.layers.0.mlp.down_proj.weight";
        let tensor = model.file().tensors().iter().find(|tensor| tensor.name() == name).unwrap();
        let weight = model.file().weight(tensor);
        let mut found = vec![0.0; weights.len()];
        for (row, out) in found.chunks_exact_mut(weight.cols()).enumerate() {
            Kernels::detect().weight_row(&weight, row, out);
        }
        for (group, found) in weights.chunks(64).zip(found.chunks(64)) {
            let max = group.iter().fold(0.0f32, |max, w| max.max(w.abs()));
            // Half a step, and what rounding the scale, the product and the quotient adds.
            let bound = max * (0.5 / 127.0 + 1e-6);
            for (weight, found) in group.iter().zip(found) {
                let near = abs_diff_eq!(weight, found, epsilon = bound);
                prop_assert!(near, "{weight} came back as {found}, of {max}");
            }
        }
    }
}
