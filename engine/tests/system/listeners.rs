//! Sockets: files and their group, those of a service manager, TCP with certificates; restarts that lose nothing.

use super::{
    engine,
    stack::{Stack, eventually},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::TcpStream,
    os::{
        fd::AsRawFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

fn openssl(folder: &Path, args: &str) -> bool {
    let done = Command::new("openssl").args(args.split_whitespace()).current_dir(folder).output();
    done.is_ok_and(|output| output.status.success())
}

/// A signer, the engine's certificate for 127.0.0.1, and one for each client.
fn certificates(folder: &Path, clients: &[&str]) -> bool {
    std::fs::write(folder.join("server.ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    std::fs::write(folder.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    let sign = |name: &str, ca: &str, ext: &str| {
        openssl(
            folder,
            &format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}-key.pem -out {name}.csr -subj /O=Test/CN={name}"
            ),
        ) && openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA {ca}.pem -CAkey {ca}-key.pem -CAcreateserial -days 2 -out {name}.pem -extfile {ext}.ext"
            ),
        )
    };
    let root = |name: &str| {
        openssl(
            folder,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}-key.pem -out {name}.pem -days 2 -subj /CN={name}"
            ),
        )
    };
    root("ca")
        && root("other")
        && sign("server", "ca", "server")
        && sign("stranger", "other", "client")
        && clients.iter().all(|name| sign(name, "ca", "client"))
}

fn docker(folder: &Path, port: u16, who: Option<&str>, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new("docker");
    command.env("DOCKER_CONFIG", folder.join("client")).args(["-H", &format!("tcp://127.0.0.1:{port}")]);
    if let Some(who) = who {
        let at = |name: String| folder.join(name).display().to_string();
        command.args(["--tlsverify", "--tlscacert", &at("ca.pem".into())]);
        command.args(["--tlscert", &at(format!("{who}.pem")), "--tlskey", &at(format!("{who}-key.pem"))]);
    }
    let output = command.args(args).output().unwrap();
    (
        output.status.code(),
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
    )
}

