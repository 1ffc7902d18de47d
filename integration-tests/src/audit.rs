//! Invariants of a stack that runs: whatever it holds on the machine has an owner among its containers.
//!
//! [`Stack::audit`] compares what the engine says of its containers with processes, mounts, namespaces, links, cgroups, bundles,
//! sockets, FIFOs, snapshots and records, and tells what has no owner, or lacks what it must have.

use crate::{Stack, eventually_within};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

/// One thing that is wrong, in words.
pub type Finding = String;

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Ids of containers by the processes that are in a cgroup of that name.
fn processes_by_id() -> BTreeMap<String, BTreeSet<u32>> {
    let mut found: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A zombie is in its cgroup too, and has no memory left that could be mapped.
        if fs::read_link(entry.path().join("exe")).is_err() {
            continue;
        }
        let cgroups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        for id in cgroups.lines().filter_map(|line| line.rsplit('/').next()).filter(|name| is_id(name)) {
            found.entry(id.to_owned()).or_default().insert(pid);
        }
    }
    found
}

impl Stack {
    /// Ids of every container that this stack ever had, from the logs of its daemons.
    pub fn ids_ever(&self) -> BTreeSet<String> {
        let logs = ["berth-engine.log", "berth-supervisor.log", "data/supervisor.log"];
        let mut found = names(&self.data_root().join("engine/containers"));
        for log in logs {
            let text = fs::read(self.path().join(log)).unwrap_or_default();
            let words = text.split(|b| !b.is_ascii_hexdigit()).filter(|word| word.len() == 64);
            found.extend(words.map(|word| String::from_utf8_lossy(word).into_owned()));
        }
        found.retain(|name| is_id(name));
        found
    }

    /// What has no owner, and what containers lack. `layers` is the number of snapshots that images have.
    pub fn audit(&self, layers: usize) -> Vec<Finding> {
        let listed = match self.api().attempt("GET", "/containers/json?all=1", None) {
            Ok(answer) if answer.status == 200 => answer.json(),
            other => return vec![format!("ps fails: {other:?}")],
        };
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let containers: BTreeMap<String, String> = listed
            .as_array()
            .into_iter()
            .flatten()
            .map(|container| (text(container, "Id"), text(container, "State")))
            .collect();
        let known: BTreeSet<String> = containers.keys().cloned().collect();
        let live: BTreeSet<String> = containers
            .iter()
            .filter(|(_, state)| matches!(state.as_str(), "running" | "paused"))
            .map(|(id, _)| id.clone())
            .collect();
        let mut findings = Vec::new();
        for (id, state) in &containers {
            if !matches!(state.as_str(), "created" | "running" | "paused" | "exited") {
                findings.push(format!("container {id} is stuck in state {state:?}"));
            }
        }
        let mut compare = |what: &str, found: &BTreeSet<String>, wanted: &BTreeSet<String>, all: bool| {
            findings.extend(found.difference(wanted).map(|id| format!("{what} without owner: {id}")));
            if all {
                findings.extend(wanted.difference(found).map(|id| format!("{what} is missing: {id}")));
            }
        };
        let ever = self.ids_ever();
        let ours = |id: &String| ever.contains(id) || known.contains(id);
        let processes = processes_by_id();
        compare("process", &processes.keys().filter(|id| ours(id)).cloned().collect(), &live, true);
        compare("shim", &self.shims().into_keys().collect(), &live, true);
        compare("bundle", &names(&self.run_root().join("supervisor/tasks/berth")), &live, true);
        compare("state of the runtime", &names(&self.run_root().join("runtime/berth")), &live, true);
        // Pinned only until the container's process is in it.
        compare("network namespace", &names(&self.run_root().join("engine/netns")), &live, false);
        compare("link", &self.links(), &live, true);
        compare("cgroup", &cgroups().into_iter().filter(ours).collect(), &live, false);
        // Only those of runtimes that take their root by path.
        compare("mount", &self.mounts(), &live, false);
        compare("folder", &names(&self.data_root().join("engine/containers")), &known, true);
        compare("FIFO", &names(&self.run_root().join("engine/streams")), &BTreeSet::new(), false);
        let sockets = names(&self.run_root().join("s")).len();
        if sockets != live.len() {
            findings.push(format!("{sockets} sockets of shims for {} running containers", live.len()));
        }
        let mut snapshots = names(&self.data_root().join("supervisor/snapshots/overlayfs"));
        snapshots.retain(|name| name.bytes().all(|b| b.is_ascii_digit()));
        if snapshots.len() != layers + known.len() {
            findings.push(format!(
                "{} snapshots for {layers} layers and {} containers: {snapshots:?}",
                snapshots.len(),
                known.len()
            ));
        }
        findings
    }

