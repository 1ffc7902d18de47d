//! Names of containers: what is allowed, and what an unnamed one is called.

use crate::{http::ApiError, ids::random_bytes};

const ADJECTIVES: [&str; 48] = [
    "amber", "bold", "brave", "bright", "brisk", "calm", "candid", "clever", "cosy", "crisp", "daring", "deft",
    "eager", "earnest", "easy", "fair", "fleet", "fond", "frank", "gentle", "glad", "golden", "grand", "happy",
    "hardy", "jolly", "keen", "kind", "lively", "loyal", "lucid", "mellow", "merry", "neat", "nimble", "noble",
    "patient", "plucky", "proud", "quick", "quiet", "serene", "sharp", "steady", "sunny", "tidy", "vivid", "wise",
];

const SURNAMES: [&str; 48] = [
    "abel",
    "archimedes",
    "babbage",
    "banach",
    "bell",
    "boole",
    "bose",
    "carson",
    "church",
    "curie",
    "darwin",
    "dirac",
    "einstein",
    "erdos",
    "euler",
    "faraday",
    "fermi",
    "feynman",
    "franklin",
    "galileo",
    "gauss",
    "germain",
    "goodall",
    "hamilton",
    "herschel",
    "hilbert",
    "hopper",
    "huygens",
    "kepler",
    "kovalevskaya",
    "lamarr",
    "leavitt",
    "lovelace",
    "maxwell",
    "meitner",
    "mendel",
    "newton",
    "noether",
    "pascal",
    "planck",
    "ramanujan",
    "ride",
    "shannon",
    "tesla",
    "turing",
    "volta",
    "watt",
    "yonath",
];

/// Checks a name chosen by the user; a leading slash is cut off.
pub fn check(name: &str) -> Result<String, ApiError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if !first || bare.len() < 2 || bare.len() > 255 || !bytes.all(allowed) {
        return Err(ApiError::invalid(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    Ok(bare.to_owned())
}

/// A name for a container that was given none; `attempt` above a few adds a digit, as the words are finite.
pub fn generate(attempt: u32) -> std::io::Result<String> {
    let [a, b, digit] = random_bytes::<3>()?;
    let adjective = ADJECTIVES[usize::from(a) % ADJECTIVES.len()];
    let surname = SURNAMES[usize::from(b) % SURNAMES.len()];
    Ok(match attempt {
        0..4 => format!("{adjective}_{surname}"),
        _ => format!("{adjective}_{surname}{}", u32::from(digit) + 256 * (attempt - 4)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowed_and_refused() {
        for good in ["web", "/web", "a.b-c_d", "00"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "/", "a", "-a", "a b", "a/b", "ä1", "_x", &"x".repeat(256)] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for attempt in 0..40 {
            let name = generate(attempt).unwrap();
            assert_eq!(check(&name).unwrap(), name);
        }
    }
}
