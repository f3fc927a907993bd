//! Swin-T (Liu et al. 2021, arXiv:2103.14030), as torchvision writes it.

use super::{
    net::{Act, Conv, Net},
    vit::split_heads,
    weights::Init,
};
use crate::{
    ir::{Model, ModelValueId},
    ops::AttributeValue,
    tensor::Tensor,
};

const WINDOW: usize = 7;
const SHIFT: usize = 3;
const HEAD: usize = 32;
const EPS: f32 = 1e-5;
/// Added to the scores of positions that only the shift has brought into one window.
const MASKED: f32 = -100.0;

pub(super) fn swin_t(name: &str, pruned_percent: u8) -> Model {
    let (mut net, image) = Net::new(name, pruned_percent);
    let patches = Conv { pad: 0, bias: true, ..Conv::same(96, 4, 4) };
    let x = net.conv("features.0.0", image, patches);
    let x = net.transpose("features.0.1", x.id, &[0, 2, 3, 1]);
    let mut x = net.layer_norm("features.0.2", x, 96, EPS);
    let (mut size, mut features) = (56, 96);
    for (stage, depth) in [2, 2, 6, 2].into_iter().enumerate() {
        if stage > 0 {
            x = merge_patches(&mut net, &format!("features.{}", 2 * stage), x, features);
            (size, features) = (size / 2, features * 2);
        }
        for block in 0..depth {
            // A window as large as the map needs no shift.
            let shift = if block % 2 == 1 && size > WINDOW { SHIFT } else { 0 };
            let name = format!("features.{}.{block}", 2 * stage + 1);
            x = swin_block(&mut net, &name, x, Grid { size, features, shift });
        }
    }
    let x = net.layer_norm("norm", x, features, EPS);
    let x = net.transpose("permute", x, &[0, 3, 1, 2]);
    let x = net.global_pool("avgpool", Act { id: x, channels: features, moment: 1.0 });
    let x = net.flatten("flatten", x);
    let x = net.classifier("head", x, 1000);
    net.finish(x.id)
}

/// What a block works on: a square map of `size` with `features`, its windows shifted.
#[derive(Clone, Copy)]
struct Grid {
    size: usize,
    features: usize,
    shift: usize,
}

fn swin_block(net: &mut Net, name: &str, x: ModelValueId, grid: Grid) -> ModelValueId {
    let features = grid.features;
    let y = net.layer_norm(&format!("{name}.norm1"), x, features, EPS);
    let y = window_attention(net, &format!("{name}.attn"), y, grid);
    let x = net.op(&format!("{name}/Add"), "Add", &[x, y], &[]);
    let y = net.layer_norm(&format!("{name}.norm2"), x, features, EPS);
    let y = net.linear(&format!("{name}.mlp.0"), y, (features, 4 * features), true);
    let y = net.op(&format!("{name}.mlp.1"), "Gelu", &[y], &[]);
    let y = net.linear(&format!("{name}.mlp.3"), y, (4 * features, features), true);
    net.op(&format!("{name}/Add_1"), "Add", &[x, y], &[])
}

/// Attention inside windows of 7 x 7, with relative positions.
fn window_attention(net: &mut Net, name: &str, x: ModelValueId, grid: Grid) -> ModelValueId {
    let Grid { size, features, shift } = grid;
    let (tokens, heads, side) = ((WINDOW * WINDOW) as i64, features / HEAD, (size / WINDOW) as i64);
    let (window, channels) = (WINDOW as i64, features as i64);
    let x = if shift > 0 { roll(net, &format!("{name}/roll"), x, shift as i64) } else { x };
    let x = net.reshape(
        &format!("{name}/windows/Reshape"),
        x,
        &[0, side, window, side, window, channels],
    );
    let x = net.transpose(&format!("{name}/windows/Transpose"), x, &[0, 1, 3, 2, 4, 5]);
    let x = net.reshape(&format!("{name}/windows/Reshape_1"), x, &[-1, tokens, channels]);

    let qkv = net.linear(&format!("{name}.qkv"), x, (features, 3 * features), true);
    let [q, k, v] = split_heads(net, name, qkv, heads, HEAD);
    let scale = net.constant(&format!("{name}_scale"), Tensor::scalar(1.0 / (HEAD as f32).sqrt()));
    let q = net.op(&format!("{name}/Mul"), "Mul", &[q, scale], &[]);
    let k = net.transpose(&format!("{name}/Transpose_1"), k, &[0, 1, 3, 2]);
    let scores = net.op(&format!("{name}/MatMul"), "MatMul", &[q, k], &[]);
    let bias = position_bias(net, name, heads);
    let mut scores = net.op(&format!("{name}/Add"), "Add", &[scores, bias], &[]);
    if shift > 0 {
        let mask = net.constant(&format!("{name}_mask"), shift_mask(size));
        let dims = [-1, side * side, heads as i64, tokens, tokens];
        scores = net.reshape(&format!("{name}/Reshape_1"), scores, &dims);
        scores = net.op(&format!("{name}/Add_1"), "Add", &[scores, mask], &[]);
        let dims = [-1, heads as i64, tokens, tokens];
        scores = net.reshape(&format!("{name}/Reshape_2"), scores, &dims);
    }
    let axis = [("axis", AttributeValue::Int(-1))];
    let weights = net.op(&format!("{name}/Softmax"), "Softmax", &[scores], &axis);
    let y = net.op(&format!("{name}/MatMul_1"), "MatMul", &[weights, v], &[]);
    let y = net.transpose(&format!("{name}/Transpose_2"), y, &[0, 2, 1, 3]);
    let y = net.reshape(&format!("{name}/Reshape_3"), y, &[0, 0, channels]);
    let y = net.linear(&format!("{name}.proj"), y, (features, features), true);

    let dims = [-1, side, side, window, window, channels];
    let y = net.reshape(&format!("{name}/merge/Reshape"), y, &dims);
    let y = net.transpose(&format!("{name}/merge/Transpose"), y, &[0, 1, 3, 2, 4, 5]);
    let map = size as i64;
    let y = net.reshape(&format!("{name}/merge/Reshape_1"), y, &[-1, map, map, channels]);
    if shift > 0 { roll(net, &format!("{name}/unroll"), y, -(shift as i64)) } else { y }
}