    /// Waits until nothing is wrong any more: clean-up goes on for a moment after the answer. Panics with the findings.
    #[track_caller]
    pub fn assert_sound(&self, layers: usize, when: &str) {
        let mut findings = Vec::new();
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually_within(Duration::from_secs(60), "the stack is sound", || {
                findings = self.audit(layers);
                findings.is_empty().then_some(())
            });
        }));
        assert!(waited.is_ok(), "{when}: {findings:#?}\n{}", self.said_of(&findings));
    }

    /// What the logs say of the containers that are named in `findings`.
    fn said_of(&self, findings: &[Finding]) -> String {
        let words = findings.iter().flat_map(|finding| finding.split(|c: char| !c.is_ascii_hexdigit()));
        let ids: BTreeSet<&str> = words.filter(|word| is_id(word)).map(|id| &id[..12]).collect();
        let mut said = String::new();
        for log in ["berth-engine.log", "berth-supervisor.log"] {
            let text = fs::read_to_string(self.path().join(log)).unwrap_or_default();
            said.push_str(&format!("--- {log}, of these\n"));
            for line in text.lines().filter(|line| line.contains(" serves ") || ids.iter().any(|id| line.contains(id)))
            {
                said.push_str(line);
                said.push('\n');
            }
        }
        said
    }

    /// Shims of this stack: container and process id.
    pub fn shims(&self) -> BTreeMap<String, u32> {
        let folder = self.path().display().to_string();
        let mut found = BTreeMap::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|b| *b == 0).map(String::from_utf8_lossy).collect();
            if words.first().is_some_and(|program| program.ends_with("shim"))
                && words.iter().any(|word| word.contains(&folder))
                && let Some(at) = words.iter().position(|word| word.trim_start_matches('-') == "id")
                && let Some(id) = words.get(at + 1)
            {
                found.insert(id.clone().into_owned(), pid);
            }
        }
        found
    }

    fn links(&self) -> BTreeSet<String> {
        let prefix = format!("berth {} ", self.bridge());
        let aliases = names(Path::new("/sys/class/net")).into_iter().filter_map(|link| {
            let alias = fs::read_to_string(format!("/sys/class/net/{link}/ifalias")).ok()?;
            let owner = alias.trim().strip_prefix(&prefix)?.to_owned();
            // A link that was cut off waits for the kernel: it leads nowhere.
            Path::new(&format!("/sys/class/net/{link}/master")).exists().then_some(owner)
        });
        aliases.collect()
    }

    fn mounts(&self) -> BTreeSet<String> {
        let tasks = self.run_root().join("supervisor/tasks/berth");
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        let owned = points.filter_map(|point| Path::new(point).strip_prefix(&tasks).ok());
        owned.filter_map(|below| Some(below.iter().next()?.to_str()?.to_owned())).collect()
    }
}

fn cgroups() -> BTreeSet<String> {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = names(top).into_iter().map(|name| top.join(name)).chain([top.to_owned()]);
    hierarchies.flat_map(|hierarchy| names(&hierarchy.join("berth"))).filter(|name| is_id(name)).collect()
}
