//! The few operations that a frontend needs before it has read a Dockerfile: sources, and copies between them.

use prost::Message;
use proto::{
    digest::Digest,
    pb::{self, file_action::Action, op},
};
use std::collections::BTreeMap;

/// A graph whose last operation is one source with a name for the user.
pub fn source(source: pb::SourceOp, name: &str) -> pb::Definition {
    let mut graph = Graph::default();
    let digest = graph.add(pb::Op { op: Some(op::Op::Source(source)), ..pb::Op::default() }, name);
    graph.end(&digest)
}

/// A folder of the client's.
pub fn local(name: &str, session: &str, follow: &[String], hint: &str, unique: &str) -> pb::SourceOp {
    let mut attrs = BTreeMap::from([
        ("local.session".to_owned(), session.to_owned()),
        ("local.sharedkeyhint".to_owned(), hint.to_owned()),
        // Nothing of it is kept that could be compared with the next time.
        ("local.differ".to_owned(), "none".to_owned()),
    ]);
    if !follow.is_empty() {
        attrs.insert("local.followpaths".to_owned(), serde_json::Value::from(follow).to_string());
    }
    if !unique.is_empty() {
        attrs.insert("local.unique".to_owned(), unique.to_owned());
    }
    pb::SourceOp { identifier: format!("local://{name}"), attrs }
}

/// A file from a web server, under this name.
pub fn http(url: &str, filename: &str) -> pb::SourceOp {
    let attrs = BTreeMap::from([("http.filename".to_owned(), filename.to_owned())]);
    pb::SourceOp { identifier: url.to_owned(), attrs }
}

/// A part of what `input` stands for as a filesystem of its own: a folder's contents, or, with `unpack`, an archive's.
pub fn copied(input: &pb::Definition, from: &str, unpack: bool, name: &str) -> Option<pb::Definition> {
    let mut graph = Graph::default();
    let first = graph.append(input)?;
    let copy = pb::FileActionCopy {
        src: from.to_owned(),
        dest: "/".to_owned(),
        mode: -1,
        timestamp: -1,
        dir_copy_contents: !unpack,
        attempt_unpack_docker_compatibility: unpack,
        ..pb::FileActionCopy::default()
    };
    let action = pb::FileAction { input: -1, secondary_input: 0, output: 0, action: Some(Action::Copy(copy)) };
    let file = op::Op::File(pb::FileOp { actions: vec![action] });
    let digest = graph.add(pb::Op { inputs: vec![first], op: Some(file), ..pb::Op::default() }, name);
    Some(graph.end(&digest))
}

#[derive(Debug, Default)]
struct Graph {
    definition: pb::Definition,
}

impl Graph {
    fn add(&mut self, op: pb::Op, name: &str) -> String {
        let bytes = op.encode_to_vec();
        let digest = Digest::of(&bytes).to_string();
        let description = BTreeMap::from([("llb.customname".to_owned(), name.to_owned())]);
        let metadata = pb::OpMetadata { description, ..pb::OpMetadata::default() };
        self.definition.def.push(bytes);
        self.definition.metadata.insert(digest.clone(), metadata);
        digest
    }

    /// All of another graph; the output that it is about.
    fn append(&mut self, other: &pb::Definition) -> Option<pb::Input> {
        // The last one isn't an operation: it only says which output is meant.
        let (end, ops) = other.def.split_last()?;
        let input = pb::Op::decode(end.as_slice()).ok()?.inputs.into_iter().next()?;
        self.definition.def.extend_from_slice(ops);
        self.definition.metadata.extend(other.metadata.clone());
        Some(input)
    }

    fn end(mut self, digest: &str) -> pb::Definition {
        let inputs = vec![pb::Input { digest: digest.to_owned(), index: 0 }];
        self.definition.def.push(pb::Op { inputs, ..pb::Op::default() }.encode_to_vec());
        self.definition
    }
}

/// Digest of the last operation.
pub fn last(definition: &pb::Definition) -> Option<String> {
    let end = pb::Op::decode(definition.def.last()?.as_slice()).ok()?;
    end.inputs.into_iter().next().map(|input| input.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_from_the_web() {
        let first = source(http("http://x/y.tar", "context"), "[internal] load remote build context");
        let second = copied(&first, "/context", true, "[internal] unpack build context").unwrap();
        assert_eq!(second.def.len(), 3);
        for bytes in &second.def[..2] {
            assert!(second.metadata.contains_key(&Digest::of(bytes).to_string()));
        }
        let op = pb::Op::decode(second.def[1].as_slice()).unwrap();
        assert_eq!(op.inputs[0].digest, last(&first).unwrap());
        assert_eq!(last(&second).unwrap(), Digest::of(&second.def[1]).to_string());
        assert!(copied(&pb::Definition::default(), "/", false, "x").is_none());
    }
}
