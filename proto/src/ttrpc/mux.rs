//! Two ttrpc connections on one stream, as NRI has them: each side is the client of one and the server of the other.
//!
//! ```text
//!   frame    connection:4  length:4  data      (big endian; data has at most one ttrpc message)
//! ```
//! Connection 1 is where the plugin answers, 2 where the runtime does; others are for versions to come, and skipped.
//!
//! How messages are cut into frames matters: the other implementation reads a frame with one call of a reader that has 4096 bytes for what
//! comes first and then exactly as many as are missing, fails if a frame has more, and keeps 256 frames. So a message goes as one
//! frame of at most 4096 bytes and one with the rest.

use std::io;

use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream, ReadHalf, WriteHalf,
        duplex, split,
    },
    sync::Mutex,
    task::JoinHandle,
};

use super::frame::{self, MESSAGE_LIMIT};

/// Length of a frame's header.
const HEADER: usize = 8;
/// Most that the first frame of a message may have.
const FIRST: usize = 4096;
/// Most that any frame may have.
const LIMIT: usize = MESSAGE_LIMIT + frame::HEADER;
/// Bytes that wait between a connection and the stream.
const WAITING: usize = 64 << 10;

/// Both connections, and what moves their bytes until either side is gone.
#[derive(Debug)]
pub struct Shared {
    /// The connection on which the plugin answers.
    pub plugin: DuplexStream,
    /// The connection on which the runtime answers.
    pub runtime: DuplexStream,
    /// Ends with the stream, or with either of the connections; the stream ends with it.
    pub moving: JoinHandle<io::Result<()>>,
}

