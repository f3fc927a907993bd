// One output element (or vec4) per invocation.
$HELPERS
// a to the power of b, also for negative a and whole b.
fn power1(a: f32, b: f32) -> f32 {
    let m = pow(abs(a), b);
    let odd = b - 2.0 * floor(b * 0.5) == 1.0;
    return select(m, select(m, -m, odd), a < 0.0);
}
fn power4(a: vec4<f32>, b: vec4<f32>) -> vec4<f32> {
    return vec4<f32>(power1(a.x, b.x), power1(a.y, b.y), power1(a.z, b.z), power1(a.w, b.w));
}
@compute @workgroup_size($THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * p.groups_x) * $THREADSu + thread;
    if (index >= p.count) {
        return;
    }
$BODY
}
