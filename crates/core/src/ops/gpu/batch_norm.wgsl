// y = (x - mean) / sqrt(variance + epsilon) * scale + shift, per channel.
@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * p.groups_x) * 64u + thread;
    if (index >= p.count) {
        return;
    }
    let c = index / p.run % p.channels;
    let factor = scale[at_scale() + c] / sqrt(variance[at_variance() + c] + p.epsilon);
    let v = (x[at_x() + index] - mean[at_mean() + c]) * factor;
    y[at_y() + index] = v + shift[at_shift() + c];
}
