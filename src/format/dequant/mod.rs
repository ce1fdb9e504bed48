//! The number formats weights are stored in, decoded to f32: IEEE and bfloat16 floats, and ggml's quantised blocks.
//!
//! A quantised row is a sequence of blocks of 32 or 256 values, each with its own f16 scale(s). The layouts are those
//! of ggml's `block_q*` structures; results are the same bits as the `gguf` Python package's dequantisation.

mod grid;

use half::{bf16, f16};

use crate::Malformed;

/// How the values of a tensor are stored.
#[allow(missing_docs)] // the variants are the formats' own names
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceType {
    F32,
    F16,
    Bf16,
    F8E4M3,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// Values in one block of the K formats.
const SUPER_BLOCK: usize = 256;

impl SourceType {
    /// The encoding with ggml's type number `id`.
    ///
    /// # Errors
    /// When the type is not one of [`SourceType`]'s; the message names it where it is known.
    pub fn from_ggml(id: u32) -> Result<Self, Malformed> {
        let name = match id {
            0 => return Ok(Self::F32),
            1 => return Ok(Self::F16),
            2 => return Ok(Self::Q4_0),
            3 => return Ok(Self::Q4_1),
            6 => return Ok(Self::Q5_0),
            7 => return Ok(Self::Q5_1),
            8 => return Ok(Self::Q8_0),
            10 => return Ok(Self::Q2K),
            11 => return Ok(Self::Q3K),
            12 => return Ok(Self::Q4K),
            13 => return Ok(Self::Q5K),
            14 => return Ok(Self::Q6K),
            30 => return Ok(Self::Bf16),
            9 => "Q8_1",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24..=27 => "an integer type",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            _ => "unknown",
        };
        Err(Malformed(format!(
            "tensor type {id} ({name}) is not supported: use F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K"
        )))
    }

    /// Values in one block; a row holds whole blocks.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4M3 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => SUPER_BLOCK,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 => 1,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Bytes of `len` consecutive values; `None` when they are not whole blocks, or too many to count.
    pub fn bytes(self, len: usize) -> Option<usize> {
        if !len.is_multiple_of(self.block_len()) {
            return None;
        }
        (len / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Decodes whole blocks.
    ///
    /// # Panics
    /// When `bytes` is not exactly the encoding of `out.len()` values.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(self.bytes(out.len()), Some(bytes.len()), "{self:?}: whole blocks");
        let decode_block = match self {
            Self::F32 => f32_value,
            Self::F16 => f16_value,
            Self::Bf16 => bf16_value,
            Self::F8E4M3 => f8_e4m3_value,
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q2K => q2_k,
            Self::Q3K => q3_k,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        let blocks = bytes.chunks_exact(self.block_bytes());
        for (block, values) in blocks.zip(out.chunks_exact_mut(self.block_len())) {
            decode_block(block, values);
        }
    }
}

fn f32_value(block: &[u8], out: &mut [f32]) {
    out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
}

fn f16_value(block: &[u8], out: &mut [f32]) {
    out[0] = f16_at(block, 0);
}

fn bf16_value(block: &[u8], out: &mut [f32]) {
    out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
}

/// A sign, 4 bits of exponent and 3 of mantissa (Micikevicius et al. 2022, arXiv 2209.05433). There are no infinities.
fn f8_e4m3_value(block: &[u8], out: &mut [f32]) {
    let bits = u32::from(block[0]);
    let (exponent, mantissa) = ((bits >> 3 & 15) as i32, (bits & 7) as f32);
    let magnitude = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (8.0 + mantissa) * libm::exp2f((exponent - 10) as f32),
    };
    out[0] = if bits >> 7 == 1 { -magnitude } else { magnitude };
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

// The 32-value formats keep value i in the low nibble of byte i and value i + 16 in its high nibble.

/// Scale; 16 bytes of nibbles. `(q - 8) * d`
fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, &byte) in block[2..].iter().enumerate() {
        out[i] = (i32::from(byte & 15) - 8) as f32 * d;
        out[i + 16] = (i32::from(byte >> 4) - 8) as f32 * d;
    }
}

/// Scale, minimum; 16 bytes of nibbles. `q * d + m`
fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    for (i, &byte) in block[4..].iter().enumerate() {
        out[i] = f32::from(byte & 15) * d + m;
        out[i + 16] = f32::from(byte >> 4) * d + m;
    }
}

/// Scale; the 32 fifth bits; 16 bytes of nibbles. `(q - 16) * d`
fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    five_bits(&block[2..], |i, q| out[i] = (i32::from(q) - 16) as f32 * d);
}

/// Scale, minimum; the 32 fifth bits; 16 bytes of nibbles. `q * d + m`
fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (f16_at(block, 0), f16_at(block, 2));
    five_bits(&block[4..], |i, q| out[i] = f32::from(q) * d + m);
}

/// Calls `value(i, q)` for 32 five-bit values stored as 4 bytes of high bits and 16 bytes of nibbles.
fn five_bits(bytes: &[u8], mut value: impl FnMut(usize, u8)) {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let fifth = |i: usize| ((high >> i & 1) << 4) as u8;
    for (i, &byte) in bytes[4..].iter().enumerate() {
        value(i, byte & 15 | fifth(i));
        value(i + 16, byte >> 4 | fifth(i + 16));
    }
}

