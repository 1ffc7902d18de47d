//! What kubelets are told of the resources that pods use.

use std::{collections::BTreeMap, path::Path, time::Duration};

use proto::runtime::v1 as cri;
use tokio_stream::StreamExt;
use tonic::Code;

use integration_tests::kubelet::{Node, Runtime, container, eventually, networked};

fn number(value: &Option<cri::UInt64Value>) -> u64 {
    value.as_ref().expect("a value").value
}

/// Writes a megabyte into its own layer, and has enough to do.
fn busy(name: &str) -> cri::ContainerConfig {
    let script = "head -c 1048576 /dev/zero > /file; while :; do :; done";
    let mut config = container(name, script);
    config.linux.as_mut().unwrap().resources = Some(cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_and_pods_are_measured() {
    if Runtime::under_test() != Runtime::Berth {
        eprintln!("skipped: containerd 1.6 has no metrics, and answers for what doesn't run with UNKNOWN");
        return;
    }
    let Some(node) = Node::with_network().await else { return };
    let config = networked("measured");
    let pod = eventually("the pod has a network", async || node.run_pod(&config).await.ok()).await;
    let main = node.create(&pod, &busy("main"), &config).await.unwrap();
    let stats = |id: &str| {
        let (mut kubelet, request) = (node.kubelet(), cri::ContainerStatsRequest { container_id: id.into() });
        async move { kubelet.container_stats(request).await.map(|answer| answer.into_inner().stats.unwrap()) }
    };
    assert_eq!(stats(&main).await.unwrap_err().code(), Code::FailedPrecondition);
    node.start_container(&main).await.unwrap();
    let first = eventually("it has begun to work", async || {
        let stats = stats(&main).await.unwrap();
        (number(&stats.cpu.as_ref()?.usage_core_nano_seconds) > 50_000_000).then_some(stats)
    })
    .await;
    // The kernel needs a while between two samples to make a rate of.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let stats = stats(&main).await.unwrap();
    let (cpu, memory) = (stats.cpu.unwrap(), stats.memory.unwrap());
    assert!(number(&cpu.usage_core_nano_seconds) > number(&first.cpu.unwrap().usage_core_nano_seconds));
    let rate = number(&cpu.usage_nano_cores);
    assert!((1_000_000..400_000_000).contains(&rate), "it may use a fifth of a processor: {rate}");
    let (used, available) = (number(&memory.working_set_bytes), number(&memory.available_bytes));
    assert!(used > 0 && used + available == 64 << 20 && number(&memory.usage_bytes) >= used, "{memory:?}");
    assert_eq!(cpu.psi.is_some(), Path::new("/proc/pressure/cpu").exists());
    let attributes = stats.attributes.unwrap();
    assert_eq!((attributes.id.as_str(), attributes.metadata.unwrap().name.as_str()), (main.as_str(), "main"));
    let layer = stats.writable_layer.unwrap();
    assert!(number(&layer.inodes_used) >= 2 && layer.fs_id.unwrap().mountpoint.contains("snapshots"));

    // By itself and from the other side: the pod's cgroup holds its container alone.
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
    let whole = node.kubelet().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap().linux.unwrap();
    assert_eq!(whole.containers.len(), 1);
    assert!(number(&whole.cpu.unwrap().usage_core_nano_seconds) >= number(&cpu.usage_core_nano_seconds));
    assert!(number(&whole.memory.unwrap().usage_bytes) > 0);
    assert_eq!(number(&whole.process.unwrap().process_count), 1);
    let network = whole.network.unwrap();
    assert_eq!((network.default_interface.unwrap().name.as_str(), network.interfaces.len()), ("eth0", 0));

    let filter = |app: &str| cri::ContainerStatsFilter {
        pod_sandbox_id: pod.clone(),
        label_selector: [("container".to_owned(), app.to_owned())].into(),
        ..Default::default()
    };
    for (app, count) in [("main", 1), ("other", 0)] {
        let request = cri::ListContainerStatsRequest { filter: Some(filter(app)) };
        assert_eq!(node.kubelet().list_container_stats(request).await.unwrap().into_inner().stats.len(), count);
    }
    let request = cri::StreamContainerStatsRequest { filter: Some(filter("main")) };
    let streamed = node.kubelet().stream_container_stats(request).await.unwrap().into_inner().next().await;
    assert_eq!(streamed.unwrap().unwrap().container_stats.len(), 1);
    let request = cri::StreamPodSandboxStatsRequest::default();
    let streamed = node.kubelet().stream_pod_sandbox_stats(request).await.unwrap().into_inner().next().await;
    assert_eq!(streamed.unwrap().unwrap().pod_sandbox_stats.len(), 1);

    node.stop_pod(&pod).await.unwrap();
    let gone = node.kubelet().pod_sandbox_stats(cri::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() }).await;
    assert_eq!(gone.unwrap_err().code(), Code::FailedPrecondition);
    let none = node.kubelet().list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default()).await.unwrap();
    assert!(none.into_inner().stats.is_empty());
    node.remove_pod(&pod).await.unwrap();
    node.assert_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_the_labels_that_were_announced() {
    if Runtime::under_test() != Runtime::Berth {
        eprintln!("skipped: containerd 1.6 has no metrics, and answers for what doesn't run with UNKNOWN");
        return;
    }
    let Some(node) = Node::with_network().await else { return };
    let config = networked("metrics");
    let pod = eventually("the pod has a network", async || node.run_pod(&config).await.ok()).await;
    let main = node.create(&pod, &busy("main"), &config).await.unwrap();
    node.start_container(&main).await.unwrap();
    let announced = node.kubelet().list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await.unwrap();
    let announced = announced.into_inner().descriptors;
    assert!(announced.len() >= 45, "{announced:?}");
    let answer = node.kubelet().list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await.unwrap();
    let [answer] = &answer.into_inner().pod_metrics[..] else { panic!("one pod") };
    assert_eq!((&answer.pod_sandbox_id, answer.container_metrics.len()), (&pod, 1));
    assert_eq!(answer.container_metrics[0].container_id, main);
    let mut labels: BTreeMap<&str, &[String]> = BTreeMap::new();
    for metric in answer.metrics.iter().chain(&answer.container_metrics[0].metrics) {
        labels.insert(&metric.name, &metric.label_values);
    }
    // As critest wants it: what depends on a disk that counts may be without values.
    let silent = ["container_fs_reads", "container_fs_writes", "container_blkio", "container_hugetlb"];
    for one in &announced {
        match labels.get(one.name.as_str()) {
            Some(values) => assert_eq!(values.len(), one.label_keys.len(), "{}", one.name),
            None => assert!(silent.iter().any(|name| one.name.starts_with(name)), "{} has no value", one.name),
        }
    }
    assert!(labels.keys().all(|name| announced.iter().any(|one| one.name == *name)));
    let values = labels["container_spec_cpu_quota"];
    assert_eq!(values[3..], ["default", "metrics", "main"].map(str::to_owned), "{values:?}");
    assert_eq!(labels["container_network_receive_bytes_total"].last().map(String::as_str), Some("eth0"));
    let streamed = node.kubelet().stream_pod_sandbox_metrics(cri::StreamPodSandboxMetricsRequest {}).await.unwrap();
    assert_eq!(streamed.into_inner().next().await.unwrap().unwrap().pod_sandbox_metrics.len(), 1);
    node.stop_pod(&pod).await.unwrap();
    node.remove_pod(&pod).await.unwrap();
    node.assert_empty().await;
}
