//! cuBLASLt, NVIDIA's matrix products. The only unsafe code that uses it is here.

use std::{
    ffi::{CStr, c_int},
    ptr,
    sync::Arc,
};

use cudarc::driver::sys::CUstream;
use libloading::Library;
use parking_lot::Mutex;

use super::{Half, Operands, Refused, function};

/// File names, newest first.
#[cfg(windows)]
pub(super) const NAMES: &[&str] = &["cublasLt64_13.dll", "cublasLt64_12.dll"];
#[cfg(not(windows))]
pub(super) const NAMES: &[&str] = &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];

/// Functions that say its version and that of its CUDA.
pub(super) const VERSIONS: [&CStr; 2] = [c"cublasLtGetVersion", c"cublasLtGetCudartVersion"];

/// Bytes of workspace that an algorithm may take.
static MAX_WORKSPACE: usize = 32 << 20;
/// Algorithms to ask for.
const ALGORITHMS: usize = 6;
/// What operands begin at a multiple of, in bytes.
static ALIGNMENT: u32 = 16;

type Raw = *mut std::ffi::c_void;
type Const = *const std::ffi::c_void;
type Status = c_int;

// Of cublasLt.h and library_types.h, the same in versions 11 to 13.
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const COMPUTE_32F: c_int = 68;
const COMPUTE_32F_FAST_TF32: c_int = 77;
const TRANSPOSED: c_int = 1;
const DESC_TRANSA: c_int = 3;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
const DESC_SM_COUNT_TARGET: c_int = 15;
const EPILOGUE_DEFAULT: c_int = 1;
const EPILOGUE_RELU: c_int = 2;
const EPILOGUE_BIAS: c_int = 4;
const EPILOGUE_RELU_BIAS: c_int = 6;
const PREF_MAX_WORKSPACE: c_int = 1;
const PREF_REDUCTION_SCHEMES: c_int = 3;
const PREF_ALIGNMENTS: [c_int; 4] = [5, 6, 7, 8];
/// Sums of a product that is cut into parts are f32 and added in a fixed order.
static REDUCTION_IN_F32: u32 = 2;

/// What the heuristics answer: `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

type Create = unsafe extern "C" fn(*mut Raw) -> Status;
type Destroy = unsafe extern "C" fn(Raw) -> Status;
type Set = unsafe extern "C" fn(Raw, c_int, Const, usize) -> Status;

/// The loaded library with a handle.
pub(super) struct CublasLt {
    handle: Raw,
    destroy: Destroy,
    desc_create: unsafe extern "C" fn(*mut Raw, c_int, c_int) -> Status,
    desc_set: Set,
    desc_destroy: Destroy,
    layout_create: unsafe extern "C" fn(*mut Raw, c_int, u64, u64, i64) -> Status,
    layout_destroy: Destroy,
    pref_create: Create,
    pref_set: Set,
    pref_destroy: Destroy,
    heuristic: unsafe extern "C" fn(
        Raw,
        Raw,
        Raw,
        Raw,
        Raw,
        Raw,
        Raw,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> Status,
    matmul: unsafe extern "C" fn(
        Raw,
        Raw,
        Const,
        Const,
        Raw,
        Const,
        Raw,
        Const,
        Const,
        Raw,
        Raw,
        Raw,
        *const [u64; 8],
        Raw,
        usize,
        CUstream,
    ) -> Status,
    /// Keeps the functions alive.
    _library: Library,
}

// SAFETY: the handle may be used by several threads at once, says the library.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// Makes a handle in the current context. `None` where functions are missing or it fails.
    pub(super) fn new(library: Library) -> Option<CublasLt> {
        // SAFETY: the types are those of cublasLt.h, the same in versions 11 to 13; every function is
        // used only while `_library` is loaded.
        let mut lt = unsafe {
            CublasLt {
                handle: ptr::null_mut(),
                destroy: function(&library, c"cublasLtDestroy")?,
                desc_create: function(&library, c"cublasLtMatmulDescCreate")?,
                desc_set: function(&library, c"cublasLtMatmulDescSetAttribute")?,
                desc_destroy: function(&library, c"cublasLtMatmulDescDestroy")?,
                layout_create: function(&library, c"cublasLtMatrixLayoutCreate")?,
                layout_destroy: function(&library, c"cublasLtMatrixLayoutDestroy")?,
                pref_create: function(&library, c"cublasLtMatmulPreferenceCreate")?,
                pref_set: function(&library, c"cublasLtMatmulPreferenceSetAttribute")?,
                pref_destroy: function(&library, c"cublasLtMatmulPreferenceDestroy")?,
                heuristic: function(&library, c"cublasLtMatmulAlgoGetHeuristic")?,
                matmul: function(&library, c"cublasLtMatmul")?,
                _library: library,
            }
        };
        // SAFETY: as above; it writes the handle.
        let made = unsafe {
            let create: Create = function(&lt._library, c"cublasLtCreate")?;
            create(&mut lt.handle)
        };
        (made == 0).then_some(lt)
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created in `new`, destroyed once; matmuls keep the library.
            unsafe { (self.destroy)(self.handle) };
        }
    }
}

