use super::{labels::EXPIRE, *};
use crate::{
    images::manifest::{Descriptor, OCI_MANIFEST},
    leases::Resource,
    snapshots::SnapshotConfig,
    store::{Labels, Stores, labels_from},
};

fn label(name: &str, value: &impl ToString) -> Labels {
    labels_from([(name.to_owned(), value.to_string())])
}

fn stores() -> (tempfile::TempDir, Arc<Stores>) {
    let dir = tempfile::tempdir().unwrap();
    let stores = Stores::open(dir.path(), &SnapshotConfig::default(), Arc::new(|_, _, _| {})).unwrap();
    (dir, stores)
}

fn counts(collected: Collected) -> (usize, usize, usize) {
    (collected.blobs, collected.snapshots, collected.leases)
}

fn resource(kind: &str, id: impl ToString) -> Resource {
    Resource::new(kind.into(), id.to_string()).unwrap()
}

/// Bytes, and the manifest descriptor of them.
fn image_of(digest: Digest) -> Descriptor {
    Descriptor::new(OCI_MANIFEST, digest, 8)
}

#[test]
fn keeps_what_is_reached_and_nothing_else() {
    let (dir, stores) = stores();
    let (content, snapshots) = (&stores.content, stores.snapshots.usual());
    let put = |bytes: &[u8], labels: &Labels| content.put("ns", bytes, labels, None).unwrap();
    snapshots.prepare("ns", "a", "", Labels::new(), None).unwrap();
    snapshots.commit("ns", "base", "a", Labels::new(), None).unwrap();
    snapshots.prepare("ns", "b", "base", Labels::new(), None).unwrap();
    snapshots.commit("ns", "top", "b", Labels::new(), None).unwrap();
    let config = put(b"config", &label("containerd.io/gc.ref.snapshot.overlayfs", &"top"));
    let manifest = put(b"manifest", &label("containerd.io/gc.ref.content.config", &config));
    let stray = put(b"stray", &Labels::new());
    let leased = put(b"leased", &Labels::new());
    let rooted = put(b"rooted", &label("containerd.io/gc.root", &"x"));
    let (lease, _) = stores.leases.create("ns", "", Labels::new()).unwrap();
    stores.leases.add("ns", &lease, &resource("content", leased)).unwrap();
    stores.images.create("ns", "img", image_of(manifest), Labels::new()).unwrap();
    let gc = &stores.gc;
    assert_eq!(gc.collect().unwrap(), Collected { blobs: 1, bytes: 5, ..Collected::default() });
    assert!(!content.has("ns", &stray).unwrap() && content.has("ns", &rooted).unwrap());
    stores.leases.delete("ns", &lease).unwrap();
    stores.images.delete("ns", "img", None).unwrap();
    assert_eq!(counts(gc.collect().unwrap()), (3, 2, 0));
    assert_eq!(snapshots.list("ns", &[]).unwrap().len(), 0);
    assert!(content.has("ns", &rooted).unwrap());
    let folders = std::fs::read_dir(dir.path().join("supervisor/snapshots/overlayfs")).unwrap();
    assert_eq!(folders.filter(|f| f.as_ref().unwrap().file_name() != "l").count(), 0);
    // A fresh active snapshot waits for its container.
    snapshots.prepare("ns", "fresh", "", Labels::new(), None).unwrap();
    assert_eq!(gc.collect().unwrap(), Collected::default());
}

#[test]
fn a_flat_lease_keeps_what_it_names_and_what_that_stands_on() {
    let (_dir, stores) = stores();
    let (content, snapshots) = (&stores.content, stores.snapshots.usual());
    let config = content.put("ns", b"config", &Labels::new(), None).unwrap();
    let manifest =
        content.put("ns", b"manifest", &label("containerd.io/gc.ref.content.config", &config), None).unwrap();
    for (key, name, parent) in [("a", "base", ""), ("b", "top", "base")] {
        snapshots.prepare("ns", key, parent, Labels::new(), None).unwrap();
        snapshots.commit("ns", name, key, Labels::new(), None).unwrap();
    }
    let (lease, _) = stores.leases.create("ns", "", label("containerd.io/gc.flat", &"")).unwrap();
    stores.leases.add("ns", &lease, &resource("content", manifest)).unwrap();
    stores.leases.add("ns", &lease, &resource("snapshots/overlayfs", "top")).unwrap();
    assert_eq!(counts(stores.gc.collect().unwrap()), (1, 0, 0));
    assert!(content.has("ns", &manifest).unwrap() && !content.has("ns", &config).unwrap());
    assert_eq!(snapshots.list("ns", &[]).unwrap().len(), 2);
}

