//! Whole builds, on a worker whose filesystems are maps. What was done is counted, never timed.

use crate::{
    BuildOptions, Options, SolveError, Solved, StepError,
    progress::Board,
    testing::{Bench, Def, Tree},
};
use proptest::prelude::*;
use proto::pb;
use std::sync::{Arc, atomic::Ordering::SeqCst};
use tokio::sync::Barrier;

async fn solve(bench: &Bench, definition: &pb::Definition) -> Result<Solved<Arc<Tree>>, SolveError> {
    bench.solver.build(BuildOptions::default(), Board::new()).solve(definition).await
}

async fn files(bench: &Bench, definition: &pb::Definition) -> Tree {
    solve(bench, definition).await.unwrap().result.as_deref().cloned().unwrap_or_default()
}

fn base(bench: &Bench) -> (Def, pb::Input) {
    bench.worker.set("docker-image://base", &[("etc/os", "base")]);
    let mut def = Def::default();
    let base = def.source("docker-image://base");
    (def, base)
}

/// base -> a, b -> merge -> end
fn diamond(bench: &Bench) -> pb::Definition {
    let (mut def, base) = base(bench);
    let (a, b) = (def.run(&base, "a"), def.run(&base, "b"));
    let both = def.merge(&[a, b]);
    let end = def.run(&both, "end");
    def.end(&end)
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("never came true: {what}");
}

#[tokio::test]
async fn nothing_is_an_empty_filesystem() {
    let bench = Bench::new();
    assert!(solve(&bench, &pb::Definition::default()).await.unwrap().result.is_none());
}

#[tokio::test]
async fn diamond_is_done_once_and_then_known() {
    let bench = Bench::new();
    let definition = diamond(&bench);
    let first = files(&bench, &definition).await;
    assert_eq!(first.len(), 4, "{first:?}");
    assert_eq!(bench.worker.took(), ["a", "b", "docker-image://base", "end", "merge"]);
    assert_eq!(files(&bench, &definition).await, first);
    assert_eq!(bench.worker.took(), [""; 0]);
    let bench = bench.again();
    let build = bench.solver.build(BuildOptions::default(), Board::new());
    assert_eq!(build.solve(&definition).await.unwrap().result.as_deref(), Some(&first));
    let counts = build.counts();
    // Inputs of a hit aren't even looked up at the worker.
    assert_eq!((counts.steps, counts.hits, counts.performed, counts.found, counts.pins), (5, 5, 0, 1, 1));
    assert!(build.board().everything().vertexes.iter().all(|vertex| vertex.cached && vertex.completed.is_some()));
}

#[tokio::test]
async fn what_is_independent_runs_at_once() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let stages: Vec<_> = (0..10).map(|at| def.run(&base, &format!("meet {at}"))).collect();
    let all = def.merge(&stages);
    *bench.worker.barrier.lock().unwrap() = Arc::new(Barrier::new(10));
    // Would stand still for ever with fewer than ten at once.
    files(&bench, &def.end(&all)).await;
    assert_eq!(bench.worker.most.load(SeqCst), 10);
}

#[tokio::test]
async fn stages_that_are_copied_from_one_after_the_other_run_at_once() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let stages: Vec<_> = (0..10).map(|at| def.run(&base, &format!("meet {at}"))).collect();
    let last = stages.iter().fold(base.clone(), |below, stage| def.copy(&below, stage, "/", "/"));
    *bench.worker.barrier.lock().unwrap() = Arc::new(Barrier::new(10));
    let definition = def.end(&last);
    files(&bench, &definition).await;
    assert_eq!(bench.worker.most.load(SeqCst), 10);
    let bench = bench.again();
    files(&bench, &definition).await;
    assert_eq!(bench.worker.took(), [""; 0]);
}

#[tokio::test]
async fn no_more_at_once_than_allowed() {
    let bench = Bench::with(Options { parallel: 3 });
    let (mut def, base) = base(&bench);
    let stages: Vec<_> = (0..20).map(|at| def.run(&base, &format!("x {at}"))).collect();
    let all = def.merge(&stages);
    files(&bench, &def.end(&all)).await;
    assert!(bench.worker.most.load(SeqCst) <= 3);
    assert_eq!(bench.worker.took().len(), 22);
}

