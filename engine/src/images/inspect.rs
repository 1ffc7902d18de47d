//! `docker image inspect`.

use super::{ImageError, ImageGroup, Images};
use crate::{api::Config, http::ApiVersion, time::Timestamp};
use proto::containerd::types;
use serde::Serialize;
use serde_json::{Value, json};

/// The answer, in docker's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Inspect {
    id: String,
    repo_tags: Vec<String>,
    repo_digests: Vec<String>,
    parent: &'static str,
    comment: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'static str>,
    // Docker leaves it out from 1.45 on, and compose 1.29, which asks in whatever version is newest, then fails.
    container_config: Config,
    docker_version: String,
    author: String,
    config: Config,
    architecture: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    variant: String,
    os: String,
    size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<i64>,
    graph_driver: Value,
    #[serde(rename = "RootFS")]
    root_fs: Value,
    metadata: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptor: Option<Value>,
}

/// A descriptor as the API shows it.
pub fn descriptor(target: &types::Descriptor) -> Value {
    json!({"mediaType": target.media_type, "digest": target.digest, "size": target.size})
}

impl Images {
    /// Everything about one image, in the shape of the API version asked for.
    pub async fn inspect(&self, text: &str, version: ApiVersion) -> Result<Inspect, ImageError> {
        let group = self.resolve_group(text).await?;
        let size = group.content.size(&self.client).await;
        Ok(Inspect::new(&group, size, self.client.snapshotter(), version))
    }
}

impl Inspect {
    fn new(group: &ImageGroup, size: i64, driver: &str, version: ApiVersion) -> Self {
        let config = group.content.config.clone();
        let old = !version.at_least(45);
        let tagged = group.records.iter().filter(|r| r.kind.reference().is_some()).map(|r| r.updated_at).max();
        let target = group.records.first().map(|record| &record.target);
        Self {
            id: group.id.to_string(),
            repo_tags: group.tags(),
            repo_digests: group.digests(),
            parent: "",
            comment: config.comment,
            // Never made is left out from 1.44 on, and was year 1 before.
            created: (config.created.is_set() || !version.at_least(44)).then_some(config.created),
            container: old.then_some(""),
            container_config: Config::default(),
            docker_version: config.docker_version,
            author: config.author,
            config: config.config,
            architecture: config.architecture,
            variant: config.variant,
            os: config.os,
            size,
            virtual_size: (!version.at_least(44)).then_some(size),
            graph_driver: json!({"Data": null, "Name": driver}),
            root_fs: json!({"Type": "layers", "Layers": config.rootfs.diff_ids}),
            metadata: json!({"LastTagTime": tagged.unwrap_or(Timestamp::NEVER)}),
            descriptor: target.filter(|_| version.at_least(48)).map(descriptor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::testing::group;

    #[test]
    fn shapes_of_versions() {
        let group = group(&["docker.io/library/a:1"]);
        let keys = |minor| {
            let value = serde_json::to_value(Inspect::new(&group, 7, "native", ApiVersion::v1(minor))).unwrap();
            let has = |key: &str| value.get(key).is_some();
            (has("VirtualSize"), has("Container"), has("Descriptor"))
        };
        assert_eq!(keys(41), (true, true, false));
        assert_eq!(keys(44), (false, true, false));
        assert_eq!(keys(47), (false, false, false));
        assert_eq!(keys(51), (false, false, true));
        let value = serde_json::to_value(Inspect::new(&group, 7, "native", ApiVersion::v1(51))).unwrap();
        assert_eq!(value["RepoTags"], json!(["a:1"]));
        assert_eq!((&value["Size"], &value["RootFS"]["Type"]), (&json!(7), &json!("layers")));
        assert_eq!(value["GraphDriver"]["Name"], "native");
        assert_eq!(value["RootFS"]["Layers"].as_array().map(Vec::len), Some(2));
    }
}
