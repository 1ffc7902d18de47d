//! Mounts: id maps, links, attributes, propagation, what stands in where a namespace may not mount.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use super::bundle::{Bundle, is_ours, texts};

/// A tmpfs of the host that is gone with the test.
struct HostMount(PathBuf);

impl HostMount {
    fn new(at: PathBuf, propagation: MsFlags) -> Self {
        std::fs::create_dir_all(&at).expect("folder");
        mount(Some("suite"), &at, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).expect("mount");
        let made = Self(at);
        mount(None::<&str>, &made.0, None::<&str>, propagation, None::<&str>).expect("propagation");
        made
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn map(container: u32, host: u32, size: u32) -> Value {
    json!([{"containerID": container, "hostID": host, "size": size}])
}

fn folder(bundle: &Bundle, name: &str) -> PathBuf {
    let path = bundle.path(name);
    std::fs::create_dir_all(&path).expect("folder");
    path
}

/// A file that belongs to somebody.
fn owned(path: PathBuf, id: u32) {
    std::fs::write(&path, "x").expect("file");
    std::os::unix::fs::chown(&path, Some(id), Some(id)).expect("chown");
}

/// Where a mount is in /proc/self/mountinfo: its line.
fn line<'a>(mountinfo: &'a str, at: &str) -> &'a str {
    let found = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some(at));
    found.unwrap_or_else(|| panic!("{at} is not mounted:\n{mountinfo}"))
}

/// A folder on a disk: tmpfs has id maps since Linux 6.3 only.
fn folder_on_disk() -> tempfile::TempDir {
    let program = std::env::current_exe().expect("this program");
    let dir = tempfile::tempdir_in(program.parent().expect("its folder")).expect("a folder");
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("mode");
    dir
}

fn has_no_id_maps(stderr: &str) -> bool {
    let none = stderr.contains("no id-mapped mounts");
    if none {
        println!("skipped: {stderr}");
    }
    none
}

#[test]
fn ids_of_a_mount_are_mapped() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: runc has it since 1.2");
    }
    let disk = folder_on_disk();
    let volume = disk.path().to_owned();
    owned(volume.join("a"), 0);
    owned(volume.join("b"), 7);
    let mut mapped = bind(&volume, "/data", &["bind", "idmap"]);
    mapped["uidMappings"] = map(0, 5000, 10);
    mapped["gidMappings"] = map(0, 6000, 10);
    let crun = bind(&volume, "/tmp", &["rbind", "ridmap=uids=0-5000-10;gids=0-6000-10"]);
    let script = "stat -c %u:%g /data/a /data/b /tmp/b /sys/kernel; echo y > /data/made";
    let bundle = bundle.shell(script).set("/mounts/-", mapped).set("/mounts/-", crun);
    // Whoever writes has to be somebody that the map knows.
    let user = json!({"uid": 5003, "gid": 6003});
    let bundle = bundle.set("/process/user", user);
    let output = bundle.run();
    let (stdout, stderr) = texts(&output);
    if has_no_id_maps(&stderr) {
        return;
    }
    assert_eq!(stdout, "5000:6000\n5007:6007\n5007:6007\n0:0", "{stderr}");
    let made = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(volume.join("made")).expect("made"));
    assert_eq!(made, 3, "what user 5003 makes belongs to 3 on disk");
}

