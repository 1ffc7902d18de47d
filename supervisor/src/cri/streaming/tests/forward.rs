//! Ports, over SPDY.

use std::os::fd::AsFd as _;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{super::spdy::client::Client, *};

const PROTOCOL: &[&str] = &["portforward.k8s.io"];

impl Server {
    pub(super) fn ports(&self, netns: Option<PathBuf>, ports: &[u16]) -> String {
        self.url(Order::PortForward { netns, ports: ports.into() })
    }
}

/// Answers each connection with what it said, in capitals, once it has said all.
pub(super) async fn capitals(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            // Later than a client that only waits for a moment.
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.write_all(&said.to_ascii_uppercase()).await.unwrap();
        });
    }
}

async fn pair(client: &mut Client, port: u16, request: &str) -> (u32, u32) {
    let port = port.to_string();
    let error = client.open(&[("streamtype", "error"), ("port", &port), ("requestid", request)]).await;
    let data = client.open(&[("streamtype", "data"), ("port", &port), ("requestid", request)]).await;
    (error, data)
}

#[tokio::test]
async fn many_connections_at_once() {
    let server = Server::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(capitals(listener));
    let before = tasks();
    let mut client = Client::connect(&server.ports(None, &[]), PROTOCOL).await;
    let mut pairs = Vec::new();
    for number in 0..60 {
        pairs.push(pair(&mut client, port, &number.to_string()).await);
    }
    for (number, (_, data)) in pairs.iter().enumerate() {
        client.write(*data, format!("one {number}").as_bytes(), false).await;
    }
    for (_, data) in &pairs {
        client.write(*data, b" two", true).await;
    }
    let all: Vec<u32> = pairs.iter().flat_map(|(error, data)| [*error, *data]).collect();
    client.until_ended(&all).await;
    for (number, (error, data)) in pairs.iter().enumerate() {
        assert_eq!(client.heard(*data).text(), format!("ONE {number} TWO"));
        assert_eq!(client.heard(*error).text(), "");
    }
    // The client ends its halves of the streams for errors; then there is room for as many again, and more.
    for (error, _) in &pairs {
        client.write(*error, b"", true).await;
    }
    for number in 60..120 {
        let (_, data) = pair(&mut client, port, &number.to_string()).await;
        client.write(data, b"again", true).await;
        client.until_ended(&[data]).await;
    }
    drop(client);
    until_quiet(before).await;
}

#[tokio::test]
async fn what_is_not_there_is_told_and_the_rest_goes_on() {
    let server = Server::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = testing::free_port();
    let mut client = Client::connect(&server.ports(None, &[]), PROTOCOL).await;
    let (error, data) = pair(&mut client, closed, "a").await;
    client.until(|client| client.heard(error).ended && client.heard(data).reset.is_some()).await;
    let said = client.heard(error).text();
    assert!(said.starts_with(&format!("error forwarding port {closed}: connect to port {closed}")), "{said}");
    assert!(said.to_lowercase().contains("refused"), "{said}");
    // Streams that say nothing of use.
    for headers in [
        &[("streamtype", "data")][..],
        &[("streamtype", "data"), ("port", "0")],
        &[("streamtype", "data"), ("port", "70000")],
        &[("streamtype", "stdin"), ("port", "80")],
    ] {
        let stream = client.begin(headers).await;
        client.until(|client| client.heard(stream).reset.is_some()).await;
    }
    // A client of old: no request ids.
    let port_text = port.to_string();
    let error = client.open(&[("streamtype", "error"), ("port", &port_text)]).await;
    let data = client.open(&[("streamtype", "data"), ("port", &port_text)]).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    // The pod's side speaks first and ends first.
    stream.write_all(b"welcome").await.unwrap();
    stream.shutdown().await.unwrap();
    client.until_ended(&[error, data]).await;
    assert_eq!(client.heard(data).text(), "welcome");
    // The client gives a connection up.
    let (_, data) = pair(&mut client, port, "b").await;
    let (mut stream, _) = listener.accept().await.unwrap();
    client.write(data, b"x", false).await;
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
    client.reset(data).await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn half_a_request_is_given_up() {
    let times = Times { creation: Duration::from_millis(200), ..TIMES };
    let server = Server::with(times).await;
    let mut client = Client::connect(&server.ports(None, &[]), PROTOCOL).await;
    let error = client.open(&[("streamtype", "error"), ("port", "80"), ("requestid", "1")]).await;
    let twice = client.open(&[("streamtype", "error"), ("port", "80"), ("requestid", "1")]).await;
    client.until(|client| client.heard(twice).reset.is_some() && client.heard(error).ended).await;
    assert_eq!(client.heard(error).text(), "timed out waiting for streams");
    let data = client.open(&[("streamtype", "data"), ("port", "80"), ("requestid", "1")]).await;
    client.until(|client| client.heard(data).reset.is_some()).await;
}

#[tokio::test]
async fn a_pod_has_a_loopback_of_its_own() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let pin = folder.path().join("net");
    let listen = |address: &'static str| {
        sys::netns::loopback_up().unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    };
    let server = Server::new().await;
    let (_namespace, four) = sys::netns::create(&pin, || listen("127.0.0.1:80")).unwrap();
    let namespace = sys::netns::open(&pin).unwrap().unwrap();
    let six = sys::netns::within(namespace.as_fd(), || std::net::TcpListener::bind("[::1]:81").ok()).unwrap();
    tokio::spawn(capitals(TcpListener::from_std(four).unwrap()));
    let mut ports = vec![80];
    if let Some(six) = six {
        six.set_nonblocking(true).unwrap();
        tokio::spawn(capitals(TcpListener::from_std(six).unwrap()));
        ports.push(81);
    }
    let mut client = Client::connect(&server.ports(Some(pin.clone()), &[]), PROTOCOL).await;
    for port in ports {
        let (_, data) = pair(&mut client, port, &port.to_string()).await;
        client.write(data, b"inside", true).await;
        client.until_ended(&[data]).await;
        assert_eq!(client.heard(data).text(), "INSIDE");
    }
    drop(namespace);
    sys::netns::delete(&pin).unwrap();
    let (error, _) = pair(&mut client, 80, "late").await;
    client.until_ended(&[error]).await;
    assert!(client.heard(error).text().contains("the pod has no network any more"), "{:?}", client.heard(error));
}
