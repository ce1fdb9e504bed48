//! Tensors that lie over each other: no writer makes such, and a small file of them would become a large model.

use std::ops::Range;

use crate::Malformed;

/// Checks that no two of these ranges of a file, each with its tensor's name, share a byte.
///
/// # Errors
/// When two do; it names both.
pub(super) fn check<'a>(ranges: impl Iterator<Item = (Range<usize>, &'a str)>) -> Result<(), Malformed> {
    let mut ranges: Vec<_> = ranges.filter(|(range, _)| !range.is_empty()).collect();
    ranges.sort_by_key(|(range, _)| range.start);
    match ranges.iter().zip(ranges.iter().skip(1)).find(|(one, next)| next.0.start < one.0.end) {
        Some(((_, one), (_, next))) => Err(Malformed(format!(
            "tensors {one} and {next} lie over each other: the file is damaged, get it anew"
        ))),
        None => Ok(()),
    }
}
