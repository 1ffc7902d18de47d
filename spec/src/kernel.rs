//! Which limits this kernel's cgroups have: asked for at create, so that a limit that cannot be kept is said to be dropped.

use std::path::Path;

/// Controllers and what they can do, under `/sys/fs/cgroup`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// cgroup2 throughout.
    pub unified: bool,
    /// Memory limits.
    pub memory: bool,
    /// Limits of memory and swap together.
    pub swap: bool,
    /// Soft limit.
    pub reservation: bool,
    /// `memory.swappiness`
    pub swappiness: bool,
    /// The killer can be switched off.
    pub oom_kill_disable: bool,
    /// `memory.kmem.limit_in_bytes`
    pub kernel_memory: bool,
    /// `memory.kmem.tcp.limit_in_bytes`
    pub kernel_memory_tcp: bool,
    /// Shares of processor time.
    pub cpu_shares: bool,
    /// Quota and period.
    pub cpu_quota: bool,
    /// Real-time time slices.
    pub cpu_realtime: bool,
    /// Choice of processors.
    pub cpuset: bool,
    /// Number of processes.
    pub pids: bool,
    /// Weight of block I/O.
    pub io_weight: bool,
    /// The same for each device.
    pub io_weight_device: bool,
    /// Bytes and operations per second of each device.
    pub io_throttle: bool,
    /// Huge pages.
    pub hugetlb: bool,
}

impl Kernel {
    /// One that has everything that any has: what tests begin with.
    pub const COMPLETE: Self = Self {
        unified: false,
        memory: true,
        swap: true,
        reservation: true,
        swappiness: true,
        oom_kill_disable: true,
        kernel_memory: true,
        kernel_memory_tcp: true,
        cpu_shares: true,
        cpu_quota: true,
        cpu_realtime: true,
        cpuset: true,
        pids: true,
        io_weight: true,
        io_weight_device: true,
        io_throttle: true,
        hugetlb: true,
    };

    /// Of this machine.
    pub fn probe(unified: bool) -> Self {
        Self::probe_at(Path::new("/sys/fs/cgroup"), unified)
    }

    fn probe_at(root: &Path, unified: bool) -> Self {
        let has = |path: &str| root.join(path).exists();
        if unified {
            let text = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            let on = |name: &str| text.split_whitespace().any(|word| word == name);
            return Self {
                unified,
                memory: on("memory"),
                swap: on("memory") && swap_accounting(root),
                reservation: on("memory"),
                swappiness: false,
                oom_kill_disable: false,
                kernel_memory: false,
                kernel_memory_tcp: false,
                cpu_shares: on("cpu"),
                cpu_quota: on("cpu"),
                cpu_realtime: false,
                cpuset: on("cpuset"),
                pids: on("pids"),
                io_weight: on("io"),
                io_weight_device: on("io"),
                io_throttle: on("io"),
                hugetlb: on("hugetlb"),
            };
        }
        let weight = has("blkio/blkio.weight") || has("blkio/blkio.bfq.weight");
        Self {
            unified,
            memory: has("memory/memory.limit_in_bytes"),
            swap: has("memory/memory.memsw.limit_in_bytes"),
            reservation: has("memory/memory.soft_limit_in_bytes"),
            swappiness: has("memory/memory.swappiness"),
            oom_kill_disable: has("memory/memory.oom_control"),
            // Linux 5.16 left the file and refuses what is written to it.
            kernel_memory: has("memory/memory.kmem.limit_in_bytes") && kernel_before(5, 16),
            kernel_memory_tcp: has("memory/memory.kmem.tcp.limit_in_bytes"),
            cpu_shares: has("cpu/cpu.shares"),
            cpu_quota: has("cpu/cpu.cfs_quota_us"),
            cpu_realtime: has("cpu/cpu.rt_runtime_us"),
            cpuset: has("cpuset/cpuset.cpus"),
            pids: root.join("pids").is_dir(),
            io_weight: weight,
            io_weight_device: has("blkio/blkio.weight_device") || has("blkio/blkio.bfq.weight_device"),
            io_throttle: has("blkio/blkio.throttle.read_bps_device"),
            hugetlb: root.join("hugetlb").is_dir(),
        }
    }
}

/// Whether cgroups count swap: the root has no limits of its own, so one of the first level is looked at.
fn swap_accounting(root: &Path) -> bool {
    let groups = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut groups = groups.map(|entry| entry.path()).filter(|path| path.join("memory.max").exists());
    groups.next().is_none_or(|path| path.join("memory.swap.max").exists())
}

fn kernel_before(major: u32, minor: u32) -> bool {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let Ok(release) = release else { return false };
    let mut numbers = release.split(['.', '-']).map_while(|word| word.parse::<u32>().ok());
    (numbers.next().unwrap_or(u32::MAX), numbers.next().unwrap_or(0)) < (major, minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controllers_are_found_where_they_are() {
        let root = tempfile::tempdir().unwrap();
        for path in ["memory/memory.limit_in_bytes", "cpu/cpu.shares", "blkio/blkio.bfq.weight", "pids/x"] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let kernel = Kernel::probe_at(root.path(), false);
        assert!(kernel.memory && kernel.cpu_shares && kernel.io_weight && kernel.pids);
        assert!(
            !kernel.swap && !kernel.cpu_quota && !kernel.io_weight_device && !kernel.cpuset && !kernel.cpu_realtime
        );
        std::fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory\n").unwrap();
        let kernel = Kernel::probe_at(root.path(), true);
        assert!(kernel.memory && kernel.io_weight && kernel.cpuset && !kernel.pids && !kernel.swappiness);
    }
}
