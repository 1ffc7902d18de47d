//! `docker cp`: stat, out and in, of containers that run and of those that don't; attacks on it.

use super::{sh, with_host};
use crate::stack::{Answer, Stack, eventually};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

const TAR: &str = "application/x-tar";

/// Runs tar in a folder; gives what it wrote.
fn tar(folder: &Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new("tar")
        .arg("-C")
        .arg(folder)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success(), "tar {args:?}");
    output
}

fn names(archive: &[u8]) -> Vec<String> {
    let text = String::from_utf8(tar(Path::new("/"), &["-P", "-tf", "-"], archive)).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// What an archive says of a single file in it.
fn text_of(archive: &[u8], name: &str) -> String {
    String::from_utf8(tar(Path::new("/"), &["-xOf", "-", name], archive)).unwrap()
}

fn get(stack: &Stack, name: &str, path: &str) -> Answer {
    stack.get(&format!("/containers/{name}/archive?path={path}"))
}

fn put(stack: &Stack, name: &str, path: &str, archive: &[u8]) -> Answer {
    stack.request("PUT", &format!("/containers/{name}/archive?path={path}"), TAR, archive)
}

fn stat_of(answer: &Answer) -> Value {
    let line = answer.head.lines().find(|line| line.to_lowercase().starts_with("x-docker-container-path-stat: "));
    let text = line.unwrap_or_else(|| panic!("{}", answer.head)).split(' ').nth(1).unwrap().trim().to_owned();
    let mut child = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap()
}

fn one_file(name: &str, text: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(name), text).unwrap();
    tar(folder.path(), &["--owner=1000", "--group=1001", "-cf", "-", name], b"")
}

const TREE: &str = "busybox mkdir -p /data/sub; echo hi >/data/f; busybox ln -s /data /lnk; busybox ln -s ../etc/passwd /data/pw; \
    busybox ln -s /nowhere /dangle; busybox ln /data/f /data/g; echo ready; sleep 1000";

fn ready(stack: &Stack, name: &str) {
    eventually("it is ready", || {
        let out = stack.get(&format!("/containers/{name}/logs?stdout=1")).streams().0;
        if out.contains("ready") { Ok(()) } else { Err(out) }
    });
}

#[test]
fn what_is_where_as_docker_tells_it() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=box", &sh(TREE));
    stack.start_container("box");
    ready(&stack, "box");
    let folder = 2_147_484_141_u64;
    // Path, name, mode, link target: from dockerd 20.10.
    for (path, name, mode, target) in [
        ("/", "/", folder, ""),
        ("/data", "data", folder, ""),
        ("/data/", "data", folder, ""),
        ("/data/.", ".", folder, ""),
        ("/lnk", "lnk", 134_218_239, "/data"),
        ("/lnk/", "lnk", folder, ""),
        ("/data/pw", "pw", 134_218_239, "/etc/passwd"),
        ("/dangle", "dangle", 134_218_239, "/nowhere"),
        ("data/f", "f", 420, ""),
        ("/data/../etc", "etc", folder, ""),
        ("/bin/sh", "sh", 134_218_239, "/bin/busybox"),
    ] {
        let answer = stack.request("HEAD", &format!("/containers/box/archive?path={path}"), "", b"");
        assert_eq!(answer.status, 200, "{path}: {}", answer.head);
        let stat = stat_of(&answer);
        assert_eq!(
            (stat["name"].as_str(), stat["mode"].as_u64(), stat["linkTarget"].as_str()),
            (Some(name), Some(mode), Some(target)),
            "{path}"
        );
    }
    for path in ["/nope", "/nope/x", "/dangle/", "/data/f/x"] {
        let answer = get(&stack, "box", path);
        assert_eq!(answer.status, 404, "{path}");
        assert_eq!(answer.message(), format!("Could not find the file {path} in container box"));
    }
    assert_eq!(stack.get("/containers/box/archive").status, 400);
    assert_eq!(get(&stack, "nobody", "/").message(), "No such container: nobody");
    let both = |path: &str, expected: &[&str]| {
        let answer = get(&stack, "box", path);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.head.contains(TAR), "{}", answer.head);
        let listed = names(&answer.body);
        for name in expected {
            assert!(listed.iter().any(|n| n == name), "{path}: {name} in {listed:?}");
        }
    };
    both("/data", &["data/", "data/f", "data/g", "data/sub/", "data/pw"]);
    both("/data/.", &["./", "./f"]);
    both("/lnk/", &["lnk/", "lnk/f"]);
    both("/lnk", &["lnk"]);
    both("/", &["/", "/bin/busybox", "/data/f"]);
    // The same when it has ended, and while it is paused.
    assert_eq!(stack.post("/containers/box/pause", &Value::Null).status, 204);
    assert_eq!(text_of(&get(&stack, "box", "/data/f").body, "f"), "hi\n");
    assert_eq!(stack.post("/containers/box/unpause", &Value::Null).status, 204);
    assert_eq!(stack.post("/containers/box/kill", &Value::Null).status, 204);
    both("/data", &["data/", "data/f", "data/sub/"]);
    both("/", &["/", "/bin/busybox", "/data/f"]);
    let answer = stack.request("HEAD", "/containers/box/archive?path=/data/pw", "", b"");
    assert_eq!(stat_of(&answer)["linkTarget"], "/etc/passwd");
}

