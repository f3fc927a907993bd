// Fills with one value.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * p.groups_x) * 64u + thread;
    if (index < p.count) {
        y[at_y() + index] = p.value;
    }
}
