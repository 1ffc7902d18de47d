//! The ttrpc edge: the same services as over gRPC, for daemons that don't speak that.

use prost::Message;
use proto::{
    berth::streams::v1::streams_server::{SERVICE_NAME as STREAMS, Streams as _},
    containerd::task::v3::task_server::Task as _,
    ttrpc::{Call, TASK_V2, TASK_V3},
};
use tonic::{Response, Status};

use crate::server::Desk;

/// Answers one call. Versions 2 and 3 of the task service differ in nothing but the name.
pub(crate) async fn answer(desk: Desk, call: Call) -> Result<Vec<u8>, Status> {
    match (call.service(), call.method()) {
        (TASK_V2 | TASK_V3, _) => task(&desk, &call).await,
        (STREAMS, "Attach") => unary(&call, |request| desk.attach(request)).await,
        (STREAMS, "ReopenLog") => unary(&call, |request| desk.reopen_log(request)).await,
        _ => Err(call.unimplemented()),
    }
}

async fn task(desk: &Desk, call: &Call) -> Result<Vec<u8>, Status> {
    match call.method() {
        "State" => unary(call, |request| desk.state(request)).await,
        "Create" => unary(call, |request| desk.create(request)).await,
        "Start" => unary(call, |request| desk.start(request)).await,
        "Delete" => unary(call, |request| desk.delete(request)).await,
        "Pids" => unary(call, |request| desk.pids(request)).await,
        "Pause" => unary(call, |request| desk.pause(request)).await,
        "Resume" => unary(call, |request| desk.resume(request)).await,
        "Checkpoint" => unary(call, |request| desk.checkpoint(request)).await,
        "Kill" => unary(call, |request| desk.kill(request)).await,
        "Exec" => unary(call, |request| desk.exec(request)).await,
        "ResizePty" => unary(call, |request| desk.resize_pty(request)).await,
        "CloseIO" => unary(call, |request| desk.close_io(request)).await,
        "Update" => unary(call, |request| desk.update(request)).await,
        "Wait" => unary(call, |request| desk.wait(request)).await,
        "Stats" => unary(call, |request| desk.stats(request)).await,
        "Connect" => unary(call, |request| desk.connect(request)).await,
        "Shutdown" => unary(call, |request| desk.shutdown(request)).await,
        _ => Err(call.unimplemented()),
    }
}

async fn unary<Q, A, F>(call: &Call, serve: impl FnOnce(tonic::Request<Q>) -> F) -> Result<Vec<u8>, Status>
where
    Q: Message + Default,
    A: Message,
    F: Future<Output = Result<Response<A>, Status>>,
{
    let request = tonic::Request::new(call.message()?);
    Ok(serve(request).await?.into_inner().encode_to_vec())
}
