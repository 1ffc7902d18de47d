//! The same command lines through `docker` and `berth`, against Debian's dockerd and berth-engine: codes, standard output and
//! standard error are equal once ids, times and sizes are masked. What differs is in a list, each with its reason; an entry
//! that no longer differs fails the test, too.

use integration_tests::{
    Stack,
    dockerd::Dockerd,
    programs::{docker_or_skip, program},
    run_with,
};
use regex_lite::Regex;
use std::{fs, path::Path, process::Command, thread, time::Duration};

#[path = "cli_snapshot/lines.rs"]
mod lines;

use lines::{DIFFERENCES, LINES, Side};

/// The first docker client whose words the table was compared with; older ones say much otherwise.
const FIRST_CLIENT: u32 = 28;

/// What a line came to: code, standard output, standard error; masked.
type Said = (i32, String, String);

/// Splits a line as a shell does, as far as the table needs it: blanks separate, single quotes hold together.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut quoted, mut any) = (String::new(), false, false);
    for c in line.chars() {
        match c {
            '\'' => (quoted, any) = (!quoted, true),
            ' ' if !quoted => {
                if any || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                any = false;
            }
            c => word.push(c),
        }
    }
    if any || !word.is_empty() {
        words.push(word);
    }
    words
}

struct Masks {
    rules: Vec<(Regex, &'static str)>,
}

impl Masks {
    fn new() -> Self {
        let rules = [
            (r"\b[0-9a-f]{64}\b", "ID"),
            (r"\b[0-9a-f]{12}\b", "ID12"),
            (r"\b2[0-9]{3}-[0-9]{2}-[0-9]{2}[T ][0-9:]{8}(\.[0-9]+)?( ?(Z|[+-][0-9:]{4,5})( UTC)?)?", "TIME"),
            (
                r"(Less than a second|About a minute|About an hour|[0-9]+ (second|minute|hour|day|week|month|year)s?)( ago)?",
                "AGO",
            ),
            (r"\b([0-9a-f]{2}:){5}[0-9a-f]{2}\b", "MAC"),
            (r"\b10\.23[0-9]\.[0-9]+\.[0-9]+\b", "IP"),
            (r"\b[0-9]+(\.[0-9]+)?([kMGT]i?)?B\b", "SIZE"),
            (r"container [a-z]+_[a-z]+[0-9]? ", "container NAME "),
            (r"(?m)^[0-9]{2,7}\b", "PID"),
            // Columns are as wide as their widest cell, which may have been masked.
            (r" {2,}", "  "),
            (r"(?m) +$", ""),
        ];
        Self { rules: rules.into_iter().map(|(rule, word)| (Regex::new(rule).unwrap(), word)).collect() }
    }

    fn apply(&self, text: &str, folder: &Path) -> String {
        let text =
            text.replace(&folder.display().to_string(), "ROOT").replace("berth", "docker").replace("Berth", "Docker");
        self.rules.iter().fold(text, |text, (rule, word)| rule.replace_all(&text, *word).into_owned())
    }
}

/// Runs all lines with a client on an engine, whose state is the same before.
fn snapshot(client: impl Fn(&str) -> Command, name: &str, folder: &Path, masks: &Masks) -> Vec<Said> {
    let mut said = Vec::new();
    for line in LINES {
        let mut command = client(name);
        command.args(words(line)).env("TZ", "UTC").env("COLUMNS", "80").current_dir(folder);
        let outcome = run_with(&mut command, b"", Duration::from_secs(60));
        let text = |text: String| masks.apply(&text, folder);
        said.push((outcome.code(), text(outcome.stdout()), text(outcome.stderr())));
    }
    for cleanup in [
        "rm -f -v snap snap2 snap3 snap4",
        "volume rm -f snapvol",
        "network rm snapnet",
        "rmi -f snapimg:1 snapimg:2 snapimg:3",
    ] {
        run_with(client(name).args(words(cleanup)), b"", Duration::from_secs(60));
    }
    said
}

/// Both clients on one engine.
fn both(client: impl Fn(&str) -> Command, folder: &Path) -> [Vec<Said>; 2] {
    let masks = Masks::new();
    fs::write(folder.join("snapshot.env"), "FROM_FILE=1\n# not this\n").unwrap();
    let berth = program("berth").display().to_string();
    ["docker", berth.as_str()].map(|name| snapshot(&client, name, folder, &masks))
}

#[test]
fn docker_and_berth_say_the_same() {
    if docker_or_skip(FIRST_CLIENT).is_none() {
        return;
    }
    let Some(dockerd) = Dockerd::with_busybox() else { return };
    let stack = Stack::with_busybox();
    let (theirs, ours) = thread::scope(|scope| {
        let theirs = scope.spawn(|| both(|name| dockerd.client(name), dockerd.path()));
        let ours = both(|name| stack.client(name), stack.path());
        (theirs.join().unwrap(), ours)
    });
    let mut report = Vec::new();
    let mut check = |side: Side, line: &str, want: &Said, got: &Said, who: &str| {
        let allowed = DIFFERENCES.iter().find(|(known, on, _)| *known == line && *on == side);
        match allowed {
            None if want != got => {
                report.push(format!(
                    "## {side:?}: {line}\n{who}\n--- wanted {}\n{}{}\n--- got {}\n{}{}\n",
                    want.0, want.1, want.2, got.0, got.1, got.2
                ));
            }
            Some((_, _, reason)) if want == got => {
                report.push(format!("## {side:?}: {line}\n{who}: no longer differs; its reason was: {reason}"));
            }
            _ => {}
        }
    };
    for (at, line) in LINES.iter().enumerate() {
        check(Side::Cli, line, &theirs[0][at], &theirs[1][at], "docker and berth, on dockerd");
        check(Side::Engine, line, &theirs[0][at], &ours[0][at], "docker, on dockerd and on berth-engine");
        check(Side::CliOnBerth, line, &ours[0][at], &ours[1][at], "docker and berth, on berth-engine");
    }
    if let Ok(path) = std::env::var("BERTH_SNAPSHOT_REPORT") {
        fs::write(path, report.join("\n")).unwrap();
    }
    assert!(report.is_empty(), "{} differences in {} lines\n{}", report.len(), LINES.len(), report.join("\n"));
    assert!(LINES.len() >= 100);
    for (line, _, reason) in DIFFERENCES {
        assert!(LINES.contains(line), "{line}: not a line of the table");
        assert!(reason.len() > 10, "{line}: a difference needs a reason");
    }
}