#[test]
fn tcp_is_for_those_with_certificates() {
    let folder = tempfile::tempdir().unwrap();
    if !certificates(folder.path(), &["alice", "bob"]) {
        return eprintln!("skipped: there is no openssl to make certificates with");
    }
    let port = testing::free_port();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let config = format!(
        "hosts = ['unix://', 'tcp://127.0.0.1:{port}']\ntlsverify = true\ntlscacert = '{}'\ntlscert = '{}'\ntlskey = '{}'\naudit = true\n\
         [[access]]\nusers = ['cert:alice']\nallow = 'all'\n[[access]]\nusers = ['cert:bob']\nallow = 'read-only'\n",
        at("ca.pem"),
        at("server.pem"),
        at("server-key.pem"),
    );
    let stack = engine!(&config);
    // Nobody without a certificate of the right signer, and nobody in plain text.
    let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    plain.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/"), "{answer:?}");
    if Command::new("docker").arg("--version").output().is_err() {
        return eprintln!("skipped in part: there is no docker client");
    }
    let run = |who: Option<&str>, args: &[&str]| docker(folder.path(), port, who, args);
    let (code, said) = run(Some("alice"), &["run", "--rm", "test", "echo", "over", "tls"]);
    assert_eq!((code, said.as_str()), (Some(0), "over tls\n"));
    // A stream in both directions, its input ended before its output.
    stack.create("?name=purr", &json!({"Cmd": ["sh", "-c", "sleep 1000"]}));
    stack.start_container("purr");
    let (code, said) = run(Some("alice"), &["exec", "purr", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((code, said.as_str()), (Some(3), "out\nerr\n"));
    let (code, said) = run(Some("bob"), &["ps"]);
    assert!(code == Some(0) && said.contains("purr"), "{said}");
    let (code, said) = run(Some("bob"), &["kill", "purr"]);
    assert!(code != Some(0) && said.contains("user cert:bob may not POST /containers/purr/kill"), "{said}");
    let (code, said) = run(Some("stranger"), &["ps"]);
    assert!(code != Some(0) && !said.contains("purr"), "{said}");
    let (code, said) = run(None, &["ps"]);
    assert!(code != Some(0) && !said.contains("purr"), "{said}");
    let trail = std::fs::read_to_string(stack.data().join("audit.log")).unwrap();
    let refused = trail
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .find(|line| line["decision"] == "refused");
    assert_eq!(refused.unwrap()["user"], "cert:bob");
    // New certificates with SIGHUP: alice's signer is believed no more, the stranger's is.
    std::fs::copy(folder.path().join("other.pem"), folder.path().join("ca-now.pem")).unwrap();
    let config = config.replace("ca.pem", "ca-now.pem").replace("cert:alice", "cert:stranger");
    std::fs::write(stack.root().join("engine.toml"), config).unwrap();
    stack.signal_engine(Signal::SIGHUP);
    eventually("alice is refused", || match run(Some("alice"), &["version"]) {
        (Some(0), said) => Err(said),
        _ => Ok(()),
    });
}

#[test]
fn tcp_without_certificates_is_asked_for_by_name() {
    let port = testing::free_port();
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-engine"));
    let refused = command.args(["--validate", "-H", &format!("tcp://127.0.0.1:{port}")]).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("say --insecure-tcp"), "{said}");
    let stack = engine!(&format!("hosts = ['unix://', 'tcp://127.0.0.1:{port}']\ntls = false\n"));
    let mut plain = TcpStream::connect(("127.0.0.1", port)).unwrap();
    plain.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("OK"), "{answer}");
    let warnings = stack.get("/info").json()["Warnings"].to_string();
    assert!(warnings.contains("without encryption"), "{warnings}");
    let log = std::fs::read_to_string(stack.root().join("engine.log")).unwrap();
    assert!(log.contains("whoever can connect to this port is root on this machine"), "{log}");
}

/// As systemd starts it: two sockets and a place to report to.
fn activated(stack: &Stack, sockets: &[&UnixListener], notify: &Path) -> std::process::Child {
    let command = stack.command();
    let log = std::fs::File::options().create(true).append(true).open(stack.root().join("engine.log")).unwrap();
    // `exec 3<&N 4<&M`, and LISTEN_PID is the shell's own number, which exec keeps.
    let moves: String =
        sockets.iter().enumerate().map(|(at, socket)| format!(" {}<&{}", at + 3, socket.as_raw_fd())).collect();
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec{moves}; LISTEN_PID=$$; export LISTEN_PID; exec \"$@\"")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    shell
        .env("LISTEN_FDS", sockets.len().to_string())
        .env("LISTEN_FDNAMES", "engine:second")
        .env("NOTIFY_SOCKET", notify);
    shell.stdout(log.try_clone().unwrap()).stderr(log).stdin(std::process::Stdio::null());
    for socket in sockets {
        pass_on(socket);
    }
    shell.spawn().unwrap()
}

fn pass_on(socket: &UnixListener) {
    nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
}

/// Reads a log that is followed until a word comes.
fn hear(following: &mut UnixStream, word: &[u8]) {
    let (mut log, mut piece) = (Vec::new(), [0; 256]);
    while !log.windows(word.len()).any(|part| part == word) {
        let count = following.read(&mut piece).unwrap();
        assert!(count > 0, "the log ended: {}", String::from_utf8_lossy(&log));
        log.extend_from_slice(&piece[..count]);
    }
}

