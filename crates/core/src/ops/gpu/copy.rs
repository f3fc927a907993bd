//! Operators that only move elements: each output (or piece of one) is a strided view of an
//! input, written as a strided view.

use std::fmt::Write;

use super::{
    Binding, Dispatch, GpuCaps, GpuKernel,
    shader::{Shader, fold},
};
use crate::{
    ops::{Operands, axes},
    tensor::{DType, TensorType},
};

/// A copy of `dims` elements between two strided views, in elements.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::ops) struct View {
    /// Sizes, outermost first.
    pub(in crate::ops) dims: Vec<usize>,
    /// Steps through the input, and where it begins.
    pub(in crate::ops) from: Vec<isize>,
    pub(in crate::ops) from_offset: isize,
    /// The index of the input that index 0 of the output reads: those before it come after the last.
    pub(in crate::ops) starts: Vec<usize>,
    /// Steps through the output, and where it begins.
    pub(in crate::ops) to: Vec<isize>,
    pub(in crate::ops) to_offset: isize,
}

/// Row-major strides.
fn strides(shape: &[usize]) -> Vec<isize> {
    axes::strides(shape).into_iter().map(|s| s as isize).collect()
}

impl View {
    /// The output `dims`, read through `from` strides.
    pub(in crate::ops) fn gather(dims: &[usize], from: Vec<isize>, from_offset: isize) -> View {
        let starts = vec![0; dims.len()];
        View { to: strides(dims), dims: dims.to_vec(), from, from_offset, starts, to_offset: 0 }
    }

    /// `shape` transposed by `perm`.
    pub(in crate::ops) fn transposed(shape: &[usize], perm: &[usize]) -> View {
        let steps = strides(shape);
        let dims: Vec<usize> = perm.iter().map(|&a| shape[a]).collect();
        View::gather(&dims, perm.iter().map(|&a| steps[a]).collect(), 0)
    }

    /// All of `shape`, beginning at `starts`.
    fn rolled(shape: &[usize], starts: &[usize]) -> View {
        View { starts: starts.to_vec(), ..View::gather(shape, strides(shape), 0) }
    }

    /// Joins neighbouring dimensions that are contiguous in both views; drops those of size 1.
    fn joined(&self) -> View {
        let mut view = View {
            dims: Vec::new(),
            from: Vec::new(),
            to: Vec::new(),
            starts: Vec::new(),
            from_offset: self.from_offset,
            to_offset: self.to_offset,
        };
        for (i, &dim) in self.dims.iter().enumerate().filter(|(_, d)| **d != 1) {
            let size = dim as isize;
            match (view.dims.last_mut(), view.starts.last_mut()) {
                (Some(last), Some(start))
                    if view.from.last() == Some(&(self.from[i] * size))
                        && view.to.last() == Some(&(self.to[i] * size))
                        && self.starts[i] == 0 =>
                {
                    *last *= dim;
                    *start *= dim;
                    view.from.pop();
                    view.to.pop();
                }
                _ => {
                    view.dims.push(dim);
                    view.starts.push(self.starts[i]);
                }
            }
            view.from.push(self.from[i]);
            view.to.push(self.to[i]);
        }
        view
    }

    /// The same in whole vectors of `width` elements, if both sides allow it.
    fn vectors(&self, width: usize) -> Option<View> {
        let last = self.dims.len().checked_sub(1)?;
        let size = width as isize;
        let whole = |strides: &[isize], offset: isize| {
            let whole = |s: &isize| s % size == 0;
            strides[last] == 1 && whole(&offset) && strides[..last].iter().all(whole)
        };
        if !self.dims[last].is_multiple_of(width)
            || !self.starts[last].is_multiple_of(width)
            || !whole(&self.from, self.from_offset)
            || !whole(&self.to, self.to_offset)
        {
            return None;
        }
        let part = |strides: &[isize]| {
            strides.iter().enumerate().map(|(i, &s)| if i == last { 1 } else { s / size }).collect()
        };
        let (mut dims, mut starts) = (self.dims.clone(), self.starts.clone());
        dims[last] /= width;
        starts[last] /= width;
        Some(View {
            dims,
            starts,
            from: part(&self.from),
            from_offset: self.from_offset / size,
            to: part(&self.to),
            to_offset: self.to_offset / size,
        })
    }

