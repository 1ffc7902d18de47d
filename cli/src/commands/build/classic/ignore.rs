//! `.dockerignore`: which files of a context are sent. The last pattern that matches a file, or a folder above it, decides.

use crate::commands::cp::{pack::Keep, paths};

/// The patterns of a file.
#[derive(Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    tokens: Vec<Token>,
    text: String,
    /// "!": what matches is sent after all.
    exception: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// `**` followed by a slash: no folder, or any number of them; always followed by the next.
    Folders,
    /// The names of those folders.
    Within,
    /// `**`: anything.
    Anything,
    /// `*`: anything within one name.
    Name,
    /// `?`
    One,
    /// `[a-z]`, and whether it is negated.
    Class(Vec<(char, char)>, bool),
    /// The letter itself.
    Letter(char),
}

/// A pattern that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error checking context: syntax error in pattern {0:?} of .dockerignore")]
pub struct PatternError(String);

impl Ignore {
    /// Reads a `.dockerignore`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let mut patterns = Vec::new();
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let line = line.trim();
            let (exception, rest) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if rest.is_empty() {
                if exception {
                    return Err(PatternError(line.to_owned()));
                }
                continue;
            }
            let cleaned = paths::clean(rest);
            let cleaned = if cleaned.len() > 1 { cleaned.trim_start_matches('/') } else { &cleaned };
            let tokens = tokens(cleaned).ok_or_else(|| PatternError(line.to_owned()))?;
            patterns.push(Pattern { tokens, text: cleaned.to_owned(), exception });
        }
        Ok(Self { patterns })
    }

    /// A file that is sent whatever the patterns say.
    pub fn always(&mut self, path: &str) {
        let tokens = path.chars().map(Token::Letter).collect();
        self.patterns.push(Pattern { tokens, text: path.to_owned(), exception: true });
    }

    /// What becomes of a path below the context.
    pub fn keep(&self, path: &str, is_dir: bool) -> Keep {
        let mut left_out = false;
        for pattern in &self.patterns {
            // A pattern that would say what is so already need not be looked at.
            if pattern.exception != left_out {
                continue;
            }
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            if ends.into_iter().any(|end| matches(&pattern.tokens, &path[..end])) {
                left_out = !left_out;
            }
        }
        let inside = format!("{path}/");
        match () {
            () if !left_out => Keep::Yes,
            () if is_dir
                && self.patterns.iter().any(|p| p.exception && format!("{}/", p.text).starts_with(&inside)) =>
            {
                Keep::Below
            }
            () => Keep::No,
        }
    }
}

fn tokens(pattern: &str) -> Option<Vec<Token>> {
    let mut letters = pattern.chars().peekable();
    let mut out = Vec::new();
    while let Some(letter) = letters.next() {
        let token = match letter {
            '*' if letters.next_if_eq(&'*').is_some() => match letters.next_if_eq(&'/') {
                Some(_) => {
                    out.push(Token::Folders);
                    Token::Within
                }
                None => Token::Anything,
            },
            '*' => Token::Name,
            '?' => Token::One,
            '\\' => Token::Letter(letters.next()?),
            '[' => {
                let negated = letters.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    let mut from = match letters.next()? {
                        ']' if !ranges.is_empty() => break,
                        ']' => return None,
                        letter => letter,
                    };
                    if from == '\\' {
                        from = letters.next()?;
                    }
                    let to = match letters.next_if_eq(&'-') {
                        Some(_) => match letters.next()? {
                            ']' => return None,
                            '\\' => letters.next()?,
                            letter => letter,
                        },
                        None => from,
                    };
                    ranges.push((from, to));
                }
                Token::Class(ranges, negated)
            }
            letter => Token::Letter(letter),
        };
        out.push(token);
    }
    Some(out)
}

/// Walks text and pattern at once, with the set of places the pattern can be at: no pattern makes it slow.
fn matches(tokens: &[Token], text: &str) -> bool {
    let mut places = vec![false; tokens.len() + 1];
    places[0] = true;
    spread(tokens, &mut places);
    for letter in text.chars() {
        let mut next = vec![false; tokens.len() + 1];
        for (at, token) in tokens.iter().enumerate().filter(|(at, _)| places[*at]) {
            match token {
                Token::Anything => next[at] = true,
                Token::Folders => {
                    next[at + 1] = true;
                    next[at + 2] |= letter == '/';
                }
                Token::Within => {
                    next[at] = true;
                    next[at + 1] |= letter == '/';
                }
                Token::Name => next[at] |= letter != '/',
                Token::One => next[at + 1] |= letter != '/',
                Token::Class(ranges, negated) => {
                    let inside = ranges.iter().any(|(from, to)| (*from..=*to).contains(&letter));
                    next[at + 1] |= letter != '/' && inside != *negated;
                }
                Token::Letter(own) => next[at + 1] |= *own == letter,
            }
        }
        places = next;
        spread(tokens, &mut places);
    }
    places[tokens.len()]
}

/// Places that are reached without a letter.
fn spread(tokens: &[Token], places: &mut [bool]) {
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Anything | Token::Name if places[at] => places[at + 1] = true,
            Token::Folders if places[at] => places[at + 2] = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("a", &["a", "a/b"][..], &["b", "ab", "b/a"][..]),
            ("*.txt", &["x.txt", ".txt"], &["d/x.txt", "x.txt2"]),
            ("*/x", &["a/x"], &["x", "a/b/x"]),
            ("**/x", &["x", "a/x", "a/b/x"], &["ax", "a/bx", "xa"]),
            ("a/**/x", &["a/x", "a/b/x", "a/b/c/x"], &["ab/x", "a/bx", "x"]),
            ("**/*.go", &["x.go", "a/x.go", "a/b/x.go"], &["x.gob"]),
            ("a/**", &["a/x", "a/b/c"], &["b", "ab"]),
            ("**", &["a", "a/b"], &[]),
            ("a?c", &["abc"], &["ac", "a/c"]),
            ("[a-c]x", &["bx"], &["dx", "ax1"]),
            ("[^a]x", &["bx"], &["ax"]),
            ("/a/", &["a"], &["b/a"]),
            ("./a/../b", &["b"], &["a"]),
            ("a\\*", &["a*"], &["ab"]),
        ] {
            let ignore = Ignore::parse(pattern).unwrap();
            for path in yes {
                assert_eq!(ignore.keep(path, false), Keep::No, "{pattern} leaves {path} out");
            }
            for path in no {
                assert_eq!(ignore.keep(path, false), Keep::Yes, "{pattern} keeps {path}");
            }
        }
    }

    #[test]
    fn the_last_one_decides() {
        let mut ignore = Ignore::parse("# all but docs\n\n*\n!docs/*.md\ndocs/secret.md\n").unwrap();
        assert_eq!(ignore.keep("src", true), Keep::No);
        assert_eq!(ignore.keep("docs", true), Keep::Below);
        assert_eq!(ignore.keep("docs/a.md", false), Keep::Yes);
        assert_eq!(ignore.keep("docs/secret.md", false), Keep::No);
        assert_eq!(ignore.keep("Dockerfile", false), Keep::No);
        ignore.always("Dockerfile");
        assert_eq!(ignore.keep("Dockerfile", false), Keep::Yes);
        for bad in ["[", "[a", "!", "a[]b", "[a-]"] {
            assert!(Ignore::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_pattern_panics_or_hangs(pattern in "[ab*?/\\[\\]^!.-]{0,30}", path in "[ab/.]{1,40}") {
            if let Ok(ignore) = Ignore::parse(&pattern) {
                ignore.keep(&path, true);
            }
        }
    }
}
