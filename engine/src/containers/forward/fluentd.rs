//! Fluentd's forward protocol: MessagePack over TCP or a unix socket, acknowledged if that is asked for.

use super::{Facts, line};
use crate::containers::{frames::Stream, logs::Entry};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{io, path::PathBuf};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// Where it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host and port.
    Tcp(String),
    /// A socket's path.
    Unix(PathBuf),
}

/// `fluentd-*`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where it listens.
    pub address: Address,
    /// Nanoseconds rather than seconds.
    pub precise: bool,
    /// A message counts as sent when it was acknowledged.
    pub acknowledged: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { address: Address::Tcp("127.0.0.1:24224".into()), precise: false, acknowledged: false }
    }
}

impl Options {
    /// Reads `fluentd-address`: `[tcp://]host[:port]` or `unix:///path`.
    pub fn set_address(&mut self, text: &str) -> Option<()> {
        self.address = match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Address::Unix(path.into()),
            Some(("tcp", address)) => Address::Tcp(with_port(address)?),
            Some(_) => return None,
            None => Address::Tcp(with_port(text)?),
        };
        Some(())
    }
}

fn with_port(address: &str) -> Option<String> {
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse::<u16>().ok()?),
        _ => (address, 24224),
    };
    (!host.is_empty() && !host.contains('/') && port > 0).then(|| format!("{host}:{port}"))
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection.
pub struct Sender {
    stream: Box<dyn Duplex>,
    precise: bool,
    acknowledged: bool,
}

impl Sender {
    /// Connects.
    pub async fn connect(options: &Options) -> io::Result<Self> {
        let stream: Box<dyn Duplex> = match &options.address {
            Address::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        };
        Ok(Self { stream, precise: options.precise, acknowledged: options.acknowledged })
    }

    /// Sends messages.
    pub async fn send(&mut self, facts: &Facts, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut chunk = String::new();
        for (at, entry) in entries.iter().enumerate() {
            // The last one is asked for: the others came before it.
            if self.acknowledged && at + 1 == entries.len() {
                let random = crate::ids::random_bytes::<16>().map_err(io::Error::other)?;
                chunk = STANDARD.encode(random);
            }
            message(&mut bytes, facts, entry, self.precise, &chunk);
        }
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await?;
        if chunk.is_empty() { Ok(()) } else { self.acknowledgement(&chunk).await }
    }

    /// `{"ack": CHUNK}`
    async fn acknowledgement(&mut self, chunk: &str) -> io::Result<()> {
        let (mut answer, mut buffer) = (Vec::new(), [0; 256]);
        loop {
            match self.stream.read(&mut buffer).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => answer.extend_from_slice(&buffer[..read]),
            }
            if answer.windows(chunk.len()).any(|window| window == chunk.as_bytes()) {
                return Ok(());
            }
            if answer.len() > 4096 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no acknowledgement"));
            }
        }
    }
}

/// `[tag, time, {…}]`, and options behind it if there is a chunk to be acknowledged.
fn message(out: &mut Vec<u8>, facts: &Facts, entry: &Entry, precise: bool, chunk: &str) {
    out.push(0x90 | if chunk.is_empty() { 3 } else { 4 });
    text(out, facts.tag.as_bytes());
    if precise {
        // fixext 8 of type 0: EventTime.
        out.extend([0xd7, 0x00]);
        out.extend((entry.time.seconds() as u32).to_be_bytes());
        out.extend(entry.time.subsec_nanos().to_be_bytes());
    } else {
        out.push(0xce);
        out.extend((entry.time.seconds() as u32).to_be_bytes());
    }
    let (line, partial) = line(entry);
    let source: &[u8] = if entry.stream == Stream::Stdout { b"stdout" } else { b"stderr" };
    let name = format!("/{}", facts.name);
    let mut fields: Vec<(&[u8], &[u8])> = vec![
        (b"container_id", facts.id.as_bytes()),
        (b"container_name", name.as_bytes()),
        (b"source", source),
        (b"log", line),
    ];
    if partial {
        fields.push((b"partial_message", b"true"));
    }
    fields.extend(facts.attributes.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())));
    map(out, fields.len());
    for (key, value) in fields {
        text(out, key);
        text(out, value);
    }
    if !chunk.is_empty() {
        map(out, 1);
        text(out, b"chunk");
        text(out, chunk.as_bytes());
    }
}

fn map(out: &mut Vec<u8>, length: usize) {
    match length {
        0..16 => out.push(0x80 | length as u8),
        _ => {
            out.push(0xde);
            out.extend((length as u16).to_be_bytes());
        }
    }
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    match text.len() {
        length @ 0..32 => out.push(0xa0 | length as u8),
        length @ 32..256 => out.extend([0xd9, length as u8]),
        length @ 256..65536 => {
            out.push(0xda);
            out.extend((length as u16).to_be_bytes());
        }
        length => {
            out.push(0xdb);
            out.extend((length as u32).to_be_bytes());
        }
    }
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn addresses() {
        for (given, address) in [
            ("log:1", Address::Tcp("log:1".into())),
            ("log", Address::Tcp("log:24224".into())),
            ("tcp://[::1]:5", Address::Tcp("[::1]:5".into())),
            ("unix:///run/f", Address::Unix("/run/f".into())),
        ] {
            let mut options = Options::default();
            options.set_address(given).unwrap();
            assert_eq!(options.address, address, "{given}");
        }
        for bad in ["", "udp://x:1", "unix://rel", "x:y", ":1", "a/b"] {
            assert!(Options::default().set_address(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn one_message() {
        let facts = Facts { id: "i".into(), name: "n".into(), tag: "t".into(), ..Facts::default() };
        let entry = Entry {
            stream: Stream::Stdout,
            time: Timestamp::from_parts(1, 2),
            text: b"half".to_vec(),
            attributes: Default::default(),
        };
        let mut bytes = Vec::new();
        message(&mut bytes, &facts, &entry, false, "");
        let expected = b"\x93\xa1t\xce\0\0\0\x01\x85\xaccontainer_id\xa1i\xaecontainer_name\xa2/n\xa6source\xa6stdout\xa3log\xa4half\xafpartial_message\xa4true";
        assert_eq!(bytes, expected);
        let mut bytes = Vec::new();
        message(&mut bytes, &facts, &entry, true, "c");
        assert!(bytes.starts_with(b"\x94\xa1t\xd7\0\0\0\0\x01\0\0\0\x02") && bytes.ends_with(b"\x81\xa5chunk\xa1c"));
    }
}
