//! The backend: an opened device with its compiler, kernels and resident weights.

use std::sync::{Arc, OnceLock};

use sparoa_core::{
    backend::{Accelerator, BackendError, Device, DeviceInfo, Program, ProgramSpec},
    ops::{GpuCaps, Halves, MatrixUnits, Op, Operands},
    tensor::Storage,
};

use super::{
    CudaOptions,
    driver::{self, Context, DeviceFacts, TensorMemory},
    kernels::Kernels,
    libraries::Libraries,
    load,
    nvrtc::Nvrtc,
    opened::{Shared, words},
    round_trip, share,
    storage::Half,
};
use crate::{GpuPrecision, Transfer, bind, copies::Direct, fault::Fault, residency::Residency};

/// A GPU opened through CUDA. Cheap to clone; clones share the context, kernels and weights.
#[derive(Clone)]
pub struct CudaBackend {
    pub(crate) shared: Arc<Shared>,
}

/// Where a GPU has memory of its own, its kernels write downloads of so many bytes at most to the host's
/// memory themselves, over the bus: a copy would begin some microseconds after them.
const SMALL: usize = 256 << 10;

/// Every CUDA device of this machine. Empty when there is no driver.
pub fn cuda_devices() -> Vec<DeviceInfo> {
    let plain = |facts: &DeviceFacts| describe(facts, None, GpuPrecision::Fp32);
    match driver::library_present() {
        true => driver::devices().unwrap_or_default().iter().map(plain).collect(),
        false => Vec::new(),
    }
}

impl CudaBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] when the driver, a device of the wanted name or the run-time
    /// compiler is missing; its text says which and what to install. [`BackendError::Precision`]
    /// when the device is too old for the precision.
    pub fn new(options: &CudaOptions) -> Result<CudaBackend, BackendError> {
        let unavailable = |text: String| BackendError::Unavailable(text);
        if !driver::library_present() {
            return Err(unavailable(
                "NVIDIA's driver (libcuda) was not found; install it (it is part of JetPack on a \
                 Jetson), or use another API (--gpu without cuda)"
                    .to_owned(),
            ));
        }
        let found = driver::devices()
            .map_err(|e| unavailable(format!("CUDA does not start: {}", words(e))))?;
        let ordinal = choose(&found, options.device.as_deref())?;
        let facts = &found[ordinal];
        check_precision(facts, options.precision)?;
        let nvrtc = Nvrtc::load(facts.driver.0)?;
        let wanted = share::check(facts, options.multiprocessors).map_err(unavailable)?;
        let context = Context::open(ordinal, facts, wanted)
            .map_err(|e| unavailable(format!("{} cannot be opened: {}", facts.name, words(e))))?;
        let share = context.share().map(|got| (got, wanted.unwrap_or(got)));
        let warp_groups = nvrtc.has_warp_groups(facts.compute);
        let direct = match options.transfer {
            Transfer::Auto if facts.integrated => OnceLock::new(),
            Transfer::Auto => OnceLock::from(Direct { uploads: false, downloads: SMALL }),
            Transfer::Staged => OnceLock::from(Direct::from(false)),
            Transfer::Direct => OnceLock::from(Direct::from(true)),
        };
        let mut caps = caps(facts, context.share(), warp_groups, options);
        let mut info = describe(facts, share, options.precision);
        let libraries = Libraries::open(
            &options.libraries,
            (facts.driver.0, caps.matrix_units),
            (&format!("{}, {}", info.name, info.driver), context.share()),
            (options.cache_dir.as_deref(), options.fresh),
        );
        let half = Half::of(caps.matrix_units).unwrap_or(Half::F16);
        let names = libraries.names();
        caps.libraries = !names.is_empty();
        for name in names {
            // What is measured with a library holds for that library only.
            info.driver.push_str(&format!(", {name}"));
        }
        Ok(CudaBackend {
            shared: Arc::new(Shared {
                kernels: Kernels::new(nvrtc, facts.compute, half, options.cache_dir.clone()),
                residency: Residency::default(),
                caps,
                libraries,
                info,
                context,
                direct,
                fault: Fault::new(&facts.name),
            }),
        })
    }

    /// What kernels may use of this device.
    pub fn caps(&self) -> &GpuCaps {
        &self.shared.caps
    }

    /// Which copies are direct where a program allows it.
    pub(crate) fn direct(&self) -> Direct {
        let faster = || round_trip::direct_is_faster(&self.shared).into();
        *self.shared.direct.get_or_init(faster)
    }
}

