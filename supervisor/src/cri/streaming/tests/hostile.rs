//! Clients that mean no good, and those that say anything at all.

use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    super::spdy::client::{Client, request},
    *,
};

const V4: &[&str] = &["v4.channel.k8s.io"];

#[tokio::test]
async fn what_is_no_spdy_ends_the_connection() {
    let server = Server::new().await;
    let before = tasks();
    let hello: &[&[u8]] = &[
        // A control frame of 16 MiB, one of another version, data of no stream.
        &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff],
        &[0x80, 2, 0, 1, 0, 0, 0, 10],
        &[0; 8],
        // Headers that aren't compressed, a stream without headers, half a reset.
        &[0x80, 3, 0, 1, 0, 0, 0, 14, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4],
        &[0x80, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        &[0x80, 3, 0, 3, 0, 0, 0, 4, 0, 0, 0, 1],
    ];
    for bytes in hello {
        let mut client = Client::connect(&server.exec("true", "o"), V4).await;
        client.raw(bytes).await;
        client.until_closed().await;
        assert_eq!(client.goodbye, Some(1), "{bytes:?}");
    }
    until_quiet(before).await;
}

#[tokio::test]
async fn streams_are_counted() {
    let server = Server::new().await;
    let url = server.url(Order::PortForward { netns: None, ports: Vec::new() });
    let mut client = Client::connect(&url, &["portforward.k8s.io"]).await;
    let headers = |id: &str| {
        [
            ("streamtype".to_owned(), "error".to_owned()),
            ("port".into(), "1".into()),
            ("requestid".into(), id.to_owned()),
        ]
    };
    for number in 0..200 {
        let headers = headers(&number.to_string());
        let headers = headers.each_ref().map(|(name, value)| (&**name, &**value));
        client.begin(&headers).await;
    }
    let last = client.begin(&[("streamtype", "error"), ("port", "1"), ("requestid", "last")]).await;
    client.until(|client| client.heard(last).reset == Some(3)).await;
    assert_eq!(client.streams.values().filter(|heard| heard.replied).count(), 200);
    // One of them is given up: there is room again. Numbers that come twice, and even ones, are refused.
    client.reset(1).await;
    let one = client.open(&[("streamtype", "error"), ("port", "1"), ("requestid", "one")]).await;
    for stream in [one, 1, 2, 1000] {
        client.begin_as(stream, &[("streamtype", "error"), ("port", "1")]).await;
        client.until(|client| client.heard(stream).reset == Some(1)).await;
    }
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let server = Server::new().await;
    // More than may be unknown at a time; all of them silent.
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(tokio::net::TcpStream::connect(server.address).await.unwrap());
    }
    for stream in &mut silent {
        stream.write_all(b"POST /exec").await.unwrap();
    }
    let mut client = Client::connect(&server.exec("echo hello", "o"), V4).await;
    let streams = client.open_all(&["error", "stdout"]).await;
    client.until_ended(&streams).await;
    assert_eq!(client.heard(streams[1]).text(), "hello\n");
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[b"GET /".to_vec(), vec![b'x'; 100_000]].concat()).await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
}

/// As the other `fuzz` tests: for so many seconds, with a seed that is told.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Numbers that look random (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below.max(1)
    }
}

/// Anything after the handshake: frames that are well, bent, cut, repeated. No panic, no task that stays, and the next client is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fuzz() {
    let seconds = setting("BERTH_FUZZ_SECONDS", 2);
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = setting("BERTH_FUZZ_SEED", clock | 1);
    println!("BERTH_FUZZ_SEED={seed}");
    let mut dice = Dice(seed);
    let times = Times {
        farewell: Duration::from_millis(50),
        creation: Duration::from_millis(50),
        idle: Duration::from_millis(500),
    };
    let server = Server::with(times).await;
    let before = tasks();
    let (end, mut rounds) = (Instant::now() + Duration::from_secs(seconds), 0);
    while Instant::now() < end {
        let spdy = dice.roll(2) == 0;
        let (kind, protocol) = match (dice.roll(3), spdy) {
            (0, _) => (
                server.url(Order::PortForward { netns: None, ports: vec![1, 2] }),
                if spdy { "portforward.k8s.io" } else { "v4.channel.k8s.io" },
            ),
            (1, _) => (server.exec("cat; cat /dev/null", "ioe"), "v4.channel.k8s.io"),
            (_, _) => (server.exec("cat", "iot"), if spdy { "v3.channel.k8s.io" } else { "v5.channel.k8s.io" }),
        };
        let mut socket = if spdy {
            let protocol = format!("X-Stream-Protocol-Version: {protocol}");
            request(&kind, "POST", &["Connection: Upgrade", "Upgrade: SPDY/3.1", &protocol]).await.socket
        } else {
            let protocol = format!("Sec-WebSocket-Protocol: {protocol}");
            request(
                &kind,
                "GET",
                &[
                    "Connection: Upgrade",
                    "Upgrade: websocket",
                    "Sec-WebSocket-Version: 13",
                    "Sec-WebSocket-Key: eA==",
                    &protocol,
                ],
            )
            .await
            .socket
        };
        let mut bytes = if spdy {
            super::super::spdy::client::sample(&mut |below| dice.roll(below))
        } else {
            super::super::websocket::client::sample(&mut |below| dice.roll(below))
        };
        for _ in 0..dice.roll(6) {
            let at = dice.roll(bytes.len());
            match dice.roll(4) {
                0 => bytes[at] ^= 1 << dice.roll(8),
                1 => bytes[at] = dice.roll(256) as u8,
                2 => bytes.truncate(at + 1),
                _ => {
                    let piece = bytes[at..(at + dice.roll(64)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        let _ = socket.write_all(&bytes).await;
        if dice.roll(2) == 0 {
            let mut buffer = vec![0; 4096];
            let _ = tokio::time::timeout(Duration::from_millis(20), socket.read(&mut buffer)).await;
        }
        rounds += 1;
    }
    println!("{rounds} clients");
    assert!(rounds > 0);
    until_quiet(before).await;
    let mut client = Client::connect(&server.exec("echo hello", "o"), V4).await;
    let streams = client.open_all(&["error", "stdout"]).await;
    client.until_ended(&streams).await;
    assert_eq!(client.heard(streams[1]).text(), "hello\n");
}