#[test]
fn a_mount_can_have_the_id_map_of_the_container() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: runc has it since 1.2");
    }
    let disk = folder_on_disk();
    let volume = disk.path().to_owned();
    owned(volume.join("mine"), 0);
    let bundle = bundle
        .shell("stat -c %u /data/mine /tmp/mine; touch /data/made")
        .set("/linux/namespaces/-", json!({"type": "user"}))
        .set("/linux/uidMappings", map(0, 100_000, 1000))
        .set("/linux/gidMappings", map(0, 100_000, 1000))
        .set("/mounts/-", bind(&volume, "/data", &["bind", "idmap"]))
        .set("/mounts/-", bind(&volume, "/tmp", &["bind"]));
    let output = bundle.run();
    let (stdout, stderr) = texts(&output);
    if has_no_id_maps(&stderr) {
        return;
    }
    assert_eq!(stdout, "0\n65534", "mapped, and not mapped: {stderr}");
    let made = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(volume.join("made")).expect("made"));
    assert_eq!(made, 0);

    // The same in a namespace that is joined.
    let holder = bundle.shell("sleep 1000");
    holder.start();
    let Some(second) = Bundle::new() else { return };
    let user = format!("/proc/{}/ns/user", holder.pid());
    let second = second
        .shell("stat -c %u /data/mine")
        .set("/linux/namespaces/-", json!({"type": "user", "path": user}))
        .set("/mounts/-", bind(&volume, "/data", &["bind", "idmap"]));
    assert_eq!(second.run_ok(), "0");
}

#[test]
fn a_file_system_without_id_maps_is_said_to_be_one() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let mut mapped = bind(Path::new("/proc"), "/data", &["bind", "idmap"]);
    mapped["uidMappings"] = map(0, 5000, 10);
    mapped["gidMappings"] = map(0, 5000, 10);
    let error = bundle.set("/mounts/-", mapped).run_fails();
    assert!(error.contains("map the ids of /proc") && error.contains("no id-mapped mounts"), "{error}");
}

#[test]
fn recursive_attributes_reach_what_is_mounted_below() {
    let Some(bundle) = Bundle::new() else { return };
    let volume = folder(&bundle, "volume");
    let _below = HostMount::new(volume.join("below"), MsFlags::MS_PRIVATE);
    let bundle = bundle
        .shell("cat /proc/self/mountinfo; touch /data/below/x 2>&1; touch /tmp/below/x && echo written")
        .set("/mounts/-", bind(&volume, "/data", &["rbind", "rro", "rnosuid", "rnodev", "rnoexec", "rnoatime"]))
        .set("/mounts/-", bind(&volume, "/tmp", &["rbind", "ro"]));
    let text = bundle.run_ok();
    for at in ["/data", "/data/below"] {
        let options = line(&text, at).split(' ').nth(5).expect("options");
        assert_eq!(options, "ro,nosuid,nodev,noexec,noatime", "{at}");
    }
    assert!(line(&text, "/tmp").contains(" ro,") && line(&text, "/tmp/below").contains(" rw,"), "{text}");
    assert!(text.contains("Read-only file system") && text.ends_with("written"), "{text}");
}

#[test]
fn read_only_paths_take_what_is_mounted_below_along() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: runc leaves what is mounted below writable");
    }
    let volume = folder(&bundle, "volume");
    let _below = HostMount::new(volume.join("below"), MsFlags::MS_PRIVATE);
    let bundle = bundle
        .shell("touch /data/below/x 2>&1; touch /data/x 2>&1; true")
        .set("/mounts/-", bind(&volume, "/data", &["rbind"]))
        .set("/linux/readonlyPaths", json!(["/data"]));
    assert_eq!(bundle.run_ok().matches("Read-only file system").count(), 2);
}

#[test]
fn masked_directories_are_empty_and_read_only() {
    let Some(bundle) = Bundle::new() else { return };
    std::fs::write(bundle.rootfs("data/x"), "x").expect("file");
    let bundle = bundle
        .shell("ls /data /tmp; touch /data/y 2>&1; grep -E ' /(data|tmp) ' /proc/self/mountinfo")
        .set("/linux/maskedPaths", json!(["/data", "/tmp"]));
    let text = bundle.run_ok();
    assert!(text.contains("Read-only file system") && !text.contains("\nx"), "{text}");
    if is_ours() {
        let number = |at| line(&text, at).split(' ').nth(2).expect("device").to_owned();
        assert_eq!(number("/data"), number("/tmp"), "they share one file system");
    }
}

/// What /proc/self/mountinfo says about the propagation of a mount.
fn propagation(line: &str) -> String {
    let fields = line.split(' ').skip(6).take_while(|field| *field != "-");
    let words: Vec<_> = fields.map(|field| field.split(':').next().expect("a word")).collect();
    words.join(" ")
}

