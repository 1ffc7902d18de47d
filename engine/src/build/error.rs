//! Why a build failed, and where in its source.

use proto::{
    kind::{ErrorKind, chain},
    pb,
};
use std::sync::Arc;

/// A failed build. It can be cloned, since several may wait for the same thing.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    /// What kind of failure.
    pub kind: ErrorKind,
    /// Everything that is to be said of it.
    pub message: String,
    /// The step that failed.
    pub vertex: Option<String>,
    /// Places in Dockerfiles that it has to do with.
    pub places: Vec<Place>,
}

/// Lines of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// The file.
    pub info: Arc<pb::SourceInfo>,
    /// Where in it.
    pub ranges: Vec<pb::Range>,
}

impl BuildError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), vertex: None, places: Vec::new() }
    }

    /// The client asked for what can't be.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// Something isn't there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// This builder can't.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unimplemented, message)
    }

    /// Nobody wants it any more.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "context canceled")
    }

    /// Another error with its causes.
    pub fn of(kind: ErrorKind, error: &dyn std::error::Error) -> Self {
        Self::new(kind, chain(error))
    }

    /// The same, said of `what`.
    #[must_use]
    pub fn while_doing(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// The same, at these lines of `info`.
    #[must_use]
    pub fn at(mut self, info: Arc<pb::SourceInfo>, ranges: Vec<pb::Range>) -> Self {
        self.places.push(Place { info, ranges });
        self
    }

    /// The same, of this step, whose place in the source `definition` knows.
    #[must_use]
    pub fn of_step(mut self, digest: &str, definition: &pb::Definition) -> Self {
        let Some(source) = &definition.source else { return Self { vertex: Some(digest.to_owned()), ..self } };
        for location in source.locations.get(digest).into_iter().flat_map(|known| &known.locations) {
            let info = usize::try_from(location.source_index).ok().and_then(|index| source.infos.get(index));
            if let Some(info) = info {
                self.places.push(Place { info: Arc::new(info.clone()), ranges: location.ranges.clone() });
            }
        }
        Self { vertex: Some(digest.to_owned()), ..self }
    }

    /// The lines of the source, as buildx shows them, for those who only get text.
    pub fn excerpt(&self) -> String {
        let mut text = String::new();
        for place in &self.places {
            let Some((first, last)) = span(&place.ranges) else { continue };
            let source = String::from_utf8_lossy(&place.info.data);
            let shown = (first.saturating_sub(2).max(1), last + 2);
            text += &format!("{}:{first}\n--------------------\n", place.info.filename);
            for (number, line) in (1..).zip(source.lines()).filter(|(n, _)| (shown.0..=shown.1).contains(n)) {
                let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
                text += &format!("{number:4} | {mark} {line}\n");
            }
            text += "--------------------\n";
        }
        text
    }
}

/// First and last line.
fn span(ranges: &[pb::Range]) -> Option<(usize, usize)> {
    let line = |position: &Option<pb::Position>| position.as_ref().and_then(|at| usize::try_from(at.line).ok());
    let first = ranges.iter().filter_map(|range| line(&range.start)).min()?;
    let last = ranges.iter().filter_map(|range| line(&range.end)).max()?;
    Some((first, last.max(first)))
}

/// Lines from 1, both included.
pub fn lines(first: usize, last: usize) -> pb::Range {
    let at = |line: usize| Some(pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 });
    pb::Range { start: at(first), end: at(last) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_step_is_shown() {
        let info = pb::SourceInfo {
            filename: "Dockerfile".into(),
            data: b"FROM a\nRUN b\nRUN c\nRUN d\nRUN e\n".into(),
            ..Default::default()
        };
        let location = pb::Location { source_index: 0, ranges: vec![lines(3, 3)] };
        let beyond = pb::Location { source_index: 7, ranges: vec![lines(1, 1)] };
        let known = pb::Locations { locations: vec![location, beyond] };
        let source = pb::Source { locations: [("sha256:x".to_owned(), known)].into(), infos: vec![info] };
        let definition = pb::Definition { source: Some(source), ..Default::default() };
        let error = BuildError::invalid("no").of_step("sha256:x", &definition);
        assert_eq!(error.vertex.as_deref(), Some("sha256:x"));
        assert_eq!(
            error.excerpt(),
            "Dockerfile:3\n--------------------\n   1 |     FROM a\n   2 |     RUN b\n   3 | >>> RUN c\n   4 |     RUN d\n   5 |     RUN e\n--------------------\n"
        );
    }
}
