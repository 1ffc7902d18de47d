//! The configuration of an image (image-spec, config.md, with docker's additions): what its containers run by default.

use crate::{
    api::{Config, serial::nullable as or_default},
    time::Timestamp,
};
use proto::digest::Digest;
use serde::{Deserialize, Deserializer, Serialize};

/// The config blob.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When it was made.
    #[serde(default, deserialize_with = "lenient_time", skip_serializing_if = "unset")]
    pub created: Timestamp,
    /// Who made it.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Go's name of the processor.
    #[serde(default, deserialize_with = "or_default")]
    pub architecture: String,
    /// Its variant.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// `linux`
    #[serde(default, deserialize_with = "or_default")]
    pub os: String,
    /// Docker's note on the image.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Version of the docker that made it.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub docker_version: String,
    /// Defaults for containers.
    #[serde(default, deserialize_with = "or_default")]
    pub config: Config,
    /// The layers.
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// What was done, oldest first.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Digests of the uncompressed layers, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: "layers".into(), diff_ids: Vec::new() }
    }
}

/// One step of an image's making.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When.
    #[serde(default, deserialize_with = "lenient_time", skip_serializing_if = "unset")]
    pub created: Timestamp,
    /// The command.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// A note.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether it made no layer.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

fn unset(time: &Timestamp) -> bool {
    !time.is_set()
}

// A time that can't be read is no reason to refuse an image.
fn lenient_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    Ok(text.parse().unwrap_or(Timestamp::NEVER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nulls_and_missing_fields_are_defaults() {
        let text = r#"{"architecture":"amd64","os":"linux","created":"nonsense","history":null,
            "config":{"Env":null,"Labels":null,"ExposedPorts":null,"User":null,"Unknown":1,"Cmd":["a"]},
            "rootfs":{"type":"layers","diff_ids":null}}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!((config.created, config.rootfs.diff_ids.len()), (Timestamp::NEVER, 0));
        assert_eq!(config.config.cmd.as_deref(), Some(&["a".to_owned()][..]));
        let bare: ImageConfig = serde_json::from_str(r#"{"config":null}"#).unwrap();
        assert_eq!(bare.config, Config::default());
        assert!(serde_json::from_str::<ImageConfig>(r#"{"rootfs":{"diff_ids":["sha256:1"]}}"#).is_err());
    }

    proptest! {
        #[test]
        fn any_json_is_read_or_refused(text in "\\{(\"(config|rootfs|history|created)\":(null|1|\"x\"|\\[\\]|\\{\\}),?){0,4}\\}") {
            let _ = serde_json::from_str::<ImageConfig>(&text);
        }
    }
}
