//! The typed graph: every value has a concrete type, nodes are in topological order.

use std::{fmt, sync::Arc};

use super::{NodeId, ValueId};
use crate::{
    ops::{Op, Operand, Operands},
    tensor::{Tensor, TensorType},
};

/// A graph with concrete types. Invariants, checked by [`Graph::verify`]: ids are in range, nodes
/// are topologically ordered, each value has at most one producer, graph inputs and constants
/// have none, and every value that is read is an input, a constant or an earlier node's output.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// The model's name.
    pub name: String,
    /// Values by [`ValueId`].
    pub values: Vec<Value>,
    /// Nodes by [`NodeId`], in topological order.
    pub nodes: Vec<Node>,
    /// Run-time inputs.
    pub inputs: Vec<ValueId>,
    /// Outputs.
    pub outputs: Vec<ValueId>,
}

/// A tensor of the graph.
#[derive(Clone, Debug)]
pub struct Value {
    /// Name in the model, unique in the graph.
    pub name: String,
    /// Element type and shape.
    pub ty: TensorType,
    /// The value of a constant.
    pub constant: Option<Arc<Tensor>>,
}

/// An operator applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name in the model, unique in the graph.
    pub name: String,
    /// The operator.
    pub op: Arc<dyn Op>,
    /// Inputs; `None` for an omitted optional one.
    pub inputs: Vec<Option<ValueId>>,
    /// Outputs; `None` for one that nobody wants.
    pub outputs: Vec<Option<ValueId>>,
    /// Names of the model's nodes that this one stands for, when passes have fused several.
    pub origin: Vec<String>,
}

/// A graph that breaks an invariant; a defect of a pass, not of the user's model.
#[derive(Debug, thiserror::Error)]
#[error("graph invariant broken at {at}: {what}")]
pub struct GraphError {
    /// Node or value.
    pub at: String,
    /// Which invariant.
    pub what: &'static str,
}

impl Graph {
    /// The value of an id.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// The node of an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Ids of all nodes, in order.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId::new)
    }

    /// Adds a value.
    pub fn add_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        ValueId::new(self.values.len() - 1)
    }

    /// Adds a constant.
    pub fn add_constant(&mut self, name: impl Into<String>, value: Arc<Tensor>) -> ValueId {
        self.add_value(Value { name: name.into(), ty: value.ty().clone(), constant: Some(value) })
    }

    /// The producer of each value, by value index.
    pub fn producers(&self) -> Vec<Option<NodeId>> {
        let mut producers = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for output in node.outputs.iter().flatten() {
                producers[output.index()] = Some(NodeId::new(i));
            }
        }
        producers
    }

    /// The readers of each value, by value index; a node that reads a value twice appears twice.
    pub fn consumers(&self) -> Vec<Vec<NodeId>> {
        let mut consumers = vec![Vec::new(); self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for input in node.inputs.iter().flatten() {
                consumers[input.index()].push(NodeId::new(i));
            }
        }
        consumers
    }

    /// Inputs of a node as its operator sees them.
    pub fn input_operands(&self, node: &Node) -> Vec<Option<Operand>> {
        node.inputs
            .iter()
            .map(|id| {
                id.map(|id| {
                    let v = self.value(id);
                    let constant = v.constant.as_ref().map(Tensor::reader);
                    Operand { ty: v.ty.clone(), constant }
                })
            })
            .collect()
    }

    /// Types of a node's outputs; an unwanted output's type is inferred again.
    pub fn output_types(&self, node: &Node) -> Vec<TensorType> {
        if node.outputs.iter().all(Option::is_some) {
            node.outputs.iter().flatten().map(|&id| self.value(id).ty.clone()).collect()
        } else {
            node.op.infer(&self.input_operands(node)).expect("the node was inferred before")
        }
    }

    /// Calls `f` with the operands of a node.
    pub fn with_operands<R>(&self, node: &Node, f: impl FnOnce(&Operands<'_>) -> R) -> R {
        let inputs = self.input_operands(node);
        let outputs = self.output_types(node);
        f(&Operands { inputs: &inputs, outputs: &outputs })
    }

    /// Checks the invariants.
    ///
    /// # Errors
    /// The first one broken.
    pub fn verify(&self) -> Result<(), GraphError> {
        let broken = |at: &str, what| Err(GraphError { at: at.to_owned(), what });
        let mut defined: Vec<bool> = self.values.iter().map(|v| v.constant.is_some()).collect();
        for v in &self.values {
            if v.constant.as_ref().is_some_and(|c| *c.ty() != v.ty) {
                return broken(&v.name, "a constant has its value's type");
            }
        }
        for id in &self.inputs {
            match defined.get_mut(id.index()) {
                None => return broken("inputs", "ids are in range"),
                Some(true) => {
                    return broken(&self.value(*id).name, "inputs are distinct and not constant");
                }
                Some(d) => *d = true,
            }
        }
        for node in &self.nodes {
            for id in node.inputs.iter().flatten() {
                if defined.get(id.index()) != Some(&true) {
                    return broken(&node.name, "what a node reads is defined before it");
                }
            }
            for id in node.outputs.iter().flatten() {
                match defined.get_mut(id.index()) {
                    None => return broken(&node.name, "ids are in range"),
                    Some(true) => return broken(&node.name, "a value has one producer"),
                    Some(d) => *d = true,
                }
            }
            let types = node.op.infer(&self.input_operands(node));
            let Ok(types) = types else { return broken(&node.name, "a node's types infer") };
            for (id, ty) in node.outputs.iter().zip(&types) {
                if id.is_some_and(|id| self.value(id).ty != *ty) {
                    return broken(&node.name, "output types are as inferred");
                }
            }
        }
        for id in &self.outputs {
            if defined.get(id.index()) != Some(&true) {
                return broken("outputs", "outputs are defined");
            }
        }
        Ok(())
    }
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, ids: &[Option<ValueId>]| -> fmt::Result {
            for (i, id) in ids.iter().enumerate() {
                let comma = if i == 0 { "" } else { ", " };
                match id {
                    None => write!(f, "{comma}_")?,
                    Some(id) => {
                        let v = self.value(*id);
                        let constant = if v.constant.is_some() { "const " } else { "" };
                        write!(f, "{comma}{constant}{}: {}", v.name, v.ty)?;
                    }
                }
            }
            Ok(())
        };
        writeln!(f, "graph {}", self.name)?;
        for node in &self.nodes {
            write!(f, "  ")?;
            list(f, &node.outputs)?;
            write!(f, " = {:?}(", node.op)?;
            list(f, &node.inputs)?;
            writeln!(f, ")  # {}", node.name)?;
        }
        Ok(())
    }
}
