//! "Did you mean …?"

/// More letters than this to change, and it is another word.
const FARTHEST: usize = 3;
/// Words longer than this are not misspelt, but garbage.
const LONGEST: usize = 100;

/// The one of `known` that `word` is a misspelling of. None if it is one of them.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut best = (FARTHEST, None);
    if word.len() > LONGEST {
        return None;
    }
    for option in known {
        let far = distance(word, option);
        if far == 0 {
            return None;
        }
        if far < best.0 {
            best = (far, Some(option));
        }
    }
    best.1
}

/// `message`, and what `word` may have been meant to be.
pub fn with_hint<'a>(message: String, word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(word, known) {
        Some(option) => format!("{message} (did you mean {option}?)"),
        None => message,
    }
}

/// How many letters have to be put in, taken out or changed (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (at, x) in a.chars().enumerate() {
        let mut corner = at;
        row[0] = at + 1;
        for (column, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != *y);
            corner = row[column + 1];
            row[column + 1] = changed.min(corner + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word() {
        let known = ["bind", "cache", "tmpfs", "secret", "ssh"];
        for (word, expected) in [
            ("bnd", Some("bind")),
            ("cahce", Some("cache")),
            ("tmps", Some("tmpfs")),
            ("bind", None),
            ("volume", None),
            ("", None),
            ("sss", Some("ssh")),
        ] {
            assert_eq!(nearest(word, known), expected, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(1_000_000), known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
