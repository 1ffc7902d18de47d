//! Several containers in one shim, and shims that nobody needs any more.

mod common;

use std::{fs, path::Path, time::Duration};

use common::{Shim, Stage, eventually, processes_with, runtime};
use proto::{
    containerd::{
        runc::v1::Options,
        task::v3::{ConnectRequest, ExecProcessRequest, ShutdownRequest, StateRequest, WaitRequest},
        v1::types::Status,
    },
    typeurl,
};
use serde_json::{Value, json};
use tonic::Code;

const GROUP: &str = "io.containerd.runc.v2.group";

/// A container of `pod`, in whatever shim `start` leads to.
async fn member(stage: &Stage, pod: &str, id: &str, args: &[&str], change: impl FnOnce(&mut Value)) -> Shim {
    let bundle = stage.bundle(id, args, |spec| {
        spec["annotations"] = json!({ GROUP: pod });
        change(spec);
    });
    let mut shim = stage.shim(id, bundle.clone()).await;
    shim.create(stage.create(id, &bundle)).await.expect("create");
    shim.start("").await.expect("start");
    shim
}

async fn shim_pid(shim: &mut Shim) -> u32 {
    let request = ConnectRequest { id: shim.id.clone() };
    shim.task.connect(request).await.expect("connect").into_inner().shim_pid
}

async fn status(shim: &mut Shim) -> Status {
    let request = StateRequest { id: shim.id.clone(), ..StateRequest::default() };
    shim.task.state(request).await.expect("state").into_inner().status()
}

async fn end(shim: &mut Shim) {
    shim.kill("", 9).await.expect("kill");
    assert_eq!(shim.wait("").await.exit_status, 137);
    shim.delete("").await.expect("delete");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_one_shim_and_its_containers_ends_of_their_own() {
    let stage = Stage::new().await;
    let mut first = member(&stage, "pod", "p1", &["sleep", "1000"], |_| ()).await;
    let mut second = member(&stage, "pod", "p2", &["sleep", "1000"], |_| ()).await;
    let mut alone = member(&stage, "other", "p3", &["sleep", "1000"], |_| ()).await;
    assert_eq!(first.socket, second.socket);
    assert_ne!(first.socket, alone.socket);
    assert_eq!(shim_pid(&mut first).await, shim_pid(&mut second).await);
    first.exec("e", &["true"], ExecProcessRequest::default()).await.expect("exec");
    let request = WaitRequest { id: "p2".into(), exec_id: "e".into() };
    let other = second.task.wait(request).await.map_err(|status| status.code());
    assert_eq!(other.err(), Some(Code::NotFound), "an exec is its container's");
    // The bundle of the first may go: nobody works in it.
    end(&mut first).await;
    fs::remove_dir_all(&first.bundle).expect("remove bundle");
    first.shutdown().await;
    assert_eq!(status(&mut second).await, Status::Running);
    second.exec("e", &["true"], ExecProcessRequest::default()).await.expect("exec");
    assert_eq!(second.wait("e").await.exit_status, 0);
    // The name is free, and the shim takes it again.
    let mut again = member(&stage, "pod", "p1", &["sleep", "1000"], |_| ()).await;
    assert_eq!(again.socket, second.socket);
    // containerd 2 knows the address by the pod's sandbox, and asks for no `start`.
    let bundle = stage.bundle("p4", &["sleep", "1000"], |_| ());
    let mut unasked = stage.connect("p4", bundle.clone(), again.socket.clone()).await;
    unasked.create(stage.create("p4", &bundle)).await.expect("create");
    unasked.start("").await.expect("start");
    end(&mut again).await;
    end(&mut second).await;
    second.shutdown().await;
    assert_eq!(status(&mut unasked).await, Status::Running);
    end(&mut unasked).await;
    second.shutdown().await;
    end(&mut alone).await;
    alone.shutdown().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_now_ends_the_shim_and_delete_the_containers() {
    let stage = Stage::new().await;
    let mut first = member(&stage, "pod", "n1", &["sleep", "1000"], |_| ()).await;
    let second = member(&stage, "pod", "n2", &["sleep", "1000"], |_| ()).await;
    let pid = shim_pid(&mut first).await;
    first.task.shutdown(ShutdownRequest { id: "n1".into(), now: true }).await.expect("shutdown");
    eventually("end of the shim", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())).await;
    for shim in [&first, &second] {
        assert!(stage.action(&shim.id, &shim.bundle, "delete").status.success());
    }
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_at_the_same_time_find_one_shim() {
    let stage = Stage::new().await;
    for round in 0..5 {
        let children: Vec<_> = (0..8)
            .map(|number| {
                let id = format!("r{round}-{number}");
                let bundle =
                    stage.bundle(&id, &["true"], |spec| spec["annotations"] = json!({ GROUP: format!("g{round}") }));
                let mut command = stage.command(&id, &bundle, "start");
                command.stdout(std::process::Stdio::piped()).spawn().expect("berth-shim")
            })
            .collect();
        let answers = children.into_iter().map(|child| {
            let output = child.wait_with_output().expect("output");
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).expect("text")
        });
        let answers: std::collections::HashSet<String> = answers.collect();
        assert_eq!(answers.len(), 1, "{answers:?}");
        let mut shims = processes_with(&stage.folder.path().display().to_string());
        shims.retain(|line| line.contains(&format!("-id r{round}-")));
        assert_eq!(shims.len(), 1, "{shims:?}");
        let id = format!("r{round}-0");
        let mut shim = stage.shim(&id, stage.path("tasks").join(&id)).await;
        shim.shutdown().await;
    }
    stage.leaves_nothing().await;
}

/// What a killed runtime left is killed; what looks like it but belongs to another container of the pod is not.
#[tokio::test(flavor = "multi_thread")]
async fn a_create_that_fails_harms_nobody_else() {
    let stage = Stage::new().await;
    let script = "sh -c 'sleep 1000 & echo $! >/proc/self/fd/1' ; exec sleep 1000";
    let bundle = stage.bundle("host", &["sh", "-c", script], |spec| {
        spec["annotations"] = json!({ GROUP: "pod" });
        // The host's pids: orphans of this container become children of the shim.
        spec["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]);
    });
    let mut first = stage.shim("host", bundle.clone()).await;
    let mut request = stage.create("host", &bundle);
    request.stdout = format!("file://{}", stage.path("orphan").display());
    first.create(request).await.expect("create");
    first.start("").await.expect("start");
    let orphan: u32 = eventually("the orphan's pid", || {
        fs::read_to_string(stage.path("orphan")).ok().and_then(|text| text.trim().parse().ok())
    })
    .await;
    let shim = shim_pid(&mut first).await;
    let parent_of = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("PPid:").and_then(|pid| pid.trim().parse::<u32>().ok()))
    };
    eventually("the orphan is the shim's", || (parent_of(orphan) == Some(shim)).then_some(())).await;

    let wrapper = stage.path("wrapper");
    let script =
        format!("#!/bin/sh\ncase \"$*\" in *create*) {} \"$@\"; kill -9 $$;; esac\nexec {0} \"$@\"\n", runtime());
    testing::executable(&wrapper, &script);
    let bundle = stage.bundle("half", &["sleep", "100"], |spec| spec["annotations"] = json!({ GROUP: "pod" }));
    let mut second = stage.shim("half", bundle.clone()).await;
    assert_eq!(second.socket, first.socket);
    let mut request = stage.create("half", &bundle);
    let options = Options { binary_name: wrapper.display().to_string(), ..Options::default() };
    request.options = Some(typeurl::pack(&options));
    let error = second.create(request).await.unwrap_err();
    assert!(error.message().contains("killed by signal 9"), "{error:?}");
    assert_eq!(parent_of(orphan), Some(shim), "the orphan of another container lives");
    second.shutdown().await;
    end(&mut first).await;
    eventually("end of the orphan", || parent_of(orphan).is_none().then_some(())).await;
    first.shutdown().await;
    stage.leaves_nothing().await;
}

