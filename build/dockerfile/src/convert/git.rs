//! References to git repositories: `https://host/repo.git#ref:folder`, `git@host:repo.git`, and the queries that say the same.

use super::path;
use proto::pb::SourceOp;

/// A repository and what is wanted of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitRef {
    /// Its address, without fragment and query.
    pub remote: String,
    /// Branch, tag or commit; nothing for the repository's default.
    pub reference: String,
    /// Folder in it.
    pub folder: String,
    /// The commit that it must be.
    pub checksum: String,
    /// Whether `.git` stays.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are fetched.
    pub submodules: Option<bool>,
    /// Host and path, the same for all protocols.
    id: String,
    ssh: bool,
}

impl GitRef {
    /// Reads `text`: nothing if it isn't such a reference, or what is wrong with one. What looks like a path isn't one.
    pub fn parse(text: &str) -> Option<Result<Self, String>> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme @ ("http" | "https" | "ssh" | "git"), rest)) => (scheme, rest),
            Some(_) => return None,
            None => return Self::short(text),
        };
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, name) =
            rest.split_once('/').map_or((rest, String::new()), |(host, name)| (host, format!("/{name}")));
        // Any other address of the web may be a file.
        if scheme.starts_with("http") && !name.ends_with(".git") {
            return None;
        }
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let found = Self {
            remote: format!("{scheme}://{rest}"),
            id: format!("{host}{}", path::clean(&name)),
            ssh: scheme == "ssh",
            ..Self::default()
        };
        Some(found.with(fragment, query))
    }

    /// `user@host:path`
    fn short(text: &str) -> Option<Result<Self, String>> {
        let (user, rest) = text.split_once('@')?;
        let (host, rest) = rest.split_once(':')?;
        let good = |part: &str, more: &str| {
            !part.is_empty() && part.chars().all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
        };
        if !good(user, "-_") || !good(host, "-.") {
            return None;
        }
        let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (name, query) = rest.split_once('?').unwrap_or((rest, ""));
        let found = Self {
            remote: format!("{user}@{host}:{name}"),
            id: format!("{host}{}", path::clean(name)),
            ssh: true,
            ..Self::default()
        };
        Some(found.with(fragment, query))
    }

    fn with(mut self, fragment: &str, query: &str) -> Result<Self, String> {
        let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
        self.reference = reference.into();
        self.folder = folder.into();
        let (mut tag, mut branch) = (String::new(), String::new());
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(value).ok_or_else(|| format!("query {key:?} is not valid: {value:?}"))?;
            if seen.contains(&key) {
                return Err(format!("query {key:?} has multiple values"));
            }
            seen.push(key);
            let boolean = |value: &str| match value {
                "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
                other => Err(format!("invalid {key} value: {other:?}")),
            };
            if value.is_empty() && !["submodules", "keep-git-dir"].contains(&key) {
                return Err(format!("query {key:?} has no value"));
            }
            match key {
                "ref" => set(&mut self.reference, value, "ref")?,
                "subdir" => set(&mut self.folder, value, "subdir")?,
                "tag" => tag = prefixed("refs/tags/", &value),
                "branch" => branch = prefixed("refs/heads/", &value),
                "checksum" | "commit" => self.checksum = value,
                "keep-git-dir" => self.keep_git_dir = Some(boolean(&value)?),
                "submodules" => self.submodules = Some(boolean(&value)?),
                other => return Err(format!("unexpected query {other:?}")),
            }
        }
        if !tag.is_empty() && !branch.is_empty() {
            return Err("branch conflicts with tag".into());
        }
        for name in [tag, branch] {
            if !name.is_empty() {
                set(&mut self.reference, name, "ref")?;
            }
        }
        if self.reference.is_empty() {
            self.reference.clone_from(&self.checksum);
        }
        // These are words for git's and ssh's command lines, where an option begins like that (CVE-2017-1000117).
        let user = self.remote.split_once('@').map_or("", |(user, _)| user);
        let user = user.rsplit_once('/').map_or(user, |(_, user)| user);
        if self.id.starts_with('-') || user.starts_with('-') || self.remote.contains(char::is_control) {
            return Err(format!("invalid git remote {:?}", self.remote));
        }
        if [&self.reference, &self.checksum].iter().any(|name| name.starts_with('-') || name.contains(char::is_control))
        {
            return Err(format!("invalid git reference {:?}", self.reference));
        }
        self.folder = path::clean(&self.folder).trim_start_matches('/').into();
        Ok(self)
    }

    /// The source that it is.
    pub fn source(&self) -> SourceOp {
        let mut identifier = format!("git://{}", self.id);
        if !self.reference.is_empty() || !self.folder.is_empty() {
            identifier += &format!("#{}", self.reference);
        }
        if !self.folder.is_empty() {
            identifier += &format!(":{}", self.folder);
        }
        let mut attributes = vec![
            ("git.fullurl", self.remote.as_str()),
            ("git.authtokensecret", "GIT_AUTH_TOKEN"),
            ("git.authheadersecret", "GIT_AUTH_HEADER"),
        ];
        if self.keep_git_dir == Some(true) {
            attributes.push(("git.keepgitdir", "true"));
        }
        if self.ssh {
            attributes.push(("git.mountsshsock", "default"));
        }
        if !self.checksum.is_empty() {
            attributes.push(("git.checksum", &self.checksum));
        }
        if self.submodules == Some(false) {
            attributes.push(("git.skipsubmodules", "true"));
        }
        let attrs = attributes.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        SourceOp { identifier, attrs }
    }
}

