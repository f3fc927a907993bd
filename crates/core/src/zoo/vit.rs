//! ViT-B/16 (Dosovitskiy et al. 2020, arXiv:2010.11929), as torchvision writes it.

use super::{
    net::{Act, Conv, Net},
    weights::Init,
};
use crate::{
    ir::{Model, ModelValueId},
    ops::AttributeValue,
    tensor::Tensor,
};

const FEATURES: usize = 768;
const ENCODER: Encoder = Encoder { features: FEATURES, heads: 12, mlp: 3072 };
const LAYERS: usize = 12;
const TOKENS: usize = 14 * 14 + 1;
const EPS: f32 = 1e-6;

pub(super) fn vit_b_16(name: &str, pruned_percent: u8) -> Model {
    let (mut net, image) = Net::new(name, pruned_percent);
    let patches = Conv { stride: 16, pad: 0, bias: true, ..Conv::same(FEATURES, 16, 16) };
    let x = net.conv("conv_proj", image, patches);
    let x = net.reshape("patches/Reshape", x.id, &[0, FEATURES as i64, -1]);
    let x = net.transpose("patches/Transpose", x, &[0, 2, 1]);
    let token = class_token(&mut net, image.id);
    let x = net.op("tokens", "Concat", &[token, x], &[("axis", AttributeValue::Int(1))]);
    let position = net.weight(
        "encoder.pos_embedding",
        &[1, TOKENS, FEATURES],
        Init::Normal { mean: 0.0, std: 0.2 },
    );
    let mut x = net.op("encoder/Add", "Add", &[x, position], &[]);
    for layer in 0..LAYERS {
        x = encoder_layer(&mut net, ENCODER, &format!("encoder.layers.encoder_layer_{layer}"), x);
    }
    let x = net.layer_norm("encoder.ln", x, FEATURES, EPS);
    let first = net.constant("class_index", Tensor::scalar(0i64));
    let x = net.op("class", "Gather", &[x, first], &[("axis", AttributeValue::Int(1))]);
    let x = Act { id: x, channels: FEATURES, moment: 1.0 };
    let x = net.classifier("heads.head", x, 1000);
    net.finish(x.id)
}

/// The class token, repeated for each image of the batch.
fn class_token(net: &mut Net, image: ModelValueId) -> ModelValueId {
    let init = Init::Normal { mean: 0.0, std: 1.0 };
    let token = net.weight("class_token", &[1, 1, FEATURES], init);
    let batch = net.op(
        "class_token/Shape",
        "Shape",
        &[image],
        &[("start", AttributeValue::Int(0)), ("end", AttributeValue::Int(1))],
    );
    let rest = net.ints("class_token_dims", &[1, FEATURES as i64]);
    let shape =
        net.op("class_token/Concat", "Concat", &[batch, rest], &[("axis", AttributeValue::Int(0))]);
    net.op("class_token/Expand", "Expand", &[token, shape], &[])
}

/// Sizes of a transformer's encoder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoder {
    /// Features of a token.
    pub(super) features: usize,
    /// Heads of its attention.
    pub(super) heads: usize,
    /// Features between the two layers of its perceptron.
    pub(super) mlp: usize,
}

/// One layer: attention and a perceptron, each after a normalisation and around a shortcut.
pub(super) fn encoder_layer(
    net: &mut Net,
    e: Encoder,
    name: &str,
    x: ModelValueId,
) -> ModelValueId {
    let y = net.layer_norm(&format!("{name}.ln_1"), x, e.features, EPS);
    let y = self_attention(net, e, &format!("{name}.self_attention"), y);
    let x = net.op(&format!("{name}/Add"), "Add", &[y, x], &[]);
    let y = net.layer_norm(&format!("{name}.ln_2"), x, e.features, EPS);
    let y = net.linear(&format!("{name}.mlp.0"), y, (e.features, e.mlp), true);
    let y = net.op(&format!("{name}.mlp.1"), "Gelu", &[y], &[]);
    let y = net.linear(&format!("{name}.mlp.3"), y, (e.mlp, e.features), true);
    net.op(&format!("{name}/Add_1"), "Add", &[x, y], &[])
}

fn self_attention(net: &mut Net, e: Encoder, name: &str, x: ModelValueId) -> ModelValueId {
    let head = e.features / e.heads;
    let qkv = net.linear(&format!("{name}.in_proj"), x, (e.features, 3 * e.features), true);
    let [q, k, v] = split_heads(net, name, qkv, e.heads, head);
    let scale = net.constant(&format!("{name}_scale"), Tensor::scalar(1.0 / (head as f32).sqrt()));
    let q = net.op(&format!("{name}/Mul"), "Mul", &[q, scale], &[]);
    let k = net.transpose(&format!("{name}/Transpose_1"), k, &[0, 1, 3, 2]);
    let scores = net.op(&format!("{name}/MatMul"), "MatMul", &[q, k], &[]);
    let axis = [("axis", AttributeValue::Int(-1))];
    let weights = net.op(&format!("{name}/Softmax"), "Softmax", &[scores], &axis);
    let y = net.op(&format!("{name}/MatMul_1"), "MatMul", &[weights, v], &[]);
    let y = net.transpose(&format!("{name}/Transpose_2"), y, &[0, 2, 1, 3]);
    let y = net.reshape(&format!("{name}/Reshape_1"), y, &[0, 0, e.features as i64]);
    net.linear(&format!("{name}.out_proj"), y, (e.features, e.features), true)
}

/// [B, S, 3*H*D] to queries, keys and values [B, H, S, D].
pub(super) fn split_heads(
    net: &mut Net,
    name: &str,
    qkv: ModelValueId,
    heads: usize,
    head: usize,
) -> [ModelValueId; 3] {
    let dims = [0, 0, 3, heads as i64, head as i64];
    let qkv = net.reshape(&format!("{name}/Reshape"), qkv, &dims);
    let qkv = net.transpose(&format!("{name}/Transpose"), qkv, &[2, 0, 3, 1, 4]);
    [0i64, 1, 2].map(|i| {
        let index = net.constant(&format!("{name}_index_{i}"), Tensor::scalar(i));
        let axis = [("axis", AttributeValue::Int(0))];
        net.op(&format!("{name}/Gather_{i}"), "Gather", &[qkv, index], &axis)
    })
}
