//! AMX: one `tdpbsud` multiplies a group of 16 tokens with one of 16 rows. Everything but the int8 matmul of many tokens is
//! [`avx512vnni`](super::avx512vnni)'s.

use super::avx512vnni::{self, Avx512Vnni, pack_sixteen, transpose};
use crate::int8::{self, group_of_rows, prefetch_block};
use crate::mat::MatMut;
use crate::quant::{GROUP, QMatrix, Quantized};
use crate::table::Table;
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::OnceLock;

/// Tokens, and rows of the weights, of a tile.
const TILE: usize = 16;

/// Tiles of rows that are packed together: what is prepared of some tokens serves them all.
const PANEL_TILES: usize = 4;
const PANEL_ROWS: usize = PANEL_TILES * TILE;

/// Groups in a packed panel: 64 rows × 32 groups are 128 KiB of weights, which stay in the second-level cache.
const PANEL_GROUPS: usize = 32;

/// Groups that are multiplied together: their weights, 32 KiB, stay in the first-level cache.
const PART_GROUPS: usize = 8;

/// The most tokens that are left to AVX-512. At least those that do not fill a tile.
const FEW_TOKENS: usize = 23;

pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| avx512vnni::is_available() && cpu_has_tiles() && permitted())
}

/// Whether a CPU with AVX-512 has int8 tiles and the system saves them.
fn cpu_has_tiles() -> bool {
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const TILE_STATE: u64 = 0b11 << 17;
    // SAFETY: a CPU with AVX-512 has this leaf of `cpuid`; and xsave, which the system uses, or it could not keep the registers.
    #[allow(unused_unsafe, reason = "cpuid is safe from Rust 1.94 on")]
    let (features, saved) = unsafe { (__cpuid_count(7, 0).edx, _xgetbv(0)) };
    features & AMX_TILE != 0 && features & AMX_INT8 != 0 && saved & TILE_STATE == TILE_STATE
}

/// Asks Linux to let this process use tiles, as it wants to be asked before their first use; other systems are not known.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const ARCH_PRCTL: usize = 158;
        const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
        const XFEATURE_XTILEDATA: usize = 18;
        let result: isize;
        // SAFETY: the call reads and writes none of our memory; a system call overwrites rcx and r11.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") ARCH_PRCTL => result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                out("rcx") _,
                out("r11") _,
                options(nostack),
            );
        }
        result == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

pub(crate) static TABLE: Table = Table { matmul_i8, ..avx512vnni::TABLE };

#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn matmul_i8(w: &QMatrix, rows: Range<usize>, x: &Quantized, out: MatMut<f32>) {
    if x.tokens() <= FEW_TOKENS || !w.is_aligned() || w.cols() == 0 {
        int8::matmul_i8(Avx512Vnni::new(), w, rows, x, out);
    } else {
        gemm(w, rows, x, out);
    }
}

/// What `ldtilecfg` reads: the shape of each tile register.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_a_row: [u16; 16],
    rows: [u8; 16],
}

