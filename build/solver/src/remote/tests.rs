use super::*;
use crate::{
    Build, BuildOptions,
    progress::Board,
    testing::{Bench, Def, Fake},
};
use proptest::prelude::*;
use proto::pb;
use std::sync::Arc;

fn layer(text: &str) -> Layer {
    Layer {
        digest: Digest::of(text.as_bytes()),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        size: 5,
        diff_id: Some(Digest::of(b"diff")),
        created: Some("2026-11-22T00:00:00Z".into()),
        annotations: BTreeMap::from([("x".into(), "y".into())]),
        origin: "here".into(),
    }
}

fn prepare(bench: &Bench) -> pb::Definition {
    bench.worker.set("docker-image://base", &[("a", "1")]);
    bench.worker.set("local://context", &[("src", "1"), ("other", "1")]);
    let mut def = Def::default();
    let (base, context) = (def.source("docker-image://base"), def.source("local://context"));
    let copied = def.copy(&base, &context, "src", "app");
    let made = def.run(&copied, "make");
    let end = def.run(&made, "test");
    def.end(&end)
}

fn build(bench: &Bench, imports: Vec<Arc<Imported>>) -> Build<Fake> {
    let build = bench.solver.build(BuildOptions::default(), Board::new());
    imports.into_iter().for_each(|imported| build.import(imported));
    build
}

/// Everything that was solved, as one layer per result.
async fn export(bench: &Bench, definition: &pb::Definition) -> Vec<u8> {
    let build = build(bench, Vec::new());
    build.solve(definition).await.unwrap();
    let results = build.results().await.unwrap();
    assert_eq!(results.len(), 5);
    let made = results.into_iter().filter(|known| !matches!(known.op.op, Some(pb::op::Op::Source(_))));
    let layers = made.map(|known| {
        let text = format!("{} {}", known.name, known.output);
        ((known.key, known.output), vec![layer("base"), layer(&text)])
    });
    build.export(&layers.collect())
}

#[tokio::test]
async fn another_builder_needs_only_the_end() {
    let bench = Bench::new();
    let definition = prepare(&bench);
    let json = export(&bench, &definition).await;
    let first = build(&bench, Vec::new()).solve(&definition).await.unwrap().result.unwrap();
    let other = Bench::new();
    prepare(&other);
    // Its folder is pinned to something else.
    other.worker.disk.next.store(1000, std::sync::atomic::Ordering::SeqCst);
    other.worker.layers.lock().unwrap().insert(layer("test 0").digest, first.clone());
    let imported = Arc::new(Imported::parse(&json, "here").unwrap());
    assert_eq!(imported.len(), 3);
    let again = build(&other, vec![imported.clone()]);
    assert_eq!(again.solve(&definition).await.unwrap().result.unwrap(), first);
    // The context, to see what is in it; nothing else.
    assert_eq!(other.worker.took(), ["local://context"]);
    assert_eq!((again.counts().fetched, again.counts().performed), (1, 1));
    let cached: Vec<_> = again.board().everything().vertexes.into_iter().filter(|vertex| vertex.cached).collect();
    assert_eq!(cached.len(), 3, "{cached:?}");
    // It is ours now.
    let third = build(&other, Vec::new());
    third.solve(&definition).await.unwrap();
    assert_eq!(other.worker.took(), ["local://context"]);
    assert_eq!(third.counts().fetched, 0);
}

#[tokio::test]
async fn what_cannot_be_fetched_is_done() {
    let bench = Bench::new();
    let definition = prepare(&bench);
    let json = export(&bench, &definition).await;
    let other = Bench::new();
    prepare(&other);
    let again = build(&other, vec![Arc::new(Imported::parse(&json, "here").unwrap())]);
    again.solve(&definition).await.unwrap();
    assert_eq!(other.worker.took(), ["copy src app", "docker-image://base", "local://context", "make", "test"]);
    let vertices = again.board().everything().vertexes;
    assert!(vertices.iter().all(|vertex| vertex.completed.is_some() && !vertex.cached && vertex.error.is_empty()));
}

