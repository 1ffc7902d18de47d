//! A supervisor and an engine of this build, under roots of their own, and a client for the engine's socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

/// Both daemons. They end with the value.
pub struct Stack {
    root: tempfile::TempDir,
    supervisor: Child,
    engine: Child,
    gateway: String,
}

/// What the engine answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub text: String,
}

impl Answer {
    /// The body as one JSON value.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e} in {self:?}"))
    }

    /// The body as lines of JSON.
    pub fn lines(&self) -> Vec<serde_json::Value> {
        let lines = self.text.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line:?}"))).collect()
    }

    /// The `message` of an error.
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The `error` of a stream that failed.
    pub fn error(&self) -> Option<String> {
        self.lines().iter().find_map(|line| line["error"].as_str().map(str::to_owned))
    }
}

fn supervisor_program() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_BIN_EXE_berth-engine")).with_file_name("berth-supervisor");
    beside.exists().then_some(beside)
}

impl Stack {
    /// Starts both; `None`, and a line that says why, where that cannot be.
    pub fn start() -> Option<Self> {
        Self::start_on(None)
    }

    /// The same, with further arguments for the engine.
    pub fn start_with(arguments: &[&str]) -> Option<Self> {
        Self::begin_on(None, arguments)
    }

    /// The same, with room for only so many bytes if `room` is given.
    pub fn start_on(room: Option<usize>) -> Option<Self> {
        Self::begin_on(room, &[])
    }

    fn begin_on(room: Option<usize>, arguments: &[&str]) -> Option<Self> {
        Self::begin_with(room, arguments, "")
    }

    /// The same, with a configuration for the supervisor.
    pub fn start_configured(supervisor: &str) -> Option<Self> {
        Self::begin_with(None, &[], supervisor)
    }

