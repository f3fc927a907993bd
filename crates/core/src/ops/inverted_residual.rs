//! InvertedResidual: a depthwise convolution with the pointwise ones before and after it as one
//! operator (channels last), computed strip by strip on the CPU and as a chain of dispatches on
//! the GPU.

use std::{ops::Range, sync::Arc};

use sparoa_kernels::{
    Arithmetic, Epilogue, Pool,
    activation::Activation,
    conv::{Conv2dParams, InvertedResidual as Strips, Pointwise},
    sparse::SparseInvertedResidual as Planes,
};

use super::{
    AttributeValue, Attributes, CpuKernel, Example, GpuCaps, GpuKernel, InputsExt, KernelClass, Op,
    OpError, OpSpec, Operand, Operands, Part, PartInput, Scratch,
    conv::{Conv, Layout, ResidualKind},
    epilogue, floats, gpu, kernel_with, packed_kernel,
    variant::{self, SPARSE, Variant},
    window::Window,
};
use crate::tensor::{DType, TensorType};

pub(super) const SPECS: &[OpSpec] = &[OpSpec {
    name: "InvertedResidual",
    domain: "ai.sparoa",
    since: 1,
    inputs: (3, 8),
    outputs: (1, 1),
    parse: |a| Ok(Arc::new(InvertedResidual::parse(a)?)),
    examples,
}];

/// See the module. Inputs: x (NHWC), weight and bias (may be omitted) of each stage that is there,
/// then the residual of the last stage if `residual` says so.
#[derive(Clone, Debug, PartialEq)]
pub struct InvertedResidual {
    /// Activation of the expansion, if there is one.
    pub expand: Option<Activation>,
    /// The depthwise convolution, channels last, without residual.
    pub depthwise: Conv,
    /// Activation of the projection, if there is one.
    pub project: Option<Activation>,
    /// Whether the last input is added to the last stage's result, and where.
    pub residual: ResidualKind,
    /// How the CPU computes the pointwise stages' products.
    pub arithmetic: Arithmetic,
    /// Which kernels compute the pointwise stages on the CPU.
    pub variant: Variant,
}

impl InvertedResidual {
    fn parse(attributes: &Attributes) -> Result<InvertedResidual, OpError> {
        let names = attributes.strings("activations")?.unwrap_or_default();
        let params = attributes.floats("activation_params")?.unwrap_or_default();
        let ([expand, depthwise, project], 6) = (&names[..], params.len()) else {
            return Err(OpError::invalid(
                "attributes activations and activation_params need 3 and 6 entries".to_owned(),
            ));
        };
        let activation = |i: usize, name: &str| epilogue::activation(name, &params[2 * i..][..2]);
        let stage = |i: usize, name: &str| match name {
            "absent" => Ok(None),
            name => activation(i, name).map(Some),
        };
        let residual = epilogue::parse_residual(attributes)?;
        Ok(InvertedResidual {
            expand: stage(0, expand)?,
            depthwise: Conv {
                window: Window::parse(attributes)?,
                group: super::conv::group(attributes)?,
                layout: Layout::Nhwc,
                activation: activation(1, depthwise)?,
                ..Conv::default()
            },
            project: stage(2, project)?,
            residual,
            arithmetic: Arithmetic::default(),
            variant: Variant::Fastest,
        })
    }

    /// The stages as convolutions, in order.
    pub fn stages(&self) -> Vec<Conv> {
        let pointwise = |activation| Conv { activation, layout: Layout::Nhwc, ..Conv::default() };
        let mut stages: Vec<Conv> = self.expand.map(pointwise).into_iter().collect();
        stages.push(self.depthwise.clone());
        stages.extend(self.project.map(pointwise));
        if let Some(last) = stages.last_mut() {
            last.residual = self.residual;
        }
        stages
    }

