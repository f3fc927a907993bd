//! MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) and MobileNetV3-Small (Howard et al. 2019,
//! arXiv:1905.02244), as torchvision writes them.

use super::net::{Act, Conv, Net};
use crate::{ir::Model, ops::AttributeValue};

pub(super) fn mobilenet_v2(name: &str, pruned_percent: u8) -> Model {
    const EPS: f32 = 1e-5;
    // Expansion, output channels, repeats, stride of the first.
    const STAGES: [(usize, usize, usize, usize); 7] = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    let (mut net, x) = Net::new(name, pruned_percent);
    let unit = |net: &mut Net, name: &str, x: Act, conv: Conv| {
        let y = net.conv(&format!("{name}.0"), x, conv);
        let y = net.batch_norm(&format!("{name}.1"), y, EPS);
        net.relu6(&format!("{name}.2"), y)
    };
    let mut x = unit(&mut net, "features.0", x, Conv::same(32, 3, 2));
    let mut index = 1;
    for (expansion, out, repeats, first_stride) in STAGES {
        for repeat in 0..repeats {
            let stride = if repeat == 0 { first_stride } else { 1 };
            let block = format!("features.{index}");
            let hidden = x.channels * expansion;
            let mut y = x;
            let mut layer = 0;
            if expansion != 1 {
                y = unit(&mut net, &format!("{block}.conv.0"), y, Conv::same(hidden, 1, 1));
                layer = 1;
            }
            let depthwise = Conv { groups: hidden, ..Conv::same(hidden, 3, stride) };
            y = unit(&mut net, &format!("{block}.conv.{layer}"), y, depthwise);
            y = net.conv(&format!("{block}.conv.{}", layer + 1), y, Conv::same(out, 1, 1));
            y = net.batch_norm(&format!("{block}.conv.{}", layer + 2), y, EPS);
            if stride == 1 && x.channels == out {
                y = net.add(&format!("{block}.add"), x, y);
            }
            x = y;
            index += 1;
        }
    }
    let x = unit(&mut net, &format!("features.{index}"), x, Conv::same(1280, 1, 1));
    let x = net.global_pool("avgpool", x);
    let x = net.flatten("flatten", x);
    let x = net.classifier("classifier.1", x, 1000);
    net.finish(x.id)
}

/// One row of MobileNetV3's table.
struct Block {
    kernel: usize,
    expanded: usize,
    out: usize,
    squeeze: bool,
    hard_swish: bool,
    stride: usize,
}

pub(super) fn mobilenet_v3_small(name: &str, pruned_percent: u8) -> Model {
    const EPS: f32 = 1e-3;
    let row = |kernel, expanded, out, squeeze, hard_swish, stride| Block {
        kernel,
        expanded,
        out,
        squeeze,
        hard_swish,
        stride,
    };
    let blocks = [
        row(3, 16, 16, true, false, 2),
        row(3, 72, 24, false, false, 2),
        row(3, 88, 24, false, false, 1),
        row(5, 96, 40, true, true, 2),
        row(5, 240, 40, true, true, 1),
        row(5, 240, 40, true, true, 1),
        row(5, 120, 48, true, true, 1),
        row(5, 144, 48, true, true, 1),
        row(5, 288, 96, true, true, 2),
        row(5, 576, 96, true, true, 1),
        row(5, 576, 96, true, true, 1),
    ];
    let (mut net, x) = Net::new(name, pruned_percent);
    let unit = |net: &mut Net, name: &str, x: Act, conv: Conv, hard_swish: bool| {
        let y = net.conv(&format!("{name}.0"), x, conv);
        let y = net.batch_norm(&format!("{name}.1"), y, EPS);
        let name = format!("{name}.2");
        if hard_swish { net.hard_swish(&name, y) } else { net.relu(&name, y) }
    };
    let mut x = unit(&mut net, "features.0", x, Conv::same(16, 3, 2), true);
    for (index, b) in blocks.iter().enumerate() {
        let block = format!("features.{}.block", index + 1);
        let mut y = x;
        let mut layer = 0;
        if b.expanded != x.channels {
            let conv = Conv::same(b.expanded, 1, 1);
            y = unit(&mut net, &format!("{block}.{layer}"), y, conv, b.hard_swish);
            layer += 1;
        }
        let depthwise = Conv { groups: b.expanded, ..Conv::same(b.expanded, b.kernel, b.stride) };
        y = unit(&mut net, &format!("{block}.{layer}"), y, depthwise, b.hard_swish);
        layer += 1;
        if b.squeeze {
            y = squeeze_excite(&mut net, &format!("{block}.{layer}"), y);
            layer += 1;
        }
        y = net.conv(&format!("{block}.{layer}.0"), y, Conv::same(b.out, 1, 1));
        y = net.batch_norm(&format!("{block}.{layer}.1"), y, EPS);
        if b.stride == 1 && x.channels == b.out {
            y = net.add(&format!("features.{}.add", index + 1), y, x);
        }
        x = y;
    }
    let last = format!("features.{}", blocks.len() + 1);
    let x = unit(&mut net, &last, x, Conv::same(576, 1, 1), true);
    let x = net.global_pool("avgpool", x);
    let x = net.flatten("flatten", x);
    let x = net.classifier("classifier.0", x, 1024);
    let x = net.hard_swish("classifier.1", x);
    let x = net.classifier("classifier.3", x, 1000);
    net.finish(x.id)
}

/// Scales each channel by a gate computed from the channels' means.
fn squeeze_excite(net: &mut Net, name: &str, x: Act) -> Act {
    let biased = |out| Conv { bias: true, ..Conv::same(out, 1, 1) };
    let y = net.global_pool(&format!("{name}.avgpool"), x);
    let y = net.conv(&format!("{name}.fc1"), y, biased(make_divisible(x.channels / 4, 8)));
    let y = net.relu(&format!("{name}.activation"), y);
    let y = net.conv(&format!("{name}.fc2"), y, biased(x.channels));
    let gate = net.op(
        &format!("{name}.scale_activation"),
        "HardSigmoid",
        &[y.id],
        &[("alpha", AttributeValue::Float(1.0 / 6.0)), ("beta", AttributeValue::Float(0.5))],
    );
    let id = net.op(&format!("{name}.mul"), "Mul", &[gate, x.id], &[]);
    // Gates scatter around one half.
    Act { id, moment: 0.27 * x.moment, ..x }
}

/// The multiple of `divisor` nearest to `v`, but not below 90 % of it.
fn make_divisible(v: usize, divisor: usize) -> usize {
    let rounded = ((v + divisor / 2) / divisor * divisor).max(divisor);
    if rounded * 10 < v * 9 { rounded + divisor } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::make_divisible;

    #[test]
    fn squeeze_channels_of_mobilenet_v3_small() {
        let squeezed = [16, 96, 240, 120, 144, 288, 576].map(|c| make_divisible(c / 4, 8));
        assert_eq!(squeezed, [8, 24, 64, 32, 40, 72, 144]);
    }
}