/// Register 0 for weights, 1 for activations, 2 for their products.
static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_a_row: [64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// One group of 16 rows, `[k / 4][row]`: four bytes of one row, 128 added to each. Or sums of products, `[token][row]`.
type Tile = [__m512i; TILE];

/// Some groups of 64 rows, packed.
struct Panel {
    tiles: [[MaybeUninit<Tile>; PANEL_GROUPS]; PANEL_TILES],
    inverse: [[[f32; TILE]; PANEL_GROUPS]; PANEL_TILES],
}

/// What is needed of some groups of 16 tokens beside their values, `[group][token]`.
#[repr(C, align(64))]
struct Prepared {
    scales: [[f32; TILE]; PART_GROUPS],
    /// The sums of the groups' values, negative.
    sums: [[i32; TILE]; PART_GROUPS],
    /// Outliers' high parts, and where in a tile their weights begin, in bytes.
    outliers: [[[i32; TILE]; 2]; PART_GROUPS],
}

/// Panels of 64 rows × up to 32 groups are packed, and each meets every token. There must be 16 tokens or more.
#[inline(never)]
#[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn gemm(w: &QMatrix, rows: Range<usize>, x: &Quantized, mut out: MatMut<f32>) {
    let groups = w.cols() / GROUP;
    // SAFETY: the CPU has tiles and this process may use them, or this table would not be chosen; the configuration is a valid
    // one. Nothing else uses tiles, neither the compiler nor any other code of ours.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
    let mut panel = Panel {
        tiles: [const { [const { MaybeUninit::uninit() }; PANEL_GROUPS] }; PANEL_TILES],
        inverse: [[[0.0; TILE]; PANEL_GROUPS]; PANEL_TILES],
    };
    for first in rows.clone().step_by(PANEL_ROWS) {
        let panel_rows = first..(first + PANEL_ROWS).min(rows.end);
        let columns = panel_rows.start - rows.start..panel_rows.end - rows.start;
        for from in (0..groups).step_by(PANEL_GROUPS) {
            let block = from..(from + PANEL_GROUPS).min(groups);
            panel.pack(w, panel_rows.clone(), block.clone());
            panel.multiply(w, (first, block), x, &mut out, columns.clone());
        }
    }
    // SAFETY: as above. Tiles in use would have to be saved whenever the thread is interrupted.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

impl Panel {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn pack(&mut self, w: &QMatrix, rows: Range<usize>, block: Range<usize>) {
        for (tile, first) in rows.clone().step_by(TILE).enumerate() {
            for (i, g) in block.clone().enumerate() {
                let group_of = group_of_rows(w, first..rows.end, g, &mut self.inverse[tile][i]);
                self.tiles[tile][i].write(pack_sixteen(&group_of));
            }
            // In a loop of its own: what has just been written in pieces cannot be read as a whole at once.
            for inverse in &mut self.inverse[tile][..block.len()] {
                inverse.iter_mut().for_each(|scale| *scale = 1.0 / *scale);
            }
        }
    }

    /// Multiplies the groups `block` of the rows from `first` on, which are packed, with every token.
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn multiply(
        &self,
        w: &QMatrix,
        (first, block): (usize, Range<usize>),
        x: &Quantized,
        out: &mut MatMut<f32>,
        columns: Range<usize>,
    ) {
        let k = Avx512Vnni::new();
        let groups = w.cols() / GROUP;
        let next = if block.end < groups { (first, block.end) } else { (first + PANEL_ROWS, 0) };
        let share = PANEL_ROWS.div_ceil(x.tokens().div_ceil(TILE));
        let part_groups = block.len().div_ceil(block.len().div_ceil(PART_GROUPS));
        let mut prepared = Prepared {
            scales: [[0.0; TILE]; PART_GROUPS],
            sums: [[0; TILE]; PART_GROUPS],
            outliers: [[[0; TILE]; 2]; PART_GROUPS],
        };
        for (i, token) in (0..x.tokens()).step_by(TILE).enumerate() {
            for row in (i * share..(i + 1) * share).take_while(|row| *row < PANEL_ROWS) {
                prefetch_block(k, w.values().as_chunks().0, groups, PANEL_GROUPS, (next.0 + row, next.1));
            }
            // The last tile begins with some tokens of the one before, whose sums are complete.
            let start = token.min(x.tokens() - TILE);
            for from in block.clone().step_by(part_groups) {
                let part = from..(from + part_groups).min(block.end);
                prepared.fill(x, start, part.clone());
                Part {
                    panel: self,
                    offset: from - block.start,
                    prepared: &prepared,
                    x,
                    token: start,
                    groups: part,
                    done: token - start,
                }
                .multiply(out, columns.clone());
            }
        }
    }
}

impl Prepared {
    /// Takes `groups` of 16 tokens from `token` on, and transposes what belongs to them.
    #[inline(never)]
    #[target_feature(enable = "avx512f,avx512dq,avx512vl")]
    fn fill(&mut self, x: &Quantized, token: usize, groups: Range<usize>) {
        let (first, all) = (token * x.groups() + groups.start, x.groups());
        let last = first + (TILE - 1) * all + groups.len();
        assert!(groups.len() <= PART_GROUPS && last <= x.scales().len());
        assert!(last <= x.sums().len() && last <= x.outliers().len());
        let missing = PART_GROUPS - groups.len();
        let (one_each, two_each) = (0xff >> missing, 0xffff >> (2 * missing));
        let mut scales_sums = [_mm512_setzero_si512(); TILE];
        let mut outliers = [_mm512_setzero_si512(); TILE];
        for t in 0..TILE {
            let at = first + t * all;
            // SAFETY: the masks are of the groups, and the last ends in the slices.
            unsafe {
                let scales = _mm256_maskz_loadu_epi32(one_each, x.scales().as_ptr().add(at).cast());
                let sums = _mm256_maskz_loadu_epi32(one_each, x.sums().as_ptr().add(at));
                let sums = _mm256_sub_epi32(_mm256_setzero_si256(), sums);
                scales_sums[t] = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(scales), sums);
                let v = _mm512_maskz_loadu_epi32(two_each, x.outliers().as_ptr().add(at).cast());
                // `quad` is the second of an outlier's dwords; it stays in a tile whatever it was.
                let v = _mm512_mask_and_epi32(v, 0xaaaa, v, _mm512_set1_epi32(TILE as i32 - 1));
                outliers[t] = _mm512_mask_slli_epi32::<6>(v, 0xaaaa, v);
            }
        }
        let to = std::ptr::from_mut(self).cast::<Tile>();
        // SAFETY: 16 vectors and 16 more, aligned as they are.
        unsafe {
            to.write(transpose(scales_sums));
            to.add(1).write(transpose(outliers));
        }
    }
}

