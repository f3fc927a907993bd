//! NVRTC, NVIDIA's run-time compiler: a library of the CUDA toolkit that also comes alone. It is
//! loaded when CUDA is asked for; without it there is an error that says how to get it.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int},
    path::{Path, PathBuf},
    ptr,
};

use libloading::Library;
use sparoa_core::backend::BackendError;

/// Names the library's file, or the folder it is in.
const VARIABLE: &str = "SPAROA_NVRTC";
/// File names, newest first. The plain name is the toolkit's own choice.
#[cfg(windows)]
const NAMES: &[&str] = &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"];
#[cfg(not(windows))]
const NAMES: &[&str] = &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2"];
/// Where toolkits keep it below their own folder.
const PLACES: &[&str] = &["lib64", "lib", "bin"];

type Program = *mut std::ffi::c_void;
type Status = c_int;

/// The loaded library.
pub(crate) struct Nvrtc {
    version: (i32, i32),
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
    /// Keeps the functions alive.
    _library: Library,
}

impl Nvrtc {
    /// Loads the newest one whose code a driver of CUDA `max_major` can run.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] when there is none.
    pub(crate) fn load(max_major: i32) -> Result<Nvrtc, BackendError> {
        let mut newer = None;
        for file in candidates(env::var_os(VARIABLE).map(PathBuf::from)) {
            match Nvrtc::open(&file) {
                Some(nvrtc) if nvrtc.version.0 <= max_major => return Ok(nvrtc),
                Some(nvrtc) => newer = newer.or(Some((file, nvrtc.version))),
                None => {}
            }
        }
        let found = match newer {
            Some((file, (major, minor))) => format!(
                "{} is of CUDA {major}.{minor}, which the driver (CUDA {max_major}) cannot run",
                file.display()
            ),
            None => "CUDA's run-time compiler (libnvrtc) was not found".to_owned(),
        };
        Err(BackendError::Unavailable(format!(
            "{found}; install the CUDA toolkit of the driver's version, or `pip install \
             nvidia-cuda-nvrtc-cu{}`, and name the library's folder in {VARIABLE} if it is in no \
             usual place",
            max_major.clamp(11, 12)
        )))
    }

    fn open(file: &Path) -> Option<Nvrtc> {
        // SAFETY: loading runs the library's initialisers; it is NVIDIA's compiler by its name,
        // from the loader's path, the toolkit's folder, or where the user says.
        let library = unsafe { Library::new(file) }.ok()?;
        // SAFETY: the types are those of nvrtc.h, the same in every version since 11.1.
        unsafe fn function<T: Copy>(library: &Library, name: &CStr) -> Option<T> {
            // SAFETY: the caller names a function of type `T`.
            unsafe { library.get::<T>(name.to_bytes_with_nul()) }.ok().map(|symbol| *symbol)
        }
        // SAFETY: as above; every function is used only while `_library` is loaded.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status =
                function(&library, c"nvrtcVersion")?;
            let (mut major, mut minor) = (0, 0);
            if version(&mut major, &mut minor) != 0 {
                return None;
            }
            Some(Nvrtc {
                version: (major, minor),
                create: function(&library, c"nvrtcCreateProgram")?,
                compile: function(&library, c"nvrtcCompileProgram")?,
                log_size: function(&library, c"nvrtcGetProgramLogSize")?,
                log: function(&library, c"nvrtcGetProgramLog")?,
                cubin_size: function(&library, c"nvrtcGetCUBINSize")?,
                cubin: function(&library, c"nvrtcGetCUBIN")?,
                destroy: function(&library, c"nvrtcDestroyProgram")?,
                error: function(&library, c"nvrtcGetErrorString")?,
                _library: library,
            })
        }
    }

    /// Its CUDA version.
    pub(crate) fn version(&self) -> (i32, i32) {
        self.version
    }

    /// Whether it compiles Hopper's products of four warps for this compute capability.
    pub(crate) fn has_warp_groups(&self, compute: (i32, i32)) -> bool {
        compute == (9, 0) && self.version.0 >= 12
    }

    /// Compiles for compute capability `major.minor`, contracted but otherwise exact arithmetic:
    /// no approximate division or root, denormals kept.
    ///
    /// # Errors
    /// The compiler's words.
    pub(crate) fn compile(
        &self,
        source: &str,
        (major, minor): (i32, i32),
    ) -> Result<Vec<u8>, String> {
        // Instructions that this chip alone has are behind a name of their own.
        let own = if source.contains("wgmma") { "a" } else { "" };
        let source = CString::new(source).map_err(|e| e.to_string())?;
        let arch = CString::new(format!("--gpu-architecture=sm_{major}{minor}{own}"))
            .expect("numbers have no zero byte");
        // Most of the prelude is unused in a kernel, which is worth no warning.
        let options = [
            arch.as_ptr(),
            c"--fmad=true".as_ptr(),
            c"--std=c++17".as_ptr(),
            c"--disable-warnings".as_ptr(),
        ];
        let mut program: Program = ptr::null_mut();
        // SAFETY: `source` and the name live through the call, there are no headers.
        let status = unsafe {
            (self.create)(
                &mut program,
                source.as_ptr(),
                c"kernel.cu".as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            )
        };
        self.check(status)?;
        // SAFETY: `program` is valid until it is destroyed below; the options live as long.
        let status = unsafe { (self.compile)(program, options.len() as c_int, options.as_ptr()) };
        let result = match self.check(status) {
            Ok(()) => self.bytes(program, self.cubin_size, self.cubin),
            Err(error) => {
                let log = self.bytes(program, self.log_size, self.log).unwrap_or_default();
                Err(format!("{error}: {}", String::from_utf8_lossy(&log).trim_end_matches('\0')))
            }
        };
        // SAFETY: created above and not used again.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    /// One of the program's byte strings.
    fn bytes(
        &self,
        program: Program,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = 0;
        // SAFETY: `program` is valid and `bytes` is written.
        self.check(unsafe { size(program, &mut bytes) })?;
        let mut data = vec![0u8; bytes];
        // SAFETY: `data` has the size that the library asked for.
        self.check(unsafe { get(program, data.as_mut_ptr().cast()) })?;
        Ok(data)
    }

    fn check(&self, status: Status) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library returns a static string for every status.
        let text = unsafe { CStr::from_ptr((self.error)(status)) };
        Err(text.to_string_lossy().into_owned())
    }
}

/// Where to look: what the user names and nothing else; or the loader's path, then the toolkit.
fn candidates(named: Option<PathBuf>) -> Vec<PathBuf> {
    let inside = |dir: &Path| NAMES.iter().map(|name| dir.join(name)).collect::<Vec<_>>();
    if let Some(named) = named {
        return if named.is_dir() { inside(&named) } else { vec![named] };
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let homes = homes.chain([PathBuf::from("/usr/local/cuda")]);
    let installed = homes.flat_map(|home| {
        PLACES.iter().flat_map(|place| inside(&home.join(place))).collect::<Vec<_>>()
    });
    NAMES.iter().map(PathBuf::from).chain(installed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_place_is_the_only_one() {
        let file = PathBuf::from("/nonexistent/libnvrtc.so.12");
        assert_eq!(candidates(Some(file.clone())), [file]);
        let dir = tempfile::tempdir().unwrap();
        let found = candidates(Some(dir.path().to_owned()));
        assert!(found.len() == NAMES.len() && found.iter().all(|f| f.starts_with(dir.path())));
        assert!(candidates(None).len() > NAMES.len());
    }
}
