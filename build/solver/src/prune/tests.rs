use super::*;
use crate::{
    BuildOptions,
    progress::Board,
    testing::{Bench, Def},
};

fn item(name: &str, used: u64, size: u64, parents: &[&str]) -> Item {
    let key = |name: &str| Digest::of(name.as_bytes());
    Item {
        id: name.into(),
        key: Some(key(name)),
        record: Record {
            outputs: vec![Some(crate::Kept { name: name.into(), size })],
            created: 1,
            last_used: used,
            uses: 1,
            description: format!("step {name}"),
            kind: "regular".into(),
            parents: parents.iter().map(|name| key(name)).collect(),
            aliases: Vec::new(),
        },
        in_use: false,
        shared: false,
    }
}

fn chosen(items: &[Item], options: &PruneOptions) -> Vec<String> {
    choose(items, options, 1_000_000).into_iter().map(|at| items[at].id.clone()).collect()
}

fn filters(texts: &[&str]) -> Vec<Filter> {
    let texts: Vec<_> = texts.iter().map(|text| (*text).to_owned()).collect();
    filter::parse_all(&texts).unwrap().0
}

/// base <- a <- b, base <- c; alone
fn some() -> Vec<Item> {
    vec![
        item("base", 10, 100, &[]),
        item("a", 20, 10, &["base"]),
        item("b", 30, 10, &["a"]),
        item("c", 5, 10, &["base"]),
        item("alone", 40, 1000, &[]),
    ]
}

#[test]
fn children_first_then_the_oldest() {
    assert_eq!(chosen(&some(), &PruneOptions::default()), ["c", "b", "a", "base", "alone"]);
}

#[test]
fn what_is_used_holds_what_it_is_built_on() {
    let mut items = some();
    items[2].in_use = true;
    assert_eq!(chosen(&items, &PruneOptions::default()), ["c", "alone"]);
}

#[test]
fn internal_and_shared_only_with_all() {
    let mut items = vec![item("a", 1, 1, &[]), item("b", 2, 1, &[]), item("c", 3, 1, &[]), item("d", 4, 1, &[])];
    items[0].record.kind = "internal".into();
    items[1].record.kind = "frontend".into();
    items[2].shared = true;
    assert_eq!(chosen(&items, &PruneOptions::default()), ["d"]);
    let all = PruneOptions { all: true, ..PruneOptions::default() };
    assert_eq!(chosen(&items, &all), ["a", "b", "c", "d"]);
}

#[test]
fn limits() {
    let with = |change: fn(&mut PruneOptions)| {
        let mut options = PruneOptions::default();
        change(&mut options);
        chosen(&some(), &options)
    };
    // 1130 bytes in all.
    assert_eq!(with(|options| options.max_used_space = 2000), [""; 0]);
    assert_eq!(with(|options| options.max_used_space = 1120), ["c"]);
    assert_eq!(with(|options| options.max_used_space = 1000), ["c", "b", "a", "base"]);
    assert_eq!(with(|options| (options.max_used_space, options.reserved_space) = (1, 1110)), ["c", "b"]);
    assert_eq!(with(|options| options.reserved_space = 1125), ["c"]);
    assert_eq!(with(|options| (options.min_free_space, options.free) = (100, 200)), [""; 0]);
    assert_eq!(with(|options| (options.min_free_space, options.free) = (100, 85)), ["c", "b"]);
    assert_eq!(with(|options| options.keep_for = Duration::from_secs(2000)), [""; 0]);
    assert_eq!(with(|options| options.keep_for = Duration::from_millis(1_000_000 - 25)), ["c"]);
}

#[test]
fn filters_choose() {
    let mut items = some();
    items[4].record.kind = "source.local".into();
    let with = |texts: &[&str]| chosen(&items, &PruneOptions { filters: filters(texts), ..PruneOptions::default() });
    assert_eq!(with(&["type==source.local"]), ["alone"]);
    assert_eq!(with(&["type=regular,id~=^[bc]$"]), ["c", "b"]);
    assert_eq!(with(&["id==c", "id==alone"]), ["c", "alone"]);
    assert_eq!(with(&["id==a"]), [""; 0], "b is built on it");
    assert_eq!(with(&["description!=step c", "inuse"]), ["b", "a", "alone"], "c holds base");
    assert_eq!(with(&["description==\"step c\""]), ["c"]);
    assert_eq!(with(&["mutable"]), [""; 0]);
    assert_eq!(with(&["mutable=false,private,shared!=true"]), ["c", "b", "a", "base", "alone"]);
    assert_eq!(with(&[&format!("parents=={}", Digest::of(b"base").hex())]), ["c"]);
}

