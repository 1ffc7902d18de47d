use super::*;
use crate::testing::exec;

fn exec_op(bend: impl FnOnce(&mut pb::ExecOp)) -> pb::Op {
    let mut exec = exec("make");
    bend(&mut exec);
    let inputs = vec![pb::Input::default(); 2];
    pb::Op { inputs, op: Some(Op::Exec(exec)), ..pb::Op::default() }
}

fn file_op(actions: Vec<pb::FileAction>) -> pb::Op {
    pb::Op { inputs: vec![pb::Input::default(); 2], op: Some(Op::File(pb::FileOp { actions })), ..pb::Op::default() }
}

fn copy(src: &str, dest: &str) -> pb::FileAction {
    let copy = pb::FileActionCopy { src: src.into(), dest: dest.into(), mode: -1, ..pb::FileActionCopy::default() };
    pb::FileAction { input: 0, secondary_input: 1, output: 0, action: Some(Action::Copy(copy)) }
}

fn mount(bend: impl FnOnce(&mut pb::Mount)) -> impl FnOnce(&mut pb::ExecOp) {
    let mut mount = pb::Mount { input: 1, dest: "/m".into(), output: -1, readonly: true, ..pb::Mount::default() };
    bend(&mut mount);
    |exec| exec.mounts.push(mount)
}

#[test]
fn what_changes_nothing() {
    let plain = own(&exec_op(|_| {})).digest;
    let proxy = pb::ProxyEnv { http_proxy: "http://proxy".into(), ..pb::ProxyEnv::default() };
    assert_eq!(own(&exec_op(|exec| exec.meta.as_mut().unwrap().proxy_env = Some(proxy))).digest, plain);
    let constraints = Some(pb::WorkerConstraints { filter: vec!["x".into()] });
    assert_eq!(own(&pb::Op { constraints, ..exec_op(|_| {}) }).digest, plain);
    let host = |ip: &str| {
        let host = pb::HostIp { host: "h".into(), ip: ip.into() };
        own(&exec_op(|exec| exec.meta.as_mut().unwrap().extra_hosts.push(host))).digest
    };
    assert_eq!(host("10.0.0.1"), host("10.0.0.2"));
    let cache = |id: &str, sharing| {
        let options = Some(pb::CacheOpt { id: id.into(), sharing });
        let mount = mount(|mount| (mount.input, mount.mount_type, mount.cache_opt) = (-1, 3, options));
        own(&exec_op(mount)).digest
    };
    assert_eq!(cache("a", 0), cache("b", 2));
}

#[test]
fn what_changes_it() {
    let all = [
        exec_op(|_| {}),
        exec_op(|exec| exec.meta.as_mut().unwrap().args.push("x".into())),
        exec_op(|exec| exec.meta.as_mut().unwrap().env.push("x=1".into())),
        exec_op(|exec| exec.meta.as_mut().unwrap().cwd = "/x".into()),
        exec_op(|exec| exec.meta.as_mut().unwrap().user = "x".into()),
        exec_op(|exec| exec.network = 1),
        exec_op(|exec| exec.network = 2),
        exec_op(|exec| exec.security = 1),
        exec_op(|exec| exec.mounts[0].readonly = true),
        exec_op(|exec| exec.secretenv.push(pb::SecretEnv { id: "x".into(), name: "X".into(), optional: false })),
        exec_op(mount(|_| {})),
        exec_op(mount(|mount| mount.dest = "/other".into())),
        exec_op(mount(|mount| mount.mount_type = 4)),
        pb::Op { platform: Some(pb::Platform { os: "linux".into(), ..pb::Platform::default() }), ..exec_op(|_| {}) },
        file_op(vec![copy("a", "b")]),
        file_op(vec![copy("a", "c")]),
    ];
    let mut digests: Vec<_> = all.iter().map(|op| own(op).digest).collect();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), all.len());
}

#[test]
fn platform_matters_to_what_runs() {
    let on = |op: pb::Op, os: &str| {
        let platform = Some(pb::Platform { os: os.into(), ..pb::Platform::default() });
        own(&pb::Op { platform, ..op }).digest
    };
    assert_ne!(on(exec_op(|_| {}), "linux"), on(exec_op(|_| {}), "plan9"));
    let file = || file_op(vec![copy("a", "b")]);
    assert_eq!(on(file(), "linux"), on(file(), "plan9"));
}

