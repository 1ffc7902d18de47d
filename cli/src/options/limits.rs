//! `--ulimit`

/// `name=soft[:hard]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Name, like nofile.
    pub name: String,
    /// Soft limit; -1 is unlimited.
    pub soft: i64,
    /// Hard limit; -1 is unlimited.
    pub hard: i64,
}

/// Why a limit was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UlimitError {
    /// Not `name=soft[:hard]`.
    #[error("invalid ulimit argument: {0}")]
    Format(String),
    /// An unknown name.
    #[error("invalid ulimit type: {0}")]
    Name(String),
    /// Not a number.
    #[error("invalid ulimit value: {0}")]
    Value(String),
    /// A soft limit above the hard one.
    #[error("ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")]
    Order {
        /// The soft limit.
        soft: i64,
        /// The hard limit.
        hard: i64,
    },
}

const NAMES: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Reads one limit.
pub fn parse(text: &str) -> Result<Ulimit, UlimitError> {
    let (name, value) = text.split_once('=').ok_or_else(|| UlimitError::Format(text.to_owned()))?;
    if !NAMES.contains(&name) {
        return Err(UlimitError::Name(name.to_owned()));
    }
    let number = |t: &str| match t {
        "unlimited" => Ok(-1),
        t => t.parse::<i64>().ok().filter(|n| *n >= -1).ok_or_else(|| UlimitError::Value(t.to_owned())),
    };
    let (soft, hard) = match value.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(value)?, number(value)?),
    };
    if hard != -1 && (soft == -1 || soft > hard) {
        return Err(UlimitError::Order { soft, hard });
    }
    Ok(Ulimit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let of = |name: &str, soft, hard| Ok(Ulimit { name: name.into(), soft, hard });
        for (text, want) in [
            ("nofile=10:20", of("nofile", 10, 20)),
            ("nproc=5", of("nproc", 5, 5)),
            ("core=-1", of("core", -1, -1)),
            ("stack=1:unlimited", of("stack", 1, -1)),
            ("x", Err(UlimitError::Format("x".into()))),
            ("x=1", Err(UlimitError::Name("x".into()))),
            ("nofile=a", Err(UlimitError::Value("a".into()))),
            ("nofile=3:2", Err(UlimitError::Order { soft: 3, hard: 2 })),
            ("nofile=-1:2", Err(UlimitError::Order { soft: -1, hard: 2 })),
        ] {
            assert_eq!(parse(text), want, "{text}");
        }
    }
}
