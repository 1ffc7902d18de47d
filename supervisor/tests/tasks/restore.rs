//! Tasks that go on from a checkpoint: Create lays its files out and prepares, Start restores. criu doesn't run on every
//! kernel, so an OCI runtime stands in for it that notes what it was asked, and then makes a new process; the last test has
//! criu, where it works.

#[path = "../../../runtime/tests/suite/criu.rs"]
mod criu;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::{
    containerd::{
        events::{TaskCreate, TaskExit, TaskStart},
        runc::v1::{CheckpointOptions, Options},
        services::{
            leases::v1::{self as leases, leases_client::LeasesClient},
            tasks::v1::{
                CheckpointTaskRequest, CreateTaskRequest, ExecProcessRequest, ListTasksRequest, PauseTaskRequest,
                StartRequest,
            },
        },
        types::Descriptor,
        v1::types::Status as State,
    },
    typeurl,
};
use tonic::{Code, Status};

use crate::{
    spec,
    stack::{Stack, assert_state, eventually, program, request},
};

/// A checkpoint is a file; to restore is to make a new container with the same arguments but those about images, if that
/// file is there, and a file `fail` isn't.
const STAND_IN: &str = r#"#!/bin/busybox sh
case " $* " in
*" checkpoint "*)
    until test "$1" = --image-path; do shift; done
    echo pages >"$2/pages-1.img"
    exit ;;
*" restore "*) ;;
*) exec RUNTIME "$@" ;;
esac
echo "$*" >>FOLDER/asked
left=$#
while test $left -gt 0; do
    word=$1; shift; left=$((left - 1))
    case $word in
    restore) set -- "$@" create ;;
    --image-path) images=$1; shift; left=$((left - 1)) ;;
    --work-path) shift; left=$((left - 1)) ;;
    --detach | --no-subreaper) ;;
    --log) log=$1; set -- "$@" "$word" ;;
    *) set -- "$@" "$word" ;;
    esac
done
if test -e FOLDER/fail || ! test -s "$images/pages-1.img"; then
    echo '{"level":"error","msg":"no such page"}' >"$log"
    exit 1
fi
RUNTIME "$@" || exit
for id; do :; done
exec RUNTIME --root "$2" start "$id"
"#;

const SCRIPT: &str = "trap 'exit 3' TERM; echo up; while :; do sleep 0.02; done";

/// A stack with a container `a` on the stand-in, and a checkpoint of it; `a` has no task any more.
async fn checkpointed() -> (Stack, Descriptor) {
    let stack = Stack::new().await;
    let runtime = stack.folder().join("runtime");
    let text = STAND_IN.replace("RUNTIME", &program("berth-runtime").display().to_string());
    testing::executable(&runtime, text.replace("FOLDER", &stack.folder().display().to_string()));
    stack.record_on("a", SCRIPT, "io.containerd.berth.v1", &runtime.display().to_string()).await.unwrap();
    stack.create("a").await;
    stack.start_task("a").await;
    let blob = checkpoint(&stack, CheckpointOptions::default()).await;
    stack.finish("a").await;
    stack.nothing_left().await;
    fs::remove_file(stack.folder().join("a.out")).unwrap();
    (stack, blob)
}

async fn checkpoint(stack: &Stack, options: CheckpointOptions) -> Descriptor {
    let options = Some(typeurl::pack(&options));
    let message = CheckpointTaskRequest { container_id: "a".into(), parent_checkpoint: String::new(), options };
    // Nobody makes an image of it, so a lease keeps it.
    let lease = leases::CreateRequest { id: "checkpoint".into(), ..Default::default() };
    LeasesClient::new(stack.channel()).create(request(lease)).await.unwrap();
    let mut message = request(message);
    message.metadata_mut().insert("containerd-lease", "checkpoint".parse().unwrap());
    let blobs = stack.tasks().checkpoint(message).await.unwrap_or_else(|e| panic!("{e}\n{}", stack.log()));
    blobs.into_inner().descriptors.swap_remove(0)
}

fn from(stack: &Stack, blob: &Descriptor) -> CreateTaskRequest {
    CreateTaskRequest { checkpoint: Some(blob.clone()), ..stack.create_request("a") }
}

async fn create(stack: &Stack, create: CreateTaskRequest) -> u32 {
    let created = stack.tasks().create(request(create)).await;
    created.unwrap_or_else(|status| panic!("create: {status}\n{}", stack.log())).into_inner().pid
}

