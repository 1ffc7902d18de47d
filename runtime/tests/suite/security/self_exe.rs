//! CVE-2019-5736, and CVE-2020-14298 that opened it anew: a container makes the kernel execute the runtime itself, and overwrites its file.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;

use super::host::Host;
use crate::bundle::Bundle;

/// Writes to every program file it finds: by its process, and by a descriptor of its own. Notes whom it met.
const OVERWRITE: &str = "while :; do for p in /proc/[0-9]*; do \
    if [ -e $p/exe ] && ! [ $p/exe -ef /bin/busybox ]; then \
    echo overwritten >$p/exe; ( exec 9<$p/exe; echo overwritten >/proc/self/fd/9 ); \
    echo $p >>/data/seen; fi; done; done 2>/dev/null";

fn runtime() -> (&'static Path, Vec<u8>) {
    let program = Path::new(env!("CARGO_BIN_EXE_berth-runtime"));
    (program, std::fs::read(program).expect("read"))
}

/// Programs that are the process executing them: a script, a link, and a link by thread. As an ordinary process of the container the
/// runtime then waits for somebody to read its log, so that the attacker has all the time there is.
fn plant(bundle: &Bundle) -> [Vec<&'static str>; 3] {
    nix::unistd::mkfifo(&bundle.rootfs("data/fifo"), nix::sys::stat::Mode::from_bits_truncate(0o666)).expect("fifo");
    let script = bundle.rootfs("data/script");
    testing::executable(&script, "#!/proc/self/exe --log=/data/fifo\n");
    symlink("/proc/self/exe", bundle.rootfs("data/link")).expect("link");
    symlink("/proc/thread-self/exe", bundle.rootfs("data/thread")).expect("link");
    let rest = ["--log=/data/fifo", "list"];
    [vec!["/data/script"], [&["/data/link"], &rest[..]].concat(), [&["/data/thread"], &rest[..]].concat()]
}

/// Waits until the attacker has been at the runtime's file, a few times over.
fn attacked(attacker: &Bundle) {
    let seen = attacker.rootfs("data/seen");
    crate::bundle::eventually("the attacker meets the runtime", || {
        std::fs::read_to_string(&seen).is_ok_and(|text| text.lines().count() > 5)
    });
    std::fs::remove_file(seen).expect("remove");
}

#[test]
fn cve_2019_5736_and_cve_2020_14298_by_exec() {
    let Some(host) = Host::of_ours() else { return };
    let (program, before) = runtime();
    let evil = plant(&host.bundle);
    let host = host.with(|bundle| bundle.shell(OVERWRITE));
    host.bundle.start();
    for args in evil {
        let arguments = [&["exec", "--detach", &host.bundle.id], &args[..]].concat();
        // Not by a pipe, which the process would hold open.
        let status = host.bundle.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.expect("runs").success(), "{args:?}");
        attacked(&host.bundle);
        assert!(before == std::fs::read(program).expect("read"), "{args:?}: the runtime was overwritten");
    }
}

#[test]
fn cve_2019_5736_and_cve_2020_14298_by_run() {
    let (Some(attacker), Some(host)) = (Bundle::new(), Host::of_ours()) else { return };
    let (program, before) = runtime();
    let attacker = attacker.shell(OVERWRITE);
    attacker.start();
    // The victim's processes can be seen by the attacker.
    let joined = format!("/proc/{}/ns/pid", attacker.pid());
    let namespaces = json!([{"type": "pid", "path": joined}, {"type": "mount"}, {"type": "uts"}]);
    let evil = plant(&host.bundle);
    let mut host = host.with(|bundle| bundle.set("/linux/namespaces", namespaces));
    for args in evil {
        host = host.with(|bundle| bundle.set("/process/args", json!(args)));
        host.bundle.start();
        attacked(&attacker);
        assert!(before == std::fs::read(program).expect("read"), "{args:?}: the runtime was overwritten");
        host.bundle.ok(&["delete", "--force", &host.bundle.id]);
        host.assert_untouched("run of /proc/self/exe");
    }
}

#[test]
fn cve_2019_5736_the_program_file_cannot_be_opened_for_writing() {
    let Some(host) = Host::of_ours() else { return };
    let bundle = &host.bundle;
    assert!(bundle.create(&[]));
    let exe = format!("/proc/{}/exe", bundle.pid());
    let error = std::fs::OpenOptions::new().write(true).open(&exe).expect_err("must not open");
    // While it runs anywhere it is busy first of all; what counts is that it stays read-only after that.
    assert!(matches!(error.raw_os_error(), Some(nix::libc::EROFS | nix::libc::ETXTBSY)), "{error}");
    let flags = nix::sys::statvfs::statvfs(exe.as_str()).expect("statvfs").flags();
    assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{flags:?}");
    // The mount belongs to nobody, so nobody can make it writable.
    let file = std::fs::File::open(&exe).expect("read");
    let cleared = sys::mount::set_attributes(&file, sys::mount::Reach::One, 0, sys::mount::attr::RDONLY, None);
    assert_eq!(cleared, Err(sys::Errno::EINVAL));
}
