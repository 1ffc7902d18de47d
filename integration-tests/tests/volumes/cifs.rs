//! Volumes of an SMB server: Samba, on the loopback interface.

use crate::{kernel_has, make, servers, skipped, stdout, with};
use integration_tests::{Stack, eventually};
use serde_json::Value;
use std::{
    fs,
    io::Write,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

const PASSWORD: &str = "kept-for-itself";
static PORT: AtomicU16 = AtomicU16::new(4450);

/// A server, and the folder that it shares.
struct Server {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
    port: u16,
}

impl Server {
    /// `None`, after a word why, if there can be none here.
    fn start() -> Option<Self> {
        if !kernel_has("cifs") {
            skipped("this kernel has no cifs");
            return None;
        }
        if Command::new("smbd").arg("--version").output().is_err() {
            skipped("no smbd (Debian: samba)");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("berth-smb-").tempdir().unwrap();
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let at = folder.path().display();
        let mut text = format!(
            "[global]\nserver role = standalone\nworkgroup = BERTH\ndisable netbios = yes\nload printers = no\nsmb ports = {port}\n\
             hosts allow = 127.\npassdb backend = tdbsam:{at}/passwords\nlog file = {at}/log\n"
        );
        for kind in ["lock", "state", "cache", "pid", "private", "ncalrpc"] {
            fs::create_dir(folder.path().join(kind)).unwrap();
            let word = if matches!(kind, "private" | "ncalrpc") { "dir" } else { "directory" };
            text.push_str(&format!("{kind} {word} = {at}/{kind}\n"));
        }
        fs::create_dir(folder.path().join("share")).unwrap();
        text.push_str(&format!("[share]\npath = {at}/share\nread only = no\nforce user = root\n"));
        let file = folder.path().join("smb.conf");
        fs::write(&file, text).unwrap();
        let config = file.to_str().unwrap();
        let mut words = Command::new("smbpasswd")
            .args(["-c", config, "-s", "-a", "nobody"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        words.stdin.take().unwrap().write_all(format!("{PASSWORD}\n{PASSWORD}\n").as_bytes()).unwrap();
        assert!(words.wait().unwrap().success());
        let mut command = Command::new("smbd");
        command.args(["-F", "--no-process-group", "-s", config]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let server = Self { daemon: Some(command.spawn().unwrap()), folder, port };
        eventually("smbd answers", || TcpStream::connect(("127.0.0.1", port)).ok().map(drop));
        Some(server)
    }

    fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    fn options(&self, more: &str) -> String {
        format!("username=nobody,port={},vers=3.0,{more}", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
            // Those that serve its clients, and helpers that are nobody's children: all were told where the configuration is.
            let config = self.folder.path().join("smb.conf").display().to_string();
            let _ = Command::new("pkill").args(["-9", "-f", &config]).output();
        }
    }
}

#[track_caller]
fn is_silent_about_the_password(stack: &Stack) {
    assert!(!stack.logs().contains(PASSWORD), "{}", stack.logs());
    let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let events = stack.api().get(&format!("/events?since=0&until={}", now.as_secs_f64())).text();
    assert!(events.contains("\"volume\"") && !events.contains(PASSWORD), "{events}");
}

#[test]
fn of_samba() {
    let Some(server) = Server::start() else { return };
    let stack = Stack::with_busybox();
    let password = format!("password={PASSWORD}");
    for (name, options, device) in [
        ("by-address", server.options(&format!("{password},addr=127.0.0.1")), "//127.0.0.1/share"),
        ("by-name", server.options(&format!("{password},addr=localhost")), "//any-name/share"),
        ("by-device", server.options(&password), "//localhost/share"),
    ] {
        fs::remove_dir_all(server.share()).unwrap();
        fs::create_dir(server.share()).unwrap();
        make(&stack, name, "cifs", &options, device);
        let shown: Value = serde_json::from_str(&stdout(&stack, &["volume", "inspect", name])).unwrap();
        // As with docker.
        assert_eq!(shown[0]["Options"]["o"], options);
        match name {
            "by-address" => servers::is_used_like_others(&stack, name, &server.share(), "cifs"),
            _ => servers::is_written_and_read(&stack, name, &server.share(), "cifs"),
        }
    }
    make(&stack, "wrong", "cifs", &server.options("password=wrong-but-secret,addr=127.0.0.1"), "//localhost/share");
    // The code is for "permission denied" anywhere in an answer.
    let refused = with(&stack, "wrong", "true").expect_code(126);
    assert!(refused.stderr().contains("permission denied") && refused.stderr().contains("password=****"), "{refused}");
    assert!(!refused.stderr().contains("wrong-but-secret") && !stack.logs().contains("wrong-but-secret"), "{refused}");
    is_silent_about_the_password(&stack);
    let logs = |folder: &Path| fs::read_to_string(folder.join("log")).unwrap_or_default();
    assert!(!logs(server.folder.path()).contains("INTERNAL ERROR"));
}

#[test]
fn of_samba_that_is_gone() {
    let Some(server) = Server::start() else { return };
    let stack = Stack::with_busybox();
    let options = |address: &str| server.options(&format!("password={PASSWORD},addr={address}"));
    servers::one_that_never_answers_is_given_up(&stack, "cifs", &options(servers::NOBODY), "//nobody/share");
    // Half a minute instead of three until the kernel gives it up. Linux 6.1 has folders that it remembers open when it lets go of such a
    // server, and stops over it ("Dentry still in use").
    let fickle = format!("{},echo_interval=10,nohandlecache", options(servers::FICKLE));
    make(&stack, "fickle", "cifs", &fickle, "//fickle/share");
    servers::one_that_goes_away_is_let_go(&stack, "fickle");
    is_silent_about_the_password(&stack);
}
