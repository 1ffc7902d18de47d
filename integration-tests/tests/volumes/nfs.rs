//! Volumes of an NFS server: the kernel's own, on the loopback interface.

use crate::{host, kernel_has, make, servers, skipped, with};
use integration_tests::{Stack, eventually};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

const CONTROL: &str = "/proc/fs/nfsd";
/// There is one in a network namespace.
static ONE: Mutex<()> = Mutex::new(());

/// A server, and the folder that it exports.
struct Server {
    share: tempfile::TempDir,
    daemons: Vec<Child>,
    has_mounted: bool,
    _one: MutexGuard<'static, ()>,
}

impl Server {
    /// `None`, after a word why, if there can be none here.
    fn start() -> Option<Self> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        if !kernel_has("nfsd") || !kernel_has("nfs") || !kernel_has("nfs4") && !kernel_has("nfsv4") {
            skipped("this kernel has no nfs or no nfsd");
            return None;
        }
        for program in ["rpcbind", "rpc.mountd", "rpc.nfsd", "exportfs"] {
            if Command::new(program).arg("--help").output().is_err() {
                skipped(&format!("no {program} (Debian: nfs-kernel-server)"));
                return None;
            }
        }
        if fs::read_to_string(format!("{CONTROL}/threads")).is_ok_and(|threads| threads.trim() != "0") {
            skipped("this machine serves NFS");
            return None;
        }
        // Not below a file system of memory: those have no identity of their own to be exported with all that leads to it.
        let share = tempfile::Builder::new().prefix("berth-nfs-").tempdir_in("/var/tmp").unwrap();
        let has_mounted = !Path::new(CONTROL).join("threads").exists();
        if has_mounted {
            host("mount", &["-t", "nfsd", "nfsd", CONTROL]);
        }
        fs::create_dir_all("/run/rpcbind").unwrap();
        fs::create_dir_all("/run/sendsigs.omit.d").unwrap();
        let mut server = Self { share, daemons: Vec::new(), has_mounted, _one: one };
        // On all addresses: with -h, Debian's crashes.
        server.daemon("rpcbind", &["-f"]);
        eventually("rpcbind answers", || std::net::TcpStream::connect(("127.0.0.1", 111)).ok().map(drop));
        server.daemon("rpc.mountd", &["-F"]);
        let export = format!("127.0.0.0/8:{}", server.share.path().display());
        host("exportfs", &["-o", "rw,no_root_squash,insecure,no_subtree_check,fsid=77", &export]);
        host("rpc.nfsd", &["4"]);
        // There is nothing that clients could claim back.
        let _ = fs::write(format!("{CONTROL}/v4_end_grace"), "Y");
        Some(server)
    }

    fn daemon(&mut self, program: &str, args: &[&str]) {
        let mut command = Command::new(program);
        self.daemons
            .push(command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    }

    fn share(&self) -> PathBuf {
        self.share.path().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("rpc.nfsd").arg("0").output();
        let export = format!("127.0.0.0/8:{}", self.share.path().display());
        let _ = Command::new("exportfs").args(["-u", &export]).output();
        let _ = Command::new("exportfs").arg("-f").output();
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        if self.has_mounted {
            let _ = Command::new("umount").arg(CONTROL).output();
        }
    }
}

#[test]
fn of_each_version() {
    let Some(server) = Server::start() else { return };
    let stack = Stack::with_busybox();
    for (name, kind, options, shown) in [
        ("four", "nfs", "addr=localhost,rw,vers=4", "nfs4"),
        ("newest", "nfs", "addr=127.0.0.1,rw,nfsvers=4.2,hard,timeo=600,retrans=3", "nfs4"),
        ("four-by-type", "nfs4", "addr=127.0.0.1,rw", "nfs4"),
        ("three", "nfs", "addr=127.0.0.1,rw,nfsvers=3,nolock,soft", "nfs"),
    ] {
        let share = server.share().join(name);
        fs::create_dir(&share).unwrap();
        make(&stack, name, kind, options, &format!(":{}", share.display()));
        match name {
            "four" | "three" => servers::is_used_like_others(&stack, name, &share, shown),
            _ => servers::is_written_and_read(&stack, name, &share, shown),
        }
    }
    // What the image has there comes into an empty one, as into any volume.
    let share = server.share().join("filled");
    fs::create_dir(&share).unwrap();
    make(&stack, "filled", "nfs", "addr=127.0.0.1,vers=4", &format!(":{}", share.display()));
    stack.berth(["run", "--rm", "-v", "filled:/www", "busybox", "true"]).success();
    assert!(share.join("index.html").exists());
    // Read-only by option; and what the server doesn't have.
    make(&stack, "read", "nfs", "addr=127.0.0.1,vers=4,ro", &format!(":{}", share.display()));
    let refused = with(&stack, "read", "cat /v/index.html && echo x >/v/x").expect_code(1);
    assert!(refused.stdout().contains("berth") && refused.stderr().contains("Read-only file system"), "{refused}");
    make(&stack, "nowhere", "nfs", "addr=127.0.0.1,vers=4", &format!(":{}/nowhere", share.display()));
    let refused = with(&stack, "nowhere", "true").expect_code(127);
    assert!(refused.stderr().contains("failed to mount local volume: mount :"), "{refused}");
    assert!(refused.stderr().contains("no such file or directory"), "{refused}");
    make(&stack, "unknown", "nfs", "addr=no-such-host.invalid,vers=4", ":/x");
    let refused = with(&stack, "unknown", "true").expect_code(125);
    let text = "error resolving passed in network volume address: lookup no-such-host.invalid";
    assert!(refused.stderr().contains(text), "{refused}");
}

#[test]
fn of_a_server_that_is_gone() {
    let Some(server) = Server::start() else { return };
    let stack = Stack::with_busybox();
    servers::one_that_never_answers_is_given_up(&stack, "nfs", &format!("addr={},vers=4", servers::NOBODY), ":/x");
    let device = format!(":{}", server.share().display());
    make(&stack, "fickle", "nfs", &format!("addr={},vers=4,hard", servers::FICKLE), &device);
    servers::one_that_goes_away_is_let_go(&stack, "fickle");
}
