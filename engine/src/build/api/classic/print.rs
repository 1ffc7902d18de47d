//! A build as docker's old builder tells it: `Step 1/3 : FROM x`, in the order of the Dockerfile, whatever order things are
//! really done in. What a step writes is told once those before it are done.

use crate::build::frontend::Plan;
use proto::{
    digest::Digest,
    moby::buildkit::v1::{StatusResponse, Vertex},
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What was told so far, and what is yet to be told.
#[derive(Debug, Default)]
pub struct Printer {
    steps: Vec<Step>,
    /// The step that is told now.
    at: usize,
    begun: bool,
    vertices: HashMap<String, Vertex>,
    /// Output that wasn't told yet.
    output: HashMap<String, Vec<u8>>,
}

#[derive(Debug)]
struct Step {
    text: String,
    /// Operations that it became.
    digests: Vec<String>,
}

impl Printer {
    /// The steps of a build.
    pub fn set_plan(&mut self, plan: &Plan) {
        let file = &plan.file;
        let named = |target: &str| {
            file.stages.iter().rposition(|stage| stage.name.as_deref().is_some_and(|n| n.eq_ignore_ascii_case(target)))
        };
        let last = match plan.target.as_deref() {
            Some(target) => named(target).or_else(|| target.parse().ok()),
            None => file.stages.len().checked_sub(1),
        };
        let stages = &file.stages[..last.map_or(0, |last| (last + 1).min(file.stages.len()))];
        let rows = file.globals.iter().map(|instruction| (instruction.text.clone(), instruction.span));
        let rows = rows.chain(stages.iter().flat_map(|stage| {
            let first = std::iter::once((stage.text.clone(), stage.span));
            first.chain(stage.instructions.iter().map(|instruction| (instruction.text.clone(), instruction.span)))
        }));
        let mut by_line: BTreeMap<i32, Vec<String>> = BTreeMap::new();
        let source = plan.definition.as_ref().and_then(|definition| definition.source.as_ref());
        for (digest, known) in source.into_iter().flat_map(|source| &source.locations) {
            let ranges = known.locations.iter().flat_map(|location| &location.ranges);
            if let Some(line) = ranges.filter_map(|range| range.start.as_ref()).map(|start| start.line).min() {
                by_line.entry(line).or_default().push(digest.clone());
            }
        }
        self.steps = rows
            .map(|(text, span)| {
                let lines = i32::try_from(span.first).unwrap_or(0)..=i32::try_from(span.last).unwrap_or(0);
                let digests = by_line.range(lines).flat_map(|(_, digests)| digests.clone()).collect();
                Step { text, digests }
            })
            .collect();
    }

    /// Lines that can be told now.
    pub fn take(&mut self, message: StatusResponse) -> Vec<String> {
        for vertex in message.vertexes {
            self.vertices.insert(vertex.digest.clone(), vertex);
        }
        for log in message.logs {
            self.output.entry(log.vertex).or_default().extend(log.msg);
        }
        self.advance(false)
    }

    /// What is left at the end of a build that succeeded.
    pub fn finish(&mut self) -> Vec<String> {
        self.advance(true)
    }

    /// Operations that nobody needed, since the result of what follows them is known. They are never done.
    fn covered(&self) -> HashSet<String> {
        let mut below: Vec<&String> = self
            .vertices
            .values()
            .filter(|vertex| vertex.completed.is_some())
            .flat_map(|vertex| &vertex.inputs)
            .collect();
        let mut seen = HashSet::new();
        while let Some(digest) = below.pop() {
            if seen.insert(digest)
                && let Some(vertex) = self.vertices.get(digest)
            {
                below.extend(&vertex.inputs);
            }
        }
        let idle = |digest: &&&String| self.vertices.get(**digest).is_none_or(|vertex| vertex.started.is_none());
        seen.iter().filter(idle).map(|digest| (*digest).clone()).collect()
    }

    fn advance(&mut self, ended: bool) -> Vec<String> {
        let mut lines = Vec::new();
        let count = self.steps.len();
        let covered = self.covered();
        while let Some(step) = self.steps.get(self.at) {
            if !self.begun {
                self.begun = true;
                lines.push(format!("Step {}/{count} : {}\n", self.at + 1, step.text));
            }
            for digest in &step.digests {
                if let Some(bytes) = self.output.remove(digest).filter(|bytes| !bytes.is_empty()) {
                    lines.push(String::from_utf8_lossy(&bytes).into_owned());
                }
            }
            let vertices: Vec<&Vertex> = step.digests.iter().filter_map(|digest| self.vertices.get(digest)).collect();
            if vertices.iter().any(|vertex| !vertex.error.is_empty()) && !ended {
                break;
            }
            let done = |digest: &String| {
                self.vertices.get(digest).is_some_and(|vertex| vertex.completed.is_some()) || covered.contains(digest)
            };
            if !ended && !step.digests.iter().all(done) {
                break;
            }
            let known = |digest: &String| {
                covered.contains(digest) || self.vertices.get(digest).is_some_and(|vertex| vertex.cached)
            };
            if !step.digests.is_empty() && step.digests.iter().all(known) {
                lines.push(" ---> Using cache\n".to_owned());
            }
            let id = step.digests.last().and_then(|digest| digest.parse::<Digest>().ok());
            if let Some(id) = id {
                lines.push(format!(" ---> {}\n", crate::ids::short(&id.hex())));
            }
            self.at += 1;
            self.begun = false;
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::error::lines as range;
    use dockerfile::{
        Dockerfile,
        error::Span,
        instruction::{Instruction, Kind, Stage},
    };
    use proto::{moby::buildkit::v1::VertexLog, pb};

    fn digest(n: u8) -> String {
        Digest::of(&[n]).to_string()
    }

    fn plan() -> Plan {
        let at = |line| Span { first: line, last: line };
        let instruction = |text: &str, line| Instruction {
            kind: Kind::User(String::new()),
            keyword: String::new(),
            text: text.into(),
            span: at(line),
            comment: vec![],
        };
        let stage = Stage {
            text: "FROM x".into(),
            span: at(1),
            instructions: vec![instruction("RUN a", 2), instruction("USER b", 3), instruction("RUN c", 4)],
            ..Stage::default()
        };
        let place =
            |line| pb::Locations { locations: vec![pb::Location { source_index: 0, ranges: vec![range(line, line)] }] };
        let locations = [(digest(1), place(1)), (digest(2), place(2)), (digest(4), place(4))].into();
        let source = Some(pb::Source { locations, infos: vec![] });
        Plan {
            file: Dockerfile { stages: vec![stage], ..Dockerfile::default() },
            target: None,
            definition: Some(pb::Definition { source, ..pb::Definition::default() }),
        }
    }

    fn done(n: u8, cached: bool) -> StatusResponse {
        let vertex = Vertex { digest: digest(n), cached, completed: Some(Default::default()), ..Vertex::default() };
        StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() }
    }

    fn wrote(n: u8, text: &str) -> StatusResponse {
        StatusResponse {
            logs: vec![VertexLog { vertex: digest(n), msg: text.into(), ..VertexLog::default() }],
            ..StatusResponse::default()
        }
    }

    #[test]
    fn in_the_order_of_the_dockerfile() {
        let mut printer = Printer::default();
        printer.set_plan(&plan());
        let id = |n| crate::ids::short(&Digest::of(&[n]).hex()).to_owned();
        assert_eq!(printer.take(wrote(4, "late\n")), ["Step 1/4 : FROM x\n"]);
        assert_eq!(printer.take(done(4, false)), [] as [String; 0]);
        let lines = printer.take(done(1, true));
        assert_eq!(
            lines,
            [" ---> Using cache\n".to_owned(), format!(" ---> {}\n", id(1)), "Step 2/4 : RUN a\n".into()]
        );
        assert_eq!(printer.take(wrote(2, "out\n")), ["out\n"]);
        let lines = printer.take(done(2, false));
        assert_eq!(
            lines,
            [
                format!(" ---> {}\n", id(2)),
                "Step 3/4 : USER b\n".into(),
                "Step 4/4 : RUN c\n".into(),
                "late\n".into(),
                format!(" ---> {}\n", id(4))
            ]
        );
        assert!(printer.finish().is_empty());
    }

    #[test]
    fn what_was_skipped_holds_nothing_up() {
        let mut printer = Printer::default();
        printer.set_plan(&plan());
        let announced =
            |n: u8, below: u8| Vertex { digest: digest(n), inputs: vec![digest(below)], ..Vertex::default() };
        let vertexes = vec![announced(4, 2), announced(2, 1)];
        assert_eq!(printer.take(StatusResponse { vertexes, ..StatusResponse::default() }).len(), 1);
        let mut last = done(4, true);
        last.vertexes[0].inputs = vec![digest(2)];
        // The rest of the four steps, and of the three that are operations: known, and their ids.
        assert_eq!(printer.take(last).len(), 3 + 3 + 3);
    }

    #[test]
    fn a_step_that_failed_is_the_last_one() {
        let mut printer = Printer::default();
        printer.set_plan(&plan());
        printer.take(done(1, false));
        let mut failed = done(2, false);
        failed.vertexes[0].error = "exit code: 1".into();
        assert!(printer.take(failed).is_empty());
        assert!(printer.take(done(4, false)).is_empty());
    }
}
