//! Host memory of an engine, handed out to the lanes as plain slices: the one place in this crate
//! where memory is accessed without the borrow checker's help.
//!
//! Why this is sound. [`Host::new`] runs [`verify`] on the plan, which proves that (1) every
//! range lies in its buffer and every buffer in the arena, (2) buffers that overlap in memory are
//! never in use at the same time, (3) within a buffer, a write is ordered before every read of
//! the same bytes and no byte is written twice, all under the happens-before relation that the
//! plan's waits establish, (4) inputs are never written. The lanes (`lanes.rs`, the only caller)
//! perform each item once per run, in the plan's order, with every wait honoured, and
//! `Counter::set`/`wait` make those waits happens-before edges of the memory model. Hence whenever
//! a `&mut [u8]` exists here, no other reference to its bytes does.
#![allow(unsafe_code)]

use std::{
    cell::UnsafeCell,
    ops::Range,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use smallvec::SmallVec;
use sparoa_kernels::pool::Pool;

use super::prepare::{CpuTask, TaskInput};
use crate::{
    backend::{BackendError, Program},
    ops::{KernelIo, OpError},
    plan::{HostPlace, Plan, PlanError, Region, verify},
    tensor::{Tensor, TensorMut, TensorRef},
};

#[repr(C, align(64))]
struct Line(UnsafeCell<[u8; 64]>);

pub(super) struct Host {
    lines: Box<[Line]>,
    /// Where the caller's input tensors are during a run; null between runs.
    inputs: Box<[AtomicPtr<u8>]>,
    /// By buffer: place and size.
    buffers: Box<[(Option<HostPlace>, usize)]>,
}

// SAFETY: the cells are reached only through `read` and `write`, whose exclusivity the verified
// plan guarantees (see the module's text).
unsafe impl Sync for Host {}

impl Host {
    pub fn new(plan: &Plan, inputs: usize) -> Result<Host, PlanError> {
        verify(plan)?;
        for buffer in &plan.buffers {
            if let Some(HostPlace::Input(i)) = buffer.host
                && i >= inputs
            {
                let buffer = buffer.name.clone();
                return Err(PlanError::Bounds { buffer, what: "the graph has no such input" });
            }
        }
        let lines = plan.arena_bytes.div_ceil(64);
        Ok(Host {
            lines: (0..lines).map(|_| Line(UnsafeCell::new([0; 64]))).collect(),
            inputs: (0..inputs).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            buffers: plan.buffers.iter().map(|b| (b.host, b.bytes)).collect(),
        })
    }

    /// Lends the input tensors for the duration of `run`, which must not return before every
    /// lane is at rest. Their types were checked against the graph's by the caller.
    pub fn lend<R>(&self, inputs: &[&Tensor], run: impl FnOnce() -> R) -> R {
        for &(place, bytes) in &self.buffers {
            if let Some(HostPlace::Input(i)) = place {
                assert_eq!(inputs[i].bytes().len(), bytes, "the input's type was checked");
            }
        }
        for (place, tensor) in self.inputs.iter().zip(inputs) {
            place.store(tensor.bytes().as_ptr().cast_mut(), Ordering::Release);
        }
        let result = run();
        for place in &self.inputs {
            place.store(ptr::null_mut(), Ordering::Release);
        }
        result
    }

    /// First byte of a range of a buffer.
    fn address(&self, buffer: usize, range: &Range<usize>) -> *mut u8 {
        let (place, bytes) = self.buffers[buffer];
        assert!(range.start <= range.end && range.end <= bytes, "the plan was verified");
        match place {
            // SAFETY: the range lies in the buffer (asserted) and the buffer in the arena
            // (verified), so the offset stays inside the allocation of `lines`.
            Some(HostPlace::Arena(offset)) => unsafe {
                self.lines.as_ptr().cast_mut().cast::<u8>().add(offset + range.start)
            },
            Some(HostPlace::Input(i)) => {
                let start = self.inputs[i].load(Ordering::Acquire);
                assert!(!start.is_null(), "inputs are read during a run only");
                // SAFETY: `lend` checked that the tensor is as long as the buffer.
                unsafe { start.add(range.start) }
            }
            None => {
                assert!(range.is_empty(), "the plan was verified");
                ptr::NonNull::<Line>::dangling().as_ptr().cast()
            }
        }
    }

    /// # Safety
    /// The caller performs an item of the verified plan that reads this range, in its lane's
    /// order, and drops the slice when the item ends.
    unsafe fn read<'a>(&self, buffer: usize, range: Range<usize>) -> &'a [u8] {
        // SAFETY: `address` gives memory valid for the range; the plan orders all writes of it
        // before or after this item.
        unsafe { std::slice::from_raw_parts(self.address(buffer, &range), range.len()) }
    }

    /// # Safety
    /// As [`Host::read`], for an item that writes this range.
    #[allow(clippy::mut_from_ref)]
    unsafe fn write<'a>(&self, buffer: usize, range: Range<usize>) -> &'a mut [u8] {
        // SAFETY: `address` gives memory valid for the range (never an input's: verified); the
        // plan orders every other access of it before or after this item.
        unsafe { std::slice::from_raw_parts_mut(self.address(buffer, &range), range.len()) }
    }

    /// Performs a CPU task.
    pub fn run(&self, task: &CpuTask, scratch: &mut [u8], pool: &Pool) -> Result<(), OpError> {
        let read = |r: &Region| -> &[u8] {
            // SAFETY: this task of the plan reads this region now.
            unsafe { self.read(r.buffer, r.range()) }
        };
        let inputs: SmallVec<[Option<TensorRef<'_>>; 16]> = task
            .inputs
            .iter()
            .map(|input| {
                input.as_ref().map(|input| match input {
                    TaskInput::Constant(tensor) => tensor.view(),
                    TaskInput::Held(ty) => {
                        TensorRef { dtype: ty.dtype, shape: &ty.shape, bytes: &[] }
                    }
                    TaskInput::Region(r) => {
                        TensorRef { dtype: r.ty.dtype, shape: &r.ty.shape, bytes: read(r) }
                    }
                })
            })
            .collect();
        let mut outputs: SmallVec<[TensorMut<'_>; 4]> = task
            .outputs
            .iter()
            .map(|r| TensorMut {
                dtype: r.ty.dtype,
                shape: &r.ty.shape,
                // SAFETY: this task of the plan writes this region now, and no other of its
                // regions meets it.
                bytes: unsafe { self.write(r.buffer, r.range()) },
            })
            .collect();
        let _awake = pool.keep_awake();
        task.kernel.run(&mut KernelIo { inputs: &inputs, outputs: &mut outputs, scratch }, pool)
    }

    /// Performs an upload.
    pub fn upload(
        &self,
        plan: &Plan,
        copy: usize,
        to: &dyn Program,
        pool: &Pool,
    ) -> Result<(), BackendError> {
        let transfer = &plan.uploads[copy];
        // SAFETY: this copy of the plan reads this range now.
        to.upload(copy, unsafe { self.read(transfer.buffer, transfer.range.clone()) }, pool)
    }

    /// Performs a download.
    pub fn download(
        &self,
        plan: &Plan,
        copy: usize,
        from: &dyn Program,
    ) -> Result<(), BackendError> {
        let transfer = &plan.downloads[copy];
        // SAFETY: this copy of the plan writes this range now.
        from.download(copy, unsafe { self.write(transfer.buffer, transfer.range.clone()) })
    }

    /// Copies a whole buffer between two runs: the caller (`Lanes`, exclusively borrowed) knows
    /// that every lane is at rest.
    pub fn copy_out(&self, buffer: usize, to: &mut [u8]) {
        let bytes = self.buffers[buffer].1;
        // SAFETY: no lane is running, so nobody writes while the slice lives.
        to.copy_from_slice(unsafe { self.read(buffer, 0..bytes) });
    }
}
