//! Every call of the Task service in every state that matters, with the code it is answered with: Berth's shim beside Debian's
//! containerd-shim-runc-v2, driven by the same program over ttrpc.

mod common;

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use common::{NAMESPACE, Stage, eventually, processes_with, runtime};
use prost::Message;
use proto::{
    containerd::{
        runc::v1::Options,
        task::v3::{
            CheckpointTaskRequest, CloseIoRequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
            CreateTaskResponse, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, PauseRequest,
            PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse,
            StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest, WaitResponse,
        },
    },
    ttrpc::{self, Call, TASK_V2},
    typeurl,
};
use serde_json::json;
use tokio::net::UnixListener;
use tonic::{Code, Status};

/// Where the two differ: what Berth answers, what Debian's shim does, and why. All else is the same.
const DIFFERENT: &[(&str, Code, Code, &str)] = &[];

/// A shim under test, and what it answered so far.
struct Walk {
    client: ttrpc::Client,
    answers: Vec<(String, Code)>,
}

impl Walk {
    async fn ask<Q: Message, A: Message + Default>(&self, method: &str, request: Q) -> Result<A, Status> {
        self.client.call(TASK_V2, method, NAMESPACE, &request, Some(Duration::from_secs(20))).await
    }

    async fn note<Q: Message, A: Message + Default>(&mut self, what: &str, method: &str, request: Q) -> Option<A> {
        let answer = self.ask(method, request).await;
        let code = answer.as_ref().map_or_else(|status: &Status| status.code(), |_| Code::Ok);
        if let Err(status) = &answer {
            eprintln!("{what}: {:?} {}", status.code(), status.message());
        }
        self.answers.push((what.to_owned(), code));
        answer.ok()
    }

    /// All calls that name a process, in the state that `state` describes; those that would end the state are left out.
    async fn process(&mut self, state: &str, exec: &str, but: &[&str]) {
        let (id, exec_id) = (|| "c".to_owned(), || exec.to_owned());
        macro_rules! note {
            ($method:literal, $answer:ty, $request:expr) => {
                if !but.contains(&$method) {
                    self.note::<_, $answer>(&format!("{} of {state}", $method), $method, $request).await;
                }
            };
        }
        note!("State", StateResponse, StateRequest { id: id(), exec_id: exec_id() });
        note!("Start", StartResponse, StartRequest { id: id(), exec_id: exec_id() });
        note!("Delete", DeleteResponse, DeleteRequest { id: id(), exec_id: exec_id() });
        // SIGURG, which does nothing.
        note!("Kill", (), KillRequest { id: id(), exec_id: exec_id(), signal: 23, all: false });
        let size = ResizePtyRequest { id: id(), exec_id: exec_id(), width: 80, height: 24 };
        note!("ResizePty", (), size);
        note!("CloseIO", (), CloseIoRequest { id: id(), exec_id: exec_id(), stdin: true });
        note!("Wait", WaitResponse, WaitRequest { id: id(), exec_id: exec_id() });
    }

    /// All calls that mean the whole container.
    async fn container(&mut self, state: &str, but: &[&str]) {
        let id = || "c".to_owned();
        macro_rules! note {
            ($method:literal, $answer:ty, $request:expr) => {
                if !but.contains(&$method) {
                    self.note::<_, $answer>(&format!("{} of {state}", $method), $method, $request).await;
                }
            };
        }
        note!("Pids", PidsResponse, PidsRequest { id: id() });
        note!("Pause", (), PauseRequest { id: id() });
        note!("Resume", (), ResumeRequest { id: id() });
        note!("Stats", StatsResponse, StatsRequest { id: id() });
        note!("Update", (), UpdateTaskRequest { id: id(), resources: Some(limits()), ..Default::default() });
        note!("Exec", (), exec_request("x"));
        note!("Connect", ConnectResponse, ConnectRequest { id: id() });
    }
}