#[tokio::test]
async fn published_form() {
    let bench = Bench::new();
    let definition = prepare(&bench);
    let json: serde_json::Value = serde_json::from_slice(&export(&bench, &definition).await).unwrap();
    let layers = json["layers"].as_array().unwrap();
    assert_eq!((layers.len(), layers[0]["parent"].as_i64(), layers[1]["parent"].as_i64()), (4, Some(-1), Some(0)));
    assert_eq!(layers[1]["annotations"]["diffID"], Digest::of(b"diff").to_string());
    assert_eq!(layers[1]["annotations"]["additional"]["x"], "y");
    let records = json["records"].as_array().unwrap();
    let test = records.iter().find(|record| record["layers"][0]["layer"] == 3).unwrap();
    let made = test["inputs"][0][0]["link"].as_u64().unwrap() as usize;
    assert_eq!(records[made]["layers"][0]["layer"], 2);
    // By content there is another key, which leads on.
    assert_eq!(records.iter().filter(|record| record["inputs"][0][0]["selector"] == ALIAS).count(), 1);
}

#[test]
fn layers_survive() {
    let key = Digest::of(b"key");
    let mut exporter = Exporter::new();
    let place = exporter.record(key);
    let below = exporter.layer(&layer("below"), -1);
    let top = exporter.layer(&layer("top"), below);
    exporter.config.records[place as usize].results.push(ConfigResult { layer: top });
    let imported = Imported::parse(&exporter.finish(), "here").unwrap();
    let (canonical, results) = imported.lookup(&key, 1).unwrap();
    assert_eq!((canonical, results), (key, vec![vec![layer("below"), layer("top")]]));
    assert!(imported.lookup(&key, 2).is_none(), "not all of it");
}

#[test]
fn what_is_no_config() {
    let digest = Digest::of(b"x");
    let record = |rest: &str| format!("{{\"records\":[{{\"digest\":\"{digest}\",{rest}}}]}}");
    let layers = |parent: i64, rest: &str| {
        format!(
            "{{\"layers\":[{{\"blob\":\"{digest}\",\"parent\":{parent}}}],\"records\":[{{\"digest\":\"{digest}\",{rest}}}]}}"
        )
    };
    for (bad, words) in [
        ("nonsense".to_owned(), "decode cache config"),
        (record("\"layers\":[{\"layer\":0}]"), "cache config names layer 0, there are 0"),
        (record("\"chains\":[{\"layers\":[-7]}]"), "cache config names layer -7, there are 0"),
        (layers(0, "\"layers\":[{\"layer\":0}]"), "cache config has 2 layers of one result, at most 1 are taken"),
        (layers(9, "\"layers\":[{\"layer\":0}]"), "cache config names layer 9, there are 1"),
        (
            record("\"inputs\":[[{\"selector\":\"berth.alias\",\"link\":99}]]"),
            "cache config names record 99, there are 1",
        ),
    ] {
        assert_eq!(Imported::parse(bad.as_bytes(), "").unwrap_err().to_string(), words, "{bad}");
    }
    // BuildKit's own have keys that lead nowhere here, and are no error.
    let buildkit = layers(
        -1,
        "\"layers\":[{\"createdAt\":\"0001-01-01T00:00:00Z\",\"layer\":0}],\"inputs\":[[{\"selector\":\"s\",\"link\":0}]]",
    );
    assert_eq!(Imported::parse(buildkit.as_bytes(), "").unwrap().len(), 1);
    assert!(Imported::parse(b"{}", "").unwrap().is_empty());
}

proptest! {
    #[test]
    fn numbers_are_no_panic(numbers in prop::collection::vec(-3i64..6, 9)) {
        let n = |at: usize| numbers[at];
        let json = serde_json::json!({
            "layers": (0..3).map(|at| serde_json::json!({"blob": Digest::of(b"l"), "parent": n(at)})).collect::<Vec<_>>(),
            "records": (3..6).map(|at| serde_json::json!({
                "digest": Digest::of(&[n(at) as u8]),
                "layers": [{"layer": n(at)}],
                "chains": [{"layers": [n(at + 3), n(8)]}],
            })).collect::<Vec<_>>(),
        });
        let _ = Imported::parse(json.to_string().as_bytes(), "");
    }
}
