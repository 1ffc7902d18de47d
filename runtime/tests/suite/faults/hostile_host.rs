//! Commands at the same time about the same container, and a host that has nothing left to give.

use std::process::Command;

use super::super::bundle::{Bundle, eventually, is_ours, texts};
use super::quiet;

fn create(bundle: &Bundle) -> Command {
    let folder = bundle.path("bundle").display().to_string();
    quiet(bundle.command(&["create", "--bundle", &folder, &bundle.id]))
}

#[test]
fn of_many_creates_one_wins() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    bundle.write_config();
    for _ in 0..10 {
        let calls: Vec<_> = (0..4).map(|_| create(&bundle).spawn().expect("spawn")).collect();
        let won = calls.into_iter().filter_map(|mut call| call.wait().expect("wait").success().then_some(())).count();
        assert_eq!(won, 1, "creates that succeeded");
        assert_eq!(bundle.state()["status"], "created");
        bundle.ok(&["start", &bundle.id]);
        bundle.ok(&["delete", "--force", &bundle.id]);
        bundle.assert_nothing_left();
    }
}

#[test]
fn of_many_starts_one_wins() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    for _ in 0..10 {
        assert!(bundle.create(&[]));
        let calls: Vec<_> =
            (0..4).map(|_| quiet(bundle.command(&["start", &bundle.id])).spawn().expect("spawn")).collect();
        let won = calls.into_iter().filter_map(|mut call| call.wait().expect("wait").success().then_some(())).count();
        assert_eq!(won, 1, "starts that succeeded");
        assert_eq!(bundle.state()["status"], "running");
        bundle.ok(&["delete", "--force", &bundle.id]);
    }
}

#[test]
fn create_and_delete_at_the_same_time() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        println!("skipped: peers leave cgroups");
        return;
    }
    bundle.write_config();
    for round in 0..40_u64 {
        let mut call = create(&bundle).spawn().expect("spawn");
        std::thread::sleep(std::time::Duration::from_micros(round * 250));
        bundle.ok(&["delete", "--force", &bundle.id]);
        let success = call.wait().expect("wait").success();
        // Deleted before it was there, or after: never half of it.
        let state = bundle.call(&["state", &bundle.id]);
        assert!(success || !state.status.success(), "a create that failed left {state:?}");
        if state.status.success() {
            assert_eq!(bundle.state()["status"], "created");
        }
        bundle.ok(&["delete", "--force", &bundle.id]);
        bundle.assert_nothing_left();
    }
}

/// A caller that loses its patience: deleted and created again while the first create is still at it.
#[test]
fn created_again_while_the_first_is_still_at_it() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        println!("skipped: peers leave cgroups");
        return;
    }
    bundle.write_config();
    for round in 0..40_u64 {
        let mut first = create(&bundle).spawn().expect("spawn");
        std::thread::sleep(std::time::Duration::from_micros(round * 150));
        bundle.ok(&["delete", "--force", &bundle.id]);
        let second = create(&bundle).status().expect("create").success();
        let first = first.wait().expect("wait").success();
        let state = bundle.call(&["state", &bundle.id]);
        assert!(state.status.success() || first || !second, "round {round}: {first} {second} {state:?}");
        if second {
            assert_eq!(bundle.state()["status"], "created", "round {round}: the second lost its container");
        }
        bundle.ok(&["delete", "--force", &bundle.id]);
        bundle.assert_nothing_left();
    }
}

#[test]
fn many_deletes_at_the_same_time() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("sleep 1000");
    for _ in 0..10 {
        bundle.start();
        let call = || quiet(bundle.command(&["delete", "--force", &bundle.id])).spawn().expect("spawn");
        let calls: Vec<_> = (0..4).map(|_| call()).collect();
        for mut call in calls {
            assert!(call.wait().expect("wait").success() || !is_ours(), "a delete failed");
        }
        eventually("all is gone", || !bundle.path("state").join(&bundle.id).exists());
        bundle.assert_nothing_left();
    }
}

