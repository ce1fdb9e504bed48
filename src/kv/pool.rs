//! The pages of an arena: who uses them, and which tokens' keys and values they hold.
//!
//! A page that is full can be found again by its tokens and the page before it, so that sequences with one beginning share it. It is
//! counted; when nobody uses it, it stays where it is until the memory is needed, the least recently used first.

use rustc_hash::{FxBuildHasher, FxHashMap, FxHasher};
use std::hash::{Hash, Hasher};
use torchless_kernels::BLOCK;

/// Stands for no page in a list.
const NONE: u32 = u32::MAX;

/// Names the tokens of a page together with all before them: never the same twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Chain(u64);

impl Chain {
    /// Before the first page.
    pub const START: Self = Self(0);
    /// Before the first page of a sequence that has the rotary embedding of long ones.
    pub const START_OF_LONG: Self = Self(u64::MAX);
}

/// What is known of a page.
#[derive(Clone)]
struct Page {
    users: u32,
    /// Its name while it can be found, and what it follows.
    chain: Option<(Chain, Chain)>,
    tokens: [u32; BLOCK],
    /// Its neighbours among those that nobody uses and that can be found.
    older: u32,
    newer: u32,
}

/// Pages `0..len` and what is known of them.
pub(crate) struct Pool {
    pages: Vec<Page>,
    /// Those that hold nothing of use, the next one last.
    free: Vec<u32>,
    /// What follows a chain, by the hash of its tokens.
    index: FxHashMap<(Chain, u64), u32>,
    last_chain: u64,
    oldest: u32,
    newest: u32,
    cached: usize,
}

impl Pool {
    /// `len` free pages.
    pub fn new(len: usize) -> Self {
        let page = Page { users: 0, chain: None, tokens: [0; BLOCK], older: NONE, newer: NONE };
        Self {
            pages: vec![page; len],
            free: (0..len as u32).rev().collect(),
            // Twice as much as is ever in it: then what has been removed is cleared without allocating.
            index: FxHashMap::with_capacity_and_hasher(2 * len, FxBuildHasher),
            last_chain: 0,
            oldest: NONE,
            newest: NONE,
            cached: 0,
        }
    }

    /// All pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Pages that nobody uses.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached
    }

    /// Of these, those that can be found again.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// A page for the caller alone; nothing where all are in use.
    pub fn take(&mut self) -> Option<u32> {
        let page = match self.free.pop() {
            Some(page) => page,
            None => {
                let page = (self.oldest != NONE).then_some(self.oldest)?;
                self.unlink(page);
                self.forget(page);
                page
            }
        };
        self.pages[page as usize].users = 1;
        Some(page)
    }

    /// The caller needs `page` no more.
    pub fn give_back(&mut self, page: u32) {
        let of = &mut self.pages[page as usize];
        of.users -= 1;
        match (of.users, of.chain) {
            (0, Some(_)) => self.link(page),
            (0, None) => self.free.push(page),
            _ => {}
        }
    }

    /// Whether a page would be there for others if its only user gave it back.
    pub fn has_one_user(&self, page: u32) -> bool {
        self.pages[page as usize].users == 1
    }

    /// A page that holds `tokens` after `chain`, for the caller to look at, and its name.
    pub fn find(&mut self, chain: Chain, tokens: &[u32]) -> Option<(u32, Chain)> {
        let page = *self.index.get(&(chain, hash(tokens)))?;
        let of = &mut self.pages[page as usize];
        let name = of.chain.filter(|_| of.tokens[..] == *tokens)?.0;
        of.users += 1;
        if of.users == 1 {
            self.unlink(page);
        }
        Some((page, name))
    }

    /// Makes `page`, which is full and will not change any more, one that can be found as `tokens` after `chain`; returns the name of
    /// what it holds. Where another page holds the same, that one will be found.
    pub fn publish(&mut self, page: u32, chain: Chain, tokens: &[u32]) -> Option<Chain> {
        let key = (chain, hash(tokens));
        if let Some(&other) = self.index.get(&key) {
            let other = &self.pages[other as usize];
            return other.chain.filter(|_| other.tokens[..] == *tokens).map(|(name, _)| name);
        }
        self.last_chain += 1;
        let name = Chain(self.last_chain);
        let of = &mut self.pages[page as usize];
        of.chain = Some((name, chain));
        of.tokens.copy_from_slice(tokens);
        self.index.insert(key, page);
        Some(name)
    }

    /// What `page` holds cannot be found any more.
    fn forget(&mut self, page: u32) {
        let of = &mut self.pages[page as usize];
        if let Some((_, before)) = of.chain.take() {
            self.index.remove(&(before, hash(&of.tokens)));
        }
    }

    /// Puts `page` to the end of those that nobody uses.
    fn link(&mut self, page: u32) {
        self.pages[page as usize].older = self.newest;
        self.pages[page as usize].newer = NONE;
        match self.newest {
            NONE => self.oldest = page,
            newest => self.pages[newest as usize].newer = page,
        }
        self.newest = page;
        self.cached += 1;
    }

    /// Takes `page` out of those that nobody uses.
    fn unlink(&mut self, page: u32) {
        let (older, newer) = (self.pages[page as usize].older, self.pages[page as usize].newer);
        match older {
            NONE => self.oldest = newer,
            older => self.pages[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.pages[newer as usize].older = older,
        }
        self.cached -= 1;
    }
}

