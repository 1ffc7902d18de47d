//! What the supervisor says about itself and its runtimes, and about what it lacks.

use crate::stack::{Stack, request};
use proto::{
    containerd::{
        services::introspection::v1::{PluginInfoRequest, introspection_client::IntrospectionClient},
        types::{RuntimeInfo, RuntimeRequest},
    },
    typeurl,
};
use tonic::{Code, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runtimes_tell_what_they_are() {
    let stack = Stack::new().await;
    let mut client = IntrospectionClient::new(stack.channel());
    let ask = |id: &str, runtime: &str| PluginInfoRequest {
        r#type: "io.containerd.runtime.v2".into(),
        id: id.into(),
        options: Some(typeurl::pack(&RuntimeRequest { runtime_path: runtime.into(), options: None })),
    };
    let answer = client.plugin_info(request(ask("task", "io.containerd.berth.v1"))).await.unwrap().into_inner();
    let info: RuntimeInfo = typeurl::unpack(&answer.extra.unwrap()).unwrap().unwrap();
    assert_eq!(info.name, "io.containerd.berth.v1");
    assert!(info.features.is_some_and(|features| features.value.starts_with(b"{")), "the runtime's features");
    for (id, runtime, code) in [
        ("task", "io.containerd.nope.v1", Code::NotFound),
        ("task", "/bin/true", Code::Ok),
        ("task", "/bin/false", Code::Unimplemented),
        ("nope", "", Code::NotFound),
    ] {
        let answer = client.plugin_info(request(ask(id, runtime))).await;
        assert_eq!(answer.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok), code, "{id} {runtime}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_is_said_by_name() {
    let stack = Stack::new().await;
    let mut client = Grpc::new(stack.channel());
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/containerd.services.sandbox.v1.Controller/Create");
    let codec = ProstCodec::<(), ()>::default();
    let refused = client.unary(request(()), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("has no service containerd.services.sandbox.v1.Controller"), "{refused}");
}
