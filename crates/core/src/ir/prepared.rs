//! A model made concrete and its kernels prepared, for running it many times as a subgraph: the
//! branches of an `If` whose condition is known only at run time.

use std::{collections::HashMap, fmt, sync::Arc};

use sparoa_kernels::pool::Pool;

use super::{
    Graph, InterpretError, Model, OutputSource, Shapes, SpecializeError, ValueId, specialize,
};
use crate::{
    ops::{CpuKernel, KernelIo, OpError, Operand},
    tensor::{Storage, Tensor, TensorRef, TensorType},
};

/// A concrete model. Its memory is allocated at every run; kernels and packed weights are kept.
pub struct Prepared {
    name: String,
    graph: Graph,
    types: Vec<TensorType>,
    /// For every input of the model that is not constant, its position among the given ones.
    given: Vec<usize>,
    kernels: Vec<Box<dyn CpuKernel>>,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prepared({})", self.graph)
    }
}

impl Prepared {
    /// Makes the model concrete for these inputs, without preparing kernels yet.
    ///
    /// # Errors
    /// What [`specialize`] refuses, and models with a data-dependent part.
    pub fn types_only(
        model: &Model,
        inputs: &[Option<Operand>],
    ) -> Result<Prepared, InterpretError> {
        let fail = |source| InterpretError { node: model.name.clone(), op_type: "graph", source };
        let bound = model
            .bound(inputs)
            .ok_or_else(|| fail(OpError::invalid("the inputs are not those that it declares")))?;
        let constant = |o: &Option<Operand>| o.as_ref().is_some_and(|o| o.constant.is_some());
        let given = (0..inputs.len()).filter(|&i| !constant(&inputs[i])).collect();
        let special = specialize(&bound, &Shapes::new()).map_err(|e| match e {
            SpecializeError::Op { node, op_type, source, .. } => {
                InterpretError { node, op_type, source }
            }
            other => fail(OpError::invalid(other.to_string())),
        })?;
        if special.tail.is_some() {
            return Err(fail(OpError::DataDependent { input: 0 }));
        }
        let graph = special.graph;
        let outputs: Vec<ValueId> = special
            .outputs
            .iter()
            .map(|source| match source {
                OutputSource::Graph(i) => Some(graph.outputs[*i]),
                OutputSource::Tail(_) => None,
            })
            .collect::<Option<_>>()
            .ok_or_else(|| fail(OpError::invalid("an output is never computed")))?;
        let types = outputs.iter().map(|id| graph.value(*id).ty.clone()).collect();
        let graph = Graph { outputs, ..graph };
        let name = model.name.clone();
        Ok(Prepared { name, graph, types, given, kernels: Vec::new() })
    }

    /// Prepares the kernels that [`Prepared::run`] needs.
    ///
    /// # Errors
    /// The first node without one.
    pub fn prepare_kernels(&mut self) -> Result<(), InterpretError> {
        let kernels =
            self.graph.nodes.iter().map(|node| {
                self.graph.with_operands(node, |x| node.op.cpu(x)).map_err(|source| {
                    InterpretError { node: node.name.clone(), op_type: node.op.op_type(), source }
                })
            });
        self.kernels = kernels.collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Types of the outputs.
    pub fn types(&self) -> &[TensorType] {
        &self.types
    }

    /// Operations of one run.
    pub fn flops(&self) -> u64 {
        let nodes = self.graph.nodes.iter();
        nodes.map(|n| self.graph.with_operands(n, |x| n.op.flops(x))).sum()
    }

    /// Bytes that the prepared kernels hold.
    pub fn weight_bytes(&self) -> usize {
        self.kernels.iter().map(|k| k.weight_bytes()).sum()
    }

    /// Runs on all of the model's inputs, in order; those that are constant are not looked at.
    /// [`Prepared::prepare_kernels`] must have been called.
    ///
    /// # Errors
    /// The first node that fails.
    pub fn run(&self, inputs: &[Tensor], pool: &Pool) -> Result<Vec<Tensor>, InterpretError> {
        let fail =
            |node: &str, op_type, source| InterpretError { node: node.to_owned(), op_type, source };
        let mut values: HashMap<ValueId, Arc<Tensor>> = HashMap::new();
        for (id, &i) in self.graph.inputs.iter().zip(&self.given) {
            let given = inputs.get(i).filter(|t| *t.ty() == self.graph.value(*id).ty);
            let given = given.ok_or_else(|| {
                fail(&self.name, "graph", OpError::invalid(format!("input {i} has another type")))
            })?;
            values.insert(*id, Arc::new(given.clone()));
        }
        let mut uses = vec![0usize; self.graph.values.len()];
        let reads = self.graph.nodes.iter().flat_map(|n| n.inputs.iter().flatten());
        for id in reads.chain(&self.graph.outputs) {
            uses[id.index()] += 1;
        }
        let find = |values: &HashMap<ValueId, Arc<Tensor>>, id: ValueId| {
            let constant = self.graph.value(id).constant.clone();
            constant.or_else(|| values.get(&id).cloned()).expect("specialised graphs are in order")
        };
        for (node, kernel) in self.graph.nodes.iter().zip(&self.kernels) {
            let held: Vec<Option<Arc<Tensor>>> =
                node.inputs.iter().map(|id| id.map(|id| find(&values, id))).collect();
            let views: Vec<Option<TensorRef<'_>>> =
                held.iter().map(|t| t.as_ref().map(|t| t.view())).collect();
            let types = self.graph.output_types(node);
            let mut outputs: Vec<Tensor> = types.into_iter().map(Tensor::zeros).collect();
            let mut scratch = Storage::zeroed(kernel.scratch_bytes(pool.threads()));
            let mut targets: Vec<_> = outputs.iter_mut().map(Tensor::view_mut).collect();
            let mut io =
                KernelIo { inputs: &views, outputs: &mut targets, scratch: scratch.bytes_mut() };
            kernel
                .run(&mut io, pool)
                .map_err(|source| fail(&node.name, node.op.op_type(), source))?;
            for id in node.inputs.iter().flatten() {
                uses[id.index()] -= 1;
                if uses[id.index()] == 0 {
                    values.remove(id);
                }
            }
            for (id, tensor) in node.outputs.iter().zip(outputs) {
                if let Some(id) = id.filter(|id| uses[id.index()] > 0) {
                    values.insert(id, Arc::new(tensor));
                }
            }
        }
        Ok(self.graph.outputs.iter().map(|id| find(&values, *id).as_ref().clone()).collect())
    }
}
