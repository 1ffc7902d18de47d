//! The table of faults: what it names is there.

use std::{collections::BTreeMap, fs, path::Path};

/// The names of a file's tests.
fn tests_of(text: &str) -> Vec<String> {
    let (mut found, mut is_test) = (Vec::new(), false);
    for line in text.lines().map(str::trim) {
        let name = line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split(['(', '<']).next());
        match name {
            Some(name) if std::mem::take(&mut is_test) => found.push(name.to_owned()),
            Some(_) => {}
            None => {
                is_test = line.starts_with("#[test]")
                    || line.starts_with("#[tokio::test")
                    || (is_test && line.starts_with('#'))
            }
        }
    }
    found
}

#[test]
fn every_row_names_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = fs::read_to_string(root.join("integration-tests/FAULTS.md")).unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|---") && !line.starts_with("| fault |"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(rows.len() >= 30, "{} rows", rows.len());
    let mut known = BTreeMap::new();
    for row in &rows {
        let [fault, outcome, test] = row[..] else { panic!("three columns: {row:?}") };
        assert!(!fault.is_empty() && !outcome.is_empty(), "{row:?}");
        let (file, name) = test.trim_matches('`').split_once("::").unwrap_or_else(|| panic!("FILE::TEST: {test}"));
        let tests = known.entry(file).or_insert_with(|| {
            tests_of(&fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}")))
        });
        assert!(tests.iter().any(|other| other == name), "{test}: no such test");
    }
}

#[test]
fn only_tests_count() {
    let text = "fn helper() {}\n#[test]\nfn a() {\n#[tokio::test(flavor = \"multi_thread\")]\n#[ignore]\nasync fn b() {\nasync fn c() {";
    assert_eq!(tests_of(text), ["a", "b"]);
}
