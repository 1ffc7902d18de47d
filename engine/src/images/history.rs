//! `docker history`.

use super::{ImageError, ImageGroup, Images};
use serde::Serialize;

/// One step, newest first.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HistoryLine {
    comment: String,
    created: i64,
    created_by: String,
    id: String,
    size: i64,
    tags: Option<Vec<String>>,
}

impl Images {
    /// How an image was made.
    pub async fn history(&self, text: &str) -> Result<Vec<HistoryLine>, ImageError> {
        let group = self.resolve_group(text).await?;
        let sizes = group.content.layer_sizes(&self.client).await;
        Ok(lines(&group, &sizes))
    }
}

fn lines(group: &ImageGroup, sizes: &[i64]) -> Vec<HistoryLine> {
    let mut sizes = sizes.iter();
    let steps = group.content.config.history.iter();
    let mut lines: Vec<HistoryLine> = steps
        .map(|step| HistoryLine {
            comment: step.comment.clone(),
            created: if step.created.is_set() { step.created.seconds() } else { 0 },
            created_by: step.created_by.clone(),
            id: "<missing>".into(),
            size: if step.empty_layer { 0 } else { sizes.next().copied().unwrap_or(0) },
            tags: None,
        })
        .collect();
    lines.reverse();
    if let Some(newest) = lines.first_mut() {
        newest.id = group.id.to_string();
        newest.tags = Some(group.tags()).filter(|tags| !tags.is_empty());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::testing::group;

    #[test]
    fn sizes_go_to_the_steps_that_made_layers() {
        let group = group(&["docker.io/library/a:1"]);
        let lines = lines(&group, &[10, 20]);
        let seen: Vec<_> = lines.iter().map(|l| (l.created_by.as_str(), l.size, l.id == "<missing>")).collect();
        assert_eq!(seen, [("CMD", 0, false), ("COPY", 20, true), ("ADD", 10, true)]);
        assert_eq!(lines[0].tags, Some(vec!["a:1".to_owned()]));
    }
}
