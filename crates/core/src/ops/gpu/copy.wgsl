// Copies elements between two strided views.
@compute @workgroup_size($THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * p.groups_x) * $THREADSu + thread;
    if (index >= p.count) {
        return;
    }
    var rest = index;
    var from_at = p.from_offset;
    var to_at = p.to_offset;
$BODY
    y[at_y() + u32(to_at)] = x[at_x() + u32(from_at)];
}
