//! CRI messages against bytes written down by hand from the published numbers.

use std::fmt::Debug;

use prost::Message;
use proto::runtime::v1::{
    AuthConfig, ContainerConfig, ContainerMetadata, ContainerStatus, ImageSpec, Int64Value,
    LinuxContainerSecurityContext, Mount, PodSandboxConfig, PodSandboxMetadata, PsiData, PullImageRequest,
    RunPodSandboxRequest, RuntimeFeatures, SecurityProfile, Signal, StatusResponse, StreamPodSandboxesResponse,
    SupplementalGroupsPolicy,
};

/// The first byte (or two) of a field: its number, and how its value is written.
fn key(number: u32, wire: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(u64::from(number << 3 | wire), &mut bytes);
    bytes
}

fn varint(number: u32, value: u8) -> Vec<u8> {
    assert!(value < 128, "one byte");
    [key(number, 0), vec![value]].concat()
}

fn bytes(number: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let length = u8::try_from(value.len()).expect("short");
    assert!(length < 128, "one byte");
    [key(number, 2), vec![length], value.to_vec()].concat()
}

#[track_caller]
fn same<M: Message + Default + PartialEq + Debug>(message: &M, wire: &[Vec<u8>]) {
    let wire = wire.concat();
    assert_eq!(message.encode_to_vec(), wire);
    assert_eq!(&M::decode(&wire[..]).expect("decode"), message);
}

#[test]
fn a_sandbox_has_the_published_numbers() {
    let request = RunPodSandboxRequest {
        config: Some(PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 3,
            }),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/p".into(),
            annotations: [("a".to_owned(), "b".to_owned())].into(),
            ..Default::default()
        }),
        runtime_handler: "runc".into(),
    };
    let metadata = [bytes(1, "web"), bytes(2, "u1"), bytes(3, "default"), varint(4, 3)].concat();
    let annotation = [bytes(1, "a"), bytes(2, "b")].concat();
    let config = [bytes(1, metadata), bytes(2, "web-0"), bytes(3, "/var/log/pods/p"), bytes(7, annotation)].concat();
    same(&request, &[bytes(1, config), bytes(2, "runc")]);
}

#[test]
fn a_container_has_the_published_numbers() {
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "c".into(), attempt: 1 }),
        image: Some(ImageSpec {
            image: "i".into(),
            user_specified_image: "u".into(),
            runtime_handler: "h".into(),
            image_ref: "r".into(),
            ..Default::default()
        }),
        args: vec!["x".into(), "y".into()],
        mounts: vec![Mount {
            container_path: "/a".into(),
            readonly: true,
            recursive_read_only: true,
            image: Some(ImageSpec::default()),
            image_sub_path: "s".into(),
            mount_options: vec!["noexec".into()],
            ..Default::default()
        }],
        log_path: "c/0.log".into(),
        tty: true,
        stop_signal: Signal::Sigusr1.into(),
        ..Default::default()
    };
    let image = [bytes(1, "i"), bytes(18, "u"), bytes(19, "h"), bytes(20, "r")].concat();
    let mount =
        [bytes(1, "/a"), varint(3, 1), varint(8, 1), bytes(9, ""), bytes(10, "s"), bytes(11, "noexec")].concat();
    same(
        &config,
        &[
            bytes(1, [bytes(1, "c"), varint(2, 1)].concat()),
            bytes(2, image),
            bytes(4, "x"),
            bytes(4, "y"),
            bytes(7, mount),
            bytes(11, "c/0.log"),
            varint(14, 1),
            [key(18, 0), vec![29]].concat(),
        ],
    );
}

#[test]
fn a_security_context_has_the_published_numbers() {
    let context = LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: 7 }),
        run_as_username: "n".into(),
        no_new_privs: true,
        run_as_group: Some(Int64Value { value: 8 }),
        masked_paths: vec!["/m".into()],
        readonly_paths: vec!["/r".into()],
        seccomp: Some(SecurityProfile { profile_type: 2, localhost_ref: "/p".into() }),
        apparmor: Some(SecurityProfile { profile_type: 1, ..Default::default() }),
        supplemental_groups_policy: SupplementalGroupsPolicy::Strict.into(),
        ..Default::default()
    };
    // Written in the order of the file, which is not that of the numbers.
    let mut ours = context.encode_to_vec();
    let mut wire = [
        bytes(5, varint(1, 7)),
        bytes(6, "n"),
        varint(11, 1),
        bytes(12, varint(1, 8)),
        bytes(13, "/m"),
        bytes(14, "/r"),
        bytes(15, [varint(1, 2), bytes(2, "/p")].concat()),
        bytes(16, varint(1, 1)),
        varint(17, 1),
    ]
    .concat();
    assert_eq!(LinuxContainerSecurityContext::decode(&wire[..]).expect("decode"), context);
    ours.sort_unstable();
    wire.sort_unstable();
    assert_eq!(ours, wire);
}

#[test]
fn answers_have_the_published_numbers() {
    let status = ContainerStatus {
        id: "c".into(),
        finished_at: 5,
        exit_code: 9,
        reason: "Error".into(),
        log_path: "/l".into(),
        image_id: "sha256:1".into(),
        stop_signal: Signal::Sigterm.into(),
        ..Default::default()
    };
    same(
        &status,
        &[
            bytes(1, "c"),
            varint(6, 5),
            varint(7, 9),
            bytes(10, "Error"),
            bytes(15, "/l"),
            bytes(17, "sha256:1"),
            varint(19, 23),
        ],
    );
    let features = RuntimeFeatures { user_namespaces_host_network: true, mount_options: true, ..Default::default() };
    same(
        &StatusResponse { features: Some(features), ..Default::default() },
        &[bytes(4, [varint(2, 1), varint(3, 1)].concat())],
    );
    same(&StreamPodSandboxesResponse { pod_sandboxes: vec![Default::default()] }, &[bytes(1, "")]);
    let half = 0.5_f64.to_le_bytes().to_vec();
    same(&PsiData { total: 1, avg60: 0.5, ..Default::default() }, &[varint(1, 1), key(3, 1), half]);
}

#[test]
fn a_pull_has_the_published_numbers() {
    let request = PullImageRequest {
        image: Some(ImageSpec { image: "i".into(), ..Default::default() }),
        auth: Some(AuthConfig {
            username: "n".into(),
            password: "p".into(),
            auth: "a".into(),
            server_address: "s".into(),
            identity_token: "t".into(),
            registry_token: "r".into(),
        }),
        sandbox_config: None,
    };
    let auth = [bytes(1, "n"), bytes(2, "p"), bytes(3, "a"), bytes(4, "s"), bytes(5, "t"), bytes(6, "r")].concat();
    same(&request, &[bytes(1, bytes(1, "i")), bytes(2, auth)]);
}
