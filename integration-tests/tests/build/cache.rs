//! What is done, and what is known: shown by counts of steps, and by a counter in a cache mount that each run of a step raises.

use crate::project::{Project, read};
use integration_tests::{Stack, eventually};
use std::{fs, process::Child};

/// A step that counts how often it was run, in a cache mount of a name.
fn counted(name: &str, then: &str) -> String {
    format!("RUN --mount=type=cache,id={name},target=/count echo x >> /count/{name} && {then}\n")
}

/// How often a counted step was run.
fn count(stack: &Stack, name: &str) -> usize {
    let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let project = Project::new(&format!(
        "FROM busybox\nARG NOW={unique}\nRUN --mount=type=cache,id={name},target=/count cp /count/{name} /counted 2>/dev/null || : > /counted\n"
    ));
    project.build(stack, &["-q", "-t", "counted"]).success();
    read(stack, "counted", "/counted").lines().count()
}

#[test]
fn nothing_is_done_twice() {
    let stack = Stack::with_busybox();
    let project = Project::new(
        "FROM busybox\nWORKDIR /app\nCOPY src src\nRUN cat src/* > /all\nCOPY other /other\nRUN echo end > /end\n",
    );
    project.write("src/a", "a\n");
    project.write("src/b", "b\n");
    project.write("other", "o\n");
    project.write("unused", "u\n");
    let first = project.steps(&stack, &["-t", "first"]);
    assert_eq!((first.done("RUN").len(), first.done("COPY").len(), first.known("RUN").len()), (2, 2, 0), "{first:?}");

    let again = project.steps(&stack, &["-t", "again"]);
    assert_eq!((again.done("RUN"), again.done("COPY")), (vec![], vec![]), "{again:?}");
    assert_eq!((again.known("RUN").len(), again.known("COPY").len()), (2, 2), "{again:?}");
    let id = |name: &str| stack.berth(["image", "inspect", "-f", "{{.Id}}", name]).success().stdout();
    assert_eq!(id("first"), id("again"), "the same image");

    // Times of files don't count, nor do files that no step reads.
    let touch = std::process::Command::new("touch").arg(project.at("src/a")).status().unwrap();
    assert!(touch.success());
    project.write("unused", "changed\n");
    let touched = project.steps(&stack, &[]);
    assert_eq!((touched.done("RUN"), touched.done("COPY")), (vec![], vec![]), "{touched:?}");

    // What is below a change is done again, and what is above isn't.
    project.write("other", "changed\n");
    let changed = project.steps(&stack, &["-t", "changed"]);
    assert_eq!((changed.done("RUN").len(), changed.done("COPY").len()), (1, 1), "{changed:?}");
    assert_eq!(read(&stack, "changed", "/other"), "changed");
    project.write("src/a", "changed\n");
    let upper = project.steps(&stack, &["-t", "upper"]);
    assert_eq!((upper.done("RUN").len(), upper.done("COPY").len()), (2, 2), "{upper:?}");
    assert_eq!(read(&stack, "upper", "/all"), "changed\nb");
}

#[test]
fn stages_are_done_if_needed_and_as_far_as_they_changed() {
    let stack = Stack::with_busybox();
    let project = Project::new(
        "FROM busybox AS left\nCOPY l /l\nRUN cat /l > /left\nFROM busybox AS right\nCOPY r /r\nRUN cat /r > /right\n\
         FROM busybox AS unused\nRUN exit 1\nFROM busybox\nCOPY --from=left /left /\nCOPY --from=right /right /\n",
    );
    project.write("l", "1\n");
    project.write("r", "1\n");
    let first = project.steps(&stack, &[]);
    assert_eq!(first.done("RUN").len(), 2, "{first:?}");
    project.write("r", "2\n");
    let second = project.steps(&stack, &["-t", "second"]);
    assert_eq!(second.done("RUN").len(), 1, "{second:?}");
    assert!(second.done("RUN")[0].contains("/right"), "{second:?}");
    assert_eq!((read(&stack, "second", "/left"), read(&stack, "second", "/right")), ("1".into(), "2".into()));
    // What is known by its content stops a change: the file that the last stage takes is the same.
    project.write("r", "2\n\n");
    project.write(
        "Dockerfile",
        &fs::read_to_string(project.at("Dockerfile")).unwrap().replace("cat /r", "busybox head -n1 /r"),
    );
    let third = project.steps(&stack, &[]);
    assert_eq!(third.done("RUN").len(), 1, "{third:?}");
    assert_eq!(third.done("COPY").iter().filter(|name| name.contains("--from")).count(), 0, "{third:?}");
}

#[test]
fn stages_run_beside_each_other() {
    let stack = Stack::with_busybox();
    // Each waits for the other one's word: only if both run at once does either end.
    let wait = |own: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,id=meet,target=/meet touch /meet/{own}; i=0; while [ ! -e /meet/{other} ]; do i=$((i+1)); \
             [ $i -lt 600 ] || exit 1; busybox usleep 100000; done; echo {own} > /out\n"
        )
    };
    let project = Project::new(&format!(
        "FROM busybox AS a\n{}FROM busybox AS b\n{}FROM busybox\nCOPY --from=a /out /a\nCOPY --from=b /out /b\n",
        wait("a", "b"),
        wait("b", "a")
    ));
    let steps = project.steps(&stack, &["-t", "met"]);
    assert_eq!(steps.done("RUN").len(), 2, "{steps:?}");
    assert_eq!(read(&stack, "met", "/b"), "b");
}

