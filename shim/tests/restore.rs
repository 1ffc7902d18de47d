//! Containers that go on from a checkpoint. criu doesn't run on every kernel, so most of it is shown with an OCI runtime that
//! notes how it was asked to restore, and then makes a new process; the last test has criu, where it works.

mod common;
#[path = "../../runtime/tests/suite/criu.rs"]
mod criu;

use std::{fs, path::Path};

use common::{Shim, Stage, eventually, log_text, runtime};
use proto::{
    containerd::{
        events::{TaskCreate, TaskStart},
        runc::v1::{CheckpointOptions, Options},
        task::v3::{
            CheckpointTaskRequest, CreateTaskRequest, DeleteResponse, ExecProcessRequest, PauseRequest, PidsRequest,
            ResizePtyRequest, StateRequest, StateResponse, StatsRequest,
        },
        v1::types::Status as State,
    },
    typeurl,
};
use tonic::Code;

/// Restores by making a new container with the same arguments but those about images. With a file `fail` it fails as one
/// whose criu could do nothing, half-way: the container is there.
const STAND_IN: &str = r#"#!/bin/busybox sh
case " $* " in *" restore "*) ;; *) exec RUNTIME "$@" ;; esac
echo "$*" >>FOLDER/asked
left=$#
while test $left -gt 0; do
    word=$1; shift; left=$((left - 1))
    case $word in
    restore) set -- "$@" create ;;
    --image-path | --work-path) shift; left=$((left - 1)) ;;
    --detach | --no-subreaper) ;;
    --log) log=$1; set -- "$@" "$word" ;;
    *) set -- "$@" "$word" ;;
    esac
done
RUNTIME "$@" || exit
if test -e FOLDER/fail; then
    echo '{"level":"error","msg":"criu could not restore: no such page"}' >"$log"
    exit 1
fi
for id; do :; done
exec RUNTIME --root "$2" start "$id"
"#;

/// A request whose runtime is the stand-in, for a checkpoint that is a folder.
fn request(stage: &Stage, id: &str, bundle: &Path) -> CreateTaskRequest {
    let (program, folder) = (stage.path("stand-in"), stage.path("images"));
    let text = STAND_IN.replace("RUNTIME", &runtime()).replace("FOLDER", &stage.path("").display().to_string());
    testing::executable(&program, &text);
    fs::create_dir_all(&folder).expect("images");
    let options = Options { binary_name: program.display().to_string(), ..Options::default() };
    CreateTaskRequest {
        checkpoint: folder.display().to_string(),
        options: Some(typeurl::pack(&options)),
        ..stage.create(id, bundle)
    }
}

async fn state(shim: &Shim) -> StateResponse {
    let request = StateRequest { id: shim.id.clone(), exec_id: String::new() };
    shim.task.clone().state(request).await.expect("state").into_inner()
}