/// A panel and 16 tokens, some groups.
struct Part<'a> {
    panel: &'a Panel,
    /// Where the groups begin in the panel.
    offset: usize,
    prepared: &'a Prepared,
    x: &'a Quantized<'a>,
    token: usize,
    groups: Range<usize>,
    /// Tokens whose sums have been computed before.
    done: usize,
}

impl Part<'_> {
    /// Adds the products to `columns` of `out`; the first groups of a row replace what was there.
    ///
    /// While the products of a tile are scaled and summed, those of the next are stored and those of the one after computed.
    /// The CPU hardly overlaps the two by itself: the tile instructions are laid between the others by hand.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    fn multiply(&self, out: &mut MatMut<f32>, columns: Range<usize>) {
        let (groups, tiles) = (self.groups.len(), columns.len().div_ceil(TILE));
        self.check(tiles, out, &columns);
        let after = |(tile, g)| if g + 1 < groups { (tile, g + 1) } else { (tile + 1, 0) };
        let mut products = [const { MaybeUninit::uninit() }; 2];
        let mut begun = (0, 0);
        self.begin(begun);
        store_products(&mut products[0]);
        begun = after(begun);
        if begun.0 < tiles {
            self.begin(begun);
        }
        let mut turn = 0;
        for tile in 0..tiles {
            let mut sums = Sums::new(self, out, &columns, tile);
            for g in 0..groups {
                // SAFETY: stored in the turn before.
                let scaling = unsafe { self.scaling(tile, g, products[turn % 2].as_ptr()) };
                turn += 1;
                let store = begun.0 < tiles;
                begun = after(begun);
                let begin = begun.0 < tiles;
                if begin {
                    self.load_values(begun);
                }
                scaling.add(&mut sums.0, 0..4);
                if store {
                    store_products(&mut products[turn % 2]);
                }
                scaling.add(&mut sums.0, 4..10);
                if begin {
                    self.load_weights(begun);
                }
                scaling.add(&mut sums.0, 10..14);
                if begin {
                    multiply_tiles();
                }
                scaling.add(&mut sums.0, 14..16);
            }
            sums.store(self, out, &columns, tile);
        }
    }

    /// What the pointers of this part rest on.
    fn check(&self, tiles: usize, out: &MatMut<f32>, columns: &Range<usize>) {
        let last = (self.token + TILE - 1) * self.x.cols() + self.groups.end * GROUP;
        assert!(last <= self.x.values().len() && self.groups.end * GROUP <= self.x.cols());
        assert!(self.offset + self.groups.len() <= PANEL_GROUPS && self.groups.len() <= PART_GROUPS);
        assert!(tiles <= PANEL_TILES && self.token + TILE <= out.rows() && columns.end <= out.cols());
    }

    /// Begins with the products of a tile and the tokens.
    #[inline(always)]
    fn begin(&self, at: (usize, usize)) {
        self.load_values(at);
        self.load_weights(at);
        multiply_tiles();
    }

    #[inline(always)]
    fn load_values(&self, (_, g): (usize, usize)) {
        let at = self.token * self.x.cols() + (self.groups.start + g) * GROUP;
        // SAFETY: `check` has seen that these tokens and groups are there.
        unsafe { load_values(self.x.values().as_ptr().wrapping_add(at), self.x.cols()) };
    }

    #[inline(always)]
    fn load_weights(&self, (tile, g): (usize, usize)) {
        // SAFETY: as many groups of as many tiles are packed.
        unsafe { load_weights(self.panel.tiles[tile][self.offset + g].as_ptr()) };
    }

    /// What one tile's products are scaled with.
    ///
    /// # Safety
    /// `dots` must be initialised, `tile` and `g` among those that are packed.
    #[inline(always)]
    unsafe fn scaling(&self, tile: usize, g: usize, dots: *const Tile) -> Scaling<'_> {
        // SAFETY: the caller vouches for it.
        unsafe {
            Scaling {
                dots: &*dots,
                weights: self
                    .panel
                    .tiles
                    .get_unchecked(tile)
                    .get_unchecked(self.offset + g)
                    .assume_init_ref(),
                inverse: self.panel.inverse.get_unchecked(tile).get_unchecked(self.offset + g),
                scales: self.prepared.scales.get_unchecked(g),
                sums: self.prepared.sums.get_unchecked(g),
                outliers: self.prepared.outliers.get_unchecked(g),
            }
        }
    }
}

/// The sums of 16 tokens and 16 rows, a token a register.
struct Sums([__m512; TILE]);

