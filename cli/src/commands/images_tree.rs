//! `images --tree`: every image with its names, and below it what it holds for each platform.

use crate::args::image::ImagesArgs;
use crate::client::{Call, Client};
use crate::exit::{Failure, Outcome};
use crate::output::{self, order, units, value::Value};
use crate::terminal;
use std::fmt::Write as _;

const TITLES: [&str; 5] = ["IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "EXTRA"];
const GAP: usize = 3;

/// One line: name, id, sizes, marks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    cells: [String; 5],
    /// Nothing above it belongs to the same image.
    first: bool,
}

/// Prints the tree.
pub async fn print(client: &Client, args: &ImagesArgs, filters: &[(String, String)]) -> Outcome {
    for (flag, given) in [
        ("--quiet", args.quiet),
        ("--no-trunc", args.no_trunc),
        ("--show-digest", args.digests),
        ("--format", args.format.is_some()),
    ] {
        if given {
            return Err(Failure::Refused(format!("{flag} is not yet supported with --tree")));
        }
    }
    let call = Call::get("/images/json").switch("all", args.all).filters(filters).query("manifests", "1");
    let images = client.send(call).await?.value().await?;
    output::note("WARNING: This is an experimental feature. The output may change and shouldn't be depended on.");
    let mut images: Vec<&Value> = images.items().iter().collect();
    images.sort_by_key(|image| std::cmp::Reverse(image.get("Created").and_then(Value::as_i64).unwrap_or(0)));
    let lines: Vec<Line> = images.into_iter().flat_map(lines).collect();
    let bold = terminal::stdout_is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    output::print(&text(&lines, bold))
}

fn lines(image: &Value) -> Vec<Line> {
    let number = |value: &Value, path: &[&str]| value.at(path).and_then(Value::as_i64).unwrap_or(0);
    let size = |bytes: i64| units::size(bytes, 3);
    let platforms: Vec<&Value> = image
        .get("Manifests")
        .map(Value::items)
        .unwrap_or_default()
        .iter()
        .filter(|manifest| manifest.text(&["Kind"]) == "image")
        .collect();
    let content: i64 = platforms.iter().map(|manifest| number(manifest, &["Size", "Content"])).sum();
    let in_use = |value: &Value, path: &[&str]| value.at(path).is_some_and(|list| !list.items().is_empty());
    let used = number(image, &["Containers"]) > 0
        || platforms.iter().any(|manifest| in_use(manifest, &["ImageData", "Containers"]));
    let mut names: Vec<&str> =
        image.get("RepoTags").map(Value::items).unwrap_or_default().iter().filter_map(Value::as_str).collect();
    names.sort_by(|a, b| order::natural(a, b));
    if names.is_empty() {
        names.push("<untagged>");
    }
    let mut out: Vec<Line> = names
        .iter()
        .enumerate()
        .map(|(at, name)| Line {
            cells: [(*name).to_owned(), String::new(), String::new(), String::new(), String::new()],
            first: at == 0,
        })
        .collect();
    if let Some(last) = out.last_mut() {
        last.cells[1] = units::short_id(image.text(&["Id"])).to_owned();
        last.cells[2] = size(number(image, &["Size"]));
        last.cells[3] = size(content);
        last.cells[4] = if used { "U".to_owned() } else { String::new() };
    }
    for (at, manifest) in platforms.iter().enumerate() {
        let platform = |field: &str| manifest.text(&["ImageData", "Platform", field]);
        let mut name = format!("{}/{}", platform("os"), platform("architecture"));
        if !platform("variant").is_empty() {
            let _ = write!(name, "/{}", platform("variant"));
        }
        let branch = if at + 1 == platforms.len() { "└─" } else { "├─" };
        let used = in_use(manifest, &["ImageData", "Containers"]);
        out.push(Line {
            cells: [
                format!("{branch} {name}"),
                units::short_id(manifest.text(&["ID"])).to_owned(),
                size(number(manifest, &["Size", "Total"])),
                size(number(manifest, &["Size", "Content"])),
                if used { "U".to_owned() } else { String::new() },
            ],
            first: false,
        });
    }
    out
}

/// Aligned; sizes to the right.
fn text(lines: &[Line], bold: bool) -> String {
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line.cells[column].chars().count());
        cells.chain([TITLES[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..TITLES.len()).map(width).collect();
    let mut out = format!("{:>1$}\n\n", "Info ->  U In Use", widths.iter().sum::<usize>() + GAP * (TITLES.len() - 1));
    for (at, title) in TITLES.iter().enumerate() {
        let gap = if at + 1 < TITLES.len() { widths[at] - title.len() + GAP } else { 0 };
        let shown = if bold { format!("\x1b[1m{title}\x1b[0m") } else { (*title).to_owned() };
        let _ = write!(out, "{shown}{:gap$}", "");
    }
    out.push('\n');
    for (at, line) in lines.iter().enumerate() {
        if line.first && at > 0 {
            out.push('\n');
        }
        let [name, id, disk, content, extra] = &line.cells;
        let row = format!(
            "{name:<0$}   {id:<1$}   {disk:>2$}   {content:>3$}   {extra:^4$}",
            widths[0], widths[1], widths[2], widths[3], widths[4]
        );
        out.push_str(row.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_platforms() {
        let images: Value = serde_json::from_str(
            r#"[{"Id":"sha256:0123456789abcdef","Size":3000,"RepoTags":["b:1","a:1"],"Containers":1,"Manifests":[
                {"Kind":"image","ID":"sha256:aaaaaaaaaaaaaaaa","Size":{"Total":2000,"Content":500},
                 "ImageData":{"Platform":{"os":"linux","architecture":"amd64"},"Containers":["x"]}},
                {"Kind":"image","ID":"sha256:bbbbbbbbbbbbbbbb","Size":{"Total":1000,"Content":400},
                 "ImageData":{"Platform":{"os":"linux","architecture":"arm","variant":"v7"}}},
                {"Kind":"attestation","ID":"sha256:cc"}]},
                {"Id":"sha256:dddddddddddddddd","Size":1,"RepoTags":null}]"#,
        )
        .unwrap();
        let lines: Vec<Line> = images.items().iter().flat_map(lines).collect();
        assert_eq!(
            text(&lines, false),
            "                                                 Info ->  U In Use\n\n\
             IMAGE             ID             DISK USAGE   CONTENT SIZE   EXTRA\n\
             a:1\n\
             b:1               0123456789ab          3kB           900B     U\n\
             ├─ linux/amd64    aaaaaaaaaaaa          2kB           500B     U\n\
             └─ linux/arm/v7   bbbbbbbbbbbb          1kB           400B\n\n\
             <untagged>        dddddddddddd           1B             0B\n"
        );
    }
}
