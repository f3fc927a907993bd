//! Matrix products in tiles, the core of Linear, MatMul and Conv: rows of the left side are
//! matrix rows or convolution windows, the right side is a matrix, several products may run at
//! once (batches, groups).
//!
//! Two forms. Hardware GPUs share tiles of both sides in workgroup memory. Software adapters
//! compute with SIMD lanes but load element by element, so there a workgroup is one subgroup, a
//! lane loads one row's elements, and `subgroupBroadcast` hands them to the other lanes.

use std::fmt::Write;

use super::{Binding, Dispatch, GpuCaps, activation::Epilogue, packing::padded, shader::Shader};

/// A product to describe.
pub(in crate::ops) struct Tile {
    /// Name for traces.
    pub(in crate::ops) label: &'static str,
    /// Rows of one product.
    pub(in crate::ops) m: usize,
    /// Columns of one product.
    pub(in crate::ops) n: usize,
    /// Number of products: index `z` in the text.
    pub(in crate::ops) batch: usize,
    /// Window positions per row; 1 for a matrix.
    pub(in crate::ops) taps: usize,
    /// Contiguous left-hand elements per tap.
    pub(in crate::ops) inner: usize,
    /// Elements of the right side, and between one product's right side and the next's. A
    /// constant right side has its rows padded to whole vec4s (see [`super::packing`]).
    pub(in crate::ops) right: Right,
    /// Elements between output rows and between outputs of products.
    pub(in crate::ops) y_strides: [usize; 2],
    /// Whether constant 1 is a bias, its columns padded likewise.
    pub(in crate::ops) bias: bool,
    /// What is done to the sums.
    pub(in crate::ops) epilogue: Epilogue,
}

/// The right side of a product.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::ops) enum Right {
    /// Constant 0.
    Constant { half: bool },
    /// Input 1, n elements per row, so many elements between products.
    Input { stride: usize },
}

/// Rows of the left side: parameters and the WGSL function
/// `row_base(row: u32, tap: u32, z: u32) -> i32`, index of the first element of the row's tap in
/// units of `VEC` elements, or -1 where the window lies in the padding.
pub(in crate::ops) struct Left {
    /// Strides in elements that must be whole vec4s for vec4 loads.
    pub(in crate::ops) strides: Vec<usize>,
    /// Adds the parameters; the second argument is elements per unit (1 or 4).
    pub(in crate::ops) params: Box<dyn Fn(Shader, usize) -> Shader>,
    /// The function.
    pub(in crate::ops) text: &'static str,
}

/// Rows of a plain matrix with `k` columns, `stride` elements from product to product.
pub(in crate::ops) fn matrix_rows(k: usize, stride: usize) -> Left {
    Left {
        strides: vec![k, stride],
        params: Box::new(move |shader, unit| {
            shader.size("a_row", k / unit).size("a_z", stride / unit)
        }),
        text: "fn row_base(row: u32, tap: u32, z: u32) -> i32 {\n    \
               return i32(z * p.a_z + row * p.a_row);\n}\n",
    }
}

/// Rows, columns and inner steps of a workgroup's tile on hardware.
const STEP: usize = 16;

