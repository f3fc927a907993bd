//! A graph under rewriting: who makes and who reads each value, kept up to date edit by edit.

use std::{collections::HashSet, sync::Arc};

use crate::{
    ir::{Graph, Node, NodeId, Value, ValueId},
    ops::{Op, OpError, Operand},
    tensor::{Tensor, TensorType},
};

/// A graph and its edges. Nodes that are removed leave a hole until [`Editor::tidy`]; new nodes
/// go to the end and are sorted in by it.
#[derive(Debug)]
pub(super) struct Editor {
    values: Vec<Value>,
    nodes: Vec<Option<Node>>,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    graph_name: String,
    producer: Vec<Option<NodeId>>,
    users: Vec<Vec<NodeId>>,
    names: HashSet<String>,
}

impl Editor {
    /// Takes a graph apart.
    pub(super) fn new(graph: Graph) -> Editor {
        let names = graph
            .values
            .iter()
            .map(|v| v.name.clone())
            .chain(graph.nodes.iter().map(|n| n.name.clone()))
            .collect();
        let producer = graph.producers();
        let users = graph.consumers();
        Editor {
            values: graph.values,
            nodes: graph.nodes.into_iter().map(Some).collect(),
            inputs: graph.inputs,
            outputs: graph.outputs,
            graph_name: graph.name,
            producer,
            users,
            names,
        }
    }

