//! What labels may be; the same for everything that has some.

use crate::store::Labels;

/// Longest label, key and value together, as in containerd.
pub(crate) const LIMIT: usize = 4096;

/// Refuses labels without a name and labels that are too long, in one sentence.
pub(crate) fn check(labels: &Labels) -> Result<(), String> {
    for (key, value) in labels {
        if key.is_empty() {
            return Err("a label has no name".into());
        }
        if key.len() + value.len() > LIMIT {
            let key: String = key.chars().take(64).collect();
            return Err(format!("label {key:?} is longer than {LIMIT} bytes with its value"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let check = |key: &str, value: String| check(&Labels::from([(key.to_owned(), value)]));
        assert_eq!(check("a", String::new()), Ok(()));
        assert_eq!(check("a", "x".repeat(LIMIT - 1)), Ok(()));
        assert!(check("a", "x".repeat(LIMIT)).unwrap_err().contains("\"a\" is longer than 4096"));
        assert!(check("", "x".into()).is_err());
    }
}
