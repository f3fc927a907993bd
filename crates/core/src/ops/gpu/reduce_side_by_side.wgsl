// Reduces `len` elements, `inner` apart. Of a workgroup's invocations, neighbours have neighbouring
// rows; those of one row take turns along it.
var<workgroup> parts: array<$TYPE, $THREADS>;

@compute @workgroup_size($THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let row = (group.x + group.y * p.groups_x) * $ROWSu + thread % $ROWSu;
    let lane = thread / $ROWSu;
    let read = min(row, p.rows - 1u);
    let outer = read / p.inner;
    let from_at = at_x() + outer * p.len * p.inner + read - outer * p.inner;
    var part = $TYPE($START);
    for (var i = lane; i < p.len; i += $LANESu) {
        let v = x[from_at + i * p.inner];
        let sum = part;
        part = $STEP;
    }
    parts[thread] = part;
    workgroupBarrier();
    if (lane > 0u || row >= p.rows) {
        return;
    }
    for (var i = 1u; i < $LANESu; i++) {
        let v = parts[thread + i * $ROWSu];
        let sum = part;
        part = $COMBINE;
    }
    let sum = part;
    y[at_y() + row] = $FINISH;
}
