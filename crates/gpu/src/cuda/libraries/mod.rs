//! NVIDIA's libraries, where they are: cuBLASLt for products, cuDNN for convolutions. What an operator's
//! kernel computes in standard terms ([`Standard`]) is measured with them and with our own kernel when
//! a program is loaded, on the device, and the faster one stays. Libraries are loaded when they are
//! asked for; one that is missing is no error.

mod choices;
mod cublaslt;
mod cudnn;
mod measure;

use std::{
    collections::HashMap,
    env,
    ffi::{CStr, OsString, c_int},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use cudarc::driver::{DriverError, sys::CUresult, sys::CUstream};
use libloading::Library;
use parking_lot::Mutex;
use sparoa_core::ops::{Computation, MatrixUnits, Standard};

pub(crate) use measure::{Scratch, Sizes};

use super::{
    driver::{Address, Launch, Stream, Turn},
    storage::Half,
};
use choices::Choices;
use cublaslt::{CublasLt, Matmul};
use cudnn::{Cudnn, Plan};

/// Switches the libraries off, or names their folders.
const VARIABLE: &str = "SPAROA_CUDA_LIBRARIES";

/// Which of NVIDIA's libraries may compute products and convolutions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CudaLibraries {
    /// Those that the loader or the CUDA toolkit's usual folders have.
    #[default]
    Installed,
    /// Those in these folders.
    In(Vec<PathBuf>),
    /// None: every kernel is our own.
    Off,
}

impl CudaLibraries {
    /// What the environment variable `SPAROA_CUDA_LIBRARIES` asks for: `0` none; folders, as in a
    /// search path; unset or empty, what is installed.
    pub fn from_env() -> CudaLibraries {
        CudaLibraries::parse(env::var_os(VARIABLE).unwrap_or_default())
    }

    fn parse(text: OsString) -> CudaLibraries {
        match text.to_str() {
            Some("") => CudaLibraries::Installed,
            Some("0" | "off") => CudaLibraries::Off,
            _ => CudaLibraries::In(env::split_paths(&text).collect()),
        }
    }

    /// Files of these names, where they may be.
    fn candidates(&self, names: &[&str]) -> Vec<PathBuf> {
        let inside = |dir: &Path| names.iter().map(|name| dir.join(name)).collect::<Vec<_>>();
        match self {
            CudaLibraries::Off => Vec::new(),
            CudaLibraries::In(folders) => folders.iter().flat_map(|dir| inside(dir)).collect(),
            CudaLibraries::Installed => {
                let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
                let homes = homes.map(PathBuf::from).chain([PathBuf::from("/usr/local/cuda")]);
                let places = ["lib64", "lib", "bin"];
                let installed =
                    homes.flat_map(|home| places.map(|place| inside(&home.join(place)))).flatten();
                names.iter().map(PathBuf::from).chain(installed).collect()
            }
        }
    }
}

/// A library's function.
///
/// # Safety
/// `T` is the type of the function of this name; it is used only while the library is loaded.
unsafe fn function<T: Copy>(library: &Library, name: &CStr) -> Option<T> {
    // SAFETY: the caller's word.
    unsafe { library.get::<T>(name.to_bytes_with_nul()) }.ok().map(|symbol| *symbol)
}

/// The library in `file`, its version and that of the CUDA that it is for, which functions of these
/// names say; `None` if it is none.
fn open(file: &Path, [version, cuda]: [&CStr; 2]) -> Option<(Library, usize, usize)> {
    type Version = unsafe extern "C" fn() -> usize;
    // SAFETY: loading runs the library's initialisers; it is NVIDIA's by its name, from the loader's
    // path, the toolkit's folder, or where the user says.
    let library = unsafe { Library::new(file) }.ok()?;
    // SAFETY: the types are those of the libraries' headers; both are called while the library is
    // loaded.
    let (version, cuda) = unsafe {
        (function::<Version>(&library, version)?(), function::<Version>(&library, cuda)?())
    };
    Some((library, version, cuda))
}

/// A library did not queue what was asked of it.
#[derive(Debug)]
struct Refused {
    library: &'static str,
    status: c_int,
}

/// A library that was found: opened, and with a handle when something was first asked of it.
struct Found<T> {
    library: Mutex<Option<Library>>,
    version: usize,
    handle: OnceLock<Option<Arc<T>>>,
}

impl<T> Found<T> {
    /// The first one in `files` for the driver's version of CUDA or an older one.
    fn open(files: Vec<PathBuf>, driver: i32, versions: [&CStr; 2]) -> Option<Found<T>> {
        let driver = usize::try_from(driver).unwrap_or(0);
        let found = files.iter().find_map(|file| {
            let (library, version, cuda) = open(file, versions)?;
            tracing::debug!(file = %file.display(), version, cuda, "a CUDA library");
            (cuda / 1000 <= driver).then_some((library, version))
        });
        let (library, version) = found?;
        Some(Found { library: Mutex::new(Some(library)), version, handle: OnceLock::new() })
    }

