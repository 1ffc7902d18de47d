//! `search`

use super::App;
use crate::args::registry::SearchArgs;
use crate::client::Call;
use crate::credentials::HUB;
use crate::exit::Outcome;
use crate::output::listing::{self, Layout};
use crate::output::template::Context;
use crate::output::value::Value;
use crate::output::{self, units};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Found {
    name: String,
    description: String,
    star_count: i64,
    is_official: bool,
    is_automated: bool,
}

const TITLES: &[(&str, &str)] = &[
    ("Name", "NAME"),
    ("Description", "DESCRIPTION"),
    ("StarCount", "STARS"),
    ("IsOfficial", "OFFICIAL"),
    ("IsAutomated", "AUTOMATED"),
];

/// Runs `search`.
pub async fn run(app: &App, args: &SearchArgs) -> Outcome {
    let call = Call::get("/images/search")
        .filters(&args.filter)
        .maybe("limit", (args.limit > 0).then(|| args.limit.to_string()))
        .query("term", &args.term)
        .header("x-registry-auth", app.config.credentials.header(index_of(&args.term)));
    let mut found: Vec<Found> = app.client().await?.send(call).await?.json().await?;
    found.sort_by_key(|image| std::cmp::Reverse(image.star_count));
    let columns = "{{.Name}}\t{{.Description}}\t{{.StarCount}}\t{{.IsOfficial}}";
    let layout = Layout { columns, titles: TITLES, quiet: "{{.Name}}" };
    let rows: Vec<Context> = found.iter().map(|image| row(image, !args.no_trunc)).collect();
    output::print(&listing::render(&layout, args.format.as_deref(), false, &rows)?)
}

/// The registry in a term: "reg:5000/x" has one, "x" and "library/x" are Docker Hub's.
fn index_of(term: &str) -> &str {
    match term.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => HUB,
    }
}

fn row(image: &Found, short: bool) -> Context {
    let description = image.description.replace(['\n', '\r'], " ");
    let mark = |yes| if yes { "[OK]" } else { "" };
    let fields = Value::object([
        ("Name", image.name.as_str().into()),
        ("Description", if short { units::ellipsis(&description, 45) } else { description }.into()),
        ("StarCount", image.star_count.to_string().into()),
        ("IsOfficial", mark(image.is_official).into()),
        ("IsAutomated", mark(image.is_automated).into()),
    ]);
    Context { fields, labels: Value::Null }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_name_their_registry() {
        for (term, index) in [
            ("nginx", HUB),
            ("library/nginx", HUB),
            ("localhost/x", "localhost"),
            ("reg.test/x", "reg.test"),
            ("reg:5000/a/b", "reg:5000"),
        ] {
            assert_eq!(index_of(term), index, "{term}");
        }
    }
}
