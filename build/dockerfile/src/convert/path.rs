//! Paths of images: always with `/`, never read from a disk.

/// Without `.`, `..` and doubled slashes, from the root.
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `path` seen from `folder`.
pub(super) fn join(folder: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("{folder}/{path}")) }
}

/// `path` seen from `folder`; a slash or dot at its end, which says that it is a folder, stays.
pub(super) fn target(folder: &str, path: &str) -> String {
    let path = if path.is_empty() || path == "." { "./" } else { path };
    let mut joined = join(folder, path);
    let root = joined == "/";
    if path.ends_with('/') && !root {
        joined.push('/');
    } else if path.ends_with("/.") {
        joined += if root { "." } else { "/." };
    }
    joined
}

/// What comes after the last slash.
pub(super) fn base(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Whether it has `*`, `?` or `[`.
pub(super) fn is_pattern(path: &str) -> bool {
    let mut letters = path.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '*' | '?' | '[' => return true,
            '\\' => drop(letters.next()),
            _ => (),
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, cleaned) in [("", "/"), ("a", "/a"), ("/a//b/./c/../d/", "/a/b/d"), ("../../x", "/x"), ("..", "/")] {
            assert_eq!(clean(path), cleaned);
        }
        for (folder, path, joined) in [
            ("/app", ".", "/app/"),
            ("/app", "", "/app/"),
            ("/app", "./", "/app/"),
            ("/app", "x", "/app/x"),
            ("/app", "x/", "/app/x/"),
            ("/app", "/x/.", "/x/."),
            ("/app", "../y", "/y"),
            ("/", ".", "/"),
            ("/", "/", "/"),
            ("/", "/.", "/."),
        ] {
            assert_eq!(target(folder, path), joined, "{folder} {path}");
        }
        assert!(is_pattern("a*") && is_pattern("[ab]") && !is_pattern("a\\*") && !is_pattern("a"));
        assert_eq!((base("/a/b/"), base("a"), base("/")), ("b", "a", ""));
    }
}