    /// The dispatch that copies `input` to `output`.
    pub(in crate::ops) fn dispatch(
        &self,
        label: &'static str,
        input: usize,
        output: usize,
        caps: &GpuCaps,
    ) -> Option<Dispatch> {
        let view = self.joined();
        let vectors = |width| if caps.aligned { view.vectors(width) } else { None };
        // What has 16 bits on both sides moves as it is.
        let eighths = match caps.halves.input(input) && caps.halves.output(output) {
            true => vectors(8),
            false => None,
        };
        let (view, element) = match (eighths, vectors(4)) {
            (Some(eighths), _) => (eighths, "vec4<u32>"),
            (None, Some(quarters)) => (quarters, words(true, caps)),
            (None, None) => (view, words(false, caps)),
        };
        let count: usize = view.dims.iter().product();
        let threads = caps.threads(count);
        let (grid, groups_x) = fold(count.div_ceil(threads), caps.max_grid);
        let mut shader = Shader::new(label)
            .buffer("x", Binding::Input(input), element)
            .buffer("y", Binding::Output(output), element)
            .sizes([("count", count), ("groups_x", groups_x)])
            .int("from_offset", view.from_offset)
            .int("to_offset", view.to_offset);
        let mut body = String::new();
        for i in (0..view.dims.len()).rev() {
            shader = shader
                .size(format!("dim{i}"), view.dims[i])
                .int(format!("from{i}"), view.from[i])
                .int(format!("to{i}"), view.to[i]);
            let index = if i == 0 { "i32(rest)" } else { "i32(rest % p.dim$)" };
            let mut from = "c$";
            if view.starts[i] > 0 {
                shader = shader.int(format!("start{i}"), isize::try_from(view.starts[i]).ok()?);
                from = "((c$ + p.start$) % i32(p.dim$))";
            }
            let line = format!(
                "    let c$ = {index};\n    from_at += {from} * p.from$;\n    to_at += c$ * p.to$;\n    \
                 rest /= p.dim$;\n"
            );
            write!(body, "{}", line.replace('$', &i.to_string())).ok()?;
        }
        shader
            .define("BODY", body)
            .define("THREADS", threads.to_string())
            .build(include_str!("copy.wgsl"), grid)
    }
}

/// The elements of a text that only moves them: words of any type, or, where some are stored in 16
/// bits, the numbers that they are.
pub(super) fn words(vector: bool, caps: &GpuCaps) -> &'static str {
    let half = caps.halves.inputs | caps.halves.outputs != 0;
    match (vector, half) {
        (true, false) => "vec4<u32>",
        (true, true) => "vec4<f32>",
        (false, false) => "u32",
        (false, true) => "f32",
    }
}

fn is_word(ty: &TensorType) -> bool {
    matches!(ty.dtype, DType::F32 | DType::I32 | DType::U32)
}

/// A kernel of copies; `None` for elements that are not 4 bytes long.
pub(in crate::ops) fn copies(
    label: &'static str,
    x: &Operands<'_>,
    caps: &GpuCaps,
    views: impl IntoIterator<Item = (usize, usize, View)>,
) -> Option<GpuKernel> {
    if !is_word(x.output(0)) {
        return None;
    }
    let dispatches: Option<Vec<Dispatch>> = views
        .into_iter()
        .filter(|(_, _, view)| !view.dims.contains(&0))
        .map(|(input, output, view)| view.dispatch(label, input, output, caps))
        .collect();
    Some(GpuKernel { dispatches: dispatches?, ..GpuKernel::default() })
}

/// Output 0 is input 0 seen through a permutation of `shape` (of as many elements).
pub(in crate::ops) fn transpose(
    x: &Operands<'_>,
    caps: &GpuCaps,
    shape: &[usize],
    perm: &[usize],
) -> Option<GpuKernel> {
    copies("transpose", x, caps, [(0, 0, View::transposed(shape, perm))])
}

/// Output 0 is input 0 from `offset` in `steps`.
pub(in crate::ops) fn slice(
    x: &Operands<'_>,
    caps: &GpuCaps,
    steps: Vec<isize>,
    offset: isize,
) -> Option<GpuKernel> {
    copies("slice", x, caps, [(0, 0, View::gather(&x.output(0).shape, steps, offset))])
}

/// Output 0 is input 0, beginning at `starts`; what is before them comes last.
pub(in crate::ops) fn roll(
    x: &Operands<'_>,
    caps: &GpuCaps,
    starts: &[usize],
) -> Option<GpuKernel> {
    copies("roll", x, caps, [(0, 0, View::rolled(x.input(0).shape(), starts))])
}

/// Output 0 is input 0 broadcast to its shape.
pub(in crate::ops) fn expand(x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
    let (from, to) = (x.input(0).shape(), &x.output(0).shape);
    let missing = to.len().checked_sub(from.len())?;
    let own = strides(from);
    let steps = (0..to.len())
        .map(|i| match i.checked_sub(missing) {
            Some(j) if from[j] != 1 => own[j],
            _ => 0,
        })
        .collect();
    copies("expand", x, caps, [(0, 0, View::gather(to, steps, 0))])
}