/// The pids in the events of creation and start.
fn told_pids(stage: &Stage) -> Vec<u32> {
    let told = stage.told.lock().expect("lock");
    let events = told.iter().filter_map(|envelope| envelope.event.as_ref());
    let pid = |any| match (typeurl::unpack::<TaskCreate>(any), typeurl::unpack::<TaskStart>(any)) {
        (Some(create), _) => Some(create.expect("create").pid),
        (_, Some(start)) => Some(start.expect("start").pid),
        _ => None,
    };
    events.filter_map(pid).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn create_prepares_and_start_restores() {
    let stage = Stage::new().await;
    let script = "echo up; trap 'echo bye; exit 4' TERM; while :; do sleep 0.01; done";
    let bundle = stage.bundle("back", &["sh", "-c", script], |_| ());
    let mut shim = stage.shim("back", bundle.clone()).await;
    let log = stage.path("log");
    let mut create = request(&stage, "back", &bundle);
    create.stdout = format!("file://{}", log.display());
    assert_eq!(shim.create(create).await.expect("create"), 0, "there is no process yet");
    let before = state(&shim).await;
    assert_eq!((before.status(), before.pid), (State::Created, 0));
    assert!(!stage.path("asked").exists() && !bundle.join("init.pid").exists(), "nothing is restored before Start");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(mounts.contains(&bundle.join("rootfs").display().to_string()), "the root filesystem is there");

    let kill = shim.kill("", 9).await.unwrap_err();
    assert_eq!(
        (kill.code(), kill.message().contains("process not created")),
        (Code::FailedPrecondition, true),
        "{kill}"
    );
    let exec = shim.exec("e", &["true"], ExecProcessRequest::default()).await.unwrap_err();
    let id = || String::from("back");
    let pause = shim.task.pause(PauseRequest { id: id() }).await.unwrap_err();
    let pids = shim.task.pids(PidsRequest { id: id() }).await.unwrap_err();
    let stats = shim.task.stats(StatsRequest { id: id() }).await.unwrap_err();
    let images = stage.path("more").display().to_string();
    let checkpoint = CheckpointTaskRequest { id: id(), path: images, ..Default::default() };
    let checkpoint = shim.task.checkpoint(checkpoint).await.unwrap_err();
    for refused in [exec, pause, pids, stats, checkpoint] {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    }
    let size = ResizePtyRequest { id: id(), exec_id: String::new(), width: 80, height: 25 };
    shim.task.resize_pty(size).await.expect("a size for later");

    let waiter = tokio::spawn({
        let shim = stage.connect("back", bundle.clone(), shim.socket.clone()).await;
        async move { shim.wait("").await }
    });
    let pid = shim.start("").await.expect("start");
    let asked = fs::read_to_string(stage.path("asked")).expect("asked");
    let (root, at) = (stage.path("runtime"), bundle.display());
    let expected = format!(
        "--root {}/{} --log {at}/log.json --log-format json restore --image-path {} --work-path {at}/.shim-criu-work \
         --detach --no-subreaper --bundle {at} --pid-file {at}/init.pid back\n",
        root.display(),
        common::NAMESPACE,
        stage.path("images").display(),
    );
    assert_eq!(asked, expected);
    assert!(!bundle.join(".shim-criu-work").exists(), "criu's scratch goes when all went well");
    let running = state(&shim).await;
    assert_eq!((running.status(), running.pid), (State::Running, pid));
    assert_eq!(fs::read_to_string(bundle.join("init.pid")).expect("pid file").trim(), pid.to_string());
    assert_eq!(shim.start("").await.unwrap_err().code(), Code::FailedPrecondition, "once is enough");
    shim.exec("e", &["sh", "-c", "exit 3"], ExecProcessRequest::default()).await.expect("exec");
    assert_eq!(shim.wait("e").await.exit_status, 3);
    shim.delete("e").await.expect("delete exec");
    shim.task.stats(StatsRequest { id: id() }).await.expect("stats");
    let pids = shim.task.pids(PidsRequest { id: id() }).await.expect("pids").into_inner().processes;
    assert!(pids.iter().any(|process| process.pid == pid), "{pids:?}");
    eventually("its output", || fs::read_to_string(&log).is_ok_and(|text| text.contains("up")).then_some(())).await;
    shim.kill("", 15).await.expect("kill");
    assert_eq!(waiter.await.expect("wait").exit_status, 4, "who waited before Start hears of the end");
    assert!(fs::read_to_string(&log).expect("log").ends_with("bye\n"));
    let record = fs::read_to_string(bundle.join("init.exit")).expect("record");
    assert!(record.contains(&format!("\"pid\":{pid},\"exit_status\":4")), "{record}");
    assert_eq!(shim.delete("").await.expect("delete").exit_status, 4);
    eventually("the whole story", || stage.story().contains(&"delete".to_owned()).then_some(())).await;
    let story = stage.story();
    let life: Vec<_> = story.iter().filter(|line| !line.contains("exec") && !line.contains("exit e ")).collect();
    assert_eq!(life, ["create", "start", "exit back 4", "delete"]);
    assert_eq!(told_pids(&stage), [0, pid]);
    shim.shutdown().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_undone_and_can_be_tried_again_or_deleted() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("fails", &["sh", "-c", "echo up; exec sleep 100"], |_| ());
    let mut shim = stage.shim("fails", bundle.clone()).await;
    fs::write(stage.path("fail"), "").expect("fail");
    let log = stage.path("log");
    let mut create = request(&stage, "fails", &bundle);
    create.stdout = format!("file://{}", log.display());
    shim.create(create.clone()).await.expect("create");
    let states = stage.path("runtime").join(common::NAMESPACE);
    let empty = || fs::read_dir(&states).map_or(0, Iterator::count) == 0;
    for _ in 0..2 {
        let failed = shim.start("").await.unwrap_err();
        assert_eq!(failed.message(), "OCI runtime restore failed: criu could not restore: no such page");
        assert_eq!((state(&shim).await.status(), state(&shim).await.pid), (State::Created, 0));
        assert!(empty(), "what the runtime had made is gone");
    }
    fs::remove_file(stage.path("fail")).expect("no fail");
    shim.start("").await.expect("start");
    eventually("its output", || fs::read_to_string(&log).is_ok_and(|text| text == "up\n").then_some(())).await;
    assert_eq!(shim.finish().await.exit_status, 137);

    fs::write(stage.path("fail"), "").expect("fail");
    let mut shim = stage.shim("fails", bundle.clone()).await;
    shim.create(create).await.expect("create");
    shim.start("").await.unwrap_err();
    assert_eq!(shim.delete("").await.expect("delete"), DeleteResponse::default());
    eventually("the second deletion", || stage.story().ends_with(&["create".into(), "delete".into()]).then_some(()))
        .await;
    shim.shutdown().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_never_restored_is_deleted_without_an_end() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("never", &["sleep", "100"], |_| ());
    let mut shim = stage.shim("never", bundle.clone()).await;
    let create = request(&stage, "never", &bundle);
    let refused = |wrong: CreateTaskRequest| {
        let mut task = shim.task.clone();
        async move { task.create(wrong).await.unwrap_err().code() }
    };
    let parent = CreateTaskRequest { parent_checkpoint: "/parent".into(), ..create.clone() };
    assert_eq!(refused(parent).await, Code::Unimplemented);
    let nowhere = CreateTaskRequest { checkpoint: stage.path("none").display().to_string(), ..create.clone() };
    assert_eq!(refused(nowhere).await, Code::NotFound);
    shim.create(create.clone()).await.expect("create");
    assert_eq!(shim.delete("").await.expect("delete"), DeleteResponse::default());
    assert!(!stage.path("asked").exists(), "no runtime was needed");
    // The name is free again, and a shim that dies with such a container leaves nothing that its program does not clean up.
    shim.create(create).await.expect("create");
    let shims = || common::processes_with(&stage.path("").display().to_string());
    for line in shims() {
        let pid = line.split(' ').next().and_then(|pid| pid.parse().ok()).expect("pid");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
    eventually("end of the shim", || shims().is_empty().then_some(())).await;
    let output = stage.action("never", &bundle, "delete");
    assert!(output.status.success(), "{output:?}");
    let story = stage.story();
    assert!(!story.iter().any(|line| line.starts_with("exit")), "{story:?}");
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_taken_from_the_runtime_that_restores() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("tty", &["sh", "-c", "stty size; exec sleep 100"], |spec| {
        spec["process"]["terminal"] = true.into();
    });
    let mut shim = stage.shim("tty", bundle.clone()).await;
    let log = stage.path("log");
    let mut create = request(&stage, "tty", &bundle);
    (create.terminal, create.stdout) = (true, format!("file://{}", log.display()));
    shim.create(create).await.expect("create");
    shim.start("").await.expect("start");
    assert!(fs::read_to_string(stage.path("asked")).expect("asked").contains(" --console-socket "));
    eventually("its output", || fs::read_to_string(&log).is_ok_and(|text| text.contains('\n')).then_some(())).await;
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_counts_on() {
    if !criu::works() {
        return;
    }
    let stage = Stage::new().await;
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
    let bundle = stage.bundle("counter", &["sh", "-c", script], |_| ());
    let mut shim = stage.shim("counter", bundle.clone()).await;
    let log = stage.path("log");
    let mut create = stage.create("counter", &bundle);
    create.stdout = format!("json-file://{}", log.display());
    shim.create(create.clone()).await.expect("create");
    let first = shim.start("").await.expect("start");
    let count = || -> Vec<u64> {
        let text = if log.exists() { log_text(&log, "stdout") } else { String::new() };
        text.lines().map(|line| line.parse().expect("a number")).collect()
    };
    eventually("it counts", || (count().len() > 5).then_some(())).await;
    let images = stage.path("images").display().to_string();
    let options = CheckpointOptions { exit: true, ..CheckpointOptions::default() };
    let request =
        CheckpointTaskRequest { id: "counter".into(), path: images.clone(), options: Some(typeurl::pack(&options)) };
    shim.task.checkpoint(request).await.expect("checkpoint");
    shim.wait("").await;
    shim.delete("").await.expect("delete");
    let so_far = count().len();

    create.checkpoint = images;
    // Clients that restore may give it a stdin, as ctr does, also where it had none.
    create.stdin = stage.fifo("stdin").display().to_string();
    assert_eq!(shim.create(create).await.expect("create"), 0);
    let second = shim.start("").await.expect("start");
    assert!(second != 0 && second != first);
    eventually("it counts on", || (count().len() > so_far + 5).then_some(())).await;
    let numbers = count();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "none is missing or told twice: {numbers:?}");
    shim.exec("e", &["true"], ExecProcessRequest::default()).await.expect("exec");
    assert_eq!(shim.wait("e").await.exit_status, 0);
    shim.delete("e").await.expect("delete exec");
    assert_eq!(shim.finish().await.exit_status, 137);
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_goes_on_too() {
    if !criu::works() {
        return;
    }
    let stage = Stage::new().await;
    let script = "i=0; while :; do i=$((i+1)); echo $i $(stty size); sleep 0.02; done";
    let bundle = stage.bundle("screen", &["sh", "-c", script], |spec| spec["process"]["terminal"] = true.into());
    let mut shim = stage.shim("screen", bundle.clone()).await;
    let log = stage.path("log");
    let mut create = stage.create("screen", &bundle);
    (create.terminal, create.stdout) = (true, format!("file://{}", log.display()));
    shim.create(create.clone()).await.expect("create");
    let size = |width, height| ResizePtyRequest { id: "screen".into(), exec_id: String::new(), width, height };
    shim.task.resize_pty(size(80, 25)).await.expect("a size");
    shim.start("").await.expect("start");
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    eventually("it counts", || (lines() > 5).then_some(())).await;
    let images = stage.path("images").display().to_string();
    let options = Some(typeurl::pack(&CheckpointOptions { exit: true, ..CheckpointOptions::default() }));
    let request = CheckpointTaskRequest { id: "screen".into(), path: images.clone(), options };
    shim.task.checkpoint(request).await.expect("checkpoint");
    shim.wait("").await;
    shim.delete("").await.expect("delete");
    let so_far = lines();

    create.checkpoint = images;
    shim.create(create).await.expect("create");
    shim.task.resize_pty(size(99, 33)).await.expect("a size for later");
    shim.start("").await.expect("start");
    eventually("it counts on", || (lines() > so_far + 5).then_some(())).await;
    let text = fs::read_to_string(&log).expect("log");
    assert!(text.contains(&format!("\n{} ", so_far + 3)), "{text}");
    eventually("the size asked for", || fs::read_to_string(&log).is_ok_and(|t| t.contains(" 33 99")).then_some(()))
        .await;
    shim.finish().await;
    stage.leaves_nothing().await;
}
