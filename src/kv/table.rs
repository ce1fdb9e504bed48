//! Which pages a sequence's keys and values are in.

use torchless_kernels::BLOCK;

/// The pages of one sequence: block `b`, the positions from `64·b` on, is in page `pages[b]` of each head of each layer.
#[derive(Debug, Default)]
pub(crate) struct PageTable {
    pages: Vec<u32>,
    /// Blocks at the beginning that nothing looks at any more, whose pages are others' now.
    given_back: usize,
}

impl PageTable {
    /// An empty table that can grow to contexts of `ctx` positions without allocating.
    pub fn with_room_for(ctx: usize) -> Self {
        Self { pages: Vec::with_capacity(ctx.div_ceil(BLOCK)), given_back: 0 }
    }

    /// Positions there are pages for.
    pub fn room(&self) -> usize {
        self.pages.len() * BLOCK
    }

    /// The page of block `block`.
    pub fn page(&self, block: usize) -> usize {
        debug_assert!(block >= self.given_back);
        self.pages[block] as usize
    }

    /// Where a position is among the positions of all pages.
    pub fn place(&self, position: usize) -> usize {
        self.page(position / BLOCK) * BLOCK + position % BLOCK
    }

    /// The pages that have not been given back.
    pub fn kept(&self) -> impl Iterator<Item = u32> {
        self.pages[self.given_back..].iter().copied()
    }

    /// The first position whose page has not been given back.
    pub fn first_kept(&self) -> usize {
        self.given_back * BLOCK
    }

    /// Appends the page of the next block.
    pub fn push(&mut self, page: u32) {
        self.pages.push(page);
    }

    /// Takes off the pages behind the first `positions` positions, the last one first.
    pub fn shorten(&mut self, positions: usize) -> Option<u32> {
        let kept = positions.div_ceil(BLOCK).max(self.given_back);
        if self.pages.len() > kept { self.pages.pop() } else { None }
    }

    /// Takes off the first page, if all its positions are before `position`.
    pub fn give_back_before(&mut self, position: usize) -> Option<u32> {
        let page = *self.pages.get(self.given_back)?;
        if (self.given_back + 1) * BLOCK > position {
            return None;
        }
        self.given_back += 1;
        Some(page)
    }

    /// Takes off one page after the other, the last one first; then the table is as new.
    pub fn take_last(&mut self) -> Option<u32> {
        let page = if self.pages.len() > self.given_back { self.pages.pop() } else { None };
        if page.is_none() {
            self.pages.clear();
            self.given_back = 0;
        }
        page
    }
}

/// The first position that must be there when the token at `position` comes. What a block's keys have in common is looked up in the
/// block before.
pub(crate) fn needed_from(sliding_window: Option<usize>, position: usize) -> usize {
    let in_sight = sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
    in_sight.min(position.saturating_sub(1))
}

/// Pages that a sequence of up to `ctx` positions holds at the most while chunks of up to `chunk` tokens are fed. Behind a sliding
/// window they are given back as it moves on.
pub(crate) fn pages_of_a_sequence(sliding_window: Option<usize>, ctx: usize, chunk: usize) -> usize {
    let all = ctx.div_ceil(BLOCK);
    let in_sight = |window: usize| (window.saturating_add(chunk).div_ceil(BLOCK)).saturating_add(1);
    sliding_window.map_or(all, |window| all.min(in_sight(window)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_never_needs_more_pages_than_are_set_aside() {
        for window in [1, 2, 63, 64, 65, 100, 129] {
            for chunk in [1, 7, 64, 100] {
                let mut table = PageTable::with_room_for(2000);
                let most = pages_of_a_sequence(Some(window), 2000, chunk);
                let (mut position, mut held) = (0, 0);
                while position + chunk <= 2000 {
                    while table.room() < position + chunk {
                        table.push(0);
                        held += 1;
                    }
                    assert!(held <= most, "window {window}, chunk {chunk}: {held} pages, not {most}");
                    position += chunk;
                    while table.give_back_before(needed_from(Some(window), position)).is_some() {
                        held -= 1;
                    }
                }
            }
        }
    }

    #[test]
    fn a_table_gives_each_page_back_once() {
        let mut table = PageTable::with_room_for(640);
        (0..10).for_each(|page| table.push(page));
        assert_eq!((table.page(3), table.place(200), table.room()), (3, 200, 640));
        assert_eq!([table.give_back_before(127), table.give_back_before(127)], [Some(0), None]);
        assert_eq!((table.shorten(577), table.shorten(576), table.shorten(576)), (None, Some(9), None));
        let rest: Vec<u32> = std::iter::from_fn(|| table.take_last()).collect();
        assert_eq!(rest, [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!((table.room(), table.first_kept()), (0, 0));
    }
}
