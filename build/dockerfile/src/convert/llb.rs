//! The graph of operations while it grows, and the message that it becomes.
//!
//! A node knows its inputs by their place and not by their digest: the folder that the client sends is only described at the
//! end, when every step has said what it wants of it. A node's inputs always have lower numbers than itself.

pub use super::show::show;

use crate::error::Span;
use prost::Message;
use proto::pb::{self, file_action::Action, op};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt::Write as _,
};

/// Description of an operation: its name for the user.
pub const NAME: &str = "llb.customname";
/// Description of an operation: the instruction that it comes from.
pub const COMMAND: &str = "com.docker.dockerfile.v1.command";

/// One result of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Output {
    node: usize,
    index: i64,
}

/// A filesystem; nothing is an empty one.
pub(super) type Tree = Option<Output>;

/// What is known of an operation besides what it does.
#[derive(Debug, Clone, Default)]
pub(super) struct About {
    /// For the user.
    pub(super) name: String,
    /// The instruction.
    pub(super) command: Option<String>,
    /// Where it was written.
    pub(super) span: Option<Span>,
    /// Whether it is done even if it was done before.
    pub(super) ignore_cache: bool,
    /// Steps that are shown as one.
    pub(super) group: Option<pb::ProgressGroup>,
}

impl About {
    pub(super) fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// A step of which the Dockerfile says nothing.
    pub(super) fn internal(name: &str) -> Self {
        Self::named(format!("[internal] {name}"))
    }
}

#[derive(Debug)]
enum Body {
    /// Described later.
    Pending,
    Op(Box<pb::Op>),
    /// As a client sent it.
    Raw(Vec<u8>),
}

#[derive(Debug)]
struct Node {
    body: Body,
    inputs: Vec<Output>,
    metadata: pb::OpMetadata,
    spans: Vec<Span>,
}

/// Operations.
#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    /// Adds an operation with one result.
    pub(super) fn add(
        &mut self,
        op: op::Op,
        inputs: Vec<Output>,
        platform: Option<&pb::Platform>,
        about: About,
    ) -> Output {
        let node = self.reserve();
        self.describe(node, op, inputs, platform, about);
        node
    }

    /// A place for an operation that is described later and has no inputs.
    pub(super) fn reserve(&mut self) -> Output {
        self.nodes.push(Node {
            body: Body::Pending,
            inputs: Vec::new(),
            metadata: pb::OpMetadata::default(),
            spans: Vec::new(),
        });
        Output { node: self.nodes.len() - 1, index: 0 }
    }

    /// What a source that was reserved is.
    pub(super) fn describe_source(&mut self, at: Output, source: pb::SourceOp, about: About) {
        self.describe(at, op::Op::Source(source), Vec::new(), None, about);
    }

    fn describe(&mut self, at: Output, op: op::Op, inputs: Vec<Output>, platform: Option<&pb::Platform>, about: About) {
        let mut description = BTreeMap::new();
        if !about.name.is_empty() {
            description.insert(NAME.to_owned(), about.name);
        }
        if let Some(command) = about.command {
            description.insert(COMMAND.to_owned(), command);
        }
        let op = pb::Op { op: Some(op), platform: platform.cloned(), ..pb::Op::default() };
        self.nodes[at.node] = Node {
            body: Body::Op(Box::new(op)),
            inputs,
            metadata: pb::OpMetadata {
                description: description.into_iter().collect(),
                ignore_cache: about.ignore_cache,
                progress_group: about.group,
                ..pb::OpMetadata::default()
            },
            spans: about.span.into_iter().collect(),
        };
    }

    /// What an operation is called.
    pub(super) fn rename(&mut self, at: Output, name: String) {
        self.nodes[at.node].metadata.description.insert(NAME.into(), name);
    }

    /// Adds a client's graph as it is; what is wrong with it, if anything.
    pub(super) fn import(&mut self, definition: &pb::Definition) -> Result<Tree, String> {
        let mut known = HashMap::new();
        for (number, bytes) in definition.def.iter().enumerate() {
            let op = pb::Op::decode(bytes.as_slice()).map_err(|error| format!("operation {number}: {error}"))?;
            let mut inputs = Vec::new();
            for input in &op.inputs {
                let node = *known.get(&input.digest).ok_or_else(|| {
                    format!("operation {number} wants {}, which does not come before it", input.digest)
                })?;
                inputs.push(Output { node, index: input.index });
            }
            if number + 1 == definition.def.len() {
                if op.op.is_some() {
                    return Err("the last operation does not name the result".into());
                }
                return Ok(inputs.first().copied());
            }
            let digest = digest(bytes);
            let metadata = definition.metadata.get(&digest).cloned().unwrap_or_default();
            known.insert(digest, self.nodes.len());
            self.nodes.push(Node { body: Body::Raw(bytes.clone()), inputs, metadata, spans: Vec::new() });
        }
        Ok(None)
    }

    /// The message for `result`: what it needs and nothing else, inputs first.
    pub(super) fn definition(&self, result: Output, source: &(String, Vec<u8>)) -> pb::Definition {
        let mut needed = BTreeSet::from([result.node]);
        for node in (0..=result.node).rev() {
            if needed.contains(&node) {
                needed.extend(self.nodes[node].inputs.iter().map(|input| input.node));
            }
        }
        let mut def = Vec::new();
        let mut metadata = BTreeMap::new();
        let mut locations: BTreeMap<String, pb::Locations> = BTreeMap::new();
        let mut digests = HashMap::new();
        let mut seen = BTreeSet::new();
        for number in needed {
            let node = &self.nodes[number];
            let bytes = match &node.body {
                Body::Pending => pb::Op::default().encode_to_vec(),
                Body::Raw(bytes) => bytes.clone(),
                Body::Op(op) => {
                    pb::Op { inputs: inputs(&node.inputs, &digests), ..op.as_ref().clone() }.encode_to_vec()
                }
            };
            let digest = digest(&bytes);
            digests.insert(number, digest.clone());
            let places = node.spans.iter().map(|span| pb::Location { source_index: 0, ranges: vec![range(*span)] });
            locations.entry(digest.clone()).or_default().locations.extend(places);
            if seen.insert(digest.clone()) {
                def.push(bytes);
                metadata.insert(digest, node.metadata.clone());
            }
        }
        let last = pb::Op { inputs: inputs(&[result], &digests), ..pb::Op::default() }.encode_to_vec();
        metadata.insert(digest(&last), pb::OpMetadata::default());
        def.push(last);
        locations.retain(|_, found| !found.locations.is_empty());
        let info = pb::SourceInfo {
            filename: source.0.clone(),
            data: source.1.clone(),
            language: "Dockerfile".into(),
            definition: None,
        };
        let source = pb::Source { locations: locations.into_iter().collect(), infos: vec![info] };
        pb::Definition { def, metadata: metadata.into_iter().collect(), source: Some(source) }
    }
}

