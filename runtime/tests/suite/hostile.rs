//! Images and configurations that mean harm: each attack of the past has its test.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use super::bundle::{Bundle, eventually, is_ours};

/// A folder of the host with something in it, to see whether it was touched.
fn canary(bundle: &Bundle) -> std::path::PathBuf {
    let path = bundle.path("canary");
    std::fs::create_dir(&path).expect("folder");
    path
}

fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).expect("read").next().is_none()
}

#[test]
fn proc_and_sys_as_links() {
    for name in ["proc", "sys"] {
        let Some(bundle) = Bundle::new() else { return };
        let canary = canary(&bundle);
        std::fs::remove_dir(bundle.rootfs(name)).expect("remove");
        symlink(&canary, bundle.rootfs(name)).expect("link");
        bundle.run_fails();
        assert!(is_empty(&canary));
    }
}

#[test]
fn links_of_the_image_stay_inside() {
    let Some(bundle) = Bundle::new() else { return };
    let canary = canary(&bundle);
    symlink(&canary, bundle.rootfs("escape")).expect("link");
    symlink("../../../../../../../../", bundle.rootfs("up")).expect("link");
    std::fs::remove_dir(bundle.rootfs("dev")).expect("remove");
    symlink(&canary, bundle.rootfs("dev")).expect("link");
    let volume = bundle.path("volume");
    std::fs::create_dir(&volume).expect("folder");
    let bundle = bundle
        .shell("true")
        .set("/mounts/-", json!({"destination": "/escape/a", "type": "bind", "source": volume, "options": ["bind"]}))
        .set("/mounts/-", json!({"destination": "/up/b", "type": "tmpfs", "source": "tmpfs"}))
        .set("/process/cwd", json!("/escape/cwd"));
    bundle.run();
    assert!(is_empty(&canary), "something was made on the host");
    assert!(!Path::new("/b").exists());
}

#[test]
fn a_null_device_that_is_none() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return; // runc 1.1.5 has this hole
    }
    std::fs::write(bundle.rootfs("dev/null"), "mine").expect("write");
    let mounts: Vec<_> = bundle.config["mounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .filter(|mount| !mount["destination"].as_str().is_some_and(|at| at.starts_with("/dev")))
        .cloned()
        .collect();
    let bundle = bundle.set("/mounts", json!(mounts)).set("/linux/maskedPaths", json!(["/etc/secret"]));
    let error = bundle.run_fails();
    assert!(error.contains("/dev/null"), "{error}");
}

#[test]
fn a_working_directory_of_the_host() {
    let Some(bundle) = Bundle::new() else { return };
    let running = Bundle::new().expect("one more").shell("sleep 1000");
    running.start();
    let mut bundle = bundle.shell("pwd; ls ../../../..");
    for number in 3..40 {
        let cwd = format!("/proc/self/fd/{number}");
        bundle = bundle.set("/process/cwd", json!(cwd));
        let output = bundle.run();
        assert!(!output.status.success(), "{number}: {output:?}");
        let output = running.call(&["exec", "--cwd", &cwd, &running.id, "pwd"]);
        assert!(!output.status.success(), "{number}: {output:?}");
    }
}

#[test]
fn the_program_file_cannot_be_written_through_its_process() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    assert!(bundle.create(&[]));
    let exe = format!("/proc/{}/exe", bundle.pid());
    let error = std::fs::OpenOptions::new().write(true).open(&exe).expect_err("must not open");
    // While it runs anywhere it is busy first of all; what counts is that it stays read-only after that.
    assert!(matches!(error.raw_os_error(), Some(nix::libc::EROFS | nix::libc::ETXTBSY)), "{error}");
    let flags = nix::sys::statvfs::statvfs(exe.as_str()).expect("statvfs").flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{flags:?}");
    // The mount belongs to nobody, so nobody can make it writable.
    let file = std::fs::File::open(&exe).expect("read");
    let cleared = sys::mount::set_attributes(&file, sys::mount::Reach::One, 0, sys::mount::attr::RDONLY, None);
    assert_eq!(cleared, Err(sys::Errno::EINVAL));
}

#[test]
fn the_process_cannot_be_looked_into_while_it_enters() {
    let Some(bundle) = Bundle::new() else { return };
    assert!(bundle.create(&[]));
    use std::os::unix::fs::MetadataExt;
    let map = std::fs::metadata(format!("/proc/{}/mem", bundle.pid())).expect("stat");
    assert_eq!(map.uid(), 0, "an undumpable process' files are root's");
}

#[test]
fn self_exe_as_entry_point() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let program = Path::new(env!("CARGO_BIN_EXE_berth-runtime"));
    let before = std::fs::read(program).expect("read");
    // The script makes the kernel execute the runtime itself; whoever else is in the container then tries to write to it.
    std::fs::write(bundle.rootfs("data/evil"), "#!/proc/self/exe\n").expect("write");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(bundle.rootfs("data/evil"), std::fs::Permissions::from_mode(0o755)).expect("mode");
    let bundle =
        bundle.shell("while :; do for p in /proc/[0-9]*; do echo overwritten 2>/dev/null > $p/exe; done; done");
    bundle.start();
    for _ in 0..20 {
        bundle.call(&["exec", &bundle.id, "/data/evil"]);
    }
    assert!(before == std::fs::read(program).expect("read"), "the runtime was overwritten");
}

#[test]
fn a_mount_over_proc_is_refused() {
    for (kind, destination) in
        [("tmpfs", "/proc"), ("tmpfs", "/proc/sys"), ("bind", "/proc/self/attr"), ("bind", "/proc")]
    {
        let Some(bundle) = Bundle::new() else { return };
        let mount = json!({"destination": destination, "type": kind, "source": "/tmp", "options": ["rbind"]});
        let mount =
            if kind == "bind" { mount } else { json!({"destination": destination, "type": kind, "source": kind}) };
        bundle.set("/mounts/-", mount).run_fails();
    }
}

#[test]
fn sysctls_of_the_host_are_refused() {
    for key in ["kernel.core_pattern", "kernel.panic", "vm.swappiness", "net.../../kernel/panic"] {
        let Some(bundle) = Bundle::new() else { return };
        bundle.set("/linux/sysctl", json!({key: "1"})).run_fails();
    }
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle
        .set("/linux/namespaces", json!([{"type": "mount"}, {"type": "uts"}]))
        .set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    bundle.run_fails();
}

#[test]
fn a_shared_volume_that_changes_underneath() {
    let Some(bundle) = Bundle::new() else { return };
    let canary = canary(&bundle);
    let shared = bundle.path("shared");
    std::fs::create_dir_all(shared.join("dst")).expect("folder");
    symlink(&canary, shared.join("link")).expect("link");
    let bundle = bundle
        .set("/mounts/-", json!({"destination": "/shared", "type": "bind", "source": shared, "options": ["rbind"]}))
        .set("/mounts/-", json!({"destination": "/shared/dst/deep/er", "type": "tmpfs", "source": "tmpfs"}));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let swap = {
        let (stop, shared) = (stop.clone(), shared.clone());
        std::thread::spawn(move || {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                let at = nix::fcntl::AT_FDCWD;
                let _ = nix::fcntl::renameat2(at, &shared.join("dst"), at, &shared.join("link"), flags);
            }
        })
    };
    for _ in 0..100 {
        bundle.run(); // it may fail; it must not reach the host
        assert!(is_empty(&canary), "something was made on the host");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    swap.join().expect("thread");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(canary.to_str().expect("utf-8")));
    eventually("gone", || !bundle.path("state").join(&bundle.id).exists());
}
