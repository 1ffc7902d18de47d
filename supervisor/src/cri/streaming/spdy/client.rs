//! A small client, for tests: what Go's clients do, and what none of them would.

use std::{collections::BTreeMap, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{
    frame::{HEAD, control, data},
    headers::{Deflater, Headers, Inflater},
};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);

/// What has come on one stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct Heard {
    pub(in super::super) replied: bool,
    pub(in super::super) data: Vec<u8>,
    pub(in super::super) ended: bool,
    pub(in super::super) reset: Option<u32>,
}

impl Heard {
    pub(in super::super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

/// The status and the headers of an answer, and what came behind it.
pub(in super::super) struct HttpAnswer {
    pub(in super::super) status: u16,
    pub(in super::super) head: String,
    pub(in super::super) rest: BytesMut,
    pub(in super::super) socket: TcpStream,
}

/// Sends a request to an address; `headers` are whole lines.
pub(in super::super) async fn request(url: &str, method: &str, headers: &[&str]) -> HttpAnswer {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
    let request = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\n{length}{lines}\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut read = BytesMut::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break end + 4;
        }
        assert_ne!(socket.read_buf(&mut read).await.unwrap(), 0, "no answer");
    };
    let head = String::from_utf8(read.split_to(end).to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    HttpAnswer { status, head, rest: read, socket }
}

/// A connection.
pub(in super::super) struct Client {
    pub(in super::super) socket: TcpStream,
    pub(in super::super) streams: BTreeMap<u32, Heard>,
    pub(in super::super) pings: Vec<u32>,
    pub(in super::super) goodbye: Option<u32>,
    /// What the server chose.
    pub(in super::super) protocol: String,
    buffer: BytesMut,
    deflater: Deflater,
    inflater: Inflater,
    next: u32,
}

impl Client {
    /// Upgrades a connection.
    pub(in super::super) async fn connect(url: &str, protocols: &[&str]) -> Self {
        let mut headers = vec!["Connection: Upgrade".to_owned(), "Upgrade: SPDY/3.1".to_owned()];
        headers.extend(protocols.iter().map(|protocol| format!("X-Stream-Protocol-Version: {protocol}")));
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = request(url, "POST", &headers).await;
        assert_eq!(answer.status, 101, "{}", answer.head);
        for line in ["connection: upgrade", "upgrade: spdy/3.1"] {
            assert!(answer.head.lines().any(|known| known == line), "{:?}", answer.head);
        }
        let chosen = answer.head.lines().find_map(|line| line.strip_prefix("x-stream-protocol-version: "));
        Self {
            socket: answer.socket,
            streams: BTreeMap::new(),
            pings: Vec::new(),
            goodbye: None,
            protocol: chosen.unwrap_or_default().to_owned(),
            buffer: answer.rest,
            deflater: Deflater::new(),
            inflater: Inflater::new(),
            next: 1,
        }
    }

    /// Opens a stream; the answer is yet to come.
    pub(in super::super) async fn begin(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.next;
        self.next += 2;
        self.begin_as(stream, headers).await;
        stream
    }

    /// As above, with a number of one's own.
    pub(in super::super) async fn begin_as(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let block = self.deflater.write(&Headers::of(headers).write());
        let mut bytes = Vec::new();
        // Priority and slot are the first two bytes behind the words.
        control(1, 0, &[stream, 0], &[&[0, 0], &block[..]].concat(), &mut bytes);
        self.raw(&bytes).await;
    }

    /// Opens a stream as Go does: waits for the reply.
    pub(in super::super) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.begin(headers).await;
        self.until(|client| client.streams.get(&stream).is_some_and(|heard| heard.replied)).await;
        stream
    }

    /// Opens the streams of exec and attach, the one for errors first.
    pub(in super::super) async fn open_all(&mut self, kinds: &[&str]) -> Vec<u32> {
        let mut streams = Vec::new();
        for kind in kinds {
            streams.push(self.open(&[("streamtype", kind)]).await);
        }
        streams
    }

