//! An image out of nothing, for tests of the rules.

use super::{
    ImageContent, ImageGroup, Record,
    config::{History, ImageConfig, RootFs},
    content::Descriptor,
    names::RecordName,
};
use crate::{api::Config, time::Timestamp};
use proto::{containerd::types, digest::Digest};
use std::sync::Arc;

/// An image with two layers and the label `k=v`, under these names. All names point to the digest of nothing.
pub fn group(names: &[&str]) -> ImageGroup {
    let step = |created_by: &str, empty_layer| History {
        created: Timestamp::from_parts(1_700_000_000, 0),
        created_by: created_by.into(),
        empty_layer,
        ..History::default()
    };
    let config = ImageConfig {
        created: Timestamp::from_parts(1_700_000_000, 0),
        architecture: "amd64".into(),
        os: "linux".into(),
        config: Config { labels: [("k".to_owned(), "v".to_owned())].into(), ..Config::default() },
        rootfs: RootFs { diff_ids: vec![Digest::of(b"a"), Digest::of(b"b")], ..RootFs::default() },
        history: vec![step("ADD", false), step("COPY", false), step("CMD", true)],
        ..ImageConfig::default()
    };
    let blob = |text: &[u8]| Descriptor {
        media_type: String::new(),
        digest: Digest::of(text),
        size: 1,
        platform: None,
        annotations: None,
    };
    let target = types::Descriptor { digest: Digest::of(b"").to_string(), ..types::Descriptor::default() };
    let records = names.iter().map(|name| Record {
        name: (*name).to_owned(),
        kind: RecordName::parse(name),
        target: target.clone(),
        updated_at: Timestamp::from_parts(1_700_000_001, 0),
    });
    let content = ImageContent::new(Digest::of(b""), 1, blob(b"config"), vec![blob(b"l1"), blob(b"l2")], config);
    ImageGroup { id: content.id(), content: Arc::new(content), records: records.collect() }
}