#[test]
fn mounts_propagate_as_told() {
    let Some(bundle) = Bundle::new() else { return };
    let volume = HostMount::new(bundle.path("volume"), MsFlags::MS_SHARED);
    let cases = [
        ("/m/private", "rprivate", ""),
        ("/m/shared", "rshared", "shared master"),
        ("/m/slave", "rslave", "master"),
        ("/m/unbindable", "runbindable", "unbindable"),
        ("/m/one", "shared", "shared master"),
        ("/m/none", "unbindable", "unbindable"),
    ];
    let mut bundle = bundle.shell("sleep 1000");
    for (at, word, _) in cases {
        bundle = bundle.set("/mounts/-", bind(&volume.0, at, &["rbind", word]));
    }
    bundle.start();
    let read = || bundle.ok(&["exec", &bundle.id, "cat", "/proc/self/mountinfo"]);
    let text = read();
    for (at, word, expected) in cases {
        assert_eq!(propagation(line(&text, at)), expected, "{word}: {text}");
    }
    // What the host mounts later comes in where it is to.
    let _late = HostMount::new(volume.0.join("late"), MsFlags::MS_PRIVATE);
    let text = read();
    let comes = |at: &str| text.lines().any(|line| line.split(' ').nth(4) == Some(&format!("{at}/late")));
    assert!(comes("/m/slave") && comes("/m/shared"), "{text}");
    assert!(!comes("/m/private") && !comes("/m/unbindable"), "{text}");
}

#[test]
fn what_a_container_mounts_gets_out_only_through_a_shared_root() {
    for (root, gets_out) in [("rslave", false), ("rshared", true)] {
        let Some(bundle) = Bundle::new() else { return };
        let volume = HostMount::new(bundle.path("volume"), MsFlags::MS_SHARED);
        let caps = json!(["CAP_SYS_ADMIN"]);
        let bundle = bundle
            .shell("mkdir -p /data/in && mount -t tmpfs suite /data/in && echo mounted")
            .set("/mounts/-", bind(&volume.0, "/data", &["rbind", "rshared"]))
            .set("/linux/rootfsPropagation", json!(root))
            .set("/process/capabilities", json!({"bounding": caps, "effective": caps, "permitted": caps}));
        assert_eq!(bundle.run_ok(), "mounted");
        let inside = volume.0.join("in");
        let out = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let out = out.lines().any(|line| line.split(' ').nth(4) == inside.to_str());
        if out {
            let _ = umount2(&inside, MntFlags::MNT_DETACH);
        }
        assert_eq!(out, gets_out, "{root}");
    }
}

#[test]
fn the_root_propagates_as_told() {
    for (word, expected) in
        [("rprivate", ""), ("private", ""), ("rshared", "shared"), ("shared", "shared"), ("unbindable", "unbindable")]
    {
        let Some(bundle) = Bundle::new() else { return };
        if !is_ours() && !expected.is_empty() {
            println!("skipped: {word}, right in runc since 1.3.1");
            continue;
        }
        let bundle = bundle.shell("cat /proc/self/mountinfo").set("/linux/rootfsPropagation", json!(word));
        let text = bundle.run_ok();
        // It may be a slave of the host's besides, where that is shared.
        let found = propagation(line(&text, "/")).replace("shared master", "shared");
        assert_eq!(found, expected, "{word}: {text}");
    }
}