fn choose(found: &[DeviceFacts], wanted: Option<&str>) -> Result<usize, BackendError> {
    if found.is_empty() {
        return Err(BackendError::Unavailable("the driver finds no CUDA device".to_owned()));
    }
    let Some(wanted) = wanted else { return Ok(0) };
    let lower = wanted.to_lowercase();
    found.iter().position(|f| f.name.to_lowercase().contains(&lower)).ok_or_else(|| {
        let names: Vec<&str> = found.iter().map(|f| f.name.as_str()).collect();
        let names = names.join(", ");
        BackendError::Unavailable(format!(
            "no CUDA device is called \"{wanted}\"; there are: {names}"
        ))
    })
}

/// Refuses what the device's tensor cores do not compute: with f32 sums they do from Ampere on.
fn check_precision(facts: &DeviceFacts, precision: GpuPrecision) -> Result<(), BackendError> {
    let (major, minor) = facts.compute;
    if precision == GpuPrecision::Fp32 || major >= 8 {
        return Ok(());
    }
    Err(BackendError::Precision {
        precision: precision.name(),
        device: facts.name.clone(),
        reason: format!("its compute capability is {major}.{minor}"),
    })
}

/// A device, or the share of so many multiprocessors of it where so many were asked for.
fn describe(facts: &DeviceFacts, share: Option<(u32, u32)>, precision: GpuPrecision) -> DeviceInfo {
    let mut features: Vec<String> = vec!["f16".to_owned(), "timestamps".to_owned()];
    if facts.integrated {
        features.push("zero-copy".to_owned());
    }
    let ((cuda, cuda_minor), (major, minor)) = (facts.driver, facts.compute);
    let mut driver = format!("CUDA {cuda}.{cuda_minor}, compute capability {major}.{minor}");
    if let Some((got, wanted)) = share {
        // What is measured on a share holds for that share only: caches and plans go by this text.
        driver.push_str(&format!(", {got} of {} multiprocessors", facts.multiprocessors));
        if got != wanted {
            features.push(format!("{got} multiprocessors for the {wanted} asked for"));
        }
    }
    if precision != GpuPrecision::Fp32 {
        // As little does it hold for another arithmetic.
        let half = matches!(precision, GpuPrecision::Fp16 | GpuPrecision::Bf16);
        let stored = if half { " and activations" } else { "" };
        driver.push_str(&format!(", products{stored} in {}", precision.name()));
    }
    DeviceInfo {
        device: Device::Gpu,
        name: facts.name.clone(),
        driver,
        software: false,
        unified_memory: facts.integrated,
        threads: None,
        memory_bytes: Some(facts.memory_bytes as u64),
        features,
    }
}

fn caps(
    facts: &DeviceFacts,
    share: Option<u32>,
    warp_groups: bool,
    options: &CudaOptions,
) -> GpuCaps {
    GpuCaps {
        // Products of few rows are bound by what they read of their weights. (WGSL knows no bf16: these
        // stay f32 then.)
        f16: options.precision == GpuPrecision::Fp16,
        workgroup_bytes: facts.shared_bytes,
        matrix_bytes: facts.most_shared_bytes,
        workgroup_size: 1024,
        // Of y and z; x could be longer.
        max_grid: 65_535,
        // Kernels count elements with 32 bits.
        max_binding_bytes: u64::from(u32::MAX).min(facts.memory_bytes as u64),
        software: false,
        subgroup: 32,
        units: options.units.or(share).unwrap_or(facts.multiprocessors),
        aligned: true,
        matrix_units: match options.precision {
            GpuPrecision::Fp32 => None,
            GpuPrecision::Tf32 => Some(MatrixUnits::Tf32),
            GpuPrecision::Fp16 => Some(MatrixUnits::Fp16),
            GpuPrecision::Bf16 => Some(MatrixUnits::Bf16),
        },
        warp_groups,
        // Nobody has run any in a share.
        clusters: facts.clusters && share.is_none(),
        halves: Halves::default(),
        libraries: false,
    }
}

