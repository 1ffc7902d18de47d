//! What of a folder goes along: the patterns of moby's patternmatcher, with what was found of the folder above.

use super::FileError;

/// Patterns to include and to exclude; without any, all is wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    tokens: Vec<Token>,
    /// Begins with `!`: takes back.
    negated: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Char(char),
    /// `?`
    One,
    /// `*`
    Some,
    /// `**` with whatever follows.
    All,
    /// `**/`: any number of folders.
    Folders,
    /// Ranges, and whether these are what isn't meant.
    Class(Vec<(char, char)>, bool),
}

/// What the patterns say of a path, and what that means for those below.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    include: Option<Vec<bool>>,
    exclude: Option<Vec<bool>>,
    included: bool,
    excluded: bool,
    all: bool,
}

impl Verdict {
    /// Whether the path itself goes along.
    pub fn is_wanted(&self) -> bool {
        self.all || (self.included && !self.excluded)
    }
}

impl Filter {
    /// Reads patterns.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, FileError> {
        let read = |patterns: &[String], what: &str| {
            let failed = || FileError::Invalid(format!("invalid {what}patterns: [{}]", patterns.join(" ")));
            let given = patterns.iter().map(|pattern| pattern.trim()).filter(|pattern| !pattern.is_empty());
            given.map(|pattern| Pattern::parse(pattern).ok_or_else(failed)).collect::<Result<Vec<_>, _>>()
        };
        Ok(Self { include: read(include, "include")?, exclude: read(exclude, "exclude")? })
    }

    /// Whether nothing is left out.
    pub fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    /// What is said of a path, by its parts; `above` of the folder that it is in.
    pub fn look(&self, path: &[Vec<u8>], above: &Verdict) -> Verdict {
        if self.is_empty() {
            return Verdict { all: true, ..Verdict::default() };
        }
        let text = String::from_utf8_lossy(&path.join(&b'/')).into_owned();
        let (included, include) = look(&self.include, &text, above.include.as_deref());
        let (excluded, exclude) = look(&self.exclude, &text, above.exclude.as_deref());
        let included = included || self.include.is_empty();
        Verdict { include: Some(include), exclude: Some(exclude), included, excluded, all: false }
    }

    /// Whether something below a folder that doesn't go along itself may.
    pub fn may_have_more(&self, _path: &[Vec<u8>], verdict: &Verdict) -> bool {
        // Left out as a whole, unless something is taken back.
        !verdict.excluded || self.exclude.iter().any(|pattern| pattern.negated)
    }
}

fn look(patterns: &[Pattern], path: &str, above: Option<&[bool]>) -> (bool, Vec<bool>) {
    let mut matched = false;
    let mut results = Vec::with_capacity(patterns.len());
    for (at, pattern) in patterns.iter().enumerate() {
        let mut fits = above.and_then(|above| above.get(at)).copied().unwrap_or(false);
        if !fits && pattern.negated == matched {
            fits = pattern.fits(path);
        }
        results.push(fits);
        if fits {
            matched = !pattern.negated;
        }
    }
    (matched, results)
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let cleaned = clean(text);
        let (negated, text) = match cleaned.strip_prefix('!') {
            Some("") => return None,
            Some(rest) => (true, rest),
            None => (false, cleaned.as_str()),
        };
        // As filepath.Match reads it, whose errors these are.
        super::paths::go_match(text.as_bytes(), b"")?;
        let chars: Vec<char> = text.chars().collect();
        let (mut tokens, mut at) = (Vec::new(), 0);
        while at < chars.len() {
            match chars[at] {
                '*' if chars.get(at + 1) == Some(&'*') => {
                    at += 2;
                    if chars.get(at) == Some(&'/') {
                        at += 1;
                    }
                    tokens.push(if at == chars.len() { Token::All } else { Token::Folders });
                    continue;
                }
                '*' => tokens.push(Token::Some),
                '?' => tokens.push(Token::One),
                '\\' => {
                    at += 1;
                    tokens.push(Token::Char(*chars.get(at)?));
                }
                '[' => {
                    let (class, next) = class(&chars, at + 1)?;
                    tokens.push(class);
                    at = next;
                    continue;
                }
                c => tokens.push(Token::Char(c)),
            }
            at += 1;
        }
        Some(Self { tokens, negated })
    }

    fn fits(&self, path: &str) -> bool {
        let path: Vec<char> = path.chars().collect();
        // Which places of the path can be reached by the tokens so far.
        let mut reached = vec![false; path.len() + 1];
        reached[0] = true;
        for token in &self.tokens {
            let mut next = vec![false; path.len() + 1];
            for at in (0..=path.len()).filter(|at| reached[*at]) {
                match token {
                    Token::All => next[at..].fill(true),
                    Token::Some => {
                        let end = path[at..].iter().position(|c| *c == '/').map_or(path.len(), |length| at + length);
                        next[at..=end].fill(true);
                    }
                    Token::Folders => {
                        next[at] = true;
                        (at..path.len()).filter(|end| path[*end] == '/').for_each(|end| next[end + 1] = true);
                    }
                    one => {
                        let fits = path.get(at).is_some_and(|c| match one {
                            Token::Char(wanted) => wanted == c,
                            Token::Class(ranges, negated) => {
                                ranges.iter().any(|(low, high)| low <= c && c <= high) != *negated
                            }
                            _ => *c != '/',
                        });
                        if fits {
                            next[at + 1] = true;
                        }
                    }
                }
            }
            reached = next;
        }
        reached[path.len()]
    }
}