/// Every number of descriptors from too few to enough: it works, or fails with a reason and without a trace.
#[test]
fn few_descriptors() {
    refused_cleanly("ulimit -n", &(3..40).collect::<Vec<_>>());
}

/// Files that may not grow: state.json is cut off in the middle.
#[test]
fn a_limit_on_the_size_of_files() {
    refused_cleanly("ulimit -f", &[0]);
}

/// Little address space: memory that is not there at any of many places.
#[test]
fn little_memory() {
    let sizes: Vec<u32> = (400..8000).step_by(400).collect();
    refused_cleanly("ulimit -v", &sizes);
}

fn refused_cleanly(limit: &str, values: &[u32]) {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        println!("skipped: peers need more, and do not promise it");
        return;
    }
    bundle.write_config();
    let mut failed = 0;
    for value in values {
        let call = create(&bundle);
        // Whoever is killed by SIGXFSZ cannot clean up; that it is ignored is the shell's doing.
        let script = format!("trap '' XFSZ; {limit} {value} && exec \"$0\" \"$@\"");
        let mut limited = Command::new("/bin/sh");
        limited.args(["-c", &script]).arg(call.get_program()).args(call.get_args());
        let log = bundle.path("stderr");
        limited.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&log).expect("a log"));
        let status = limited.status().expect("sh");
        // Shown if the test fails: which of the values it was.
        println!("{limit} {value}: {status}: {}", std::fs::read_to_string(&log).unwrap_or_default().trim());
        if status.success() {
            assert_eq!(bundle.state()["status"], "created", "{limit} {value}");
            bundle.ok(&["delete", "--force", &bundle.id]);
        } else if status.code().is_some_and(|code| code == 1) {
            failed += 1;
            let stderr = std::fs::read_to_string(&log).expect("a log");
            // Where not even a log line can be written, the code has to do.
            assert!(limit == "ulimit -f" || !stderr.trim().is_empty(), "{limit} {value}: no reason");
            assert!(!stderr.contains("panicked"), "{limit} {value}: {stderr}");
        }
        // Without memory it may be ended at any place, as by a kill.
        if status.code() != Some(1) {
            bundle.ok(&["delete", "--force", &bundle.id]);
        }
        bundle.assert_nothing_left();
    }
    assert!(failed > 0 || limit == "ulimit -v", "nothing was refused");
}

/// A full file system under the state folder.
#[test]
fn no_space_for_state() {
    let Some(bundle) = Bundle::new() else { return };
    let state = bundle.path("state");
    std::fs::create_dir(&state).expect("folder");
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    for (size, filler) in [("4k", 0), ("8k", 0), ("16k", 4096), ("16k", 8192), ("16k", 12288)] {
        let none: Option<&str> = None;
        let options = format!("size={size},nr_inodes=20");
        nix::mount::mount(none, &state, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))
            .expect("mount");
        let _mounted = Mounted(state.clone());
        if filler > 0 {
            std::fs::write(state.join("filler"), vec![0; filler]).expect("room for the filler");
        }
        let call = bundle.path("bundle").display().to_string();
        bundle.write_config();
        let mut command = bundle.command(&["create", "--bundle", &call, &bundle.id]);
        let log = bundle.path("stderr");
        command.stdout(std::process::Stdio::null()).stderr(std::fs::File::create(&log).expect("a log"));
        if command.status().expect("create").success() {
            bundle.ok(&["delete", "--force", &bundle.id]);
        } else {
            let stderr = std::fs::read_to_string(&log).expect("a log");
            assert!(stderr.to_lowercase().contains("no space") || stderr.contains("ENOSPC"), "{size}: {stderr}");
            let left = bundle.call(&["state", &bundle.id]);
            assert!(!left.status.success(), "{size}: {:?}", texts(&left));
        }
        assert!(!state.join(&bundle.id).exists(), "{size}: state is left");
    }
}
