//! Graylog's extended log format: JSON over UDP, packed and in chunks, or over TCP, ended by a zero byte each.

use super::{Facts, line};
use crate::containers::{frames::Stream, logs::Entry};
use flate2::{
    Compression,
    write::{GzEncoder, ZlibEncoder},
};
use serde_json::{Map, Value, json};
use std::io::{self, Write};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpStream, UdpSocket},
};

/// Bytes of one datagram, and of the head of a chunk.
const CHUNK: usize = 1420;
const HEAD: usize = 12;
/// As many chunks as a message may have.
const CHUNKS: usize = 128;

/// How datagrams are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// gzip
    Gzip,
    /// zlib
    Zlib,
    /// Not at all.
    None,
}

/// `gelf-*`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Host and port.
    pub address: String,
    /// TCP rather than UDP.
    pub tcp: bool,
    /// Of datagrams.
    pub packing: Packing,
    /// From 0 to 9.
    pub level: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { address: String::new(), tcp: false, packing: Packing::Gzip, level: 1 }
    }
}

impl Options {
    /// Reads `gelf-address`.
    pub fn set_address(&mut self, text: &str) -> Option<()> {
        let (scheme, address) = text.split_once("://")?;
        self.tcp = match scheme {
            "udp" => false,
            "tcp" => true,
            _ => return None,
        };
        let (host, port) = address.rsplit_once(':')?;
        let sound = !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) && !address.contains('/');
        self.address = address.to_owned();
        sound.then_some(())
    }
}

/// A socket.
#[derive(Debug)]
pub enum Sender {
    /// Datagrams.
    Udp(UdpSocket, Packing, u32),
    /// A stream.
    Tcp(TcpStream),
}

impl Sender {
    /// Opens the way.
    pub async fn connect(options: &Options) -> io::Result<Self> {
        if options.tcp {
            return TcpStream::connect(&options.address).await.map(Self::Tcp);
        }
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in tokio::net::lookup_host(&options.address).await? {
            let ours = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(ours).await?;
            match socket.connect(address).await {
                Ok(()) => return Ok(Self::Udp(socket, options.packing, options.level)),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Sends messages.
    pub async fn send(&mut self, facts: &Facts, entries: &[Entry]) -> io::Result<()> {
        for entry in entries {
            if line(entry).0.is_empty() {
                continue;
            }
            let text = message(facts, entry);
            match self {
                Self::Tcp(stream) => stream.write_all(&[text.as_slice(), b"\0"].concat()).await?,
                Self::Udp(socket, packing, level) => {
                    for datagram in chunks(&pack(&text, *packing, *level)?, entry.time.nanos()) {
                        match socket.send(&datagram).await {
                            Ok(_) => {}
                            // Nobody listens at the moment: as with UDP anywhere, that is no failure.
                            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

fn message(facts: &Facts, entry: &Entry) -> Vec<u8> {
    let mut fields = Map::new();
    let seconds = entry.time.seconds() as f64 + f64::from(entry.time.subsec_nanos() / 1_000_000) / 1000.0;
    for (key, value) in [
        ("version", json!("1.1")),
        ("host", json!(facts.host)),
        ("short_message", json!(String::from_utf8_lossy(line(entry).0))),
        ("timestamp", json!(seconds)),
        // Syslog's info and error, as Docker has them.
        ("level", json!(if entry.stream == Stream::Stdout { 6 } else { 3 })),
        ("_command", json!(facts.command)),
        ("_container_id", json!(facts.id)),
        ("_container_name", json!(facts.name)),
        ("_created", json!(facts.created)),
        ("_image_id", json!(facts.image_id)),
        ("_image_name", json!(facts.image)),
        ("_tag", json!(facts.tag)),
    ] {
        fields.insert(key.to_owned(), value);
    }
    for (key, value) in &facts.attributes {
        fields.insert(format!("_{key}"), json!(value));
    }
    Value::Object(fields).to_string().into_bytes()
}

fn pack(text: &[u8], packing: Packing, level: u32) -> io::Result<Vec<u8>> {
    let level = Compression::new(level);
    match packing {
        Packing::None => Ok(text.to_vec()),
        Packing::Gzip => {
            let mut encoder = GzEncoder::new(Vec::new(), level);
            encoder.write_all(text)?;
            encoder.finish()
        }
        Packing::Zlib => {
            let mut encoder = ZlibEncoder::new(Vec::new(), level);
            encoder.write_all(text)?;
            encoder.finish()
        }
    }
}

/// One datagram, or numbered ones of one id. What is larger than all of them is cut.
fn chunks(packed: &[u8], id: i64) -> Vec<Vec<u8>> {
    if packed.len() <= CHUNK {
        return vec![packed.to_vec()];
    }
    let pieces: Vec<_> = packed.chunks(CHUNK - HEAD).take(CHUNKS).collect();
    let count = pieces.len() as u8;
    let datagram = |(number, piece): (usize, &&[u8])| {
        [&[0x1e, 0x0f], id.to_be_bytes().as_slice(), &[number as u8, count], piece].concat()
    };
    pieces.iter().enumerate().map(datagram).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn addresses() {
        for (text, address, tcp) in
            [("udp://127.0.0.1:12201", "127.0.0.1:12201", false), ("tcp://log:1", "log:1", true)]
        {
            let mut options = Options::default();
            options.set_address(text).unwrap();
            assert_eq!((options.address.as_str(), options.tcp), (address, tcp));
        }
        for bad in ["127.0.0.1:1", "http://x:1", "udp://x", "udp://x:y", "udp://:1", "udp://x:1/y", "udp://x:0"] {
            assert!(Options::default().set_address(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn messages_and_chunks() {
        let facts = Facts { id: "abc".into(), attributes: vec![("team".into(), "a".into())], ..Facts::default() };
        let entry = Entry {
            stream: Stream::Stderr,
            time: Timestamp::from_parts(5, 250_999_999),
            text: b"failed\n".to_vec(),
            attributes: Default::default(),
        };
        let value: Value = serde_json::from_slice(&message(&facts, &entry)).unwrap();
        assert_eq!((&value["short_message"], &value["level"]), (&json!("failed"), &json!(3)));
        assert_eq!((&value["timestamp"], &value["_team"]), (&json!(5.25), &json!("a")));
        assert_eq!(chunks(&[1; CHUNK], 9).len(), 1);
        let cut = chunks(&[1; CHUNK + 1], 9);
        assert_eq!(cut.len(), 2);
        assert_eq!(cut[1][..HEAD], [0x1e, 0x0f, 0, 0, 0, 0, 0, 0, 0, 9, 1, 2]);
        assert_eq!(cut.iter().map(|c| c.len() - HEAD).sum::<usize>(), CHUNK + 1);
        assert_eq!(chunks(&vec![1; 1 << 20], 9).len(), CHUNKS);
    }
}
