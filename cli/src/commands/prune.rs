//! `prune` of containers, images, networks, volumes, the build cache, and of everything.

use super::{App, require};
use crate::args::build::{BuilderPruneArgs, PruneArgs, SystemPruneArgs};
use crate::args::{image, volume};
use crate::client::{ApiVersion, Call, Client};
use crate::exit::{Failure, Outcome};
use crate::output::{self, units};
use serde::Deserialize;
use std::fmt::Write as _;
use std::io::{self, BufRead};

/// What an engine says it has removed; each prune fills in its own list.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Report {
    images_deleted: Option<Vec<Change>>,
    containers_deleted: Option<Vec<String>>,
    networks_deleted: Option<Vec<String>>,
    volumes_deleted: Option<Vec<String>>,
    caches_deleted: Option<Vec<String>>,
    space_reclaimed: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Change {
    untagged: Option<String>,
    deleted: Option<String>,
}

type Filters = Vec<(String, String)>;

/// Runs `container prune`.
pub async fn containers(app: &App, args: &PruneArgs) -> Outcome {
    if !args.force && !confirm("WARNING! This will remove all stopped containers.")? {
        return Ok(());
    }
    let filters = with_defaults(&args.filter, &app.config.prune_filters());
    let report = ask(&app.client().await?, "/containers/prune", &filters).await?;
    output::print(&(report.text() + &report.total()))
}

/// Runs `image prune`.
pub async fn images(app: &App, args: &image::PruneArgs) -> Outcome {
    let what = match args.all {
        true => "all images without at least one container associated to them",
        false => "all dangling images",
    };
    if !args.force && !confirm(&format!("WARNING! This will remove {what}."))? {
        return Ok(());
    }
    let filters = image_filters(with_defaults(&args.filter, &app.config.prune_filters()), args.all);
    let report = ask(&app.client().await?, "/images/prune", &filters).await?;
    output::print(&(report.text() + &report.total()))
}

/// Runs `network prune`.
pub async fn networks(app: &App, args: &PruneArgs) -> Outcome {
    let warning = "WARNING! This will remove all custom networks not used by at least one container.";
    if !args.force && !confirm(warning)? {
        return Ok(());
    }
    let filters = with_defaults(&args.filter, &app.config.prune_filters());
    let report = ask(&app.client().await?, "/networks/prune", &filters).await?;
    output::print(&report.text())
}

/// Runs `volume prune`.
pub async fn volumes(app: &App, args: &volume::PruneArgs) -> Outcome {
    let client = app.client().await?;
    require(&client, "--all", args.all, 42)?;
    let mut filters = with_defaults(&args.filter, &app.config.prune_filters());
    if args.all {
        if filters.iter().any(|(key, _)| key == "all") {
            let text = "conflicting options: cannot specify both --all and --filter all=1";
            return Err(Failure::Refused(text.to_owned()));
        }
        filters.push(("all".to_owned(), "true".to_owned()));
    }
    let what = match args.all || !knows_anonymous(&client) {
        true => "all",
        false => "anonymous",
    };
    let warning = format!("WARNING! This will remove {what} local volumes not used by at least one container.");
    if !args.force && !confirm(&warning)? {
        return Ok(());
    }
    let report = ask(&client, "/volumes/prune", &filters).await?;
    output::print(&(report.text() + &report.total()))
}

/// Runs `builder prune`.
pub async fn builder(app: &App, args: &BuilderPruneArgs) -> Outcome {
    let what = if args.all { "all" } else { "all dangling" };
    if !args.force
        && !ask_user(&format!("WARNING! This will remove {what} build cache. Are you sure you want to continue?"))?
    {
        return Ok(());
    }
    let filters = with_defaults(&args.filter, &app.config.prune_filters());
    let keep = args.keep_storage.unwrap_or_default().0;
    let report = ask_builder(&app.client().await?, args.all, keep, &filters).await?;
    output::print(&(report.text() + &report.total()))
}