#[test]
fn back_references_keep_the_one_that_makes_them() {
    let (_dir, stores) = stores();
    let content = &stores.content;
    let main = content.put("ns", b"manifest", &Labels::new(), None).unwrap();
    let note = content.put("ns", b"note", &label("containerd.io/gc.bref.content", &main), None).unwrap();
    let seal = content.put("ns", b"seal", &label("containerd.io/gc.bref.image", &"img"), None).unwrap();
    stores.images.create("ns", "img", image_of(main), Labels::new()).unwrap();
    assert_eq!(stores.gc.collect().unwrap(), Collected::default());
    assert!(content.has("ns", &note).unwrap() && content.has("ns", &seal).unwrap());
    stores.images.delete("ns", "img", None).unwrap();
    assert_eq!(counts(stores.gc.collect().unwrap()), (3, 0, 0));
}

#[test]
fn leases_and_images_expire() {
    let (_dir, stores) = stores();
    let past = label(EXPIRE, &"2020-01-01T00:00:00Z");
    let future = label(EXPIRE, &"2999-01-01T00:00:00Z");
    let blob = stores.content.put("ns", b"blob", &Labels::new(), None).unwrap();
    stores.leases.create("ns", "over", past.clone()).unwrap();
    stores.leases.create("ns", "lives", future.clone()).unwrap();
    stores.leases.add("ns", "over", &resource("content", blob)).unwrap();
    let other = stores.content.put("ns", b"other", &Labels::new(), None).unwrap();
    stores.images.create("ns", "over", image_of(other), past).unwrap();
    stores.images.create("ns", "lives", image_of(other), future).unwrap();
    let collected = stores.gc.collect().unwrap();
    assert_eq!((counts(collected), collected.images), ((1, 0, 1), 1));
    assert!(stores.content.has("ns", &other).unwrap() && stores.images.get("ns", "over").is_err());
    assert_eq!(stores.leases.list("ns").unwrap().len(), 1);
}

#[test]
fn ingests_are_given_up_unless_somebody_writes_or_leases_them() {
    let (dir, stores) = stores();
    let content = &stores.content;
    stores.leases.create("ns", "lease", Labels::new()).unwrap();
    drop(content.writer("ns", "left", 0, None, None).unwrap());
    drop(content.writer("ns", "leased", 0, None, Some("lease")).unwrap());
    let writer = content.writer("ns", "busy", 0, None, None).unwrap();
    // All of them are of yesterday.
    for folder in std::fs::read_dir(dir.path().join("supervisor/content/ingest")).unwrap() {
        let data = std::fs::File::options().write(true).open(folder.unwrap().path().join("data")).unwrap();
        data.set_modified(std::time::SystemTime::now() - INGEST_AGE).unwrap();
    }
    assert_eq!(stores.gc.collect().unwrap().ingests, 1);
    let names = |content: &Arc<Content>| {
        let mut names: Vec<_> = content.statuses("ns", &[]).unwrap().into_iter().map(|s| s.reference).collect();
        names.sort();
        names
    };
    assert_eq!(names(content), ["busy", "leased"]);
    drop(writer);
    stores.leases.delete("ns", "lease").unwrap();
    assert_eq!(stores.gc.collect().unwrap().ingests, 2);
    assert!(names(content).is_empty());
}

#[test]
fn repair_undoes_the_operations_of_a_dead_process() {
    let (dir, stores) = stores();
    let operation = label(OPERATION, &"pull");
    stores.leases.create("ns", "pull", operation.clone()).unwrap();
    stores.snapshots.usual().prepare("ns", "extract", "", operation, Some("pull")).unwrap();
    std::fs::create_dir_all(dir.path().join("supervisor/snapshots/overlayfs/77/fs")).unwrap();
    stores.gc.repair().unwrap();
    assert!(stores.leases.list("ns").unwrap().is_empty());
    assert!(stores.snapshots.usual().list("ns", &[]).unwrap().is_empty());
    assert!(!dir.path().join("supervisor/snapshots/overlayfs/77").exists());
}

