//! Shares of cache and memory bandwidth (Intel RDT, AMD QoS) by groups of the `resctrl` file system, and what a group used.
//!
//! ```text
//! <resctrl>/info/..  schemata  tasks  mon_data/..        the group of everybody else
//! <resctrl>/<closID or id>/schemata  tasks  mon_data/..
//!                         mon_groups/<id>/tasks  mon_data/..
//! ```
//! Nothing here is asked of the kernel unless config.json has `linux.intelRdt`.

#![expect(clippy::disallowed_methods, reason = "resctrl of the host")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::plan::rdt::RdtPlan;

/// What went wrong with a group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RdtError {
    /// The machine cannot do it.
    #[error("linux.intelRdt: this kernel and processor have no resctrl file system (Intel RDT or AMD QoS)")]
    NotThere,
    /// It is there and nobody has mounted it.
    #[error("linux.intelRdt: resctrl is not mounted: mount -t resctrl resctrl {DEFAULT}")]
    NotMounted,
    /// A class that has to be there.
    #[error("linux.intelRdt.closID: {0} does not exist, and there is no schema to make it with")]
    NoGroup(PathBuf),
    /// Somebody's class has other shares than config.json says.
    #[error("linux.intelRdt: {0} has other schemata: {1}")]
    Differs(PathBuf, String),
    /// A file or folder.
    #[error("{action} {path}{status}")]
    Io {
        action: &'static str,
        path: PathBuf,
        /// What the kernel says about it beyond the error.
        status: String,
        #[source]
        cause: std::io::Error,
    },
}

/// Where it is usually mounted.
const DEFAULT: &str = "/sys/fs/resctrl";

/// Finds the file system: at its usual place, else wherever it is mounted.
pub(crate) fn root() -> Result<PathBuf, RdtError> {
    const MAGIC: i64 = 0x765_5821;
    let usual = fs::File::open(DEFAULT).ok();
    if usual.is_some_and(|folder| sys::path::filesystem_magic(&folder) == Ok(MAGIC)) {
        return Ok(DEFAULT.into());
    }
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if !text("/proc/filesystems").lines().any(|line| line.trim_start_matches("nodev").trim() == "resctrl") {
        return Err(RdtError::NotThere);
    }
    mount_point(&text("/proc/self/mountinfo")).ok_or(RdtError::NotMounted)
}

fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let point = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "resctrl").then(|| before.split(' ').nth(4).map(PathBuf::from))?
    };
    mountinfo.lines().find_map(point)
}

/// The group of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Group {
    root: PathBuf,
    path: PathBuf,
    /// Ours to remove.
    made: bool,
    /// The folder of the container's own numbers.
    monitor: Option<PathBuf>,
    /// Its numbers are among the statistics.
    monitored: bool,
}

impl Group {
    /// Works out which group it is; nothing is made yet, so that it can be written down first.
    pub(crate) fn locate(root: PathBuf, plan: &RdtPlan, id: &str) -> Result<Self, RdtError> {
        let (path, made) = match plan.clos_id.as_deref() {
            // What has the container's name is its own, even if an earlier one of that name left it behind.
            None => (root.join(id), true),
            Some("/") => (root.clone(), false),
            Some(name) => {
                let path = root.join(name);
                let made = !path.is_dir();
                (path, made)
            }
        };
        if made && plan.clos_id.is_some() && plan.lines.is_empty() {
            return Err(RdtError::NoGroup(path));
        }
        let monitor = plan.monitoring.then(|| path.join("mon_groups").join(id));
        Ok(Self { root, path, made, monitor, monitored: plan.monitoring || plan.statistics })
    }

    /// Makes it, with its shares; or makes sure that the shares of one that is there are those asked for.
    pub(crate) fn make(&self, plan: &RdtPlan) -> Result<(), RdtError> {
        if self.made {
            self.make_folder(&self.path)?;
            self.share(&plan.lines)?;
        } else if let Some(line) = self.differing(&plan.lines)? {
            return Err(RdtError::Differs(self.path.clone(), line));
        }
        match &self.monitor {
            Some(folder) => self.make_folder(folder),
            None => Ok(()),
        }
    }

