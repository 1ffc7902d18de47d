//! gRPC's clients over ttrpc: one call is taken out of its HTTP/2 clothes, made, and its answer dressed again.
//!
//! So the rest of the supervisor knows one kind of shim. The messages are the same in both worlds; the older task service,
//! `containerd.task.v2.Task`, differs from v3 in its name only.

use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Bytes, Frame};
use proto::ttrpc::{Client, TASK_V2, TASK_V3};
use tonic::{
    Status,
    body::Body,
    codegen::{
        StdError,
        http::{HeaderMap, HeaderValue, Request, Response},
    },
};

use crate::failure::NAMESPACE_HEADER;

/// Flag byte and length before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const PREFIX: usize = 5;

/// Makes a unary call.
pub(super) async fn call(client: &Client, version: i32, request: Request<Body>) -> Result<Response<Body>, StdError> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let status = match head.uri.path().trim_start_matches('/').split_once('/') {
        Some((service, method)) => {
            let service = if service == TASK_V3 && version < 3 { TASK_V2 } else { service };
            let namespace =
                head.headers.get(NAMESPACE_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let message = body.get(PREFIX..).unwrap_or_default().to_vec();
            client.call_encoded(service, method, namespace, message, None).await
        }
        None => Err(Status::internal(format!("{} is no method of a service", head.uri.path()))),
    };
    let (message, trailers) = match status {
        Ok(message) => (Some(message), ok()),
        Err(status) => return Ok(status.into_http()),
    };
    let prefixed = message.map(|message| {
        let mut bytes = Vec::with_capacity(PREFIX + message.len());
        bytes.push(0);
        // A message is at most 4 MiB.
        bytes.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(&message);
        Frame::data(Bytes::from(bytes))
    });
    let frames = prefixed.into_iter().chain([Frame::trailers(trailers)]).map(Ok::<_, Status>);
    let mut response = Response::new(Body::new(StreamBody::new(tokio_stream::iter(frames))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

fn ok() -> HeaderMap {
    HeaderMap::from_iter([(Status::GRPC_STATUS, HeaderValue::from_static("0"))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::connection::{Connection, request};
    use prost::Message as _;
    use proto::{
        containerd::task::v3::{StateRequest, StateResponse},
        id::NamespaceName,
        ttrpc,
    };

    #[tokio::test]
    async fn a_call_and_its_answer_get_through() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let shim = ttrpc::serve(theirs, std::future::pending(), |call| async move {
            assert_eq!((call.service(), call.method(), call.namespace()), (TASK_V2, "State", Some("n")));
            let asked: StateRequest = call.message()?;
            if asked.id == "web" {
                return Ok(StateResponse { id: asked.id, pid: 7, ..Default::default() }.encode_to_vec());
            }
            Err(Status::not_found(format!("task {} not found", asked.id)))
        });
        let asking = async {
            let connection = Connection::Ttrpc { client: Client::over(ours), version: 2 };
            let namespace = NamespaceName::new("n").unwrap();
            let state = |id: &str| request(&namespace, StateRequest { id: id.into(), ..Default::default() });
            let answer = connection.tasks().state(state("web")).await.unwrap().into_inner();
            assert_eq!((answer.id.as_str(), answer.pid), ("web", 7));
            let status = connection.tasks().state(state("none")).await.unwrap_err();
            assert_eq!((status.code(), status.message()), (tonic::Code::NotFound, "task none not found"));
            assert!(!connection.is_lost());
        };
        tokio::select! {
            _ = shim => panic!("the shim ended"),
            () = asking => {}
        }
    }

    #[tokio::test]
    async fn the_end_of_the_connection_is_seen() {
        let (ours, theirs) = tokio::io::duplex(64);
        let connection = Connection::Ttrpc { client: Client::over(ours), version: 3 };
        drop(theirs);
        connection.lost().await;
        assert!(connection.is_lost());
    }
}
