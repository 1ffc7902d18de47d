//! Requests of all kinds: whatever is made of them stays in its bounds.

use std::sync::LazyLock;

use proptest::{prelude::*, test_runner::TestRunner};

use super::*;

/// Words that mean something somewhere.
fn word() -> impl Strategy<Value = String> {
    static WORDS: LazyLock<Vec<&str>> = LazyLock::new(|| {
        "/ .. /.. /../.. a /a /a/../../b /proc /dev /sys/fs/cgroup/x ALL CAP_CHOWN chown unconfined runtime/default localhost/x 0 -1 www www:staff \
         4294967295 net.ipv4.x kernel.panic cdi.k8s.io/x v/c=d memory.high ../memory.high 2MB a.slice /a/b.slice A=b"
            .split_whitespace()
            .chain(["", "\0", "a\nb", "/a\0b"])
            .collect()
    });
    prop_oneof![3 => proptest::sample::select(WORDS.as_slice()).prop_map(str::to_owned), 1 => ".{0,12}"]
}

/// Mostly one of these, now and then any word: of a request with many odd parts nothing is ever made.
fn mostly(fine: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![24 => proptest::sample::select(fine).prop_map(str::to_owned), 1 => word()]
}

fn list(fine: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(mostly(fine), 0..3)
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![24 => 0..1000i64, 1 => any::<i64>(), 1 => proptest::sample::select(&[-1, i64::MAX, i64::MIN][..])]
}

fn choice() -> impl Strategy<Value = i32> {
    prop_oneof![12 => Just(0), 2 => 1..4i32, 1 => Just(-1)]
}

fn pairs(keys: &'static [&'static str]) -> impl Strategy<Value = HashMap<String, String>> {
    prop::collection::hash_map(mostly(keys), mostly(&["", "x"]), 0..2)
}

/// Places in a container, many of them by detours.
fn place() -> impl Strategy<Value = String> {
    let fine =
        &["/data", "data", "/a/../../b", "/../../etc/x", "//a//b/./c", "/dev", "/sys", "/etc/hosts/", "/proc/../x"][..];
    prop_oneof![6 => proptest::sample::select(fine).prop_map(str::to_owned), 2 => "/[./a-c]{1,12}", 1 => word()]
}

fn a_mount() -> impl Strategy<Value = cri::Mount> {
    // Only what is there: a folder that isn't would be made.
    let fine = &["/etc", "/etc/../etc/", "/dev/null", "/dev", "/", "/etc/passwd"][..];
    let source =
        prop_oneof![12 => proptest::sample::select(fine), 1 => proptest::sample::select(&["etc", "", "/\0"][..])];
    let flags = (any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.05));
    let options = list(&["noexec", "nodev", "nosuid"]);
    (place(), source, flags, choice(), options, word()).prop_map(
        |(container_path, host_path, (readonly, recursive, image), propagation, mount_options, sub_path)| cri::Mount {
            container_path,
            host_path: if image { String::new() } else { host_path.to_owned() },
            readonly: readonly || recursive || image,
            recursive_read_only: recursive,
            propagation,
            mount_options,
            image: image.then(Default::default),
            image_sub_path: if image { sub_path } else { String::new() },
            ..Default::default()
        },
    )
}

