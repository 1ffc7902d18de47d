//! What the kubelet takes away: containers and sandboxes that have ended, images that nobody uses.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use integration_tests::{
    Dice, images,
    kubelet::{IMAGE, Node},
};
use proto::runtime::v1 as cri;

use super::{
    calls::{Day, Failure},
    pod::{CONTAINER, UID, image_name},
};

impl Day {
    fn is_gone(&self, uid: &str) -> bool {
        self.pods.lock().unwrap().get(uid).is_none_or(|pod| pod.ending.load(Ordering::SeqCst))
    }

    /// Collects containers and sandboxes. Goes on until everything is gone.
    pub async fn collect(&self) {
        loop {
            match self.collect_once().await {
                Ok(true) if self.is_over() => return,
                Ok(_) | Err(Failure::Lost) => {}
                Err(error) if error.is_on_purpose() => self.count("networks that failed"),
                Err(error) => self.complain(format!("garbage: {error:?}")),
            }
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }

    async fn collect_once(&self) -> Result<bool, Failure> {
        let containers = self
            .call("ListContainers", self.runtime().list_containers(cri::ListContainersRequest::default()))
            .await?
            .containers;
        let pods = self
            .call("ListPodSandbox", self.runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()))
            .await?
            .items;
        let empty = containers.is_empty() && pods.is_empty();
        let mut dead: BTreeMap<_, Vec<&cri::Container>> = BTreeMap::new();
        for one in containers.iter().filter(|one| one.state() != cri::ContainerState::ContainerRunning) {
            let label = |key: &str| one.labels.get(key).cloned().unwrap_or_default();
            dead.entry((label(UID), label(CONTAINER))).or_default().push(one);
        }
        for ((uid, _), mut all) in dead {
            all.sort_by_key(|one| std::cmp::Reverse(one.created_at));
            // Of a pod that lives, the last of each is kept.
            let kept = usize::from(!self.is_gone(&uid));
            for one in all.into_iter().skip(kept) {
                // What it came to, for who reads its log.
                let request = cri::ContainerStatusRequest { container_id: one.id.clone(), verbose: false };
                if let Ok(answer) = self.call("ContainerStatus", self.runtime().container_status(request)).await {
                    self.note(&one.pod_sandbox_id, &answer.status.unwrap_or_default());
                }
                let request = cri::RemoveContainerRequest { container_id: one.id.clone() };
                self.call("RemoveContainer", self.runtime().remove_container(request)).await?;
                self.count("containers collected");
            }
        }
        let containers = self
            .call("ListContainers", self.runtime().list_containers(cri::ListContainersRequest::default()))
            .await?
            .containers;
        let mut old: BTreeMap<_, Vec<&cri::PodSandbox>> = BTreeMap::new();
        for one in &pods {
            old.entry(one.labels.get(UID).cloned().unwrap_or_default()).or_default().push(one);
        }
        for (uid, mut all) in old {
            all.sort_by_key(|one| std::cmp::Reverse(one.created_at));
            let kept = usize::from(!self.is_gone(&uid));
            for one in all.into_iter().skip(kept) {
                let used = containers.iter().any(|container| container.pod_sandbox_id == one.id);
                if one.state() == cri::PodSandboxState::SandboxReady || used {
                    continue;
                }
                let request = cri::RemovePodSandboxRequest { pod_sandbox_id: one.id.clone() };
                self.call("RemovePodSandbox", self.runtime().remove_pod_sandbox(request)).await?;
                self.count("sandboxes collected");
            }
        }
        Ok(empty)
    }

    /// Fetches an image that isn't there.
    pub async fn ensure_image(&self, name: &str) -> Result<(), Failure> {
        let image = cri::ImageSpec { image: name.to_owned(), ..Default::default() };
        let request = cri::ImageStatusRequest { image: Some(image), verbose: false };
        if self.call("ImageStatus", self.images().image_status(request)).await?.image.is_some() {
            return Ok(());
        }
        if name == IMAGE {
            self.complain("the image that is pinned is gone".into());
            return Err(Failure::Lost);
        }
        let _turn = (self.images_turn.lock().await, self.import.lock().await);
        let archive = self.folder.join(format!("{}.tar", name.replace(['/', ':'], "_")));
        let socket = self.folder.join("r/supervisor.sock");
        let generation = self.generation.load(Ordering::SeqCst);
        let done = tokio::process::Command::new("ctr")
            .arg("-a")
            .arg(socket)
            .args(["-n", "k8s.io", "image", "import"])
            .arg(archive)
            .output()
            .await
            .unwrap();
        if !done.status.success() {
            if self.generation.load(Ordering::SeqCst) == generation && generation.is_multiple_of(2) {
                self.complain(format!("import of {name}: {}", String::from_utf8_lossy(&done.stderr)));
            }
            return Err(Failure::Lost);
        }
        self.count("images fetched");
        Ok(())
    }

    /// Removes images that nobody uses, now and then.
    pub async fn collect_images(&self, seed: u64) {
        let mut dice = Dice::new(seed);
        while !self.is_over() {
            tokio::time::sleep(Duration::from_millis(1500 + dice.roll(1500) as u64)).await;
            if let Err(error) = self.collect_images_once().await
                && !matches!(error, Failure::Lost)
            {
                self.complain(format!("images: {error:?}"));
            }
        }
    }

    /// Removes those that nobody uses now.
    pub async fn collect_images_once(&self) -> Result<(), Failure> {
        let _turn = self.images_turn.lock().await;
        let file_system =
            self.call("ImageFsInfo", self.images().image_fs_info(cri::ImageFsInfoRequest::default())).await?;
        if file_system.image_filesystems.is_empty() || file_system.container_filesystems.is_empty() {
            self.complain(format!("ImageFsInfo: {file_system:?}"));
        }
        let images =
            self.call("ListImages", self.images().list_images(cri::ListImagesRequest::default())).await?.images;
        let containers = self
            .call("ListContainers", self.runtime().list_containers(cri::ListContainersRequest::default()))
            .await?
            .containers;
        let used = |id: &str| containers.iter().any(|one| one.image_id == id);
        for image in &images {
            if image.pinned || used(&image.id) {
                continue;
            }
            let spec = cri::ImageSpec { image: image.id.clone(), ..Default::default() };
            let request = cri::RemoveImageRequest { image: Some(spec) };
            self.call("RemoveImage", self.images().remove_image(request)).await?;
            self.count("images collected");
        }
        // What was used then, and is still used, is still there.
        let after = self.call("ListImages", self.images().list_images(cri::ListImagesRequest::default())).await?.images;
        for image in images.iter().filter(|image| image.pinned || used(&image.id)) {
            if !after.iter().any(|other| other.id == image.id) {
                self.complain(format!("image {:?} was in use, and is gone", image.repo_tags));
            }
        }
        Ok(())
    }
}

/// Writes archives of images, each with a file of its own.
pub fn write_archives(node: &Node, count: usize) {
    let base = images::busybox_rootfs();
    for number in 0..count {
        // In front of the two empty blocks that end an archive.
        let mut layer = base[..base.len() - 1024].to_vec();
        let mut more = tar::Builder::new(Vec::new());
        images::add_file(&mut more, "etc/day", format!("day {number}\n").as_bytes(), 0o644);
        layer.extend(more.into_inner().unwrap());
        let name = image_name(number);
        let config = serde_json::json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
        let archive = node.path().join(format!("{}.tar", name.replace(['/', ':'], "_")));
        std::fs::write(archive, images::docker_archive(&name, &layer, config)).unwrap();
    }
}
