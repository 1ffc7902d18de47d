//! Patterns of `.dockerignore`, and of what is included: moby/patternmatcher's rules.
//!
//! Later patterns overrule earlier ones, `!` takes back; a pattern that matches a folder holds for all below it. `*` and `?` stop
//! at slashes, `**` doesn't. The file is read by [`read_ignore_file`].

use std::path::{Component, Path};

/// An ignore file may have these many bytes.
pub const MOST_BYTES: usize = 4 << 20;
/// And these many patterns; each is tried on each file.
pub const MOST_PATTERNS: usize = 10_000;

/// Why patterns aren't taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `!` alone.
    #[error("illegal exclusion pattern: \"!\"")]
    Exclusion,
    /// As Go's filepath.Match has it.
    #[error("{0}: syntax error in pattern")]
    Syntax(String),
    /// More than anybody writes.
    #[error("{0}")]
    Limit(String),
}

/// The patterns of an ignore file: without comments, empty lines, and slashes at the front.
pub fn read_ignore_file(content: &[u8]) -> Result<Vec<String>, PatternError> {
    if content.len() > MOST_BYTES {
        let size = content.len();
        return Err(PatternError::Limit(format!("an ignore file of {size} bytes is larger than {MOST_BYTES}")));
    }
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let mut patterns = Vec::new();
    for line in content.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line);
        // Only at the very start of a line.
        if line.starts_with('#') {
            continue;
        }
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (not, pattern) = line.strip_prefix('!').map_or(("", line), |rest| ("!", rest.trim()));
        let pattern = if pattern.is_empty() { String::new() } else { clean(pattern) };
        let pattern = if pattern.len() > 1 { pattern.strip_prefix('/').unwrap_or(&pattern) } else { &pattern };
        patterns.push(format!("{not}{pattern}"));
    }
    Ok(patterns)
}

/// What Go's filepath.Clean makes of a path.
pub fn clean(path: &str) -> String {
    let absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => drop(parts.pop()),
                _ if absolute => {}
                _ => parts.push(".."),
            },
            _ => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (absolute, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".into(),
        (false, false) => joined,
    }
}

/// A list of patterns.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
    has_exceptions: bool,
    /// Whether these are paths, or all that is below paths: then what they can match is known without looking.
    plain_includes: bool,
    plain_exceptions: bool,
}

/// What is known of a folder: which patterns matched it. The start of everything below.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matched(Vec<bool>);

#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    exception: bool,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    Exact,
    /// `**x` with nothing special in x: an end of a path, or `/x` all of it.
    Suffix(String),
    Glob(Vec<Token>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Literal(char),
    /// `?`
    One,
    /// `*`
    Some,
    /// `**` and `**/`: nothing, or anything up to a slash.
    Folders,
    /// `**` at the end.
    Rest,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Patterns {
    /// Reads patterns; empty ones are none.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Self, PatternError> {
        if patterns.len() > MOST_PATTERNS {
            let count = patterns.len();
            return Err(PatternError::Limit(format!("{count} patterns are more than the {MOST_PATTERNS} allowed")));
        }
        let mut all = Vec::with_capacity(patterns.len());
        for text in patterns {
            let text = text.as_ref().trim();
            if text.is_empty() {
                continue;
            }
            let cleaned = clean(text);
            let (exception, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(PatternError::Exclusion),
                Some(rest) => (true, rest.to_owned()),
                None => (false, cleaned),
            };
            let matcher = compile(&text).ok_or_else(|| PatternError::Syntax(text.clone()))?;
            all.push(Pattern { text, exception, matcher });
        }
        let plain = |exception| {
            all.iter()
                .filter(|p: &&Pattern| p.exception == exception)
                .all(|p| !p.prefix().contains(['*', '[', ']', '?', '^', '\\']))
        };
        let (plain_includes, plain_exceptions) = (plain(false), plain(true));
        Ok(Self { has_exceptions: all.iter().any(|p| p.exception), patterns: all, plain_includes, plain_exceptions })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a path, or a folder that it is in, matches.
    pub fn matches(&self, path: &str) -> bool {
        self.matches_below(path, None).0
    }

    /// The same when what is known of the path's folder is at hand; what is known of the path, to go on with.
    pub fn matches_below(&self, path: &str, folder: Option<&Matched>) -> (bool, Matched) {
        let mut matched = false;
        let mut known = vec![false; self.patterns.len()];
        for (i, pattern) in self.patterns.iter().enumerate() {
            let mut hit = folder.is_some_and(|folder| folder.0.get(i).copied().unwrap_or_default());
            if !hit {
                // One that can't change anything isn't tried.
                if pattern.exception != matched {
                    continue;
                }
                hit = pattern.matches(path) || (folder.is_none() && parents(path).any(|p| pattern.matches(p)));
            }
            known[i] = hit;
            if hit {
                matched = !pattern.exception;
            }
        }
        (matched, Matched(known))
    }

    /// For patterns of what is included: whether anything below a folder, which itself isn't, may be.
    pub fn may_include_below(&self, folder: &str) -> bool {
        !self.plain_includes || self.leads_below(folder, false)
    }

    /// For patterns of what is excluded: whether anything below a folder, which itself is, may be taken back.
    pub fn may_except_below(&self, folder: &str) -> bool {
        self.has_exceptions && (!self.plain_exceptions || self.leads_below(folder, true))
    }

    fn leads_below(&self, folder: &str, exception: bool) -> bool {
        let slashed = format!("{folder}/");
        let mut those = self.patterns.iter().filter(|p| p.exception == exception);
        those.any(|p| format!("{}/", p.prefix()).starts_with(&slashed))
    }
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.char_indices().filter(|(i, c)| *c == '/' && *i > 0).map(|(i, _)| &path[..i])
}

impl Pattern {
    /// Without what stands at its end for all below a folder.
    fn prefix(&self) -> &str {
        let text = self.text.strip_suffix("/**").unwrap_or(&self.text);
        text.strip_suffix("/*").unwrap_or(text)
    }

    fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::Exact => path == self.text,
            Matcher::Suffix(suffix) => {
                path.ends_with(suffix.as_str()) || suffix.strip_prefix('/').is_some_and(|whole| path == whole)
            }
            Matcher::Glob(tokens) => glob(tokens, &path.chars().collect::<Vec<_>>()),
        }
    }
}

