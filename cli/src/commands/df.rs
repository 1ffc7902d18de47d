//! `system df`

use super::App;
use super::images::{self, Summary as Image};
use super::ps::{self, Summary as Container};
use crate::args::system::DfArgs;
use crate::client::Call;
use crate::exit::Outcome;
use crate::output::listing::{self, Layout};
use crate::output::template::{Context, Template};
use crate::output::value::Value;
use crate::output::{self, json, time, units};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Usage {
    layers_size: i64,
    images: Option<Vec<Image>>,
    containers: Option<Vec<Container>>,
    volumes: Option<Vec<Volume>>,
    build_cache: Option<Vec<CacheRecord>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Volume {
    name: String,
    driver: String,
    mountpoint: String,
    scope: String,
    labels: Option<BTreeMap<String, String>>,
    usage_data: Option<VolumeUsage>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct VolumeUsage {
    size: i64,
    ref_count: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct CacheRecord {
    #[serde(rename = "ID")]
    id: String,
    parent: String,
    r#type: String,
    description: String,
    in_use: bool,
    shared: bool,
    size: i64,
    created_at: String,
    last_used_at: Option<String>,
    usage_count: i64,
}

/// One line of the table.
struct Kind {
    title: &'static str,
    total: usize,
    active: usize,
    size: i64,
    reclaimable: i64,
    /// Whether its share of the size is told, too.
    share: bool,
}

const COLUMNS: &str = "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}";
const TITLES: &[(&str, &str)] = &[
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];
const IMAGE_COLUMNS: &str = "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}\t{{.SharedSize}}\t{{.UniqueSize}}\t{{.Containers}}";
const CONTAINER_COLUMNS: &str =
    "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.LocalVolumes}}\t{{.Size}}\t{{.RunningFor}}\t{{.Status}}\t{{.Names}}";
const VOLUME_COLUMNS: &str = "{{.Name}}\t{{.Links}}\t{{.Size}}";
const VOLUME_TITLES: &[(&str, &str)] = &[("Name", "VOLUME NAME"), ("Links", "LINKS"), ("Size", "SIZE")];
const CACHE_COLUMNS: &str =
    "{{.ID}}\t{{.CacheType}}\t{{.Size}}\t{{.CreatedSince}}\t{{.LastUsedSince}}\t{{.UsageCount}}\t{{.Shared}}";
const CACHE_TITLES: &[(&str, &str)] = &[
    ("ID", "CACHE ID"),
    ("CacheType", "CACHE TYPE"),
    ("Size", "SIZE"),
    ("CreatedSince", "CREATED"),
    ("LastUsedSince", "LAST USED"),
    ("UsageCount", "USAGE"),
    ("Shared", "SHARED"),
];

/// Runs `system df`.
pub async fn run(app: &App, args: &DfArgs) -> Outcome {
    let mut usage: Usage = app.client().await?.send(Call::get("/system/df")).await?.json().await?;
    for container in usage.containers.iter_mut().flatten() {
        // What its image takes is counted with the images.
        container.size_root_fs = 0;
    }
    let format = args.format.as_deref().filter(|format| !format.is_empty());
    if !args.verbose {
        let rows: Vec<Context> = kinds(&usage).iter().map(summary).collect();
        let layout = Layout { columns: COLUMNS, titles: TITLES, quiet: "{{.Type}}" };
        return output::print(&listing::render(&layout, format, false, &rows)?);
    }
    match format {
        None | Some("table") => output::print(&verbose(&usage, time::now())?),
        Some(format) => {
            let all = fields(&usage, time::now());
            if format == "json" || format == "{{json .}}" {
                return output::print(&json::escape_html(&json::line(&all)));
            }
            let context = Context { fields: all, labels: Value::Null };
            output::print(&Template::parse(format)?.execute(&context)?)
        }
    }
}

fn kinds(usage: &Usage) -> [Kind; 4] {
    let images = usage.images.as_deref().unwrap_or_default();
    let own = |image: &Image| if image.size < 0 || image.shared < 0 { 0 } else { image.size - image.shared };
    let needed: i64 = images.iter().filter(|image| image.containers != 0).map(own).sum();
    let containers = usage.containers.as_deref().unwrap_or_default();
    let active = |c: &&Container| matches!(c.state.as_str(), "running" | "paused" | "restarting");
    let written: i64 = containers.iter().map(|c| c.size_rw).sum();
    let volumes: Vec<VolumeUsage> = usage.volumes.iter().flatten().filter_map(|v| v.usage_data).collect();
    let sizes = |unused: bool| -> i64 {
        volumes.iter().filter(|v| v.size >= 0 && (!unused || v.ref_count == 0)).map(|v| v.size).sum()
    };
    let cache = usage.build_cache.as_deref().unwrap_or_default();
    let cached: i64 = cache.iter().filter(|record| !record.shared).map(|record| record.size).sum();
    let in_use: i64 = cache.iter().filter(|r| r.in_use && !r.shared).map(|record| record.size).sum();
    [
        Kind {
            title: "Images",
            total: images.len(),
            active: images.iter().filter(|image| image.containers > 0).count(),
            size: usage.layers_size,
            reclaimable: usage.layers_size - needed,
            share: true,
        },
        Kind {
            title: "Containers",
            total: containers.len(),
            active: containers.iter().filter(active).count(),
            size: written,
            reclaimable: containers.iter().filter(|c| !active(c)).map(|c| c.size_rw).sum(),
            share: true,
        },
        Kind {
            title: "Local Volumes",
            total: usage.volumes.as_ref().map_or(0, Vec::len),
            active: volumes.iter().filter(|v| v.ref_count > 0).count(),
            size: sizes(false),
            reclaimable: sizes(true),
            share: true,
        },
        Kind {
            title: "Build Cache",
            total: cache.len(),
            active: cache.iter().filter(|record| record.in_use).count(),
            size: cached,
            reclaimable: cached - in_use,
            share: false,
        },
    ]
}

fn summary(kind: &Kind) -> Context {
    let mut reclaimable = units::size(kind.reclaimable, 4);
    if kind.share && kind.size > 0 {
        reclaimable.push_str(&format!(" ({}%)", i128::from(kind.reclaimable) * 100 / i128::from(kind.size)));
    }
    let fields = Value::object([
        ("Type", kind.title.into()),
        ("TotalCount", kind.total.to_string().into()),
        ("Active", kind.active.to_string().into()),
        ("Size", units::size(kind.size, 4).into()),
        ("Reclaimable", reclaimable.into()),
    ]);
    Context { fields, labels: Value::Null }
}

/// Every object in a row of its own, in four tables.
fn verbose(usage: &Usage, now: i64) -> Outcome<String> {
    let table = |columns, titles, rows: Vec<Context>| {
        listing::render(&Layout { columns, titles, quiet: "" }, None, false, &rows)
    };
    let rows = Rows::new(usage, true, now);
    let cache = &kinds(usage)[3];
    Ok(format!(
        "Images space usage:\n\n{}\nContainers space usage:\n\n{}\nLocal Volumes space usage:\n\n{}\nBuild cache usage: {}\n\n{}",
        table(IMAGE_COLUMNS, images::TITLES, rows.images)?,
        table(CONTAINER_COLUMNS, ps::TITLES, rows.containers)?,
        table(VOLUME_COLUMNS, VOLUME_TITLES, rows.volumes)?,
        units::size(cache.size, 4),
        table(CACHE_COLUMNS, CACHE_TITLES, rows.cache)?,
    ))
}

/// The same as one value, for templates.
fn fields(usage: &Usage, now: i64) -> Value {
    let rows = Rows::new(usage, false, now);
    let list = |rows: Vec<Context>| Value::Array(rows.into_iter().map(|row| listing::sorted(&row.fields)).collect());
    Value::object([
        ("Images", list(rows.images)),
        ("Containers", list(rows.containers)),
        ("Volumes", list(rows.volumes)),
        ("BuildCache", list(rows.cache)),
    ])
}

struct Rows {
    images: Vec<Context>,
    containers: Vec<Context>,
    volumes: Vec<Context>,
    cache: Vec<Context>,
}

impl Rows {
    fn new(usage: &Usage, short: bool, now: i64) -> Self {
        Self {
            images: usage.images.iter().flatten().map(|image| images::first_row(image, short, now)).collect(),
            containers: usage.containers.iter().flatten().map(|c| ps::row(c, short, true, now)).collect(),
            volumes: usage.volumes.iter().flatten().map(volume).collect(),
            cache: usage.build_cache.iter().flatten().map(|record| cache(record, short, now)).collect(),
        }
    }
}

fn volume(volume: &Volume) -> Context {
    let (size, links) = match volume.usage_data {
        Some(usage) if usage.size >= 0 => (units::size(usage.size, 4), usage.ref_count.to_string()),
        Some(usage) => ("N/A".to_owned(), usage.ref_count.to_string()),
        None => ("N/A".to_owned(), "N/A".to_owned()),
    };
    let labels = volume.labels.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",");
    let fields = Value::object([
        ("Name", volume.name.as_str().into()),
        ("Driver", volume.driver.as_str().into()),
        ("Scope", volume.scope.as_str().into()),
        ("Mountpoint", volume.mountpoint.as_str().into()),
        ("Labels", labels.into()),
        ("Links", links.into()),
        ("Size", size.into()),
        // What volumes of a swarm have.
        ("Availability", "N/A".into()),
        ("Group", "N/A".into()),
        ("Status", "N/A".into()),
    ]);
    Context { fields, labels: Value::Null }
}

fn cache(record: &CacheRecord, short: bool, now: i64) -> Context {
    let since = |text: &str| match time::seconds_of(text) {
        Some(then) => format!("{} ago", units::duration(now.saturating_sub(then))),
        None => String::new(),
    };
    let id = if short { record.id.get(..12).unwrap_or(&record.id) } else { &record.id };
    let fields = Value::object([
        ("ID", format!("{id}{}", if record.in_use { "*" } else { "" }).into()),
        ("Parent", record.parent.as_str().into()),
        ("CacheType", record.r#type.as_str().into()),
        ("Description", record.description.as_str().into()),
        ("Size", units::size(record.size, 3).into()),
        ("CreatedAt", record.created_at.as_str().into()),
        ("CreatedSince", since(&record.created_at).into()),
        ("LastUsedAt", record.last_used_at.clone().unwrap_or_default().into()),
        ("LastUsedSince", record.last_used_at.as_deref().map(since).unwrap_or_default().into()),
        ("UsageCount", record.usage_count.to_string().into()),
        ("InUse", record.in_use.to_string().into()),
        ("Shared", record.shared.to_string().into()),
    ]);
    Context { fields, labels: Value::Null }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: &str = r#"{"LayersSize":3000000,
        "Images":[{"Id":"sha256:aaaaaaaaaaaaaaaa","RepoTags":["a:1"],"Created":100,"Size":2000000,"SharedSize":500000,"Containers":1},
            {"Id":"sha256:bbbbbbbbbbbbbbbb","RepoTags":null,"Created":100,"Size":1500000,"SharedSize":500000,"Containers":0}],
        "Containers":[{"Id":"cccccccccccccccc","Image":"a:1","Command":"sh","Created":100,"SizeRw":1000,"State":"running","Status":"Up","Names":["/x"]},
            {"Id":"dddddddddddddddd","Image":"a:1","Command":"sh","Created":100,"SizeRw":3000,"State":"exited","Status":"Exited","Names":["/y"]}],
        "Volumes":[{"Name":"v","Driver":"local","UsageData":{"Size":2048,"RefCount":0}},{"Name":"w","UsageData":{"Size":-1,"RefCount":2}}],
        "BuildCache":[{"ID":"e","Type":"regular","Size":10,"InUse":true,"CreatedAt":"1970-01-01T00:00:00Z"},{"ID":"f","Size":20,"Shared":true}]}"#;

    #[test]
    fn sums() {
        let usage: Usage = serde_json::from_str(USAGE).unwrap();
        let rows: Vec<String> = kinds(&usage)
            .iter()
            .map(|kind| {
                let row = summary(kind);
                ["TotalCount", "Active", "Size", "Reclaimable"].map(|f| row.fields.text(&[f]).to_owned()).join(" ")
            })
            .collect();
        assert_eq!(rows, ["2 1 3MB 1.5MB (50%)", "2 1 4kB 3kB (75%)", "2 1 2.048kB 2.048kB (100%)", "2 1 10B 0B"]);
    }

    #[test]
    fn tables() {
        let usage: Usage = serde_json::from_str(USAGE).unwrap();
        let text = verbose(&usage, 160).unwrap();
        for line in [
            "a            1         aaaaaaaaaaaa   About a minute ago   2MB       500kB         1.5MB         1",
            "<none>       <none>    bbbbbbbbbbbb   About a minute ago   1.5MB     500kB         1MB           0",
            "dddddddddddd   a:1       \"sh\"      0               3kB       About a minute ago   Exited    y",
            "w             2         N/A",
            "Build cache usage: 10B",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert_eq!(fields(&usage, 0).at(&["Volumes"]).unwrap().items()[0].text(&["Size"]), "2.048kB");
    }
}
