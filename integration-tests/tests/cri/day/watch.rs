//! What the kubelet looks at beside its pods: lists, events, what everything uses. Whatever is heard must agree.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use integration_tests::Dice;
use proto::runtime::v1 as cri;
use tokio_stream::StreamExt;

use super::calls::{Day, Failure};

/// A container as it was seen last.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub sandbox: String,
    pub state: i32,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
}

/// A sandbox.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeenPod {
    pub created_at: i64,
    /// It was ready, and isn't any more.
    pub is_over: bool,
    pub was_ready: bool,
}

impl Day {
    /// Compares what is said of a container with what was said before.
    pub fn note(&self, sandbox: &str, status: &cri::ContainerStatus) {
        let new = Seen {
            sandbox: sandbox.to_owned(),
            state: status.state,
            created_at: status.created_at,
            started_at: status.started_at,
            finished_at: status.finished_at,
            exit_code: status.exit_code,
            reason: status.reason.clone(),
        };
        let mut all = self.seen.lock().unwrap();
        let Some(old) = all.get(&status.id) else {
            all.insert(status.id.clone(), new);
            return;
        };
        // Answers overtake each other: an older one says less.
        if new.state < old.state {
            return;
        }
        let mut wrong = new.created_at != old.created_at || new.sandbox != old.sandbox;
        if new.state == old.state {
            wrong |= new != *old;
        }
        wrong |= old.started_at != 0 && new.started_at != old.started_at;
        if wrong {
            let line = format!("{}: was {old:?}, is {new:?}", status.id);
            drop(all);
            return self.complain(line);
        }
        all.insert(status.id.clone(), new);
    }

    fn note_pod(&self, id: &str, created_at: i64, ready: bool) {
        let mut all = self.seen_pods.lock().unwrap();
        let seen = all.entry(id.to_owned()).or_insert_with(|| SeenPod { created_at, ..SeenPod::default() });
        let wrong = seen.created_at != created_at || seen.is_over && ready;
        seen.was_ready |= ready;
        seen.is_over |= seen.was_ready && !ready;
        let line = format!("sandbox {id}: {seen:?}, now ready: {ready}");
        drop(all);
        if wrong {
            self.complain(line);
        }
    }

    /// Lists, again and again, as they are and as streams (kubelet's relist).
    pub async fn relist(&self, seed: u64) {
        let mut dice = Dice::new(seed);
        while !self.is_over() {
            tokio::time::sleep(Duration::from_millis(250)).await;
            if let Err(error) = self.look(dice.roll(2) == 0).await
                && !matches!(error, Failure::Lost)
            {
                self.complain(format!("list: {error:?}"));
            }
        }
    }