    fn handle(&self, new: fn(Library) -> Option<T>) -> Option<Arc<T>> {
        let make = || self.library.lock().take().and_then(new).map(Arc::new);
        self.handle.get_or_init(make).clone()
    }
}

/// The libraries of a device, and what was measured of them.
pub(crate) struct Libraries {
    cublaslt: Option<Found<CublasLt>>,
    cudnn: Option<Found<Cudnn>>,
    /// How operands may be rounded.
    units: Option<MatrixUnits>,
    /// Multiprocessors, where they are a share of the device's.
    share: Option<u32>,
    choices: Choices,
    /// Ways that were chosen and are made, by their keys.
    ready: Mutex<HashMap<String, Way>>,
}

impl Libraries {
    /// Finds libraries for a driver of CUDA `driver`. Choices are kept in `cache_dir`, for a device of
    /// this `name` and share; `fresh`: those that were made before are not read.
    pub(crate) fn open(
        wanted: &CudaLibraries,
        (driver, units): (i32, Option<MatrixUnits>),
        (name, share): (&str, Option<u32>),
        (cache_dir, fresh): (Option<&Path>, bool),
    ) -> Libraries {
        let cublaslt = Found::open(wanted.candidates(cublaslt::NAMES), driver, cublaslt::VERSIONS);
        let cudnn = Found::open(wanted.candidates(cudnn::NAMES), driver, cudnn::VERSIONS);
        let mut libraries = Libraries {
            cublaslt,
            cudnn,
            units,
            share,
            choices: Choices::default(),
            ready: Mutex::default(),
        };
        let names = libraries.names().join(", ");
        libraries.choices = Choices::new(cache_dir, &format!("{name}, {share:?}, {names}"), fresh);
        libraries
    }

    /// The libraries that there are, with their versions.
    pub(crate) fn names(&self) -> Vec<String> {
        let name = |name: &str, version: usize, major: usize| {
            format!("{name} {}.{}.{}", version / major, version % major / 100, version % 100)
        };
        let cublaslt = self.cublaslt.as_ref().map(|l| name("cuBLASLt", l.version, 10_000));
        let cudnn = self.cudnn.as_ref().map(|l| name("cuDNN", l.version, 10_000));
        cublaslt.into_iter().chain(cudnn).collect()
    }

    fn tf32(&self) -> bool {
        self.units == Some(MatrixUnits::Tf32)
    }

    /// What operands are stored as, in 16 bits or not.
    fn stored(&self, half: bool) -> Option<Half> {
        Half::of(self.units).filter(|_| half)
    }

    /// The ways of a library to compute it, most promising first; `None` where there is none. The
    /// device's context is the calling thread's.
    fn ways(&self, standard: &Standard) -> Option<Ways> {
        let Standard { half_x, half_y, relu, .. } = *standard;
        let (bias, residual) = (standard.bias.is_some(), standard.residual.is_some());
        match standard.computes {
            Computation::Product { sizes, columns } => {
                let lt = self.cublaslt.as_ref()?.handle(CublasLt::new)?;
                let (x, y) = (self.stored(half_x), self.stored(half_y));
                let (tf32, share) = (self.tf32(), self.share);
                let product =
                    cublaslt::Product { sizes, columns, x, y, tf32, bias, residual, relu, share };
                Matmul::new(&lt, &product).map(|matmul| Ways::Product(Arc::new(matmul)))
            }
            Computation::Convolution { images, channels } => {
                let dnn = self.cudnn.as_ref()?.handle(Cudnn::new)?;
                let (half, tf32) = (self.stored(half_x), self.tf32());
                let convolution =
                    cudnn::Convolution { images, channels, half, tf32, bias, residual, relu };
                let graph = || cudnn::Graph::new(&dnn, &convolution);
                if half_x != half_y { None } else { graph().map(Ways::Convolution) }
            }
        }
    }

    /// Whether a choice was made before, by this process or another.
    pub(crate) fn known(&self, standard: &Standard, own: &str) -> Known {
        let key = key(standard, own);
        match self.choices.get(&key) {
            None => Known::Unknown,
            Some(None) => Known::Own,
            Some(Some(way)) => {
                let mut ready = self.ready.lock();
                if let Some(way) = ready.get(&key) {
                    return Known::Library(way.clone());
                }
                // A way that is gone is none.
                let Some(way) = self.ways(standard).and_then(|ways| ways.way(way)) else {
                    return Known::Own;
                };
                ready.insert(key, way.clone());
                Known::Library(way)
            }
        }
    }

    /// Writes what was chosen since it was last written.
    pub(crate) fn save(&self) {
        self.choices.save();
    }
}

/// What tells a computation apart: what it is, and our own kernels' texts.
fn key(standard: &Standard, own: &str) -> String {
    let Standard { computes, half_x, half_y, relu, bias, residual, finish, .. } = standard;
    format!(
        "{computes:?} {half_x} {half_y} {relu} {} {} {} {:032x}",
        bias.is_some(),
        residual.is_some(),
        finish.is_some(),
        xxhash_rust::xxh3::xxh3_128(own.as_bytes())
    )
}

