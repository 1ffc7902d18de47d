//! A container's life through the shim: states, execs, signals, events, and what is left afterwards.

mod common;

use std::{fs, time::Instant};

use common::{NAMESPACE, Stage, eventually, processes_with, runtime};
use prost::Message as _;
use proto::{
    containerd::{
        task::v3::{
            CheckpointTaskRequest, ConnectRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest,
            PidsRequest, ResumeRequest, ShutdownRequest, StateRequest, StatsRequest, WaitRequest,
        },
        v1::types::Status as State,
    },
    typeurl,
};
use serde_json::{Value, json};
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn from_create_to_shutdown() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("life", &["sh", "-c", "exit 7"], |_| ());
    let begin = Instant::now();
    let mut shim = stage.shim("life", bundle.clone()).await;
    let started = begin.elapsed();
    let pid = shim.create(stage.create("life", &bundle)).await.expect("create");
    let created = begin.elapsed();
    assert_eq!(fs::read_to_string(bundle.join("init.pid")).expect("pid file").trim(), pid.to_string());
    let state = |shim: &common::Shim| {
        let mut task = shim.task.clone();
        async move { task.state(StateRequest { id: "life".into(), exec_id: String::new() }).await }
    };
    assert_eq!(state(&shim).await.expect("state").into_inner().status(), State::Created);
    assert_eq!(shim.create(stage.create("life", &bundle)).await.unwrap_err().code(), Code::AlreadyExists);
    let begin = Instant::now();
    assert_eq!(shim.start("").await.expect("start"), pid);
    eprintln!("{}: shim {started:?}, create {:?}, start {:?}", runtime(), created - started, begin.elapsed());
    let exit = shim.wait("").await;
    assert_eq!(exit.exit_status, 7);
    let record: Value = serde_json::from_slice(&fs::read(bundle.join("init.exit")).expect("record")).expect("json");
    assert_eq!((&record["pid"], &record["exit_status"]), (&json!(pid), &json!(7)));
    let answer = state(&shim).await.expect("state").into_inner();
    assert_eq!((answer.status(), answer.exit_status, answer.exited_at), (State::Stopped, 7, exit.exited_at));
    assert_eq!(shim.start("").await.unwrap_err().code(), Code::FailedPrecondition);
    let gone = shim.kill("", 9).await.unwrap_err();
    assert_eq!((gone.code(), gone.message().contains("process already finished")), (Code::NotFound, true));
    let deleted = shim.delete("").await.expect("delete");
    assert_eq!(deleted, DeleteResponse { pid, exit_status: 7, exited_at: exit.exited_at });
    assert_eq!(state(&shim).await.unwrap_err().code(), Code::NotFound);
    eventually("the whole story", || (stage.story().len() == 4).then_some(())).await;
    assert_eq!(stage.story(), ["create", "start", "exit life 7", "delete"]);
    shim.shutdown().await;
    eventually("end of the shim", || (!shim.socket.exists()).then_some(())).await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_by_code() {
    let stage = Stage::new().await;
    let mut shim = stage.container("codes", &["sleep", "100"]).await;
    let exec = ExecProcessRequest::default;
    assert_eq!(shim.start("nope").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(shim.start("../x").await.unwrap_err().code(), Code::InvalidArgument);
    shim.start("").await.expect("start");
    assert_eq!(shim.start("").await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(shim.delete("").await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(shim.kill("", 65).await.unwrap_err().code(), Code::InvalidArgument);
    let checkpoint = CheckpointTaskRequest { id: "codes".into(), ..CheckpointTaskRequest::default() };
    assert_eq!(shim.task.checkpoint(checkpoint).await.unwrap_err().code(), Code::InvalidArgument, "no folder");
    let other = WaitRequest { id: "other".into(), exec_id: String::new() };
    assert_eq!(shim.task.wait(other).await.unwrap_err().code(), Code::NotFound);
    let unknown = ExecProcessRequest { stdout: "gelf://127.0.0.1:1".into(), ..exec() };
    let refused = shim.exec("e1", &["true"], unknown).await.unwrap_err();
    assert_eq!((refused.code(), refused.message().contains("gelf")), (Code::Unimplemented, true), "{refused:?}");
    shim.delete("e1").await.expect("delete what never ran");
    let missing = shim.exec("e2", &["/bin/nosuch"], exec()).await.unwrap_err();
    assert!(missing.message().contains("no such file or directory"), "{missing:?}");
    assert_eq!(shim.exec("e2", &["true"], exec()).await.unwrap_err().code(), Code::AlreadyExists);
    shim.task.shutdown(ShutdownRequest { id: "codes".into(), now: false }).await.expect("ignored");
    let connected = shim.task.connect(ConnectRequest { id: "codes".into() }).await.expect("still there").into_inner();
    assert!(connected.task_pid > 0 && fs::exists(format!("/proc/{}", connected.shim_pid)).expect("proc"));
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_create_says_why_and_leaves_nothing() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("bad", &["nosuch-program"], |_| ());
    let mut shim = stage.shim("bad", bundle.clone()).await;
    let error = shim.create(stage.create("bad", &bundle)).await;
    // A runtime may notice at create or at start.
    let error = match error {
        Err(error) => error,
        Ok(_) => {
            let error = shim.start("").await.unwrap_err();
            shim.wait("").await;
            shim.delete("").await.expect("delete");
            error
        }
    };
    assert!(error.message().contains("executable file not found"), "{error:?}");
    let mut request = stage.create("bad", &bundle);
    request.rootfs[0].source = "/nowhere".into();
    let error = shim.create(request).await.unwrap_err();
    assert!(error.message().contains("/nowhere") && error.message().contains("ENOENT"), "{error:?}");
    let mut request = stage.create("bad", &bundle);
    request.options = Some(typeurl::pack(&proto::containerd::runc::v1::Options {
        binary_name: "/nowhere/runtime".into(),
        ..Default::default()
    }));
    let error = shim.create(request).await.unwrap_err();
    assert!(error.message().contains("/nowhere/runtime"), "{error:?}");
    fs::write(bundle.join("config.json"), "{").expect("write");
    let error = shim.create(stage.create("bad", &bundle)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    shim.shutdown().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_killed_half_way_leaves_nothing() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("half", &["sleep", "100"], |_| ());
    let mut shim = stage.shim("half", bundle.clone()).await;
    // The runtime is killed by itself: a wrapper that lets the real one work, and dies before it has said so.
    let wrapper = stage.path("wrapper");
    let script =
        format!("#!/bin/sh\ncase \"$*\" in *create*) {} \"$@\"; kill -9 $$;; esac\nexec {0} \"$@\"\n", runtime());
    testing::executable(&wrapper, &script);
    let mut request = stage.create("half", &bundle);
    request.options = Some(typeurl::pack(&proto::containerd::runc::v1::Options {
        binary_name: wrapper.display().to_string(),
        ..Default::default()
    }));
    let error = shim.create(request.clone()).await.unwrap_err();
    assert!(error.message().contains("killed by signal 9"), "{error:?}");
    request.options = stage.create("half", &bundle).options;
    // The name is free again.
    shim.create(request).await.expect("create");
    shim.start("").await.expect("start");
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn execs_tell_their_ends_before_init() {
    let stage = Stage::new().await;
    let mut shim = stage.container("execs", &["sleep", "100"]).await;
    shim.start("").await.expect("start");
    let none = ExecProcessRequest::default;
    shim.exec("quick", &["sh", "-c", "exit 3"], none()).await.expect("exec");
    assert_eq!(shim.wait("quick").await.exit_status, 3);
    let long = shim.exec("long", &["sleep", "100"], none()).await.expect("exec");
    let pids = shim.task.pids(PidsRequest { id: "execs".into() }).await.expect("pids").into_inner().processes;
    let details = pids.iter().find(|process| process.pid == long).and_then(|process| process.info.as_ref());
    assert_eq!(details.map(|any| any.type_url.as_str()), Some("containerd.runc.v1.ProcessDetails"), "{pids:?}");
    shim.exec("term", &["sleep", "100"], none()).await.expect("exec");
    shim.kill("term", 15).await.expect("kill");
    assert_eq!(shim.wait("term").await.exit_status, 128 + 15);
    assert_eq!(shim.kill("term", 15).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(shim.delete("quick").await.expect("delete").exit_status, 3);
    assert_eq!(shim.delete("quick").await.unwrap_err().code(), Code::NotFound);
    let record: Value =
        serde_json::from_slice(&fs::read(shim.bundle.join("exec-term.exit")).expect("record")).expect("json");
    assert_eq!(record["exit_status"], 143);
    shim.finish().await;
    eventually("the end of the story", || stage.story().contains(&"delete".into()).then_some(())).await;
    let story = stage.story();
    let place =
        |what: &str| story.iter().position(|line| line == what).unwrap_or_else(|| panic!("{what} in {story:?}"));
    assert!(place("exit long 137") < place("exit execs 137"), "{story:?}");
    assert_eq!(story[..5], ["create", "start", "exec-added", "exec-started", "exit quick 3"]);
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_execs_at_once_all_end() {
    let stage = Stage::new().await;
    let mut shim = stage.container("many", &["sleep", "100"]).await;
    shim.start("").await.expect("start");
    let mut all = Vec::new();
    for number in 0..12u32 {
        let mut task = common::Shim {
            id: shim.id.clone(),
            bundle: shim.bundle.clone(),
            socket: shim.socket.clone(),
            task: shim.task.clone(),
            streams: shim.streams.clone(),
        };
        all.push(tokio::spawn(async move {
            let id = format!("e{number}");
            let script = format!("exit {number}");
            task.exec(&id, &["sh", "-c", &script], ExecProcessRequest::default()).await.expect("exec");
            assert_eq!(task.wait(&id).await.exit_status, number);
            assert_eq!(task.delete(&id).await.expect("delete").exit_status, number);
        }));
    }
    for one in all {
        one.await.expect("exec");
    }
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_stats_and_signals() {
    let stage = Stage::new().await;
    let script = "trap 'exit 5' USR1; while :; do sleep 0.05; done";
    let mut shim = stage.container("pause", &["sh", "-c", script]).await;
    let id = || "pause".to_owned();
    shim.start("").await.expect("start");
    let stats = shim.task.stats(StatsRequest { id: id() }).await.expect("stats").into_inner().stats.expect("any");
    assert!(stats.type_url.starts_with("io.containerd.cgroups.v"), "{stats:?}");
    if let Some(metrics) = typeurl::unpack::<proto::io::containerd::cgroups::v1::Metrics>(&stats) {
        let metrics = metrics.expect("metrics");
        assert!(metrics.pids.is_some_and(|pids| pids.current >= 1 && pids.limit == 100), "{metrics:?}");
        assert!(metrics.memory.and_then(|m| m.usage).is_some_and(|usage| usage.limit == 268_435_456));
    }
    match shim.task.pause(PauseRequest { id: id() }).await {
        Ok(_) => {
            let state = shim.task.state(StateRequest { id: id(), exec_id: String::new() }).await.expect("state");
            assert_eq!(state.into_inner().status(), State::Paused);
            let refused = shim.exec("e", &["true"], ExecProcessRequest::default()).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition);
            shim.task.resume(ResumeRequest { id: id() }).await.expect("resume");
        }
        // Not every runtime has it.
        Err(error) => assert_ne!(runtime(), "runc", "{error:?}"),
    }
    shim.kill("", 10).await.expect("kill");
    assert_eq!(shim.wait("").await.exit_status, 5);
    assert_eq!(shim.finish().await.exit_status, 5);
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_time_signal_ends_a_container() {
    let stage = Stage::new().await;
    let mut shim = stage.container("rt", &["sleep", "100"]).await;
    shim.start("").await.expect("start");
    // Init of a pid namespace ignores what it has no handler for, except from outside when it must die.
    shim.exec("e", &["sleep", "100"], ExecProcessRequest::default()).await.expect("exec");
    shim.kill("e", 35).await.expect("kill");
    assert_eq!(shim.wait("e").await.exit_status, 128 + 35);
    let all = KillRequest { id: "rt".into(), exec_id: String::new(), signal: 9, all: true };
    shim.task.kill(all).await.expect("kill all");
    assert_eq!(shim.wait("").await.exit_status, 137);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_created_container_can_be_deleted() {
    let stage = Stage::new().await;
    let mut shim = stage.container("early", &["sleep", "100"]).await;
    assert_eq!(shim.delete("").await.expect("delete").exit_status, 137);
    shim.shutdown().await;
    eventually("the story", || (stage.story().len() == 3).then_some(())).await;
    assert_eq!(stage.story(), ["create", "exit early 137", "delete"]);
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_pid_namespace_everything_is_killed_with_init() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("hostpid", &["sh", "-c", "sleep 31415 & exec sleep 27182"], |spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("list");
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let mut shim = stage.shim("hostpid", bundle.clone()).await;
    shim.create(stage.create("hostpid", &bundle)).await.expect("create");
    shim.start("").await.expect("start");
    eventually("two processes", || (processes_with("sleep 31415").len() == 1).then_some(())).await;
    shim.kill("", 9).await.expect("kill");
    assert_eq!(shim.wait("").await.exit_status, 137);
    eventually("end of the other", || processes_with("sleep 31415").is_empty().then_some(())).await;
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_wait_for_the_supervisor_and_keep_their_order() {
    let mut stage = Stage::new().await;
    let mut shim = stage.container("away", &["sleep", "100"]).await;
    eventually("create", || (stage.story() == ["create"]).then_some(())).await;
    stage.supervisor_down();
    shim.start("").await.expect("start");
    shim.exec("e", &["true"], ExecProcessRequest::default()).await.expect("exec");
    shim.wait("e").await;
    shim.kill("", 9).await.expect("kill");
    shim.wait("").await;
    // Nobody listens, but it is on record.
    assert!(shim.bundle.join("init.exit").exists() && shim.bundle.join("exec-e.exit").exists());
    assert_eq!(stage.story(), ["create"]);
    stage.supervisor_up();
    let whole = ["create", "start", "exec-added", "exec-started", "exit e 0", "exit away 137"];
    eventually("the rest", || (stage.story() == whole).then_some(())).await;
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_finds_the_first_and_sigterm_is_ignored() {
    let stage = Stage::new().await;
    let mut shim = stage.container("twice", &["sleep", "100"]).await;
    let again = stage.action("twice", &shim.bundle, "start");
    let answer: Value = serde_json::from_slice(&again.stdout).expect("json");
    assert_eq!(answer["address"], shim.socket.display().to_string());
    let connect = || ConnectRequest { id: "twice".into() };
    let pid = shim.task.connect(connect()).await.expect("connect").into_inner().shim_pid;
    let kill = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), signal).expect("kill");
    kill(nix::sys::signal::SIGTERM);
    kill(nix::sys::signal::SIGINT);
    assert_eq!(shim.task.connect(connect()).await.expect("connect").into_inner().shim_pid, pid);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn delete_cleans_up_after_a_killed_shim() {
    let stage = Stage::new().await;
    let mut shim = stage.container("killed", &["sleep", "100"]).await;
    let init = shim.start("").await.expect("start");
    let pid = shim.task.connect(ConnectRequest { id: "killed".into() }).await.expect("connect").into_inner().shim_pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::SIGKILL).expect("kill");
    assert!(fs::exists(format!("/proc/{init}")).expect("proc"), "the container lives on");
    let output = stage.action("killed", &shim.bundle, "delete");
    assert!(output.status.success(), "{output:?}");
    let answer = DeleteResponse::decode(output.stdout.as_slice()).expect("protobuf and nothing else");
    assert_eq!((answer.pid, answer.exit_status), (init, 137));
    assert!(answer.exited_at.is_some());
    eventually("end of init", || (!fs::exists(format!("/proc/{init}")).expect("proc")).then_some(())).await;
    // Once more, with nothing there: the same answer.
    assert!(stage.action("killed", &shim.bundle, "delete").status.success());
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_out_of_memory_kill_is_told() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("oom", &["sh", "-c", "x=x; while :; do x=$x$x; done"], |spec| {
        spec["linux"]["resources"]["memory"] = json!({"limit": 16 << 20, "swap": 16 << 20});
    });
    let mut shim = stage.shim("oom", bundle.clone()).await;
    shim.create(stage.create("oom", &bundle)).await.expect("create");
    shim.start("").await.expect("start");
    let exit = shim.wait("").await;
    eventually("the exit", || stage.story().iter().any(|line| line.starts_with("exit")).then_some(())).await;
    let story = stage.story();
    let oom = story.iter().position(|line| line == "oom");
    let exited = story.iter().position(|line| line.starts_with("exit oom"));
    assert!(oom.is_some() && oom < exited, "{story:?}, status {}", exit.exit_status);
    shim.finish().await;
    stage.leaves_nothing().await;
}

#[test]
fn a_bad_command_line_is_one_line() {
    for (args, word) in [
        (vec!["-nope"], "-nope"),
        (vec!["start"], "-namespace"),
        (vec!["-namespace", NAMESPACE, "-address", "/run/x.sock", "-id", "a/b", "start"], "a/b"),
        (vec![], "start and delete"),
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_berth-shim")).args(&args).output().expect("shim");
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}");
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
}
