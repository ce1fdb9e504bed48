//! A batch's sequences: which tokens each holds, and in which pages.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use torchless_kernels::BLOCK;

use crate::Error;
use crate::arch::Config;
use crate::kv::{Chain, PageTable, Pool, needed_from};

/// One of a batch's sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SequenceId {
    slot: usize,
    number: u64,
}

/// What is known of a sequence.
pub(in crate::runtime) struct Sequence {
    /// Whose slot this is; `None`: nobody's.
    id: Option<SequenceId>,
    pub tokens: Vec<u32>,
    /// Whether its keys have the rotary embedding of long sequences.
    pub long: bool,
    pub table: PageTable,
    /// What its full pages are known as, and how many are.
    chain: Option<Chain>,
    published: usize,
    pub overflowed: AtomicBool,
}

/// Slots for sequences, and the pages of all of them.
pub(in crate::runtime) struct Sequences {
    slots: Vec<Sequence>,
    pool: Pool,
    ctx: usize,
    sliding_window: Option<usize>,
    /// The longest sequence that is not a long one, in models that tell the two apart.
    longest_short: usize,
    /// Whether pages are looked for by their tokens.
    share: bool,
    last_number: u64,
}

impl Sequences {
    /// `n` slots for sequences of up to `ctx` positions, and `pages` pages.
    pub fn new(n: usize, pages: usize, ctx: usize, config: &Config, share: bool) -> Self {
        let slot = || Sequence {
            id: None,
            tokens: Vec::with_capacity(ctx),
            long: false,
            table: PageTable::with_room_for(ctx),
            chain: None,
            published: 0,
            overflowed: AtomicBool::new(false),
        };
        let slots = (0..n).map(|_| slot()).collect();
        let sliding_window = config.window_of_all();
        let longest_short = config.long_rope.map_or(usize::MAX, |long| long.beyond);
        Self { slots, pool: Pool::new(pages), ctx, sliding_window, longest_short, share, last_number: 0 }
    }

    /// All pages, those that sequences use, and those that nobody uses but that can be found.
    pub fn pages(&self) -> [usize; 3] {
        [self.pool.len(), self.pool.len() - self.pool.available(), self.pool.cached()]
    }

    /// Begins a sequence; nothing where there are as many as there may be.
    pub fn add(&mut self) -> Option<SequenceId> {
        let slot = self.slots.iter().position(|sequence| sequence.id.is_none())?;
        self.last_number += 1;
        let id = SequenceId { slot, number: self.last_number };
        let sequence = &mut self.slots[slot];
        sequence.id = Some(id);
        self.begin(id, false);
        Some(id)
    }

    /// Ends a sequence. What it leaves may be found by others that begin like it, as long as its pages are not needed.
    pub fn remove(&mut self, id: SequenceId) {
        if self.get(id).is_ok() {
            self.clear(id);
            self.slots[id.slot].id = None;
        }
    }

    /// Forgets all tokens of a sequence.
    pub fn clear(&mut self, id: SequenceId) {
        self.begin(id, false);
        let sequence = &mut self.slots[id.slot];
        sequence.tokens.clear();
        // The last pages first: they are of use only with those before them.
        while let Some(page) = sequence.table.take_last() {
            self.pool.give_back(page);
        }
    }

    fn begin(&mut self, id: SequenceId, long: bool) {
        let sequence = &mut self.slots[id.slot];
        let start = if long { Chain::START_OF_LONG } else { Chain::START };
        (sequence.long, sequence.chain, sequence.published) = (long, Some(start), 0);
    }

    /// Whether a sequence's keys are of no use once it has `len` tokens, because it is a long one then.
    fn turns_long(&self, id: SequenceId, len: usize) -> bool {
        len > self.longest_short && !self.slots[id.slot].long
    }

    /// Makes a sequence a long one where it is to have `len` tokens: those that it had must be fed again.
    pub fn turn_long(&mut self, id: SequenceId, len: usize) -> Option<Vec<u32>> {
        if !self.turns_long(id, len) {
            return None;
        }
        let tokens = self.slots[id.slot].tokens.clone();
        self.clear(id);
        self.begin(id, true);
        Some(tokens)
    }

    /// A sequence that is known not to have ended.
    pub fn slot(&self, id: SequenceId) -> &Sequence {
        &self.slots[id.slot]
    }