    /// Each stage with its inputs and its output's type.
    fn typed(
        &self,
        inputs: &[Option<Operand>],
    ) -> Result<Vec<(Conv, Vec<Option<Operand>>, TensorType)>, OpError> {
        let stages = self.stages();
        let count = stages.len();
        let mut x = inputs.required(0, "x")?.clone();
        let mut typed = Vec::with_capacity(count);
        for (i, stage) in stages.into_iter().enumerate() {
            let mut own = vec![Some(x)];
            own.extend((1..3).map(|j| inputs.optional(2 * i + j).cloned()));
            if i + 1 == count && self.residual != ResidualKind::None {
                own.push(inputs.optional(2 * count + 1).cloned());
            }
            let ty = stage.infer(&own)?.swap_remove(0);
            x = Operand::dynamic(ty.clone());
            typed.push((stage, own, ty));
        }
        Ok(typed)
    }

    fn has_residual(&self) -> bool {
        self.residual != ResidualKind::None
    }
}

impl Op for InvertedResidual {
    fn op_type(&self) -> &'static str {
        "InvertedResidual"
    }

    fn infer(&self, inputs: &[Option<Operand>]) -> Result<Vec<TensorType>, OpError> {
        let last = self.typed(inputs)?.pop();
        Ok(last.into_iter().map(|(_, _, ty)| ty).collect())
    }

    fn flops(&self, x: &Operands<'_>) -> u64 {
        let stages = self.typed(x.inputs).unwrap_or_default();
        let flops = stages.iter().map(|(stage, inputs, ty)| {
            stage.flops(&Operands { inputs, outputs: std::slice::from_ref(ty) })
        });
        flops.sum()
    }

    fn products(&self, x: &Operands<'_>) -> Vec<(KernelClass, u64)> {
        let stages = self.typed(x.inputs).unwrap_or_default();
        stages
            .iter()
            .flat_map(|(stage, inputs, ty)| {
                stage.products(&Operands { inputs, outputs: std::slice::from_ref(ty) })
            })
            .collect()
    }

    fn cpu(&self, x: &Operands<'_>) -> Result<Box<dyn CpuKernel>, OpError> {
        let dtype = x.output(0).dtype;
        if dtype != DType::F32 {
            return Err(OpError::dtype(dtype, &[DType::F32]));
        }
        let stages = self.typed(x.inputs)?;
        let (at, count) = (usize::from(self.expand.is_some()), stages.len());
        let (depthwise, own, _) = &stages[at];
        let shape = depthwise.shape(own)?;
        let constant = |i: usize| x.constant(i).and_then(|t| t.as_slice::<f32>());
        let weight_of = |stage: usize| {
            constant(2 * stage + 1).ok_or_else(|| OpError::unsupported("a weight made at run time"))
        };
        let flat = shape.geometry.two_dimensional();
        let flat = flat.ok_or_else(|| OpError::unsupported("three spatial dimensions"))?;
        let params = shape.params(&flat);
        if !Strips::fits(&params) {
            return Err(OpError::unsupported(
                "this depthwise convolution (supported: kernels 3 and 5 wide, steps 1 and 2)",
            ));
        }
        let pointwise = |stage: usize, activation: Option<Activation>| {
            activation
                .map(|activation| {
                    let (weight, bias) = (weight_of(stage)?, constant(2 * stage + 2));
                    let (sparse, terms) = (false, self.arithmetic.terms());
                    Ok::<_, OpError>(Pointwise { weight, bias, activation, sparse, terms })
                })
                .transpose()
        };
        let stages = Stages {
            expand: pointwise(0, self.expand)?,
            params,
            weight: weight_of(at)?,
            bias: constant(2 * at + 2),
            activation: depthwise.activation,
            project: pointwise(at + 1, self.project)?,
        };
        let activation = self.project.unwrap_or(self.depthwise.activation);
        let (n, [h, w]) = (shape.batch, flat.input);
        let images = [n, h, w];
        let kernel = match self.variant {
            Variant::Fastest => stages.fastest(self.arithmetic, images),
            Variant::Dense => stages.kernel(Way::Strips([false; 2]), images),
            Variant::Sparse => stages.kernel(Way::Planes, images),
        };
        let (residual, index) = (self.residual, 2 * count + 1);
        let (bytes, method) = (kernel.bytes(), kernel.method());
        let kernel = Arc::new(kernel);
        let shape_of = kernel.clone();
        let scratch = move |threads| Scratch::bytes::<f32>(shape_of.scratch_len(images, threads));
        let run = kernel_with(bytes, scratch, move |io, pool| {
            let epilogue = epilogue::epilogue_with(activation, residual, io.get(index));
            let own = kernel.scratch_len(images, pool.threads());
            let x = io.input(0).slice();
            let scratch = Scratch::new(io.scratch).take::<f32>(own);
            kernel.run(images, x, &epilogue, io.outputs[0].slice_mut(), scratch, pool);
            Ok(())
        });
        let held: Vec<usize> = (1..index).collect();
        Ok(packed_kernel(method, held, run))
    }

    fn gpu(&self, x: &Operands<'_>, caps: &GpuCaps) -> Option<GpuKernel> {
        let stages = self.typed(x.inputs).ok()?;
        let count = stages.len();
        let stages = stages.iter().enumerate().map(|(i, (stage, inputs, ty))| {
            let outputs = std::slice::from_ref(ty);
            let source = |j: usize| match j {
                0 if i > 0 => gpu::StageInput::Previous,
                0 => gpu::StageInput::Input(0),
                3 => gpu::StageInput::Input(2 * count + 1),
                j => gpu::StageInput::Input(2 * i + j),
            };
            let sources: Vec<_> = (0..inputs.len()).map(|j| Some(source(j))).collect();
            let caps = gpu::stage_caps(caps, &sources, i + 1 == count);
            let kernel = stage.gpu(&Operands { inputs, outputs }, &caps)?;
            Some(gpu::Stage { kernel, inputs: sources, bytes: ty.bytes() })
        });
        Some(gpu::sequence(stages.collect::<Option<_>>()?, caps))
    }

    fn split_axis(&self, x: &Operands<'_>) -> Option<usize> {
        let shape = &x.output(0).shape;
        match super::axes::first_long(shape)? {
            0 => Some(0),
            // Rows, where an image has several.
            1 => Some(1),
            _ => None,
        }
    }

    fn split(&self, x: &Operands<'_>, range: Range<usize>) -> Option<Part> {
        let axis = self.split_axis(x)?;
        let mut op = self.clone();
        let mut rows = range.clone();
        if axis == 1 {
            // Pointwise stages read the rows that they write.
            let stages = self.typed(x.inputs).ok()?;
            let (depthwise, inputs, _) = &stages[usize::from(self.expand.is_some())];
            let (window, read) = depthwise.shape(inputs).ok()?.geometry.part(0, &range)?;
            op.depthwise.window = window;
            rows = read;
        }
        let count = 1 + usize::from(self.expand.is_some()) + usize::from(self.project.is_some());
        let mut inputs = vec![PartInput::Range { axis, range: rows }];
        inputs.extend(std::iter::repeat_n(PartInput::Whole, 2 * count));
        if self.has_residual() {
            inputs.push(PartInput::Range { axis, range });
        }
        inputs.truncate(x.inputs.len());
        Some(Part { op: Arc::new(op), inputs })
    }

    fn with_arithmetic(&self, arithmetic: Arithmetic) -> Option<Arc<dyn Op>> {
        Some(Arc::new(InvertedResidual { arithmetic, ..self.clone() }))
    }

    fn product_depth(&self) -> usize {
        self.stages().len()
    }

    fn with_variant(&self, variant: Variant) -> Option<Arc<dyn Op>> {
        Some(Arc::new(InvertedResidual { variant, ..self.clone() }))
    }

    fn attributes(&self) -> Vec<(&'static str, AttributeValue)> {
        let stages = [self.expand, Some(self.depthwise.activation), self.project];
        let mut names = Vec::new();
        let mut params = Vec::new();
        for stage in stages {
            let (name, mut own) = match stage {
                None => ("absent", Vec::new()),
                Some(activation) => epilogue::named(activation),
            };
            names.push(name.to_owned());
            own.resize(2, 0.0);
            params.extend(own);
        }
        let mut list = self.depthwise.window.attributes();
        list.push(("group", i64::try_from(self.depthwise.group).unwrap_or(1).into()));
        list.push(("activations", AttributeValue::Strings(names)));
        list.push(("activation_params", params.into()));
        list.extend(epilogue::residual_attribute(self.residual));
        list
    }

    fn domain(&self) -> &'static str {
        "ai.sparoa"
    }
}

