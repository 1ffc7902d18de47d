//! "did you mean web1?": the nearest of the names that exist.

/// The name nearest to `text`, if one is near enough to be a slip of the fingers. Of several the first in the alphabet.
pub fn nearest<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // One slip in a short name, one in three letters of a long one; a name that goes on where the text ends always counts.
    let text = shorten(text);
    if text.is_empty() {
        return None;
    }
    let slips = (text.chars().count() / 3).clamp(1, 4);
    let near = names.into_iter().filter(|name| *name != text).filter_map(|name| {
        let distance = distance(text, shorten(name), slips);
        let begun = text.len() >= 3 && name.len() <= text.len() + 12 && name.starts_with(text);
        match distance {
            Some(distance) => Some((distance, name)),
            None if begun => Some((slips + 1, name)),
            None => None,
        }
    });
    near.min().map(|(_, name)| name)
}

/// `; did you mean web1?`, or nothing: to be put behind what docker says, which scripts look for at the beginning.
pub fn suffix<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    nearest(text, names).map_or_else(String::new, |name| format!("; did you mean {name}?"))
}

// The distance takes length times length: no name is longer, whatever a client sends.
fn shorten(text: &str) -> &str {
    let end = (0..=text.len().min(128)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

/// Letters to insert, remove, replace or swap with their neighbour (optimal string alignment); `None` beyond `most`.
fn distance(a: &str, b: &str, most: usize) -> Option<usize> {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (row, letter) in a.iter().enumerate() {
        let mut line = vec![row + 1];
        for (column, other) in b.iter().enumerate() {
            let mut best =
                (last[column] + usize::from(letter != other)).min(last[column + 1] + 1).min(line[column] + 1);
            if row > 0 && column > 0 && a[row - 1] == *other && b[column - 1] == *letter {
                best = best.min(before[column - 1] + 1);
            }
            line.push(best);
        }
        before = std::mem::replace(&mut last, line);
    }
    last.last().copied().filter(|distance| *distance <= most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn near_names() {
        let names = ["web1", "database", "redis", "my-app-frontend"];
        for (text, expected) in [
            ("web", Some("web1")),
            ("wbe1", Some("web1")),
            ("databse", Some("database")),
            ("data", Some("database")),
            ("rediss", Some("redis")),
            ("my-app", Some("my-app-frontend")),
            ("nginx", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(text, names), expected, "{text}");
        }
        assert_eq!(suffix("web", names), "; did you mean web1?");
        assert_eq!(suffix("other", names), "");
    }

    proptest! {
        #[test]
        fn any_text_is_fine(text in "\\PC{0,200}", name in "\\PC{0,200}") {
            if let Some(found) = nearest(&text, [name.as_str()]) {
                prop_assert_eq!(found, name.as_str());
            }
        }

        #[test]
        fn distance_is_a_distance(a in "[a-c]{0,6}", b in "[a-c]{0,6}") {
            prop_assert_eq!(distance(&a, &b, 9), distance(&b, &a, 9));
            prop_assert_eq!(distance(&a, &b, 9) == Some(0), a == b);
        }
    }
}
