//! Commands that a call waits for.

use super::*;

async fn ran(
    script: &str,
    patience: Option<u64>,
    limit: usize,
    caller: impl Future<Output = ()> + Send,
) -> (Result<process::Ran, StreamingError>, Arc<Host>) {
    let host = Arc::new(Host::default());
    let command = ["sh", "-c", script].map(str::to_owned);
    let process = host.run(&command, wants("oe"), true).unwrap();
    (run(process, patience.map(Duration::from_millis), limit, caller).await, host)
}

#[tokio::test]
async fn a_command_answers_what_it_wrote() {
    let (ran, host) = ran("echo out; echo err >&2; exit 7", None, KEPT, std::future::pending()).await;
    let expected = process::Ran { code: 7, stdout: b"out\n".into(), stderr: b"err\n".into() };
    assert_eq!((ran.unwrap(), host.forgotten.load(SeqCst)), (expected, 1));
}

#[tokio::test]
async fn more_than_the_limit_is_read_and_not_kept() {
    let script = "head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2; echo done >&2";
    let (ran, _) = ran(script, None, 1 << 20, std::future::pending()).await;
    let ran = ran.unwrap();
    assert_eq!((ran.code, ran.stdout.len(), ran.stderr.len()), (0, 1 << 20, 1 << 20));
    assert!(ran.stdout.capacity() <= 2 << 20);
}

#[tokio::test]
async fn who_takes_too_long_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    let script = format!("echo begun; sleep 60; touch {}", mark.display());
    // With a child that holds the output: it isn't waited for.
    let since = std::time::Instant::now();
    let (stopped, host) = ran(&format!("{script} & {script}"), Some(300), KEPT, std::future::pending()).await;
    let stopped = stopped.unwrap_err();
    assert_eq!((stopped.kind(), host.forgotten.load(SeqCst)), (ErrorKind::DeadlineExceeded, 1));
    assert!(stopped.to_string().contains("timeout exceeded"), "{stopped}");
    let took = since.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_secs(20) && !mark.exists(), "{took:?}");
    let (ran, _) = ran("true", Some(60_000), KEPT, std::future::pending()).await;
    assert_eq!(ran.unwrap().code, 0);
}

#[tokio::test]
async fn a_command_goes_with_its_caller() {
    let (leave, gone) = oneshot::channel::<()>();
    let work = tokio::spawn(ran("echo $$; exec sleep 60", None, KEPT, async {
        let _ = gone.await;
    }));
    drop(leave);
    let (stopped, host) = work.await.unwrap();
    assert_eq!((stopped.unwrap_err().kind(), host.forgotten.load(SeqCst)), (ErrorKind::Cancelled, 1));
}

#[test]
fn two_outputs_share_a_message() {
    for (one, other, kept) in [(3, 4, (3, 4)), (30, 2, (8, 2)), (2, 30, (2, 8)), (30, 30, (5, 5)), (6, 6, (5, 5))] {
        let (mut one, mut other) = (vec![0; one], vec![0; other]);
        share(&mut one, &mut other, 10);
        assert_eq!((one.len(), other.len()), kept);
    }
}
