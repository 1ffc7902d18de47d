//! What an image's configuration says about its containers (image-spec, `config`).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::SpecError;

/// The part of a configuration that containers inherit.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(in crate::cri) struct ImageConfig {
    /// `user[:group]`
    #[serde(deserialize_with = "or_default")]
    pub(in crate::cri) user: String,
    /// Variables.
    #[serde(deserialize_with = "or_default")]
    pub(in crate::cri) env: Vec<String>,
    /// The program.
    #[serde(deserialize_with = "or_default")]
    pub(in crate::cri) entrypoint: Vec<String>,
    /// Its arguments, or the program.
    #[serde(deserialize_with = "or_default")]
    pub(in crate::cri) cmd: Vec<String>,
    /// Where it starts.
    #[serde(deserialize_with = "or_default")]
    pub(in crate::cri) working_dir: String,
    /// Folders whose contents aren't to be in the container's own layer.
    #[serde(deserialize_with = "or_default")]
    pub(in crate::cri) volumes: BTreeMap<String, serde::de::IgnoredAny>,
    /// What asks it to end.
    #[serde(deserialize_with = "or_default")]
    pub(in crate::cri) stop_signal: String,
}

impl ImageConfig {
    /// Reads a configuration.
    pub(in crate::cri) fn parse(json: &[u8]) -> Result<Self, SpecError> {
        #[derive(Deserialize)]
        struct Raw {
            config: Option<ImageConfig>,
        }
        let raw: Raw = serde_json::from_slice(json).map_err(SpecError::Image)?;
        Ok(raw.config.unwrap_or_default())
    }
}

// Builders write null for what they leave out.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations() {
        let full = br#"{"config":{"User":"www","Env":["A=b"],"Entrypoint":["/e"],"Cmd":["c"],"WorkingDir":"/w",
            "Volumes":{"/data":{}},"StopSignal":"SIGQUIT","Other":5}}"#;
        let config = ImageConfig::parse(full).unwrap();
        assert_eq!((config.user.as_str(), config.stop_signal.as_str()), ("www", "SIGQUIT"));
        assert_eq!(config.volumes.keys().collect::<Vec<_>>(), ["/data"]);
        for empty in [r#"{}"#, r#"{"config":null}"#, r#"{"config":{"User":null,"Env":null,"Volumes":null}}"#] {
            assert_eq!(ImageConfig::parse(empty.as_bytes()).unwrap(), ImageConfig::default(), "{empty}");
        }
        assert!(matches!(ImageConfig::parse(b"[").unwrap_err(), SpecError::Image(_)));
    }
}
