//! `exec --user`: exactly that user, or none.

use super::host::Host;

/// CVE-2026-30892: what a lenient parser makes of half a user is 0.
#[test]
fn cve_2026_30892_users_are_exact_or_refused() {
    let Some(host) = Host::of_ours() else { return };
    let host = host.with(|bundle| bundle.shell("sleep 1000"));
    let bundle = &host.bundle;
    bundle.start();
    for user in [
        "",
        ":",
        "1000:",
        ":5",
        "1:2:3",
        "0x10",
        "1e3",
        " 1",
        "1 ",
        "\t1",
        "1\n",
        "4294967296",
        "4294967295",
        "-1",
        "+1",
        "١",
        "99999999999999999999",
        "18446744073709551616",
        "root",
        "me",
        "1000:me",
        "1000;0",
        "1000,0",
        "0:4294967295",
    ] {
        let error = bundle.fails(&["exec", "--user", user, &bundle.id, "id"]);
        assert!(error.contains("--user"), "{user:?}: {error}");
    }
    for (user, expected) in
        [("1000", "1000:0"), ("1000:5", "1000:5"), ("0", "0:0"), ("4294967294:7", "4294967294:7"), ("007", "7:0")]
    {
        let ids = bundle.ok(&["exec", "--user", user, &bundle.id, "sh", "-c", "echo $(id -u):$(id -g)"]);
        assert_eq!(ids, expected, "{user:?}");
    }
}

/// CVE-2016-3697: a name in the image's passwd that looks like a number. Uids reach a runtime as numbers, and stay that.
#[test]
fn cve_2016_3697_a_name_that_is_a_number() {
    let Some(host) = Host::new() else { return };
    std::fs::write(host.bundle.rootfs("etc/passwd"), "1000:x:0:0::/root:/bin/sh\nroot:x:0:0::/root:/bin/sh\n")
        .expect("write");
    let host = host.with(|bundle| bundle.shell("sleep 1000"));
    host.bundle.start();
    assert_eq!(host.bundle.ok(&["exec", "--user", "1000", &host.bundle.id, "id", "-u"]), "1000");
}

/// CVE-2022-36109 and its kin at this level: groups are those of config.json, none of the runtime's own.
#[test]
fn cve_2022_36109_groups_are_those_of_the_configuration() {
    let Some(host) = Host::new() else { return };
    let user = serde_json::json!({"uid": 1000, "gid": 1000, "additionalGids": [1000, 5]});
    let host = host.with(|bundle| bundle.shell("id -G").set("/process/user", user));
    let mut groups: Vec<String> = host.attempt("groups").expect("runs").split(' ').map(str::to_owned).collect();
    groups.sort();
    groups.dedup();
    assert_eq!(groups, ["1000", "5"]);
}
