//! `--volume` and `--tmpfs`.

use super::OptionError;
use std::path::{Component, Path, PathBuf};

/// What one `--volume` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Volume {
    /// `HostConfig.Binds`: `source:target[:options]`
    Bind(String),
    /// `Config.Volumes`: an anonymous volume.
    Anonymous(String),
}

/// Reads `[source:]target[:options]`; a source that begins with "." is below the working directory.
pub fn parse(text: &str, cwd: &Path) -> Result<Volume, OptionError> {
    let spec = |why: &str| OptionError::Invalid(format!("invalid spec: {text}: {why}"));
    if text.is_empty() {
        return Err(OptionError::Invalid("invalid empty volume spec".to_owned()));
    }
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() == 1 {
        return Ok(Volume::Anonymous(text.to_owned()));
    }
    // The engine knows better which one is wrong.
    if parts.len() > 3 {
        return Ok(Volume::Bind(text.to_owned()));
    }
    if parts.iter().any(|part| part.is_empty()) {
        return Err(spec("empty section between colons"));
    }
    let source = if parts[0].starts_with('.') {
        clean(&cwd.join(parts[0])).to_string_lossy().into_owned()
    } else {
        parts[0].to_owned()
    };
    Ok(Volume::Bind([&[source.as_str()][..], &parts[1..]].concat().join(":")))
}

/// Takes "." and ".." out of an absolute path, by its letters only.
pub fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

/// Reads `path[:options]` of a tmpfs.
pub fn tmpfs(text: &str) -> (String, String) {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    (path.to_owned(), options.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes() {
        let bind = |text: &str| Volume::Bind(text.to_owned());
        for (text, want) in [
            ("/a:/b", bind("/a:/b")),
            ("/a:/b:ro,z", bind("/a:/b:ro,z")),
            ("data:/b", bind("data:/b")),
            ("./x:/b", bind("/home/me/x:/b")),
            ("../x:/b:ro", bind("/home/x:/b:ro")),
            (".:/b", bind("/home/me:/b")),
            ("/a", Volume::Anonymous("/a".to_owned())),
        ] {
            assert_eq!(parse(text, Path::new("/home/me")).unwrap(), want, "{text}");
        }
        for bad in ["", ":", "a:", ":/b"] {
            assert!(parse(bad, Path::new("/")).is_err(), "{bad}");
        }
        assert_eq!(tmpfs("/run:size=1m,mode=700"), ("/run".into(), "size=1m,mode=700".into()));
    }
}
