//! Compiled kernels: one per distinct WGSL text, set of overrides and of buffers of 16-bit numbers, kept for the backend's life
//! and, as the compiler's output, on disk.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use cudarc::driver::DriverError;
use parking_lot::Mutex;
use sparoa_core::{backend::BackendError, ops::Dispatch};

use super::{
    driver::{Context, Function},
    nvrtc::Nvrtc,
    storage::Half,
    translate::{self, ENTRY, Kernel},
};
use crate::cache_file;

/// First bytes of a cache file; the number is the format's.
const MAGIC: &[u8; 16] = b"sparoa-cubin---1";

/// Kernels of one device.
pub(crate) struct Kernels {
    nvrtc: Nvrtc,
    compute: (i32, i32),
    /// What numbers of 16 bits are.
    half: Half,
    cache_dir: Option<PathBuf>,
    loaded: Mutex<HashMap<Key, Arc<Loaded>>>,
}

/// A kernel on the device.
pub(crate) struct Loaded {
    pub(crate) function: Arc<Function>,
    pub(crate) kernel: Kernel,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    source: String,
    overrides: Vec<(&'static str, u64)>,
    halves: u8,
}

impl Key {
    fn new(dispatch: &Dispatch, halves: u8) -> Key {
        Key {
            source: dispatch.source.to_string(),
            overrides: dispatch.overrides.iter().map(|&(n, v)| (n, v.to_bits())).collect(),
            halves,
        }
    }
}

impl Kernels {
    pub(crate) fn new(
        nvrtc: Nvrtc,
        compute: (i32, i32),
        half: Half,
        cache_dir: Option<PathBuf>,
    ) -> Kernels {
        Kernels { nvrtc, compute, half, cache_dir, loaded: Mutex::default() }
    }

    /// Compiles what `dispatches`, each with its buffers of 16-bit numbers, need and is not there, on every
    /// core: the compiler takes some tenths of a second for a kernel.
    pub(crate) fn compile<'a>(
        &self,
        context: &Arc<Context>,
        dispatches: impl Iterator<Item = (&'a Dispatch, u8)>,
    ) -> Result<(), BackendError> {
        let mut missing = Vec::new();
        let mut seen = HashSet::new();
        for (dispatch, halves) in dispatches {
            let key = Key::new(dispatch, halves);
            if !self.loaded.lock().contains_key(&key) && seen.insert(key.clone()) {
                missing.push((key, dispatch));
            }
        }
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        thread::scope(|scope| {
            for _ in 0..cores.min(missing.len()) {
                scope.spawn(|| {
                    while let Some((key, dispatch)) =
                        missing.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let built = self.build(dispatch, key.halves);
                        done.lock().push((key.clone(), dispatch.label, built));
                    }
                });
            }
        });
        for (key, label, built) in done.into_inner() {
            let refuse = |detail: String| BackendError::Kernel { task: label.to_owned(), detail };
            let (kernel, cubin) = built.map_err(refuse)?;
            let load = |e: DriverError| refuse(format!("{:?} for a compiled kernel", e.0));
            let function =
                Function::load(context, &cubin, ENTRY, kernel.shared_bytes).map_err(load)?;
            let loaded = Arc::new(Loaded { function: Arc::new(function), kernel });
            self.loaded.lock().insert(key, loaded);
        }
        Ok(())
    }

    /// The kernel of a dispatch for which [`Kernels::compile`] was called.
    pub(crate) fn get(&self, dispatch: &Dispatch, halves: u8) -> Option<Arc<Loaded>> {
        self.loaded.lock().get(&Key::new(dispatch, halves)).cloned()
    }

    /// Translates and compiles, or takes the compiled form from disk.
    fn build(&self, dispatch: &Dispatch, halves: u8) -> Result<(Kernel, Vec<u8>), String> {
        let (source, overrides) = (&dispatch.source, &dispatch.overrides);
        let kernel = translate::translate(source, overrides, halves, self.half)
            .map_err(|e| e.to_string())?;
        let file = self.cache_dir.as_ref().map(|dir| dir.join(self.file_name(&kernel)));
        if let Some(cubin) = file.as_deref().and_then(|file| cache_file::read(file, MAGIC)) {
            return Ok((kernel, cubin));
        }
        let cubin = self.nvrtc.compile(&kernel.source, self.compute)?;
        if let Some(file) = file
            && let Err(error) = cache_file::write(&file, MAGIC, &cubin)
        {
            tracing::warn!(file = %file.display(), %error, "a compiled kernel was not written");
        }
        Ok((kernel, cubin))
    }

    /// Differs wherever the compiler's output may.
    fn file_name(&self, kernel: &Kernel) -> String {
        let ((major, minor), version) = (self.compute, self.nvrtc.version());
        let hash = xxhash_rust::xxh3::xxh3_128(kernel.source.as_bytes());
        format!("cuda-{}.{}-sm{major}{minor}-{hash:032x}.bin", version.0, version.1)
    }
}
