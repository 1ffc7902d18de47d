//! What was likely meant, when there is no such thing: also with an engine that doesn't say it.

use crate::complete::names::{self, Kind, States};
use crate::config::Config;
use crate::exit::Failure;
use crate::output::similar;

/// How engines say that something isn't there, before and after its name.
const MISSING: &[(&str, &str, Kind)] = &[
    ("No such container: ", "", Kind::Container(States::Any)),
    ("No such object: ", "", Kind::Any),
    ("No such image: ", ":latest", Kind::Image),
    ("No such image: ", "", Kind::Image),
    ("get ", ": no such volume", Kind::Volume),
    ("network ", " not found", Kind::Network),
];

/// What isn't there according to a line, and where names of such things are.
fn missing(line: &str) -> Option<(&str, Kind)> {
    MISSING.iter().find_map(|(before, after, kind)| {
        let (_, rest) = line.split_once(before)?;
        let name = rest.strip_suffix(after)?;
        (!name.is_empty() && !name.contains([' ', ',', ';'])).then_some((name, *kind))
    })
}

/// The failure, with the nearest name that there is behind each line about one that isn't.
pub async fn improved(config: &Config, failure: Failure) -> Failure {
    let text = failure.to_string();
    if failure.is_silent() || text.contains("did you mean") || !text.lines().any(|line| missing(line).is_some()) {
        return failure;
    }
    let mut better = Vec::new();
    for line in text.lines() {
        let near = match missing(line) {
            Some((name, kind)) => {
                let known = names::of(config, &kind).await;
                similar::nearest(name, known.iter().map(|(known, _)| known.as_str())).map(str::to_owned)
            }
            None => None,
        };
        better.push(near.map_or_else(|| line.to_owned(), |near| format!("{line}; did you mean {near}?")));
    }
    let better = better.join("\n");
    if better == text { failure } else { Failure::Said { text: better, code: failure.code() } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_what_is_missing() {
        for (line, name) in [
            ("Error response from daemon: No such container: web", Some("web")),
            ("Error: No such object: web", Some("web")),
            ("Error response from daemon: No such image: web:latest", Some("web")),
            ("Error response from daemon: No such image: web:1", Some("web:1")),
            ("Error response from daemon: get data: no such volume", Some("data")),
            ("Error response from daemon: network front not found", Some("front")),
            ("Error response from daemon: Container abc is not running", None),
            ("network a b not found", None),
        ] {
            assert_eq!(missing(line).map(|(name, _)| name), name, "{line}");
        }
    }
}