/// Moves rows and columns of [B, H, W, C] towards the start by `shift`, cyclically.
fn roll(net: &mut Net, name: &str, mut x: ModelValueId, shift: i64) -> ModelValueId {
    for axis in [1i64, 2] {
        let name = format!("{name}/{axis}");
        let tail = slice(net, &format!("{name}/Slice"), x, &[(axis, shift, i64::MAX, 1)]);
        let head = slice(net, &format!("{name}/Slice_1"), x, &[(axis, 0, shift, 1)]);
        let attrs = [("axis", AttributeValue::Int(axis))];
        x = net.op(&format!("{name}/Concat"), "Concat", &[tail, head], &attrs);
    }
    x
}

/// Slice by (axis, start, end, step).
fn slice(
    net: &mut Net,
    name: &str,
    x: ModelValueId,
    ranges: &[(i64, i64, i64, i64)],
) -> ModelValueId {
    let column = |f: fn(&(i64, i64, i64, i64)) -> i64| ranges.iter().map(f).collect::<Vec<_>>();
    let starts = net.ints(&format!("{name}_starts"), &column(|r| r.1));
    let ends = net.ints(&format!("{name}_ends"), &column(|r| r.2));
    let axes = net.ints(&format!("{name}_axes"), &column(|r| r.0));
    let steps = net.ints(&format!("{name}_steps"), &column(|r| r.3));
    net.op(name, "Slice", &[x, starts, ends, axes, steps], &[])
}

/// The learned table of relative positions, gathered to [1, heads, 49, 49].
fn position_bias(net: &mut Net, name: &str, heads: usize) -> ModelValueId {
    let offsets = 2 * WINDOW - 1;
    let tokens = WINDOW * WINDOW;
    let table = net.weight(
        &format!("{name}.relative_position_bias_table"),
        &[offsets * offsets, heads],
        Init::Normal { mean: 0.0, std: 0.5 },
    );
    let mut index = Vec::with_capacity(tokens * tokens);
    for i in 0..tokens {
        for j in 0..tokens {
            let row = i / WINDOW + WINDOW - 1 - j / WINDOW;
            let column = i % WINDOW + WINDOW - 1 - j % WINDOW;
            index.push((row * offsets + column) as i64);
        }
    }
    let index = net.ints(&format!("{name}.relative_position_index"), &index);
    let name = format!("{name}.relative_position_bias");
    let axis = [("axis", AttributeValue::Int(0))];
    let bias = net.op(&format!("{name}/Gather"), "Gather", &[table, index], &axis);
    let dims = [tokens as i64, tokens as i64, -1];
    let bias = net.reshape(&format!("{name}/Reshape"), bias, &dims);
    let bias = net.transpose(&format!("{name}/Transpose"), bias, &[2, 0, 1]);
    let axes = net.ints(&format!("{name}_axes"), &[0]);
    net.op(&format!("{name}/Unsqueeze"), "Unsqueeze", &[bias, axes], &[])
}

/// Which tokens of each window come from different regions of the map: [1, windows, 1, 49, 49].
fn shift_mask(size: usize) -> Tensor {
    let region = |i: usize| match i {
        i if i < size - WINDOW => 0,
        i if i < size - SHIFT => 1,
        _ => 2,
    };
    let (side, tokens) = (size / WINDOW, WINDOW * WINDOW);
    let mut mask = Vec::with_capacity(side * side * tokens * tokens);
    for window in 0..side * side {
        let regions: Vec<usize> = (0..tokens)
            .map(|t| {
                let row = window / side * WINDOW + t / WINDOW;
                let column = window % side * WINDOW + t % WINDOW;
                3 * region(row) + region(column)
            })
            .collect();
        for a in &regions {
            mask.extend(regions.iter().map(|b| if a == b { 0.0 } else { MASKED }));
        }
    }
    Tensor::from_slice([1, side * side, 1, tokens, tokens], &mask)
}

/// Halves the map: the four pixels of each 2 x 2 square become 4C features, reduced to 2C.
fn merge_patches(net: &mut Net, name: &str, x: ModelValueId, features: usize) -> ModelValueId {
    let mut parts = Vec::new();
    for (column, row) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let ranges = [(1, row, i64::MAX, 2), (2, column, i64::MAX, 2)];
        parts.push(slice(net, &format!("{name}/Slice_{row}{column}"), x, &ranges));
    }
    let axis = [("axis", AttributeValue::Int(-1))];
    let x = net.op(&format!("{name}/Concat"), "Concat", &parts, &axis);
    let x = net.layer_norm(&format!("{name}.norm"), x, 4 * features, EPS);
    net.linear(&format!("{name}.reduction"), x, (4 * features, 2 * features), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_separates_what_the_shift_brought_together() {
        let mask = shift_mask(14);
        assert_eq!(mask.ty().shape, [1, 4, 1, 49, 49]);
        let data = mask.as_slice::<f32>().unwrap();
        // The first window is whole; in the last, four regions meet.
        assert!(data[..49 * 49].iter().all(|v| *v == 0.0));
        let last = &data[3 * 49 * 49..];
        let open = last.iter().filter(|v| **v == 0.0).count();
        assert_eq!(open, 16 * 16 + 2 * 12 * 12 + 9 * 9);
    }
}