/// What the kernel is made of.
struct Stages<'a> {
    expand: Option<Pointwise<'a>>,
    params: Conv2dParams,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    activation: Activation,
    project: Option<Pointwise<'a>>,
}

/// How the stages are computed.
#[derive(Clone, Copy)]
enum Way {
    /// By strips of rows, the given pointwise stages sparse.
    Strips([bool; 2]),
    /// All stages sparse, pixels staying in their planes; by strips where that is not possible.
    Planes,
}

enum Kernel {
    Strips(Box<Strips>),
    Planes(Box<Planes>),
}

impl Kernel {
    fn bytes(&self) -> usize {
        match self {
            Kernel::Strips(k) => k.bytes(),
            Kernel::Planes(k) => k.bytes(),
        }
    }

    fn method(&self) -> &'static str {
        match self {
            Kernel::Strips(k) if !k.is_sparse() && k.is_tiled() => "amx strips",
            Kernel::Strips(k) if !k.is_sparse() && k.is_paired() => "bf16 strips",
            Kernel::Strips(k) if !k.is_sparse() => "strips",
            _ => SPARSE,
        }
    }

    /// Elements of scratch.
    fn scratch_len(&self, [n, h, w]: [usize; 3], threads: usize) -> usize {
        match self {
            Kernel::Strips(k) => k.scratch_len(n, h, w, threads),
            Kernel::Planes(k) => k.scratch_len(n, threads),
        }
    }

    fn run(
        &self,
        [n, h, w]: [usize; 3],
        x: &[f32],
        epilogue: &Epilogue<'_>,
        y: &mut [f32],
        scratch: &mut [f32],
        pool: &Pool,
    ) {
        match self {
            Kernel::Strips(k) => k.run(n, h, w, x, epilogue, y, scratch, pool),
            Kernel::Planes(k) => k.run(n, x, epilogue, y, scratch, pool),
        }
    }
}

