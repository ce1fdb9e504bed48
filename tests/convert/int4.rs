//! Int4: grids that GGUF has already, what is searched for other weights, and which tensors get it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use half::f16;
use torchless::format::convert::Quant;
use torchless::{Error, Model};

use crate::bin_file::BinFile;
use crate::gguf::write;
use crate::gguf_file::GgufFile;
use crate::try_convert;

fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

const EMBED: &str = "model.embed_tokens.weight";

fn of_layer(part: &str) -> String {
    format!("model.layers.0.{part}.weight")
}

/// A type of GGUF's blocks.
struct Blocks {
    /// ggml's number.
    kind: u32,
    values: usize,
    bytes: usize,
    /// Where the f16 scales are.
    scales: &'static [usize],
}

const Q4_0: Blocks = Blocks { kind: 2, values: 32, bytes: 18, scales: &[0] };
const Q4_1: Blocks = Blocks { kind: 3, values: 32, bytes: 20, scales: &[0, 2] };
const Q5_0: Blocks = Blocks { kind: 6, values: 32, bytes: 22, scales: &[0] };
const Q5_1: Blocks = Blocks { kind: 7, values: 32, bytes: 24, scales: &[0, 2] };
const Q8_0: Blocks = Blocks { kind: 8, values: 32, bytes: 34, scales: &[0] };
const Q2_K: Blocks = Blocks { kind: 10, values: 256, bytes: 84, scales: &[80, 82] };
const Q3_K: Blocks = Blocks { kind: 11, values: 256, bytes: 110, scales: &[108] };
const Q4_K: Blocks = Blocks { kind: 12, values: 256, bytes: 144, scales: &[0, 2] };
const Q5_K: Blocks = Blocks { kind: 13, values: 256, bytes: 176, scales: &[0, 2] };
const Q6_K: Blocks = Blocks { kind: 14, values: 256, bytes: 210, scales: &[208] };

