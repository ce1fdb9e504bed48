//! A model's weights: for each tensor where it lies in the file.

use crate::Malformed;
use crate::arch::tensors::Tensors;
use crate::format::bin::{BinFile, Dtype, Tensor};

/// Where all weights lie in the file; [`BinFile::weight`] gives the values of one.
pub(crate) type Weights = Tensors<Tensor>;

/// Where one layer's weights lie.
pub(crate) type Layer = crate::arch::tensors::Layer<Tensor>;

/// Finds every weight of `file`.
///
/// # Errors
/// If one is missing or of another shape, a vector is not f32, or a tensor is left over.
pub(crate) fn find(file: &BinFile) -> Result<Weights, Malformed> {
    Tensors::take_from(
        file.config(),
        file.own_tensors().map(|tensor| (tensor.name(), tensor)).collect(),
        |tensor| tensor.shape(),
        |name, tensor| match tensor.shape() {
            [_] if tensor.dtype() != Dtype::F32 => {
                Err(Malformed(format!("tensor {name}: a vector must be f32")))
            }
            _ => Ok(tensor.clone()),
        },
    )
}