#[test]
fn filters_refused() {
    for bad in ["color==red", "inuse==maybe", "id~=[", "id~", "until=soon", "until=", "until=-1h"] {
        assert!(filter::parse_all(&[bad.to_owned()]).is_err(), "{bad}");
    }
    assert!(filter::parse_all(&["x".repeat(5000)]).is_err());
}

#[test]
fn requests() {
    let request =
        PruneRequest { filter: vec!["until=1h30m,type==regular".into()], all: true, ..PruneRequest::default() };
    let options = PruneOptions::of_request(&request, 5).unwrap();
    assert_eq!((options.keep_for, options.filters.len(), options.all), (Duration::from_secs(5400), 1, true));
    let request = PruneRequest { keep_duration: 1_500_000_000, max_used_space: -1, ..PruneRequest::default() };
    let options = PruneOptions::of_request(&request, 5).unwrap();
    assert_eq!((options.keep_for, options.max_used_space), (Duration::from_millis(1500), 0));
}

#[tokio::test]
async fn pruned_for_real() {
    let bench = Bench::new();
    bench.worker.set("docker-image://base", &[("a", "1")]);
    let mut def = Def::default();
    let base = def.source("docker-image://base");
    let (one, two) = (def.run(&base, "one"), def.run(&base, "two"));
    bench.solver.build(BuildOptions::default(), Board::new()).solve(&def.end(&two)).await.unwrap();
    let running = bench.solver.build(BuildOptions::default(), Board::new());
    running.solve(&def.end(&one)).await.unwrap();
    bench.worker.mounts.lock().unwrap().push(CacheMount {
        name: "mount".into(),
        size: 5,
        description: "cache of /root/.cargo".into(),
        created: 1,
        last_used: 2,
        uses: 3,
        in_use: false,
    });
    let usage = bench.solver.usage(&[]).await.unwrap();
    assert_eq!((usage.len(), usage.iter().filter(|usage| usage.in_use).count()), (4, 2));
    assert_eq!(bench.solver.usage(&["type==exec.cachemount".into()]).await.unwrap().len(), 1);
    let gone = bench.solver.prune(&PruneOptions::default()).await.unwrap();
    let mut names: Vec<_> = gone.iter().map(|usage| usage.description.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["cache of /root/.cargo", "two"]);
    assert!(bench.worker.mounts.lock().unwrap().is_empty());
    assert_eq!(bench.solver.names().unwrap(), bench.worker.kept());
    drop(running);
    assert_eq!(bench.solver.collect(150, u64::MAX).await.unwrap().len(), 1);
    assert_eq!(bench.solver.prune(&PruneOptions::default()).await.unwrap().len(), 1);
    assert!(bench.worker.kept().is_empty());
    bench.worker.took();
    bench.solver.build(BuildOptions::default(), Board::new()).solve(&def.end(&one)).await.unwrap();
    assert_eq!(bench.worker.took(), ["docker-image://base", "one"]);
}

#[tokio::test]
async fn pruned_while_others_build() {
    let bench = Bench::new();
    bench.worker.set("docker-image://base", &[("a", "1")]);
    let mut def = Def::default();
    let mut last = def.source("docker-image://base");
    for at in 0..5 {
        last = def.run(&last, &at.to_string());
    }
    let definition = def.end(&last);
    for _ in 0..20 {
        let builds = (0..3).map(|_| {
            let build = bench.solver.build(BuildOptions::default(), Board::new());
            let definition = definition.clone();
            tokio::spawn(async move { build.solve(&definition).await.map(|solved| solved.result) })
        });
        let builds: Vec<_> = builds.collect();
        bench.solver.prune(&PruneOptions::default()).await.unwrap();
        for build in builds {
            assert!(build.await.unwrap().unwrap().is_some());
        }
    }
    bench.solver.prune(&PruneOptions::default()).await.unwrap();
    assert_eq!(bench.solver.names().unwrap(), bench.worker.kept());
}