    fn begin_with(room: Option<usize>, arguments: &[&str], config: &str) -> Option<Self> {
        let Some(program) = supervisor_program() else {
            eprintln!("skipped: berth-supervisor is not built (cargo build -p supervisor)");
            return None;
        };
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: snapshots need root");
            return None;
        }
        let root = tempfile::Builder::new().prefix("berth-images-").tempdir().unwrap();
        if let Some(bytes) = room {
            let data = root.path().join("D");
            std::fs::create_dir(&data).unwrap();
            let size = format!("size={bytes}");
            let flags = nix::mount::MsFlags::empty();
            nix::mount::mount(Some("tmpfs"), &data, Some("tmpfs"), flags, Some(size.as_str())).unwrap();
        }
        let file = root.path().join("supervisor.toml");
        std::fs::write(&file, config).unwrap();
        let supervisor = spawn(&program, root.path(), "supervisor", &["--config", file.to_str().unwrap()]);
        wait_for(&root.path().join("R/supervisor.sock"));
        // Engines side by side, of other test runs too, need bridges and subnets of their own.
        static ENGINES: AtomicU8 = AtomicU8::new(0);
        let (number, pid) = (ENGINES.fetch_add(1, Ordering::Relaxed), std::process::id());
        let gateway = format!("10.{}.{number}.1", 64 + pid % 64);
        let (bridge, address) = (format!("bei{}x{number}", pid % 10_000), format!("{gateway}/24"));
        let arguments = [&["--bridge", &bridge, "--bip", &address], arguments].concat();
        let engine = spawn(Path::new(env!("CARGO_BIN_EXE_berth-engine")), root.path(), "engine", &arguments);
        wait_for(&root.path().join("R/engine.sock"));
        Some(Self { root, supervisor, engine, gateway })
    }

    /// Kills the supervisor outright and starts another.
    pub fn restart_supervisor(&mut self) {
        self.supervisor.kill().unwrap();
        self.supervisor.wait().unwrap();
        let program = supervisor_program().unwrap();
        self.supervisor = spawn(&program, self.root.path(), "supervisor", &[]);
    }

    /// The address of the engine's bridge: on this machine, and no loopback.
    pub fn gateway(&self) -> &str {
        &self.gateway
    }

    /// A request with a body sent in chunks; `Connection: close` makes the end of the answer plain.
    pub fn request(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let (status, body) = self.exchange(method, target, headers, body);
        Answer { status, text: String::from_utf8(body).unwrap() }
    }

    /// A file.
    pub fn get_bytes(&self, target: &str) -> Vec<u8> {
        let (status, body) = self.exchange("GET", target, &[], b"");
        assert_eq!(status, 200, "{target}: {}", String::from_utf8_lossy(&body));
        body
    }

    fn exchange(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = self.begin(method, target, headers);
        for piece in body.chunks(100_000) {
            send_chunk(&mut stream, piece).unwrap_or_else(|e| panic!("{method} {target}: send: {e}"));
        }
        // A GET is answered without a look at its body, so this may come too late.
        let _ = stream.write_all(b"0\r\n\r\n");
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            // What an answer before the end of the request ends with; that it came whole is checked below.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            ended => drop(ended.unwrap_or_else(|e| panic!("{method} {target}: {e}"))),
        }
        parse(&bytes).unwrap_or_else(|| panic!("{method} {target}: {}", String::from_utf8_lossy(&bytes)))
    }

    /// Sends the head of a request with a chunked body.
    pub fn begin(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> UnixStream {
        let mut stream = UnixStream::connect(self.root.path().join("R/engine.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nHost: d\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n");
        for (key, value) in headers {
            head.push_str(&format!("{key}: {value}\r\n"));
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream
    }

    pub fn get(&self, target: &str) -> Answer {
        self.request("GET", target, &[], b"")
    }

    pub fn post(&self, target: &str, body: &[u8]) -> Answer {
        self.request("POST", target, &[], body)
    }

    pub fn delete(&self, target: &str) -> Answer {
        self.request("DELETE", target, &[], b"")
    }

    /// Files that the supervisor keeps: blobs, half-written blobs, and folders of snapshots.
    pub fn left(&self) -> Vec<PathBuf> {
        let supervisor = self.root.path().join("D/supervisor");
        let mut left = Vec::new();
        for folder in ["content/blobs/sha256", "content/ingest", "snapshots/overlayfs"] {
            let entries = std::fs::read_dir(supervisor.join(folder)).into_iter().flatten().flatten();
            // "l" holds the short names of layers, and stays.
            left.extend(entries.map(|entry| entry.path()).filter(|path| path.file_name() != Some("l".as_ref())));
        }
        left
    }

    /// Waits until nothing is kept.
    pub fn expect_nothing_left(&self) {
        eventually("nothing is left", || match self.left() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("{left:?}")),
        });
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // In an orderly way, so that the engine takes its bridge with it.
        let engine = nix::unistd::Pid::from_raw(self.engine.id() as i32);
        let _ = nix::sys::signal::kill(engine, nix::sys::signal::Signal::SIGTERM);
        let _ = self.engine.wait();
        let _ = self.supervisor.kill();
        let _ = self.supervisor.wait();
        // Not mounted in most tests.
        let _ = nix::mount::umount2(&self.root.path().join("D"), nix::mount::MntFlags::MNT_DETACH);
        if std::thread::panicking() {
            for log in ["engine.log", "supervisor.log"] {
                eprintln!("{log}:\n{}", std::fs::read_to_string(self.root.path().join(log)).unwrap_or_default());
            }
        }
    }
}

/// Tries until it works, for a bounded time.
pub fn eventually(what: &str, mut attempt: impl FnMut() -> Result<(), String>) {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(()) => return,
            Err(why) if started.elapsed() > Duration::from_secs(60) => panic!("{what}: {why}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn spawn(program: &Path, root: &Path, name: &str, arguments: &[&str]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(root.join(format!("{name}.log"))).unwrap();
    Command::new(program)
        .arg("--data-root")
        .arg(root.join("D"))
        .arg("--run-root")
        .arg(root.join("R"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn wait_for(socket: &Path) {
    eventually(&format!("{} is served", socket.display()), || {
        UnixStream::connect(socket).map(drop).map_err(|e| e.to_string())
    });
}

pub fn send_chunk(stream: &mut UnixStream, piece: &[u8]) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes())?;
    stream.write_all(piece)?;
    stream.write_all(b"\r\n")
}

fn parse(bytes: &[u8]) -> Option<(u16, Vec<u8>)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let body = &bytes[end + 4..];
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Some((status, if chunked { dechunk(body)? } else { body.to_vec() }))
}

// `None` if the answer was cut off.
fn dechunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
