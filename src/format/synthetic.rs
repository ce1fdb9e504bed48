//! Models of a real shape with random weights: to measure speed and memory without downloading anything.

use std::ops::Range;
use std::path::Path;

use crate::arch::tensors::Tensors;
use crate::arch::{Config, GenerationDefaults};
use crate::format::AtomicFile;
use crate::format::bin::writer::{Layout, TensorInfo};
use crate::format::convert::{OnProgress, Report, Storage, write};
use crate::format::encoding::Encoded;
use crate::format::plan::Planned;
use crate::format::source::Held;
use crate::parallel::spread::spread;
use crate::tokenizer::{Kind, Spec};
use crate::{Error, Malformed};

/// Writes a model of this configuration to `dst`. The same configuration gives the same file everywhere.
///
/// Weights are drawn from a bell curve of standard deviation 0.02 as models are initialised, so that logits are finite and
/// no token stands out; norms are 1. The tokenizer spells text byte by byte, and the other ids are words like `t1234`.
///
/// # Errors
/// If the configuration is not possible, its vocabulary has no room for 256 bytes and the special tokens, `dst` cannot be
/// written, or `progress` breaks off. Then `dst` is as it was.
pub fn write_synthetic(
    config: &Config,
    storage: impl Into<Storage>,
    dst: &Path,
    progress: &mut OnProgress,
) -> Result<Report, Error> {
    config.check().map_err(Malformed::in_file(dst))?;
    let mut tensors = Vec::new();
    Tensors::for_each_tensor(config, |name, shape| {
        tensors.push((name.to_owned(), shape.to_vec()));
        Ok(())
    })
    .map_err(Malformed::in_file(dst))?;
    let planned = tensors.iter().map(|(name, shape)| Planned { name, shape, held: Held::Wide });
    let dtypes = storage.into().plan(&planned.collect::<Vec<_>>());
    let infos =
        tensors.into_iter().zip(dtypes).map(|((name, shape), dtype)| TensorInfo { name, shape, dtype });
    let infos: Vec<_> = infos.collect();
    let mut values = Vec::new();
    let encode = |index: usize, rows: Range<usize>, out: &mut Encoded| {
        let TensorInfo { shape, dtype, .. } = &infos[index];
        let cols = shape.last().copied().unwrap_or(0);
        values.resize(rows.len() * cols, 1.0);
        match shape.len() {
            2 => spread(values.chunks_mut(cols).zip(rows), |(out, row)| draw_row(index, row, out)),
            _ => values.fill(1.0),
        }
        dtype.encoding().encode(&values, cols, out);
        Ok(())
    };
    let layout = tokenizer(config.vocab_size)
        .and_then(|spec| Layout::new(config, &spec, &GenerationDefaults::default(), &infos));
    let layout = layout.map_err(Malformed::in_file(dst))?;
    write(layout, &infos, AtomicFile::create(dst, &[])?, encode, progress)
}

/// Draws row `row` of a matrix.
fn draw_row(tensor: usize, row: usize, out: &mut [f32]) {
    let key = mix((tensor as u64) << 32 | row as u64);
    out.iter_mut().zip(0..).for_each(|(value, col)| *value = normal(key, col));
}

/// A value of the bell curve of standard deviation 0.02: the sum of four evenly distributed ones.
fn normal(key: u64, counter: u64) -> f32 {
    let bits = mix(key.wrapping_add(counter.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let sum: i32 = (0..4).map(|i| i32::from((bits >> (16 * i)) as i16)).sum();
    // The variance of 16 evenly distributed bits is 2^32 / 12.
    const SCALE: f32 = 0.02 / 37_837.23;
    sum as f32 * SCALE
}

/// SplitMix64's output function (Steele, Lea and Flood 2014): every bit of the result depends on every bit of `z`.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A vocabulary of `size` pieces that can spell any text.
fn tokenizer(size: usize) -> Result<Spec, Malformed> {
    let special = ["<unk>", "<s>", "</s>"].map(str::to_owned);
    let bytes = (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"));
    let needed: Vec<_> = special.into_iter().chain(bytes).chain(["▁".to_owned()]).collect();
    if size < needed.len() {
        return Err(Malformed(format!(
            "metadata: vocab_size is {size}: at least {} are needed",
            needed.len()
        )));
    }
    let words = (0..).map(|n| format!("▁t{n}"));
    let vocab = needed.into_iter().chain(words).take(size).zip(0..).collect();
    Ok(Spec {
        kind: Kind::Metaspace,
        vocab,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        ..Spec::default()
    })
}
