//! What a pull looks like: the supervisor's reports about layers, in docker's words and order.

use super::progress::Line;
use proto::containerd::types::transfer::Progress;
use std::collections::{HashMap, HashSet};

/// Layers that are fetched at the same time; docker says "Waiting" of those after them.
const PARALLEL: usize = 3;

/// Turns the supervisor's reports into docker's lines, layer by layer.
#[derive(Debug, Default)]
pub(super) struct Board {
    /// Blobs that were there before.
    pub(super) existing: HashSet<String>,
    layers: HashMap<String, Stage>,
    order: Vec<String>,
    /// Something has begun to move.
    moving: bool,
    /// "Already exists" of the first layers: said only if something else isn't there.
    held: Vec<Line>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Announced,
    Downloading(i64),
    Downloaded,
    Extracting(i64),
    Complete,
}

impl Board {
    pub(super) fn new(existing: HashSet<String>) -> Self {
        Self { existing, ..Self::default() }
    }

    pub(super) fn update(&mut self, progress: &Progress) -> Vec<Line> {
        let Some(digest) = layer(progress) else { return Vec::new() };
        let id = short(&digest);
        let mut lines = Vec::new();
        let before = match self.layers.get(&digest) {
            Some(stage) => *stage,
            None if self.existing.contains(&digest) => {
                self.layers.insert(digest, Stage::Complete);
                let line = Line::of(&id, "Already exists");
                if self.order.is_empty() {
                    self.held.push(line);
                    return Vec::new();
                }
                return vec![line];
            }
            None => {
                self.order.push(digest.clone());
                lines.append(&mut self.held);
                lines.push(Line::of(&id, "Pulling fs layer"));
                Stage::Announced
            }
        };
        let (now, total) = (progress.progress, progress.total);
        let after = match progress.event.as_str() {
            "downloading" => Stage::Downloading(now),
            // Another pull has fetched it meanwhile.
            "already exists" | "complete" | "downloaded" => Stage::Downloaded,
            "extracting" | "unpacking" => Stage::Extracting(now),
            "extracted" | "unpacked" => Stage::Complete,
            _ => Stage::Announced,
        };
        if after > Stage::Announced && !std::mem::replace(&mut self.moving, true) {
            let waiting = self.order.iter().skip(PARALLEL).filter(|other| **other != digest);
            lines.extend(waiting.map(|other| Line::of(&short(other), "Waiting")));
        }
        // Reports may come late or twice: a layer never goes back.
        if after > before {
            if before < Stage::Downloaded && after >= Stage::Downloaded {
                lines.push(Line::of(&id, "Verifying Checksum"));
                lines.push(Line::of(&id, "Download complete"));
            }
            match after {
                Stage::Downloading(now) => lines.push(Line::bar(&id, "Downloading", now, total)),
                Stage::Extracting(now) => lines.push(Line::bar(&id, "Extracting", now, total)),
                Stage::Complete => lines.push(Line::of(&id, "Pull complete")),
                Stage::Announced | Stage::Downloaded => {}
            }
        }
        self.layers.insert(digest, before.max(after));
        lines
    }

    /// What remains to be said when all is done; nothing about the layers of an image that was there.
    pub(super) fn finish(&mut self, was_there: bool) -> Vec<Line> {
        let mut lines = if was_there { Vec::new() } else { std::mem::take(&mut self.held) };
        for digest in std::mem::take(&mut self.order) {
            if self.layers.get(&digest) != Some(&Stage::Complete) {
                let report = Progress { event: "extracted".into(), name: digest, ..Progress::default() };
                lines.extend(self.update(&report));
            }
        }
        lines
    }
}

