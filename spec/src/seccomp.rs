//! System call filters. The default one is an allow-list, equal in effect to Docker's, with everything else answered by EPERM;
//! what a capability makes harmless is allowed with that capability only. Profiles from files are in Docker's form.

use super::caps::Set;
use serde_json::{Value, json};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Allowed always, on every architecture that has them.
const ALLOWED: &str = "
accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64
close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old
epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64
fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync
ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat getcpu getcwd
getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername
getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit
get_robust_list getrusage getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr
getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl io_destroy io_getevents
io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup io_submit ipc kill landlock_add_rule
landlock_create_ruleset landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr
listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier
memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl
msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat
openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl
pread64 preadv preadv2 prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead
readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat
rename renameat renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity
sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp
select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid
setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32
setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt
set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack
signalfd signalfd4 sigprocmask sigreturn socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat
sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev process_vm_readv process_vm_writev ptrace";

/// Allowed with a capability.
const WITH_CAPABILITY: [(&str, &str); 14] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Execution domains that change nothing dangerous: Linux, its 32 bit and UNAME26 variants, and "only ask".
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Flags of clone(2) that make a namespace: CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address families of socket(2) as masks on the low 32 bits: all below 64 but 38 (AF_ALG: the kernel's crypto interface,
/// CVE-2026-31431) and 40 (AF_VSOCK: reaches the hypervisor). Comparing with "not equal" or "greater" would look at 64
/// bits, of which the kernel ignores the upper half.
const FAMILIES: [(u64, u64); 7] = [
    (0xffff_ffe0, 0),
    (0xffff_fffc, 32),
    (0xffff_fffe, 36),
    (0xffff_ffff, 39),
    (0xffff_ffff, 41),
    (0xffff_fffe, 42),
    (0xffff_fffc, 44),
];

/// `linux.seccomp` for a container with these capabilities on this machine's architecture.
pub fn default_profile(caps: &Set) -> Value {
    let mut names: Vec<&str> = ALLOWED.split_whitespace().collect();
    for (cap, allowed) in WITH_CAPABILITY {
        if caps.contains(cap) {
            names.extend(allowed.split_whitespace());
        }
    }
    let architectures: &[&str] = match std::env::consts::ARCH {
        "x86_64" => {
            names.extend(["arch_prctl", "modify_ldt"]);
            &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
        }
        "aarch64" => {
            let of_arm = "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls";
            names.extend(of_arm.split_whitespace());
            &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
        }
        _ => &[],
    };
    names.sort_unstable();
    names.dedup();
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    let masked = |name: &str, mask: u64, value: u64| {
        json!({"names": [name], "action": "SCMP_ACT_ALLOW",
               "args": [{"index": 0, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}]})
    };
    rules.extend(PERSONALITIES.map(|domain| masked("personality", 0xffff_ffff, domain)));
    rules.extend(FAMILIES.map(|(mask, family)| masked("socket", mask, family)));
    if !caps.contains("CAP_SYS_ADMIN") {
        rules.push(masked("clone", CLONE_NAMESPACES, 0));
        // Its flags are in memory, out of a filter's sight. "No such call" makes the C library fall back to clone.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures,
        "syscalls": rules,
    })
}

/// Why a profile is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("decoding seccomp profile failed: {0}")]
pub struct ProfileError(String);

/// Docker's form of a profile to that of the runtime specification.
pub fn parse_profile(text: &str) -> Result<Value, ProfileError> {
    let bad = ProfileError;
    let mut profile: Value = serde_json::from_str(text).map_err(|e| bad(e.to_string()))?;
    let map = profile.as_object_mut().ok_or_else(|| bad("not an object".into()))?;
    if !map.get("defaultAction").is_some_and(Value::is_string) {
        return Err(bad("no defaultAction".into()));
    }
    if let Some(arch_map) = map.remove("archMap") {
        let mut architectures = Vec::new();
        let native = match std::env::consts::ARCH {
            "x86_64" => "SCMP_ARCH_X86_64",
            "aarch64" => "SCMP_ARCH_AARCH64",
            _ => "",
        };
        for entry in arch_map.as_array().into_iter().flatten().filter(|e| e["architecture"] == native) {
            architectures.push(entry["architecture"].clone());
            architectures.extend(entry["subArchitectures"].as_array().cloned().unwrap_or_default());
        }
        map.insert("architectures".into(), architectures.into());
    }
    for rule in map.get_mut("syscalls").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(rule) = rule.as_object_mut() else { return Err(bad("a rule is not an object".into())) };
        if let Some(name) = rule.remove("name").filter(|name| !name.is_null()) {
            rule.insert("names".into(), vec![name].into());
        }
        if rule.get("args").is_some_and(Value::is_null) {
            rule.remove("args");
        }
        rule.remove("comment");
        // `includes` and `excludes` are kept for now: who knows the capabilities resolves them.
    }
    Ok(profile)
}

