//! A loaded program: recording and submitting segments. Nothing is created here per launch but
//! the command buffer that wgpu needs.

use std::{ops::Range, sync::Arc};

use sparoa_core::backend::{BackendError, Program};
use sparoa_kernels::Pool;

use crate::{opened::Shared, residency::Resident, timing, transfer::Transfers};

/// One dispatch, ready to record.
pub(crate) struct Step {
    pub(crate) pipeline: wgpu::ComputePipeline,
    pub(crate) bind_group: wgpu::BindGroup,
    pub(crate) grid: [u32; 3],
}

impl Step {
    pub(crate) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        let [x, y, z] = self.grid;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// See [`Program`].
pub(crate) struct WgpuProgram {
    pub(crate) shared: Arc<Shared>,
    pub(crate) steps: Vec<Step>,
    /// Steps of each task.
    pub(crate) tasks: Vec<Range<usize>>,
    /// Tasks of each segment.
    pub(crate) task_segments: Vec<Range<usize>>,
    /// Steps of each segment.
    pub(crate) segments: Vec<Range<usize>>,
    pub(crate) slots: Vec<wgpu::Buffer>,
    pub(crate) transfers: Transfers,
    /// Keeps the constants alive that bind groups use.
    #[expect(dead_code, reason = "owned for its lifetime")]
    pub(crate) weights: Vec<Arc<Resident<wgpu::Buffer>>>,
    pub(crate) bytes: usize,
}

impl WgpuProgram {
    fn no_such(what: &str, index: usize) -> BackendError {
        BackendError::Kernel {
            task: format!("{what} {index}"),
            detail: "the program has no such index".to_owned(),
        }
    }
}

impl Program for WgpuProgram {
    fn launch(&self, segment: usize) -> Result<(), BackendError> {
        let shared = &self.shared;
        shared.fault.check()?;
        let steps = self
            .segments
            .get(segment)
            .ok_or_else(|| WgpuProgram::no_such("segment", segment))?
            .clone();
        let mut encoder = shared.device.create_command_encoder(&Default::default());
        let uploads = self.transfers.record_uploads(&self.slots, &mut encoder);
        if !steps.is_empty() {
            let mut pass = encoder.begin_compute_pass(&Default::default());
            for step in &self.steps[steps] {
                step.record(&mut pass);
            }
        }
        self.transfers.record_downloads(segment, &self.slots, &mut encoder);
        let index = shared.queue.submit([encoder.finish()]);
        self.transfers.submitted(uploads, Some(segment), index);
        shared.fault.check()
    }

    fn upload(&self, copy: usize, bytes: &[u8], _: &Pool) -> Result<(), BackendError> {
        self.shared.fault.check()?;
        self.transfers.upload(&self.shared, &self.slots, copy, bytes)
    }

    fn download(&self, copy: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        self.shared.fault.check()?;
        self.transfers.download(&self.shared, &self.slots, copy, bytes)?;
        self.shared.fault.check()
    }

    fn wait_idle(&self) -> Result<(), BackendError> {
        self.shared
            .device
            .poll(wgpu::PollType::wait_indefinitely())
            .map_err(|e| self.shared.fault.lost(e))?;
        self.shared.fault.check()
    }

    fn time_segment(&self, segment: usize) -> Result<Vec<u64>, BackendError> {
        self.shared.fault.check()?;
        let tasks = self
            .task_segments
            .get(segment)
            .ok_or_else(|| WgpuProgram::no_such("segment", segment))?
            .clone();
        timing::time_tasks(self, tasks)
    }

    fn device_bytes(&self) -> usize {
        self.bytes
    }
}
