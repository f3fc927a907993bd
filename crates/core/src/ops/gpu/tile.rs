//! Matrix products in tiles, the core of Linear, MatMul and Conv: rows of the left side are
//! matrix rows or convolution windows, the right side is a matrix, several products may run at
//! once (batches, groups).
//!
//! Hardware GPUs share slices of both sides in workgroup memory ([`super::blocks`]), or, with few
//! rows, stream the right side ([`super::thin`]). Software adapters compute with SIMD lanes but
//! load element by element, so there a workgroup is one subgroup, a lane loads one row's elements,
//! and `subgroupBroadcast` hands them to the other lanes. Where matrix units are asked for, products
//! with constants use them ([`super::matrix_units`]), but for those of few rows.

use super::{
    Binding, Dispatch, GpuCaps, GpuConstant, GpuKernel, MatrixUnits,
    activation::Epilogue,
    blocks, clusters,
    library::{self, Images},
    matrix_blocks,
    packing::{Weight, padded},
    product::{Access, Cut, Product},
    shader::Shader,
    thin,
};

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
    /// The right side.
    pub(in crate::ops) right: Right,
    /// Elements between output rows and between outputs of products.
    pub(in crate::ops) y_strides: [usize; 2],
    /// The bias, its columns padded to whole vec4s.
    pub(in crate::ops) bias: Option<GpuConstant>,
    /// The images whose windows the left side's rows are, if it is no plain matrix.
    pub(in crate::ops) images: Option<Images>,
    /// What is done to the sums.
    pub(in crate::ops) epilogue: Epilogue,
}

/// The right side of a product.
pub(in crate::ops) enum Right {
    /// A constant.
    Constant(Weight),
    /// Input 1, n elements per row, so many elements between products.
    Input { stride: usize },
}

/// Rows of the left side, as software adapters read them and as hardware does.
pub(in crate::ops) struct Left {
    /// Tap by tap: a WGSL function `row_base(row: u32, tap: u32, z: u32) -> i32`, index of the
    /// first element of the row's tap in units of 1 or 4 elements, or -1 where the window lies in
    /// the padding.
    pub(in crate::ops) by_tap: Rows,
    /// Element by element: `place(row: u32, z: u32) -> vec4<i32>`, what is known of a row, and
    /// `left_at(place: vec4<i32>, down: u32, across: u32, c: u32) -> i32`, index of the unit `c` of
    /// a tap, or -1 in the padding.
    pub(in crate::ops) by_element: Rows,
}

/// One way to read the left side.
pub(in crate::ops) struct Rows {
    /// Taps down and across.
    pub(in crate::ops) taps: [usize; 2],
    /// Contiguous elements per tap.
    pub(in crate::ops) run: usize,
    /// No tap lies in a padding.
    pub(in crate::ops) sure: bool,
    /// Distances in elements that must be whole vec4s for vec4 loads.
    pub(in crate::ops) strides: Vec<usize>,
    /// Adds the parameters; the second argument is elements per unit (1 or 4).
    pub(in crate::ops) params: Box<dyn Fn(Shader, usize) -> Shader>,
    /// The functions.
    pub(in crate::ops) text: &'static str,
}

/// Rows of a plain matrix with `k` columns, `stride` elements from product to product.
pub(in crate::ops) fn matrix_rows(k: usize, stride: usize) -> Left {
    let rows = |text| Rows {
        taps: [1, 1],
        run: k,
        sure: true,
        strides: vec![k, stride],
        params: Box::new(move |shader, unit| {
            shader.size("a_row", k / unit).size("a_z", stride / unit)
        }),
        text,
    };
    Left {
        by_tap: rows(
            "fn row_base(row: u32, tap: u32, z: u32) -> i32 {\n    \
             return i32(z * p.a_z + row * p.a_row);\n}\n",
        ),
        by_element: rows(
            "fn place(row: u32, z: u32) -> vec4<i32> {\n    \
             return vec4<i32>(i32(z * p.a_z + row * p.a_row), 0, 0, 0);\n}\n\
             fn left_at(place: vec4<i32>, down: u32, across: u32, c: u32) -> i32 {\n    \
             return place.x + i32(c);\n}\n",
        ),
    }
}

/// The dispatch that multiplies.
struct Main {
    text: String,
    grid: [usize; 3],
    cut: Cut,
    /// See [`Dispatch::spread`].
    spread: bool,
}

impl Main {
    fn whole((text, grid): (String, [usize; 3])) -> Main {
        Main { text, grid, cut: Cut::whole(0), spread: false }
    }

    fn dispatch(&self, shader: Shader, functions: &str) -> Option<Dispatch> {
        let dispatch = shader.build(&format!("{functions}{}", self.text), self.grid)?;
        let cluster = if self.cut.joined { self.cut.parts as u32 } else { 1 };
        Some(Dispatch { spread: self.spread, cluster, ..dispatch })
    }
}

