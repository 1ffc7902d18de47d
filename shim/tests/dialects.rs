//! The shim contract in all its dialects: parents of other versions than ours.

mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{NAMESPACE, Stage, eventually, runtime};
use prost::Message;
use proto::{
    containerd::{
        events::TaskExit,
        runc::v1::Options,
        runtime::bootstrap::v1::{BootstrapParams, BootstrapResult},
        services::events::v1::{Envelope, ForwardRequest},
        task::v3::{
            ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse,
            ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResumeRequest, ShutdownRequest,
            StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, WaitRequest,
            WaitResponse,
        },
        types::RuntimeInfo,
        v1::types::Status as TaskStatus,
    },
    ttrpc::{self, Call, TASK_V2, TASK_V3},
    typeurl,
};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tonic::{Code, Status};

const SOON: Option<Duration> = Some(Duration::from_secs(20));

/// Runs `start` as a parent of some version does.
fn start(stage: &Stage, id: &str, bundle: &Path, variables: &[(&str, &str)], stdin: &[u8]) -> Output {
    let mut command = stage.command(id, bundle, "start");
    command.envs(variables.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("berth-shim");
    child.stdin.take().expect("stdin").write_all(stdin).expect("write");
    let output = child.wait_with_output().expect("output");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    output
}

/// containerd's ttrpc socket: takes events.
fn event_service(socket: &Path) -> Arc<Mutex<Vec<Envelope>>> {
    let listener = UnixListener::bind(socket).expect("ttrpc socket");
    let told = Arc::new(Mutex::new(Vec::new()));
    let events = told.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let events = events.clone();
            let forward = move |call: Call| {
                let events = events.clone();
                async move {
                    if (call.service(), call.method()) != (ttrpc::EVENTS, "Forward") {
                        return Err(call.unimplemented());
                    }
                    assert_eq!(call.namespace(), Some(NAMESPACE));
                    let request: ForwardRequest = call.message()?;
                    events.lock().expect("lock").push(request.envelope.expect("an envelope"));
                    Ok(Vec::new())
                }
            };
            tokio::spawn(ttrpc::serve(stream, std::future::pending(), forward));
        }
    });
    told
}

/// A shim as a parent of containerd 1.6 or 1.7 drives it.
struct Parent {
    client: ttrpc::Client,
    service: &'static str,
    id: String,
}

impl Parent {
    async fn call<Q: Message, A: Message + Default>(&self, method: &str, request: Q) -> Result<A, Status> {
        self.client.call(self.service, method, NAMESPACE, &request, SOON).await
    }

    async fn state(&self) -> TaskStatus {
        let request = StateRequest { id: self.id.clone(), ..StateRequest::default() };
        self.call::<_, StateResponse>("State", request).await.expect("state").status()
    }
}

