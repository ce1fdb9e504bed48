//! Byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909): one pair merged at a time, lowest rank first,
//! leftmost among equals.

use super::Spec;
use super::vocab::{Vocab, malformed};
use crate::Malformed;
use rustc_hash::FxHashMap;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What becomes of two neighbouring pieces.
#[derive(Debug, Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// The merges by the ids of their parts.
#[derive(Debug)]
pub(super) struct Merges(FxHashMap<(u32, u32), Merge>);

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
}

impl Merges {
    /// Indexes the merges that can apply.
    ///
    /// SentencePiece ranks the piece that comes out, these rank the pair. It makes no difference as long as all ways
    /// to make a piece stand in a row, in whatever order: merging leftmost first never leaves two of them to choose
    /// from. Where several pieces are as good as each other, their merges share the rank of the first.
    pub fn new(spec: &Spec, vocab: &Vocab) -> Result<Merges, Malformed> {
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
        Ok(Merges(merges))
    }

    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.0.get(&(left, right)).copied()
    }

    /// Merges `scratch.symbols` as far as they go, appends the result to `out` and clears them.
    ///
    /// O(n log n) in the number of symbols: every merge removes one and queues at most two more candidates.
    pub fn apply(&self, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { symbols, nodes, queue } = scratch;
        // One word, unless it is beyond what 32-bit links can hold.
        for word in symbols.chunks(u32::MAX as usize) {
            if let [only] = word {
                out.push(*only);
                continue;
            }
            self.link(word, nodes, queue);
            self.merge(nodes, queue);
            let mut at = 0;
            while let Some(node) = nodes.get(at as usize) {
                out.push(node.id);
                at = node.next;
            }
        }
        symbols.clear();
    }

    /// Fills `nodes` with the word and `queue` with its pairs.
    fn link(&self, word: &[u32], nodes: &mut Vec<Node>, queue: &mut Queue) {
        nodes.clear();
        nodes.extend((0u32..).zip(word).map(|(at, &id)| Node {
            id,
            prev: at.wrapping_sub(1),
            next: at + 1,
            merge: word.get(at as usize + 1).and_then(|&next| self.get(id, next)),
        }));
        queue.extend((0..).zip(&*nodes).filter_map(|(at, node)| Some(candidate(node.merge?, at))));
    }

    /// Merges until the queue is empty.
    #[expect(
        clippy::indexing_slicing,
        reason = "the queue and a node with a merge hold indices of nodes only"
    )]
    fn merge(&self, nodes: &mut [Node], queue: &mut Queue) {
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
                let merge = nodes.get(next as usize).and_then(|right| self.get(id, right.id));
                nodes[left as usize].merge = merge;
                queue.extend(merge.map(|merge| candidate(merge, left)));
            }
        }
    }
}