    /// Sends data.
    pub(in super::super) async fn write(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let mut frame = Vec::new();
        data(stream, fin, bytes, &mut frame);
        self.raw(&frame).await;
    }

    /// Gives a stream up.
    pub(in super::super) async fn reset(&mut self, stream: u32) {
        self.control(3, &[stream, 5]).await;
    }

    /// Sends a control frame of words.
    pub(in super::super) async fn control(&mut self, kind: u16, words: &[u32]) {
        let mut frame = Vec::new();
        control(kind, 0, words, &[], &mut frame);
        self.raw(&frame).await;
    }

    /// Sends bytes as they are.
    pub(in super::super) async fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// What has come on a stream.
    pub(in super::super) fn heard(&self, stream: u32) -> Heard {
        self.streams.get(&stream).cloned().unwrap_or_default()
    }

    /// Listens until something is so.
    pub(in super::super) async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.step().await, "the server closed the connection too early: {:?}", self.streams);
        }
    }

    /// Listens until these streams have ended.
    pub(in super::super) async fn until_ended(&mut self, streams: &[u32]) {
        self.until(|client| streams.iter().all(|stream| client.heard(*stream).ended)).await;
    }

    /// Listens until the server has closed the connection.
    pub(in super::super) async fn until_closed(&mut self) {
        while self.step().await {}
    }

    // Takes one frame; false at the end.
    async fn step(&mut self) -> bool {
        if !self.fill(HEAD).await {
            return false;
        }
        let head = self.buffer.split_to(HEAD);
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        assert!(self.fill(length).await || length == 0, "half a frame");
        let body = self.buffer.split_to(length);
        let word = |at: usize| u32::from_be_bytes(body[at..at + 4].try_into().unwrap());
        if head[0] & 0x80 == 0 {
            let stream = u32::from_be_bytes(head[..4].try_into().unwrap());
            let heard = self.streams.entry(stream).or_default();
            assert!(heard.replied && !heard.ended && heard.reset.is_none(), "data of {stream}: {heard:?}");
            heard.data.extend_from_slice(&body);
            heard.ended |= head[4] & 1 != 0;
            return true;
        }
        assert_eq!(head[..2], [0x80, 3]);
        match u16::from_be_bytes([head[2], head[3]]) {
            2 => {
                assert_eq!(self.inflater.read(&body[4..]).unwrap(), Headers::default());
                self.streams.entry(word(0)).or_default().replied = true;
            }
            3 => self.streams.entry(word(0)).or_default().reset = Some(word(4)),
            6 => self.pings.push(word(0)),
            7 => self.goodbye = Some(word(4)),
            kind => panic!("frame of kind {kind}"),
        }
        true
    }

    async fn fill(&mut self, count: usize) -> bool {
        while self.buffer.len() < count {
            let read = tokio::time::timeout(LIMIT, self.socket.read_buf(&mut self.buffer)).await;
            match read.unwrap_or_else(|_| panic!("nothing comes: {:?}", self.streams)) {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        true
    }
}

/// What a client might say that means well, as chance has it.
pub(in super::super) fn sample(roll: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let (mut deflater, mut bytes) = (Deflater::new(), Vec::new());
    for number in 0..roll(8) as u32 + 1 {
        let stream = number * 2 + 1;
        let kinds = ["error", "stdin", "stdout", "stderr", "resize", "data"];
        let headers = Headers::of(&[("streamtype", kinds[roll(kinds.len())]), ("port", "1"), ("requestid", "1")]);
        let block = deflater.write(&headers.write());
        control(1, 0, &[stream, 0], &[&[0, 0], &block[..]].concat(), &mut bytes);
        match roll(5) {
            0 => control(3, 0, &[stream, 5], &[], &mut bytes),
            1 => control(6, 0, &[stream], &[], &mut bytes),
            _ => data(stream, roll(3) == 0, &vec![b'{'; roll(70_000)], &mut bytes),
        }
    }
    bytes
}
