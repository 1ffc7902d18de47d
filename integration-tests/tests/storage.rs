//! The engine on one snapshotter of the supervisor and then on another: what was made in the first one stays there, works and
//! goes with its container.

use integration_tests::{
    Daemon, Stack, images,
    programs::{peer_or_skip, program},
    run_with,
    stack::Setup,
};
use std::{process::Command, time::Duration};

const IMAGE: &str = "busybox:latest";
/// Prints what earlier runs left, and leaves something.
const COUNT: &str = "echo run >> /runs; wc -l < /runs";

fn use_driver(stack: &Stack, driver: &str) {
    stack.stop_engine();
    stack.use_args(Daemon::Engine, ["--storage-driver", driver]);
    stack.start_engine();
}

/// Which driver the engine, an image and some containers are said to have.
#[track_caller]
fn drivers(stack: &Stack, containers: &[&str]) -> Vec<String> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = vec![text(&stack.api().get("/info").expect(200).json()["Driver"])];
    found.push(text(&stack.api().get(&format!("/images/{IMAGE}/json")).expect(200).json()["GraphDriver"]["Name"]));
    for container in containers {
        let seen = stack.inspect(container);
        assert_eq!(seen["Driver"], seen["GraphDriver"]["Name"], "{seen}");
        found.push(text(&seen["Driver"]));
    }
    found
}

/// Keys and kinds of the engine's snapshots in a snapshotter.
fn snapshots(stack: &Stack, snapshotter: &str) -> Vec<(String, String)> {
    let listed = stack.ctr(["-n", "berth", "snapshots", "--snapshotter", snapshotter, "ls"]).success().stdout();
    let rows = listed.lines().skip(1).map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (words[0].to_owned(), (*words.last().unwrap()).to_owned())
    });
    rows.collect()
}

fn active(stack: &Stack, snapshotter: &str) -> Vec<String> {
    let all = snapshots(stack, snapshotter).into_iter();
    all.filter(|(_, kind)| kind == "Active").map(|(key, _)| key).collect()
}

fn run_count(stack: &Stack, name: &str) {
    let first = stack.berth(["run", "--name", name, "busybox", "sh", "-c", COUNT]).success();
    assert_eq!(first.stdout(), "1", "{first}");
}

fn start_again(stack: &Stack, name: &str) {
    let again = stack.berth(["start", "-a", name]).success();
    assert_eq!(again.stdout(), "2", "{again}");
}

/// Containers of an engine on `native`, and then an engine on overlayfs beside what it left.
fn changes_driver(stack: &Stack) {
    run_count(stack, "old");
    // Only the engine has a record of this one.
    stack.berth(["create", "--name", "fresh", "busybox", "sh", "-c", COUNT]).success();
    assert_eq!(drivers(stack, &["old", "fresh"]), ["native"; 4]);
    let (old, fresh) = (stack.inspect("old")["Id"].clone(), stack.inspect("fresh")["Id"].clone());
    let record = stack.ctr(["-n", "berth", "containers", "info", old.as_str().unwrap()]).success().stdout();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["Snapshotter"], "native", "{record}");
    let mut made = [old.as_str().unwrap(), fresh.as_str().unwrap()];
    made.sort_unstable();
    let mut found = active(stack, "native");
    found.sort_unstable();
    assert_eq!(found, made);
    assert!(snapshots(stack, "overlayfs").is_empty(), "{:?}", snapshots(stack, "overlayfs"));

    // What an engine that died in the middle of a removal leaves is found in either.
    stack.stop_engine();
    let orphan = "f".repeat(64);
    let native = ["-n", "berth", "snapshots", "--snapshotter", "native"];
    stack.ctr([&native[..], &["prepare", &orphan]].concat()).success();
    stack.ctr([&native[..], &["label", &orphan, &format!("berth/engine.container={orphan}")]].concat()).success();
    use_driver(stack, "overlayfs");
    assert!(!active(stack, "native").contains(&orphan));

    start_again(stack, "old");
    assert_eq!(stack.berth(["start", "-a", "fresh"]).success().stdout(), "1");
    // Its layers are unpacked for overlayfs by now.
    run_count(stack, "new");
    assert_eq!(drivers(stack, &["old", "fresh", "new"]), ["overlayfs", "overlayfs", "native", "native", "overlayfs"]);
    assert_eq!(active(stack, "overlayfs"), [stack.inspect("new")["Id"].as_str().unwrap()]);
    stack.berth(["rm", "old", "fresh"]).success();
    assert!(active(stack, "native").is_empty(), "{:?}", active(stack, "native"));
    start_again(stack, "new");
    stack.berth(["rm", "new"]).success();
    assert!(active(stack, "overlayfs").is_empty(), "{:?}", active(stack, "overlayfs"));
}