    /// See [`Batch::find`](super::Batch::find).
    pub fn find(&mut self, id: SequenceId, context: &[u32]) -> usize {
        if self.get(id).is_err() || !self.share {
            return 0;
        }
        if self.slots[id.slot].tokens.is_empty() {
            self.turn_long(id, context.len());
        }
        let Self { slots, pool, .. } = self;
        let sequence = &mut slots[id.slot];
        let before = sequence.tokens.len();
        while sequence.tokens.len() == sequence.published * BLOCK
            && context.len().min(self.ctx + 1) > sequence.tokens.len() + BLOCK
        {
            // Pages that a pass which failed has left there.
            while let Some(page) = sequence.table.shorten(sequence.tokens.len()) {
                pool.give_back(page);
            }
            let tokens = &context[sequence.tokens.len()..][..BLOCK];
            let Some((page, chain)) = sequence.chain.and_then(|chain| pool.find(chain, tokens)) else {
                break;
            };
            sequence.table.push(page);
            sequence.tokens.extend_from_slice(tokens);
            (sequence.chain, sequence.published) = (Some(chain), sequence.published + 1);
        }
        let found = sequence.tokens.len() - before;
        self.give_back_behind_window(id.slot);
        found
    }

    /// Pages that are missing for `tokens` more tokens of a sequence.
    pub fn pages_missing(&self, id: SequenceId, tokens: usize) -> usize {
        let sequence = &self.slots[id.slot];
        let len = sequence.tokens.len() + tokens;
        if self.turns_long(id, len) {
            let own = sequence.table.kept().filter(|page| self.pool.has_one_user(*page));
            return len.div_ceil(BLOCK).saturating_sub(own.count());
        }
        len.saturating_sub(sequence.table.room()).div_ceil(BLOCK)
    }

    /// Pages that can be had.
    pub fn pages_available(&self) -> usize {
        self.pool.available()
    }

    /// Whether there are `pages` more pages; a sequence that shares with nobody gives its own back in time.
    pub fn has_room(&self, pages: usize) -> bool {
        !self.share || pages <= self.pool.available()
    }

    /// Forgets the tokens of a sequence that shares no page from `position` on; whether that was possible.
    pub fn truncate(&mut self, id: SequenceId, position: usize) -> bool {
        let Self { slots, pool, sliding_window, longest_short, .. } = self;
        let sequence = &mut slots[id.slot];
        let was_short = sequence.long && position <= *longest_short;
        if was_short || needed_from(*sliding_window, position) < sequence.table.first_kept() {
            return false;
        }
        sequence.tokens.truncate(position);
        while let Some(page) = sequence.table.shorten(position) {
            pool.give_back(page);
        }
        true
    }

    /// Has pages ready for `n` more tokens of a sequence.
    pub fn make_room(&mut self, id: SequenceId, n: usize) -> Result<(), Error> {
        let Self { slots, pool, sliding_window, .. } = self;
        let Sequence { table, tokens, .. } = &mut slots[id.slot];
        let needed = needed_from(*sliding_window, tokens.len());
        while table.room() < tokens.len() + n {
            let page = match pool.take() {
                Some(page) => page,
                // Behind a window, where pages are kept as long as there are others.
                None => match table.give_back_before(needed) {
                    Some(page) => {
                        pool.give_back(page);
                        continue;
                    }
                    None => return Err(Error::CacheFull),
                },
            };
            table.push(page);
        }
        Ok(())
    }

    /// Notes that `tokens` have been fed to a sequence; whether its keys and values are what they should be: otherwise nothing is noted.
    pub fn append(&mut self, id: SequenceId, tokens: &[u32]) -> bool {
        let Self { slots, pool, share, .. } = self;
        let sequence = &mut slots[id.slot];
        if sequence.overflowed.load(Relaxed) {
            return false;
        }
        sequence.tokens.extend_from_slice(tokens);
        if *share {
            while (sequence.published + 1) * BLOCK <= sequence.tokens.len() {
                let tokens = &sequence.tokens[sequence.published * BLOCK..][..BLOCK];
                let page = sequence.table.page(sequence.published) as u32;
                sequence.chain = sequence.chain.and_then(|chain| pool.publish(page, chain, tokens));
                sequence.published += 1;
            }
            self.give_back_behind_window(id.slot);
        }
        true
    }

    /// Gives back the pages that the next token of a sequence does not look at.
    fn give_back_behind_window(&mut self, slot: usize) {
        let Self { slots, pool, sliding_window, .. } = self;
        let Sequence { table, tokens, .. } = &mut slots[slot];
        let needed = needed_from(*sliding_window, tokens.len());
        while let Some(page) = table.give_back_before(needed) {
            pool.give_back(page);
        }
    }

    /// A sequence that has not ended.
    pub fn get(&self, id: SequenceId) -> Result<&Sequence, Error> {
        let sequence = self.slots.get(id.slot).filter(|sequence| sequence.id == Some(id));
        sequence.ok_or_else(|| Error::Request("this sequence has ended: add another one".to_owned()))
    }
}
