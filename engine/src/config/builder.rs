//! `builder`: what builds may do, and how much of the disk their cache may take. Key names are dockerd's.

use super::parse_size;
use proto::moby::buildkit::v1::types::GcPolicy;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::time::Duration;

/// What builds may do and keep.
#[derive(Debug, Clone, PartialEq)]
pub struct BuilderConfig {
    /// What clients may allow their builds: `network.host`, `security.insecure`, `device`.
    pub entitlements: Vec<&'static str>,
    /// What is removed from the cache by itself, in this order; nothing if that is turned off.
    pub policies: Vec<GcPolicy>,
    /// How many builds are remembered.
    pub history: usize,
    /// For how long.
    pub history_age: Duration,
}

/// The key as it is written.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Builder {
    gc: Gc,
    entitlements: Entitlements,
    history: History,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Gc {
    enabled: Option<bool>,
    default_keep_storage: String,
    default_reserved_space: String,
    default_max_used_space: String,
    default_min_free_space: String,
    policy: Vec<Rule>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    all: bool,
    filter: Value,
    keep_storage: String,
    reserved_space: String,
    max_used_space: String,
    min_free_space: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
struct Entitlements {
    network_host: Option<bool>,
    security_insecure: Option<bool>,
    device: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct History {
    max_age: String,
    max_entries: Option<u32>,
}

const HOUR: Duration = Duration::from_secs(3600);

impl Builder {
    /// With all defaults; `disk` is the size of the disk in bytes.
    pub fn read(&self, disk: Option<u64>) -> Result<BuilderConfig, String> {
        let on = |set: Option<bool>, default: bool| set.unwrap_or(default);
        let mut entitlements = Vec::new();
        for (name, allowed) in [
            ("network.host", on(self.entitlements.network_host, true)),
            ("security.insecure", on(self.entitlements.security_insecure, false)),
            ("device", on(self.entitlements.device, true)),
        ] {
            if allowed {
                entitlements.push(name);
            }
        }
        let history_age = match self.history.max_age.as_str() {
            "" => 48 * HOUR,
            text => duration(text).ok_or_else(|| format!("builder: history: {text:?} is no duration"))?,
        };
        Ok(BuilderConfig {
            entitlements,
            policies: self.gc.read(disk)?,
            history: self.history.max_entries.map_or(50, |entries| entries as usize),
            history_age,
        })
    }
}

impl Gc {
    fn read(&self, disk: Option<u64>) -> Result<Vec<GcPolicy>, String> {
        let part = |percent: u64, cap: u64| disk.map_or(cap, |size| (size / 100 * percent).min(cap));
        let given = |text: &str| size(text, disk);
        let reserved = given(&self.default_reserved_space)?.or(given(&self.default_keep_storage)?);
        let reserved = reserved.unwrap_or_else(|| part(10, 10 << 30));
        let max_used = given(&self.default_max_used_space)?.unwrap_or_else(|| part(10, 100 << 30).max(reserved));
        let min_free = given(&self.default_min_free_space)?.unwrap_or_else(|| part(10, 50 << 30));
        let rules = self.policy.iter().map(|rule| rule.read(reserved, max_used, min_free, disk));
        let own = rules.collect::<Result<Vec<_>, _>>()?;
        if self.enabled == Some(false) {
            return Ok(Vec::new());
        }
        if !own.is_empty() {
            return Ok(own);
        }
        let limits = GcPolicy {
            reserved_space: signed(reserved),
            max_used_space: signed(max_used),
            min_free_space: signed(min_free),
            ..GcPolicy::default()
        };
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        // As BuildKit: what is easily had again goes first, then what is old, then all else.
        Ok(vec![
            GcPolicy {
                filters: vec!["type==source.local,type==exec.cachemount,type==source.git.checkout".to_owned()],
                keep_duration: nanos(48 * HOUR),
                max_used_space: signed(part(2, 2 << 30)),
                ..GcPolicy::default()
            },
            GcPolicy { keep_duration: nanos(60 * 24 * HOUR), ..limits.clone() },
            limits.clone(),
            GcPolicy { all: true, ..limits },
        ])
    }
}

impl Rule {
    fn read(&self, reserved: u64, max_used: u64, min_free: u64, disk: Option<u64>) -> Result<GcPolicy, String> {
        let keep = size(&self.reserved_space, disk)?.or(size(&self.keep_storage, disk)?);
        let (mut filters, mut keep_duration) = (Vec::new(), 0);
        for (key, value) in self.filters()? {
            if matches!(key.as_str(), "unused-for" | "until") {
                let time = duration(&value).ok_or_else(|| format!("builder: gc: {value:?} is no duration"))?;
                keep_duration = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
            } else if crate::build::FILTERS.contains(&key.as_str()) {
                filters.push(format!("{key}=={value}"));
            } else {
                return Err(format!("builder: gc: invalid filter '{key}'"));
            }
        }
        Ok(GcPolicy {
            all: self.all,
            keep_duration,
            filters,
            reserved_space: signed(keep.unwrap_or(reserved)),
            max_used_space: signed(size(&self.max_used_space, disk)?.unwrap_or(max_used)),
            min_free_space: signed(size(&self.min_free_space, disk)?.unwrap_or(min_free)),
        })
    }

    /// `["unused-for=2200h"]`, or `{"unused-for": {"2200h": true}}`.
    fn filters(&self) -> Result<Vec<(String, String)>, String> {
        let wrong = || format!("builder: gc: {} is no filter", self.filter);
        match &self.filter {
            Value::Null => Ok(Vec::new()),
            Value::Array(list) => {
                let pairs = list.iter().map(|entry| entry.as_str().and_then(|text| text.split_once('=')));
                pairs.map(|pair| pair.map(|(k, v)| (k.to_owned(), v.to_owned())).ok_or_else(wrong)).collect()
            }
            Value::Object(map) => {
                let pairs = map.iter().flat_map(|(key, values)| {
                    let values = values.as_object().cloned().unwrap_or_else(Map::new);
                    values.into_iter().map(|(value, _)| (key.clone(), value))
                });
                Ok(pairs.collect())
            }
            _ => Err(wrong()),
        }
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A size, or a part of the disk: `10%`.
fn size(text: &str, disk: Option<u64>) -> Result<Option<u64>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || format!("builder: gc: {text:?} is no size");
    if let Some(percent) = text.strip_suffix('%') {
        let percent: u64 = percent.parse().ok().filter(|percent| *percent <= 100).ok_or_else(wrong)?;
        return Ok(disk.map(|size| size / 100 * percent));
    }
    parse_size(text).map(Some).ok_or_else(wrong)
}

/// Go's durations: `48h`, `1h30m`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<BuilderConfig, String> {
        let builder: Builder = serde_json::from_value(value).map_err(|e| e.to_string())?;
        builder.read(Some(1 << 40))
    }

    #[test]
    fn by_default() {
        let config = read(json!({})).unwrap();
        assert_eq!(config.entitlements, ["network.host", "device"]);
        assert_eq!((config.policies.len(), config.history), (4, 50));
        assert_eq!(config.policies[1].reserved_space, 10 << 30);
    }

    #[test]
    fn as_dockerd_has_it() {
        let config = read(json!({
            "gc": {"enabled": true, "defaultKeepStorage": "20GB", "policy": [
                {"keepStorage": "10GB", "filter": ["unused-for=2200h"]},
                {"keepStorage": "5%", "filter": {"type": {"source.local": true}}},
                {"all": true, "maxUsedSpace": "100GB", "minFreeSpace": "10%"},
            ]},
            "entitlements": {"network-host": false, "security-insecure": true, "device": false},
            "history": {"maxAge": "1h30m", "maxEntries": 7},
        }))
        .unwrap();
        assert_eq!(config.entitlements, ["security.insecure"]);
        assert_eq!((config.history, config.history_age), (7, Duration::from_secs(5400)));
        let [first, second, third] = &config.policies[..] else { panic!("{:?}", config.policies) };
        assert_eq!((first.reserved_space, first.keep_duration), (10 << 30, 2200 * 3600 * 1_000_000_000));
        assert_eq!(second.filters, ["type==source.local"]);
        assert_eq!((third.all, third.reserved_space, third.max_used_space), (true, 20 << 30, 100 << 30));
        assert!(read(json!({"gc": {"enabled": false}})).unwrap().policies.is_empty());
    }

    #[test]
    fn nonsense() {
        for bad in [
            json!({"gc": {"defaultKeepStorage": "much"}}),
            json!({"gc": {"defaultReservedSpace": "101%"}}),
            json!({"gc": {"what": 1}}),
            json!({"what": 1}),
            json!({"gc": {"policy": [{"filter": ["x"]}]}}),
            json!({"gc": {"policy": [{"filter": ["x=y"]}]}}),
            json!({"gc": {"policy": [{"filter": ["until=soon"]}]}}),
            json!({"entitlements": {"everything": true}}),
            json!({"history": {"maxAge": "long"}}),
        ] {
            assert!(read(bad.clone()).is_err(), "{bad}");
        }
    }
}
