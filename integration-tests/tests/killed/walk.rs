//! The walk itself: every point, alone and with the death of the other daemon too.

use crate::{commits, life, networks, pulls, restarts};
use integration_tests::{
    Stack,
    faults::{Deaths, Fault},
    programs::{debug_bin_dir, peer_or_skip, workspace},
    registry::Registry,
    stack::Setup,
};
use std::time::Instant;

/// Points of parts that no operation of the engine passes, and the tests that walk them.
const ELSEWHERE: &[(&str, &str)] = &[
    ("engine.volume_create.named", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_create.prepared", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_driver.created", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_driver.recorded", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_driver.removed", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_fill.begun", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_fill.copied", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_fill.written", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_mount.mounted", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_mount.noted", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_remove.renamed", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    ("engine.volume_unmount.unmounted", "engine/tests/containers/plugins.rs::killed_at_every_point"),
    (
        "supervisor.create.checkpoint_unpacked",
        "supervisor/tests/tasks/restore.rs::what_can_not_be_restored_can_be_deleted",
    ),
    ("supervisor.cri_container.end_recorded", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.image_viewed", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.images_mounted", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.recorded", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.removing", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.snapshot_made", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.specified", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.starting", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.stdio_ready", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.task_created", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.task_deleted", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.task_started", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.cri_container.unrecorded", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.push.blob_sent", "supervisor/tests/store/push.rs::killed_at_every_point"),
    ("supervisor.push.blob_there", "supervisor/tests/store/push.rs::killed_at_every_point"),
    ("supervisor.push.blobs_there", "supervisor/tests/store/push.rs::killed_at_every_point"),
    ("supervisor.push.children_there", "supervisor/tests/store/push.rs::killed_at_every_point"),
    ("supervisor.push.layer_compressed", "supervisor/tests/store/push.rs::killed_at_every_point"),
    ("supervisor.push.manifests_rewritten", "supervisor/tests/store/push.rs::killed_at_every_point"),
    ("supervisor.push.planned", "supervisor/tests/store/push.rs::killed_at_every_point"),
    ("supervisor.recipes.named", "supervisor/tests/store/dropped.rs::killed_at_every_point"),
    ("supervisor.recipes.unrecorded", "supervisor/tests/store/dropped.rs::killed_at_every_point"),
    ("supervisor.recipes.written", "supervisor/tests/store/dropped.rs::killed_at_every_point"),
    ("supervisor.sandbox.containers_removed", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.containers_stopped", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.files_written", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.folder_made", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.folder_removed", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.namespaces_pinned", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.network_added", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.network_deleted", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.pause_recorded", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.pause_started", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.ready", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.recorded", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.removing", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.stopping", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.taken_down", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.sandbox.user_namespace_pinned", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.snapshot_prepare.cloned", "supervisor/tests/snapshots/crashes.rs::killed_at_each_step_of_btrfs"),
    ("supervisor.snapshot_prepare.copied", "supervisor/tests/snapshots/crashes.rs::killed_at_each_step_of_native"),
    ("supervisor.snapshot_prepare.reserved", "supervisor/tests/snapshots/crashes.rs::killed_at_each_step_of_native"),
    ("supervisor.stream.exec_added", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.stream.exec_started", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
    ("supervisor.stream.fifos_made", "integration-tests/tests/cri/faults.rs::killed_at_every_point"),
];

/// What the scenarios share.
pub struct Scene {
    /// Snapshots that the images of the stack have.
    pub layers: usize,
    /// The registry, if there is one on this machine.
    pub registry: Option<Registry>,
}

type Scenario = fn(&Scene, &Fault<'_>);

const SCENARIOS: &[(&str, Scenario)] = &[
    ("life", life::life),
    ("networks", networks::networks),
    ("pull", pulls::pull),
    ("commit", commits::commit),
    ("restart", restarts::restart),
    ("shim killed", restarts::shim_killed),
    ("unfinished", restarts::unfinished),
];

/// The scenario that most likely passes a point comes first.
fn guess(point: &str) -> &'static str {
    let operation = point.split('.').nth(1).unwrap_or_default();
    match operation {
        "pull" | "unpack" | "stack_prepare" | "stack_commit" | "sync_behind" | "content_commit" | "content_delete"
        | "image_record" | "gc" | "rmi" | "image_delete" | "snapshot_commit" => "pull",
        "commit" => "commit",
        "network" | "connect" | "disconnect" | "rearrange" | "publish" => "networks",
        "bury" => "shim killed",
        "adopt" if point.contains(".un") => "unfinished",
        "adopt" | "repair" => "restart",
        "delete" if point.ends_with("orphan_removed") => "shim killed",
        _ => "life",
    }
}

fn walk(program: &str, deaths: Deaths) {
    let sources = workspace().join(program).join("src");
    let points = proto::fault::points(&sources).expect("sources");
    let elsewhere = |point: &String| ELSEWHERE.iter().any(|(name, _)| name == point);
    let (points, _): (Vec<_>, Vec<_>) = points.into_iter().partition(|point| !elsewhere(point));
    assert!(points.len() > 20, "{points:?}");
    // BERTH_FAULT_POINT=TEXT: those with TEXT in their names only.
    let only = std::env::var("BERTH_FAULT_POINT").unwrap_or_default();
    let programs = Some(debug_bin_dir(&points));
    let stack = Stack::start_with(Setup { bin_dir: programs, keep_supervisor: true, ..Setup::default() });
    stack.load_busybox();
    let registry = peer_or_skip("skopeo").and(peer_or_skip("docker-registry")).map(|_| Registry::start(stack.path()));
    if let Some(registry) = &registry {
        pulls::publish(&stack, registry);
    }
    let scene = Scene { layers: 1, registry };
    stack.assert_sound(scene.layers, "before any fault");
    let mut unreached = Vec::new();
    for point in points.iter().filter(|point| point.contains(&only)) {
        let begun = Instant::now();
        let first = guess(point);
        let mut scenarios: Vec<_> = SCENARIOS.iter().collect();
        scenarios.sort_by_key(|(name, _)| *name != first);
        let by = scenarios.into_iter().find(|(_, run)| {
            let fired = Fault::run(&stack, point, deaths, |fault| {
                run(&scene, fault);
                fault.settle();
                stack.assert_sound(scene.layers, point);
            });
            if !fired {
                // Whoever runs with the fault still in it would die in the next scenario.
                stack.kill_engine();
                stack.kill_supervisor();
                stack.start_supervisor();
                stack.start_engine();
            }
            fired
        });
        match by {
            Some((name, _)) => println!("{point} {deaths:?}: {name}, {:?}", begun.elapsed()),
            None => unreached.push(point),
        }
    }
    assert!(scene.registry.is_none() || unreached.is_empty(), "never reached: {unreached:?}");
}

#[test]
fn supervisor_killed_at_every_point() {
    walk("supervisor", Deaths::One);
}

#[test]
fn engine_killed_at_every_point() {
    walk("engine", Deaths::One);
}

#[test]
fn both_killed_at_every_point_of_the_supervisor() {
    walk("supervisor", Deaths::Both);
}

#[test]
fn both_killed_at_every_point_of_the_engine() {
    walk("engine", Deaths::Both);
}
