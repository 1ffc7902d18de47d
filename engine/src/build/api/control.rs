//! `moby.buildkit.v1.Control`: what buildx and others speak.

use super::workers;
use crate::build::{
    BuildError, Builder, Wanted,
    history::{History, Selected},
    progress::Listener,
    session::{Announced, SessionError, stream_of_messages},
};
use futures_util::{Stream, StreamExt as _, stream};
use proto::moby::buildkit::v1::{
    BuildHistoryEvent, BuildHistoryRequest, BytesMessage, DiskUsageRequest, DiskUsageResponse, Exporter, InfoRequest,
    InfoResponse, ListWorkersRequest, ListWorkersResponse, PruneRequest, SolveRequest, SolveResponse, StatusRequest,
    StatusResponse, UpdateBuildHistoryRequest, UpdateBuildHistoryResponse, UsageRecord, control_server::Control,
};
use std::{collections::VecDeque, path::Path, pin::Pin, sync::Arc};
use tonic::{Request, Response, Status, Streaming};

/// The service.
#[derive(Debug, Clone)]
pub struct ControlService(pub Arc<Builder>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Control for ControlService {
    async fn disk_usage(&self, request: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        let request = request.into_inner();
        let mut record = self.0.backend().usage(&request.filter).await?;
        if request.age_limit > 0 {
            let limit = std::time::Duration::from_nanos(request.age_limit.unsigned_abs());
            record.retain(|record| super::http::unused_for(record).is_some_and(|age| age >= limit));
        }
        Ok(Response::new(DiskUsageResponse { record }))
    }

    type PruneStream = Answers<UsageRecord>;

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let removed = self.0.backend().prune(request.get_ref()).await?;
        Ok(Response::new(Box::pin(stream::iter(removed.into_iter().map(Ok)))))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let begun = self.0.begin(wanted(request.into_inner())?)?;
        let response = begun.run().await?;
        Ok(Response::new(SolveResponse { exporter_response: response.into_iter().collect() }))
    }

    type StatusStream = Answers<StatusResponse>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let id = request.into_inner().r#ref;
        let progress = match self.0.history.progress(&id) {
            Some(progress) => progress,
            None => self.0.build(&id).await?.progress.clone(),
        };
        Ok(Response::new(Box::pin(messages(progress.listen()).map(Ok))))
    }

    type SessionStream = Answers<BytesMessage>;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.0.session_of_messages(request).await
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let mut record = self.0.worker.clone();
        // Emulators come and go while we run.
        record.platforms = workers::platforms(Path::new("/proc/sys/fs/binfmt_misc"));
        let filters = request.into_inner().filter;
        let passes = filters.is_empty()
            || filters.iter().any(|filter| filter.split(',').all(|part| part == format!("id=={}", record.id)));
        Ok(Response::new(ListWorkersResponse { record: passes.then_some(record).into_iter().collect() }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse { buildkit_version: Some(Builder::version()) }))
    }

    type ListenBuildHistoryStream = Answers<BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let request = request.into_inner();
        let selected = Selected {
            active: request.active_only,
            id: request.r#ref,
            filters: Selected::filters(&request.filter).map_err(Status::invalid_argument)?,
            limit: usize::try_from(request.limit).unwrap_or(0),
        };
        let (known, events) = self.0.history.listen(&selected);
        let known = stream::iter(known.into_iter().map(Ok));
        if request.early_exit {
            return Ok(Response::new(Box::pin(known)));
        }
        let later = tokio_stream::wrappers::BroadcastStream::new(events).filter_map(move |event| {
            let answer = match event {
                Ok(event) if History::passes(&selected, &event) => Some(Ok(event)),
                Ok(_) => None,
                Err(lagged) => Some(Err(Status::data_loss(lagged.to_string()))),
            };
            std::future::ready(answer)
        });
        Ok(Response::new(Box::pin(known.chain(later))))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        let request = request.into_inner();
        let history = &self.0.history;
        let found = match (request.delete, request.finalize) {
            (true, _) => history.forget(&request.r#ref),
            // Traces are what is finalized, and there are none.
            (false, true) => history.progress(&request.r#ref).is_some(),
            (false, false) => history.pin(&request.r#ref, request.pinned),
        };
        if !found {
            return Err(Status::not_found(format!("no build {} that has ended", request.r#ref)));
        }
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}

/// What a listener hears, message by message.
pub fn messages(listener: Listener) -> impl Stream<Item = StatusResponse> + Send {
    stream::unfold((listener, VecDeque::new()), |(mut listener, mut waiting)| async move {
        while waiting.is_empty() {
            waiting.extend(listener.next().await?);
        }
        let next = waiting.pop_front()?;
        Some((next, (listener, waiting)))
    })
}

/// A request, in our words; older clients' names for the same things are understood.
fn wanted(request: SolveRequest) -> Result<Wanted, BuildError> {
    if request.source_policy.as_ref().is_some_and(|policy| !policy.rules.is_empty())
        || !request.source_policy_session.is_empty()
    {
        return Err(BuildError::unsupported("source policies are not implemented in berth yet"));
    }
    if request.enable_session_exporter {
        return Err(BuildError::unsupported("exporters that the client brings along are not implemented in berth"));
    }
    let mut exporters = request.exporters;
    if !request.exporter_deprecated.is_empty() && exporters.is_empty() {
        exporters.push(Exporter { r#type: request.exporter_deprecated, attrs: request.exporter_attrs_deprecated });
    }
    let mut cache = request.cache.unwrap_or_default();
    let registry = |name: String| proto::moby::buildkit::v1::CacheOptionsEntry {
        r#type: "registry".to_owned(),
        attrs: [("ref".to_owned(), name)].into(),
    };
    cache.imports.extend(std::mem::take(&mut cache.import_refs_deprecated).into_iter().map(registry));
    let old = std::mem::take(&mut cache.export_ref_deprecated);
    if !old.is_empty() {
        let mut entry = registry(old);
        entry.attrs.extend(std::mem::take(&mut cache.export_attrs_deprecated));
        cache.exports.push(entry);
    }
    Ok(Wanted {
        id: request.r#ref,
        sessions: Some(request.session).filter(|id| !id.is_empty()).into_iter().collect(),
        frontend: request.frontend,
        options: request.frontend_attrs,
        inputs: request.frontend_inputs,
        // Go's client may send an empty one where it means none.
        definition: request.definition.filter(|definition| !definition.def.is_empty()),
        exporters,
        cache,
        entitlements: request.entitlements,
        internal: request.internal,
    })
}

impl Builder {
    async fn session_of_messages(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Answers<BytesMessage>>, Status> {
        let refused = |error: SessionError| BuildError::of(error.kind(), &error);
        let announced = Announced::from_metadata(request.metadata()).map_err(refused)?;
        let (stream, answers) = stream_of_messages(request.into_inner());
        self.sessions.attach(announced, stream).map_err(refused)?;
        Ok(Response::new(Box::pin(answers)))
    }
}