/// Tokens of a pattern; nothing if it is wrong.
fn compile(pattern: &str) -> Option<Matcher> {
    check(pattern)?;
    let chars: Vec<char> = pattern.chars().collect();
    let mut tokens = Vec::with_capacity(chars.len());
    let mut special = false;
    let mut at = 0;
    let mut suffix_at = None;
    while at < chars.len() {
        let first = at == 0;
        match chars[at] {
            '*' if chars.get(at + 1) == Some(&'*') => {
                at += 2;
                let after = at;
                if chars.get(at) == Some(&'/') {
                    at += 1;
                }
                if at == chars.len() {
                    tokens.push(Token::Rest);
                } else {
                    tokens.push(Token::Folders);
                }
                if first {
                    suffix_at = Some(after);
                } else {
                    special = true;
                }
                continue;
            }
            '*' => {
                special = true;
                tokens.push(Token::Some);
            }
            '?' => {
                special = true;
                tokens.push(Token::One);
            }
            '\\' => {
                special = true;
                at += 1;
                tokens.push(Token::Literal(*chars.get(at)?));
            }
            '[' => {
                special = true;
                let (class, next) = class(&chars, at + 1)?;
                tokens.push(class);
                at = next;
                continue;
            }
            literal => tokens.push(Token::Literal(literal)),
        }
        at += 1;
    }
    Some(match suffix_at {
        _ if special => Matcher::Glob(tokens),
        Some(after) => Matcher::Suffix(chars[after..].iter().collect()),
        None => Matcher::Exact,
    })
}

/// `[a-z]` from behind its bracket, and where it ends.
fn class(chars: &[char], mut at: usize) -> Option<(Token, usize)> {
    let negated = chars.get(at) == Some(&'^');
    if negated {
        at += 1;
    }
    let mut ranges = Vec::new();
    let one = |at: usize| -> Option<(char, usize)> {
        match chars.get(at)? {
            '-' | ']' => None,
            '\\' => chars.get(at + 1).map(|c| (*c, at + 2)),
            c => Some((*c, at + 1)),
        }
    };
    loop {
        if chars.get(at) == Some(&']') && !ranges.is_empty() {
            return Some((Token::Class { negated, ranges }, at + 1));
        }
        let (low, next) = one(at)?;
        at = next;
        let mut high = low;
        if chars.get(at) == Some(&'-') {
            (high, at) = one(at + 1)?;
        }
        ranges.push((low, high));
    }
}

