//! Per-task times by timestamp queries: one compute pass per task, so that only the queries every
//! adapter with timestamps has are needed.

use std::ops::Range;

use sparoa_core::backend::BackendError;

use crate::{program::WgpuProgram, transfer};

/// Queries per set at most: what WebGPU promises.
const MAX_QUERIES: u32 = 4096;

/// Runs `tasks` and waits; nanoseconds of each.
pub(crate) fn time_tasks(
    program: &WgpuProgram,
    tasks: Range<usize>,
) -> Result<Vec<u64>, BackendError> {
    let shared = &program.shared;
    if !shared.features.contains(wgpu::Features::TIMESTAMP_QUERY) {
        return Err(BackendError::NoTimestamps(shared.info.name.clone()));
    }
    let mut times = Vec::with_capacity(tasks.len());
    let mut start = tasks.start;
    while start < tasks.end {
        let end = tasks.end.min(start + (MAX_QUERIES / 2) as usize);
        let part = shared.fault.scoped(&shared.device, "timing", || time_part(program, start..end));
        times.extend(part?);
        start = end;
    }
    Ok(times)
}

fn time_part(program: &WgpuProgram, tasks: Range<usize>) -> Result<Vec<u64>, BackendError> {
    let shared = &program.shared;
    let count = 2 * tasks.len() as u32;
    let bytes = u64::from(count) * 8;
    let queries = shared.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: None,
        ty: wgpu::QueryType::Timestamp,
        count,
    });
    let buffer = |usage| {
        let descriptor =
            wgpu::BufferDescriptor { label: None, size: bytes, usage, mapped_at_creation: false };
        shared.device.create_buffer(&descriptor)
    };
    let resolved = buffer(wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC);
    let readable = buffer(wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST);
    let mut encoder = shared.device.create_command_encoder(&Default::default());
    let uploads = program.transfers.record_uploads(&program.slots, &mut encoder);
    for (i, task) in tasks.clone().enumerate() {
        let query = 2 * i as u32;
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
            label: None,
            timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                query_set: &queries,
                beginning_of_pass_write_index: Some(query),
                end_of_pass_write_index: Some(query + 1),
            }),
        });
        for step in &program.steps[program.tasks[task].clone()] {
            step.record(&mut pass);
        }
    }
    encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
    encoder.copy_buffer_to_buffer(&resolved, 0, &readable, 0, bytes);
    let index = shared.queue.submit([encoder.finish()]);
    program.transfers.submitted(uploads, None, index.clone());
    let mut ticks = vec![0u64; count as usize];
    transfer::read_mapped(shared, &readable, index, bytemuck::cast_slice_mut(&mut ticks))?;
    let period = f64::from(shared.queue.get_timestamp_period());
    let nanoseconds = |pair: &[u64]| (pair[1].saturating_sub(pair[0]) as f64 * period) as u64;
    Ok(ticks.chunks_exact(2).map(nanoseconds).collect())
}
