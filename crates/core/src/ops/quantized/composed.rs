//! `com.microsoft`'s QLinear operators, which equal a float operator between conversions: each is
//! replaced by those before anything runs.

use std::sync::Arc;

use crate::{
    ir::{Dim, Expansion, ModelBuilder, ModelNode, ModelValueId},
    ops::{
        AttributeValue, Attributes, CpuKernel, Example, Op, OpError, OpSpec, Operand, Operands,
        find, sample,
    },
    tensor::{DType, Tensor, TensorType},
};

pub(super) const ADD: OpSpec = OpSpec {
    name: "QLinearAdd",
    domain: "com.microsoft",
    since: 1,
    inputs: (7, 8),
    outputs: (1, 1),
    parse: |_| make("QLinearAdd", "Add", Form::Binary, vec![]),
    examples: binary_examples,
};

pub(super) const MUL: OpSpec = OpSpec {
    name: "QLinearMul",
    parse: |_| make("QLinearMul", "Mul", Form::Binary, vec![]),
    ..ADD
};

pub(super) const SIGMOID: OpSpec = OpSpec {
    name: "QLinearSigmoid",
    inputs: (4, 5),
    parse: |_| make("QLinearSigmoid", "Sigmoid", Form::Unary, vec![]),
    examples: unary_examples,
    ..ADD
};

pub(super) const LEAKY_RELU: OpSpec = OpSpec {
    name: "QLinearLeakyRelu",
    parse: |a| {
        let alpha = ("alpha", a.float_or("alpha", 0.01)?.into());
        make("QLinearLeakyRelu", "LeakyRelu", Form::Unary, vec![alpha])
    },
    ..SIGMOID
};

pub(super) const SOFTMAX: OpSpec = OpSpec {
    name: "QLinearSoftmax",
    parse: |a| {
        let opset = a.int("opset")?.unwrap_or(13);
        let axis = a.int_or("axis", if opset < 13 { 1 } else { -1 })?;
        let form = if opset < 13 { Form::OldUnary } else { Form::Unary };
        make("QLinearSoftmax", "Softmax", form, vec![("axis", axis.into())])
    },
    ..SIGMOID
};

pub(super) const GLOBAL_AVERAGE_POOL: OpSpec = OpSpec {
    name: "QLinearGlobalAveragePool",
    parse: |a| {
        let list = layout(a)?.into_iter().collect();
        make("QLinearGlobalAveragePool", "GlobalAveragePool", Form::Unary, list)
    },
    ..SIGMOID
};

pub(super) const AVERAGE_POOL: OpSpec = OpSpec {
    name: "QLinearAveragePool",
    parse: |a| {
        let mut list: Vec<Named> = layout(a)?.into_iter().collect();
        for name in ["kernel_shape", "strides", "pads"] {
            list.extend(a.ints(name)?.map(|v| (name, v.into())));
        }
        for name in ["ceil_mode", "count_include_pad"] {
            list.extend(a.int(name)?.map(|v| (name, v.into())));
        }
        list.extend(a.string("auto_pad")?.map(|v| ("auto_pad", AttributeValue::String(v))));
        make("QLinearAveragePool", "AveragePool", Form::Unary, list)
    },
    examples: || {
        unary_examples().into_iter().map(|e| e.attribute("kernel_shape", [2, 2])).collect()
    },
    ..SIGMOID
};

pub(super) const CONCAT: OpSpec = OpSpec {
    name: "QLinearConcat",
    inputs: (5, usize::MAX),
    parse: |a| {
        let axis = ("axis", a.int_or("axis", 0)?.into());
        make("QLinearConcat", "Concat", Form::Concat, vec![axis])
    },
    examples: || {
        let x = |seed| sample(TensorType::new(DType::U8, [2, 3]), seed);
        vec![
            Example::new("two tensors")
                .attribute("axis", 1i64)
                .constant(Tensor::scalar(0.2f32))
                .constant(Tensor::scalar(3u8))
                .input(x(1))
                .constant(Tensor::scalar(0.1f32))
                .constant(Tensor::scalar(8u8))
                .input(x(2))
                .constant(Tensor::scalar(0.3f32))
                .constant(Tensor::scalar(0u8)),
        ]
    },
    ..ADD
};

