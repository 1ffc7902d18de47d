//! The command line as runc's callers write it: `-x`, `--x`, `--x=v`, `--x v`, and long flags with one dash (`-no-pivot`).
//!
//! Hand-written because clap knows no single-dash long flags, and would be half of the binary.

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Takes {
    /// Nothing, or `=true` / `=false`.
    Switch,
    /// A value; the last one counts.
    Value,
}

/// One flag of a command: all of its names, the first one being how code asks for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    pub(crate) names: &'static [&'static str],
    pub(crate) takes: Takes,
    pub(crate) help: &'static str,
}

/// A switch.
pub(crate) const fn switch(names: &'static [&'static str], help: &'static str) -> Flag {
    Flag { names, takes: Takes::Switch, help }
}

/// A flag with a value.
pub(crate) const fn value(names: &'static [&'static str], help: &'static str) -> Flag {
    Flag { names, takes: Takes::Value, help }
}

/// Where flags may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Up to the first word that is no flag; the rest belongs to somebody else (`exec ID cmd -x`).
    FlagsFirst,
    /// Anywhere before `--`.
    Mixed,
}

/// What is wrong with a command line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    /// No such flag.
    #[error("unknown flag {0}")]
    Unknown(String),
    /// The value is missing.
    #[error("flag {0} needs a value")]
    NoValue(String),
    /// A switch with something else than true or false.
    #[error("flag {name}: {value:?} is neither true nor false")]
    NotBoolean { name: String, value: String },
    /// A number was expected.
    #[error("flag --{name}: {value:?} is not a number in range")]
    NotNumber { name: &'static str, value: String },
    /// Too few or too many words.
    #[error("{command} takes {expected}, not {found} argument(s)")]
    Count { command: &'static str, expected: &'static str, found: usize },
    /// One of a few words was expected.
    #[error("flag --{name}: {value:?} is not one of {allowed}")]
    NotOneOf { name: &'static str, value: String, allowed: &'static str },
}

/// A parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    values: Vec<(&'static str, String)>,
    /// The words that are no flags.
    pub(crate) words: Vec<String>,
}

