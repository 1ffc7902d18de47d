//! The supervisor killed at any instruction: containers do not notice, and the next one knows everything.

use std::time::{Duration, SystemTime};

use crate::{
    spec,
    stack::{NAMESPACE, Stack, assert_state, eventually, lives, request},
};
use proto::containerd::{
    services::tasks::v1::{ExecProcessRequest, GetRequest, ListTasksRequest, StartRequest, WaitRequest},
    v1::types::Status as State,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_do_not_notice_and_are_taken_over() {
    let mut stack = Stack::new().await;
    let running = stack.run_task("running", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.005; done").await;
    stack.record("created", "exit 4").await;
    let created = stack.create("created").await;
    for round in 0..3 {
        stack.kill();
        let before = stack.output("running").len();
        eventually("it prints while nobody minds", || stack.output("running").len() > before).await;
        stack.start().await;
        let process = stack.get("running").await.unwrap();
        assert_state(&process, State::Running);
        assert_eq!(process.pid, running, "round {round}");
        assert_eq!(stack.get("created").await.unwrap().pid, created);
    }
    assert_eq!(stack.start_task("created").await, created);
    assert_eq!(stack.wait("created").await.exit_status, 4);
    stack.delete("created").await.unwrap();
    stack.finish("running").await;
    let output = stack.output("running");
    for (index, line) in output.lines().enumerate() {
        assert_eq!(line, (index + 1).to_string(), "no line is missing, none doubled");
    }
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exit_while_nobody_minds_is_told_with_its_code_and_time() {
    let mut stack = Stack::new().await;
    let pid = stack.run_task("brief", "read -t 0.5 x < /dev/zero; sleep 0.4; exit 42").await;
    let exec = ExecProcessRequest {
        container_id: "brief".into(),
        exec_id: "e".into(),
        spec: Some(spec::process("sleep 0.1; exit 5")),
        ..Default::default()
    };
    stack.tasks().exec(request(exec)).await.unwrap();
    let named = StartRequest { container_id: "brief".into(), exec_id: "e".into() };
    stack.tasks().start(request(named)).await.unwrap();
    stack.kill();
    eventually("it ends", || !lives(pid)).await;
    let ended = SystemTime::now();
    tokio::time::sleep(Duration::from_millis(600)).await;
    stack.start().await;
    let process = stack.get("brief").await.unwrap();
    assert_state(&process, State::Stopped);
    assert_eq!((process.pid, process.exit_status), (pid, 42));
    let told = SystemTime::try_from(process.exited_at.unwrap()).unwrap();
    let apart = told.duration_since(ended).or_else(|_| ended.duration_since(told)).unwrap();
    assert!(apart < Duration::from_millis(300), "{apart:?} off");
    let exec = GetRequest { container_id: "brief".into(), exec_id: "e".into() };
    let exec = stack.tasks().get(request(exec)).await.unwrap().into_inner().process.unwrap();
    assert_eq!((exec.status(), exec.exit_status), (State::Stopped, 5));
    assert_eq!(stack.wait("brief").await.exit_status, 42);
    assert_eq!(stack.delete("brief").await.unwrap(), 42);
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_that_died_meanwhile_is_cleaned_up_after() {
    let mut stack = Stack::new().await;
    let pid = stack.run_task("both", "sleep 1000").await;
    let exited = stack.run_task("exited", "exit 9").await;
    assert_eq!(stack.wait("exited").await.exit_status, 9);
    stack.kill();
    for shim in stack.shims() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    stack.start().await;
    let process = stack.get("both").await.unwrap();
    assert_state(&process, State::Stopped);
    assert_eq!((process.pid, process.exit_status), (pid, 137));
    assert!(!lives(pid));
    // The shim had written this one down before it was killed.
    let process = stack.get("exited").await.unwrap();
    assert_eq!((process.pid, process.exit_status), (exited, 9));
    assert_eq!(stack.delete("both").await.unwrap(), 137);
    assert_eq!(stack.delete("exited").await.unwrap(), 9);
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_of_a_life_it_leaves_nothing_behind() {
    let mut stack = Stack::new().await;
    stack.record("any", "exit 3").await;
    // Moments spread over create, start and delete, which take some tens of milliseconds together.
    for step in 0..30_u64 {
        let (mut tasks, create) = (stack.tasks(), stack.create_request("any"));
        let life = tokio::spawn(async move {
            let named = || (String::from("any"), String::new());
            tasks.create(request(create)).await?;
            let (container_id, exec_id) = named();
            tasks.start(request(StartRequest { container_id, exec_id })).await?;
            let (container_id, exec_id) = named();
            let wait = WaitRequest { container_id, exec_id };
            tasks.wait(request(wait)).await?;
            let delete = proto::containerd::services::tasks::v1::DeleteTaskRequest { container_id: "any".into() };
            tasks.delete(request(delete)).await
        });
        tokio::time::sleep(Duration::from_micros(step * 2_500)).await;
        stack.kill();
        let _ = life.await.unwrap();
        stack.start().await;
        // Whatever state it was in: it can be asked, ended and deleted, or it is not there.
        match stack.get("any").await {
            Ok(process) => {
                if process.status() != State::Stopped {
                    match stack.signal("any", 9).await {
                        Err(status) if status.code() != Code::NotFound => panic!("step {step}: {status}"),
                        _ => {}
                    }
                    stack.wait("any").await;
                }
                stack.delete("any").await.unwrap_or_else(|status| panic!("step {step}: {status}\n{}", stack.log()));
            }
            Err(status) => assert_eq!(status.code(), Code::NotFound, "step {step}: {status}"),
        }
        stack.nothing_left().await;
        let listed = stack.tasks().list(request(ListTasksRequest::default())).await.unwrap().into_inner().tasks;
        assert!(listed.is_empty(), "step {step}: {listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_supervisors_on_one_root_are_one_too_many() {
    let mut stack = Stack::new().await;
    let second = stack.command().output().unwrap();
    assert!(!second.status.success());
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(words.contains("another berth-supervisor is using") && words.lines().count() == 1, "{words}");
    // Another run root, but the same data.
    let mut other = std::process::Command::new(env!("CARGO_BIN_EXE_berth-supervisor"));
    other.arg("--data-root").arg(stack.folder().join("d")).arg("--run-root").arg(stack.folder().join("r2"));
    let other = other.output().unwrap();
    assert!(!other.status.success() && String::from_utf8_lossy(&other.stderr).contains("another berth-supervisor"));
    // Asked to end, the first leaves its shims alone, and the socket is gone with it.
    let pid = stack.run_task("stays", "sleep 1000").await;
    assert!(stack.terminate().success(), "{}", stack.log());
    assert!(lives(pid) && !stack.run().join("supervisor.sock").exists());
    stack.start().await;
    stack.finish("stays").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asked_to_end_it_sends_those_away_who_wait() {
    let mut stack = Stack::new().await;
    stack.run_task("long", "sleep 1000").await;
    let mut events = stack.events(&[]).await;
    let waiting = {
        let mut tasks = stack.tasks();
        let message = WaitRequest { container_id: "long".into(), exec_id: String::new() };
        tokio::spawn(async move { tasks.wait(request(message)).await })
    };
    // The wait is under way once another answer has come back on the same connection.
    stack.get("long").await.unwrap();
    let began = std::time::Instant::now();
    assert!(stack.terminate().success(), "{}", stack.log());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(waiting.await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert!(events.ended().await);
    stack.start().await;
    stack.finish("long").await;
    stack.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_made_again_and_ends_nobody() {
    let mut stack = Stack::new().await;
    let pid = stack.run_task("cut", "sleep 1000").await;
    stack.kill();
    // Somebody in the middle who can cut the line.
    let bootstrap = stack.run().join("supervisor/tasks").join(NAMESPACE).join("cut/bootstrap.json");
    let mut said: serde_json::Value = serde_json::from_slice(&std::fs::read(&bootstrap).unwrap()).unwrap();
    let shim = std::path::PathBuf::from(said["address"].as_str().unwrap());
    let middle = stack.folder().join("middle.sock");
    said["address"] = middle.display().to_string().into();
    std::fs::write(&bootstrap, said.to_string()).unwrap();
    let listener = tokio::net::UnixListener::bind(&middle).unwrap();
    let (cut, _) = tokio::sync::broadcast::channel::<()>(1);
    let cutter = cut.clone();
    let proxy = tokio::spawn(async move {
        while let Ok((mut ours, _)) = listener.accept().await {
            let mut theirs = tokio::net::UnixStream::connect(&shim).await.unwrap();
            let mut end = cutter.subscribe();
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                    _ = end.recv() => {}
                }
            });
        }
    });
    stack.start().await;
    assert_eq!(stack.get("cut").await.unwrap().pid, pid);
    let waiting = {
        let mut tasks = stack.tasks();
        let message = WaitRequest { container_id: "cut".into(), exec_id: String::new() };
        tokio::spawn(async move { tasks.wait(request(message)).await })
    };
    for round in 1..4 {
        cut.send(()).unwrap();
        let again = || stack.log().matches("connection to the shim was lost, made again").count() == round;
        eventually("the connection is made again", again).await;
        let process = stack.get("cut").await.unwrap();
        assert_state(&process, State::Running);
        assert_eq!(process.pid, pid);
    }
    assert!(lives(pid) && !waiting.is_finished());
    stack.signal("cut", 9).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().exit_status, 137);
    stack.delete("cut").await.unwrap();
    proxy.abort();
    stack.nothing_left().await;
}