impl Stages<'_> {
    fn kernel(&self, way: Way, images: [usize; 3]) -> Kernel {
        let Stages { params, weight, bias, activation, .. } = *self;
        let stages = match way {
            Way::Strips(sparse) => sparse,
            Way::Planes => {
                let [_, h, w] = images;
                let planes = self.project.and_then(|project| {
                    Planes::new([h, w], self.expand, params, weight, bias, activation, project)
                });
                if let Some(planes) = planes {
                    return Kernel::Planes(Box::new(planes));
                }
                [true; 2]
            }
        };
        let expand = self.expand.map(|p| Pointwise { sparse: stages[0], ..p });
        let project = self.project.map(|p| Pointwise { sparse: stages[1], ..p });
        Kernel::Strips(Box::new(Strips::new(expand, params, weight, bias, activation, project)))
    }

    /// The fastest of the kernels with pruned stages dense or sparse.
    fn fastest(&self, arithmetic: Arithmetic, images: [usize; 3]) -> Kernel {
        let [n, h, w] = images;
        let stages = [self.expand, self.project];
        let steps = stages.map(|stage| stage.and_then(|stage| variant::sparsity(stage.weight)));
        let mut ways = vec![Way::Strips([false; 2])];
        for (i, _) in steps.iter().enumerate().filter(|(_, step)| step.is_some()) {
            let more: Vec<_> = ways.iter().map(|&way| with(way, i)).collect();
            ways.extend(more);
        }
        let all = stages.iter().zip(&steps).all(|(stage, step)| stage.is_none() || step.is_some());
        if all && self.project.is_some() {
            ways.push(Way::Planes);
        }
        let p = &self.params;
        let width = |stage: Option<Pointwise<'_>>| {
            stage.map_or(p.c_in, |stage| stage.weight.len() / p.c_in)
        };
        let weights: usize = stages.iter().flatten().map(|stage| stage.weight.len()).sum();
        let macs = n.checked_mul(h).and_then(|m| m.checked_mul(w)?.checked_mul(weights));
        if ways.len() == 1 || !variant::matters(macs) {
            return self.kernel(ways[0], images);
        }
        let (c_in, c_out) = (width(self.expand), width(self.project));
        let n = variant::images(n);
        let question = format!(
            "{} {arithmetic:?} {c_in}->[{p:?}]->{c_out} {n}x{h}x{w} sparsity {steps:?}",
            sparoa_kernels::isa::best()
        );
        let mut kernels: Vec<Option<Kernel>> = ways.iter().map(|_| None).collect();
        let (mut x, mut y, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let pool = Pool::single();
        let epilogue = Epilogue::NONE;
        let choice = variant::fastest(question, ways.len(), &mut |way| {
            if x.is_empty() {
                let [oh, ow] = p.output_size(h, w);
                (x, y) = (variant::inputs(n * h * w * c_in), vec![0.0; n * oh * ow * c_out]);
            }
            let kernel = kernels[way].get_or_insert_with(|| self.kernel(ways[way], images));
            let needed = kernel.scratch_len([n, h, w], 1);
            scratch.resize(scratch.len().max(needed), 0.0);
            kernel.run([n, h, w], &x, &epilogue, &mut y, &mut scratch, &pool);
        });
        kernels[choice].take().unwrap_or_else(|| self.kernel(ways[choice], images))
    }
}

