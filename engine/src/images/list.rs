//! `docker images`.

use super::{ImageError, ImageGroup, Images, inspect::descriptor, names::glob};
use crate::{
    http::{ApiError, ApiResult, ApiVersion, Filters},
    time::Timestamp,
};
use proto::image_ref::ImageRef;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Filters that are known.
pub const FILTERS: &[&str] = &["before", "dangling", "label", "label!", "reference", "since", "until"];

/// What a client wants to see.
#[derive(Debug, Default)]
pub struct ListOptions {
    /// Which images.
    pub filters: Filters,
    /// Work out how much of each is shared with others.
    pub shared_size: bool,
    /// List the manifests (1.47).
    pub manifests: bool,
}

/// One image, in docker's order.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Summary {
    containers: i64,
    created: i64,
    id: String,
    labels: Option<BTreeMap<String, String>>,
    parent_id: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    descriptor: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    manifests: Option<Value>,
    repo_digests: Vec<String>,
    repo_tags: Vec<String>,
    shared_size: i64,
    size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    virtual_size: Option<i64>,
}

/// Filters with their values read.
struct Selection {
    dangling: Option<bool>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
}

impl Images {
    /// Images that pass the filters, newest first.
    pub async fn list(&self, options: &ListOptions, version: ApiVersion) -> ApiResult<Vec<Summary>> {
        let selection = self.selection(&options.filters).await?;
        let mut groups = self.groups().await.map_err(ApiError::from)?;
        groups.sort_by_key(|group| (std::cmp::Reverse(group.content.config.created), group.id));
        let mut uses: BTreeMap<proto::digest::Digest, usize> = BTreeMap::new();
        for group in &groups {
            for layer in &group.content.config.rootfs.diff_ids {
                *uses.entry(*layer).or_default() += 1;
            }
        }
        let mut list = Vec::new();
        for group in &groups {
            let Some(names) = selection.select(group, &options.filters)? else { continue };
            let sizes = group.content.layer_sizes(&self.client).await;
            let shared = options.shared_size.then(|| {
                let layers = group.content.config.rootfs.diff_ids.iter().zip(&sizes);
                layers.filter(|(layer, _)| uses.get(*layer).is_some_and(|n| *n > 1)).map(|(_, size)| size).sum()
            });
            let manifests = options.manifests && version.at_least(47);
            list.push(Summary::new(group, names, sizes.iter().sum(), shared, manifests, version));
        }
        Ok(list)
    }

    async fn selection(&self, filters: &Filters) -> ApiResult<Selection> {
        let mut selection =
            Selection { dangling: filters.boolean("dangling")?, before: None, since: None, until: until(filters)? };
        for name in filters.values("before") {
            let created = self.resolve(name).await.map_err(ApiError::from)?.content.config.created;
            selection.before = Some(selection.before.map_or(created, |other| other.min(created)));
        }
        for name in filters.values("since") {
            let created = self.resolve(name).await.map_err(ApiError::from)?.content.config.created;
            selection.since = Some(selection.since.map_or(created, |other| other.max(created)));
        }
        Ok(selection)
    }
}

/// The `until` filter: a point in time, or how long ago.
pub fn until(filters: &Filters) -> ApiResult<Option<Timestamp>> {
    let mut result: Option<Timestamp> = None;
    for value in filters.values("until") {
        let bad = || ApiError::invalid(format!("invalid filter 'until=[{value}]'"));
        let time = match ago(value) {
            Some(nanos) => Timestamp::from_parts(0, Timestamp::now().nanos().saturating_sub(nanos)),
            None => Timestamp::parse_query(value).map_err(|_| bad())?,
        };
        result = Some(result.map_or(time, |other| other.min(time)));
    }
    Ok(result)
}

// Go's durations: `1h30m`, `90s`, `1.5h`; in nanoseconds.
fn ago(text: &str) -> Option<i64> {
    super::changes::parse_duration(text)
}

impl Selection {
    /// The names under which an image is shown; `None` if it isn't.
    fn select(&self, group: &ImageGroup, filters: &Filters) -> ApiResult<Option<(Vec<String>, Vec<String>)>> {
        let created = group.content.config.created;
        let passes = self.dangling.is_none_or(|wanted| wanted == group.is_dangling())
            && self.before.is_none_or(|limit| created < limit)
            && self.since.is_none_or(|limit| created > limit)
            && self.until.is_none_or(|limit| created < limit)
            && filters.labels(&group.content.config.config.labels);
        if !passes {
            return Ok(None);
        }
        let (tags, digests) = (group.tags(), group.digests());
        if !filters.has("reference") {
            return Ok(Some((tags, digests)));
        }
        let keep = |names: Vec<String>| -> ApiResult<Vec<String>> {
            let mut kept = Vec::new();
            for name in names {
                if matches_reference(&name, filters)? {
                    kept.push(name);
                }
            }
            Ok(kept)
        };
        let (tags, digests) = (keep(tags)?, keep(digests)?);
        Ok((!tags.is_empty() || !digests.is_empty()).then_some((tags, digests)))
    }
}

