//! What a service manager sees: sockets passed on, readiness, the end, the watchdog; and one supervisor per root.

use std::{
    os::{
        fd::AsRawFd,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    time::Duration,
};

use crate::daemon::{Daemon, eventually, output};

/// Gives a child the socket as descriptor 3, as systemd does.
fn activated(daemon: &Daemon, listener: &UnixListener, name: &str, args: &[&str]) -> Command {
    // Above what any program has open by itself, so that nobody takes it for theirs.
    let inherited = sys::fd::duplicate_above(listener, 40).unwrap();
    sys::fd::set_cloexec(inherited.as_raw_fd(), false).unwrap();
    let number = inherited.as_raw_fd();
    // Stays open: the child is yet to be started.
    std::mem::forget(inherited);
    let mut command = Command::new("bash");
    let script =
        format!("exec 3<&{number} {number}<&-; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES={name} exec \"$0\" \"$@\"");
    let direct = daemon.command(args);
    command.arg("-c").arg(script).arg(direct.get_program()).args(direct.get_args());
    command
}

fn notified(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).expect("a notification");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn a_passed_socket_is_served_and_kept_and_readiness_is_told() {
    let mut daemon = Daemon::prepare();
    std::fs::create_dir(daemon.path("run")).unwrap();
    let listener = UnixListener::bind(daemon.socket()).unwrap();
    let told = UnixDatagram::bind(daemon.path("notify")).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    // Connected before there is a supervisor: it waits in the queue.
    let early = UnixStream::connect(daemon.socket()).unwrap();
    let mut command = activated(&daemon, &listener, "supervisor", &[]);
    command.env("NOTIFY_SOCKET", daemon.path("notify"));
    let pid = daemon.run(&mut command);
    assert_eq!(notified(&told), "READY=1");
    drop(early);
    let (well, words) = daemon.ctr(&["version"]);
    assert!(well, "{words}");
    // Its own children see nothing of all this.
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"), "given");
    assert!(daemon.terminate().success());
    assert_eq!(notified(&told), "STOPPING=1");
    assert!(daemon.socket().exists(), "the socket is the service manager's");
    // Whoever calls meanwhile is answered by the next one.
    let socket = daemon.socket();
    let call = std::thread::spawn(move || Command::new("ctr").arg("-a").arg(socket).arg("version").output().unwrap());
    let mut command = activated(&daemon, &listener, "anything", &[]);
    daemon.run(&mut command);
    assert!(call.join().unwrap().status.success());
    assert!(daemon.terminate().success());
}

#[test]
fn an_abstract_notify_socket_and_the_watchdog() {
    let mut daemon = Daemon::prepare();
    let name = format!("berth-ops-{}", std::process::id());
    let told = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    let mut command = daemon.command(&[]);
    command.env("NOTIFY_SOCKET", format!("@{name}")).env("WATCHDOG_USEC", "100000");
    daemon.run(&mut command);
    assert_eq!(notified(&told), "READY=1");
    for _ in 0..3 {
        assert_eq!(notified(&told), "WATCHDOG=1");
    }
    assert!(daemon.terminate().success());
    assert!(!daemon.socket().exists(), "our own socket goes with us");
}

#[test]
fn what_is_passed_must_be_a_listening_unix_socket() {
    let mut daemon = Daemon::prepare();
    let file = std::fs::File::open("/dev/null").unwrap();
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=supervisor exec \"$0\" \"$@\" 3</dev/null";
    drop(file);
    let direct = daemon.command(&[]);
    let mut command = Command::new("bash");
    command.arg("-c").arg(script).arg(direct.get_program()).args(direct.get_args());
    let (code, _, words) = output(&mut command);
    assert_eq!(code, Some(1));
    assert!(
        words.contains("socket \"supervisor\" passed by the service manager is no listening unix socket"),
        "{words}"
    );
    // Meant for another process: not looked at.
    let mut command = daemon.command(&[]);
    command.env("LISTEN_PID", "1").env("LISTEN_FDS", "1");
    daemon.run(&mut command);
    daemon.wait_until_up();
}

#[test]
fn a_second_supervisor_is_refused_with_the_pid_of_the_first() {
    let daemon = Daemon::start(&[]);
    let pid = daemon.pid();
    let (code, _, words) = output(&mut daemon.command(&[]));
    assert_eq!(code, Some(1));
    let wanted = format!(
        "berth-supervisor: another berth-supervisor is using {} (pid {pid}): stop it, or choose other roots\n",
        daemon.path("run").display()
    );
    assert_eq!(words, wanted);
    // The same data root under another run root.
    let other = daemon.path("run2");
    let (code, _, words) = output(daemon.command(&[]).arg("--run-root").arg(&other));
    assert_eq!(code, Some(2), "clap takes a flag once: {words}");
    let mut command = Command::new(crate::daemon::PROGRAM);
    command.arg("--data-root").arg(daemon.path("data")).arg("--run-root").arg(&other);
    let (code, _, words) = output(&mut command);
    assert_eq!(code, Some(1));
    assert!(words.contains(&format!("is using {} (pid {pid})", daemon.path("data").display())), "{words}");
    // The first is none the worse for it.
    assert!(daemon.ctr(&["version"]).0);
}

#[test]
fn the_units_are_what_systemd_understands() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("skipped: systemd-analyze is not installed (make deps-test)");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    // As `make install` does it, into a folder of our own.
    let bin = Path::new(crate::daemon::PROGRAM).parent().unwrap();
    let destination = folder.path().join("dest");
    let status = Command::new(root.join(".ci/install-units"))
        .arg(&destination)
        .arg(bin)
        .args(["/etc", "/lib/systemd/system", "/lib/sysusers.d"])
        .arg(crate::daemon::PROGRAM)
        .status()
        .unwrap();
    assert!(status.success());
    let units = destination.join("lib/systemd/system");
    let names = ["berth-supervisor.service", "berth-supervisor.socket", "berth-engine.service", "berth-engine.socket"];
    // The engine is another crate's program, and may not be built here: that a program is there is all that is asked.
    let engine = units.join("berth-engine.service");
    let text = std::fs::read_to_string(&engine).unwrap();
    std::fs::write(&engine, text.replace(&*bin.join("berth-engine").to_string_lossy(), "/bin/true")).unwrap();
    let mut command = Command::new("systemd-analyze");
    command.arg("verify").arg("--man=no").args(names.map(|name| units.join(name)));
    let (code, _, words) = output(command.env("SYSTEMD_UNIT_PATH", format!("{}:", units.display())));
    assert_eq!(code, Some(0), "{words}");
    let ours: Vec<_> = words.lines().filter(|line| line.contains("berth-")).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    // The installed configuration is well.
    let installed = destination.join("etc/berth/supervisor.toml");
    let mut command = Command::new(crate::daemon::PROGRAM);
    command.args(["config", "check", "--config"]).arg(installed);
    assert_eq!(output(&mut command).0, Some(0));
}

#[test]
fn more_callers_than_descriptors_wait_and_are_served_later() {
    let mut daemon = Daemon::prepare();
    let direct = daemon.command(&[]);
    let mut command = Command::new("bash");
    command.arg("-c").arg("ulimit -n 48; exec \"$0\" \"$@\"").arg(direct.get_program()).args(direct.get_args());
    let pid = daemon.run(&mut command);
    daemon.wait_until_up();
    let callers: Vec<_> = (0..100).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    eventually("it says so", || daemon.log().contains("connection not accepted; it waits"));
    // It waits, instead of trying without pause.
    let used = || -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').map(str::to_owned).collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = used();
    std::thread::sleep(Duration::from_millis(500));
    assert!(used() - before <= 10, "it spins: {} ticks in half a second", used() - before);
    assert_eq!(daemon.log().matches("not accepted").count(), 1, "said once");
    drop(callers);
    let (well, words) = daemon.ctr(&["version"]);
    assert!(well, "{words}");
}