fn a_context() -> impl Strategy<Value = cri::LinuxContainerSecurityContext> {
    const CAPS: &[&str] = &["ALL", "CAP_CHOWN", "chown", "NET_ADMIN", "SYS_ADMIN"];
    let names = prop_oneof![6 => Just(String::new()), 1 => mostly(&["www", "root"])];
    let ids = (prop::option::of(number()), prop::option::of(number()), names, prop::collection::vec(number(), 0..3));
    let profile = (choice(), prop_oneof![3 => Just(String::new()), 1 => word()])
        .prop_map(|(profile_type, localhost_ref)| cri::SecurityProfile { profile_type, localhost_ref });
    let seccomp = (prop::option::of(profile), mostly(&["", "unconfined", "runtime/default"]));
    let paths = (list(&["/proc/kcore", "/x/../y"]), list(&["/proc/sys"]));
    (
        ids,
        any::<[bool; 3]>(),
        (list(CAPS), list(CAPS), list(CAPS)),
        paths,
        seccomp,
        [choice(), choice(), choice(), choice()],
    )
        .prop_map(|(ids, flags, caps, paths, seccomp, modes)| {
            let value = |id: Option<i64>| id.map(|value| cri::Int64Value { value });
            #[allow(deprecated, reason = "it counts all the same")]
            cri::LinuxContainerSecurityContext {
                run_as_user: value(ids.0).filter(|_| ids.2.is_empty()),
                run_as_group: value(ids.1).filter(|_| ids.0.is_some() || !ids.2.is_empty()),
                run_as_username: ids.2,
                supplemental_groups: ids.3,
                supplemental_groups_policy: modes[3],
                privileged: flags[0],
                readonly_rootfs: flags[1],
                no_new_privs: flags[2],
                capabilities: Some(cri::Capability {
                    add_capabilities: caps.0,
                    drop_capabilities: caps.1,
                    add_ambient_capabilities: caps.2,
                }),
                masked_paths: paths.0,
                readonly_paths: paths.1,
                seccomp: seccomp.0,
                seccomp_profile_path: seccomp.1,
                namespace_options: Some(cri::NamespaceOption {
                    network: modes[0],
                    pid: modes[1],
                    ipc: modes[2],
                    ..Default::default()
                }),
                ..Default::default()
            }
        })
}

fn some_resources() -> impl Strategy<Value = cri::LinuxContainerResources> {
    let numbers = [number(), number(), number(), number(), number(), number()];
    let texts = (mostly(&["", "0", "0-1,3"]), mostly(&["2MB", "1GB"]), pairs(&["memory.high", "cpu.weight"]));
    (numbers, texts).prop_map(|([period, quota, shares, memory, score, swap], (cpus, size, unified))| {
        cri::LinuxContainerResources {
            cpu_period: period,
            cpu_quota: quota,
            cpu_shares: shares,
            memory_limit_in_bytes: memory,
            memory_swap_limit_in_bytes: swap.saturating_add(memory),
            oom_score_adj: score,
            cpuset_cpus: cpus,
            hugepage_limits: vec![cri::HugepageLimit { page_size: size, limit: 1 }],
            unified,
            ..Default::default()
        }
    })
}

fn a_device() -> impl Strategy<Value = cri::Device> {
    let source = proptest::sample::select(&["/dev/null", "/dev/zero", "/dev/../dev/full", "/etc"][..]);
    (source, place(), mostly(&["", "rwm", "r"])).prop_map(|(host_path, container_path, permissions)| cri::Device {
        host_path: host_path.to_owned(),
        container_path,
        permissions,
    })
}

fn an_image() -> impl Strategy<Value = ImageConfig> {
    let user = mostly(&["", "www", "33:50", "www:staff"]);
    (
        user,
        list(&["A=b", "PATH=/x", "HOME=/h"]),
        list(&["/e", ""]),
        list(&["c"]),
        mostly(&["", "/w", "w"]),
        prop::collection::vec(place(), 0..2),
    )
        .prop_map(|(user, env, entrypoint, cmd, working_dir, volumes)| ImageConfig {
            user,
            env,
            entrypoint,
            cmd,
            working_dir,
            volumes: volumes.into_iter().map(|path| (path, Default::default())).collect(),
            stop_signal: String::new(),
        })
}

fn a_container() -> impl Strategy<Value = cri::ContainerConfig> {
    let process = (list(&["/bin/app", "x"]), list(&["a"]), mostly(&["", "/w"]), pairs(&["A", "HOME"]), any::<bool>());
    let mounts = prop::collection::vec(a_mount(), 0..3);
    let devices = prop::collection::vec(a_device(), 0..2);
    let linux = (prop::option::of(a_context()), prop::option::of(some_resources()));
    (process, mounts, devices, linux, pairs(&["note", "cdi.k8s"])).prop_map(
        |((command, args, working_dir, envs, tty), mounts, devices, (security_context, resources), annotations)| {
            cri::ContainerConfig {
                command,
                args,
                working_dir,
                envs: envs.into_iter().map(|(key, value)| cri::KeyValue { key, value }).collect(),
                tty,
                mounts,
                devices,
                annotations: annotations.into_iter().collect(),
                linux: Some(cri::LinuxContainerConfig { resources, security_context }),
                ..Default::default()
            }
        },
    )
}

