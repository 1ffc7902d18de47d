//! Graphs of operations as clients send them: decoded, checked, put in order. Nothing here trusts anything.
//!
//! An operation is named by the digest of its bytes, so that a cycle would need a collision; what isn't there is refused. What
//! the last operation doesn't need is left out. Paths of mounts come out absolute and clean, selectors clean and relative.

mod check;
mod name;
#[cfg(test)]
mod tests;
mod weigh;

use prost::Message;
use proto::{digest::Digest, pb};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

/// Operations in a graph. A Dockerfile of a thousand lines for ten platforms has 10,000.
pub const MAX_OPS: usize = 20_000;
/// Bytes of all operations; files of a Dockerfile's heredocs are in them.
pub const MAX_BYTES: usize = 64 << 20;
/// Mounts and file actions of all operations.
pub const MAX_HEAVY: usize = 200_000;
/// Words, variables, patterns and the like of all operations.
pub const MAX_LIGHT: usize = 2_000_000;
/// Inputs of all operations.
pub const MAX_EDGES: usize = 200_000;

/// What a build is made of: every operation behind those that it works on.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// The operations.
    pub vertices: Vec<Vertex>,
    /// What is asked for; nothing: an empty filesystem.
    pub wanted: Option<Edge>,
}

/// An operation and its surroundings.
#[derive(Debug, Clone)]
pub struct Vertex {
    /// Of its bytes.
    pub digest: Digest,
    /// What is to be done.
    pub op: Arc<pb::Op>,
    /// What it works on.
    pub inputs: Vec<Edge>,
    /// How many results it has.
    pub outputs: usize,
    /// For users.
    pub name: String,
    /// Whether it is done even if its result is known.
    pub ignore_cache: bool,
    /// What else was said of it.
    pub metadata: pb::OpMetadata,
}

/// A result of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Edge {
    /// Where in [`Graph::vertices`].
    pub vertex: usize,
    /// Which of its results.
    pub output: usize,
}

/// Why a graph is refused. `op` is the digest of the operation.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// More than anybody needs.
    #[error("definition has {is} {what}, at most {limit} are taken")]
    Large {
        /// Of what.
        what: &'static str,
        /// How many.
        is: usize,
        /// How many may be.
        limit: usize,
    },
    /// Not an operation.
    #[error("decode operation {at} of the definition")]
    Decode {
        /// Its place, from 0.
        at: usize,
        /// What was wrong.
        #[source]
        cause: prost::DecodeError,
    },
    /// The last operation doesn't name what is wanted.
    #[error("last operation of the definition has to be an end with one input, it has {inputs} and is {kind}")]
    End {
        /// How many inputs it has.
        inputs: usize,
        /// What it is.
        kind: &'static str,
    },
    /// An input is no operation of the definition.
    #[error("operation {op} works on {input}, which is not in the definition")]
    Missing {
        /// Who.
        op: Digest,
        /// On what.
        input: String,
    },
    /// Operations that wait for each other.
    #[error("operation {op} waits for itself")]
    Cycle {
        /// Who.
        op: Digest,
    },
    /// An index out of range.
    #[error("invalid {field} {index} of operation {op}: there are {count}")]
    Index {
        /// Of which operation.
        op: Digest,
        /// What it is an index of.
        field: &'static str,
        /// What was said.
        index: i64,
        /// What there is.
        count: usize,
    },
    /// A number without a meaning. An insecure reading of such a one is GHSA-7236-3392-c5c6.
    #[error("unknown {field} {value} of operation {op}")]
    Unknown {
        /// Of which operation.
        op: Digest,
        /// What has no such value.
        field: &'static str,
        /// What was said.
        value: i64,
    },
    /// Something that can't be left out.
    #[error("operation {op} has no {field}")]
    Absent {
        /// Which.
        op: Digest,
        /// What it hasn't.
        field: &'static str,
    },
    /// A value that can't be.
    #[error("invalid {field} {value:?} of operation {op}: {why}")]
    Value {
        /// Of which operation.
        op: Digest,
        /// What can't be so.
        field: &'static str,
        /// As it is.
        value: String,
        /// Why it can't be.
        why: &'static str,
    },
    /// Something of BuildKit's that isn't here.
    #[error("operation {op} is {what}, which this builder does not have")]
    Unsupported {
        /// Which.
        op: Digest,
        /// What it is.
        what: &'static str,
    },
    /// Something that the client hasn't allowed.
    #[error("{entitlement} is not allowed")]
    Denied {
        /// Its name.
        entitlement: &'static str,
    },
}

