//! Image references as people write them (`nginx`, `reg:5000/team/app:1@sha256:…`) and as stores keep them
//! (`docker.io/library/nginx:latest`). Grammar: distribution `reference`, with docker's defaults.

use crate::digest::{Digest, DigestError};
use std::{fmt, str::FromStr};

/// The registry that a name without a host means.
const DEFAULT_DOMAIN: &str = "docker.io";

/// A checked, complete reference: domain, repository path, and tag or digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageRefError {
    /// Not in the grammar; docker's words, which scripts know.
    #[error("invalid reference format: {0:?}")]
    Format(String),
    /// Upper-case letters in the repository.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// Too long for registries.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// What follows the `@`.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// Whether a registry's host, with or without a port, is this machine: such a one speaks plain HTTP unless told otherwise, as
/// docker takes for granted for `localhost`, 127.0.0.0/8 and `::1`.
pub fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl ImageRef {
    /// Registry host with its port, `docker.io` if none was written.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Repository path within the registry, `library/` included.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was written or filled in.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Domain and path: `docker.io/library/nginx`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as people write it: `nginx`, `team/app`, `reg:5000/app`.
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix("library/") {
            Some(rest) if !rest.contains('/') => rest.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as people write it: `nginx:latest`.
    pub fn familiar(&self) -> String {
        self.suffixed(self.familiar_repository())
    }

    /// The same, with `latest` where there is neither tag nor digest.
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same repository under another tag.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ImageRefError> {
        if !is_tag(tag) {
            return Err(ImageRefError::Format(format!("{}:{tag}", self.familiar_repository())));
        }
        Ok(Self { tag: Some(tag.to_owned()), digest: None, ..self.clone() })
    }

    /// The same repository pinned to a digest, without tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    fn suffixed(&self, mut text: String) -> String {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
        text
    }
}

fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && tag
            .bytes()
            .enumerate()
            .all(|(i, b)| b.is_ascii_alphanumeric() || b == b'_' || (i > 0 && matches!(b, b'.' | b'-')))
}

// host[:port], or [IPv6][:port]
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((inner, tail)) if !inner.is_empty() && inner.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') => {
                match tail.strip_prefix(':') {
                    Some(port) => ("v6", Some(port)),
                    None if tail.is_empty() => ("v6", None),
                    None => return false,
                }
            }
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label)
        && port.is_none_or(|p| !p.is_empty() && p.len() <= 5 && p.bytes().all(|b| b.is_ascii_digit()))
}

// Lower-case letters and digits, with '.', '_', '__' or dashes between them.
fn is_path_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(word) || !bytes.last().is_some_and(word) {
        return false;
    }
    let mut separators = bytes.split(|b| word(b)).filter(|s| !s.is_empty());
    separators.all(|s| s == b"." || s == b"_" || s == b"__" || s.iter().all(|b| *b == b'-'))
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        let format = || ImageRefError::Format(text.chars().take(300).collect());
        if text.len() > 600 || text.is_empty() {
            return Err(format());
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse()?)),
            None => (text, None),
        };
        // The tag's colon comes after the last slash; one before it belongs to a port.
        let slash = name.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match name[slash..].find(':') {
            Some(at) => (&name[..slash + at], Some(&name[slash + at + 1..])),
            None => (name, None),
        };
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(format());
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.bytes().any(|b| b.is_ascii_uppercase()) =>
            {
                (first, rest)
            }
            _ => (DEFAULT_DOMAIN, name),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN } else { domain };
        if !is_domain(domain) {
            return Err(format());
        }
        let path =
            if domain == DEFAULT_DOMAIN && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        if !path.split('/').all(is_path_component) {
            let lower = path.to_ascii_lowercase();
            return Err(if lower != path && lower.split('/').all(is_path_component) {
                ImageRefError::Uppercase(name.to_owned())
            } else {
                format()
            });
        }
        if domain.len() + 1 + path.len() > 255 {
            return Err(ImageRefError::TooLong);
        }
        // 64 hex digits without a repository are an image id, never a name.
        if domain == DEFAULT_DOMAIN && name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format());
        }
        Ok(Self { domain: domain.to_owned(), path, tag: tag.map(str::to_owned), digest })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.suffixed(self.repository()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for local in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.3.2.1", "[::1]:5000"] {
            assert!(is_local(local), "{local}");
        }
        for remote in ["localhost.example.com", "127.0.0.1.example.com", "10.0.0.1:5000", "[::2]:5000", "example.com"] {
            assert!(!is_local(remote), "{remote}");
        }
    }
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn complete_and_familiar_forms() {
        let cases = [
            ("nginx", "docker.io/library/nginx", "nginx"),
            ("nginx:1.27", "docker.io/library/nginx:1.27", "nginx:1.27"),
            ("team/app", "docker.io/team/app", "team/app"),
            ("docker.io/nginx", "docker.io/library/nginx", "nginx"),
            ("index.docker.io/library/nginx:x", "docker.io/library/nginx:x", "nginx:x"),
            ("localhost/app", "localhost/app", "localhost/app"),
            ("127.0.0.1:5000/a/b_c:t", "127.0.0.1:5000/a/b_c:t", "127.0.0.1:5000/a/b_c:t"),
            ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
            ("a--b/c__d.e", "docker.io/a--b/c__d.e", "a--b/c__d.e"),
        ];
        for (text, complete, familiar) in cases {
            let reference: ImageRef = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(reference.to_string(), complete);
            assert_eq!(reference.familiar(), familiar);
        }
        let both: ImageRef = format!("reg.example:80/app:1@{D}").parse().unwrap();
        assert_eq!((both.tag(), both.digest().map(|d| d.to_string()).as_deref()), (Some("1"), Some(D)));
        assert_eq!("a".parse::<ImageRef>().unwrap().with_default_tag().familiar(), "a:latest");
    }

    #[test]
    fn refuses() {
        assert_eq!("Nginx".parse::<ImageRef>(), Err(ImageRefError::Uppercase("Nginx".into())));
        let hex = "a".repeat(64);
        for bad in [
            "",
            ":",
            "a:",
            "a@",
            "a@sha256:1",
            "-a",
            "a/",
            "/a",
            "a//b",
            "a..b",
            "a b",
            "a:b:c",
            "a___b",
            "a:-x",
            "reg:99999999/a",
            &hex,
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_complete_form_is_stable(text in "[a-zA-Z0-9:/@._\\-\\[\\]]{0,80}") {
            if let Ok(reference) = text.parse::<ImageRef>() {
                prop_assert_eq!(reference.to_string().parse::<ImageRef>().unwrap(), reference.clone());
                prop_assert_eq!(reference.familiar().parse::<ImageRef>().unwrap(), reference);
            }
        }
    }
}