    async fn look(&self, streamed: bool) -> Result<(), Failure> {
        let generation = self.generation.load(Ordering::SeqCst);
        let (mut pods, mut containers) = (Vec::new(), Vec::new());
        if streamed {
            let request = cri::StreamPodSandboxesRequest::default();
            let mut stream = self.call("StreamPodSandboxes", self.runtime().stream_pod_sandboxes(request)).await?;
            while let Some(Ok(part)) = stream.next().await {
                pods.extend(part.pod_sandboxes);
            }
            let request = cri::StreamContainersRequest::default();
            let mut stream = self.call("StreamContainers", self.runtime().stream_containers(request)).await?;
            while let Some(Ok(part)) = stream.next().await {
                containers.extend(part.containers);
            }
        } else {
            pods = self
                .call("ListPodSandbox", self.runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()))
                .await?
                .items;
            containers = self
                .call("ListContainers", self.runtime().list_containers(cri::ListContainersRequest::default()))
                .await?
                .containers;
        }
        if self.generation.load(Ordering::SeqCst) != generation {
            return Ok(());
        }
        self.count("relists");
        let mut names = BTreeMap::new();
        for pod in &pods {
            let meta = pod.metadata.clone().unwrap_or_default();
            if let Some(other) = names.insert((meta.uid.clone(), meta.attempt), &pod.id) {
                self.complain(format!("{meta:?} is both {other} and {}", pod.id));
            }
            self.note_pod(&pod.id, pod.created_at, pod.state() == cri::PodSandboxState::SandboxReady);
        }
        let mut names = BTreeMap::new();
        for one in &containers {
            let meta = one.metadata.clone().unwrap_or_default();
            if let Some(other) = names.insert((&one.pod_sandbox_id, meta.name.clone(), meta.attempt), &one.id) {
                self.complain(format!("{meta:?} is both {other} and {}", one.id));
            }
        }
        Ok(())
    }

    /// Follows events; those of a container come in the order of its life.
    pub async fn listen(&self) {
        while !self.is_over() {
            let generation = self.generation.load(Ordering::SeqCst);
            let Ok(mut events) =
                self.call("GetContainerEvents", self.runtime().get_container_events(cri::GetEventsRequest {})).await
            else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // What came last, of each container, on this stream.
            let mut last: BTreeMap<String, i32> = BTreeMap::new();
            loop {
                let next = tokio::time::timeout(Duration::from_millis(500), events.next()).await;
                match next {
                    Err(_) if self.is_over() => return,
                    Err(_) => continue,
                    Ok(Some(Ok(event))) => {
                        self.count("events");
                        let kind = event.container_event_type;
                        let before = last.insert(event.container_id.clone(), kind);
                        if before.is_some_and(|before| before >= kind) {
                            self.complain(format!("{}: event {kind} after {before:?}", event.container_id));
                        }
                        let status = event.pod_sandbox_status.unwrap_or_default();
                        let own = event.containers_statuses.iter().find(|one| one.id == event.container_id);
                        match own {
                            Some(own) => self.note(&status.id, own),
                            None => self.complain(format!("event {kind} of {} says nothing of it", event.container_id)),
                        }
                    }
                    Ok(other) => {
                        // It ends when the supervisor is killed, not before.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        if self.generation.load(Ordering::SeqCst) == generation && !self.is_over() {
                            self.complain(format!("events end: {other:?}"));
                        }
                        break;
                    }
                }
            }
        }
    }

    /// Asks what everything uses.
    pub async fn measure(&self, seed: u64) {
        let mut dice = Dice::new(seed);
        while !self.is_over() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Err(error) = self.measure_once(dice.roll(2) == 0).await
                && !matches!(error, Failure::Lost)
            {
                self.complain(format!("stats: {error:?}"));
            }
        }
    }

    async fn measure_once(&self, streamed: bool) -> Result<(), Failure> {
        let stats = if streamed {
            let request = cri::StreamContainerStatsRequest::default();
            let mut stream = self.call("StreamContainerStats", self.runtime().stream_container_stats(request)).await?;
            let mut stats = Vec::new();
            while let Some(Ok(part)) = stream.next().await {
                stats.extend(part.container_stats);
            }
            stats
        } else {
            self.call(
                "ListContainerStats",
                self.runtime().list_container_stats(cri::ListContainerStatsRequest::default()),
            )
            .await?
            .stats
        };
        for one in &stats {
            if one.attributes.as_ref().is_none_or(|attributes| attributes.id.is_empty()) {
                self.complain(format!("stats of nobody: {one:?}"));
            }
        }
        self.call(
            "ListPodSandboxStats",
            self.runtime().list_pod_sandbox_stats(cri::ListPodSandboxStatsRequest::default()),
        )
        .await?;
        let request = cri::ListPodSandboxMetricsRequest {};
        self.call("ListPodSandboxMetrics", self.runtime().list_pod_sandbox_metrics(request)).await?;
        let status =
            self.call("Status", self.runtime().status(cri::StatusRequest::default())).await?.status.unwrap_or_default();
        if let Some(bad) = status.conditions.iter().find(|condition| !condition.status) {
            self.complain(format!("the node isn't ready: {bad:?}"));
        }
        self.count("times measured");
        Ok(())
    }
}