/// A model of this width whose matrices are random blocks of this type. Scales are of both signs, and differ by 16 times.
fn quantised(blocks: &Blocks, width: u32) -> GgufFile {
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as u8
    };
    let mut file = GgufFile::wide(width);
    for tensor in file.tensors.iter_mut().filter(|tensor| tensor.dims.len() == 2) {
        let count = (tensor.dims[0] * tensor.dims[1]) as usize / blocks.values;
        let mut data: Vec<u8> = (0..count * blocks.bytes).map(|_| random()).collect();
        for block in data.chunks_mut(blocks.bytes) {
            for &at in blocks.scales {
                let byte = random();
                let sign = if byte & 1 == 0 { 1.0 } else { -1.0 };
                let scale = f16::from_f32(sign * (f32::from(byte) + 16.0) / 4096.0);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        (tensor.kind, tensor.data) = (blocks.kind, data);
    }
    file
}

/// The codes of one row of blocks.
fn codes_of(blocks: &Blocks, row: &[u8]) -> Vec<u8> {
    let nibble = |bytes: &[u8], high: bool| -> Vec<u8> {
        bytes.iter().map(|byte| if high { byte >> 4 } else { byte & 15 }).collect()
    };
    let both = |bytes: &[u8]| [nibble(bytes, false), nibble(bytes, true)].concat();
    let block = |block: &[u8]| match blocks.kind {
        2 => both(&block[2..]),
        3 => both(&block[4..]),
        _ => block[16..].chunks(32).flat_map(both).collect(),
    };
    row.chunks(blocks.bytes).flat_map(block).collect()
}

/// Row `row` as rotary embeddings want it lies there in a GGUF file: in each of two heads even rows come before odd ones.
fn stored_row(row: usize, rows: usize) -> usize {
    let (head, within) = (row / (rows / 2), row % (rows / 2));
    let half = rows / 4;
    head * (rows / 2) + 2 * (within % half) + within / half
}

#[test]
fn codes_of_ggufs_four_bits_are_kept() {
    let names = [
        (EMBED.to_owned(), "token_embd"),
        (of_layer("self_attn.q_proj"), "blk.0.attn_q"),
        (of_layer("self_attn.k_proj"), "blk.0.attn_k"),
        (of_layer("self_attn.v_proj"), "blk.0.attn_v"),
        (of_layer("self_attn.o_proj"), "blk.0.attn_output"),
        (of_layer("mlp.gate_proj"), "blk.0.ffn_gate"),
        (of_layer("mlp.up_proj"), "blk.0.ffn_up"),
        (of_layer("mlp.down_proj"), "blk.0.ffn_down"),
    ];
    for (blocks, width, dtype, first_code) in [
        (&Q4_0, 64, "int4_by_32", -8),
        (&Q4_1, 192, "int4_by_32_minimum", 0),
        (&Q4_K, 256, "int4_by_32_minimum", 0),
    ] {
        let mut file = quantised(blocks, width);
        let (_folder, path) = write(&file.bytes());
        let (int4, _) = try_convert(&path, Quant::Int4).unwrap();
        let (f32, _) = try_convert(&path, Quant::F32).unwrap();
        assert_eq!(int4.metadata("quant"), dtype);
        for (name, stored) in &names {
            assert_eq!(int4.dtype(name), dtype, "{name}");
            let found = int4.int4(name);
            assert_eq!(found.codes, std::array::from_fn(|i| first_code + i as i8));
            let [rows, cols] = int4.shape(name)[..] else { panic!("{name} is no matrix") };
            let data = &file.tensor(&format!("{stored}.weight")).data;
            let row_bytes = cols / blocks.values * blocks.bytes;
            let expected = f32.f32s(name);
            for row in 0..rows {
                let turned = stored.ends_with("_q") || stored.ends_with("_k");
                let stored = if turned { stored_row(row, rows) } else { row };
                let codes = codes_of(blocks, &data[stored * row_bytes..][..row_bytes]);
                assert!(found.nibbles[row * cols..][..cols] == codes, "{name}, row {row}");
                let of_row = |weights: &[f32]| weights[row * cols..][..cols].to_vec();
                let (expected, found) = (of_row(&expected), of_row(&found.weights));
                let largest = expected.iter().fold(0.0f32, |max, w| max.max(w.abs()));
                for (expected, found) in expected.iter().zip(&found) {
                    let error = (expected - found).abs();
                    assert!(error <= largest / 3000.0, "{name}, row {row}: {expected} became {found}");
                }
            }
        }
        for name in int4.names().into_iter().filter(|name| name.ends_with("norm.weight")) {
            assert_eq!(int4.f32s(name), f32.f32s(name), "{name}");
        }
        let (_folder, path) = write(&int4.file);
        Model::open(path).unwrap();
    }
}

/// Panels need whole groups of 64 columns, and GGUF's blocks are half as long.
#[test]
fn columns_that_are_no_whole_groups_become_int8() {
    let (_folder, path) = write(&quantised(&Q4_1, 96).bytes());
    let (bin, _) = try_convert(&path, Quant::Int4).unwrap();
    for name in bin.names().into_iter().filter(|name| bin.shape(name).len() == 2) {
        // Of 192 columns.
        let expected = if name.ends_with("down_proj.weight") { "int4_by_32_minimum" } else { "int8" };
        assert_eq!(bin.dtype(name), expected, "{name}");
    }
    let (_folder, path) = write(&bin.file);
    Model::open(path).unwrap();
}

#[test]
fn as_many_bits_as_the_source_has() {
    // What int4 is searched for: more bits than eight, or fewer than four.
    let searched = |name: &str| match name {
        EMBED => "int8_panels",
        _ if name.contains("v_proj") => "int8_panels",
        _ => "int4",
    };
    for blocks in [&Q5_0, &Q5_1, &Q8_0, &Q5_K, &Q6_K, &Q2_K, &Q3_K] {
        let five_to_eight = ![Q2_K.kind, Q3_K.kind].contains(&blocks.kind);
        let (_folder, path) = write(&quantised(blocks, 256).bytes());
        let (bin, _) = try_convert(&path, Quant::Int4).unwrap();
        for name in bin.names().into_iter().filter(|name| bin.shape(name).len() == 2) {
            let expected = if five_to_eight { "int8_panels" } else { searched(name) };
            assert_eq!(bin.dtype(name), expected, "type {}: {name}", blocks.kind);
        }
    }
}

/// A file may have several types, as those of llama.cpp do.
#[test]
fn each_tensor_by_itself() {
    let (mut file, of_six) = (quantised(&Q4_K, 256), quantised(&Q6_K, 256));
    for name in ["token_embd.weight", "blk.0.attn_v.weight", "blk.0.ffn_down.weight"] {
        let six = of_six.clone().tensor(name).clone();
        *file.tensor(name) = six;
    }
    let (_folder, path) = write(&file.bytes());
    let (bin, _) = try_convert(&path, Quant::Int4).unwrap();
    for (name, expected) in [
        (EMBED.to_owned(), "int8_panels"),
        (of_layer("self_attn.v_proj"), "int8_panels"),
        (of_layer("mlp.down_proj"), "int8_panels"),
        (of_layer("mlp.up_proj"), "int4_by_32_minimum"),
        (of_layer("self_attn.q_proj"), "int4_by_32_minimum"),
    ] {
        assert_eq!(bin.dtype(&name), expected, "{name}");
    }
}

#[test]
fn scales_that_are_no_numbers_are_refused_with_their_place() {
    for (blocks, at, value, shown) in
        [(&Q4_0, 0, f16::NAN, "NaN"), (&Q4_0, 0, f16::NEG_INFINITY, "-inf"), (&Q4_1, 2, f16::INFINITY, "inf")]
    {
        let mut file = quantised(blocks, 128);
        // Row 9's third block, of four.
        let place = (9 * 4 + 2) * blocks.bytes + at;
        file.tensor("blk.0.ffn_up.weight").data[place..place + 2].copy_from_slice(&value.to_le_bytes());
        let (_folder, path) = write(&file.bytes());
        let error = try_convert(&path, Quant::Int4).map(drop).unwrap_err().to_string();
        let name = of_layer("mlp.up_proj");
        let expected = format!("tensor {name} holds {shown} at row 9, column 64");
        assert!(error.contains(&expected), "{error:?} does not say {expected:?}");
        assert_eq!(error.lines().count(), 1);
    }
}

/// Where the codes are searched for, from a folder, an f32 file and one that was int8.
#[test]
fn weights_are_as_near_as_sixteen_codes_can_be() {
    for name in ["mistral-hf", "mistral-f32.bin", "mistral-int8.bin", "llama-f32.bin", "llama-int8.bin"] {
        let (int4, _) = try_convert(&model(name), Quant::Int4).unwrap();
        let (f32, _) = try_convert(&model(name), Quant::F32).unwrap();
        let mut found_int4 = 0;
        for tensor in int4.names().into_iter().filter(|name| int4.shape(name).len() == 2) {
            let outer = tensor.contains("v_proj") || tensor == EMBED || tensor == "lm_head.weight";
            assert_eq!(int4.dtype(tensor), if outer { "int8_panels" } else { "int4" }, "{name}, {tensor}");
            if outer {
                continue;
            }
            found_int4 += 1;
            let square =
                |values: &mut dyn Iterator<Item = f32>| values.map(|w| f64::from(w).powi(2)).sum::<f64>();
            let (expected, found) = (f32.f32s(tensor), int4.int4(tensor).weights);
            let error = square(&mut expected.iter().zip(&found).map(|(w, f)| w - f));
            let error = (error / square(&mut expected.iter().copied())).sqrt();
            assert!((0.01..0.085).contains(&error), "{name}, {tensor}: an error of {error}");
        }
        assert_eq!(found_int4, 12, "{name}");
        assert_eq!(int4.metadata("quant"), "int8_panels", "the first tensor's that is not f32");
        // What the library reads is what the format says.
        let (_folder, path) = write(&int4.file);
        let (again, _) = try_convert(&path, Quant::F32).unwrap();
        for tensor in int4.names().into_iter().filter(|name| int4.dtype(name) == "int4") {
            assert!(again.f32s(tensor) == int4.int4(tensor).weights, "{name}, {tensor}");
        }
    }
}

/// The kinds that pay most for eight bits, the first most.
const WORTHY: [&str; 8] =
    ["v_proj", "k_proj", "embed_tokens", "down_proj", "up_proj", "q_proj", "o_proj", "gate_proj"];

fn rank(name: &str) -> usize {
    WORTHY.iter().position(|part| name.contains(part)).unwrap_or(2)
}

/// Bytes of each matrix, and its weights.
fn matrices(bin: &BinFile) -> BTreeMap<String, (f64, f64)> {
    let matrices = bin.names().into_iter().filter(|name| bin.shape(name).len() == 2);
    let sizes = matrices.map(|name| {
        let [rows, cols] = bin.shape(name)[..] else { panic!("no matrix") };
        let (n, panels) = ((rows * cols) as f64, rows.div_ceil(16) as f64);
        let padded = panels * 16.0 * cols as f64;
        let bytes = match bin.dtype(name) {
            "int4" => padded / 2.0 + 64.0 + 64.0 * panels + padded / 16.0,
            "int8_panels" => padded + padded / 32.0,
            other => panic!("{name} is {other}"),
        };
        (name.to_owned(), (bytes, n))
    });
    sizes.collect()
}

fn average(bin: &BinFile) -> f64 {
    let (bytes, n) = matrices(bin).values().fold((0.0, 0.0), |sum, (bytes, n)| (sum.0 + bytes, sum.1 + n));
    8.0 * bytes / n
}

fn of_bits(bits: &str) -> BinFile {
    try_convert(&model("llama-f32.bin"), format!("int4:{bits}").parse::<Quant>().unwrap()).unwrap().0
}

/// The matrices that are int8 where each is that fits into what the worthier ones leave; and what they are worth.
fn greedy(
    asked: f64,
    outer_first: bool,
    names: &[&str],
    four: &BTreeMap<String, (f64, f64)>,
    eight: &BTreeMap<String, (f64, f64)>,
) -> (f64, BTreeSet<String>) {
    let n: f64 = four.values().map(|(_, n)| n).sum();
    let mut left = asked * n / 8.0 - four.values().map(|(bytes, _)| bytes).sum::<f64>();
    let mut order: Vec<_> = names.iter().rev().copied().collect();
    order.sort_by_key(|name| if outer_first && worth(name) == 15.0 { 0 } else { rank(name) + 1 });
    let (mut sum, mut int8) = (0.0, BTreeSet::new());
    for name in order {
        let more = eight[name].0 - four[name].0;
        if more <= left {
            left -= more;
            sum += worth(name) * four[name].1;
            int8.insert(name.to_owned());
        }
    }
    (sum, int8)
}

/// What eight bits are worth, in 0.0001 for a million weights.
fn worth(name: &str) -> f64 {
    let kinds = [("v_proj", 107.0), ("k_proj", 20.0), ("down_proj", 10.5), ("up_proj", 8.0)];
    let kinds = kinds.into_iter().chain([("q_proj", 7.0), ("o_proj", 6.5), ("gate_proj", 5.0)]);
    kinds.into_iter().find(|(kind, _)| name.contains(kind)).map_or(15.0, |(_, worth)| worth)
}

#[test]
fn an_average_is_kept_and_spent_on_what_is_worth_most() {
    let least = of_bits("4.5");
    let (most, _) = try_convert(&model("llama-f32.bin"), Quant::Int8).unwrap();
    let (four, eight) = (matrices(&least), matrices(&most));
    let all_int4 = average(&least);
    assert!(least.names().iter().all(|name| least.shape(name).len() == 1 || least.dtype(name) == "int4"));
    // So narrow are they that a row's scale and the table are half a bit.
    assert!((4.5..5.1).contains(&all_int4), "{all_int4}");
    let mut before = all_int4;
    let mut seen = 0;
    for hundredths in (450..=825).step_by(15) {
        let asked = f64::from(hundredths) / 100.0;
        let bin = of_bits(&format!("{asked}"));
        let found = average(&bin);
        assert!(found <= asked.max(all_int4), "{found} where {asked} were asked for");
        assert!(found >= before, "{asked}: {found} after {before}");
        seen += usize::from(found > before);
        before = found;
        let names = bin.names().into_iter().filter(|name| bin.shape(name).len() == 2).collect::<Vec<_>>();
        let int8: BTreeSet<_> = names
            .iter()
            .filter(|name| bin.dtype(name) == "int8_panels")
            .map(|name| (*name).to_owned())
            .collect();
        // Of two orders, the second with the embedding and the head before all, that which is worth more.
        let [one, other] = [false, true].map(|outer_first| greedy(asked, outer_first, &names, &four, &eight));
        let expected = if other.0 > one.0 { other.1 } else { one.1 };
        assert_eq!(int8, expected, "{asked}");
    }
    assert!(seen > 8, "only {seen} different files");
    assert!(before > 8.0, "{before} of 8.25");
}

#[test]
fn a_grid_stays_whatever_the_average() {
    for bits in ["4.5", "8.25"] {
        let (_folder, path) = write(&quantised(&Q4_0, 64).bytes());
        let (bin, _) = try_convert(&path, format!("int4:{bits}").parse::<Quant>().unwrap()).unwrap();
        assert!(bin.names().iter().all(|name| bin.shape(name).len() == 1 || bin.dtype(name) == "int4_by_32"));
    }
}

#[test]
fn averages_that_make_no_sense() {
    assert_eq!("int4".parse(), Ok(Quant::Int4));
    assert_eq!("int4:5.5".parse(), Ok(Quant::Int4Of("5.5".parse().unwrap())));
    assert_ne!("int4:5.5".parse::<Quant>(), "int4:5.51".parse::<Quant>());
    for bits in ["", "4", "4.49", "8.26", "9", "NaN", "inf", "-5", "five", "1e300", "5 ", "0x5"] {
        let error = format!("int4:{bits}").parse::<Quant>().unwrap_err();
        assert_eq!(error, format!("{bits:?} is no number of bits between 4.5 and 8.25"));
    }
    for name in ["int4 ", "int4,5", "INT4", "int5"] {
        assert!(name.parse::<Quant>().unwrap_err().contains("int4, int4:BITS"), "{name}");
    }
}

#[test]
fn weights_that_panels_cannot_hold() {
    let with = |value: f32| {
        let mut file = GgufFile::wide(64);
        file.tensor("blk.0.ffn_up.weight").data[4 * (3 * 64 + 5)..][..4]
            .copy_from_slice(&value.to_le_bytes());
        let (folder, path) = write(&file.bytes());
        (folder, try_convert(&path, Quant::Int4))
    };
    let name = of_layer("mlp.up_proj");
    let error = with(-8319009.0).1.map(drop).unwrap_err();
    assert!(matches!(&error, Error::BeyondPanels { row: 3, .. }), "{error}");
    let expected = format!("tensor {name} holds -8319009 in row 3, and panels no more than 8319008");
    assert!(error.to_string().contains(&expected), "{error}");
    let found = with(-8319008.0).1.unwrap().0.int4(&name).weights[3 * 64 + 5];
    assert!((found / -8319008.0 - 1.0).abs() < 0.02, "{found}");
}