fn line(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("a line of text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_of_1_6_drives_a_container_over_ttrpc() {
    let mut stage = Stage::new().await;
    // It must not be needed.
    stage.supervisor_down();
    let events = event_service(&stage.path("containerd.sock.ttrpc"));
    let ttrpc_address = stage.path("containerd.sock.ttrpc").display().to_string();
    let environment = [("TTRPC_ADDRESS", ttrpc_address.as_str()), ("MAX_SHIM_VERSION", "2"), ("GOMAXPROCS", "2")];
    let bundle = stage.bundle("old", &["sleep", "1000"], |_| ());
    let options = typeurl::pack(&Options { binary_name: runtime(), ..Options::default() });
    let output = start(&stage, "old", &bundle, &environment, &options.encode_to_vec());
    let address = line(&output);
    assert!(address.starts_with("unix:///"), "{address:?}");
    // 1.6 reads it when it starts again.
    assert_eq!(fs::read_to_string(bundle.join("address")).expect("address"), address);
    assert_eq!(line(&start(&stage, "old", &bundle, &environment, b"")), address, "a second start finds the first");

    let client = ttrpc::Client::connect(&address).await.expect("connect");
    let parent = Parent { client, service: TASK_V2, id: "old".into() };
    let id = || "old".to_owned();
    let none: Status =
        parent.call::<_, StateResponse>("State", StateRequest { id: id(), ..Default::default() }).await.unwrap_err();
    assert_eq!((none.code(), none.message()), (Code::NotFound, "container old not found"));
    let create = CreateTaskRequest { options: Some(options), ..stage.create("old", &bundle) };
    let pid = parent.call::<_, CreateTaskResponse>("Create", create.clone()).await.expect("create").pid;
    assert_eq!(parent.call::<_, ()>("Create", create).await.unwrap_err().code(), Code::AlreadyExists);
    assert_eq!(parent.state().await, TaskStatus::Created);
    let started: StartResponse =
        parent.call("Start", StartRequest { id: id(), ..Default::default() }).await.expect("start");
    assert_eq!(started.pid, pid);
    assert_eq!(parent.state().await, TaskStatus::Running);

    // Meanwhile somebody waits.
    let waiter = parent.client.clone();
    let waiting = tokio::spawn(async move {
        let request = WaitRequest { id: "old".into(), ..WaitRequest::default() };
        waiter.call::<_, WaitResponse>(TASK_V2, "Wait", NAMESPACE, &request, SOON).await
    });
    let process =
        json!({ "user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", "exit 7"], "env": ["PATH=/bin"], "cwd": "/" });
    let spec = Some(typeurl::pack_json(typeurl::PROCESS, process.to_string().into_bytes()));
    let exec = ExecProcessRequest { id: id(), exec_id: "e".into(), spec, ..ExecProcessRequest::default() };
    let _: () = parent.call("Exec", exec).await.expect("exec");
    let _: StartResponse =
        parent.call("Start", StartRequest { id: id(), exec_id: "e".into() }).await.expect("start exec");
    let end: WaitResponse = parent.call("Wait", WaitRequest { id: id(), exec_id: "e".into() }).await.expect("wait");
    assert_eq!(end.exit_status, 7);
    let _: DeleteResponse =
        parent.call("Delete", DeleteRequest { id: id(), exec_id: "e".into() }).await.expect("delete");
    let _: () = parent.call("Pause", PauseRequest { id: id() }).await.expect("pause");
    assert_eq!(parent.state().await, TaskStatus::Paused);
    let _: () = parent.call("Resume", ResumeRequest { id: id() }).await.expect("resume");
    let stats: StatsResponse = parent.call("Stats", StatsRequest { id: id() }).await.expect("stats");
    assert!(stats.stats.expect("metrics").type_url.starts_with("io.containerd.cgroups."));
    let pids: PidsResponse = parent.call("Pids", PidsRequest { id: id() }).await.expect("pids");
    assert_eq!(pids.processes.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);
    let connected: ConnectResponse = parent.call("Connect", ConnectRequest { id: id() }).await.expect("connect");
    assert_eq!(connected.task_pid, pid);
    assert_eq!(parent.call::<_, ()>("Nonsense", ()).await.unwrap_err().code(), Code::Unimplemented);

    let sandbox = parent.client.call::<_, ()>("containerd.runtime.sandbox.v1.Sandbox", "CreateSandbox", "", &(), SOON);
    assert_eq!(sandbox.await.unwrap_err().code(), Code::Unimplemented);

    // The same socket, the other protocol and the other name: a daemon that was upgraded goes on with this shim.
    let upgraded = stage.shim("old", bundle.clone()).await;
    assert_eq!(upgraded.socket.display().to_string(), address.trim_start_matches("unix://"));
    let request = StateRequest { id: id(), ..StateRequest::default() };
    let state = upgraded.task.clone().state(request).await.expect("state").into_inner();
    assert_eq!(state.status(), TaskStatus::Running);
    let newer = Parent { client: parent.client.clone(), service: TASK_V3, id: id() };
    assert_eq!(newer.state().await, TaskStatus::Running);

    let _: () =
        parent.call("Kill", KillRequest { id: id(), signal: 9, all: true, ..Default::default() }).await.expect("kill");
    assert_eq!(waiting.await.expect("join").expect("wait").exit_status, 137);
    let gone: DeleteResponse =
        parent.call("Delete", DeleteRequest { id: id(), ..Default::default() }).await.expect("delete");
    assert_eq!((gone.pid, gone.exit_status), (pid, 137));
    let _: () = parent.call("Shutdown", ShutdownRequest { id: id(), now: false }).await.expect("shutdown");
    tokio::time::timeout(Duration::from_secs(10), parent.client.closed())
        .await
        .expect("the connection ends with the shim");
    let wanted =
        ["create", "start", "exec-added", "exec-started", "exit e 7", "paused", "resumed", "exit old 137", "delete"];
    eventually("all events", || (told(&events) == wanted).then_some(())).await;
    stage.leaves_nothing().await;
}

