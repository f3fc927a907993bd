//! Random networks of the families that the field uses: what a scheduler is trained on, so that
//! the built-in models stay unseen. Their weights are placeholders.

use rand::{RngExt as _, SeedableRng, seq::IndexedRandom as _};
use rand_pcg::Pcg32;

use super::{
    net::{Act, Conv, Net},
    vit::{Encoder, encoder_layer},
};
use crate::{ir::Model, ops::AttributeValue};

const EPS: f32 = 1e-5;

/// A network for planning, of about `operators` operators after the graph passes (at least a
/// few); the same for the same seed.
pub fn random(seed: u64, operators: usize) -> Model {
    let mut rng = Pcg32::seed_from_u64(seed);
    let (net, image) = Net::blank(&format!("random{seed}"));
    let mut g = Generator { net, blocks: 0 };
    let width = *[8usize, 16, 24, 32, 48, 64].choose(&mut rng).expect("not empty");
    let (kernel, stride) = *[(3, 2), (7, 2), (4, 4)].choose(&mut rng).expect("not empty");
    let mut x = g.unit(image, Conv::same(width, kernel, stride));
    let family = rng.random_range(0..6);
    let mut left = operators.saturating_sub(4);
    let mut size = (224 + 2 * (kernel / 2) - kernel) / stride + 1;
    // Stages narrow at even distances over the whole depth.
    let stages = rng.random_range(2..=4usize);
    let per_stage = (left / stages).max(1);
    let mut in_stage = 0;
    while left > 0 {
        let grows = in_stage >= per_stage && size > 7;
        let stride = if grows { 2 } else { 1 };
        if grows {
            in_stage = 0;
            size = size.div_ceil(2);
        }
        let out = if grows { (x.channels * 2).min(768) } else { x.channels };
        // Mostly the network's own family, now and then another block.
        let kind = if rng.random_bool(0.8) { family } else { rng.random_range(0..7) };
        let (y, used) = match kind {
            0 => (g.residual(x, out, stride), 3),
            1 => (g.inverted(x, out, stride, *[3usize, 4, 6].choose(&mut rng).expect("some")), 4),
            2 => (g.branches(x, out, stride, rng.random_range(2..=4)), 5),
            3 if size <= 28 => (g.encoder(x, out, stride, size, size), 9),
            4 if size % 7 == 0 => {
                // Windows, now and then of a shifted image.
                let x = if rng.random_bool(0.5) { g.roll(x) } else { x };
                (g.encoder(x, out, stride, size, 7), 16)
            }
            5 if !grows => (g.shuffle(x, size), 1),
            _ => (
                g.unit(x, Conv::same(out, *[1usize, 3, 5].choose(&mut rng).expect("some"), stride)),
                1,
            ),
        };
        x = y;
        left = left.saturating_sub(used);
        in_stage += used;
    }
    let x = g.net.global_pool("pool", x);
    let x = g.net.flatten("flatten", x);
    let classes = *[10usize, 100, 1000].choose(&mut rng).expect("not empty");
    let x = g.net.classifier("classifier", x, classes);
    g.net.finish(x.id)
}

struct Generator {
    net: Net,
    blocks: usize,
}

impl Generator {
    fn name(&mut self) -> String {
        self.blocks += 1;
        format!("block{}", self.blocks)
    }

    /// Convolution, normalisation, activation.
    fn unit(&mut self, x: Act, conv: Conv) -> Act {
        let name = self.name();
        let y = self.net.conv(&format!("{name}.conv"), x, conv);
        let y = self.net.batch_norm(&format!("{name}.norm"), y, EPS);
        match self.blocks % 3 {
            0 => self.net.hard_swish(&format!("{name}.act"), y),
            _ => self.net.relu(&format!("{name}.act"), y),
        }
    }

    /// Two convolutions around a shortcut.
    fn residual(&mut self, x: Act, out: usize, stride: usize) -> Act {
        let y = self.unit(x, Conv::same(out, 3, stride));
        let name = self.name();
        let y = self.net.conv(&format!("{name}.conv"), y, Conv::same(out, 3, 1));
        let shortcut = match stride == 1 && x.channels == out {
            true => x,
            false => self.net.conv(&format!("{name}.down"), x, Conv::same(out, 1, stride)),
        };
        let y = self.net.add(&format!("{name}.add"), y, shortcut);
        self.net.relu(&format!("{name}.act"), y)
    }

