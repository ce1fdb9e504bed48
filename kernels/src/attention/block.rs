//! Int8 keys and values of a block of 64 positions, as the kernels read them: the keys are panels whose rows are positions, the
//! values panels whose rows are features, so that 64 positions are one group.
//!
//! A head's keys have large means in some channels, which take the precision of all others. So each key is stored without the
//! mean of the keys of the block before (SageAttention, Zhang et al. 2024, takes one mean off all keys; one that stays near them
//! leaves less to round). It depends on nothing but what the cache holds of that block: how a prompt is cut into chunks changes
//! no bit.

use crate::dispatch::Kernels;
use crate::panels::{PANEL_ROWS, Panel, PanelGroup};
use crate::quant::{GROUP, QUAD};
use crate::scalar::BLOCK;

/// Panels of the keys of a block.
pub(crate) const KEY_PANELS: usize = BLOCK / PANEL_ROWS;

/// A panel's group in words: blocks lie in memory that is made of f32.
const WORDS: usize = size_of::<PanelGroup>() / size_of::<f32>();

/// Where things lie in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    head_dim: usize,
}

impl Shape {
    /// Groups of a key, the last filled up with zeros.
    fn groups(self) -> usize {
        self.head_dim.div_ceil(GROUP)
    }

    /// Panels of the values.
    fn feature_panels(self) -> usize {
        self.head_dim.div_ceil(PANEL_ROWS)
    }

    /// Words of the mean: a byte a channel, and a scale a group, filled up to whole cache lines.
    fn mean_words(self) -> usize {
        const LINE_WORDS: usize = 16;
        self.groups() * LINE_WORDS + self.groups().next_multiple_of(LINE_WORDS)
    }

    fn key_words(self) -> usize {
        KEY_PANELS * self.groups() * (WORDS + PANEL_ROWS) + self.mean_words()
    }

    fn value_words(self) -> usize {
        self.feature_panels() * WORDS + BLOCK
    }
}

/// The keys of 64 positions of one head.
#[derive(Clone, Copy, Debug)]
pub struct Int8Keys<'a> {
    /// All of what follows.
    words: &'a [f32],
    /// `[4][groups]`, rows are positions.
    codes: &'a [PanelGroup],
    /// `[4][groups][16]`
    scales: &'a [[f32; PANEL_ROWS]],
    /// `[groups][64]`: what is taken off each key, in units of its scale.
    mean: &'a [[i8; GROUP]],
    mean_scales: &'a [f32],
}

impl<'a> Int8Keys<'a> {
    /// Words of memory that the keys of a block take.
    pub fn words(head_dim: usize) -> usize {
        Shape { head_dim }.key_words()
    }

    /// The keys that lie in `words`.
    ///
    /// # Panics
    /// If these are not [`Self::words`].
    pub fn new(words: &'a [f32], head_dim: usize) -> Self {
        let shape = Shape { head_dim };
        assert_eq!(words.len(), shape.key_words(), "words of a block's keys");
        let panels = KEY_PANELS * shape.groups();
        let (codes, rest) = words.split_at(panels * WORDS);
        let (scales, rest) = rest.split_at(panels * PANEL_ROWS);
        let (mean, rest) = rest.split_at(shape.groups() * GROUP / size_of::<f32>());
        Self {
            words,
            codes: groups(bytes(codes)),
            scales: scales.as_chunks().0,
            mean: bytes(mean).as_chunks().0,
            mean_scales: &rest[..shape.groups()],
        }
    }

    /// Groups of a key.
    pub(crate) fn groups(&self) -> usize {
        self.mean.len()
    }

    /// 16 of the positions.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> Panel<'a, [f32; PANEL_ROWS]> {
        let groups = panel * self.groups()..(panel + 1) * self.groups();
        Panel { values: &self.codes[groups.clone()], scales: &self.scales[groups] }
    }

    /// The memory they lie in; the next block's lies behind it.
    pub(crate) fn memory(&self) -> &'a [f32] {
        self.words
    }

    /// Group `g` of the mean, and its scale.
    #[inline(always)]
    pub(crate) fn mean_group(&self, g: usize) -> (&'a [i8; GROUP], f32) {
        (&self.mean[g], self.mean_scales[g])
    }

    /// Value `d` of the mean.
    pub(crate) fn mean_at(&self, d: usize) -> f32 {
        f32::from(self.mean[d / GROUP][d % GROUP]) * self.mean_scales[d / GROUP]
    }

    /// Group `g` of the key of a position, and its scale.
    pub(crate) fn group(&self, position: usize, g: usize) -> ([i8; GROUP], f32) {
        self.panel(position / PANEL_ROWS).group(position % PANEL_ROWS, g)
    }

    /// The mean of the 64 keys, `head_dim` values: of four sums, each over every fourth position.
    pub fn mean_of_keys(&self, mean: &mut [f32]) {
        for (d, mean) in mean.iter_mut().enumerate() {
            let mut sums = [0.0; 4];
            for position in 0..BLOCK {
                sums[position % 4] += self.key_at(position, d);
            }
            *mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / BLOCK as f32;
        }
    }

    /// Value `d` of the key of a position.
    fn key_at(&self, position: usize, d: usize) -> f32 {
        let panel = self.panel(position / PANEL_ROWS);
        let row = position % PANEL_ROWS;
        let code = panel.values[d / GROUP][d % GROUP / QUAD][row][d % QUAD];
        f32::from(code) * panel.scales[d / GROUP][row] + self.mean_at(d)
    }
}

/// The values of 64 positions of one head.
#[derive(Clone, Copy, Debug)]
pub struct Int8Values<'a> {
    /// All of what follows.
    words: &'a [f32],
    /// `[⌈head_dim/16⌉]`, rows are features.
    pub(crate) codes: &'a [PanelGroup],
    /// One a position.
    pub(crate) scales: &'a [f32; BLOCK],
}

