//! Which tokens of a pass are whose.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use crate::kv::PageTable;

/// The tokens of one sequence in a pass.
pub(crate) struct Segment<'a> {
    /// Which of the pass' tokens they are. Segments follow one another without a gap.
    pub rows: Range<usize>,
    /// The position of the first.
    pub start: usize,
    /// Whether it is one of those that have a rotary embedding of their own for being long.
    pub long: bool,
    /// The pages of the sequence, those for these tokens included.
    pub table: &'a PageTable,
    /// Set where a finite key or value of the sequence is stored as infinite.
    pub overflowed: &'a AtomicBool,
}

/// All tokens of a pass.
pub(super) fn tokens_of(segments: &[Segment]) -> usize {
    segments.last().map_or(0, |last| last.rows.end)
}
