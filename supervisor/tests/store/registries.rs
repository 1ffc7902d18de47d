//! Pulls: from a real registry, and from one of our own that misbehaves on demand.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use proto::digest::Digest;
use serde_json::json;

use crate::{
    archives::{Image, descriptor, gzip, layer, noise},
    harness::{Supervisor, unpacking},
};

/// Debian's docker-registry on loopback.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) port: u16,
    _dir: tempfile::TempDir,
}

impl DockerRegistry {
    pub(crate) fn start() -> Self {
        Self::start_with("", "")
    }

    /// With TLS by the certificate and key of a folder, and with a user "me" whose password is "secret".
    pub(crate) fn start_locked(certificates: &std::path::Path) -> Self {
        let at = certificates.display();
        let users = certificates.join("htpasswd");
        std::fs::write(&users, "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n").unwrap();
        Self::start_with(
            &format!(", tls: {{certificate: {at}/server.crt, key: {at}/server.key}}"),
            &format!("auth: {{htpasswd: {{realm: here, path: {}}}}}\n", users.display()),
        )
    }

    /// With TLS, and for everybody.
    pub(crate) fn start_open(certificates: &std::path::Path) -> Self {
        let at = certificates.display();
        Self::start_with(&format!(", tls: {{certificate: {at}/server.crt, key: {at}/server.key}}"), "")
    }

    /// With TLS, and for those alone who show a certificate that this one signed.
    pub(crate) fn start_choosy(certificates: &std::path::Path) -> Self {
        let at = certificates.display();
        let tls = format!("certificate: {at}/server.crt, key: {at}/server.key, clientcas: [{at}/server.crt]");
        Self::start_with(&format!(", tls: {{{tls}}}"), "")
    }

    fn start_with(http: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = testing::free_port();
        let config = dir.path().join("config.yml");
        let root = dir.path().join("data");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"{http}}}\n{more}",
            root.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, port, _dir: dir }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_real_registry_by_tag_and_by_digest() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let registry = DockerRegistry::start();
    let image = Image::new(&[layer(&[("a", &noise(3 << 20))]), layer(&[("b", b"2")])], gzip);
    let file = supervisor.root.join("image.tar");
    std::fs::write(&file, image.oci_archive("org.opencontainers.image.ref.name", "x")).unwrap();
    let name = format!("127.0.0.1:{}/team/app", registry.port);
    let pushed = Command::new("skopeo")
        .args(["copy", "--dest-tls-verify=false", &format!("oci-archive:{}:x", file.display())])
        .arg(format!("docker://{name}:1"))
        .output()
        .unwrap();
    assert!(pushed.status.success(), "{}", String::from_utf8_lossy(&pushed.stderr));
    let (done, told) = client.pull(&format!("{name}:1"), None, &unpacking()).await;
    done.unwrap();
    let events =
        |digest: &str| -> Vec<&str> { told.iter().filter(|p| p.name == digest).map(|p| p.event.as_str()).collect() };
    let first = Digest::of(&image.layers[0]).to_string();
    let seen = events(&first);
    assert!(
        ["waiting", "downloading", "complete", "extracting", "extracted"].iter().all(|e| seen.contains(e)),
        "{seen:?}"
    );
    assert_eq!(told.last().unwrap().name, format!("{name}:1"));
    let by_digest = format!("{name}@{}", image.digest());
    let (done, told) = client.pull(&by_digest, None, &unpacking()).await;
    done.unwrap();
    assert!(told.iter().any(|p| p.name == first && p.event == "already exists"));
    let mut names: Vec<_> = client.images().await.into_iter().map(|i| i.name).collect();
    names.sort();
    assert_eq!(names, [format!("{name}:1"), by_digest]);
    assert_eq!(client.snapshots().await.len(), 2);
    let unknown = client.pull(&format!("{name}:none"), None, &unpacking()).await.0.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    assert_eq!(unknown.message(), format!("manifest for {name}:none not found: manifest unknown"));
    let unknown = client.pull(&format!("127.0.0.1:{}/other", registry.port), None, &unpacking()).await.0.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound, "{unknown:?}");
    // containerd's own client on the same supervisor.
    let pulled = supervisor.ctr(&["images", "pull", "--plain-http", &format!("{name}:1")]).unwrap();
    assert!(pulled.contains("done"), "{pulled}");
}

/// What a fake registry does wrong, and what it has seen.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) manifests: HashMap<String, Vec<u8>>,
    pub(crate) blobs: HashMap<Digest, Vec<u8>>,
    // Bytes after which a blob's first answers are cut off.
    cut_after: Option<usize>,
    cuts: u32,
    // Wants a token for this user and password.
    pub(crate) login: Option<(String, String)>,
    // Blobs are elsewhere.
    redirect_to: Option<u16>,
    pub(crate) seen: Vec<String>,
}

impl Fake {
    pub(crate) fn of(image: &Image) -> Self {
        let mut fake = Self::default();
        fake.manifests.insert("1".into(), image.manifest.clone());
        for blob in image.layers.iter().chain([&image.config]) {
            fake.blobs.insert(Digest::of(blob), blob.clone());
        }
        fake
    }

    /// Serves until the test's process ends.
    pub(crate) fn serve(self) -> (u16, Arc<Mutex<Self>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Mutex::new(self));
        let fake = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let fake = fake.clone();
                std::thread::spawn(move || answer(stream, port, &fake));
            }
        });
        (port, shared)
    }
}

