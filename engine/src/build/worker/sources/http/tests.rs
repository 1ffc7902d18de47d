use super::*;
use crate::build::worker::sources::testing::{Clients, step};
use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
};

/// What a server was asked: path and headers in small letters.
type Asked = Arc<Mutex<Vec<(String, BTreeMap<String, String>)>>>;

/// A server on loopback; `answer` makes the whole answer of path and headers.
async fn server(answer: impl Fn(&str, &BTreeMap<String, String>) -> String + Send + Sync + 'static) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Asked::default();
    let (kept, answer) = (asked.clone(), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (kept, answer) = (kept.clone(), answer.clone());
            tokio::spawn(async move { serve(stream, &kept, answer.as_ref()).await });
        }
    });
    (address, asked)
}

async fn serve(mut stream: TcpStream, asked: &Asked, answer: &impl Fn(&str, &BTreeMap<String, String>) -> String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap().to_owned();
    let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    let headers: BTreeMap<String, String> = headers.map(|(k, v)| (k.to_lowercase(), v.to_owned())).collect();
    let text = answer(&path, &headers);
    asked.lock().unwrap().push((path, headers));
    let _ = stream.write_all(text.as_bytes()).await;
}

fn ok(body: &str, headers: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len())
}

fn http() -> (tempfile::TempDir, Http) {
    let folder = tempfile::tempdir().unwrap();
    let http = Http::at(folder.path().join("http"), Proxies::default()).unwrap();
    (folder, http)
}

fn source(url: &str, attrs: &[(&str, &str)]) -> pb::SourceOp {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    pb::SourceOp { identifier: url.to_owned(), attrs }
}

async fn pin(http: &Http, url: &str, attrs: &[(&str, &str)]) -> Result<Pin, StepError> {
    http.pin(&source(url, attrs), &Clients::default(), &step()).await
}

/// What the filesystem of a pin would have.
async fn placed(http: &Http, pinned: &pb::SourceOp) -> (tempfile::TempDir, String) {
    let wish = Wish::read(pinned).unwrap();
    let root = tempfile::tempdir().unwrap();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let fd = nix::fcntl::open(root.path(), flags, Mode::empty()).unwrap();
    place(&fd, &wish, &http.memory(&wish), &http.body(&wish)).unwrap();
    let name = fs::read_dir(root.path()).unwrap().next().unwrap().unwrap().file_name();
    (root, name.into_string().unwrap())
}

#[tokio::test]
async fn what_has_not_changed_is_not_fetched_again() {
    let (address, asked) = server(|_, headers| match headers.get("if-none-match").map(String::as_str) {
        Some("\"one\"") => "HTTP/1.1 304 Not Modified\r\n\r\n".into(),
        _ => ok("hello", "ETag: \"one\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
    })
    .await;
    let (_folder, http) = http();
    let url = format!("{address}/dir/file.txt?x=y");
    let first = pin(&http, &url, &[]).await.unwrap();
    assert_eq!(first.source.attrs[CHECKSUM], Digest::of(b"hello").to_string());
    let (root, name) = placed(&http, &first.source).await;
    let meta = fs::metadata(root.path().join(&name)).unwrap();
    assert_eq!((name.as_str(), meta.permissions().mode() & 0o7777, meta.mtime()), ("file.txt", 0o600, 784_111_777));
    let second = pin(&http, &url, &[]).await.unwrap();
    assert_eq!(first, second);
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0].0, "/dir/file.txt?x=y");
    assert_eq!(asked[1].1["if-modified-since"], "Sun, 06 Nov 1994 08:49:37 GMT");
    assert!(!asked[0].1.contains_key("if-none-match"));
}

#[tokio::test]
async fn attributes_choose_and_belong_to_the_key() {
    let (address, _) = server(|_, _| ok("x", "Content-Disposition: attachment; filename=\"../of/server\"\r\n")).await;
    let (_folder, http) = http();
    let plain = pin(&http, &format!("{address}/"), &[]).await.unwrap();
    assert_eq!(plain.source.attrs[FILENAME], "server");
    let url = format!("{address}/");
    let chosen = pin(&http, &url, &[(FILENAME, "mine"), (PERM, "0755"), (UID, "3"), (GID, "4")]).await.unwrap();
    assert_ne!(plain.key, chosen.key);
    let (root, name) = placed(&http, &chosen.source).await;
    let meta = fs::metadata(root.path().join(&name)).unwrap();
    assert_eq!((name.as_str(), meta.mode() & 0o7777, meta.uid(), meta.gid()), ("mine", 0o755, 3, 4));
    for (key, value) in [
        (FILENAME, ".."),
        (PERM, "9"),
        (PERM, "777777"),
        (UID, "-1"),
        (CHECKSUM, "sha256:x"),
        ("http.header.host", "x"),
    ] {
        assert!(matches!(pin(&http, &url, &[(key, value)]).await, Err(StepError::Invalid(_))), "{key}={value}");
    }
    for url in ["file:///etc/passwd", "http://", "ftp://x/y", "http:/x"] {
        assert!(matches!(pin(&http, url, &[]).await, Err(StepError::Invalid(_))), "{url}");
    }
}

