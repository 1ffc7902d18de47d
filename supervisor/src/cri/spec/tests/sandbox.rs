//! Sandboxes that can't be.

use super::{
    namespaces::{line, userns},
    *,
};

#[test]
fn sandboxes_that_cant_be() {
    check_sandbox(&World::new().pod, cri::CgroupDriver::Cgroupfs, &host()).unwrap();
    let sysctl = |key: &str, value: &str| HashMap::from([(key.to_owned(), value.to_owned())]);
    for (change, words) in [
        ((|pod| pod.options(TARGET, POD, POD)) as fn(&mut Pod), "namespace_options.network TARGET: only POD and NODE"),
        (|pod| pod.options(POD, TARGET, POD), "namespace_options.pid TARGET: is for containers"),
        (|pod| pod.options(POD, POD, CONTAINER), "namespace_options.ipc CONTAINER: only POD and NODE"),
        (|pod| pod.0.windows = Some(Default::default()), "windows is not supported"),
        (|pod| pod.0.hostname = "a\nb".into(), "hostname a\\nb: has blanks"),
        (|pod| pod.0.hostname = "a".repeat(65), "is longer than 64 bytes"),
        (
            |pod| {
                pod.0.dns_config =
                    Some(cri::DnsConfig { searches: words(&["a\nnameserver 6.6.6.6"]), ..Default::default() })
            },
            "dns_config.searches a\\nnameserver 6.6.6.6",
        ),
        (|pod| pod.linux().cgroup_parent = "/a/../..".into(), "cgroup_parent /a/../..: leads elsewhere"),
        (
            |pod| pod.linux().resources = Some(cri::LinuxContainerResources { cpu_shares: -1, ..Default::default() }),
            "cpu_shares",
        ),
        (
            |pod| drop(pod.0.annotations.insert("blockio.resources.beta.kubernetes.io/pod".into(), "x".into())),
            "annotation blockio.resources.beta.kubernetes.io/pod is not supported",
        ),
        (
            |pod| {
                pod.options(NODE, POD, POD);
                let context = pod.linux().security_context.get_or_insert_default();
                context.namespace_options.get_or_insert_default().userns_options =
                    userns(POD, &[line(0, 65536, 9)], &[line(0, 65536, 9)]);
            },
            "a user namespace of the pod with the node's network namespace is not supported",
        ),
    ] {
        let mut pod = Pod(World::new().pod);
        change(&mut pod);
        let error = check_sandbox(&pod.0, cri::CgroupDriver::Cgroupfs, &host()).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    for (key, network, ipc, wanted) in [
        ("net.ipv4.ip_forward", POD, POD, Some("net/ipv4/ip_forward")),
        ("net/ipv4/conf/eth0.1/forwarding", POD, POD, Some("net/ipv4/conf/eth0.1/forwarding")),
        ("net.ipv4.conf.eth0/1.forwarding", POD, POD, Some("net/ipv4/conf/eth0.1/forwarding")),
        ("kernel.shm_rmid_forced", POD, POD, Some("kernel/shm_rmid_forced")),
        ("fs.mqueue.msg_max", NODE, POD, Some("fs/mqueue/msg_max")),
        ("net.ipv4.ip_forward", NODE, POD, None),
        ("kernel.msgmax", POD, NODE, None),
        ("kernel.panic", POD, POD, None),
        ("kernel.core_pattern", POD, POD, None),
        ("kernel.hostname", POD, POD, None),
        ("vm.swappiness", POD, POD, None),
        ("net.ipv4.//.x", POD, POD, None),
        ("net/../../kernel/core_pattern", POD, POD, None),
        ("net..x", POD, POD, None),
        ("net.a+kernel.core_pattern=x", POD, POD, None),
        ("", POD, POD, None),
    ] {
        let mut pod = Pod(World::new().pod);
        pod.options(network, POD, ipc);
        pod.linux().sysctls = sysctl(key, "1");
        let found = sysctls(&pod.0).map(|settings| settings.into_keys().next().unwrap());
        assert_eq!(found.as_ref().ok().map(String::as_str), wanted, "{key}: {found:?}");
    }
    let mut pod = Pod(World::new().pod);
    pod.linux().sysctls = sysctl("net.ipv4.ip_forward", "1\nx");
    assert!(sysctls(&pod.0).is_err());
}

struct Pod(cri::PodSandboxConfig);

impl Pod {
    fn linux(&mut self) -> &mut cri::LinuxPodSandboxConfig {
        self.0.linux.get_or_insert_default()
    }

    fn options(&mut self, network: i32, pid: i32, ipc: i32) {
        let context = self.linux().security_context.get_or_insert_default();
        let options = context.namespace_options.get_or_insert_default();
        (options.network, options.pid, options.ipc) = (network, pid, ipc);
    }
}