    /// Changes shares.
    pub(crate) fn share(&self, lines: &[String]) -> Result<(), RdtError> {
        if lines.is_empty() {
            return Ok(());
        }
        let file = self.path.join("schemata");
        let write = |mut to: fs::File| to.write_all(format!("{}\n", lines.join("\n")).as_bytes());
        let done = fs::OpenOptions::new().write(true).open(&file).and_then(write);
        done.map_err(|cause| self.failed("write linux.intelRdt to", file, cause))
    }

    /// The first line that says something else than the group has.
    fn differing(&self, lines: &[String]) -> Result<Option<String>, RdtError> {
        if lines.is_empty() {
            return Ok(None);
        }
        let has = parse(&self.read(&self.path.join("schemata"))?);
        let differs = |line: &&String| parse(line).iter().any(|(key, value)| has.get(key) != Some(value));
        Ok(lines.iter().find(differs).cloned())
    }

    /// Files to write a "0" to, by the process that is to be in the group: first the group, then its part that is counted.
    pub(crate) fn task_files(&self) -> Result<Vec<OwnedFd>, RdtError> {
        let folders = [Some(&self.path), self.monitor.as_ref()];
        let open = |folder: &PathBuf| {
            let file = folder.join("tasks");
            let opened = fs::OpenOptions::new().write(true).open(&file);
            opened.map(OwnedFd::from).map_err(|cause| self.failed("open", file, cause))
        };
        folders.into_iter().flatten().map(open).collect()
    }

