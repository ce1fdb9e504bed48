//! The tile registers and their instructions, in inline assembly: the intrinsics are not stable yet.
//!
//! Register 0 holds weights, 1 activations, 2 their products. Of weights of two bytes 0 and 2 belong to the first, 3 and 4 to the
//! second.

use crate::panels::PanelGroup;
use crate::quant::GROUP;
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Rows of a tile register, 64 bytes each; so the tokens, and the rows of the weights, whose products fill one.
pub(super) const AMX_TILE_SIDE: usize = 16;

/// Dot products, `[token][row]`; so large is a [`PanelGroup`] too.
pub(super) type AmxTile = [__m512i; AMX_TILE_SIDE];

/// Whether a CPU with AVX-512 has int8 tiles and the system saves them.
pub(super) fn in_cpu() -> bool {
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const TILE_STATE: u64 = 0b11 << 17;
    // SAFETY: a CPU with AVX-512 has this leaf of `cpuid`; and xsave, which the system uses, or it could not keep the registers.
    #[allow(unused_unsafe, reason = "cpuid is safe from Rust 1.94 on")]
    let (features, saved) = unsafe { (__cpuid_count(7, 0).edx, _xgetbv(0)) };
    features & AMX_TILE != 0 && features & AMX_INT8 != 0 && saved & TILE_STATE == TILE_STATE
}

/// Asks the system for leave to use tiles, once for the process and before their first use, and says whether it gave it.
/// Linux only: how others want to be asked is not known.
pub(super) fn permitted() -> bool {
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

/// What `ldtilecfg` reads: the shape of each tile register.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_a_row: [u16; 16],
    rows: [u8; 16],
}

/// Registers 0 to 4, all of the same shape.
static CONFIG: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_a_row: [64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Gives the registers their shapes.
///
/// # Safety
/// [`in_cpu`] and [`permitted`] must have returned true.
#[inline(always)]
pub(super) unsafe fn configure() {
    // SAFETY: the caller vouches for the instruction; the configuration is a valid one. Nothing else uses tiles, neither the
    // compiler nor any other code of ours.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &CONFIG, options(nostack, readonly, preserves_flags)) };
}

/// Empties the registers: tiles in use would have to be saved whenever the thread is interrupted.
///
/// # Safety
/// As for [`configure`].
#[inline(always)]
pub(super) unsafe fn release() {
    // SAFETY: the caller vouches for the instruction.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
}

/// Loads 16 tokens' values of one group.
///
/// # Safety
/// Between [`configure`] and [`release`] only; `at` must point to the first of 16 groups that are `stride` bytes apart.
#[inline(always)]
pub(super) unsafe fn load_values(at: *const i8, stride: usize) {
    // SAFETY: the caller vouches for the memory and the configuration.
    unsafe {
        asm!("tileloadd tmm1, [{} + {}]", in(reg) at, in(reg) stride, out("tmm1") _, options(nostack, preserves_flags))
    };
}

/// Loads one group of 16 rows of the weights, of one byte or two.
///
/// # Safety
/// Between [`configure`] and [`release`] only.
#[inline(always)]
pub(super) unsafe fn load_weights<const BYTES: usize>(at: &[PanelGroup; BYTES]) {
    // SAFETY: a panel's group is 16 rows of 64 bytes; the caller vouches for the configuration.
    unsafe {
        asm!("tileloadd tmm0, [{} + {}]", in(reg) &at[0], in(reg) GROUP, out("tmm0") _, options(nostack, preserves_flags));
        if BYTES == 2 {
            asm!("tileloadd tmm3, [{} + {}]", in(reg) &at[1], in(reg) GROUP, out("tmm3") _, options(nostack, preserves_flags));
        }
    };
}

/// Computes the dot products of what was loaded last, of 16 tokens with 16 rows.
///
/// # Safety
/// Between [`configure`] and [`release`] only.
#[inline(always)]
pub(super) unsafe fn multiply<const BYTES: usize>() {
    // SAFETY: the caller vouches for the configuration; no memory is used.
    unsafe {
        asm!("tilezero tmm2", "tdpbssd tmm2, tmm1, tmm0", out("tmm2") _, options(nostack, preserves_flags));
        if BYTES == 2 {
            asm!("tilezero tmm4", "tdpbssd tmm4, tmm1, tmm3", out("tmm4") _, options(nostack, preserves_flags));
        }
    };
}

/// Stores the dot products, for each byte of the weights `[token][row]`: initialises `to`.
///
/// # Safety
/// Between [`configure`] and [`release`] only.
#[inline(always)]
pub(super) unsafe fn store_products<const BYTES: usize>(to: &mut MaybeUninit<[AmxTile; BYTES]>) {
    const { assert!(BYTES == 1 || BYTES == 2) };
    let to = to.as_mut_ptr().cast::<AmxTile>();
    // SAFETY: the caller vouches for the configuration; the tiles are borrowed and as large as they need to be.
    unsafe {
        asm!("tilestored [{} + {}], tmm2", in(reg) to, in(reg) GROUP, options(nostack, preserves_flags));
        if BYTES == 2 {
            asm!("tilestored [{} + {}], tmm4", in(reg) to.add(1), in(reg) GROUP, options(nostack, preserves_flags));
        }
    };
}
