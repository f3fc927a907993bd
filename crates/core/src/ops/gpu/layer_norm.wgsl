// y = (x - mean) / sqrt(variance + epsilon) * scale + shift, per row.
$HEAD
$UNIT
@compute @workgroup_size($THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let group_index = group.x + group.y * p.groups_x;
    // The last workgroup may work on the last row several times.
    let own_row = $ROW;
    let row = min(own_row, p.rows - 1u);
    let lane = $LANE;
    let from_at = at_x() + row * p.len;
    let to_at = at_y() + row * p.len;
    var sum = $T();
    for (var i = lane; i < p.len; i += TEAM) {
        sum += x[from_at + i];
    }
    let mean = $MEAN;
    var squares = $T();
    for (var i = lane; i < p.len; i += TEAM) {
        let d = x[from_at + i] - $T(mean);
        squares += d * d;
    }
    let variance = team_sum(total(squares), thread) * p.inverse_len;
    let factor = inverseSqrt(variance + p.epsilon);
    if (own_row >= p.rows) {
        return;
    }
    for (var i = lane; i < p.len; i += TEAM) {
        let v = (x[from_at + i] - $T(mean)) * factor;
        y[to_at + i] = v * scale[at_scale() + i]$SHIFT;
    }
}
