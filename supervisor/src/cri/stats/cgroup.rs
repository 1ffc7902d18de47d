//! Where cgroups are: those of containers, by what the kernel says of their first process, and those of pods, by what the kubelet
//! says.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use nix::{
    dir::{Dir, Type},
    fcntl::{OFlag, openat},
    sys::stat::{Mode, fstat},
};
use proto::runtime::v1 as cri;

use super::files::{self, Reader};

/// Where every Linux has them.
pub(super) const ROOT: &str = "/sys/fs/cgroup";
/// The controllers of version 1 that count something; each has a link to where it is mounted with others.
const CONTROLLERS: [&str; 6] = ["cpuacct", "cpu", "memory", "pids", "blkio", "hugetlb"];

/// How cgroups are mounted here.
#[derive(Debug, Clone)]
pub(super) struct Hierarchies {
    root: PathBuf,
    /// One tree with all controllers (version 2), not one for each.
    unified: bool,
}

/// The folders of one cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cgroup {
    /// One folder.
    V2(PathBuf),
    /// One for each controller, and on hybrid machines one without any, which knows of pressure.
    V1(Vec<(&'static str, PathBuf)>, Option<PathBuf>),
}

impl Hierarchies {
    /// Those below `root`.
    pub(super) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), unified: root.join("cgroup.controllers").exists() }
    }

    /// Whether it is version 2.
    pub(super) fn is_unified(&self) -> bool {
        self.unified
    }

    /// Whether there is something of this name at the top: with version 1, a controller.
    pub(super) fn has(&self, name: &str) -> bool {
        self.root.join(name).exists()
    }

    /// Whether any cgroup but the root has a file of this name.
    pub(super) fn any_below(&self, name: &str) -> bool {
        fs::read_dir(&self.root).into_iter().flatten().flatten().any(|entry| entry.path().join(name).is_file())
    }

    /// The folder that is all cgroups of a controller.
    pub(super) fn top(&self, controller: &str) -> PathBuf {
        if self.unified { self.root.clone() } else { self.root.join(controller) }
    }

    /// The cgroup of the container whose first process is `pid`.
    pub(super) fn of_process(&self, pid: u32, id: &str) -> Option<Cgroup> {
        self.of_container(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?, id)
    }

    /// Reads cgroups(7), /proc/PID/cgroup. A container's cgroup has its id in its name; one below it is its own business (an init
    /// system moves itself), and a process without such a cgroup isn't this container's, but another that got its number.
    fn of_container(&self, text: &str, id: &str) -> Option<Cgroup> {
        let lines = text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
            Some((controllers, own(path, id)?))
        });
        let (mut folders, mut unified) = (Vec::new(), None);
        for (controllers, path) in lines {
            if controllers.is_empty() {
                unified = Some(path);
            }
            let known = controllers.split(',').filter_map(|name| CONTROLLERS.into_iter().find(|known| *known == name));
            folders.extend(known.map(|name| (name, below(&self.root.join(name), path))));
        }
        if self.unified {
            return unified.map(|path| Cgroup::V2(below(&self.root, path)));
        }
        let unified = unified.map(|path| below(&self.root.join("unified"), path));
        (!folders.is_empty()).then_some(Cgroup::V1(folders, unified))
    }

    /// The cgroup that the kubelet has made for a pod.
    pub(super) fn of_pod(&self, parent: &str, driver: cri::CgroupDriver) -> Option<Cgroup> {
        let path = match driver {
            cri::CgroupDriver::Cgroupfs => parent.to_owned(),
            cri::CgroupDriver::Systemd => slice(parent)?,
        };
        if path.split('/').any(|part| part == "..") || path.trim_matches('/').is_empty() {
            return None;
        }
        if self.unified {
            return Some(Cgroup::V2(below(&self.root, &path)));
        }
        let folders = CONTROLLERS.into_iter().map(|name| (name, below(&self.root.join(name), &path)));
        Some(Cgroup::V1(folders.collect(), Some(below(&self.root.join("unified"), &path))))
    }
}

impl Cgroup {
    /// The folder with the files of a controller.
    pub(super) fn folder(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::V2(folder) => Some(folder),
            Self::V1(folders, _) => {
                folders.iter().find(|(name, _)| *name == controller).map(|(_, folder)| folder.as_path())
            }
        }
    }

    /// The processes in it and in all below it; `None` if it is gone.
    pub(super) fn processes(&self, reader: &mut Reader) -> Option<Vec<u32>> {
        let one = |name| self.folder(name).and_then(files::folder);
        let folder = ["pids", "memory", "cpuacct", "blkio"].into_iter().find_map(one)?;
        let mut found = Vec::new();
        collect(reader, folder, &mut found)?;
        // Version 1 promises neither order nor that each is there once.
        found.sort_unstable();
        found.dedup();
        Some(found)
    }
}

