//! Containers under a shim that isn't Berth's (Debian's `containerd-shim-runc-v2`): what a kubelet sees is the same.

use std::{fs, path::Path, process::Command};

use proto::runtime::v1 as cri;

use super::streams::{Client, exec, open_streams};
use integration_tests::{
    kubelet::{FOREIGN, Node, container, eventually, pod},
    leftovers,
    programs::debug_bin_dir,
};

/// A node that has the other shim, and the runtime that it starts.
async fn node() -> Option<Node> {
    for program in [FOREIGN, "/usr/sbin/runc"] {
        if !Path::new(program).exists() {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
    }
    Node::of_berth("about shims that Berth's supervisor finds beside its own").await
}

/// A pod under the other shim, whose logs are in the node's folder.
async fn foreign_pod(node: &Node, name: &str) -> (String, cri::PodSandboxConfig) {
    let mut config = pod(name);
    config.log_directory = node.path().join("logs").display().to_string();
    let id = node.run_pod_by("foreign", &config).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    (id, config)
}

/// Creates and starts a container with the log `NAME.log`; its id.
async fn started(node: &Node, (pod, of): (&str, &cri::PodSandboxConfig), mut config: cri::ContainerConfig) -> String {
    config.log_path = format!("{}.log", config.metadata.as_ref().unwrap().name);
    let id = node.create(pod, &config, of).await.unwrap();
    node.start_container(&id).await.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
    id
}

fn log(node: &Node, name: &str) -> String {
    fs::read_to_string(node.path().join(format!("logs/{name}.log"))).unwrap_or_default()
}

fn relays(node: &Node) -> Vec<u32> {
    leftovers::processes_of(node.path(), "berth-shim\0relay")
}

async fn attach(node: &Node, id: &str, stdin: bool, tty: bool) -> Client {
    let request =
        cri::AttachRequest { container_id: id.into(), stdin, tty, stdout: true, stderr: !tty, ..Default::default() };
    Client::connect(node, &node.kubelet().attach(request).await.unwrap().into_inner().url).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_ends() {
    let Some(mut node) = node().await else { return };
    let (id, config) = foreign_pod(&node, "foreign").await;
    let brief = started(&node, (&id, &config), container("brief", "echo out; echo err >&2; printf half; exit 3")).await;
    assert!(node.ctr(&["container", "info", &brief]).contains("io.containerd.foreign.v2"));
    // Such shims are told of the pod first.
    assert!(node.ctr(&["container", "info", &id]).contains(r#""io.kubernetes.cri.container-type": "sandbox""#));
    assert!(node.ctr(&["task", "ls"]).contains(&id));
    let status = node.ended(&brief).await;
    assert_eq!((status.exit_code, &*status.reason), (3, "Error"), "{}", node.log());
    // Whoever hears of an end finds the whole log.
    let text = log(&node, "brief");
    for tail in [" stdout F out\n", " stderr F err\n", " stdout P half\n"] {
        assert_eq!(text.matches(tail).count(), 1, "{text}");
    }
    assert!(relays(&node).is_empty());
    let mut refused = container("refused", "");
    refused.command = vec!["/no/such/program".into()];
    refused.args.clear();
    refused.log_path = "refused.log".into();
    let refused = node.create(&id, &refused, &config).await.unwrap();
    node.start_container(&refused).await.unwrap_err();
    assert_eq!(node.container(&refused).await.unwrap().reason, "StartError");
    assert!(relays(&node).is_empty());

    // It goes on in a new file, without a supervisor, and without its relay.
    let steady = started(&node, (&id, &config), container("steady", "while :; do echo line; sleep 0.05; done")).await;
    let has_more = async |node: &Node, than: usize| {
        eventually("there are more lines", async || (log(node, "steady").len() > than).then_some(())).await;
    };
    has_more(&node, 0).await;
    let file = node.path().join("logs/steady.log");
    let reopen = cri::ReopenContainerLogRequest { container_id: steady.clone() };
    for round in 0..2 {
        fs::rename(&file, file.with_extension(round.to_string())).unwrap();
        node.kubelet().reopen_container_log(reopen.clone()).await.unwrap();
        has_more(&node, 0).await;
        node.kill();
        has_more(&node, log(&node, "steady").len()).await;
        node.start(&[]).await;
        assert_eq!(node.pod(&id).await.unwrap().state(), cri::PodSandboxState::SandboxReady);
    }
    let [relay] = relays(&node)[..] else { panic!("{:?}", relays(&node)) };
    assert!(Command::new("kill").args(["-9", &relay.to_string()]).status().unwrap().success());
    eventually("another relay", async || matches!(relays(&node)[..], [other] if other != relay).then_some(())).await;
    has_more(&node, log(&node, "steady").len()).await;
    eventually("it listens", async || node.kubelet().reopen_container_log(reopen.clone()).await.ok()).await;
    node.stop_container(&steady, 0).await.unwrap();
    assert_eq!(node.container(&steady).await.unwrap().exit_code, 137);
    // One that ends while nobody is there.
    let late = started(&node, (&id, &config), container("late", "sleep 1; echo late; exit 5")).await;
    node.kill();
    eventually("it has said all", async || log(&node, "late").contains("late").then_some(())).await;
    node.start(&[]).await;
    let status = node.ended(&late).await;
    assert_eq!((status.exit_code, &*status.reason), (5, "Error"));
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
    assert!(relays(&node).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_are_attached() {
    let Some(mut node) = node().await else { return };
    let (id, config) = foreign_pod(&node, "attached").await;
    let mut wanted = container("once", "while read line; do echo heard $line; done; echo bye");
    (wanted.stdin, wanted.stdin_once) = (true, true);
    let once = started(&node, (&id, &config), wanted.clone()).await;
    let mut one = attach(&node, &once, false, false).await;
    one.until(|client| client.channels.contains_key(&1)).await;
    // No client has been its stdin yet, so a supervisor that goes isn't its end.
    node.kill();
    node.start(&[]).await;
    let mut two = attach(&node, &once, true, false).await;
    two.until(|client| client.channels.contains_key(&1)).await;
    two.write(0, b"one\n").await;
    two.until(|client| client.heard(1) == "heard one\n").await;
    two.write(255, &[0]).await;
    two.end().await;
    assert_eq!(two.heard(1), "heard one\nbye\n");
    assert_eq!(node.ended(&once).await.exit_code, 0);
    assert!(log(&node, "once").ends_with(" stdout F heard one\n") || log(&node, "once").contains(" stdout F bye\n"));

    // A client that goes with its supervisor was the end of stdin.
    wanted.metadata.as_mut().unwrap().name = "gone".into();
    let gone = started(&node, (&id, &config), wanted).await;
    let mut client = attach(&node, &gone, true, false).await;
    client.until(|client| client.channels.contains_key(&1)).await;
    client.write(0, b"two\n").await;
    client.until(|client| client.heard(1) == "heard two\n").await;
    node.kill();
    node.start(&[]).await;
    assert_eq!(node.ended(&gone).await.exit_code, 0);
    assert!(log(&node, "gone").contains(" stdout F bye\n"));

    let mut wanted = container("shell", "stty size; while read line; do echo heard $line; stty size; done");
    (wanted.stdin, wanted.tty) = (true, true);
    let shell = started(&node, (&id, &config), wanted).await;
    let mut client = attach(&node, &shell, true, true).await;
    client.until(|client| client.channels.contains_key(&1)).await;
    client.write(4, br#"{"Width":99,"Height":33}"#).await;
    client.write(0, b"go\n").await;
    client.until(|client| client.heard(1).contains("heard go")).await;
    let mut rounds = 0;
    while !client.heard(1).contains("33 99") {
        rounds += 1;
        assert!(rounds < 1000, "{}", client.heard(1));
        client.write(0, b"again\n").await;
        client.until(|client| client.heard(1).matches("heard again").count() == rounds).await;
    }
    drop(client);
    node.stop_container(&shell, 0).await.unwrap();
    eventually("nothing is left", async || (open_streams(&node) == 0).then_some(())).await;
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_whose_client_has_gone_go_on() {
    let Some(mut node) = node().await else { return };
    let (id, config) = foreign_pod(&node, "left").await;
    let main = started(&node, (&id, &config), container("main", "exec sleep 1000")).await;
    let mut client = exec(&node, &main, "cat; echo wrong >&2; exit 4", false).await;
    client.write(0, b"typed").await;
    client.until(|client| client.heard(1) == "typed").await;
    client.write(255, &[0]).await;
    client.end().await;
    assert_eq!((&*client.heard(1), &*client.heard(2)), ("typed", "wrong\n"));
    assert!(client.heard(3).contains(r#""message":"4""#), "{}", client.heard(3));

    // More than a pipe holds, when nobody reads it any more: after a client, and after a supervisor.
    let script = |name: &str| {
        format!(
            "echo begun; until [ -e /{name}.go ]; do sleep 0.05; done; head -c 4194304 /dev/zero; touch /{name}.done"
        )
    };
    for name in ["client", "supervisor"] {
        let mut client = exec(&node, &main, &script(name), false).await;
        client.until(|client| client.heard(1) == "begun\n").await;
        if name == "supervisor" {
            node.kill();
            node.start(&[]).await;
        }
        drop(client);
        node.exec(&main, &["touch", &format!("/{name}.go")]).await.unwrap();
        eventually("it went on", async || {
            let there = node.exec(&main, &["test", "-e", &format!("/{name}.done")]).await.unwrap();
            (there.exit_code == 0).then_some(())
        })
        .await;
    }
    eventually("nothing is left", async || (open_streams(&node) == 0).then_some(())).await;
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_killed_beside_a_new_relay_leaves_none() {
    let Some(node) = node().await else { return };
    drop(node);
    const POINT: &str = "supervisor.cri_container.stdio_ready";
    let mut node = Node::with_programs(debug_bin_dir(&[POINT.to_owned()])).await;
    node.kill();
    node.start(&[("BERTH_FAULT", POINT)]).await;
    let (id, config) = foreign_pod(&node, "cut").await;
    let main = node.create(&id, &container("main", "exec sleep 1000"), &config).await.unwrap();
    node.start_container(&main).await.unwrap_err();
    eventually("the supervisor is dead", async || node.died().then_some(())).await;
    assert_eq!(relays(&node).len(), 1);
    node.kill();
    node.start(&[]).await;
    assert_eq!(node.ended(&main).await.exit_code, 255);
    eventually("the relay is gone", async || relays(&node).is_empty().then_some(())).await;
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}
