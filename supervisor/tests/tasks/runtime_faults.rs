//! An OCI runtime that dies half-way, or hangs, at each of its commands, before or after it has done the work: an error that
//! says so, nothing left, and everybody else served meanwhile.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use proto::{
    containerd::services::tasks::v1::{
        ExecProcessRequest, ListTasksRequest, PauseTaskRequest, ResumeTaskRequest, StartRequest, UpdateTaskRequest,
    },
    typeurl,
};
use tonic::{Code, Status};

use crate::{
    spec,
    stack::{Stack, eventually, oci_runtime, request},
};

/// What becomes of the runtime.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    DiesBefore,
    DiesAfter,
    HangsBefore,
    HangsAfter,
}

/// A runtime that meets its fate once, at the first command `verb`.
fn wrapper(stack: &Stack, verb: &str, fate: Fate) -> PathBuf {
    let real = oci_runtime();
    let (before, after) = match fate {
        Fate::DiesBefore => ("kill -9 $$", ""),
        Fate::DiesAfter => ("", "kill -9 $$"),
        Fate::HangsBefore => ("sleep 1000", ""),
        Fate::HangsAfter => ("", "sleep 1000"),
    };
    let script = format!(
        "#!/bin/sh\nfor word in \"$@\"; do\n  if [ \"$word\" = {verb} ] && mkdir {folder}/met 2>/dev/null; then\n    \
         {before}\n    {real} \"$@\"\n    {after}\n    exit 0\n  fi\ndone\nexec {real} \"$@\"\n",
        folder = stack.folder().display(),
        before = if before.is_empty() { ":" } else { before },
        after = if after.is_empty() { ":" } else { after },
    );
    let path = stack.folder().join("runtime");
    let _ = fs::remove_dir(stack.folder().join("met"));
    let _ = fs::remove_file(&path);
    testing::executable(&path, &script);
    path
}

/// A life that uses every command of a runtime; the first error ends it.
async fn life(stack: &Stack, id: &str) -> Result<(), Status> {
    let container_id = || id.to_owned();
    let start = |exec: &str| request(StartRequest { container_id: id.into(), exec_id: exec.into() });
    let mut tasks = stack.tasks();
    tasks.create(request(stack.create_request(id))).await?;
    tasks.start(start("")).await?;
    let exec = ExecProcessRequest {
        container_id: id.into(),
        exec_id: "e".into(),
        spec: Some(spec::process("sleep 1000")),
        ..Default::default()
    };
    tasks.exec(request(exec)).await?;
    tasks.start(start("e")).await?;
    tasks.pause(request(PauseTaskRequest { container_id: container_id() })).await?;
    tasks.resume(request(ResumeTaskRequest { container_id: container_id() })).await?;
    let resources = typeurl::pack_json(
        "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
        br#"{"pids":{"limit":90}}"#.to_vec(),
    );
    let update = UpdateTaskRequest { container_id: id.into(), resources: Some(resources), ..Default::default() };
    tasks.update(request(update)).await?;
    stack.signal(id, 9).await?;
    stack.wait(id).await;
    stack.delete(id).await.map(drop)
}

async fn end(stack: &Stack, id: &str, case: &str) {
    if stack.get(id).await.is_ok() {
        match stack.signal(id, 9).await {
            Err(status) if status.code() != Code::NotFound => panic!("{case}: kill: {status}"),
            _ => {}
        }
        let status = stack.wait(id).await.exit_status;
        assert_eq!(status, 137, "{case}");
        assert_eq!(stack.delete(id).await.unwrap_or_else(|status| panic!("{case}: {status}")), 137);
    }
    stack.nothing_left().await;
}

const VERBS: [&str; 7] = ["create", "start", "exec", "pause", "resume", "update", "delete"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_killed_at_any_command_leaves_nothing() {
    let stack = Stack::new().await;
    for fate in [Fate::DiesBefore, Fate::DiesAfter] {
        for verb in VERBS {
            let case = format!("{verb} {fate:?}");
            let id = format!("{verb}-{}", if fate == Fate::DiesBefore { "before" } else { "after" });
            let runtime = wrapper(&stack, verb, fate).display().to_string();
            stack.record_on(&id, "sleep 1000", "io.containerd.berth.v1", &runtime).await.expect("record");
            match life(&stack, &id).await {
                // A deletion is tried again with force by the shim itself.
                Ok(()) => assert_eq!(verb, "delete", "{case}"),
                Err(error) => assert!(error.message().contains("was killed by signal 9"), "{case}: {error}"),
            }
            assert!(stack.folder().join("met").exists(), "{case} was not met");
            end(&stack, &id, &case).await;
            life(&stack, &id).await.unwrap_or_else(|status| panic!("{case}: again: {status}"));
            stack.nothing_left().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_hangs_at_any_command_hinders_nobody_else() {
    let mut stack = Stack::new().await;
    stack.restart_with(&[("BERTH_SHIM_RUNTIME_TIMEOUT", "1")]).await;
    for fate in [Fate::HangsBefore, Fate::HangsAfter] {
        for verb in VERBS {
            let case = format!("{verb} {fate:?}");
            let id = format!("{verb}-{}", if fate == Fate::HangsBefore { "before" } else { "after" });
            let runtime = wrapper(&stack, verb, fate).display().to_string();
            stack.record_on(&id, "sleep 1000", "io.containerd.berth.v1", &runtime).await.expect("record");
            let met = stack.folder().join("met");
            let (lived, ()) = tokio::join!(life(&stack, &id), async {
                eventually(&case, || met.exists()).await;
                let began = Instant::now();
                stack.tasks().list(request(ListTasksRequest::default())).await.expect("list");
                if verb != "create" {
                    stack.get(&id).await.expect("state of the container that hangs");
                }
                let took = began.elapsed();
                assert!(took < Duration::from_millis(500), "{case}: answers took {took:?}");
            });
            let error = lived.expect_err(&case);
            assert_eq!(error.code(), Code::DeadlineExceeded, "{case}: {error}");
            let words = format!("OCI runtime {verb} did not end within 1 s and was killed");
            assert!(error.message().contains(&words), "{case}: {error}");
            end(&stack, &id, &case).await;
            life(&stack, &id).await.unwrap_or_else(|status| panic!("{case}: again: {status}"));
            stack.nothing_left().await;
        }
    }
}

/// A kill must get through to a container whose start hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_start_stops_no_kill() {
    let stack = Stack::new().await;
    let runtime = wrapper(&stack, "start", Fate::HangsAfter).display().to_string();
    stack.record_on("stuck", "sleep 1000", "io.containerd.berth.v1", &runtime).await.expect("record");
    let pid = stack.create("stuck").await;
    let start = {
        let mut tasks = stack.tasks();
        tokio::spawn(async move {
            tasks.start(request(StartRequest { container_id: "stuck".into(), exec_id: String::new() })).await
        })
    };
    eventually("the start hangs", || stack.folder().join("met").exists()).await;
    stack.signal("stuck", 9).await.expect("kill");
    eventually("its end", || !crate::stack::lives(pid)).await;
    // The runtime's own time is a minute; whoever can't wait takes its process away.
    for process in fs::read_dir("/proc").expect("proc").flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(&runtime) {
            let pid = process.file_name().to_string_lossy().parse().expect("pid");
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    start.await.expect("start").expect_err("killed half-way");
    assert_eq!(stack.wait("stuck").await.exit_status, 137);
    assert_eq!(stack.delete("stuck").await.expect("delete"), 137);
}
