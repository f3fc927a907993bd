// Pool over two-dimensional windows, NHWC; one output (or vec4 of channels) per invocation.
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
    let line = position / p.ow;
    let ow = position - line * p.ow;
    let b = line / p.oh;
    let oh = line - b * p.oh;
    let top = i32(oh * p.stride_h) - p.pad_h;
    let left = i32(ow * p.stride_w) - p.pad_w;
    var sum = $TYPE($START);
    var taps = 0.0;
    var padded_taps = 0.0;
    for (var kh = 0u; kh < p.kh; kh++) {
        let ih = top + i32(kh * p.step_h);
        for (var kw = 0u; kw < p.kw; kw++) {
            let iw = left + i32(kw * p.step_w);
            // A window rounded up may reach past the padding, which does not count.
            if (ih < i32(p.ih + p.pad_h_end) && iw < i32(p.iw + p.pad_w_end)) {
                padded_taps += 1.0;
            }
            if (ih >= 0 && iw >= 0 && ih < i32(p.ih) && iw < i32(p.iw)) {
                let v = x[at_x() + ((b * p.ih + u32(ih)) * p.iw + u32(iw)) * p.channels + c];
                sum = $STEP;
                taps += 1.0;
            }
        }
    }
    y[at_y() + index] = $FINISH;
}
