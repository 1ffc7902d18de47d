//! Answers the calls of one connection.

use std::{io, time::Duration};

use prost::Message;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    sync::mpsc,
    task::JoinSet,
};
use tonic::Status;

use super::{
    NAMESPACE_HEADER,
    frame::{self, DATA, Frame, MESSAGE_LIMIT, OPEN, REQUEST, RESPONSE},
    message::{Request, Response},
};
use crate::google::rpc;

/// So many calls of one connection may be under way. More are refused rather than kept waiting: those that are under way may
/// all be waiting for something that only a further call brings about.
const CALLS: usize = 1024;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Call(Request);

impl Call {
    /// Full name of the service.
    pub fn service(&self) -> &str {
        &self.0.service
    }

    /// The method.
    pub fn method(&self) -> &str {
        &self.0.method
    }

    /// The namespace that came with it.
    pub fn namespace(&self) -> Option<&str> {
        let header = self.0.metadata.iter().find(|entry| entry.key.eq_ignore_ascii_case(NAMESPACE_HEADER));
        header.map(|entry| entry.value.as_str())
    }

    /// The message.
    pub fn message<M: Message + Default>(&self) -> Result<M, Status> {
        M::decode(self.0.payload.as_slice())
            .map_err(|error| Status::invalid_argument(format!("request {}: {error}", self.0.method)))
    }

    /// The answer for a method that isn't there.
    pub fn unimplemented(&self) -> Status {
        Status::unimplemented(format!("method {:?} of service {:?} is not served here", self.0.method, self.0.service))
    }
}

/// Serves until the client closes the connection, or until `ending` is ready and all calls under way are answered.
///
/// Calls run beside one another; those under way when the client leaves are dropped.
pub async fn serve<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    ending: impl Future<Output = ()>,
    handle: impl Fn(Call) -> F,
) -> io::Result<()>
where
    F: Future<Output = Result<Vec<u8>, Status>> + Send + 'static,
{
    let (reader, mut writer) = tokio::io::split(stream);
    // One ahead: a client that doesn't read its answers isn't read from either.
    let (sender, mut frames) = mpsc::channel(1);
    let reading = async move {
        let mut reader = BufReader::with_capacity(1024, reader);
        while let Some(frame) = frame::read(&mut reader).await? {
            if sender.send(frame).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    let mut reading = std::pin::pin!(reading);
    let mut ending = std::pin::pin!(ending);
    let mut calls = JoinSet::new();
    let (mut last, mut open) = (0, true);
    while open || !calls.is_empty() {
        let (stream, outcome) = tokio::select! {
            () = &mut ending, if open => {
                open = false;
                continue;
            }
            Some(frame) = frames.recv(), if open => {
                let stream = frame.header.stream;
                match admit(frame, &mut last, calls.len()) {
                    Ok(Some(request)) => {
                        let limit = u64::try_from(request.timeout_nano).ok().filter(|limit| *limit > 0);
                        let work = handle(Call(request));
                        calls.spawn(async move {
                            match limit {
                                Some(limit) => (stream, within(Duration::from_nanos(limit), work).await),
                                None => (stream, work.await),
                            }
                        });
                        continue;
                    }
                    Ok(None) => continue,
                    Err(refusal) => (stream, Err(refusal)),
                }
            }
            Some(done) = calls.join_next(), if !calls.is_empty() => match done {
                Ok(outcome) => outcome,
                // It panicked; without an answer its caller would wait for ever, so the connection goes.
                Err(error) => return Err(io::Error::other(error)),
            },
            // Last, so that a client that ends right after its request is still a client that left.
            ended = &mut reading, if open => return ended,
        };
        writer.write_all(&frame::encode(stream, RESPONSE, &response(outcome))).await?;
    }
    writer.shutdown().await
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Status::deadline_exceeded("the call took longer than its caller allowed")),
    }
}

/// The request in a frame, if it is one that may be worked on; `None` for what a server may ignore.
fn admit(frame: Frame, last: &mut u32, under_way: usize) -> Result<Option<Request>, Status> {
    let Frame { header, data } = frame;
    if !matches!(header.kind, REQUEST | DATA) {
        return Ok(None);
    }
    if header.stream % 2 == 0 {
        return Err(Status::invalid_argument("a client's stream has an odd number"));
    }
    if header.kind == DATA {
        return Err(Status::invalid_argument("no stream of this number is open"));
    }
    if header.stream <= *last {
        return Err(Status::invalid_argument("the number of this stream has been used"));
    }
    *last = header.stream;
    let Some(data) = data else {
        return Err(Status::resource_exhausted(format!("a ttrpc message has at most {MESSAGE_LIMIT} bytes")));
    };
    // A stream that its client has closed already says no more than a unary call.
    if header.flags & OPEN != 0 {
        return Err(Status::unimplemented("streaming calls are not served here"));
    }
    if under_way >= CALLS {
        return Err(Status::resource_exhausted(format!("{CALLS} calls of this connection are under way")));
    }
    let request = Request::decode(data.as_slice());
    request.map(Some).map_err(|error| Status::invalid_argument(format!("no ttrpc request: {error}")))
}

fn response(outcome: Result<Vec<u8>, Status>) -> Response {
    let status = |status: &Status| rpc::Status {
        code: status.code().into(),
        message: status.message().to_owned(),
        ..rpc::Status::default()
    };
    let outcome = outcome.and_then(|payload| {
        // The rest of the message is a tag and a length.
        let fits = payload.len() < MESSAGE_LIMIT - 16;
        fits.then_some(payload)
            .ok_or_else(|| Status::resource_exhausted("the answer is larger than a ttrpc message may be"))
    });
    match outcome {
        // The first ttrpc clients took a missing status for a failure.
        Ok(payload) => Response { status: Some(rpc::Status::default()), payload },
        Err(error) => Response { status: Some(status(&error)), payload: Vec::new() },
    }
}
