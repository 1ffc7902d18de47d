//! docker's oldest archives: every layer has a folder with `json` (a whole image each, with its parent) and `layer.tar`, and
//! `repositories` names the uppermost ones.
//!
//! The configuration is made of the uppermost `json` exactly as dockerd makes it (`MakeConfigFromV1Config`), byte for byte
//! as Go writes JSON, so that the image id is the same. Only what docker before 1.8.3 wrote dockerd passes through its own
//! structures first; such images get another id here.

use std::{collections::BTreeMap, fmt::Write as _};

use proto::digest::Digest;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::{Context, Operation, TransferError, archive::Archive};
use crate::{
    images::manifest::{DOCKER_CONFIG, Descriptor},
    layers::decompress::{Compression, decompressed},
    store::Labels,
};

/// Layers of one image; more would not fit into a mount.
const DEPTH: usize = 1000;

#[derive(Deserialize)]
struct Layer<'a> {
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    author: Option<String>,
    #[serde(default)]
    comment: Option<String>,
    #[serde(default, borrow)]
    container_config: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ContainerConfig {
    #[serde(rename = "Cmd", alias = "cmd", default)]
    cmd: Option<Words>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    Many(Vec<String>),
    One(String),
}

/// An image of such an archive: its configuration, its layers, its names.
pub(super) struct LegacyImage {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<(Descriptor, Compression)>,
    pub(super) names: Vec<String>,
}

impl Context {
    /// The images that `repositories` names.
    pub(super) fn legacy_images(
        &self,
        operation: &Operation,
        archive: &Archive,
    ) -> Result<Vec<LegacyImage>, TransferError> {
        let legacy = &archive.legacy;
        if legacy.too_big {
            return Err(TransferError::Archive("the descriptions of its layers are too big".into()));
        }
        let mut named = BTreeMap::<&str, Vec<String>>::new();
        for (repository, tags) in &legacy.repositories {
            for (tag, id) in tags {
                named.entry(id).or_default().push(format!("{repository}:{tag}"));
            }
        }
        let mut images = Vec::new();
        for (top, names) in named {
            let (config, layers) = self.legacy_image(operation, archive, top)?;
            images.push(LegacyImage { config, layers, names });
        }
        Ok(images)
    }

    fn legacy_image(
        &self,
        operation: &Operation,
        archive: &Archive,
        top: &str,
    ) -> Result<(Descriptor, Vec<(Descriptor, Compression)>), TransferError> {
        let malformed = |id: &str, error: serde_json::Error| {
            TransferError::Archive(format!("{:?} is malformed: {error}", format!("{id}/json")))
        };
        // From the uppermost downwards.
        let (mut id, mut chain) = (top.to_owned(), Vec::new());
        loop {
            let json = archive.legacy.layers.get(&id);
            let json =
                json.ok_or_else(|| TransferError::Archive(format!("{:?} is missing in it", format!("{id}/json"))))?;
            let layer: Layer<'_> = serde_json::from_slice(json).map_err(|error| malformed(&id, error))?;
            let parent = layer.parent.clone().filter(|parent| !parent.is_empty());
            chain.push((id, json, layer));
            match parent {
                Some(parent) if chain.len() < DEPTH => id = parent,
                Some(_) => return Err(TransferError::Archive(format!("layer {top:?} has more than {DEPTH} below it"))),
                None => break,
            }
        }
        let (mut layers, mut diff_ids, mut history) = (Vec::new(), Vec::new(), Vec::new());
        for (id, _, layer) in chain.iter().rev() {
            let blob = archive.find(&format!("{id}/layer.tar"))?;
            diff_ids.push(self.diff_id(&blob.digest)?.to_string());
            layers.push((Descriptor::new("", blob.digest, blob.size), blob.compression));
            history.push(history_of(layer));
        }
        let (_, json, _) = &chain[0];
        let config = config(json, &diff_ids, &history).map_err(|error| malformed(top, error))?;
        let digest =
            self.stores.content.put(&self.namespace, config.as_bytes(), &Labels::new(), Some(&operation.id))?;
        Ok((Descriptor::new(DOCKER_CONFIG, digest, config.len() as u64), layers))
    }

    // The digest of what a layer is uncompressed.
    fn diff_id(&self, digest: &Digest) -> Result<Digest, TransferError> {
        let (file, _) = self.stores.content.reader(&self.namespace, digest)?;
        let (mut plain, compression) = decompressed(file)?;
        if compression == Compression::Plain {
            return Ok(*digest);
        }
        let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match std::io::Read::read(&mut plain, &mut buffer) {
                Ok(0) => return Ok(Digest::from_bytes(sha2::Digest::finalize(hasher).into())),
                Ok(n) => sha2::Digest::update(&mut hasher, &buffer[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TransferError::Archive(format!("layer {digest} in it is damaged: {error}"))),
            }
        }
    }
}

