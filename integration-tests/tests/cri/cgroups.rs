//! Where containers are in the tree of cgroups, what limits they get, and what is told when they run out of memory; under systemd
//! and without it, with cgroups of either version.

use std::{
    fs,
    path::{Path, PathBuf},
};

use proto::runtime::v1 as cri;
use tonic::Code;

use integration_tests::{
    kubelet::{FOREIGN, Node, Runtime, cgroup_parent, container, eventually, has_systemd, pod},
    run,
};

fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// The folder of a process in the hierarchy of a controller; one that isn't there if the kernel lacks that controller.
fn folder(pid: u32, controller: &str) -> PathBuf {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    if is_unified() {
        let path = lines.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
        return Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    }
    let mut parts = lines.lines().map(|line| line.splitn(3, ':'));
    let path = parts.find_map(|mut parts| {
        let names = parts.nth(1)?;
        names.split(',').any(|name| name == controller).then(|| parts.next().unwrap().to_owned())
    });
    Path::new("/sys/fs/cgroup").join(controller).join(path.unwrap_or_default().trim_start_matches('/'))
}

fn pid(node: &Node, container: &str) -> u32 {
    let tasks = node.ctr(&["task", "ls"]);
    let line = tasks.lines().find(|line| line.starts_with(container)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn read(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file))
        .unwrap_or_else(|error| panic!("{}/{file}: {error}", folder.display()))
        .trim()
        .to_owned()
}

/// The limits of a container as the kernel has them: memory, quota and period, shares or weight.
fn limits(pid: u32) -> [String; 3] {
    let (memory, cpu) = (folder(pid, "memory"), folder(pid, "cpu"));
    if is_unified() {
        return [read(&memory, "memory.max"), read(&cpu, "cpu.max"), read(&cpu, "cpu.weight")];
    }
    let quota = format!("{} {}", read(&cpu, "cpu.cfs_quota_us"), read(&cpu, "cpu.cfs_period_us"));
    [read(&memory, "memory.limit_in_bytes"), quota, read(&cpu, "cpu.shares")]
}