/// A way by strips with one more stage sparse.
fn with(way: Way, stage: usize) -> Way {
    match way {
        Way::Strips(mut sparse) => {
            sparse[stage] = true;
            Way::Strips(sparse)
        }
        Way::Planes => way,
    }
}

fn examples() -> Vec<Example> {
    let base = |name, activations: [&str; 3], params: [f32; 6]| {
        Example::new(name)
            .attribute("kernel_shape", vec![3i64, 3])
            .attribute("group", 6i64)
            .attribute(
                "activations",
                AttributeValue::Strings(activations.map(str::to_owned).to_vec()),
            )
            .attribute("activation_params", params.to_vec())
    };
    let zeros = [0.0; 6];
    vec![
        base("three stages and a residual", ["Clip", "HardSwish", ""], [0.0, 6.0, 0., 0., 0., 0.])
            .attribute("pads", vec![1i64, 1, 1, 1])
            .attribute("residual", "after_activation")
            .input(floats([1, 6, 5, 4], 1))
            .constant(floats([6, 4, 1, 1], 2))
            .constant(floats([6], 3))
            .constant(floats([6, 1, 3, 3], 4))
            .constant(floats([6], 5))
            .constant(floats([4, 6, 1, 1], 6))
            .constant(floats([4], 7))
            .input(floats([1, 6, 5, 4], 8)),
        base("no expansion, step 2, no biases", ["absent", "Relu", "Relu"], zeros)
            .attribute("strides", vec![2i64, 2])
            .attribute("pads", vec![1i64, 0, 1, 0])
            .input(floats([2, 7, 6, 6], 1))
            .constant(floats([6, 1, 3, 3], 2))
            .omitted()
            .constant(floats([3, 6, 1, 1], 3))
            .omitted(),
        base("no projection", ["Relu", "", "absent"], zeros)
            .attribute("pads", vec![1i64, 1, 1, 1])
            .input(floats([1, 4, 4, 3], 1))
            .constant(floats([6, 3, 1, 1], 2))
            .constant(floats([6], 3))
            .constant(floats([6, 1, 3, 3], 4))
            .constant(floats([6], 5)),
    ]
}