// One step of the history, as Go writes the structure.
fn history_of(layer: &Layer<'_>) -> String {
    let config = layer.container_config.and_then(|raw| serde_json::from_str::<ContainerConfig>(raw.get()).ok());
    let by = match config.and_then(|config| config.cmd) {
        Some(Words::Many(words)) => words.join(" "),
        Some(Words::One(word)) => word,
        None => String::new(),
    };
    let created = layer.created.as_deref().map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), time);
    let mut out = format!("{{\"created\":\"{created}\"");
    let rest = [("author", layer.author.as_deref()), ("created_by", Some(&*by)), ("comment", layer.comment.as_deref())];
    for (key, value) in rest {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let _ = write!(out, ",\"{key}\":{}", compact(&serde_json::Value::from(value).to_string()));
        }
    }
    out.push('}');
    out
}

// A time as Go reads and writes it again: no zeros at the end of the fraction.
fn time(text: &str) -> String {
    let Some((seconds, rest)) = text.split_once('.') else { return text.to_owned() };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (fraction, zone) = (rest[..end].trim_end_matches('0'), &rest[end..]);
    if fraction.is_empty() { format!("{seconds}{zone}") } else { format!("{seconds}.{fraction}{zone}") }
}

// The keys of `json` but for those of the old format, with layers and history; sorted, as Go writes maps.
fn config(json: &[u8], diff_ids: &[String], history: &[String]) -> Result<String, serde_json::Error> {
    let mut map: BTreeMap<String, &RawValue> = serde_json::from_slice(json)?;
    for old in ["id", "parent", "Size", "parent_id", "layer_id", "throwaway"] {
        map.remove(old);
    }
    let rootfs = format!("{{\"type\":\"layers\",\"diff_ids\":{}}}", serde_json::Value::from(diff_ids));
    let history = format!("[{}]", history.join(","));
    let mut all: BTreeMap<&str, String> = map.iter().map(|(key, raw)| (key.as_str(), compact(raw.get()))).collect();
    all.insert("rootfs", rootfs);
    all.insert("history", history);
    let pairs: Vec<_> = all
        .iter()
        .map(|(key, value)| format!("{}:{value}", compact(&serde_json::Value::from(*key).to_string())))
        .collect();
    Ok(format!("{{{}}}", pairs.join(",")))
}

// JSON without spaces, and with those characters escaped that Go escapes for the sake of browsers.
fn compact(json: &str) -> String {
    let (mut out, mut in_string, mut escaped) = (String::with_capacity(json.len()), false, false);
    for c in json.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            ' ' | '\t' | '\n' | '\r' if !in_string => {}
            c => out.push(c),
        }
        in_string ^= c == '"' && !escaped;
        escaped = in_string && c == '\\' && !escaped;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_as_go_writes_it() {
        assert_eq!(
            compact(r#"{ "a" : "x <b> \" & y\\" , "c": [1, 2.50] }"#),
            r#"{"a":"x \u003cb\u003e \" \u0026 y\\","c":[1,2.50]}"#
        );
        for (text, wanted) in [
            ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z"),
            ("2020-01-01T00:00:00.120000000Z", "2020-01-01T00:00:00.12Z"),
            ("2020-01-01T00:00:00.000+01:00", "2020-01-01T00:00:00+01:00"),
        ] {
            assert_eq!(time(text), wanted);
        }
    }

    #[test]
    fn a_configuration_of_an_old_description() {
        let json =
            br#"{"id":"x","parent":"y","Size":3,"os":"linux","created":"2020-01-01T00:00:00.500Z","author":"a & b",
            "container_config":{"Cmd":["/bin/sh","-c","x > y"]}, "architecture":"amd64"}"#;
        let layer: Layer<'_> = serde_json::from_slice(json).unwrap();
        assert_eq!(layer.parent.as_deref(), Some("y"));
        let history = history_of(&layer);
        assert_eq!(
            history,
            r#"{"created":"2020-01-01T00:00:00.5Z","author":"a \u0026 b","created_by":"/bin/sh -c x \u003e y"}"#
        );
        let config = config(json, &["sha256:1".into()], std::slice::from_ref(&history)).unwrap();
        let wanted = r#"{"architecture":"amd64","author":"a \u0026 b","container_config":{"Cmd":["/bin/sh","-c","x \u003e y"]},"created":"2020-01-01T00:00:00.500Z","history":[H],"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:1"]}}"#;
        assert_eq!(config, wanted.replace('H', &history));
    }
}