fn hash(tokens: &[u32]) -> u64 {
    let mut hasher = FxHasher::default();
    tokens.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first: u32) -> Vec<u32> {
        (first..).take(BLOCK).collect()
    }

    #[test]
    fn every_page_is_given_out_once() {
        let mut pool = Pool::new(3);
        let mut taken: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert_eq!(pool.available(), 0);
        pool.give_back(taken.remove(1));
        assert_eq!((pool.available(), pool.take(), pool.take()), (1, Some(1), None));
    }

    #[test]
    fn a_page_is_found_by_its_tokens_and_those_before_it() {
        let mut pool = Pool::new(4);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        let first = pool.publish(a, Chain::START, &block(0)).unwrap();
        let second = pool.publish(b, first, &block(7)).unwrap();
        // The same page, used twice, then once, then not at all: it can be found all the time.
        assert_eq!(pool.find(Chain::START, &block(0)), Some((a, first)));
        for _ in 0..2 {
            pool.give_back(a);
            assert_eq!(pool.find(first, &block(7)), Some((b, second)));
            pool.give_back(b);
        }
        assert_eq!((pool.available(), pool.cached()), (3, 1));
        assert_eq!(pool.find(Chain::START, &block(7)), None, "it follows another one");
        assert_eq!(pool.find(first, &block(8)), None, "other tokens");
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut pool = Pool::new(3);
        let pages: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        for page in &pages {
            pool.publish(*page, Chain::START, &block(page * 100)).unwrap();
        }
        pages.iter().for_each(|&page| pool.give_back(page));
        // Page 0 is used once more.
        let (found, _) = pool.find(Chain::START, &block(0)).unwrap();
        pool.give_back(found);
        assert_eq!(pool.take(), Some(1));
        assert_eq!(pool.find(Chain::START, &block(100)), None);
        assert!(pool.find(Chain::START, &block(0)).is_some());
        assert_eq!((pool.take(), pool.take()), (Some(2), None), "0 is in use");
    }

    #[test]
    fn two_pages_with_one_content_are_found_as_one() {
        let mut pool = Pool::new(2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        let name = pool.publish(a, Chain::START, &block(0));
        assert_eq!(pool.publish(b, Chain::START, &block(0)), name);
        pool.give_back(b);
        assert_eq!(
            (pool.available(), pool.cached()),
            (1, 0),
            "the second holds nothing that is not there already"
        );
        assert_eq!(pool.find(Chain::START, &block(0)).unwrap().0, a);
    }

    #[test]
    fn the_index_never_grows() {
        let mut pool = Pool::new(8);
        let capacity = pool.index.capacity();
        for round in 0..2000 {
            let page = pool.take().unwrap();
            pool.publish(page, Chain::START, &block(round)).unwrap();
            pool.give_back(page);
        }
        assert_eq!((pool.index.len(), pool.index.capacity()), (8, capacity));
    }
}
