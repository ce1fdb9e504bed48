//! The 4-bit formats as what they are: codes, and a scale and an offset for each 32 values.

use super::{SourceType, f16_at, nibbles, scale_and_min};
use crate::format::encoding::Dtype;
use crate::format::encoding::int4::GridGroup;
use crate::format::source::Held;

impl SourceType {
    /// How many bits a value takes.
    pub fn held(self) -> Held {
        match self {
            Self::Q4_0 => Held::Grid(Dtype::Int4By32),
            Self::Q4_1 | Self::Q4K => Held::Grid(Dtype::Int4By32Minimum),
            Self::F8E4M3 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Q5K | Self::Q6K => Held::FiveToEight,
            Self::F32 | Self::F16 | Self::Bf16 | Self::Q2K | Self::Q3K => Held::Wide,
        }
    }

    /// Appends the groups of whole blocks of a format that is [`Held::Grid`]; of others none.
    pub fn grid(self, bytes: &[u8], out: &mut Vec<GridGroup>) {
        for block in bytes.chunks_exact(self.block_bytes()) {
            match self {
                Self::Q4_0 => {
                    let scale = f16_at(block, 0);
                    out.push(GridGroup { q: split(&block[2..]), scale, offset: -8.0 * scale });
                }
                Self::Q4_1 => {
                    let (scale, offset) = (f16_at(block, 0), f16_at(block, 2));
                    out.push(GridGroup { q: split(&block[4..]), scale, offset });
                }
                Self::Q4K => {
                    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
                    let (scales, quants) = block[4..].split_at(12);
                    for sub in 0..8 {
                        let (scale, min) = scale_and_min(scales, sub);
                        let mut q = [0; 32];
                        q.iter_mut().zip(nibbles(quants, sub)).for_each(|(q, nibble)| *q = nibble);
                        out.push(GridGroup { q, scale: d * scale, offset: -(dmin * min) });
                    }
                }
                _ => (),
            }
        }
    }
}

/// Value i lies in the low nibble of byte i, value i + 16 in its high nibble.
fn split(bytes: &[u8]) -> [u8; 32] {
    let mut q = [0; 32];
    for (i, byte) in bytes.iter().enumerate() {
        (q[i], q[i + 16]) = (byte & 15, byte >> 4);
    }
    q
}