#[test]
fn copied_in_with_owners_and_refusals() {
    let Some(stack) = Stack::start() else { return };
    let host = tempfile::tempdir().unwrap();
    let mount = |at: &str, mode: &str| format!("{}:{at}{mode}", host.path().display());
    let binds = json!({"Binds": [mount("/romnt", ":ro"), mount("/mnt/deep", "")]});
    stack.create("?name=box", &with_host(json!({"Cmd": ["sleep", "1000"], "User": "www"}), binds));
    let file = one_file("file", "new");
    let owner = |path: &str| {
        let listing = tar(Path::new("/"), &["--numeric-owner", "-tvf", "-"], &get(&stack, "box", path).body);
        String::from_utf8(listing).unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    // Never started, then running: the same.
    for round in 0..2 {
        let done = put(&stack, "box", "/etc", &file);
        assert_eq!(done.status, 200, "{}", done.text());
        assert_eq!(text_of(&get(&stack, "box", "/etc/file").body, "file"), "new");
        assert_eq!(owner("/etc/file"), "1000/1001");
        assert_eq!(put(&stack, "box", "/etc&copyUIDGID=1", &file).status, 200);
        assert_eq!(owner("/etc/file"), "33/33");
        // A bind mount is seen: what goes there is on the host.
        assert_eq!(put(&stack, "box", "/mnt/deep", &one_file("seen", &round.to_string())).status, 200);
        assert_eq!(std::fs::read_to_string(host.path().join("seen")).unwrap(), round.to_string());
        assert_eq!(text_of(&get(&stack, "box", "/romnt/seen").body, "seen"), round.to_string());
        // The volume of the image too.
        assert_eq!(put(&stack, "box", "/vol", &one_file("seen", "vol")).status, 200);
        assert_eq!(text_of(&get(&stack, "box", "/vol/seen").body, "seen"), "vol");
        for (path, status, text) in [
            ("/nope", 404, "Could not find the file /nope in container box"),
            ("/etc/passwd", 400, "extraction point is not a directory"),
            ("/romnt", 403, "mounted volume is marked read-only"),
        ] {
            let refused = put(&stack, "box", path, &file);
            assert_eq!((refused.status, refused.message().as_str()), (status, text), "{path}");
        }
        assert_eq!(put(&stack, "box", "/etc", b"this is no archive at all").status, 400);
        if round == 0 {
            stack.start_container("box");
        }
    }
    assert_eq!(put(&stack, "box", "/proc", &file).status, 403);
    // /etc/hosts is mounted and can't be replaced: written into.
    assert_eq!(put(&stack, "box", "/etc", &one_file("hosts", "127.0.0.1 x\n")).status, 200);
    assert_eq!(text_of(&get(&stack, "box", "/etc/hosts").body, "hosts"), "127.0.0.1 x\n");
    // Folders and others are not exchanged for one another, if asked so.
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("d/passwd")).unwrap();
    std::fs::write(folder.path().join("etc"), "no folder").unwrap();
    let folder_over_file = tar(&folder.path().join("d"), &["-cf", "-", "passwd"], b"");
    let refused = put(&stack, "box", "/etc&noOverwriteDirNonDir=true", &folder_over_file);
    assert_eq!((refused.status, refused.message().contains("cannot overwrite non-directory")), (400, true));
    let refused = put(&stack, "box", "/&noOverwriteDirNonDir=true", &tar(folder.path(), &["-cf", "-", "etc"], b""));
    assert_eq!((refused.status, refused.message().contains("cannot overwrite directory")), (400, true));
    // Packed, by what dockerd takes.
    for pack in ["-cz", "-cj", "-cJ"] {
        let source = tempfile::tempdir().unwrap();
        std::fs::write(source.path().join("packed"), pack).unwrap();
        let done = put(&stack, "box", "/etc", &tar(source.path(), &[pack, "packed"], b""));
        assert_eq!(done.status, 200, "{pack}: {}", done.text());
        assert_eq!(text_of(&get(&stack, "box", "/etc/packed").body, "packed"), pack);
    }
    stack.create("?name=ro", &with_host(json!({"Cmd": ["sleep", "1000"]}), json!({"ReadonlyRootfs": true})));
    for _ in 0..2 {
        let refused = put(&stack, "ro", "/etc", &file);
        assert_eq!((refused.status, refused.message().as_str()), (403, "container rootfs is marked read-only"));
        assert_eq!(put(&stack, "ro", "/vol", &file).status, 200);
        let started = stack.post("/containers/ro/start", &Value::Null).status;
        assert!(matches!(started, 204 | 304));
    }
}