/// Output 0 is the inputs one after the other along `axis`.
pub(in crate::ops) fn concat(x: &Operands<'_>, caps: &GpuCaps, axis: usize) -> Option<GpuKernel> {
    let to = strides(&x.output(0).shape);
    let mut at = 0;
    let views = (0..x.inputs.len()).map(|i| {
        let dims = x.input(i).shape().to_vec();
        let to_offset = at * to[axis];
        at += dims[axis] as isize;
        let view = View::gather(&dims, strides(&dims), 0);
        (i, 0, View { to: to.clone(), to_offset, ..view })
    });
    copies("concat", x, caps, views.collect::<Vec<_>>())
}

/// The outputs are ranges of input 0 along `axis`.
pub(in crate::ops) fn split(x: &Operands<'_>, caps: &GpuCaps, axis: usize) -> Option<GpuKernel> {
    let from = strides(x.input(0).shape());
    let mut at = 0;
    let views = x.outputs.iter().enumerate().map(|(i, ty)| {
        let view = View::gather(&ty.shape, from.clone(), at * from[axis]);
        at += ty.shape[axis] as isize;
        (0, i, view)
    });
    copies("split", x, caps, views.collect::<Vec<_>>())
}

/// Output 0 is filled with `value`, then input 0 (the part that stays) is put into it. `pads`:
/// elements before and after each axis, negative ones taken away.
pub(in crate::ops) fn pad(
    x: &Operands<'_>,
    caps: &GpuCaps,
    pads: &[(i64, i64)],
    value: f32,
) -> Option<GpuKernel> {
    let output = x.output(0);
    if output.dtype != DType::F32 || output.is_empty() {
        return None;
    }
    let shape = x.input(0).shape();
    let (from, to) = (strides(shape), strides(&output.shape));
    let (mut dims, mut from_offset, mut to_offset) = (Vec::new(), 0, 0);
    for (i, &(before, after)) in pads.iter().enumerate() {
        let cut = |pad: i64| usize::try_from(-pad.min(0)).ok();
        let (cut_before, cut_after) = (cut(before)?, cut(after)?);
        dims.push(shape[i].saturating_sub(cut_before + cut_after));
        from_offset += cut_before as isize * from[i];
        to_offset += isize::try_from(before.max(0)).ok()? * to[i];
    }
    let threads = 64;
    let (grid, groups_x) = fold(output.len().div_ceil(threads), caps.max_grid);
    let fill = Shader::new("fill")
        .buffer("y", Binding::Output(0), "f32")
        .sizes([("count", output.len()), ("groups_x", groups_x)])
        .float("value", value)
        .build(include_str!("fill.wgsl"), grid)?;
    let view = View { to, to_offset, ..View::gather(&dims, from, from_offset) };
    let mut kernel = copies("pad", x, caps, [(0, 0, view)])?;
    kernel.dispatches.insert(0, fill);
    Some(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_what_stays_together() {
        // NCHW -> NHWC of one image: a matrix transposition.
        let view = View::transposed(&[1, 8, 4, 6], &[0, 2, 3, 1]).joined();
        assert_eq!((view.dims, view.from, view.to), (vec![24, 8], vec![1, 24], vec![8, 1]));
        // Heads: rows of 32 elements move as vectors.
        let view = View::transposed(&[2, 10, 3, 32], &[0, 2, 1, 3]).joined();
        assert_eq!(view.dims, [2, 3, 10, 32]);
        let quarter = view.vectors(4).unwrap();
        assert_eq!((quarter.dims[3], quarter.from), (8, vec![240, 8, 24, 1]));
        assert!(View::transposed(&[4, 4], &[1, 0]).joined().vectors(4).is_none());
    }

    #[test]
    fn rolled_dimensions_are_joined_with_those_inside() {
        let view = View::rolled(&[2, 6, 5, 8], &[0, 2, 0, 0]).joined();
        assert_eq!((view.dims.as_slice(), view.starts.as_slice()), (&[2, 240][..], &[0, 80][..]));
        let view = View::rolled(&[2, 6, 5, 8], &[1, 2, 3, 0]).joined();
        assert_eq!((view.dims, view.starts), (vec![2, 6, 40], vec![1, 2, 24]));
        let quarter = View::rolled(&[3, 8], &[0, 4]).vectors(4).unwrap();
        assert_eq!((quarter.dims, quarter.starts), (vec![3, 2], vec![0, 1]));
        assert!(View::rolled(&[3, 8], &[0, 2]).vectors(4).is_none());
    }
}