#[tokio::test]
async fn what_is_not_needed_is_not_done() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let wanted = def.run(&base, "wanted");
    def.run(&base, "unused");
    def.source("docker-image://absent");
    files(&bench, &def.end(&wanted)).await;
    assert_eq!(bench.worker.took(), ["docker-image://base", "wanted"]);
}

#[tokio::test]
async fn touched_file_that_is_not_copied_changes_nothing() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    bench.worker.set("local://context", &[("src/main", "1"), ("README", "1")]);
    let context = def.source("local://context");
    let copied = def.copy(&base, &context, "src", "app");
    let built = def.run(&copied, "make");
    let definition = def.end(&built);
    let first = files(&bench, &definition).await;
    bench.worker.took();
    bench.worker.set("local://context", &[("src/main", "1"), ("README", "2")]);
    assert_eq!(files(&bench, &definition).await, first);
    assert_eq!(bench.worker.took(), ["local://context"]);
    let bench = bench.again();
    bench.worker.set("local://context", &[("src/main", "2"), ("README", "2")]);
    assert_ne!(files(&bench, &definition).await, first);
    assert_eq!(bench.worker.took(), ["copy src app", "local://context", "make"]);
    bench.worker.set("local://context", &[("src/main", "1")]);
    assert_eq!(files(&bench, &definition).await, first, "back to what is known");
    assert_eq!(bench.worker.took(), ["local://context"]);
}

#[tokio::test]
async fn same_content_by_another_way_is_a_hit() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    bench.worker.set("docker-image://one", &[("out/bin", "same"), ("junk", "1")]);
    bench.worker.set("docker-image://two", &[("out/bin", "same"), ("junk", "2")]);
    let (one, two) = (def.source("docker-image://one"), def.source("docker-image://two"));
    let first = def.copy(&base, &one, "out/bin", "bin");
    let second = def.copy(&base, &two, "out/bin", "bin");
    let (after_first, after_second) = (def.run(&first, "use"), def.run(&second, "use"));
    files(&bench, &def.end(&after_first)).await;
    bench.worker.took();
    files(&bench, &def.end(&after_second)).await;
    assert_eq!(bench.worker.took(), ["docker-image://two"], "what follows hits too");
    // Found by content before, found by definition now: nothing has to be read.
    bench.solver.index().settle().await.unwrap();
    let build = bench.solver.build(BuildOptions::default(), Board::new());
    build.solve(&def.end(&after_second)).await.unwrap();
    assert_eq!((build.counts().contents, build.counts().performed), (0, 0));
}

#[tokio::test]
async fn mounted_folder_counts_by_its_content() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    bench.worker.set("local://context", &[("a/x", "1"), ("b", "1")]);
    let context = def.source("local://context");
    let run = def.run_with(&base, "read", &[(&context, "/a")]);
    let definition = def.end(&run);
    files(&bench, &definition).await;
    bench.worker.took();
    bench.worker.set("local://context", &[("a/x", "1"), ("b", "2")]);
    files(&bench, &definition).await;
    assert_eq!(bench.worker.took(), ["local://context"]);
    bench.worker.set("local://context", &[("a/x", "2"), ("b", "2")]);
    files(&bench, &definition).await;
    assert_eq!(bench.worker.took(), ["local://context", "read"]);
}

#[tokio::test]
async fn ignored_cache_does_it_again_and_what_follows() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let middle = def.run(&base, "random");
    let end = def.run(&middle, "end");
    let cached = def.end(&end);
    let first = files(&bench, &cached).await;
    bench.worker.took();
    def.no_cache(&middle);
    let second = files(&bench, &def.end(&end)).await;
    assert_ne!(first, second);
    assert_eq!(bench.worker.took(), ["end", "random"]);
    assert_eq!(files(&bench, &cached).await, second, "the newer result is found from now on");
    assert_eq!(bench.worker.took(), [""; 0]);
}

#[tokio::test]
async fn several_results_of_one_operation() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let mut exec = crate::testing::exec("two");
    exec.mounts.push(pb::Mount { input: -1, dest: "/out".into(), output: 1, ..pb::Mount::default() });
    let both = def.add(&pb::Op { inputs: vec![base], op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() });
    let root = files(&bench, &def.end(&both)).await;
    assert!(root.contains_key("etc/os"));
    let second = files(&bench, &def.end(&pb::Input { index: 1, ..both.clone() })).await;
    assert_eq!(second.len(), 1);
    assert_eq!(bench.worker.took(), ["docker-image://base", "two"]);
    let refused = solve(&bench, &def.end(&pb::Input { index: 2, ..both })).await.unwrap_err();
    assert!(refused.words().contains("index of a result 2"), "{}", refused.words());
}

