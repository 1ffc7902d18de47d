//! Counts calls of the API, and logs each: method, namespace, code, how long it took. A call ends when its answer's
//! trailers have been sent, or its caller has gone.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
    time::Instant,
};

use hyper::body::{Body, Frame, SizeHint};
use tonic::{
    Code,
    codegen::{Service, http},
};
use tower::Layer;

use super::{METRICS, text::Kind, text::Page};
use crate::failure::NAMESPACE_HEADER;

/// Upper ends of the buckets, in seconds.
const BUCKETS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0];

/// Most methods that are told apart: a caller can ask for any name.
const METHODS: usize = 160;

/// gRPC's codes, by number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// What is known about the calls of one method.
#[derive(Debug, Default)]
struct Method {
    started: u64,
    // By code.
    ended: [u64; 17],
    // Those up to each end, not summed up; the last is everything beyond.
    buckets: [u64; BUCKETS.len() + 1],
    seconds: f64,
}

/// Calls by method.
pub(crate) struct Calls(Mutex<BTreeMap<String, Method>>);

impl Calls {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    fn change(&self, path: &str, change: impl FnOnce(&mut Method)) {
        let mut methods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let path = if methods.contains_key(path) || methods.len() < METHODS { path } else { "/other/other" };
        match methods.get_mut(path) {
            Some(method) => change(method),
            None => change(methods.entry(path.to_owned()).or_default()),
        }
    }

    fn started(&self, path: &str) {
        self.change(path, |method| method.started += 1);
    }

    fn ended(&self, path: &str, code: Code, seconds: f64) {
        self.change(path, |method| {
            method.ended[code as usize % CODES.len()] += 1;
            let bucket = BUCKETS.iter().position(|end| seconds <= *end).unwrap_or(BUCKETS.len());
            method.buckets[bucket] += 1;
            method.seconds += seconds;
        });
    }

    /// Writes the families that containerd's users know.
    pub(super) fn write(&self, page: &mut Page) {
        let methods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let split = |path: &str| {
            let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or(("", path));
            (service.to_owned(), method.to_owned())
        };
        let mut family = page.family("grpc_server_started_total", Kind::Counter, "Calls that began.");
        for (path, method) in &*methods {
            let (service, name) = split(path);
            family.sample("", &[("grpc_service", &service), ("grpc_method", &name)], method.started as f64);
        }
        let mut family = page.family("grpc_server_handled_total", Kind::Counter, "Calls that ended, by their code.");
        for (path, method) in &*methods {
            let (service, name) = split(path);
            for (code, count) in CODES.iter().zip(method.ended).filter(|(_, count)| *count > 0) {
                let labels = [("grpc_service", &*service), ("grpc_method", &*name), ("grpc_code", *code)];
                family.sample("", &labels, count as f64);
            }
        }
        let mut family = page.family(
            "grpc_server_handling_seconds",
            Kind::Histogram,
            "How long calls took, until their last byte or the caller's leaving.",
        );
        for (path, method) in &*methods {
            let (service, name) = split(path);
            let labels = [("grpc_service", &*service), ("grpc_method", &*name)];
            let mut sum = 0;
            let ends = BUCKETS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
            for (end, count) in ends.zip(method.buckets) {
                sum += count;
                family.sample("_bucket", &[labels[0], labels[1], ("le", &end)], sum as f64);
            }
            family.sample("_sum", &labels, method.seconds);
            family.sample("_count", &labels, sum as f64);
        }
    }
}

/// Puts the counting around a server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallsLayer;

impl<S> Layer<S> for CallsLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted(inner)
    }
}

/// A server whose calls are counted.
#[derive(Debug, Clone)]
pub(crate) struct Counted<S>(S);

impl<S, B, R> Service<http::Request<B>> for Counted<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    S::Future: Send + 'static,
    R: Body,
{
    type Response = http::Response<CountedBody<R>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let mut call = Call::begin(&request);
        let answer = self.0.call(request);
        Box::pin(async move {
            let answer = answer.await;
            if let Ok(answer) = &answer {
                // A refusal has no body: its code comes with the headers.
                call.note(answer.headers());
            }
            answer.map(|answer| answer.map(|body| CountedBody { body: Box::pin(body), call }))
        })
    }
}

/// One call, counted as ended when dropped.
struct Call {
    path: String,
    namespace: String,
    began: Instant,
    code: Option<Code>,
}

impl Call {
    fn begin<B>(request: &http::Request<B>) -> Self {
        let namespace = request.headers().get(NAMESPACE_HEADER).and_then(|value| value.to_str().ok());
        let path = request.uri().path().to_owned();
        METRICS.calls.started(&path);
        Self { path, namespace: namespace.unwrap_or_default().to_owned(), began: Instant::now(), code: None }
    }

    fn note(&mut self, headers: &http::HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(Code::Cancelled);
        let took = self.began.elapsed();
        METRICS.calls.ended(&self.path, code, took.as_secs_f64());
        tracing::debug!(
            operation = self.path,
            namespace = self.namespace,
            code = CODES[code as usize % CODES.len()],
            ms = took.as_secs_f64() * 1000.0,
            "call ended"
        );
    }
}

/// The body of an answer, watched for its end.
pub(crate) struct CountedBody<R> {
    body: Pin<Box<R>>,
    call: Call,
}

impl<R: Body> Body for CountedBody<R> {
    type Data = R::Data;
    type Error = R::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<R::Data>, R::Error>>> {
        let polled = self.body.as_mut().poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.note(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_beyond_the_most_are_counted_together() {
        let calls = Calls::new();
        for i in 0..METHODS + 10 {
            calls.started(&format!("/s/{i}"));
            calls.ended(&format!("/s/{i}"), Code::Unimplemented, 0.002);
        }
        let mut page = Page::default();
        calls.write(&mut page);
        let page = page.end();
        assert!(
            page.contains("grpc_server_started_total{grpc_service=\"other\",grpc_method=\"other\"} 10\n"),
            "{page}"
        );
        assert!(page.contains("grpc_method=\"7\",grpc_code=\"Unimplemented\"} 1\n"));
        assert!(page.contains("{grpc_service=\"s\",grpc_method=\"7\",le=\"0.001\"} 0\n"));
        assert!(page.contains("{grpc_service=\"s\",grpc_method=\"7\",le=\"0.0025\"} 1\n"));
    }
}
