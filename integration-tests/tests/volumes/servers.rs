//! What is the same of all servers of files: volumes of theirs are used like others, and a server that is gone holds up nobody but those
//! who use it.

use crate::{await_unmounted, host, is_mounted, make, stdout, with};
use integration_tests::{Stack, eventually, run};
use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

/// The address of a server that goes away: what is sent to it is dropped from then on.
pub const FICKLE: &str = "127.0.77.8";
/// Nobody has ever answered here.
pub const NOBODY: &str = "127.0.77.9";

/// Addresses that nothing gets to.
pub struct Silence(String);

impl Silence {
    pub fn of(address: &str) -> Self {
        let table = format!("berth_test_{}", address.replace('.', "_"));
        host("nft", &["add", "table", "ip", &table]);
        host("nft", &["add chain ip", &table, "out { type filter hook output priority 0 ; }"]);
        host("nft", &["add rule ip", &table, "out ip daddr", address, "drop"]);
        Self(table)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = Command::new("nft").args(["delete", "table", "ip", &self.0]).output();
    }
}

/// A volume of a server whose files are in `share`: written to and read on both sides, mounted while it is needed.
pub fn is_written_and_read(stack: &Stack, volume: &str, share: &Path, kind: &str) {
    let script = "grep ' /v ' /proc/mounts; echo from-inside >/v/inside; mkdir /v/folder && mv /v/inside /v/folder; cat /v/outside";
    fs::write(share.join("outside"), "from-outside\n").unwrap();
    let seen = with(stack, volume, script).success().stdout();
    assert!(seen.ends_with("from-outside"), "{seen}");
    assert_eq!(seen.split(' ').nth(2), Some(kind), "{seen}");
    assert_eq!(fs::read_to_string(share.join("folder/inside")).unwrap(), "from-inside\n");
    await_unmounted(stack, volume);
}

/// The same, and whatever else becomes of volumes. It is gone then.
pub fn is_used_like_others(stack: &Stack, volume: &str, share: &Path, kind: &str) {
    is_written_and_read(stack, volume, share, kind);
    // By two containers at once, over the end of an engine.
    let bind = format!("{volume}:/v");
    let (one, two) = (format!("{volume}-one"), format!("{volume}-two"));
    for name in [&one, &two] {
        stdout(stack, &["run", "-d", "--init", "--name", name, "-v", &bind, "busybox", "sleep", "1000"]);
    }
    stdout(stack, &["exec", &one, "sh", "-c", "echo shared >/v/shared"]);
    assert_eq!(stdout(stack, &["exec", &two, "cat", "/v/shared"]), "shared");
    let refused = stack.berth(["volume", "rm", volume]).expect_code(1);
    assert!(refused.stderr().contains("volume is in use"), "{refused}");
    stdout(stack, &["stop", "-t", "0", &one]);
    stack.kill_engine();
    stack.start_engine();
    assert!(is_mounted(stack, volume));
    assert_eq!(stdout(stack, &["exec", &two, "cat", "/v/shared"]), "shared");
    stdout(stack, &["stop", "-t", "0", &two]);
    await_unmounted(stack, volume);

    // Of containers that don't run, and started again.
    let copy = stack.path().join(format!("{volume}-copy"));
    stdout(stack, &["cp", &format!("{two}:/v/shared"), copy.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&copy).unwrap(), "shared\n");
    stdout(stack, &["start", &one]);
    assert_eq!(stdout(stack, &["exec", &one, "cat", "/v/shared"]), "shared");
    stdout(stack, &["rm", "-f", &one, &two]);
    await_unmounted(stack, volume);
    // What is mounted is not the engine's to count or to throw away.
    let usage = stack.api().get("/v1.43/system/df?type=volume").expect(200).text();
    assert!(!usage.contains(volume), "{usage}");
    stdout(stack, &["volume", "prune", "-a", "-f"]);
    stdout(stack, &["volume", "rm", volume]);
    assert_eq!(fs::read_to_string(share.join("shared")).unwrap(), "shared\n");
}

