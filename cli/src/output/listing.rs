//! Lists (ps, images, networks): as a table, as JSON lines, or by the user's template.

use super::template::{Context, Template};
use super::value::Value;
use super::{json, table};
use crate::exit::{Failure, Outcome};

/// How a kind of list looks.
#[derive(Debug)]
pub struct Layout<'a> {
    /// Template of the table's rows.
    pub columns: &'a str,
    /// Title of every field.
    pub titles: &'a [(&'a str, &'a str)],
    /// Template of `--quiet`.
    pub quiet: &'a str,
}

/// Renders a list. `format` is what the user asks for; without one, or with "table", it is the table.
pub fn render(layout: &Layout<'_>, format: Option<&str>, quiet: bool, rows: &[Context]) -> Outcome<String> {
    let format = format.unwrap_or("table").trim();
    if format == "json" || format == "{{json .}}" {
        return Ok(rows.iter().map(|row| json::escape_html(&json::line(&sorted(&row.fields))) + "\n").collect());
    }
    let (template, titled) = match format.strip_prefix("table") {
        Some("") if quiet => (layout.quiet.to_owned(), false),
        Some("") => (layout.columns.to_owned(), true),
        Some(template) if template.starts_with([' ', '\t', '\\']) => (template.trim_start().to_owned(), true),
        _ => (format.to_owned(), false),
    };
    // The shell leaves these two as they are typed.
    let template = Template::parse(&template.replace("\\t", "\t").replace("\\n", "\n")).map_err(Failure::Listing)?;
    let execute = |context: &Context| template.execute(context).map_err(Failure::Listing);
    let mut text = String::new();
    if titled {
        let titles = layout.titles.iter().map(|(field, title)| ((*field).to_owned(), Value::from(*title))).collect();
        text = execute(&Context { fields: Value::Object(titles), labels: "titles".into() })? + "\n";
    }
    for row in rows {
        text.push_str(&execute(row)?);
        text.push('\n');
    }
    Ok(if titled { table::align_tabs(&text) } else { text })
}

/// The same object, its fields in the order of their names.
pub fn sorted(value: &Value) -> Value {
    let mut fields = value.fields().to_vec();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout<'_> = Layout {
        columns: "{{.ID}}\t{{.Names}}",
        titles: &[("ID", "CONTAINER ID"), ("Names", "NAMES")],
        quiet: "{{.ID}}",
    };

    fn of(format: Option<&str>, quiet: bool) -> String {
        let row = |id: &str, name: &str| Context {
            fields: Value::object([("Names", name.into()), ("ID", id.into())]),
            labels: Value::object([("k", "v".into())]),
        };
        render(&LAYOUT, format, quiet, &[row("a", "one"), row("b", "two")]).unwrap()
    }

    #[test]
    fn formats() {
        let table = "CONTAINER ID   NAMES\na              one\nb              two\n";
        assert_eq!(of(None, false), table);
        assert_eq!(of(Some("table"), false), table);
        assert_eq!(of(None, true), "a\nb\n");
        assert_eq!(of(Some("table {{.Names}}\\t{{.ID}}"), false), "NAMES     CONTAINER ID\none       a\ntwo       b\n");
        assert_eq!(of(Some("{{.Names}}={{.Label \"k\"}}"), true), "one=v\ntwo=v\n");
        assert_eq!(of(Some("json"), false), "{\"ID\":\"a\",\"Names\":\"one\"}\n{\"ID\":\"b\",\"Names\":\"two\"}\n");
        assert!(render(&LAYOUT, Some("{{.Nope}}"), false, &[]).is_ok());
    }
}
