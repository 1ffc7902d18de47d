//! AppArmor profiles, where the kernel has AppArmor on: `make test-vm`, the boot with systemd.

use std::process::{Command, Stdio};

use serde_json::json;

use super::bundle::{Bundle, is_ours, texts};

/// A profile of the test's own in the kernel, gone with this.
struct Profile(String);

impl Profile {
    /// Everything is allowed but writing below /data.
    fn load(bundle: &Bundle, words: &str) -> Self {
        let name = format!("berth-{}-{words}", bundle.id).replace(' ', "-");
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  capability,\n  network,\n  mount,\n  umount,\n  \
             pivot_root,\n  signal,\n  unix,\n  ptrace,\n  deny /data/** w,\n}}\n"
        );
        let profile = Self(name);
        profile.parser("--replace", &text);
        profile
    }

    fn parser(&self, action: &str, text: &str) {
        use std::io::Write;
        let mut child = Command::new("apparmor_parser")
            .args([action, "--skip-cache"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("apparmor_parser");
        child.stdin.take().expect("stdin").write_all(text.as_bytes()).expect("write");
        assert!(child.wait().expect("wait").success(), "apparmor_parser {action}");
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        let _ = std::fs::write("/sys/kernel/security/apparmor/.remove", &self.0);
    }
}

fn enabled() -> bool {
    let on = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y");
    let parser = Command::new("apparmor_parser").arg("--version").output().is_ok();
    if !on || !parser {
        println!("skipped: needs AppArmor in the kernel and apparmor_parser");
    }
    on && parser
}

const WHO: &str = "cat /proc/self/attr/current; touch /data/x && echo written; touch /tmp/x && echo elsewhere";

#[test]
fn apparmor_profile_confines_run() {
    if !enabled() {
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let profile = Profile::load(&bundle, "run");
    for no_new_privs in [false, true] {
        let Some(bundle) = Bundle::new() else { return };
        let bundle = bundle
            .shell(WHO)
            .set("/process/apparmorProfile", json!(profile.0))
            .set("/process/noNewPrivileges", json!(no_new_privs));
        let (stdout, stderr) = texts(&bundle.run());
        let text = format!("{stdout}\n{stderr}");
        assert!(stdout.starts_with(&format!("{} (enforce)", profile.0)), "{text}");
        assert!(stdout.contains("elsewhere") && !stdout.contains("written"), "{text}");
        assert!(stderr.contains("Permission denied"), "{text}");
    }
}

#[test]
fn apparmor_profile_confines_exec_its_own_or_the_containers() {
    if !enabled() {
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let (first, second) = (Profile::load(&bundle, "first"), Profile::load(&bundle, "second"));
    let bundle = bundle.shell("sleep 1000").set("/process/apparmorProfile", json!(first.0));
    bundle.start();
    let current = std::fs::read_to_string(format!("/proc/{}/attr/current", bundle.pid())).expect("attr");
    assert_eq!(current.trim_end_matches(['\n', '\0']), format!("{} (enforce)", first.0));
    let said = |arguments: &[&str]| {
        bundle.ok(&[&["exec"], arguments, &[&bundle.id, "cat", "/proc/self/attr/current"]].concat())
    };
    assert_eq!(said(&[]).trim(), format!("{} (enforce)", first.0));
    assert_eq!(said(&["--apparmor", &second.0]).trim(), format!("{} (enforce)", second.0));
}

#[test]
fn apparmor_profile_that_is_not_loaded_fails_by_its_name() {
    if !enabled() {
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let bundle = bundle.set("/process/apparmorProfile", json!("no-such-profile"));
    let error = bundle.run_fails();
    assert!(error.to_lowercase().contains("apparmor"), "{error}");
    assert!(!is_ours() || error.contains("no-such-profile"), "{error}");
}

#[test]
fn apparmor_unconfined_is_allowed() {
    let Some(bundle) = Bundle::new() else { return };
    if !is_ours() {
        println!("skipped: runc fails on hosts without AppArmor");
        return;
    }
    let bundle = bundle.shell(WHO).set("/process/apparmorProfile", json!("unconfined"));
    let (stdout, stderr) = texts(&bundle.run());
    assert!(stdout.contains("written"), "{stdout}\n{stderr}");
    if enabled() {
        assert!(stdout.starts_with("unconfined"), "{stdout}");
    }
}

/// A mount over /proc must not swallow the label (CVE-2019-16884, CVE-2023-28642).
#[test]
fn apparmor_profile_is_applied_whatever_is_mounted_on_proc() {
    if !enabled() || !is_ours() {
        return;
    }
    let Some(bundle) = Bundle::new() else { return };
    let profile = Profile::load(&bundle, "proc");
    let mut bundle =
        bundle.shell("touch /data/x && echo written; echo done").set("/process/apparmorProfile", json!(profile.0));
    // An image without a procfs, but with files where its own would be.
    bundle.config["mounts"].as_array_mut().expect("a list").retain(|mount| mount["destination"] != "/proc");
    std::fs::create_dir_all(bundle.rootfs("proc/self/attr/apparmor")).expect("folders");
    for file in ["exec", "apparmor/exec", "current"] {
        std::fs::write(bundle.rootfs("proc/self/attr").join(file), "").expect("a file");
    }
    let (stdout, stderr) = texts(&bundle.run());
    assert!(stdout.contains("done") && !stdout.contains("written"), "{stdout}\n{stderr}");
    assert_eq!(std::fs::read(bundle.rootfs("proc/self/attr/apparmor/exec")).expect("read"), b"", "nothing went there");
}
