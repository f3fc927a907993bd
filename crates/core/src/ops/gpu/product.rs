//! What the forms of a product that pass slices through workgroup memory share: how the inner
//! dimension is cut into parts, what their sums cost, and where in its window an invocation is.

use std::fmt::Write;

use super::GpuCaps;

/// A product as the choice of a block sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    /// Rows, inner elements, columns of one.
    pub(super) sizes: [usize; 3],
    /// How many.
    pub(super) batch: usize,
}

/// A way to cut the inner dimension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Parts, each a workgroup's.
    pub(super) parts: usize,
    /// Inner elements of a part, whole slices.
    pub(super) span: usize,
    /// The workgroups of a block's parts are a cluster, which adds their sums.
    pub(super) joined: bool,
}

impl Cut {
    /// No cut.
    pub(super) fn whole(span: usize) -> Cut {
        Cut { parts: 1, span, joined: false }
    }

    /// Dispatches.
    pub(super) fn dispatches(&self) -> usize {
        if self.parts == 1 || self.joined { 1 } else { 2 }
    }

    /// Workgroups of `blocks` blocks that one of so many multiprocessors gets, which has room for
    /// `resident` at once.
    pub(super) fn per_unit(&self, blocks: usize, multiprocessors: usize, resident: usize) -> usize {
        let all = blocks * self.parts;
        if !self.joined {
            return all.div_ceil(multiprocessors);
        }
        let usable = multiprocessors - multiprocessors * (NEIGHBOURS % self.parts) / NEIGHBOURS;
        match all.div_ceil(usable.max(1)) {
            1 if resident == 1 => 1,
            // Those of a cluster share a multiprocessor while others have none.
            several => several + 1,
        }
    }
}

/// Multiprocessors where the device does not tell. Then nothing is cut into parts.
const USUAL_UNITS: usize = 16;
/// Bytes of partial sums at most: beyond, memory would cost more than idle multiprocessors.
const MAX_SUMS: u64 = 64 << 20;
/// What a second dispatch costs, in cycles: its start and its latencies.
const DISPATCH: f64 = 4500.0;
/// What it costs a cluster to leave its sums and wait for one another.
const JOIN: f64 = 2000.0;
/// Workgroups of a cluster at most.
const MOST_JOINED: usize = 8;
/// Multiprocessors near each other, among which a cluster must find its own: NVIDIA's have 16 to 18.
const NEIGHBOURS: usize = 16;
/// Cycles until a workgroup's first slice is there, and after its last.
pub(super) const LATENCY: f64 = 1800.0;
/// Warps that have room on a multiprocessor at once.
pub(super) const RESIDENT: usize = 16;

/// Multiprocessors to share a product out to.
pub(super) fn multiprocessors(caps: &GpuCaps) -> usize {
    if caps.units == 0 { USUAL_UNITS } else { caps.units as usize }
}

impl Product {
    /// Ways to cut the inner dimension into slices of `step`.
    pub(super) fn cuts(self, step: usize, caps: &GpuCaps) -> impl Iterator<Item = Cut> {
        let [m, k, n] = self.sizes;
        let slices = k.div_ceil(step);
        let most = if caps.units == 0 { 1 } else { slices.min(64) };
        let clusters = caps.clusters;
        let largest = caps.max_binding_bytes.min(MAX_SUMS);
        let bytes = move |parts| (parts * m * self.batch * n.next_multiple_of(4) * 4) as u64;
        (1..=most)
            .map(move |parts| [slices.div_ceil(parts), parts])
            // Else fewer parts of the same span do.
            .filter(move |&[span, parts]| slices.div_ceil(span) == parts)
            .take_while(move |&[_, parts]| parts == 1 || bytes(parts) <= largest)
            .flat_map(move |[slices, parts]| {
                let joined = clusters && (2..=MOST_JOINED).contains(&parts);
                let cut = Cut { parts, span: slices * step, joined: false };
                [Some(cut), joined.then_some(Cut { joined, ..cut })].into_iter().flatten()
            })
    }