fn check_bounds(made: Made) -> Result<(), TestCaseError> {
    for at in destinations(&made.spec) {
        prop_assert!(at.starts_with('/') && at.len() > 1 && !at.contains("//") && !at.contains('\0'), "{at:?}");
        prop_assert!(at.split('/').all(|part| part != ".." && part != "."), "{at:?}");
    }
    for device in made.spec["linux"]["devices"].as_array().unwrap() {
        prop_assert!(device["path"].as_str().unwrap().split('/').all(|part| part != ".."));
    }
    prop_assert!(made.volumes.iter().all(|volume| volume.source.parent() == Some(Path::new("/state/volumes"))));
    prop_assert!(made.spec["process"]["user"]["uid"].as_i64().unwrap() <= i64::from(i32::MAX));
    prop_assert!(!made.spec["process"].to_string().contains("\\u0000"));
    let parsed = serde_json::from_value::<oci_spec::runtime::Spec>(made.spec);
    prop_assert!(parsed.is_ok(), "{parsed:?}");
    Ok(())
}

#[test]
fn whatever_is_asked_for_stays_in_its_bounds() {
    const CASES: u32 = 1024;
    let mut runner = TestRunner::new(ProptestConfig { cases: CASES, failure_persistence: None, ..Default::default() });
    let made = std::cell::Cell::new(0);
    let cases = (a_container(), an_image(), mostly(&["", "/kubepods/pod1", "kubepods"]), any::<bool>());
    let run = runner.run(&cases, |(container, image, parent, privileged)| {
        let mut world = World { container, image, ..World::new() };
        world.pod_context().privileged = privileged;
        world.target_pid = Some(42);
        world.pod.linux.get_or_insert_default().cgroup_parent = parent;
        match world.make() {
            Ok(found) => {
                made.set(made.get() + 1);
                check_bounds(found)
            }
            Err(error) => {
                prop_assert!(!error.to_string().contains(['\0', '\n']), "{error}");
                Ok(())
            }
        }
    });
    run.unwrap();
    assert!(made.get() > CASES / 8, "of {CASES} requests only {} could be had: they say too little", made.get());
}

proptest! {
    #[test]
    fn a_cgroup_stays_below_its_pods(parent in prop_oneof![word(), "[./a-c:]{0,16}(\\.slice)?"], systemd: bool) {
        let driver = if systemd { cri::CgroupDriver::Systemd } else { cri::CgroupDriver::Cgroupfs };
        if let Ok(path) = cgroups_path(&parent, driver, "c0ffee") {
            prop_assert!(!path.split('/').any(|part| part == ".."), "{path}");
            let parts = |text: &str| text.split('/').filter(|part| !["", "."].contains(part)).map(str::to_owned).collect::<Vec<_>>();
            let (parent, own) = (parts(&parent), parts(&path));
            match systemd {
                true => {
                    prop_assert_eq!(path.matches(':').count(), 2);
                    let slice = path.split(':').next().unwrap();
                    prop_assert_eq!(parent.last().map_or("system.slice", String::as_str), slice);
                }
                false if parent.is_empty() => prop_assert_eq!(path, "/k8s.io/c0ffee"),
                false => prop_assert!(own.starts_with(&parent) && own.len() == parent.len() + 1, "{}", path),
            }
        }
    }

    #[test]
    fn any_destination_is_below_the_root(path in "[./a-c\\x00é]{0,20}") {
        if let Ok(at) = crate::cri::spec::mounts::destination("x", &path) {
            prop_assert!(at.starts_with('/') && at.split('/').skip(1).all(|part| !part.is_empty() && part != "." && part != ".."));
        }
    }
}