#[test]
fn links_at_either_end_of_a_bind() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: options of crun");
    }
    let volume = folder(&bundle, "volume");
    std::fs::write(volume.join("target"), "followed").expect("file");
    symlink("target", volume.join("link")).expect("link");
    symlink("/etc/secret", bundle.rootfs("data/end")).expect("link");
    let link = volume.join("link");
    let script = "readlink /etc/copied; cat /etc/plain; readlink /etc/itself; cat /data/end; cat /etc/secret";
    let bundle = bundle
        .shell(script)
        .set("/mounts/-", bind(&link, "/etc/copied", &["bind", "copy-symlink"]))
        .set("/mounts/-", bind(&volume.join("target"), "/etc/plain", &["bind", "copy-symlink"]))
        .set("/mounts/-", bind(&link, "/etc/itself", &["bind", "src-nofollow", "dest-nofollow"]))
        .set("/mounts/-", bind(&volume.join("target"), "/data/end", &["bind", "dest-nofollow"]));
    assert_eq!(bundle.run_ok(), "target\nfollowedtarget\nfollowedsecret");
    // A second time the copied link is there already, and right.
    assert!(bundle.run().status.success());
    std::fs::remove_file(bundle.rootfs("etc/copied")).expect("remove");
    symlink("elsewhere", bundle.rootfs("etc/copied")).expect("link");
    let error = bundle.run_fails();
    assert!(error.contains("make link /etc/copied to target: something else is there"), "{error}");
}

#[test]
fn a_destination_that_is_a_link_is_followed_inside() {
    let Some(bundle) = Bundle::new() else { return };
    let volume = folder(&bundle, "volume");
    std::fs::write(volume.join("file"), "bound").expect("file");
    symlink("/etc/secret", bundle.rootfs("data/end")).expect("link");
    let bundle = bundle.shell("cat /etc/secret").set("/mounts/-", bind(&volume.join("file"), "/data/end", &["bind"]));
    assert_eq!(bundle.run_ok(), "bound");
}

#[test]
fn flags_of_a_file_system_are_set_on_it() {
    let Some(bundle) = Bundle::new() else { return };
    let options: &[&str] = if is_ours() { &["sync", "dirsync", "lazytime"] } else { &["sync", "dirsync"] };
    let mount = json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": options});
    let text = bundle.shell("cat /proc/self/mountinfo").set("/mounts/-", mount).run_ok();
    let flags: Vec<_> = line(&text, "/data").rsplit(' ').next().expect("options").split(',').collect();
    for option in options {
        assert!(flags.contains(option), "{option}: {flags:?}");
    }
}

#[test]
fn what_a_bind_cannot_have_is_said() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: the others say nothing");
    }
    let volume = folder(&bundle, "volume");
    let bundle = bundle.set("/mounts/-", bind(&volume, "/data", &["bind", "sync", "nomand", "size=1m"]));
    let output = bundle.run();
    let (_, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    let number = bundle.config["mounts"].as_array().expect("mounts").len() - 1;
    assert!(stderr.contains(&format!("mounts[{number}].options")) && stderr.contains("sync"), "{stderr}");
    assert!(stderr.contains("size") && !stderr.contains("nomand"), "{stderr}");
}

#[test]
fn a_mount_can_be_changed_by_a_later_one() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: runc looks for the source of a remount");
    }
    let mount =
        |options: &[&str]| json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": options});
    let bundle = bundle
        .shell("cat /proc/self/mountinfo; touch /data/x 2>&1; true")
        .set("/mounts/-", mount(&["size=64k"]))
        .set("/mounts/-", mount(&["remount", "ro", "nosuid", "size=128k"]));
    let text = bundle.run_ok();
    let line = line(&text, "/data");
    assert!(line.contains(" ro,nosuid") && line.contains("size=128k"), "{line}");
    assert_eq!(text.matches(" /data ").count(), 1, "{text}");
    let error = bundle.set("/mounts/-", json!({"destination": "/etc", "options": ["remount", "ro"]})).run_fails();
    assert!(error.contains("remount /etc"), "{error}");
}

#[test]
fn a_missing_source_is_named() {
    let Some(bundle) = Bundle::new() else { return };
    let number = bundle.config["mounts"].as_array().expect("mounts").len();
    let error = bundle.set("/mounts/-", bind(Path::new("/no/such"), "/data", &["rbind"])).run_fails();
    assert!(error.contains("/no/such"), "{error}");
    assert!(!is_ours() || error.contains(&format!("mounts[{number}].source /no/such: ENOENT")), "{error}");
}

