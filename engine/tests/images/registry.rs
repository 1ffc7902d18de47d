//! A registry on loopback, small enough to misbehave on demand.

use super::archive::{INDEX, Image, MANIFEST};
use base64::Engine as _;
use proto::digest::Digest;
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
};

/// What it serves. Its thread ends with the test's process.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
    pub address: String,
}

struct Shared {
    paths: Mutex<HashMap<String, Vec<u8>>>,
    password: Option<(String, String)>,
    stall: Mutex<bool>,
    stalled: Condvar,
    log: Mutex<Vec<String>>,
}

impl Registry {
    /// Starts one; with a user and password it wants basic authentication.
    pub fn start(password: Option<(&str, &str)>) -> Self {
        Self::start_at("127.0.0.1", password)
    }

    /// The same at another address of this machine.
    pub fn start_at(host: &str, password: Option<(&str, &str)>) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let password = password.map(|(user, password)| (user.to_owned(), password.to_owned()));
        let shared = Arc::new(Shared {
            paths: Mutex::default(),
            password,
            stall: Mutex::new(false),
            stalled: Condvar::new(),
            log: Mutex::default(),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || drop(serve(&shared, stream)));
            }
        });
        Self { shared, address }
    }

    /// Puts an image there under a tag.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        let mut paths = self.shared.paths.lock().unwrap();
        for reference in [tag, &image.digest()] {
            paths.insert(format!("/v2/{repository}/manifests/{reference}"), image.manifest.clone());
        }
        for blob in image.layers.iter().chain([&image.config]) {
            paths.insert(format!("/v2/{repository}/blobs/{}", Digest::of(blob)), blob.clone());
        }
    }

    /// Puts an index of several platforms there under a tag; gives its digest.
    pub fn push_index(&self, repository: &str, tag: &str, entries: &[(&str, &Image)]) -> String {
        let manifests: Vec<_> = entries
            .iter()
            .map(|(architecture, image)| {
                self.push(repository, &image.digest(), image);
                let platform = serde_json::json!({"os": "linux", "architecture": architecture});
                serde_json::json!({
                    "mediaType": MANIFEST, "digest": image.digest(), "size": image.manifest.len(), "platform": platform,
                })
            })
            .collect();
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
        let index = serde_json::to_vec(&index).unwrap();
        let digest = Digest::of(&index).to_string();
        let mut paths = self.shared.paths.lock().unwrap();
        for reference in [tag, &digest] {
            paths.insert(format!("/v2/{repository}/manifests/{reference}"), index.clone());
        }
        digest
    }

    /// Answers a path with this.
    pub fn put(&self, path: &str, body: &serde_json::Value) {
        self.shared.paths.lock().unwrap().insert(path.to_owned(), serde_json::to_vec(body).unwrap());
    }

    /// Puts other bytes in the place of a blob.
    pub fn replace_blob(&self, repository: &str, blob: &[u8], with: Vec<u8>) {
        let path = format!("/v2/{repository}/blobs/{}", Digest::of(blob));
        assert!(self.shared.paths.lock().unwrap().insert(path, with).is_some(), "no such blob");
    }

    /// From now on large blobs stop in their middle.
    pub fn stall(&self, stall: bool) {
        *self.shared.stall.lock().unwrap() = stall;
        self.shared.stalled.notify_all();
    }

    /// Paths that were asked for.
    pub fn log(&self) -> Vec<String> {
        self.shared.log.lock().unwrap().clone()
    }
}

fn serve(shared: &Shared, mut stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
        let mut authorization = String::new();
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            if header.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("authorization")
            {
                authorization = value.trim().to_owned();
            }
        }
        let path = path.split('?').next().unwrap_or("").to_owned();
        shared.log.lock().unwrap().push(format!("{method} {path}"));
        answer(shared, &mut stream, &method, &path, &authorization)?;
    }
}

fn answer(
    shared: &Shared,
    stream: &mut TcpStream,
    method: &str,
    path: &str,
    authorization: &str,
) -> std::io::Result<()> {
    if let Some((user, password)) = &shared.password {
        let wanted = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        if authorization != format!("Basic {wanted}") {
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            return head(
                stream,
                "401 Unauthorized",
                body.len(),
                "Content-Type: application/json\r\nWWW-Authenticate: Basic realm=\"test\"\r\n",
            )
            .and_then(|()| stream.write_all(body.as_bytes()));
        }
    }
    if path == "/v2/" {
        return head(stream, "200 OK", 2, "").and_then(|()| stream.write_all(b"{}"));
    }
    let blob = shared.paths.lock().unwrap().get(path).cloned();
    let Some(blob) = blob else {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        let sent = head(stream, "404 Not Found", body.len(), "Content-Type: application/json\r\n");
        return sent.and_then(|()| if method == "HEAD" { Ok(()) } else { stream.write_all(body.as_bytes()) });
    };
    let kind = match path.contains("/manifests/") {
        true if blob.windows(INDEX.len()).any(|window| window == INDEX.as_bytes()) => INDEX,
        true => MANIFEST,
        false => "application/octet-stream",
    };
    // The digest asked for, as registries do: of a replaced blob it is a lie, and the client has to notice.
    let digest = match path.rsplit('/').next() {
        Some(last) if last.starts_with("sha256:") => last.to_owned(),
        _ => Digest::of(&blob).to_string(),
    };
    head(stream, "200 OK", blob.len(), &format!("Content-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\n"))?;
    if method == "HEAD" {
        return Ok(());
    }
    // Large ones only: the config comes first, and would hold up everything.
    let half = if blob.len() > 1_000_000 { blob.len() / 2 } else { 0 };
    stream.write_all(&blob[..half])?;
    stream.flush()?;
    if half > 0 {
        let stall = shared.stall.lock().unwrap();
        drop(shared.stalled.wait_while(stall, |stall| *stall).unwrap());
    }
    stream.write_all(&blob[half..])
}

fn head(stream: &mut TcpStream, status: &str, length: usize, headers: &str) -> std::io::Result<()> {
    stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n").as_bytes())
}