#[tokio::test]
async fn a_checksum_is_believed_until_the_file_comes() {
    let (address, asked) = server(|_, _| ok("other", "")).await;
    let (_folder, http) = http();
    let url = format!("{address}/f");
    let wanted = Digest::of(b"wanted").to_string();
    let pinned = pin(&http, &url, &[(CHECKSUM, &wanted)]).await.unwrap();
    assert!(asked.lock().unwrap().is_empty());
    let wish = Wish::read(&pinned.source).unwrap();
    let (memory, _) = http.download(&wish, None, &Clients::default(), &step()).await.unwrap();
    assert_ne!(memory.digest, wanted);
}

#[tokio::test]
async fn redirections_end_and_credentials_stay_at_home() {
    let (other, asked_other) = server(|path, _| ok(path, "")).await;
    // Another name of the same machine.
    let other = other.replace("127.0.0.1", "localhost");
    let to = other.clone();
    let (address, asked) = server(move |path, _| match path.split('?').next().unwrap_or_default() {
        "/away" => format!("HTTP/1.1 302 Found\r\nLocation: {to}/there\r\n\r\n"),
        "/here" => "HTTP/1.1 301 Moved\r\nLocation: again\r\n\r\n".into(),
        "/again" => ok("again", ""),
        "/loop" => "HTTP/1.1 302 Found\r\nLocation: /loop\r\n\r\n".into(),
        "/out" => "HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n".into(),
        _ => "HTTP/1.1 403 Forbidden\r\n\r\n".into(),
    })
    .await;
    let (_folder, http) = http();
    let clients = Clients([("HTTP_AUTH_HEADER_127.0.0.1".to_owned(), "Bearer t0ken\n".to_owned())].into());
    let pinned = http.pin(&source(&format!("{address}/away"), &[]), &clients, &step()).await.unwrap();
    assert_eq!(pinned.source.attrs[CHECKSUM], Digest::of(b"/there").to_string());
    assert_eq!(asked.lock().unwrap()[0].1["authorization"], "Bearer t0ken");
    assert!(!asked_other.lock().unwrap()[0].1.contains_key("authorization"));
    pin(&http, &format!("{address}/here"), &[]).await.unwrap();
    for (path, text) in [("loop", "10 redirects"), ("out", "no URL"), ("no", "invalid response status 403")] {
        let error = pin(&http, &format!("{address}/{path}?secret=1"), &[]).await.unwrap_err();
        let text_of = proto::kind::chain(&error);
        assert!(text_of.contains(text) && !text_of.contains("secret"), "{text_of}");
    }
}

#[tokio::test]
async fn a_half_file_is_none() {
    let (address, _) = server(|_, _| "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".into()).await;
    let (folder, http) = http();
    assert!(pin(&http, &format!("{address}/f"), &[]).await.is_err());
    assert_eq!(fs::read_dir(folder.path().join("http")).unwrap().count(), 0);
    fs::write(folder.path().join("http/part-x"), "").unwrap();
    Http::at(folder.path().join("http"), Proxies::default()).unwrap();
    assert_eq!(fs::read_dir(folder.path().join("http")).unwrap().count(), 0);
}

#[test]
fn where_redirections_lead() {
    let base: Uri = "https://u:p@h:1/a/b?q".parse().unwrap();
    for (to, url) in [
        ("c", Some("https://h:1/a/c")),
        ("/c?d#e", Some("https://h:1/c?d")),
        ("//other/x", Some("https://other/x")),
        ("http://other/", Some("http://other/")),
        ("gopher://x/", None),
    ] {
        assert_eq!(joined(&base, to).map(|uri| uri.to_string()).as_deref(), url, "{to}");
    }
    assert_eq!(shown(&base), "https://h:1/a/b");
}
