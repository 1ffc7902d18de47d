//! Connections: taken, met with TLS where it is due, served until they end or the engine is told to.

use super::{
    Caller, Listener,
    certificate::common_name,
    half::{Carried, Debts, HalfOpen},
};
use crate::{
    access::{Gate, Passage},
    app::App,
    http::routes,
};
use axum::{Router, body::Body};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{mpsc, watch},
};
use tracing::{debug, info, warn};

/// How long a client may take for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long it may take for the head of a request, dockerd's limit; also what an idle connection has.
const HEAD: Duration = Duration::from_secs(300);

/// What every connection is served with.
#[derive(Debug, Clone)]
pub struct Door {
    /// Everything else.
    pub app: Arc<App>,
    /// The routes.
    pub router: Router,
    /// The access rules.
    pub gate: Arc<Gate>,
    /// Becomes true when the engine ends.
    pub stopped: watch::Receiver<bool>,
}

/// Serves a socket until the engine ends; then requests in hand get their time.
pub async fn serve(listener: Listener, mut door: Door) {
    // Every connection holds a clone of `alive`; when the last one is dropped, all have ended.
    let (alive, mut all_ended) = mpsc::channel::<()>(1);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener) => accepted,
            _ = door.stopped.changed() => break,
        };
        let served = door.clone();
        let alive = alive.clone();
        match accepted {
            Ok(Accepted::Unix(stream)) => {
                let passage = door.gate.passage(&stream);
                tokio::spawn(connection(stream, served, passage, alive));
            }
            Ok(Accepted::Tcp(stream, caller)) => {
                let certificates = match &listener {
                    Listener::Tcp(_, certificates) => certificates.clone(),
                    Listener::Unix(_) => None,
                };
                tokio::spawn(async move {
                    let Some(certificates) = certificates else {
                        let passage = served.gate.passage_of(&caller);
                        return connection(stream, served, passage, alive).await;
                    };
                    let shaken = tokio::time::timeout(HANDSHAKE, certificates.acceptor().accept(stream)).await;
                    match shaken {
                        Ok(Ok(stream)) => {
                            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                            let certificate = shown.map(|certificate| common_name(certificate).unwrap_or_default());
                            let passage = served.gate.passage_of(&Caller { certificate, ..caller });
                            connection(stream, served, passage, alive).await;
                        }
                        Ok(Err(error)) => info!(client = %caller.address, %error, "client refused by TLS"),
                        Err(_) => info!(client = %caller.address, "client made no TLS handshake in time"),
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: waiting is the only cure.
                warn!(%error, "accept connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // No new ones; a service manager keeps its socket open, so that clients wait for the next engine there.
    drop(listener);
    drop(alive);
    let patience = door.app.live().drain;
    if tokio::time::timeout(patience, all_ended.recv()).await.is_err() {
        info!("long requests cut off");
    }
}

enum Accepted {
    Unix(tokio::net::UnixStream),
    Tcp(TcpStream, Caller),
}

async fn accept(listener: &Listener) -> std::io::Result<Accepted> {
    match listener {
        Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        Listener::Tcp(listener, _) => {
            let (stream, address) = listener.accept().await?;
            // Frames of a terminal are small; and a client whose machine is gone doesn't say so.
            let _ = stream.set_nodelay(true);
            let _ = nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true);
            Ok(Accepted::Tcp(stream, Caller { address, certificate: None }))
        }
    }
}

async fn connection<S: Carried>(stream: S, door: Door, passage: Option<Arc<Passage>>, _alive: mpsc::Sender<()>) {
    let metrics = &door.app.metrics;
    metrics.tide.rises(metrics.connections.fetch_add(1, Ordering::Relaxed) + 1);
    let mut stopped = door.stopped.clone();
    let app = door.app.clone();
    let debts = Debts::default();
    let stream = HalfOpen::new(stream, debts.clone());
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (door, passage, owed) = (door.clone(), passage.clone(), debts.owe());
        async move {
            routes::serve_for(&door.app, door.router, passage, door.stopped, request.map(Body::new))
                .await
                .map(|answer| answer.map(|body| owed.until_end_of(body)))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    let left = app.metrics.connections.fetch_sub(1, Ordering::Relaxed) - 1;
    if app.metrics.tide.falls(left) {
        tokio::spawn(async move { app.metrics.tide.ebb(&app.metrics.connections).await });
    }
    if let Err(error) = ended {
        debug!(%error, "connection ended");
    }
}