#[test]
fn which_mounts_count_by_content() {
    let by_content = |bend: fn(&mut pb::Mount)| {
        let own = own(&exec_op(mount(bend)));
        assert!(own.inputs[0].content.is_none(), "never the root by default");
        own.inputs[1].content.clone().map(|selections| selections[0].paths.clone())
    };
    assert_eq!(by_content(|_| {}), Some(vec![]));
    assert_eq!(by_content(|mount| mount.selector = "a/b".into()), Some(vec!["/a/b".into()]));
    assert_eq!(by_content(|mount| mount.content_cache = 2), None);
    assert_eq!(by_content(|mount| mount.readonly = false), Some(vec![]));
    // What is written next to the rest of the input comes out with it.
    assert_eq!(by_content(|mount| (mount.readonly, mount.output, mount.selector) = (false, 1, "a".into())), None);
    assert_eq!(by_content(|mount| (mount.readonly, mount.output) = (false, 1)), Some(vec![]));
    assert_eq!(by_content(|mount| (mount.mount_type, mount.input) = (4, 1)), None);
    let root = own(&exec_op(|exec| exec.mounts[0].content_cache = 1));
    assert!(root.inputs[0].content.is_some());
    let both = own(&exec_op(|exec| {
        mount(|mount| mount.selector = "a".into())(exec);
        mount(|mount| (mount.selector, mount.content_cache) = ("b".into(), 2))(exec);
    }));
    assert!(both.inputs[1].content.is_none(), "one mount of it that is off, and it is off");
}

#[test]
fn where_a_file_lay_matters_only_by_definition() {
    let (one, two) = (own(&file_op(vec![copy("/x/f", "d")])), own(&file_op(vec![copy("/y/f", "d")])));
    assert_eq!(one.digest, two.digest);
    let inputs = [(Digest::of(b"base"), 0), (Digest::of(b"context"), 0)];
    assert_ne!(by_definition(&one, &inputs), by_definition(&two, &inputs));
    let same = [Input::Record(inputs[0].0, 0), Input::Content(Digest::of(b"content"))];
    assert_eq!(by_content(&one, &same), by_content(&two, &same));
    assert_ne!(own(&file_op(vec![copy("/x/f", "d")])).digest, own(&file_op(vec![copy("/x/g", "d")])).digest);
}

#[test]
fn two_files_of_one_name_are_not_mixed_up() {
    let pair = |first: &str, second: &str| {
        let mut actions = vec![copy(first, "one"), copy(second, "two")];
        actions[0].output = -1;
        actions[1].input = 2;
        own(&file_op(actions)).digest
    };
    assert_ne!(pair("x/f", "y/f"), pair("y/f", "x/f"));
}

#[test]
fn two_mounts_of_one_input_are_not_mixed_up() {
    let pair = |first: &'static str, second: &'static str| {
        own(&exec_op(|exec| {
            mount(|mount| (mount.selector, mount.dest) = (first.into(), "/1".into()))(exec);
            mount(|mount| (mount.selector, mount.dest) = (second.into(), "/2".into()))(exec);
        }))
    };
    let (one, other) = (pair("x", "y"), pair("y", "x"));
    assert_eq!(one.inputs[1].content, other.inputs[1].content);
    assert_ne!(one.digest, other.digest);
    let single = |selector: &'static str| own(&exec_op(mount(|mount| mount.selector = selector.into()))).digest;
    assert_eq!(single("x"), single("y"));
}

#[test]
fn what_of_an_input_is_read() {
    let mut one = copy("src/*.c", "d");
    if let Some(Action::Copy(copy)) = &mut one.action {
        copy.allow_wildcard = true;
        copy.exclude_patterns = vec!["*.o".into()];
        let who = pb::NamedUserOpt { name: "x".into(), input: 1 };
        let user = Some(pb::UserOpt { user: Some(pb::user_opt::User::ByName(who)) });
        copy.owner = Some(pb::ChownOpt { user, group: None });
    }
    let selections = own(&file_op(vec![one])).inputs[1].content.clone().unwrap();
    let passwd = Selection { paths: vec!["/etc/passwd".into()], follow_links: true, ..Selection::default() };
    let paths = vec!["src/*.c".into()];
    let files = Selection { paths, wildcard: true, exclude: vec!["*.o".into()], ..Selection::default() };
    assert_eq!(selections, [passwd, files]);
    let plain =
        own(&file_op(vec![copy("a/b", "d"), copy("a", "e"), copy("ab", "f")])).inputs[1].content.clone().unwrap();
    assert_eq!(plain[0].paths, ["a", "ab"]);
    // Added to as well: its history matters.
    let mut onto = copy("a", "b");
    onto.input = 1;
    let own = own(&file_op(vec![onto]));
    assert!(own.inputs[1].content.is_none() && own.inputs[1].base && !own.inputs[0].base);
}

#[test]
fn backslashed_stars_are_no_wildcards() {
    assert!(has_wildcards("a*") && has_wildcards("a?b") && has_wildcards("[ab]") && has_wildcards("\\\\*"));
    assert!(!has_wildcards("a\\*b") && !has_wildcards("ab\\"));
}

#[test]
fn sources() {
    let source = |attrs: &[(&str, &str)]| pb::SourceOp {
        identifier: "https://x".into(),
        attrs: attrs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
    };
    let key = |attrs: &[(&str, &str)]| of_source(&source(attrs), &Digest::of(b"x"));
    assert_eq!(key(&[]), key(&[("local.session", "a"), ("local.unique", "b")]));
    assert_ne!(key(&[]), key(&[("http.perm", "755")]));
    assert_ne!(again(&Digest::of(b"x")), again(&Digest::of(b"x")));
}
