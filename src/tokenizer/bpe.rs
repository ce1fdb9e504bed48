//! Byte-pair encoding (Sennrich et al., 2016, arXiv:1508.07909): one pair merged at a time, lowest rank first, leftmost
//! among equals.

use super::vocab::Vocab;
use super::{Kind, Spec};
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

/// One piece of a word that is being merged; its neighbours form a doubly linked list.
#[derive(Debug)]
struct Node {
    id: u32,
    prev: usize,
    next: usize,
    /// The merge with the next piece.
    merge: Option<Merge>,
}

/// Buffers that outlive one word.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The word to encode next, as the front end spells it.
    pub symbols: Vec<u32>,
    nodes: Vec<Node>,
    /// (rank, node) of possible merges. Entries whose node has another merge by now are stale.
    queue: BinaryHeap<Reverse<(u32, usize)>>,
}

impl Merges {
    /// Indexes the merges that can apply.
    ///
    /// SentencePiece ranks the merged piece, not the pair: where a `tokenizer.json` lists the ways to make one piece
    /// in a row, they are equals ("aaa" from a·aa or aa·a: the leftmost wins). GPT-2's merges rank pairs.
    pub fn new(spec: &Spec, vocab: &Vocab) -> Merges {
        let mut merges = FxHashMap::default();
        merges.reserve(spec.merges.len());
        let mut merged = String::new();
        let mut last: Option<Merge> = None;
        for (rank, (left, right)) in (0..u32::MAX).zip(&spec.merges) {
            merged.clear();
            merged.push_str(left);
            merged.push_str(right);
            let ids = (vocab.text_id(left), vocab.text_id(right), vocab.text_id(&merged));
            let (Some(left), Some(right), Some(id)) = ids else { continue };
            let merge = match last {
                Some(last) if last.id == id && spec.kind == Kind::Metaspace => last,
                _ => Merge { rank, id },
            };
            last = Some(merge);
            merges.insert((left, right), merge);
        }
        Merges(merges)
    }

    fn get(&self, left: u32, right: u32) -> Option<Merge> {
        self.0.get(&(left, right)).copied()
    }

    /// Merges `scratch.symbols` as far as they go, appends the result to `out` and clears them.
    ///
    /// O(n log n) in the number of symbols: every merge removes one and queues at most two more candidates.
    pub fn apply(&self, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { symbols, nodes, queue } = scratch;
        if symbols.len() < 2 {
            return out.append(symbols);
        }
        nodes.clear();
        nodes.extend(symbols.iter().enumerate().map(|(at, &id)| Node {
            id,
            prev: at.wrapping_sub(1),
            next: at + 1,
            merge: symbols.get(at + 1).and_then(|&next| self.get(id, next)),
        }));
        symbols.clear();
        queue.extend(nodes.iter().enumerate().filter_map(|(at, node)| Some(Reverse((node.merge?.rank, at)))));
        while let Some(Reverse((rank, at))) = queue.pop() {
            let Some(merge) = nodes[at].merge.filter(|merge| merge.rank == rank) else { continue };
            let gone = nodes[at].next;
            let next = nodes[gone].next;
            nodes[gone].merge = None;
            nodes[at].id = merge.id;
            nodes[at].next = next;
            if let Some(next) = nodes.get_mut(next) {
                next.prev = at;
            }
            for left in [nodes[at].prev, at] {
                let Some(&Node { id, next, .. }) = nodes.get(left) else { continue };
                let merge = nodes.get(next).and_then(|right| self.get(id, right.id));
                nodes[left].merge = merge;
                queue.extend(merge.map(|merge| Reverse((merge.rank, left))));
            }
        }
        let mut at = 0;
        while let Some(node) = nodes.get(at) {
            out.push(node.id);
            at = node.next;
        }
    }
}
