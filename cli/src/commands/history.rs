//! `history`

use super::{App, load::platform_json, require};
use crate::args::image::HistoryArgs;
use crate::client::{Call, call::escape};
use crate::exit::Outcome;
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, time, units};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Step {
    id: String,
    created: i64,
    created_by: String,
    size: i64,
    comment: String,
}

const TITLES: &[(&str, &str)] = &[
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

/// Runs `history`.
pub async fn run(app: &App, args: &HistoryArgs) -> Outcome {
    let client = app.client().await?;
    require(&client, "--platform", args.platform.is_some(), 48)?;
    let call = Call::get(format!("/images/{}/history", escape(&args.image, true)))
        .maybe("platform", args.platform.as_deref().map(|text| platform_json(text).to_string()));
    let steps: Option<Vec<Step>> = client.send(call).await?.json().await?;
    let columns = match args.human {
        true => "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
        false => "{{.ID}}\t{{.CreatedAt}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
    };
    let layout = Layout { columns, titles: TITLES, quiet: "{{.ID}}" };
    let now = time::now();
    let rows: Vec<Context> = steps.iter().flatten().map(|step| row(step, args.human, !args.no_trunc, now)).collect();
    output::print(&listing::render(&layout, args.format.as_deref(), args.quiet, &rows)?)
}

fn row(step: &Step, human: bool, short: bool, now: i64) -> Context {
    let at = if step.created > 0 { time::rfc3339(step.created) } else { String::new() };
    let since = match step.created {
        ..=0 => "N/A".to_owned(),
        _ if !human => at.clone(),
        created => format!("{} ago", units::duration(now.saturating_sub(created))),
    };
    let by = step.created_by.replace('\t', " ");
    let fields = Value::object([
        ("ID", if short { units::short_id(&step.id).into() } else { step.id.as_str().into() }),
        ("CreatedSince", since.into()),
        ("CreatedAt", at.into()),
        ("CreatedBy", if short { units::ellipsis(&by, 45).into() } else { by.into() }),
        ("Size", if human { units::size(step.size, 3) } else { step.size.to_string() }.into()),
        ("Comment", step.comment.as_str().into()),
    ]);
    Context { fields, labels: Value::Null }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step() {
        let step = Step {
            id: "sha256:0123456789abcdef".into(),
            created: 1_700_000_000,
            created_by: format!("RUN\t{}", "x".repeat(60)),
            size: 1_982_256,
            ..Step::default()
        };
        let text = |row: Context, field| row.fields.text(&[field]).to_owned();
        let (short, long) = (|| row(&step, true, true, 1_700_000_060), || row(&step, false, false, 1_700_000_060));
        assert_eq!(text(short(), "ID"), "0123456789ab");
        assert_eq!(text(short(), "CreatedBy"), format!("RUN {}…", "x".repeat(40)));
        assert_eq!(text(short(), "CreatedSince"), "About a minute ago");
        assert_eq!((text(short(), "Size"), text(long(), "Size")), ("1.98MB".to_owned(), "1982256".to_owned()));
        assert_eq!(text(long(), "ID"), "sha256:0123456789abcdef");
        assert_eq!(text(row(&Step::default(), true, true, 0), "CreatedSince"), "N/A");
    }
}
