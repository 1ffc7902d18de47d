//! Resources and cgroups.

use super::*;

#[test]
fn limits() {
    let of = |change: fn(&mut cri::LinuxContainerResources)| {
        let mut wanted = cri::LinuxContainerResources::default();
        change(&mut wanted);
        resources(&wanted, &host())
    };
    for (change, wanted) in [
        ((|_| {}) as fn(&mut cri::LinuxContainerResources), json!({})),
        (
            |wanted| (wanted.cpu_period, wanted.cpu_quota, wanted.cpu_shares) = (100_000, 50_000, 512),
            json!({"cpu": {"period": 100_000, "quota": 50_000, "shares": 512}}),
        ),
        (|wanted| wanted.cpu_quota = -1, json!({"cpu": {"quota": -1}})),
        (
            |wanted| (wanted.cpuset_cpus, wanted.cpuset_mems) = ("0-1,3".into(), "0".into()),
            json!({"cpu": {"cpus": "0-1,3", "mems": "0"}}),
        ),
        (|wanted| wanted.memory_limit_in_bytes = 64 << 20, json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}})),
        (
            |wanted| (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes) = (64 << 20, 128 << 20),
            json!({"memory": {"limit": 64 << 20, "swap": 128 << 20}}),
        ),
        (
            |wanted| wanted.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 5 }],
            json!({"hugepageLimits": [{"pageSize": "2MB", "limit": 5}]}),
        ),
        (
            |wanted| wanted.unified = HashMap::from([("memory.high".into(), "5".into())]),
            json!({"unified": {"memory.high": "5"}}),
        ),
    ] {
        assert_eq!(Value::from(of(change).unwrap()), wanted);
    }
    for (change, words) in [
        ((|wanted| wanted.cpu_shares = -1) as fn(&mut cri::LinuxContainerResources), "cpu_shares -1: is negative"),
        (|wanted| wanted.cpu_quota = -2, "cpu_quota -2: is negative"),
        (|wanted| wanted.memory_limit_in_bytes = -5, "memory_limit_in_bytes -5: is negative"),
        (|wanted| wanted.cpuset_cpus = "a".into(), "cpuset_cpus a: is no list of numbers and ranges"),
        (
            |wanted| (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes) = (9, 8),
            "memory_swap_limit_in_bytes 8: is less than the limit of memory, which is part of it",
        ),
        (
            |wanted| wanted.hugepage_limits = vec![cri::HugepageLimit { page_size: "../x".into(), limit: 5 }],
            "hugepage_limits.page_size ../x: is not like 64KB, 2MB or 1GB",
        ),
        (
            |wanted| wanted.unified = HashMap::from([("../memory.high".into(), "5".into())]),
            "unified ../memory.high: is no file of a cgroup",
        ),
    ] {
        assert_eq!(of(change).unwrap_err().to_string(), words);
    }
}

#[test]
fn limits_that_this_kernel_lacks_are_left_out_with_a_word() {
    let made = changed(|world| {
        (world.host.kernel.swap, world.host.kernel.hugetlb) = (false, false);
        let wanted = world.resources();
        (wanted.memory_limit_in_bytes, wanted.memory_swap_limit_in_bytes) = (64 << 20, 65 << 20);
        wanted.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 5 }];
    })
    .make()
    .unwrap();
    assert_eq!(made.spec["linux"]["resources"]["memory"], json!({"limit": 64 << 20}));
    assert!(made.spec["linux"]["resources"]["hugepageLimits"].is_null());
    assert_eq!(made.warnings.len(), 2, "{:?}", made.warnings);
    let old = changed(|world| {
        world.host.kernel.unified = false;
        world.resources().unified = HashMap::from([("memory.high".into(), "5".into())]);
    });
    assert_eq!(old.error(), "unified memory.high is not supported: this node has cgroups of version 1");
}

#[test]
fn scores_of_the_oom_killer() {
    let of = |wanted, lowest| {
        changed(|world| {
            world.resources().oom_score_adj = wanted;
            world.host.lowest_oom_score_adj = lowest;
        })
    };
    for (wanted, lowest, score) in [(-998, None, -998), (1000, None, 1000), (-998, Some(-5), -5), (7, Some(-5), 7)] {
        assert_eq!(of(wanted, lowest).spec()["process"]["oomScoreAdj"], score);
    }
    assert_eq!(of(1001, None).error(), "oom_score_adj 1001: is not from -1000 to 1000");
}

#[test]
fn cgroups_by_their_driver() {
    let (systemd, cgroupfs) = (cri::CgroupDriver::Systemd, cri::CgroupDriver::Cgroupfs);
    for (parent, driver, wanted) in [
        ("/kubepods/pod1", cgroupfs, Some("/kubepods/pod1/x")),
        ("kubepods//pod1/", cgroupfs, Some("/kubepods/pod1/x")),
        ("", cgroupfs, Some("/k8s.io/x")),
        ("", systemd, Some("system.slice:cri-berth:x")),
        ("/kubepods.slice/kubepods-pod1.slice", systemd, Some("kubepods-pod1.slice:cri-berth:x")),
        ("kubepods-pod1.slice", systemd, Some("kubepods-pod1.slice:cri-berth:x")),
        ("/kubepods.slice", cgroupfs, None),
        ("/kubepods/pod1", systemd, None),
        ("/a:b.slice", systemd, None),
        ("-.slice", systemd, None),
        ("/kubepods/../../system", cgroupfs, None),
        ("..", cgroupfs, None),
        ("/../kubepods.slice", systemd, None),
        ("/a\nb", cgroupfs, None),
    ] {
        assert_eq!(cgroups_path(parent, driver, "x").ok().as_deref(), wanted, "{parent:?}");
    }
}
