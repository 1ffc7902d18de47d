//! What is known, to be taken elsewhere: the published cache config (`application/vnd.buildkit.cacheconfig.v0`), both ways.
//!
//! A record's `digest` is a key of ours, so that BuildKit reads what we write, and finds nothing in it. A record with layers is a
//! result; one whose only input has the selector [`ALIAS`] is another key of the record that it links to. Which results go along,
//! and as which layers, is the caller's choice: `mode=min` or `max`.

use crate::{keys, solve::Solved};
use proto::digest::Digest;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Media type of a config.
pub const MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";
/// Selector of a link that isn't an input, but another key.
pub const ALIAS: &str = "berth.alias";
/// Bytes, records, and layers of one result that are taken.
const MAX_BYTES: usize = 8 << 20;
const MAX_RECORDS: usize = 200_000;
const MAX_CHAIN: usize = 1000;

/// A layer of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Of the blob.
    pub digest: Digest,
    /// Of the blob.
    pub media_type: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Of the layer unpacked.
    pub diff_id: Option<Digest>,
    /// When it was made, as RFC 3339 has it.
    pub created: Option<String>,
    /// What else was said of it.
    pub annotations: BTreeMap<String, String>,
    /// Where it comes from: what was given to [`Imported::parse`].
    pub origin: String,
}

/// What was known elsewhere.
#[derive(Debug, Default)]
pub struct Imported {
    results: HashMap<Digest, Vec<Layer>>,
    aliases: HashMap<Digest, Digest>,
}

