//! Exec and ports over WebSocket.

use tokio::net::TcpListener;

use super::{
    super::{spdy::client::request, websocket::client::Client},
    *,
};

#[tokio::test]
async fn a_command_reads_writes_and_ends() {
    let server = Server::new().await;
    let before = tasks();
    for protocol in [
        "",
        "channel.k8s.io",
        "base64.channel.k8s.io",
        "v4.channel.k8s.io",
        "v4.base64.channel.k8s.io",
        "v5.channel.k8s.io",
    ] {
        let url = server.exec("read line; echo got $line; echo wrong >&2; exit 3", "ioe");
        let mut client = Client::connect(&url, protocol).await;
        client.until(|client| client.messages == 1).await;
        assert_eq!(client.heard(1), "", "the first message says only that the channels are there");
        client.write(0, b"this\n").await;
        client.until_closed().await;
        assert_eq!(
            (&*client.heard(1), &*client.heard(2), client.closed),
            ("got this\n", "wrong\n", Some(1000)),
            "{protocol}"
        );
        let last = client.heard(3);
        if protocol.starts_with('v') {
            let status: serde_json::Value = serde_json::from_str(&last).unwrap();
            assert_eq!(status["details"]["causes"][0]["message"], "3");
        } else {
            assert!(last.ends_with("exit code 3"), "{last}");
        }
    }
    until_quiet(before).await;
}

#[tokio::test]
async fn input_ends_by_a_word_of_version_five() {
    let server = Server::new().await;
    let mut client = Client::connect(&server.exec("wc -c", "io"), "v5.channel.k8s.io").await;
    client.write(0, &[b'x'; 100_000]).await;
    // In pieces, with a ping within: "yy" on channel 0.
    client.frame(0x02, &[0, b'y']).await;
    client.frame(0x89, b"there?").await;
    client.frame(0x00, b"").await;
    client.frame(0x80, b"y").await;
    // A channel that goes the other way, and one that isn't there.
    client.write(1, b"lost").await;
    client.write(77, b"lost").await;
    client.write(255, &[0]).await;
    client.until_closed().await;
    assert_eq!((client.heard(1).trim(), &client.pongs[..]), ("100002", &[b"there?".to_vec()][..]));
    let status: serde_json::Value = serde_json::from_str(&client.heard(3)).unwrap();
    assert_eq!(status["status"], "Success");
    // Of version four it is only a channel that isn't there; its input ends with the connection.
    let mut client = Client::connect(&server.exec("wc -c", "io"), "v4.channel.k8s.io").await;
    client.write(255, &[0]).await;
    client.frame(0x89, b"still?").await;
    client.until(|client| client.pongs.len() == 1).await;
    assert!(client.closed.is_none());
}

#[tokio::test]
async fn a_terminal_follows_its_client() {
    let server = Server::new().await;
    let mut client = Client::connect(&server.exec("read line; echo $line", "iot"), "v4.channel.k8s.io").await;
    client.write(4, br#"{"Width":80,"Height":24}"#).await;
    let host = server.host.clone();
    eventually("the terminal has its size", || async {
        *host.sizes.lock().unwrap() == [Size { width: 80, height: 24 }]
    })
    .await;
    client.write(0, b"typed\n").await;
    client.until_closed().await;
    assert_eq!(client.heard(1), "typed\n");
}

#[tokio::test]
async fn ports_are_known_beforehand() {
    let server = Server::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (open, closed) = (listener.local_addr().unwrap().port(), testing::free_port());
    tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut said = [0; 5];
            stream.read_exact(&mut said).await.unwrap();
            stream.write_all(&said.to_ascii_uppercase()).await.unwrap();
        }
    });
    let before = tasks();
    for protocol in ["", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let mut client = Client::connect(&server.ports(None, &[open, closed]), protocol).await;
        client.write(0, b"hello").await;
        client.until_closed().await;
        assert_eq!(client.channels[&0], [&open.to_le_bytes()[..], b"HELLO"].concat());
        assert_eq!(
            (&client.channels[&1][..], &client.channels[&2][..]),
            (&open.to_le_bytes()[..], &closed.to_le_bytes()[..])
        );
        let (number, why) = client.channels[&3].split_at(2);
        assert_eq!(number, closed.to_le_bytes());
        assert!(why.starts_with(b"error forwarding port "), "{why:?}");
    }
    until_quiet(before).await;
}

#[tokio::test]
async fn requests_are_checked() {
    let server = Server::new().await;
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let version = "Sec-WebSocket-Version: 13";
    let exec = || server.exec("true", "o");
    let ports = |ports: &[u16]| server.ports(None, ports);
    let many: Vec<u16> = (1..=33).collect();
    let table: [(String, &str, &[&str], u16); 8] = [
        (exec(), "POST", &[key, version], 405),
        (exec(), "GET", &[key], 426),
        (exec(), "GET", &[key, "Sec-WebSocket-Version: 8"], 426),
        (exec(), "GET", &[version], 400),
        (exec(), "GET", &[key, version, "Sec-WebSocket-Protocol: chat, v9.channel.k8s.io"], 403),
        (ports(&[80]), "GET", &[key, version, "Sec-WebSocket-Protocol: v5.channel.k8s.io"], 403),
        (ports(&[]), "GET", &[key, version], 400),
        (ports(&many), "GET", &[key, version], 400),
    ];
    for (url, method, headers, expected) in table {
        let headers = [&["Connection: Upgrade", "Upgrade: websocket"], headers].concat();
        let answer = request(&url, method, &headers).await;
        assert_eq!(answer.status, expected, "{headers:?}: {}", answer.head);
    }
}

#[tokio::test]
async fn what_is_no_websocket_is_closed_with_the_reason() {
    let server = Server::new().await;
    let before = tasks();
    let mut waiting = 0;
    for (first, payload, code) in
        [(0x82, vec![0; (1 << 20) + 1], 1009), (0xf2, vec![0], 1002), (0x80, vec![0], 1002), (0x88, vec![0; 126], 1002)]
    {
        let mut client = Client::connect(&server.exec("exec sleep 1", "io"), "v4.channel.k8s.io").await;
        client.frame(first, &payload).await;
        while client.closed.is_none() {
            client.until(|client| client.closed.is_some()).await;
        }
        assert_eq!(client.closed, Some(code), "{first:x}");
        waiting += 1;
    }
    // A message in many pieces is one message.
    let mut client = Client::connect(&server.exec("exec sleep 1", "io"), "v4.channel.k8s.io").await;
    client.frame(0x02, &[0; 1 << 19]).await;
    client.frame(0x00, &[0; 1 << 19]).await;
    client.frame(0x00, &[0]).await;
    client.until(|client| client.closed == Some(1009)).await;
    drop(client);
    until_quiet(before + waiting + 1).await;
}
