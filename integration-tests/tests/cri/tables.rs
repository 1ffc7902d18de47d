//! The tables of rules and of features against the tests that they name.

use std::fs;

use integration_tests::{
    programs::workspace,
    tables::{Tests, rows},
};

/// Files whose every test shows a rule.
const WHOLE: [&str; 9] = [
    "status.rs",
    "images.rs",
    "sandboxes.rs",
    "containers.rs",
    "namespaces.rs",
    "security.rs",
    "mounts.rs",
    "logs.rs",
    "hostile.rs",
];
const SUITE: &str = "integration-tests/tests/cri";

#[test]
fn every_rule_names_a_test() {
    let root = workspace();
    let table = rows(&fs::read_to_string(root.join(SUITE).join("RULES.md")).unwrap(), 3);
    assert!(table.len() > 150, "{} rows", table.len());
    let mut tests = Tests::below(&root);
    let mut named = Vec::new();
    for row in &table {
        let [rule, name, other] = &row[..] else { panic!("{row:?}") };
        let short = name.trim_matches('`');
        let is_ours = !short.contains('/');
        let path = if is_ours { format!("{SUITE}/{short}") } else { short.to_owned() };
        let test = tests.named(&path);
        // What is said of containerd is what the test does.
        let differs = ["of_berth(", "under_test() != Runtime::Berth"].iter().any(|words| test.text.contains(words));
        let said = if !is_ours { other.is_empty() } else { differs != (other == "same") && !other.is_empty() };
        assert!(!rule.is_empty() && said, "{row:?}");
        assert!(!named.contains(&path), "{path}: two rules");
        named.push(path);
    }
    for file in WHOLE {
        for test in tests.of(&format!("{SUITE}/{file}")) {
            let path = format!("{SUITE}/{file}::{}", test.name);
            assert!(named.contains(&path), "{path} has no row in RULES.md");
        }
    }
}

#[test]
fn every_feature_of_the_readme_names_a_test() {
    let root = workspace();
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    let table = rows(&readme, 5);
    assert!(table.len() > 20, "{} rows", table.len());
    let mut tests = Tests::below(&root);
    for row in &table {
        // What Berth hasn't has no test, or one that shows how it says so.
        assert!(row[..4].iter().all(|cell| !cell.is_empty()), "{row:?}");
        assert!(!row[4].is_empty() || row[1].starts_with("no"), "{row:?}");
        for test in row[4].split(", ").filter(|test| !test.is_empty()) {
            let short = test.trim_matches('`');
            tests.named(&if short.contains('/') { short.to_owned() } else { format!("{SUITE}/{short}") });
        }
    }
}
