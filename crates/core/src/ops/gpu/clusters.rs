//! Products whose inner dimension is cut into parts, where workgroups can be clusters: the workgroups
//! of a block's parts leave their sums in memory, wait for one another, and each adds a share of them,
//! in the order in which a second dispatch would.

use std::fmt::Write;

use super::product::Cut;

/// The function that finishes a sum of all parts, as `store` does without parts.
pub(super) const STORE: &str = "store_joined";

/// `main`, which ends with the stores of a block's parts of `rows` and `columns`, and what comes after
/// them.
pub(super) fn join(main: String, cut: Cut, [rows, columns]: [usize; 2], threads: usize) -> String {
    if !cut.joined {
        return main;
    }
    let quads = columns / 4;
    let mut t = String::from("fn native_join() {}\n");
    t += main.trim_end().strip_suffix('}').expect("main ends so");
    let loads = (0..cut.parts).fold(String::new(), |mut loads, part| {
        writeln!(loads, "let part{part} = partial[at + {part}u * apart];").expect("a string");
        loads
    });
    let sum = (0..cut.parts).map(|part| format!("part{part}")).collect::<Vec<_>>().join(" + ");
    write!(
        t,
        "native_join();\n\
         let apart = p.products * p.m * p.n4;\n\
         for (var i = part * {threads}u + thread; i < {}u; i += {}u) {{\n\
         let row = group.y * {rows}u + i / {quads}u;\nlet col = group.x * {quads}u + i % {quads}u;\n\
         if (row < p.m && col < p.n4) {{\n\
         let at = at_partial() + (z * p.m + row) * p.n4 + col;\n{loads}\
         {STORE}(row, col, z, 0u, {sum});\n}}\n}}\n}}\n",
        rows * quads,
        cut.parts * threads
    )
    .expect("writing to a string");
    t
}
