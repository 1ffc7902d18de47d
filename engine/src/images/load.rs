//! `docker load`: an archive of images, from the client into the supervisor.

use super::{
    ImageError, Images, Record,
    names::RecordName,
    platform::Platform,
    progress::{Gone, Line, Lines},
};
use crate::supervisor::{Step, SupervisorError, Transfer, transfer::Archive};
use proto::{
    containerd::types::transfer::{ImageImportStream, ImageStore, Progress, UnpackConfiguration},
    digest::Digest,
    image_ref::ImageRef,
    kind::chain,
    typeurl,
};

/// What an archive brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The image.
    pub id: Digest,
    /// Its name, if the archive gave one.
    pub name: Option<ImageRef>,
}

impl Images {
    /// Loads an archive and tells about it, failures included. Gives what was loaded.
    pub async fn load(&self, archive: Archive, platforms: Vec<Platform>, quiet: bool, lines: &Lines) -> Vec<Loaded> {
        let outcome = tokio::select! {
            outcome = self.relay_load(archive, platforms, quiet, lines) => outcome,
            () = lines.gone() => Err(LoadEnd::Gone),
        };
        match outcome {
            Ok(loaded) => loaded,
            Err(LoadEnd::Failed(error)) => {
                tracing::warn!(error = %chain(&error), "load failed");
                // Nobody listens if this fails.
                let _ = lines.write(Line::error(chain(&error))).await;
                Vec::new()
            }
            Err(LoadEnd::Gone) => {
                tracing::info!("load cancelled by its client");
                Vec::new()
            }
        }
    }

    async fn relay_load(
        &self,
        archive: Archive,
        platforms: Vec<Platform>,
        quiet: bool,
        lines: &Lines,
    ) -> Result<Vec<Loaded>, LoadEnd> {
        let failed = |error| ImageError::supervisor("load", "archive", error);
        let before = self.records().await?;
        // Of an archive for several, this machine's is unpacked, or what was asked for.
        let wanted = if platforms.is_empty() { vec![Platform::host()] } else { platforms.clone() };
        let unpack = |platform: Platform| UnpackConfiguration {
            platform: Some(platform.to_proto()),
            snapshotter: self.client.snapshotter().into(),
        };
        let store = ImageStore {
            platforms: platforms.iter().map(Platform::to_proto).collect(),
            unpacks: wanted.into_iter().map(unpack).collect(),
            ..ImageStore::default()
        };
        let source = |stream| typeurl::pack(&ImageImportStream { stream, ..ImageImportStream::default() });
        let mut transfer = Transfer::load(&self.client, archive, store, source).await.map_err(failed)?;
        loop {
            match transfer.next().await {
                Some(Step::Progress(progress)) if !quiet => {
                    if let Some(line) = layer_line(&progress) {
                        lines.write(line).await?;
                    }
                }
                Some(Step::Progress(_)) => {}
                Some(Step::Done(result)) => break result.map_err(failed)?,
                None => return Err(failed(SupervisorError::Protocol("transfer without result".into())).into()),
            }
        }
        let mut loaded = Vec::new();
        let after = self.records().await?;
        for record in news(&before, &after) {
            let id = self.content(&record.name, &record.target).await?.id();
            let name = record.kind.reference().cloned();
            let text = match &name {
                Some(name) => format!("Loaded image: {}\n", name.familiar()),
                None => format!("Loaded image ID: {id}\n"),
            };
            lines.write(Line::stream(text)).await?;
            loaded.push(Loaded { id, name });
        }
        self.keep_overwritten(&before, &after).await?;
        Ok(loaded)
    }

    // An image whose only name the archive has given to another one stays, without a name.
    async fn keep_overwritten(&self, before: &[Record], after: &[Record]) -> Result<(), ImageError> {
        for old in before {
            if !after.iter().any(|record| record.target.digest == old.target.digest) {
                self.put_record(&super::names::dangling_name(&old.target.digest), &old.target).await?;
            }
        }
        Ok(())
    }
}

enum LoadEnd {
    Failed(ImageError),
    Gone,
}

impl From<Gone> for LoadEnd {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<ImageError> for LoadEnd {
    fn from(error: ImageError) -> Self {
        Self::Failed(error)
    }
}

/// Records that the transfer wrote, named ones first.
fn news<'a>(before: &[Record], after: &'a [Record]) -> Vec<&'a Record> {
    let mut news: Vec<&Record> = after
        .iter()
        .filter(|record| {
            let old = before.iter().find(|old| old.name == record.name);
            old.is_none_or(|old| old.updated_at != record.updated_at || old.target != record.target)
        })
        .collect();
    news.sort_by_key(|record| (record.kind == RecordName::Dangling, &record.name));
    news
}

fn layer_line(progress: &Progress) -> Option<Line> {
    let desc = progress.desc.as_ref()?;
    let layer = desc.media_type.contains("layer") || desc.media_type.contains("rootfs.diff");
    let id: String = desc.digest.trim_start_matches("sha256:").chars().take(12).collect();
    let total = progress.total.max(desc.size);
    let current = match progress.event.as_str() {
        "extracting" | "unpacking" => progress.progress,
        "extracted" | "unpacked" => total,
        _ => return None,
    };
    (layer && !id.is_empty()).then(|| Line::bar(&id, "Loading layer", current, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;
    use proto::containerd::types::Descriptor;

    #[test]
    fn what_is_new() {
        let record = |name: &str, target: &str, at| Record {
            name: name.into(),
            kind: RecordName::parse(name),
            target: Descriptor { digest: target.into(), ..Descriptor::default() },
            updated_at: Timestamp::from_parts(at, 0),
        };
        let a = "docker.io/library/a:1";
        let before = [record(a, "x", 1), record("docker.io/library/b:1", "y", 1)];
        let after = [record("import@z", "z", 2), record(a, "x", 2), before[1].clone()];
        let names: Vec<_> = news(&before, &after).iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, [a, "import@z"]);
    }

    #[test]
    fn bars_are_for_layers() {
        let desc = Descriptor {
            media_type: "application/vnd.docker.image.rootfs.diff.tar".into(),
            digest: "sha256:4c58929b8cedddbe".into(),
            size: 10,
            ..Descriptor::default()
        };
        let mut progress =
            Progress { event: "extracting".into(), progress: 4, desc: Some(desc), ..Progress::default() };
        assert_eq!(layer_line(&progress), Some(Line::bar("4c58929b8ced", "Loading layer", 4, 10)));
        progress.event = "saved".into();
        assert_eq!(layer_line(&progress), None);
    }
}
