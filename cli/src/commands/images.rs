//! `images`

use super::App;
use crate::args::image::ImagesArgs;
use crate::client::Call;
use crate::exit::Outcome;
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, time, units};
use proto::image_ref::ImageRef;
use serde::Deserialize;

/// An image, as lists have it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Summary {
    #[serde(rename = "Id")]
    id: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "RepoDigests")]
    digests: Option<Vec<String>>,
    #[serde(rename = "Created")]
    created: i64,
    /// Bytes of all its layers.
    #[serde(rename = "Size")]
    pub size: i64,
    /// Bytes of layers that others have, too; -1: unknown.
    #[serde(rename = "SharedSize")]
    pub shared: i64,
    /// Containers that use it; -1: unknown.
    #[serde(rename = "Containers")]
    pub containers: i64,
}

/// Titles of its fields.
pub const TITLES: &[(&str, &str)] = &[
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("VirtualSize", "SIZE"),
    ("Containers", "CONTAINERS"),
];

const NONE: &str = "<none>";

/// Runs `images`.
pub async fn run(app: &App, args: &ImagesArgs) -> Outcome {
    let mut filters = args.filter.clone();
    filters.extend(args.reference.iter().map(|reference| ("reference".to_owned(), reference.clone())));
    let call = Call::get("/images/json").switch("all", args.all).filters(&filters);
    let client = app.client().await?;
    if args.tree {
        return super::images_tree::print(&client, args, &filters).await;
    }
    let images: Vec<Summary> = client.send(call).await?.json().await?;
    let format = args.format.as_deref().or(if args.quiet { None } else { app.config.images_format() });
    let digests = args.digests || format.is_some_and(|f| f.contains(".Digest"));
    let columns = match args.digests {
        true => "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
        false => "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}",
    };
    let layout = Layout { columns, titles: TITLES, quiet: "{{.ID}}" };
    let now = time::now();
    let rows: Vec<Context> = images.iter().flat_map(|image| rows(image, digests, !args.no_trunc, now)).collect();
    output::print(&listing::render(&layout, format, args.quiet, &rows)?)
}

/// One row per tag, and per digest where digests are shown.
fn rows(image: &Summary, digests: bool, short: bool, now: i64) -> Vec<Context> {
    let tags: Vec<(String, String)> = image.tags.iter().flatten().filter_map(|text| tag_of(text)).collect();
    let known: Vec<(String, String)> = image.digests.iter().flatten().filter_map(|text| digest_of(text)).collect();
    let mut rows = Vec::new();
    for (repository, tag) in &tags {
        let own: Vec<&String> = known.iter().filter(|(r, _)| r == repository).map(|(_, d)| d).collect();
        match (digests, &own[..]) {
            (true, [_, ..]) => rows.extend(own.iter().map(|digest| (repository.clone(), tag.clone(), digest.as_str()))),
            _ => rows.push((repository.clone(), tag.clone(), NONE)),
        }
    }
    let untagged = |(repository, _): &&(String, String)| !tags.iter().any(|(r, _)| r == repository);
    let mut rest: Vec<_> = known.iter().filter(untagged).collect();
    if !digests {
        // Without digests one line per repository says all there is.
        rest.dedup_by(|a, b| a.0 == b.0);
    }
    for (repository, digest) in rest {
        rows.push((repository.clone(), NONE.to_owned(), if digests { digest } else { NONE }));
    }
    if rows.is_empty() {
        rows.push((NONE.to_owned(), NONE.to_owned(), NONE));
    }
    rows.into_iter().map(|(repository, tag, digest)| row(image, repository, tag, digest, short, now)).collect()
}

/// The one row that `system df` has for an image: its first name.
pub fn first_row(image: &Summary, short: bool, now: i64) -> Context {
    let none = || (NONE.to_owned(), NONE.to_owned());
    let (repository, tag) = image.tags.iter().flatten().find_map(|text| tag_of(text)).unwrap_or_else(none);
    row(image, repository, tag, "", short, now)
}

fn row(image: &Summary, repository: String, tag: String, digest: &str, short: bool, now: i64) -> Context {
    let size_or = |n: i64| if n < 0 { "N/A".to_owned() } else { units::size(n, 4) };
    let unique = if image.shared < 0 { -1 } else { image.size - image.shared };
    let count = if image.containers < 0 { "N/A".to_owned() } else { image.containers.to_string() };
    let id = if short { units::short_id(&image.id) } else { &image.id };
    let fields = Value::object([
        ("ID", id.into()),
        ("Repository", repository.into()),
        ("Tag", tag.into()),
        ("Digest", digest.into()),
        ("CreatedSince", format!("{} ago", units::duration(now.saturating_sub(image.created))).into()),
        ("CreatedAt", time::go_time(image.created).into()),
        ("Size", units::size(image.size, 3).into()),
        ("SharedSize", size_or(image.shared).into()),
        ("UniqueSize", size_or(unique).into()),
        ("VirtualSize", units::size(image.size, 4).into()),
        ("Containers", count.into()),
    ]);
    Context { fields, labels: Value::Null }
}

fn tag_of(text: &str) -> Option<(String, String)> {
    let reference: ImageRef = text.parse().ok()?;
    Some((reference.familiar_repository(), reference.tag()?.to_owned()))
}

fn digest_of(text: &str) -> Option<(String, String)> {
    let reference: ImageRef = text.parse().ok()?;
    Some((reference.familiar_repository(), reference.digest()?.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn shown(tags: &[&str], digests: &[&str], with: bool) -> Vec<String> {
        let image = Summary {
            tags: Some(tags.iter().map(ToString::to_string).collect()),
            digests: Some(digests.iter().map(|r| format!("{r}@{D}")).collect()),
            ..Summary::default()
        };
        let text = |row: &Context| {
            let of = |field| row.fields.text(&[field]).to_owned();
            format!(
                "{} {} {}",
                of("Repository"),
                of("Tag"),
                if of("Digest") == D { "D".to_owned() } else { of("Digest") }
            )
        };
        rows(&image, with, true, 0).iter().map(text).collect()
    }

    #[test]
    fn one_row_per_name() {
        assert_eq!(shown(&["a:1", "a:2", "reg:5/b:x"], &[], false), ["a 1 <none>", "a 2 <none>", "reg:5/b x <none>"]);
        assert_eq!(shown(&["a:1"], &["a"], true), ["a 1 D"]);
        assert_eq!(shown(&["a:1"], &["a", "b"], false), ["a 1 <none>", "b <none> <none>"]);
        assert_eq!(shown(&["<none>:<none>"], &["<none>"], false), ["<none> <none> <none>"]);
        assert_eq!(shown(&[], &["a"], true), ["a <none> D"]);
    }
}