    /// Blocks of `rows` and `columns`.
    pub(super) fn blocks(&self, [rows, columns]: [usize; 2]) -> usize {
        let [m, _, n] = self.sizes;
        m.div_ceil(rows) * n.div_ceil(columns) * self.batch
    }

    /// Workgroups of `rows` and `columns`, for each of `parts`.
    pub(super) fn grid(&self, [rows, columns]: [usize; 2], parts: usize) -> [usize; 3] {
        let [m, _, n] = self.sizes;
        [n.div_ceil(columns), m.div_ceil(rows), self.batch * parts]
    }

    /// Estimated cycles of adding the parts' sums, `bytes` being what a multiprocessor gets from the
    /// cache per cycle.
    pub(super) fn sum_cycles(&self, cut: Cut, multiprocessors: usize, bytes: f64) -> f64 {
        let Cut { parts, joined, .. } = cut;
        if parts == 1 {
            return 0.0;
        }
        let [m, _, n] = self.sizes;
        let moved = 8 * m * n * self.batch * parts;
        (if joined { JOIN } else { DISPATCH })
            + moved as f64 / (multiprocessors as f64 * bytes / 2.0)
            + 40.0 * parts as f64
    }
}

/// Begins `main` of so many threads: a workgroup's product `z`, its `part`, and the inner elements
/// of it.
pub(super) fn begin(t: &mut String, threads: usize, parts: usize) -> std::fmt::Result {
    let part = match parts {
        1 => "let z = group.z;\nlet part = 0u;\nlet first = 0u;\nlet end = p.rows_b;\n",
        _ => {
            "let z = group.z / p.parts;\nlet part = group.z - z * p.parts;\n\
             let first = part * p.span;\nlet end = min(first + p.span, p.rows_b);\n"
        }
    };
    write!(
        t,
        "@compute @workgroup_size({threads})\n\
         fn main(@builtin(workgroup_id) group: vec3<u32>, \
         @builtin(local_invocation_index) thread: u32) {{\n{part}"
    )
}

/// How left-hand elements are found; see [`super::tile::Rows`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Access {
    /// Elements come as vec4s.
    pub(super) vector: bool,
    /// They are stored in 16 bits.
    pub(super) half: bool,
    /// They are, and come as chunks of eight.
    pub(super) chunks: bool,
    /// Window positions down and across.
    pub(super) taps: [usize; 2],
    /// No element lies in a padding.
    pub(super) sure: bool,
}

impl Access {
    /// Position `j` of a window begins at `first`.
    pub(super) fn start(&self, t: &mut String, j: usize, first: &str) -> std::fmt::Result {
        let [down, across] = self.taps;
        writeln!(t, "var c{j} = {first};")?;
        if down * across > 1 {
            writeln!(t, "var kh{j} = c{j} / p.inner;\nc{j} -= kh{j} * p.inner;")?;
        }
        if across > 1 {
            writeln!(t, "var kw{j} = kh{j} % {across}u;\nkh{j} /= {across}u;")?;
        }
        Ok(())
    }

    /// Moves position `j` by `step` elements or vec4s.
    pub(super) fn advance(&self, t: &mut String, j: usize, step: usize) -> std::fmt::Result {
        let [down, across] = self.taps;
        writeln!(t, "c{j} += {step}u;")?;
        if across > 1 {
            writeln!(
                t,
                "while (c{j} >= p.inner) {{\nc{j} -= p.inner;\nkw{j}++;\n\
                 if (kw{j} == {across}u) {{ kw{j} = 0u; kh{j}++; }}\n}}"
            )
        } else if down > 1 {
            writeln!(t, "while (c{j} >= p.inner) {{ c{j} -= p.inner; kh{j}++; }}")
        } else {
            Ok(())
        }
    }

    /// Where position `j` of row `i` lies, as `at`.
    pub(super) fn locate(&self, t: &mut String, i: usize, j: usize) -> std::fmt::Result {
        let [down, across] = self.taps;
        let kh = if down * across > 1 { format!("kh{j}") } else { "0u".to_owned() };
        let kw = if across > 1 { format!("kw{j}") } else { "0u".to_owned() };
        writeln!(t, "{{ let at = left_at(place{i}, {kh}, {kw}, c{j});")
    }
}
