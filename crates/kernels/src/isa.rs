//! Which instruction set the kernels use: detected once, capped by `SPAROA_ISA`.

use std::fmt;
use std::sync::OnceLock;

use crate::amx;

/// An instruction set the kernels are compiled for, from slowest to fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust, whatever the target's baseline makes of it.
    Scalar,
    /// x86-64 SSE4.1, 4 lanes.
    Sse,
    /// AArch64 NEON, 4 lanes.
    Neon,
    /// The same with dot products of bytes (DotProd).
    NeonDot,
    /// AVX2 with FMA, 8 lanes.
    Avx2,
    /// The same with VNNI (AVX-VNNI, or AVX-512's for vectors of this length): dot products of bytes.
    Avx2Vnni,
    /// AVX-512 (F, BW, DQ, VL), 16 lanes.
    Avx512,
    /// The same with VNNI: dot products of bytes.
    Avx512Vnni,
    /// The same with BF16, and AMX's products of tiles of bf16.
    Amx,
}

impl Isa {
    /// Every instruction set, from slowest to fastest.
    pub const ALL: [Isa; 9] = [
        Isa::Scalar,
        Isa::Sse,
        Isa::Neon,
        Isa::NeonDot,
        Isa::Avx2,
        Isa::Avx2Vnni,
        Isa::Avx512,
        Isa::Avx512Vnni,
        Isa::Amx,
    ];

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Sse => std::arch::is_x86_feature_detected!("sse4.1"),
            Isa::Neon => cfg!(target_arch = "aarch64"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(not(target_arch = "aarch64"))]
            Isa::NeonDot => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
            }
            Isa::Avx2Vnni => {
                Isa::Avx2.is_available() && (has_avx_vnni() || Isa::Avx512Vnni.is_available())
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && std::arch::is_x86_feature_detected!("avx512f")
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512dq")
                    && std::arch::is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => {
                Isa::Avx512.is_available() && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            Isa::Amx => Isa::Avx512Vnni.is_available() && has_bf16() && amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Sse | Isa::Avx2 | Isa::Avx512 | Isa::Avx512Vnni => false,
        }
    }

    /// The instruction sets this machine can run, from slowest to fastest.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The name `SPAROA_ISA` knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Sse => "sse",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
            Isa::Avx2 => "avx2",
            Isa::Avx2Vnni => "avx2vnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512vnni",
            Isa::Amx => "amx",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The fastest available instruction set that is not above `cap`.
fn capped(cap: Isa) -> Isa {
    Isa::available().filter(|&isa| isa <= cap).last().unwrap_or(Isa::Scalar)
}

fn parse(value: Option<&str>) -> Result<Isa, String> {
    let Some(value) = value else {
        return Ok(capped(Isa::Amx));
    };
    match Isa::ALL.into_iter().find(|isa| isa.name() == value) {
        Some(cap) => Ok(capped(cap)),
        None => Err(format!(
            "SPAROA_ISA={value}: unknown instruction set; use scalar, sse, neon, neondot, avx2, \
             avx2vnni, avx512, avx512vnni or amx"
        )),
    }
}

/// The instruction set to use: the machine's best, capped by `SPAROA_ISA`.
///
/// The variable is read once per process. A value that names no instruction set is an error; a
/// value above what the machine has is only a cap, hence no error.
pub fn from_env() -> Result<Isa, String> {
    static CHOICE: OnceLock<Result<Isa, String>> = OnceLock::new();
    CHOICE.get_or_init(|| parse(std::env::var("SPAROA_ISA").ok().as_deref())).clone()
}

/// [`from_env`], or the machine's best where `SPAROA_ISA` is invalid.
pub fn best() -> Isa {
    static BEST: OnceLock<Isa> = OnceLock::new();
    *BEST.get_or_init(|| from_env().unwrap_or_else(|_| capped(Isa::Amx)))
}

/// Whether products of bf16 pairs can be used: the machine has them (AVX-512 with BF16), and
/// `SPAROA_ISA` does not cap the instruction set below.
///
/// # Errors
/// Why not.
pub fn bf16() -> Result<(), &'static str> {
    if best() < Isa::Avx512 && Isa::Avx512.is_available() {
        return Err("SPAROA_ISA caps the instruction set below avx512");
    }
    if has_bf16() { Ok(()) } else { Err("this CPU has no AVX-512 BF16 instructions") }
}

/// Whether AMX can be used: the machine has it, the system lets this process use it, and
/// `SPAROA_ISA` does not cap the instruction set below.
///
/// # Errors
/// Why not.
pub fn amx() -> Result<(), &'static str> {
    if best() == Isa::Amx {
        Ok(())
    } else if Isa::Amx.is_available() {
        Err("SPAROA_ISA caps the instruction set below amx")
    } else {
        Err("this CPU has no AMX, or the system keeps it from this process")
    }
}

/// Whether the machine has AVX-VNNI, whatever the cap.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx_vnni() -> bool {
    std::arch::is_x86_feature_detected!("avxvnni")
}

/// Whether the machine has AVX-VNNI, whatever the cap.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn has_avx_vnni() -> bool {
    false
}

/// Whether the machine has AVX-512 with BF16, whatever the cap.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_bf16() -> bool {
    Isa::Avx512.is_available() && std::arch::is_x86_feature_detected!("avx512bf16")
}

/// Whether the machine has AVX-512 with BF16, whatever the cap.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn has_bf16() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caps_and_rejects() {
        assert_eq!(parse(Some("scalar")), Ok(Isa::Scalar));
        assert!(parse(None).unwrap().is_available());
        assert!(parse(Some("avx512")).unwrap().is_available());
        let error = parse(Some("mmx")).unwrap_err();
        assert!(error.contains("mmx") && error.contains("avx2"), "{error}");
    }
}
