//! Names of image records, and what they mean to Docker: tags, digests, or nothing for untagged images.

use proto::{digest::Digest, image_ref::ImageRef};

/// Before the digest in the names of records that only keep an image which has no name (any more). The supervisor's loads
/// name them the same, so that an image has one such record.
const UNTAGGED: &str = "import@";
/// The label of these records.
pub const UNTAGGED_LABEL: &str = "berth.untagged";

/// What the name of an image record stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordName {
    /// `docker.io/library/nginx:1`
    Tagged(ImageRef),
    /// `docker.io/library/nginx@sha256:…`
    Pinned(ImageRef),
    /// Keeps an image and is not shown.
    Dangling,
}

impl RecordName {
    /// Reads a record's name. Names that aren't references (another client's, or an import without a name) count as
    /// dangling: the image is there, and there is nothing to call it by but its id.
    pub fn parse(name: &str) -> Self {
        if name.starts_with("sha256:") || name.starts_with(UNTAGGED) {
            return Self::Dangling;
        }
        match name.parse::<ImageRef>() {
            Ok(reference) if reference.digest().is_some() => Self::Pinned(reference),
            Ok(reference) if reference.tag().is_some() => Self::Tagged(reference),
            _ => Self::Dangling,
        }
    }

    /// The reference that people use, if there is one.
    pub fn reference(&self) -> Option<&ImageRef> {
        match self {
            Self::Tagged(reference) | Self::Pinned(reference) => Some(reference),
            Self::Dangling => None,
        }
    }
}

/// Name of the record that keeps an image without names; `target` is the digest of its manifest or index.
pub fn dangling_name(target: &str) -> String {
    format!("{UNTAGGED}{target}")
}

/// What a user may mean by a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A whole image id.
    Id(Digest),
    /// A name; `or_prefix` if the same text could be the beginning of an id.
    Name {
        /// With a tag or digest in any case.
        reference: Box<ImageRef>,
        /// Hexadecimal digits that ids may begin with.
        or_prefix: Option<String>,
    },
    /// The beginning of an id, which cannot be a name.
    Prefix(String),
}

impl Wanted {
    /// Sorts out a text from a request; the error is about its form as a name.
    pub fn parse(text: &str) -> Result<Self, proto::image_ref::ImageRefError> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let is_hex = !hex.is_empty() && hex.len() <= 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex
            && hex.len() == 64
            && let Ok(id) = format!("sha256:{hex}").parse()
        {
            return Ok(Self::Id(id));
        }
        if is_hex && hex.len() < text.len() {
            return Ok(Self::Prefix(hex.to_owned()));
        }
        match text.parse::<ImageRef>() {
            Ok(reference) => Ok(Self::Name {
                reference: Box::new(reference.with_default_tag()),
                or_prefix: is_hex.then(|| hex.to_owned()),
            }),
            Err(error) => Err(error),
        }
    }
}

/// How an image that isn't there is called in the answer: complete, as docker does it.
pub fn missing_name(text: &str) -> String {
    match text.parse::<ImageRef>() {
        Ok(reference) if !text.starts_with("sha256:") => reference.with_default_tag().familiar(),
        _ => text.to_owned(),
    }
}

/// Matches a shell pattern as Go's `path.Match` does: `*` and `?` don't match a slash. `None` if the pattern is bad.
pub fn glob(pattern: &str, text: &str) -> Option<bool> {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    // Position in the pattern after the last star, and how much of the text that star has taken.
    let (mut p, mut t, mut star) = (0, 0, None);
    loop {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p + 1, t));
            p += 1;
            continue;
        }
        if t == text.len() && p == pattern.len() {
            return Some(true);
        }
        let step = if p < pattern.len() { one(&pattern[p..], text.get(t).copied())? } else { (false, 0) };
        if step.0 {
            p += step.1;
            t += 1;
            continue;
        }
        match star {
            // The star takes one character more, unless that is a slash or the end.
            Some((after, taken)) if taken < text.len() && text[taken] != '/' => {
                (p, t, star) = (after, taken + 1, Some((after, taken + 1)));
            }
            // Malformed even where it isn't reached, as in Go.
            _ => return well_formed(&pattern[p..]).then_some(false),
        }
    }
}

