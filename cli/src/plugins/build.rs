//! Commands about builds that only the plugin buildx has. Builds themselves are Berth's own; `berth buildx build` is the plugin's.

use crate::args::grammar;
use std::ffi::OsString;

/// The words as buildx is to get them, if they are for it: `bake` is `buildx bake`, `builder ls` is `buildx ls`.
pub fn route(words: &[OsString]) -> Option<Vec<OsString>> {
    let at = grammar::command_at(words)?;
    let (globals, rest) = words.split_at(at);
    let word = |at: usize| rest.get(at).and_then(|word| word.to_str()).unwrap_or_default();
    let (skipped, command): (usize, &[&str]) = match (word(0), word(1)) {
        ("bake", _) => (1, &["bake"]),
        ("builder", "build" | "prune" | "du") => return None,
        // `builder --help` is Berth's, too.
        ("builder", word) if word.is_empty() || word.starts_with('-') => return None,
        ("builder", _) => (1, &[]),
        _ => return None,
    };
    let mut routed = globals.to_vec();
    routed.push("buildx".into());
    routed.extend(command.iter().map(OsString::from));
    routed.extend_from_slice(&rest[skipped..]);
    Some(routed)
}

/// The words of `buildx build` as Berth's own command has them, for where there is no plugin.
pub fn own(words: &[OsString]) -> Option<Vec<OsString>> {
    let at = grammar::command_at(words)?;
    let (globals, rest) = words.split_at(at);
    let word = |at: usize| rest.get(at).and_then(|word| word.to_str()).unwrap_or_default();
    let command: &[&str] = match (word(0), word(1)) {
        ("buildx", "build" | "b") => &["build"],
        ("buildx", "prune") => &["builder", "prune"],
        ("buildx", "du") => &["builder", "du"],
        _ => return None,
    };
    let mut own = globals.to_vec();
    own.extend(command.iter().map(OsString::from));
    own.extend_from_slice(&rest[2..]);
    Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_buildx_has_goes_to_buildx() {
        for (line, routed) in [
            ("build -t x --load .", None),
            ("-H unix:///x --debug image build .", None),
            ("builder build --progress plain .", None),
            ("builder prune -f", None),
            ("builder du", None),
            ("builder --help", None),
            ("-H unix:///x --debug builder ls", Some("-H unix:///x --debug buildx ls")),
            ("builder ls", Some("buildx ls")),
            ("bake --print app", Some("buildx bake --print app")),
            ("run build", None),
            ("image ls", None),
            ("", None),
        ] {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let joined = route(&words).map(|words| words.join(std::ffi::OsStr::new(" ")));
            assert_eq!(joined.as_deref(), routed.map(std::ffi::OsStr::new), "{line}");
        }
    }

    #[test]
    fn without_the_plugin_builds_are_berths() {
        for (line, own_line) in [
            ("buildx build -t x .", Some("build -t x .")),
            ("-H unix:///x buildx b .", Some("-H unix:///x build .")),
            ("buildx prune -f", Some("builder prune -f")),
            ("buildx du", Some("builder du")),
            ("buildx ls", None),
            ("build .", None),
        ] {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            let joined = own(&words).map(|words| words.join(std::ffi::OsStr::new(" ")));
            assert_eq!(joined.as_deref(), own_line.map(std::ffi::OsStr::new), "{line}");
        }
    }
}
