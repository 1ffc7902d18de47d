//! Variables of a stage, in the order in which they were last set.

use crate::expand::Env;
use std::collections::BTreeMap;

/// Names and values, each name once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Vars(Vec<(String, String)>);

impl Vars {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Sets one; it becomes the last.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|(known, _)| known != name);
        self.0.push((name.into(), value.into()));
    }

    /// Sets one; if it was set before, it keeps its place.
    pub(super) fn replace(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = value.into(),
            None => self.0.push((name.into(), value.into())),
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn map(&self) -> BTreeMap<String, String> {
        self.0.iter().cloned().collect()
    }

    /// `NAME=value`
    pub(super) fn list(&self) -> Vec<String> {
        self.0.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

impl Env for Vars {
    fn get(&self, name: &str) -> Option<&str> {
        self.get(name)
    }
}
