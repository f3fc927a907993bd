// Windows of an NHWC tensor, its lines seen as one dimension of columns and channels. Of an output
// position: where its window begins in memory, in the height and in the line, which may be outside.
fn place(row: u32, z: u32) -> vec4<i32> {
    let output_line = row / p.ow;
    let ow = row - output_line * p.ow;
    let b = output_line / p.oh;
    let oh = output_line - b * p.oh;
    let top = i32(oh * p.stride_h) - p.pad_h;
    let x = i32(ow * p.shift) - p.pad_x;
    return vec4<i32>((i32(b * p.ih) + top) * i32(p.line) + x + i32(z * p.a_z), top, x, 0);
}
// Element `c` of the tap at `down`, `across`, -1 in the padding.
fn left_at(place: vec4<i32>, down: u32, across: u32, c: u32) -> i32 {
    let ih = place.y + i32(down * p.step_h);
    let step = i32(across * p.jump + c);
    let x = place.z + step;
    if (ih < 0 || x < 0 || ih >= i32(p.ih) || x >= i32(p.line)) {
        return -1;
    }
    return place.x + i32(down * p.step_h * p.line) + step;
}