#[test]
fn two_builds_do_a_step_once() {
    let stack = Stack::with_busybox();
    let project = Project::new(&format!("FROM busybox\n{}", counted("shared", "sleep 3 && echo done > /done")));
    let builds: Vec<Child> = (0..3).map(|_| project.begin(&stack, &["-q"])).collect();
    for build in builds {
        let output = build.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(count(&stack, "shared"), 1);
}

#[test]
fn no_cache_does_everything_or_a_stage() {
    let stack = Stack::with_busybox();
    let project = Project::new(
        "FROM busybox AS one\nRUN echo 1 > /x\nFROM busybox AS two\nRUN echo 2 > /x\nFROM scratch\nCOPY --from=one /x /1\nCOPY --from=two /x /2\n",
    );
    project.steps(&stack, &[]);
    let none = project.steps(&stack, &["--no-cache"]);
    assert_eq!(none.done("RUN").len(), 2, "{none:?}");
    let filter = project.steps(&stack, &["--no-cache-filter", "two"]);
    assert_eq!(filter.done("RUN").len(), 1, "{filter:?}");
    assert!(filter.done("RUN")[0].contains("echo 2"), "{filter:?}");
}

#[test]
fn what_is_known_outlives_daemons_and_images() {
    let stack = Stack::with_busybox();
    let project = Project::new(&format!("FROM busybox\n{}", counted("lives", "echo a > /a")));
    project.build(&stack, &["-q", "-t", "lives"]).success();
    stack.kill_engine();
    stack.start_engine();
    assert_eq!(project.steps(&stack, &["-t", "lives"]).done("RUN"), Vec::<&str>::new());
    stack.kill_supervisor();
    stack.start_supervisor();
    assert_eq!(project.steps(&stack, &["-t", "lives"]).done("RUN"), Vec::<&str>::new());
    stack.berth(["image", "rm", "lives"]).success();
    assert_eq!(project.steps(&stack, &["-t", "lives"]).done("RUN"), Vec::<&str>::new());
    assert_eq!(read(&stack, "lives", "/a"), "a");
    assert_eq!(count(&stack, "lives"), 1);
}

#[test]
fn prune_forgets_and_images_stay() {
    let stack = Stack::with_busybox();
    let project = Project::new("FROM busybox\nRUN echo a > /a\n");
    project.build(&stack, &["-q", "-t", "kept"]).success();
    let usage = stack.api().get("/system/df?type=build-cache").expect(200).json();
    let caches = usage["BuildCache"].as_array().map_or(0, Vec::len);
    assert!(caches > 0, "{usage}");
    stack.berth(["builder", "prune", "-a", "-f"]).success();
    let usage = stack.api().get("/system/df?type=build-cache").expect(200).json();
    assert_eq!(usage["BuildCache"].as_array().map_or(0, Vec::len), 0, "{usage}");
    assert_eq!(read(&stack, "kept", "/a"), "a");
    let again = project.steps(&stack, &["-t", "kept"]);
    assert_eq!(again.done("RUN").len(), 1, "{again:?}");
}

#[test]
fn a_killed_engine_loses_no_finished_step() {
    let stack = Stack::with_busybox();
    let project = Project::new(&format!(
        "FROM busybox\n{}{}{}",
        counted("first", "echo 1 > /1"),
        counted(
            "second",
            "echo 2 > /2 && if [ ! -e /count/go ]; then touch /count/waits; while [ ! -e /count/go ]; do busybox usleep 50000; done; fi"
        ),
        counted("third", "echo 3 > /3"),
    ));
    let build = project.begin(&stack, &["--progress", "plain"]);
    // The second step has begun when its mark is there.
    eventually("the second step runs", || {
        let found = find(&stack.data_root(), "waits");
        (!found.is_empty()).then_some(())
    });
    stack.kill_engine();
    let output = build.wait_with_output().unwrap();
    assert!(!output.status.success());
    stack.start_engine();
    eventually("nothing of the build runs", || {
        let processes = integration_tests::leftovers::processes_of(stack.path(), "berth-shim");
        processes.is_empty().then_some(())
    });
    for waits in find(&stack.data_root(), "waits") {
        fs::write(waits.with_file_name("go"), "").unwrap();
    }
    let steps = project.steps(&stack, &["-t", "survived"]);
    assert_eq!((steps.known("RUN").len(), steps.done("RUN").len()), (1, 2), "{steps:?}");
    assert_eq!(read(&stack, "survived", "/3"), "3");
    assert_eq!(count(&stack, "first"), 1);
}

fn find(folder: &std::path::Path, name: &str) -> Vec<std::path::PathBuf> {
    let output = std::process::Command::new("find").arg(folder).args(["-name", name]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).lines().map(Into::into).collect()
}