fn collect(reader: &mut Reader, folder: OwnedFd, found: &mut Vec<u32>) -> Option<()> {
    let text = reader.text(&folder, "cgroup.procs")?;
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    // A folder with no other in it has two links, on the file systems that count them.
    if fstat(&folder).is_ok_and(|stat| stat.st_nlink == 2) {
        return Some(());
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut all = Dir::openat(&folder, ".", flags, Mode::empty()).ok()?;
    for entry in all.iter().flatten() {
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && name != c"." && name != c".." {
            // One that vanishes meanwhile has no processes.
            let inner = openat(&folder, name, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
            let _ = inner.ok().and_then(|inner| collect(reader, inner, found));
        }
    }
    Some(())
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// The beginning of a path, up to the part that is named after a container: by itself, or as systemd's unit `PREFIX-ID.scope`.
fn own<'a>(path: &'a str, id: &str) -> Option<&'a str> {
    let mut end = 0;
    for part in path.split('/') {
        // Outside of what we see.
        if part == ".." {
            return None;
        }
        end += part.len();
        let unit = || part.strip_suffix(".scope")?.strip_suffix(id);
        if part == id || unit().is_some_and(|prefix| prefix.is_empty() || prefix.ends_with('-')) {
            return Some(&path[..end]);
        }
        end += 1;
    }
    None
}

/// Where systemd has a slice: `a-b.slice` is in `a.slice` (systemd.slice(5)).
fn slice(parent: &str) -> Option<String> {
    let name = parent.rsplit('/').next()?.strip_suffix(".slice")?;
    if name.split('-').any(str::is_empty) {
        return None;
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Some(ends.map(|end| format!("/{}.slice", &name[..end])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123abcd";

    #[test]
    fn cgroups_of_containers() {
        let v1 = Hierarchies { root: "/r".into(), unified: false };
        let text = format!(
            "7:blkio:/kubepods/pod1/{ID}\n4:memory:/outer/{ID}/init.scope\n3:cpu,cpuacct:/kubepods/pod1/{ID}\n\
             2:name=systemd:/{ID}\n1:pids:/somewhere\n0::/kubepods/pod1/{ID}\n"
        );
        let cgroup = v1.of_container(&text, ID).unwrap();
        for (controller, folder) in [
            ("blkio", Some(format!("/r/blkio/kubepods/pod1/{ID}"))),
            ("memory", Some(format!("/r/memory/outer/{ID}"))),
            ("cpu", Some(format!("/r/cpu/kubepods/pod1/{ID}"))),
            ("cpuacct", Some(format!("/r/cpuacct/kubepods/pod1/{ID}"))),
            ("pids", None),
            ("hugetlb", None),
        ] {
            assert_eq!(cgroup.folder(controller), folder.as_ref().map(Path::new), "{controller}");
        }
        let Cgroup::V1(_, unified) = cgroup else { panic!("version 1") };
        assert_eq!(unified, Some(format!("/r/unified/kubepods/pod1/{ID}").into()));

        let v2 = Hierarchies { root: "/r".into(), unified: true };
        for (path, folder) in [
            (format!("/kubepods/pod1/{ID}"), Some(format!("/r/kubepods/pod1/{ID}"))),
            (format!("/a.slice/cri-berth-{ID}.scope/init.scope"), Some(format!("/r/a.slice/cri-berth-{ID}.scope"))),
            // Of a runtime within the container, with a container of the same id by chance.
            (format!("/a/{ID}/docker/{ID}"), Some(format!("/r/a/{ID}"))),
            (format!("/a/x{ID}.scope"), None),
            ("/user.slice".into(), None),
            (format!("/../a/{ID}"), None),
        ] {
            let found = v2.of_container(&format!("0::{path}\n"), ID);
            assert_eq!(found, folder.map(|folder| Cgroup::V2(folder.into())), "{path}");
        }
        assert_eq!(v1.of_container("4:memory:/other\n0::/\n", ID), None);
    }

    #[test]
    fn cgroups_of_pods() {
        let v2 = Hierarchies { root: "/r".into(), unified: true };
        let (files, systemd) = (cri::CgroupDriver::Cgroupfs, cri::CgroupDriver::Systemd);
        for (parent, driver, folder) in [
            ("/kubepods/burstable/pod1", files, Some("/r/kubepods/burstable/pod1")),
            ("kubepods/pod1", files, Some("/r/kubepods/pod1")),
            (
                "kubepods-burstable-pod1_2.slice",
                systemd,
                Some("/r/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"),
            ),
            ("/any/thing/kubepods.slice", systemd, Some("/r/kubepods.slice")),
            ("kubepods", systemd, None),
            ("a--b.slice", systemd, None),
            ("-.slice", systemd, None),
            ("/a/../b", files, None),
            ("/", files, None),
        ] {
            let found = v2.of_pod(parent, driver);
            assert_eq!(found, folder.map(|folder| Cgroup::V2(folder.into())), "{parent}");
        }
        let v1 = Hierarchies { root: "/r".into(), unified: false };
        let pod = v1.of_pod("/kubepods/pod1", files).unwrap();
        assert_eq!(pod.folder("memory"), Some(Path::new("/r/memory/kubepods/pod1")));
    }

    #[test]
    fn processes_are_counted_with_those_below() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        for (at, text) in [(root.path(), "12\n3\n3\n"), (&root.path().join("a"), ""), (&inner, "7\n")] {
            fs::write(at.join("cgroup.procs"), text).unwrap();
        }
        let reader = &mut Reader::new();
        assert_eq!(Cgroup::V2(root.path().into()).processes(reader), Some(vec![3, 7, 12]));
        let v1 = Cgroup::V1(vec![("cpuacct", inner), ("pids", root.path().join("gone"))], None);
        assert_eq!(v1.processes(reader), Some(vec![7]));
        assert_eq!(Cgroup::V2(root.path().join("gone")).processes(reader), None);
    }
}
