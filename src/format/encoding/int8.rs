//! Int8 in groups of 64 consecutive values of the flattened tensor, each with the scale `127 / max|w|`: `w ≈ q / scale`.

use torchless_kernels::{GROUP, QMatrix, Weight};

use super::{Encoded, Encoding, OVERFLOWS, Sizes};

pub(super) struct Int8;

impl Encoding for Int8 {
    fn name(&self) -> &'static str {
        "int8"
    }

    fn sizes(&self, rows: usize, cols: usize) -> Result<Sizes, &'static str> {
        let data = rows.checked_mul(cols).ok_or(OVERFLOWS)?;
        Ok(Sizes {
            data,
            alignment: 1,
            scales: Some(data.div_ceil(GROUP)),
            scale: size_of::<f32>(),
            scale_alignment: size_of::<f32>(),
        })
    }

    /// So many rows that no group runs across their end.
    fn row_granule(&self, cols: usize) -> usize {
        GROUP >> cols.trailing_zeros().min(GROUP.trailing_zeros())
    }

    fn encode(&self, rows: &[f32], _: usize, out: &mut Encoded) {
        for group in rows.chunks(GROUP) {
            let scale = quantize_group(group, &mut out.data);
            out.scales.extend(scale.to_le_bytes());
        }
    }

    /// A scale of zero, a negative one or NaN is damage, and so is one so small that a weight would be infinite.
    fn verify(&self, _: &[u8], scales: &[u8], _: (usize, usize)) -> Result<(), String> {
        let scales: &[f32] = bytemuck::cast_slice(scales);
        // 1/scale must be finite: then every product with an int8 value is too.
        let sound = |s: &f32| *s >= f32::MIN_POSITIVE && (*s).recip().is_finite();
        match scales.iter().enumerate().find(|(_, s)| !sound(s)) {
            Some((g, s)) => Err(format!("the scale of group {g} is {s}")),
            None => Ok(()),
        }
    }

    fn weight<'a>(&self, data: &'a [u8], scales: &'a [u8], shape: (usize, usize), _: bool) -> Weight<'a> {
        let (data, scales) = (bytemuck::cast_slice(data), bytemuck::cast_slice(scales));
        Weight::Int8(QMatrix::new(data, scales, shape.0, shape.1))
    }
}

/// Appends the int8 form of a group of finite values and returns its scale, 127 / max|w|: `w ≈ q / scale`.
///
/// A group of zeros, or of values so small that the scale is not finite, has scale infinity and zero bytes.
fn quantize_group(group: &[f32], out: &mut Vec<u8>) -> f32 {
    let max = group.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let scale = 127.0 / max;
    if scale.is_infinite() {
        out.resize(out.len().saturating_add(group.len()), 0);
        return f32::INFINITY;
    }
    // A sum of this magnitude has no bits for a fraction, so the addition rounds (half to even, as everything does by
    // default), and the integer stands in the lowest bits. Unlike `round_ties_even` this compiles to vector code on
    // every target.
    const ROUND: f32 = 1.5 * (1 << 23) as f32;
    let quantize = |value: &f32| ((value * scale).clamp(-127.0, 127.0) + ROUND).to_bits() as u8;
    out.extend(group.iter().map(quantize));
    scale
}