impl Graph {
    /// Decodes and checks a definition.
    pub fn decode(definition: &pb::Definition) -> Result<Self, GraphError> {
        bounded("operations", definition.def.len(), MAX_OPS)?;
        bounded("bytes", definition.def.iter().map(Vec::len).sum(), MAX_BYTES)?;
        let mut weight = weigh::Weight::default();
        for op in &definition.def {
            weight.add(op);
            bounded("mounts and actions", weight.heavy, MAX_HEAVY)?;
            bounded("words", weight.light, MAX_LIGHT)?;
        }
        let Some((last, rest)) = definition.def.split_last() else { return Ok(Self::default()) };
        let mut ops = Vec::with_capacity(rest.len());
        let mut places = HashMap::with_capacity(rest.len());
        let mut edges = 0;
        for (at, bytes) in rest.iter().enumerate() {
            let op = pb::Op::decode(bytes.as_slice()).map_err(|cause| GraphError::Decode { at, cause })?;
            edges += op.inputs.len();
            bounded("inputs", edges, MAX_EDGES)?;
            let digest = Digest::of(bytes);
            places.entry(digest).or_insert(at);
            ops.push((digest, op));
        }
        let end = pb::Op::decode(last.as_slice()).map_err(|cause| GraphError::Decode { at: rest.len(), cause })?;
        let wanted = match (&end.op, end.inputs.as_slice()) {
            (None, [input]) => input,
            (op, inputs) => return Err(GraphError::End { inputs: inputs.len(), kind: check::kind(op.as_ref()) }),
        };
        let root = place(&places, &Digest::of(last), wanted)?;
        let order = order(&ops, &places, root)?;
        Self::assemble(ops, &places, &order, (root, wanted, Digest::of(last)), &definition.metadata)
    }

    fn assemble(
        ops: Vec<(Digest, pb::Op)>,
        places: &HashMap<Digest, usize>,
        order: &[usize],
        (root, wanted, end): (usize, &pb::Input, Digest),
        metadata: &BTreeMap<String, pb::OpMetadata>,
    ) -> Result<Self, GraphError> {
        let new: HashMap<usize, usize> = order.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        let mut ops: Vec<_> = ops.into_iter().map(Some).collect();
        let mut vertices: Vec<Vertex> = Vec::with_capacity(order.len());
        for old in order {
            let Some((digest, op)) = ops[*old].take() else { continue };
            let (op, outputs) = check::check(digest, op)?;
            let mut inputs = Vec::with_capacity(op.inputs.len());
            for input in &op.inputs {
                let vertex = new[&place(places, &digest, input)?];
                inputs.push(edge(&digest, vertex, &vertices[vertex], input.index)?);
            }
            let metadata = metadata.get(&digest.to_string()).cloned().unwrap_or_default();
            let name = name::name(&op, &metadata);
            let ignore_cache = metadata.ignore_cache;
            vertices.push(Vertex { digest, op: Arc::new(op), inputs, outputs, name, ignore_cache, metadata });
        }
        let vertex = new[&root];
        let wanted = Some(edge(&end, vertex, &vertices[vertex], wanted.index)?);
        Ok(Self { vertices, wanted })
    }

    /// Whether all that the operations need is allowed.
    pub fn allowed(&self, entitlements: &[String]) -> Result<(), GraphError> {
        for vertex in &self.vertices {
            let Some(pb::op::Op::Exec(exec)) = &vertex.op.op else { continue };
            let needs = [
                ("network.host", exec.network == pb::NetMode::Host as i32),
                ("security.insecure", exec.security == pb::SecurityMode::Insecure as i32),
                ("device", !exec.cdi_devices.is_empty()),
            ];
            for (entitlement, needed) in needs {
                // A device may be allowed by its name: `device=vendor.com/class`.
                let given = |e: &String| e == entitlement || (entitlement == "device" && e.starts_with("device="));
                if needed && !entitlements.iter().any(given) {
                    return Err(GraphError::Denied { entitlement });
                }
            }
        }
        Ok(())
    }
}

fn bounded(what: &'static str, is: usize, limit: usize) -> Result<(), GraphError> {
    if is > limit { Err(GraphError::Large { what, is, limit }) } else { Ok(()) }
}

fn place(places: &HashMap<Digest, usize>, op: &Digest, input: &pb::Input) -> Result<usize, GraphError> {
    let found = input.digest.parse().ok().and_then(|digest: Digest| places.get(&digest));
    found.copied().ok_or_else(|| GraphError::Missing { op: *op, input: input.digest.chars().take(100).collect() })
}

fn edge(op: &Digest, vertex: usize, of: &Vertex, index: i64) -> Result<Edge, GraphError> {
    let output = usize::try_from(index).ok().filter(|output| *output < of.outputs);
    let wrong = || GraphError::Index { op: *op, field: "index of a result", index, count: of.outputs };
    Ok(Edge { vertex, output: output.ok_or_else(wrong)? })
}

/// What the root needs, each operation behind its inputs. A stack of its own: depth is the client's choice.
fn order(ops: &[(Digest, pb::Op)], places: &HashMap<Digest, usize>, root: usize) -> Result<Vec<usize>, GraphError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; ops.len()];
    let mut order = Vec::new();
    let mut stack = vec![(root, 0)];
    marks[root] = Mark::Open;
    while let Some((at, next)) = stack.pop() {
        let (digest, op) = &ops[at];
        let Some(input) = op.inputs.get(next) else {
            marks[at] = Mark::Done;
            order.push(at);
            continue;
        };
        stack.push((at, next + 1));
        let input = place(places, digest, input)?;
        match marks[input] {
            Mark::Done => {}
            Mark::Open => return Err(GraphError::Cycle { op: *digest }),
            Mark::New => {
                marks[input] = Mark::Open;
                stack.push((input, 0));
            }
        }
    }
    Ok(order)
}
