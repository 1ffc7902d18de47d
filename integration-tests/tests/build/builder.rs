//! Who builds: Debian's dockerd with its client, or Berth.

use crate::{corpus::Case, image};
use integration_tests::{Outcome, Stack, dockerd::Dockerd, http::Api, run_with};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

/// What came out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Built {
    Failed(String),
    Image { files: BTreeMap<String, String>, config: Value },
}

impl Built {
    pub fn show(&self) -> String {
        match self {
            Self::Failed(why) => format!("failed: {why}\n"),
            Self::Image { files, config } => {
                let mut text: String = files.values().map(|line| format!("{line}\n")).collect();
                text += &serde_json::to_string_pretty(config).unwrap();
                text + "\n"
            }
        }
    }
}

/// An engine with `busybox:latest`.
pub enum Builder {
    Dockerd { engine: Dockerd, client: PathBuf },
    Berth(Stack),
}

impl Builder {
    /// Debian's; where it or its own client is missing, says so.
    pub fn dockerd() -> Option<Self> {
        // A later client has no builder in it without the plugin buildx.
        let client = PathBuf::from("/usr/bin/docker");
        let said = Command::new(&client).arg("--version").output().ok()?.stdout;
        if !String::from_utf8_lossy(&said).contains(" 20.10.") {
            eprintln!(
                "skipped: needs Debian's docker client 20.10 as /usr/bin/docker, which builds with BuildKit by itself"
            );
            return None;
        }
        Some(Self::Dockerd { engine: Dockerd::with_busybox()?, client })
    }

    pub fn berth() -> Self {
        Self::Berth(Stack::with_busybox())
    }

    fn api(&self) -> Api {
        match self {
            Self::Dockerd { engine, .. } => engine.api(),
            Self::Berth(stack) => stack.api(),
        }
    }

    fn client(&self) -> Command {
        match self {
            Self::Dockerd { engine, client } => {
                let mut command = Command::new(client);
                command.arg("-H").arg(format!("unix://{}", engine.socket().display())).env("DOCKER_BUILDKIT", "1");
                command
            }
            Self::Berth(stack) => stack.client(stack.bin_dir().join("berth")),
        }
    }

    /// Builds a case, and reads what came out.
    pub fn build(&self, case: &Case) -> Built {
        let folder = tempfile::Builder::new().prefix("berth-corpus-").tempdir().unwrap();
        case.write(folder.path());
        let tag = format!("corpus-{}:latest", case.name);
        let mut command = self.client();
        command.args(["build", "--progress", "plain", "-t", &tag]).args(&case.args).current_dir(folder.path());
        if case.server {
            let port = serve(folder.path().to_owned());
            command.arg("--build-arg").arg(format!("SERVER=http://127.0.0.1:{port}"));
        }
        let stdin = case.stdin.as_ref().map(|name| fs::read(folder.path().join(name)).unwrap());
        command.arg(if stdin.is_some() { "-" } else { "." });
        let outcome: Outcome = run_with(&mut command, &stdin.unwrap_or_default(), Duration::from_secs(120));
        if outcome.code() != 0 {
            return Built::Failed(format!("{}{}", outcome.stdout(), outcome.stderr()));
        }
        let saved = self.api().open("GET", &format!("/images/{tag}/get"), None, "").unwrap().finish();
        // dockerd 20.10 can't save an image without layers; of such ones only the configuration is compared.
        if saved.status == 500 && saved.text().contains("empty export") {
            let inspected = self.api().get(&format!("/images/{tag}/json")).expect(200).json();
            return Built::Image { files: BTreeMap::new(), config: json!({ "config": inspected["Config"] }) };
        }
        let (files, mut config) = image::read(&saved.expect(200).body);
        if files.is_empty() {
            config = json!({ "config": config["config"] });
        }
        Built::Image { files, config }
    }
}

/// Serves the files of `folder` over HTTP on loopback, until the test ends; gives the port.
fn serve(folder: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let mut reader = BufReader::new(connection.try_clone().unwrap());
            let mut request = String::new();
            reader.read_line(&mut request).ok();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
                    break;
                }
            }
            answer(&folder, &request, connection);
        }
    });
    port
}

fn answer(folder: &Path, request: &str, mut connection: std::net::TcpStream) {
    let mut words = request.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or("/"));
    let body = fs::read(folder.join(path.trim_start_matches('/')));
    let status = if body.is_ok() { "200 OK" } else { "404 Not Found" };
    let body = body.unwrap_or_default();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: Sat, 03 Feb 2001 04:05:06 GMT\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).ok();
    if method != "HEAD" {
        connection.write_all(&body).ok();
    }
}