/// Scale; 32 signed bytes. `q * d`
fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(byte as i8) * d;
    }
}

// The K formats hold 256 values in sub-blocks with small integer scales, which the f16 `d` (and `dmin`) scales in turn.
// Two-bit fields: byte i of 32 keeps the values i, i + 32, i + 64 and i + 96 of a run of 128, lowest bits first.

/// 16 bytes of 4-bit scales and minima; 64 bytes of two-bit values; `d`, `dmin`. 16 sub-blocks of 16.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, rest) = block.split_at(16);
    let (quants, rest) = rest.split_at(64);
    let (d, dmin) = (f16_at(rest, 0), f16_at(rest, 2));
    for (sub, (values, &scale)) in out.chunks_exact_mut(16).zip(scales).enumerate() {
        let (scale, min) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        for (value, q) in values.iter_mut().zip(two_bits(quants, sub)) {
            *value = scale * f32::from(q) - min;
        }
    }
}

/// 32 bytes of third bits (clear means minus 4); 64 bytes of two-bit values; 16 six-bit scales in 12 bytes; `d`.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (high, rest) = block.split_at(32);
    let (quants, rest) = rest.split_at(64);
    let (scales, d) = (&rest[..12], f16_at(rest, 12));
    for (sub, values) in out.chunks_exact_mut(16).enumerate() {
        let low = scales[sub % 8] >> (4 * (sub / 8)) & 15;
        let top = scales[8 + sub % 4] >> (2 * (sub / 4)) & 3;
        let scale = d * (i32::from(low | top << 4) - 32) as f32;
        // Bit k of byte i belongs to value 32 * k + i.
        let third = high[16 * (sub % 2)..].iter().map(|byte| byte >> (sub / 2) & 1);
        for ((value, q), third) in values.iter_mut().zip(two_bits(quants, sub)).zip(third) {
            *value = scale * (i32::from(q) - 4 * i32::from(1 - third)) as f32;
        }
    }
}

/// The 16 two-bit values of sub-block `sub`.
fn two_bits(quants: &[u8], sub: usize) -> impl Iterator<Item = u8> {
    let (run, within) = (sub / 8, sub % 8);
    let bytes = &quants[32 * run + 16 * (within % 2)..][..16];
    bytes.iter().map(move |byte| byte >> (2 * (within / 2)) & 3)
}

/// `d`, `dmin`; 8 six-bit scales and minima in 12 bytes; 128 bytes of nibbles. 8 sub-blocks of 32.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, quants) = block[4..].split_at(12);
    for (sub, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, sub);
        let (scale, min) = (d * scale, dmin * min);
        for (value, q) in values.iter_mut().zip(nibbles(quants, sub)) {
            *value = scale * f32::from(q) - min;
        }
    }
}

/// As [`q4_k`], with 32 bytes of fifth bits before the nibbles: bit k of byte i belongs to value 32 * k + i.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, rest) = block[4..].split_at(12);
    let (high, quants) = rest.split_at(32);
    for (sub, values) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(scales, sub);
        let (scale, min) = (d * scale, dmin * min);
        for ((value, q), high) in values.iter_mut().zip(nibbles(quants, sub)).zip(high) {
            *value = scale * f32::from(q | (high >> sub & 1) << 4) - min;
        }
    }
}

/// The 32 nibbles of sub-block `sub`: pairs of sub-blocks share 32 bytes, the even one in the low nibbles.
fn nibbles(quants: &[u8], sub: usize) -> impl Iterator<Item = u8> {
    let bytes = &quants[32 * (sub / 2)..][..32];
    bytes.iter().map(move |byte| byte >> (4 * (sub % 2)) & 15)
}

/// The six-bit scale and minimum of sub-block `sub`, of 8: the first four lie plain in bytes 0..4 and 4..8, the
/// others have their low nibbles in bytes 8..12 and their top bits in the first eight bytes' top bits.
fn scale_and_min(scales: &[u8], sub: usize) -> (f32, f32) {
    let (scale, min) = if sub < 4 {
        (scales[sub] & 63, scales[sub + 4] & 63)
    } else {
        (scales[sub + 4] & 15 | scales[sub - 4] >> 6 << 4, scales[sub + 4] >> 4 | scales[sub] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// 128 bytes of low nibbles; 64 bytes of two high bits; 16 signed scales; `d`. 16 sub-blocks of 16. `(q - 32) * scale`
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = (&rest[..16], f16_at(rest, 16));
    for (sub, values) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(scales[sub] as i8);
        let (run, within) = (sub / 8, sub % 8);
        // Of a run's 128 values, 64 lie in the low nibbles of 64 bytes, the other 64 in their high nibbles.
        let low = &low[64 * run + 16 * (within % 4)..][..16];
        for ((value, low), high) in values.iter_mut().zip(low).zip(two_bits(high, sub)) {
            let q = low >> (4 * (within / 4)) & 15 | high << 4;
            *value = scale * (i32::from(q) - 32) as f32;
        }
    }
}

#[cfg(test)]
mod tests;
