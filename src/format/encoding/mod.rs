//! The number formats that a `.bin` file's tensors are stored in. One file a format: how large a tensor is, how its rows are
//! encoded, what of it is checked when a file is opened, and the [`Weight`] that it is to the kernels.

mod f32;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "shapes whose sizes have been counted"
)]
pub(crate) mod int4;
mod int8;
#[expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "shapes whose sizes have been counted"
)]
mod int8_panels;

use torchless_kernels::Weight;

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// Four bytes a value.
    F32,
    /// One byte a value, and an f32 scale for each 64 consecutive values of the flattened tensor.
    Int8,
    /// One byte a value in panels of 16 rows, and an f16 scale for each 64 columns of a row.
    Int8Panels,
    /// Four bits a value in panels of 16 rows, and an i8 scale for each 16 columns of a row.
    Int4,
    /// Four bits a value in panels of 16 rows, and an i16 scale for each 32 columns of a row.
    Int4By32,
    /// Four bits a value in panels of 16 rows, an i16 scale and an i16 minimum for each 32 columns of a row.
    Int4By32Minimum,
}

impl Dtype {
    /// All of them.
    pub const ALL: &'static [Dtype] =
        &[Dtype::F32, Dtype::Int8, Dtype::Int8Panels, Dtype::Int4, Dtype::Int4By32, Dtype::Int4By32Minimum];

    /// The name in the header.
    pub fn name(self) -> &'static str {
        self.encoding().name()
    }

    /// The format with this name in the header.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    /// How int4 weights are scaled; `None` of what is not int4.
    pub(crate) fn int4(self) -> Option<int4::Kind> {
        match self {
            Dtype::Int4 => Some(int4::Kind::Fine),
            Dtype::Int4By32 => Some(int4::Kind::Coarse),
            Dtype::Int4By32Minimum => Some(int4::Kind::WithMinimum),
            _ => None,
        }
    }

    pub(crate) fn encoding(self) -> &'static dyn Encoding {
        match self {
            Dtype::F32 => &f32::F32,
            Dtype::Int8 => &int8::Int8,
            Dtype::Int8Panels => &int8_panels::Int8Panels,
            Dtype::Int4 => &int4::Int4(int4::Kind::Fine),
            Dtype::Int4By32 => &int4::Int4(int4::Kind::Coarse),
            Dtype::Int4By32Minimum => &int4::Int4(int4::Kind::WithMinimum),
        }
    }
}

/// A number format in the file.
///
/// A tensor is two runs of bytes: its data and, in formats that have them, its scales. Both begin at multiples of 64 bytes.
pub(crate) trait Encoding: Sync {
    /// The name in the header.
    fn name(&self) -> &'static str;

    /// Sizes of a tensor of `rows × cols`.
    ///
    /// # Errors
    /// What is wrong with this shape: it [`OVERFLOWS`], or the format has none such.
    fn sizes(&self, rows: usize, cols: usize) -> Result<Sizes, &'static str>;

    /// How many rows of `cols` values are encoded together.
    fn row_granule(&self, cols: usize) -> usize;

    /// The largest magnitude that can be encoded.
    fn largest(&self) -> f32 {
        f32::MAX
    }

    /// Appends the encoded form of the rows that follow, `[rows][cols]`: whole granules of them, or the tensor's last. All
    /// are finite, and none is beyond [`Encoding::largest`].
    fn encode(&self, rows: &[f32], cols: usize, out: &mut Encoded);

    /// Checks a tensor's scales, and of its data what fills it up. `data` and `scales` have its [`Encoding::sizes`].
    ///
    /// # Errors
    /// What is wrong with which.
    fn verify(&self, data: &[u8], scales: &[u8], shape: (usize, usize)) -> Result<(), String>;

    /// The tensor as the kernels take it. `data` and `scales` have its [`Encoding::sizes`], and are aligned.
    ///
    /// `any_order` is what [`F32Matrix::new`](torchless_kernels::F32Matrix::new) says.
    fn weight<'a>(
        &self,
        data: &'a [u8],
        scales: &'a [u8],
        shape: (usize, usize),
        any_order: bool,
    ) -> Weight<'a>;
}

/// The largest magnitude that is put into panels: with a larger one the f16 scale of int8's would be infinite.
pub(crate) const LARGEST_IN_PANELS: f32 = 127.0 * half::f16::MAX.to_f32_const();

/// What is wrong with a shape whose sizes cannot be counted.
pub(crate) const OVERFLOWS: &str = "overflows";

/// Sizes of a tensor in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Bytes of data.
    pub data: usize,
    /// What the data's place in the file must be a multiple of.
    pub alignment: usize,
    /// Number of scales; `None` in a format without.
    pub scales: Option<usize>,
    /// Bytes of one scale.
    pub scale: usize,
    /// What the scales' place in the file must be a multiple of.
    pub scale_alignment: usize,
}

impl Sizes {
    /// Bytes of all; `None` where they cannot be counted.
    pub fn bytes(&self) -> Option<usize> {
        self.data.checked_add(self.scale_bytes()?)
    }

    /// Bytes of all scales; `None` where they cannot be counted.
    pub fn scale_bytes(&self) -> Option<usize> {
        self.scales.unwrap_or(0).checked_mul(self.scale)
    }
}

/// Encoded values on their way to the file.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub data: Vec<u8>,
    /// What stands before the scales, all of it.
    pub front: Vec<u8>,
    pub scales: Vec<u8>,
}
