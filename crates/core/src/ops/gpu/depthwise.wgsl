// Depthwise convolution, NHWC: an invocation computes neighbouring outputs of one output row for
// one channel (or vec4 of channels).
$epilogue
@compute @workgroup_size($THREADS)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let index = (group.x + group.y * p.groups_x) * $THREADSu + thread;
    if (index >= p.count) {
        return;
    }
    let position = index / p.channels;
    let c = index - position * p.channels;
    let line = position / p.blocks;
    let ow0 = (position - line * p.blocks) * 4u;
    let b = line / p.oh;
    let oh = line - b * p.oh;
$BODY
    let out = (line * p.ow + ow0) * p.channels + c;
$STORES
}