fn short(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

// The digest, if the report is about a layer.
fn layer(progress: &Progress) -> Option<String> {
    match &progress.desc {
        Some(desc) => {
            let layer = desc.media_type.contains("layer") || desc.media_type.contains("rootfs.diff");
            (layer && !desc.digest.is_empty()).then(|| desc.digest.clone())
        }
        None => {
            let name = progress.name.strip_prefix("layer-").unwrap_or(&progress.name);
            name.starts_with("sha256:").then(|| name.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::containerd::types::Descriptor;

    fn report(event: &str, layer: u8, progress: i64) -> Progress {
        let desc = Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            digest: format!("sha256:{}", char::from(b'a' + layer).to_string().repeat(64)),
            ..Descriptor::default()
        };
        Progress { event: event.into(), progress, total: 100, desc: Some(desc), ..Progress::default() }
    }

    fn texts(lines: &[Line]) -> Vec<String> {
        lines
            .iter()
            .map(|l| format!("{} {}", &l.id.as_deref().unwrap_or("")[..1], l.status.as_deref().unwrap_or("")))
            .collect()
    }

    #[test]
    fn a_pull_reads_like_dockers() {
        let there = layer(&report("waiting", 1, 0)).unwrap();
        let mut board = Board::new([there].into());
        let mut lines = Vec::new();
        for step in [
            report("waiting", 0, 0),
            report("waiting", 1, 0),
            report("waiting", 2, 0),
            report("waiting", 3, 0),
            report("waiting", 4, 0),
            report("already exists", 1, 0),
            report("downloading", 0, 50),
            report("downloading", 0, 50),
            report("complete", 0, 100),
            report("downloading", 0, 70),
            report("extracting", 0, 10),
            report("extracted", 0, 100),
            report("complete", 2, 100),
        ] {
            lines.extend(board.update(&step));
        }
        lines.extend(board.finish(false));
        let expected = [
            "a Pulling fs layer",
            "b Already exists",
            "c Pulling fs layer",
            "d Pulling fs layer",
            "e Pulling fs layer",
            "e Waiting",
            "a Downloading",
            "a Verifying Checksum",
            "a Download complete",
            "a Extracting",
            "a Pull complete",
            "c Verifying Checksum",
            "c Download complete",
            "c Pull complete",
            "d Verifying Checksum",
            "d Download complete",
            "d Pull complete",
            "e Verifying Checksum",
            "e Download complete",
            "e Pull complete",
        ];
        assert_eq!(texts(&lines), expected);
    }

    #[test]
    fn layers_that_are_there_are_told_if_others_are_not() {
        let digest = |n| layer(&report("waiting", n, 0)).unwrap();
        let mut board = Board::new([digest(0), digest(1)].into());
        assert!(board.update(&report("waiting", 0, 0)).is_empty());
        assert!(board.update(&report("waiting", 1, 0)).is_empty());
        assert!(board.finish(true).is_empty());
        assert_eq!(texts(&board.finish(false)), ["a Already exists", "b Already exists"]);
        let mut board = Board::new([digest(0)].into());
        board.update(&report("waiting", 0, 0));
        let lines = board.update(&report("waiting", 1, 0));
        assert_eq!(texts(&lines), ["a Already exists", "b Pulling fs layer"]);
    }

    #[test]
    fn manifests_and_configs_are_not_layers() {
        let mut manifest = report("complete", 0, 1);
        manifest.desc.as_mut().unwrap().media_type = "application/vnd.oci.image.manifest.v1+json".into();
        assert!(Board::default().update(&manifest).is_empty());
    }

    proptest! {
        // Whatever comes in whatever order: each layer is announced once and ends once.
        #[test]
        fn every_layer_begins_and_ends_once(steps in prop::collection::vec((0usize..7, 0u8..3, 0i64..100), 0..40)) {
            let events = ["waiting", "downloading", "complete", "extracting", "extracted", "already exists", "odd"];
            let mut board = Board::new(layer(&report("", 1, 0)).into_iter().collect());
            let mut lines: Vec<Line> =
                steps.iter().flat_map(|(e, layer, at)| board.update(&report(events[*e], *layer, *at))).collect();
            lines.extend(board.finish(false));
            let texts = texts(&lines);
            let mut layers: Vec<u8> = steps.iter().map(|(_, layer, _)| *layer).collect();
            layers.sort_unstable();
            layers.dedup();
            for layer in layers {
                let id = char::from(b'a' + layer);
                let count = |what: &str| texts.iter().filter(|t| **t == format!("{id} {what}")).count();
                prop_assert_eq!(count("Pulling fs layer") + count("Already exists"), 1);
                prop_assert_eq!(count("Pull complete") + count("Already exists"), 1);
            }
        }
    }
}