impl Parsed {
    /// Splits `arguments` by the flags of `table`.
    pub(crate) fn parse(table: &[Flag], order: Order, arguments: &[String]) -> Result<Self, ArgsError> {
        let mut parsed = Self::default();
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let name = match argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) {
                Some("") if argument == "--" => {
                    parsed.words.extend(rest.cloned());
                    break;
                }
                // A lone dash is a word: standard input by custom.
                Some("") | None => {
                    parsed.words.push(argument.clone());
                    if order == Order::FlagsFirst {
                        parsed.words.extend(rest.cloned());
                        break;
                    }
                    continue;
                }
                Some(name) => name,
            };
            if !argument.starts_with("--") && parsed.bundle(table, name, &mut rest) {
                continue;
            }
            let (name, attached) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (name, None),
            };
            let flag = table.iter().find(|flag| flag.names.contains(&name));
            let flag = flag.ok_or_else(|| ArgsError::Unknown(argument.clone()))?;
            let value = match (flag.takes, attached) {
                (Takes::Switch, None) => "true".to_owned(),
                (Takes::Switch, Some(value)) => match value {
                    "true" | "1" | "t" | "T" | "TRUE" | "True" => "true".to_owned(),
                    "false" | "0" | "f" | "F" | "FALSE" | "False" => "false".to_owned(),
                    _ => return Err(ArgsError::NotBoolean { name: argument.clone(), value: value.to_owned() }),
                },
                (Takes::Value, Some(value)) => value.to_owned(),
                (Takes::Value, None) => rest.next().ok_or_else(|| ArgsError::NoValue(argument.clone()))?.clone(),
            };
            parsed.values.push((flag.names[0], value));
        }
        Ok(parsed)
    }

    /// Takes `-dt` for `-d -t`, `-eA=b` for `-e A=b` and `-te A=b` for both, unless there is a flag of that very name. False, and
    /// nothing taken, when it is none of those.
    fn bundle(&mut self, table: &[Flag], word: &str, rest: &mut std::slice::Iter<'_, String>) -> bool {
        let whole = word.split_once('=').map_or(word, |(name, _)| name);
        if whole.len() < 2 || table.iter().any(|flag| flag.names.contains(&whole)) {
            return false;
        }
        let mut found = Vec::new();
        let mut left = word;
        while let Some(letter) = left.chars().next() {
            let (name, after) = left.split_at(letter.len_utf8());
            let Some(flag) = table.iter().find(|flag| flag.names.contains(&name)) else { return false };
            left = after;
            match flag.takes {
                Takes::Switch => found.push((flag.names[0], "true".to_owned())),
                Takes::Value => {
                    let value = match (left.is_empty(), rest.as_slice().first()) {
                        (false, _) => left.to_owned(),
                        (true, Some(next)) => next.clone(),
                        (true, None) => return false,
                    };
                    if left.is_empty() {
                        rest.next();
                    }
                    found.push((flag.names[0], value));
                    break;
                }
            }
        }
        self.values.extend(found);
        true
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.value(name) == Some("true")
    }

    /// The last value of a flag.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
    }

    /// All values of a flag that may be repeated.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.values.iter().filter(move |(key, _)| *key == name).map(|(_, value)| value.as_str())
    }

    /// The value of a flag as a path; an empty one is none, as runc has it.
    pub(crate) fn path(&self, name: &str) -> Option<std::path::PathBuf> {
        self.value(name).filter(|value| !value.is_empty()).map(Into::into)
    }

    /// The value of a flag as a number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &'static str) -> Result<Option<T>, ArgsError> {
        let parse = |value: &str| value.parse().map_err(|_| ArgsError::NotNumber { name, value: value.to_owned() });
        self.value(name).map(parse).transpose()
    }

    /// The only word, which `command` calls `expected`.
    pub(crate) fn one_word(&self, command: &'static str, expected: &'static str) -> Result<&str, ArgsError> {
        match self.words.as_slice() {
            [word] => Ok(word),
            words => Err(ArgsError::Count { command, expected, found: words.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Flag] = &[
        switch(&["force", "f"], ""),
        value(&["bundle", "b"], ""),
        value(&["env", "e"], ""),
        switch(&["no-pivot"], ""),
        switch(&["tty", "t"], ""),
    ];

    fn parse(order: Order, text: &[&str]) -> Result<Parsed, ArgsError> {
        let words: Vec<String> = text.iter().map(|word| (*word).to_owned()).collect();
        Parsed::parse(TABLE, order, &words)
    }

    #[test]
    fn every_spelling_is_taken() {
        for text in [["--bundle", "x"], ["-bundle", "x"], ["-b", "x"]] {
            assert_eq!(parse(Order::Mixed, &text).expect("ok").value("bundle"), Some("x"));
        }
        for text in ["--bundle=x", "-bundle=x", "-b=x"] {
            assert_eq!(parse(Order::Mixed, &[text]).expect("ok").value("bundle"), Some("x"));
        }
        for (text, on) in [("--force", true), ("-f", true), ("-no-pivot", false), ("--force=false", false)] {
            assert_eq!(parse(Order::Mixed, &[text]).expect("ok").is_on("force"), on, "{text}");
        }
    }

    #[test]
    fn short_flags_may_share_a_dash() {
        for (text, force, tty, env) in [
            (&["-ft"][..], true, true, None),
            (&["-tf"], true, true, None),
            (&["-eA=b"], false, false, Some("A=b")),
            (&["-te", "A=b"], false, true, Some("A=b")),
            (&["-teA"], false, true, Some("A")),
            (&["-e=A"], false, false, Some("A")),
            (&["-env", "A"], false, false, Some("A")),
        ] {
            let parsed = parse(Order::Mixed, text).expect("ok");
            assert_eq!(
                (parsed.is_on("force"), parsed.is_on("tty"), parsed.value("env")),
                (force, tty, env),
                "{text:?}"
            );
        }
        for text in [&["-fx"][..], &["-te"], &["--ft"], &["-fb"], &["-f-"]] {
            assert!(parse(Order::Mixed, text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn words_and_flags_keep_apart() {
        let parsed = parse(Order::Mixed, &["id", "--force", "-", "--", "-f"]).expect("ok");
        assert_eq!(parsed.words, ["id", "-", "-f"]);
        let parsed = parse(Order::FlagsFirst, &["-e", "A=1", "-e", "B=2", "id", "ls", "-f"]).expect("ok");
        assert_eq!(parsed.words, ["id", "ls", "-f"]);
        assert_eq!(parsed.all("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, message) in [
            (&["--nope"][..], "unknown flag --nope"),
            (&["--bundle"], "flag --bundle needs a value"),
            (&["--force=maybe"], "flag --force=maybe: \"maybe\" is neither true nor false"),
        ] {
            assert_eq!(parse(Order::Mixed, text).expect_err("error").to_string(), message);
        }
    }

    proptest::proptest! {
        #[test]
        fn parsing_never_panics(words in proptest::collection::vec(".{0,12}", 0..8)) {
            let _ = Parsed::parse(TABLE, Order::Mixed, &words);
            let _ = Parsed::parse(TABLE, Order::FlagsFirst, &words);
        }
    }
}
