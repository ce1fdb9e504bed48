//! The number formats that a `.bin` file's tensors are stored in. One file a format: how large a tensor is, how its rows are
//! encoded, what of it is checked when a file is opened, and the [`Weight`] that it is to the kernels.

mod f32;
mod int8;

use torchless_kernels::Weight;

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Dtype {
    /// Four bytes a value.
    F32,
    /// One byte a value, and an f32 scale for each 64 consecutive values of the flattened tensor.
    Int8,
}

impl Dtype {
    /// All of them.
    pub const ALL: &'static [Dtype] = &[Dtype::F32, Dtype::Int8];

    /// The name in the header.
    pub fn name(self) -> &'static str {
        self.encoding().name()
    }

    /// The format with this name in the header.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|dtype| dtype.name() == name)
    }

    pub(crate) fn encoding(self) -> &'static dyn Encoding {
        match self {
            Dtype::F32 => &f32::F32,
            Dtype::Int8 => &int8::Int8,
        }
    }
}

/// A number format in the file.
///
/// A tensor is two runs of bytes: its data and, in formats that have them, its scales. Both begin at multiples of 64 bytes.
pub(crate) trait Encoding: Sync {
    /// The name in the header.
    fn name(&self) -> &'static str;

    /// Sizes of a tensor of `rows × cols`; `None` where they cannot be counted.
    fn sizes(&self, rows: usize, cols: usize) -> Option<Sizes>;

    /// How many rows of `cols` values are encoded together.
    fn row_granule(&self, cols: usize) -> usize;

    /// Appends the encoded form of the rows that follow, `[rows][cols]`: whole granules of them, or the tensor's last.
    fn encode(&self, rows: &[f32], cols: usize, out: &mut Encoded);

    /// Checks a tensor's scales.
    ///
    /// # Errors
    /// What is wrong with which.
    fn verify(&self, scales: &[u8]) -> Result<(), String>;

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

/// Sizes of a tensor in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    /// Bytes of data.
    pub data: usize,
    /// Bytes of one element of the data: its alignment.
    pub element: usize,
    /// Number of scales; `None` in a format without.
    pub scales: Option<usize>,
    /// Bytes of one scale: its alignment.
    pub scale: usize,
}

impl Sizes {
    /// Bytes of all scales; `None` where they cannot be counted.
    pub fn scale_bytes(&self) -> Option<usize> {
        self.scales.unwrap_or(0).checked_mul(self.scale)
    }
}

/// Encoded values on their way to the file.
#[derive(Debug, Default)]
pub(crate) struct Encoded {
    pub data: Vec<u8>,
    pub scales: Vec<u8>,
}
