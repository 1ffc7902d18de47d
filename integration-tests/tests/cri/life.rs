//! The life of pods and containers.

use std::fs;

use proto::runtime::v1 as cri;
use tokio_stream::StreamExt;
use tonic::Code;

use integration_tests::kubelet::{Node, Runtime, container, eventually, pod};

/// Makes sure that a call was refused, and by Berth with the right code; containerd's are UNKNOWN for the most part.
#[track_caller]
fn refused<T: std::fmt::Debug>(answer: Result<T, tonic::Status>, code: Code) {
    let refused = answer.unwrap_err();
    assert!(refused.code() == code || Runtime::under_test() == Runtime::Containerd, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_lives_and_goes() {
    let node = Node::new().await;
    let mut config = pod("web");
    config.log_directory = node.path().join("logs").display().to_string();
    let id = node.run_pod(&config).await.unwrap();
    let status = node.pod(&id).await.unwrap();
    assert_eq!(status.state(), cri::PodSandboxState::SandboxReady);
    assert_eq!((&status.labels, &status.annotations), (&config.labels, &config.annotations));
    assert_eq!(status.metadata, config.metadata);

    let mut wanted = container("main", "echo out; echo err >&2; printf half; exit 3");
    wanted.log_path = "main/0.log".into();
    let main = node.create(&id, &wanted, &config).await.unwrap();
    let status = node.container(&main).await.unwrap();
    assert_eq!((status.state(), status.started_at), (cri::ContainerState::ContainerCreated, 0));
    assert!(status.created_at > 0 && status.image_ref.starts_with("sha256:"), "{status:?}");
    node.start_container(&main).await.unwrap();
    let status = node.ended(&main).await;
    assert_eq!((status.exit_code, &*status.reason), (3, "Error"));
    // containerd 1.6 writes the start down after it, when the end may have been before.
    let in_order = status.finished_at >= status.started_at || Runtime::under_test() == Runtime::Containerd;
    assert!(status.started_at >= status.created_at && in_order, "{status:?}");
    let log = fs::read_to_string(node.path().join("logs/main/0.log")).unwrap();
    for (tail, count) in [(" stdout F out\n", 1), (" stderr F err\n", 1), (" stdout P half\n", 1)] {
        assert_eq!(log.matches(tail).count(), count, "{log}");
    }
    refused(node.start_container(&main).await, Code::FailedPrecondition);

    let second = node.create(&id, &container("second", "exec sleep 1000"), &config).await.unwrap();
    node.start_container(&second).await.unwrap();
    assert_eq!(node.container(&second).await.unwrap().state(), cri::ContainerState::ContainerRunning);
    node.stop_pod(&id).await.unwrap();
    assert_eq!(node.pod(&id).await.unwrap().state(), cri::PodSandboxState::SandboxNotready);
    let status = node.container(&second).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 137));
    refused(node.create(&id, &container("late", "true"), &config).await, Code::FailedPrecondition);
    node.remove_pod(&id).await.unwrap();
    assert_eq!(node.pod(&id).await.unwrap_err().code(), Code::NotFound);
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_come_twice() {
    let Some(node) =
        Node::of_berth("containerd answers a name that is taken with UNKNOWN, also to who asks for the same again")
            .await
    else {
        return;
    };
    let config = pod("twice");
    let (first, second) = tokio::join!(node.run_pod(&config), node.run_pod(&config));
    let id = first.unwrap();
    assert_eq!(second.unwrap(), id);
    let mut other = config.clone();
    other.hostname = "other".into();
    let taken = node.run_pod(&other).await.unwrap_err();
    assert_eq!(taken.code(), Code::AlreadyExists);
    assert!(taken.message().contains(&id), "{taken}");
    other.metadata.as_mut().unwrap().attempt = 1;
    let next = node.run_pod(&other).await.unwrap();
    assert_ne!(next, id);

    let wanted = container("main", "exec sleep 1000");
    let main = node.create(&id, &wanted, &config).await.unwrap();
    assert_eq!(node.create(&id, &wanted, &config).await.unwrap(), main);
    let differs = node.create(&id, &container("main", "true"), &config).await.unwrap_err();
    assert_eq!(differs.code(), Code::AlreadyExists);
    node.start_container(&main).await.unwrap();
    for _ in 0..2 {
        node.stop_container(&main, 0).await.unwrap();
        assert_eq!(node.container(&main).await.unwrap().exit_code, 137);
    }
    for _ in 0..2 {
        node.remove_container(&main).await.unwrap();
        node.stop_container(&main, 0).await.unwrap();
    }
    for pod in [&id, &next] {
        for _ in 0..2 {
            node.stop_pod(pod).await.unwrap();
        }
        for _ in 0..2 {
            node.remove_pod(pod).await.unwrap();
        }
    }
    node.stop_pod("no-such-pod").await.unwrap();
    node.remove_container("no-such-container").await.unwrap();
    assert_eq!(node.container("no-such-container").await.unwrap_err().code(), Code::NotFound);
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_containers_end() {
    let node = Node::new().await;
    let config = pod("ends");
    let id = node.run_pod(&config).await.unwrap();
    for (name, script, code, reason) in [("good", "exit 0", 0, "Completed"), ("bad", "exit 7", 7, "Error")] {
        let one = node.create(&id, &container(name, script), &config).await.unwrap();
        node.start_container(&one).await.unwrap();
        let status = node.ended(&one).await;
        assert_eq!((status.exit_code, &*status.reason), (code, reason));
    }
    let mut missing = container("missing", "");
    missing.command = vec!["/no/such/program".into()];
    missing.args.clear();
    let one = node.create(&id, &missing, &config).await.unwrap();
    let refused = node.start_container(&one).await.unwrap_err();
    assert!(refused.message().contains("/no/such/program"), "{refused}");
    let status = node.container(&one).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 128));
    assert_eq!(status.reason, "StartError");
    assert!(status.message.contains("/no/such/program"), "{}", status.message);

    // Asked first, killed only when it doesn't listen.
    let trap = "trap 'echo asked; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
    let polite = node.create(&id, &container("polite", trap), &config).await.unwrap();
    node.start_container(&polite).await.unwrap();
    eventually("the trap is set", async || {
        let processes = node.exec(&polite, &["sh", "-c", "grep SigCgt /proc/1/status"]).await.unwrap();
        let text = String::from_utf8(processes.stdout).unwrap();
        let caught = u64::from_str_radix(text.split_whitespace().last().unwrap(), 16).unwrap();
        (caught & (1 << 14) != 0).then_some(())
    })
    .await;
    node.stop_container(&polite, 30).await.unwrap();
    assert_eq!(node.container(&polite).await.unwrap().exit_code, 9);
    let deaf =
        node.create(&id, &container("deaf", "trap '' TERM; while :; do sleep 0.1; done"), &config).await.unwrap();
    node.start_container(&deaf).await.unwrap();
    node.stop_container(&deaf, 1).await.unwrap();
    assert_eq!(node.container(&deaf).await.unwrap().exit_code, 137);
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_and_their_filters() {
    let Some(node) = Node::of_berth("containerd 1.6 has no StreamContainers").await else { return };
    let (one, two) = (pod("one"), pod("two"));
    let (first, main) = node.sleeper(&one).await;
    let second = node.run_pod(&two).await.unwrap();
    let idle = node.create(&second, &container("idle", "true"), &two).await.unwrap();
    node.stop_pod(&second).await.unwrap();
    let pods = async |filter: cri::PodSandboxFilter| {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let items = node.kubelet().list_pod_sandbox(request).await.unwrap().into_inner().items;
        items.into_iter().map(|pod| pod.id).collect::<Vec<_>>()
    };
    let state = |state: cri::PodSandboxState| Some(cri::PodSandboxStateValue { state: state.into() });
    let label = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
    assert_eq!(pods(cri::PodSandboxFilter::default()).await.len(), 2);
    assert_eq!(pods(cri::PodSandboxFilter { id: first[..13].into(), ..Default::default() }).await, [first.as_str()]);
    let ready = cri::PodSandboxFilter { state: state(cri::PodSandboxState::SandboxReady), ..Default::default() };
    assert_eq!(pods(ready).await, [first.as_str()]);
    let labelled = cri::PodSandboxFilter { label_selector: label("pod", "two"), ..Default::default() };
    assert_eq!(pods(labelled.clone()).await, [second.as_str()]);
    let nothing = cri::PodSandboxFilter { state: state(cri::PodSandboxState::SandboxReady), ..labelled };
    assert_eq!(pods(nothing).await, Vec::<String>::new());

    let containers = async |filter: cri::ContainerFilter| {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let items = node.kubelet().list_containers(request).await.unwrap().into_inner().containers;
        items.into_iter().map(|one| one.id).collect::<Vec<_>>()
    };
    assert_eq!(containers(cri::ContainerFilter::default()).await.len(), 2);
    let of = cri::ContainerFilter { pod_sandbox_id: second.clone(), ..Default::default() };
    assert_eq!(containers(of).await, [idle.as_str()]);
    let running = cri::ContainerStateValue { state: cri::ContainerState::ContainerRunning.into() };
    let running = cri::ContainerFilter { state: Some(running), ..Default::default() };
    assert_eq!(containers(running).await, [main.as_str()]);

    let mut streamed = Vec::new();
    let request = cri::StreamContainersRequest::default();
    let mut stream = node.kubelet().stream_containers(request).await.unwrap().into_inner();
    while let Some(message) = stream.next().await {
        streamed.extend(message.unwrap().containers);
    }
    assert_eq!(streamed, node.containers().await);
    let mut stream =
        node.kubelet().stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default()).await.unwrap().into_inner();
    assert_eq!(stream.next().await.unwrap().unwrap().pod_sandboxes, node.pods().await);
    for id in [first, second] {
        node.remove_pod(&id).await.unwrap();
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_each_step() {
    let Some(node) = Node::of_berth("containerd 1.6 has no GetContainerEvents").await else { return };
    let mut events = node.kubelet().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let config = pod("events");
    let (id, main) = node.sleeper(&config).await;
    node.stop_container(&main, 0).await.unwrap();
    node.remove_container(&main).await.unwrap();
    use cri::ContainerEventType::*;
    let states = [
        (ContainerCreatedEvent, cri::ContainerState::ContainerCreated),
        (ContainerStartedEvent, cri::ContainerState::ContainerRunning),
        (ContainerStoppedEvent, cri::ContainerState::ContainerExited),
        (ContainerDeletedEvent, cri::ContainerState::ContainerExited),
    ];
    for (kind, state) in states {
        let event = events.next().await.unwrap().unwrap();
        assert_eq!((event.container_event_type(), &event.container_id), (kind, &main));
        assert_eq!(event.pod_sandbox_status.unwrap().id, id);
        assert_eq!(event.containers_statuses[0].state(), state);
    }
    node.remove_pod(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_go_on_in_a_new_file() {
    let node = Node::new().await;
    let mut config = pod("logs");
    config.log_directory = node.path().join("logs").display().to_string();
    let id = node.run_pod(&config).await.unwrap();
    let mut wanted = container("main", "while :; do echo line; sleep 0.05; done");
    wanted.log_path = "0.log".into();
    let main = node.create(&id, &wanted, &config).await.unwrap();
    node.start_container(&main).await.unwrap();
    let log = node.path().join("logs/0.log");
    let has_lines = async || fs::read_to_string(&log).is_ok_and(|text| text.contains("line")).then_some(());
    eventually("there are lines", has_lines).await;
    fs::rename(&log, log.with_extension("old")).unwrap();
    let request = cri::ReopenContainerLogRequest { container_id: main.clone() };
    node.kubelet().reopen_container_log(request.clone()).await.unwrap();
    eventually("there are lines in the new file", has_lines).await;
    node.stop_container(&main, 0).await.unwrap();
    refused(node.kubelet().reopen_container_log(request).await, Code::FailedPrecondition);
    node.remove_pod(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_in_containers() {
    let node = Node::new().await;
    let config = pod("exec");
    let (id, main) = node.sleeper(&config).await;
    let done = node.exec(&main, &["sh", "-c", "echo out; echo err >&2; exit 4"]).await.unwrap();
    assert_eq!((&*done.stdout, &*done.stderr, done.exit_code), (&b"out\n"[..], &b"err\n"[..], 4));
    let slow =
        cri::ExecSyncRequest { container_id: main.clone(), cmd: vec!["sleep".into(), "1000".into()], timeout: 1 };
    assert_eq!(node.kubelet().exec_sync(slow).await.unwrap_err().code(), Code::DeadlineExceeded);
    eventually("the slow one is dead", async || {
        let processes = node.exec(&main, &["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]).await.unwrap();
        let text = String::from_utf8(processes.stdout).unwrap();
        (text.matches("sleep 1000").count() == 1).then_some(())
    })
    .await;
    node.stop_container(&main, 0).await.unwrap();
    refused(node.exec(&main, &["true"]).await, Code::FailedPrecondition);
    refused(node.exec("no-such-container", &["true"]).await, Code::NotFound);
    node.remove_pod(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_that_see_each_others_processes() {
    let Some(mut node) = Node::of_berth("containerd's pause doesn't end at SIGTERM of a container").await else {
        return;
    };
    let mut config = pod("shared");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().pid = cri::NamespaceMode::Pod.into();
    let shared = |name: &str| {
        let mut wanted = container(name, "exec sleep 1000");
        let context = wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options.as_mut().unwrap().pid = cri::NamespaceMode::Pod.into();
        wanted
    };
    let id = node.run_pod(&config).await.unwrap();
    let mut containers = Vec::new();
    for name in ["one", "two"] {
        let one = node.create(&id, &shared(name), &config).await.unwrap();
        node.start_container(&one).await.unwrap();
        containers.push(one);
    }
    let look = ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"];
    let seen = async |node: &Node| String::from_utf8(node.exec(&containers[0], &look).await.unwrap().stdout).unwrap();
    let text = seen(&node).await;
    assert!(text.starts_with("/berth-pause ") && text.matches("sleep 1000").count() == 2, "{text}");
    // What is left behind by who started it is reaped by the pod's process 1.
    node.exec(&containers[0], &["sh", "-c", "(true & true) & exit 0"]).await.unwrap();
    eventually("nothing is left to be reaped", async || {
        let states = node.exec(&containers[0], &["sh", "-c", "grep -h ^State /proc/[0-9]*/status"]).await.unwrap();
        (!String::from_utf8(states.stdout).unwrap().contains("zombie")).then_some(())
    })
    .await;
    node.kill();
    node.start(&[]).await;
    assert!(seen(&node).await.contains("/berth-pause"));
    // A container of the pod ends alone; with the pod's process all do.
    node.stop_container(&containers[0], 0).await.unwrap();
    assert_eq!(node.container(&containers[1]).await.unwrap().state(), cri::ContainerState::ContainerRunning);
    // The command is one of those that end with it, if it hasn't ended by then.
    let killer = node.exec(&containers[1], &["sh", "-c", "kill -TERM 1"]).await.unwrap();
    assert!(matches!(killer.exit_code, 0 | 137), "{killer:?}");
    assert_eq!(node.ended(&containers[1]).await.exit_code, 137);
    eventually("the sandbox isn't ready any more", async || {
        let status = node.pod(&id).await.unwrap();
        (status.state() == cri::PodSandboxState::SandboxNotready).then_some(())
    })
    .await;
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_sees_those_of_another_while_that_one_runs() {
    let Some(node) = Node::of_berth("containerd doesn't look again when the container starts").await else { return };
    let (sandbox, other) = (pod("seen"), pod("other"));
    let (id, first) = node.sleeper(&sandbox).await;
    let (other_id, _) = node.sleeper(&other).await;
    let debugger = |name: &str| {
        let mut wanted = container(name, "exec sleep 1000");
        let context = wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        let options = context.namespace_options.as_mut().unwrap();
        (options.pid, options.target_id) = (cri::NamespaceMode::Target.into(), first.clone());
        wanted
    };
    refused(node.create(&other_id, &debugger("elsewhere"), &other).await, Code::InvalidArgument);
    let (looks, late) = (debugger("looks"), debugger("late"));
    let looks = node.create(&id, &looks, &sandbox).await.unwrap();
    let late = node.create(&id, &late, &sandbox).await.unwrap();
    node.start_container(&looks).await.unwrap();
    let seen = node.exec(&looks, &["sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"]).await.unwrap();
    assert!(String::from_utf8(seen.stdout).unwrap().contains("sleep"), "it sees the other's first process");
    // The number that its specification names may be somebody else's from now on.
    node.stop_container(&first, 0).await.unwrap();
    refused(node.start_container(&late).await, Code::FailedPrecondition);
    for pod in [&id, &other_id] {
        node.remove_pod(pod).await.unwrap();
    }
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_whose_containers_come_and_go_is_never_without_a_shim() {
    let node = Node::new().await;
    let config = pod("turnstile");
    let id = node.run_pod(&config).await.unwrap();
    // Each ends about when the next one begins: the pod's shim is leaving, or has to stay.
    for round in 0..20 {
        let one = node.create(&id, &container(&format!("c{round}"), "exit 0"), &config).await.unwrap();
        node.start_container(&one).await.unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
    for one in node.containers().await {
        assert_eq!(node.ended(&one.id).await.exit_code, 0);
    }
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}
