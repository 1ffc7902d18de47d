//! Flags of instructions, `--name=value`.

use super::Fault;
use crate::suggest;

#[derive(Clone, Copy, PartialEq)]
pub enum Takes {
    /// Nothing, `true` or `false`.
    Bool,
    Value,
    /// One each time; the flag may come again.
    Values,
}

/// What is known, and what was given.
pub struct Flags {
    given: Vec<(&'static str, String)>,
}

impl Flags {
    /// Checks `written` against `known`.
    pub fn new(written: &[String], known: &[(&'static str, Takes)]) -> Result<Self, Fault> {
        let mut given: Vec<(&'static str, String)> = Vec::new();
        for flag in written {
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (flag.as_str(), None),
            };
            let Some((known_name, takes)) = known.iter().find(|(known, _)| name.strip_prefix("--") == Some(known))
            else {
                let known: Vec<String> = known.iter().map(|(name, _)| format!("--{name}")).collect();
                let known = known.iter().map(String::as_str);
                return Err(Fault::at(suggest::with_hint(format!("unknown flag: {name}"), name, known), name));
            };
            if *takes != Takes::Values && given.iter().any(|(name, _)| name == known_name) {
                return Err(Fault::at(format!("duplicate flag specified: {name}"), name));
            }
            let value = match (takes, value) {
                (Takes::Bool, None) => "true".to_owned(),
                (Takes::Bool, Some("")) | (_, None) => {
                    return Err(Fault::at(format!("missing a value on flag: {name}"), name));
                }
                (Takes::Bool, Some(value)) => match value.to_lowercase() {
                    lower if matches!(lower.as_str(), "true" | "false") => lower,
                    _ => {
                        let message = format!("expecting boolean value for flag {name}, not: {value}");
                        return Err(Fault::at(message, name));
                    }
                },
                (_, Some(value)) => value.to_owned(),
            };
            given.push((known_name, value));
        }
        Ok(Self { given })
    }

    /// What was said, if anything: an empty value is none.
    pub fn value(&self, name: &str) -> Option<String> {
        self.given.iter().find(|(known, value)| *known == name && !value.is_empty()).map(|(_, value)| value.clone())
    }

    pub fn values(&self, name: &str) -> Vec<String> {
        self.given.iter().filter(|(known, _)| *known == name).map(|(_, value)| value.clone()).collect()
    }

    pub fn bool(&self, name: &str) -> Option<bool> {
        self.value(name).map(|value| value == "true")
    }
}