fn class(chars: &[char], mut at: usize) -> Option<(Token, usize)> {
    let negated = chars.get(at) == Some(&'^');
    at += usize::from(negated);
    let mut ranges = Vec::new();
    let literal = |at: usize| match chars.get(at)? {
        '\\' => Some((*chars.get(at + 1)?, at + 2)),
        c => Some((*c, at + 1)),
    };
    loop {
        if chars.get(at) == Some(&']') && !ranges.is_empty() {
            return Some((Token::Class(ranges, negated), at + 1));
        }
        let (low, next) = literal(at)?;
        let (mut high, mut after) = (low, next);
        if chars.get(next) == Some(&'-') {
            (high, after) = literal(next + 1)?;
        }
        ranges.push((low, high));
        at = after;
    }
}

/// Go's filepath.Clean.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.join("/")) {
        (true, joined) => format!("/{joined}"),
        (false, joined) if joined.is_empty() => ".".into(),
        (false, joined) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(include: &[&str], exclude: &[&str], path: &str) -> bool {
        let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let filter = Filter::new(&owned(include), &owned(exclude)).unwrap();
        let parts: Vec<Vec<u8>> = path.split('/').map(|part| part.as_bytes().to_vec()).collect();
        let mut verdict = Verdict::default();
        for end in 1..=parts.len() {
            verdict = filter.look(&parts[..end], &verdict);
        }
        verdict.is_wanted()
    }

    #[test]
    fn as_patternmatcher_does() {
        for (include, exclude, path, expected) in [
            (&[][..], &[][..], "a/b", true),
            (&[], &["a"], "a/b", false),
            (&[], &["*.md"], "a/b.md", true),
            (&[], &["**/*.md"], "a/b.md", false),
            (&[], &["**/*.md"], "b.md", false),
            (&[], &["*.md", "!README.md"], "README.md", true),
            (&[], &["*", "!a/b"], "a/b", true),
            (&[], &["*", "!a/b"], "a/c", false),
            (&[], &["a/**"], "a", true),
            (&[], &["a/**"], "a/b/c", false),
            (&[], &["a/*/c"], "a/b/c/d", false),
            (&[], &["./a/"], "a", false),
            (&[], &["b[^c]"], "bd", false),
            (&[], &["b[^c]"], "bc", true),
            (&["a/*/c"], &[], "a/b", false),
            (&["a/*/c"], &[], "a/b/c", true),
            (&["a/*/c"], &[], "a/b/c/d", true),
            (&["**/x"], &["y"], "y/x", false),
            (&["a", "!a/b"], &[], "a/b", false),
        ] {
            assert_eq!(wanted(include, exclude, path), expected, "{include:?} {exclude:?} {path}");
        }
        for bad in ["[", "a[", "!", "a\\"] {
            assert!(Filter::new(&[], &[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
