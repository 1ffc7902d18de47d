//! Tasks that nobody has a record of.

use super::{
    sh,
    stack::{Stack, eventually},
};
use hyper_util::rt::TokioIo;
use proto::containerd::services::{
    containers::v1::{DeleteContainerRequest, containers_client::ContainersClient},
    tasks::v1::{ListTasksRequest, tasks_client::TasksClient},
};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

async fn supervisor(stack: &Stack) -> Channel {
    let socket = stack.run().join("supervisor.sock");
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://supervisor").connect_with_connector(connector).await.unwrap()
}

fn ours<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", "berth".parse().unwrap());
    request
}

#[test]
fn a_task_that_no_record_tells_of_goes() {
    let Some(mut stack) = Stack::start() else { return };
    let lost = stack.create("", &sh("sleep 1000"));
    stack.start_container(&lost);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = |stack: &Stack| {
        let listed = runtime.block_on(async {
            TasksClient::new(supervisor(stack).await).list(ours(ListTasksRequest::default())).await.unwrap()
        });
        listed.into_inner().tasks.into_iter().map(|task| task.id).collect::<Vec<_>>()
    };
    assert_eq!(tasks(&stack), [lost.as_str()]);
    stack.kill_engine();
    // As if it had been removed, but for its task: the engine's record, its folder and the supervisor's record are gone.
    std::fs::remove_file(stack.data().join("engine/engine.redb")).unwrap();
    runtime.block_on(async {
        let delete = ours(DeleteContainerRequest { id: lost.clone() });
        ContainersClient::new(supervisor(&stack).await).delete(delete).await.unwrap();
    });
    stack.start_engine();
    eventually("no task is left", || match tasks(&stack) {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
}
