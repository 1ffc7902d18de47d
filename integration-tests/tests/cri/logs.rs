//! The log of a container, in CRI's format.

use std::fs;

use proto::runtime::v1 as cri;

use integration_tests::kubelet::{Node, container, eventually, pod};

use crate::scene::{Scene, said, script};

async fn log(scene: &Scene, wanted: &cri::ContainerConfig) -> Vec<(String, String, String)> {
    let id = scene.start(wanted).await;
    scene.node.ended(&id).await;
    let text = fs::read_to_string(scene.log_of(&id).await).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    text.lines()
        .map(|line| {
            let words: Vec<_> = line.splitn(4, ' ').collect();
            let [time, stream, tag, content] = words[..] else { panic!("four words: {line:?}") };
            // 2016-10-06T00:17:09.669794202Z; Go leaves zeros at the end out.
            let (seconds, rest) = time.split_once('.').unwrap_or_else(|| panic!("{time}"));
            assert!(seconds.len() == 19 && &seconds[10..11] == "T", "{time}");
            let zone = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
            assert!(rest.len() > zone.len() && (zone == "Z" || zone.len() == 6), "{time}");
            (stream.to_owned(), tag.to_owned(), content.to_owned())
        })
        .collect()
}

fn line(stream: &str, tag: &str, content: &str) -> (String, String, String) {
    (stream.into(), tag.into(), content.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_has_time_stream_and_tag() {
    let scene = Scene::new("format").await;
    let found = log(&scene, &script("echo out; echo; echo '  spaced  out '")).await;
    assert_eq!(found, [line("stdout", "F", "out"), line("stdout", "F", ""), line("stdout", "F", "  spaced  out ")]);
    let found = log(&scene, &script("echo err >&2")).await;
    assert_eq!(found, [line("stderr", "F", "err")]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_without_end_is_partial() {
    let scene = Scene::new("partial").await;
    let found = log(&scene, &script("echo whole; printf half")).await;
    assert_eq!(found, [line("stdout", "F", "whole"), line("stdout", "P", "half")]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lines_are_split_at_16_kib() {
    let scene = Scene::new("long").await;
    let found = log(&scene, &script("head -c 40000 /dev/zero | tr '\\0' x; echo; echo next")).await;
    let shape: Vec<_> = found.iter().map(|(_, tag, content)| (tag.as_str(), content.len())).collect();
    assert_eq!(shape, [("P", 16384), ("P", 16384), ("F", 7232), ("F", 4)]);
    // One that is exactly as long is whole.
    let found = log(&scene, &script("head -c 16384 /dev/zero | tr '\\0' x; echo")).await;
    let text: String = found.iter().map(|(_, _, content)| content.as_str()).collect();
    assert_eq!((text.len(), found.last().unwrap().1.as_str()), (16384, "F"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_a_terminal_shows_is_stdout() {
    let scene = Scene::new("ttylog").await;
    let mut wanted = script("test -t 0 && echo tty; echo err >&2");
    wanted.tty = true;
    let found = log(&scene, &wanted).await;
    let text: Vec<_> = found.iter().map(|(stream, _, content)| (stream.as_str(), content.trim_end())).collect();
    assert_eq!(text, [("stdout", "tty"), ("stdout", "err")]);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_text_are_kept() {
    let scene = Scene::new("bytes").await;
    let id = scene.start(&script("printf 'a\\377\\000b\\n'")).await;
    scene.node.ended(&id).await;
    let bytes = fs::read(scene.log_of(&id).await).unwrap();
    assert!(bytes.ends_with(b" stdout F a\xff\0b\n"), "{bytes:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_logs_are_rotated() {
    let scene = Scene::new("rotated").await;
    let text =
        "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done; while ! test -e /tmp/done; do sleep 0.02; done";
    let id = scene.start(&script(text)).await;
    let log = scene.log_of(&id).await;
    for number in 0..3 {
        eventually("there are lines", async || fs::metadata(&log).is_ok_and(|file| file.len() > 0).then_some(())).await;
        fs::rename(&log, log.with_extension(number.to_string())).unwrap();
        let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
        scene.node.kubelet().reopen_container_log(request).await.unwrap();
        // As soon as the answer is there.
        assert!(log.exists());
        if said(&fs::read_to_string(log.with_extension(number.to_string())).unwrap()).contains("1999\n") {
            break;
        }
    }
    assert_eq!(scene.exec(&id, "touch /tmp/done").await, "");
    scene.node.ended(&id).await;
    let mut all: Vec<u32> = Vec::new();
    for path in (0..3).map(|number| log.with_extension(number.to_string())).chain([log.clone()]) {
        let text = fs::read_to_string(path).unwrap_or_default();
        all.extend(said(&text).lines().map(|line| line.parse::<u32>().unwrap()));
    }
    assert!(all.iter().copied().eq(0..2000), "{all:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_path_there_is_no_log() {
    let node = Node::new().await;
    let mut config = pod("nolog");
    config.log_directory = node.path().join("logs").display().to_string();
    let id = node.run_pod(&config).await.unwrap();
    let one = node.create(&id, &container("quiet", "echo out; exit 4"), &config).await.unwrap();
    node.start_container(&one).await.unwrap();
    let status = node.ended(&one).await;
    assert_eq!((status.exit_code, &*status.log_path), (4, ""));
    assert_eq!(fs::read_dir(node.path().join("logs")).map_or(0, |all| all.count()), 0);
    node.remove_pod(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_status_says_where_the_log_is() {
    let scene = Scene::new("logpath").await;
    let id = scene.create(&script("true")).await.unwrap();
    let log = scene.node.path().join("logs/c0.log").display().to_string();
    assert_eq!(scene.node.container(&id).await.unwrap().log_path, log);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_stays_when_its_container_goes() {
    let scene = Scene::new("staying").await;
    let id = scene.start(&script("echo last")).await;
    scene.node.ended(&id).await;
    let log = scene.log_of(&id).await;
    scene.node.remove_container(&id).await.unwrap();
    assert_eq!(said(&fs::read_to_string(log).unwrap()), "last\n");
    scene.end().await;
}