fn answer(mut stream: TcpStream, port: u16, fake: &Mutex<Fake>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let header = |name: &str| {
        let found = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        Some(found.split_once(':')?.1.trim().to_owned())
    };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let authorization = header("authorization");
    let mut fake = fake.lock().unwrap();
    fake.seen.push(format!("{path} auth={}", authorization.as_deref().unwrap_or("-")));
    let mut reply = |status: &str, headers: &str, body: &[u8], length: usize| {
        let text = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.write_all(body));
    };
    if path.starts_with("/token") {
        let (user, password) = fake.login.clone().unwrap();
        use base64::Engine;
        let wanted =
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")));
        let right = authorization.as_deref() == Some(&wanted);
        let body = br#"{"token":"sesame"}"#;
        return if right { reply("200 OK", "", body, body.len()) } else { reply("401 Unauthorized", "", b"", 0) };
    }
    if fake.login.is_some() && path.starts_with("/v2/") && authorization.as_deref() != Some("Bearer sesame") {
        let challenge = format!(
            "WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"fake\",scope=\"repository:app:pull\"\r\n"
        );
        return reply("401 Unauthorized", &challenge, b"", 0);
    }
    if let Some(name) = path.strip_prefix("/v2/app/manifests/") {
        return match fake.manifests.get(name) {
            Some(body) => reply("200 OK", "", body, body.len()),
            None => reply("404 Not Found", "", b"", 0),
        };
    }
    let digest = path.rsplit('/').next().unwrap_or_default().parse::<Digest>();
    if let Some(other) = fake.redirect_to {
        let location = format!("Location: http://127.0.0.1:{other}/elsewhere/{}\r\n", digest.unwrap());
        return reply("307 Temporary Redirect", &location, b"", 0);
    }
    let Some(body) = digest.ok().and_then(|d| fake.blobs.get(&d).cloned()) else {
        return reply("404 Not Found", "", b"", 0);
    };
    let start =
        header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()).unwrap_or(0_usize);
    let rest = &body[start..];
    let headers = if start > 0 {
        format!("Content-Range: bytes {start}-{}/{}\r\n", body.len() - 1, body.len())
    } else {
        String::new()
    };
    let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
    let sent = match fake.cut_after {
        Some(cut) if rest.len() > cut && fake.cuts > 0 => {
            fake.cuts -= 1;
            &rest[..cut]
        }
        _ => rest,
    };
    reply(status, &headers, sent, rest.len());
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = reader.read(&mut [0]);
}

fn image() -> Image {
    Image::new(&[layer(&[("big", &noise(3 << 20))]), layer(&[("small", b"x")])], gzip)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_download_goes_on_where_it_was() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = image();
    let (port, fake) = Fake { cut_after: Some(1_000_000), cuts: 2, ..Fake::of(&image) }.serve();
    client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await.0.unwrap();
    assert_eq!(fake.lock().unwrap().cuts, 0);
    let log = supervisor.log();
    assert_eq!(log.matches("download cut, taken up again").count(), 2, "{log}");
    assert_eq!(client.snapshots().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_go_to_the_registry_and_not_further() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = image();
    let (elsewhere, other) = Fake::of(&image).serve();
    let login = Some(("me".to_owned(), "pass".to_owned()));
    let fake = Fake { login, redirect_to: Some(elsewhere), ..Fake::of(&image) };
    let (port, _) = fake.serve();
    let name = format!("127.0.0.1:{port}/app:1");
    for wrong in [None, Some(("me", "guess"))] {
        let refused = client.pull(&name, wrong, &unpacking()).await.0.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated);
        assert!(refused.message().starts_with("pull access denied for 127.0.0.1"), "{refused:?}");
    }
    client.pull(&name, Some(("me", "pass")), &unpacking()).await.0.unwrap();
    let seen = &other.lock().unwrap().seen;
    assert!(seen.len() >= 3 && seen.iter().all(|line| line.ends_with("auth=-")), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let port = testing::free_port();
    let error = client.pull(&format!("127.0.0.1:{port}/app:1"), None, &unpacking()).await.0.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.message().starts_with(&format!("registry 127.0.0.1:{port} can't be reached: ")), "{error:?}");
    let error = client.pull("Bad Name", None, &unpacking()).await.0.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_resolved_for_the_platform() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let image = image();
    let mut mine = descriptor("application/vnd.oci.image.manifest.v1+json", &image.manifest);
    mine["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let mut other = descriptor("application/vnd.oci.image.manifest.v1+json", b"absent");
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "manifests": [other, mine]}).to_string().into_bytes();
    let mut fake = Fake::of(&image);
    fake.manifests.insert("multi".into(), index.clone());
    fake.manifests.insert(image.digest().to_string(), image.manifest.clone());
    fake.manifests.insert("foreign".into(), json!({"schemaVersion": 2, "manifests": [other]}).to_string().into());
    let (port, _) = fake.serve();
    let name = format!("127.0.0.1:{port}/app");
    client.pull(&format!("{name}:multi"), None, &unpacking()).await.0.unwrap();
    let target = client.images().await[0].target.clone().unwrap();
    assert_eq!(target.digest, Digest::of(&index).to_string());
    assert_eq!(client.snapshots().await.len(), 2);
    let none = client.pull(&format!("{name}:foreign"), None, &unpacking()).await.0.unwrap_err();
    assert!(none.message().contains("has no image for linux/amd64, only for linux/s390x"), "{none:?}");
}
