//! Tables in Markdown that name tests, and the tests that are there.

use std::{collections::BTreeMap, fs, path::Path};

/// A test as its file has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its name.
    pub name: String,
    /// From its attribute to the next one's.
    pub text: String,
}

/// The tests of a file.
pub fn tests_of(text: &str) -> Vec<Written> {
    let (mut found, mut is_test) = (Vec::<Written>::new(), false);
    for line in text.lines() {
        let begins = line.trim();
        let name =
            begins.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next());
        match name {
            Some(name) if std::mem::take(&mut is_test) => {
                found.push(Written { name: name.to_owned(), text: String::new() });
            }
            Some(_) => {}
            None => {
                is_test = begins.starts_with("#[test]")
                    || begins.starts_with("#[tokio::test")
                    || (is_test && begins.starts_with('#'))
            }
        }
        if let Some(test) = found.last_mut() {
            test.text.push_str(line);
            test.text.push('\n');
        }
    }
    found
}

/// The rows of the tables of a document that have so many columns, without their heads.
pub fn rows(text: &str, columns: usize) -> Vec<Vec<String>> {
    let lines: Vec<&str> = text.lines().collect();
    let is_head = |at: usize| lines.get(at + 1).is_some_and(|next| next.starts_with("|---"));
    (0..lines.len())
        .filter(|&at| lines[at].starts_with('|') && !lines[at].starts_with("|---") && !is_head(at))
        .map(|at| lines[at].trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>())
        .filter(|row| row.len() == columns)
        .collect()
}

/// Finds tests by `FILE::NAME`, as tables name them: the file's path from the folder.
#[derive(Debug)]
pub struct Tests<'a> {
    folder: &'a Path,
    known: BTreeMap<String, Vec<Written>>,
}

impl<'a> Tests<'a> {
    /// Those of files below a folder.
    pub fn below(folder: &'a Path) -> Self {
        Self { folder, known: BTreeMap::new() }
    }

    /// The tests of a file.
    pub fn of(&mut self, file: &str) -> &[Written] {
        self.known.entry(file.to_owned()).or_insert_with(|| {
            let text = fs::read_to_string(self.folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
            tests_of(&text)
        })
    }

    /// The one that a table names; panics if there is none.
    pub fn named(&mut self, test: &str) -> Written {
        let (file, name) = test.trim_matches('`').split_once("::").unwrap_or_else(|| panic!("FILE::TEST: {test}"));
        let found = self.of(file).iter().find(|test| test.name == name);
        found.unwrap_or_else(|| panic!("{test}: no such test")).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tests_count() {
        let text = "fn helper() {}\n#[test]\nfn a() {\n#[tokio::test(flavor = \"multi_thread\")]\n#[ignore]\nasync fn b() {\nasync fn c() {";
        let names: Vec<_> = tests_of(text).into_iter().map(|test| test.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(tests_of(text)[0].text.starts_with("fn a()"));
    }

    #[test]
    fn rows_without_heads() {
        let text = "| a | b |\n|---|---|\n| c | d |\n\n| x |\n|---|\n| y |\n";
        assert_eq!((rows(text, 2), rows(text, 1)), (vec![vec!["c".into(), "d".into()]], vec![vec!["y".into()]]));
    }
}
