//! What tests can leave on a machine: mounts, network namespaces, links, firewall tables and their rules, cgroups, processes, files.

use crate::{command::run, eventually_within, programs::peer};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fs, path::Path, time::Duration};

/// The state of the machine, as far as tests can change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    tables: BTreeSet<String>,
    rules: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    processes: BTreeSet<String>,
    files: BTreeSet<String>,
}

fn mounts() -> BTreeSet<String> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').nth(4)).map(str::to_owned).collect()
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().display().to_string()).collect()
}

fn tables() -> BTreeSet<String> {
    match peer("nft") {
        Some(nft) => run(nft, ["list", "tables"]).stdout().lines().map(str::to_owned).collect(),
        None => BTreeSet::new(),
    }
}

// Everything in the tables, without what is counted: also what somebody put into a table that was there before.
fn rules() -> BTreeSet<String> {
    let Some(nft) = peer("nft") else { return BTreeSet::new() };
    let (mut found, mut table, mut part) = (BTreeSet::new(), String::new(), String::new());
    for line in run(nft, ["-s", "list", "ruleset"]).stdout().lines().map(|line| line.trim_end_matches(" {")) {
        match line.bytes().take_while(|byte| *byte == b'\t').count() {
            _ if line.starts_with('#') || line.trim_matches(['\t', '}']).is_empty() => {}
            0 => (table, part) = (line.to_owned(), String::new()),
            1 => part = line.trim().to_owned(),
            _ => drop(found.insert(format!("{table} {part}: {}", line.trim()))),
        }
    }
    found
}

fn cgroups() -> BTreeSet<String> {
    fn walk(folder: &Path, depth: u8, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.insert(entry.path().display().to_string());
                if depth > 0 {
                    walk(&entry.path(), depth - 1, found);
                }
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(Path::new("/sys/fs/cgroup"), 4, &mut found);
    found.retain(|path| !path.contains("/process_api"));
    found
}

// Command lines of Berth's programs, with their pids.
fn processes() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        if program == "berth" || program.starts_with("berth-") || program.starts_with("containerd-shim") {
            found.insert(format!("{} {line}", entry.file_name().to_string_lossy()));
        }
    }
    found
}

impl Machine {
    /// Looks at the machine.
    pub fn look() -> Self {
        let mut files = names("/tmp");
        files.retain(|path| path.contains("/berth-"));
        files.extend(names("/run/berth"));
        files.extend(names("/run/berth-runtime"));
        files.extend(names("/run/netns"));
        Self {
            mounts: mounts(),
            links: names("/sys/class/net"),
            tables: tables(),
            rules: rules(),
            cgroups: cgroups(),
            processes: processes(),
            files,
        }
    }

    /// What is in `self` and wasn't in `before`, one line each.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        let kinds = [
            ("mount", &self.mounts, &before.mounts),
            ("link", &self.links, &before.links),
            ("firewall table", &self.tables, &before.tables),
            ("firewall rule", &self.rules, &before.rules),
            ("cgroup", &self.cgroups, &before.cgroups),
            ("process", &self.processes, &before.processes),
            ("file", &self.files, &before.files),
        ];
        kinds
            .into_iter()
            .flat_map(|(kind, now, then)| now.difference(then).map(move |item| format!("{kind} {item}")))
            .collect()
    }
}

/// Processes of a program whose command line names a folder.
pub fn processes_of(folder: &Path, program: &str) -> Vec<u32> {
    let text = folder.display().to_string();
    let line = |pid: &u32| {
        let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| [program, &text].into_iter().all(|word| line(pid).contains(word))).collect()
}

/// What a stack that has ended left behind: mounts and processes that name its folder, its bridge and its table where that is on this
/// machine.
///
/// Processes may take a moment to be reaped: the look is repeated for up to five seconds.
pub fn of_stack(folder: &Path, bridge: Option<&str>) -> Vec<String> {
    let text = folder.display().to_string();
    let look = || {
        let mut found: Vec<String> =
            mounts().into_iter().filter(|m| m.starts_with(&text)).map(|m| format!("mount {m}")).collect();
        found.extend(processes().into_iter().filter(|p| p.contains(&text)).map(|p| format!("process {p}")));
        let Some(bridge) = bridge else { return found };
        found.extend(
            names("/sys/class/net")
                .into_iter()
                .filter(|l| {
                    // Bridges of users' networks, and ends of links on the host, say whose they are.
                    let alias = fs::read_to_string(Path::new(l).join("ifalias")).unwrap_or_default();
                    l.ends_with(&format!("/{bridge}")) || alias.starts_with(&format!("berth {bridge} "))
                })
                .map(|l| format!("link {l}")),
        );
        found.extend(
            tables().into_iter().filter(|t| t.ends_with(&format!("_{bridge}"))).map(|t| format!("firewall {t}")),
        );
        found
    };
    let clean = std::panic::catch_unwind(|| {
        eventually_within(Duration::from_secs(5), "nothing is left", || look().is_empty().then_some(()));
    });
    if clean.is_ok() { Vec::new() } else { look() }
}
