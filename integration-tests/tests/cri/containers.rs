//! What a container runs, in which environment, with which resources, and how it is asked to end.

use std::fs;

use proto::runtime::v1 as cri;
use tonic::Code;

use integration_tests::{
    images,
    kubelet::{IMAGE, Node, eventually, pod},
};

use crate::scene::{Scene, is_berth, script};

/// An image of this configuration beside the usual one.
fn import(scene: &Scene, name: &str, config: serde_json::Value) -> Option<cri::ImageSpec> {
    let file = scene.node.path().join(format!("{name}.tar"));
    fs::write(&file, images::docker_archive(&format!("{name}:latest"), &images::busybox_rootfs(), config)).unwrap();
    scene.node.ctr(&["image", "import", file.to_str().unwrap()]);
    Some(cri::ImageSpec { image: format!("docker.io/library/{name}:latest"), ..Default::default() })
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_and_args_stand_for_those_of_the_image() {
    let scene = Scene::new("command").await;
    let config = serde_json::json!({ "Entrypoint": ["echo", "entry"], "Cmd": ["cmd"], "Env": ["PATH=/bin"] });
    let image = import(&scene, "echo", config);
    for (command, args, wanted) in [
        (&[][..], &[][..], "entry cmd"),
        (&[], &["arg"], "entry arg"),
        (&["echo", "own"], &[], "own"),
        (&["echo", "own"], &["arg"], "own arg"),
    ] {
        let one =
            cri::ContainerConfig { image: image.clone(), command: words(command), args: words(args), ..script("") };
        assert_eq!(scene.ask(&one).await, wanted);
    }
    let nothing = import(&scene, "nothing", serde_json::json!({}));
    let one = cri::ContainerConfig { image: nothing, command: vec![], args: vec![], ..script("") };
    scene.refused(&one).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_of_the_request_come_over_those_of_the_image() {
    let scene = Scene::new("env").await;
    let image = import(&scene, "env", serde_json::json!({ "Env": ["PATH=/bin", "A=image", "B=image"] }));
    let key = |key: &str, value: &str| cri::KeyValue { key: key.into(), value: value.into() };
    let envs = vec![key("B", "request"), key("C", "a=b c")];
    let one = cri::ContainerConfig { image, envs, ..script("echo $A $B \"$C\" $PATH $HOME") };
    assert_eq!(scene.ask(&one).await, "image request a=b c /bin /root");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_working_directory_is_the_requests_or_the_images() {
    let scene = Scene::new("cwd").await;
    let image = import(&scene, "cwd", serde_json::json!({ "Env": ["PATH=/bin"], "WorkingDir": "/var" }));
    let of_image = cri::ContainerConfig { image, ..script("pwd") };
    assert_eq!(scene.ask(&of_image).await, "/var");
    assert_eq!(scene.ask(&cri::ContainerConfig { working_dir: "/tmp".into(), ..of_image }).await, "/tmp");
    // One that isn't there is made.
    assert_eq!(
        scene.ask(&cri::ContainerConfig { working_dir: "/made/here".into(), ..script("pwd") }).await,
        "/made/here"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_named_by_tag_id_or_digest() {
    let scene = Scene::new("imageref").await;
    let tag = scene.create(&script("true")).await.unwrap();
    let status = scene.node.container(&tag).await.unwrap();
    let id = status.image_ref.rsplit('@').next().unwrap().to_owned();
    for name in ["busybox", IMAGE, &id, id.strip_prefix("sha256:").unwrap_or(&id)] {
        let image = Some(cri::ImageSpec { image: name.into(), ..Default::default() });
        let one = scene.create(&cri::ContainerConfig { image, ..script("true") }).await.unwrap();
        let same = scene.node.container(&one).await.unwrap();
        assert_eq!((same.image_ref, same.image_id), (status.image_ref.clone(), status.image_id.clone()), "{name}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_says_what_was_asked_for() {
    let scene = Scene::new("status").await;
    let mount = cri::Mount {
        container_path: "/data".into(),
        host_path: scene.node.path().display().to_string(),
        readonly: true,
        ..Default::default()
    };
    let mut wanted = script("exec sleep 1000");
    wanted.annotations = [("note".to_owned(), "kept as it is".to_owned())].into();
    wanted.mounts = vec![mount.clone()];
    let id = scene.start(&wanted).await;
    let status = scene.node.container(&id).await.unwrap();
    assert_eq!((&status.labels, &status.annotations), (&wanted.labels, &wanted.annotations));
    assert_eq!(status.metadata.unwrap().name, "c0");
    let [told] = &status.mounts[..] else { panic!("{:?}", status.mounts) };
    assert_eq!((&told.container_path, &told.host_path, told.readonly), (&mount.container_path, &mount.host_path, true));
    assert!(status.started_at >= status.created_at && status.finished_at == 0);
    let listed = &scene.node.containers().await[0];
    assert_eq!(
        (&listed.labels, &listed.annotations, &listed.pod_sandbox_id),
        (&wanted.labels, &wanted.annotations, &scene.pod)
    );
    let request = cri::ContainerStatusRequest { container_id: id, verbose: true };
    let verbose = scene.node.kubelet().container_status(request).await.unwrap().into_inner();
    assert!(!verbose.info.is_empty());
    scene.end().await;
}

/// A container that says so when the signal comes, and ends.
fn listener(signal: &str) -> String {
    format!("trap 'exit 42' {signal}; touch /tmp/ready; while :; do sleep 0.05; done")
}

async fn stopped(scene: &Scene, wanted: &cri::ContainerConfig) -> i32 {
    let id = scene.start(wanted).await;
    scene.hears(&id, "test -e /tmp/ready && echo ready", "ready").await;
    scene.node.stop_container(&id, 20).await.unwrap();
    scene.node.container(&id).await.unwrap().exit_code
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signal_of_the_image_asks_to_end() {
    let scene = Scene::new("stopsignal").await;
    let image = import(&scene, "usr1", serde_json::json!({ "Env": ["PATH=/bin"], "StopSignal": "SIGUSR1" }));
    assert_eq!(stopped(&scene, &cri::ContainerConfig { image, ..script(&listener("USR1")) }).await, 42);
    assert_eq!(stopped(&scene, &script(&listener("TERM"))).await, 42);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_signal_of_the_request_comes_before_the_images() {
    let Some(scene) = Scene::of_berth("ownsignal", "containerd 1.6 knows no stop_signal").await else { return };
    let image = import(&scene, "usr1", serde_json::json!({ "Env": ["PATH=/bin"], "StopSignal": "SIGUSR1" }));
    let wanted = cri::ContainerConfig { image, stop_signal: cri::Signal::Sigusr2.into(), ..script(&listener("USR2")) };
    assert_eq!(stopped(&scene, &wanted).await, 42);
    let id = scene.create(&wanted).await.unwrap();
    assert_eq!(scene.node.container(&id).await.unwrap().stop_signal(), cri::Signal::Sigusr2);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_that_runs_out_is_said_to_be_the_reason() {
    let scene = Scene::new("oom").await;
    let mut wanted = script("x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done");
    wanted.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        memory_swap_limit_in_bytes: 16 << 20,
        ..Default::default()
    });
    let id = scene.start(&wanted).await;
    let status = scene.node.ended(&id).await;
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    scene.end().await;
}

/// Reads limits in both versions of cgroups.
const LIMITS: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
     /sys/fs/cgroup/cpu/cpu.shares 2>/dev/null || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max";

fn limits(memory: i64, quota: i64, shares: i64) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        memory_limit_in_bytes: memory,
        cpu_period: 100_000,
        cpu_quota: quota,
        cpu_shares: shares,
        ..Default::default()
    }
}

fn is_unified() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_request_are_the_cgroups() {
    let scene = Scene::new("limits").await;
    let mut wanted = script(LIMITS);
    wanted.linux.as_mut().unwrap().resources = Some(limits(64 << 20, 50_000, 512));
    let expected = if is_unified() { "67108864 50000 100000" } else { "67108864 50000 512" };
    assert_eq!(scene.ask(&wanted).await, expected);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_change_under_a_container_that_runs() {
    let scene = Scene::new("update").await;
    let mut wanted = script("exec sleep 1000");
    wanted.linux.as_mut().unwrap().resources = Some(limits(64 << 20, 50_000, 512));
    let id = scene.start(&wanted).await;
    let update = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(limits(96 << 20, 70_000, 256)),
        ..Default::default()
    };
    scene.node.kubelet().update_container_resources(update.clone()).await.unwrap();
    let found = scene.exec(&id, LIMITS).await.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(found, if is_unified() { "100663296 70000 100000" } else { "100663296 70000 256" });
    scene.node.stop_container(&id, 0).await.unwrap();
    let late = scene.node.kubelet().update_container_resources(update).await;
    assert!(late.is_err() || !is_berth(), "containerd 1.6 changes what has ended, too");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_were_changed_are_told() {
    let Some(scene) = Scene::of_berth("updatestatus", "containerd 1.6 tells no resources").await else { return };
    let mut wanted = script("exec sleep 1000");
    wanted.linux.as_mut().unwrap().resources = Some(limits(64 << 20, 50_000, 512));
    // Also before its start.
    let id = scene.create(&wanted).await.unwrap();
    let told = async || scene.node.container(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!(told().await.memory_limit_in_bytes, 64 << 20);
    let update = cri::UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(limits(96 << 20, 0, 0)),
        ..Default::default()
    };
    scene.node.kubelet().update_container_resources(update).await.unwrap();
    let now = told().await;
    assert_eq!((now.memory_limit_in_bytes, now.cpu_quota, now.cpu_shares), (96 << 20, 50_000, 512));
    scene.node.start_container(&id).await.unwrap();
    assert!(scene.exec(&id, LIMITS).await.starts_with("100663296\n50000"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_goes_first_when_memory_is_short() {
    let scene = Scene::new("oomscore").await;
    let mut wanted = script("cat /proc/self/oom_score_adj");
    wanted.linux.as_mut().unwrap().resources =
        Some(cri::LinuxContainerResources { oom_score_adj: 987, ..Default::default() });
    assert_eq!(scene.ask(&wanted).await, "987");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_that_make_no_sense_are_refused() {
    let Some(node) = Node::of_berth("containerd 1.6 gives them to runc").await else { return };
    let scene = Scene::of(node, pod("badlimits")).await;
    let none = cri::LinuxContainerResources::default();
    let pages = |size: &str| vec![cri::HugepageLimit { page_size: size.into(), limit: 1 }];
    for (limits, field) in [
        (cri::LinuxContainerResources { cpu_quota: -2, ..none.clone() }, "cpu_quota"),
        (cri::LinuxContainerResources { memory_limit_in_bytes: -2, ..none.clone() }, "memory_limit_in_bytes"),
        (cri::LinuxContainerResources { oom_score_adj: 1001, ..none.clone() }, "oom_score_adj"),
        (cri::LinuxContainerResources { cpuset_cpus: "0; reboot".into(), ..none.clone() }, "cpuset_cpus"),
        (cri::LinuxContainerResources { hugepage_limits: pages("../2MB"), ..none.clone() }, "page_size"),
        (
            cri::LinuxContainerResources { unified: [("../x".to_owned(), "1".to_owned())].into(), ..none.clone() },
            "unified",
        ),
    ] {
        let mut wanted = script("true");
        wanted.linux.as_mut().unwrap().resources = Some(limits);
        let refused = scene.refused(&wanted).await;
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(field), "{refused}");
    }
    // What the kernel hasn't is left out, as with containerd.
    let mut wanted = script("true");
    wanted.linux.as_mut().unwrap().resources =
        Some(cri::LinuxContainerResources { hugepage_limits: pages("2MB"), ..none });
    assert_eq!(scene.run(&wanted).await.1, 0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_the_node() {
    let scene = Scene::new("devices").await;
    let device = |host: &str, container: &str, permissions: &str| cri::Device {
        host_path: host.into(),
        container_path: container.into(),
        permissions: permissions.into(),
    };
    let mut wanted = script("head -c 3 /dev/mine | wc -c; stat -c %t:%T /dev/mine");
    wanted.devices = vec![device("/dev/zero", "/dev/mine", "rw")];
    assert_eq!(scene.ask(&wanted).await, "3 1:5");
    wanted.devices = vec![device("/dev/no-such-device", "/dev/mine", "rw")];
    scene.refused(&wanted).await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_and_a_stdin() {
    let scene = Scene::new("tty").await;
    let mut wanted = script("test -t 0 && test -t 1 && test -t 2 && echo $TERM");
    wanted.tty = true;
    assert_eq!(scene.ask(&wanted).await, "xterm");
    // Without one there is nothing to read.
    assert_eq!(scene.ask(&script("cat; echo end")).await, "end");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_containers_of_a_pod() {
    let scene = Scene::new("several").await;
    let mut all = Vec::new();
    for number in 0..3 {
        all.push(scene.start(&script(&format!("echo I am {number}; exec sleep 1000"))).await);
    }
    for (number, id) in all.iter().enumerate() {
        let log = scene.log_of(id).await;
        eventually("it has spoken", async || {
            fs::read_to_string(&log).is_ok_and(|text| text.contains(&format!("I am {number}"))).then_some(())
        })
        .await;
        assert_eq!(scene.exec(id, "echo hello").await, "hello");
    }
    scene.node.stop_container(&all[0], 0).await.unwrap();
    assert_eq!(scene.exec(&all[1], "echo still here").await, "still here");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_makes_another_container_of_the_same_name() {
    let scene = Scene::new("attempts").await;
    let mut wanted = script("exit 1");
    let mut ids = Vec::new();
    for attempt in 0..2 {
        wanted.metadata = Some(cri::ContainerMetadata { name: "main".into(), attempt });
        let id = scene.node.create(&scene.pod, &wanted, &scene.config).await.unwrap();
        assert_eq!(scene.node.container(&id).await.unwrap().metadata.unwrap().attempt, attempt);
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);
    scene.end().await;
}