/// The rest of the engine while a server doesn't answer.
#[track_caller]
fn nobody_else_waits(stack: &Stack) {
    let begun = Instant::now();
    for args in
        [&["volume", "ls"][..], &["ps", "-a"], &["system", "df"], &["run", "--rm", "-v", "other:/v", "busybox", "true"]]
    {
        stdout(stack, args);
    }
    let limit = Duration::from_secs(5) * integration_tests::eventually::patience();
    assert!(begun.elapsed() < limit, "it took {:?}", begun.elapsed());
}

/// A volume whose server never answers: its container doesn't start, in bounded time.
pub fn one_that_never_answers_is_given_up(stack: &Stack, kind: &str, options: &str, device: &str) {
    let _silence = Silence::of(NOBODY);
    make(stack, "mute", kind, options, device);
    thread::scope(|scope| {
        let begun = Instant::now();
        let waiting = scope.spawn(|| stack.berth(["run", "--name", "waits", "-v", "mute:/v", "busybox", "true"]));
        eventually("the container is made", || run_status(stack, "waits"));
        nobody_else_waits(stack);
        let said = waiting.join().unwrap().expect_code(125);
        let took = begun.elapsed();
        assert!(said.stderr().contains("error while mounting volume"), "{said}");
        assert!(took < Duration::from_secs(45) * integration_tests::eventually::patience(), "{took:?}: {said}");
        // Longer than the engine has patience for is what the kernel would try.
        assert!(took < Duration::from_secs(25) || said.stderr().contains("no answer within 30 s"), "{said}");
    });
    assert!(!is_mounted(stack, "mute"));
    assert_eq!(stack.inspect("waits")["State"]["Status"], "created");
    stdout(stack, &["rm", "waits"]);
    stdout(stack, &["volume", "rm", "mute"]);
}

fn run_status(stack: &Stack, name: &str) -> Option<()> {
    let shown = stack.berth(["volume", "ls", "-q"]);
    let made = stack.berth(["ps", "-a", "-q", "--filter", &format!("name={name}")]);
    (shown.code() == 0 && !made.stdout().is_empty()).then_some(())
}

/// A volume whose server at [`FICKLE`] goes away while it is used: nobody else notices, its containers and the engine come to their ends.
pub fn one_that_goes_away_is_let_go(stack: &Stack, volume: &str) {
    let bind = format!("{volume}:/v");
    let script = "while true; do echo line >>/v/log; ls /v >/dev/null; usleep 100000; done";
    stdout(stack, &["run", "-d", "--init", "--name", "writes", "-v", &bind, "busybox", "sh", "-c", script]);
    eventually("it writes", || (stdout(stack, &["exec", "writes", "cat", "/v/log"]).lines().count() > 2).then_some(()));
    let silence = Silence::of(FICKLE);
    nobody_else_waits(stack);
    // A new engine looks at all of its volumes.
    stack.kill_engine();
    stack.start_engine();
    nobody_else_waits(stack);
    // Another one with it, which may even start: the kernel remembers the folder for a while.
    let limit = Duration::from_secs(60) * integration_tests::eventually::patience();
    let begun = Instant::now();
    let create = stack.berth(["create", "--name", "late", "-v", &bind, "busybox", "true"]);
    assert!(begun.elapsed() < limit, "{create}");
    let begun = Instant::now();
    // What the kernel holds ends when it has given the server up.
    eventually("it can be removed", || {
        let removed = stack.berth(["rm", "-f", "writes"]);
        let said = removed.stderr();
        assert!(
            removed.code() == 0 || said.contains("tried to kill container, but did not receive an exit event"),
            "{removed}"
        );
        (removed.code() == 0).then_some(())
    });
    assert!(begun.elapsed() < limit, "it took {:?}", begun.elapsed());
    // It isn't there if it could not be filled.
    stack.berth(["rm", "-f", "late"]);
    assert_eq!(stdout(stack, &["ps", "-aq"]), "");
    await_unmounted(stack, volume);
    nobody_else_waits(stack);
    stdout(stack, &["volume", "rm", volume]);
    drop(silence);
    eventually("processes that the kernel held are gone", || {
        let children = run("pgrep", ["-P", &stack.engine_pid().to_string(), "-f", "volume-mounter"]);
        children.stdout().is_empty().then_some(())
    });
}
