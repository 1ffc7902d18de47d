//! CVE-2024-21626 ("Leaky Vessels"): descriptors of the host, and paths that lead through them.

use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::json;

use super::host::Host;
use crate::bundle::{Bundle, texts};

const NUMBERS: std::ops::Range<i32> = 3..64;

/// A working directory that is one of the runtime's descriptors.
#[test]
fn cve_2024_21626_a_working_directory_of_the_host() {
    let (Some(running), Some(mut host)) = (Bundle::new(), Host::of_ours()) else { return };
    let running = running.shell("sleep 1000");
    running.start();
    host = host.with(|bundle| bundle.shell("pwd; ls ../../../.."));
    for (index, number) in NUMBERS.enumerate() {
        let form = ["/proc/self/fd/", "/proc/1/fd/", "/proc/thread-self/fd/", "/data/link"][index % 4];
        let cwd = if form == "/data/link" {
            let link = format!("link{number}");
            for bundle in [&host.bundle, &running] {
                symlink(format!("/proc/self/fd/{number}"), bundle.rootfs("data").join(&link)).expect("link");
            }
            format!("/data/{link}")
        } else {
            format!("{form}{number}")
        };
        for cwd in [cwd.clone(), format!("{cwd}/../../..")] {
            // A `..` behind the link is taken as text or stays below the root; what must not be is the host.
            host = host.with(|bundle| bundle.set("/process/cwd", json!(cwd)));
            let output = host.attempt(&cwd);
            assert!(output.is_none(), "{cwd}: {output:?}");
            let output = running.call(&["exec", "--cwd", &cwd, &running.id, "pwd"]);
            assert!(!output.status.success(), "{cwd}: {output:?}");
        }
    }
}

/// A program, an interpreter, a link, a folder of PATH that leads through one of them: the host's own programs would run.
#[test]
fn cve_2024_21626_a_program_of_the_host() {
    let (Some(running), Some(mut host)) = (Bundle::new(), Host::of_ours()) else { return };
    // Only the host has it.
    let program = host.canary("../outside");
    std::fs::copy("/bin/busybox", &program).expect("busybox");
    let running = running.shell("sleep 1000");
    running.start();
    for number in NUMBERS {
        for up in ["", "/../../..", "/../../../..", "/../../../../.."] {
            let path = format!("/proc/self/fd/{number}{up}{}", program.display());
            let mut variants = vec![(vec![path.clone(), "true".to_owned()], "PATH=/bin".to_owned())];
            if up == "/../../../.." {
                for rootfs in [host.bundle.rootfs("data"), running.rootfs("data")] {
                    std::fs::write(rootfs.join("script"), format!("#!{path} true\n")).expect("script");
                    std::fs::set_permissions(rootfs.join("script"), std::fs::Permissions::from_mode(0o755))
                        .expect("mode");
                    let _ = std::fs::remove_file(rootfs.join("link"));
                    symlink(&path, rootfs.join("link")).expect("link");
                }
                variants.push((vec!["/data/script".to_owned()], "PATH=/bin".to_owned()));
                variants.push((vec!["/data/link".to_owned(), "true".to_owned()], "PATH=/bin".to_owned()));
                let folder = path.trim_end_matches("/outside").to_owned();
                variants.push((vec!["outside".to_owned(), "true".to_owned()], format!("PATH={folder}")));
            }
            for (args, path) in variants {
                host = host.with(|bundle| bundle.set("/process/args", json!(args)).set("/process/env", json!([path])));
                assert_eq!(host.attempt(&format!("{args:?} {path}")), None, "{args:?} {path}: ran");
                let words: Vec<&str> = args.iter().map(String::as_str).collect();
                let output = running.call(&[&["exec", "--env", &path, &running.id], &words[..]].concat());
                assert!(!output.status.success(), "{args:?} {path}: {output:?}");
            }
        }
    }
}

