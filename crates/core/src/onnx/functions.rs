//! Model-local functions: every call is replaced by the function's body at import.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use prost::Message;

use super::{
    LoadErrorKind, LoadOptions,
    names::node_names,
    opset::{Opsets, canonical},
    proto::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto},
};

/// Functions by domain, name and overload.
pub(super) struct Functions<'a> {
    by_key: HashMap<[String; 3], Function<'a>>,
    /// For nodes that inlining adds itself.
    own: Opsets,
}

/// A function, with what its nodes mean.
pub(super) struct Function<'a> {
    pub(super) proto: &'a FunctionProto,
    pub(super) opsets: Opsets,
    bytes: usize,
}

/// A node after inlining.
pub(super) struct Item<'n, 'a> {
    /// Unique name in its graph's file; calls are prefixes: `call/inner`.
    pub(super) name: String,
    pub(super) node: Cow<'n, NodeProto>,
    /// Opsets in force: those of the model, or of the function that the node comes from.
    pub(super) opsets: &'a Opsets,
}

/// What inlining may cost; nested calls multiply.
pub(super) struct Budget {
    nodes: usize,
    bytes: usize,
    max_nodes: usize,
    max_depth: usize,
}

/// Inlined bodies together may not exceed this: each call copies the body's message.
const MAX_INLINED_BYTES: usize = 1 << 30;

impl Budget {
    pub(super) fn new(options: &LoadOptions) -> Budget {
        Budget { nodes: 0, bytes: 0, max_nodes: options.max_nodes, max_depth: options.max_depth }
    }

    /// Counts nodes against the limit.
    pub(super) fn count_nodes(&mut self, n: usize) -> Result<(), LoadErrorKind> {
        self.nodes = self.nodes.saturating_add(n);
        self.limit(
            "nodes (subgraphs and functions included)",
            self.nodes,
            self.max_nodes,
            "max_nodes",
        )
    }

    /// Checks a nesting depth against the limit.
    pub(super) fn check_depth(&self, depth: usize) -> Result<(), LoadErrorKind> {
        let what = "nested subgraphs or functions";
        self.limit(what, depth, self.max_depth, "max_depth")
    }

    fn limit(
        &self,
        what: &str,
        value: usize,
        limit: usize,
        option: &'static str,
    ) -> Result<(), LoadErrorKind> {
        if value <= limit {
            return Ok(());
        }
        Err(LoadErrorKind::Limit { what: what.to_owned(), limit, option })
    }
}

impl<'a> Functions<'a> {
    /// The functions of a model.
    pub(super) fn new(model: &'a ModelProto) -> Result<Functions<'a>, LoadErrorKind> {
        let mut functions = HashMap::with_capacity(model.functions.len());
        for proto in &model.functions {
            let key = key(proto.domain(), proto.name(), proto.overload());
            let opsets = Opsets::parse(&proto.opset_import)?;
            functions.insert(key, Function { proto, opsets, bytes: proto.encoded_len() });
        }
        Ok(Functions { by_key: functions, own: Opsets::newest() })
    }

    /// The function that a node calls, if it calls one.
    pub(super) fn find(&self, node: &NodeProto) -> Option<&Function<'a>> {
        if self.by_key.is_empty() {
            return None;
        }
        self.by_key.get(&key(node.domain(), node.op_type(), node.overload()))
    }

