//! The page of metrics, read by a parser that accepts nothing but the format (Prometheus, text format 0.0.4).

use std::collections::{BTreeMap, BTreeSet};

use crate::daemon::{Daemon, http};

/// A sample: name, labels, value.
type Sample = (String, BTreeMap<String, String>, f64);

fn is_name(text: &str) -> bool {
    let mut letters = text.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic() || "_:".contains(c))
        && letters.all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
}

fn sample(line: &str) -> Result<Sample, String> {
    let end = line.find(['{', ' ']).ok_or("no value")?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or("label without value")?;
            let mut value = String::new();
            let mut letters = after.char_indices();
            let end = loop {
                match letters.next().ok_or("value without end")? {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match letters.next().map(|(_, c)| c) {
                        Some('n') => '\n',
                        Some(c @ ('\\' | '"')) => c,
                        other => return Err(format!("escape {other:?}")),
                    }),
                    (_, c) => value.push(c),
                }
            };
            if !is_name(label) || label.contains(':') || labels.insert(label.to_owned(), value).is_some() {
                return Err(format!("label {label:?}"));
            }
            rest = &after[end + 1..];
            match rest.as_bytes().first() {
                Some(b',') => rest = &rest[1..],
                Some(b'}') => break rest = &rest[1..],
                _ => return Err("labels without end".into()),
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no blank before the value")?;
    let value = value.parse::<f64>().map_err(|_| format!("value {value:?}"))?;
    if is_name(name) { Ok((name.to_owned(), labels, value)) } else { Err(format!("name {name:?}")) }
}

/// Every sample of a page that keeps all the rules.
fn parse(page: &str) -> Result<Vec<Sample>, String> {
    let (mut all, mut seen, mut families) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    let (mut family, mut kind, mut help) = (String::new(), String::new(), None);
    if !page.ends_with('\n') {
        return Err("no line end at the end".into());
    }
    for line in page.lines() {
        let wrong = |why: &str| format!("{why}: {line}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').ok_or(wrong("help without text"))?;
            if text.is_empty() || !families.insert(name.to_owned()) {
                return Err(wrong("family twice, or without help"));
            }
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, word) = rest.split_once(' ').ok_or(wrong("type without kind"))?;
            if help.take().as_deref() != Some(name) || !["counter", "gauge", "histogram"].contains(&word) {
                return Err(wrong("type without help, or of no kind"));
            }
            (family, kind) = (name.to_owned(), word.to_owned());
        } else {
            let (name, labels, value) = sample(line).map_err(|why| wrong(&why))?;
            let suffix = name.strip_prefix(&family).ok_or(wrong("sample outside of its family"))?;
            let fits = match kind.as_str() {
                "histogram" => {
                    ["_bucket", "_sum", "_count"].contains(&suffix)
                        && (suffix == "_bucket") == labels.contains_key("le")
                }
                "counter" => suffix.is_empty() && (family.ends_with("_total")) && value >= 0.0,
                _ => suffix.is_empty(),
            };
            if !fits || !seen.insert((name.clone(), labels.clone())) {
                return Err(wrong("sample twice, or of another kind than its family"));
            }
            all.push((name, labels, value));
        }
    }
    check_histograms(&all)?;
    Ok(all)
}

fn check_histograms(all: &[Sample]) -> Result<(), String> {
    let counts = all.iter().filter(|(name, ..)| name.ends_with("_seconds_count"));
    for (name, labels, count) in counts {
        let bucket = name.replace("_count", "_bucket");
        let of_this = all
            .iter()
            .filter(|(name, others, _)| *name == bucket && others.iter().filter(|(key, _)| *key != "le").eq(labels));
        let buckets: Vec<(f64, f64)> =
            of_this.map(|(_, labels, value)| (labels["le"].parse().unwrap(), *value)).collect();
        let grows = buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        if !grows || buckets.last() != Some(&(f64::INFINITY, *count)) {
            return Err(format!("histogram {name} {labels:?}: {buckets:?}"));
        }
    }
    Ok(())
}

#[test]
fn the_parser_is_strict() {
    let head = "# HELP a_total x\n# TYPE a_total counter\n";
    for bad in [
        "a_total 1",
        "a_total{} 1\n",
        "a_total{x=1} 1\n",
        "a_total{x=\"\\t\"} 1\n",
        "a_total  1\n",
        "b 1\n",
        "a_total -1\n",
        "a_total 1\na_total 1\n",
    ] {
        assert!(parse(&format!("{head}{bad}")).is_err(), "{bad:?}");
    }
    assert_eq!(parse(&format!("{head}a_total{{x=\"a\\\"\"}} 1\n")).unwrap().len(), 1);
}

#[test]
fn every_number_is_there_in_the_format_of_prometheus() {
    let daemon = Daemon::prepare();
    let at = daemon.path("m");
    let address = format!("unix://{}", at.display());
    let mut daemon = daemon;
    daemon.run(&mut daemon.command(&["--metrics", &address]));
    daemon.wait_until_up();
    assert!(daemon.ctr(&["-n", "ours", "namespaces", "ls"]).0);
    assert!(!daemon.ctr(&["-n", "ours", "containers", "info", "none"]).0);
    let scrape = || {
        let answer = http(&at, "GET /metrics HTTP/1.1");
        let (head, page) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
        parse(page).unwrap_or_else(|why| panic!("{why}\n{page}"))
    };
    let page = scrape();
    let value = |name: &str, labels: &[(&str, &str)]| {
        let fits =
            |others: &BTreeMap<String, String>| labels.iter().all(|(k, v)| others.get(*k).is_some_and(|o| o == v));
        page.iter().find(|(n, others, _)| n == name && fits(others)).map(|(_, _, value)| *value)
    };
    let namespaces = ("grpc_service", "containerd.services.namespaces.v1.Namespaces");
    let containers = ("grpc_service", "containerd.services.containers.v1.Containers");
    assert_eq!(
        value("grpc_server_handled_total", &[namespaces, ("grpc_method", "List"), ("grpc_code", "OK")]),
        Some(1.0)
    );
    assert_eq!(
        value("grpc_server_handled_total", &[containers, ("grpc_method", "Get"), ("grpc_code", "NotFound")]),
        Some(1.0)
    );
    assert_eq!(value("grpc_server_handling_seconds_count", &[namespaces, ("grpc_method", "List")]), Some(1.0));
    // The collection at the start comes a moment after it.
    let collected = |page: &[Sample]| {
        page.iter().any(|(name, labels, value)| {
            name == "berth_gc_runs_total" && labels.get("result").is_some_and(|r| r == "ok") && *value >= 1.0
        })
    };
    let begun = std::time::Instant::now();
    while !collected(&scrape()) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "no collection at the start");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for name in [
        "berth_build_info",
        "berth_shim_connections",
        "berth_pulls_total",
        "berth_gc_seconds_total",
        "berth_event_queue_length",
        "berth_events_total",
        "berth_fetched_bytes_total",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
    ] {
        assert!(value(name, &[]).is_some(), "{name} is missing");
    }
    let rss = value("process_resident_memory_bytes", &[]).unwrap();
    assert!((1e6..1e9).contains(&rss), "{rss}");
    assert!(http(&at, "GET / HTTP/1.1").starts_with("HTTP/1.1 404"));
    assert!(http(&at, "POST /metrics HTTP/1.1").starts_with("HTTP/1.1 405"));
    // A scraper that says nothing keeps nobody out for ever.
    let _silent = std::os::unix::net::UnixStream::connect(&at).unwrap();
    scrape();
}