fn set(field: &mut String, value: String, name: &str) -> Result<(), String> {
    if !field.is_empty() && *field != value {
        return Err(format!("{name} conflicts: {field:?} vs {value:?}"));
    }
    *field = value;
    Ok(())
}

fn prefixed(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.into() } else { format!("{prefix}{name}") }
}

/// `%2f` and `+` of a query.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| (byte as char).to_digit(16);
                let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
                u8::try_from(high * 16 + low).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read() {
        for (text, identifier, url) in [
            ("https://github.com/a/b.git", "git://github.com/a/b.git", "https://github.com/a/b.git"),
            ("https://github.com/a/b.git#main", "git://github.com/a/b.git#main", "https://github.com/a/b.git"),
            (
                "https://github.com/a/b.git#main:sub/x",
                "git://github.com/a/b.git#main:sub/x",
                "https://github.com/a/b.git",
            ),
            ("https://github.com/a/b.git#:sub", "git://github.com/a/b.git#:sub", "https://github.com/a/b.git"),
            ("https://u:p@h:8443/b.git", "git://h:8443/b.git", "https://u:p@h:8443/b.git"),
            ("git://host/x", "git://host/x", "git://host/x"),
            ("ssh://git@host/x", "git://host/x", "ssh://git@host/x"),
            ("git@github.com:a/b.git#v1", "git://github.com/a/b.git#v1", "git@github.com:a/b.git"),
            ("https://h/b.git?tag=v1&subdir=d", "git://h/b.git#refs/tags/v1:d", "https://h/b.git"),
            ("https://h/b.git?branch=a%2fb", "git://h/b.git#refs/heads/a/b", "https://h/b.git"),
            ("https://h/b.git?checksum=abcdef", "git://h/b.git#abcdef", "https://h/b.git"),
            ("https://h/b.git#x:../../etc", "git://h/b.git#x:etc", "https://h/b.git"),
        ] {
            let source = GitRef::parse(text).unwrap().unwrap().source();
            assert_eq!(source.identifier, identifier);
            assert_eq!(source.attrs["git.fullurl"], url);
        }
        for text in ["https://h/file.tar", "./a.git", "a/b.git", "ftp://h/x.git", "file", "github.com/a/b", "http://h"]
        {
            assert!(GitRef::parse(text).is_none(), "{text}");
        }
        for text in [
            "https://h/b.git?x=1",
            "https://h/b.git?tag=a&branch=b",
            "https://h/b.git?ref=a#b",
            "https://h/b.git?ref",
            "https://h/b.git?ref=a&ref=a",
            "https://h/b.git#--upload-pack=x",
            "https://h/b.git?submodules=maybe",
            "https://h/b.git?checksum=-x",
            "https://h/b.git?ref=a%0ab",
            "ssh://-oProxyCommand=x/b",
            "ssh://-oProxyCommand=x@h/b",
            "-oProxyCommand@h:b",
        ] {
            assert!(GitRef::parse(text).unwrap().is_err(), "{text}");
        }
    }
}
