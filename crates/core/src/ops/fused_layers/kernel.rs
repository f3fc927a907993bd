//! The CPU kernel: slice by slice through all layers.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Mutex, PoisonError},
    thread::available_parallelism,
};

use smallvec::SmallVec;
use sparoa_kernels::Pool;

use super::links::{self, Feed, Link};
use crate::{
    ops::{CpuKernel, KernelIo, OpError, Operands, Scratch},
    tensor::{TensorMut, TensorRef, TensorType},
};

/// Bytes between the layers that a slice should have at most: a good part of a second-level cache
/// stays for weights.
pub(super) const SLICE_BYTES: usize = 512 * 1024;
/// How much more or fewer than wanted slices may be, where they cannot be cut as wanted.
const SLACK: usize = 3;

/// Where a prepared layer's input lies.
enum Place {
    Absent,
    /// Bytes of an input of the whole.
    Outer(usize, Range<usize>, TensorType),
    /// Bytes of what the layer before made.
    Previous(Range<usize>, TensorType),
}

/// A layer of a slice.
struct Step {
    /// Index of the kernel.
    kernel: usize,
    inputs: Vec<Place>,
    ty: TensorType,
}

/// See the module.
pub(super) struct Slices {
    kernels: Vec<Box<dyn CpuKernel>>,
    /// In the order of the output, equally long but for the last.
    slices: Vec<Vec<Step>>,
    /// Bytes of output of a slice.
    part: usize,
    /// Bytes of scratch for what lies between the layers, of one slice.
    between: usize,
    single: Pool,
}

impl Slices {
    /// Slices with about `slice_bytes` between their layers.
    ///
    /// # Errors
    /// Those of the layers' [`crate::ops::Op::cpu`].
    pub(super) fn new(links: &[Link], slice_bytes: usize) -> Result<Slices, OpError> {
        let chains = cut(links, slice_bytes).unwrap_or_else(|| vec![links.to_vec()]);
        let mut prepared = Slices {
            kernels: Vec::new(),
            slices: Vec::with_capacity(chains.len()),
            part: 0,
            between: 0,
            single: Pool::single(),
        };
        let mut known = HashMap::new();
        for chain in &chains {
            let mut steps = Vec::with_capacity(chain.len());
            for link in chain {
                steps.push(Step {
                    kernel: prepared.kernel(link, &mut known)?,
                    inputs: link.feeds.iter().map(place).collect(),
                    ty: link.ty.clone(),
                });
            }
            let between = &steps[..steps.len() - 1];
            let bytes = between.iter().map(|step| Scratch::bytes::<u8>(step.ty.bytes())).sum();
            prepared.between = prepared.between.max(bytes);
            prepared.part = prepared.part.max(steps[steps.len() - 1].ty.bytes());
            prepared.slices.push(steps);
        }
        Ok(prepared)
    }

    /// The kernel of a layer: slices that differ only in what they read share it.
    fn kernel(
        &mut self,
        link: &Link,
        known: &mut HashMap<String, usize>,
    ) -> Result<usize, OpError> {
        let constants = link.feeds.iter().filter_map(|feed| match feed {
            Feed::Outer { index, operand, .. } if operand.constant.is_some() => Some(index),
            _ => None,
        });
        let operands = link.operands();
        let types: Vec<_> = operands.iter().map(|o| o.as_ref().map(|o| &o.ty)).collect();
        let constants: Vec<_> = constants.collect();
        let key = format!("{:?} {types:?} {constants:?}", link.op);
        if let Some(&kernel) = known.get(&key) {
            return Ok(kernel);
        }
        let outputs = std::slice::from_ref(&link.ty);
        self.kernels.push(link.op.cpu(&Operands { inputs: &operands, outputs })?);
        known.insert(key, self.kernels.len() - 1);
        Ok(self.kernels.len() - 1)
    }

    /// How many slices there are.
    pub(super) fn count(&self) -> usize {
        self.slices.len()
    }

    /// Bytes of scratch of one slice at a time: between the layers, and the kernels' own.
    fn slice_bytes(&self, threads: usize) -> usize {
        let own = self.kernels.iter().map(|kernel| kernel.scratch_bytes(threads)).max();
        self.between + Scratch::bytes::<u8>(own.unwrap_or(0))
    }