impl Tile {
    /// The kernel, or `None` when it exceeds what `caps` allows.
    pub(in crate::ops) fn kernel(&self, left: &Left, caps: &GpuCaps) -> Option<GpuKernel> {
        // A cluster's dispatch has the buffers of two.
        self.kernel_with(left, caps).or_else(|| {
            let apart = GpuCaps { clusters: false, ..caps.clone() };
            caps.clusters.then(|| self.kernel_with(left, &apart)).flatten()
        })
    }

    fn kernel_with(&self, left: &Left, caps: &GpuCaps) -> Option<GpuKernel> {
        let software = software_lanes(caps).is_some();
        let rows = if software { &left.by_tap } else { &left.by_element };
        let vector =
            caps.aligned && rows.run.is_multiple_of(4) && rows.strides.iter().all(|s| s % 4 == 0);
        let product = Product {
            sizes: [self.m, rows.taps[0] * rows.taps[1] * rows.run, self.n],
            batch: self.batch,
        };
        let thin = rows.sure && thin::fits(self.m, caps);
        let half = caps.halves.input(0);
        let chunks = half
            && matches!(self.right, Right::Constant(_))
            && caps.matrix_units.is_some_and(MatrixUnits::is_half)
            && !thin
            && vector
            && rows.run.is_multiple_of(8)
            && rows.strides.iter().all(|s| s % 8 == 0);
        let access = Access { vector, half, chunks, taps: rows.taps, sure: rows.sure };
        let units = match (&self.right, caps.matrix_units) {
            (Right::Constant(weight), Some(units)) if !software && !thin => {
                matrix_blocks::choose(&product, units, access, self.epilogue.is_long(), caps)
                    .map(|choice| (weight, units, choice))
            }
            _ => None,
        };
        let (shader, mut text) = self.left_side(rows, access);
        let (shader, constant, main) = match units {
            Some((weight, units, choice)) => {
                let line = units.padded(product.sizes[1]) / units.chunk();
                let shader = shader
                    .buffer("b", Binding::Constant(0), "vec4<u32>")
                    .sizes([("b_row", line), ("b_z", line * self.n)]);
                let beside = choice.cut.parts == 1 && self.beside(access, caps);
                let main = Main {
                    text: choice.text(&product, access, rows.run, beside),
                    grid: choice.grid(&product),
                    cut: choice.cut,
                    spread: true,
                };
                (shader, Some(weight.columns(&product, units, choice.turned(access))), main)
            }
            None => {
                let (shader, constant) = self.right_side(shader, &mut text, &product, caps);
                let main = if software {
                    Main::whole(self.software(vector, caps)?)
                } else if thin {
                    Main::whole(thin::text(&product, vector, caps))
                } else {
                    let choice = blocks::choose(&product, caps);
                    let (text, grid) = (choice.text(&product, access), choice.grid(&product));
                    Main { text, grid, cut: choice.cut, spread: true }
                };
                (shader, constant, main)
            }
        };
        let constants: Vec<GpuConstant> = constant.into_iter().chain(self.bias.clone()).collect();
        let standards = library::standard(self, &product, caps, main.cut.dispatches());
        let standards: Vec<_> = standards.into_iter().collect();
        let kernel = |dispatches, temps| {
            Some(GpuKernel { dispatches, constants, temps, standards, ..GpuKernel::default() })
        };
        let Cut { parts, span, joined } = main.cut;
        if parts == 1 {
            let shader = self.results(shader, &mut text, "store", caps);
            if self.beside(access, caps) {
                let sum = if self.bias.is_some() { "sum + bias[z * p.n4 + col]" } else { "sum" };
                text.push_str(&STORE_BESIDE.replace("$sum", sum));
            }
            return kernel(vec![main.dispatch(shader, &text)?], Vec::new());
        }
        let count = self.m * self.n4() * self.batch;
        let temps = vec![16 * count * parts];
        let shader = shader.buffer("partial", Binding::Temp(0), "vec4<f32>").sizes([
            ("parts", parts),
            ("span", span),
            ("products", self.batch),
        ]);
        text.push_str(&STORE.replace("$name", "store"));
        text.push_str(KEEP);
        if joined {
            let shader = self.results(shader, &mut text, clusters::STORE, caps);
            let dispatches = vec![main.dispatch(shader, &text)?];
            return kernel(dispatches, temps);
        }
        let products = main.dispatch(shader, &text)?;

        let (sum, grid, groups_x) = blocks::sums(count, caps);
        let shader = Shader::new("sums")
            .buffer("partial", Binding::Temp(0), "vec4<f32>")
            .sizes([("m", self.m), ("n", self.n), ("n4", self.n4()), ("count", count)])
            .sizes([("parts", parts), ("groups_x", groups_x)]);
        let mut text = String::new();
        let shader = self.results(shader, &mut text, "store", caps);
        let sums = shader.build(&(text + &sum), grid)?;
        kernel(vec![products, sums], temps)
    }

    /// Whether the results are whole vec4s.
    pub(super) fn vector_results(&self, caps: &GpuCaps) -> bool {
        caps.aligned && self.n.is_multiple_of(4) && self.y_strides.iter().all(|s| s % 4 == 0)
    }

