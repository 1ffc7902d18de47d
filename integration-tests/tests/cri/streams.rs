//! Exec and attach as clients use them: at the address that a call gives, over WebSocket. (SPDY, and kubectl where it is installed, are
//! tested beside the server: `supervisor/src/cri/streaming/tests`.)

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use proto::runtime::v1 as cri;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use integration_tests::eventually::patience;
use integration_tests::kubelet::{Node, container, eventually, pod};

use crate::scene::{Scene, script};

/// A client over WebSocket.
pub struct Client {
    socket: TcpStream,
    pub(crate) channels: BTreeMap<u8, Vec<u8>>,
}

/// Sends a request to where streams are served; the connection, and the answer's head.
async fn request(node: &Node, method: &str, url: &str, headers: &str) -> (TcpStream, String) {
    let namespace = fs::File::open(node.host.namespace()).unwrap();
    request_in(namespace.as_fd(), method, url, headers).await.unwrap()
}

// The server is on the node's loopback.
async fn request_in(node: BorrowedFd<'_>, method: &str, url: &str, headers: &str) -> io::Result<(TcpStream, String)> {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let address: std::net::SocketAddr = host.parse().unwrap();
    let socket = sys::netns::within(node, || std::net::TcpStream::connect(address)).unwrap()?;
    socket.set_nonblocking(true)?;
    let mut socket = TcpStream::from_std(socket)?;
    let request = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await?);
    }
    Ok((socket, String::from_utf8_lossy(&head).into_owned()))
}

fn websocket(protocol: &str) -> String {
    format!(
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: eA==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n"
    )
}

impl Client {
    pub async fn connect(node: &Node, url: &str) -> Self {
        Self::connect_by(node, url, "v5.channel.k8s.io").await
    }

    async fn connect_by(node: &Node, url: &str, protocol: &str) -> Self {
        let namespace = fs::File::open(node.host.namespace()).unwrap();
        Self::attempt_by(namespace.as_fd(), url, protocol).await.unwrap()
    }

    /// Connects to a server on the loopback of a node, if it is there.
    pub async fn attempt(node: BorrowedFd<'_>, url: &str) -> io::Result<Self> {
        Self::attempt_by(node, url, "v5.channel.k8s.io").await
    }

    async fn attempt_by(node: BorrowedFd<'_>, url: &str, protocol: &str) -> io::Result<Self> {
        let (socket, head) = request_in(node, "GET", url, &websocket(protocol)).await?;
        match head.starts_with("HTTP/1.1 101 ") {
            true => Ok(Self { socket, channels: BTreeMap::new() }),
            false => Err(io::Error::other(head)),
        }
    }

    pub async fn write(&mut self, channel: u8, bytes: &[u8]) {
        self.try_write(channel, bytes).await.unwrap();
    }

    /// Sends, if the server is still there.
    pub async fn try_write(&mut self, channel: u8, bytes: &[u8]) -> io::Result<()> {
        let mut frame = vec![0x82, 0x80 | 126];
        frame.extend_from_slice(&(bytes.len() as u16 + 1).to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 0, channel]);
        frame.extend_from_slice(bytes);
        self.socket.write_all(&frame).await
    }

    async fn step(&mut self) -> bool {
        self.try_step().await.unwrap()
    }

    /// Hears one frame; whether there was one.
    pub async fn try_step(&mut self) -> io::Result<bool> {
        let mut head = [0; 2];
        if self.socket.read_exact(&mut head).await.is_err() {
            return Ok(false);
        }
        let length = match head[1] {
            126 => u64::from(self.socket.read_u16().await?),
            127 => self.socket.read_u64().await?,
            length => u64::from(length),
        };
        let mut body = vec![0; length as usize];
        self.socket.read_exact(&mut body).await?;
        if head[0] == 0x88 {
            return Ok(false);
        }
        assert_eq!(head[0], 0x82);
        self.channels.entry(body[0]).or_default().extend_from_slice(&body[1..]);
        Ok(true)
    }

    pub(crate) async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        let all = async {
            while !done(self) {
                assert!(self.step().await, "closed: {} {}", self.heard(1), self.heard(3));
            }
        };
        tokio::time::timeout(Duration::from_secs(20) * patience(), all).await.unwrap();
    }

    pub(crate) async fn end(&mut self) {
        let ended =
            tokio::time::timeout(Duration::from_secs(20) * patience(), async { while self.step().await {} }).await;
        assert!(ended.is_ok(), "{:?} {} {} {}", self.channels.keys(), self.heard(1), self.heard(2), self.heard(3));
    }

    /// All that came on a channel.
    pub fn heard(&self, channel: u8) -> String {
        String::from_utf8_lossy(self.channels.get(&channel).map_or(&[], |bytes| &bytes[..])).into_owned()
    }
}

