//! kubectl itself, a client in Go, over a server that knows one pod and passes its streams on, as an API server and a kubelet do.

use std::{net::SocketAddr, process::Stdio};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
};

use super::*;

/// A cluster of one pod.
struct Cluster {
    api: SocketAddr,
    server: Arc<Server>,
    websockets: Arc<AtomicUsize>,
    home: tempfile::TempDir,
}

impl Cluster {
    /// None if there is no kubectl.
    async fn new() -> Option<Self> {
        if !std::env::split_paths(&std::env::var_os("PATH")?).any(|folder| folder.join("kubectl").is_file()) {
            println!("skipped: needs kubectl");
            return None;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (api, server) = (listener.local_addr().unwrap(), Arc::new(Server::new().await));
        let websockets = Arc::<AtomicUsize>::default();
        let (passing, count) = (server.clone(), websockets.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (server, count) = (passing.clone(), count.clone());
                tokio::spawn(async move { pass(stream, &server, &count).await });
            }
        });
        Some(Self { api, server, websockets, home: tempfile::tempdir().unwrap() })
    }

    fn kubectl(&self, websockets: bool, args: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command.arg(format!("--server=http://{}", self.api)).args(args).kill_on_drop(true);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        for name in ["KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"] {
            command.env(name, websockets.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it with this input, to its end.
    async fn run(&self, websockets: bool, args: &[&str], input: &[u8]) -> (Option<i32>, String, String) {
        let mut child = self.kubectl(websockets, args).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let feed = async move {
            let _ = stdin.write_all(input).await;
        };
        let work = async { tokio::join!(feed, child.wait_with_output()).1.unwrap() };
        let output = tokio::time::timeout(Duration::from_secs(60), work).await.expect("kubectl ends");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

fn answer(path: &str) -> Option<serde_json::Value> {
    let pod = serde_json::json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"containers": [{"name": "web", "image": "web", "stdin": true}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "web", "ready": true, "state": {"running": {}}}]},
    });
    Some(match path {
        "/api" => serde_json::json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => serde_json::json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        "/api/v1" => serde_json::json!({
            "kind": "APIResourceList", "groupVersion": "v1",
            "resources": [{"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"]}],
        }),
        "/api/v1/namespaces/default/pods/web" => pod,
        _ => return None,
    })
}

fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, behind @ ..] = rest {
        rest = behind;
        bytes.push(match (first, behind.first_chunk::<2>()) {
            (b'%', Some(digits)) => {
                rest = &behind[2..];
                u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            }
            (b'+', _) => b' ',
            _ => *first,
        });
    }
    String::from_utf8(bytes).unwrap()
}

async fn pass(mut stream: TcpStream, server: &Server, websockets: &AtomicUsize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let head = String::from_utf8(head).unwrap();
    let (method, rest) = head.split_once(' ').unwrap();
    let (place, rest) = rest.split_once(' ').unwrap();
    let (path, query) = place.split_once('?').unwrap_or((place, ""));
    let pairs: Vec<_> = query.split('&').filter_map(|pair| pair.split_once('=')).collect();
    let is = |name| pairs.contains(&(name, "true"));
    let wants = Wants { stdin: is("stdin"), stdout: is("stdout"), stderr: is("stderr"), tty: is("tty") };
    let order = match path.strip_prefix("/api/v1/namespaces/default/pods/web/") {
        Some("exec") => {
            let command = pairs.iter().filter(|(name, _)| *name == "command").map(|(_, word)| unescape(word)).collect();
            Order::Exec { target: target(""), command, wants }
        }
        Some("attach") => Order::Attach { target: target("echo attached; read line; echo got $line"), wants },
        Some("portforward") => Order::PortForward { netns: None, ports: Vec::new() },
        _ => {
            let (status, body) = match answer(path) {
                Some(body) => ("200 OK", body),
                None => ("404 Not Found", serde_json::json!({"kind": "Status", "code": 404, "message": path})),
            };
            let body = body.to_string();
            let text = format!(
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            return drop(stream.write_all(text.as_bytes()).await);
        }
    };
    if head.to_lowercase().contains("upgrade: websocket") {
        websockets.fetch_add(1, SeqCst);
    }
    let url = server.url(order);
    let path = url.split_at(url.rfind(['/']).and_then(|last| url[..last].rfind('/')).unwrap()).1;
    let mut behind = TcpStream::connect(server.address).await.unwrap();
    behind.write_all(format!("{method} {path} {rest}").as_bytes()).await.unwrap();
    let _ = copy_bidirectional(&mut stream, &mut behind).await;
}

#[tokio::test]
async fn exec_and_attach() {
    let Some(cluster) = Cluster::new().await else { return };
    let before = tasks();
    for websockets in [false, true] {
        let script = "cat; echo wrong >&2; exit 7";
        let (code, out, err) =
            cluster.run(websockets, &["exec", "-i", "web", "--", "sh", "-c", script], b"hello\n").await;
        assert_eq!((code, &*out), (Some(7), "hello\n"), "{websockets}: {err}");
        assert!(err.contains("wrong\n") && err.contains("exit code 7"), "{err}");
        let (code, out, err) =
            cluster.run(websockets, &["exec", "web", "--", "head", "-c", "20000000", "/dev/zero"], b"").await;
        assert_eq!((code, out.len(), &*err), (Some(0), 20_000_000, ""));
        let input = vec![b'x'; 5_000_000];
        let (code, out, err) = cluster.run(websockets, &["exec", "-i", "web", "--", "wc", "-c"], &input).await;
        assert_eq!((code, out.trim(), &*err), (Some(0), "5000000", ""));
        let (code, _, err) = cluster.run(websockets, &["exec", "web", "--", "/no/such"], b"").await;
        assert!(code == Some(1) && err.contains("No such file or directory"), "{code:?} {err}");
        let (code, out, err) = cluster.run(websockets, &["attach", "-i", "web"], b"typed\n").await;
        assert!(code == Some(0) && out.contains("attached\ngot typed\n"), "{code:?} {out} {err}");
    }
    until_quiet(before).await;
    // All but those that never began.
    assert_eq!((cluster.server.host.forgotten.load(SeqCst), cluster.websockets.load(SeqCst)), (8, 5));
}

#[tokio::test]
async fn ports() {
    let Some(cluster) = Cluster::new().await else { return };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(forward::capitals(listener));
    let mut child = cluster.kubectl(false, &["port-forward", "pod/web", &format!(":{port}")]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(Duration::from_secs(30), lines.next_line()).await.unwrap().unwrap().unwrap();
    let local = line.strip_prefix("Forwarding from ").unwrap().split(' ').next().unwrap().to_owned();
    let mut clients = Vec::new();
    for number in 0..20 {
        let local = local.clone();
        clients.push(tokio::spawn(async move {
            let mut stream = TcpStream::connect(local).await.unwrap();
            stream.write_all(format!("connection {number}").as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            assert_eq!(said, format!("CONNECTION {number}"));
        }));
    }
    for client in clients {
        tokio::time::timeout(Duration::from_secs(30), client).await.expect("a connection ends").unwrap();
    }
}
