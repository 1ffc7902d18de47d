//! Names within an archive. Nothing of it is ever a file under its own name here, so that the rules are simple: an entry
//! has a place below the archive's root or is refused; a link that leads anywhere else leads nowhere.

use std::collections::HashMap;

/// Steps from link to link; docker's archives have links to layers that repeat.
const LINKS: u32 = 16;

/// The name of an entry without `.` and doubled slashes; `None` for the root itself, an error if it leads out.
pub(super) fn entry_name(path: &[u8]) -> Result<Option<String>, ()> {
    let path = std::str::from_utf8(path).map_err(|_| ())?;
    if path.starts_with('/') {
        return Err(());
    }
    let name = resolve("", path).ok_or(())?;
    Ok((!name.is_empty()).then_some(name))
}

/// Whether parts of images have such names. A guess: what `manifest.json` names is a part, whatever it is called.
pub(super) fn is_usual(path: &str) -> bool {
    const ENDINGS: [&str; 7] = [".tar", ".json", ".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2"];
    path.starts_with("blobs/") || path.starts_with("sha256:") || ENDINGS.iter().any(|ending| path.ends_with(ending))
}

/// Where `path` leads from the folder `from`; `None` if that is outside.
fn resolve(from: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Files and links by name. The last of a name counts, as if they had been unpacked one after another.
#[derive(Debug)]
pub(in super::super) struct Paths<T> {
    files: HashMap<String, T>,
    // `None`: it leads out.
    links: HashMap<String, Option<String>>,
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self { files: HashMap::new(), links: HashMap::new() }
    }
}

impl<T> Paths<T> {
    /// Enters a file.
    pub(super) fn file(&mut self, path: String, file: T) {
        self.links.remove(&path);
        self.files.insert(path, file);
    }

    /// Enters a symbolic link: relative to its folder, or leading out.
    pub(super) fn symlink(&mut self, path: String, target: &[u8]) {
        let target = std::str::from_utf8(target).ok().filter(|target| !target.starts_with('/'));
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let target = target.and_then(|target| resolve(folder, target));
        self.link(path, target);
    }

    /// Enters a hard link: relative to the root.
    pub(super) fn hard_link(&mut self, path: String, target: &[u8]) {
        self.link(path, entry_name(target).ok().flatten());
    }

    fn link(&mut self, path: String, target: Option<String>) {
        // To itself: what is there stays.
        if target.as_ref() != Some(&path) {
            self.files.remove(&path);
            self.links.insert(path, target);
        }
    }

    /// The file at a path, links on the way and at its end followed.
    pub(in super::super) fn find(&self, path: &str) -> Option<&T> {
        let mut at = entry_name(path.as_bytes()).ok().flatten()?;
        for _ in 0..LINKS {
            if let Some(file) = self.files.get(&at) {
                return Some(file);
            }
            let ends = at.match_indices('/').map(|(end, _)| end).chain([at.len()]);
            let (end, target) = ends.filter_map(|end| Some((end, self.links.get(&at[..end])?))).next()?;
            at = resolve(target.as_ref()?, &at[end..])?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        for (path, wanted) in [
            ("./a/layer.tar", Ok(Some("a/layer.tar"))),
            ("a//b/", Ok(Some("a/b"))),
            ("a/../b", Ok(Some("b"))),
            (".", Ok(None)),
            ("", Ok(None)),
            ("/a", Err(())),
            ("../a", Err(())),
            ("a/../../b", Err(())),
        ] {
            assert_eq!(entry_name(path.as_bytes()), wanted.map(|name| name.map(str::to_owned)), "{path}");
        }
    }

    #[test]
    fn links_are_followed_within_and_not_in_circles() {
        let mut paths = Paths::default();
        paths.file("x/layer.tar".into(), 1);
        paths.symlink("y/layer.tar".into(), b"../x/layer.tar");
        paths.symlink("folder".into(), b"./x");
        paths.hard_link("hard".into(), b"./y/layer.tar");
        paths.symlink("out".into(), b"../../etc/passwd");
        paths.symlink("etc".into(), b"/etc");
        paths.hard_link("root".into(), b"/etc/passwd");
        paths.symlink("a".into(), b"b");
        paths.symlink("b".into(), b"a");
        for (path, wanted) in [
            ("y/layer.tar", Some(1)),
            ("./folder/layer.tar", Some(1)),
            ("hard", Some(1)),
            ("out", None),
            ("etc/passwd", None),
            ("root", None),
            ("a", None),
            ("none", None),
            ("../x/layer.tar", None),
        ] {
            assert_eq!(paths.find(path).copied(), wanted, "{path}");
        }
        // Later entries take the place of earlier ones, as when they are unpacked.
        paths.symlink("x/layer.tar".into(), b"other");
        assert_eq!(paths.find("y/layer.tar"), None);
        paths.file("x/layer.tar".into(), 2);
        paths.hard_link("x/layer.tar".into(), b"x/layer.tar");
        assert_eq!(paths.find("hard"), Some(&2));
    }
}
