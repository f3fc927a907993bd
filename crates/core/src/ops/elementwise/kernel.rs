//! Evaluates an expression on the CPU, block by block: each instruction runs over about a thousand
//! elements before the next one starts, so that intermediate results stay in the first-level
//! cache and the per-instruction cost is paid once a block.

use std::marker::PhantomData;

use bytemuck::{cast_slice, cast_slice_mut};
use half::{f16, slice::HalfFloatSliceExt};
use smallvec::SmallVec;
use sparoa_kernels::pool::Pool;

use super::{
    expr::{Arg, Binary, Expr, Instr, Unary},
    lanes::{Lane, Slot},
};
use crate::{
    ops::{CpuKernel, KernelIo, OpError, Operands},
    tensor::{DType, TensorRef},
};

/// Elements of a block.
const BLOCK: usize = 1024;
/// Rows shorter than this are gathered into full blocks; longer ones are blocks themselves.
const LONG_ROW: usize = 128;
/// A thread gets at least this many elements.
const MIN_PART: usize = 4096;

/// Prepares the kernel of `expr`, whose inputs are those of the node. `output` is the node's
/// output type.
pub(super) fn prepare(expr: &Expr, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
    let output = x.output(0).dtype;
    Ok(match working_type(expr, x) {
        DType::F32 | DType::F16 => Box::new(Blocks::<f32>::new(expr, x, output)),
        DType::F64 => Box::new(Blocks::<f64>::new(expr, x, output)),
        DType::I8 => Box::new(Blocks::<i8>::new(expr, x, output)),
        DType::U8 | DType::Bool => Box::new(Blocks::<u8>::new(expr, x, output)),
        DType::I16 => Box::new(Blocks::<i16>::new(expr, x, output)),
        DType::U16 => Box::new(Blocks::<u16>::new(expr, x, output)),
        DType::I32 => Box::new(Blocks::<i32>::new(expr, x, output)),
        DType::U32 => Box::new(Blocks::<u32>::new(expr, x, output)),
        DType::I64 => Box::new(Blocks::<i64>::new(expr, x, output)),
        DType::U64 => Box::new(Blocks::<u64>::new(expr, x, output)),
    })
}

/// The type in which the instructions work: that of the non-boolean inputs. Where they differ
/// (`Pow`), a float output's type, else f64.
fn working_type(expr: &Expr, x: &Operands<'_>) -> DType {
    let mut types = (0..expr.inputs())
        .filter(|&i| expr.reads(i) > 0)
        .filter_map(|i| x.get(i))
        .map(|o| o.ty.dtype)
        .filter(|&d| d != DType::Bool);
    let output = x.output(0).dtype;
    match types.next() {
        None => output,
        Some(first) if types.all(|d| d == first) => first,
        Some(_) if output.is_float() => output,
        Some(_) => DType::F64,
    }
}

/// An operand of a step.
#[derive(Clone, Copy, Debug)]
enum Source<T> {
    Load(usize),
    Register(usize),
    Number(T),
}

/// An instruction with its registers.
#[derive(Clone, Copy, Debug)]
enum Step<T> {
    Unary(Unary, Source<T>),
    Binary(Binary, Source<T>, Source<T>),
    Select(Source<T>, Source<T>, Source<T>),
}

/// How an input is read.
#[derive(Debug)]
struct Load {
    input: usize,
    dtype: DType,
    /// Elements from one index to the next, per merged dimension.
    strides: SmallVec<[usize; 6]>,
    /// One element per output element, in the same order.
    full: bool,
    /// One element for all.
    scalar: bool,
}

/// The prepared kernel with working type `T`.
struct Blocks<T> {
    /// Steps and the register each writes; the last one writes the output.
    steps: Vec<(Step<T>, usize)>,
    registers: usize,
    loads: Vec<Load>,
    /// Output dimensions, merged where every input runs through them the same way.
    dims: SmallVec<[usize; 6]>,
    output: DType,
    /// Blocks never cross the innermost dimension.
    by_rows: bool,
    work: PhantomData<T>,
}

impl<T: Lane> Blocks<T> {
    fn new(expr: &Expr, x: &Operands<'_>, output: DType) -> Blocks<T> {
        let used: Vec<usize> = (0..expr.inputs()).filter(|&i| expr.reads(i) > 0).collect();
        let shapes: Vec<&[usize]> = used.iter().map(|&i| x.input(i).shape()).collect();
        let (dims, strides) = merge(&x.output(0).shape, &shapes);
        let len: usize = dims.iter().product();
        let loads: Vec<Load> = used
            .iter()
            .zip(strides)
            .map(|(&input, strides)| Load {
                input,
                dtype: x.input(input).ty.dtype,
                full: x.input(input).ty.len() == len,
                scalar: strides.iter().all(|&s| s == 0),
                strides,
            })
            .collect();
        let inner = dims.last().copied().unwrap_or(1);
        let (steps, registers) = allocate(expr, &used);
        Blocks {
            steps,
            registers,
            loads,
            by_rows: dims.len() > 1 && inner >= LONG_ROW,
            dims,
            output,
            work: PhantomData,
        }
    }

