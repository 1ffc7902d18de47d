//! What of Docker's API and command line is there: `engine/COVERAGE.md` is generated from three tables, and the tables are held
//! against the sources and a live engine, so that no row is silent or stale.
//!
//! `BERTH_REGENERATE=1` writes the page anew; without it, a page that is not up to date fails.

use integration_tests::{Stack, programs::workspace};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Write, fs};

struct Table {
    file: &'static str,
    rows: Vec<Vec<String>>,
}

impl Table {
    fn read(file: &'static str) -> Self {
        let text = fs::read_to_string(workspace().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { file, rows: lines.map(|line| line.split('\t').map(str::to_owned).collect()).collect() }
    }
}

fn endpoints() -> Table {
    Table::read("engine/tests/endpoints.tsv")
}

fn fields() -> Table {
    Table::read("engine/tests/fields.tsv")
}

fn commands() -> Table {
    Table::read("cli/tests/commands.tsv")
}

// `file::function`, or a file of tests as a whole.
fn exists(test: &str) -> bool {
    let (file, function) = test.split_once("::").unwrap_or((test, ""));
    let function = function.rsplit("::").next().unwrap_or_default();
    let text = fs::read_to_string(workspace().join(file)).unwrap_or_default();
    !text.is_empty() && (function.is_empty() || text.contains(&format!("fn {function}(")))
}

#[test]
fn every_row_has_a_state_and_a_test_that_exists() {
    let mut wrong = Vec::new();
    for (table, state) in [(endpoints(), 3), (fields(), 2), (commands(), 2)] {
        let mut seen = BTreeSet::new();
        for row in &table.rows {
            let name = row[..state.min(2)].join(" ");
            let known =
                row.get(state).is_some_and(|word| ["done", "refused", "refused by name"].contains(&word.as_str()));
            if !known {
                wrong.push(format!("{}: {name} has no state", table.file));
            }
            if !row.get(state + 1).is_some_and(|test| exists(test)) {
                wrong.push(format!("{}: {name} names a test that isn't there: {:?}", table.file, row.get(state + 1)));
            }
            if !seen.insert(name.clone()) {
                wrong.push(format!("{}: {name} is there twice", table.file));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

// Whether a pattern of the sources stands for a path of the table; `{*x}` and `{x...}` stand for several segments.
fn covers(pattern: &str, path: &str) -> bool {
    fn walk(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern.split_first(), path.split_first()) {
            (None, None) => true,
            (Some((word, rest)), Some(_)) if word.starts_with("{*") || word.ends_with("...}") => {
                (1..=path.len()).any(|n| walk(rest, &path[n..]))
            }
            (Some((word, rest)), Some((segment, tail))) => {
                (word == segment || word.starts_with('{')) && walk(rest, tail)
            }
            _ => false,
        }
    }
    walk(&pattern.split('/').collect::<Vec<_>>(), &path.split('/').collect::<Vec<_>>())
}

// Paths in the sources of the engine's router: string literals that begin with a slash, before their tests.
fn routed() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in ["routes.rs", "absent.rs"] {
        let text = fs::read_to_string(workspace().join("engine/src/http").join(file)).expect(file);
        let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            let literals = line.split('"').skip(1).step_by(2).filter(|word| word.starts_with('/') && word.len() > 1);
            let table =
                line.trim_start().starts_with("(\"") || line.contains(".route(") || line.trim_start().starts_with('"');
            found.extend(literals.filter(|_| table).map(str::to_owned));
        }
    }
    found
}

#[test]
fn routes_and_rows_are_the_same() {
    let (rows, routed) = (endpoints().rows, routed());
    assert!(routed.len() > 60, "the router's sources are read: {routed:#?}");
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row[0] != "OPTIONS") {
        if !routed.iter().any(|pattern| covers(pattern, &row[1])) {
            wrong.push(format!("{} {} is in the table and not in the sources", row[0], row[1]));
        }
    }
    for pattern in &routed {
        if !rows.iter().any(|row| covers(pattern, &row[1])) {
            wrong.push(format!("{pattern} is in the sources and not in the table"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn endpoints_answer_what_the_table_says() {
    let stack = Stack::start();
    let api = stack.api();
    let mut wrong = Vec::new();
    for row in &endpoints().rows {
        let path: Vec<&str> =
            row[1].split('/').map(|word| if word.starts_with('{') { "nowhere" } else { word }).collect();
        let answer = api.open(&row[0], &path.join("/"), None, "").expect("answer");
        let status = answer.status;
        // A stream of events never ends by itself.
        let text = if row[1] == "/events" { String::new() } else { answer.finish().text() };
        let nowhere = text.contains("page not found");
        let fine = match row[3].as_str() {
            "done" => status != 501 && !(status == 503 && text.contains("swarm")) && !nowhere,
            _ => {
                [501, 503].contains(&status)
                    || status == 404 && text.contains("plugin")
                    || status == 200 && row[1] == "/build/prune"
            }
        };
        if !fine || nowhere {
            wrong.push(format!("{} {} is {} and answers {status} {}", row[0], row[1], row[3], text.trim()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn fields_are_read_or_refused_by_name() {
    let stack = Stack::with_busybox();
    let api = stack.api();
    let mut wrong = Vec::new();
    for row in &fields().rows {
        let (object, field) = (row[0].as_str(), row[1].as_str());
        let with = |value: Value| {
            let mut body = json!({"Image": "busybox"});
            match object {
                "HostConfig" => body["HostConfig"] = json!({ field: value }),
                _ => body[field] = value,
            }
            body
        };
        if !["HostConfig", "Config"].contains(&object) {
            continue;
        }
        // A value of a type that no field has shows whether the field is read at all.
        let answer = api.post("/containers/create", Some(&with(json!([[1]]))));
        if answer.status < 400 {
            wrong.push(format!("{object}.{field} is not read: {} {}", answer.status, answer.text().trim()));
        }
        if row[2] == "refused" {
            let sample = serde_json::from_str(&row[4]).expect("a value that is refused");
            let answer = api.post("/containers/create", Some(&with(sample)));
            if answer.status < 400 {
                wrong.push(format!("{object}.{field} isn't refused: {}", answer.status));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn short(test: &str) -> String {
    format!("`{}`", test.replace("integration-tests/tests/", "").replace("engine/tests/", ""))
}

fn page() -> String {
    let mut page = String::from(
        "# What of Docker's API and command line is there\n\n\
         Generated by `BERTH_REGENERATE=1 cargo test -p integration-tests --test coverage` from `engine/tests/endpoints.tsv`,\n\
         `engine/tests/fields.tsv` and `cli/tests/commands.tsv`; the same test holds the tables against the sources and a live engine.\n\
         *done*: it does what Docker does, shown by the test; *refused*: it answers a clear error that names it.\n\n",
    );
    let count = |rows: &[Vec<String>], state: usize| {
        let done = rows.iter().filter(|row| row[state] == "done").count();
        format!("{} rows: {done} done, {} refused by name", rows.len(), rows.len() - done)
    };
    let rows = endpoints().rows;
    writeln!(page, "## Endpoints\n\n{}.\n\n| endpoint | tier | state | test |\n|---|---|---|---|", count(&rows, 3))
        .unwrap();
    for row in &rows {
        writeln!(page, "| {} `{}` | {} | {} | {} |", row[0], row[1], row[2], row[3], short(&row[4])).unwrap();
    }
    let rows = fields().rows;
    writeln!(page, "\n## Fields\n\n{}.\n\n| field | state | test |\n|---|---|---|", count(&rows, 2)).unwrap();
    for row in &rows {
        writeln!(page, "| {}.{} | {} | {} |", row[0], row[1], row[2], short(&row[3])).unwrap();
    }
    let rows = commands().rows;
    writeln!(
        page,
        "\n## Commands and flags\n\n{}.\n\n| command | flag | state | test |\n|---|---|---|---|",
        count(&rows, 2)
    )
    .unwrap();
    for row in &rows {
        let flag = if row[1] == "-" { String::new() } else { format!("`{}`", row[1]) };
        writeln!(page, "| {} | {flag} | {} | {} |", row[0], row[2], short(&row[3])).unwrap();
    }
    page
}

#[test]
fn the_page_is_up_to_date() {
    let (file, page) = (workspace().join("engine/COVERAGE.md"), page());
    if std::env::var_os("BERTH_REGENERATE").is_some() {
        fs::write(&file, &page).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == page,
        "engine/COVERAGE.md is not up to date: BERTH_REGENERATE=1 cargo test -p integration-tests --test coverage"
    );
}