    /// Moves processes that run already.
    pub(crate) fn add(&self, pids: impl Iterator<Item = i32>) -> Result<(), RdtError> {
        for pid in pids {
            // Each thread is a task of its own; those that end meanwhile need no share.
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            for name in threads.map(|thread| thread.file_name()) {
                for folder in [Some(&self.path), self.monitor.as_ref()].into_iter().flatten() {
                    let file = folder.join("tasks");
                    match fs::OpenOptions::new()
                        .write(true)
                        .open(&file)
                        .and_then(|mut to| to.write_all(name.as_encoded_bytes()))
                    {
                        Err(cause) if cause.raw_os_error() != Some(nix::libc::ESRCH) => {
                            return Err(self.failed("write to", file, cause));
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Removes what was made here. A class that others have joined meanwhile stays.
    pub(crate) fn remove(&self) -> Result<(), RdtError> {
        if let Some(folder) = &self.monitor {
            self.remove_folder(folder)?;
        }
        let is_used = || fs::read_to_string(self.path.join("tasks")).is_ok_and(|tasks| !tasks.trim().is_empty());
        if self.made && !is_used() { self.remove_folder(&self.path) } else { Ok(()) }
    }

    fn make_folder(&self, folder: &Path) -> Result<(), RdtError> {
        match fs::create_dir(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(self.failed("make resctrl group", folder.to_owned(), error))
            }
            _ => Ok(()),
        }
    }

    fn remove_folder(&self, folder: &Path) -> Result<(), RdtError> {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(self.failed("remove resctrl group", folder.to_owned(), error))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, file: &Path) -> Result<String, RdtError> {
        fs::read_to_string(file).map_err(|cause| self.failed("read", file.to_owned(), cause))
    }

    /// The kernel keeps a sentence about what was wrong with the last write.
    fn failed(&self, action: &'static str, path: PathBuf, cause: std::io::Error) -> RdtError {
        let status = fs::read_to_string(self.root.join("info/last_cmd_status")).unwrap_or_default();
        let status = match status.trim() {
            "" | "ok" => String::new(),
            text => format!(" ({text})"),
        };
        RdtError::Io { action, path, status, cause }
    }

    /// `intel_rdt` of the statistics, by runc's names.
    pub(crate) fn stats(&self) -> Result<Map<String, Value>, RdtError> {
        let mut stats = Map::new();
        let (all, own) = (self.read(&self.root.join("schemata"))?, self.read(&self.path.join("schemata"))?);
        for (kind, info, schema) in [("L3", "l3_cache_info", "l3_cache_schema"), ("MB", "mem_bw_info", "mem_bw_schema")]
        {
            let folder = self.root.join("info").join(kind);
            if !folder.is_dir() {
                continue;
            }
            let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default().trim().to_owned();
            let number = |file: &str| text(file).parse::<u64>().unwrap_or(0);
            let about = match kind {
                "L3" => json!({"cbm_mask": text("cbm_mask"), "min_cbm_bits": number("min_cbm_bits"),
                    "num_closids": number("num_closids")}),
                _ => json!({"bandwidth_gran": number("bandwidth_gran"), "delay_linear": number("delay_linear"),
                    "min_bandwidth": number("min_bandwidth"), "num_closids": number("num_closids")}),
            };
            stats.insert(info.into(), about);
            let line = |text: &str| text.lines().map(str::trim).find(|line| line.starts_with(kind)).map(str::to_owned);
            for (key, text) in [(format!("{schema}_root"), &all), (schema.to_owned(), &own)] {
                if let Some(line) = line(text) {
                    stats.insert(key, line.into());
                }
            }
        }
        if self.monitored {
            self.count(&mut stats);
        }
        Ok(stats)
    }

    /// What was used, per domain of cache.
    fn count(&self, stats: &mut Map<String, Value>) {
        let has = fs::read_to_string(self.root.join("info/L3_MON/mon_features")).unwrap_or_default();
        let has = |feature: &str| has.lines().any(|line| line.trim() == feature);
        let folder = self.monitor.as_ref().unwrap_or(&self.path).join("mon_data");
        let mut domains: Vec<PathBuf> =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|it| it.path()).collect();
        domains.sort();
        let number = |domain: &Path, file: &str| {
            fs::read_to_string(domain.join(file)).ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        let each = |files: &[&str]| {
            let one = |domain: &PathBuf| {
                Value::Object(files.iter().map(|file| ((*file).to_owned(), number(domain, file).into())).collect())
            };
            Value::Array(domains.iter().map(one).collect())
        };
        if has("mbm_total_bytes") || has("mbm_local_bytes") {
            stats.insert("mbm_stats".into(), each(&["mbm_total_bytes", "mbm_local_bytes"]));
        }
        if has("llc_occupancy") {
            stats.insert("cmt_stats".into(), each(&["llc_occupancy"]));
        }
    }
}

/// `L3:0=0ff;1=f` -> (L3, 0) is ff, (L3, 1) is f. The kernel pads names and may pad numbers.
fn parse(schemata: &str) -> BTreeMap<(String, String), String> {
    let mut all = BTreeMap::new();
    for (name, rest) in schemata.lines().filter_map(|line| line.split_once(':')) {
        for (domain, value) in rest.split(';').filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
            all.insert((name.trim().to_owned(), domain.trim().to_owned()), value);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like resctrl. (It does not fill new groups by itself, as the kernel does.)
    fn fake() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("folder");
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, text).expect("write");
        };
        write("schemata", "    L3:0=fffff;1=fffff\n    MB:0=100;1=100\n");
        write("tasks", "1\n");
        write("info/last_cmd_status", "ok\n");
        write("info/L3/cbm_mask", "fffff\n");
        write("info/L3/min_cbm_bits", "1\n");
        write("info/L3/num_closids", "16\n");
        write("info/MB/min_bandwidth", "10\n");
        write("info/L3_MON/mon_features", "llc_occupancy\nmbm_total_bytes\nmbm_local_bytes\n");
        write("gold/schemata", "    L3:0=0000f;1=0000f\n    MB:0= 50;1= 50\n");
        write("gold/tasks", "7\n");
        write("gold/mon_groups/.keep", "");
        write("gold/mon_groups/web/mon_data/mon_L3_00/llc_occupancy", "4096\n");
        write("gold/mon_groups/web/mon_data/mon_L3_00/mbm_total_bytes", "10\n");
        write("gold/mon_groups/web/mon_data/mon_L3_00/mbm_local_bytes", "4\n");
        write("gold/mon_groups/web/tasks", "");
        dir
    }

    fn plan(clos_id: Option<&str>, lines: &[&str], monitoring: bool) -> RdtPlan {
        let lines = lines.iter().map(|line| (*line).to_owned()).collect();
        RdtPlan { clos_id: clos_id.map(str::to_owned), lines, monitoring, statistics: false }
    }

    fn group(dir: &tempfile::TempDir, plan: &RdtPlan) -> Group {
        Group::locate(dir.path().to_owned(), plan, "web").expect("a group")
    }

    #[test]
    fn a_container_gets_a_group_of_its_own() {
        let dir = fake();
        let plan = plan(None, &["L3:0=f;1=f", "MB:0=20;1=20"], false);
        let group = group(&dir, &plan);
        assert!(!dir.path().join("web").exists(), "looking makes nothing");
        // The kernel makes these files with the folder.
        fs::create_dir(dir.path().join("web")).expect("folder");
        fs::write(dir.path().join("web/schemata"), "").expect("write");
        fs::write(dir.path().join("web/tasks"), "").expect("write");
        group.make(&plan).expect("made");
        assert_eq!(fs::read_to_string(dir.path().join("web/schemata")).expect("read"), "L3:0=f;1=f\nMB:0=20;1=20\n");
        assert_eq!(group.task_files().expect("files").len(), 1);
        let kept: Group = serde_json::from_str(&serde_json::to_string(&group).expect("json")).expect("json");
        assert_eq!(kept, group);
        fs::remove_file(dir.path().join("web/schemata")).expect("remove");
        fs::remove_file(dir.path().join("web/tasks")).expect("remove");
        group.remove().expect("removed");
        assert!(!dir.path().join("web").exists());
        group.remove().expect("twice is fine");
    }

    #[test]
    fn the_class_of_somebody_else_is_used_as_it_is() {
        let dir = fake();
        let same = plan(Some("gold"), &["L3:0=f;1=00f", "MB:1=50"], true);
        let found = group(&dir, &same);
        found.make(&same).expect("the same");
        assert_eq!(found.task_files().expect("files").len(), 2, "class and monitoring group");
        let other = plan(Some("gold"), &["L3:0=ff"], false);
        let error = group(&dir, &other).make(&other).expect_err("differs").to_string();
        assert!(error.contains("gold has other schemata: L3:0=ff"), "{error}");
        let unsaid = plan(Some("gold"), &[], false);
        group(&dir, &unsaid).make(&unsaid).expect("as it is");
        group(&dir, &unsaid).remove().expect("left");
        assert!(dir.path().join("gold/schemata").exists());
        let missing = plan(Some("lead"), &[], false);
        let error = Group::locate(dir.path().to_owned(), &missing, "web").expect_err("missing").to_string();
        assert!(error.contains("closID") && error.contains("lead does not exist"), "{error}");
        assert!(!group(&dir, &plan(Some("/"), &[], false)).made, "the group of everybody else is nobody's to remove");
    }

    #[test]
    fn a_class_that_others_joined_stays() {
        let dir = fake();
        let mut group = group(&dir, &plan(Some("gold"), &[], false));
        group.made = true;
        group.remove().expect("left alone");
        assert!(dir.path().join("gold").exists());
    }

    #[test]
    fn statistics_have_the_names_of_runc() {
        let dir = fake();
        let stats = Value::from(group(&dir, &plan(Some("gold"), &[], true)).stats().expect("stats"));
        let expected = json!({
            "l3_cache_info": {"cbm_mask": "fffff", "min_cbm_bits": 1, "num_closids": 16},
            "l3_cache_schema_root": "L3:0=fffff;1=fffff",
            "l3_cache_schema": "L3:0=0000f;1=0000f",
            "mem_bw_info": {"bandwidth_gran": 0, "delay_linear": 0, "min_bandwidth": 10, "num_closids": 0},
            "mem_bw_schema_root": "MB:0=100;1=100",
            "mem_bw_schema": "MB:0= 50;1= 50",
            "mbm_stats": [{"mbm_total_bytes": 10, "mbm_local_bytes": 4}],
            "cmt_stats": [{"llc_occupancy": 4096}],
        });
        assert_eq!(stats, expected);
    }

    #[test]
    fn what_the_kernel_says_is_told() {
        let dir = fake();
        fs::write(dir.path().join("info/last_cmd_status"), "mask out of range\n").expect("write");
        let group = group(&dir, &plan(None, &["L3:0=f"], false));
        let error = group.share(&["L3:0=f".to_owned()]).expect_err("no such file").to_string();
        assert!(error.ends_with("web/schemata (mask out of range)"), "{error}");
    }

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let text =
            "22 1 0:5 / /proc rw - proc proc rw\n40 30 0:36 / /mnt/rdt rw,nosuid shared:9 - resctrl none rw,mba_MBps\n";
        assert_eq!(mount_point(text), Some("/mnt/rdt".into()));
        assert_eq!(mount_point("22 1 0:5 / /resctrl rw - proc proc rw\n"), None);
    }
}
