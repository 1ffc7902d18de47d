//! ListContainers and ListPodSandbox without a filter, which kubelets ask for every second: the answer is kept as the bytes that
//! were sent, until anything at all is written to the records. What has a filter is looked up each time.
//!
//! Both are routes of their own before the generated service, whose answers are made of messages.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::{BufMut as _, Bytes};
use prost::Message;
use proto::runtime::v1 as cri;
use tonic::{
    Request, Response, Status,
    codec::{Codec, EncodeBuf, Encoder},
    codegen::http,
    server::{Grpc, UnaryService},
};
use tonic_prost::{ProstCodec, ProstDecoder};

use super::{error::CriError, pods::Pods};
use crate::{
    api::MESSAGE_LIMIT,
    failure::{blocking, status},
};

/// A list as it was sent last.
#[derive(Default)]
pub(super) struct Kept(Mutex<Option<(u64, Bytes)>>);

impl Kept {
    /// The kept bytes, or new ones if records have changed since. `changes` counts what was written.
    fn get(
        &self,
        changes: impl FnOnce() -> u64,
        make: impl FnOnce() -> Result<Bytes, CriError>,
    ) -> Result<Bytes, CriError> {
        // Counted before anything is read: what is written meanwhile makes these bytes old.
        let now = changes();
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bytes)) = lock().as_ref().filter(|(then, _)| *then == now) {
            return Ok(bytes.clone());
        }
        let bytes = make()?;
        *lock() = Some((now, bytes.clone()));
        Ok(bytes)
    }
}

/// One of the two calls.
trait List: Clone + Send + Sync + 'static {
    const PATH: &'static str;
    type Request: Message + Default + 'static;
    fn answer(pods: &Pods, request: Self::Request) -> Result<Bytes, CriError>;
}

#[derive(Clone)]
struct Containers;

impl List for Containers {
    const PATH: &'static str = "/runtime.v1.RuntimeService/ListContainers";
    type Request = cri::ListContainersRequest;

    fn answer(pods: &Pods, request: Self::Request) -> Result<Bytes, CriError> {
        let make = |filter| {
            let containers = pods.list_containers(filter)?;
            Ok(cri::ListContainersResponse { containers }.encode_to_vec().into())
        };
        match request.filter.filter(|filter| *filter != cri::ContainerFilter::default()) {
            // A start that is at work, or done, changes what is said of its container, and no record.
            None => pods.listed.containers.get(|| pods.stores.db.changes() + pods.starting.changes(), || make(None)),
            filter => make(filter),
        }
    }
}

#[derive(Clone)]
struct Sandboxes;

impl List for Sandboxes {
    const PATH: &'static str = "/runtime.v1.RuntimeService/ListPodSandbox";
    type Request = cri::ListPodSandboxRequest;

    fn answer(pods: &Pods, request: Self::Request) -> Result<Bytes, CriError> {
        let make = |filter| {
            let items = pods.list_sandboxes(filter)?;
            Ok(cri::ListPodSandboxResponse { items }.encode_to_vec().into())
        };
        match request.filter.filter(|filter| *filter != cri::PodSandboxFilter::default()) {
            None => pods.listed.sandboxes.get(|| pods.stores.db.changes(), || make(None)),
            filter => make(filter),
        }
    }
}

/// What was last answered to both.
#[derive(Default)]
pub(super) struct Listed {
    containers: Kept,
    sandboxes: Kept,
}

/// Adds both calls to a router.
pub(crate) fn add_routes(router: axum::Router, pods: &Arc<Pods>) -> axum::Router {
    add::<Sandboxes>(add::<Containers>(router, pods), pods)
}

fn add<L: List>(router: axum::Router, pods: &Arc<Pods>) -> axum::Router {
    let pods = pods.clone();
    let serve = move |request: http::Request<axum::body::Body>| {
        let call = Call::<L>(pods.clone(), std::marker::PhantomData);
        async move {
            let limit = Some(MESSAGE_LIMIT);
            let mut grpc = Grpc::new(Encoded::<L::Request>::default()).apply_max_message_size_config(limit, limit);
            grpc.unary(call, request).await.map(axum::body::Body::new)
        }
    };
    router.route(L::PATH, axum::routing::post(serve))
}

struct Call<L>(Arc<Pods>, std::marker::PhantomData<L>);

impl<L: List> UnaryService<L::Request> for Call<L> {
    type Response = Bytes;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<L::Request>) -> Self::Future {
        let pods = self.0.clone();
        Box::pin(async move {
            blocking(move || L::answer(&pods, request.into_inner()).map_err(status)).await.map(Response::new)
        })
    }
}

/// Requests are messages, answers are the bytes of messages.
struct Encoded<T>(std::marker::PhantomData<T>);

impl<T> Default for Encoded<T> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<T: Message + Default + 'static> Codec for Encoded<T> {
    type Encode = Bytes;
    type Decode = T;
    type Encoder = Whole;
    type Decoder = ProstDecoder<T>;

    fn encoder(&mut self) -> Whole {
        Whole
    }

    fn decoder(&mut self) -> ProstDecoder<T> {
        ProstCodec::<(), T>::default().decoder()
    }
}

/// Sends bytes as they are.
struct Whole;

impl Encoder for Whole {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_until_something_is_written() {
        let kept = Kept::default();
        let get =
            |changes, text: &'static str| kept.get(|| changes, || Ok(Bytes::from_static(text.as_bytes()))).unwrap();
        assert_eq!(get(1, "a"), "a");
        assert_eq!(get(1, "b"), "a");
        assert_eq!(get(2, "c"), "c");
        let failed = kept.get(|| 3, || Err(CriError::Panic));
        assert!(failed.is_err());
        assert_eq!(get(3, "d"), "d");
    }
}
