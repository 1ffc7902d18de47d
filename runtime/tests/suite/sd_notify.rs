//! sd_notify(3) out of containers, with a service manager played by the test.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Stdio};

use super::bundle::{Bundle, eventually, is_ours};

struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(bundle: &Bundle) -> Self {
        let socket = UnixDatagram::bind(bundle.path("manager")).expect("bind");
        socket.set_read_timeout(Some(std::time::Duration::from_secs(20))).expect("timeout");
        Self { socket }
    }

    /// The next message, without the line break that runc ends it with. Descriptors that came along are dropped: that is the answer
    /// to a barrier.
    fn next(&self) -> String {
        let mut buffer = [0; 1000];
        let length = self.socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
    }

    /// READY=1, then whose pid to watch, in one message or in two.
    fn expect_ready(&self, pid: i64) {
        let ready = self.next();
        let both = if ready.contains("MAINPID") { ready } else { ready + "\n" + &self.next() };
        assert_eq!(both, format!("READY=1\nMAINPID={pid}"));
    }

    /// What whoever ends now waits for; runc does since 1.2.
    fn expect_barrier(&self) {
        assert!(!is_ours() || self.next() == "BARRIER=1");
    }
}

fn spawn(bundle: &Bundle, arguments: &[&str]) -> Child {
    let mut command = bundle.command(arguments);
    command.env("NOTIFY_SOCKET", bundle.path("manager")).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("the runtime runs")
}

/// What the container's process does when it is ready: it has no tool to speak to a socket, so the test does it for it.
fn say(bundle: &Bundle, text: &str) {
    let folder = format!("/proc/{}/root/run/notify", bundle.pid());
    let socket = UnixDatagram::unbound().expect("socket");
    let path = format!("{folder}/notify.sock");
    eventually("the socket is there", || socket.connect(&path).is_ok());
    socket.send(text.as_bytes()).expect("send");
}

#[test]
fn start_waits_until_the_process_is_ready() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("echo $NOTIFY_SOCKET > /data/variable; exec sleep 1000");
    let manager = Manager::new(&bundle);
    bundle.write_config();
    let folder = bundle.path("bundle");
    let folder = folder.to_str().expect("utf-8");
    assert!(spawn(&bundle, &["create", "--bundle", folder, &bundle.id]).wait().expect("wait").success());
    let mut start = spawn(&bundle, &["start", &bundle.id]);
    eventually("it runs", || bundle.rootfs("data/variable").exists());
    say(&bundle, "STATUS=soon");
    if is_ours() {
        assert_eq!(manager.next(), "STATUS=soon");
    }
    assert!(start.try_wait().expect("wait").is_none(), "not ready yet");
    say(&bundle, "READY=1");
    manager.expect_ready(bundle.pid().into());
    manager.expect_barrier();
    assert!(start.wait().expect("wait").success());
    eventually("the variable", || {
        std::fs::read_to_string(bundle.rootfs("data/variable")).is_ok_and(|text| text == "/run/notify/notify.sock\n")
    });
}

#[test]
fn start_does_not_wait_for_a_process_that_has_ended() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("true");
    let _manager = Manager::new(&bundle);
    bundle.write_config();
    let folder = bundle.path("bundle");
    let folder = folder.to_str().expect("utf-8");
    assert!(spawn(&bundle, &["create", "--bundle", folder, &bundle.id]).wait().expect("wait").success());
    assert!(spawn(&bundle, &["start", &bundle.id]).wait().expect("wait").success());
}

#[test]
fn a_detached_run_waits_too() {
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("exec sleep 1000");
    let manager = Manager::new(&bundle);
    bundle.write_config();
    let folder = bundle.path("bundle");
    let mut run = spawn(&bundle, &["run", "--detach", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    eventually("it runs", || {
        bundle.path("state").join(&bundle.id).join("state.json").exists() && bundle.state()["status"] == "running"
    });
    say(&bundle, "READY=1");
    manager.expect_ready(bundle.pid().into());
    manager.expect_barrier();
    assert!(run.wait().expect("wait").success());
}

#[test]
fn a_foreground_run_is_the_one_to_watch() {
    if !is_ours() {
        println!("skipped: what runc passes on later differs between versions");
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.shell("while ! test -e /data/end; do sleep 0.05; done; exit 6");
    let manager = Manager::new(&bundle);
    bundle.write_config();
    let folder = bundle.path("bundle");
    let mut run = spawn(&bundle, &["run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id]);
    eventually("it runs", || {
        bundle.path("state").join(&bundle.id).join("state.json").exists() && bundle.state()["status"] == "running"
    });
    say(&bundle, "READY=1\nMAINPID=1");
    manager.expect_ready(run.id().into());
    // It stays, and goes on to pass on what may go out.
    say(&bundle, "MAINPID=1");
    say(&bundle, "STOPPING=1");
    assert_eq!(manager.next(), "STOPPING=1");
    std::fs::write(bundle.rootfs("data/end"), "").expect("write");
    assert_eq!(run.wait().expect("wait").code(), Some(6));
}

#[test]
fn a_manager_that_is_not_there_is_an_error() {
    let Some(bundle) = Bundle::new() else { return };
    bundle.write_config();
    let folder = bundle.path("bundle");
    let arguments = ["run", "--bundle", folder.to_str().expect("utf-8"), &bundle.id];
    if !is_ours() {
        return;
    }
    let output = bundle.command(&arguments).env("NOTIFY_SOCKET", "/no/such/socket").output().expect("runs");
    assert!(!output.status.success());
    assert!(super::bundle::texts(&output).1.contains("/no/such/socket"), "{output:?}");
    bundle.assert_nothing_left();
}