#[tokio::test]
async fn failed_step_is_named_and_ends_the_others() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let (stuck, bad) = (def.run(&base, "wait"), def.run(&base, "fail hard"));
    let all = def.merge(&[stuck, bad]);
    let build = bench.solver.build(BuildOptions::default(), Board::new());
    let error = build.solve(&def.end(&all)).await.unwrap_err();
    let words = "fail hard: process \"fail hard\" did not complete successfully: exit code: 3";
    assert_eq!(error.words(), words);
    assert!(matches!(&error, SolveError::Step { cause, .. } if matches!(**cause, StepError::Exit { code: 3, .. })));
    until("nothing runs", || bench.worker.under_way.load(SeqCst) == 0).await;
    let vertices = build.board().everything().vertexes;
    let error = |name: &str| vertices.iter().find(|vertex| vertex.name == name).unwrap().error.clone();
    assert!(error("fail hard").ends_with("exit code: 3"));
    // As BuildKit's clients know it; empty if the failure was quicker than its beginning.
    assert!(["", "context canceled"].contains(&error("wait").as_str()), "{}", error("wait"));
    assert_eq!(build.board().summary().failed, 1);
    assert!(vertices.iter().all(|vertex| vertex.started.is_some() == vertex.completed.is_some()));
    assert_eq!(bench.solver.names().unwrap(), bench.worker.kept());
}

#[tokio::test]
async fn dropped_build_leaves_nothing() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let stuck = def.run(&base, "wait");
    let definition = def.end(&stuck);
    {
        let solving = solve(&bench, &definition);
        tokio::pin!(solving);
        tokio::select! {
            _ = &mut solving => panic!("it waits"),
            () = bench.worker.waiting.notified() => {}
        }
    }
    until("nothing runs", || bench.worker.under_way.load(SeqCst) == 0).await;
    assert_eq!(bench.solver.names().unwrap(), bench.worker.kept());
    assert_eq!(bench.worker.took(), ["docker-image://base", "wait"]);
    bench.worker.go.add_permits(1);
    files(&bench, &definition).await;
    assert_eq!(bench.worker.took(), ["wait"], "what was finished is there");
}

#[tokio::test]
async fn two_builds_share_and_one_may_leave() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let slow = def.run(&base, "wait");
    let definition = def.end(&slow);
    let first = tokio::spawn({
        let build = bench.solver.build(BuildOptions::default(), Board::new());
        let definition = definition.clone();
        async move { build.solve(&definition).await.map(|solved| solved.result) }
    });
    bench.worker.waiting.notified().await;
    let second = bench.solver.build(BuildOptions::default(), Board::new());
    let solving = second.solve(&definition);
    tokio::pin!(solving);
    tokio::select! {
        _ = &mut solving => panic!("it waits"),
        () = until("it has a seat", || second.counts().joined == 1) => {}
    }
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    bench.worker.go.add_permits(1);
    assert!(solving.await.unwrap().result.is_some());
    assert_eq!(bench.worker.took(), ["docker-image://base", "wait"]);
}

#[tokio::test]
async fn failure_with_a_session_that_left_is_tried_again() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let slow = def.run(&base, "wait");
    let definition = def.end(&slow);
    let options = |session: &str| BuildOptions { sessions: vec![session.into()], ..BuildOptions::default() };
    let first = tokio::spawn({
        let build = bench.solver.build(options("one"), Board::new());
        let definition = definition.clone();
        async move { build.solve(&definition).await.map(|solved| solved.result) }
    });
    bench.worker.waiting.notified().await;
    let second = bench.solver.build(options("two"), Board::new());
    let solving = second.solve(&definition);
    tokio::pin!(solving);
    tokio::select! {
        _ = &mut solving => panic!("it waits"),
        () = until("it has a seat", || second.counts().joined == 1) => {}
    }
    first.abort();
    let _ = first.await;
    // Not kept: as if the first one's session had been needed to end it.
    bench.worker.fail_keep.store(true, SeqCst);
    bench.worker.go.add_permits(1);
    tokio::select! {
        _ = &mut solving => panic!("it waits again"),
        () = bench.worker.waiting.notified() => {}
    }
    bench.worker.fail_keep.store(false, SeqCst);
    bench.worker.go.add_permits(1);
    assert!(solving.await.unwrap().result.is_some());
    let asked = bench.worker.sessions.lock().unwrap().clone();
    assert_eq!(asked, [["one"], ["one"], ["two"]]);
}

