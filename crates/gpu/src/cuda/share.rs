//! A share of a device: so many of its multiprocessors and no more, through a green context. A
//! large card so shows what a board's small GPU would do beside a CPU.

use std::{env, ffi::CStr, mem};

use cudarc::driver::{result::DriverError, sys};
use sparoa_core::backend::BackendError;

use super::driver::DeviceFacts;

/// How many multiprocessors the backend may use; all of them where it is not set.
const VARIABLE: &str = "SPAROA_CUDA_MULTIPROCESSORS";

/// What the environment asks for.
///
/// # Errors
/// [`BackendError::Unavailable`] when it is no number from 1 on.
pub(crate) fn from_env() -> Result<Option<u32>, BackendError> {
    parse(&env::var(VARIABLE).unwrap_or_default()).map_err(BackendError::Unavailable)
}

fn parse(text: &str) -> Result<Option<u32>, String> {
    match text.parse() {
        _ if text.is_empty() => Ok(None),
        Ok(count) if count > 0 => Ok(Some(count)),
        _ => Err(format!(
            "{VARIABLE} is \"{text}\": give the number of multiprocessors that may be used, 1 or \
             more, or unset it to use all"
        )),
    }
}

/// The share to set apart, if any: none where all multiprocessors are wanted.
///
/// # Errors
/// When the device has fewer, or the driver knows no green contexts.
pub(crate) fn check(facts: &DeviceFacts, wanted: Option<u32>) -> Result<Option<u32>, String> {
    let DeviceFacts { name, multiprocessors: all, driver: (major, minor), .. } = facts;
    match wanted {
        Some(0) => Err(format!("a share of {name} has at least one multiprocessor")),
        Some(count) if count > *all => Err(format!(
            "{name} has {all} multiprocessors, {VARIABLE} asks for {count}: give fewer"
        )),
        Some(count) if count < *all && !driver_has_shares() => Err(format!(
            "the driver (CUDA {major}.{minor}) has no green contexts, which {VARIABLE}={count} \
             needs: install one of CUDA 12.4 or newer, or unset it"
        )),
        Some(count) if count < *all => Ok(Some(count)),
        _ => Ok(None),
    }
}

/// Whether every function used here is there. A missing one could not be called without a panic.
fn driver_has_shares() -> bool {
    const FUNCTIONS: [&CStr; 7] = [
        c"cuDeviceGetDevResource",
        c"cuDevSmResourceSplitByCount",
        c"cuDevResourceGenerateDesc",
        c"cuGreenCtxCreate",
        c"cuGreenCtxDestroy",
        c"cuGreenCtxStreamCreate",
        c"cuCtxFromGreenCtx",
    ];
    // SAFETY: the library is loaded, and its symbols are only looked up, not called.
    FUNCTIONS.iter().all(|name| unsafe {
        sys::culib().get::<unsafe extern "C" fn()>(name.to_bytes_with_nul()).is_ok()
    })
}

/// Multiprocessors set apart. The device rounds their number up to what it can divide by.
#[derive(Debug)]
pub(crate) struct Share {
    green: sys::CUgreenCtx,
    pub(crate) multiprocessors: u32,
}

impl Share {
    /// Sets `wanted` multiprocessors of a device apart, for which [`check`] was called and whose
    /// primary context is retained.
    pub(crate) fn new(device: sys::CUdevice, wanted: u32) -> Result<Share, DriverError> {
        let kind = sys::CUdevResourceType::CU_DEV_RESOURCE_TYPE_SM;
        // SAFETY: plain data, for which zero is "no resource".
        let (mut all, mut part): (sys::CUdevResource, sys::CUdevResource) =
            unsafe { (mem::zeroed(), mem::zeroed()) };
        let (mut groups, mut description) = (1, std::ptr::null_mut());
        let mut share = Share { green: std::ptr::null_mut(), multiprocessors: 0 };
        let stream = sys::CUgreenCtxCreate_flags::CU_GREEN_CTX_DEFAULT_STREAM as u32;
        // SAFETY: `device` comes from the driver; one group is asked for and there is room for
        // one; what is left over is not wanted, which a null pointer says.
        unsafe {
            sys::cuDeviceGetDevResource(device, &mut all, kind).result()?;
            sys::cuDevSmResourceSplitByCount(
                &mut part,
                &mut groups,
                &all,
                std::ptr::null_mut(),
                0,
                wanted,
            )
            .result()?;
            sys::cuDevResourceGenerateDesc(&mut description, &mut part, 1).result()?;
            sys::cuGreenCtxCreate(&mut share.green, description, device, stream).result()?;
            // SAFETY: the split made it one of multiprocessors.
            share.multiprocessors = part.__bindgen_anon_1.sm.smCount;
        }
        Ok(share)
    }

    /// Its context, alive as long as the share.
    pub(crate) fn context(&self) -> Result<sys::CUcontext, DriverError> {
        let mut context = std::ptr::null_mut();
        // SAFETY: the green context is alive.
        unsafe { sys::cuCtxFromGreenCtx(&mut context, self.green) }.result()?;
        Ok(context)
    }

    /// A stream whose kernels run on the share's multiprocessors, also when it is captured.
    pub(crate) fn stream(&self) -> Result<sys::CUstream, DriverError> {
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut stream = std::ptr::null_mut();
        // SAFETY: the green context is alive.
        unsafe { sys::cuGreenCtxStreamCreate(&mut stream, self.green, flags, 0) }.result()?;
        Ok(stream)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if !self.green.is_null() {
            // SAFETY: created in `new`, destroyed once, its streams before it.
            let _ = unsafe { sys::cuGreenCtxDestroy(self.green) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_a_number_from_one_on() {
        assert_eq!((parse(""), parse("16")), (Ok(None), Ok(Some(16))));
        for wrong in ["0", "-8", "half", "8.5", " "] {
            let error = parse(wrong).unwrap_err();
            assert!(error.starts_with(VARIABLE) && error.contains("1 or more"), "{error}");
        }
    }

    #[test]
    fn a_share_is_smaller_than_the_device() {
        let facts = DeviceFacts {
            name: "Orin".to_owned(),
            compute: (8, 7),
            memory_bytes: 8 << 30,
            integrated: true,
            shared_bytes: 48 << 10,
            most_shared_bytes: 163 << 10,
            multiprocessors: 16,
            driver: (12, 2),
            clusters: false,
        };
        assert_eq!((check(&facts, None), check(&facts, Some(16))), (Ok(None), Ok(None)));
        let error = check(&facts, Some(17)).unwrap_err();
        assert!(error.contains("16 multiprocessors") && error.contains("asks for 17"), "{error}");
        assert!(check(&facts, Some(0)).is_err());
    }
}