// Whether the first element of the pattern matches the character, and how long the element is.
fn one(pattern: &[char], c: Option<char>) -> Option<(bool, usize)> {
    match pattern[0] {
        '?' => Some((c.is_some_and(|c| c != '/'), 1)),
        '\\' => {
            let escaped = *pattern.get(1)?;
            Some((c == Some(escaped), 2))
        }
        '[' => {
            let negated = pattern.get(1) == Some(&'^');
            let (mut at, mut found, mut first) = (1 + usize::from(negated), false, true);
            loop {
                if *pattern.get(at)? == ']' && !first {
                    let hit = c.is_some_and(|c| c != '/' && found != negated);
                    return Some((hit, at + 1));
                }
                first = false;
                let low = class_char(pattern, &mut at)?;
                let high = if pattern.get(at) == Some(&'-') {
                    at += 1;
                    class_char(pattern, &mut at)?
                } else {
                    low
                };
                found |= c.is_some_and(|c| low <= c && c <= high);
            }
        }
        literal => Some((c == Some(literal), 1)),
    }
}

fn class_char(pattern: &[char], at: &mut usize) -> Option<char> {
    let mut c = *pattern.get(*at)?;
    if c == '-' || c == ']' {
        return None;
    }
    if c == '\\' {
        *at += 1;
        c = *pattern.get(*at)?;
    }
    *at += 1;
    Some(c)
}

fn well_formed(mut pattern: &[char]) -> bool {
    while let Some(&first) = pattern.first() {
        let length = if first == '*' { Some(1) } else { one(pattern, None).map(|(_, length)| length) };
        match length {
            Some(length) => pattern = &pattern[length..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_of_records() {
        assert!(matches!(RecordName::parse("docker.io/library/a:1"), RecordName::Tagged(_)));
        assert!(matches!(RecordName::parse(&format!("docker.io/library/a@{D}")), RecordName::Pinned(_)));
        for dangling in [D, &dangling_name(D), "docker.io/library/a", "Not A Name", ""] {
            assert_eq!(RecordName::parse(dangling), RecordName::Dangling, "{dangling}");
        }
    }

    #[test]
    fn what_texts_mean() {
        let name = |text: &str| match Wanted::parse(text) {
            Ok(Wanted::Name { reference, or_prefix }) => (reference.to_string(), or_prefix),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(Wanted::parse(D), Ok(Wanted::Id(D.parse().unwrap())));
        assert_eq!(Wanted::parse(&D[7..]), Ok(Wanted::Id(D.parse().unwrap())));
        assert_eq!(Wanted::parse("sha256:e3b0"), Ok(Wanted::Prefix("e3b0".into())));
        assert_eq!(name("e3b0"), ("docker.io/library/e3b0:latest".into(), Some("e3b0".into())));
        assert_eq!(name("nginx"), ("docker.io/library/nginx:latest".into(), None));
        assert_eq!(name("a/b:c"), ("docker.io/a/b:c".into(), None));
        assert!(Wanted::parse("Nginx").is_err() && Wanted::parse("").is_err());
        assert_eq!(missing_name("nope"), "nope:latest");
        assert_eq!(missing_name("docker.io/library/nope:1"), "nope:1");
        assert_eq!(missing_name(D), D);
    }

    #[test]
    fn patterns() {
        let cases = [
            ("busybox", "busybox", Some(true)),
            ("busy*", "busybox", Some(true)),
            ("busy*", "busybox/x", Some(false)),
            ("*/app", "team/app", Some(true)),
            ("*", "team/app", Some(false)),
            ("b?x", "box", Some(true)),
            ("b[a-m]x", "box", Some(false)),
            ("b[^a-m]x", "box", Some(true)),
            ("a*b*c", "aXbYbZc", Some(true)),
            ("a*b*c", "aXbYbZ", Some(false)),
            ("a\\*", "a*", Some(true)),
            ("", "", Some(true)),
            ("", "a", Some(false)),
            ("[", "a", None),
            ("b[", "a", None),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(glob(pattern, text), expected, "{pattern} on {text}");
        }
    }

    proptest! {
        #[test]
        fn glob_never_panics_and_ends(pattern in "[a-c*?\\[\\]\\\\^/-]{0,12}", text in "[a-c/]{0,12}") {
            let _ = glob(&pattern, &text);
        }

        #[test]
        fn every_text_means_something_or_is_refused(text in ".{0,80}") {
            let _ = Wanted::parse(&text);
            let _ = RecordName::parse(&text);
            let _ = missing_name(&text);
        }
    }
}