#[test]
fn packed_answers_and_events() {
    let Some(stack) = Stack::start() else { return };
    stack.create("?name=box", &json!({"Cmd": ["true"]}));
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for (encoding, tool) in [("gzip", "gzip"), ("deflate", "")] {
        let answer = stack.request(
            "GET",
            &format!("/containers/box/archive?path=/etc HTTP/1.1\r\nAccept-Encoding: {encoding}\r\nX-Rest:"),
            "",
            b"",
        );
        assert!(answer.head.to_lowercase().contains(&format!("content-encoding: {encoding}")), "{}", answer.head);
        if !tool.is_empty() {
            let mut child = Command::new(tool).arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            child.stdin.take().unwrap().write_all(&answer.body).unwrap();
            let plain = child.wait_with_output().unwrap().stdout;
            assert!(names(&plain).contains(&"etc/passwd".to_owned()));
        }
    }
    assert_eq!(put(&stack, "box", "/etc", &one_file("x", "y")).status, 200);
    let until = since + 3600;
    let _ = until;
    let (head, mut stream) = stack.begin(
        "GET",
        &format!("/events?since={since}&filters=%7B%22event%22:%5B%22archive-path%22,%22extract-to-dir%22%5D%7D"),
    );
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut text = String::new();
    eventually("both events", || {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        if text.contains("archive-path") && text.contains("extract-to-dir") { Ok(()) } else { Err(text.clone()) }
    });
}

/// CVE-2018-15664 and CVE-2026-42306: a folder of the path is exchanged for a link to a folder of the host, for ever.
#[test]
fn a_racing_swapper_gets_nothing_of_the_host() {
    let Some(stack) = Stack::start() else { return };
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("canary"), "host secret").unwrap();
    let script = format!(
        "busybox mkdir /a; echo inside >/a/canary; busybox ln -s {} /b; echo ready; sleep 1000",
        host.path().display()
    );
    stack.create("?name=evil", &sh(&script));
    stack.start_container("evil");
    ready(&stack, "evil");
    let pid = stack.inspect("evil")["State"]["Pid"].as_u64().unwrap();
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let over = Arc::new(AtomicBool::new(false));
    let swapper = {
        let (over, root) = (over.clone(), root.clone());
        std::thread::spawn(move || {
            let mut swaps = 0_u64;
            while !over.load(Ordering::Relaxed) {
                renameat2(AT_FDCWD, &root.join("a"), AT_FDCWD, &root.join("b"), RenameFlags::RENAME_EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        })
    };
    let (mut read, mut written) = (0, 0);
    let file = one_file("planted", "x");
    for _ in 0..150 {
        let answer = get(&stack, "evil", "/a/canary");
        if answer.status == 200 {
            assert_eq!(text_of(&answer.body, "canary"), "inside\n");
            read += 1;
        }
        assert!(!String::from_utf8_lossy(&get(&stack, "evil", "/a/").body).contains("host secret"));
        written += u32::from(put(&stack, "evil", "/a", &file).status == 200);
    }
    over.store(true, Ordering::Relaxed);
    let swaps = swapper.join().unwrap();
    assert!(swaps > 150 && read > 0 && written > 0, "{swaps} swaps, {read} reads, {written} writes");
    let left: Vec<_> = std::fs::read_dir(host.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, ["canary"]);
    assert_eq!(std::fs::read_to_string(host.path().join("canary")).unwrap(), "host secret");
}

/// CVE-2021-41089, CVE-2018-15664, CVE-2026-41568: links in the container and in the archive, to the host.
#[test]
fn links_lead_nowhere_outside() {
    let Some(stack) = Stack::start() else { return };
    let host = tempfile::tempdir().unwrap();
    let outside = host.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
    let before = mode(&outside);
    let at = outside.display().to_string();
    let up = "../".repeat(20);
    // A mount destination below a link that leads out: it has to be made inside.
    let inner = host.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let binds = json!({"Binds": [format!("{}:/link/mnt", inner.display())]});
    stack.create("?name=evil", &with_host(sh("echo x"), binds));
    // Absolute and relative links, as an archive brings them along.
    let source = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&outside, source.path().join("link")).unwrap();
    std::os::unix::fs::symlink(format!("{up}{at}"), source.path().join("rel")).unwrap();
    std::os::unix::fs::symlink("/etc", source.path().join("good")).unwrap();
    let links = tar(source.path(), &["-cf", "-", "link", "rel", "good"], b"");
    assert_eq!(put(&stack, "evil", "/srv", &links).status, 404);
    let below = tempfile::tempdir().unwrap();
    std::fs::create_dir(below.path().join("srv")).unwrap();
    assert_eq!(put(&stack, "evil", "/", &tar(below.path(), &["-cf", "-", "srv"], b"")).status, 200);
    assert_eq!(put(&stack, "evil", "/srv", &links).status, 200);
    // Through a link that stays inside it works (moby's regression), through the others it ends inside or nowhere.
    assert_eq!(put(&stack, "evil", "/srv/good", &one_file("through", "x")).status, 200);
    assert_eq!(text_of(&get(&stack, "evil", "/etc/through").body, "through"), "x");
    for path in ["/srv/link", "/srv/rel", "/srv/link/", "/srv/rel/"] {
        assert_eq!(put(&stack, "evil", path, &one_file("through", "x")).status, 404, "{path}");
    }
    // A link and a file behind it in one archive.
    let tricky = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&outside, tricky.path().join("dir")).unwrap();
    let mut archive = tar(tricky.path(), &["-cf", "-", "dir"], b"");
    archive.truncate(512);
    archive.extend(tar(host.path(), &["--transform", "s,outside,dir,", "-cf", "-", "outside"], b""));
    assert_eq!(put(&stack, "evil", "/srv", &archive).status, 200);
    let names_out = ["../../../../tmp/escaped", "/../../escaped"];
    for name in names_out {
        let source = one_file("f", "x");
        let folder = tempfile::tempdir().unwrap();
        tar(folder.path(), &["-xf", "-"], &source);
        let archive = tar(folder.path(), &["-P", "--transform", &format!("s,f,{name},"), "-cf", "-", "f"], b"");
        assert_eq!(put(&stack, "evil", "/srv", &archive).status, 400, "{name}");
    }
    assert!(!Path::new("/tmp/escaped").exists());
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(mode(&outside), before);
}

