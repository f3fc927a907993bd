//! AMX: products of tiles of bf16, 16 x 32 by 32 x 16, with sums in f32.
//!
//! Through inline assembly, as the intrinsics are not stable. Tiles hold 16 rows of 64 bytes: of
//! A, 32 numbers along k; of B, for two numbers along k, 16 columns' pairs; of C, 16 f32.

use std::sync::OnceLock;

/// Rows of a tile of A and of C; columns of a tile of B and of C.
pub(crate) const SIDE: usize = 16;
/// Numbers along k in a row of a tile of A.
pub(crate) const DEPTH: usize = 32;
/// Elements of f32 in the size of a tile.
pub(crate) const TILE: usize = 256;

/// Whether the machine has AMX with bf16 and the system lets this process use it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_instructions() && permitted())
}

#[cfg(target_arch = "x86_64")]
fn has_instructions() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    const TILES: u32 = 1 << 24;
    const BF16: u32 = 1 << 22;
    // Palette 1 has the tiles assumed here.
    __cpuid(0).eax >= 0x1d
        && __cpuid_count(7, 0).edx & (TILES | BF16) == TILES | BF16
        && __cpuid_count(0x1d, 0).eax >= 1
}

#[cfg(not(target_arch = "x86_64"))]
fn has_instructions() -> bool {
    false
}

/// Linux gives the tile registers' memory only to processes that ask for them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn permitted() -> bool {
    false
}

/// This thread's tiles, configured: eight of full size. They are released when it is dropped.
pub(crate) struct Tiles(());

/// Tiles of C's sums: of up to two tiles of A's rows times up to two of B's columns.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Sums<'a> {
    /// The first and the second tile's rows of A, `stride` bytes apart; the second is read only if
    /// there are two tiles of rows.
    pub(crate) a: [*const u8; 2],
    pub(crate) stride: usize,
    /// Offsets in bytes from `a` to the runs of `steps` steps of k that are summed.
    pub(crate) offsets: &'a [isize],
    pub(crate) steps: usize,
    /// For each step, the tiles of B: of the largest terms, then of the next.
    pub(crate) b: *const f32,
    /// The tiles of C, one after the other: a row's first.
    pub(crate) c: *mut f32,
    /// Memory that is soon needed, which need not be readable, and how many lines of it each step
    /// asks for in the second-level cache.
    pub(crate) next: *const u8,
    pub(crate) next_lines: usize,
}

#[cfg(target_arch = "x86_64")]
mod instructions {
    use super::{SIDE, Sums, Tiles};
    use std::arch::asm;
    use std::mem::offset_of;

    #[repr(C, align(64))]
    struct Config {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        row_bytes: [u16; 16],
        rows: [u8; 16],
    }