/// A parent that was killed at any step leaves a shim that nobody will call: it goes, unless there is a container to keep.
#[tokio::test(flavor = "multi_thread")]
async fn a_shim_without_container_and_caller_ends_by_itself() {
    let stage = Stage::new().await;
    let started = stage.bundle("started", &["true"], |_| ());
    assert!(stage.action("started", &started, "start").status.success());
    let failed = stage.bundle("failed", &["true"], |_| ());
    let mut shim = stage.shim("failed", failed.clone()).await;
    let mut request = stage.create("failed", &failed);
    request.rootfs[0].source = "/nowhere".into();
    shim.create(request).await.unwrap_err();
    drop(shim);
    let mut deleted = stage.container("deleted", &["true"]).await;
    deleted.start("").await.expect("start");
    deleted.wait("").await;
    deleted.delete("").await.expect("delete");
    drop(deleted);
    let kept = stage.container("kept", &["sleep", "1000"]).await;
    let bundle = kept.bundle.clone();
    drop(kept);
    // A caller that is connected may yet have something to say.
    let called = stage.bundle("called", &["true"], |_| ());
    let mut called = stage.shim("called", called).await;
    let folder = stage.folder.path().display().to_string();
    let shims = || processes_with(&folder).into_iter().filter(|line| line.ends_with("start "));
    let count = |id: &str| shims().filter(|line| line.contains(&format!("-id {id} start"))).count();
    assert_eq!(shims().count(), 5);
    for id in ["started", "failed", "deleted"] {
        eventually(id, || (count(id) == 0).then_some(())).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    called.shutdown().await;
    stage.shim("kept", bundle).await.finish().await;
    stage.leaves_nothing().await;
}