fn told(events: &Mutex<Vec<Envelope>>) -> Vec<String> {
    let line = |envelope: &Envelope| {
        let event = envelope.event.as_ref().expect("event");
        let exit = typeurl::unpack::<TaskExit>(event).map(|exit| exit.expect("exit"));
        let topic = envelope.topic.trim_start_matches("/tasks/").to_owned();
        exit.map_or(topic, |exit| format!("exit {} {}", exit.id, exit.exit_status))
    };
    events.lock().expect("lock").iter().map(line).collect()
}

/// containerd 2.3: parameters on stdin, the result on stdout, both protobuf.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_of_2_3_sends_parameters_and_reads_a_result() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("new", &["sleep", "1000"], |_| ());
    let sockets = stage.path("chosen");
    let params = BootstrapParams {
        instance_id: "new".into(),
        namespace: NAMESPACE.into(),
        containerd_version: "v2.3.1".into(),
        containerd_ttrpc_address: stage.path("nowhere.ttrpc").display().to_string(),
        containerd_grpc_address: stage.address().display().to_string(),
        containerd_binary: "/usr/bin/containerd".into(),
        socket_dir: sockets.display().to_string(),
        ..BootstrapParams::default()
    };
    let nowhere = stage.path("nowhere.ttrpc").display().to_string();
    let environment = [("TTRPC_ADDRESS", nowhere.as_str()), ("MAX_SHIM_VERSION", "2")];
    let output = start(&stage, "new", &bundle, &environment, &params.encode_to_vec());
    let result = BootstrapResult::decode(output.stdout.as_slice()).expect("a result and nothing else");
    assert_eq!((result.version, result.protocol.as_str()), (3, "grpc"));
    // containerd dials a gRPC address as it is.
    assert!(result.address.starts_with('/'), "{}", result.address);
    assert_eq!(Path::new(&result.address).parent(), Some(sockets.as_path()));
    let again = start(&stage, "new", &bundle, &environment, &params.encode_to_vec());
    assert_eq!(BootstrapResult::decode(again.stdout.as_slice()).expect("result"), result);

    let mut shim = stage.connect("new", bundle.clone(), PathBuf::from(&result.address)).await;
    shim.create(stage.create("new", &bundle)).await.expect("create");
    shim.start("").await.expect("start");
    eventually("events", || (stage.story() == ["create", "start"]).then_some(())).await;

    // The shim dies: `delete` finds its socket, although nothing tells it where sockets lie.
    let request = ConnectRequest { id: "new".into() };
    let pid = shim.task.connect(request).await.expect("connect").into_inner().shim_pid;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::SIGKILL).expect("kill");
    eventually("end of the shim", || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(())).await;
    let output = stage.action("new", &bundle, "delete");
    assert_eq!(DeleteResponse::decode(output.stdout.as_slice()).expect("response").exit_status, 137);
    assert_eq!(fs::read_dir(&sockets).expect("sockets").count(), 0);
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn info_tells_what_the_chosen_runtime_can_do() {
    let stage = Stage::new().await;
    let info = |stdin: &[u8]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_berth-shim"));
        let child = command.arg("-info").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("berth-shim");
        child.stdin.take().expect("stdin").write_all(stdin).expect("write");
        let output = child.wait_with_output().expect("output");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        RuntimeInfo::decode(output.stdout.as_slice()).expect("protobuf and nothing else")
    };
    let fake = stage.path("runtime");
    testing::executable(&fake, "#!/bin/sh\ntest \"$1\" = features && echo '{\"ociVersionMax\": \"9.9.9\"}'\n");
    let options = Options { binary_name: fake.display().to_string(), ..Options::default() };
    let told = info(&typeurl::pack(&options).encode_to_vec());
    assert_eq!(told.name, "io.containerd.berth.v1");
    assert_eq!(typeurl::unpack::<Options>(&told.options.expect("options")).expect("type").expect("options"), options);
    let features = told.features.expect("features");
    assert_eq!(features.type_url, "types.containerd.io/opencontainers/runtime-spec/1/features/Features");
    let features: Value = serde_json::from_slice(&features.value).expect("JSON");
    assert_eq!(features["ociVersionMax"], "9.9.9");
    // A runtime without the command, and none at all.
    let options = Options { binary_name: "/bin/false".into(), ..Options::default() };
    assert_eq!(info(&typeurl::pack(&options).encode_to_vec()).features, None);
    assert_eq!(info(b"").name, "io.containerd.berth.v1");
    stage.leaves_nothing().await;
}

