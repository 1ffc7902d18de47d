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

/// A client over WebSocket, version 5.
pub struct Client {
    socket: TcpStream,
    pub(crate) channels: BTreeMap<u8, Vec<u8>>,
}

impl Client {
    pub async fn connect(node: &Node, url: &str) -> Self {
        let namespace = fs::File::open(node.host.namespace()).unwrap();
        Self::attempt(namespace.as_fd(), url).await.unwrap()
    }

    /// Connects to a server on the loopback of a node, if it is there.
    pub async fn attempt(node: BorrowedFd<'_>, url: &str) -> io::Result<Self> {
        let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let address: std::net::SocketAddr = host.parse().unwrap();
        let socket = sys::netns::within(node, || std::net::TcpStream::connect(address)).unwrap()?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket)?;
        let request = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await?);
        }
        match head.starts_with(b"HTTP/1.1 101 ") {
            true => Ok(Self { socket, channels: BTreeMap::new() }),
            false => Err(io::Error::other(String::from_utf8_lossy(&head).into_owned())),
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