/// Resolves the conditions of Docker's profile format for a container with these capabilities.
pub fn resolve_conditions(profile: &Value, caps: &Set) -> Value {
    let go_arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let holds = |condition: &Value, key: &str, test: &dyn Fn(&str) -> bool| {
        condition[key].as_array().map(|list| list.iter().filter_map(Value::as_str).map(test).collect::<Vec<_>>())
    };
    let mut profile = profile.clone();
    if let Some(rules) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        rules.retain_mut(|rule| {
            let Some(map) = rule.as_object_mut() else { return false };
            let includes = map.remove("includes").unwrap_or_default();
            let excludes = map.remove("excludes").unwrap_or_default();
            let has_cap = |cap: &str| caps.contains(cap);
            let is_arch = |arch: &str| arch == go_arch;
            // All capabilities, but any architecture, as moby reads them.
            let in_caps = holds(&includes, "caps", &has_cap).is_none_or(|l| l.iter().all(|on| *on));
            let in_arch = holds(&includes, "arches", &is_arch).is_none_or(|l| l.is_empty() || l.iter().any(|on| *on));
            let out_caps = holds(&excludes, "caps", &has_cap).is_some_and(|l| l.iter().any(|on| *on));
            let out_arch = holds(&excludes, "arches", &is_arch).is_some_and(|l| l.iter().any(|on| *on));
            in_caps && in_arch && !out_caps && !out_arch
        });
    }
    profile
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn names(profile: &Value) -> Vec<String> {
        serde_json::from_value(profile["syscalls"][0]["names"].clone()).unwrap()
    }

    #[test]
    fn dangerous_calls_need_their_capability() {
        let plain = names(&default_profile(&BTreeSet::new()));
        let admin = names(&default_profile(&["CAP_SYS_ADMIN"].into()));
        for call in ["mount", "unshare", "setns", "clone", "bpf", "fsopen", "open_tree", "move_mount", "umount2"] {
            assert!(!plain.contains(&call.to_owned()) && admin.contains(&call.to_owned()), "{call}");
        }
        for call in ["keyctl", "add_key", "kexec_load", "io_uring_setup", "userfaultfd", "nfsservctl", "socketcall"] {
            assert!(!admin.contains(&call.to_owned()), "{call}");
        }
    }

    #[test]
    fn families_are_all_but_two() {
        let allowed = |family: u64| FAMILIES.iter().any(|(mask, value)| family & mask == *value);
        let refused: Vec<u64> = (0..48).filter(|f| !allowed(*f)).collect();
        assert_eq!(refused, [38, 40]);
        assert!(!allowed(38 | 1 << 32), "the upper half must not matter");
    }

    #[test]
    fn clone_masks_every_namespace_flag() {
        use nix::sched::CloneFlags as F;
        let all = F::CLONE_NEWNS | F::CLONE_NEWCGROUP | F::CLONE_NEWUTS | F::CLONE_NEWIPC | F::CLONE_NEWUSER;
        let all = all | F::CLONE_NEWPID | F::CLONE_NEWNET;
        assert_eq!(u64::from(all.bits() as u32), CLONE_NAMESPACES);
    }

    #[test]
    fn conditions_of_a_profile() {
        let text = r#"{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
            "syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW","args":null,"includes":{"caps":["CAP_SYS_ADMIN"]}},
            {"name":"b","action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}}]}"#;
        let profile = parse_profile(text).unwrap();
        let with = resolve_conditions(&profile, &["CAP_SYS_ADMIN"].into());
        let without = resolve_conditions(&profile, &[].into());
        assert_eq!(with["syscalls"], json!([{"names": ["a"], "action": "SCMP_ACT_ALLOW"}]));
        assert_eq!(without["syscalls"], json!([{"names": ["b"], "action": "SCMP_ACT_ALLOW"}]));
    }
}