    /// Ids of all places where a node may be, those added from now on not included.
    pub(super) fn ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map(NodeId::new)
    }

    /// Ids of all values.
    pub(super) fn value_ids(&self) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.values.len()).map(ValueId::new)
    }

    /// Gives a value that no node makes any more its constant contents.
    pub(super) fn make_constant(&mut self, id: ValueId, tensor: Tensor) {
        debug_assert!(self.producer(id).is_none(), "the producer was removed before");
        self.values[id.index()].constant = Some(Arc::new(tensor));
    }

    /// Number of nodes.
    pub(super) fn len(&self) -> usize {
        self.nodes.iter().flatten().count()
    }

    /// The node, unless it was removed.
    pub(super) fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes[id.index()].as_ref()
    }

    /// A node known to be there.
    pub(super) fn node(&self, id: NodeId) -> &Node {
        self.get(id).expect("the pass holds ids of living nodes only")
    }

    /// A value.
    pub(super) fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// A value's type.
    pub(super) fn ty(&self, id: ValueId) -> &TensorType {
        &self.values[id.index()].ty
    }

    /// A value's dimensions.
    pub(super) fn shape(&self, id: ValueId) -> &[usize] {
        &self.values[id.index()].ty.shape
    }

    /// A constant's tensor.
    pub(super) fn constant(&self, id: ValueId) -> Option<&Arc<Tensor>> {
        self.values[id.index()].constant.as_ref()
    }

    /// Input `i` of a node, if present.
    pub(super) fn input(&self, node: NodeId, i: usize) -> Option<ValueId> {
        self.node(node).inputs.get(i).copied().flatten()
    }

    /// Constant input `i` of a node.
    pub(super) fn constant_input(&self, node: NodeId, i: usize) -> Option<&Arc<Tensor>> {
        self.constant(self.input(node, i)?)
    }

    /// Output 0 of a node.
    pub(super) fn output(&self, node: NodeId) -> Option<ValueId> {
        self.node(node).outputs.first().copied().flatten()
    }

    /// The node that makes a value.
    pub(super) fn producer(&self, value: ValueId) -> Option<NodeId> {
        self.producer[value.index()]
    }

    /// The nodes that read a value; one that reads it twice appears twice.
    pub(super) fn users(&self, value: ValueId) -> &[NodeId] {
        &self.users[value.index()]
    }

    /// True when the value is an output of the graph.
    pub(super) fn is_output(&self, value: ValueId) -> bool {
        self.outputs.contains(&value)
    }

    /// The only reader of a value that is no output of the graph.
    pub(super) fn only_user(&self, value: ValueId) -> Option<NodeId> {
        match self.users(value) {
            [user] if !self.is_output(value) => Some(*user),
            _ => None,
        }
    }

    /// True when the value is no output of the graph and all its readers are in `nodes`.
    pub(super) fn used_only_by(&self, value: ValueId, nodes: &[NodeId]) -> bool {
        !self.is_output(value) && self.users(value).iter().all(|u| nodes.contains(u))
    }

    /// A node's inputs as its operator sees them.
    pub(super) fn operands(&self, inputs: &[Option<ValueId>]) -> Vec<Option<Operand>> {
        let operand = |id: ValueId| {
            let v = self.value(id);
            Operand { ty: v.ty.clone(), constant: v.constant.clone() }
        };
        inputs.iter().map(|id| id.map(operand)).collect()
    }

    /// Types of a node's outputs.
    pub(super) fn output_types(&self, id: NodeId) -> Vec<TensorType> {
        let node = self.node(id);
        if node.outputs.iter().all(Option::is_some) {
            node.outputs.iter().flatten().map(|v| self.ty(*v).clone()).collect()
        } else {
            node.op.infer(&self.operands(&node.inputs)).expect("the node was inferred before")
        }
    }

    /// A name that nothing else has.
    fn fresh(&mut self, base: String) -> String {
        let mut name = base.clone();
        let mut n = 1;
        while !self.names.insert(name.clone()) {
            n += 1;
            name = format!("{base}_{n}");
        }
        name
    }

    /// Adds a constant, its name made unique.
    pub(super) fn add_constant(&mut self, name: impl Into<String>, value: Tensor) -> ValueId {
        let name = self.fresh(name.into());
        let ty = value.ty().clone();
        self.push_value(Value { name, ty, constant: Some(Arc::new(value)) })
    }

    fn push_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        self.producer.push(None);
        self.users.push(Vec::new());
        ValueId::new(self.values.len() - 1)
    }

    /// Adds a node and values for all its outputs; names made unique.
    ///
    /// # Errors
    /// When the operator refuses the inputs.
    pub(super) fn add_node_many(
        &mut self,
        name: &str,
        op: Arc<dyn Op>,
        inputs: &[Option<ValueId>],
        origin: Vec<String>,
    ) -> Result<Vec<ValueId>, OpError> {
        let types = op.infer(&self.operands(inputs))?;
        let name = self.fresh(name.to_owned());
        let outputs: Vec<ValueId> = types
            .into_iter()
            .map(|ty| {
                let name = self.fresh(format!("{name}_output"));
                self.push_value(Value { name, ty, constant: None })
            })
            .collect();
        self.push_node(Node {
            name,
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.iter().copied().map(Some).collect(),
            origin,
        });
        Ok(outputs)
    }

    /// Adds a node with one output; see [`Editor::add_node_many`].
    ///
    /// # Errors
    /// When the operator refuses the inputs.
    pub(super) fn add_node(
        &mut self,
        name: &str,
        op: Arc<dyn Op>,
        inputs: &[Option<ValueId>],
        origin: Vec<String>,
    ) -> Result<ValueId, OpError> {
        Ok(self.add_node_many(name, op, inputs, origin)?[0])
    }

    fn push_node(&mut self, node: Node) -> NodeId {
        let id = NodeId::new(self.nodes.len());
        for input in node.inputs.iter().flatten() {
            self.users[input.index()].push(id);
        }
        for output in node.outputs.iter().flatten() {
            self.producer[output.index()] = Some(id);
        }
        self.nodes.push(Some(node));
        id
    }

    /// Puts another operator and other inputs into a node's place, with new output values. The
    /// old ones, paired with the new, have no producer afterwards: [`Editor::restore`] or
    /// replace them.
    ///
    /// # Errors
    /// When the operator refuses the inputs; nothing has changed then.
    pub(super) fn rewrite(
        &mut self,
        id: NodeId,
        op: Arc<dyn Op>,
        inputs: Vec<Option<ValueId>>,
    ) -> Result<Vec<(ValueId, ValueId)>, OpError> {
        let types = op.infer(&self.operands(&inputs))?;
        let mut node = self.remove(id);
        let mut moved = Vec::with_capacity(types.len());
        for (output, ty) in node.outputs.iter_mut().zip(types) {
            let Some(old) = *output else { continue };
            let name = self.fresh(format!("{}/inner", self.value(old).name));
            let new = self.push_value(Value { name, ty, constant: None });
            self.producer[new.index()] = Some(id);
            *output = Some(new);
            moved.push((old, new));
        }
        for input in inputs.iter().flatten() {
            self.users[input.index()].push(id);
        }
        node.op = op;
        node.inputs = inputs;
        self.nodes[id.index()] = Some(node);
        Ok(moved)
    }

    /// Makes `value`, whose producer was removed, the output of a new node on one input.
    pub(super) fn restore(&mut self, value: ValueId, name: &str, op: Arc<dyn Op>, input: ValueId) {
        self.restore_many(value, name, op, vec![Some(input)]);
    }

    /// [`Editor::restore`] with several inputs.
    pub(super) fn restore_many(
        &mut self,
        value: ValueId,
        name: &str,
        op: Arc<dyn Op>,
        inputs: Vec<Option<ValueId>>,
    ) {
        let name = self.fresh(name.to_owned());
        self.push_node(Node { name, op, inputs, outputs: vec![Some(value)], origin: Vec::new() });
    }

    /// The names that nodes stand for, each once.
    pub(super) fn origins(&self, nodes: &[NodeId]) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for name in nodes.iter().flat_map(|id| &self.node(*id).origin) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Adds names of nodes that a node stands for.
    pub(super) fn add_origin(&mut self, id: NodeId, names: impl IntoIterator<Item = String>) {
        if let Some(node) = &mut self.nodes[id.index()] {
            for name in names {
                if !node.origin.contains(&name) {
                    node.origin.push(name);
                }
            }
        }
    }

    /// Takes a node out. Its outputs have no producer afterwards.
    pub(super) fn remove(&mut self, id: NodeId) -> Node {
        let node = self.nodes[id.index()].take().expect("the node is removed once");
        for input in node.inputs.iter().flatten() {
            let users = &mut self.users[input.index()];
            if let Some(at) = users.iter().position(|u| *u == id) {
                users.remove(at);
            }
        }
        for output in node.outputs.iter().flatten() {
            if self.producer[output.index()] == Some(id) {
                self.producer[output.index()] = None;
            }
        }
        node
    }

    /// Puts another operator and other inputs into a node's place; outputs and names stay.
    pub(super) fn replace_op(&mut self, id: NodeId, op: Arc<dyn Op>, inputs: Vec<Option<ValueId>>) {
        let mut node = self.nodes[id.index()].take().expect("the node is there");
        for input in node.inputs.iter().flatten() {
            let users = &mut self.users[input.index()];
            if let Some(at) = users.iter().position(|u| *u == id) {
                users.remove(at);
            }
        }
        for input in inputs.iter().flatten() {
            self.users[input.index()].push(id);
        }
        node.op = op;
        node.inputs = inputs;
        self.nodes[id.index()] = Some(node);
    }

    /// Merges `others` into `main`: `main` computes `op` of `inputs` and makes what `last` (one
    /// of `others`, or `main` itself) made; the others go, each if nothing else needs it.
    pub(super) fn fuse(
        &mut self,
        main: NodeId,
        others: &[NodeId],
        last: NodeId,
        op: Arc<dyn Op>,
        inputs: Vec<Option<ValueId>>,
    ) {
        let output = self.output(last).expect("a fused node's result is wanted");
        let mut origin = Vec::new();
        for &other in others {
            if other != main && self.get(other).is_some() {
                origin.extend(self.remove(other).origin);
            }
        }
        self.add_origin(main, origin);
        let mut node = self.remove(main);
        node.op = op;
        node.inputs = inputs;
        node.outputs = vec![Some(output)];
        for input in node.inputs.iter().flatten() {
            self.users[input.index()].push(main);
        }
        self.producer[output.index()] = Some(main);
        self.nodes[main.index()] = Some(node);
    }

    /// Whether [`Editor::replace_value`] may be called: each output of the graph has to stay a
    /// value of its own, made by a node.
    pub(super) fn can_replace(&self, old: ValueId, new: ValueId) -> bool {
        let made = self.producer(new).is_some();
        self.ty(old) == self.ty(new) && (!self.is_output(old) || (made && !self.is_output(new)))
    }

    /// Makes every reader of `old` (and the graph's outputs) read `new`, which has the same
    /// type. When `old` was an output of the graph, `new` takes over its name.
    pub(super) fn replace_value(&mut self, old: ValueId, new: ValueId) {
        debug_assert!(self.can_replace(old, new), "outputs stay distinct");
        let users = std::mem::take(&mut self.users[old.index()]);
        for &user in &users {
            if let Some(node) = &mut self.nodes[user.index()] {
                for input in node.inputs.iter_mut().flatten() {
                    if *input == old {
                        *input = new;
                    }
                }
            }
        }
        self.users[new.index()].extend(users);
        if !self.is_output(old) {
            return;
        }
        for output in &mut self.outputs {
            if *output == old {
                *output = new;
            }
        }
        let (a, b) = (old.index(), new.index());
        let name = std::mem::take(&mut self.values[a].name);
        self.values[a].name = std::mem::replace(&mut self.values[b].name, name);
    }

    /// Removes nodes whose results nobody wants.
    pub(super) fn remove_dead(&mut self) {
        let mut wanted = vec![false; self.values.len()];
        let mut stack: Vec<ValueId> = self.outputs.clone();
        let mut alive = vec![false; self.nodes.len()];
        while let Some(value) = stack.pop() {
            if std::mem::replace(&mut wanted[value.index()], true) {
                continue;
            }
            if let Some(id) = self.producer(value)
                && !std::mem::replace(&mut alive[id.index()], true)
            {
                stack.extend(self.node(id).inputs.iter().flatten());
            }
        }
        for id in self.ids() {
            if self.get(id).is_some() && !alive[id.index()] {
                self.remove(id);
            }
        }
    }

    /// Removes dead nodes and sorts the rest topologically, keeping the order where it can.
    pub(super) fn tidy(&mut self) {
        self.remove_dead();
        let mut order = Vec::with_capacity(self.nodes.len());
        let mut state = vec![0u8; self.nodes.len()];
        let mut stack: Vec<(NodeId, usize)> = Vec::new();
        for root in self.ids() {
            if self.get(root).is_none() || state[root.index()] != 0 {
                continue;
            }
            state[root.index()] = 1;
            stack.push((root, 0));
            while let Some((id, next)) = stack.pop() {
                let inputs = &self.node(id).inputs;
                let Some(input) = inputs.get(next) else {
                    order.push(id);
                    continue;
                };
                stack.push((id, next + 1));
                if let Some(producer) = input.and_then(|v| self.producer(v))
                    && state[producer.index()] == 0
                {
                    state[producer.index()] = 1;
                    stack.push((producer, 0));
                }
            }
        }
        let mut moved = vec![NodeId(0); self.nodes.len()];
        let mut nodes = Vec::with_capacity(order.len());
        for old in order {
            moved[old.index()] = NodeId::new(nodes.len());
            nodes.push(self.nodes[old.index()].take());
        }
        self.nodes = nodes;
        for producer in self.producer.iter_mut().flatten() {
            *producer = moved[producer.index()];
        }
        for user in self.users.iter_mut().flatten() {
            *user = moved[user.index()];
        }
    }

    /// The graph again, without unused values.
    pub(super) fn finish(mut self) -> Graph {
        self.tidy();
        let mut used = vec![false; self.values.len()];
        let nodes = self.nodes.iter().flatten();
        let edges = nodes.flat_map(|n| n.inputs.iter().chain(&n.outputs)).flatten();
        for id in edges.chain(&self.inputs).chain(&self.outputs) {
            used[id.index()] = true;
        }
        let mut moved = vec![ValueId(0); self.values.len()];
        let mut values = Vec::new();
        for (i, value) in self.values.into_iter().enumerate() {
            if used[i] {
                moved[i] = ValueId::new(values.len());
                values.push(value);
            }
        }
        let place = |id: &mut ValueId| *id = moved[id.index()];
        let mut nodes: Vec<Node> = self.nodes.into_iter().flatten().collect();
        for node in &mut nodes {
            node.inputs.iter_mut().chain(&mut node.outputs).flatten().for_each(place);
        }
        self.inputs.iter_mut().chain(&mut self.outputs).for_each(place);
        Graph { name: self.graph_name, values, nodes, inputs: self.inputs, outputs: self.outputs }
    }
}