fn matches_reference(name: &str, filters: &Filters) -> ApiResult<bool> {
    let repository = name.parse::<ImageRef>().map(|r| r.familiar_repository()).unwrap_or_default();
    for pattern in filters.values("reference") {
        let bad = || ApiError::invalid(format!("invalid filter 'reference=[{pattern}]': syntax error in pattern"));
        if glob(pattern, name).ok_or_else(bad)? || glob(pattern, &repository).ok_or_else(bad)? {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Summary {
    /// The image's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Notes how many containers use it.
    pub fn count_containers(&mut self, count: usize) {
        self.containers = count as i64;
    }

    fn new(
        group: &ImageGroup,
        (mut repo_tags, mut repo_digests): (Vec<String>, Vec<String>),
        size: i64,
        shared: Option<i64>,
        manifests: bool,
        version: ApiVersion,
    ) -> Self {
        let config = &group.content.config;
        if group.is_dangling() && !version.at_least(43) {
            repo_tags = vec!["<none>:<none>".into()];
            repo_digests = vec!["<none>@<none>".into()];
        }
        let target = group.records.first().map(|record| &record.target);
        Self {
            containers: -1,
            created: if config.created.is_set() { config.created.seconds() } else { 0 },
            id: group.id.to_string(),
            labels: Some(config.config.labels.clone()).filter(|labels| !labels.is_empty()),
            parent_id: "",
            descriptor: target.filter(|_| version.at_least(48)).map(descriptor),
            manifests: manifests.then(|| manifest_list(group, size)),
            repo_digests,
            repo_tags,
            shared_size: shared.unwrap_or(-1),
            size,
            virtual_size: (!version.at_least(44)).then_some(size),
        }
    }
}

/// The one platform that is here.
fn manifest_list(group: &ImageGroup, size: i64) -> Value {
    let content = &group.content;
    let platform = content.platform();
    let blobs: i64 = content.layers.iter().map(|layer| layer.size).sum::<i64>() + content.config_descriptor.size;
    json!([{
        "ID": content.manifest, "Available": true, "Kind": "image",
        "Descriptor": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": content.manifest, "size": content.manifest_size,
        },
        "Size": {"Content": blobs, "Total": blobs + size},
        "ImageData": {
            "Platform": {"architecture": platform.architecture, "os": platform.os},
            "Containers": [], "Size": {"Unpacked": size},
        },
    }])
}

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        Self::of(error.kind(), &error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{names::dangling_name, testing::group};

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ALL: Selection = Selection { dangling: None, before: None, since: None, until: None };

    fn shown(names: &[&str], filters: &str) -> Option<Vec<String>> {
        let filters = Filters::parse(filters, FILTERS).unwrap();
        let selection = Selection { dangling: filters.boolean("dangling").unwrap(), ..ALL };
        selection.select(&group(names), &filters).unwrap().map(|(tags, _)| tags)
    }

    #[test]
    fn filters() {
        let both = &["docker.io/team/app:1", "docker.io/library/b:2"];
        let none = &[&*dangling_name(D)];
        let names = |list: &[&str]| Some(list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        assert_eq!(shown(both, ""), names(&["b:2", "team/app:1"]));
        assert_eq!(shown(both, r#"{"reference":["team/*"]}"#), names(&["team/app:1"]));
        assert_eq!(shown(both, r#"{"reference":["b"]}"#), names(&["b:2"]));
        assert_eq!(shown(both, r#"{"reference":["x*"]}"#), None);
        assert_eq!(shown(none, r#"{"dangling":["true"]}"#), names(&[]));
        assert_eq!(shown(both, r#"{"dangling":["true"]}"#), None);
        assert_eq!(shown(none, r#"{"dangling":["false"]}"#), None);
        assert_eq!(shown(both, r#"{"label":["k=v"]}"#), names(&["b:2", "team/app:1"]));
        assert_eq!(shown(both, r#"{"label":["k=w"]}"#), None);
        let bad = Filters::parse(r#"{"reference":["["]}"#, FILTERS).unwrap();
        assert!(ALL.select(&group(both), &bad).is_err());
    }

    #[test]
    fn times() {
        let group = group(&["docker.io/library/a:1"]);
        let filters = Filters::default();
        let at = group.content.config.created;
        let later = Timestamp::from_parts(at.seconds() + 1, 0);
        let passes = |s: Selection| s.select(&group, &filters).unwrap().is_some();
        assert!(passes(Selection { before: Some(later), ..ALL }) && !passes(Selection { before: Some(at), ..ALL }));
        assert!(passes(Selection { until: Some(later), ..ALL }) && !passes(Selection { since: Some(at), ..ALL }));
        let parsed = |text: &str| until(&Filters::parse(&format!(r#"{{"until":["{text}"]}}"#), FILTERS).unwrap());
        let hour = parsed("1h").unwrap().unwrap().elapsed().as_secs();
        assert!((3599..=3601).contains(&hour), "{hour}");
        assert_eq!(parsed("12").unwrap(), Some(Timestamp::from_parts(12, 0)));
        assert!(parsed("soon").is_err());
    }

    #[test]
    fn shapes_of_versions() {
        let dangling = group(&[&dangling_name(D)]);
        let summary = |minor| {
            let names = (dangling.tags(), dangling.digests());
            serde_json::to_value(Summary::new(&dangling, names, 5, None, false, ApiVersion::v1(minor))).unwrap()
        };
        let old = summary(41);
        assert_eq!((&old["RepoTags"], &old["RepoDigests"]), (&json!(["<none>:<none>"]), &json!(["<none>@<none>"])));
        assert_eq!((&old["VirtualSize"], &old["Containers"], &old["SharedSize"]), (&json!(5), &json!(-1), &json!(-1)));
        let new = summary(51);
        assert_eq!((&new["RepoTags"], new.get("VirtualSize")), (&json!([]), None));
    }
}
