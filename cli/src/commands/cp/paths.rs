//! What `cp` makes of its two paths: where the archive is unpacked and what its entries are called there. Pure.
//!
//! The rules are those of cp(1) as docker has them: a directory that exists receives the source, a name that does not exist
//! becomes the source's name, "DIR/." is what the folder holds.

/// Why a copy can't be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A directory onto a file.
    #[error("cannot copy directory")]
    Directory,
    /// "DIR/" does not exist, and a file makes none.
    #[error("no such directory")]
    Missing,
}

/// One end of a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// The path, with "/" or "/." at its end if it was given so.
    pub path: String,
    /// There is something.
    pub exists: bool,
    /// It is a directory.
    pub is_dir: bool,
    /// What the source is called, if not by the name in its path (a link was followed).
    pub name: Option<String>,
}

/// Where an archive is unpacked, and how its topmost entry is renamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The directory.
    pub dir: String,
    /// First part of the entries' names: as it is, as it is to be.
    pub rename: Option<(String, String)>,
}

/// Decides by what is known of both ends.
pub fn plan(source: &End, destination: &End) -> Result<Plan, PathError> {
    let (dir, base) = split(&destination.path);
    let own = || source.name.clone().unwrap_or_else(|| split(&source.path).1);
    match () {
        () if destination.exists && destination.is_dir => Ok(Plan { dir: destination.path.clone(), rename: None }),
        () if destination.exists && source.is_dir => Err(PathError::Directory),
        () if destination.exists || source.is_dir => Ok(Plan { dir, rename: Some((own(), base)) }),
        () if names_directory(&destination.path) => Err(PathError::Missing),
        () => Ok(Plan { dir, rename: Some((own(), base)) }),
    }
}

/// CONTAINER:PATH; no container in "/a:b" and "./a:b".
pub fn container(text: &str) -> (Option<&str>, &str) {
    match text.split_once(':') {
        Some((container, path)) if !text.starts_with(['/', '.']) => (Some(container), path),
        _ => (None, text),
    }
}

/// Directory and last part; "a/b/." is "a/b" and ".".
pub fn split(path: &str) -> (String, String) {
    let mut cleaned = clean(path);
    if is_dot(path) {
        if cleaned == "." {
            return (".".to_owned(), ".".to_owned());
        }
        cleaned.push_str(if cleaned == "/" { "." } else { "/." });
    }
    match cleaned.rsplit_once('/') {
        Some(("", "")) => ("/".to_owned(), "/".to_owned()),
        Some(("", base)) => ("/".to_owned(), base.to_owned()),
        Some((dir, base)) => (dir.to_owned(), base.to_owned()),
        None => (".".to_owned(), cleaned),
    }
}

/// The last part is ".".
pub fn is_dot(path: &str) -> bool {
    let path = path.trim_end_matches('/');
    path == "." || path.ends_with("/.")
}

/// Ends so that only a directory can be meant.
pub fn names_directory(path: &str) -> bool {
    path.ends_with('/') || is_dot(path)
}

/// An end of `original` ("/", "/.") that `cleaned` has lost is put back.
pub fn keep_end(mut cleaned: String, original: &str) -> String {
    if is_dot(original) && !is_dot(&cleaned) {
        if !cleaned.ends_with('/') {
            cleaned.push('/');
        }
        cleaned.push('.');
    }
    if original.ends_with('/') && !cleaned.ends_with('/') {
        cleaned.push('/');
    }
    cleaned
}

/// The path of a link's target in the place of the link, and the name it keeps.
pub fn follow(path: &str, target: &str) -> (String, Option<String>) {
    let base = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned();
    let target = keep_end(target.to_owned(), path);
    let name = (base(path) != base(&target)).then(|| base(path));
    (target, name)
}

