//! The option `size`.

use crate::{host, kernel_has, skipped, stdout, with};
use integration_tests::{Stack, eventually};
use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

/// A file system in a file, where the volumes of a stack are.
struct Disk {
    image: PathBuf,
    at: PathBuf,
}

impl Disk {
    /// `None`, after a word why, if there can be none with quotas here.
    fn make(stack: &Stack, kind: &str) -> Option<Self> {
        let disk = Self { image: stack.path().join("quota.img"), at: stack.data_root().join("engine/volumes") };
        // The smallest that mkfs.xfs makes.
        fs::File::create(&disk.image).unwrap().set_len(320 << 20).unwrap();
        let (program, options) = match kind {
            "ext4" => ("mkfs.ext4", &["-q", "-O", "quota,project", "-E", "quotatype=prjquota"][..]),
            _ => ("mkfs.xfs", &["-q"][..]),
        };
        match Command::new(program).args(options).arg(&disk.image).output() {
            Ok(made) => assert!(made.status.success(), "{program}: {}", String::from_utf8_lossy(&made.stderr)),
            Err(error) => {
                skipped(&format!("{program}: {error}"));
                return None;
            }
        }
        if !kernel_has(kind) {
            skipped(&format!("this kernel has no {kind}"));
            return None;
        }
        let _ = Command::new("modprobe").arg("loop").output();
        match disk.mount() {
            Ok(()) => Some(disk),
            Err(why) => {
                skipped(&format!(
                    "this kernel has no project quotas on {kind} (CONFIG_QFMT_V2, CONFIG_XFS_QUOTA): {why}"
                ));
                None
            }
        }
    }

    fn mount(&self) -> Result<(), String> {
        let mounted = Command::new("mount").args(["-o", "loop,prjquota"]).args([&self.image, &self.at]).output();
        let mounted = mounted.map_err(|error| error.to_string())?;
        // Where quotas are not built in, XFS says so in the log of the kernel and goes on.
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        let at = self.at.display().to_string();
        let counts = table.lines().any(|line| line.split(' ').nth(1) == Some(&at) && line.contains("prjquota"));
        match mounted.status.success() && counts {
            true => Ok(()),
            false => {
                self.unmount();
                Err(String::from_utf8_lossy(&mounted.stderr).trim().to_owned())
            }
        }
    }

    fn unmount(&self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

const FILL: &str = "dd if=/dev/zero of=/v/file bs=64k count=48 conv=fsync 2>&1";

#[track_caller]
fn is_full(stack: &Stack, volume: &str) {
    let said = with(stack, volume, FILL).expect_code(1);
    let said = said.stdout();
    assert!(said.contains("quota exceeded") || said.contains("No space left on device"), "{said}");
}

fn a_volume_takes_no_more_than_its_size(kind: &str) {
    let stack = Stack::with_busybox();
    stack.kill_engine();
    let Some(disk) = Disk::make(&stack, kind) else {
        stack.start_engine();
        return;
    };
    stack.start_engine();
    let volumes = &disk.at;
    let sized = |name: &str, size: &str| stdout(&stack, &["volume", "create", "-o", &format!("size={size}"), name]);
    let project = |name: &str| -> Value {
        serde_json::from_slice::<Value>(&fs::read(volumes.join(name).join("volume.json")).unwrap()).unwrap()["project"]
            .clone()
    };
    let taken = |name: &str| fs::metadata(volumes.join(name).join("_data/file")).unwrap().len();
    sized("small", "1m");
    sized("large", "8m");
    let shown: Value = serde_json::from_str(&stdout(&stack, &["volume", "inspect", "small"])).unwrap();
    assert_eq!(shown[0]["Options"]["size"], "1m", "{shown}");
    is_full(&stack, "small");
    assert!((1 << 19..=1 << 20).contains(&taken("small")), "{}", taken("small"));
    // It is the volume's own size that containers see.
    assert!(with(&stack, "small", "df -k /v | tail -n 1 | awk '{print $2}'").stdout().contains("1024"));
    // Nobody else has less for it.
    with(&stack, "large", FILL).success();
    with(&stack, "plain", FILL).success();
    let (first, second) = (project("small"), project("large"));
    assert!(first.is_u64() && second.is_u64() && first != second);
    assert_eq!(project("plain"), Value::Null);
    let usage: Value = stack.api().get("/v1.43/system/df?type=volume").expect(200).json();
    let size = |name: &str| {
        let row = usage["Volumes"].as_array().unwrap().iter().find(|row| row["Name"] == name);
        row.unwrap_or_else(|| panic!("{name}: {usage}"))["UsageData"]["Size"].as_u64().unwrap()
    };
    assert!(size("small") <= 1 << 20 && size("large") >= 3 << 20, "{usage}");

    // The next engine, and the next machine.
    stack.kill_engine();
    stack.start_engine();
    is_full(&stack, "small");
    stack.kill_engine();
    host("umount", &[disk.at.to_str().unwrap()]);
    disk.mount().unwrap();
    stack.start_engine();
    is_full(&stack, "small");
    assert!(taken("small") <= 1 << 20);
    with(&stack, "small", "rm /v/file && dd if=/dev/zero of=/v/less bs=64k count=12 2>&1").success();

    // Given back, and used again without what was counted before.
    stdout(&stack, &["volume", "rm", "small"]);
    sized("again", "4m");
    assert_eq!(project("again"), first);
    with(&stack, "again", FILL).success();
    stdout(&stack, &["volume", "rm", "again", "large", "plain"]);
    for project in [&first, &second] {
        let number = u32::try_from(project.as_u64().unwrap()).unwrap();
        eventually(&format!("project {number} has nothing"), || {
            let usage = sys::quota::usage(fs::File::open(volumes).unwrap(), number).unwrap();
            usage.is_none_or(|usage| usage.limit == 0 && usage.files == 0).then_some(())
        });
    }
}

#[test]
fn on_ext4_with_quotas() {
    a_volume_takes_no_more_than_its_size("ext4");
}

#[test]
fn on_xfs_with_quotas() {
    a_volume_takes_no_more_than_its_size("xfs");
}

#[test]
fn without_quotas_a_size_is_refused() {
    let stack = Stack::start();
    // No file system of memory has project quotas.
    let volumes = stack.data_root().join("engine/volumes");
    stack.kill_engine();
    host("mount", &["-t", "tmpfs", "-o", "size=16m", "tmpfs", volumes.to_str().unwrap()]);
    stack.start_engine();
    let refused = stack.berth(["volume", "create", "-o", "size=1m", "small"]);
    let left: Vec<_> = fs::read_dir(&volumes).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    stack.kill_engine();
    umount2(&volumes, MntFlags::MNT_DETACH).unwrap();
    stack.start_engine();
    let said = refused.expect_code(1);
    assert!(
        said.stderr().contains(
            "create small: quota size requested but no quota support: it takes ext4 or xfs, mounted with prjquota"
        ),
        "{said}"
    );
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn descriptions_are_for_root_alone() {
    let stack = Stack::start();
    stdout(&stack, &["volume", "create", "vol"]);
    let file = stack.data_root().join("engine/volumes/vol/volume.json");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600, "there may be a password in it");
}