/// CVE-2019-14271 and CVE-2026-41567: nothing of the image is run or loaded.
#[test]
fn programs_of_the_container_are_not_run() {
    let Some(stack) = Stack::start() else { return };
    let marks = tempfile::tempdir().unwrap();
    let mark = marks.path().display();
    let binds = json!({"Binds": [format!("{mark}:{mark}")]});
    stack.create("?name=evil", &with_host(sh("echo ready; sleep 1000"), binds));
    let source = tempfile::tempdir().unwrap();
    for name in ["unpigz", "gzip", "xz", "zstd", "tar", "bzip2"] {
        let path = source.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho run >{mark}/{name}\n")).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let programs = tar(source.path(), &["-cf", "-", "."], b"");
    assert_eq!(put(&stack, "evil", "/bin", &programs).status, 200);
    stack.start_container("evil");
    ready(&stack, "evil");
    for pack in ["-cz", "-cJ"] {
        assert_eq!(put(&stack, "evil", "/etc", &tar(source.path(), &[pack, "tar"], b"")).status, 200);
        assert_eq!(get(&stack, "evil", "/etc/").status, 200);
    }
    assert_eq!(std::fs::read_dir(marks.path()).unwrap().count(), 0);
}

/// A client that goes away in the middle, and one that is slow, hold nothing up and leave nothing open.
#[test]
fn bounded_and_nothing_stays_open() {
    let Some(stack) = Stack::start() else { return };
    stack
        .create("?name=box", &sh("busybox dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null; echo ready; sleep 1000"));
    stack.start_container("box");
    ready(&stack, "box");
    let descriptors = || stack.engine_descriptors();
    // Warm: threads and pools are there.
    assert!(get(&stack, "box", "/big").body.len() > 64 << 20);
    let before = descriptors();
    for round in 0..6 {
        let (head, mut stream) = stack.begin("GET", "/containers/box/archive?path=/big");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut some = [0; 4096];
        stream.read_exact(&mut some).unwrap();
        if round == 3 {
            // It ends while a client is still reading; what it reads is whole nevertheless.
            assert_eq!(stack.post("/containers/box/kill", &Value::Null).status, 204);
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            assert!(rest.len() > 63 << 20, "{}", rest.len());
        }
    }
    eventually("descriptors are closed", || {
        let now = descriptors();
        if now <= before { Ok(()) } else { Err(format!("{before} before, {now} now")) }
    });
}
