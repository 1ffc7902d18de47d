//! A small client, for tests.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::frame::{Kind, unmask, write};
use crate::cri::streaming::spdy::client::request;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A connection.
pub(in super::super) struct Client {
    pub(in super::super) socket: TcpStream,
    /// What has come on each channel.
    pub(in super::super) channels: BTreeMap<u8, Vec<u8>>,
    pub(in super::super) messages: usize,
    pub(in super::super) pongs: Vec<Vec<u8>>,
    pub(in super::super) closed: Option<u16>,
    buffer: BytesMut,
    base64: bool,
}

impl Client {
    /// Upgrades a connection.
    pub(in super::super) async fn connect(url: &str, protocol: &str) -> Self {
        let protocols = format!("Sec-WebSocket-Protocol: {protocol}");
        let mut headers = vec![
            "Connection: keep-alive, Upgrade",
            "Upgrade: WebSocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ];
        headers.extend((!protocol.is_empty()).then_some(&*protocols));
        let answer = request(url, "GET", &headers).await;
        assert_eq!(answer.status, 101, "{}", answer.head);
        assert!(answer.head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{}", answer.head);
        let chosen = answer.head.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        assert_eq!(chosen.unwrap_or_default(), protocol);
        Self {
            socket: answer.socket,
            channels: BTreeMap::new(),
            messages: 0,
            pongs: Vec::new(),
            closed: None,
            buffer: answer.rest,
            base64: protocol.contains("base64"),
        }
    }

    /// Sends a message on a channel.
    pub(in super::super) async fn write(&mut self, channel: u8, bytes: &[u8]) {
        if self.base64 {
            let text = STANDARD.encode(bytes);
            self.frame(0x81, &[&[b'0' + channel], text.as_bytes()].concat()).await;
        } else {
            self.frame(0x82, &[&[channel], bytes].concat()).await;
        }
    }

    /// Sends a frame.
    pub(in super::super) async fn frame(&mut self, first: u8, payload: &[u8]) {
        let mut frame = Vec::new();
        write(Kind::Binary, &[payload], &mut frame);
        let begin = frame.len() - payload.len();
        let mask = [1, 2, 3, 4];
        unmask(&mut frame[begin..], mask);
        frame[0] = first;
        frame[1] |= 0x80;
        frame.splice(begin..begin, mask);
        self.raw(&frame).await;
    }

    /// Sends bytes as they are.
    pub(in super::super) async fn raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// What has come on a channel.
    pub(in super::super) fn heard(&self, channel: u8) -> String {
        self.channels.get(&channel).map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }

    /// Listens until something is so.
    pub(in super::super) async fn until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.step().await, "the server closed the connection too early: {:?}", self.channels);
        }
    }

    /// Listens until the server has said goodbye, and answers in kind.
    pub(in super::super) async fn until_closed(&mut self) {
        while self.closed.is_none() && self.step().await {}
        if self.closed.is_some() {
            self.frame(0x88, &1000_u16.to_be_bytes()).await;
        }
        while self.step().await {}
    }

    async fn step(&mut self) -> bool {
        if !self.fill(2).await {
            return false;
        }
        assert_eq!(self.buffer[1] & 0x80, 0, "a server masks nothing");
        let size = match self.buffer[1] {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        assert!(self.fill(size).await);
        let head = self.buffer.split_to(size);
        let length = match size {
            2 => usize::from(head[1]),
            _ => head[2..].iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        assert!(length == 0 || self.fill(length).await);
        let body = self.buffer.split_to(length);
        match head[0] {
            0x81 if self.base64 => {
                let bytes = STANDARD.decode(&body[1..]).unwrap();
                self.channels.entry(body[0] - b'0').or_default().extend_from_slice(&bytes);
                self.messages += 1;
            }
            0x82 if !self.base64 => {
                self.channels.entry(body[0]).or_default().extend_from_slice(&body[1..]);
                self.messages += 1;
            }
            0x88 => self.closed = Some(u16::from_be_bytes([body[0], body[1]])),
            0x89 => {}
            0x8a => self.pongs.push(body.to_vec()),
            first => panic!("frame {first:x}"),
        }
        true
    }

    async fn fill(&mut self, count: usize) -> bool {
        while self.buffer.len() < count {
            let read = tokio::time::timeout(LIMIT, self.socket.read_buf(&mut self.buffer)).await;
            match read.unwrap_or_else(|_| panic!("nothing comes: {:?}", self.channels)) {
                Ok(0) | Err(_) => return false,
                Ok(_) => {}
            }
        }
        true
    }
}

/// What a client might say that means well, as chance has it.
pub(in super::super) fn sample(roll: &mut impl FnMut(usize) -> usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..roll(8) + 1 {
        let begin = bytes.len();
        let kinds = [Kind::Binary, Kind::Binary, Kind::Binary, Kind::Text, Kind::Ping, Kind::Continuation];
        let kind = kinds[roll(kinds.len())];
        let channel = [0, 0, 0, 1, 4, 255][roll(6)];
        let payload = vec![0; if kind == Kind::Ping { 5 } else { roll(70_000) }];
        write(kind, &[&[channel], &payload], &mut bytes);
        // Masked with nothing.
        bytes[begin + 1] |= 0x80;
        let head = match bytes[begin + 1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        bytes.splice(begin + head..begin + head, [0; 4]);
    }
    bytes
}