    /// Elements of scratch per thread: one block per load, per register, and one for the result
    /// where it has another type than the output.
    fn scratch_len(&self) -> usize {
        (self.loads.len() + self.registers + 1) * BLOCK
    }

    /// Computes the outputs from element `start` on.
    fn run_range(
        &self,
        inputs: &[Option<TensorRef<'_>>],
        start: usize,
        out: &mut [u8],
        scratch: &mut [T],
    ) {
        let size = self.output.size();
        let end = start + out.len() / size;
        let inner = self.dims.last().copied().unwrap_or(1);
        let (buffers, scratch) = scratch.split_at_mut(self.loads.len() * BLOCK);
        let (registers, result) = scratch.split_at_mut(self.registers * BLOCK);
        let mut registers: SmallVec<[&mut [T]; 12]> = registers.chunks_exact_mut(BLOCK).collect();
        let mut at = start;
        while at < end {
            let mut len = BLOCK.min(end - at);
            if self.by_rows {
                len = len.min(inner - at % inner);
            }
            let mut slots: SmallVec<[Slot<'_, T>; 8]> = SmallVec::new();
            for (load, buffer) in self.loads.iter().zip(buffers.chunks_exact_mut(BLOCK)) {
                slots.push(self.load(load, inputs, at, &mut buffer[..len]));
            }
            let out = &mut out[(at - start) * size..][..len * size];
            if self.output == T::DTYPE {
                self.run_block(&slots, &mut registers, cast_slice_mut(out));
            } else {
                self.run_block(&slots, &mut registers, &mut result[..len]);
                store(&result[..len], self.output, out);
            }
            at += len;
        }
    }

    fn run_block(&self, slots: &[Slot<'_, T>], registers: &mut [&mut [T]], out: &mut [T]) {
        let len = out.len();
        let last = self.steps.len() - 1;
        for (i, (step, register)) in self.steps.iter().enumerate() {
            if i == last {
                run_step(step, slots, registers, out);
            } else {
                let target = std::mem::take(&mut registers[*register]);
                run_step(step, slots, registers, &mut target[..len]);
                registers[*register] = target;
            }
        }
    }

    /// The elements of an input that belong to outputs `at..at + buffer.len()`, in place where
    /// possible, else gathered or converted into `buffer`.
    fn load<'a>(
        &self,
        load: &Load,
        inputs: &[Option<TensorRef<'a>>],
        at: usize,
        buffer: &'a mut [T],
    ) -> Slot<'a, T> {
        let len = buffer.len();
        let Some(Some(x)) = inputs.get(load.input) else { return Slot::Scalar(T::ZERO) };
        let size = load.dtype.size();
        let direct = load.dtype == T::DTYPE;
        let slice = |from: usize, len: usize| &x.bytes[from * size..(from + len) * size];
        let one = |from: usize| {
            let mut v = [T::ZERO];
            convert(slice(from, 1), load.dtype, &mut v);
            v[0]
        };
        if load.scalar {
            return Slot::Scalar(one(0));
        }
        if load.full || self.by_rows {
            let from = if load.full { at } else { self.offset(load, at) };
            if self.by_rows && load.strides.last() == Some(&0) {
                return Slot::Scalar(one(from));
            }
            if direct {
                return Slot::Slice(cast_slice(slice(from, len)));
            }
            convert(slice(from, len), load.dtype, buffer);
            return Slot::Slice(buffer);
        }
        let inner = self.dims.last().copied().unwrap_or(1);
        let step = load.strides.last().copied().unwrap_or(0);
        let mut done = 0;
        while done < len {
            let column = (at + done) % inner;
            let run = (inner - column).min(len - done);
            let from = self.offset(load, at + done);
            let target = &mut buffer[done..done + run];
            if step == 0 {
                target.fill(one(from));
            } else if direct {
                target.copy_from_slice(cast_slice(slice(from, run)));
            } else {
                convert(slice(from, run), load.dtype, target);
            }
            done += run;
        }
        Slot::Slice(buffer)
    }

    /// The element of an input that belongs to output element `at`.
    fn offset(&self, load: &Load, mut at: usize) -> usize {
        let mut offset = 0;
        for (&dim, &stride) in self.dims.iter().zip(&load.strides).rev() {
            offset += at % dim * stride;
            at /= dim;
        }
        offset
    }
}

impl<T: Lane> CpuKernel for Blocks<T> {
    fn scratch_bytes(&self, threads: usize) -> usize {
        self.scratch_len() * size_of::<T>() * threads
    }

    fn run(&self, io: &mut KernelIo<'_, '_>, pool: &Pool) -> Result<(), OpError> {
        let size = self.output.size();
        let output = &mut io.outputs[0];
        let len = output.bytes.len() / size;
        let threads = pool.threads();
        let part = match threads {
            1 => len,
            n => len.div_ceil(n * 4).next_multiple_of(BLOCK).max(MIN_PART),
        };
        let bytes = self.scratch_bytes(threads);
        let scratch: &mut [T] = cast_slice_mut(&mut io.scratch[..bytes]);
        let per_worker = self.scratch_len();
        let inputs = io.inputs;
        pool.run_parts_with_scratch(
            output.bytes,
            part * size,
            scratch,
            per_worker,
            &|i, out, scratch| self.run_range(inputs, i * part, out, scratch),
        );
        Ok(())
    }
}

fn run_step<T: Lane>(step: &Step<T>, slots: &[Slot<'_, T>], registers: &[&mut [T]], out: &mut [T]) {
    let len = out.len();
    let of = |source: Source<T>| match source {
        Source::Load(i) => slots[i],
        Source::Register(r) => Slot::Slice(&registers[r][..len]),
        Source::Number(v) => Slot::Scalar(v),
    };
    match *step {
        Step::Unary(op, a) => T::unary(op, of(a), out),
        Step::Binary(op, a, b) => T::binary(op, of(a), of(b), out),
        Step::Select(a, b, c) => T::select(of(a), of(b), of(c), out),
    }
}

/// Gives each intermediate result a register, reused after its last reader. Returns the steps and
/// the number of registers.
fn allocate<T: Lane>(expr: &Expr, used: &[usize]) -> (Vec<(Step<T>, usize)>, usize) {
    let code = expr.code();
    let mut last_use = vec![0; code.len()];
    for (i, instr) in code.iter().enumerate() {
        for arg in instr.args() {
            if let Arg::Result(r) = arg {
                last_use[r] = i;
            }
        }
    }
    let (mut free, mut count) = (Vec::new(), 0);
    let mut register_of = vec![0; code.len()];
    let mut steps = Vec::with_capacity(code.len());
    for (i, instr) in code.iter().enumerate() {
        let source = |arg| match arg {
            Arg::Input(n) => Source::Load(
                used.iter().position(|&u| u == n).expect("inputs that are read are listed"),
            ),
            Arg::Result(r) => Source::Register(register_of[r]),
            Arg::Imm(v) => Source::Number(T::from_f64(v.into())),
        };
        let step = match *instr {
            Instr::Unary(op, a) => Step::Unary(op, source(a)),
            Instr::Binary(op, a, b) => Step::Binary(op, source(a), source(b)),
            Instr::Select(a, b, c) => Step::Select(source(a), source(b), source(c)),
        };
        if i + 1 < code.len() {
            register_of[i] = free.pop().unwrap_or_else(|| {
                count += 1;
                count - 1
            });
        }
        steps.push((step, register_of[i]));
        // After the result got its register: a step never reads what it writes.
        for r in (0..i).filter(|&r| last_use[r] == i) {
            free.push(register_of[r]);
        }
        if i + 1 < code.len() && last_use[i] == 0 {
            free.push(register_of[i]);
        }
    }
    (steps, count)
}

/// Dimensions of the output without those of size 1, neighbours merged where every input is
/// contiguous or broadcast in both; and each input's strides in them.
fn merge(
    output: &[usize],
    inputs: &[&[usize]],
) -> (SmallVec<[usize; 6]>, Vec<SmallVec<[usize; 6]>>) {
    let mut dims: SmallVec<[usize; 6]> = SmallVec::new();
    let mut strides: Vec<SmallVec<[usize; 6]>> = vec![SmallVec::new(); inputs.len()];
    let full: Vec<Vec<usize>> = inputs
        .iter()
        .map(|shape| {
            let mut step = 1;
            let mut full = vec![0; output.len()];
            for d in (0..shape.len()).rev() {
                let at = output.len() - shape.len() + d;
                if shape[d] != 1 {
                    full[at] = step;
                    step *= shape[d];
                }
            }
            full
        })
        .collect();
    for (d, &dim) in output.iter().enumerate() {
        if dim == 1 {
            continue;
        }
        // Merging outer (last so far) with this one: outer stride = this stride * this dim.
        let joins = !dims.is_empty()
            && full.iter().zip(&strides).all(|(f, s)| s.last() == Some(&(f[d] * dim)));
        if joins {
            *dims.last_mut().expect("checked above") *= dim;
            for (f, s) in full.iter().zip(&mut strides) {
                *s.last_mut().expect("as long as dims") = f[d];
            }
        } else {
            dims.push(dim);
            for (f, s) in full.iter().zip(&mut strides) {
                s.push(f[d]);
            }
        }
    }
    (dims, strides)
}

/// Reads elements of any type.
fn convert<T: Lane>(bytes: &[u8], dtype: DType, y: &mut [T]) {
    fn each<S: bytemuck::Pod, T>(bytes: &[u8], y: &mut [T], f: impl Fn(S) -> T) {
        for (y, &v) in y.iter_mut().zip(cast_slice::<u8, S>(bytes)) {
            *y = f(v);
        }
    }
    if dtype == T::DTYPE {
        y.copy_from_slice(cast_slice(bytes));
        return;
    }
    match dtype {
        DType::F16 if T::DTYPE == DType::F32 => {
            cast_slice::<u8, f16>(bytes).convert_to_f32_slice(cast_slice_mut(y));
        }
        DType::F16 => each(bytes, y, |v: f16| T::from_f64(v.to_f64())),
        DType::F32 => each(bytes, y, |v: f32| T::from_f64(v.into())),
        DType::F64 => each(bytes, y, T::from_f64),
        DType::Bool => each(bytes, y, |v: u8| T::from_bool(v != 0)),
        DType::I8 => each(bytes, y, |v: i8| T::from_i64(v.into())),
        DType::U8 => each(bytes, y, |v: u8| T::from_i64(v.into())),
        DType::I16 => each(bytes, y, |v: i16| T::from_i64(v.into())),
        DType::U16 => each(bytes, y, |v: u16| T::from_i64(v.into())),
        DType::I32 => each(bytes, y, |v: i32| T::from_i64(v.into())),
        DType::U32 => each(bytes, y, |v: u32| T::from_i64(v.into())),
        DType::I64 => each(bytes, y, T::from_i64),
        DType::U64 => each(bytes, y, T::from_u64),
    }
}

/// Writes elements of any type: truth values, halves, and integers computed in f64.
fn store<T: Lane>(x: &[T], dtype: DType, out: &mut [u8]) {
    fn each<T: Lane, D: bytemuck::Pod>(x: &[T], out: &mut [u8], f: impl Fn(f64) -> D) {
        for (y, &v) in cast_slice_mut::<u8, D>(out).iter_mut().zip(x) {
            *y = f(v.to_f64());
        }
    }
    match dtype {
        DType::Bool => {
            for (y, &v) in out.iter_mut().zip(x) {
                *y = u8::from(v != T::ZERO);
            }
        }
        DType::F16 if T::DTYPE == DType::F32 => {
            cast_slice_mut::<u8, f16>(out).convert_from_f32_slice(cast_slice(x));
        }
        DType::F16 => each(x, out, f16::from_f64),
        DType::F32 => each(x, out, |v| v as f32),
        DType::F64 => each(x, out, |v| v),
        DType::I8 => each(x, out, |v| v as i8),
        DType::U8 => each(x, out, |v| v as u8),
        DType::I16 => each(x, out, |v| v as i16),
        DType::U16 => each(x, out, |v| v as u16),
        DType::I32 => each(x, out, |v| v as i32),
        DType::U32 => each(x, out, |v| v as u32),
        DType::I64 => each(x, out, |v| v as i64),
        DType::U64 => each(x, out, |v| v as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_merge() {
        let same: &[usize] = &[2, 3, 4];
        let (dims, strides) = merge(same, &[same, &[]]);
        assert_eq!((dims.as_slice(), strides[0].as_slice()), (&[24][..], &[1][..]));
        assert_eq!(strides[1].as_slice(), &[0]);
        let (dims, strides) = merge(&[2, 3, 4, 5], &[&[2, 3, 4, 5], &[3, 1, 1]]);
        assert_eq!(dims.as_slice(), &[2, 3, 20]);
        assert_eq!(strides[0].as_slice(), &[60, 20, 1]);
        assert_eq!(strides[1].as_slice(), &[0, 1, 0]);
        let (dims, strides) = merge(&[2, 3, 4, 5], &[&[2, 1, 4, 5], &[5]]);
        assert_eq!(dims.as_slice(), &[2, 3, 4, 5]);
        assert_eq!(strides[0].as_slice(), &[20, 0, 5, 1]);
        assert_eq!(strides[1].as_slice(), &[0, 0, 0, 1]);
    }
}