#[test]
fn an_unbindable_source_is_named() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: runc makes everything bindable first");
    }
    let volume = HostMount::new(bundle.path("volume"), MsFlags::MS_UNBINDABLE);
    let number = bundle.config["mounts"].as_array().expect("mounts").len();
    let error = bundle.set("/mounts/-", bind(&volume.0, "/data", &["bind"])).run_fails();
    assert!(error.contains(&format!("mounts[{number}].source")) && error.contains("it is unbindable"), "{error}");
}

#[test]
fn destinations_are_made_and_may_be_relative() {
    let Some(bundle) = Bundle::new() else { return };
    let volume = folder(&bundle, "volume");
    std::fs::write(volume.join("file"), "bound").expect("file");
    let bundle = bundle
        .shell("cat /new/deep/file; ls /other/folder; touch /x 2>&1")
        .set("/root/readonly", json!(true))
        .set("/mounts/-", bind(&volume.join("file"), "/new/deep/file", &["bind"]))
        .set("/mounts/-", bind(&volume, "other/folder", &["bind"]));
    let (stdout, _) = texts(&bundle.run());
    assert!(stdout.starts_with("boundfile\n") && stdout.contains("Read-only file system"), "{stdout}");
}

#[test]
fn a_relative_source_is_below_the_bundle() {
    let Some(bundle) = Bundle::new() else { return };
    let volume = folder(&bundle, "bundle/volume");
    std::fs::write(volume.join("file"), "bound").expect("file");
    let bundle = bundle.shell("cat /data/file").set("/mounts/-", bind(Path::new("volume"), "/data", &["bind"]));
    assert_eq!(bundle.run_ok(), "bound");
}

#[test]
fn layers_may_be_many() {
    // The first are short; what is longer than 255 bytes has to be told the kernel layer by layer (Linux 6.5).
    for (count, name) in [(2, "l"), (12, "a-layer-with-a-rather-long-name")] {
        let Some(bundle) = Bundle::new() else { return };
        let layers: Vec<_> = (0..count).map(|number| folder(&bundle, &format!("{name}{number}"))).collect();
        for (number, layer) in layers.iter().enumerate() {
            std::fs::write(layer.join(format!("file{number}")), "x").expect("file");
        }
        let layers: Vec<_> = layers.iter().map(|layer| layer.display().to_string()).collect();
        let options = [format!("lowerdir={}", layers.join(":")), "ro".to_owned()];
        let mount = json!({"destination": "/data", "type": "overlay", "source": "overlay", "options": options});
        let output = bundle.shell("ls /data").set("/mounts/-", mount).run();
        let (stdout, stderr) = texts(&output);
        if count > 2 && !output.status.success() && stderr.contains("lowerdir") {
            println!("skipped: this kernel takes no long list of layers: {stderr}");
            continue;
        }
        assert_eq!(stdout.lines().count(), count, "{stderr}");
    }
}

#[test]
fn a_mount_label_needs_selinux() {
    let Some(bundle) = Bundle::new() else { return };
    if Path::new("/sys/fs/selinux/enforce").exists() {
        return println!("skipped: SELinux is on");
    }
    let error = bundle.set("/linux/mountLabel", json!("system_u:object_r:container_file_t:s0:c1,c2")).run_fails();
    assert!(!is_ours() || error.contains("linux.mountLabel: SELinux is not enabled"), "{error}");
}

/// Root maps a thousand ids.
fn in_user_namespace(bundle: Bundle, network: bool) -> Bundle {
    let kinds = ["pid", "ipc", "uts", "mount", "user"].into_iter().chain(network.then_some("network"));
    let namespaces: Vec<_> = kinds.map(|kind| json!({"type": kind})).collect();
    bundle
        .set("/linux/namespaces", json!(namespaces))
        .set("/linux/uidMappings", map(0, 100_000, 1000))
        .set("/linux/gidMappings", map(0, 100_000, 1000))
}

