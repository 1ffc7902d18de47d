//! An engine that says what a test tells it to: HTTP/1.1 on a unix socket, one thread per connection.

#![expect(clippy::unwrap_used, reason = "part of the tests: what fails here fails the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// A request that has arrived.
pub struct Request {
    /// "POST /containers/create?name=x", without the version.
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection, for what comes after the request.
    pub stream: UnixStream,
}

impl Request {
    /// A header, or "".
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }
}

/// The answer to a request.
pub enum Answer {
    /// Status and JSON.
    Json(u16, &'static str),
    /// 101, then these bytes, then the end.
    Stream(Vec<u8>),
    /// The handler has answered on the connection itself.
    Done,
}

pub struct Engine {
    dir: tempfile::TempDir,
    requests: Arc<Mutex<Vec<String>>>,
}

/// What a run of berth came to.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Engine {
    /// Starts an engine; pings are answered by itself.
    pub fn new(answer: impl Fn(&mut Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::of_version("1.51", answer)
    }

    /// Starts an engine that offers this version of the API; "" is one that offers none.
    pub fn of_version(version: &'static str, answer: impl Fn(&mut Request) -> Answer + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (requests.clone(), Arc::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (log, answer) = (log.clone(), answer.clone());
                thread::spawn(move || serve(stream.unwrap(), &log, &*answer, version));
            }
        });
        Self { dir, requests }
    }

    /// Lines of the requests so far, pings left out.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = berth(words);
        command.env("BERTH_HOST", format!("unix://{}", self.dir.path().join("sock").display()));
        command
    }

    pub fn run(&self, words: &[&str]) -> Run {
        self.run_with(words, b"")
    }

    /// Runs berth with something on standard input.
    pub fn run_with(&self, words: &[&str], input: &[u8]) -> Run {
        finish(self.command(words), input)
    }
}

/// berth without an engine.
pub fn berth(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth"));
    for name in
        ["DOCKER_HOST", "DOCKER_API_VERSION", "DOCKER_DEFAULT_PLATFORM", "DOCKER_TLS_VERIFY", "DOCKER_AUTH_CONFIG"]
    {
        command.env_remove(name);
    }
    command.env("DOCKER_CONFIG", "/nonexistent").env("BERTH_HOST", "unix:///nonexistent/engine.sock").args(words);
    command
}

pub fn finish(mut command: Command, input: &[u8]) -> Run {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // berth may not want its input.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// One frame of a multiplexed stream.
pub fn frame(channel: u8, text: &str) -> Vec<u8> {
    let mut frame = vec![channel, 0, 0, 0];
    frame.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    frame.extend(text.as_bytes());
    frame
}

fn serve(stream: UnixStream, log: &Mutex<Vec<String>>, answer: &dyn Fn(&mut Request) -> Answer, version: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    if reader.read_line(&mut first).unwrap_or(0) == 0 {
        return;
    }
    let (mut length, mut chunked, mut headers) = (0, false, Vec::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim().split_once(':') else { break };
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        if name == "content-length" {
            length = value.parse().unwrap();
        }
        chunked |= name == "transfer-encoding" && value == "chunked";
        headers.push((name, value));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    while chunked {
        let mut size = String::new();
        reader.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).unwrap();
        body.extend(&chunk[..size]);
        chunked = size > 0;
    }
    let words: Vec<&str> = first.split(' ').collect();
    let path = words[1].strip_prefix("/v1.51").unwrap_or(words[1]);
    let line = format!("{} {path}", words[0]);
    let mut request = Request { line: line.clone(), headers, body, stream };
    if path == "/_ping" {
        let head = if version.is_empty() { String::new() } else { format!("Api-Version: {version}\r\n") };
        // berth may have left.
        let _ =
            write!(request.stream, "HTTP/1.1 200 OK\r\n{head}Docker-Experimental: true\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    log.lock().unwrap().push(line);
    match answer(&mut request) {
        Answer::Json(status, text) => reply(&mut request.stream, status, text),
        Answer::Stream(bytes) => {
            upgrade(&mut request.stream);
            // berth may have left.
            let _ = request.stream.write_all(&bytes);
        }
        Answer::Done => {}
    }
}

/// Answers with a stream in both directions.
pub fn upgrade(stream: &mut UnixStream) {
    stream.write_all(b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n").unwrap();
}

pub fn reply(stream: &mut UnixStream, status: u16, text: &str) {
    let head = format!(
        "HTTP/1.1 {status} x\r\nApi-Version: 1.51\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        text.len()
    );
    // berth may have left.
    let _ = stream.write_all(format!("{head}{text}").as_bytes());
}
