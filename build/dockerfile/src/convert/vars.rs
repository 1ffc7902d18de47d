//! Variables of a stage, in the order in which they were last set.

use crate::expand::Env;
use std::collections::BTreeMap;

/// Names and values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Vars {
    values: BTreeMap<String, (usize, String)>,
    next: usize,
    size: usize,
}

impl Vars {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|(_, value)| value.as_str())
    }

    /// Sets one; it becomes the last.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.next += 1;
        self.put(name, self.next, value);
    }

    /// Sets one; if it was set before, it keeps its place.
    pub(super) fn replace(&mut self, name: &str, value: &str) {
        match self.values.get(name) {
            Some((place, _)) => self.put(name, *place, value),
            None => self.set(name, value),
        }
    }

    fn put(&mut self, name: &str, place: usize, value: &str) {
        const EACH: usize = 60;
        self.size += name.len() + value.len() + EACH;
        if let Some((_, old)) = self.values.insert(name.into(), (place, value.into())) {
            self.size -= name.len() + old.len() + EACH;
        }
    }

    /// How much memory they take, about.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn map(&self) -> BTreeMap<String, String> {
        self.values.iter().map(|(name, (_, value))| (name.clone(), value.clone())).collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.values.keys().map(String::as_str)
    }

    /// `NAME=value`
    pub(super) fn list(&self) -> Vec<String> {
        let mut sorted: Vec<_> = self.values.iter().collect();
        sorted.sort_by_key(|(_, (place, _))| *place);
        sorted.into_iter().map(|(name, (_, value))| format!("{name}={value}")).collect()
    }
}

impl Env for Vars {
    fn get(&self, name: &str) -> Option<&str> {
        self.get(name)
    }
}
