//! The shim killed with SIGKILL at every point that its sources name, alone and together with the supervisor: what happened
//! can be told, what is left can be removed, and the name can be used again at once.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    containerd::{
        events::{TaskExecStarted, TaskExit},
        services::tasks::v1::{
            DeleteProcessRequest, ExecProcessRequest, KillRequest, ListTasksRequest, PauseTaskRequest,
            ResumeTaskRequest, StartRequest, UpdateTaskRequest, WaitRequest,
        },
        v1::types::Status as State,
    },
    typeurl,
};
use tonic::{Code, Status};

use crate::{
    spec,
    stack::{Stack, eventually, request},
};

/// Ends with 3 when asked to, once it has said that it is up.
const SCRIPT: &str = "trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done";

async fn is_up(stack: &Stack) {
    eventually("the script is up", || stack.output("any").contains("up")).await;
}

fn forget_output(stack: &Stack) {
    let _ = std::fs::remove_file(stack.folder().join("any.out"));
}

/// Points that a life from the image doesn't pass: to restore has tests of its own, and a checkpoint takes criu.
const ELSEWHERE: [&str; 2] = ["shim.checkpoint.", "shim.restore."];

/// Every point of the shim with the passes at which it is tried: the first, and where further processes and init both pass,
/// later ones too.
fn points() -> Vec<(String, u64)> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/src");
    let mut names = proto::fault::points(&sources).expect("sources of the shim");
    names.retain(|name| !ELSEWHERE.iter().any(|group| name.starts_with(group)));
    let only = std::env::var("BERTH_TEST_POINT").ok();
    names.retain(|name| only.as_ref().is_none_or(|only| name.contains(only.as_str())));
    let passes = |name: &str| match name.split('.').nth(1) {
        Some("exit") => 1..=2,
        Some("events") => 1..=4,
        _ => 1..=1,
    };
    names.into_iter().flat_map(|name| passes(&name).map(move |pass| (name.clone(), pass)).collect::<Vec<_>>()).collect()
}

/// Everything that can be done with a container. Each step may fail, since the shim dies at one of them; none may hang.
async fn life(stack: &Stack, point: &str) {
    macro_rules! step {
        ($what:literal, $call:expr) => {
            match tokio::time::timeout(Duration::from_secs(15), $call).await {
                Ok(Ok(_)) => {}
                // The shim is dead: nothing of what follows can succeed.
                Ok(Err::<_, Status>(_)) => return,
                Err(_) => panic!("{} hangs at {point}\n{}", $what, stack.log()),
            }
        };
    }
    let (id, exec) = (String::from("any"), |exec: &str| ExecProcessRequest {
        container_id: "any".into(),
        exec_id: exec.into(),
        spec: Some(spec::process(if exec == "short" { "exit 5" } else { "sleep 100" })),
        ..Default::default()
    });
    let start = |exec: &str| request(StartRequest { container_id: "any".into(), exec_id: exec.into() });
    let wait = |exec: &str| request(WaitRequest { container_id: "any".into(), exec_id: exec.into() });
    let kill = |signal, all| request(KillRequest { container_id: "any".into(), exec_id: String::new(), signal, all });
    let mut tasks = stack.tasks();
    step!("create", tasks.create(request(stack.create_request("any"))));
    step!("start", tasks.start(start("")));
    if point.starts_with("shim.cleanup.") {
        // What it passes is the clean-up after a shim that died.
        stack.shims().into_iter().for_each(sigkill);
        return;
    }
    step!("exec", tasks.exec(request(exec("short"))));
    step!("start of an exec", tasks.start(start("short")));
    step!("wait for an exec", tasks.wait(wait("short")));
    let short = DeleteProcessRequest { container_id: id.clone(), exec_id: "short".into() };
    step!("delete of an exec", tasks.delete_process(request(short)));
    step!("exec", tasks.exec(request(exec("long"))));
    step!("start of an exec", tasks.start(start("long")));
    step!("pause", tasks.pause(request(PauseTaskRequest { container_id: id.clone() })));
    step!("resume", tasks.resume(request(ResumeTaskRequest { container_id: id.clone() })));
    let resources = typeurl::pack_json(
        "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        br#"{"pids":{"limit":90}}"#.to_vec(),
    );
    let update = UpdateTaskRequest { container_id: id.clone(), resources: Some(resources), ..Default::default() };
    step!("update", tasks.update(request(update)));
    // SIGURG, which means nothing to anybody.
    step!("signal to all", tasks.kill(kill(23, true)));
    is_up(stack).await;
    step!("kill", tasks.kill(kill(15, false)));
    step!("wait", tasks.wait(wait("")));
    step!("delete", stack.delete("any"));
}

fn sigkill(pid: u32) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
}

