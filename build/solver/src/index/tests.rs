use super::*;
use std::fs;

fn key(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn record(name: &str, aliases: &[Digest]) -> Record {
    Record {
        outputs: vec![Some(Kept { name: name.into(), size: 7 }), None],
        created: 1,
        last_used: 1,
        uses: 0,
        description: name.into(),
        kind: "regular".into(),
        parents: Vec::new(),
        aliases: aliases.to_vec(),
    }
}

fn index() -> (tempfile::TempDir, Index) {
    let folder = tempfile::tempdir().unwrap();
    let index = Index::open(&folder.path().join("index.redb")).unwrap();
    (folder, index)
}

#[tokio::test]
async fn records_survive_and_are_found_by_every_key() {
    let (folder, index) = index();
    assert_eq!(index.put(key("a"), record("one", &[key("b")])).await.unwrap(), None);
    index.alias(key("a"), key("c"));
    index.note_content(&key("a"), 0, &key("selection"), key("content"));
    index.touch(vec![key("a")]);
    drop(index);
    let index = Index::open(&folder.path().join("index.redb")).unwrap();
    for by in ["a", "b", "c"] {
        let (canonical, record) = index.lookup(&key(by)).unwrap().unwrap();
        assert_eq!((canonical, record.names(), record.size(), record.uses), (key("a"), vec!["one".into()], 7, 1));
        assert!(record.last_used > 1);
    }
    assert_eq!(index.view().unwrap().content(&key("a"), 0, &key("selection")).unwrap(), Some(key("content")));
    assert_eq!(index.view().unwrap().content(&key("a"), 1, &key("selection")).unwrap(), None);
    // With another result, nothing that was known of the old one holds.
    let before = index.put(key("a"), record("two", &[])).await.unwrap().unwrap();
    assert_eq!(before.names(), ["one"]);
    assert_eq!(index.view().unwrap().content(&key("a"), 0, &key("selection")).unwrap(), None);
    assert!(index.lookup(&key("b")).unwrap().is_none());
}

#[tokio::test]
async fn removes_only_what_was_meant() {
    let (_folder, index) = index();
    index.put(key("a"), record("two", &[key("b")])).await.unwrap();
    assert_eq!(index.remove(key("a"), Some(vec!["one".into()])).await.unwrap(), None);
    assert!(index.remove(key("a"), Some(vec!["two".into()])).await.unwrap().is_some());
    assert!(index.lookup(&key("b")).unwrap().is_none());
    // An alias that went to another stays with that.
    index.put(key("a"), record("one", &[key("b")])).await.unwrap();
    index.put(key("z"), record("two", &[key("b")])).await.unwrap();
    index.remove(key("a"), None).await.unwrap();
    assert_eq!(index.lookup(&key("b")).unwrap().unwrap().0, key("z"));
    assert_eq!(index.records().unwrap().len(), 1);
}

#[tokio::test]
async fn aliases_do_not_grow_for_ever() {
    let (_folder, index) = index();
    index.put(key("a"), record("one", &[])).await.unwrap();
    for at in 0..100 {
        index.alias(key("a"), key(&at.to_string()));
    }
    index.put(key("b"), record("two", &[])).await.unwrap();
    assert_eq!(index.lookup(&key("a")).unwrap().unwrap().1.aliases.len(), ALIASES_MAX);
    assert!(index.lookup(&key("99")).unwrap().is_some() && index.lookup(&key("0")).unwrap().is_none());
}

#[tokio::test]
async fn goes_on_after_a_failed_write() {
    let (_folder, index) = index();
    index.put(key("a"), record("one", &[])).await.unwrap();
    index.fail_writes(true);
    let error = index.put(key("b"), record("two", &[])).await.unwrap_err();
    assert!(error.to_string().starts_with("write index of the build cache"), "{error}");
    index.fail_writes(false);
    assert!(index.lookup(&key("b")).unwrap().is_none());
    index.put(key("b"), record("two", &[])).await.unwrap();
    assert_eq!(index.records().unwrap().len(), 2);
}

#[tokio::test]
async fn many_writers_share_transactions() {
    let (_folder, index) = index();
    let writes = (0..500).map(|at| {
        let index = index.clone();
        tokio::spawn(async move { index.put(key(&at.to_string()), record("x", &[])).await.unwrap() })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    assert_eq!(index.records().unwrap().len(), 500);
}

#[test]
fn newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("index.redb");
    let database = Database::create(&path).unwrap();
    let tx = database.begin_write().unwrap();
    tx.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
    tx.commit().unwrap();
    drop(database);
    let error = Index::open(&path).unwrap_err();
    assert!(matches!(error, IndexError::Newer { format: 2, .. }), "{error}");
}

#[tokio::test]
async fn damage_is_named_never_a_panic() {
    let (folder, index) = index();
    let path = folder.path().join("index.redb");
    for at in 0..50 {
        index.put(key(&at.to_string()), record("x", &[])).await.unwrap();
    }
    drop(index);
    let whole = fs::read(&path).unwrap();
    for (what, bytes) in [("text", b"no database at all".to_vec()), ("cut", whole[..whole.len() / 3].to_vec())] {
        fs::write(&path, bytes).unwrap();
        let error = Index::open(&path).unwrap_err().to_string();
        assert!(error.contains("removed, the cache starts anew"), "{what}: {error}");
    }
    for place in (0..4096).step_by(61) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0xff;
        fs::write(&path, bytes).unwrap();
        if let Ok(index) = Index::open(&path) {
            let _ = index.records();
        }
    }
}
