//! The content and image services to the letter: resumed writes, offsets, digests, field masks, filters.

use std::time::Duration;

use prost_types::FieldMask;
use proto::{
    containerd::{
        services::{
            content::v1::{
                AbortRequest, Info, InfoRequest, ListContentRequest, ListStatusesRequest, ReadContentRequest,
                StatusRequest, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
                content_client::ContentClient,
            },
            images::v1::{
                CreateImageRequest, DeleteImageRequest, Image, ListImagesRequest, UpdateImageRequest,
                images_client::ImagesClient,
            },
        },
        types::Descriptor,
    },
    digest::Digest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::harness::{Supervisor, eventually, request};

/// One write's stream.
struct Write {
    send: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Write {
    async fn open(content: &mut ContentClient<Channel>, reference: &str) -> Result<Self, Status> {
        let (send, messages) = mpsc::channel(4);
        let first = WriteContentRequest { r#ref: reference.into(), ..Default::default() };
        send.send(first).await.unwrap();
        let answers = content.write(request(ReceiverStream::new(messages))).await?.into_inner();
        let mut write = Self { send, answers };
        write.answer().await?;
        Ok(write)
    }

    async fn answer(&mut self) -> Result<WriteContentResponse, Status> {
        let answer = tokio::time::timeout(Duration::from_secs(10), self.answers.message()).await;
        Ok(answer.expect("an answer within 10 s")?.expect("an answer"))
    }

    async fn put(&mut self, offset: i64, data: &[u8]) -> Result<i64, Status> {
        let message = WriteContentRequest {
            action: WriteAction::Write.into(),
            offset,
            data: data.to_vec(),
            ..Default::default()
        };
        self.send.send(message).await.unwrap();
        Ok(self.answer().await?.offset)
    }

    async fn commit(&mut self, offset: i64, total: i64, expected: &str) -> Result<String, Status> {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            offset,
            total,
            expected: expected.into(),
            labels: [("containerd.io/gc.root".to_owned(), "x".to_owned()), ("a".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        self.send.send(message).await.unwrap();
        Ok(self.answer().await?.digest)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_resumed_where_it_was_left_and_nowhere_else() {
    let mut supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let mut content = ContentClient::new(client.channel.clone());
    let mut write = Write::open(&mut content, "layer").await.unwrap();
    assert_eq!(write.put(0, b"hello ").await.unwrap(), 6);
    let locked = Write::open(&mut content, "layer").await.err().unwrap();
    assert_eq!(locked.code(), Code::Unavailable, "{locked}");
    let abort = AbortRequest { r#ref: "layer".into() };
    assert_eq!(content.abort(request(abort)).await.unwrap_err().code(), Code::Unavailable);
    drop(write);
    // What is written outlives the writer, and the supervisor.
    supervisor.kill_and_restart();
    let client = supervisor.client().await;
    let mut content = ContentClient::new(client.channel.clone());
    let status = content.status(request(StatusRequest { r#ref: "layer".into() })).await.unwrap().into_inner();
    assert_eq!(status.status.unwrap().offset, 6);
    for (filter, count) in [("ref==layer", 1), ("ref~=^lay", 1), ("ref==other", 0)] {
        let list = ListStatusesRequest { filters: vec![filter.into()] };
        let found = content.list_statuses(request(list)).await.unwrap().into_inner().statuses;
        assert_eq!(found.len(), count, "{filter}");
    }
    let mut write = Write::open(&mut content, "layer").await.unwrap();
    let hole = write.put(9, b"world").await.unwrap_err();
    assert_eq!(hole.code(), Code::OutOfRange, "{hole}");
    assert!(hole.message().contains("write at 9 of ingest \"layer\" must be at its end, 6"), "{hole}");
    let digest = Digest::of(b"hello world").to_string();
    let mut write = eventually_open(&mut content, "layer").await;
    assert_eq!(write.put(6, b"world").await.unwrap(), 11);
    assert_eq!(write.commit(11, 11, &digest).await.unwrap(), digest);
    // Again, from the beginning: what is there already is said before a byte is sent.
    let mut write = Write::open(&mut content, "again").await.unwrap();
    write.put(0, b"nonsense").await.unwrap();
    assert_eq!(write.put(0, b"hello").await.unwrap(), 5, "offset 0 begins anew");
    let there = write.commit(5, 0, &digest).await.unwrap_err();
    assert_eq!(there.code(), Code::AlreadyExists, "{there}");
    let mut write = Write::open(&mut content, "wrong").await.unwrap();
    write.put(0, b"other").await.unwrap();
    let wrong = write.commit(5, 5, &Digest::of(b"else").to_string()).await.unwrap_err();
    assert_eq!(wrong.code(), Code::FailedPrecondition, "{wrong}");
    let mut write = Write::open(&mut content, "short").await.unwrap();
    write.put(0, b"other").await.unwrap();
    let short = write.commit(5, 9, "").await.unwrap_err();
    assert!(short.message().contains("5 bytes long, expected 9"), "{short}");
    eventually("no ingest is left", async || supervisor.names("content/ingest").is_empty()).await;
    let gone = content.abort(request(AbortRequest { r#ref: "short".into() })).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

/// The last writer's end may take a moment to be noticed.
async fn eventually_open(content: &mut ContentClient<Channel>, reference: &str) -> Write {
    for _ in 0..500 {
        match Write::open(content, reference).await {
            Ok(write) => return write,
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{reference} stays locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_read_in_parts_and_labelled_by_field() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let mut content = ContentClient::new(client.channel.clone());
    let mut write = Write::open(&mut content, "x").await.unwrap();
    write.put(0, b"0123456789").await.unwrap();
    let digest = write.commit(10, 0, "").await.unwrap();
    for (offset, size, wanted) in [(0, 0, "0123456789"), (3, 4, "3456"), (8, 99, "89"), (-5, 2, "01"), (10, 0, "")] {
        let read = ReadContentRequest { digest: digest.clone(), offset, size };
        let mut parts = content.read(request(read)).await.unwrap().into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = parts.message().await.unwrap() {
            bytes.extend(part.data);
        }
        assert_eq!(bytes, wanted.as_bytes(), "{offset} {size}");
    }
    let beyond = ReadContentRequest { digest: digest.clone(), offset: 11, size: 0 };
    assert_eq!(content.read(request(beyond)).await.unwrap_err().code(), Code::OutOfRange);
    let update = async |labels: &[(&str, &str)], paths: &[&str]| {
        let info = Info {
            digest: digest.clone(),
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Default::default()
        };
        let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
        let message = UpdateRequest { info: Some(info), update_mask: Some(mask) };
        let updated = ContentClient::new(client.channel.clone()).update(request(message)).await?;
        let mut labels: Vec<_> = updated.into_inner().info.unwrap().labels.into_iter().collect();
        labels.retain(|(key, _)| key != "containerd.io/gc.root");
        labels.sort();
        Ok::<_, Status>(labels)
    };
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let both = update(&[("b", "2"), ("c", "3")], &["labels.b"]).await.unwrap();
    assert_eq!(both, [pair("a", "1"), pair("b", "2")]);
    assert_eq!(update(&[("a", "")], &["labels.a"]).await.unwrap(), [pair("b", "2")]);
    assert_eq!(update(&[], &["size"]).await.unwrap_err().code(), Code::InvalidArgument);
    let long = "x".repeat(5000);
    assert_eq!(update(&[("b", &long)], &["labels.b"]).await.unwrap_err().code(), Code::InvalidArgument);
    for (filter, count) in [
        ("labels.b==2", 1),
        ("labels.b", 1),
        ("labels.a", 0),
        ("labels.\"containerd.io/gc.root\"==x,labels.b~=/[0-9]/", 1),
        ("labels.b!=2", 0),
    ] {
        let list = ListContentRequest { filters: vec![filter.into()] };
        let mut pages = content.list(request(list)).await.unwrap().into_inner();
        let mut found = 0;
        while let Some(page) = pages.message().await.unwrap() {
            found += page.info.len();
        }
        assert_eq!(found, count, "{filter}");
    }
    let info = content.info(request(InfoRequest { digest: Digest::of(b"?").to_string() })).await.unwrap_err();
    assert_eq!(info.code(), Code::NotFound);
    let info = content.info(request(InfoRequest { digest: "sha256:12".into() })).await.unwrap_err();
    assert_eq!(info.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_change_by_field_and_go_only_as_they_are_meant() {
    let supervisor = Supervisor::start();
    let client = supervisor.client().await;
    let mut images = ImagesClient::new(client.channel.clone());
    let target = |text: &str, note: &str| Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: Digest::of(text.as_bytes()).to_string(),
        size: 7,
        annotations: [("note".to_owned(), note.to_owned())].into(),
    };
    let image = |text: &str, note: &str| Image {
        name: "a:1".into(),
        labels: [("l".to_owned(), note.to_owned())].into(),
        target: Some(target(text, note)),
        ..Default::default()
    };
    images.create(request(CreateImageRequest { image: Some(image("one", "x")) })).await.unwrap();
    let mut update = async |paths: &[&str]| {
        let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
        let message = UpdateImageRequest { image: Some(image("two", "y")), update_mask: Some(mask) };
        let image = images.update(request(message)).await?.into_inner().image.unwrap();
        let target = image.target.unwrap();
        let two = target.digest == Digest::of(b"two").to_string();
        Ok::<_, Status>((image.labels["l"].clone(), two, target.annotations["note"].clone()))
    };
    let said = |label: &str, two: bool, note: &str| (label.to_owned(), two, note.to_owned());
    assert_eq!(update(&["labels.l"]).await.unwrap(), said("y", false, "x"));
    assert_eq!(update(&["annotations.note"]).await.unwrap(), said("y", false, "y"));
    assert_eq!(update(&["target"]).await.unwrap(), said("y", true, "y"));
    assert_eq!(update(&["name"]).await.unwrap_err().code(), Code::InvalidArgument);
    for (filter, count) in [("name==a:1", 1), ("annotations.note==y", 1), ("target.mediatype~=oci.*manifest", 1)] {
        let list = ListImagesRequest { filters: vec![filter.into()] };
        assert_eq!(images.list(request(list)).await.unwrap().into_inner().images.len(), count, "{filter}");
    }
    let delete = |text: &str| DeleteImageRequest { name: "a:1".into(), sync: false, target: Some(target(text, "")) };
    let refused = images.delete(request(delete("one"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    images.delete(request(delete("two"))).await.unwrap();
}
