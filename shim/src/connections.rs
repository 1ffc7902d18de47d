//! Accepts connections and finds out which protocol each of them speaks.
//!
//! One socket for both, so that a daemon of another version, or another daemon, can go on with a shim that lives: the first
//! byte of ttrpc is always 0 (lengths end at 4 MiB), that of HTTP/2 is the P of its preface.

use std::{os::fd::AsRawFd as _, rc::Rc, time::Duration};

use hyper_util::rt::TokioIo;
use nix::sys::socket::{MsgFlags, recv};
use tokio::{
    io::Interest,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
};

use crate::{calls, desk::Callers, local::LocalExecutor, report::warn_line, server::Desk};

/// How long answers under way may take once the shim is to end.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Counts a connection for as long as it lives.
struct Counted(Rc<Callers>);

impl Counted {
    fn new(callers: Rc<Callers>) -> Self {
        callers.count.set(callers.count.get() + 1);
        callers.changed.notify_one();
        Self(callers)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get() - 1);
        self.0.changed.notify_one();
    }
}

/// Accepts connections until `ending` is dropped or changes; then lets answers under way go out.
pub(crate) async fn serve(listener: UnixListener, desk: Desk, callers: Rc<Callers>, mut ending: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ending.changed() => break,
            Some(_) = connections.join_next() => continue,
        };
        match stream {
            Ok((stream, _)) => {
                let (desk, mut ending, counted) = (desk.clone(), ending.clone(), Counted::new(callers.clone()));
                connections.spawn_local(async move {
                    let _counted = counted;
                    match speaks_ttrpc(&stream, &mut ending).await {
                        Some(true) => serve_ttrpc(stream, desk, ending).await,
                        Some(false) => serve_grpc(stream, desk, ending).await,
                        None => {}
                    }
                });
            }
            Err(error) => {
                // No descriptors left, most likely; a moment later there may be some.
                warn_line!("accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(LAST_ANSWERS, async { while connections.join_next().await.is_some() {} }).await;
}

/// Looks at the first byte and leaves it where it is. `None`: it never comes.
async fn speaks_ttrpc(stream: &UnixStream, ending: &mut watch::Receiver<bool>) -> Option<bool> {
    let mut first = [0];
    let peeked = stream.async_io(Interest::READABLE, || Ok(recv(stream.as_raw_fd(), &mut first, MsgFlags::MSG_PEEK)?));
    tokio::select! {
        peeked = peeked => match peeked {
            Ok(1..) => Some(first == [0]),
            _ => None,
        },
        _ = ending.changed() => None,
    }
}

async fn serve_ttrpc(stream: UnixStream, desk: Desk, mut ending: watch::Receiver<bool>) {
    let ending = async move { drop(ending.changed().await) };
    // A caller that breaks off is its own affair.
    let _ = proto::ttrpc::serve(stream, ending, move |call| calls::answer(desk.clone(), call)).await;
}

async fn serve_grpc(stream: UnixStream, desk: Desk, mut ending: watch::Receiver<bool>) {
    let connection = hyper::server::conn::http2::Builder::new(LocalExecutor)
        // A shim has few callers, and small messages. Calls that wait for ends are many in a pod with execs, and must not keep
        // out the one that brings the end about.
        .max_concurrent_streams(1024)
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(64 << 10)
        .max_send_buf_size(64 << 10)
        .serve_connection(TokioIo::new(stream), desk);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = ending.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