/// What a product is, apart from its operands.
pub(super) struct Product {
    /// Rows, inner elements, columns.
    pub(super) sizes: [usize; 3],
    /// The right side lies column after column.
    pub(super) columns: bool,
    /// What both sides and the result are stored as, if not as f32.
    pub(super) x: Option<Half>,
    pub(super) y: Option<Half>,
    /// Operands may be rounded to TF32.
    pub(super) tf32: bool,
    pub(super) bias: bool,
    pub(super) residual: bool,
    pub(super) relu: bool,
    /// Multiprocessors to plan for, where they are not all of the device's.
    pub(super) share: Option<u32>,
}

/// A described product and the algorithms that there are for it, most promising first.
pub(super) struct Matmul {
    lt: Arc<CublasLt>,
    /// Locked while its bias's address is set and used.
    desc: Mutex<Desc>,
    layouts: [Raw; 3],
    algorithms: Vec<Heuristic>,
    residual: bool,
    bias: bool,
}

struct Desc(Raw);

// SAFETY: descriptors are plain memory of the library, written under the lock alone.
unsafe impl Send for Matmul {}
// SAFETY: as above.
unsafe impl Sync for Matmul {}

impl Matmul {
    /// Asks the library for algorithms; `None` where it has none.
    pub(super) fn new(lt: &Arc<CublasLt>, product: &Product) -> Option<Matmul> {
        let float = |half: Option<Half>| match half {
            Some(Half::F16) => R_16F,
            Some(Half::Bf16) => R_16BF,
            None => R_32F,
        };
        let compute = if product.tf32 { COMPUTE_32F_FAST_TF32 } else { COMPUTE_32F };
        let mut matmul = Matmul {
            lt: lt.clone(),
            desc: Mutex::new(Desc(ptr::null_mut())),
            layouts: [ptr::null_mut(); 3],
            algorithms: Vec::new(),
            residual: product.residual,
            bias: product.bias,
        };
        let epilogue = match (product.relu, product.bias) {
            (false, false) => EPILOGUE_DEFAULT,
            (true, false) => EPILOGUE_RELU,
            (false, true) => EPILOGUE_BIAS,
            (true, true) => EPILOGUE_RELU_BIAS,
        };
        // The library's matrices lie column after column: it computes the transposed product.
        let [m, k, n] = product.sizes.map(|size| size as u64);
        let weight = if product.columns { (k, n) } else { (n, k) };
        let shapes =
            [(float(product.x), weight), (float(product.x), (k, m)), (float(product.y), (n, m))];
        let desc = matmul.desc.get_mut();
        // SAFETY: each call writes one handle or reads a value of the size that it is told; handles
        // are destroyed when `matmul` is dropped.
        unsafe {
            if (lt.desc_create)(&mut desc.0, compute, R_32F) != 0 {
                return None;
            }
            let set = |name: c_int, value: c_int| {
                (lt.desc_set)(desc.0, name, (&raw const value).cast(), size_of::<c_int>()) == 0
            };
            let mut fits = set(DESC_EPILOGUE, epilogue);
            fits &= !product.columns || set(DESC_TRANSA, TRANSPOSED);
            if let Some(share) = product.share {
                fits &= set(DESC_SM_COUNT_TARGET, share.cast_signed());
            }
            for (layout, (dtype, (rows, columns))) in matmul.layouts.iter_mut().zip(shapes) {
                let line = i64::try_from(rows).ok()?;
                fits &= (lt.layout_create)(layout, dtype, rows, columns, line) == 0;
            }
            if !fits {
                return None;
            }
        }
        matmul.algorithms = matmul.ask()?;
        (!matmul.algorithms.is_empty()).then_some(matmul)
    }

