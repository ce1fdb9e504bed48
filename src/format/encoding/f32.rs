//! f32 values, little-endian, row after row.

use torchless_kernels::{F32Matrix, Weight};

use super::{Encoded, Encoding, OVERFLOWS, Sizes};

pub(super) struct F32;

impl Encoding for F32 {
    fn name(&self) -> &'static str {
        "f32"
    }

    fn sizes(&self, rows: usize, cols: usize) -> Result<Sizes, &'static str> {
        let data = rows.checked_mul(cols).and_then(|n| n.checked_mul(size_of::<f32>())).ok_or(OVERFLOWS)?;
        Ok(Sizes { data, alignment: size_of::<f32>(), scales: None, scale: 1, scale_alignment: 1 })
    }

    fn row_granule(&self, _: usize) -> usize {
        1
    }

    fn encode(&self, rows: &[f32], _: usize, out: &mut Encoded) {
        out.data.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn verify(&self, _: &[u8], _: &[u8], _: (usize, usize)) -> Result<(), String> {
        Ok(())
    }

    fn weight<'a>(&self, data: &'a [u8], _: &'a [u8], shape: (usize, usize), any_order: bool) -> Weight<'a> {
        Weight::F32(F32Matrix::new(bytemuck::cast_slice(data), shape.1, any_order))
    }
}