pub(super) const GEMM: OpSpec = OpSpec {
    name: "QGemm",
    inputs: (6, 9),
    parse: |a| {
        let list = vec![
            ("alpha", a.float_or("alpha", 1.0)?.into()),
            ("transA", a.flag("transA", false)?.into()),
            ("transB", a.flag("transB", false)?.into()),
        ];
        make("QGemm", "Gemm", Form::Gemm, list)
    },
    examples: || {
        vec![
            Example::new("bias, requantised")
                .attribute("transB", true)
                .input(sample(TensorType::new(DType::U8, [2, 5]), 1))
                .constant(Tensor::scalar(0.1f32))
                .constant(Tensor::scalar(8u8))
                .constant(sample(TensorType::new(DType::I8, [3, 5]), 2))
                .constant(Tensor::from_slice([3], &[0.1f32, 0.2, 0.3]))
                .constant(Tensor::from_slice([3], &[0i8, 0, 0]))
                .constant(Tensor::from_slice([3], &[5i32, -5, 0]))
                .constant(Tensor::scalar(0.5f32))
                .constant(Tensor::scalar(100u8)),
        ]
    },
    ..ADD
};

type Named = (&'static str, AttributeValue);

/// `channels_last` as the pools' own attribute.
fn layout(attributes: &Attributes) -> Result<Option<Named>, OpError> {
    Ok(attributes.flag("channels_last", false)?.then(|| ("layout", "NHWC".into())))
}

fn make(
    name: &'static str,
    float: &'static str,
    form: Form,
    list: Vec<Named>,
) -> Result<Arc<dyn Op>, OpError> {
    Ok(Arc::new(Composed { name, float, form, list }))
}

/// Order of the inputs; each quantised input is followed by scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// a, b, and the output's scale and zero point.
    Binary,
    /// x, and the output's scale and zero point.
    Unary,
    /// The same, the float operator in its meaning of opset 12.
    OldUnary,
    /// The output's scale and zero point, then the tensors.
    Concat,
    /// a, b, bias (i32), and the output's scale and zero point, if it is quantised.
    Gemm,
}

/// A float operator between conversions.
#[derive(Clone, Debug)]
struct Composed {
    name: &'static str,
    /// The float operator's name.
    float: &'static str,
    form: Form,
    /// The float operator's attributes.
    list: Vec<Named>,
}

/// A model under construction, with the node's inputs declared as needed.
struct Body<'a> {
    builder: ModelBuilder,
    operands: &'a [Option<Operand>],
    /// Inputs declared so far, by index.
    inputs: Vec<(usize, ModelValueId)>,
    nodes: usize,
}

impl Body<'_> {
    fn input(&mut self, i: usize) -> Option<ModelValueId> {
        let operand = self.operands.get(i)?.as_ref()?;
        if let Some((_, id)) = self.inputs.iter().find(|(known, _)| *known == i) {
            return Some(*id);
        }
        let dims: Vec<Dim> = operand.shape().iter().map(|&d| Dim::Fixed(d)).collect();
        let id = self.builder.input(format!("input_{i}"), operand.ty.dtype, dims);
        self.inputs.push((i, id));
        Some(id)
    }

    /// Adds a standard operator.
    fn node(
        &mut self,
        name: &str,
        list: &[Named],
        opset: u32,
        inputs: &[Option<ModelValueId>],
    ) -> Option<ModelValueId> {
        let domain = if list.iter().any(|(n, _)| *n == "layout") { "ai.sparoa" } else { "" };
        let values = list.iter().map(|(n, v)| ((*n).to_owned(), v.clone()));
        let op = (find(domain, name)?.parse)(&Attributes::new(opset, 1, values)).ok()?;
        self.nodes += 1;
        let node_name = format!("{name}_{}", self.nodes);
        let output = self.builder.value(format!("{node_name}_output"));
        let mut inputs = inputs.to_vec();
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let node = ModelNode { name: node_name, op, inputs, outputs: vec![Some(output)] };
        self.builder.push(node);
        Some(output)
    }

    /// Input `i`, followed by scale and zero point, as floats; several scales lie along `axis`.
    fn float(&mut self, i: usize, axis: i64) -> Option<ModelValueId> {
        let inputs = [self.input(i), self.input(i + 1), self.input(i + 2)];
        self.node("DequantizeLinear", &[("axis", axis.into())], NEW, &inputs)
    }

    /// `value` with the scale of input `i` and the zero point after it, of type `dtype`.
    fn quantized(&mut self, value: ModelValueId, i: usize, dtype: DType) -> Option<ModelValueId> {
        let inputs = [Some(value), self.input(i), self.input(i + 1)];
        let code: i64 = if dtype == DType::I8 { 3 } else { 2 };
        self.node("QuantizeLinear", &[("output_dtype", code.into())], NEW, &inputs)
    }
}