/// Why a config isn't taken.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Not a config.
    #[error("decode cache config")]
    Decode(#[source] serde_json::Error),
    /// More than anybody needs.
    #[error("cache config has {is} {what}, at most {limit} are taken")]
    Large {
        /// Of what.
        what: &'static str,
        /// How many.
        is: usize,
        /// How many may be.
        limit: usize,
    },
    /// A number of nothing.
    #[error("cache config names {what} {index}, there are {count}")]
    Index {
        /// Of what.
        what: &'static str,
        /// Which.
        index: i64,
        /// How many there are.
        count: usize,
    },
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<ConfigLayer>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    records: Vec<ConfigRecord>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfigLayer {
    blob: String,
    /// -1: it is the first. Left out: 0, as Go's encoder does.
    parent: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<ConfigAnnotations>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ConfigAnnotations {
    #[serde(skip_serializing_if = "String::is_empty")]
    media_type: String,
    #[serde(rename = "diffID", skip_serializing_if = "String::is_empty")]
    diff_id: String,
    #[serde(skip_serializing_if = "is_zero")]
    size: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    additional: BTreeMap<String, String>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfigRecord {
    #[serde(rename = "layers", skip_serializing_if = "Vec::is_empty")]
    results: Vec<ConfigResult>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    chains: Vec<ConfigChain>,
    digest: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<Vec<ConfigInput>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfigResult {
    layer: i64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfigChain {
    layers: Vec<i64>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct ConfigInput {
    #[serde(skip_serializing_if = "String::is_empty")]
    selector: String,
    link: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde calls it
fn is_zero(size: &i64) -> bool {
    *size == 0
}

/// Collects what goes elsewhere.
#[derive(Debug, Default)]
pub struct Exporter {
    config: Config,
    layers: HashMap<(Digest, i64), i64>,
    records: HashMap<Digest, i64>,
}

impl Exporter {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what was solved; `layers` tells a result's layers by canonical key and
    /// output, lowest first, if it is to go along.
    pub fn add<R>(&mut self, solved: &Solved<R>, layers: impl Fn(&Digest, usize) -> Option<Vec<Layer>>) {
        for (at, vertex) in solved.graph.vertices.iter().enumerate() {
            let (key, alias) = (solved.keys[at], solved.aliases[at]);
            for output in 0..vertex.outputs {
                let place = self.record(keys::of_result(&key, output));
                let links = vertex.inputs.iter().map(|input| {
                    let link = self.record(keys::of_result(&solved.keys[input.vertex], input.output));
                    vec![ConfigInput { link, ..ConfigInput::default() }]
                });
                let links: Vec<_> = links.collect();
                self.config.records[place as usize].inputs = links;
                let chain = layers(&key, output).unwrap_or_default();
                let top = chain.iter().fold(-1, |below, layer| self.layer(layer, below));
                if top >= 0 && self.config.records[place as usize].results.is_empty() {
                    self.config.records[place as usize].results.push(ConfigResult { layer: top });
                }
            }
            if let Some(alias) = alias {
                let input = ConfigInput { selector: ALIAS.into(), link: self.record(key) };
                let place = self.record(alias);
                self.config.records[place as usize].inputs = vec![vec![input]];
            }
        }
    }

    /// The config, as JSON.
    pub fn finish(self) -> Vec<u8> {
        serde_json::to_vec(&self.config).unwrap_or_default() // texts and numbers only
    }

    fn record(&mut self, digest: Digest) -> i64 {
        let next = self.config.records.len() as i64;
        *self.records.entry(digest).or_insert_with(|| {
            self.config.records.push(ConfigRecord { digest: digest.to_string(), ..ConfigRecord::default() });
            next
        })
    }

    fn layer(&mut self, layer: &Layer, parent: i64) -> i64 {
        let next = self.config.layers.len() as i64;
        *self.layers.entry((layer.digest, parent)).or_insert_with(|| {
            let annotations = ConfigAnnotations {
                media_type: layer.media_type.clone(),
                diff_id: layer.diff_id.map(|digest| digest.to_string()).unwrap_or_default(),
                size: i64::try_from(layer.size).unwrap_or(i64::MAX),
                created_at: layer.created.clone(),
                additional: layer.annotations.clone(),
            };
            let annotations = Some(annotations);
            self.config.layers.push(ConfigLayer { blob: layer.digest.to_string(), parent, annotations });
            next
        })
    }
}

impl Imported {
    /// Reads a config. `origin` goes into its layers, to know where they can be had. What isn't ours in it is passed over.
    pub fn parse(json: &[u8], origin: &str) -> Result<Self, ImportError> {
        bounded("bytes", json.len(), MAX_BYTES)?;
        let config: Config = serde_json::from_slice(json).map_err(ImportError::Decode)?;
        bounded("records", config.records.len(), MAX_RECORDS)?;
        bounded("layers", config.layers.len(), MAX_RECORDS)?;
        let mut imported = Self::default();
        for record in &config.records {
            let Ok(digest) = record.digest.parse() else { continue };
            if let [inputs] = record.inputs.as_slice()
                && let [input] = inputs.as_slice()
                && input.selector == ALIAS
            {
                let to = at("record", &config.records, input.link)?;
                if let Ok(to) = to.digest.parse() {
                    imported.aliases.insert(digest, to);
                }
                continue;
            }
            let chain = match (record.results.first(), record.chains.first()) {
                (Some(result), _) => chain_to(&config, result.layer)?,
                (None, Some(chain)) => {
                    bounded("layers of one result", chain.layers.len(), MAX_CHAIN)?;
                    chain.layers.iter().map(|layer| at("layer", &config.layers, *layer)).collect::<Result<_, _>>()?
                }
                (None, None) => continue,
            };
            // A layer that can't be named can't be fetched, and the result not without it.
            if let Some(layers) = chain.into_iter().map(|layer| layer.known(origin)).collect::<Option<Vec<_>>>() {
                imported.results.insert(digest, layers);
            }
        }
        Ok(imported)
    }

    /// The canonical key that a key leads to, and the layers of its results; only if all of them are there.
    pub(crate) fn lookup(&self, key: &Digest, outputs: usize) -> Option<(Digest, Vec<Vec<Layer>>)> {
        let canonical = self.aliases.get(key).unwrap_or(key);
        let results = (0..outputs).map(|output| self.results.get(&keys::of_result(canonical, output)).cloned());
        let results: Vec<_> = results.collect::<Option<_>>()?;
        (!results.is_empty()).then_some((*canonical, results))
    }

    /// Another name of `key`, though there is no result of it.
    pub(crate) fn canonical(&self, key: &Digest) -> Option<Digest> {
        self.aliases.get(key).copied()
    }

    /// How many results there are.
    pub fn len(&self) -> usize {
        self.results.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }
}

impl ConfigLayer {
    fn known(&self, origin: &str) -> Option<Layer> {
        let said = self.annotations.as_ref();
        Some(Layer {
            digest: self.blob.parse().ok()?,
            media_type: said.map(|said| said.media_type.clone()).unwrap_or_default(),
            size: said.and_then(|said| u64::try_from(said.size).ok()).unwrap_or_default(),
            diff_id: said.and_then(|said| said.diff_id.parse().ok()),
            created: said.and_then(|said| said.created_at.clone()),
            annotations: said.map(|said| said.additional.clone()).unwrap_or_default(),
            origin: origin.to_owned(),
        })
    }
}

fn chain_to(config: &Config, top: i64) -> Result<Vec<&ConfigLayer>, ImportError> {
    let (mut chain, mut seen, mut next) = (Vec::new(), HashSet::new(), top);
    while next != -1 {
        let layer = at("layer", &config.layers, next)?;
        // Going in circles, or as good as.
        if !seen.insert(next) || chain.len() == MAX_CHAIN {
            return Err(ImportError::Large { what: "layers of one result", is: chain.len() + 1, limit: chain.len() });
        }
        chain.push(layer);
        next = layer.parent;
    }
    chain.reverse();
    Ok(chain)
}

fn at<'a, T>(what: &'static str, list: &'a [T], index: i64) -> Result<&'a T, ImportError> {
    let found = usize::try_from(index).ok().and_then(|index| list.get(index));
    found.ok_or(ImportError::Index { what, index, count: list.len() })
}

fn bounded(what: &'static str, is: usize, limit: usize) -> Result<(), ImportError> {
    if is > limit { Err(ImportError::Large { what, is, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
