//! References to git repositories, as contexts of builds are written: `https://host/a.git#branch:folder`.

use crate::build::error::BuildError;
use proto::pb;
use std::collections::BTreeMap;

/// Where, what and which part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Reference {
    remote: String,
    revision: String,
    subdir: String,
    checksum: String,
    keep_git: bool,
}

/// The source that `text` names, if it names a git repository.
pub fn source(text: &str, keep_git: bool) -> Option<Result<pb::SourceOp, BuildError>> {
    let reference = match parse(text)? {
        Ok(reference) => reference,
        Err(error) => return Some(Err(error)),
    };
    // What tells it from others: host and path, whichever way they are reached.
    let (scheme, rest) = reference.remote.split_once("://").unwrap_or(("ssh", &reference.remote));
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = if reference.remote.contains("://") { place.to_owned() } else { place.replacen(':', "/", 1) };
    let mut identifier = format!("git://{place}");
    if !reference.revision.is_empty() || !reference.subdir.is_empty() {
        identifier += &format!("#{}", reference.revision);
        if !reference.subdir.is_empty() {
            identifier += &format!(":{}", reference.subdir);
        }
    }
    let mut attrs = BTreeMap::from([("git.fullurl".to_owned(), reference.remote.clone())]);
    match scheme {
        "http" | "https" => {
            attrs.insert("git.authtokensecret".to_owned(), "GIT_AUTH_TOKEN".to_owned());
            attrs.insert("git.authheadersecret".to_owned(), "GIT_AUTH_HEADER".to_owned());
        }
        "ssh" => {
            attrs.insert("git.mountsshsock".to_owned(), "default".to_owned());
        }
        _ => {}
    }
    if keep_git || reference.keep_git {
        attrs.insert("git.keepgitdir".to_owned(), "true".to_owned());
    }
    if !reference.checksum.is_empty() {
        attrs.insert("git.checksum".to_owned(), reference.checksum.clone());
    }
    Some(Ok(pb::SourceOp { identifier, attrs }))
}

fn parse(text: &str) -> Option<Result<Reference, BuildError>> {
    if text.starts_with("./") || text.starts_with("../") || text.starts_with('/') {
        return None;
    }
    let text = match text.strip_prefix("github.com/") {
        Some(rest) => format!("https://github.com/{rest}"),
        None => text.to_owned(),
    };
    let (address, fragment) = text.split_once('#').unwrap_or((&text, ""));
    let (address, query) = match address.split_once("://") {
        Some(_) => address.split_once('?').unwrap_or((address, "")),
        None => (address, ""),
    };
    match address.split_once("://") {
        Some(("git" | "ssh", _)) => {}
        Some(("http" | "https", rest)) => {
            let path = rest.split_once('/').map_or("", |(_, path)| path);
            if !path.trim_end_matches('/').ends_with(".git") {
                return None;
            }
        }
        Some(_) => return None,
        None if is_scp(address) => {}
        None => return None,
    }
    let mut reference = Reference { remote: address.to_owned(), ..Reference::default() };
    let (revision, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    (reference.revision, reference.subdir) = (revision.to_owned(), subdir.to_owned());
    Some(with_query(reference, query, &text))
}

/// `git@host:path`, as ssh's scp has it.
fn is_scp(text: &str) -> bool {
    let Some((host, path)) = text.split_once(':') else { return false };
    let Some((user, host)) = host.split_once('@') else { return false };
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    word(user) && word(host) && !path.is_empty()
}

fn with_query(mut reference: Reference, query: &str, text: &str) -> Result<Reference, BuildError> {
    let wrong = |what: String| Err(BuildError::invalid(format!("failed to parse git reference {text:?}: {what}")));
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = crate::http::query::percent_decode(value);
        let field = match key {
            "ref" => &mut reference.revision,
            "branch" if !value.is_empty() => {
                set(&mut reference.revision, format!("refs/heads/{value}"), key, text)?;
                continue;
            }
            "tag" if !value.is_empty() => {
                set(&mut reference.revision, format!("refs/tags/{value}"), key, text)?;
                continue;
            }
            "subdir" => &mut reference.subdir,
            "checksum" | "commit" => &mut reference.checksum,
            "keep-git-dir" => {
                let Some(keep) = super::options::parse_bool(&value).or(value.is_empty().then_some(true)) else {
                    return wrong(format!("invalid keep-git-dir value: {value}"));
                };
                reference.keep_git = keep;
                continue;
            }
            _ => return wrong(format!("unexpected query {key:?}")),
        };
        set(field, value, key, text)?;
    }
    let checksum = &reference.checksum;
    if !checksum.is_empty() && !(checksum.len() >= 7 && checksum.len() <= 64 && checksum.bytes().all(|b| b.is_ascii_hexdigit())) {
        return wrong(format!("invalid checksum {checksum:?}"));
    }
    // The folder itself is looked up below the checkout; this only says no earlier (CVE-2026-33748).
    if reference.subdir.split('/').any(|part| part == "..") {
        return wrong(format!("subdirectory {:?} leads out of the repository", reference.subdir));
    }
    Ok(reference)
}

fn set(field: &mut String, value: String, key: &str, text: &str) -> Result<(), BuildError> {
    if !field.is_empty() && *field != value {
        return Err(BuildError::invalid(format!("failed to parse git reference {text:?}: {key} conflicts with {field:?}")));
    }
    *field = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (text, expected) in [
            ("https://h/a.git", Some("git://h/a.git")),
            ("https://h/a.git#main", Some("git://h/a.git#main")),
            ("https://h/a.git#main:sub/x", Some("git://h/a.git#main:sub/x")),
            ("https://h/a.git#:sub", Some("git://h/a.git#:sub")),
            ("https://h/a.git?branch=b&subdir=s", Some("git://h/a.git#refs/heads/b:s")),
            ("https://u:p@h/a.git", Some("git://h/a.git")),
            ("git@h:a/b.git", Some("git://h/a/b.git")),
            ("git://h/a", Some("git://h/a")),
            ("ssh://git@h/a", Some("git://h/a")),
            ("github.com/a/b", None),
            ("github.com/a/b.git", Some("git://github.com/a/b.git")),
            ("https://h/a.tar.gz", None),
            ("https://h/", None),
            ("./x.git", None),
            ("folder", None),
            ("git@h", None),
        ] {
            let found = source(text, false).map(|source| source.unwrap().identifier);
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        let kept = source("https://h/a.git?keep-git-dir=1&commit=0123456789abcdef", false).unwrap().unwrap();
        assert_eq!((kept.attrs["git.keepgitdir"].as_str(), kept.attrs["git.checksum"].as_str()), ("true", "0123456789abcdef"));
        assert_eq!(kept.attrs["git.fullurl"], "https://h/a.git");
        assert_eq!(source("git@h:a", true).unwrap().unwrap().attrs["git.mountsshsock"], "default");
    }

    #[test]
    fn bad_references() {
        for text in [
            "https://h/a.git#main:../../etc",
            "https://h/a.git?subdir=a/../..",
            "https://h/a.git?what=x",
            "https://h/a.git?ref=a#b",
            "https://h/a.git?checksum=zz",
            "https://h/a.git?keep-git-dir=perhaps",
        ] {
            assert!(source(text, false).unwrap().is_err(), "{text}");
        }
    }
}
