//! Names that were likely meant.

/// The name nearest to one that isn't there, if any is near enough to be it.
pub fn nearest<'n>(wanted: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    // One slip for short names, a third of the letters for long ones.
    let most = (wanted.chars().count() / 3).max(1);
    names
        .into_iter()
        .filter(|name| *name != wanted)
        .map(|name| (distance(wanted, name), name))
        // "web" for "web1": the beginning of a name counts as near, however long the name is.
        .map(|(far, name)| if name.starts_with(wanted) && wanted.len() > 1 { (far.min(1), name) } else { (far, name) })
        .filter(|(far, _)| *far <= most)
        .min()
        .map(|(_, name)| name)
}

/// Letters to insert, remove, replace or swap.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().take(100).collect());
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut next = vec![i + 1];
        for j in 0..b.len() {
            let replaced = row[j] + usize::from(a[i] != b[j]);
            let mut least = replaced.min(row[j + 1] + 1).min(next[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                least = least.min(before[j - 1] + 1);
            }
            next.push(least);
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant() {
        for (wanted, names, near) in [
            ("web", &["web1", "db"][..], Some("web1")),
            ("web", &["web-frontend", "db"], Some("web-frontend")),
            ("pss", &["ps", "pull"], Some("ps")),
            ("contaner", &["container", "context"], Some("container")),
            ("imgaes", &["images", "image"], Some("images")),
            ("x", &["web", "db"], None),
            ("web", &["web"], None),
            ("", &["web"], None),
            ("zzzzzz", &["aaaaaa"], None),
        ] {
            assert_eq!(nearest(wanted, names.iter().copied()), near, "{wanted}");
        }
        assert_eq!((distance("ab", "ba"), distance("", "abc"), distance("kitten", "sitting")), (1, 3, 3));
    }
}