    /// A graph's nodes with all calls replaced.
    pub(super) fn inline<'n>(
        &'a self,
        nodes: &'n [NodeProto],
        opsets: &'a Opsets,
        budget: &mut Budget,
    ) -> Result<Vec<Item<'n, 'a>>, LoadErrorKind> {
        budget.count_nodes(nodes.len())?;
        let mut items = Vec::with_capacity(nodes.len());
        for (name, node) in node_names(nodes).into_iter().zip(nodes) {
            match self.find(node) {
                None => items.push(Item { name, node: Cow::Borrowed(node), opsets }),
                Some(function) => {
                    self.call(&name, node, function, 1, budget, &mut items)?;
                }
            }
        }
        Ok(items)
    }

    fn call<'n>(
        &'a self,
        name: &str,
        node: &NodeProto,
        function: &'a Function<'a>,
        depth: usize,
        budget: &mut Budget,
        items: &mut Vec<Item<'n, 'a>>,
    ) -> Result<(), LoadErrorKind> {
        budget.check_depth(depth)?;
        budget.count_nodes(function.proto.node.len())?;
        budget.bytes = budget.bytes.saturating_add(function.bytes);
        budget.limit("bytes of inlined functions", budget.bytes, MAX_INLINED_BYTES, "max_nodes")?;
        let fail = |cause: &str| LoadErrorKind::Function {
            node: name.to_owned(),
            function: node.op_type().to_owned(),
            cause: cause.to_owned(),
        };
        let proto = function.proto;
        if node.input.len() > proto.input.len() || node.output.len() > proto.output.len() {
            return Err(fail("more inputs or outputs than the function has"));
        }
        let prefix = format!("{name}/");
        let mut renaming = Renaming::new(&prefix, node, proto);
        for (i, formal) in proto.input.iter().enumerate() {
            let actual = node.input.get(i).cloned().unwrap_or_default();
            renaming.values.insert(formal.clone(), actual);
        }
        // An output that is also an input (or another output) needs a node that copies it.
        let mut copies = Vec::new();
        for (formal, actual) in proto.output.iter().zip(&node.output) {
            match renaming.values.get(formal) {
                _ if actual.is_empty() => {}
                Some(source) => copies.push((source.clone(), actual.clone())),
                None => {
                    renaming.values.insert(formal.clone(), actual.clone());
                }
            }
        }
        for (inner_name, inner) in node_names(&proto.node).into_iter().zip(&proto.node) {
            let mut inner = inner.clone();
            renaming.node(&mut inner);
            let inner_name = format!("{prefix}{inner_name}");
            match self.find(&inner) {
                None => items.push(Item {
                    name: inner_name,
                    node: Cow::Owned(inner),
                    opsets: &function.opsets,
                }),
                Some(callee) => {
                    self.call(&inner_name, &inner, callee, depth + 1, budget, items)?;
                }
            }
        }
        for (source, target) in copies {
            let copy = NodeProto {
                op_type: Some("Identity".to_owned()),
                input: vec![source],
                output: vec![target.clone()],
                ..NodeProto::default()
            };
            items.push(Item {
                name: format!("{prefix}copy_{target}"),
                node: Cow::Owned(copy),
                opsets: &self.own,
            });
        }
        Ok(())
    }
}

fn key(domain: &str, name: &str, overload: &str) -> [String; 3] {
    [canonical(domain), name, overload].map(str::to_owned)
}

/// How one call's body is rewritten.
struct Renaming<'a> {
    prefix: &'a str,
    values: HashMap<String, String>,
    /// The function's attributes: given by the caller, else its defaults.
    attributes: HashMap<&'a str, &'a AttributeProto>,
}

impl<'a> Renaming<'a> {
    fn new(prefix: &'a str, call: &'a NodeProto, function: &'a FunctionProto) -> Renaming<'a> {
        let defaults = function.attribute_proto.iter();
        let attributes = defaults.chain(&call.attribute).map(|a| (a.name(), a)).collect();
        Renaming { prefix, values: HashMap::new(), attributes }
    }

    fn value(&self, name: &mut String) {
        if name.is_empty() {
            return;
        }
        *name = match self.values.get(name) {
            Some(actual) => actual.clone(),
            None => format!("{}{name}", self.prefix),
        };
    }

    fn node(&self, node: &mut NodeProto) {
        node.input.iter_mut().chain(&mut node.output).for_each(|n| self.value(n));
        // An attribute that refers to one the caller leaves out is left out too.
        node.attribute.retain_mut(|attribute| {
            let Some(reference) = attribute.ref_attr_name.take().filter(|r| !r.is_empty()) else {
                return true;
            };
            let Some(given) = self.attributes.get(reference.as_str()) else { return false };
            *attribute = AttributeProto { name: attribute.name.take(), ..(*given).clone() };
            true
        });
        for attribute in &mut node.attribute {
            if let Some(graph) = &mut attribute.g {
                self.graph(graph);
            }
        }
    }

    /// Renames a subgraph. Its own values are prefixed like everything else, so that they cannot
    /// hide a value that the caller passes.
    fn graph(&self, graph: &mut GraphProto) {
        let mut own: HashSet<String> =
            graph.node.iter().flat_map(|n| n.output.iter().cloned()).collect();
        own.extend(graph.input.iter().map(|v| v.name().to_owned()));
        own.extend(graph.initializer.iter().map(|t| t.name().to_owned()));
        own.extend(
            graph
                .sparse_initializer
                .iter()
                .filter_map(|t| Some(t.values.as_ref()?.name().to_owned())),
        );
        let inner = Renaming {
            prefix: self.prefix,
            values: self
                .values
                .iter()
                .filter(|(formal, _)| !own.contains(*formal))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            attributes: self.attributes.clone(),
        };
        let infos = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
        infos.filter_map(|v| v.name.as_mut()).for_each(|n| inner.value(n));
        let dense = graph.initializer.iter_mut();
        let sparse = graph.sparse_initializer.iter_mut().filter_map(|s| s.values.as_deref_mut());
        dense.chain(sparse).filter_map(|t| t.name.as_mut()).for_each(|n| inner.value(n));
        graph.node.iter_mut().for_each(|n| inner.node(n));
    }
}
