// Copies f32 to a buffer that stores 16 bits of each, four at a time.
struct Params { count: u32, pad_0: u32, pad_1: u32, pad_2: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = group.x * 256u + thread;
    if (index < p.count) {
        y[index] = x[index];
    }
}