/// What Go's filepath.Match finds wrong: brackets that don't end, a backslash with nothing behind it.
fn check(pattern: &str) -> Option<()> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        match chars[at] {
            '[' => (_, at) = class(&chars, at + 1)?,
            '\\' => {
                chars.get(at + 1)?;
                at += 2;
            }
            _ => at += 1,
        }
    }
    Some(())
}

/// Whether tokens match a path. Each position of a token is looked at once for each position of the path: no pattern is slow.
fn glob(tokens: &[Token], path: &[char]) -> bool {
    // reachable[i]: the tokens so far can have taken i characters.
    let mut reachable = vec![false; path.len() + 1];
    reachable[0] = true;
    for token in tokens {
        let mut next = vec![false; path.len() + 1];
        match token {
            Token::Rest => {
                let from = reachable.iter().position(|r| *r);
                if let Some(from) = from {
                    next[from..].fill(true);
                }
            }
            Token::Some => {
                let mut open = false;
                for i in 0..=path.len() {
                    open = reachable[i] || (open && path[i - 1] != '/');
                    next[i] = open;
                }
            }
            Token::Folders => {
                let mut open = false;
                for i in 0..=path.len() {
                    next[i] = reachable[i] || (open && path[i - 1] == '/');
                    open |= reachable[i];
                }
            }
            Token::One | Token::Literal(_) | Token::Class { .. } => {
                for (i, c) in path.iter().enumerate() {
                    let takes = match token {
                        Token::One => *c != '/',
                        Token::Literal(literal) => c == literal,
                        Token::Class { negated, ranges } => {
                            ranges.iter().any(|(low, high)| (low..=high).contains(&c)) != *negated
                        }
                        _ => false,
                    };
                    next[i + 1] = reachable[i] && takes;
                }
            }
        }
        reachable = next;
    }
    reachable[path.len()]
}