/// Runs `system prune`.
pub async fn system(app: &App, args: &SystemPruneArgs) -> Outcome {
    if args.volumes && args.filter.iter().any(|(key, _)| key == "until") {
        let text = "ERROR: The \"until\" filter is not supported with \"--volumes\"";
        return Err(Failure::Refused(text.to_owned()));
    }
    let client = app.client().await?;
    let filters = with_defaults(&args.filter, &app.config.prune_filters());
    if !args.force && !confirm(&warning(args, knows_anonymous(&client), &filters))? {
        return Ok(());
    }
    let mut space = 0;
    let mut show = |report: Report| {
        space += report.space_reclaimed;
        output::print(&report.text())
    };
    show(ask(&client, "/containers/prune", &filters).await?)?;
    show(ask(&client, "/networks/prune", &filters).await?)?;
    if args.volumes {
        show(ask(&client, "/volumes/prune", &filters).await?)?;
    }
    show(ask(&client, "/images/prune", &image_filters(filters.clone(), args.all)).await?)?;
    if client.version() >= (ApiVersion { major: 1, minor: 31 }) {
        show(ask_builder(&client, args.all, 0, &filters).await?)?;
    }
    output::print(&Report { space_reclaimed: space, ..Report::default() }.total())
}

/// What `system prune` is going to do.
fn warning(args: &SystemPruneArgs, anonymous: bool, filters: &Filters) -> String {
    let mut lines = vec!["all stopped containers", "all networks not used by at least one container"];
    if args.volumes {
        lines.push(match anonymous {
            true => "all anonymous volumes not used by at least one container",
            false => "all volumes not used by at least one container",
        });
    }
    lines.push(match args.all {
        true => "all images without at least one container associated to them",
        false => "all dangling images",
    });
    lines.push(if args.all { "all build cache" } else { "unused build cache" });
    let mut text = "WARNING! This will remove:\n".to_owned();
    lines.iter().for_each(|line| _ = writeln!(text, "  - {line}"));
    if !filters.is_empty() {
        text.push_str("\n  Items to be pruned will be filtered with:\n");
        let mut shown: Vec<String> = filters.iter().map(|(key, value)| format!("{key}={value}")).collect();
        shown.sort();
        shown.iter().for_each(|line| _ = writeln!(text, "  - {line}"));
    }
    text
}

/// Since API 1.42, volumes with a name of their own are left alone.
fn knows_anonymous(client: &Client) -> bool {
    client.version() >= ApiVersion { major: 1, minor: 42 }
}

fn image_filters(mut filters: Filters, all: bool) -> Filters {
    filters.push(("dangling".to_owned(), (!all).to_string()));
    filters
}

async fn ask(client: &Client, path: &str, filters: &Filters) -> Outcome<Report> {
    Ok(client.send(Call::post(path).filters(filters)).await?.json().await?)
}

async fn ask_builder(client: &Client, all: bool, keep: i64, filters: &Filters) -> Outcome<Report> {
    let call = Call::post("/build/prune")
        .switch("all", all)
        .filters(filters)
        .maybe("keep-storage", (keep > 0).then(|| keep.to_string()));
    Ok(client.send(call).await?.json().await?)
}

impl Report {
    /// The lists, each with its title and an empty line after it.
    fn text(&self) -> String {
        let mut text = String::new();
        let changes = self.images_deleted.as_deref().unwrap_or_default();
        for (title, names) in [
            ("Deleted Containers:", &self.containers_deleted),
            ("Deleted Networks:", &self.networks_deleted),
            ("Deleted Volumes:", &self.volumes_deleted),
            ("Deleted build cache objects:", &self.caches_deleted),
        ] {
            let Some(names @ [_, ..]) = names.as_deref() else { continue };
            let _ = writeln!(text, "{title}\n{}\n", names.join("\n"));
        }
        if !changes.is_empty() {
            text.push_str("Deleted Images:\n");
            for change in changes {
                match (&change.untagged, &change.deleted) {
                    (Some(name), _) if !name.is_empty() => _ = writeln!(text, "untagged: {name}"),
                    (_, id) => _ = writeln!(text, "deleted: {}", id.as_deref().unwrap_or_default()),
                }
            }
            text.push('\n');
        }
        text
    }