/// The path without ".", "..", and doubled slashes, by its letters only.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => _ = parts.pop(),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// An entry's name with its first part replaced; other names stay.
pub fn rename(name: &[u8], change: Option<&(String, String)>) -> Vec<u8> {
    let Some((old, new)) = change else { return name.to_vec() };
    if old == "/" || old.is_empty() {
        let rest = name.trim_ascii_start();
        let rest = rest.strip_prefix(b"/").unwrap_or(rest);
        return [new.as_bytes(), b"/", rest].concat();
    }
    match name.strip_prefix(old.as_bytes()) {
        Some(rest) if rest.is_empty() || rest.starts_with(b"/") => [new.as_bytes(), rest].concat(),
        _ => name.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn end(path: &str, kind: &str) -> End {
        End { path: path.to_owned(), exists: kind != "none", is_dir: kind == "dir", name: None }
    }

    #[test]
    fn destinations() {
        for (source, destination, want) in [
            (end("/s/f", "file"), end("/d", "dir"), Ok(("/d", None))),
            (end("/s/f", "file"), end("/d/g", "file"), Ok(("/d", Some(("f", "g"))))),
            (end("/s/f", "file"), end("/d/g", "none"), Ok(("/d", Some(("f", "g"))))),
            (end("/s/f", "file"), end("/d/g/", "none"), Err(PathError::Missing)),
            (end("/s/f", "file"), end("/d/g/.", "none"), Err(PathError::Missing)),
            (end("/s", "dir"), end("/d", "dir"), Ok(("/d", None))),
            (end("/s/.", "dir"), end("/d", "none"), Ok(("/", Some((".", "d"))))),
            (end("/s", "dir"), end("/d/n/", "none"), Ok(("/d", Some(("s", "n"))))),
            (end("/s", "dir"), end("/d/g", "file"), Err(PathError::Directory)),
            (end("/", "dir"), end("/d/n", "none"), Ok(("/d", Some(("/", "n"))))),
        ] {
            let plan = plan(&source, &destination);
            let shown =
                plan.as_ref().map(|p| (p.dir.as_str(), p.rename.as_ref().map(|(a, b)| (a.as_str(), b.as_str()))));
            assert_eq!(shown.map_err(Clone::clone), want, "{source:?} {destination:?}");
        }
        let linked = End { name: Some("link".into()), ..end("/s/f", "file") };
        assert_eq!(plan(&linked, &end("/d/g", "none")).unwrap().rename, Some(("link".into(), "g".into())));
    }

    #[test]
    fn parts_of_paths() {
        for (text, want) in [
            ("web:/etc", (Some("web"), "/etc")),
            ("web:", (Some("web"), "")),
            ("/a:b", (None, "/a:b")),
            ("./a:b", (None, "./a:b")),
            ("a", (None, "a")),
        ] {
            assert_eq!(container(text), want, "{text}");
        }
        for (path, dir, base) in [
            ("/a/b", "/a", "b"),
            ("/a/b/", "/a", "b"),
            ("/a/b/.", "/a/b", "."),
            ("/", "/", "/"),
            ("/.", "/", "."),
            ("a", ".", "a"),
            (".", ".", "."),
            ("/a/../b", "/", "b"),
        ] {
            assert_eq!(split(path), (dir.to_owned(), base.to_owned()), "{path}");
        }
        for (path, want) in [("/a//b/./c/..", "/a/b"), ("../x", "../x"), ("a/../..", ".."), ("/..", "/"), ("", ".")] {
            assert_eq!(clean(path), want, "{path}");
        }
        assert_eq!(keep_end("/a".into(), "x/."), "/a/.");
        assert_eq!(keep_end("/a".into(), "x/"), "/a/");
        assert_eq!(follow("/a/link/", "/b/real"), ("/b/real/".to_owned(), Some("link".to_owned())));
    }

    #[test]
    fn first_parts_are_renamed() {
        let change = |old: &str, new: &str| Some((old.to_owned(), new.to_owned()));
        for (name, old, new, want) in [
            ("f", "f", "g", "g"),
            ("f/x", "f", "g", "g/x"),
            ("ff/x", "f", "g", "ff/x"),
            ("./x", ".", "n", "n/x"),
            ("/etc", "/", "n", "n/etc"),
        ] {
            assert_eq!(rename(name.as_bytes(), change(old, new).as_ref()), want.as_bytes(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn cleaning_is_done_once(path in "[a./]{0,12}") {
            let once = clean(&path);
            prop_assert_eq!(clean(&once), once.clone());
            prop_assert!(!path.starts_with('/') || !once.split('/').any(|part| part == ".."));
        }
    }
}
