//! ResNet-18 (He et al. 2015, arXiv:1512.03385), as torchvision writes it.

use super::net::{Act, Conv, Net};
use crate::{ir::Model, ops::AttributeValue};

const EPS: f32 = 1e-5;

pub(super) fn resnet18(name: &str, pruned_percent: u8) -> Model {
    let (mut net, x) = Net::new(name, pruned_percent);
    let x = net.conv("conv1", x, Conv::same(64, 7, 2));
    let x = net.batch_norm("bn1", x, EPS);
    let x = net.relu("relu", x);
    let pair = |v: i64| AttributeValue::Ints(vec![v; 2]);
    let pooled = net.op(
        "maxpool",
        "MaxPool",
        &[x.id],
        &[
            ("kernel_shape", pair(3)),
            ("pads", AttributeValue::Ints(vec![1; 4])),
            ("strides", pair(2)),
        ],
    );
    let mut x = Act { id: pooled, moment: 2.0 * x.moment, ..x };
    for (stage, channels) in [64, 128, 256, 512].into_iter().enumerate() {
        for block in 0..2 {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = basic_block(&mut net, &format!("layer{}.{block}", stage + 1), x, channels, stride);
        }
    }
    let x = net.global_pool("avgpool", x);
    let x = net.flatten("flatten", x);
    let x = net.classifier("fc", x, 1000);
    net.finish(x.id)
}

fn basic_block(net: &mut Net, name: &str, x: Act, channels: usize, stride: usize) -> Act {
    let y = net.conv(&format!("{name}.conv1"), x, Conv::same(channels, 3, stride));
    let y = net.batch_norm(&format!("{name}.bn1"), y, EPS);
    let y = net.relu(&format!("{name}.relu"), y);
    let y = net.conv(&format!("{name}.conv2"), y, Conv::same(channels, 3, 1));
    let y = net.batch_norm(&format!("{name}.bn2"), y, EPS);
    let shortcut = if stride == 1 {
        x
    } else {
        let s = net.conv(&format!("{name}.downsample.0"), x, Conv::same(channels, 1, stride));
        net.batch_norm(&format!("{name}.downsample.1"), s, EPS)
    };
    let y = net.add(&format!("{name}.add"), y, shortcut);
    net.relu(&format!("{name}.relu_1"), y)
}