impl Tile {
    /// The dispatch, or `None` when it exceeds what `caps` allows.
    pub(in crate::ops) fn dispatch(&self, left: &Left, caps: &GpuCaps) -> Option<Dispatch> {
        let vector_a =
            caps.aligned && self.inner.is_multiple_of(4) && left.strides.iter().all(|s| s % 4 == 0);
        let vector_y =
            caps.aligned && self.n.is_multiple_of(4) && self.y_strides.iter().all(|s| s % 4 == 0);
        let unit = if vector_a { 4 } else { 1 };
        let y_unit = if vector_y { 4 } else { 1 };
        let (b_element, b_unit) = match self.right {
            Right::Constant { half: true } => ("vec4<f16>", 4),
            Right::Constant { half: false } => ("vec4<f32>", 4),
            Right::Input { stride }
                if caps.aligned && self.n.is_multiple_of(4) && stride % 4 == 0 =>
            {
                ("vec4<f32>", 4)
            }
            Right::Input { .. } => ("f32", 1),
        };
        let a_element = if vector_a { "vec4<f32>" } else { "f32" };
        let y_element = if vector_y { "vec4<f32>" } else { "f32" };
        let n4 = self.n.div_ceil(4);
        let (b_binding, b_z) = match self.right {
            Right::Constant { .. } => (Binding::Constant(0), padded(self.taps * self.inner) * n4),
            Right::Input { stride } => (Binding::Input(1), stride / b_unit),
        };
        let mut shader = Shader::new(self.label)
            .buffer("a", Binding::Input(0), a_element)
            .buffer("b", b_binding, b_element)
            .buffer("y", Binding::Output(0), y_element)
            .sizes([
                ("m", self.m),
                ("n", self.n),
                ("n4", n4),
                ("taps", self.taps),
                ("inner", self.inner / unit),
                ("rows_b", self.taps * self.inner),
                ("b_z", b_z),
                ("y_row", self.y_strides[0] / y_unit),
                ("y_z", self.y_strides[1] / y_unit),
            ]);
        if self.bias {
            shader = shader.buffer("bias", Binding::Constant(1), "vec4<f32>");
        }
        shader = (left.params)(shader, unit);
        shader = self.epilogue.add(shader, y_element);

        let mut text = String::from(left.text);
        text.push_str("$epilogue");
        text.push_str(if b_unit == 4 { LOAD_B_VECTOR } else { LOAD_B_SCALAR });
        text.push_str(&self.store_text(vector_y));
        let (body, grid) = if software_lanes(caps).is_some() {
            self.software(vector_a, caps)?
        } else {
            self.hardware(vector_a, caps)
        };
        text.push_str(&body);
        shader.build(&text, grid)
    }

    /// `store(row, col, z, sum)`: bias, epilogue, and the ends of rows that are no whole vec4s.
    fn store_text(&self, vector: bool) -> String {
        let sum = if self.bias { "sum + bias[z * p.n4 + col]" } else { "sum" };
        let mut text = format!(
            "fn store(row: u32, col: u32, z: u32, sum: vec4<f32>) {{\n    \
             if (row >= p.m || col >= p.n4) {{ return; }}\n    let v = {sum};\n"
        );
        text.push_str(if vector {
            "    let at = z * p.y_z + row * p.y_row + col;\n    y[at_y() + at] = finish4(v, at);\n}\n"
        } else {
            "    let at = z * p.y_z + row * p.y_row + col * 4u;\n    \
             for (var i = 0u; i < min(4u, p.n - col * 4u); i++) {\n        \
             y[at_y() + at + i] = finish1(v[i], at + i);\n    }\n}\n"
        });
        text
    }

    /// One subgroup per workgroup: lanes lie along columns, each lane a vec4 of them.
    fn software(&self, vector_a: bool, caps: &GpuCaps) -> Option<(String, [usize; 3])> {
        let lanes = software_lanes(caps)?;
        let rows = if self.m <= lanes { lanes } else { (32 / lanes).max(1) * lanes };
        let rows = if self.m <= 16 { rows.min(lanes * 16usize.div_ceil(lanes)) } else { rows };
        let loads = rows / lanes;
        let mut t = format!(
            "@compute @workgroup_size({lanes})\n\
             fn main(@builtin(workgroup_id) group: vec3<u32>, \
             @builtin(subgroup_invocation_id) lane: u32) {{\n\
             let z = group.z;\n\
             let row = group.y * {rows}u;\n\
             let col = group.x * {lanes}u + lane;\n\
             let c = min(col, p.n4 - 1u);\n"
        );
        for i in 0..rows {
            t += &format!("var s{i} = vec4<f32>();\n");
        }
        t.push_str("for (var tap = 0u; tap < p.taps; tap++) {\n");
        for load in 0..loads {
            let at = load * lanes;
            t += &format!(
                "let base{load} = row_base(min(row + {at}u + lane, p.m - 1u), tap, z);\n\
                 let at{load} = at_a() + u32(max(base{load}, 0));\n"
            );
        }
        t.push_str("for (var k = 0u; k < p.inner; k++) {\n");
        let steps = if vector_a { 4 } else { 1 };
        for step in 0..steps {
            t +=
                &format!("let b{step} = load_b((tap * p.inner + k) * {steps}u + {step}u, c, z);\n");
        }
        let zero = if vector_a { "vec4<f32>()" } else { "0.0" };
        for load in 0..loads {
            t += &format!("let a{load} = select({zero}, a[at{load} + k], base{load} >= 0);\n");
            for lane in 0..lanes {
                let row = load * lanes + lane;
                t += &format!("let r{row} = subgroupBroadcast(a{load}, {lane}u);\n");
                for step in 0..steps {
                    let element =
                        if vector_a { format!("r{row}[{step}]") } else { format!("r{row}") };
                    t += &format!("s{row} += {element} * b{step};\n");
                }
            }
        }
        t.push_str("}\n}\n");
        for i in 0..rows {
            t += &format!("store(row + {i}u, col, z, s{i});\n");
        }
        t.push_str("}\n");
        let grid = [self.n.div_ceil(4 * lanes), self.m.div_ceil(rows), self.batch];
        Some((t, grid))
    }

