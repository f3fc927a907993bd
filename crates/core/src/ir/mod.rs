//! The graph: models as imported (symbolic shapes) and graphs as executed (concrete types).

mod batch;
mod graph;
mod ids;
mod interpret;
mod model;
mod prepared;
mod specialize;
pub mod passes;

pub use batch::set_batch;
pub use graph::{Graph, GraphError, Node, Value};
pub use ids::{NodeId, ValueId};
pub use interpret::{InterpretError, interpret};
pub use model::{Dim, InputSpec, Model, ModelBuilder, ModelNode, ModelValueId};
pub use prepared::Prepared;
pub use specialize::{
    Expansion, OutputSource, Shapes, SpecializeError, Specialized, Tail, specialize,
};