#[test]
fn a_service_manager_keeps_the_socket_over_a_restart() {
    let mut stack = engine!();
    let id = stack.create("?name=on", &json!({"Cmd": ["sleep", "1000"]}));
    stack.start_container(&id);
    stack.stop_engine();
    let folder = tempfile::tempdir().unwrap();
    let first = UnixListener::bind(stack.run().join("engine.sock")).unwrap();
    let second = UnixListener::bind(folder.path().join("second.sock")).unwrap();
    let notify = folder.path().join("notify");
    let reports = UnixDatagram::bind(&notify).unwrap();
    reports.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let heard = |wanted: &str| {
        let mut bytes = [0; 4096];
        loop {
            let length = reports.recv(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
            if text.contains(wanted) {
                return text;
            }
        }
    };
    let mut engine = activated(&stack, &[&first, &second], &notify);
    heard("READY=1");
    assert_eq!(stack.get("/_ping").text(), "OK");
    assert!(UnixStream::connect(folder.path().join("second.sock")).is_ok());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine.id().cast_signed()), Signal::SIGHUP).unwrap();
    assert!(heard("RELOADING=1").contains("MONOTONIC_USEC="));
    heard("READY=1");

    // A stop in the middle of requests: one that acts is finished, a stream ends, and who comes meanwhile waits for the next engine.
    stack.create(
        "?name=slow",
        &json!({"Cmd": ["sh", "-c", "trap 'echo told; usleep 1500000; exit 4' TERM; echo ready; while true; do usleep 10000; done"]}),
    );
    stack.start_container("slow");
    let (head, mut following) = stack.begin("GET", "/containers/slow/logs?stdout=1&follow=1");
    assert!(head.starts_with("HTTP/1.1 200"));
    // By then the shell hears signals.
    hear(&mut following, b"ready");
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| stack.post("/containers/slow/stop?t=30", &Value::Null).status);
        hear(&mut following, b"told");
        let begun = Instant::now();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine.id().cast_signed()), Signal::SIGTERM).unwrap();
        heard("STOPPING=1");
        let mut rest = Vec::new();
        following.read_to_end(&mut rest).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(4), "the stream held the engine up: {:?}", begun.elapsed());
        let waiting = scope.spawn(|| stack.get("/containers/on/json").json());
        assert_eq!(stopping.join().unwrap(), 204, "an operation in hand is finished");
        assert!(engine.wait().unwrap().success());
        assert!(stack.run().join("engine.sock").exists(), "the socket is the service manager's");
        engine = activated(&stack, &[&first, &second], &notify);
        assert_eq!(waiting.join().unwrap()["State"]["Running"], true, "a client that came in between is served");
    });
    assert_eq!(stack.inspect("slow")["State"]["ExitCode"], 4);
    stack.adopt(engine);
}

#[test]
fn groups_and_numbers_of_processes() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let folder = tempfile::tempdir().unwrap();
    let pidfile = folder.path().join("sub/engine.pid");
    let mut stack = engine!(&format!("group = '12345'\npidfile = '{}'\noom-score-adjust = 7\n", pidfile.display()));
    let meta = std::fs::metadata(stack.run().join("engine.sock")).unwrap();
    assert_eq!((meta.gid(), meta.permissions().mode() & 0o777), (12345, 0o660));
    let pid = stack.engine_pid();
    assert_eq!(std::fs::read_to_string(&pidfile).unwrap(), pid.to_string());
    assert_eq!(std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "7");
    // A second engine on the same folders, or with the same pidfile, says what is in its way.
    let second = stack.command().output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another berth-engine uses"), "{said}");
    assert_eq!(std::fs::read_to_string(&pidfile).unwrap(), pid.to_string());
    stack.stop_engine();
    assert!(!pidfile.exists() && !stack.run().join("engine.sock").exists());
    let unknown = stack.command().args(["--group", "nobody-has-this-group"]).output().unwrap();
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(!unknown.status.success() && said.contains("there is no group nobody-has-this-group"), "{said}");
    let alone = stack.command().args(["--host", "fd://"]).output().unwrap();
    let said = String::from_utf8_lossy(&alone.stderr).into_owned();
    assert!(!alone.status.success() && said.contains("the service manager has passed no such socket"), "{said}");
    stack.start_engine();
}