const NEW: u32 = crate::ops::NEWEST_OPSET;

impl Composed {
    fn body(&self, operands: &[Option<Operand>]) -> Option<Expansion> {
        let mut body =
            Body { builder: ModelBuilder::new(self.name), operands, inputs: Vec::new(), nodes: 0 };
        let dtype = |i: usize| operands.get(i)?.as_ref().map(|o| o.ty.dtype);
        let result = match self.form {
            Form::Binary => {
                let inputs = [body.float(0, 0), body.float(3, 0)];
                let y = body.node(self.float, &self.list, NEW, &inputs)?;
                body.quantized(y, 6, dtype(0)?)?
            }
            Form::Unary | Form::OldUnary => {
                let opset = if self.form == Form::Unary { NEW } else { 12 };
                let inputs = [body.float(0, 0)];
                let y = body.node(self.float, &self.list, opset, &inputs)?;
                body.quantized(y, 3, dtype(0)?)?
            }
            Form::Concat => {
                let parts: Vec<_> =
                    (2..operands.len()).step_by(3).map(|i| body.float(i, 0)).collect();
                let y = body.node(self.float, &self.list, NEW, &parts)?;
                body.quantized(y, 0, dtype(1)?)?
            }
            Form::Gemm => self.gemm(&mut body)?,
        };
        body.builder.output(result);
        let inputs = body.inputs.iter().map(|(i, _)| *i).collect();
        Some(Expansion { model: Arc::new(body.builder.finish()), inputs })
    }

    /// Where the body cannot be made.
    fn refusal(&self) -> OpError {
        OpError::unsupported(format!(
            "{} with these inputs (nearest: {} between DequantizeLinear and QuantizeLinear)",
            self.name, self.float
        ))
    }

    fn gemm(&self, body: &mut Body<'_>) -> Option<ModelValueId> {
        let flag = |name: &str| {
            self.list.iter().any(|(n, v)| *n == name && matches!(v, AttributeValue::Int(1)))
        };
        let columns = if flag("transB") { 0 } else { 1 };
        let (a, b) = (body.float(0, 0), body.float(3, columns));
        // The bias counts in the product's own steps, the scales' product.
        let bias = match body.input(6) {
            None => None,
            Some(bias) => {
                let (a_scale, b_scale) = (body.input(1), body.input(4));
                let steps = body.node("Mul", &[], NEW, &[a_scale, b_scale]);
                body.node("DequantizeLinear", &[("axis", 0i64.into())], NEW, &[Some(bias), steps])
            }
        };
        let y = body.node(self.float, &self.list, NEW, &[a, b, bias])?;
        if body.operands.get(7).is_some_and(Option::is_some) {
            let dtype = body.operands[0].as_ref()?.ty.dtype;
            return body.quantized(y, 7, dtype);
        }
        Some(y)
    }
}

impl Op for Composed {
    fn op_type(&self) -> &'static str {
        self.name
    }

    fn infer(&self, _inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        Err(self.refusal())
    }

    fn flops(&self, _x: &Operands<'_>) -> u64 {
        0
    }

    fn cpu(&self, _x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        Err(self.refusal())
    }

    fn expand(&self, inputs: &[Option<Operand>]) -> Option<Expansion> {
        self.body(inputs)
    }

    fn attributes(&self) -> Vec<Named> {
        self.list.clone()
    }

    fn domain(&self) -> &'static str {
        "com.microsoft"
    }
}

fn binary_examples() -> Vec<Example> {
    let x = |seed| sample(TensorType::new(DType::U8, [2, 3]), seed);
    vec![
        Example::new("two tensors")
            .input(x(1))
            .constant(Tensor::scalar(0.1f32))
            .constant(Tensor::scalar(8u8))
            .input(x(2))
            .constant(Tensor::scalar(0.2f32))
            .constant(Tensor::scalar(3u8))
            .constant(Tensor::scalar(0.3f32))
            .constant(Tensor::scalar(100u8)),
    ]
}

fn unary_examples() -> Vec<Example> {
    vec![
        Example::new("one tensor")
            .input(sample(TensorType::new(DType::U8, [1, 2, 4, 3]), 1))
            .constant(Tensor::scalar(0.1f32))
            .constant(Tensor::scalar(8u8))
            .constant(Tensor::scalar(0.02f32))
            .constant(Tensor::scalar(128u8)),
    ]
}