#[test]
fn a_container_stays_with_the_snapshotter_it_was_made_in() {
    if peer_or_skip("ctr").is_none() {
        return;
    }
    let args = ["--storage-driver", "native"].map(str::to_owned);
    let stack = Stack::start_with(Setup { engine_args: args.into(), ..Setup::default() });
    stack.load_busybox();
    changes_driver(&stack);
    // The layers were kept by the image alone, in both.
    assert!(!snapshots(&stack, "native").is_empty() && !snapshots(&stack, "overlayfs").is_empty());
    stack.berth(["rmi", IMAGE]).success();
    assert_eq!([snapshots(&stack, "native"), snapshots(&stack, "overlayfs")], [[], []]);
}

#[test]
fn the_same_on_containerd() {
    if ["containerd", "ctr", "containerd-shim-runc-v2", "runc"].iter().any(|name| peer_or_skip(name).is_none()) {
        return;
    }
    let args = ["--storage-driver", "native"].map(str::to_owned);
    let stack = Stack::start_with(Setup { engine_args: args.into(), containerd: true, ..Setup::default() });
    let archive = images::busybox_archive(stack.path());
    stack.ctr(["-n", "berth", "images", "import", "--no-unpack", archive.to_str().unwrap()]).success();
    changes_driver(&stack);
}

/// What the supervisor's configuration says is the default, is the engine's; a name that nobody has ends it at once.
#[test]
fn the_default_is_the_supervisors_and_an_unknown_driver_is_refused() {
    let stack = Stack::start();
    stack.load_busybox();
    assert_eq!(drivers(&stack, &[]), ["overlayfs"; 2]);
    stack.stop_engine();
    let refused = |driver: &str| {
        let mut engine = Command::new(program("berth-engine"));
        engine.arg("--data-root").arg(stack.data_root()).arg("--run-root").arg(stack.run_root());
        run_with(engine.args(["--storage-driver", driver]), b"", Duration::from_secs(20)).expect_code(1).stderr()
    };
    let said = refused("overlay2");
    let socket = stack.supervisor_socket().display().to_string();
    assert!(
        said.starts_with(&format!("berth-engine: supervisor at {socket}: use storage driver \"overlay2\": ")),
        "{said}"
    );
    assert!(said.contains("choose overlayfs or native") && said.lines().count() == 1, "{said}");

    let config = stack.path().join("supervisor.toml");
    std::fs::write(&config, "[snapshots]\ndefault = \"native\"\ndisabled = [\"overlayfs\"]\n").unwrap();
    stack.stop_supervisor();
    stack.use_args(Daemon::Supervisor, ["--config", config.to_str().unwrap()]);
    stack.start_supervisor();
    let said = refused("overlayfs");
    assert!(said.contains("is not loaded (disabled in [snapshots] of the configuration)"), "{said}");
    stack.start_engine();
    assert_eq!(drivers(&stack, &[]), ["native"; 2]);
    run_count(&stack, "box");
    assert_eq!(stack.inspect("box")["Driver"], "native");
    stack.berth(["rm", "box"]).success();
}