impl<'a> Int8Values<'a> {
    /// Words of memory that the values of a block take.
    pub fn words(head_dim: usize) -> usize {
        Shape { head_dim }.value_words()
    }

    /// The values that lie in `words`.
    ///
    /// # Panics
    /// If these are not [`Self::words`].
    pub fn new(words: &'a [f32], head_dim: usize) -> Self {
        let shape = Shape { head_dim };
        assert_eq!(words.len(), shape.value_words(), "words of a block's values");
        let (codes, scales) = words.split_at(shape.feature_panels() * WORDS);
        Self { words, codes: groups(bytes(codes)), scales: scales.first_chunk().expect("a block's scales") }
    }

    /// The memory they lie in; the next block's lies behind it.
    pub(crate) fn memory(&self) -> &'a [f32] {
        self.words
    }

    /// Value `d` of a position, in units of its scale.
    pub(crate) fn code(&self, position: usize, d: usize) -> i8 {
        self.codes[d / PANEL_ROWS][position / QUAD][d % PANEL_ROWS][position % QUAD]
    }
}

/// The keys of 64 positions, to be written.
#[derive(Debug)]
pub struct Int8KeysMut<'a> {
    words: &'a mut [f32],
    shape: Shape,
}

impl<'a> Int8KeysMut<'a> {
    /// The keys that lie in `words`.
    ///
    /// # Panics
    /// If these are not [`Int8Keys::words`].
    pub fn new(words: &'a mut [f32], head_dim: usize) -> Self {
        let shape = Shape { head_dim };
        assert_eq!(words.len(), shape.key_words(), "words of a block's keys");
        Self { words, shape }
    }

    /// Says what is taken off each key that is stored from now on, `head_dim` values: nothing where they are not finite.
    pub fn set_mean(&mut self, kernels: Kernels, mean: &[f32]) {
        let groups = self.shape.groups();
        let at = KEY_PANELS * groups * (WORDS + PANEL_ROWS);
        let (codes, scales) = self.words[at..].split_at_mut(groups * GROUP / size_of::<f32>());
        let codes = bytes_mut(codes).as_chunks_mut::<GROUP>().0;
        for ((mean, codes), scale) in mean.chunks(GROUP).zip(codes).zip(scales) {
            *scale = kernels.narrow_i8(mean, &mut codes[..mean.len()]);
            if scale.is_nan() {
                // Zeros: what is wrong with the keys before is theirs.
                *scale = 0.0;
            }
        }
    }

    /// Stores the key of a position, `head_dim` values.
    pub fn store(&mut self, kernels: Kernels, position: usize, key: &[f32]) {
        let groups = self.shape.groups();
        for (g, key) in key.chunks(GROUP).enumerate() {
            let (mean, mean_scale) = Int8Keys::new(self.words, self.shape.head_dim).mean_group(g);
            let mut rest = [0.0; GROUP];
            for ((rest, key), mean) in rest.iter_mut().zip(key).zip(mean) {
                *rest = key - f32::from(*mean) * mean_scale;
            }
            let mut narrow = [0; GROUP];
            let scale = kernels.narrow_i8(&rest, &mut narrow);
            let (panel, row) = (position / PANEL_ROWS * groups + g, position % PANEL_ROWS);
            let (codes, scales) = self.words.split_at_mut(KEY_PANELS * groups * WORDS);
            scales[panel * PANEL_ROWS + row] = scale;
            for (quad, lanes) in narrow.as_chunks().0.iter().zip(&mut groups_mut(bytes_mut(codes))[panel]) {
                lanes[row] = *quad;
            }
        }
    }
}

/// The values of 64 positions, to be written.
#[derive(Debug)]
pub struct Int8ValuesMut<'a> {
    codes: &'a mut [PanelGroup],
    scales: &'a mut [f32],
}

impl<'a> Int8ValuesMut<'a> {
    /// The values that lie in `words`.
    ///
    /// # Panics
    /// If these are not [`Int8Values::words`].
    pub fn new(words: &'a mut [f32], head_dim: usize) -> Self {
        let shape = Shape { head_dim };
        assert_eq!(words.len(), shape.value_words(), "words of a block's values");
        let (codes, scales) = words.split_at_mut(shape.feature_panels() * WORDS);
        Self { codes: groups_mut(bytes_mut(codes)), scales }
    }

    /// Stores the value of a position: what it is in units of `scale`.
    ///
    /// # Panics
    /// If there are more codes than rows, or `position` is not in the block.
    pub fn store(&mut self, position: usize, codes: &[i8], scale: f32) {
        self.scales[position] = scale;
        for (panel, codes) in self.codes.iter_mut().zip(codes.chunks(PANEL_ROWS)) {
            for (lane, code) in panel[position / QUAD].iter_mut().zip(codes) {
                lane[position % QUAD] = *code;
            }
        }
    }
}

fn groups(bytes: &[i8]) -> &[PanelGroup] {
    bytes.as_chunks().0.as_chunks().0.as_chunks().0
}

fn groups_mut(bytes: &mut [i8]) -> &mut [PanelGroup] {
    bytes.as_chunks_mut().0.as_chunks_mut().0.as_chunks_mut().0
}

/// The same memory as bytes.
fn bytes(words: &[f32]) -> &[i8] {
    // SAFETY: four bytes a word, of which every one is a legal value.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// The same memory as bytes.
fn bytes_mut(words: &mut [f32]) -> &mut [i8] {
    // SAFETY: four bytes a word, of which every one is a legal value; and whatever they become, four are a legal f32.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}
