//! Identifiers, checked once where they enter a process and trusted afterwards.

use std::fmt;

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing was given.
    #[error("{what} is empty")]
    Empty {
        /// Which identifier.
        what: &'static str,
    },
    /// Longer than file names and socket paths can carry.
    #[error("{what} {text:?} is longer than {limit} characters")]
    TooLong {
        /// Which identifier.
        what: &'static str,
        /// What was given, cut.
        text: String,
        /// The limit in bytes.
        limit: usize,
    },
    /// A character that could lead out of a folder, or that the standards exclude.
    #[error("{what} {text:?} may only hold letters, digits, '_', '-' and '.', and starts with a letter or digit")]
    Characters {
        /// Which identifier.
        what: &'static str,
        /// What was given.
        text: String,
    },
}

/// Longest identifier accepted (containerd's limit for identifiers is 76).
const LIMIT: usize = 76;

// Letters, digits, and single separators inside, as containerd's identifiers: safe as a file name, a cgroup name, a key.
fn check(what: &'static str, text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { what });
    }
    if text.len() > LIMIT {
        return Err(IdError::TooLong { what, text: text.chars().take(LIMIT).collect(), limit: LIMIT });
    }
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    if !first || !bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.')) {
        return Err(IdError::Characters { what, text: text.to_owned() });
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks `text` and makes it an identifier; the error says what is wrong with it.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                check($what, &text)?;
                Ok(Self(text))
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                std::path::Path::new(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

identifier!(
    /// A container within a namespace.
    ContainerId,
    "container id"
);
identifier!(
    /// A further process within a container.
    ExecId,
    "exec id"
);
identifier!(
    /// One user of a supervisor: `berth` for the engine, `k8s.io` for CRI.
    NamespaceName,
    "namespace"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepts_and_refuses() {
        for good in ["a", "web-1", "0123456789abcdef", "k8s.io", "a_b.c-d"] {
            assert!(ContainerId::new(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-a", ".a", "a/b", "a b", "a\n", "a\0b", "ä", &"x".repeat(77)] {
            assert!(ContainerId::new(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_accepted_id_is_one_path_component(text in ".*") {
            if let Ok(id) = ContainerId::new(text) {
                let parts: Vec<_> = std::path::Path::new(id.as_str()).components().collect();
                prop_assert_eq!(parts.len(), 1);
                prop_assert!(matches!(parts[0], std::path::Component::Normal(_)));
            }
        }
    }
}
