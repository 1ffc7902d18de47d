//! Patterns of substitutions: `*` is anything and `?` any letter, but for line ends; `\` takes the meaning of what follows.

/// What a match may cost, in comparisons: pattern and text come from the same stranger.
const DEAREST: usize = 50_000_000;

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Star,
    Any,
    Letter(char),
}

pub struct Pattern(Vec<Part>);

impl Pattern {
    pub fn new(text: &str) -> Result<Self, String> {
        let mut letters = text.chars();
        let mut parts = Vec::new();
        while let Some(letter) = letters.next() {
            parts.push(match letter {
                '*' => Part::Star,
                '?' => Part::Any,
                // } and / are escaped on behalf of ${}
                '\\' => match letters.next() {
                    Some(next @ ('*' | '?' | '\\' | '}' | '/')) => Part::Letter(next),
                    Some(next) => return Err(format!("invalid escape '\\{next}'")),
                    None => return Err("invalid escape '\\' at its end".into()),
                },
                _ => Part::Letter(letter),
            });
        }
        // Any number of stars in a row is one.
        parts.dedup_by(|a, b| *a == Part::Star && *b == Part::Star);
        Ok(Self(parts))
    }

    pub fn without_prefix(&self, value: &str, longest: bool) -> Result<String, String> {
        let letters: Vec<char> = value.chars().collect();
        let end = self.end(&letters, longest, &mut 0)?.unwrap_or(0);
        Ok(letters[end..].iter().collect())
    }

    pub fn without_suffix(&self, value: &str, longest: bool) -> Result<String, String> {
        let letters: Vec<char> = value.chars().rev().collect();
        let backwards = Self(self.0.iter().rev().copied().collect());
        let end = backwards.end(&letters, longest, &mut 0)?.unwrap_or(0);
        Ok(letters[end..].iter().rev().collect())
    }

    /// Puts `by` where the pattern matches, as much of the text as it can each time: once, or wherever it does.
    pub fn replace(&self, value: &str, by: &str, all: bool, largest: usize) -> Result<String, String> {
        let letters: Vec<char> = value.chars().collect();
        let (mut text, mut at, mut cost) = (String::new(), 0, 0);
        let mut after_match = false;
        while at <= letters.len() {
            let found = self.end(&letters[at..], true, &mut cost)?;
            match found {
                // Nothing is not found right behind something that was.
                Some(length) if length > 0 || !after_match => {
                    text += by;
                    if text.len() > largest {
                        return Err(format!("the result is larger than {largest} bytes"));
                    }
                    if !all {
                        text.extend(&letters[at + length..]);
                        return Ok(text);
                    }
                    if length == 0 {
                        text.extend(letters.get(at));
                    }
                    at += length.max(1);
                    after_match = length > 0;
                }
                _ => {
                    text.extend(letters.get(at));
                    at += 1;
                    after_match = false;
                }
            }
        }
        Ok(text)
    }

    /// How many letters at the start match.
    fn end(&self, letters: &[char], longest: bool, cost: &mut usize) -> Result<Option<usize>, String> {
        // Which parts may come next; the one behind the last says that all is matched.
        let mut next = vec![false; self.0.len() + 1];
        next[0] = true;
        self.skip_stars(&mut next);
        let mut found = None;
        for at in 0..=letters.len() {
            if next[self.0.len()] {
                found = Some(at);
                if !longest {
                    break;
                }
            }
            let Some(&letter) = letters.get(at) else { break };
            let (mut then, mut alive) = (vec![false; next.len()], false);
            *cost += next.len();
            if *cost > DEAREST {
                return Err("matching it takes too long".into());
            }
            for (place, part) in self.0.iter().enumerate().filter(|(place, _)| next[*place]) {
                let (stays, goes) = match part {
                    Part::Star => (letter != '\n', false),
                    Part::Any => (false, letter != '\n'),
                    Part::Letter(known) => (false, *known == letter),
                };
                then[place] |= stays;
                then[place + 1] |= goes;
                alive |= stays || goes;
            }
            if !alive {
                break;
            }
            self.skip_stars(&mut then);
            next = then;
        }
        Ok(found)
    }

    /// A star may be nothing.
    fn skip_stars(&self, next: &mut [bool]) {
        for (place, part) in self.0.iter().enumerate() {
            if next[place] && *part == Part::Star {
                next[place + 1] = true;
            }
        }
    }
}
