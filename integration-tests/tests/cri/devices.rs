//! Devices that are described on the node (CDI).

use std::fs;

use proto::runtime::v1 as cri;

use integration_tests::kubelet::{Node, Runtime, container, pod};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_cdi_come_with_all_that_belongs_to_them() {
    let Some(node) = Node::of_berth("containerd 1.6 has CDI only in its configuration, and off").await else { return };
    assert_eq!(Runtime::under_test(), Runtime::Berth);
    let shared = node.path().join("driver");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("library"), "of the driver\n").unwrap();
    fs::create_dir(node.path().join("cdi")).unwrap();
    let seen = node.path().join("hook-was-here");
    let thing = serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": "example.com/thing",
        "containerEdits": { "env": ["THING=yes"] },
        "devices": [
            { "name": "a", "containerEdits": {
                "env": ["THING_A=1"],
                "deviceNodes": [{ "path": "/dev/thing-a", "hostPath": "/dev/full", "permissions": "rw" }],
                "mounts": [{ "hostPath": shared, "containerPath": "/opt/driver", "options": ["ro", "bind", "nosuid"] }],
                "hooks": [{ "hookName": "createRuntime", "path": "/bin/sh", "args": ["sh", "-c", format!("cat >{}", seen.display())] }],
            } },
            { "name": "b", "containerEdits": { "env": ["THING_B=1"] } },
        ],
    });
    fs::write(node.path().join("cdi/thing.json"), thing.to_string()).unwrap();

    let config = pod("devices");
    let id = node.run_pod(&config).await.unwrap();
    let mut wanted = container("main", "exec sleep 1000");
    wanted.cdi_devices = vec![cri::CdiDevice { name: "example.com/thing=a".into() }];
    wanted.annotations.insert("cdi.k8s.io/plugin_b".into(), "example.com/thing=b".into());
    let main = node.create(&id, &wanted, &config).await.unwrap();
    node.start_container(&main).await.unwrap();
    let script = "echo $THING $THING_A $THING_B; cat /opt/driver/library; touch /opt/driver/x 2>/dev/null || echo read-only; \
                  test -c /dev/thing-a && echo x 2>&1 >/dev/thing-a | grep -o 'No space.*'";
    let done = node.exec(&main, &["sh", "-c", script]).await.unwrap();
    let said = String::from_utf8(done.stdout).unwrap();
    assert_eq!(said, "yes 1 1\nof the driver\nread-only\nNo space left on device\n");
    // A hook gets the container's state.
    let state: serde_json::Value = serde_json::from_str(&fs::read_to_string(&seen).unwrap()).unwrap();
    assert_eq!(state["id"], main);
    node.remove_container(&main).await.unwrap();

    for name in ["example.com/thing=c", "example.com/other=a", "nonsense"] {
        let mut bad = container("bad", "true");
        bad.cdi_devices = vec![cri::CdiDevice { name: name.into() }];
        let refused = node.create(&id, &bad, &config).await.unwrap_err();
        assert!(refused.message().contains(name), "{refused}");
    }
    assert_eq!(node.containers().await, []);
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}