/// What is known of a computation.
pub(crate) enum Known {
    /// Nothing: it is to be measured.
    Unknown,
    /// Our own kernel is the faster one, or the only one.
    Own,
    /// This is faster.
    Library(Way),
}

/// The ways of one library.
enum Ways {
    Product(Arc<Matmul>),
    Convolution(cudnn::Graph),
}

impl Ways {
    fn count(&self) -> usize {
        match self {
            Ways::Product(matmul) => matmul.count(),
            Ways::Convolution(graph) => graph.count(),
        }
    }

    fn way(&self, i: usize) -> Option<Way> {
        match self {
            Ways::Product(matmul) => {
                (i < matmul.count()).then(|| Way(Of::Product(matmul.clone(), i)))
            }
            Ways::Convolution(graph) if i < graph.count() => {
                graph.plan(i).map(|plan| Way(Of::Convolution(Arc::new(plan))))
            }
            Ways::Convolution(_) => None,
        }
    }
}

/// One way to compute something with a library.
#[derive(Clone)]
pub(crate) struct Way(Of);

#[derive(Clone)]
enum Of {
    /// An algorithm by its number.
    Product(Arc<Matmul>, usize),
    Convolution(Arc<Plan>),
}

/// Where a call's operands are; those that there are none of are 0.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Operands {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) residual: Address,
    pub(crate) y: Address,
    pub(crate) workspace: Address,
}

impl Way {
    /// Bytes of workspace.
    pub(crate) fn workspace(&self) -> usize {
        match &self.0 {
            Of::Product(matmul, i) => matmul.workspace(*i),
            Of::Convolution(plan) => plan.workspace(),
        }
    }

    /// Which library it is of.
    pub(crate) fn library(&self) -> &'static str {
        match &self.0 {
            Of::Product(..) => "cuBLASLt",
            Of::Convolution(_) => "cuDNN",
        }
    }

    /// # Safety
    /// As [`Call::queue`].
    unsafe fn queue(&self, operands: &Operands, stream: CUstream) -> Result<(), DriverError> {
        // SAFETY: the caller's word.
        let queued = unsafe {
            match &self.0 {
                Of::Product(matmul, i) => matmul.queue(*i, operands, stream),
                Of::Convolution(plan) => plan.queue(operands, stream),
            }
        };
        queued.map_err(|Refused { library, status }| {
            tracing::warn!(library, status, "a library refused a call; {VARIABLE}=0 does without");
            DriverError(CUresult::CUDA_ERROR_NOT_SUPPORTED)
        })
    }
}

/// A library's call with its operands, and our kernel that finishes what it leaves.
pub(crate) struct Call {
    pub(crate) way: Way,
    pub(crate) operands: Operands,
    pub(crate) finish: Option<Launch>,
}

impl Call {
    /// Queues it.
    ///
    /// # Safety
    /// The operands are those that the way was described with, alive until the call is done; the finish's
    /// as [`Stream::launch`] has it.
    pub(crate) unsafe fn queue(&self, stream: &Stream, turn: Turn) -> Result<(), DriverError> {
        // SAFETY: the caller's word.
        unsafe {
            self.way.queue(&self.operands, stream.raw())?;
            self.finish.iter().try_for_each(|finish| stream.launch(finish, turn))
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod bounds;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_switches_off_or_names_folders() {
        let parse = |text: &str| CudaLibraries::parse(text.into());
        assert_eq!(parse(""), CudaLibraries::Installed);
        assert_eq!((parse("0"), parse("off")), (CudaLibraries::Off, CudaLibraries::Off));
        let folders = env::join_paths(["/a", "/b c"]).unwrap();
        let parsed = CudaLibraries::parse(folders);
        assert_eq!(parsed, CudaLibraries::In(vec!["/a".into(), "/b c".into()]));
        let files = parsed.candidates(&["x.so.2", "x.so"]);
        let expected = [["/a", "x.so.2"], ["/a", "x.so"], ["/b c", "x.so.2"], ["/b c", "x.so"]];
        assert_eq!(files, expected.map(|parts| parts.iter().collect::<PathBuf>()));
        assert!(CudaLibraries::Off.candidates(cudnn::NAMES).is_empty());
        assert!(CudaLibraries::Installed.candidates(cudnn::NAMES).len() > cudnn::NAMES.len());
    }

    #[test]
    fn what_is_no_library_is_none() {
        let dir = tempfile::tempdir().unwrap();
        for name in cublaslt::NAMES.iter().chain(cudnn::NAMES) {
            std::fs::write(dir.path().join(name), b"no library").unwrap();
        }
        for wanted in [CudaLibraries::Off, CudaLibraries::In(vec![dir.path().to_owned()])] {
            let libraries = Libraries::open(&wanted, (13, None), ("Orin", None), (None, false));
            assert!(libraries.names().is_empty());
        }
    }
}