fn limits() -> prost_types::Any {
    let url = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
    typeurl::pack_json(url, br#"{"pids":{"limit":90}}"#.to_vec())
}

fn exec_request(exec: &str) -> ExecProcessRequest {
    let process = json!({ "user": {"uid": 0, "gid": 0}, "args": ["true"], "env": ["PATH=/bin"], "cwd": "/" });
    let spec = Some(typeurl::pack_json(typeurl::PROCESS, process.to_string().into_bytes()));
    ExecProcessRequest { id: "c".into(), exec_id: exec.into(), spec, ..Default::default() }
}

/// Takes a parent's place: whatever is told is taken.
fn event_service(socket: &Path) {
    let listener = UnixListener::bind(socket).expect("ttrpc socket");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(ttrpc::serve(stream, std::future::pending(), |_: Call| async { Ok(Vec::new()) }));
        }
    });
}

/// Starts a shim as containerd 1.6 does and leads a container through its life.
async fn walk(program: &Path) -> BTreeMap<String, Code> {
    let mut stage = Stage::new().await;
    stage.supervisor_down();
    let socket = stage.path("containerd.sock.ttrpc");
    event_service(&socket);
    let bundle = stage.bundle("c", &["sleep", "1000"], |_| ());
    // containerd holds this one open; its shim does not live without it.
    nix::unistd::mkfifo(&bundle.join("log"), nix::sys::stat::Mode::S_IRWXU).expect("log");
    let log = std::fs::File::options().read(true).write(true).open(bundle.join("log")).expect("log");
    let mut command = Command::new(program);
    command.args(["-namespace", NAMESPACE, "-address"]).arg(stage.path("containerd.sock"));
    command.args(["-publish-binary", "/bin/true", "-id", "c", "start"]).current_dir(&bundle);
    command.env("TTRPC_ADDRESS", &socket).env("MAX_SHIM_VERSION", "2").stdin(std::process::Stdio::null());
    let output = command.output().expect("shim");
    assert!(output.status.success(), "{output:?}");
    let address = String::from_utf8(output.stdout).expect("an address");
    let client = ttrpc::Client::connect(address.trim()).await.expect("connect");
    let mut walk = Walk { client, answers: Vec::new() };
    let id = || "c".to_owned();

    walk.process("what was never created", "", &[]).await;
    walk.container("what was never created", &[]).await;
    let options = typeurl::pack(&Options { binary_name: runtime(), ..Options::default() });
    let create = || CreateTaskRequest { options: Some(options.clone()), ..stage.create("c", &bundle) };
    let nowhere = CreateTaskRequest { bundle: stage.path("nowhere").display().to_string(), ..create() };
    walk.note::<_, CreateTaskResponse>("Create without a bundle", "Create", nowhere).await;
    let created: CreateTaskResponse = walk.note("Create", "Create", create()).await.expect("create");
    walk.process("a created container", "", &["Start", "Delete", "Wait"]).await;
    walk.container("a created container", &["Exec"]).await;
    walk.process("an exec that does not exist", "e", &[]).await;
    let started: StartResponse =
        walk.note("Start", "Start", StartRequest { id: id(), ..Default::default() }).await.expect("start");
    assert_eq!(created.pid, started.pid);
    walk.note::<_, CreateTaskResponse>("Create of what exists", "Create", create()).await;
    walk.process("a running container", "", &["Wait"]).await;
    walk.note::<_, ()>("Resume of a running container", "Resume", ResumeRequest { id: id() }).await;
    walk.note::<_, ()>("Pause", "Pause", PauseRequest { id: id() }).await.expect("pause");
    walk.container("a paused container", &["Exec", "Resume"]).await;
    walk.note::<_, ()>("Resume", "Resume", ResumeRequest { id: id() }).await.expect("resume");
    walk.container("a running container", &["Exec", "Pause", "Resume"]).await;
    let rubbish = typeurl::pack_json("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", b"{".to_vec());
    let update = UpdateTaskRequest { id: id(), resources: Some(rubbish), ..Default::default() };
    walk.note::<_, ()>("Update with rubbish", "Update", update).await;
    let checkpoint = CheckpointTaskRequest { id: "other".into(), path: "/nowhere".into(), ..Default::default() };
    walk.note::<_, ()>("Checkpoint of what was never created", "Checkpoint", checkpoint).await;

    walk.note::<_, ()>("Exec", "Exec", exec_request("e")).await.expect("exec");
    walk.note::<_, ()>("Exec of an id in use", "Exec", exec_request("e")).await;
    walk.process("an exec not started", "e", &["Start", "Delete", "Wait", "Kill"]).await;
    let exec = || StartRequest { id: id(), exec_id: "e".into() };
    walk.note::<_, StartResponse>("Start of an exec", "Start", exec()).await.expect("start");
    let wait = WaitRequest { id: id(), exec_id: "e".into() };
    walk.note::<_, WaitResponse>("Wait for an exec", "Wait", wait).await.expect("wait");
    walk.process("an exec that ended", "e", &["Delete"]).await;
    let delete = || DeleteRequest { id: id(), exec_id: "e".into() };
    walk.note::<_, DeleteResponse>("Delete of an exec", "Delete", delete()).await.expect("delete");
    walk.process("an exec that was deleted", "e", &[]).await;

    walk.note::<_, ()>("Shutdown with a container left", "Shutdown", ShutdownRequest { id: id(), now: false }).await;
    let connected: ConnectResponse =
        walk.note("Connect after that", "Connect", ConnectRequest { id: id() }).await.expect("still there");
    assert_eq!(connected.task_pid, created.pid);
    let kill = KillRequest { id: id(), signal: 9, ..Default::default() };
    walk.note::<_, ()>("Kill", "Kill", kill).await.expect("kill");
    let wait = || WaitRequest { id: id(), ..Default::default() };
    let waited: WaitResponse = walk.note("Wait", "Wait", wait()).await.expect("wait");
    assert_eq!(waited.exit_status, 137);
    walk.process("a stopped container", "", &["Delete"]).await;
    walk.container("a stopped container", &[]).await;
    let delete = DeleteRequest { id: id(), ..Default::default() };
    let deleted: DeleteResponse = walk.note("Delete", "Delete", delete).await.expect("delete");
    assert_eq!((deleted.pid, deleted.exit_status), (created.pid, 137));
    walk.process("a deleted container", "", &[]).await;
    walk.container("a deleted container", &[]).await;
    drop(log);
    // Its answer may not make it out any more.
    let _ = walk.ask::<_, ()>("Shutdown", ShutdownRequest { id: id(), now: false }).await;
    tokio::time::timeout(Duration::from_secs(10), walk.client.closed()).await.expect("the shim ends");
    let folder = stage.path("").display().to_string();
    eventually("the end of the shim", || processes_with(&folder).is_empty().then_some(())).await;
    if program.ends_with("berth-shim") {
        stage.leaves_nothing().await;
    }
    walk.answers.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered_as_containerds_own_shim_answers_them() {
    let ours = walk(Path::new(env!("CARGO_BIN_EXE_berth-shim"))).await;
    for (what, code) in &ours {
        assert!(!matches!(code, Code::Unknown | Code::Internal), "{what}: {code:?} tells a caller nothing");
    }
    let debian = Path::new("/usr/bin/containerd-shim-runc-v2");
    if !debian.exists() {
        return eprintln!("skipped: {} is not installed, so there is nothing to compare with", debian.display());
    }
    let theirs = walk(debian).await;
    let different: BTreeMap<_, _> =
        DIFFERENT.iter().map(|(what, ours, theirs, why)| (*what, (*ours, *theirs, why))).collect();
    let mut wrong = Vec::new();
    for (what, code) in &ours {
        // "Unknown" is an error without a code: there any code says more.
        let wanted = match (different.get(what.as_str()), theirs.get(what)) {
            (Some((ours, theirs_then, _)), Some(theirs)) if theirs == theirs_then => *ours,
            (Some(_), other) => panic!("{what}: Debian's shim answers {other:?} now"),
            (None, Some(Code::Unknown)) if *code != Code::Ok => continue,
            (None, Some(theirs)) => *theirs,
            (None, None) => panic!("{what} was not asked of Debian's shim"),
        };
        if *code != wanted {
            wrong.push(format!("{what}: {code:?}, not {wanted:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
