//! The data root goes bad: damaged databases, blobs and snapshots, a disk that is full or read-only, too little memory.
//! A clear error or a repair, never a wrong answer.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use proto::digest::Digest;
use tonic::Code;

use crate::{
    archives::{Image, gzip, layer, noise},
    bad::Tmpfs,
    harness::{Client, Supervisor, unpacking},
    registries::Fake,
};

const NAME: &str = "docker.io/library/app:1";

/// A supervisor with an image of two layers; and the image.
async fn with_image() -> (Supervisor, Client, Image) {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", b"1")]), layer(&[("b", &noise(100_000))])], gzip);
    client.import(image.docker_archive(&["app:1"]), &unpacking()).await.0.unwrap();
    (supervisor, client, image)
}

async fn is_whole(client: &Client, image: &Image) {
    let names: Vec<_> = client.images().await.into_iter().map(|image| image.name).collect();
    assert_eq!(names, [NAME]);
    assert_eq!(client.snapshots().await.len(), 2);
    // Manifest, configuration, layers.
    let blobs = client.blobs().await;
    assert!(blobs.len() == 4 && image.layers.iter().all(|layer| blobs.contains(&Digest::of(layer).to_string())));
}

/// What `check --repair` moved aside.
fn lost(supervisor: &Supervisor) -> Vec<String> {
    fn walk(at: &Path, top: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(at).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, top, found);
            } else {
                found.push(
                    path.strip_prefix(top)
                        .unwrap()
                        .components()
                        .skip(1)
                        .map(|c| c.as_os_str().to_string_lossy().into_owned())
                        .collect::<Vec<_>>()
                        .join("/"),
                );
            }
        }
    }
    let (top, mut found) = (supervisor.path("lost"), Vec::new());
    walk(&top, &top, &mut found);
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_root_is_well_and_a_busy_one_is_left_alone() {
    let (mut supervisor, _, _) = with_image().await;
    let (well, words) = supervisor.check(&[]);
    assert!(!well && words.contains(&format!("(pid {})", supervisor.pid())), "{words}");
    supervisor.kill();
    assert_eq!(supervisor.check(&[]), (true, "all is well\n".to_owned()));
    assert_eq!(supervisor.check(&["--repair"]), (true, "all is well\n".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_truncated_database_is_refused_and_rebuilt() {
    let (mut supervisor, client, image) = with_image().await;
    let file = supervisor.path("metadata.redb");
    type Spoil = fn(&mut Vec<u8>);
    let spoil: [(&str, Spoil); 4] = [
        ("its first page", |bytes| bytes[..512].fill(0xff)),
        ("half of it", |bytes| bytes.truncate(bytes.len() / 2)),
        ("all of it", Vec::clear),
        ("pages", |bytes| {
            // Wherever the records are: every page but the first says something else.
            bytes.chunks_mut(4096).skip(1).for_each(|page| page.iter_mut().step_by(97).for_each(|byte| *byte ^= 1));
        }),
    ];
    drop(client);
    for (what, spoil) in spoil {
        supervisor.kill();
        let mut bytes = fs::read(&file).unwrap();
        spoil(&mut bytes);
        fs::write(&file, &bytes).unwrap();
        let words = supervisor.refuses_to_start();
        assert!(
            words.contains("metadata database") && words.contains("berth-supervisor check --repair"),
            "{what}: {words}"
        );
        let (well, words) = supervisor.check(&[]);
        assert!(!well && words.contains("1 found, 1 left: run \"berth-supervisor check --repair\""), "{what}: {words}");
        let (well, words) = supervisor.check(&["--repair"]);
        assert!(well && words.contains("rebuilt from its journal, all "), "{what}: {words}");
        supervisor.start_again();
        is_whole(&supervisor.client().await, &image).await;
    }
    let lost = lost(&supervisor);
    assert!(lost.iter().any(|name| name == "metadata.redb"), "{lost:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_database_and_journal_blobs_become_recovered_images() {
    let (mut supervisor, _, image) = with_image().await;
    supervisor.kill();
    for file in ["metadata.redb", "metadata.journal"] {
        fs::remove_file(supervisor.path(file)).unwrap();
    }
    // Beginning anew would sweep everything that an empty database doesn't know.
    let words = supervisor.refuses_to_start();
    assert!(words.contains("missing or empty, although there is content"), "{words}");
    let (well, words) = supervisor.check(&["--repair"]);
    assert!(well && words.contains("belongs to no snapshot"), "{words}");
    supervisor.start_again();
    let client = supervisor.client().await;
    let names: Vec<_> = client.images().await.into_iter().map(|image| image.name).collect();
    assert_eq!(names.len(), 1);
    assert!(names[0].starts_with("recovered@sha256:"), "{names:?}");
    assert_eq!(client.blobs().await.len(), 4);
    // The snapshots' files are somebody's work: kept.
    assert!(lost(&supervisor).iter().any(|name| name.ends_with("/fs/b")), "{:?}", lost(&supervisor));
    // What is there needs only its name.
    supervisor.ctr(&["-n", "berth", "images", "tag", &names[0], NAME]).unwrap();
    client.remove_image(&names[0]).await.unwrap();
    client.import(image.docker_archive(&["app:1"]), &unpacking()).await.0.unwrap();
    is_whole(&client, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_truncated_or_missing_blob_is_named_dropped_and_pulled_anew() {
    let mut supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", b"1")]), layer(&[("b", &noise(100_000))])], gzip);
    let (port, _) = Fake::of(&image).serve();
    let name = format!("127.0.0.1:{port}/app:1");
    client.pull(&name, None, &unpacking()).await.0.unwrap();
    drop(client);
    let digest = Digest::of(&image.layers[1]);
    let file = supervisor.path("content/blobs/sha256").join(digest.hex());
    type Spoil = fn(&Path);
    let spoil: [(&str, Spoil); 3] = [
        ("is damaged (its bytes have the digest sha256:", |at| {
            let mut bytes = fs::read(at).unwrap();
            bytes[500] ^= 1;
            fs::write(at, bytes).unwrap();
        }),
        ("is 10 bytes long instead of", |at| fs::File::options().write(true).open(at).unwrap().set_len(10).unwrap()),
        ("is missing", |at| fs::remove_file(at).unwrap()),
    ];
    for (wanted, spoil) in spoil {
        supervisor.kill();
        spoil(&file);
        let (well, words) = supervisor.check(&[]);
        assert!(!well && words.contains(&format!("blob {digest} {wanted}")), "{words}");
        assert!(words.contains(&format!("it is part of image berth/{name}")), "{words}");
        let (well, words) = supervisor.check(&["--repair"]);
        assert!(well, "{words}");
        assert_eq!(supervisor.check(&[]).1, "all is well\n");
        supervisor.start_again();
        let client = supervisor.client().await;
        assert!(!client.blobs().await.contains(&digest.to_string()));
        let (done, told) = client.pull(&name, None, &unpacking()).await;
        done.unwrap();
        assert!(told.iter().any(|p| p.name == digest.to_string() && p.event == "complete"), "fetched again");
        assert_eq!(fs::read(&file).unwrap(), image.layers[1]);
    }
    assert_eq!(lost(&supervisor).len(), 2, "the damaged and the truncated one are kept: {:?}", lost(&supervisor));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_without_folder_is_named_and_made_anew_and_a_folder_without_snapshot_goes() {
    let (mut supervisor, client, image) = with_image().await;
    let base = client.snapshots().await.into_iter().find(|snapshot| snapshot.parent.is_empty()).unwrap().name;
    supervisor.ctr(&["-n", "berth", "snapshots", "prepare", "mine", &base]).unwrap();
    drop(client);
    supervisor.kill();
    let folders = supervisor.path("snapshots/overlayfs");
    let folder =
        fs::read_dir(&folders).unwrap().flatten().find(|entry| entry.path().join("fs/a").exists()).unwrap().path();
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir_all(folders.join("999/fs")).unwrap();
    let (well, words) = supervisor.check(&[]);
    assert!(!well && words.contains(&format!("snapshot berth/{base} (overlayfs) has lost its folder")), "{words}");
    assert!(words.contains("snapshot berth/mine (overlayfs) stands on one that is gone"), "{words}");
    assert!(words.contains("999 is a leftover; the next start removes it"), "{words}");
    let (well, words) = supervisor.check(&["--repair"]);
    assert!(well && words.contains("3 found, all repaired"), "{words}");
    supervisor.start_again();
    assert!(!folders.join("999").exists());
    let client = supervisor.client().await;
    assert!(client.snapshots().await.is_empty());
    client.import(image.docker_archive(&["app:1"]), &unpacking()).await.0.unwrap();
    is_whole(&client, &image).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_data_root_is_refused_at_the_start_and_said_clearly_later() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::new(dir.path().join("disk"), "64m");
    let mut supervisor = Supervisor::start_in(disk.0.clone(), None);
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("ok", b"1")])], gzip);
    client.import(image.docker_archive(&["app:1"]), &unpacking()).await.0.unwrap();
    // The data folder alone becomes read-only, as a disk with errors does.
    let data = disk.0.join("data");
    let done = Command::new("mount").args(["-o", "bind"]).arg(&data).arg(&data).status().unwrap();
    assert!(done.success());
    supervisor.kill();
    let done = Command::new("mount").args(["-o", "remount,bind,ro"]).arg(&data).status().unwrap();
    assert!(done.success());
    let words = supervisor.refuses_to_start();
    let wanted = format!("{} is on a file system that is mounted read-only: mount it read-write", data.display());
    assert!(words.contains(&wanted), "{words}");
    let (well, words) = supervisor.check(&["--repair"]);
    assert!(!well && words.contains(&wanted), "{words}");
    assert!(Command::new("umount").arg("-l").arg(&data).status().unwrap().success());
    supervisor.start_again();
    is_there(&supervisor).await;
}

/// ext4 on a loop device, which turns read-only when it meets an error; unmounted when dropped.
struct Ext4 {
    image: PathBuf,
    at: PathBuf,
}

impl Ext4 {
    /// `None`, with the reason on stderr, where there is no such thing.
    fn new(folder: &Path, at: PathBuf) -> Option<Self> {
        let disk = Self { image: folder.join("image"), at };
        fs::create_dir_all(&disk.at).unwrap();
        let made = fs::File::create(&disk.image).and_then(|file| file.set_len(64 << 20));
        made.unwrap();
        let done = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no mkfs.ext4 here");
            return None;
        }
        let output = disk.mount();
        if !output.status.success() {
            eprintln!("skipped: no loop devices here: {}", String::from_utf8_lossy(&output.stderr).trim());
            return None;
        }
        Some(disk)
    }

    fn mount(&self) -> Output {
        let mut command = Command::new("mount");
        command.args(["-o", "loop,errors=remount-ro"]).arg(&self.image).arg(&self.at).output().unwrap()
    }

    /// Lets the kernel meet an error.
    fn fail(&self) {
        let output = Command::new("findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.at).output().unwrap();
        let device = String::from_utf8(output.stdout).unwrap();
        let device = device.trim().trim_start_matches("/dev/");
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").unwrap();
        assert!(fs::write(self.at.join("probe"), "").is_err(), "it is read-only now");
    }

    /// What an administrator does then.
    fn repair(&self) {
        assert!(Command::new("umount").arg(&self.at).status().unwrap().success());
        // 1: errors were corrected.
        let done = Command::new("fsck.ext4").args(["-f", "-y"]).arg(&self.image).output().unwrap();
        assert!(done.status.code().is_some_and(|code| code <= 1), "{done:?}");
        assert!(self.mount().status.success());
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_root_that_turns_read_only_is_read_on_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Ext4::new(dir.path(), dir.path().join("root/data")) else { return };
    let mut supervisor = Supervisor::start_in(dir.path().join("root"), None);
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", b"1")]), layer(&[("b", &noise(100_000))])], gzip);
    client.import(image.docker_archive(&["app:1"]), &unpacking()).await.0.unwrap();
    disk.fail();
    // What is known can be asked.
    is_whole(&client, &image).await;
    // What would change it is refused, more than once, with the cause.
    for number in 0..3 {
        let name = format!("docker.io/library/app:t{number}");
        let words = supervisor.ctr(&["-n", "berth", "images", "tag", NAME, &name]).unwrap_err();
        assert!(words.contains("Read-only file system"), "{words}");
    }
    let more = Image::new(&[layer(&[("c", b"2")])], gzip);
    let error = client.import(more.docker_archive(&["more:1"]), &unpacking()).await.0.unwrap_err();
    assert!(error.message().contains("Read-only file system") || error.message().contains("EROFS"), "{error:?}");
    is_whole(&client, &image).await;
    drop(client);
    supervisor.kill();
    disk.repair();
    supervisor.start_again();
    let client = supervisor.client().await;
    is_whole(&client, &image).await;
    client.import(more.docker_archive(&["more:1"]), &unpacking()).await.0.unwrap();
    drop(client);
    supervisor.kill();
    assert_eq!(supervisor.check(&[]).1, "all is well\n");
    drop(disk);
}

async fn is_there(supervisor: &Supervisor) {
    let client = supervisor.client().await;
    let names: Vec<_> = client.images().await.into_iter().map(|image| image.name).collect();
    assert_eq!(names, [NAME]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_while_pulling_and_while_recording() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Tmpfs::new(dir.path().join("disk"), "16m");
    let supervisor = Supervisor::start_in(disk.0.clone(), None);
    let client = supervisor.client().await;
    // Pull: the layer doesn't fit.
    let large = Image::new(&[layer(&[("noise", &noise(24 << 20))])], <[u8]>::to_vec);
    let (port, _) = Fake::of(&large).serve();
    let error = client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await.0.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    assert!(supervisor.names("content/ingest").is_empty(), "half of a layer keeps the disk full");
    // Nothing fits any more: records are refused with the reason, and reading goes on.
    let small = Image::new(&[layer(&[("ok", b"1")])], gzip);
    client.import(small.docker_archive(&["app:1"]), &unpacking()).await.0.unwrap();
    let filler = disk.0.join("filler");
    let _ = fs::write(&filler, vec![1; 32 << 20]);
    let mut refused = 0;
    for number in 0..400 {
        match supervisor.ctr(&["-n", "berth", "images", "tag", NAME, &format!("docker.io/library/app:t{number}")]) {
            Ok(_) => {}
            Err(words) => {
                assert!(words.contains("No space left on device") || words.contains("try again"), "{words}");
                refused += 1;
            }
        }
        if refused >= 3 {
            break;
        }
    }
    assert!(client.images().await.iter().any(|image| image.name == NAME));
    fs::remove_file(&filler).unwrap();
    supervisor.ctr(&["-n", "berth", "images", "tag", NAME, "docker.io/library/app:later"]).unwrap();
    let known = client.images().await.len();
    drop(client);
    let mut supervisor = supervisor;
    supervisor.kill();
    let (well, words) = supervisor.check(&[]);
    assert!(well, "{words}");
    supervisor.start_again();
    assert_eq!(supervisor.client().await.images().await.len(), known, "what was answered is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_and_tokens_are_in_no_log() {
    let dir = tempfile::Builder::new().prefix("berth-store-").tempdir().unwrap();
    fs::write(dir.path().join("config.toml"), "log-level = \"debug\"\n").unwrap();
    let supervisor = Supervisor::start_in(dir.path().to_owned(), Some(dir));
    let client = supervisor.client().await;
    let image = Image::new(&[layer(&[("a", b"1")])], gzip);
    let mut fake = Fake::of(&image);
    fake.login = Some(("somebody".into(), "s3cr3t-pa55".into()));
    let (port, _) = fake.serve();
    let name = format!("127.0.0.1:{port}/app:1");
    let wrong = client.pull(&name, Some(("somebody", "wr0ng-pa55")), &unpacking()).await.0.unwrap_err();
    assert!(!wrong.message().contains("wr0ng-pa55"), "{wrong:?}");
    client.pull(&name, Some(("somebody", "s3cr3t-pa55")), &unpacking()).await.0.unwrap();
    let log = supervisor.log();
    assert!(log.contains("Transfer/Transfer"), "a log of everything: {log}");
    // base64 of "somebody:s3cr3t-pa55", as it goes over the wire.
    let basic = "c29tZWJvZHk6czNjcjN0LXBhNTU";
    for secret in ["s3cr3t-pa55", "wr0ng-pa55", basic, "Bearer ", "Basic "] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_import_under_a_memory_limit_takes_bounded_memory() {
    let group = Path::new("/sys/fs/cgroup/memory").join(format!("berth-ops-{}", std::process::id()));
    if !Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
        eprintln!("skipped: no memory controller of cgroup v1 here");
        return;
    }
    fs::create_dir(&group).unwrap();
    fs::write(group.join("memory.limit_in_bytes"), (48 << 20).to_string()).unwrap();
    let mut supervisor = Supervisor::start();
    fs::write(group.join("cgroup.procs"), supervisor.pid().to_string()).unwrap();
    let client = supervisor.client().await;
    // Larger than the limit, blob and files together several times.
    let image = Image::new(&[layer(&[("noise", &noise(60 << 20))])], <[u8]>::to_vec);
    let done = client.import(image.docker_archive(&["app:1"]), &unpacking()).await.0;
    let killed = done.is_err();
    if killed {
        eprintln!("the import ended with {:?}", done.unwrap_err());
        supervisor.kill();
        supervisor.start_again();
    } else {
        let peak = fs::read_to_string(format!("/proc/{}/status", supervisor.pid())).unwrap();
        let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().to_owned();
        eprintln!("peak resident memory: {peak}");
        let kilobytes: u64 = peak.trim_end_matches(" kB").parse().unwrap();
        assert!(kilobytes < 44 << 10, "{peak}");
        is_there(&supervisor).await;
    }
    supervisor.kill();
    assert_eq!(supervisor.check(&[]).1, "all is well\n");
    // The group is empty, and its page cache goes with it.
    let began = std::time::Instant::now();
    while fs::remove_dir(&group).is_err() {
        assert!(began.elapsed().as_secs() < 10, "cgroup left");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
