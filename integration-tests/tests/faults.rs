//! The table of faults: what it names is there.

use std::fs;

use integration_tests::{
    programs::workspace,
    tables::{Tests, rows},
};

#[test]
fn every_row_names_a_test_that_exists() {
    let root = workspace();
    let table = fs::read_to_string(root.join("integration-tests/FAULTS.md")).unwrap();
    let rows = rows(&table, 3);
    assert!(rows.len() >= 30, "{} rows", rows.len());
    let lines = table.lines().filter(|line| line.starts_with('|') && !line.starts_with("|---")).count();
    assert_eq!(rows.len() + table.matches("\n| fault |").count(), lines, "three columns each");
    let mut tests = Tests::below(&root);
    for row in &rows {
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        tests.named(&row[2]);
    }
}