    static CONFIG: Config = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            (row_bytes[tile], rows[tile]) = (64, SIDE as u8);
            tile += 1;
        }
        Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    };

    impl Tiles {
        pub(crate) fn configure() -> Tiles {
            assert!(super::is_available(), "AMX is available");
            // SAFETY: AMX is available, and the configuration is one of palette 1.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly));
            }
            Tiles(())
        }
    }

    impl Drop for Tiles {
        fn drop(&mut self) {
            // SAFETY: AMX is available, or there were no `Tiles`.
            unsafe { asm!("tilerelease", options(nostack, nomem)) }
        }
    }

    /// An instruction for so many tiles of rows and columns; nothing where it is for a second one
    /// that there is not. `A i t` loads term t of A's rows i to tile 4 + i, `B j t` that of B's
    /// columns j to tile 6 + j, `M i j` adds their product to tile 2 i + j, `S i j` stores that.
    macro_rules! instruction {
        ($rows:tt 1 B 1 $t:tt) => {
            ""
        };
        ($rows:tt $columns:tt B 0 $t:tt) => {
            concat!("tileloadd tmm6, [{b} + {line}*1 + 1024*", $columns, "*", $t, "]")
        };
        ($rows:tt $columns:tt B 1 $t:tt) => {
            concat!("tileloadd tmm7, [{b} + {line}*1 + 1024*", $columns, "*", $t, " + 1024]")
        };
        (1 $columns:tt $kind:ident 1 $other:tt) => {
            ""
        };
        ($rows:tt $columns:tt A 0 $t:tt) => {
            concat!("tileloadd tmm4, [{p} + {s}*1 + 64*", $t, "]")
        };
        ($rows:tt $columns:tt A 1 $t:tt) => {
            concat!("tileloadd tmm5, [{q} + {s}*1 + 64*", $t, "]")
        };
        ($rows:tt 1 $kind:ident $i:tt 1) => {
            ""
        };
        ($rows:tt $columns:tt M 0 0) => {
            "tdpbf16ps tmm0, tmm4, tmm6"
        };
        ($rows:tt $columns:tt M 0 1) => {
            "tdpbf16ps tmm1, tmm4, tmm7"
        };
        ($rows:tt $columns:tt M 1 0) => {
            "tdpbf16ps tmm2, tmm5, tmm6"
        };
        ($rows:tt $columns:tt M 1 1) => {
            "tdpbf16ps tmm3, tmm5, tmm7"
        };
        ($rows:tt $columns:tt S 0 0) => {
            "tilestored [{p} + {line}*1], tmm0"
        };
        ($rows:tt $columns:tt S 0 1) => {
            "tilestored [{p} + {line}*1 + 1024], tmm1"
        };
        ($rows:tt $columns:tt S 1 0) => {
            concat!("tilestored [{p} + {line}*1 + 1024*", $columns, "], tmm2")
        };
        ($rows:tt $columns:tt S 1 1) => {
            "tilestored [{p} + {line}*1 + 3072], tmm3"
        };
    }

    /// The order of a step's instructions. Loads stand a product or two before their use, behind
    /// the last use of the tile.
    macro_rules! step {
        ($sums:expr, 1, $rows:tt, $columns:tt) => {
            sums!($sums, 1, $rows, $columns, [
                (A 0 0) (B 0 0) (M 0 0) (A 1 0) (M 1 0) (B 1 0) (M 0 1) (M 1 1)
            ])
        };
        ($sums:expr, 2, $rows:tt, $columns:tt) => {
            sums!($sums, 2, $rows, $columns, [
                (A 0 0) (B 0 1) (M 0 0) (A 1 0) (M 1 0) (B 1 1) (M 0 1) (B 0 0) (M 1 1)
                (M 0 0) (B 1 0) (M 1 0) (M 0 1) (A 0 1) (M 1 1)
                (M 0 0) (A 1 1) (M 0 1) (M 1 0) (M 1 1)
            ])
        };
        ($sums:expr, 3, $rows:tt, $columns:tt) => {
            sums!($sums, 3, $rows, $columns, [
                (A 0 0) (B 0 2) (M 0 0) (A 1 0) (M 1 0) (B 1 2) (M 0 1) (B 0 1) (M 1 1)
                (M 0 0) (B 1 1) (M 1 0) (M 0 1) (A 0 1) (M 1 1)
                (M 0 0) (A 1 1) (M 0 1) (M 1 0) (B 0 0) (M 1 1)
                (M 0 0) (B 1 0) (M 1 0) (M 0 1) (A 0 2) (M 1 1)
                (M 0 0) (A 1 2) (M 0 1) (A 0 0) (M 1 0) (M 1 1)
                (M 0 0) (A 1 0) (M 0 1) (M 1 0) (M 1 1)
            ])
        };
    }

    /// The loop over runs and steps around one step's instructions.
    macro_rules! sums {
        ($sums:expr, $terms:tt, $rows:tt, $columns:tt, [$(($($step:tt)*))*]) => {{
            let t: &Sums<'_> = $sums;
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "3:",
                "mov {p}, [{offsets}]",
                "add {offsets}, 8",
                "mov {q}, [{t} + {a} + 8]",
                "add {q}, {p}",
                "add {p}, [{t} + {a}]",
                "mov {n}, [{t} + {steps}]",
                "4:",
                $(instruction!($rows $columns $($step)*),)*
                concat!("add {p}, 64*", $terms),
                concat!("add {q}, 64*", $terms),
                concat!("add {b}, 1024*", $columns, "*", $terms),
                "mov {k}, [{t} + {next_lines}]",
                "test {k}, {k}",
                "jz 6f",
                "5:",
                "prefetcht1 [{next}]",
                "add {next}, 64",
                "dec {k}",
                "jnz 5b",
                "6:",
                "dec {n}",
                "jnz 4b",
                "dec {runs}",
                "jnz 3b",
                "mov {p}, [{t} + {c}]",
                instruction!($rows $columns S 0 0),
                instruction!($rows $columns S 0 1),
                instruction!($rows $columns S 1 0),
                instruction!($rows $columns S 1 1),
                t = in(reg) t,
                a = const offset_of!(Sums<'static>, a),
                steps = const offset_of!(Sums<'static>, steps),
                c = const offset_of!(Sums<'static>, c),
                next_lines = const offset_of!(Sums<'static>, next_lines),
                n = out(reg) _,
                offsets = inout(reg) t.offsets.as_ptr() => _,
                runs = inout(reg) t.offsets.len() => _,
                p = out(reg) _,
                q = out(reg) _,
                k = out(reg) _,
                s = in(reg) t.stride,
                b = inout(reg) t.b => _,
                next = inout(reg) t.next => _,
                line = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        }};
    }

    impl Tiles {
        /// Multiplies tiles that hold nothing of interest, 4 * `n` times: to measure the peak.
        pub(crate) fn spin(&self, n: usize) {
            assert!(n > 0);
            // SAFETY: tiles are configured, and no memory is touched.
            unsafe {
                asm!(
                    "tilezero tmm4",
                    "tilezero tmm5",
                    "2:",
                    "tdpbf16ps tmm0, tmm4, tmm5",
                    "tdpbf16ps tmm1, tmm4, tmm5",
                    "tdpbf16ps tmm2, tmm4, tmm5",
                    "tdpbf16ps tmm3, tmm4, tmm5",
                    "dec {n}",
                    "jnz 2b",
                    n = inout(reg) n => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _,
                    options(nostack, nomem),
                );
            }
        }

        /// Computes the tiles of C of `rows` tiles of rows and `columns` of columns. With several
        /// `terms`, a number is the sum of as many bf16: for each step, A's rows have a tile of
        /// the largest terms, then one of the next. Of two, the product of the smaller ones is
        /// left out; of three, those whose places add up to more than the third's.
        ///
        /// # Safety
        /// All that `t` describes exists: SIDE rows of A from every offset on, whole tiles of B
        /// and of C; there is a run and a step.
        #[inline(always)]
        pub(crate) unsafe fn multiply(
            &self,
            terms: usize,
            rows: usize,
            columns: usize,
            t: &Sums<'_>,
        ) {
            debug_assert!(!t.offsets.is_empty() && t.steps > 0);
            // SAFETY: the caller's contract.
            unsafe {
                match (terms, rows, columns) {
                    (1, 1, 1) => step!(t, 1, 1, 1),
                    (1, 1, 2) => step!(t, 1, 1, 2),
                    (1, 2, 1) => step!(t, 1, 2, 1),
                    (1, 2, 2) => step!(t, 1, 2, 2),
                    (2, 1, 1) => step!(t, 2, 1, 1),
                    (2, 1, 2) => step!(t, 2, 1, 2),
                    (2, 2, 1) => step!(t, 2, 2, 1),
                    (2, 2, 2) => step!(t, 2, 2, 2),
                    (3, 1, 1) => step!(t, 3, 1, 1),
                    (3, 1, 2) => step!(t, 3, 1, 2),
                    (3, 2, 1) => step!(t, 3, 2, 1),
                    (3, 2, 2) => step!(t, 3, 2, 2),
                    _ => {
                        unreachable!("one to three terms, one or two tiles of rows and of columns")
                    }
                }
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
impl Tiles {
    pub(crate) fn configure() -> Tiles {
        panic!("AMX is not available on this architecture")
    }

    pub(crate) fn spin(&self, _: usize) {
        unreachable!("there are no tiles")
    }

    /// # Safety
    /// Never called: there are no `Tiles`.
    pub(crate) unsafe fn multiply(&self, _: usize, _: usize, _: usize, _: &Sums<'_>) {
        unreachable!("there are no tiles")
    }
}