    fn total(&self) -> String {
        format!("Total reclaimed space: {}\n", units::size(self.space_reclaimed, 4))
    }
}

/// The filters of the command, and those of config.json that don't contradict them.
fn with_defaults(given: &[(String, String)], defaults: &[String]) -> Filters {
    let mut filters = given.to_vec();
    for (key, value) in defaults.iter().filter_map(|text| text.split_once('=')) {
        let opposite = match key {
            "label" => "label!",
            "label!" => "label",
            _ => "",
        };
        if !given.iter().any(|(k, v)| k == opposite && v == value) {
            filters.push((key.to_owned(), value.to_owned()));
        }
    }
    filters
}

fn confirm(warning: &str) -> Outcome<bool> {
    ask_user(&format!("{warning}\nAre you sure you want to continue?"))
}

/// Asks; everything but yes is no.
pub fn ask_user(question: &str) -> Outcome<bool> {
    output::print(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|cause| Failure::io("read standard input", cause))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "YES" | "Yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let of = |json: &str| {
            let report: Report = serde_json::from_str(json).unwrap();
            report.text() + &report.total()
        };
        for (json, want) in [
            (r#"{"ImagesDeleted":null,"SpaceReclaimed":0}"#, "Total reclaimed space: 0B\n"),
            (
                r#"{"ImagesDeleted":[{"Untagged":"a:1"},{"Deleted":"sha256:b"}],"SpaceReclaimed":1982256}"#,
                "Deleted Images:\nuntagged: a:1\ndeleted: sha256:b\n\nTotal reclaimed space: 1.982MB\n",
            ),
            (
                r#"{"ContainersDeleted":["x","y"],"SpaceReclaimed":7}"#,
                "Deleted Containers:\nx\ny\n\nTotal reclaimed space: 7B\n",
            ),
            (r#"{"VolumesDeleted":["v"]}"#, "Deleted Volumes:\nv\n\nTotal reclaimed space: 0B\n"),
            (r#"{"NetworksDeleted":["n"]}"#, "Deleted Networks:\nn\n\nTotal reclaimed space: 0B\n"),
            (r#"{"CachesDeleted":["c"]}"#, "Deleted build cache objects:\nc\n\nTotal reclaimed space: 0B\n"),
        ] {
            assert_eq!(of(json), want, "{json}");
        }
    }

    #[test]
    fn what_system_prune_warns_of() {
        let args = |all, volumes| SystemPruneArgs { all, filter: Vec::new(), force: false, volumes };
        assert_eq!(
            warning(&args(false, false), true, &Vec::new()),
            "WARNING! This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n  - all dangling images\n  - unused build cache\n"
        );
        assert_eq!(
            warning(&args(true, true), true, &vec![("label".into(), "x".into())]),
            "WARNING! This will remove:\n  - all stopped containers\n  - all networks not used by at least one container\n  - all anonymous volumes not used by at least one container\n  - all images without at least one container associated to them\n  - all build cache\n\n  Items to be pruned will be filtered with:\n  - label=x\n"
        );
    }

    #[test]
    fn filters_of_the_user_yield_to_those_of_the_command() {
        let pair = |k: &str, v: &str| (k.to_owned(), v.to_owned());
        let defaults = ["label!=keep".to_owned(), "label=x".to_owned(), "nonsense".to_owned()];
        let merged = with_defaults(&[pair("label", "keep")], &defaults);
        assert_eq!(merged, [pair("label", "keep"), pair("label", "x")]);
    }
}