#[tokio::test]
async fn what_is_being_kept_is_waited_for() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let run = def.run(&base, "run");
    files(&bench, &def.end(&base)).await;
    bench.worker.took();
    let definition = def.end(&run);
    let first = tokio::spawn({
        let build = bench.solver.build(BuildOptions::default(), Board::new());
        let definition = definition.clone();
        async move { build.solve(&definition).await.map(|solved| solved.result) }
    });
    bench.worker.hold_keep.store(true, SeqCst);
    bench.worker.waiting.notified().await;
    first.abort();
    let _ = first.await;
    let second = bench.solver.build(BuildOptions::default(), Board::new());
    let solving = second.solve(&definition);
    tokio::pin!(solving);
    tokio::select! {
        _ = &mut solving => panic!("it waits"),
        () = until("it has a seat", || second.counts().joined == 1) => {}
    }
    bench.worker.go.add_permits(1);
    solving.await.unwrap();
    assert_eq!(bench.worker.took(), ["run"]);
}

#[tokio::test]
async fn panic_of_the_worker_is_an_error_of_the_step() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let bad = def.run(&base, "panic");
    let definition = def.end(&bad);
    for _ in 0..2 {
        let words = solve(&bench, &definition).await.unwrap_err().words();
        assert_eq!(words, "panic: step ended without a result: the worker panicked");
    }
}

#[tokio::test]
async fn result_that_is_gone_is_made_again() {
    let bench = Bench::new();
    let definition = diamond(&bench);
    let first = files(&bench, &definition).await;
    bench.worker.took();
    let names = bench.worker.kept();
    bench.worker.disk.kept.lock().unwrap().clear();
    let build = bench.solver.build(BuildOptions::default(), Board::new());
    assert_eq!(build.solve(&definition).await.unwrap().result.as_deref(), Some(&first));
    assert_eq!(bench.worker.took().len(), 5);
    assert_eq!(build.counts().stale, 5);
    let now = bench.solver.names().unwrap();
    assert_eq!(now, bench.worker.kept());
    assert!(now.is_disjoint(&names));
}

#[tokio::test]
async fn content_of_a_lost_result_is_not_believed_of_its_successor() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let made = def.run(&base, "random");
    let first = def.copy(&base, &made, "ran", "one");
    files(&bench, &def.end(&first)).await;
    bench.worker.took();
    // Another copy of the same folder, whose digest is known; the result it was made of is lost.
    bench.worker.disk.kept.lock().unwrap().clear();
    let other = def.run(&first, "after");
    let second = files(&bench, &def.end(&other)).await;
    // What is recorded now is what a solver without memory of the old result records.
    let again = files(&bench, &def.end(&other)).await;
    assert_eq!(second, again);
    assert_eq!(bench.solver.names().unwrap().difference(&bench.worker.kept()).count(), 0);
}

#[tokio::test]
async fn failed_keep_and_failed_record_leave_nothing_half() {
    let bench = Bench::new();
    let definition = diamond(&bench);
    bench.worker.fail_keep.store(true, SeqCst);
    let words = solve(&bench, &definition).await.unwrap_err().words();
    assert_eq!(words, "docker-image://base: keep: no space left");
    bench.worker.fail_keep.store(false, SeqCst);
    bench.solver.index().fail_writes(true);
    let words = solve(&bench, &definition).await.unwrap_err().words();
    assert!(words.starts_with("docker-image://base: record the result: write index of the build cache"), "{words}");
    assert!(bench.worker.kept().is_empty() && bench.solver.names().unwrap().is_empty());
    bench.solver.index().fail_writes(false);
    bench.worker.took();
    files(&bench, &definition).await;
    assert_eq!(bench.worker.took().len(), 5);
}

