//! The Docker Engine API over a unix socket, as bare as it gets: one connection per request, nothing hidden.

use serde_json::Value;
use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// An engine's socket.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
}

/// What an engine answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// Header lines, lower-cased names.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; panics with the text if it isn't.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {:?}", self.text()))
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Panics, showing the body, unless the status is `status`.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A connection whose header has been read and whose body is still coming.
#[derive(Debug)]
pub struct Stream {
    /// HTTP status code.
    pub status: u16,
    /// Header lines, lower-cased names.
    pub headers: Vec<(String, String)>,
    reader: BufReader<UnixStream>,
    chunked: bool,
    length: Option<usize>,
}

impl Api {
    /// The engine that listens on `socket`.
    pub fn new(socket: impl AsRef<Path>) -> Self {
        Self { socket: socket.as_ref().to_owned() }
    }

    /// Sends a request without body and reads the whole answer.
    #[track_caller]
    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, None)
    }

    /// Sends a POST with a JSON body, or none.
    #[track_caller]
    pub fn post(&self, path: &str, body: Option<&Value>) -> Answer {
        self.request("POST", path, body)
    }

    /// Sends a DELETE.
    #[track_caller]
    pub fn delete(&self, path: &str) -> Answer {
        self.request("DELETE", path, None)
    }

    /// Sends a request and reads the whole answer.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.open(method, path, body, "").expect("no answer from the engine").finish()
    }

    /// Sends a request and reads the whole answer, from an engine that may die meanwhile.
    pub fn attempt(&self, method: &str, path: &str, body: Option<&Value>) -> std::io::Result<Answer> {
        self.open(method, path, body, "")?.try_finish()
    }

    /// Sends a request and reads the header of the answer; `extra` are further header lines, each with its CRLF.
    pub fn open(&self, method: &str, path: &str, body: Option<&Value>, extra: &str) -> std::io::Result<Stream> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        self.open_bytes(method, path, body.as_bytes(), &format!("{kind}{extra}"))
    }

    /// The same with a body of any kind; `extra` has to say which.
    pub fn open_bytes(&self, method: &str, path: &str, body: &[u8], extra: &str) -> std::io::Result<Stream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: berth\r\n{extra}Content-Length: {}\r\n\r\n", body.len());
        (&stream).write_all(head.as_bytes())?;
        // An engine may answer before it has read all of the body, and close: its answer counts.
        (&stream).write_all(body).ok();
        Stream::read_header(stream, method == "HEAD")
    }

    /// Opens a connection and writes `text` as it is; the answer is the caller's to read.
    pub fn raw(&self, text: &[u8]) -> std::io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        (&stream).write_all(text)?;
        Ok(stream)
    }
}

impl Stream {
    fn read_header(stream: UnixStream, bodiless: bool) -> std::io::Result<Self> {
        let mut reader = BufReader::with_capacity(256 << 10, stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status =
            line.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((key, value)) = line.trim_end().split_once(':') else { break };
            headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let find = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let chunked = find("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
        let length = if bodiless { Some(0) } else { find("content-length").and_then(|v| v.parse().ok()) };
        Ok(Self { status, headers, reader, chunked, length })
    }

    /// Reads the rest of the body.
    pub fn finish(mut self) -> Answer {
        let mut body = Vec::new();
        if self.chunked {
            while let Some(chunk) = self.chunk() {
                body.extend(chunk);
            }
        } else if let Some(length) = self.length {
            body.resize(length, 0);
            self.reader.read_exact(&mut body).expect("the body ended early");
        } else if self.status != 204 && self.status != 304 {
            self.reader.read_to_end(&mut body).ok();
        }
        Answer { status: self.status, headers: self.headers, body }
    }

    /// Reads the rest of the body; one that is cut off is an error.
    pub fn try_finish(mut self) -> std::io::Result<Answer> {
        let mut body = Vec::new();
        if self.chunked {
            loop {
                let mut line = String::new();
                self.reader.read_line(&mut line)?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
                let mut data = vec![0; size + 2];
                self.reader.read_exact(&mut data)?;
                if size == 0 {
                    break;
                }
                body.extend(&data[..size]);
            }
        } else if let Some(length) = self.length {
            body.resize(length, 0);
            self.reader.read_exact(&mut body)?;
        } else if self.status != 204 && self.status != 304 {
            self.reader.read_to_end(&mut body)?;
        }
        Ok(Answer { status: self.status, headers: self.headers, body })
    }

    /// The next chunk of a chunked body; `None` at its end.
    pub fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.reader.read_line(&mut line).ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut data = vec![0; size + 2];
        self.reader.read_exact(&mut data).ok()?;
        data.truncate(size);
        (size > 0).then_some(data)
    }

    /// The connection itself, for hijacked streams.
    pub fn raw(&mut self) -> &mut BufReader<UnixStream> {
        &mut self.reader
    }

    /// One frame of a multiplexed stream: 1 for stdout or 2 for stderr, and its payload; `None` at the end.
    pub fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 8];
        self.reader.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let mut data = vec![0; length];
        self.reader.read_exact(&mut data).ok()?;
        Some((head[0], data))
    }
}
