use super::*;
use crate::{testing::Def, worker::StepError};

fn log(vertex: &str, bytes: usize) -> VertexLog {
    VertexLog { vertex: vertex.into(), stream: 1, msg: vec![b'x'; bytes], ..VertexLog::default() }
}

fn text(status: &StatusResponse) -> String {
    status.logs.iter().map(|log| String::from_utf8_lossy(&log.msg).into_owned()).collect()
}

#[tokio::test]
async fn late_listeners_get_everything() {
    let board = Board::new();
    let mut early = board.listen();
    let mut def = Def::default();
    let base = def.source("docker-image://a");
    let run = def.run(&base, "x");
    board.announce(&Graph::decode(&def.end(&run)).unwrap());
    assert_eq!(early.next().await.unwrap().vertexes.len(), 2);
    board.started(&run.digest);
    let started = early.next().await.unwrap().vertexes;
    assert!(started.len() == 1 && started[0].started.is_some() && started[0].inputs == [base.digest.as_str()]);
    board.log(log(&run.digest, 5));
    board.completed(&run.digest, None);
    board.cached(&base.digest);
    let status =
        |current| VertexStatus { id: "s".into(), vertex: base.digest.clone(), current, ..VertexStatus::default() };
    board.status(status(1));
    board.status(status(2));
    let news = early.next().await.unwrap();
    assert_eq!((news.vertexes.len(), news.logs.len(), news.statuses.len()), (2, 1, 1));
    assert_eq!(news.statuses[0].current, 2);
    let mut late = board.listen();
    assert_eq!(late.next().await.unwrap(), board.everything());
    board.finish();
    assert_eq!((early.next().await, late.next().await), (None, None));
    assert_eq!(board.listen().next().await.unwrap().logs.len(), 1);
    let summary = Summary { total: 2, cached: 1, completed: 2, failed: 0, warnings: 0 };
    assert_eq!(board.summary(), summary);
}

#[tokio::test]
async fn listener_wakes_up() {
    let board = Board::new();
    let mut listener = board.listen();
    let heard = tokio::spawn(async move { listener.next().await });
    tokio::task::yield_now().await;
    board.warn(VertexWarning { short: b"w".to_vec(), ..VertexWarning::default() });
    assert_eq!(heard.await.unwrap().unwrap().warnings.len(), 1);
}

#[test]
fn output_is_clipped_by_size() {
    let board = Board::default();
    // As if it ran for long: speed is no matter.
    board.log(log("a", 1));
    board.lock().meters.get_mut("a").unwrap().since = Instant::now() - std::time::Duration::from_secs(3600);
    for _ in 0..300 {
        board.log(log("a", 10 << 10));
    }
    let text = text(&board.everything());
    assert!(text.ends_with("\n[output clipped, log limit 2MiB reached]\n"));
    assert_eq!(text.matches("clipped").count(), 1);
    assert_eq!(text.matches('x').count(), STEP_LOG_MAX);
    board.log(log("b", 3));
    assert_eq!(board.everything().logs.last().unwrap().msg, b"xxx");
}

#[test]
fn output_is_clipped_by_speed() {
    let board = Board::default();
    board.log(log("a", STEP_LOG_SPEED + 1));
    let clipped = text(&board.everything());
    assert!(clipped.ends_with("\n[output clipped, log limit 200KiB/s reached]\n"));
    // Once time has passed, it goes on.
    board.lock().meters.get_mut("a").unwrap().since -= std::time::Duration::from_secs(2);
    board.log(log("a", 10));
    assert!(text(&board.everything()).ends_with("xxxxxxxxxx"));
}

#[test]
fn memory_is_bounded() {
    let board = Board::default();
    for step in 0..40 {
        let name = step.to_string();
        board.log(log(&name, 1));
        board.lock().meters.get_mut(&name).unwrap().since -= std::time::Duration::from_secs(3600);
        board.log(log(&name, STEP_LOG_MAX - 1));
    }
    let state = board.lock();
    assert!(
        state.log_bytes <= BUILD_LOG_MAX
            && state.logs.iter().map(|(_, log)| log.msg.len()).sum::<usize>() == state.log_bytes
    );
}

#[test]
fn who_joins_late_hears_what_was_said() {
    let (fan, one, two) = (Fan::default(), Board::new(), Board::new());
    let step = |board: &Arc<Board>, name: &str| StepBoard::new(board.clone(), &Digest::of(name.as_bytes()));
    fan.join(step(&one, "a"));
    assert!(one.everything().vertexes.is_empty(), "it waits");
    fan.begin();
    fan.log(log("whatever", 4));
    let other = step(&two, "b");
    fan.join(other.clone());
    fan.log(log("whatever", 2));
    for (board, name) in [(&one, "a"), (&two, "b")] {
        let all = board.everything();
        assert_eq!(text(&all), "xxxxxx");
        assert!(all.logs.iter().all(|log| log.vertex == Digest::of(name.as_bytes()).to_string()));
    }
    fan.leave(&other);
    fan.completed(Some(&StepError::Invalid("x".into())));
    assert_eq!((one.summary().failed, two.summary().failed), (1, 0));
}
