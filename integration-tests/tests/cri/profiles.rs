//! Profiles: seccomp, AppArmor where the kernel has it, SELinux where it hasn't.

use std::{fs, process::Command};

use proto::runtime::v1::{self as cri, security_profile::ProfileType};
use tonic::Status;

use integration_tests::kubelet::{Node, container, pod};

fn profile(kind: ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
}

/// What a container prints that was made with a changed security context.
async fn said(
    node: &Node,
    (pod, of): (&str, &cri::PodSandboxConfig),
    name: &str,
    script: &str,
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
) -> Result<String, Status> {
    let mut wanted = container(name, "exec sleep 1000");
    change(wanted.linux.as_mut().unwrap().security_context.as_mut().unwrap());
    let id = node.create(pod, &wanted, of).await?;
    node.start_container(&id).await?;
    let done = node.exec(&id, &["sh", "-c", script]).await?;
    node.remove_container(&id).await?;
    Ok(String::from_utf8(done.stdout).unwrap().trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(deprecated, reason = "what older kubelets send")]
async fn system_calls_are_filtered_as_asked() {
    let node = Node::new().await;
    let config = pod("seccomp");
    let id = node.run_pod(&config).await.unwrap();
    let pod = (id.as_str(), &config);
    let file = node.path().join("no-folders.json");
    let rules = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    });
    fs::write(&file, rules.to_string()).unwrap();
    let file = file.display().to_string();
    let look = "grep -o '^Seccomp:.*' /proc/1/status | tr -d '\\t'; mkdir /new 2>/dev/null && echo made || echo not";
    for (name, new, old, wanted) in [
        ("default", profile(ProfileType::RuntimeDefault, ""), "", "Seccomp:2\nmade"),
        ("old-default", None, "runtime/default", "Seccomp:2\nmade"),
        ("unconfined", profile(ProfileType::Unconfined, ""), "", "Seccomp:0\nmade"),
        ("nothing", None, "", "Seccomp:0\nmade"),
        ("localhost", profile(ProfileType::Localhost, &file), "", "Seccomp:2\nnot"),
        ("old-localhost", None, &format!("localhost/{file}"), "Seccomp:2\nnot"),
    ] {
        let heard = said(&node, pod, name, look, |context| {
            context.seccomp = new;
            context.seccomp_profile_path = old.to_owned();
        })
        .await;
        assert_eq!(heard.unwrap(), wanted, "{name}");
    }
    let missing = format!("{file}.missing");
    let refused =
        said(&node, pod, "missing", look, |context| context.seccomp = profile(ProfileType::Localhost, &missing));
    let refused = refused.await.unwrap_err();
    assert!(refused.message().contains(&missing), "{refused}");
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

/// A profile of AppArmor that forbids a folder; taken out of the kernel again.
struct Loaded {
    file: std::path::PathBuf,
}

impl Loaded {
    fn new(file: std::path::PathBuf, name: &str) -> Self {
        let rules = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
             file,\ncapability,\nnetwork,\nmount,\numount,\nsignal,\nptrace,\ndeny /secret/** rw,\n}}\n"
        );
        fs::write(&file, rules).unwrap();
        let loaded = Self { file };
        loaded.parser("-a");
        loaded
    }

    fn parser(&self, action: &str) {
        assert!(Command::new("apparmor_parser").arg(action).arg(&self.file).status().unwrap().success());
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.parser("-R");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(deprecated, reason = "what older kubelets send")]
async fn apparmor_confines_as_asked() {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    let node = match enabled {
        true => Node::new().await,
        false => {
            match Node::of_berth("where the kernel has no AppArmor, containerd refuses its own default profile").await {
                Some(node) => node,
                None => return,
            }
        }
    };
    let config = pod("apparmor");
    let id = node.run_pod(&config).await.unwrap();
    let pod = (id.as_str(), &config);
    let look =
        "cat /proc/1/attr/current; mkdir -p /secret; (echo x > /secret/file) 2>/dev/null && echo written || echo not";
    if !enabled {
        eprintln!("skipped in part: this kernel has no AppArmor");
        for (name, new, old) in
            [("default", profile(ProfileType::RuntimeDefault, ""), ""), ("old", None, "runtime/default")]
        {
            let heard = said(&node, pod, name, "echo runs", |context| {
                context.apparmor = new;
                context.apparmor_profile = old.to_owned();
            });
            assert_eq!(heard.await.unwrap(), "runs");
        }
        let asked = profile(ProfileType::Localhost, "berth-test-any");
        let refused = said(&node, pod, "named", look, |context| context.apparmor = asked).await;
        assert!(refused.unwrap_err().message().contains("AppArmor"));
        node.remove_pod(&id).await.unwrap();
        return node.assert_empty().await;
    }
    let name = format!("berth-test-{}", std::process::id());
    let _loaded = Loaded::new(node.path().join("profile"), &name);
    let (ours, theirs) = ("docker-default (enforce)\nwritten", format!("{name} (enforce)\nnot"));
    for (called, new, old, wanted) in [
        ("default", profile(ProfileType::RuntimeDefault, ""), "", ours),
        ("old-default", None, "runtime/default", ours),
        ("nothing", None, "", ours),
        ("unconfined", profile(ProfileType::Unconfined, ""), "", "unconfined\nwritten"),
        ("old-unconfined", None, "unconfined", "unconfined\nwritten"),
        ("localhost", profile(ProfileType::Localhost, &name), "", &theirs),
        ("old-localhost", None, &format!("localhost/{name}"), &theirs),
    ] {
        let heard = said(&node, pod, called, look, |context| {
            context.apparmor = new;
            context.apparmor_profile = old.to_owned();
        })
        .await;
        assert_eq!(heard.unwrap(), wanted, "{called}");
    }
    let asked = profile(ProfileType::Localhost, "berth-test-missing");
    let refused = said(&node, pod, "missing", look, |context| context.apparmor = asked).await.unwrap_err();
    assert!(refused.message().contains("berth-test-missing"), "{refused}");
    for id in node.containers().await {
        node.remove_container(&id.id).await.unwrap();
    }
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_selinux_mean_nothing_without_it() {
    if fs::exists("/sys/fs/selinux/enforce").unwrap() {
        eprintln!("skipped: SELinux is on");
        return;
    }
    let node = Node::new().await;
    let label = Some(cri::SeLinuxOption {
        user: "system_u".into(),
        role: "system_r".into(),
        r#type: "container_t".into(),
        level: "s0:c1,c2".into(),
    });
    let mut config = pod("labels");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().selinux_options = label.clone();
    let id = node.run_pod(&config).await.unwrap();
    let heard = said(&node, (&id, &config), "main", "echo runs", |context| context.selinux_options = label).await;
    assert_eq!(heard.unwrap(), "runs");
    node.remove_pod(&id).await.unwrap();
    node.assert_empty().await;
}