/// Folders of streams that are open.
pub(crate) fn open_streams(node: &Node) -> usize {
    fs::read_dir(node.path().join("r/supervisor/streams")).map_or(0, |all| all.count())
}

pub(crate) async fn exec(node: &Node, id: &str, script: &str, tty: bool) -> Client {
    let cmd = ["sh", "-c", script].map(str::to_owned).into();
    let request = cri::ExecRequest {
        container_id: id.into(),
        cmd,
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
        ..Default::default()
    };
    Client::connect(node, &node.kubelet().exec(request).await.unwrap().into_inner().url).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_with_streams() {
    let Some(node) =
        Node::of_berth("containerd 1.6 serves WebSocket up to version 4, which can't say that stdin has ended").await
    else {
        return;
    };
    let (id, main) = node.sleeper(&pod("streams")).await;
    let mut client = exec(&node, &main, "cat; echo wrong >&2; exit 4", false).await;
    client.write(0, b"typed").await;
    client.until(|client| client.heard(1) == "typed").await;
    client.write(255, &[0]).await;
    client.end().await;
    assert_eq!((&*client.heard(1), &*client.heard(2)), ("typed", "wrong\n"));
    assert!(client.heard(3).contains(r#""message":"4""#), "{}", client.heard(3));

    let script = "read go; until busybox stty size 2>/dev/null | grep 33; do sleep 0.05; done";
    let mut client = exec(&node, &main, script, true).await;
    client.write(4, br#"{"Width":99,"Height":33}"#).await;
    client.write(0, b"go\n").await;
    client.end().await;
    assert!(client.heard(1).ends_with("33 99\r\n"), "{:?} {}", client.heard(1), client.heard(3));
    assert!(client.heard(3).contains("Success"));

    // One that leaves: its process reads the end, and goes on.
    let mut client = exec(&node, &main, "cat; echo end > /tmp/left", false).await;
    client.write(0, b"some").await;
    client.until(|client| client.heard(1) == "some").await;
    drop(client);
    eventually("it went on", async || {
        let there = node.exec(&main, &["test", "-e", "/tmp/left"]).await.unwrap();
        (there.exit_code == 0).then_some(())
    })
    .await;
    eventually("nothing is left", async || (open_streams(&node) == 0).then_some(())).await;
    node.remove_pod(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_attached() {
    let Some(node) =
        Node::of_berth("containerd 1.6 serves WebSocket up to version 4, which can't say that stdin has ended").await
    else {
        return;
    };
    let config = pod("attach");
    let id = node.run_pod(&config).await.unwrap();
    let mut wanted = container("main", "while read line; do echo main $line; done; echo bye");
    (wanted.stdin, wanted.stdin_once) = (true, true);
    let main = node.create(&id, &wanted, &config).await.unwrap();
    node.start_container(&main).await.unwrap();
    let attach = async |stdin: bool| {
        let request =
            cri::AttachRequest { container_id: main.clone(), stdin, stdout: true, stderr: true, ..Default::default() };
        Client::connect(&node, &node.kubelet().attach(request).await.unwrap().into_inner().url).await
    };
    let mut one = attach(false).await;
    one.until(|client| client.channels.contains_key(&1)).await;
    let mut two = attach(true).await;
    two.until(|client| client.channels.contains_key(&1)).await;
    two.write(0, b"one\n").await;
    two.until(|client| client.heard(1) == "main one\n").await;
    one.until(|client| client.heard(1) == "main one\n").await;
    two.write(255, &[0]).await;
    two.end().await;
    one.end().await;
    assert_eq!((&*one.heard(1), &*two.heard(1)), ("main one\nbye\n", "main one\nbye\n"));
    assert_eq!(node.ended(&main).await.exit_code, 0);
    eventually("nothing is left", async || (open_streams(&node) == 0).then_some(())).await;
    node.remove_pod(&id).await.unwrap();
}

const V4: &str = "v4.channel.k8s.io";

/// The address for a command that isn't told anything.
async fn exec_url(node: &Node, id: &str, script: &str, tty: bool) -> String {
    let cmd = ["sh", "-c", script].map(str::to_owned).into();
    let request = cri::ExecRequest {
        container_id: id.into(),
        cmd,
        tty,
        stdin: tty,
        stdout: true,
        stderr: !tty,
        ..Default::default()
    };
    node.kubelet().exec(request).await.unwrap().into_inner().url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_by_version_4() {
    let scene = Scene::new("v4").await;
    let id = scene.start(&script("exec sleep 1000")).await;
    for (text, code) in [("echo out; echo err >&2; exit 3", 3), ("echo out; echo err >&2", 0)] {
        let url = exec_url(&scene.node, &id, text, false).await;
        let mut client = Client::connect_by(&scene.node, &url, V4).await;
        client.end().await;
        assert_eq!((&*client.heard(1), &*client.heard(2)), ("out\n", "err\n"));
        let status: serde_json::Value = serde_json::from_str(&client.heard(3)).unwrap();
        if code == 0 {
            assert_eq!(status["status"], "Success");
        } else {
            assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"NonZeroExitCode".into()));
            let cause = &status["details"]["causes"][0];
            assert_eq!((&cause["reason"], &cause["message"]), (&"ExitCode".into(), &code.to_string().into()));
        }
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_the_size_of_its_client() {
    let scene = Scene::new("resize").await;
    let id = scene.start(&script("exec sleep 1000")).await;
    let text = "read go; until busybox stty size 2>/dev/null | grep 33; do sleep 0.05; done";
    let url = exec_url(&scene.node, &id, text, true).await;
    let mut client = Client::connect_by(&scene.node, &url, V4).await;
    client.write(4, br#"{"Width":99,"Height":33}"#).await;
    client.write(0, b"go\n").await;
    client.until(|client| client.heard(1).contains("33 99")).await;
    client.end().await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_good_for_one_client() {
    let scene = Scene::new("token").await;
    let id = scene.start(&script("exec sleep 1000")).await;
    let url = exec_url(&scene.node, &id, "echo once", false).await;
    let other = exec_url(&scene.node, &id, "echo once", false).await;
    assert_ne!(url, other);
    Client::connect_by(&scene.node, &url, V4).await.end().await;
    let (_, head) = request(&scene.node, "GET", &url, &websocket(V4)).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    // What nobody was told is nothing, and nothing of the kind can be guessed from what somebody was.
    let guessed = format!("{}AAAAAAAA", &other[..other.len() - 8]);
    let (_, head) = request(&scene.node, "GET", &guessed, &websocket(V4)).await;
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spdy_is_spoken_to_who_gets_and_who_posts() {
    let scene = Scene::new("methods").await;
    let id = scene.start(&script("exec sleep 1000")).await;
    for method in ["GET", "POST"] {
        let url = exec_url(&scene.node, &id, "echo hello", false).await;
        let headers = format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {V4}\r\n");
        let (_, head) = request(&scene.node, method, &url, &headers).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.to_lowercase().contains(&format!("x-stream-protocol-version: {V4}")), "{head}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_a_pod_is_reached_by_version_4() {
    let scene = Scene::new("forward").await;
    scene.start(&script("while :; do busybox nc -l -p 12002 -e echo served; done")).await;
    let ask = cri::PortForwardRequest { pod_sandbox_id: scene.pod.clone(), port: vec![12002] };
    eventually("the port answers", async || {
        let url = scene.node.kubelet().port_forward(ask.clone()).await.unwrap().into_inner().url;
        let mut client = Client::connect_by(&scene.node, &url, V4).await;
        // Both channels begin with the port's number.
        let served = async {
            while !client.heard(0).ends_with("served\n") && client.step().await {}
            client.heard(0).ends_with("served\n") && client.channels[&0].starts_with(&12002_u16.to_le_bytes())
        };
        tokio::time::timeout(Duration::from_secs(5), served).await.unwrap_or(false).then_some(())
    })
    .await;
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_make_no_sense_are_refused() {
    let scene = Scene::new("badstreams").await;
    let id = scene.start(&script("exec sleep 1000")).await;
    let cmd = vec!["true".to_owned()];
    let none = cri::ExecRequest { container_id: id.clone(), cmd: cmd.clone(), ..Default::default() };
    scene.node.kubelet().exec(none.clone()).await.unwrap_err();
    let both = cri::ExecRequest { tty: true, stdout: true, stderr: true, ..none };
    scene.node.kubelet().exec(both).await.unwrap_err();
    scene.node.kubelet().attach(cri::AttachRequest { container_id: id, ..Default::default() }).await.unwrap_err();
    let nobody = cri::ExecRequest { container_id: "nobody".into(), cmd, stdout: true, ..Default::default() };
    scene.node.kubelet().exec(nobody).await.unwrap_err();
    let nobody = cri::PortForwardRequest { pod_sandbox_id: "nobody".into(), port: vec![80] };
    scene.node.kubelet().port_forward(nobody).await.unwrap_err();
    scene.end().await;
}