/// What a process of the container, and every kind of hook, has open.
#[test]
fn cve_2024_21626_only_stdio_is_open() {
    let Some(host) = Host::of_ours() else { return };
    // The caller leaks: a folder of the host, inherited by everything that is executed.
    let leaked = std::fs::File::open("/").expect("open");
    let leaked = sys::fd::duplicate_above(&leaked, 50).expect("a copy");
    sys::fd::set_cloexec(leaked.as_raw_fd(), false).expect("inherited");
    let list = "for f in /proc/self/fd/*; do echo $f; done";
    let hook = |name: &str, inside: bool| {
        let at =
            if inside { format!("/data/{name}") } else { host.bundle.rootfs("data").join(name).display().to_string() };
        json!([{"path": "/bin/busybox", "args": ["sh", "-c", format!("{list} >{at}")]}])
    };
    let hooks = json!({
        "prestart": hook("prestart", false), "createRuntime": hook("createRuntime", false),
        "createContainer": hook("createContainer", false), "startContainer": hook("startContainer", true),
        "poststart": hook("poststart", false), "poststop": hook("poststop", false),
    });
    let kinds: Vec<String> = hooks.as_object().expect("object").keys().cloned().collect();
    let host = host.with(|bundle| {
        bundle.shell(&format!("{list}; sleep 1000 >/dev/null 2>&1 & {list} >/data/own; wait")).set("/hooks", hooks)
    });
    let bundle = &host.bundle;
    bundle.start();
    crate::bundle::eventually("the process has looked", || bundle.rootfs("data/own").exists());
    // The shell's own: a redirection may park stdout at 10 or above, and the glob reads the folder.
    let check = |what: &str, text: &str| {
        let numbers: Vec<i32> = text.lines().filter_map(|line| line.rsplit('/').next()?.parse().ok()).collect();
        assert!(numbers.starts_with(&[0, 1]) || numbers.contains(&0), "{what}: {text}");
        assert!(numbers.iter().all(|number| (0..=3).contains(number) || (10..=11).contains(number)), "{what}: {text}");
        assert!(!numbers.contains(&leaked.as_raw_fd()), "{what}: {text}");
    };
    check("exec", &bundle.ok(&["exec", &bundle.id, "sh", "-c", list]));
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    bundle.wait_for("stopped");
    check("process", &std::fs::read_to_string(bundle.rootfs("data/own")).expect("own"));
    bundle.ok(&["delete", &bundle.id]);
    for kind in kinds {
        check(&kind, &std::fs::read_to_string(bundle.rootfs("data").join(&kind)).expect(&kind));
    }
}

/// A created container waits with nothing open but sockets: no folder, no file of the host, whoever may look.
#[test]
fn cve_2024_21626_a_waiting_container_holds_nothing_of_the_host() {
    let Some(host) = Host::of_ours() else { return };
    let bundle = &host.bundle;
    assert!(bundle.create(&[]));
    for entry in std::fs::read_dir(format!("/proc/{}/fd", bundle.pid())).expect("descriptors").flatten() {
        let target = std::fs::read_link(entry.path()).expect("a link");
        let is_stdio = matches!(entry.file_name().to_str(), Some("0" | "1" | "2"));
        assert!(is_stdio || target.to_string_lossy().starts_with("socket:"), "{:?} -> {target:?}", entry.file_name());
    }
}

/// What is asked for is passed on, and nothing else.
#[test]
fn cve_2024_21626_preserved_descriptors_are_exact() {
    let Some(host) = Host::new() else { return };
    let host = host.with(|bundle| bundle.shell("for f in /proc/self/fd/*; do echo ${f##*/} $(readlink $f); done"));
    let bundle = &host.bundle;
    bundle.write_config();
    let folder = bundle.path("bundle");
    let runtime = bundle.command(&[]).get_program().to_owned();
    let state = bundle.path("state");
    let output = std::process::Command::new("/bin/sh")
        .arg("-c")
        .arg("exec 3</etc/hostname 4</etc/passwd 5</ 6</; exec \"$0\" --root \"$1\" run --preserve-fds 2 --bundle \"$2\" \"$3\"")
        .args([runtime.as_os_str(), state.as_os_str(), folder.as_os_str(), bundle.id.as_ref()])
        .output()
        .expect("runs");
    let (stdout, stderr) = texts(&output);
    assert!(stdout.contains("3 /etc/hostname") || stdout.contains("3 /"), "{stdout} {stderr}");
    let numbers: Vec<i32> = stdout.lines().filter_map(|line| line.split(' ').next()?.parse().ok()).collect();
    assert!(numbers.contains(&3) && numbers.contains(&4), "{stdout} {stderr}");
    assert!(!numbers.contains(&6) && !stdout.contains("5 /\n"), "{stdout}");
}
