//! Berth's own service about stored content: the check of everything while it is in use.

use std::{pin::Pin, sync::Arc};

use proto::berth::content::v1::{self as api, store_server};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, async_trait};

use crate::{
    check::verify::{Event, Kind, Listener, Object, Totals, verify},
    failure::{namespace, status},
    store::Stores,
};

/// Events that wait for a slow client; behind them the walk waits.
const QUEUE: usize = 64;

/// `berth.content.v1.Store`.
pub(crate) struct StoreService(Arc<Stores>);

impl StoreService {
    /// The service over these stores.
    pub(crate) fn new(stores: Arc<Stores>) -> Self {
        Self(stores)
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<api::VerifyEvent, Status>> + Send>>;

/// A client that reads events.
struct Client(mpsc::Sender<Result<api::VerifyEvent, Status>>);

impl Listener for Client {
    fn tell(&mut self, event: Event) {
        // A client that has gone is noticed before the next object.
        let _ = self.0.blocking_send(Ok(to_event(event)));
    }

    fn is_there(&self) -> bool {
        !self.0.is_closed()
    }
}

fn to_event(event: Event) -> api::VerifyEvent {
    use api::verify_event::Event as Out;
    let event = match event {
        Event::Plan(Totals { blobs, bytes, images, snapshots, .. }) => {
            Out::Plan(api::VerifyPlan { blobs, bytes, images, snapshots })
        }
        Event::Object(Object { kind, name, bytes, problems, images }) => {
            let kind = match kind {
                Kind::Blob => api::ObjectKind::Blob,
                Kind::Image => api::ObjectKind::Image,
                Kind::Snapshot => api::ObjectKind::Snapshot,
            };
            Out::Object(api::VerifiedObject { kind: kind.into(), name, bytes, problems, images })
        }
        Event::Totals(Totals { blobs, bytes, images, snapshots, remakeable, faulty }) => {
            Out::Totals(api::VerifyTotals { blobs, bytes, images, snapshots, remakeable, faulty })
        }
    };
    api::VerifyEvent { event: Some(event) }
}

#[async_trait]
impl store_server::Store for StoreService {
    type VerifyStream = Answers;

    async fn verify(&self, request: Request<api::VerifyRequest>) -> Result<Response<Answers>, Status> {
        let (namespace, stores) = (namespace(&request)?, self.0.clone());
        let only = request.into_inner().images;
        let (sender, receiver) = mpsc::channel(QUEUE);
        // Of its own, since it waits for the client: the runtime's threads are few.
        let spawned = std::thread::Builder::new().name("verify".into()).spawn(move || {
            let mut client = Client(sender);
            if let Err(error) = verify(&stores, namespace.as_str(), &only, &mut client) {
                let _ = client.0.blocking_send(Err(status(error)));
            }
        });
        spawned.map_err(|error| Status::resource_exhausted(format!("verify: start a thread: {error}")))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