    /// Wide in the middle, channel by channel there.
    fn inverted(&mut self, x: Act, out: usize, stride: usize, expansion: usize) -> Act {
        let hidden = x.channels * expansion;
        let y = self.unit(x, Conv::same(hidden, 1, 1));
        let y = self.unit(y, Conv { groups: hidden, ..Conv::same(hidden, 3, stride) });
        let name = self.name();
        let y = self.net.conv(&format!("{name}.conv"), y, Conv::same(out, 1, 1));
        match stride == 1 && x.channels == out {
            true => self.net.add(&format!("{name}.add"), x, y),
            false => y,
        }
    }

    /// Branches of different kernels, added up.
    fn branches(&mut self, x: Act, out: usize, stride: usize, count: usize) -> Act {
        let mut sum: Option<Act> = None;
        for branch in 0..count {
            let y = self.unit(x, Conv::same(out, [1, 3, 5, 3][branch % 4], stride));
            let name = self.name();
            sum = Some(match sum {
                None => y,
                Some(other) => self.net.add(&format!("{name}.add"), other, y),
            });
        }
        sum.unwrap_or(x)
    }

    /// A transformer's layer over the pixels of each window of so many rows and columns.
    fn encoder(&mut self, x: Act, out: usize, stride: usize, size: usize, window: usize) -> Act {
        let features = out.div_ceil(32) * 32;
        let x = match stride == 1 && x.channels == features {
            true => x,
            false => self.unit(x, Conv::same(features, 3, stride)),
        };
        let name = self.name();
        let net = &mut self.net;
        let (c, w, n) = (features as i64, window as i64, (size / window) as i64);
        let size = size as i64;
        let y = net.transpose(&format!("{name}.last"), x.id, &[0, 2, 3, 1]);
        let y = net.reshape(&format!("{name}.grid"), y, &[-1, n, w, n, w, c]);
        let y = net.transpose(&format!("{name}.windows"), y, &[0, 1, 3, 2, 4, 5]);
        let tokens = net.reshape(&format!("{name}.tokens"), y, &[-1, w * w, c]);
        let sizes = Encoder { features, heads: features / 32, mlp: 4 * features };
        let y = encoder_layer(net, sizes, &name, tokens);
        let y = net.reshape(&format!("{name}.back"), y, &[-1, n, n, w, w, c]);
        let y = net.transpose(&format!("{name}.rows"), y, &[0, 1, 3, 2, 4, 5]);
        let y = net.reshape(&format!("{name}.image"), y, &[-1, size, size, c]);
        let id = net.transpose(&format!("{name}.first"), y, &[0, 3, 1, 2]);
        Act { id, channels: features, moment: 1.0 }
    }

    /// The image shifted by three rows and columns, around its edges.
    fn roll(&mut self, x: Act) -> Act {
        let name = self.name();
        let mut id = x.id;
        for axis in [2i64, 3] {
            let mut part = |which: &str, start: i64, end: i64| {
                let name = format!("{name}.{which}{axis}");
                let bounds = [("start", start), ("end", end), ("axis", axis)]
                    .map(|(what, value)| self.net.ints(&format!("{name}_{what}"), &[value]));
                self.net.op(&name, "Slice", &[id, bounds[0], bounds[1], bounds[2]], &[])
            };
            let (tail, head) = (part("tail", 3, i64::MAX), part("head", 0, 3));
            let axis = [("axis", AttributeValue::Int(axis))];
            id = self.net.op(&format!("{name}.roll{}", axis[0].0), "Concat", &[tail, head], &axis);
        }
        Act { id, ..x }
    }

    /// Channels of two halves, interleaved (ShuffleNet).
    fn shuffle(&mut self, x: Act, size: usize) -> Act {
        let name = self.name();
        let (half, size) = (x.channels as i64 / 2, size as i64);
        let y = self.net.reshape(&format!("{name}.halves"), x.id, &[0, 2, half, size, size]);
        let y = self.net.transpose(&format!("{name}.turn"), y, &[0, 2, 1, 3, 4]);
        let id = self.net.reshape(&format!("{name}.merge"), y, &[0, 2 * half, size, size]);
        self.unit(Act { id, ..x }, Conv { groups: x.channels, ..Conv::same(x.channels, 3, 1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Shapes, passes, specialize};

    #[test]
    fn random_networks_are_sound_and_repeat() {
        for seed in 0..40 {
            let operators = 5 + (seed as usize * 7) % 120;
            let model = random(seed, operators);
            let graph = passes::optimize(specialize(&model, &Shapes::new()).unwrap().graph);
            assert_eq!(graph.verify().map_err(|e| e.to_string()), Ok(()), "seed {seed}");
            let heavy = graph.nodes.iter().filter(|n| !n.op.is_view()).count();
            assert!(heavy >= 3 && heavy <= 3 * operators + 10, "seed {seed}: {heavy}");
            let again = random(seed, operators);
            assert_eq!(model.nodes.len(), again.nodes.len());
        }
    }
}