/// A caller that says nothing and never stops saying it is not waited for long.
#[tokio::test(flavor = "multi_thread")]
async fn a_stdin_left_open_does_not_hold_up_start() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("open", &["true"], |_| ());
    let mut command = stage.command("open", &bundle, "start");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("berth-shim");
    let stdin = child.stdin.take();
    let mut answer = String::new();
    child.stdout.take().expect("stdout").read_to_string(&mut answer).expect("answer");
    assert!(answer.contains("\"grpc\""), "{answer}");
    child.wait().expect("end");
    drop(stdin);
    stage.shim("open", bundle).await.shutdown().await;
    stage.leaves_nothing().await;
}

/// containerd's option sched_core: served where the kernel can, refused where it can't.
#[tokio::test(flavor = "multi_thread")]
async fn sched_core_is_done_or_refused() {
    let stage = Stage::new().await;
    let bundle = stage.bundle("core", &["true"], |_| ());
    let output = stage.command("core", &bundle, "start").env("SCHED_CORE", "1").output().expect("berth-shim");
    if output.status.success() {
        stage.shim("core", bundle).await.shutdown().await;
    } else {
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(said.contains("SCHED_CORE") && said.contains("EINVAL") | said.contains("Invalid"), "{said}");
        assert!(output.stdout.is_empty());
    }
    stage.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shim_is_where_its_parent_wants_it() {
    let stage = Stage::new().await;
    let name = format!("{}-shims", stage.folder.path().file_name().expect("name").to_string_lossy());
    let hierarchies: Vec<PathBuf> = ["memory", "pids", ""]
        .iter()
        .map(|controller| Path::new("/sys/fs/cgroup").join(controller))
        .filter(|at| at.join("cgroup.procs").exists())
        .map(|at| at.join(&name))
        .collect();
    for at in &hierarchies {
        fs::create_dir(at).expect("cgroup");
    }
    let bundle = stage.bundle("placed", &["sleep", "1000"], |_| ());
    // containerd has this FIFO open before it runs `start`.
    nix::unistd::mkfifo(&bundle.join("log"), nix::sys::stat::Mode::S_IRWXU).expect("fifo");
    let mut log = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(bundle.join("log"))
        .expect("log");
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_berth-shim"));
    let plain = stage.command("placed", &bundle, "start");
    command.arg("-debug").args(plain.get_args()).current_dir(&bundle).stdin(Stdio::null());
    assert!(command.output().expect("berth-shim").status.success());
    let mut shim = stage.shim("placed", bundle.clone()).await;
    let mut request = stage.create("placed", &bundle);
    let options = |cgroup: &str| Options { binary_name: runtime(), shim_cgroup: cgroup.into(), ..Options::default() };
    request.options = Some(typeurl::pack(&options("/berth-nowhere")));
    let error = shim.create(request.clone()).await.unwrap_err();
    assert_eq!((error.code(), error.message().contains("berth-nowhere")), (Code::NotFound, true), "{error:?}");
    request.options = Some(typeurl::pack(&options(&format!("/{name}"))));
    shim.create(request).await.expect("create");
    let pid = shim.task.connect(ConnectRequest { id: "placed".into() }).await.expect("connect").into_inner().shim_pid;
    for at in &hierarchies {
        let inside = fs::read_to_string(at.join("cgroup.procs")).expect("cgroup");
        assert!(inside.lines().any(|line| line == pid.to_string()), "{}: {inside}", at.display());
    }
    let score = |pid: &str| -> i32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("score").trim().parse().expect("number")
    };
    assert_eq!(score(&pid.to_string()), score("self") + 1);
    let mut said = [0; 1024];
    let length = log.read(&mut said).expect("the shim has said something");
    assert!(String::from_utf8_lossy(&said[..length]).contains("container placed of namespace"));
    shim.finish().await;
    eventually("the shim's cgroups are empty", || {
        hierarchies.iter().all(|at| !at.exists() || fs::remove_dir(at).is_ok()).then_some(())
    })
    .await;
    stage.leaves_nothing().await;
}
