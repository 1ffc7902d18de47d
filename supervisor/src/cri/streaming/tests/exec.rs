//! Exec and attach over SPDY, and the requests that lead there.

use super::{
    super::spdy::client::{Client, Heard, request},
    *,
};

const V4: &[&str] = &["v4.channel.k8s.io"];
const UPGRADE: [&str; 3] = ["Connection: Upgrade", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"];

fn status(heard: &Heard) -> serde_json::Value {
    serde_json::from_slice(&heard.data).unwrap_or_else(|error| panic!("{error}: {heard:?}"))
}

#[tokio::test]
async fn a_command_reads_writes_and_ends() {
    let server = Server::new().await;
    let before = tasks();
    let url = server.exec("cat; echo wrong >&2; exit 3", "ioe");
    let mut client = Client::connect(&url, &["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io"]).await;
    assert_eq!(client.protocol, "v4.channel.k8s.io");
    let streams = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    client.write(streams[1], b"hel", false).await;
    client.write(streams[1], b"lo", false).await;
    client.until(|client| client.heard(streams[2]).data == b"hello").await;
    client.write(streams[1], b" there", true).await;
    client.until_ended(&[streams[0], streams[2], streams[3]]).await;
    assert_eq!((&*client.heard(streams[2]).text(), &*client.heard(streams[3]).text()), ("hello there", "wrong\n"));
    let status = status(&client.heard(streams[0]));
    assert_eq!((&status["status"], &status["reason"]), (&"Failure".into(), &"NonZeroExitCode".into()));
    assert_eq!(status["details"]["causes"][0], serde_json::json!({"reason": "ExitCode", "message": "3"}));
    client.until(|client| client.goodbye == Some(0)).await;
    drop(client);
    until_quiet(before).await;
    assert_eq!((server.host.forgotten.load(SeqCst), server.host.abandoned.load(SeqCst)), (1, 0));
}

#[tokio::test]
async fn every_version_ends_in_its_own_way() {
    let server = Server::new().await;
    for (version, protocol) in
        ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"].iter().enumerate()
    {
        for (script, code) in [("true", 0), ("exit 42", 42)] {
            let mut client = Client::connect(&server.exec(script, "o"), &[protocol]).await;
            let streams = client.open_all(&["error", "stdout"]).await;
            client.until_ended(&streams).await;
            let last = client.heard(streams[0]);
            match (version, code) {
                (3, 0) => assert_eq!(status(&last)["status"], "Success"),
                (3, _) => assert_eq!(status(&last)["details"]["causes"][0]["message"], "42"),
                (_, 0) => assert_eq!(last.text(), ""),
                _ => assert!(last.text().ends_with("exit code 42"), "{}", last.text()),
            }
        }
    }
}

#[tokio::test]
async fn a_terminal_follows_its_client() {
    let server = Server::new().await;
    for (protocol, sizes) in [("v2.channel.k8s.io", 0), ("v3.channel.k8s.io", 2), ("v4.channel.k8s.io", 2)] {
        server.host.sizes.lock().unwrap().clear();
        let mut client = Client::connect(&server.exec("read line; echo $line", "iot"), &[protocol]).await;
        let streams = client.open_all(&["error", "stdin", "stdout"]).await;
        if sizes > 0 {
            let resize = client.open(&[("streamtype", "resize")]).await;
            client.write(resize, br#"{"Width":80,"Hei"#, false).await;
            client.write(resize, b"ght\":24}\n{\"Width\":100,\"Height\":40}", false).await;
            let host = server.host.clone();
            eventually("the terminal has its size", || {
                let last = host.sizes.lock().unwrap().last().copied();
                async move { last == Some(Size { width: 100, height: 40 }) }
            })
            .await;
            // Nonsense ends the sizes and nothing else.
            client.write(resize, b"{\"Width\":\"wide\"}", false).await;
            client.write(resize, &[b'['; 100_000], false).await;
        }
        client.write(streams[1], b"typed\n", false).await;
        client.until_ended(&[streams[0], streams[2]]).await;
        assert_eq!(client.heard(streams[2]).text(), "typed\n");
    }
}

#[tokio::test]
async fn much_goes_through_in_both_directions() {
    let server = Server::new().await;
    let mut client = Client::connect(&server.exec("head -c 30000000 /dev/zero", "o"), V4).await;
    let streams = client.open_all(&["error", "stdout"]).await;
    client.until_ended(&streams).await;
    assert_eq!(client.heard(streams[1]).data.len(), 30_000_000);
    assert_eq!(status(&client.heard(streams[0]))["status"], "Success");

    let mut client = Client::connect(&server.exec("sleep 0.1; wc -c", "io"), V4).await;
    let streams = client.open_all(&["error", "stdin", "stdout"]).await;
    // Go's clients write 32 KiB at a time; a frame may be as large as 16 MiB.
    client.write(streams[1], &vec![b'x'; (1 << 24) - 1], false).await;
    for _ in 0..100 {
        client.write(streams[1], &[b'x'; 32 << 10], false).await;
    }
    client.write(streams[1], b"x", true).await;
    client.until_ended(&[streams[0], streams[2]]).await;
    assert_eq!(client.heard(streams[2]).text().trim(), ((1 << 24) + (100 << 15)).to_string());
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_input_and_nothing_else() {
    let server = Server::new().await;
    let before = tasks();
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("out");
    let script = format!("cat > {0}.part; echo end >> {0}.part; mv {0}.part {0}", place.display());
    let mut client = Client::connect(&server.exec(&script, "io"), V4).await;
    let streams = client.open_all(&["error", "stdin", "stdout"]).await;
    client.write(streams[1], b"some ", false).await;
    drop(client);
    eventually("the process has come to its end", || async { place.exists() }).await;
    assert_eq!(std::fs::read_to_string(&place).unwrap(), "some end\n");
    until_quiet(before).await;
    assert_eq!((server.host.forgotten.load(SeqCst), server.host.abandoned.load(SeqCst)), (0, 1));
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_though_nobody_reads_from_it() {
    let server = Server::new().await;
    let before = tasks();
    let mut client = Client::connect(&server.exec("exec sleep 60", "io"), V4).await;
    let streams = client.open_all(&["error", "stdin", "stdout"]).await;
    let mut piece = Vec::new();
    for _ in 0..4 {
        piece.extend_from_slice(&[0; 64 << 10]);
    }
    // More than everything between here and there holds, and then the end.
    let flooded = tokio::time::timeout(Duration::from_millis(500), async {
        loop {
            client.write(streams[1], &piece, false).await;
        }
    });
    assert!(flooded.await.is_err(), "somebody took it all");
    drop(client);
    let host = server.host.clone();
    eventually("it was noticed", || async { host.abandoned.load(SeqCst) == 1 }).await;
    // The process is still there: it is the one that waits for it.
    until_quiet(before + 1).await;
}

#[tokio::test]
async fn children_that_hold_the_output_are_not_waited_for() {
    let server = Server::new().await;
    for script in ["sleep 60 & echo hello", "(while :; do echo hello; done) & sleep 0.1"] {
        let mut client = Client::connect(&server.exec(script, "o"), V4).await;
        let streams = client.open_all(&["error", "stdout"]).await;
        client.until_ended(&streams).await;
        assert!(client.heard(streams[1]).text().starts_with("hello\n"));
        assert_eq!(status(&client.heard(streams[0]))["status"], "Success");
    }
}

#[tokio::test]
async fn attached_clients_come_and_go() {
    let server = Server::new().await;
    let mut client = Client::connect(&server.attach("read line; echo got $line; exit 5", "ioe"), V4).await;
    let streams = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    client.write(streams[1], b"this\n", false).await;
    client.until_ended(&[streams[0], streams[2], streams[3]]).await;
    assert_eq!(client.heard(streams[2]).text(), "got this\n");
    // How a container ends is told elsewhere.
    assert_eq!(status(&client.heard(streams[0]))["status"], "Success");
    drop(client);

    // A hundred that leave without a word, in all stages.
    let before = tasks();
    for number in 0..100 {
        let mut client = Client::connect(&server.attach("exec sleep 0.2", "ioe"), V4).await;
        let kinds = ["error", "stdin", "stdout", "stderr"];
        client.open_all(&kinds[..number % 5]).await;
        if number % 10 == 4 {
            client.write(3, &[0; 100_000], false).await;
            client.reset(5).await;
        }
    }
    until_quiet(before).await;
}

#[tokio::test]
async fn what_does_not_start_is_told_on_the_error_stream() {
    let server = Server::new().await;
    let order = Order::Exec { target: target(""), command: vec!["/no/such/program".into()], wants: wants("oe") };
    let mut client = Client::connect(&server.url(order), V4).await;
    let streams = client.open_all(&["error", "stdout", "stderr"]).await;
    client.until_ended(&streams).await;
    let status = status(&client.heard(streams[0]));
    assert_eq!((&status["reason"], &status["code"]), (&"InternalError".into(), &500.into()));
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("Internal error occurred: error executing command in container: "), "{message}");
    assert!(message.contains("No such file or directory"), "{message}");
}

#[tokio::test]
async fn requests_without_a_right_to_it_get_nothing() {
    let server = Server::new().await;
    let url = server.exec("true", "o");
    let other = url.replace("/exec/", "/attach/");
    assert_eq!(request(&other, "POST", &UPGRADE).await.status, 404);
    // The token is gone with the first try.
    assert_eq!(request(&url, "POST", &UPGRADE).await.status, 404);
    let nowhere = format!("http://{}/exec/none", server.address);
    assert_eq!(request(&nowhere, "GET", &UPGRADE).await.status, 404);
    assert_eq!(request(&format!("http://{}/", server.address), "GET", &UPGRADE).await.status, 404);
    let url = server.exec("true", "o");
    assert_eq!(request(&url, "PUT", &UPGRADE).await.status, 405);
    let table: [(&[&str], u16); 5] = [
        (&[], 400),
        (&UPGRADE[..1], 400),
        (&UPGRADE[..2], 400),
        (&["Connection: Upgrade", "Upgrade: h2c"], 400),
        (&[UPGRADE[0], UPGRADE[1], "X-Stream-Protocol-Version: v9.channel.k8s.io"], 403),
    ];
    for (headers, expected) in table {
        let answer = request(&server.exec("true", "o"), "GET", headers).await;
        assert_eq!(answer.status, expected, "{headers:?}: {}", answer.head);
        if expected == 403 {
            assert!(
                answer.head.contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io\r\n"),
                "{}",
                answer.head
            );
        }
    }
    // GET does as well as POST.
    let answer = request(&server.exec("true", "o"), "GET", &UPGRADE).await;
    assert_eq!(answer.status, 101);
}

#[tokio::test]
async fn a_client_is_waited_for_so_long() {
    let times = |idle, creation| Times {
        idle: Duration::from_millis(idle),
        creation: Duration::from_millis(creation),
        farewell: Duration::from_millis(300),
    };
    // The streams don't come.
    let server = Server::with(times(60_000, 200)).await;
    let before = tasks();
    let mut client = Client::connect(&server.exec("true", "oe"), V4).await;
    client.open_all(&["error", "stdout"]).await;
    client.until_closed().await;
    assert_eq!(client.goodbye, Some(0));
    // Nothing is said.
    let server = Server::with(times(300, 60_000)).await;
    let mut client = Client::connect(&server.exec("exec sleep 3", "o"), V4).await;
    client.open_all(&["error", "stdout"]).await;
    client.until_closed().await;
    assert_eq!(server.host.abandoned.load(SeqCst), 1);
    // A client that doesn't close is closed.
    let server = Server::with(times(60_000, 60_000)).await;
    let mut client = Client::connect(&server.exec("true", "o"), V4).await;
    let streams = client.open_all(&["error", "stdout"]).await;
    client.until_ended(&streams).await;
    client.until_closed().await;
    drop(client);
    until_quiet(before + 2).await;
}

#[tokio::test]
async fn pings_are_answered_and_odd_frames_ignored() {
    let server = Server::new().await;
    let mut client = Client::connect(&server.exec("cat", "io"), V4).await;
    client.control(6, &[1]).await;
    // Of an answer to a ping that never was, settings, a window, a stranger.
    client.control(6, &[2]).await;
    client.control(4, &[0]).await;
    client.control(9, &[1, 1 << 20]).await;
    client.control(12, &[]).await;
    let streams = client.open_all(&["error", "stdin", "stdout"]).await;
    // Data of nobody.
    client.write(99, b"lost", false).await;
    client.control(3, &[99, 1]).await;
    client.write(streams[1], b"found", true).await;
    client.control(6, &[0x7fff_ffff]).await;
    client.until(|client| client.pings == [1, 0x7fff_ffff]).await;
    client.until_ended(&[streams[0], streams[2]]).await;
    assert_eq!(client.heard(streams[2]).text(), "found");
}
