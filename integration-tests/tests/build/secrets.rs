//! What must not be seen isn't: secrets in layers, histories, logs, caches; files outside of a context; links in mounts.

use crate::project::{Project, read};
use integration_tests::Stack;
use std::{fs, os::unix::fs::symlink, process::Command};

const SECRET: &str = "zeh8mo0Iequ9Ahth-a-word-that-is-nowhere-else";

/// Files below `folder` that hold the secret.
fn traces(folder: &std::path::Path) -> String {
    let output = Command::new("grep").args(["-rlaF", SECRET]).arg(folder).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn secrets_leave_no_trace() {
    let stack = Stack::with_busybox();
    let project = Project::new(
        "FROM busybox\nRUN --mount=type=secret,id=word wc -c < /run/secrets/word > /length\n\
         RUN --mount=type=secret,id=word,env=WORD echo ${#WORD} > /env\n\
         RUN --mount=type=secret,id=word,target=/etc/word,mode=0440,uid=3,gid=4 busybox stat -c '%a %u:%g' /etc/word > /mode && ls /etc > /seen\n",
    );
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("word"), SECRET).unwrap();
    let given = format!("id=word,src={}", outside.path().join("word").display());
    let built = project.build(&stack, &["--progress", "plain", "--secret", &given, "-t", "secret"]).success();
    assert!(!(built.stdout() + &built.stderr()).contains(SECRET));
    assert_eq!(read(&stack, "secret", "/length"), SECRET.len().to_string());
    assert_eq!(read(&stack, "secret", "/env"), SECRET.len().to_string());
    assert_eq!(read(&stack, "secret", "/mode"), "440 3:4");
    let ls = stack.berth(["run", "--rm", "--net", "none", "secret", "ls", "/etc"]).success().stdout();
    assert!(!ls.contains("word"), "a mount point stayed: {ls}");
    assert_eq!(traces(stack.path()), "", "the secret is on the disk");
    // Another secret is no reason to do a step again.
    fs::write(outside.path().join("word"), "other").unwrap();
    let again = project.steps(&stack, &["--secret", &given]);
    assert_eq!(again.done("RUN"), Vec::<&str>::new(), "{again:?}");
}

#[test]
fn a_secret_in_a_failing_step_is_not_told() {
    let stack = Stack::with_busybox();
    let project = Project::new("FROM busybox\nRUN --mount=type=secret,id=word,env=WORD false\n");
    fs::write(project.at("word"), SECRET).unwrap();
    let given = format!("id=word,src={}", project.at("word").display());
    let failed = project.build(&stack, &["--secret", &given]).expect_code(1);
    assert!(!(failed.stdout() + &failed.stderr()).contains(SECRET), "{failed}");
    assert_eq!(traces(stack.path()), "");
}

#[test]
fn nothing_outside_of_a_context_is_read() {
    let stack = Stack::with_busybox();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("word"), SECRET).unwrap();
    let project =
        Project::new("FROM busybox\nCOPY . /ctx/\nRUN cat /ctx/link /ctx/folder/word 2>/dev/null > /seen || true\n");
    symlink(outside.path().join("word"), project.at("link")).unwrap();
    symlink(outside.path(), project.at("folder")).unwrap();
    project.build(&stack, &["-t", "linked"]).success();
    assert_eq!(read(&stack, "linked", "/seen"), "");
    for source in ["link", "folder/word", "../../../../../etc/hostname"] {
        let project = Project::new(&format!("FROM busybox\nCOPY {source} /x\n"));
        symlink(outside.path().join("word"), project.at("link")).unwrap();
        symlink(outside.path(), project.at("folder")).unwrap();
        project.build(&stack, &[]).expect_code(1);
    }
    assert_eq!(traces(stack.path()), "");
}

#[test]
fn mount_points_behind_links_leave_the_host_alone() {
    let stack = Stack::with_busybox();
    let canary = tempfile::tempdir().unwrap();
    fs::create_dir(canary.path().join("empty")).unwrap();
    // CVE-2024-23652: while it runs, the command turns the parent of its mount point into a link out of the root.
    let project = Project::new(&format!(
        "FROM busybox\nRUN --mount=type=tmpfs,target=/made/empty busybox umount /made/empty 2>/dev/null; busybox rmdir /made/empty /made 2>/dev/null; \
         ln -s {} /made || true\nRUN true\n",
        canary.path().display()
    ));
    project.build(&stack, &[]);
    assert!(canary.path().join("empty").is_dir(), "a folder of the host was removed");
    // CVE-2024-23651: the source within a cache is a link out of it.
    let project = Project::new(&format!(
        "FROM busybox\nRUN --mount=type=cache,id=links,target=/c ln -sfn {} /c/out\n\
         RUN --mount=type=cache,id=links,source=out,target=/c ls /c > /seen; true\n",
        canary.path().display()
    ));
    if project.build(&stack, &["-t", "links"]).code() == 0 {
        assert!(!read(&stack, "links", "/seen").contains("empty"), "a folder of the host was seen");
    }
}

#[test]
fn privileges_have_to_be_allowed() {
    let stack = Stack::with_busybox();
    let project = Project::new("# syntax=docker/dockerfile:1-labs\nFROM busybox\nRUN --security=insecure true\n");
    let refused = project.build(&stack, &[]).expect_code(1);
    assert!(refused.stderr().contains("security.insecure"), "{refused}");
    let refused = Project::new("FROM busybox\nRUN --network=host true\n").build(&stack, &[]).expect_code(1);
    assert!(refused.stderr().contains("network.host"), "{refused}");
}
