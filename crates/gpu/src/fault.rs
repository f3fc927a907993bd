//! What went wrong on the device since it was opened: lost devices and errors that no scope
//! caught. wgpu reports both through callbacks, CUDA with whatever call comes next; calls check
//! here and return them as values.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use sparoa_core::backend::BackendError;

/// The first failure of a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault(Arc<State>);

#[derive(Debug, Default)]
struct State {
    device: String,
    failed: AtomicBool,
    error: Mutex<Option<BackendError>>,
}

impl Fault {
    /// None yet, on the device called `name`.
    pub(crate) fn new(name: &str) -> Fault {
        Fault(Arc::new(State { device: name.to_owned(), ..State::default() }))
    }

    /// Watches `device` from now on.
    pub(crate) fn watch(name: &str, device: &wgpu::Device) -> Fault {
        let fault = Fault::new(name);
        let lost = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            // Dropping the device "loses" it too; nobody is left to be told then.
            if reason != wgpu::DeviceLostReason::Destroyed {
                lost.set(BackendError::Lost { device: lost.0.device.clone(), detail: message });
            }
        });
        let uncaptured = fault.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            uncaptured.set(uncaptured.typed("launch", error));
        }));
        fault
    }

    /// Notes a failure; the first one stays.
    pub(crate) fn set(&self, error: BackendError) {
        tracing::error!(device = %self.0.device, %error, "GPU failure");
        self.0.error.lock().get_or_insert(error);
        self.0.failed.store(true, Ordering::Release);
    }

    /// The first failure, as long as the device lives: work after it has no defined result.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        if !self.0.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(self.0.error.lock().clone().expect("the error is set before the flag"))
    }

    /// A wgpu error in our terms; `task` is what was being done.
    pub(crate) fn typed(&self, task: &str, error: wgpu::Error) -> BackendError {
        match error {
            wgpu::Error::OutOfMemory { .. } => BackendError::OutOfMemory {
                device: self.0.device.clone(),
                detail: format!("{task} (use a smaller batch, or place fewer operators here)"),
            },
            wgpu::Error::Validation { description, .. }
            | wgpu::Error::Internal { description, .. } => {
                BackendError::Kernel { task: task.to_owned(), detail: description }
            }
        }
    }

    /// A [`BackendError::Lost`] for this device.
    pub(crate) fn lost(&self, detail: impl ToString) -> BackendError {
        BackendError::Lost { device: self.0.device.clone(), detail: detail.to_string() }
    }

    /// Runs `work` with every wgpu error captured; the first one, or else `work`'s, is returned.
    pub(crate) fn scoped<T>(
        &self,
        device: &wgpu::Device,
        task: &str,
        work: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let scopes = [
            wgpu::ErrorFilter::Internal,
            wgpu::ErrorFilter::Validation,
            wgpu::ErrorFilter::OutOfMemory,
        ]
        .map(|filter| device.push_error_scope(filter));
        let result = work();
        let mut first = None;
        for scope in scopes.into_iter().rev() {
            // Out of memory comes first: it is the cause of the others.
            if let Some(error) = ready(scope.pop()).flatten() {
                first.get_or_insert(error);
            }
        }
        match first {
            Some(error) => Err(self.typed(task, error)),
            None => result,
        }
    }
}

/// The value of a future that wgpu's native backends complete at once; `None` if it is not ready.
pub(crate) fn ready<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}