/// Whatever state it is in: it can be asked, ended and deleted, or it isn't there.
async fn settle(stack: &Stack, point: &str) {
    let listed = stack.tasks().list(request(ListTasksRequest::default())).await.expect("list").into_inner().tasks;
    match stack.get("any").await {
        Ok(process) => {
            assert_eq!(listed.len(), 1, "{point}: {listed:?}");
            if process.status() != State::Stopped {
                match stack.signal("any", 9).await {
                    Err(status) if !matches!(status.code(), Code::NotFound | Code::Unavailable) => {
                        panic!("{point}: {status}")
                    }
                    _ => {}
                }
            }
            let status = stack.wait("any").await.exit_status;
            assert!([3, 137].contains(&status), "{point}: status {status}");
            match stack.delete("any").await {
                Ok(deleted) => assert_eq!(deleted, status, "{point}"),
                Err(status) => panic!("{point}: delete: {status}\n{}", stack.log()),
            }
        }
        Err(status) => assert_eq!(status.code(), Code::NotFound, "{point}: {status}"),
    }
    stack.nothing_left().await;
}

async fn live_again(stack: &Stack, point: &str) {
    forget_output(stack);
    stack.create("any").await;
    stack.start_task("any").await;
    is_up(stack).await;
    stack.signal("any", 15).await.unwrap_or_else(|status| panic!("{point}: {status}"));
    assert_eq!(stack.wait("any").await.exit_status, 3, "{point}: of the same name, right after");
    assert_eq!(stack.delete("any").await.expect("delete"), 3);
    stack.nothing_left().await;
}

/// Checks what was told: nothing twice, nothing out of order, no story without an end.
fn judge(point: &str, events: &[(String, prost_types::Any)]) {
    let mut places = HashMap::new();
    for (place, (topic, any)) in events.iter().enumerate() {
        let topic = topic.trim_start_matches("/tasks/");
        let name = match typeurl::unpack::<TaskExit>(any) {
            Some(exit) => format!("exit {}", exit.expect("exit").id),
            None => match typeurl::unpack::<TaskExecStarted>(any) {
                Some(started) => format!("exec-started {}", started.expect("started").exec_id),
                None if topic == "exec-added" => continue,
                None => topic.to_owned(),
            },
        };
        assert_eq!(places.insert(name.clone(), place), None, "{point}: {name} was told twice: {events:#?}");
    }
    let order = ["create", "start", "exec-started long", "exit long", "exit any", "delete"];
    let told: Vec<_> = order.iter().filter_map(|name| places.get(*name)).collect();
    assert!(told.is_sorted(), "{point}: {places:?}");
    for (first, then) in [("create", "exit any"), ("exit any", "delete"), ("exec-started long", "exit long")] {
        assert!(!places.contains_key(first) || places.contains_key(then), "{point}: {first} and no {then}: {places:?}");
    }
}

fn mark_in(stack: &Stack) -> PathBuf {
    stack.folder().join("mark")
}

async fn arm(stack: &mut Stack, point: &str, pass: u64) {
    let mark = mark_in(stack);
    forget_output(stack);
    let _ = std::fs::remove_file(&mark);
    let (fault, once) = (format!("{point}:{pass}"), mark.display().to_string());
    stack.restart_with(&[("BERTH_FAULT", &fault), ("BERTH_FAULT_ONCE", &once)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_at_any_point_leaves_nothing_and_loses_nothing() {
    let mut stack = Stack::new().await;
    stack.record("any", SCRIPT).await;
    for (point, pass) in points() {
        eprintln!("{point}:{pass}");
        arm(&mut stack, &point, pass).await;
        let mut events = stack.events(&["topic~=|^/tasks/|"]).await;
        life(&stack, &point).await;
        eventually(&format!("{point} is passed {pass} times"), || mark_in(&stack).exists()).await;
        settle(&stack, &point).await;
        let mut told = events.so_far();
        eventually(&format!("the story of {point} ends"), || {
            told.extend(events.so_far());
            let has = |topic: &str| told.iter().any(|(told, _)| told == topic);
            !has("/tasks/create") || has("/tasks/delete")
        })
        .await;
        judge(&format!("{point}:{pass}"), &told);
        live_again(&stack, &point).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shim_and_supervisor_killed_at_any_point_leave_nothing() {
    let mut stack = Stack::new().await;
    stack.record("any", SCRIPT).await;
    for (point, pass) in points() {
        eprintln!("{point}:{pass}");
        arm(&mut stack, &point, pass).await;
        let mark = mark_in(&stack);
        {
            let dead = eventually(&point, || mark.exists());
            tokio::select! {
                () = dead => {}
                () = async { life(&stack, &point).await; std::future::pending().await } => {}
            }
        }
        stack.kill();
        stack.start().await;
        settle(&stack, &point).await;
        live_again(&stack, &point).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_of_shims_that_died_with_the_supervisor_go() {
    let mut stack = Stack::new().await;
    let folder = stack.run().join("s");
    std::fs::create_dir_all(&folder).unwrap();
    let (dead, live) = (folder.join("dead"), folder.join("live"));
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let listener = std::os::unix::net::UnixListener::bind(&live).unwrap();
    stack.kill();
    stack.start().await;
    eventually("the dead shim's socket is removed", || !dead.exists()).await;
    assert!(live.exists());
    drop(listener);
    std::fs::remove_file(live).unwrap();
}