#[test]
fn sysfs_of_somebody_elses_network_is_bound() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return println!("skipped: runc 1.1 fails");
    }
    let script = "ls /sys/class/net; grep -E ' /sys(/[^ ]*)? ' /proc/self/mountinfo; mkdir /sys/fs/cgroup/x 2>&1; true";
    let text = in_user_namespace(bundle, false).shell(script).run_ok();
    assert!(text.contains("lo"), "{text}");
    for line in text.lines().filter(|line| line.contains(" /sys")) {
        let options = line.split(' ').nth(5).expect("options");
        for wanted in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(options.split(',').any(|option| option == wanted), "{wanted}: {line}");
        }
    }
    assert!(!text.contains("mkdir: can't create") || text.contains("Read-only"), "{text}");
}

#[test]
fn queues_of_somebody_elses_ipc_are_bound() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() || !Path::new("/dev/mqueue").exists() {
        return println!("skipped: needs berth-runtime and /dev/mqueue");
    }
    let queue = json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid"]});
    let namespaces = ["pid", "uts", "mount", "user", "network"].map(|kind| json!({"type": kind}));
    let bundle = in_user_namespace(bundle, true)
        .set("/linux/namespaces", json!(namespaces))
        .shell("grep ' /dev/mqueue ' /proc/self/mountinfo")
        .set("/mounts/-", queue);
    assert!(bundle.run_ok().contains(" /dev/mqueue "));
}

#[test]
fn owners_of_a_file_system_are_the_containers() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = in_user_namespace(bundle, true).shell("stat -c %g /dev/pts/ptmx; stat -c %u:%g /data").set(
        "/mounts/-",
        json!({"destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["uid=3", "gid=4", "mode=700"]}),
    );
    assert!(bundle.run_ok().ends_with("3:4"));
    let pts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["gid=5000"]});
    let error = bundle.set("/mounts/-", pts).run_fails();
    assert!(!is_ours() || error.contains("\"gid=5000\" is not in linux.gidMappings"), "{error}");
}

/// What a caller that makes the root itself passes on: nothing of it is ever in the host's table of mounts.
#[test]
fn the_root_can_be_a_detached_mount() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        return;
    }
    let bundle = bundle.shell("echo of the image; touch /written; grep -c rootfs /proc/self/mountinfo");
    bundle.write_config();
    let (rootfs, image) = (bundle.path("bundle/rootfs"), bundle.path("image"));
    std::fs::rename(&rootfs, &image).expect("rename");
    std::fs::create_dir(&rootfs).expect("folder");
    let by_descriptor = |number: i32| {
        let (folder, number) = (bundle.path("bundle"), number.to_string());
        let arguments = ["run", "--rootfs-fd", &number, "--bundle", folder.to_str().expect("text"), &bundle.id];
        texts(&bundle.command(&arguments).output().expect("runs"))
    };
    let root = sys::mount::clone_tree(nix::fcntl::AT_FDCWD, &image, sys::mount::Reach::One).expect("a detached copy");
    let number = root.as_raw_fd();
    sys::fd::set_cloexec(number, false).expect("inherited");
    let (said, error) = by_descriptor(number);
    assert_eq!(said.lines().next(), Some("of the image"), "{said} {error}");
    assert!(image.join("written").exists() && !rootfs.join("written").exists());
    // It was moved, and went with the container: there is nothing left to move.
    assert!(by_descriptor(number).1.contains("rootfs"), "a root that is used up is refused");
    drop(root);
    for (number, refusal) in [(0, "descriptor 0"), (1000, "descriptor 1000"), (70_000, "not a number in range")] {
        let error = by_descriptor(number).1;
        assert!(error.contains(refusal), "{number}: {error}");
    }
    // A descriptor of something else.
    let file = std::fs::File::open("/etc/hostname").expect("a file");
    sys::fd::set_cloexec(file.as_raw_fd(), false).expect("inherited");
    let error = by_descriptor(file.as_raw_fd()).1;
    assert!(error.contains("rootfs") && error.contains("Not a directory"), "{error}");
    bundle.assert_nothing_left();
}