/// Splits a stream. What is written to the connections must be ttrpc. Must be called within a tokio runtime.
pub fn share(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> Shared {
    let (plugin, first) = duplex(WAITING);
    let (runtime, second) = duplex(WAITING);
    let moving = tokio::spawn(async move {
        let (reader, writer) = split(stream);
        let writer = Mutex::new(writer);
        let (from_first, to_first) = split(first);
        let (from_second, to_second) = split(second);
        tokio::select! {
            ended = receive(BufReader::new(reader), [to_first, to_second]) => ended,
            ended = send(1, from_first, &writer) => ended,
            ended = send(2, from_second, &writer) => ended,
        }
    });
    Shared { plugin, runtime, moving }
}

async fn receive(mut stream: impl AsyncRead + Unpin, mut to: [WriteHalf<DuplexStream>; 2]) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        let first = stream.read(&mut header).await?;
        if first == 0 {
            return Ok(());
        }
        stream.read_exact(&mut header[first..]).await?;
        let [a, b, c, d, e, f, g, h] = header;
        let (connection, length) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        if length as usize > LIMIT {
            let why = format!("a frame of {length} bytes: it may have {LIMIT}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let mut data = (&mut stream).take(length.into());
        let moved = match connection {
            1 => tokio::io::copy(&mut data, &mut to[0]).await?,
            2 => tokio::io::copy(&mut data, &mut to[1]).await?,
            _ => tokio::io::copy(&mut data, &mut tokio::io::sink()).await?,
        };
        if moved != u64::from(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn send(
    connection: u32,
    mut from: ReadHalf<DuplexStream>,
    stream: &Mutex<impl AsyncWrite + Unpin>,
) -> io::Result<()> {
    loop {
        let mut message = vec![0; frame::HEADER];
        match from.read_exact(&mut message).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let length = u32::from_be_bytes([message[0], message[1], message[2], message[3]]) as usize;
        message.resize(frame::HEADER + length.min(MESSAGE_LIMIT), 0);
        from.read_exact(&mut message[frame::HEADER..]).await?;
        let mut stream = stream.lock().await;
        for bytes in frames(connection, &message) {
            stream.write_all(&bytes).await?;
        }
        stream.flush().await?;
    }
}

/// A message as it goes out.
fn frames(connection: u32, message: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let (head, tail) = message.split_at(message.len().min(FIRST));
    [head, tail].into_iter().filter(|part| !part.is_empty()).map(move |part| {
        let mut bytes = Vec::with_capacity(HEADER + part.len());
        bytes.extend(connection.to_be_bytes());
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend(part);
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ttrpc::{Client, serve};
    use proptest::prelude::*;
    use tokio::net::UnixStream;

    fn frame_of(connection: u32, data: &[u8]) -> Vec<u8> {
        [&connection.to_be_bytes()[..], &(data.len() as u32).to_be_bytes(), data].concat()
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = (length as u32).to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 1, 1, 0]);
        bytes.resize(10 + length, 7);
        bytes
    }

    #[test]
    fn messages_go_as_the_other_implementation_reads_them() {
        let sizes = |length| frames(2, &message(length)).map(|frame| frame.len() - HEADER).collect::<Vec<_>>();
        assert_eq!(sizes(0), [10]);
        assert_eq!(sizes(4086), [4096]);
        assert_eq!(sizes(4087), [4096, 1]);
        assert_eq!(sizes(MESSAGE_LIMIT), [4096, LIMIT - 4096]);
        assert_eq!(frames(2, b"ab").collect::<Vec<_>>(), [b"\0\0\0\x02\0\0\0\x02ab"]);
    }

    #[tokio::test]
    async fn both_sides_call_one_another() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, theirs) = (share(ours), share(theirs));
        let length = 3 << 20;
        let echo = move |call: crate::ttrpc::Call| async move { Ok(vec![0; length + call.method().len()]) };
        tokio::spawn(serve(theirs.plugin, std::future::pending(), echo));
        tokio::spawn(serve(ours.runtime, std::future::pending(), echo));
        let (down, up) = (Client::over(ours.plugin), Client::over(theirs.runtime));
        let call = |client: Client, method: &'static str| async move {
            client.call_encoded("s", method, "", vec![1; length], None).await.unwrap().len() - length
        };
        for _ in 0..4 {
            let both = tokio::join!(call(down.clone(), "abc"), call(up.clone(), "de"), call(down.clone(), "f"));
            assert_eq!(both, (3, 2, 1));
        }
        drop(down);
        // One connection's end is that of all.
        ours.moving.await.unwrap().unwrap();
        up.closed().await;
    }

    /// What comes out of both connections, and how it ends.
    fn read(bytes: Vec<u8>) -> (Result<(), io::ErrorKind>, Vec<u8>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut shared = share(tokio::io::join(io::Cursor::new(bytes), tokio::io::sink()));
            let (mut first, mut second) = (Vec::new(), Vec::new());
            let both = tokio::join!(shared.plugin.read_to_end(&mut first), shared.runtime.read_to_end(&mut second));
            assert!(both.0.is_ok() && both.1.is_ok());
            (shared.moving.await.unwrap().map_err(|error| error.kind()), first, second)
        })
    }

    #[test]
    fn what_is_no_frame_ends_it() {
        assert_eq!(read(b"GET / HTTP/1.1\r\n\r\n".to_vec()).0, Err(io::ErrorKind::InvalidData));
        assert_eq!(read(vec![0, 0, 0]).0, Err(io::ErrorKind::UnexpectedEof));
        assert_eq!(read(frame_of(1, b"abc")[..10].to_vec()).0, Err(io::ErrorKind::UnexpectedEof));
        let oversized = [1u32.to_be_bytes(), (LIMIT as u32 + 1).to_be_bytes()].concat();
        assert_eq!(read(oversized).0, Err(io::ErrorKind::InvalidData));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(bytes);
        }

        #[test]
        fn bytes_arrive_in_order_on_their_own_connection(
            parts in proptest::collection::vec((0u32..4, proptest::collection::vec(any::<u8>(), 0..300)), 0..12)
        ) {
            let bytes = parts.iter().flat_map(|(connection, data)| frame_of(*connection, data)).collect();
            let of = |wanted: u32| {
                parts.iter().filter(|(connection, _)| *connection == wanted).flat_map(|(_, data)| data.clone()).collect()
            };
            prop_assert_eq!(read(bytes), (Ok(()), of(1), of(2)));
        }

        #[test]
        fn frames_of_a_message_are_the_message(length in 0usize..20_000) {
            let message = message(length);
            let bytes = frames(1, &message).flatten().collect();
            prop_assert_eq!(read(bytes), (Ok(()), message, vec![]));
        }
    }
}