/// Makes a pod's cgroup as a kubelet does, with a limit of memory; its folder.
fn make_parent(parent: &str, limit: u64) -> PathBuf {
    let root = Path::new("/sys/fs/cgroup");
    if has_systemd() {
        // A slice is started and limited by who owns it.
        run("systemctl", ["start", parent]).success();
        run("systemctl", ["set-property", "--runtime", parent, &format!("MemoryMax={limit}")]).success();
        return root.join(parent);
    }
    let (folder, file) = match is_unified() {
        true => {
            fs::write(root.join("cgroup.subtree_control"), "+memory +cpu +pids +cpuset +io").unwrap();
            (root.join(parent.trim_start_matches('/')), "memory.max")
        }
        false => (root.join("memory").join(parent.trim_start_matches('/')), "memory.limit_in_bytes"),
    };
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(file), limit.to_string()).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_are_below_their_pod_and_leave_it_as_it_was() {
    let Some(node) = Node::of_berth("containerd 1.6 has no RuntimeConfig").await else { return };
    let answer = node.kubelet().runtime_config(cri::RuntimeConfigRequest {}).await.unwrap().into_inner();
    let driver = answer.linux.unwrap().cgroup_driver();
    assert_eq!(driver == cri::CgroupDriver::Systemd, has_systemd());

    let handlers = ["", "peer", "foreign"];
    for handler in handlers.into_iter().filter(|handler| handler.is_empty() || Path::new(FOREIGN).exists()) {
        let name = format!("place{handler}");
        let (config, parent) = (pod(&name), cgroup_parent(&name));
        let made = make_parent(&parent, 256 << 20);
        let id = node.run_pod_by(handler, &config).await.unwrap();
        let main = node.create(&id, &container("main", "exec sleep 1000"), &config).await.unwrap();
        node.start_container(&main).await.unwrap_or_else(|error| panic!("{handler}: {error}\n{}", node.log()));
        let at = folder(pid(&node, &main), "memory");
        assert_eq!(at.parent().unwrap(), made, "{handler}");
        let own = at.file_name().unwrap().to_str().unwrap();
        match driver {
            cri::CgroupDriver::Systemd => assert_eq!(own, format!("cri-berth-{main}.scope")),
            cri::CgroupDriver::Cgroupfs => assert_eq!(own, main),
        }
        node.remove_pod(&id).await.unwrap();
        // The kubelet's cgroup, and its limit, are the kubelet's.
        eventually("the container's cgroup is gone", async || (!at.exists()).then_some(())).await;
        let file = if is_unified() { "memory.max" } else { "memory.limit_in_bytes" };
        assert_eq!(read(&made, file), (256 << 20).to_string(), "{handler}");
    }
    let mut wrong = pod("wrong");
    wrong.linux.as_mut().unwrap().cgroup_parent = match driver {
        cri::CgroupDriver::Systemd => "/kubepods/pod1".into(),
        cri::CgroupDriver::Cgroupfs => "kubepods-pod1.slice".into(),
    };
    let refused = node.run_pod(&wrong).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("driver"), "{refused}");
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_set_and_changed() {
    let node = Node::new().await;
    let config = pod("limits");
    let id = node.run_pod(&config).await.unwrap();
    let mut wanted = container("main", "exec sleep 1000");
    wanted.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let main = node.create(&id, &wanted, &config).await.unwrap();
    node.start_container(&main).await.unwrap();
    let pid = pid(&node, &main);
    // Version 2 has weights, of which 100 is what 1024 shares are.
    let weight = |shares: u64| match (is_unified(), shares) {
        (false, shares) => shares.to_string(),
        (true, 512) => "59".to_owned(),
        (true, _) => "100".to_owned(),
    };
    assert_eq!(limits(pid), [(64 << 20).to_string(), "20000 100000".into(), weight(512)]);

    let huge = folder(pid, "hugetlb").join(if is_unified() { "hugetlb.2MB.max" } else { "hugetlb.2MB.limit_in_bytes" });
    let mut new = cri::LinuxContainerResources {
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: 128 << 20,
        ..Default::default()
    };
    if huge.exists() {
        new.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 }];
    }
    if is_unified() {
        new.unified =
            [("memory.high", "100663296"), ("pids.max", "77")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    }
    let update = |linux: cri::LinuxContainerResources| {
        let request = cri::UpdateContainerResourcesRequest {
            container_id: main.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        let mut kubelet = node.kubelet();
        async move { kubelet.update_container_resources(request).await }
    };
    update(new.clone()).await.unwrap();
    assert_eq!(limits(pid), [(128 << 20).to_string(), "50000 100000".into(), weight(1024)]);
    if huge.exists() {
        assert_eq!(fs::read_to_string(&huge).unwrap().trim(), (4 << 20).to_string());
    }
    if is_unified() {
        let at = folder(pid, "memory");
        assert_eq!((&*read(&at, "memory.high"), &*read(&at, "pids.max")), ("100663296", "77"));
    }
    if Runtime::under_test() == Runtime::Berth {
        let told = node.container(&main).await.unwrap().resources.unwrap().linux.unwrap();
        assert_eq!((told.memory_limit_in_bytes, told.cpu_shares, told.unified), (128 << 20, 1024, new.unified));
        let path = [("../memory.max".to_owned(), "1".to_owned())].into();
        let refused = update(cri::LinuxContainerResources { unified: path, ..Default::default() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_out_of_memory_is_told_so() {
    let node = Node::new().await;
    let foreign = Runtime::under_test() == Runtime::Berth && Path::new(FOREIGN).exists();
    for handler in ["", "foreign"].into_iter().filter(|handler| handler.is_empty() || foreign) {
        let config = pod(&format!("oom{handler}"));
        let id = node.run_pod_by(handler, &config).await.unwrap();
        // What is killed is its first process.
        let mut wanted = container("main", "exec tail /dev/zero");
        wanted.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: 24 << 20,
            memory_swap_limit_in_bytes: 24 << 20,
            ..Default::default()
        });
        let main = node.create(&id, &wanted, &config).await.unwrap();
        node.start_container(&main).await.unwrap_or_else(|error| panic!("{handler}: {error}\n{}", node.log()));
        let status = node.ended(&main).await;
        // containerd's shim reads the counter of a cgroup that may be gone by then, and says nothing.
        let is_told = handler.is_empty() || !is_unified() || status.reason == "OOMKilled";
        let reason = if is_told { "OOMKilled" } else { "Error" };
        assert_eq!((status.exit_code, &*status.reason), (137, reason), "{handler}: {}", node.log());
        node.remove_pod(&id).await.unwrap();
    }
    node.assert_empty().await;
}
