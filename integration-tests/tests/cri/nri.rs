//! Plugins of NRI: what they are told, what comes of their wishes, and what becomes of those that misbehave.

use std::{
    fs,
    io::Write as _,
    os::{
        fd::AsFd as _,
        unix::{fs::PermissionsExt as _, net::UnixStream},
    },
    path::PathBuf,
    time::{Duration, Instant},
};

use integration_tests::{
    kubelet::{Node, container, eventually, pod},
    nri::{Answer, Plugin, Told},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::{nri::pkg::api::v1alpha1 as nri, runtime::v1 as cri};
use tonic::{Code, Status};

/// A node where plugins may connect, and are started from a folder.
async fn node_with_plugins() -> Option<Node> {
    let mut node = Node::of_berth("Debian's containerd is older than NRI").await?;
    let at = |name: &str| node.path().join(name);
    fs::create_dir(at("nri.conf")).unwrap();
    fs::create_dir(at("nri.plugins")).unwrap();
    let more = format!(
        "[cri.nri]\ndisable = false\nsocket-path = {:?}\nplugin-path = {:?}\nplugin-config-path = {:?}\n\
         plugin-request-timeout = \"3s\"\nplugin-registration-timeout = \"3s\"\n",
        at("nri/nri.sock"),
        at("nri.plugins"),
        at("nri.conf"),
    );
    node.configure_more(&more).await;
    Some(node)
}

fn socket(node: &Node) -> PathBuf {
    node.path().join("nri/nri.sock")
}

async fn plugin(node: &Node, who: (&str, &str), answer: impl Fn(&Told) -> Answer + Send + Sync + 'static) -> Plugin {
    Plugin::connect(&socket(node), who, answer).await.unwrap().synchronized().await
}

/// A plugin that wants this of each new container.
async fn adjuster(node: &Node, who: (&str, &str), wish: nri::ContainerAdjustment) -> Plugin {
    let answer = nri::CreateContainerResponse { adjust: Some(wish), ..Default::default() };
    plugin(node, who, move |told| match told.what.as_str() {
        "CreateContainer" => Answer::of(&answer),
        _ => Answer::Nothing,
    })
    .await
}

fn env(key: &str, value: &str) -> nri::ContainerAdjustment {
    nri::ContainerAdjustment { env: vec![nri::KeyValue { key: key.into(), value: value.into() }], ..Default::default() }
}

fn memory(limit: i64) -> nri::LinuxResources {
    let limit = Some(nri::OptionalInt64 { value: limit });
    nri::LinuxResources { memory: Some(nri::LinuxMemory { limit, ..Default::default() }), ..Default::default() }
}

fn update(id: &str, limit: i64) -> nri::ContainerUpdate {
    let linux = Some(nri::LinuxContainerUpdate { resources: Some(memory(limit)) });
    nri::ContainerUpdate { container_id: id.into(), linux, ignore_failure: false }
}

async fn text(node: &Node, container: &str, script: &str) -> String {
    let done = node.exec(container, &["sh", "-c", script]).await.unwrap();
    assert_eq!(done.exit_code, 0, "{script}: {done:?}");
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

/// The limit of memory that a container on record has.
async fn limit_of(node: &Node, id: &str) -> i64 {
    let status = node.container(id).await.unwrap();
    status.resources.and_then(|all| all.linux).map_or(0, |linux| linux.memory_limit_in_bytes)
}

async fn clear(node: &Node, pod: &str) {
    node.stop_pod(pod).await.unwrap();
    node.remove_pod(pod).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_hear_of_each_step_in_order() {
    let Some(node) = node_with_plugins().await else { return };
    let mode = fs::metadata(node.path().join("nri")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let plugin = plugin(&node, ("10", "logger"), |_| Answer::Nothing).await;
    let config = pod("web");
    let (id, main) = node.sleeper(&config).await;
    let told = plugin.last("CreateContainer").unwrap();
    assert_eq!((told.pod.id.as_str(), told.pod.name.as_str(), told.pod.uid.as_str()), (&*id, "web", "uid-web"));
    assert_eq!((told.pod.labels, told.pod.annotations), (config.labels.clone(), config.annotations.clone()));
    assert_eq!((told.container.id.as_str(), told.container.name.as_str()), (&*main, "sleeper"));
    assert_eq!(told.container.args, ["sh", "-c", "exec sleep 1000"]);
    assert_eq!(
        told.container.linux.unwrap().cgroups_path,
        format!("/berth-test-cri-{}-web/{main}", std::process::id())
    );
    let told = plugin.last("POST_START_CONTAINER").unwrap();
    assert_eq!(told.container.state(), nri::ContainerState::ContainerRunning);
    let parent = fs::read_to_string(format!("/proc/{}/cmdline", told.container.pid)).unwrap();
    assert_eq!(parent, "sleep\x001000\0");

    let linux = cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let request = cri::UpdateContainerResourcesRequest {
        container_id: main.clone(),
        linux: Some(linux.clone()),
        ..Default::default()
    };
    node.kubelet().update_container_resources(request).await.unwrap();
    let asked = plugin.last("UpdateContainer").unwrap().container.linux.unwrap().resources.unwrap();
    assert_eq!(asked.cpu.unwrap().shares, Some(nri::OptionalUInt64 { value: 512 }));
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.clone(),
        resources: Some(linux),
        ..Default::default()
    };
    node.kubelet().update_pod_sandbox_resources(request).await.unwrap();
    let after = plugin.last("POST_UPDATE_POD_SANDBOX").unwrap().pod.linux.unwrap().pod_resources.unwrap();
    assert_eq!(after.cpu.unwrap().shares, Some(nri::OptionalUInt64 { value: 512 }));
    node.stop_container(&main, 0).await.unwrap();
    let ended = plugin.last("StopContainer").unwrap().container;
    assert_eq!((ended.state(), ended.exit_code), (nri::ContainerState::ContainerStopped, 137));
    node.remove_container(&main).await.unwrap();
    // Its end is told once; that of one that never ran, when it goes.
    node.create(&id, &container("second", "true"), &config).await.unwrap();
    clear(&node, &id).await;
    let wanted = "RUN_POD_SANDBOX CreateContainer POST_CREATE_CONTAINER START_CONTAINER POST_START_CONTAINER UpdateContainer \
                  POST_UPDATE_CONTAINER UpdatePodSandbox POST_UPDATE_POD_SANDBOX StopContainer REMOVE_CONTAINER \
                  CreateContainer POST_CREATE_CONTAINER StopContainer STOP_POD_SANDBOX REMOVE_CONTAINER REMOVE_POD_SANDBOX";
    assert_eq!(plugin.events(), wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_events_that_are_asked_for_are_told() {
    let Some(node) = node_with_plugins().await else { return };
    let bit = |event: nri::Event| 1 << (event as i32 - 1);
    let events = bit(nri::Event::PostStartContainer) | bit(nri::Event::StopContainer);
    let plugin = plugin(&node, ("10", "picky"), move |told| match told.what.as_str() {
        "Configure" => Answer::of(&nri::ConfigureResponse { events }),
        _ => Answer::Nothing,
    })
    .await;
    let (id, _) = node.sleeper(&pod("web")).await;
    clear(&node, &id).await;
    assert_eq!(plugin.events(), "POST_START_CONTAINER StopContainer");
    let at = socket(&node);
    let unknown = Plugin::connect(&at, ("11", "later"), |told| match told.what.as_str() {
        "Configure" => Answer::of(&nri::ConfigureResponse { events: 1 << 20 }),
        _ => Answer::Nothing,
    });
    if let Ok(unknown) = unknown.await {
        unknown.runtime.closed().await;
    }
    assert!(node.log().contains("events that don't exist (0x100000)"), "{}", node.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_plugins_want_is_in_the_container() {
    let Some(node) = node_with_plugins().await else { return };
    fs::write(node.path().join("given"), "by a plugin").unwrap();
    let mark = node.path().join("hooked");
    let wish = nri::ContainerAdjustment {
        annotations: [("plugin.example/is".to_owned(), "here".to_owned())].into(),
        mounts: vec![nri::Mount {
            destination: "/given".into(),
            r#type: "bind".into(),
            source: node.path().join("given").display().to_string(),
            options: vec!["rbind".into(), "ro".into()],
        }],
        env: env("FROM_PLUGIN", "yes").env,
        rlimits: vec![nri::PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 777, soft: 555 }],
        hooks: Some(nri::Hooks {
            poststop: vec![nri::Hook {
                path: "/bin/touch".into(),
                args: vec!["touch".into(), mark.display().to_string()],
                ..Default::default()
            }],
            ..Default::default()
        }),
        linux: Some(nri::LinuxContainerAdjustment {
            devices: vec![nri::LinuxDevice {
                path: "/dev/nothing".into(),
                r#type: "c".into(),
                major: 1,
                minor: 3,
                file_mode: Some(nri::OptionalFileMode { value: 0o666 }),
                ..Default::default()
            }],
            resources: Some(memory(64 << 20)),
            oom_score_adj: Some(nri::OptionalInt { value: 123 }),
            namespaces: vec![nri::LinuxNamespace { r#type: "uts".into(), path: String::new() }],
            sysctl: [("kernel.shm_rmid_forced".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let first = adjuster(&node, ("10", "first"), wish).await;
    let second = adjuster(&node, ("20", "second"), env("-HOME", "")).await;
    let (id, main) = node.sleeper(&pod("web")).await;
    assert_eq!(
        text(&node, &main, "cat /given; echo; echo $FROM_PLUGIN; ulimit -n; ulimit -Hn").await,
        "by a plugin\nyes\n555\n777"
    );
    assert_eq!(text(&node, &main, "echo x > /dev/nothing; cat /proc/self/oom_score_adj").await, "123");
    assert_eq!(text(&node, &main, "cat /proc/sys/kernel/shm_rmid_forced").await, "1");
    assert_eq!(limit_of_spec(&node, &main).await, 64 << 20);
    // The second was asked after the first, and saw what it had done.
    let seen = second.last("CreateContainer").unwrap().container;
    assert!(seen.env.contains(&"FROM_PLUGIN=yes".to_owned()), "{seen:?}");
    assert_eq!(seen.annotations.get("plugin.example/is").map(String::as_str), Some("here"));
    assert!(!first.last("CreateContainer").unwrap().container.env.contains(&"FROM_PLUGIN=yes".to_owned()));
    clear(&node, &id).await;
    assert!(mark.exists(), "a hook of a plugin's has run");
}

/// The limit of memory that a container was made with.
async fn limit_of_spec(node: &Node, id: &str) -> i64 {
    let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
    let info = node.kubelet().container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    info["runtimeSpec"]["linux"]["resources"]["memory"]["limit"].as_i64().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_plugins_that_want_one_thing_are_named() {
    let Some(node) = node_with_plugins().await else { return };
    let first = adjuster(&node, ("10", "first"), env("A", "1")).await;
    let second = adjuster(&node, ("20", "second"), env("A", "2")).await;
    let config = pod("web");
    let id = node.run_pod(&config).await.unwrap();
    let refused = node.create(&id, &container("main", "true"), &config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("NRI plugins 10-first and 20-second both set Env A"), "{refused}");
    assert_eq!(node.containers().await, []);
    // Both are told that it won't be.
    for plugin in [&first, &second] {
        eventually("the container is forgotten", async || {
            plugin.events().ends_with("CreateContainer StopContainer REMOVE_CONTAINER").then_some(())
        })
        .await;
    }
    drop(second);
    eventually("one of them is gone", async || node.create(&id, &container("main", "true"), &config).await.ok()).await;
    clear(&node, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_fails_the_call_and_undoes_it() {
    let Some(node) = node_with_plugins().await else { return };
    let no = || Answer::Error(Status::permission_denied("not today"));
    let plugin = plugin(&node, ("10", "no"), move |told| match (told.what.as_str(), told.pod.name.as_str()) {
        ("RUN_POD_SANDBOX", "no-pod") | ("CreateContainer", "no-container") | ("START_CONTAINER", "no-start") => no(),
        ("STOP_POD_SANDBOX" | "StopContainer" | "REMOVE_CONTAINER" | "REMOVE_POD_SANDBOX", _) => no(),
        _ => Answer::Nothing,
    })
    .await;
    let refused = node.run_pod(&pod("no-pod")).await.unwrap_err();
    assert!(refused.message().contains("NRI plugin 10-no refused RUN_POD_SANDBOX: "), "{refused}");
    assert!(refused.message().contains("not today"), "{refused}");
    assert_eq!(node.pods().await, []);
    let config = pod("no-container");
    let id = node.run_pod(&config).await.unwrap();
    assert!(node.create(&id, &container("main", "true"), &config).await.is_err());
    clear(&node, &id).await;
    let config = pod("no-start");
    let id = node.run_pod(&config).await.unwrap();
    let main = node.create(&id, &container("main", "sleep 1000"), &config).await.unwrap();
    assert!(node.start_container(&main).await.is_err());
    let status = node.ended(&main).await;
    assert_eq!((status.exit_code, &*status.reason), (128, "StartError"));
    // What it says about ends changes nothing.
    clear(&node, &id).await;
    assert!(plugin.events().ends_with("REMOVE_POD_SANDBOX"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_that_hang_or_die_are_left_and_the_call_goes_on() {
    let Some(node) = node_with_plugins().await else { return };
    let misbehaving = |answer: fn() -> Answer| {
        move |told: &Told| match told.what.as_str() {
            "CreateContainer" => answer(),
            _ => Answer::Nothing,
        }
    };
    let garbage: fn() -> Answer = || Answer::This(vec![0xff; 9]);
    let hang: fn() -> Answer = || Answer::Never;
    let die: fn() -> Answer = || Answer::Die;
    for (name, answer) in [("hangs", hang), ("dies", die), ("babbles", garbage)] {
        let bad = plugin(&node, ("10", name), misbehaving(answer)).await;
        let good = plugin(&node, ("20", "good"), |_| Answer::Nothing).await;
        let config = pod(name);
        let begun = Instant::now();
        let (id, _) = node.sleeper(&config).await;
        assert!(begun.elapsed() < Duration::from_secs(30), "{name}: {:?}", begun.elapsed());
        tokio::time::timeout(Duration::from_secs(10), bad.runtime.closed()).await.expect("it is disconnected");
        assert!(good.events().contains("CreateContainer POST_CREATE_CONTAINER START_CONTAINER"), "{}", good.events());
        clear(&node, &id).await;
        assert!(bad.events().ends_with("CreateContainer"), "{name} is told nothing more: {}", bad.events());
        assert!(node.log().contains(&format!("10-{name}")), "{}", node.log());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_no_plugin_is_not_let_in() {
    let Some(node) = node_with_plugins().await else { return };
    let mut others = Vec::new();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 2, 0, 0, 0, 10, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0],
        &[],
    ] {
        let mut stream = UnixStream::connect(socket(&node)).unwrap();
        stream.write_all(bytes).unwrap();
        others.push(stream);
    }
    // Nobody waits for those who say nothing.
    let good = plugin(&node, ("20", "good"), |_| Answer::Nothing).await;
    let (id, _) = node.sleeper(&pod("web")).await;
    assert!(good.events().starts_with("RUN_POD_SANDBOX CreateContainer"));
    for (index, name) in [("1", "a"), ("xx", "a"), ("10", ""), ("10", "a/b")] {
        if let Ok(refused) = Plugin::connect(&socket(&node), (index, name), |_| Answer::Nothing).await {
            tokio::time::timeout(Duration::from_secs(30), refused.runtime.closed()).await.unwrap();
        }
    }
    for mut stream in others {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // An end, of whichever kind.
        let ended = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        assert!(!matches!(&ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock), "{ended:?}");
    }
    clear(&node, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_change_and_evict_other_containers() {
    let Some(node) = node_with_plugins().await else { return };
    let config = pod("web");
    let (id, main) = node.sleeper(&config).await;
    let waiting = node.create(&id, &container("waiting", "exec sleep 1000"), &config).await.unwrap();
    let (running, created) = (main.clone(), waiting.clone());
    let plugin = plugin(&node, ("10", "tuner"), move |told| match (told.what.as_str(), told.container.name.as_str()) {
        ("CreateContainer", "new") => Answer::of(&nri::CreateContainerResponse {
            update: vec![update(&running, 96 << 20), update(&created, 80 << 20)],
            ..Default::default()
        }),
        ("CreateContainer", "bad") => {
            Answer::of(&nri::CreateContainerResponse { update: vec![update("nobody", 96 << 20)], ..Default::default() })
        }
        ("UpdateContainer", _) => Answer::of(&nri::UpdateContainerResponse {
            update: vec![update(&told.container.id, 48 << 20)],
            ..Default::default()
        }),
        _ => Answer::Nothing,
    })
    .await;
    // It knows them from before.
    let known = plugin.last("Synchronize").unwrap().all;
    assert_eq!((known.pods.len(), known.containers.len()), (1, 2));
    let new = node.create(&id, &container("new", "exec sleep 1000"), &config).await.unwrap();
    assert_eq!((limit_of(&node, &main).await, limit_of(&node, &waiting).await), (96 << 20, 80 << 20));
    assert_eq!((in_cgroup(&node, &main), limit_of_spec(&node, &waiting).await), (96 << 20, 80 << 20));
    node.start_container(&waiting).await.unwrap();
    assert_eq!(in_cgroup(&node, &waiting), 80 << 20);
    let refused = node.create(&id, &container("bad", "true"), &config).await.unwrap_err();
    assert!(refused.message().contains("update of container nobody, which an NRI plugin asked for"), "{refused}");
    // The kubelet says one thing, the plugin another.
    let linux = cri::LinuxContainerResources { memory_limit_in_bytes: 32 << 20, ..Default::default() };
    let request =
        cri::UpdateContainerResourcesRequest { container_id: main.clone(), linux: Some(linux), ..Default::default() };
    node.kubelet().update_container_resources(request).await.unwrap();
    assert_eq!((limit_of(&node, &main).await, in_cgroup(&node, &main)), (48 << 20, 48 << 20));
    // Without being asked.
    let request = nri::UpdateContainersRequest {
        update: vec![update(&main, 112 << 20), update("nobody", 1 << 20)],
        evict: vec![nri::ContainerEviction { container_id: waiting.clone(), reason: "too loud".into() }],
    };
    let failed = plugin.update(&request).await.unwrap();
    assert_eq!(failed.iter().map(|update| &*update.container_id).collect::<Vec<_>>(), ["nobody"]);
    assert_eq!((limit_of(&node, &main).await, in_cgroup(&node, &main)), (112 << 20, 112 << 20));
    assert_eq!(node.ended(&waiting).await.state(), cri::ContainerState::ContainerExited);
    assert_eq!(node.container(&new).await.unwrap().state(), cri::ContainerState::ContainerCreated);
    clear(&node, &id).await;
}

/// The limit that the kernel keeps for a container that runs.
fn in_cgroup(node: &Node, id: &str) -> i64 {
    let all = fs::read_to_string("/proc/self/cgroup").unwrap();
    let unified = all.lines().count() == 1;
    let process = node.ctr(&["task", "ls"]);
    let pid = process.lines().find(|line| line.starts_with(id)).unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let of = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (at, file) = match unified {
        true => (format!("/sys/fs/cgroup{}", of.trim().trim_start_matches("0::")), "memory.max"),
        false => {
            let path = of.lines().find_map(|line| line.split_once(":memory:")).unwrap().1;
            (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes")
        }
    };
    fs::read_to_string(PathBuf::from(at).join(file)).unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_judge_rejects_what_others_have_done() {
    let Some(node) = node_with_plugins().await else { return };
    let judge = plugin(&node, ("50", "judge"), |told| match told.what.as_str() {
        "Configure" => Answer::of(&nri::ConfigureResponse { events: 1 << 13 }),
        "ValidateContainerAdjustment" if told.container.name == "bad" => {
            Answer::of(&nri::ValidateContainerAdjustmentResponse { reject: true, reason: "no A here".into() })
        }
        "ValidateContainerAdjustment" if told.container.name == "slow" => Answer::Never,
        _ => Answer::Nothing,
    })
    .await;
    let config = pod("web");
    let id = node.run_pod(&config).await.unwrap();
    node.create(&id, &container("good", "true"), &config).await.unwrap();
    let refused = node.create(&id, &container("bad", "true"), &config).await.unwrap_err();
    assert!(
        refused.message().contains("NRI plugin 50-judge rejected") && refused.message().contains("no A here"),
        "{refused}"
    );
    let refused = node.create(&id, &container("slow", "true"), &config).await.unwrap_err();
    assert!(refused.message().contains("50-judge didn't say"), "{refused}");
    assert_eq!(judge.events(), ["ValidateContainerAdjustment"; 3].join(" "));
    clear(&node, &id).await;
}

/// Not a test: what the next one starts as an installed plugin. It notes what it is told in the file that is its configuration.
#[tokio::test]
#[ignore = "it is a plugin's program, for the next test"]
async fn act_as_a_plugin() {
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    stream.set_nonblocking(true).unwrap();
    let stream = tokio::net::UnixStream::from_std(stream).unwrap();
    let notes = std::sync::Mutex::new(None::<fs::File>);
    let name = std::env::var("NRI_PLUGIN_NAME").unwrap();
    assert_eq!(std::env::var("NRI_PLUGIN_SOCKET").as_deref(), Ok("0"));
    let index = std::env::var("NRI_PLUGIN_IDX").unwrap();
    let wish = env("INSTALLED", &name);
    let plugin = Plugin::over(stream, (&index, &name), move |told| {
        let mut notes = notes.lock().unwrap();
        if told.what == "Configure" {
            *notes = Some(fs::File::options().create(true).append(true).open(&told.pod.name).unwrap());
        }
        let all = (told.all.pods.len(), told.all.containers.len());
        writeln!(notes.as_ref().unwrap(), "{} {} {}", told.what, all.0, all.1).unwrap();
        match told.what.as_str() {
            "CreateContainer" => {
                Answer::of(&nri::CreateContainerResponse { adjust: Some(wish.clone()), ..Default::default() })
            }
            _ => Answer::Nothing,
        }
    });
    plugin.await.unwrap().runtime.closed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn installed_plugins_are_started_and_all_know_the_node_after_a_restart() {
    let Some(mut node) = node_with_plugins().await else { return };
    let notes = node.path().join("notes");
    let program = node.path().join("nri.plugins/05-installed");
    let own = std::env::current_exe().unwrap();
    let script = format!("#!/bin/sh\nexec {:?} --ignored --exact nri::act_as_a_plugin\n", own.display().to_string());
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(node.path().join("nri.conf/installed.conf"), notes.display().to_string()).unwrap();
    // Others are left out, and keep nobody from being started.
    fs::write(node.path().join("nri.plugins/README"), "").unwrap();
    fs::write(node.path().join("nri.plugins/99-broken"), "#!/no/such/program\n").unwrap();
    fs::set_permissions(node.path().join("nri.plugins/99-broken"), fs::Permissions::from_mode(0o755)).unwrap();
    node.kill();
    node.start(&[]).await;
    // It was there before the first call was answered.
    let config = pod("web");
    let (id, main) = node.sleeper(&config).await;
    assert_eq!(text(&node, &main, "echo $INSTALLED").await, "installed");
    let first = plugin(&node, ("10", "connected"), |_| Answer::Nothing).await;
    node.kill();
    tokio::time::timeout(Duration::from_secs(10), first.runtime.closed()).await.unwrap();
    node.start(&[]).await;
    let again = plugin(&node, ("10", "connected"), |_| Answer::Nothing).await;
    let known = again.last("Synchronize").unwrap().all;
    assert_eq!((known.pods[0].id.as_str(), known.containers[0].id.as_str()), (&*id, &*main));
    assert_eq!(known.containers[0].state(), nri::ContainerState::ContainerRunning);
    assert!(known.containers[0].pid > 0 && known.containers[0].env.contains(&"INSTALLED=installed".to_owned()));
    clear(&node, &id).await;
    assert_eq!(again.events(), "StopContainer STOP_POD_SANDBOX REMOVE_CONTAINER REMOVE_POD_SANDBOX");
    let notes = fs::read_to_string(notes).unwrap();
    let wanted = "Configure 0 0\nSynchronize 0 0\nRUN_POD_SANDBOX 0 0\nCreateContainer 0 0\nPOST_CREATE_CONTAINER 0 0\n\
                  START_CONTAINER 0 0\nPOST_START_CONTAINER 0 0\nConfigure 0 0\nSynchronize 1 1\nStopContainer 0 0\n\
                  STOP_POD_SANDBOX 0 0\nREMOVE_CONTAINER 0 0\nREMOVE_POD_SANDBOX 0 0\n";
    assert_eq!(notes, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_are_told_when_the_supervisor_ends() {
    let Some(mut node) = node_with_plugins().await else { return };
    let plugin = plugin(&node, ("10", "patient"), |_| Answer::Nothing).await;
    kill(Pid::from_raw(node.pids()[0] as i32), Signal::SIGTERM).unwrap();
    eventually("the supervisor has ended", async || node.died().then_some(())).await;
    assert_eq!(plugin.events(), "Shutdown");
    assert!(!socket(&node).exists());
    node.kill();
    // What one that was killed has left is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(socket(&node)).unwrap());
    node.start(&[]).await;
    // Where somebody else listens, nothing is taken away.
    node.kill();
    fs::remove_file(socket(&node)).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(socket(&node)).unwrap();
    node.start(&[]).await;
    assert!(node.log().contains("another runtime listens there"), "{}", node.log());
    let id = node.run_pod(&pod("web")).await.unwrap();
    clear(&node, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_being_asked_there_is_no_socket() {
    let Some(node) = Node::of_berth("containerd says nothing of a pod's resources before 2.1").await else { return };
    let id = node.run_pod(&pod("web")).await.unwrap();
    assert!(!node.log().contains("NRI"), "{}", node.log());
    // What a kubelet says of a pod is kept in any case.
    let resources = cri::LinuxContainerResources { memory_limit_in_bytes: 5 << 20, ..Default::default() };
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.clone(),
        resources: Some(resources),
        ..Default::default()
    };
    node.kubelet().update_pod_sandbox_resources(request.clone()).await.unwrap();
    let status = cri::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    let info = node.kubelet().pod_sandbox_status(status).await.unwrap().into_inner().info;
    assert!(info["info"].contains("\"memoryLimitInBytes\":5242880"), "{info:?}");
    // Which makes it no other pod.
    assert_eq!(node.run_pod(&pod("web")).await.unwrap(), id);
    node.stop_pod(&id).await.unwrap();
    let late = node.kubelet().update_pod_sandbox_resources(request.clone()).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    node.remove_pod(&id).await.unwrap();
    let gone = node.kubelet().update_pod_sandbox_resources(request).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
    let unbuilt = node.kubelet().checkpoint_pod(cri::CheckpointPodRequest {}).await.unwrap_err();
    assert_eq!(unbuilt.code(), Code::Unimplemented);
    assert!(unbuilt.message().contains("CheckpointPod"), "{unbuilt}");
    let unbuilt = node.kubelet().restore_pod(cri::RestorePodRequest {}).await.unwrap_err();
    assert!(unbuilt.message().contains("RestorePod"), "{unbuilt}");
}