impl Accelerator for CudaBackend {
    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn supports(&self, op: &dyn Op, operands: &Operands<'_>) -> Result<(), String> {
        bind::kernel(op, operands, &self.shared.caps).map(|_| ())
    }

    fn load(&self, spec: ProgramSpec) -> Result<Box<dyn Program>, BackendError> {
        Ok(Box::new(load::load(&self.shared, spec, self.direct())?))
    }

    fn host_memory(&self, bytes: usize) -> Option<Storage> {
        // Where uploads write the slot itself nothing is gained, and nothing can be allocated of
        // length zero.
        if self.direct().uploads || bytes == 0 {
            return None;
        }
        let memory = TensorMemory::new(&self.shared.context, bytes).ok()?;
        Some(Storage::of(Box::new(memory)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(name: &str) -> DeviceFacts {
        DeviceFacts {
            name: name.to_owned(),
            compute: (8, 7),
            memory_bytes: 8 << 30,
            integrated: true,
            shared_bytes: 48 << 10,
            most_shared_bytes: 163 << 10,
            multiprocessors: 16,
            driver: (12, 6),
            clusters: false,
        }
    }

    #[test]
    fn devices_are_chosen_by_name() {
        let found = [facts("Orin"), facts("NVIDIA H100")];
        assert_eq!(choose(&found, None).unwrap(), 0);
        assert_eq!(choose(&found, Some("h100")).unwrap(), 1);
        let error = choose(&found, Some("T4")).unwrap_err().to_string();
        assert!(error.contains("Orin, NVIDIA H100"), "{error}");
        assert!(choose(&[], None).is_err());
    }

    #[test]
    fn integrated_devices_share_memory() {
        let info = describe(&facts("Orin"), None, GpuPrecision::Fp32);
        assert!(info.unified_memory && info.features.contains(&"zero-copy".to_owned()));
        assert_eq!(info.driver, "CUDA 12.6, compute capability 8.7");
    }

    #[test]
    fn a_share_is_a_device_of_its_own() {
        let orin = facts("Orin");
        let info = describe(&orin, Some((8, 6)), GpuPrecision::Fp32);
        assert_eq!(info.driver, "CUDA 12.6, compute capability 8.7, 8 of 16 multiprocessors");
        assert!(info.features.contains(&"8 multiprocessors for the 6 asked for".to_owned()));
        let units = |share| caps(&orin, share, false, &CudaOptions::default()).units;
        assert_eq!((units(None), units(Some(8))), (16, 8));
    }

    #[test]
    fn a_precision_is_a_device_of_its_own_and_needs_ampere() {
        let orin = facts("Orin");
        let info = describe(&orin, None, GpuPrecision::Tf32);
        assert_eq!(info.driver, "CUDA 12.6, compute capability 8.7, products in tf32");
        let xavier = DeviceFacts { compute: (7, 2), ..facts("Xavier") };
        let info = describe(&orin, None, GpuPrecision::Bf16);
        assert!(info.driver.ends_with(", products and activations in bf16"));
        for precision in [GpuPrecision::Tf32, GpuPrecision::Fp16, GpuPrecision::Bf16] {
            assert!(check_precision(&orin, precision).is_ok());
            let error = check_precision(&xavier, precision).unwrap_err();
            assert!(matches!(error, BackendError::Precision { .. }));
            let text = error.to_string();
            assert!(text.contains(precision.name()) && text.contains("7.2"), "{text}");
            assert!(text.contains("--precision fp32"), "{text}");
        }
        assert!(check_precision(&xavier, GpuPrecision::Fp32).is_ok());
    }
}
