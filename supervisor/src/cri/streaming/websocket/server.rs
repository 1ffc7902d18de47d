//! A connection that has become a WebSocket: a fixed set of channels.

use std::{io, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::{
    frame::{FrameError, Head, Kind, MESSAGE_LIMIT, code, unmask, write},
    handshake::Protocol,
};
use crate::cri::streaming::mux::{Connection, Inbox, Out, Outlet, PIECE, Shared, Streams, Wire};

/// The channel on which a client of version 5 ends its input of another one.
const END: u8 = 255;

/// Which way a channel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Direction {
    /// Nobody is interested in it.
    None,
    /// From the client.
    In,
    /// To the client.
    Out,
    /// Both.
    Both,
}

/// Serves a connection with these channels, in the order of their numbers.
pub(in super::super) fn open(
    socket: (TcpStream, Bytes),
    protocol: Protocol,
    channels: &[Direction],
) -> (Connection, Vec<(Inbox, Outlet)>) {
    let (ready, begin) = tokio::sync::oneshot::channel();
    let connection = Connection::new(
        socket,
        move |wire, shared| async move {
            // Not before the channels are there.
            let _ = begin.await;
            let to = shared.to.clone();
            let ended = Reader { wire, shared, protocol }.read().await;
            if let Err(error) = &ended
                && let Some(fault) = error.get_ref().and_then(|fault| fault.downcast_ref::<FrameError>())
            {
                let _ = to.try_send(Out::Bye(fault.code().into()));
            }
            ended
        },
        move |streams| encoder(streams, protocol),
    );
    let shared = &connection.shared;
    let open = channels.iter().enumerate().map(|(number, direction)| {
        let number = number as u32;
        let (inbox, outlet) = shared.streams.open(number, shared.to.clone());
        if !matches!(direction, Direction::In | Direction::Both) {
            shared.streams.end_input(number);
        }
        (inbox, outlet)
    });
    let open = open.collect();
    let _ = ready.send(());
    (connection, open)
}

/// What a message is on a WebSocket. The end of a channel has no word of its own: it is that of the connection.
fn encoder(streams: Arc<Streams>, protocol: Protocol) -> impl FnMut(Out, &mut Vec<u8>) {
    move |out, to| match out {
        Out::Data(channel, bytes) if streams.takes_output(channel) => {
            let channel = channel as u8;
            if protocol.base64 {
                write(Kind::Text, &[&[b'0'.wrapping_add(channel)], STANDARD.encode(bytes).as_bytes()], to);
            } else {
                write(Kind::Binary, &[&[channel], &bytes], to);
            }
        }
        Out::End(channel) => drop(streams.end_output(channel)),
        Out::Reset(channel, _) => drop(streams.reset(channel)),
        Out::Data(..) | Out::Reply(_) => {}
        Out::Ping => write(Kind::Ping, &[], to),
        Out::Pong(bytes) => write(Kind::Pong, &[&bytes], to),
        Out::Bye(reason) => {
            let code = if reason == 0 { code::NORMAL } else { reason as u16 };
            write(Kind::Close, &[&code.to_be_bytes()], to);
        }
    }
}

struct Reader {
    wire: Wire,
    shared: Shared,
    protocol: Protocol,
}

impl Reader {
    async fn read(&mut self) -> io::Result<()> {
        let mut message = BytesMut::new();
        let mut open = false;
        while self.wire.fill(2).await? {
            let start = [self.wire.peek(0), self.wire.peek(1)];
            let head = Head::parse(&self.wire.take(Head::size(start)).await?)?;
            match head.kind {
                Kind::Continuation if !open => return Err(FrameError::Malformed("continuation of nothing").into()),
                Kind::Text | Kind::Binary if open => {
                    return Err(FrameError::Malformed("message within a message").into());
                }
                Kind::Continuation | Kind::Text | Kind::Binary => {
                    if message.len() + head.length > MESSAGE_LIMIT {
                        return Err(FrameError::TooLarge.into());
                    }
                    let begin = message.len();
                    while message.len() < begin + head.length {
                        let most = begin + head.length - message.len();
                        message.extend_from_slice(&self.wire.some(most).await?);
                    }
                    unmask(&mut message[begin..], head.mask);
                    open = !head.fin;
                    if head.fin {
                        self.message(&message).await?;
                        message.clear();
                        if message.capacity() > 2 * PIECE {
                            message = BytesMut::new();
                        }
                    }
                }
                Kind::Ping => {
                    let mut bytes = self.wire.take(head.length).await?;
                    unmask(&mut bytes, head.mask);
                    let pong = Out::Pong(Bytes::copy_from_slice(&bytes));
                    self.shared.to.send(pong).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
                }
                Kind::Pong => drop(self.wire.take(head.length).await?),
                Kind::Close => {
                    // The other side expects an echo; if we said goodbye first, this is it.
                    let _ = self.shared.to.try_send(Out::Bye(0));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn message(&self, message: &[u8]) -> io::Result<()> {
        let [channel, rest @ ..] = message else { return Ok(()) };
        if !self.protocol.base64 {
            return match (channel, rest) {
                (&END, [ended]) if self.protocol.version >= 5 => {
                    self.shared.streams.end_input(u32::from(*ended));
                    Ok(())
                }
                _ => self.wire.deliver(&self.shared, u32::from(*channel), rest).await,
            };
        }
        let text = STANDARD.decode(rest).map_err(|_| FrameError::Malformed("message that is not base64"))?;
        self.wire.deliver(&self.shared, u32::from(channel.wrapping_sub(b'0')), &text).await
    }
}
