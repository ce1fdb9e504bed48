//! Models of a real shape with random weights: to measure speed and memory without downloading anything.

use std::path::Path;

use crate::arch::Config;
use crate::arch::tensors::Tensors;
use crate::format::AtomicFile;
use crate::format::convert::{OnProgress, Report, Storage, layout, write};
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
    let mut drawn = DrawnRows::default();
    let read_row = |index: usize, row: usize, out: &mut [f32]| {
        match tensors[index].1[..] {
            [rows, _] => out.copy_from_slice(drawn.row(index, row, rows, out.len())),
            _ => out.fill(1.0),
        }
        Ok(())
    };
    let layout =
        tokenizer(config.vocab_size).and_then(|spec| layout(config, &spec, &tensors, storage.into()));
    let layout = layout.map_err(Malformed::in_file(dst))?;
    write(layout, &tensors, AtomicFile::create(dst, &[])?, read_row, progress)
}

/// Rows of a matrix that were drawn together, by all threads.
#[derive(Default)]
struct DrawnRows {
    tensor: usize,
    first: usize,
    values: Vec<f32>,
}

impl DrawnRows {
    /// Values drawn together: 4 MiB.
    const VALUES: usize = 1 << 20;

    /// Row `row` of `rows`, each of `cols` values.
    fn row(&mut self, tensor: usize, row: usize, rows: usize, cols: usize) -> &[f32] {
        let held = self.first..self.first + self.values.len() / cols;
        if tensor != self.tensor || !held.contains(&row) {
            (self.tensor, self.first) = (tensor, row);
            self.values.resize((Self::VALUES / cols).clamp(1, rows - row) * cols, 0.0);
            spread(self.values.chunks_mut(cols).enumerate(), |(i, out)| {
                let key = mix((tensor as u64) << 32 | (row + i) as u64);
                out.iter_mut().zip(0..).for_each(|(value, col)| *value = normal(key, col));
            });
        }
        &self.values[(row - self.first) * cols..][..cols]
    }
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
