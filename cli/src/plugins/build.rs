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
}
