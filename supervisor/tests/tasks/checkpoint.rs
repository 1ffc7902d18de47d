//! A checkpoint becomes blobs. criu doesn't run on every kernel, so an OCI runtime stands in for it that writes two files
//! when it is to make a checkpoint, and does everything else as Berth's.

use std::{fs, io::Read};

use crate::stack::{Stack, program, request};
use proto::{
    containerd::{
        runc::v1::CheckpointOptions,
        services::{
            content::v1::{ReadContentRequest, content_client::ContentClient},
            leases::v1::{self as leases, leases_client::LeasesClient},
            tasks::v1::CheckpointTaskRequest,
        },
        types::Descriptor,
    },
    typeurl,
};
use tonic::Code;

const RUNTIME: &str = r#"#!/bin/busybox sh
case " $* " in
*" checkpoint "*)
    until test "$1" = --image-path; do shift; done
    mkdir -p "$2/below" && echo pages >"$2/pages-1.img" && echo well >"$2/below/dump.log"
    exit ;;
esac
exec RUNTIME "$@"
"#;

async fn read(stack: &Stack, blob: &Descriptor) -> Vec<u8> {
    let message = ReadContentRequest { digest: blob.digest.clone(), offset: 0, size: 0 };
    let mut parts = ContentClient::new(stack.channel()).read(request(message)).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        bytes.extend(part.data);
    }
    assert_eq!(bytes.len() as i64, blob.size);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_is_two_blobs_or_files_where_they_are_wanted() {
    let stack = Stack::new().await;
    let runtime = stack.folder().join("runtime");
    testing::executable(&runtime, RUNTIME.replace("RUNTIME", &program("berth-runtime").display().to_string()));
    stack.record_on("a", "sleep 1000", "io.containerd.berth.v1", &runtime.display().to_string()).await.unwrap();
    stack.create("a").await;
    let ask = |options: Option<CheckpointOptions>, parent: &str| {
        let options = options.map(|options| typeurl::pack(&options));
        let ask = CheckpointTaskRequest { container_id: "a".into(), parent_checkpoint: parent.into(), options };
        let mut ask = request(ask);
        ask.metadata_mut().insert("containerd-lease", "checkpoint".parse().unwrap());
        ask
    };
    // Nobody makes an image of it, so a lease keeps it.
    let lease = leases::CreateRequest { id: "checkpoint".into(), ..Default::default() };
    LeasesClient::new(stack.channel()).create(request(lease)).await.unwrap();
    let early = stack.tasks().checkpoint(ask(None, "")).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition, "{early}");
    stack.start_task("a").await;
    let blobs = stack.tasks().checkpoint(ask(None, "")).await.unwrap().into_inner().descriptors;
    let types: Vec<_> = blobs.iter().map(|blob| blob.media_type.as_str()).collect();
    assert_eq!(
        types,
        [
            "application/vnd.containerd.container.criu.checkpoint.criu.tar",
            "application/vnd.containerd.container.checkpoint.config.v1+proto"
        ]
    );
    let archive = read(&stack, &blobs[0]).await;
    let mut archive = tar::Archive::new(&*archive);
    let mut files = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let name = entry.path().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            files.push((name, text));
        }
    }
    files.sort();
    let pair = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    assert!(
        files.contains(&pair("pages-1.img", "pages\n")) && files.contains(&pair("dump.log", "well\n")),
        "{files:?}"
    );
    let spec: prost_types::Any = prost::Message::decode(&*read(&stack, &blobs[1]).await).unwrap();
    assert!(spec.type_url.ends_with("Spec") && spec.value.starts_with(b"{"));
    assert_eq!(fs::read_dir(stack.folder().join("d/supervisor/checkpoints")).unwrap().count(), 0);
    let image = stack.folder().join("checkpoint");
    let options = CheckpointOptions { image_path: image.display().to_string(), ..Default::default() };
    let none = stack.tasks().checkpoint(ask(Some(options), "")).await.unwrap().into_inner().descriptors;
    assert!(none.is_empty() && image.join("pages-1.img").is_file());
    let on_another = stack.tasks().checkpoint(ask(None, "sha256:00")).await.unwrap_err();
    assert_eq!(on_another.code(), Code::Unimplemented, "{on_another}");
    // Restoring begins with the blob's kind.
    stack.finish("a").await;
    let mut again = stack.create_request("a");
    again.checkpoint = Some(Descriptor { media_type: "text/plain".into(), ..blobs[0].clone() });
    let refused = stack.tasks().create(request(again)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    stack.nothing_left().await;
}
