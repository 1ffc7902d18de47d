//! `builder du`: what earlier builds have left, by BuildKit's DiskUsage.

use super::failure::words;
use super::solve::Grpc;
use crate::args::{build::BuilderDuArgs, values};
use crate::commands::App;
use crate::exit::{Failure, Outcome};
use crate::output::{self, build::bytes, table, units};
use proto::moby::buildkit::v1::{DiskUsageRequest, UsageRecord};
use std::fmt::Write as _;

/// Runs `builder du`.
pub async fn run(app: &App, args: &BuilderDuArgs) -> Outcome {
    let filter = filter(&args.filter)?;
    let client = app.client().await?;
    let grpc = Grpc::open(&client).await?;
    let request = DiskUsageRequest { filter: filter.into_iter().collect(), ..DiskUsageRequest::default() };
    let answer = grpc.control().disk_usage(request).await;
    let records = answer.map_err(|status| Failure::Refused(format!("ERROR: {}", words(&status))))?.into_inner().record;
    let text = if args.verbose { everything(&records) } else { listing(&records, crate::output::time::now()) };
    output::print(&(text + &totals(&records)))
}

/// All that must be true, in BuildKit's words.
fn filter(pairs: &[(String, String)]) -> Outcome<Option<String>> {
    let one = |(key, value): &(String, String)| match (key.as_str(), values::boolean(value)) {
        ("inuse" | "mutable" | "immutable" | "shared" | "private", Ok(true)) => Ok(key.clone()),
        ("id" | "description", _) => Ok(format!("{key}~={value:?}")),
        ("type" | "parents", _) => Ok(format!("{key}=={value:?}")),
        _ => Err(Failure::Refused(format!("ERROR: invalid filter {key}={value}"))),
    };
    let all = pairs.iter().map(one).collect::<Outcome<Vec<_>>>()?;
    Ok((!all.is_empty()).then(|| all.join(",")))
}

fn listing(records: &[UsageRecord], now: i64) -> String {
    let mut rows = vec![["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"].map(str::to_owned).to_vec()];
    for record in records {
        let used = record.last_used_at.as_ref().map(|time| format!("{} ago", units::duration(now - time.seconds)));
        rows.push(vec![
            format!("{}{}", record.id, if record.mutable { "*" } else { "" }),
            (!record.in_use).to_string(),
            format!("{}{}", bytes(record.size), if record.shared { "*" } else { "" }),
            used.unwrap_or_default(),
        ]);
    }
    table::align(&rows)
}

fn everything(records: &[UsageRecord]) -> String {
    let mut text = String::new();
    for record in records {
        let moment = |time: &Option<prost_types::Timestamp>| {
            time.as_ref().map(|time| output::time::go_time(time.seconds)).unwrap_or_default()
        };
        let fields = [
            ("ID", record.id.clone()),
            ("Parents", record.parents.join(",")),
            ("Created at", moment(&record.created_at)),
            ("Mutable", record.mutable.to_string()),
            ("Reclaimable", (!record.in_use).to_string()),
            ("Shared", record.shared.to_string()),
            ("Size", bytes(record.size)),
            ("Description", record.description.clone()),
            ("Usage count", record.usage_count.to_string()),
            ("Last used", moment(&record.last_used_at)),
            ("Type", record.record_type.clone()),
        ];
        let said = fields.into_iter().filter(|(_, value)| !value.is_empty());
        said.for_each(|(name, value)| _ = writeln!(text, "{:<14}{value}", format!("{name}:")));
        text.push('\n');
    }
    text
}

fn totals(records: &[UsageRecord]) -> String {
    let sum = |fits: &dyn Fn(&UsageRecord) -> bool| {
        bytes(records.iter().filter(|record| fits(record)).fold(0i64, |sum, record| sum.saturating_add(record.size)))
    };
    let mut text = String::new();
    if records.iter().any(|record| record.shared) {
        let _ = writeln!(text, "Shared:\t\t{}\nPrivate:\t{}", sum(&|r| r.shared), sum(&|r| !r.shared));
    }
    let _ = writeln!(text, "Reclaimable:\t{}\nTotal:\t\t{}", sum(&|r| !r.in_use), sum(&|_| true));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_builds() {
        let record = |id: &str, size, shared, in_use| UsageRecord {
            id: id.into(),
            size,
            shared,
            in_use,
            mutable: in_use,
            last_used_at: Some(prost_types::Timestamp { seconds: 100, nanos: 0 }),
            ..UsageRecord::default()
        };
        let records = [record("a", 1_500_000, true, false), record("b", 10, false, true)];
        assert_eq!(
            listing(&records, 400),
            "ID        RECLAIMABLE   SIZE      LAST ACCESSED\na         true          1.50MB*   5 minutes ago\nb*        false         10B       5 minutes ago\n"
        );
        assert_eq!(totals(&records), "Shared:\t\t1.50MB\nPrivate:\t10B\nReclaimable:\t1.50MB\nTotal:\t\t1.50MB\n");
        assert_eq!(totals(&[]), "Reclaimable:\t0B\nTotal:\t\t0B\n");
        assert!(everything(&records).starts_with("ID:           a\n"));
    }

    #[test]
    fn filters() {
        let of = |key: &str, value: &str| filter(&[(key.to_owned(), value.to_owned())]).ok().flatten();
        assert_eq!(of("inuse", "true").as_deref(), Some("inuse"));
        assert_eq!(of("type", "source.local").as_deref(), Some("type==\"source.local\""));
        assert_eq!((of("inuse", "false"), of("x", "y")), (None, None));
        assert!(filter(&[("x".to_owned(), "y".to_owned())]).is_err());
    }
}