#[tokio::test]
async fn killed_at_any_step_the_next_build_goes_on_from_there() {
    // The folder is copied while each of the steps is under way: that is what SIGKILL leaves.
    for steps in 0..4 {
        let bench = Bench::new();
        let (mut def, mut last) = base(&bench);
        for at in 0..4 {
            last = def.run(&last, if at == steps { "wait" } else { ["a", "b", "c", "d"][at] });
        }
        let definition = def.end(&last);
        let solving = solve(&bench, &definition);
        tokio::pin!(solving);
        tokio::select! {
            _ = &mut solving => panic!("it waits"),
            () = bench.worker.waiting.notified() => {}
        }
        let after = bench.crash();
        assert_eq!(after.solver.names().unwrap(), after.worker.kept());
        after.worker.go.add_permits(1);
        files(&after, &definition).await;
        assert_eq!(after.worker.took().len(), 4 - steps);
    }
}

/// What the process that is killed builds: a chain, and a folder that is copied by content.
fn doomed(bench: &Bench) -> pb::Definition {
    let (mut def, mut last) = base(bench);
    bench.worker.set("docker-image://files", &[("a", "1")]);
    let from = def.source("docker-image://files");
    for at in 0..6 {
        last = def.run(&last, &format!("step {at}"));
        last = def.copy(&last, &from, "a", &format!("copy{at}"));
    }
    def.end(&last)
}

/// Not a test of its own: the process that [`killed_for_real`] kills.
#[tokio::test]
async fn child() {
    let Some(folder) = std::env::var_os("BERTH_SOLVER_CHILD") else { return };
    let bench = Bench::in_folder(folder.as_ref());
    let definition = doomed(&bench);
    files(&bench, &definition).await;
}

#[tokio::test]
async fn killed_for_real() {
    use std::io::BufRead as _;
    let reference = Bench::new();
    let whole = files(&reference, &doomed(&reference)).await;
    for steps in 1..12 {
        let folder = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::child", "--nocapture"])
            .env("BERTH_SOLVER_CHILD", folder.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut begun = 0;
        while begun < steps {
            let line = lines.next().unwrap().unwrap();
            begun += usize::from(line.contains("performs step") || line.contains("performs copy"));
        }
        // At one moment or another of keeping and recording.
        std::thread::sleep(std::time::Duration::from_micros(steps as u64 * 700));
        child.kill().unwrap();
        child.wait().unwrap();
        let bench = Bench::in_folder(folder.path());
        let definition = doomed(&bench);
        assert!(bench.solver.names().unwrap().is_subset(&bench.worker.kept()), "recorded is kept");
        let stray = bench.solver.sweep(bench.worker.kept()).await.unwrap();
        assert!(stray <= 1, "a chain: at most the one that was just being kept");
        assert_eq!(bench.solver.names().unwrap(), bench.worker.kept());
        assert_eq!(files(&bench, &definition).await, whole);
        // A chain: when a step begins, the one before it is on record.
        let again = bench.worker.took().len();
        assert!(again <= 13 - steps, "{again} done again after {steps} had begun");
    }
}

#[tokio::test]
async fn needs_what_is_not_allowed() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let mut exec = crate::testing::exec("x");
    exec.security = pb::SecurityMode::Insecure as i32;
    let run = def.add(&pb::Op { inputs: vec![base], op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() });
    let definition = def.end(&run);
    let words = solve(&bench, &definition).await.unwrap_err().words();
    assert_eq!(words, "invalid definition: security.insecure is not allowed");
    let allowed = BuildOptions { entitlements: vec!["security.insecure".into()], ..BuildOptions::default() };
    bench.solver.build(allowed, Board::new()).solve(&definition).await.unwrap();
    // Known or not: who hasn't allowed it doesn't get it.
    assert!(solve(&bench, &definition).await.is_err());
}

#[tokio::test]
async fn sources_are_pinned_once_per_build() {
    let bench = Bench::new();
    bench.worker.set("local://context", &[("a", "1")]);
    let (mut def, base) = base(&bench);
    let context = def.source("local://context");
    let (one, two) = (def.copy(&base, &context, "a", "one"), def.copy(&base, &context, "a", "two"));
    let build = bench.solver.build(BuildOptions::default(), Board::new());
    let (first, second) = (def.end(&one), def.end(&two));
    let (first, second) = tokio::join!(build.solve(&first), build.solve(&second));
    first.and(second).unwrap();
    assert_eq!(bench.worker.pinned.load(SeqCst), 2);
}

#[tokio::test]
async fn depth_costs_no_stack() {
    let bench = Bench::new();
    let (mut def, mut last) = base(&bench);
    for at in 0..3000 {
        last = def.run(&last, &format!("s {at}"));
    }
    let definition = def.end(&last);
    // Recording three thousand results takes long: only until the first of them fails.
    bench.worker.fail_keep.store(true, SeqCst);
    assert!(solve(&bench, &definition).await.is_err());
}

