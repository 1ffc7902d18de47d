//! A context on standard input: it is read once, by whoever asks for it under its name.

use super::Outgoing;
use proto::moby::upload::v1::BytesMessage;
use proto::moby::upload::v1::upload_server::Upload as UploadService;
use std::sync::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Bytes of one message.
const CHUNK: usize = 64 << 10;

/// Standard input under a name; gone once it has been taken.
pub struct Upload {
    input: Mutex<Option<(String, Vec<u8>)>>,
}

impl Upload {
    /// Offers standard input, of which the head has been read.
    pub fn new(input: Option<(String, Vec<u8>)>) -> Self {
        Self { input: Mutex::new(input) }
    }
}

#[tonic::async_trait]
impl UploadService for Upload {
    type PullStream = Outgoing<BytesMessage>;

    async fn pull(&self, request: Request<Streaming<BytesMessage>>) -> Result<Response<Self::PullStream>, Status> {
        let path = request.metadata().get("urlpath").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let input = match self.input.lock() {
            Ok(mut input) => input.take_if(|(id, _)| *id == name),
            Err(_) => None,
        };
        let Some((_, head)) = input else {
            return Err(Status::not_found(format!("no http response from session for {name}")));
        };
        let (sender, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut input = AsyncReadExt::chain(std::io::Cursor::new(head), tokio::io::stdin());
            loop {
                let mut data = vec![0; CHUNK];
                let message = match input.read(&mut data).await {
                    Ok(0) => return,
                    Ok(count) => {
                        data.truncate(count);
                        Ok(BytesMessage { data })
                    }
                    Err(cause) => Err(Status::unknown(format!("read standard input: {cause}"))),
                };
                let ends = message.is_err();
                if sender.send(message).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}
