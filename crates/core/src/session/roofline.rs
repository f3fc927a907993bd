//! What each processor attains on this machine: a product of matrices for arithmetic, one pass over
//! a large tensor for memory.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use sparoa_kernels::pool::Pool;

use super::{MeasureOptions, SessionBuilder, SessionError, measure::Measurer};
use crate::{
    backend::{Accelerator, Device},
    engine::KernelCache,
    ir::{Dim, Model, ModelBuilder},
    ops::{self, Attributes},
    plan::Support,
    profile::{CostCache, Link, NodeCosts},
    schedule::Policy,
    tensor::{DType, Tensor},
};

/// Side of the matrices.
const SIDE: usize = 1024;
/// Elements of the tensor that is passed over.
const STREAM: usize = 16 << 20;

/// Rates that the engine's own kernels attain, data in the processor's memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Attained {
    /// The processor.
    pub device: Device,
    /// fp32 operations per second of a product of matrices.
    pub flops_per_s: f64,
    /// Bytes read and written per second of an elementwise operator.
    pub bytes_per_s: f64,
}

impl Attained {
    /// Operations per byte from which arithmetic takes longer than memory.
    pub fn ridge_intensity(&self) -> f64 {
        self.flops_per_s / self.bytes_per_s
    }
}

/// The rates of all processors, and of the links between them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Roofline {
    /// By processor.
    pub attained: Vec<Attained>,
    /// Host to device, if there is one.
    pub upload: Option<Link>,
    /// Device to host.
    pub download: Option<Link>,
}

/// Measures the roofline; takes a second, on slow GPUs a few.
///
/// # Errors
/// When a processor fails.
pub fn measure_roofline(
    accelerator: Option<&dyn Accelerator>,
    pool: &Arc<Pool>,
) -> Result<Roofline, SessionError> {
    let session = SessionBuilder::new(probe()).pool(pool.clone()).policy(Policy::Cpu).build()?;
    let measurer = Measurer {
        graph: &session.graph,
        support: &Support::of(&session.graph, accelerator),
        pool,
        kernels: &KernelCache::new(),
        accelerator,
        options: MeasureOptions { max_parts: Duration::ZERO, ..MeasureOptions::default() },
        memory_limit: None,
    };
    let profile = measurer.measure(&mut CostCache::new(""), &mut |_, _| {})?;
    let nodes = || session.analysis().nodes.iter().zip(&profile.nodes);
    let attained = [Device::Cpu, Device::Gpu]
        .into_iter()
        .filter_map(|device| {
            // The product has the most operations, the other operator the most bytes.
            let (product, product_cost) = nodes().max_by_key(|(node, _)| node.flops)?;
            let (stream, stream_cost) = nodes().max_by_key(|(node, _)| node.bytes)?;
            let seconds = |costs: &NodeCosts| {
                let cost = if device == Device::Cpu { costs.cpu } else { costs.gpu };
                cost.map(|cost| cost.latency_ns.max(1) as f64 * 1e-9)
            };
            Some(Attained {
                device,
                flops_per_s: product.flops as f64 / seconds(product_cost)?,
                bytes_per_s: stream.bytes as f64 / seconds(stream_cost)?,
            })
        })
        .collect();
    Ok(Roofline {
        attained,
        upload: accelerator.map(|_| profile.upload),
        download: accelerator.map(|_| profile.download),
    })
}

/// The two operators to measure.
fn probe() -> Model {
    let mut builder = ModelBuilder::new("roofline");
    let operator = |name: &str| {
        let spec = ops::find("", name).expect("the registry has it");
        (spec.parse)(&Attributes::new(20, 1, [])).expect("it needs no attributes")
    };
    let weight: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 13) as f32 / 13.0 - 0.5).collect();
    let a = builder.input("a", DType::F32, vec![Dim::Fixed(SIDE), Dim::Fixed(SIDE)]);
    let b = builder.constant("b", Tensor::from_slice([SIDE, SIDE], &weight));
    let product = builder.node("product", operator("MatMul"), &[a, b]);
    builder.output(product);
    let x = builder.input("x", DType::F32, vec![Dim::Fixed(STREAM)]);
    let stream = builder.node("stream", operator("Relu"), &[x]);
    builder.output(stream);
    builder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_a_roofline() {
        let pool = Arc::new(Pool::new(2));
        let roofline = measure_roofline(None, &pool).unwrap();
        assert_eq!(roofline.attained.len(), 1);
        let cpu = &roofline.attained[0];
        assert_eq!(cpu.device, Device::Cpu);
        assert!((1e8..1e15).contains(&cpu.flops_per_s), "{cpu:?}");
        assert!((1e8..1e15).contains(&cpu.bytes_per_s), "{cpu:?}");
        assert_eq!(roofline.upload, None);
    }
}
