//! Byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909): one pair merged at a time, lowest rank first,
//! leftmost among equals.

use super::Spec;
use super::spm::MAX_MERGED;
use super::vocab::{Vocab, malformed};
use crate::Malformed;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What becomes of two neighbouring pieces.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merge {
    rank: u32,
    id: u32,
}

/// What merges.
#[derive(Debug)]
pub(super) enum Merges {
    /// These pairs, by the ids of their parts.
    Pairs(FxHashMap<(u32, u32), Merge>),
    /// Whatever spells a piece, whose ranks these are by its place in the vocabulary.
    Spelled(Vec<u32>),
}

/// The merges with what their pieces spell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merger<'a> {
    pub merges: &'a Merges,
    pub vocab: &'a Vocab,
    pub spec: &'a Spec,
}

/// One piece of a word that is being merged. The pieces form a doubly linked list; past its ends are indices that no
/// node has.
#[derive(Debug)]
struct Node {
    id: u32,
    prev: u32,
    next: u32,
    /// The merge with the next piece.
    merge: Option<Merge>,
}

/// Candidates for merging, the next one on top. Those whose node has another merge by now are stale.
type Queue = BinaryHeap<Reverse<u64>>;

/// Rank and node in one number, which orders as the pair does and compares faster.
fn candidate(merge: Merge, node: u32) -> Reverse<u64> {
    Reverse(u64::from(merge.rank) << 32 | u64::from(node))
}

/// Buffers that outlive one word.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The word to encode next, as the front end spells it.
    pub symbols: Vec<u32>,
    nodes: Vec<Node>,
    queue: Queue,
    /// What two pieces spell.
    spelled: String,
}

impl Merges {
    /// Indexes the merges that can apply.
    ///
    /// SentencePiece ranks the piece that comes out, these rank the pair. It makes no difference as long as all ways
    /// to make a piece stand in a row, in whatever order: merging leftmost first never leaves two of them to choose
    /// from. Where several pieces are as good as each other, their merges share the rank of the first.
    pub fn new(spec: &Spec, vocab: &Vocab) -> Result<Merges, Malformed> {
        if !spec.scores.is_empty() {
            return Merges::from_scores(spec);
        }
        let mut free = 0;
        for range in &spec.equal_merges {
            if range.start < free || range.is_empty() || range.end > spec.merges.len() {
                let (range, merges) = (format!("{} to {}", range.start, range.end), spec.merges.len());
                return Err(malformed(format!("equal_merges: {range} of {merges} merges, out of order")));
            }
            free = range.end;
        }
        let mut equal = spec.equal_merges.iter().peekable();
        let mut merges = FxHashMap::default();
        merges.reserve(spec.merges.len());
        let mut merged = String::new();
        for (place, (left, right)) in (0..u32::MAX).zip(&spec.merges) {
            equal.next_if(|range| range.end <= place as usize);
            let rank = match equal.peek() {
                Some(range) if range.start < place as usize => range.start as u32,
                _ => place,
            };
            merged.clear();
            merged.push_str(left);
            merged.push_str(right);
            let ids = (vocab.text_id(left), vocab.text_id(right), vocab.text_id(&merged));
            if let (Some(left), Some(right), Some(id)) = ids {
                merges.insert((left, right), Merge { rank, id });
            }
        }
        Ok(Merges::Pairs(merges))
    }

    fn from_scores(spec: &Spec) -> Result<Merges, Malformed> {
        if !spec.merges.is_empty() {
            return Err(malformed("it has merges and scores: only either can say what merges".to_owned()));
        }
        if spec.scores.iter().any(|score| score.is_nan()) {
            return Err(malformed("a score is not a number".to_owned()));
        }
        Ok(Merges::Spelled(spec.scores.iter().map(|&score| rank(score)).collect()))
    }
}

/// The better the score, the lower the rank.
fn rank(score: f32) -> u32 {
    // Zero has two signs, which are one score. The bits of positive numbers order as these do, those of negative ones the
    // other way round.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { !bits ^ 1 << 31 } else { bits }
}

impl Merger<'_> {
    fn get(&self, left: u32, right: u32, spelled: &mut String) -> Option<Merge> {
        let ranks = match self.merges {
            Merges::Pairs(pairs) => return pairs.get(&(left, right)).copied(),
            Merges::Spelled(ranks) => ranks,
        };
        let piece = |id| Some(self.spec.vocab.get(self.vocab.slot(id)?)?.0.as_str());
        let (left, right) = (piece(left)?, piece(right)?);
        if left.len() + right.len() > MAX_MERGED {
            return None;
        }
        spelled.clear();
        spelled.push_str(left);
        spelled.push_str(right);
        let id = self.vocab.text_id(spelled)?;
        Some(Merge { rank: *ranks.get(self.vocab.slot(id)?)?, id })
    }

    /// Merges `scratch.symbols` as far as they go, appends the result to `out` and clears them.
    ///
    /// O(n log n) in the number of symbols: every merge removes one and queues at most two more candidates.
    pub fn apply(&self, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { symbols, nodes, queue, spelled } = scratch;
        // One word, unless it is beyond what 32-bit links can hold.
        for word in symbols.chunks(u32::MAX as usize) {
            if let [only] = word {
                out.push(*only);
                continue;
            }
            self.link(word, nodes, queue, spelled);
            self.merge(nodes, queue, spelled);
            let mut at = 0;
            while let Some(node) = nodes.get(at as usize) {
                out.push(node.id);
                at = node.next;
            }
        }
        symbols.clear();
    }

    /// Fills `nodes` with the word and `queue` with its pairs.
    fn link(&self, word: &[u32], nodes: &mut Vec<Node>, queue: &mut Queue, spelled: &mut String) {
        nodes.clear();
        nodes.extend((0u32..).zip(word).map(|(at, &id)| Node {
            id,
            prev: at.wrapping_sub(1),
            next: at + 1,
            merge: word.get(at as usize + 1).and_then(|&next| self.get(id, next, spelled)),
        }));
        queue.extend((0..).zip(&*nodes).filter_map(|(at, node)| Some(candidate(node.merge?, at))));
    }

    /// Merges until the queue is empty.
    #[expect(
        clippy::indexing_slicing,
        reason = "the queue and a node with a merge hold indices of nodes only"
    )]
    fn merge(&self, nodes: &mut [Node], queue: &mut Queue, spelled: &mut String) {
        while let Some(Reverse(best)) = queue.pop() {
            let (rank, at) = ((best >> 32) as u32, best as u32);
            let node = &nodes[at as usize];
            let Some(merge) = node.merge.filter(|merge| merge.rank == rank) else { continue };
            let (before, gone) = (node.prev, node.next);
            let next = nodes[gone as usize].next;
            nodes[gone as usize].merge = None;
            nodes[at as usize].id = merge.id;
            nodes[at as usize].next = next;
            if let Some(next) = nodes.get_mut(next as usize) {
                next.prev = at;
            }
            for left in [before, at] {
                let Some(&Node { id, next, .. }) = nodes.get(left as usize) else { continue };
                let merge = nodes.get(next as usize).and_then(|right| self.get(id, right.id, spelled));
                nodes[left as usize].merge = merge;
                queue.extend(merge.map(|merge| candidate(merge, left)));
            }
        }
    }
}
