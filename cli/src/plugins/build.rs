//! `build` and its likes are commands of the plugin buildx where that is installed.

use crate::args::grammar;
use std::ffi::OsString;

/// The words as buildx is to get them, if they are a build's: `build .` is `buildx build .`.
///
/// By DOCKER_BUILDKIT=0 the engine's classic builder is asked for, and nothing is rewritten.
pub fn route(words: &[OsString], buildkit: Option<&str>) -> Option<Vec<OsString>> {
    if matches!(buildkit, Some("0" | "f" | "F" | "false" | "FALSE" | "False")) {
        return None;
    }
    let at = grammar::command_at(words)?;
    let (globals, rest) = words.split_at(at);
    let word = |at: usize| rest.get(at).and_then(|word| word.to_str()).unwrap_or_default();
    let (skipped, command): (usize, &[&str]) = match (word(0), word(1)) {
        ("build", _) => (1, &["build"]),
        ("image" | "builder", "build") => (2, &["build"]),
        ("bake", _) => (1, &["bake"]),
        ("builder", "prune") => (2, &["prune"]),
        ("builder", _) => (1, &[]),
        _ => return None,
    };
    let mut routed = globals.to_vec();
    routed.push("buildx".into());
    routed.extend(command.iter().map(OsString::from));
    routed.extend_from_slice(&rest[skipped..]);
    Some(routed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_go_to_buildx() {
        for (line, routed) in [
            ("build -t x --load .", Some("buildx build -t x --load .")),
            ("-H unix:///x --debug image build .", Some("-H unix:///x --debug buildx build .")),
            ("builder build --progress plain .", Some("buildx build --progress plain .")),
            ("builder prune -f", Some("buildx prune -f")),
            ("builder ls", Some("buildx ls")),
            ("bake --print app", Some("buildx bake --print app")),
            ("run build", None),
            ("image ls", None),
            ("", None),
        ] {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let joined = route(&words, None).map(|words| words.join(std::ffi::OsStr::new(" ")));
            assert_eq!(joined.as_deref(), routed.map(std::ffi::OsStr::new), "{line}");
            assert_eq!(route(&words, Some("0")), None);
        }
    }
}