#[test]
fn an_ended_collection_has_done_nothing_or_left_only_files() {
    let (_dir, stores) = stores();
    let blob = stores.content.put("ns", b"blob", &Labels::new(), None).unwrap();
    stores.gc.cancelled.store(true, Ordering::Release);
    assert!(matches!(stores.gc.collect(), Err(CollectError::Cancelled)));
    assert!(!stores.content.has("ns", &blob).unwrap(), "small enough to be committed before it was noticed");
    stores.gc.repair().unwrap();
    stores.content.put("ns", b"blob", &Labels::new(), None).unwrap();
}

#[test]
fn collects_while_others_write_and_takes_nothing_of_theirs() {
    let (_dir, stores) = stores();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                stores.gc.collect().unwrap();
            }
        });
        let workers: Vec<_> = (0..4_u32)
            .map(|worker| {
                let stores = stores.clone();
                scope.spawn(move || {
                    for round in 0..12_u32 {
                        // What a pull does: a lease, blobs and a snapshot under it, an image, the lease's end.
                        let name = format!("{worker}-{round}");
                        let (lease, _) = stores.leases.create("ns", &name, Labels::new()).unwrap();
                        // The layer is the same for all, as it is with real images.
                        let layer = stores.content.put("ns", b"layer", &Labels::new(), Some(&lease)).unwrap();
                        let labels = label("containerd.io/gc.ref.content.l.0", &layer);
                        let manifest = stores.content.put("ns", name.as_bytes(), &labels, Some(&lease)).unwrap();
                        stores.snapshots.usual().prepare("ns", &name, "", Labels::new(), Some(&lease)).unwrap();
                        let top = format!("top-{name}");
                        stores.snapshots.usual().commit("ns", &top, &name, Labels::new(), Some(&lease)).unwrap();
                        let labels = label("containerd.io/gc.ref.snapshot.overlayfs", &top);
                        stores.images.create("ns", &name, image_of(manifest), labels).unwrap();
                        stores.leases.delete("ns", &lease).unwrap();
                        for blob in [layer, manifest] {
                            let bytes = stores.content.read_all("ns", &blob, 100);
                            assert_eq!(Digest::of(&bytes.unwrap()), blob, "{name}");
                        }
                        stores.snapshots.usual().stat("ns", &top).unwrap();
                        stores.images.delete("ns", &name, None).unwrap();
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Release);
    });
    stores.gc.collect().unwrap();
    assert!(stores.content.list("ns", &[]).unwrap().is_empty());
    assert!(stores.snapshots.usual().list("ns", &[]).unwrap().is_empty());
}

#[test]
fn a_clock_that_jumps_ends_nothing_before_its_time() {
    use crate::store::CLOCK_SET;
    const YEAR: i64 = 366 * 24 * 3600;
    let (_dir, stores) = stores();
    let content = &stores.content;
    let put = |bytes: &[u8]| content.put("ns", bytes, &Labels::new(), None).unwrap();
    let (kept, ended) = (put(b"kept"), put(b"ended"));
    let in_an_hour = Time::now().after(Duration::from_secs(3600)).to_proto();
    for (id, at, digest) in [("kept", in_an_hour.to_string(), kept), ("ended", "2020-01-01T00:00:00Z".into(), ended)] {
        stores.leases.create("ns", id, label(EXPIRE, &at)).unwrap();
        stores.leases.add("ns", id, &resource("content", digest)).unwrap();
    }
    stores.snapshots.usual().prepare("ns", "fresh", "", Labels::new(), None).unwrap();
    drop(content.writer("ns", "half", 10, None, None).unwrap());
    for jump in [YEAR, -YEAR, 60 * YEAR, -60 * YEAR, 0] {
        CLOCK_SET.set(jump);
        // What is made meanwhile has the time of the day, whatever that is, and is no less safe.
        let key = format!("made-{jump}");
        stores.snapshots.usual().prepare("ns", &key, "", Labels::new(), None).unwrap();
        stores.gc.collect().unwrap();
        stores.gc.collect().unwrap();
        assert!(content.has("ns", &kept).unwrap(), "{jump}");
        assert_eq!(stores.snapshots.usual().stat("ns", "fresh").unwrap().kind, Kind::Active, "{jump}");
        assert_eq!(stores.snapshots.usual().stat("ns", &key).unwrap().kind, Kind::Active, "{jump}");
        content.status("ns", "half").unwrap();
        let due = Time::now().after(Duration::from_secs(1)).until();
        assert!(due <= Duration::from_secs(61 * YEAR.unsigned_abs()), "{jump}: {due:?}");
    }
    assert!(!content.has("ns", &ended).unwrap(), "what had ended by every clock is gone");
    CLOCK_SET.set(0);
}
