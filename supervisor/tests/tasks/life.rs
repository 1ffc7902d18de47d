//! Lives without accidents of the supervisor's own; the shim may die or hang.

use std::time::{Duration, Instant};

use crate::{
    spec,
    stack::{Stack, assert_state, eventually, lives, program, request},
};
use proto::{
    berth::streams::v1::{AttachRequest, ReopenLogRequest},
    containerd::{
        events::{TaskDelete, TaskExit},
        services::tasks::v1::{
            DeleteProcessRequest, ExecProcessRequest, GetRequest, ListPidsRequest, ListTasksRequest, MetricsRequest,
            PauseTaskRequest, ResumeTaskRequest, StartRequest, WaitRequest,
        },
        v1::types::Status as State,
    },
    typeurl,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_life_from_create_to_delete() {
    let stack = Stack::new().await;
    let mut events = stack.events(&["topic~=|^/tasks/|"]).await;
    stack.record("life", "echo hello; echo there >&2; sleep 1000").await;
    let pid = stack.create("life").await;
    assert!(lives(pid));
    assert_state(&stack.get("life").await.unwrap(), State::Created);
    assert_eq!(stack.start_task("life").await, pid);
    assert_state(&stack.get("life").await.unwrap(), State::Running);
    eventually("output arrives", || stack.output("life") == "hello\nthere\n").await;
    let listed = stack.tasks().list(request(ListTasksRequest::default())).await.unwrap().into_inner().tasks;
    assert_eq!(listed.iter().map(|task| (task.id.as_str(), task.pid)).collect::<Vec<_>>(), [("life", pid)]);
    let pids = ListPidsRequest { container_id: "life".into() };
    let pids = stack.tasks().list_pids(request(pids)).await.unwrap().into_inner().processes;
    assert!(pids.iter().any(|process| process.pid == pid), "{pids:?}");
    let metrics = MetricsRequest { filters: vec!["id==life".into()] };
    let metrics = stack.tasks().metrics(request(metrics)).await.unwrap().into_inner().metrics;
    assert_eq!(metrics.iter().map(|metric| metric.id.as_str()).collect::<Vec<_>>(), ["life"]);
    assert!(metrics[0].data.is_some());
    let refused = stack.delete("life").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    stack.signal("life", 9).await.unwrap();
    let ended = stack.wait("life").await;
    assert_eq!(ended.exit_status, 137);
    assert_state(&stack.get("life").await.unwrap(), State::Stopped);
    assert_eq!(stack.signal("life", 9).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(stack.delete("life").await.unwrap(), 137);
    assert_eq!(stack.get("life").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(events.topics(4).await, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_can_be_used_again_at_once() {
    let stack = Stack::new().await;
    stack.record("again", "exit 7").await;
    for _ in 0..5 {
        stack.create("again").await;
        stack.start_task("again").await;
        assert_eq!(stack.wait("again").await.exit_status, 7);
        assert_eq!(stack.delete("again").await.unwrap(), 7);
    }
    stack.create("again").await;
    assert_eq!(
        stack.tasks().create(request(stack.create_request("again"))).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    // Created and never started: deleted all the same.
    stack.delete("again").await.unwrap();
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn further_processes_run_and_are_told_apart() {
    let stack = Stack::new().await;
    stack.run_task("web", "sleep 1000").await;
    let mut events = stack.events(&["topic==/tasks/exit"]).await;
    let output = format!("file://{}", stack.folder().join("exec.out").display());
    let exec = |exec: &str, script: &str| ExecProcessRequest {
        container_id: "web".into(),
        exec_id: exec.into(),
        stdout: output.clone(),
        spec: Some(spec::process(script)),
        ..Default::default()
    };
    let named = |exec: &str| (String::from("web"), exec.to_owned());
    for (name, script, code) in [("one", "echo joined; exit 3", 3), ("two", "true", 0)] {
        stack.tasks().exec(request(exec(name, script))).await.unwrap();
        let (container_id, exec_id) = named(name);
        let started = stack.tasks().start(request(StartRequest { container_id, exec_id })).await.unwrap();
        let pid = started.into_inner().pid;
        let (container_id, exec_id) = named(name);
        let ended = stack.tasks().wait(request(WaitRequest { container_id, exec_id })).await.unwrap().into_inner();
        assert_eq!(ended.exit_status, code);
        let (container_id, exec_id) = named(name);
        let process = stack.tasks().get(request(GetRequest { container_id, exec_id })).await.unwrap().into_inner();
        assert_state(&process.process.unwrap(), State::Stopped);
        let (container_id, exec_id) = named(name);
        let gone = stack.tasks().delete_process(request(DeleteProcessRequest { container_id, exec_id })).await.unwrap();
        assert_eq!((gone.get_ref().pid, gone.get_ref().exit_status), (pid, code));
        let exit = typeurl::unpack::<TaskExit>(&events.next().await.1).unwrap().unwrap();
        assert_eq!((exit.id.as_str(), exit.pid, exit.exit_status), (name, pid, code));
    }
    assert_eq!(std::fs::read_to_string(stack.folder().join("exec.out")).unwrap(), "joined\n");
    let (container_id, exec_id) = named("three");
    let absent = stack.tasks().start(request(StartRequest { container_id, exec_id })).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);
    stack.finish("web").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_container_waits_for_its_resume() {
    let stack = Stack::new().await;
    stack.run_task("froze", "while :; do echo x; sleep 0.01; done").await;
    let pause = || request(PauseTaskRequest { container_id: "froze".into() });
    let resume = || request(ResumeTaskRequest { container_id: "froze".into() });
    eventually("it prints", || !stack.output("froze").is_empty()).await;
    assert_eq!(stack.tasks().resume(resume()).await.unwrap_err().code(), Code::FailedPrecondition);
    stack.tasks().pause(pause()).await.unwrap();
    assert_state(&stack.get("froze").await.unwrap(), State::Paused);
    assert_eq!(stack.tasks().pause(pause()).await.unwrap_err().code(), Code::FailedPrecondition);
    let exec = ExecProcessRequest {
        container_id: "froze".into(),
        exec_id: "x".into(),
        spec: Some(spec::process("true")),
        ..Default::default()
    };
    assert_eq!(stack.tasks().exec(request(exec)).await.unwrap_err().code(), Code::FailedPrecondition);
    stack.tasks().resume(resume()).await.unwrap();
    let before = stack.output("froze").len();
    eventually("it prints again", || stack.output("froze").len() > before).await;
    stack.finish("froze").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_shim_is_noticed_and_cleaned_up_after() {
    let stack = Stack::new().await;
    let pid = stack.run_task("orphan", "sleep 1000 & sleep 1000").await;
    let other = stack.run_task("other", "sleep 1000").await;
    let mut events = stack.events(&["topic~=|^/tasks/|,event.container_id==orphan"]).await;
    let waiting = {
        let mut tasks = stack.tasks();
        let message = WaitRequest { container_id: "orphan".into(), exec_id: String::new() };
        tokio::spawn(async move { tasks.wait(request(message)).await })
    };
    let shim = parent_of(pid);
    assert!(stack.shims().contains(&shim), "{shim} {:?}", stack.shims());
    kill(shim);
    let (topic, event) = events.next().await;
    let exit = typeurl::unpack::<TaskExit>(&event).unwrap().unwrap();
    assert_eq!((topic.as_str(), exit.id.as_str(), exit.pid, exit.exit_status), ("/tasks/exit", "orphan", pid, 137));
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().exit_status, 137);
    assert!(!lives(pid));
    // The exit stays answerable until somebody deletes it, also for the next supervisor.
    let mut stack = stack;
    stack.kill();
    stack.start().await;
    let process = stack.get("orphan").await.unwrap();
    assert_state(&process, State::Stopped);
    assert_eq!((process.pid, process.exit_status), (pid, 137));
    assert!(lives(other));
    let mut events = stack.events(&["topic==/tasks/delete"]).await;
    assert_eq!(stack.delete("orphan").await.unwrap(), 137);
    let deleted = typeurl::unpack::<TaskDelete>(&events.next().await.1).unwrap().unwrap();
    assert_eq!((deleted.container_id.as_str(), deleted.exit_status), ("orphan", 137));
    stack.finish("other").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_shim_left_is_ended_even_if_its_program_fails() {
    let stack = Stack::new().await;
    let text =
        format!("case \"$*\" in *delete*) echo no >&2; exit 1;; esac\nexec {} \"$@\"", program("berth-shim").display());
    let wrapper = script(&stack, "wrapper", &text);
    stack.record_with("rest", "sleep 1000 & sleep 1000", &wrapper).await.unwrap();
    let pid = stack.create("rest").await;
    stack.start_task("rest").await;
    let started = || ["memory", "pids", ""].iter().any(|c| stack.processes_in(c, "rest") >= 2);
    eventually("both processes run", started).await;
    kill(parent_of(pid));
    assert_eq!(stack.wait("rest").await.exit_status, 137);
    assert!(!lives(pid));
    assert_eq!(stack.delete("rest").await.unwrap(), 137);
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_shim_hinders_nobody_else() {
    let stack = Stack::new().await;
    let stuck = stack.run_task("stuck", "sleep 1000").await;
    let shim = nix::unistd::Pid::from_raw(parent_of(stuck) as i32);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    stack.run_task("quick", "exit 0").await;
    assert_eq!(stack.wait("quick").await.exit_status, 0);
    stack.delete("quick").await.unwrap();
    let listed = stack.tasks().list(request(ListTasksRequest::default())).await.unwrap().into_inner().tasks;
    assert!(listed.iter().any(|task| task.id == "stuck" && task.pid == stuck));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // Asked about itself, it is answered from memory.
    assert_state(&stack.get("stuck").await.unwrap(), State::Running);
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGCONT).unwrap();
    stack.finish("stuck").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_is_refused_and_leaves_nothing() {
    let stack = Stack::new().await;
    let old = script(&stack, "old-shim", "[ $1 = delete ] || echo unix:///nowhere");
    let answer = r#"{"version":4,"address":"/nowhere","protocol":"grpc"}"#;
    let new = script(&stack, "new-shim", &format!("[ $1 = delete ] || echo '{answer}'"));
    let bad = script(&stack, "bad-shim", "echo out of luck >&2; exit 1");
    let silent = script(&stack, "silent-shim", "exit 0");
    for (id, runtime, code, words) in [
        ("gone", "io.containerd.kata.v2", Code::NotFound, "containerd-shim-kata-v2 was not found"),
        ("name", "./shim", Code::InvalidArgument, "neither of the form"),
        ("old", old.as_str(), Code::Unavailable, "reach shim at /nowhere"),
        ("new", new.as_str(), Code::Unimplemented, "speaks grpc (version 4)"),
        ("bad", bad.as_str(), Code::Internal, "out of luck"),
        ("silent", silent.as_str(), Code::Internal, "where its address should be"),
    ] {
        stack.record_with(id, "true", runtime).await.unwrap();
        let status = stack.tasks().create(request(stack.create_request(id))).await.unwrap_err();
        assert_eq!(status.code(), code, "{id}: {status}");
        assert!(status.message().contains(words) && !status.message().contains('\n'), "{id}: {status}");
        assert_eq!(stack.get(id).await.unwrap_err().code(), Code::NotFound);
    }
    for status in [
        stack.tasks().create(request(stack.create_request("unknown"))).await.unwrap_err(),
        stack.signal("unknown", 9).await.unwrap_err(),
        stack.delete("unknown").await.unwrap_err(),
        stack.get("unknown").await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert!(status.message().contains("unknown: not found"), "{status}");
    }
    // A runtime that fails: the program isn't there.
    stack.record("broken", "true").await;
    let mut broken = stack.create_request("broken");
    broken.rootfs[0].source = "/nonexistent-rootfs".into();
    let status = stack.tasks().create(request(broken)).await.unwrap_err();
    assert!(!status.message().contains('\n'), "{status}");
    let missing = stack.tasks().list(tonic::Request::new(ListTasksRequest::default())).await.unwrap_err();
    assert!(missing.message().contains("namespace is required"), "{missing}");
    stack.nothing_left().await;
}

fn script(stack: &Stack, name: &str, text: &str) -> String {
    let at = stack.folder().join(name);
    testing::executable(&at, format!("#!/bin/sh\n{text}\n"));
    at.display().to_string()
}

fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)).and_then(|p| p.parse().ok()).expect("ppid")
}

fn kill(pid: u32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL).expect("kill");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_is_begun_anew_through_the_supervisor() {
    let stack = Stack::new().await;
    stack.record("anew", "echo before; read line; echo after; sleep 1000").await;
    let (log, old, input) = (stack.folder().join("anew.log"), stack.folder().join("old"), stack.folder().join("in"));
    nix::unistd::mkfifo(&input, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut create = stack.create_request("anew");
    create.stdin = input.display().to_string();
    create.stdout = format!("cri://{}", log.display());
    stack.tasks().create(request(create)).await.unwrap();
    stack.start_task("anew").await;
    let has = |path: &std::path::Path, text: &str| std::fs::read_to_string(path).is_ok_and(|log| log.ends_with(text));
    let wait = async |path: &std::path::Path, text: &str| {
        let written = async {
            while !has(path, text) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), written).await.expect(text);
    };
    wait(&log, " stdout F before\n").await;
    std::fs::rename(&log, &old).unwrap();
    let reopen = ReopenLogRequest { container_id: "anew".into(), exec_id: String::new() };
    stack.streams().reopen_log(request(reopen)).await.unwrap();
    std::fs::write(&input, "go\n").unwrap();
    wait(&log, " stdout F after\n").await;
    assert!(has(&old, " before\n"));
    stack.finish("anew").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attachments_are_passed_on_to_the_shim() {
    let stack = Stack::new().await;
    stack.record("att", "read line; echo got $line; sleep 1000").await;
    let mut create = stack.create_request("att");
    create.stdin = "attach:".into();
    stack.tasks().create(request(create)).await.unwrap();
    let fifo = |name: &str| {
        let at = stack.folder().join(name);
        nix::unistd::mkfifo(&at, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Both ends: opening waits for nobody, and nothing ends before we do.
        let ours = std::fs::File::options().read(true).write(true).open(&at).unwrap();
        (at.display().to_string(), ours)
    };
    let ((stdin, mut to), (stdout, from)) = (fifo("in"), fifo("out"));
    let attach = AttachRequest { container_id: "att".into(), stdin, stdout, ..Default::default() };
    stack.streams().attach(request(attach.clone())).await.unwrap();
    stack.start_task("att").await;
    std::io::Write::write_all(&mut to, b"this\n").unwrap();
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(from), &mut line).map(|_| line)
    });
    assert_eq!(tokio::time::timeout(Duration::from_secs(60), line).await.unwrap().unwrap().unwrap(), "got this\n");
    let absent = AttachRequest { container_id: "absent".into(), ..attach };
    assert_eq!(stack.streams().attach(request(absent)).await.unwrap_err().code(), Code::NotFound);
    let absent = ReopenLogRequest { container_id: "absent".into(), exec_id: String::new() };
    assert_eq!(stack.streams().reopen_log(request(absent)).await.unwrap_err().code(), Code::NotFound);
    stack.finish("att").await;
    stack.nothing_left().await;
}
