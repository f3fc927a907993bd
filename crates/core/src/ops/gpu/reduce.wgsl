// Reduces `len` elements, `inner` apart.
$HEAD
@compute @workgroup_size($THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group_index = group.x + group.y * p.groups_x;
    let row = $ROW;
    if (row >= p.rows) {
        return;
    }
    let lane = $LANE;
    let outer = row / p.inner;
    let from_at = at_x() + outer * p.len * p.inner + row - outer * p.inner;
    var part = $TYPE($START);
    for (var i = lane; i < p.len; i += TEAM) {
        let v = x[from_at + i * p.inner];
        let sum = part;
        part = $STEP;
    }
    var sum = part;
    sum = $JOIN;
    if (lane == 0u) {
        y[at_y() + row] = $FINISH;
    }
}