    fn ask(&self) -> Option<Vec<Heuristic>> {
        let (lt, desc) = (&self.lt, self.desc.lock());
        let [a, b, d] = self.layouts;
        let mut preference = ptr::null_mut();
        let none =
            Heuristic { algorithm: [0; 8], workspace: 0, state: 1, waves: 0.0, reserved: [0; 4] };
        let (mut found, mut count) = ([none; ALGORITHMS], 0);
        // SAFETY: as in `new`; there is room for as many results as are asked for. A bias's address
        // only tells of its alignment here.
        unsafe {
            if (lt.pref_create)(&mut preference) != 0 {
                return None;
            }
            let set = |name: c_int, value: Const, bytes: usize| {
                (lt.pref_set)(preference, name, value, bytes) == 0
            };
            let mut fits =
                set(PREF_MAX_WORKSPACE, (&raw const MAX_WORKSPACE).cast(), size_of::<usize>());
            fits &= set(PREF_REDUCTION_SCHEMES, (&raw const REDUCTION_IN_F32).cast(), 4);
            for name in PREF_ALIGNMENTS {
                fits &= set(name, (&raw const ALIGNMENT).cast(), 4);
            }
            let room = ALGORITHMS as c_int;
            fits &= (lt.heuristic)(
                lt.handle,
                desc.0,
                a,
                b,
                d,
                d,
                preference,
                room,
                found.as_mut_ptr(),
                &mut count,
            ) == 0;
            (lt.pref_destroy)(preference);
            if !fits {
                return None;
            }
        }
        let count = usize::try_from(count).unwrap_or(0).min(ALGORITHMS);
        let usable = |h: &Heuristic| h.state == 0 && h.workspace <= MAX_WORKSPACE;
        Some(found[..count].iter().copied().filter(usable).collect())
    }

    /// How many algorithms there are.
    pub(super) fn count(&self) -> usize {
        self.algorithms.len()
    }

    /// Bytes of workspace that algorithm `i` takes.
    pub(super) fn workspace(&self, i: usize) -> usize {
        self.algorithms[i].workspace
    }

    /// Queues the product with algorithm `i`.
    ///
    /// # Safety
    /// The operands have the sizes that the product was described with, the workspace those that
    /// [`Matmul::workspace`] says, all alive until the product is done.
    pub(super) unsafe fn queue(
        &self,
        i: usize,
        operands: &Operands,
        stream: CUstream,
    ) -> Result<(), Refused> {
        let (lt, desc) = (&self.lt, self.desc.lock());
        let [a, b, d] = self.layouts;
        let Heuristic { algorithm, workspace, .. } = &self.algorithms[i];
        let Operands { x, weight, bias, residual, y, .. } = *operands;
        let (one, beta) = (1f32, if self.residual { 1f32 } else { 0f32 });
        let added = if self.residual { residual } else { y };
        let pointer = |address: u64| address as usize as Raw;
        // SAFETY: the descriptors are alive, scalars are read during the call; the rest is the
        // caller's word.
        let status = unsafe {
            let mut status = 0;
            if self.bias {
                let bias = pointer(bias);
                let bytes = size_of::<Raw>();
                status = (lt.desc_set)(desc.0, DESC_BIAS_POINTER, (&raw const bias).cast(), bytes);
            }
            if status == 0 {
                status = (lt.matmul)(
                    lt.handle,
                    desc.0,
                    (&raw const one).cast(),
                    pointer(weight),
                    a,
                    pointer(x),
                    b,
                    (&raw const beta).cast(),
                    pointer(added),
                    d,
                    pointer(y),
                    d,
                    algorithm,
                    pointer(operands.workspace),
                    *workspace,
                    stream,
                );
            }
            status
        };
        if status == 0 { Ok(()) } else { Err(Refused { library: "cuBLASLt", status }) }
    }
}

impl Drop for Matmul {
    fn drop(&mut self) {
        let desc = self.desc.get_mut().0;
        // SAFETY: created in `new`, each destroyed once.
        unsafe {
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                (self.lt.layout_destroy)(layout);
            }
            if !desc.is_null() {
                (self.lt.desc_destroy)(desc);
            }
        }
    }
}
