//! Builds a zoo model layer by layer: nodes from the operator registry, weights by name, and an
//! estimate of each activation's second moment, from which batch normalisations get statistics
//! that fit, so that neither depth nor pruning makes activations explode or vanish.

use super::weights::{self, Init, Request};
use crate::{
    ir::{Dim, Model, ModelBuilder, ModelNode, ModelValueId},
    ops::{self, AttributeValue, Attributes},
    tensor::{DType, Tensor},
};

/// The opset that the zoo is written in: the first with Gelu.
pub(super) const OPSET: u32 = 20;

/// An activation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Act {
    /// The value.
    pub(super) id: ModelValueId,
    /// Channels (features).
    pub(super) channels: usize,
    /// Estimate of the mean square of its elements.
    pub(super) moment: f32,
}

/// A model in the making.
pub(super) struct Net {
    builder: ModelBuilder,
    seed: u64,
    pruned_percent: u8,
    kept_energy: f32,
    weights: Vec<(ModelValueId, Request)>,
    /// The weights are placeholders: the model is for planning, not for running.
    blank: bool,
}

/// Attribute list of a node.
pub(super) type Attrs<'a> = &'a [(&'a str, AttributeValue)];

/// A convolution's geometry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    /// Output channels.
    pub(super) out: usize,
    /// Kernel height and width.
    pub(super) kernel: usize,
    /// Stride in both directions.
    pub(super) stride: usize,
    /// Padding on all sides.
    pub(super) pad: usize,
    /// Groups.
    pub(super) groups: usize,
    /// With a bias.
    pub(super) bias: bool,
}

impl Conv {
    /// A square convolution with padding that keeps the size at stride 1, no bias.
    pub(super) fn same(out: usize, kernel: usize, stride: usize) -> Conv {
        Conv { out, kernel, stride, pad: kernel / 2, groups: 1, bias: false }
    }
}

impl Net {
    /// An empty model of that name with its image input.
    pub(super) fn new(name: &str, pruned_percent: u8) -> (Net, Act) {
        let mut builder = ModelBuilder::new(name);
        let dims =
            vec![Dim::Symbol("batch".into()), Dim::Fixed(3), Dim::Fixed(224), Dim::Fixed(224)];
        let id = builder.input("input", DType::F32, dims);
        let net = Net {
            builder,
            seed: weights::hash(name),
            pruned_percent,
            kept_energy: weights::kept_energy(pruned_percent),
            weights: Vec::new(),
            blank: false,
        };
        (net, Act { id, channels: 3, moment: 1.0 })
    }

    /// An empty model whose weights will be placeholders.
    pub(super) fn blank(name: &str) -> (Net, Act) {
        let (net, image) = Net::new(name, 0);
        (Net { blank: true, ..net }, image)
    }

    /// The finished model; `id` becomes its output under the name `output`.
    pub(super) fn finish(mut self, id: ModelValueId) -> Model {
        let (ids, requests): (Vec<_>, Vec<_>) = self.weights.into_iter().unzip();
        let tensors = match self.blank {
            true => weights::placeholders(&requests),
            false => weights::generate(self.seed, &requests),
        };
        self.builder.output(id);
        let mut model = self.builder.finish();
        model.values[id.index()] = "output".to_owned();
        model.constants.extend(ids.into_iter().zip(tensors.into_iter().map(Into::into)));
        model
    }

    /// A node with one output.
    pub(super) fn op(
        &mut self,
        name: &str,
        op_type: &str,
        inputs: &[ModelValueId],
        attrs: Attrs<'_>,
    ) -> ModelValueId {
        self.op_many(name, op_type, inputs, attrs, 1)[0]
    }

    /// A node with several outputs.
    fn op_many(
        &mut self,
        name: &str,
        op_type: &str,
        inputs: &[ModelValueId],
        attrs: Attrs<'_>,
        outputs: usize,
    ) -> Vec<ModelValueId> {
        let spec = ops::find("", op_type).expect("the zoo uses registered operators");
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), v.clone()));
        let attributes = Attributes::new(OPSET, outputs, attrs);
        let op = (spec.parse)(&attributes).expect("the zoo's attributes are valid");
        let outputs: Vec<_> = (0..outputs)
            .map(|i| match i {
                0 => self.builder.value(format!("{name}_output")),
                _ => self.builder.value(format!("{name}_output_{i}")),
            })
            .collect();
        self.builder.push(ModelNode {
            name: name.to_owned(),
            op,
            inputs: inputs.iter().copied().map(Some).collect(),
            outputs: outputs.iter().copied().map(Some).collect(),
        });
        outputs
    }

    /// A learned tensor.
    pub(super) fn weight(&mut self, name: &str, shape: &[usize], init: Init) -> ModelValueId {
        self.weight_pruned(name, shape, init, 0)
    }

    fn weight_pruned(
        &mut self,
        name: &str,
        shape: &[usize],
        init: Init,
        pruned_percent: u8,
    ) -> ModelValueId {
        let id = self.builder.value(name);
        let shape = shape.to_vec();
        self.weights.push((id, Request { name: name.to_owned(), shape, init, pruned_percent }));
        id
    }

    /// A constant of integers.
    pub(super) fn ints(&mut self, name: &str, values: &[i64]) -> ModelValueId {
        self.builder.constant(name, Tensor::from_slice([values.len()], values))
    }

    /// A constant tensor.
    pub(super) fn constant(&mut self, name: &str, value: Tensor) -> ModelValueId {
        self.builder.constant(name, value)
    }

    /// Reshape to constant dimensions (0 keeps one, -1 takes the rest).
    pub(super) fn reshape(&mut self, name: &str, x: ModelValueId, dims: &[i64]) -> ModelValueId {
        let shape = self.ints(&format!("{name}_shape"), dims);
        self.op(name, "Reshape", &[x, shape], &[])
    }

    /// Transpose.
    pub(super) fn transpose(&mut self, name: &str, x: ModelValueId, perm: &[i64]) -> ModelValueId {
        self.op(name, "Transpose", &[x], &[("perm", AttributeValue::Ints(perm.to_vec()))])
    }

    /// Convolution `NAME` with weights `NAME.weight` (and `NAME.bias`).
    pub(super) fn conv(&mut self, name: &str, x: Act, c: Conv) -> Act {
        let fan_in = x.channels / c.groups * c.kernel * c.kernel;
        let shape = [c.out, x.channels / c.groups, c.kernel, c.kernel];
        let std = (2.0 / fan_in as f32).sqrt();
        let init = Init::Normal { mean: 0.0, std };
        let pruned = self.pruned_percent;
        let mut inputs =
            vec![x.id, self.weight_pruned(&format!("{name}.weight"), &shape, init, pruned)];
        if c.bias {
            inputs.push(self.bias(name, c.out, fan_in));
        }
        let pair = |v: usize| AttributeValue::Ints(vec![v as i64; 2]);
        let id = self.op(
            name,
            "Conv",
            &inputs,
            &[
                ("dilations", pair(1)),
                ("group", AttributeValue::Int(c.groups as i64)),
                ("kernel_shape", pair(c.kernel)),
                ("pads", AttributeValue::Ints(vec![c.pad as i64; 4])),
                ("strides", pair(c.stride)),
            ],
        );
        Act { id, channels: c.out, moment: 2.0 * self.kept_energy * x.moment }
    }

    fn bias(&mut self, name: &str, out: usize, fan_in: usize) -> ModelValueId {
        let bound = 1.0 / (fan_in as f32).sqrt();
        let init = Init::Uniform { low: -bound, high: bound };
        self.weight(&format!("{name}.bias"), &[out], init)
    }

    /// Batch normalisation with statistics near those of its input.
    pub(super) fn batch_norm(&mut self, name: &str, x: Act, eps: f32) -> Act {
        let shape = [x.channels];
        let around = |v: f32, spread: f32| Init::Uniform { low: v - spread, high: v + spread };
        let deviation = x.moment.sqrt();
        let gamma = self.weight(&format!("{name}.weight"), &shape, around(1.0, 0.2));
        let beta = self.weight(&format!("{name}.bias"), &shape, around(0.0, 0.2));
        let mean =
            self.weight(&format!("{name}.running_mean"), &shape, around(0.0, 0.1 * deviation));
        let variance =
            self.weight(&format!("{name}.running_var"), &shape, around(x.moment, 0.2 * x.moment));
        let id = self.op(
            name,
            "BatchNormalization",
            &[x.id, gamma, beta, mean, variance],
            &[("epsilon", AttributeValue::Float(eps))],
        );
        Act { id, moment: 1.0, ..x }
    }

    /// Fully connected layer on [batch, features], as Gemm.
    pub(super) fn classifier(&mut self, name: &str, x: Act, out: usize) -> Act {
        let shape = [out, x.channels];
        let std = 1.0 / (x.channels as f32).sqrt();
        let init = Init::Normal { mean: 0.0, std };
        let pruned = self.pruned_percent;
        let w = self.weight_pruned(&format!("{name}.weight"), &shape, init, pruned);
        let b = self.bias(name, out, x.channels);
        let id = self.op(name, "Gemm", &[x.id, w, b], &[("transB", AttributeValue::Int(1))]);
        Act { id, channels: out, moment: self.kept_energy * x.moment }
    }

    /// Fully connected layer on the last axis, as MatMul and Add, the weight stored [in, out].
    pub(super) fn linear(
        &mut self,
        name: &str,
        x: ModelValueId,
        (inputs, outputs): (usize, usize),
        bias: bool,
    ) -> ModelValueId {
        let std = 1.0 / (inputs as f32).sqrt();
        let init = Init::Normal { mean: 0.0, std };
        let pruned = self.pruned_percent;
        let w = self.weight_pruned(&format!("{name}.weight"), &[inputs, outputs], init, pruned);
        let product = self.op(&format!("{name}/MatMul"), "MatMul", &[x, w], &[]);
        if !bias {
            return product;
        }
        let b = self.bias(name, outputs, inputs);
        self.op(&format!("{name}/Add"), "Add", &[product, b], &[])
    }

    /// Layer normalisation over the last axis.
    pub(super) fn layer_norm(
        &mut self,
        name: &str,
        x: ModelValueId,
        features: usize,
        eps: f32,
    ) -> ModelValueId {
        let gamma = Init::Uniform { low: 0.8, high: 1.2 };
        let beta = Init::Uniform { low: -0.2, high: 0.2 };
        let gamma = self.weight(&format!("{name}.weight"), &[features], gamma);
        let beta = self.weight(&format!("{name}.bias"), &[features], beta);
        self.op(
            name,
            "LayerNormalization",
            &[x, gamma, beta],
            &[("axis", AttributeValue::Int(-1)), ("epsilon", AttributeValue::Float(eps))],
        )
    }

    /// Relu.
    pub(super) fn relu(&mut self, name: &str, x: Act) -> Act {
        let id = self.op(name, "Relu", &[x.id], &[]);
        Act { id, moment: 0.5 * x.moment, ..x }
    }

    /// Relu6.
    pub(super) fn relu6(&mut self, name: &str, x: Act) -> Act {
        let low = self.constant(&format!("{name}_min"), Tensor::scalar(0.0f32));
        let high = self.constant(&format!("{name}_max"), Tensor::scalar(6.0f32));
        let id = self.op(name, "Clip", &[x.id, low, high], &[]);
        Act { id, moment: 0.5 * x.moment, ..x }
    }

    /// Hard swish.
    pub(super) fn hard_swish(&mut self, name: &str, x: Act) -> Act {
        let id = self.op(name, "HardSwish", &[x.id], &[]);
        // Of a standard normal variable.
        Act { id, moment: 0.34 * x.moment, ..x }
    }

    /// Sum of two activations.
    pub(super) fn add(&mut self, name: &str, a: Act, b: Act) -> Act {
        let id = self.op(name, "Add", &[a.id, b.id], &[]);
        Act { id, moment: a.moment + b.moment, ..a }
    }

    /// Global average pooling; the moment stays a fair guess because rectified channels have
    /// large means.
    pub(super) fn global_pool(&mut self, name: &str, x: Act) -> Act {
        let id = self.op(name, "GlobalAveragePool", &[x.id], &[]);
        Act { id, moment: 0.5 * x.moment, ..x }
    }

    /// Flatten to [batch, features].
    pub(super) fn flatten(&mut self, name: &str, x: Act) -> Act {
        let id = self.op(name, "Flatten", &[x.id], &[("axis", AttributeValue::Int(1))]);
        Act { id, ..x }
    }
}
