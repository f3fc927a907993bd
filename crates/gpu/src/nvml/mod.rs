//! NVIDIA's management library (NVML), which comes with the driver: finding the GPU there that the
//! adapter is. The library is loaded when asked for; without it nothing here is available.

mod energy;
mod sensors;

use nvml_wrapper::{Device, Nvml, error::NvmlError};

pub use energy::energy_sensors;

/// A GPU as NVML knows it.
#[derive(Debug)]
pub struct NvmlGpu {
    nvml: Nvml,
    index: u32,
}

/// Why NVML tells nothing of an adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmlUnavailable {
    /// The library or the driver beneath it is missing or broken.
    #[error("unavailable: NVML, part of NVIDIA's driver, cannot be used: {0}")]
    Library(NvmlError),
    /// The adapter is not among NVML's devices.
    #[error("unavailable: NVML knows no \"{adapter}\"; it has: {}", .found.join(", "))]
    NoSuchGpu {
        /// The adapter's name.
        adapter: String,
        /// The names NVML gives.
        found: Vec<String>,
    },
    /// Several devices are called like the adapter.
    #[error("unavailable: NVML knows {count} devices \"{adapter}\", and not which of them it is")]
    Ambiguous {
        /// The adapter's name.
        adapter: String,
        /// How many devices have it.
        count: usize,
    },
}

impl NvmlGpu {
    /// Finds the GPU with an adapter's name.
    ///
    /// # Errors
    /// When the library cannot be loaded or started, or has no GPU of that name, or several.
    pub fn open(adapter_name: &str) -> Result<NvmlGpu, NvmlUnavailable> {
        NvmlGpu::find(Nvml::init(), adapter_name)
    }

    fn find(nvml: Result<Nvml, NvmlError>, adapter: &str) -> Result<NvmlGpu, NvmlUnavailable> {
        let nvml = nvml.map_err(NvmlUnavailable::Library)?;
        let count = nvml.device_count().map_err(NvmlUnavailable::Library)?;
        // One that cannot be asked for its name is not ours to use either.
        let name = |index| Some((index, nvml.device_by_index(index).and_then(|d| d.name()).ok()?));
        let found: Vec<(u32, String)> = (0..count).filter_map(name).collect();
        let mut same = found.iter().filter(|(_, name)| same_gpu(name, adapter));
        let adapter = adapter.to_owned();
        match (same.next(), same.count()) {
            (Some(&(index, _)), 0) => Ok(NvmlGpu { nvml, index }),
            (Some(_), more) => Err(NvmlUnavailable::Ambiguous { adapter, count: more + 1 }),
            (None, _) => {
                let found = found.into_iter().map(|(_, name)| name).collect();
                Err(NvmlUnavailable::NoSuchGpu { adapter, found })
            }
        }
    }

    /// What a question to the device gives; `None` where the device does not tell.
    pub(crate) fn with_device<T>(
        &self,
        f: impl FnOnce(&Device<'_>) -> Result<T, NvmlError>,
    ) -> Option<T> {
        self.nvml.device_by_index(self.index).and_then(|device| f(&device)).ok()
    }
}

/// Whether NVML's and the adapter's name are of one GPU: they differ in the maker's name and, on
/// Jetson, the chip family's.
fn same_gpu(nvml: &str, adapter: &str) -> bool {
    let words = |name: &str| -> Vec<String> {
        let words = name.split_whitespace().map(str::to_lowercase);
        words.filter(|word| !["nvidia", "tegra"].contains(&word.as_str())).collect()
    };
    let nvml = words(nvml);
    !nvml.is_empty() && nvml == words(adapter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_missing_library_is_named() {
        let missing = OsStr::new("/nonexistent/libnvidia-ml.so.1");
        let nvml = Nvml::builder().lib_path(missing).init();
        let error = NvmlGpu::find(nvml, "NVIDIA H100").unwrap_err().to_string();
        assert!(
            error.starts_with("unavailable: ") && error.contains("libnvidia-ml.so.1"),
            "{error}"
        );
    }

    #[test]
    fn an_adapter_that_nvml_does_not_know_is_an_error_here() {
        match NvmlGpu::open("llvmpipe (LLVM 15.0.6, 256 bits)") {
            Err(e) => assert!(e.to_string().starts_with("unavailable: "), "{e}"),
            Ok(gpu) => panic!("{gpu:?} is no software rasteriser"),
        }
        let error = NvmlUnavailable::NoSuchGpu {
            adapter: "llvmpipe".to_owned(),
            found: vec!["NVIDIA T4".to_owned(), "NVIDIA H100".to_owned()],
        };
        let text = error.to_string();
        assert_eq!(text, "unavailable: NVML knows no \"llvmpipe\"; it has: NVIDIA T4, NVIDIA H100");
    }

    #[test]
    fn names_of_one_gpu() {
        assert!(same_gpu("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"));
        assert!(same_gpu("GeForce GTX 1080", "NVIDIA GeForce GTX 1080"));
        assert!(same_gpu("Orin (nvgpu)", "NVIDIA Tegra Orin (nvgpu)"));
        assert!(!same_gpu("NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 3080 Ti"));
        assert!(!same_gpu("", ""));
        assert!(!same_gpu("NVIDIA", "NVIDIA"));
    }
}