/// Folders of checkpoints that were unpacked, or are on their way.
fn unpacked(stack: &Stack) -> Vec<PathBuf> {
    let all = fs::read_dir(stack.folder().join("d/supervisor/checkpoints"));
    all.map(|all| all.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

async fn is_up(stack: &Stack) {
    eventually("the script is up", || stack.output("a").contains("up")).await;
}

/// Starts the supervisor again, so that it or its shims are killed at a point, once. Gives the file that is there from then on.
async fn arm(stack: &mut Stack, point: &str) -> PathBuf {
    let mark = stack.folder().join("mark");
    let _ = fs::remove_file(&mark);
    let once = mark.display().to_string();
    stack.restart_with(&[("BERTH_FAULT", point), ("BERTH_FAULT_ONCE", &once)]).await;
    mark
}

/// The task is told to have been killed, and leaves nothing once it is deleted.
async fn ends_as_killed(stack: &Stack, case: &str) {
    assert_eq!(stack.wait("a").await.exit_status, 137, "{case}");
    let process = stack.get("a").await.unwrap();
    assert_eq!((process.status(), process.exit_status), (State::Stopped, 137), "{case}");
    assert_eq!(stack.delete("a").await.unwrap_or_else(|e| panic!("{case}: {e}\n{}", stack.log())), 137);
    stack.nothing_left().await;
    assert!(unpacked(stack).is_empty(), "{case}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_from_a_checkpoint_runs_at_start_also_with_another_supervisor() {
    let (mut stack, blob) = checkpointed().await;
    let mut events = stack.events(&["topic~=|^/tasks/|"]).await;
    assert_eq!(create(&stack, from(&stack, &blob)).await, 0, "there is no process yet");
    let before = stack.get("a").await.unwrap();
    assert_state(&before, State::Created);
    assert_eq!(before.pid, 0);
    let (topic, any) = events.next().await;
    let told = typeurl::unpack::<TaskCreate>(&any).unwrap().unwrap();
    let images = unpacked(&stack);
    assert_eq!((topic.as_str(), told.pid, Path::new(&told.checkpoint)), ("/tasks/create", 0, &*images[0]));

    // Whoever comes next finds it as it was.
    stack.kill();
    stack.start().await;
    let after = stack.get("a").await.unwrap();
    assert_state(&after, State::Created);
    assert_eq!((after.pid, unpacked(&stack)), (0, images.clone()));
    assert!(!stack.folder().join("asked").exists(), "nothing is restored before Start");
    let refused: [Status; 3] = [
        stack.signal("a", 9).await.unwrap_err(),
        stack.tasks().pause(request(PauseTaskRequest { container_id: "a".into() })).await.unwrap_err(),
        {
            let (container_id, exec_id, spec) = ("a".into(), "e".into(), Some(spec::process("true")));
            let exec = ExecProcessRequest { container_id, exec_id, spec, ..Default::default() };
            stack.tasks().exec(request(exec)).await.unwrap_err()
        },
    ];
    for status in refused {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    }

    let mut events = stack.events(&["topic~=|^/tasks/|"]).await;
    let pid = stack.start_task("a").await;
    let asked = fs::read_to_string(stack.folder().join("asked")).unwrap();
    assert!(asked.contains(&format!(" restore --image-path {} ", images[0].display())), "{asked}");
    assert_ne!(pid, 0);
    let process = stack.get("a").await.unwrap();
    assert_state(&process, State::Running);
    assert_eq!(process.pid, pid);
    let (topic, any) = events.next().await;
    assert_eq!((topic.as_str(), typeurl::unpack::<TaskStart>(&any).unwrap().unwrap().pid), ("/tasks/start", pid));
    eventually("the images have done their work", || unpacked(&stack).is_empty()).await;
    is_up(&stack).await;

    // From here on it is a task like any other.
    stack.kill();
    stack.start().await;
    assert_eq!(stack.get("a").await.unwrap().pid, pid);
    let mut events = stack.events(&["topic~=|^/tasks/|"]).await;
    stack.signal("a", 15).await.unwrap();
    assert_eq!(stack.wait("a").await.exit_status, 3);
    let (topic, any) = events.next().await;
    let exit = typeurl::unpack::<TaskExit>(&any).unwrap().unwrap();
    assert_eq!((topic.as_str(), exit.pid, exit.exit_status), ("/tasks/exit", pid, 3));
    assert_eq!(stack.delete("a").await.unwrap(), 3);
    stack.nothing_left().await;

    // Files that the caller keeps in a folder are used, and stay.
    let kept = stack.folder().join("kept");
    fs::create_dir(&kept).unwrap();
    fs::write(kept.join("pages-1.img"), "pages").unwrap();
    let oci = stack.folder().join("runtime").display().to_string();
    let options = Options { binary_name: oci, criu_image_path: kept.display().to_string(), ..Default::default() };
    let message = CreateTaskRequest { options: Some(typeurl::pack(&options)), ..stack.create_request("a") };
    assert_eq!(create(&stack, message).await, 0);
    assert_ne!(stack.start_task("a").await, 0);
    stack.finish("a").await;
    stack.nothing_left().await;
    assert!(kept.join("pages-1.img").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_restored_can_be_deleted() {
    let (mut stack, blob) = checkpointed().await;
    let start = || request(StartRequest { container_id: "a".into(), exec_id: String::new() });
    fs::write(stack.folder().join("fail"), "").unwrap();
    let mut events = stack.events(&["topic~=|^/tasks/|"]).await;
    create(&stack, from(&stack, &blob)).await;
    let failed = stack.tasks().start(start()).await.unwrap_err();
    assert!(failed.message().contains("OCI runtime restore failed: no such page"), "{failed}");
    assert_state(&stack.get("a").await.unwrap(), State::Created);
    assert_eq!(unpacked(&stack).len(), 1, "it may be tried again");
    assert_eq!(stack.delete("a").await.unwrap(), 0);
    assert_eq!(events.topics(2).await, ["/tasks/create", "/tasks/delete"], "what never ran has no exit");
    stack.nothing_left().await;
    assert!(unpacked(&stack).is_empty(), "its images go with it");

    // A shim that dies with it: it is told to have ended, as any that a shim took with it.
    create(&stack, from(&stack, &blob)).await;
    for shim in stack.shims() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    ends_as_killed(&stack, "its shim is killed").await;

    // A supervisor that dies before its shim has heard of it.
    let mark = arm(&mut stack, "supervisor.create.checkpoint_unpacked").await;
    stack.tasks().create(request(from(&stack, &blob))).await.unwrap_err();
    assert!(mark.exists());
    stack.kill();
    stack.start().await;
    assert_eq!(stack.get("a").await.unwrap_err().code(), Code::NotFound);
    stack.nothing_left().await;
    assert!(unpacked(&stack).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_killed_while_it_restores_leaves_nothing_and_loses_nothing() {
    let (mut stack, blob) = checkpointed().await;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shim/src");
    let mut points = proto::fault::points(&sources).unwrap();
    points.retain(|name| name.starts_with("shim.restore."));
    assert!(points.len() >= 4, "{points:?}");
    for (point, with_supervisor) in points.iter().flat_map(|point| [(point, false), (point, true)]) {
        let mark = arm(&mut stack, point).await;
        let mut events = stack.events(&["topic~=|^/tasks/|"]).await;
        create(&stack, from(&stack, &blob)).await;
        let start = request(StartRequest { container_id: "a".into(), exec_id: String::new() });
        let started = tokio::time::timeout(Duration::from_secs(15), stack.tasks().start(start)).await;
        assert!(started.is_ok_and(|started| started.is_err()) && mark.exists(), "{point}");
        if with_supervisor {
            stack.kill();
            stack.start().await;
        }
        ends_as_killed(&stack, point).await;
        if !with_supervisor {
            let mut told = Vec::new();
            while told.last().is_none_or(|topic| topic != "/tasks/delete") {
                told.push(events.next().await.0);
            }
            told.retain(|topic| topic != "/tasks/start");
            assert_eq!(told, ["/tasks/create", "/tasks/exit", "/tasks/delete"], "{point}");
        }
        let listed = stack.tasks().list(request(ListTasksRequest::default())).await.unwrap().into_inner().tasks;
        assert!(listed.is_empty(), "{point}: {listed:?}");
        // The name can be used again at once.
        create(&stack, from(&stack, &blob)).await;
        stack.start_task("a").await;
        stack.finish("a").await;
        stack.nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_counts_on() {
    if !criu::works() {
        return;
    }
    let mut stack = Stack::new().await;
    let counter = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
    let first = stack.run_task("a", counter).await;
    let numbers = |stack: &Stack| -> Vec<u64> { stack.output("a").lines().map(|n| n.parse().unwrap()).collect() };
    eventually("it counts", || numbers(&stack).len() > 5).await;
    let blob = checkpoint(&stack, CheckpointOptions { exit: true, ..Default::default() }).await;
    stack.wait("a").await;
    stack.delete("a").await.unwrap();
    stack.nothing_left().await;
    let so_far = numbers(&stack).len();

    assert_eq!(create(&stack, from(&stack, &blob)).await, 0);
    stack.kill();
    stack.start().await;
    let mut events = stack.events(&["topic~=|^/tasks/|"]).await;
    let second = stack.start_task("a").await;
    assert!(second != 0 && second != first);
    let (topic, any) = events.next().await;
    assert_eq!((topic.as_str(), typeurl::unpack::<TaskStart>(&any).unwrap().unwrap().pid), ("/tasks/start", second));
    eventually("it counts on", || numbers(&stack).len() > so_far + 5).await;
    // While it is without a supervisor too.
    stack.kill();
    let so_far = numbers(&stack).len();
    eventually("it counts on", || numbers(&stack).len() > so_far + 5).await;
    stack.start().await;
    assert_eq!(stack.get("a").await.unwrap().pid, second);
    stack.signal("a", 9).await.unwrap();
    assert_eq!(stack.wait("a").await.exit_status, 137);
    assert_eq!(stack.delete("a").await.unwrap(), 137);
    let numbers = numbers(&stack);
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "none is missing or told twice: {numbers:?}");
    stack.nothing_left().await;
}