#[tokio::test]
async fn known_graph_of_two_hundred_is_quick() {
    let bench = Bench::new();
    let (mut def, base) = base(&bench);
    let mut all = Vec::new();
    for stage in 0..20 {
        let mut last = base.clone();
        for at in 0..9 {
            last = def.run(&last, &format!("s {stage} {at}"));
        }
        all.push(last);
    }
    let end = def.merge(&all);
    let definition = def.end(&end);
    files(&bench, &definition).await;
    bench.worker.took();
    let begun = std::time::Instant::now();
    files(&bench, &definition).await;
    println!("182 vertices, nothing to do: {:?}", begun.elapsed());
    assert_eq!(bench.worker.took(), [""; 0]);
}

/// A vertex: what it does, and which of those before it works on.
fn shapes() -> impl Strategy<Value = Vec<(u8, prop::sample::Index, prop::sample::Index)>> {
    prop::collection::vec((0u8..5, any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..25)
}

fn shaped(bench: &Bench, shape: &[(u8, prop::sample::Index, prop::sample::Index)]) -> pb::Definition {
    let (mut def, base) = base(bench);
    bench.worker.set("docker-image://other", &[("a/x", "1"), ("b", "2")]);
    let mut all = vec![base];
    for (at, (kind, one, two)) in shape.iter().enumerate() {
        let (one, two) = (one.get(&all).clone(), two.get(&all).clone());
        all.push(match kind {
            0 => def.source("docker-image://other"),
            1 => def.run(&one, &format!("c {}", at % 7)),
            2 => def.copy(&one, &two, "ran", "copied"),
            3 => def.merge(&[one, two]),
            _ => def.run_with(&one, &format!("m {}", at % 3), &[(&two, "ran")]),
        });
    }
    def.end(all.last().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn solved_twice_nothing_is_done_twice(shape in shapes()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let definition = shaped(&bench, &shape);
            let first = files(&bench, &definition).await;
            bench.worker.took();
            assert_eq!(bench.solver.names().unwrap(), bench.worker.kept());
            assert_eq!(files(&bench, &definition).await, first);
            assert_eq!(bench.worker.took(), [""; 0]);
            let bench = bench.again();
            assert_eq!(files(&bench, &definition).await, first);
            assert_eq!(bench.worker.took(), [""; 0]);
        });
    }

    #[test]
    fn any_result_may_be_lost(shape in shapes(), lost in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let definition = shaped(&bench, &shape);
            let first = files(&bench, &definition).await;
            let mut names: Vec<_> = bench.worker.kept().into_iter().collect();
            names.sort();
            for lost in lost {
                bench.worker.disk.kept.lock().unwrap().remove(lost.get(&names));
            }
            assert_eq!(files(&bench, &definition).await, first);
            assert_eq!(files(&bench, &definition).await, first);
            let (named, kept) = (bench.solver.names().unwrap(), bench.worker.kept());
            assert!(kept.is_subset(&named), "what is kept is recorded");
        });
    }

    #[test]
    fn builds_cancelled_and_pruned_at_once_leave_nothing_half(
        shapes in prop::collection::vec(shapes(), 3),
        patience in prop::collection::vec(0u64..3000, 3),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let bench = Bench::new();
            let definitions: Vec<_> = shapes.iter().map(|shape| shaped(&bench, shape)).collect();
            let builds = definitions.iter().zip(&patience).map(|(definition, patience)| {
                let build = bench.solver.build(BuildOptions::default(), Board::new());
                let (definition, patience) = (definition.clone(), std::time::Duration::from_micros(*patience));
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(patience, build.solve(&definition)).await;
                })
            });
            let builds: Vec<_> = builds.collect();
            bench.solver.prune(&crate::PruneOptions::default()).await.unwrap();
            for build in builds {
                build.await.unwrap();
            }
            bench.solver.prune(&crate::PruneOptions::default()).await.unwrap();
            for definition in &definitions {
                let fresh = Bench::new();
                shaped(&fresh, &shapes[0]);
                assert_eq!(files(&bench, definition).await, files(&fresh, definition).await);
            }
            // What was being kept when its build left is recorded in its own time.
            until("all that is kept is recorded", || bench.solver.names().unwrap() == bench.worker.kept()).await;
        });
    }
}
