//! The form of a product with few rows for hardware GPUs: the right side passes once through
//! registers, neighbouring invocations reading neighbouring columns. Invocations of a workgroup
//! share out the inner dimension and add their sums at the end.

use std::fmt::Write;

use super::{GpuCaps, product::Product};

/// Most rows of a product in this form.
pub(super) const MAX_ROWS: usize = 8;
/// Rows of a workgroup at most: what their sums take of workgroup memory.
const OWN_ROWS: usize = 4;
/// Invocations per workgroup.
const THREADS: usize = 256;

/// Whether this is the form for `m` rows.
pub(super) fn fits(m: usize, caps: &GpuCaps) -> bool {
    m <= MAX_ROWS
        && caps.workgroup_size as usize >= THREADS
        && caps.workgroup_bytes as usize >= 16 * THREADS * m.min(OWN_ROWS)
}

/// `main` over `place`, `left_at`, `load_b` and `store`, and its grid. `vector`: left-hand elements
/// come as vec4s.
pub(super) fn text(product: &Product, vector: bool, caps: &GpuCaps) -> (String, [usize; 3]) {
    let ([m, k, n], batch) = (product.sizes, product.batch);
    let n4 = n.div_ceil(4);
    // Long runs of columns where these are enough for every multiprocessor.
    let columns = if n4 / 8 >= caps.units as usize { 8 } else { 4 };
    let (rows, lanes) = (m.min(OWN_ROWS), THREADS / columns);
    let text = print(rows, columns, lanes, vector, k).expect("writing to a string");
    (text, [n4.div_ceil(columns), m.div_ceil(rows), batch])
}

fn print(
    rows: usize,
    columns: usize,
    lanes: usize,
    vector: bool,
    k: usize,
) -> Result<String, std::fmt::Error> {
    let mut t = format!(
        "var<workgroup> sums: array<vec4<f32>, {}>;\n\
         @compute @workgroup_size({THREADS})\n\
         fn main(@builtin(workgroup_id) group: vec3<u32>, \
         @builtin(local_invocation_index) thread: u32) {{\n\
         let z = group.z;\nlet row = group.y * {rows}u;\n\
         let col = group.x * {columns}u + thread % {columns}u;\n\
         let c = min(col, p.n4 - 1u);\nlet lane = thread / {columns}u;\n",
        rows * THREADS
    );
    for i in 0..rows {
        writeln!(
            t,
            "let place{i} = place(min(row + {i}u, p.m - 1u), z);\nvar s{i} = vec4<f32>();"
        )?;
    }
    let (unit, steps) = if vector { (4, k / 4) } else { (1, k) };
    // A second step in flight hides the memory's latency.
    let together = if vector && steps >= 2 * lanes { 2 } else { 1 };
    writeln!(t, "var i = lane;")?;
    for count in [together, 1] {
        let bound = if count == 2 { format!("i + {lanes}u") } else { "i".to_owned() };
        writeln!(t, "for (; {bound} < p.inner; i += {}u) {{", count * lanes)?;
        for step in 0..count {
            let at = format!("(i + {}u)", step * lanes);
            for row in 0..rows {
                writeln!(
                    t,
                    "let a{step}_{row} = a[at_a() + u32(left_at(place{row}, 0u, 0u, {at}))];"
                )?;
            }
            for j in 0..unit {
                writeln!(t, "let b{step}_{j} = load_b({at} * {unit}u + {j}u, c, z);")?;
            }
        }
        for step in 0..count {
            for j in 0..unit {
                let part = if vector { [".x", ".y", ".z", ".w"][j] } else { "" };
                for row in 0..rows {
                    writeln!(t, "s{row} += a{step}_{row}{part} * b{step}_{j};")?;
                }
            }
        }
        t.push_str("}\n");
        if count == 1 {
            break;
        }
    }
    for row in 0..rows {
        writeln!(t, "sums[thread + {}u] = s{row};", row * THREADS)?;
    }
    writeln!(
        t,
        "workgroupBarrier();\nif (thread >= {}u) {{ return; }}\n\
         let r = thread / {columns}u;\nvar at = r * {THREADS}u + thread % {columns}u;\n\
         var sum = sums[at];\n\
         for (var j = 1u; j < {lanes}u; j++) {{\nat += {columns}u;\nsum += sums[at];\n}}\n\
         store(row + r, col, z, 0u, sum);\n}}",
        rows * columns
    )?;
    Ok(t)
}
