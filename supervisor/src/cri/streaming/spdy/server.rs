//! A connection that has become SPDY: its reader hands out streams as clients open them.

use std::{io, sync::Arc};

use bytes::Bytes;
use tokio::{net::TcpStream, sync::mpsc};
use tracing::debug;

use super::{
    CANCEL,
    frame::{Control, HEAD, Head, control, data},
    headers::{Deflater, Headers, Inflater},
};
use crate::cri::streaming::mux::{Connection, Inbox, Out, Outlet, Shared, Streams, Wire};

/// Streams that a client may have open: those of a hundred forwarded connections.
const STREAMS: usize = 200;
/// Opened streams that wait for the session.
const UNHEARD: usize = 16;

const PROTOCOL_ERROR: u32 = 1;
const REFUSED: u32 = 3;

/// A stream that a client has opened.
pub(in super::super) struct Incoming {
    /// Its number.
    pub(in super::super) id: u32,
    /// What it is for.
    pub(in super::super) headers: Headers,
    /// What the client sends.
    pub(in super::super) inbox: Inbox,
    /// The way to the client.
    pub(in super::super) outlet: Outlet,
}

/// What is known of a stream that a client wants to open: the error refuses it.
pub(in super::super) type Judge = fn(&Headers) -> Result<(), &'static str>;

/// Serves a connection; the streams that pass the judge come out of the receiver. Without it, further ones are refused.
pub(in super::super) fn open(socket: (TcpStream, Bytes), judge: Judge) -> (Connection, mpsc::Receiver<Incoming>) {
    let (found, incoming) = mpsc::channel(UNHEARD);
    let connection = Connection::new(
        socket,
        |wire, shared| async move {
            let to = shared.to.clone();
            let mut reader = Reader { wire, shared, judge, found, inflater: Inflater::new(), last: 0 };
            let ended = reader.read().await;
            if ended.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
                let _ = to.try_send(Out::Bye(PROTOCOL_ERROR));
            }
            ended
        },
        encoder,
    );
    (connection, incoming)
}

/// What a message is in SPDY.
fn encoder(streams: Arc<Streams>) -> impl FnMut(Out, &mut Vec<u8>) {
    let mut deflater = Deflater::new();
    move |out, to| match out {
        Out::Data(stream, bytes) if streams.takes_output(stream) => data(stream, false, &bytes, to),
        Out::End(stream) if streams.end_output(stream) => data(stream, true, &[], to),
        // Nobody waits for it any more.
        Out::Data(..) | Out::End(_) => {}
        // No headers: a block of none.
        Out::Reply(stream) => control(2, 0, &[stream], &deflater.write(&[0; 4]), to),
        Out::Reset(stream, reason) => {
            streams.reset(stream);
            control(3, 0, &[stream, reason], &[], to);
        }
        // Ours are even.
        Out::Ping => control(6, 0, &[2], &[], to),
        Out::Pong(id) => control(6, 0, &[], &id, to),
        Out::Bye(reason) => control(7, 0, &[0, reason], &[], to),
    }
}

struct Reader {
    wire: Wire,
    shared: Shared,
    judge: Judge,
    found: mpsc::Sender<Incoming>,
    inflater: Inflater,
    last: u32,
}

impl Reader {
    async fn read(&mut self) -> io::Result<()> {
        while self.wire.fill(HEAD).await? {
            let mut head = [0; HEAD];
            head.copy_from_slice(&self.wire.take(HEAD).await?);
            match Head::parse(head)? {
                Head::Data { stream, fin, mut length } => {
                    while length > 0 {
                        let bytes = self.wire.some(length).await?;
                        length -= bytes.len();
                        self.wire.deliver(&self.shared, stream, &bytes).await?;
                    }
                    if fin {
                        self.shared.streams.end_input(stream);
                    }
                }
                Head::Control { kind, flags, length } => {
                    let body = self.wire.take(length).await?;
                    self.obey(Control::parse(kind, flags, &body)?).await?;
                }
            }
        }
        Ok(())
    }

    async fn obey(&mut self, control: Control<'_>) -> io::Result<()> {
        match control {
            Control::Open { stream, fin, block } => {
                // Read even if nobody wants it: the next one is compressed with it in mind.
                let headers = self.inflater.read(block)?;
                self.open(stream, fin, headers).await
            }
            Control::Headers { stream, fin, block } => {
                self.inflater.read(block)?;
                if fin {
                    self.shared.streams.end_input(stream);
                }
                Ok(())
            }
            Control::Reset { stream } => {
                self.shared.streams.reset(stream);
                Ok(())
            }
            // Theirs are odd; an even one would answer a ping of ours.
            Control::Ping { id } if id % 2 == 1 => self.say(Out::Pong(Bytes::copy_from_slice(&id.to_be_bytes()))).await,
            Control::Ping { .. } | Control::GoAway | Control::Ignored => Ok(()),
        }
    }

    async fn open(&mut self, stream: u32, fin: bool, headers: Headers) -> io::Result<()> {
        // Clients count upwards with odd numbers; a number that comes twice would be two streams.
        if stream.is_multiple_of(2) || stream <= self.last {
            return self.say(Out::Reset(stream, PROTOCOL_ERROR)).await;
        }
        self.last = stream;
        if self.shared.streams.count() >= STREAMS {
            debug!(stream, limit = STREAMS, "stream refused: there are too many");
            return self.say(Out::Reset(stream, REFUSED)).await;
        }
        if let Err(why) = (self.judge)(&headers) {
            debug!(stream, why, "stream refused");
            return self.say(Out::Reset(stream, CANCEL)).await;
        }
        let (inbox, outlet) = self.shared.streams.open(stream, self.shared.to.clone());
        if fin {
            self.shared.streams.end_input(stream);
        }
        self.say(Out::Reply(stream)).await?;
        if self.found.send(Incoming { id: stream, headers, inbox, outlet }).await.is_err() {
            return self.say(Out::Reset(stream, REFUSED)).await;
        }
        Ok(())
    }

    async fn say(&self, out: Out) -> io::Result<()> {
        self.shared.to.send(out).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