fn inputs(outputs: &[Output], digests: &HashMap<usize, String>) -> Vec<pb::Input> {
    let input = |output: &Output| pb::Input { digest: digests[&output.node].clone(), index: output.index };
    outputs.iter().map(input).collect()
}

/// What an operation is known by.
pub(super) fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn range(span: Span) -> pb::Range {
    let position = |line: usize| pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 };
    pb::Range { start: Some(position(span.first)), end: Some(position(span.last)) }
}

/// An operation on files that is being put together: actions one after the other on one filesystem.
#[derive(Debug)]
pub(super) struct Files {
    base: Tree,
    inputs: Vec<Output>,
    actions: Vec<(i64, Action)>,
}

impl Files {
    /// Changes `base`.
    pub(super) fn on(base: Tree) -> Self {
        Self { base, inputs: base.into_iter().collect(), actions: Vec::new() }
    }

    /// The input that names of users are looked up in.
    pub(super) fn base(&self) -> i64 {
        if self.base.is_some() { 0 } else { -1 }
    }

    /// Adds a copy of something in `from`.
    pub(super) fn copy(&mut self, from: Tree, copy: pb::FileActionCopy) {
        let input = match from {
            None => -1,
            Some(output) => match self.inputs.iter().position(|known| *known == output) {
                Some(at) => at as i64,
                None => {
                    self.inputs.push(output);
                    self.inputs.len() as i64 - 1
                }
            },
        };
        self.actions.push((input, Action::Copy(copy)));
    }

    /// Adds what needs no second filesystem.
    pub(super) fn add(&mut self, action: Action) {
        self.actions.push((-1, action));
    }

    /// The operation and its inputs.
    pub(super) fn finish(self) -> (op::Op, Vec<Output>) {
        let (base, inputs, count) = (self.base(), self.inputs.len() as i64, self.actions.len());
        let action = |(number, (secondary_input, action)): (usize, (i64, Action))| pb::FileAction {
            // An action's result is an input of the next one, numbered after the real inputs.
            input: if number == 0 { base } else { inputs + number as i64 - 1 },
            secondary_input,
            output: if number + 1 == count { 0 } else { -1 },
            action: Some(action),
        };
        let actions = self.actions.into_iter().enumerate().map(action).collect();
        (op::Op::File(pb::FileOp { actions }), self.inputs)
    }
}

/// `user[:group]` of --chown, names or numbers.
pub(super) fn owner(text: &str, base: i64) -> pb::ChownOpt {
    let one = |name: &str| {
        let user = match name.parse() {
            Ok(id) => pb::user_opt::User::ById(id),
            Err(_) if name.is_empty() => pb::user_opt::User::ById(0),
            Err(_) => pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.into(), input: base }),
        };
        Some(pb::UserOpt { user: Some(user) })
    };
    match text.split_once(':') {
        Some((user, group)) => pb::ChownOpt { user: one(user), group: one(group) },
        None => pb::ChownOpt { user: one(text), group: None },
    }
}