    fn run_slice(
        &self,
        slice: &[Step],
        inputs: &[Option<TensorRef<'_>>],
        output: &mut [u8],
        scratch: &mut [u8],
        pool: &Pool,
    ) -> Result<(), OpError> {
        let (mut between, own) = scratch.split_at_mut(self.between);
        let mut output = Some(output);
        let mut before: &[u8] = &[];
        for (i, step) in slice.iter().enumerate() {
            let inputs: SmallVec<[Option<TensorRef<'_>>; 8]> = step
                .inputs
                .iter()
                .map(|place| match place {
                    Place::Absent => None,
                    Place::Outer(index, range, ty) => inputs[*index].map(|input| TensorRef {
                        dtype: ty.dtype,
                        shape: &ty.shape,
                        // Of what the kernels hold there may be no bytes.
                        bytes: input.bytes.get(range.clone()).unwrap_or_default(),
                    }),
                    Place::Previous(range, ty) => Some(TensorRef {
                        dtype: ty.dtype,
                        shape: &ty.shape,
                        bytes: &before[range.clone()],
                    }),
                })
                .collect();
            let bytes = step.ty.bytes();
            let made = match output.take_if(|_| i + 1 == slice.len()) {
                Some(output) => output,
                None => {
                    let (made, rest) = between.split_at_mut(Scratch::bytes::<u8>(bytes));
                    between = rest;
                    &mut made[..bytes]
                }
            };
            let shape = &step.ty.shape;
            let mut outputs = [TensorMut { dtype: step.ty.dtype, shape, bytes: &mut *made }];
            let mut io = KernelIo { inputs: &inputs, outputs: &mut outputs, scratch: &mut *own };
            self.kernels[step.kernel].run(&mut io, pool)?;
            before = made;
        }
        Ok(())
    }
}

impl CpuKernel for Slices {
    fn scratch_bytes(&self, threads: usize) -> usize {
        match self.count() {
            1 => self.slice_bytes(threads),
            _ => threads * self.slice_bytes(1),
        }
    }

    fn weight_bytes(&self) -> usize {
        self.kernels.iter().map(|kernel| kernel.weight_bytes()).sum()
    }

    fn holds(&self, input: usize) -> bool {
        self.slices.iter().flatten().all(|step| {
            let kernel = &self.kernels[step.kernel];
            let outer = |place: &Place| matches!(place, Place::Outer(i, ..) if *i == input);
            step.inputs.iter().enumerate().all(|(i, place)| !outer(place) || kernel.holds(i))
        })
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        let (inputs, scratch) = (io.inputs, &mut *io.scratch);
        let output = &mut *io.outputs[0].bytes;
        if let [slice] = &self.slices[..] {
            return self.run_slice(slice, inputs, output, scratch, pool);
        }
        let failed = Mutex::new(None);
        let per_worker = self.slice_bytes(1);
        pool.run_parts_with_scratch(output, self.part, scratch, per_worker, &|i, output, own| {
            if let Err(error) = self.run_slice(&self.slices[i], inputs, output, own, &self.single) {
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

fn place(feed: &Feed) -> Place {
    let bytes = |from: usize, ty: &TensorType| {
        let from = from * ty.dtype.size();
        from..from + ty.bytes()
    };
    match feed {
        Feed::Absent => Place::Absent,
        Feed::Outer { index, operand, from, .. } => {
            Place::Outer(*index, bytes(*from, &operand.ty), operand.ty.clone())
        }
        Feed::Previous { from, ty } => Place::Previous(bytes(*from, ty), ty.clone()),
    }
}

/// Slices whose insides fit the cache, if the layers can be cut so.
fn cut(links: &[Link], slice_bytes: usize) -> Option<Vec<Vec<Link>>> {
    let threads = available_parallelism().map_or(1, usize::from);
    let mut slices = Vec::new();
    let whole = links.last()?.ty.len();
    cut_into(links, slice_bytes, threads, &mut slices)?;
    // Equally long, but for the last: so they are handed out.
    let len = |slice: &Vec<Link>| slice.last().map_or(0, |link| link.ty.len());
    let part = len(slices.first()?);
    let (last, others) = slices.split_last()?;
    let even = others.iter().all(|slice| len(slice) == part) && len(last) <= part;
    (even && others.len() * part + len(last) == whole).then_some(slices)
}

/// Adds the slices of `links`, `least` of them at least.
fn cut_into(
    links: &[Link],
    slice_bytes: usize,
    least: usize,
    slices: &mut Vec<Vec<Link>>,
) -> Option<()> {
    let (last, between) = links.split_last()?;
    let bytes: usize = between.iter().map(|link| link.ty.bytes()).sum();
    let wanted = bytes.div_ceil(slice_bytes).max(least);
    if wanted <= 1 {
        slices.push(links.to_vec());
        return Some(());
    }
    let Some((axis, unit)) = links::cuts(links) else {
        // As small as it gets.
        return (bytes <= SLACK * slice_bytes).then(|| slices.push(links.to_vec()));
    };
    let len = last.ty.shape[axis];
    let count = len / unit;
    // One after the other, each of them cut again.
    if wanted > count {
        for i in 0..count {
            let part = links::part(links, i * unit..(i + 1) * unit)?;
            cut_into(&part, slice_bytes, least.div_ceil(count), slices)?;
        }
        return Some(());
    }
    let pieces = (wanted..=count).find(|&pieces| count.is_multiple_of(pieces))?;
    if pieces > SLACK * wanted {
        return None;
    }
    let step = len / pieces;
    for i in 0..pieces {
        slices.push(links::part(links, i * step..(i + 1) * step)?);
    }
    Some(())
}
