//! Tasks that share a shim: what happens to one is nobody else's affair.

use std::time::{Duration, Instant};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::{
    containerd::{
        runc::v1::Options,
        services::containers::v1::{Container, CreateContainerRequest, container},
        v1::types::Status as State,
    },
    typeurl,
};
use serde_json::{Value, json};

use crate::{
    spec,
    stack::{Stack, assert_state, eventually, lives, oci_runtime, request},
};

/// Keeps the record of a container that belongs to `pod`.
async fn record(stack: &Stack, pod: &str, id: &str) {
    let mut spec: Value = serde_json::from_slice(&spec::container(&stack.cgroup(), id, "sleep 1000")).unwrap();
    spec["annotations"] = json!({ "io.kubernetes.cri.sandbox-id": pod });
    let options = typeurl::pack(&Options { binary_name: oci_runtime(), ..Default::default() });
    let container = Container {
        id: id.into(),
        runtime: Some(container::Runtime { name: "io.containerd.berth.v1".into(), options: Some(options) }),
        spec: Some(typeurl::pack_json(typeurl::SPEC, spec.to_string().into_bytes())),
        ..Default::default()
    };
    let message = CreateContainerRequest { container: Some(container) };
    stack.containers().create(request(message)).await.unwrap();
}

async fn run(stack: &Stack, pod: &str, id: &str) -> u32 {
    record(stack, pod, id).await;
    stack.create(id).await;
    stack.start_task(id).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_of_a_pod_share_a_shim_and_nothing_else() {
    let mut stack = Stack::new().await;
    run(&stack, "pod", "sandbox").await;
    let member = run(&stack, "pod", "member").await;
    let [shim] = stack.shims()[..] else { panic!("one shim: {:?}", stack.shims()) };
    stack.finish("sandbox").await;
    // The name is free at once: nobody waits for a shim that has reason to stay.
    let began = Instant::now();
    stack.create("sandbox").await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}\n{}", began.elapsed(), stack.log());
    stack.start_task("sandbox").await;
    // A task that can't be made is taken out, its shim left to the others.
    record(&stack, "pod", "bad").await;
    let mut bad = stack.create_request("bad");
    bad.rootfs[0].source = "/nowhere".into();
    stack.tasks().create(request(bad)).await.unwrap_err();
    assert_eq!(stack.shims(), [shim], "{}", stack.log());
    let process = stack.get("member").await.unwrap();
    assert_state(&process, State::Running);

    stack.kill();
    stack.start().await;
    for id in ["sandbox", "member"] {
        assert_state(&stack.get(id).await.unwrap(), State::Running);
    }
    assert_eq!(stack.get("member").await.unwrap().pid, member);

    // With the shim go all of them, each with its own end.
    kill(Pid::from_raw(i32::try_from(shim).unwrap()), Signal::SIGKILL).unwrap();
    for id in ["sandbox", "member"] {
        assert_eq!(stack.wait(id).await.exit_status, 137);
        assert_eq!(stack.delete(id).await.unwrap(), 137);
    }
    eventually("nothing of them lives", || !lives(member)).await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_a_pod_takes_the_shim_with_it() {
    let stack = Stack::new().await;
    run(&stack, "pod", "one").await;
    run(&stack, "pod", "two").await;
    run(&stack, "other", "three").await;
    assert_eq!(stack.shims().len(), 2);
    stack.finish("two").await;
    stack.finish("one").await;
    eventually("the pod's shim has ended", || stack.shims().len() == 1).await;
    stack.finish("three").await;
    stack.nothing_left().await;
}