impl Sums {
    /// Those of the groups before; zeros, if there are none.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(part: &Part, out: &mut MatMut<f32>, columns: &Range<usize>, tile: usize) -> Self {
        let mut sums = [_mm512_setzero_ps(); TILE];
        if part.groups.start > 0 {
            let (at, mask) = Self::place(part, out, columns, tile);
            for (t, sum) in sums.iter_mut().enumerate() {
                // SAFETY: `check` has seen that the rows are there; the mask is of the columns.
                *sum = unsafe { _mm512_maskz_loadu_ps(mask, at.wrapping_add(t * out.stride())) };
            }
        }
        Self(sums)
    }

    /// Stores those of the tokens that are new.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store(&self, part: &Part, out: &mut MatMut<f32>, columns: &Range<usize>, tile: usize) {
        let (at, mask) = Self::place(part, out, columns, tile);
        for (t, sum) in self.0.iter().enumerate().skip(part.done) {
            // SAFETY: as in `new`.
            unsafe { _mm512_mask_storeu_ps(at.wrapping_add(t * out.stride()), mask, *sum) };
        }
    }

    /// Where the first token's lie, and which of the columns are there.
    #[inline(always)]
    fn place(part: &Part, out: &mut MatMut<f32>, columns: &Range<usize>, tile: usize) -> (*mut f32, u16) {
        let first = columns.start + tile * TILE;
        let mask = 0xffff >> (TILE - (columns.end - first).min(TILE));
        (out.as_mut_ptr().wrapping_add(part.token * out.stride() + first), mask)
    }
}

/// A group's products of 16 tokens and 16 rows, and what they are scaled with.
struct Scaling<'a> {
    dots: &'a Tile,
    weights: &'a Tile,
    inverse: &'a [f32; TILE],
    scales: &'a [f32; TILE],
    sums: &'a [i32; TILE],
    outliers: &'a [[i32; TILE]; 2],
}

impl Scaling<'_> {
    /// Takes 128·Σx off the products of some tokens, puts the outliers in, and adds what they are scaled to.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn add(&self, to: &mut [__m512; TILE], tokens: Range<usize>) {
        // SAFETY: 16 floats.
        let inverse = unsafe { _mm512_loadu_ps(self.inverse.as_ptr()) };
        let [high, places] = self.outliers;
        for t in tokens {
            // SAFETY: a place is a multiple of 64 in the tile.
            let w =
                unsafe { *std::ptr::from_ref(self.weights).byte_add(places[t] as usize).cast::<__m512i>() };
            let extra = _mm512_dpbusd_epi32(_mm512_set1_epi32(self.sums[t]), w, _mm512_set1_epi32(high[t]));
            let dots = _mm512_add_epi32(self.dots[t], _mm512_slli_epi32::<7>(extra));
            let scale = _mm512_mul_ps(inverse, _mm512_set1_ps(self.scales[t]));
            to[t] = _mm512_add_ps(to[t], _mm512_mul_ps(_mm512_cvtepi32_ps(dots), scale));
            // SAFETY: it does nothing. The compiler would move the arithmetic away from between the tile instructions.
            unsafe { asm!("/* {} */", inout(zmm_reg) to[t], options(nostack, preserves_flags)) };
        }
    }
}

/// # Safety
/// `at` must point to the first of 16 groups that are `stride` bytes apart.
#[inline(always)]
unsafe fn load_values(at: *const i8, stride: usize) {
    // SAFETY: the caller vouches for the memory; only `gemm` calls this, between configuration and release.
    unsafe {
        asm!("tileloadd tmm1, [{} + {}]", in(reg) at, in(reg) stride, out("tmm1") _, options(nostack, preserves_flags))
    };
}

/// # Safety
/// `at` must point to an initialised tile.
#[inline(always)]
unsafe fn load_weights(at: *const Tile) {
    // SAFETY: as in `load_values`.
    unsafe {
        asm!("tileloadd tmm0, [{} + {}]", in(reg) at, in(reg) GROUP, out("tmm0") _, options(nostack, preserves_flags))
    };
}

/// The products of what was loaded last.
#[inline(always)]
fn multiply_tiles() {
    // SAFETY: as in `load_values`; no memory is used.
    unsafe {
        asm!("tilezero tmm2", "tdpbsud tmm2, tmm1, tmm0", out("tmm2") _, options(nostack, preserves_flags))
    };
}

#[inline(always)]
fn store_products(to: &mut MaybeUninit<Tile>) {
    // SAFETY: as in `load_values`; the tile is borrowed and as large as it needs to be.
    unsafe {
        asm!("tilestored [{} + {}], tmm2", in(reg) to, in(reg) GROUP, options(nostack, preserves_flags))
    };
}
