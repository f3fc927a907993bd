// Softmax along `len` elements, `inner` apart.
$HEAD
$UNIT
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
    let first = outer * p.len * p.inner + row - outer * p.inner;
    let from_at = at_x() + first;
    let to_at = at_y() + first;
    var greatest = $T(-3.4028234e38);
    for (var i = lane; i < p.len; i += TEAM) {
        greatest = max(greatest, x[from_at + i * p.inner]);
    }
    let high = team_max(largest(greatest), thread);
    var part = $T();
    for (var i = lane; i < p.len; i += TEAM) {
        part += exp(x[from_at + i * p.inner] - $T(high));
    }
    let sum = team_sum(total(part), thread);
    let inverse = 1.0 / sum;
    for (var i = lane; i < p.len; i += TEAM) {
        let v = x[from_at + i * p.inner];
        y[to_at + i * p.inner] = $RESULT;
    }
}
