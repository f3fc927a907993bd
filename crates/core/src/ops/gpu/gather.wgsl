// y[outer, i, inner] = x[outer, indices[i], inner].
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * p.groups_x) * 64u + thread;
    if (index >= p.count) {
        return;
    }
    let run = index / p.inner;
    let within = index - run * p.inner;
    let outer = run / p.indices;
    let i = u32(indices[run - outer * p.indices]);
    y[at_y() + index] = x[at_x() + (outer * p.dim + i) * p.inner + within];
}
