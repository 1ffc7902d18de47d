//! The order of names in lists.

/// Numbers in names in them count as numbers, so that web2 comes before web10.
pub fn natural(a: &str, b: &str) -> std::cmp::Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits = |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (x, y) = (digits(a), digits(b));
        if x > 0 && y > 0 {
            let (m, n) = (a[..x].trim_start_matches('0'), b[..y].trim_start_matches('0'));
            let order = m.len().cmp(&n.len()).then_with(|| m.cmp(n)).then_with(|| x.cmp(&y));
            if order.is_ne() {
                return order;
            }
            (a, b) = (&a[x..], &b[y..]);
            continue;
        }
        match (a.chars().next(), b.chars().next()) {
            (Some(c), Some(d)) if c == d => (a, b) = (&a[c.len_utf8()..], &b[d.len_utf8()..]),
            (c, d) => return c.cmp(&d),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_order() {
        let mut names = ["web10", "web2", "web1", "a", "web", "web02", "b1c"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["a", "b1c", "web", "web1", "web2", "web02", "web10"]);
    }
}
