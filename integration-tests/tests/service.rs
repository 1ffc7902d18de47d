//! The stack as services: the engine under a service manager, and all of it while nothing happens.

use integration_tests::{programs::program, stack::Stack};
use std::{
    fs,
    os::{
        fd::AsRawFd,
        unix::net::{UnixDatagram, UnixListener},
    },
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

/// The next notification; fails with what `log` says if there is none.
fn notified(socket: &UnixDatagram, log: &Path) -> String {
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer);
    let length = length.unwrap_or_else(|error| {
        panic!("no notification: {error}\n{}", fs::read_to_string(log).unwrap_or_default());
    });
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

#[test]
fn the_engine_serves_a_passed_socket_and_tells_when_it_is_ready() {
    let stack = Stack::start();
    stack.stop_engine();
    let path = stack.path().join("passed.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let told = UnixDatagram::bind(stack.path().join("notify")).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let inherited = sys::fd::duplicate_above(&listener, 40).unwrap();
    sys::fd::set_cloexec(inherited.as_raw_fd(), false).unwrap();
    let number = inherited.as_raw_fd();
    let log = stack.path().join("engine-2.log");
    let script =
        format!("exec 3<&{number} {number}<&-; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=engine exec \"$0\" \"$@\"");
    let mut engine = Command::new("bash")
        .arg("-c")
        .arg(script)
        .arg(program("berth-engine"))
        .arg("--data-root")
        .arg(stack.data_root())
        .arg("--run-root")
        .arg(stack.run_root())
        .args(["--bridge", &stack.bridge(), "--bip", &format!("{}/24", stack.gateway())])
        .env("NOTIFY_SOCKET", stack.path().join("notify"))
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    assert_eq!(notified(&told, &log), "READY=1");
    let pinged = integration_tests::http::Api::new(path.clone()).get("/_ping");
    assert_eq!(pinged.status, 200);
    let pid = nix::unistd::Pid::from_raw(engine.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(notified(&told, &log), "STOPPING=1");
    assert!(engine.wait().unwrap().success());
    assert!(path.exists(), "the socket is the service manager's");
}

/// How often the threads of a process have gone to sleep so far.
fn sleeps(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of = |text: String| -> u64 {
        let lines = text.lines().filter_map(|line| line.split_once("_ctxt_switches:"));
        lines.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
    };
    threads.map(|thread| of(fs::read_to_string(thread.path().join("status")).unwrap_or_default())).sum()
}

fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[test]
fn an_idle_stack_stays_asleep() {
    let stack = Stack::with_busybox();
    for name in ["one", "two"] {
        stack.berth(["run", "-d", "--name", name, "busybox", "sleep", "1000"]).success();
    }
    let shims = Command::new("pgrep").args(["-f", &format!("shim.*{}", stack.run_root().display())]).output().unwrap();
    let shims: Vec<u32> = String::from_utf8_lossy(&shims.stdout).lines().filter_map(|line| line.parse().ok()).collect();
    assert_eq!(shims.len(), 2, "{shims:?}");
    let everybody: Vec<u32> = shims.into_iter().chain([stack.engine_pid(), stack.supervisor_pid()]).collect();
    let count = || everybody.iter().map(|pid| sleeps(*pid)).collect::<Vec<_>>();
    // Until the last of the start has died away: idle connections are closed, spare threads end.
    let mut before = count();
    let began = Instant::now();
    eventually_quiet(&mut before, count, began);
    sleep(Duration::from_secs(3));
    assert_eq!(count(), before, "somebody of {everybody:?} woke in three seconds in which nothing happened");
    eprintln!("PSS in kB, shims, engine, supervisor: {:?}", everybody.iter().map(|pid| pss(*pid)).collect::<Vec<_>>());
    assert_eq!(stack.berth(["ps", "-q"]).success().stdout().lines().count(), 2, "and answers when asked");
}

fn eventually_quiet(before: &mut Vec<u64>, count: impl Fn() -> Vec<u64>, began: Instant) {
    loop {
        sleep(Duration::from_millis(1500));
        let now = count();
        if now == *before {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "never quiet: {before:?} {now:?}");
        *before = now;
    }
}
