// First element of the channels that tap `tap` of output position `row` reads, -1 in the padding.
fn row_base(row: u32, tap: u32, z: u32) -> i32 {
    let line = row / p.ow;
    let ow = row - line * p.ow;
    let b = line / p.oh;
    let oh = line - b * p.oh;
    let kh = tap / p.kw;
    let kw = tap - kh * p.kw;
    let ih = i32(oh * p.stride_h + kh * p.step_h) - p.pad_h;
    let iw = i32(ow * p.stride_w + kw * p.step_w) - p.pad_w;
    if (ih < 0 || iw < 0 || ih >= i32(p.ih) || iw >= i32(p.iw)) {
        return -1;
    }
    return i32(((b * p.ih + u32(ih)) * p.iw + u32(iw)) * p.channels + z * p.a_z);
}
