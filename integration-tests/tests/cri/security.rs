//! Security contexts: what a container's first process is, and what it may.

use std::fs;

use proto::runtime::v1::{self as cri, security_profile::ProfileType};
use tonic::Code;

use integration_tests::{images, kubelet::Node};

use crate::scene::{Scene, is_berth, script, secured, status_line};

fn number(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

fn profile(kind: ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
}

fn capabilities(add: &[&str], drop: &[&str], ambient: &[&str]) -> Option<cri::Capability> {
    let owned = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect();
    Some(cri::Capability {
        add_capabilities: owned(add),
        drop_capabilities: owned(drop),
        add_ambient_capabilities: owned(ambient),
    })
}

const IDS: &str = "echo $(id -u) $(id -g)";
const GROUPS: &str = "echo $(id -G)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_by_number_has_the_group_that_the_image_gives_it() {
    let scene = Scene::new("uid").await;
    assert_eq!(scene.ask(&secured(IDS, |context| context.run_as_user = number(1000))).await, "1000 1000");
    // One that the image doesn't know has the first group.
    assert_eq!(scene.ask(&secured(IDS, |context| context.run_as_user = number(4242))).await, "4242 0");
    assert_eq!(scene.ask(&script(IDS)).await, "0 0");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_by_name_is_the_images() {
    let scene = Scene::new("username").await;
    assert_eq!(scene.ask(&secured(IDS, |context| context.run_as_username = "user".into())).await, "1000 1000");
    let nobody = scene.refused(&secured(IDS, |context| context.run_as_username = "stranger".into())).await;
    assert!(nobody.message().contains("stranger") || !is_berth(), "{nobody}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_with_a_user() {
    let scene = Scene::new("group").await;
    let wanted = secured(IDS, |context| {
        context.run_as_user = number(1000);
        context.run_as_group = number(50);
    });
    assert_eq!(scene.ask(&wanted).await, "1000 50");
    let by_name = secured(IDS, |context| {
        context.run_as_username = "user".into();
        context.run_as_group = number(7);
    });
    assert_eq!(scene.ask(&by_name).await, "1000 7");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_without_a_user_is_refused() {
    let scene = Scene::new("grouponly").await;
    let refused = scene.refused(&secured(IDS, |context| context.run_as_group = number(50))).await;
    assert!(refused.message().contains("user"), "{refused}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn supplemental_groups_are_those_of_request_and_image() {
    let scene = Scene::new("groups").await;
    let wanted = secured(GROUPS, |context| {
        context.run_as_user = number(1000);
        context.supplemental_groups = vec![1234, 5678];
    });
    let found = scene.ask(&wanted).await;
    for group in ["1000", "1234", "5678", "50"] {
        assert!(found.split(' ').any(|one| one == group), "{group} of {found}");
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strict_policy_leaves_the_images_groups_out() {
    let Some(scene) = Scene::of_berth("strict", "containerd 1.6 knows no policy of supplemental groups").await else {
        return;
    };
    let wanted = secured(GROUPS, |context| {
        context.run_as_user = number(1000);
        context.supplemental_groups = vec![1234];
        context.supplemental_groups_policy = cri::SupplementalGroupsPolicy::Strict.into();
    });
    assert_eq!(scene.ask(&wanted).await, "1000 1234");
    // And the kubelet is told who the process is.
    let id = scene.create(&wanted).await.unwrap();
    let user = scene.node.container(&id).await.unwrap().user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (1000, 1000));
    assert!(user.supplemental_groups.contains(&1234) && !user.supplemental_groups.contains(&50), "{user:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_images_user_runs_what_says_nothing() {
    let scene = Scene::new("imageuser").await;
    let config = serde_json::json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"], "User": "user:staff" });
    let archive = images::docker_archive("asuser:latest", &images::busybox_rootfs(), config);
    fs::write(scene.node.path().join("asuser.tar"), archive).unwrap();
    scene.node.ctr(&["image", "import", scene.node.path().join("asuser.tar").to_str().unwrap()]);
    let mut wanted = script(IDS);
    wanted.image = Some(cri::ImageSpec { image: "docker.io/library/asuser:latest".into(), ..Default::default() });
    assert_eq!(scene.ask(&wanted).await, "1000 50");
    scene.end().await;
}

/// The capabilities of a container, as a number.
async fn effective(scene: &Scene, wanted: Option<cri::Capability>) -> u64 {
    let found = scene.ask(&secured(&status_line("CapEff"), |context| context.capabilities = wanted)).await;
    u64::from_str_radix(&found, 16).unwrap_or_else(|_| panic!("{found:?}"))
}

const CHOWN: u64 = 1;
const NET_ADMIN: u64 = 1 << 12;
const SYS_ADMIN: u64 = 1 << 21;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capabilities_are_added() {
    let scene = Scene::new("capadd").await;
    let before = effective(&scene, None).await;
    assert_eq!(before & (CHOWN | NET_ADMIN), CHOWN);
    assert_eq!(effective(&scene, capabilities(&["NET_ADMIN"], &[], &[])).await, before | NET_ADMIN);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capabilities_are_dropped() {
    let scene = Scene::new("capdrop").await;
    let before = effective(&scene, None).await;
    assert_eq!(effective(&scene, capabilities(&[], &["CHOWN"], &[])).await, before & !CHOWN);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_capabilities_are_added_or_dropped_before_single_ones() {
    let scene = Scene::new("capall").await;
    let all = effective(&scene, capabilities(&["ALL"], &[], &[])).await;
    assert_eq!(all & (CHOWN | NET_ADMIN | SYS_ADMIN), CHOWN | NET_ADMIN | SYS_ADMIN);
    assert_eq!(effective(&scene, capabilities(&["ALL"], &["CHOWN"], &[])).await, all & !CHOWN);
    assert_eq!(effective(&scene, capabilities(&[], &["ALL"], &[])).await, 0);
    assert_eq!(effective(&scene, capabilities(&["NET_ADMIN"], &["ALL"], &[])).await, NET_ADMIN);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambient_capabilities_stay_with_a_user() {
    let Some(scene) = Scene::of_berth("ambient", "containerd 1.6 knows no ambient capabilities").await else { return };
    let wanted = secured(&status_line("CapAmb"), |context| {
        context.run_as_user = number(1000);
        context.capabilities = capabilities(&[], &["ALL"], &["NET_BIND_SERVICE"]);
    });
    assert_eq!(u64::from_str_radix(&scene.ask(&wanted).await, 16).unwrap(), 1 << 10);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_capability_is_refused() {
    let Some(scene) = Scene::of_berth("capunknown", "containerd 1.6 gives what is no capability to runc").await else {
        return;
    };
    let wanted = secured("true", |context| context.capabilities = capabilities(&["FLY"], &[], &[]));
    let refused = scene.refused(&wanted).await;
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("FLY"), "{refused}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privileged_container_has_the_nodes_rights_and_devices() {
    let scene = Scene::secured("privileged", |context| context.privileged = true).await;
    let look = format!(
        "{}; {}; grep -c ' /sys sysfs rw' /proc/mounts; test -e /dev/loop-control -o -e /dev/kmsg && echo devices",
        status_line("CapEff"),
        status_line("Seccomp")
    );
    let all = effective(&scene, capabilities(&["ALL"], &[], &[])).await;
    let found = scene.ask(&secured(&look, |context| context.privileged = true)).await;
    // containerd 1.6 leaves sysfs read-only.
    assert_eq!(found, format!("{all:016x} 0 {} devices", u8::from(is_berth())));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_not_more_privileged_than_its_sandbox() {
    let scene = Scene::new("unprivileged").await;
    let refused = scene.refused(&secured("true", |context| context.privileged = true)).await;
    assert!(refused.message().contains("privileged"), "{refused}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_that_is_read_only() {
    let scene = Scene::new("readonly").await;
    let look =
        "touch /x 2>/dev/null && echo root; touch /etc/hosts 2>/dev/null && echo hosts; touch /dev/shm/x && echo shm";
    assert_eq!(scene.ask(&secured(look, |context| context.readonly_rootfs = true)).await, "shm");
    assert_eq!(scene.ask(&script(look)).await, "root hosts shm");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_privileges_are_had_unless_they_are_not_to_be() {
    let scene = Scene::new("nnp").await;
    for (wanted, said) in [(true, "1"), (false, "0")] {
        let look = secured(&status_line("NoNewPrivs"), |context| context.no_new_privs = wanted);
        assert_eq!(scene.ask(&look).await, said);
    }
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_default_seccomp_profile_filters() {
    let scene = Scene::new("seccompdefault").await;
    let look = format!("{}; busybox unshare -U true 2>/dev/null && echo unshared", status_line("Seccomp"));
    let wanted = secured(&look, |context| context.seccomp = profile(ProfileType::RuntimeDefault, ""));
    assert_eq!(scene.ask(&wanted).await, "2");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_seccomp_profile_nothing_is_filtered() {
    let scene = Scene::new("seccompnone").await;
    let wanted = secured(&status_line("Seccomp"), |context| context.seccomp = profile(ProfileType::Unconfined, ""));
    assert_eq!(scene.ask(&wanted).await, "0");
    assert_eq!(scene.ask(&script(&status_line("Seccomp"))).await, "0");
    scene.end().await;
}

/// A profile of the node's under which no mode can be changed.
fn no_chmod(scene: &Scene) -> String {
    let path = scene.node.path().join("no-chmod.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO"}]}"#;
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

const CHMOD: &str = "touch /f; chmod 777 /f 2>/dev/null && echo changed || echo kept";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seccomp_profile_of_the_node() {
    let scene = Scene::new("seccompfile").await;
    let path = no_chmod(&scene);
    let wanted = secured(CHMOD, |context| context.seccomp = profile(ProfileType::Localhost, &path));
    assert_eq!(scene.ask(&wanted).await, "kept");
    let missing = secured(CHMOD, |context| context.seccomp = profile(ProfileType::Localhost, "/no/such/profile.json"));
    let refused = scene.refused(&missing).await;
    assert!(refused.message().contains("profile"), "{refused}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(deprecated, reason = "kubelets before 1.25 and other clients send only these")]
async fn seccomp_profiles_in_the_deprecated_field() {
    let scene = Scene::new("seccompold").await;
    let path = no_chmod(&scene);
    let old = |name: &str, look: &str| secured(look, |context| context.seccomp_profile_path = name.into());
    assert_eq!(scene.ask(&old("runtime/default", &status_line("Seccomp"))).await, "2");
    assert_eq!(scene.ask(&old("unconfined", &status_line("Seccomp"))).await, "0");
    assert_eq!(scene.ask(&old(&format!("localhost/{path}"), CHMOD)).await, "kept");
    // The new field counts where both are there.
    let both = secured(&status_line("Seccomp"), |context| {
        context.seccomp_profile_path = "runtime/default".into();
        context.seccomp = profile(ProfileType::Unconfined, "");
    });
    assert_eq!(scene.ask(&both).await, "0");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privileged_container_is_not_filtered() {
    let scene = Scene::secured("seccompprivileged", |context| context.privileged = true).await;
    let wanted = secured(&status_line("Seccomp"), |context| {
        context.privileged = true;
        context.seccomp = profile(ProfileType::RuntimeDefault, "");
    });
    assert_eq!(scene.ask(&wanted).await, "0");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(deprecated, reason = "kubelets before 1.30 and other clients send only these")]
async fn apparmor_profiles_where_the_kernel_has_none() {
    if std::path::Path::new("/sys/kernel/security/apparmor").exists() {
        eprintln!("skipped: this kernel has AppArmor; the test VM has it too");
        return;
    }
    let Some(scene) = Scene::of_berth("apparmor", "containerd's words are others").await else { return };
    for kind in [ProfileType::RuntimeDefault, ProfileType::Unconfined] {
        assert_eq!(scene.run(&secured("true", |context| context.apparmor = profile(kind, ""))).await.1, 0);
    }
    let new = secured("true", |context| context.apparmor = profile(ProfileType::Localhost, "mine"));
    let old = secured("true", |context| context.apparmor_profile = "localhost/mine".into());
    for wanted in [new, old] {
        let refused = scene.refused(&wanted).await;
        assert_eq!(refused.code(), Code::Unimplemented);
        assert!(refused.message().contains("AppArmor profile \"mine\""), "{refused}");
    }
    assert_eq!(scene.run(&secured("true", |context| context.apparmor_profile = "runtime/default".into())).await.1, 0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_selinux_mean_nothing_where_it_is_off() {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("skipped: this kernel has SELinux");
        return;
    }
    let scene = Scene::new("selinux").await;
    let options = cri::SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() };
    assert_eq!(scene.run(&secured("true", |context| context.selinux_options = Some(options))).await.1, 0);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn masked_paths_are_those_of_the_request() {
    let scene = Scene::new("masked").await;
    let look = "mkdir -p /mine; echo secret > /file; ls /proc/fs | wc -l; cat /proc/version | wc -c; grep -c ' /proc/' /proc/mounts";
    let wanted = secured(look, |context| {
        context.masked_paths = ["/proc/fs", "/proc/version", "/proc/nothing-here"].map(str::to_owned).into();
    });
    assert_eq!(scene.ask(&wanted).await, "0 0 2");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_paths_are_those_of_the_request() {
    let scene = Scene::new("readonlypaths").await;
    let look = "grep -c ' /proc/sys proc ro' /proc/mounts; touch /etc/new 2>/dev/null && echo made || echo refused";
    let wanted = secured(look, |context| {
        context.readonly_paths = ["/proc/sys", "/etc", "/nothing-here"].map(str::to_owned).into()
    });
    assert_eq!(scene.ask(&wanted).await, "1 refused");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_masked_and_read_only_paths_proc_is_bare() {
    let scene = Scene::new("unmasked").await;
    assert_eq!(
        scene.ask(&script("grep -c ' /proc/' /proc/mounts; grep -c ' /sys/firmware' /proc/mounts")).await,
        "0 0"
    );
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_are_not_absolute_are_refused() {
    let Some(node) = Node::of_berth("containerd gives them to runc").await else { return };
    let scene = Scene::of(node, integration_tests::kubelet::pod("relative")).await;
    for (wanted, field) in [
        (secured("true", |context| context.masked_paths = vec!["proc/kcore".into()]), "masked_paths"),
        (secured("true", |context| context.readonly_paths = vec!["etc".into()]), "readonly_paths"),
    ] {
        let refused = scene.refused(&wanted).await;
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(field), "{refused}");
    }
    scene.end().await;
}