    /// Whether there is a residual that can be loaded before sums are stored.
    fn beside(&self, access: Access, caps: &GpuCaps) -> bool {
        access.chunks && self.epilogue.has_residual() && self.vector_results(caps)
    }

    /// vec4s of a row of the right side.
    fn n4(&self) -> usize {
        self.n.div_ceil(4)
    }

    /// The left side, how to load from it, and sizes.
    fn left_side(&self, rows: &Rows, access: Access) -> (Shader, String) {
        let (element, unit) = match access {
            Access { chunks: true, .. } => ("vec4<u32>", 8),
            Access { vector: true, .. } => ("vec4<f32>", 4),
            _ => ("f32", 1),
        };
        let taps = rows.taps[0] * rows.taps[1];
        let shader = Shader::new(self.label)
            .buffer("a", Binding::Input(0), element)
            .sizes([("m", self.m), ("n", self.n), ("n4", self.n4())])
            .sizes([("taps", taps), ("inner", rows.run / unit), ("rows_b", taps * rows.run)]);
        ((rows.params)(shader, unit), String::from(rows.text))
    }

    /// The right side as lines of vec4s, `load_b`, and the constant that it is.
    fn right_side(
        &self,
        shader: Shader,
        text: &mut String,
        product: &Product,
        caps: &GpuCaps,
    ) -> (Shader, Option<GpuConstant>) {
        let k = product.sizes[1];
        let (element, unit) = match self.right {
            Right::Constant(_) if caps.f16 => ("vec4<f16>", 4),
            Right::Constant(_) => ("vec4<f32>", 4),
            Right::Input { stride }
                if caps.aligned && self.n.is_multiple_of(4) && stride % 4 == 0 =>
            {
                ("vec4<f32>", 4)
            }
            Right::Input { .. } => ("f32", 1),
        };
        text.push_str(if unit == 4 { LOAD_B_VECTOR } else { LOAD_B_SCALAR });
        let (binding, between, constant) = match &self.right {
            Right::Constant(weight) => {
                (Binding::Constant(0), padded(k) * self.n4(), Some(weight.lines(product, caps.f16)))
            }
            Right::Input { stride } => (Binding::Input(1), stride / unit, None),
        };
        (shader.buffer("b", binding, element).size("b_z", between), constant)
    }

    /// The output and the function `name(row, col, z, part, sum)`: bias, epilogue, and the ends of
    /// rows that are no whole vec4s. There is one part.
    fn results(&self, shader: Shader, text: &mut String, name: &str, caps: &GpuCaps) -> Shader {
        let vector = self.vector_results(caps);
        let (element, unit) = if vector { ("vec4<f32>", 4) } else { ("f32", 1) };
        let mut shader = shader
            .buffer("y", Binding::Output(0), element)
            .sizes([("y_row", self.y_strides[0] / unit), ("y_z", self.y_strides[1] / unit)]);
        if self.bias.is_some() {
            let place = usize::from(matches!(self.right, Right::Constant(_)));
            shader = shader.buffer("bias", Binding::Constant(place), "vec4<f32>");
        }
        text.push_str("$epilogue");
        let sum = if self.bias.is_some() { "sum + bias[z * p.n4 + col]" } else { "sum" };
        text.push_str(&STORE.replace("$name", name));
        text.push_str(&format!("    let v = {sum};\n"));
        text.push_str(if vector {
            "    let at = z * p.y_z + row * p.y_row + col;\n    y[at_y() + at] = finish4(v, at);\n}\n"
        } else {
            "    let at = z * p.y_z + row * p.y_row + col * 4u;\n    \
             for (var i = 0u; i < min(4u, p.n - col * 4u); i++) {\n        \
             y[at_y() + at + i] = finish1(v[i], at + i);\n    }\n}\n"
        });
        self.epilogue.add(shader, element, caps.matrix_units.is_some())
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
            t += &format!("store(row + {i}u, col, z, 0u, s{i});\n");
        }
        t.push_str("}\n");
        let grid = [self.n.div_ceil(4 * lanes), self.m.div_ceil(rows), self.batch];
        Some((t, grid))
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

const STORE: &str = "fn $name(row: u32, col: u32, z: u32, part: u32, sum: vec4<f32>) {\n    \
    if (row >= p.m || col >= p.n4) { return; }\n";

/// [`STORE`] with the residual's vec4, and what it is.
const STORE_BESIDE: &str = "\
fn beside(row: u32, col: u32, z: u32) -> vec4<f32> {
    return residual[at_residual() + z * p.y_z + min(row, p.m - 1u) * p.y_row + min(col, p.n4 - 1u)];
}
fn store_beside(row: u32, col: u32, z: u32, sum: vec4<f32>, beside: vec4<f32>) {
    if (row >= p.m || col >= p.n4) { return; }
    let v = $sum;
    y[at_y() + z * p.y_z + row * p.y_row + col] = join4(v, beside);
}
";

/// The rest of [`STORE`] that leaves a part's sums where another dispatch finds them.
const KEEP: &str = "    \
    partial[at_partial() + ((part * p.products + z) * p.m + row) * p.n4 + col] = sum;\n}\n";