    /// Tiles of both sides in workgroup memory; each invocation has 4 rows of one vec4.
    fn hardware(&self, vector_a: bool, caps: &GpuCaps) -> (String, [usize; 3]) {
        let groups = |tile: usize| self.m.div_ceil(tile) * self.n.div_ceil(tile) * self.batch;
        let large = groups(64) >= 128 && caps.workgroup_size >= 256;
        let tile = if large { 64 } else { 32 };
        let threads = tile / 4 * (tile / 4);
        let mut t = String::from(if vector_a { LOAD_A_VECTOR } else { LOAD_A_SCALAR });
        write!(
            t,
            "const TILE: u32 = {tile}u;\nconst THREADS: u32 = {threads}u;\n\
             const STEP: u32 = {STEP}u;\nconst ACROSS: u32 = {}u;\n",
            tile / 4
        )
        .expect("writing to a string");
        t.push_str(include_str!("tile.wgsl"));
        (t, [self.n.div_ceil(tile), self.m.div_ceil(tile), self.batch])
    }
}

/// Lanes of a subgroup where a software adapter's subgroups are usable.
pub(super) fn software_lanes(caps: &GpuCaps) -> Option<usize> {
    (caps.software && matches!(caps.subgroup, 4 | 8 | 16)).then_some(caps.subgroup as usize)
}

const LOAD_B_VECTOR: &str = "fn load_b(k: u32, c: u32, z: u32) -> vec4<f32> {\n    \
    return vec4<f32>(b[at_b() + z * p.b_z + k * p.n4 + c]);\n}\n";

const LOAD_B_SCALAR: &str = "fn load_b(k: u32, c: u32, z: u32) -> vec4<f32> {\n    \
    let at = at_b() + z * p.b_z + k * p.n;\n    let last = p.n - 1u;\n    let i = c * 4u;\n    \
    return vec4<f32>(b[at + min(i, last)], b[at + min(i + 1u, last)], b[at + min(i + 2u, last)], \
    b[at + min(i + 3u, last)]);\n}\n";

/// Four left-hand elements of a row from flattened position `4 k` on, zero outside.
const LOAD_A_VECTOR: &str = "fn load_a(row: u32, k: u32, z: u32) -> vec4<f32> {\n    \
    if (row >= p.m || k * 4u >= p.rows_b) { return vec4<f32>(); }\n    \
    let tap = k / p.inner;\n    let base = row_base(row, tap, z);\n    \
    if (base < 0) { return vec4<f32>(); }\n    \
    return a[at_a() + u32(base) + k - tap * p.inner];\n}\n";

const LOAD_A_SCALAR: &str = "fn load_a1(row: u32, k: u32, z: u32) -> f32 {\n    \
    if (k >= p.rows_b) { return 0.0; }\n    \
    let tap = k / p.inner;\n    let base = row_base(row, tap, z);\n    \
    if (base < 0) { return 0.0; }\n    \
    return a[at_a() + u32(base) + k - tap * p.inner];\n}\n\
    fn load_a(row: u32, k: u32, z: u32) -> vec4<f32> {\n    \
    if (row >= p.m) { return vec4<f32>(); }\n    \
    return vec4<f32>(load_a1(row, k * 4u, z), load_a1(row, k * 4u + 1u, z), \
    load_a1(row, k * 4u + 2u, z), load_a1(row, k * 4u + 3u, z));\n}\n";