/// Whether a path is one that a sender may name: relative, clean, nothing that leads up.
pub(crate) fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\0')
        && !path.ends_with('/')
        && !path.contains("//")
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
        && path.split('/').all(|part| part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(patterns: &[&str], path: &str) -> bool {
        Patterns::new(patterns).unwrap().matches(path)
    }

    #[test]
    fn single_patterns() {
        let cases = [
            ("a", "a", true),
            ("a", "a/b/c", true),
            ("a/", "a/b", true),
            ("a", "ab", false),
            ("a", "b/a", false),
            ("/a", "a", false),
            ("*", "a/b", true),
            ("*.go", "x.go", true),
            ("*.go", "d/x.go", false),
            ("*/*.go", "d/x.go", true),
            ("**", "file", true),
            ("**", "a/b", true),
            ("**/", "a/b", true),
            ("dir/**", "dir", false),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/a/b", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/dir2/file", true),
            ("**/dir2/**", "dir/dir2/a/b", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**file", "dir/xfile", true),
            ("**/file", "dir/xfile", false),
            ("**/file", "file", true),
            ("**/file/*.txt", "file/a.txt", true),
            ("**/**/*.txt", "d/e/file.txt", true),
            ("**/**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/d/file.txt", true),
            ("a/*.txt", "a/d/file.txt", false),
            ("a[b-d]e", "ace", true),
            ("a[b-d]e", "aae", false),
            ("a[^b-d]e", "aze", true),
            ("abc.def", "abcdef", false),
            ("abc?def", "abcZdef", true),
            ("abc?def", "abc/def", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a\\b", "ab", true),
            ("**/foo/bar", "foo/bar", true),
            ("**/foo/bar", "dir/dir2/foo/bar", true),
            ("abc/**", "abc/def/ghi", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abc.def", true),
            ("**/.foo", "bar/.foo", true),
            ("a(b)c/def", "a(b)c/def", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("./a", "a", true),
            ("a/../b", "b", true),
            ("süß*", "süßer", true),
            ("..", "a", false),
        ];
        for (pattern, path, expected) in cases {
            assert_eq!(matches(&[pattern], path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn lists_and_exceptions() {
        let cases: &[(&[&str], &str, bool)] = &[
            (&["docs", "!docs/README.md"], "docs/README.md", false),
            (&["docs", "!docs/README.md"], "docs/x", true),
            (&["!docs/README.md", "docs"], "docs/README.md", true),
            (&["*", "!src"], "src/main.rs", false),
            (&["*", "!src", "src/*.o"], "src/x.o", true),
            (&["**", "!util/docker/web"], "util/docker/web/foo", false),
            (&["**", "!util/docker/web", "util/docker/web/foo"], "util/docker/web/foo", true),
            (&["a", "!a/b", "a/b/c"], "a/b/d", false),
            (&["a", "!a/b", "a/b/c"], "a/b/c", true),
            (&["*.md", "!README*.md", "README-secret.md"], "README-secret.md", true),
            (&["*.md", "!README*.md", "README-secret.md"], "README-x.md", false),
            (&[], "x", false),
            (&["  ", ""], "x", false),
        ];
        for (patterns, path, expected) in cases {
            assert_eq!(matches(patterns, path), *expected, "{patterns:?} {path}");
        }
    }

    #[test]
    fn wrong_patterns() {
        for pattern in ["[", "a[", "[]", "[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "a\\", "[^", "[^bc"] {
            assert_eq!(Patterns::new(&[pattern]).unwrap_err(), PatternError::Syntax(clean(pattern)), "{pattern}");
        }
        assert_eq!(Patterns::new(&["!"]).unwrap_err(), PatternError::Exclusion);
        let many = vec!["x"; MOST_PATTERNS + 1];
        assert!(matches!(Patterns::new(&many), Err(PatternError::Limit(_))));
    }

    #[test]
    fn what_is_known_of_a_folder_gives_the_same() {
        let lists: &[&[&str]] =
            &[&["a", "!a/b", "a/b/c"], &["**/x", "!a/**", "a/x/y"], &["*", "!a/*/c"], &["a/b/*", "!a/b/x", "**/y"]];
        let paths = ["a", "a/b", "a/b/c", "a/b/x", "a/x", "a/x/y", "x", "x/y", "a/b/c/d", "z/y"];
        for list in lists {
            let patterns = Patterns::new(list).unwrap();
            for path in paths {
                let mut known = None;
                for folder in parents(path) {
                    known = Some(patterns.matches_below(folder, known.as_ref()).1);
                }
                let stepwise = patterns.matches_below(path, known.as_ref()).0;
                assert_eq!(stepwise, patterns.matches(path), "{list:?} {path}");
            }
        }
    }

    #[test]
    fn folders_worth_a_walk() {
        let ignore = Patterns::new(&["a", "b", "!a/x/y"]).unwrap();
        let cases = [("a", true), ("a/x", true), ("a/x/y", true), ("a/z", false), ("b", false)];
        for (folder, expected) in cases {
            assert_eq!(ignore.may_except_below(folder), expected, "{folder}");
        }
        assert!(Patterns::new(&["a", "!**/y"]).unwrap().may_except_below("a/b"));
        let include = Patterns::new(&["src/lib/*", "doc/**"]).unwrap();
        for (folder, expected) in [("src", true), ("src/lib", true), ("doc", true), ("doc/x", false), ("srcs", false)] {
            assert_eq!(include.may_include_below(folder), expected, "{folder}");
        }
        assert!(Patterns::new(&["*.rs"]).unwrap().may_include_below("x"));
    }

    #[test]
    fn ignore_files() {
        let text = b"\xef\xbb\xbf# comment\r\ntest1\r\n/test2\n/a/file/here\n\n # not one\nlast/\n! /inverted/abs/path\n!\n! \n/\n./x/../y";
        let expected = ["test1", "test2", "a/file/here", "# not one", "last", "!inverted/abs/path", "!", "!", "/", "y"];
        assert_eq!(read_ignore_file(text).unwrap(), expected);
        assert_eq!(read_ignore_file(b"").unwrap(), Vec::<String>::new());
        assert!(read_ignore_file(&vec![b'x'; MOST_BYTES + 1]).is_err());
    }

    #[test]
    fn no_pattern_is_slow() {
        let begun = std::time::Instant::now();
        let pattern = "*a".repeat(200);
        assert!(!matches(&[&pattern], &"a".repeat(199)));
        assert!(
            !matches(&[&"**/".repeat(100), &format!("{}b", "**/a/".repeat(50))], &"a/".repeat(400))
                || begun.elapsed().as_secs() < 5
        );
        assert!(begun.elapsed().as_secs() < 5);
    }

    #[test]
    fn paths_that_senders_may_name() {
        for path in ["a", "a/b", "a b", "..a", "a/..b", "süß", "\\"] {
            assert!(is_plain(path), "{path}");
        }
        for path in ["", "/", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "a/./b", "./a", "a\0b"] {
            assert!(!is_plain(path), "{path:?}");
        }
    }
}
