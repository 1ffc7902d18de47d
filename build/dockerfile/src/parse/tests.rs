use super::*;
use crate::{
    expand::Lexer,
    instruction::{Command, Healthcheck, Heredoc, Mount, MountKind, Pair, Sharing, Sources},
};
use proptest::prelude::*;

fn kind(text: &str) -> Kind {
    let file = parse(format!("FROM x\n{text}").as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
    file.stages[0].instructions[0].kind.clone()
}

/// What went wrong, and in which lines.
fn wrong(text: &str) -> (String, Option<(usize, usize)>) {
    let error = parse(text.as_bytes()).expect_err(text);
    (error.message, error.span.map(|span| (span.first, span.last)))
}

/// The same below a FROM.
fn wrong_below(text: &str) -> String {
    wrong(&format!("FROM x\n{text}")).0
}

fn heredocs(all: &[Heredoc]) -> String {
    let one = |doc: &Heredoc| {
        let fill = if doc.expand { "" } else { " raw" };
        let chomp = if doc.chomp { " chomp" } else { "" };
        let descriptor = if doc.descriptor > 0 { format!(" {}", doc.descriptor) } else { String::new() };
        format!(" <{}{descriptor}{fill}{chomp}:{}>", doc.name, doc.content.escape_debug())
    };
    all.iter().map(one).collect()
}

fn command(command: &Command) -> String {
    match command {
        Command::Shell(text) => format!("sh {text}"),
        Command::Exec(words) => format!("exec {}", words.join("|")),
    }
}

fn sources(all: &Sources) -> String {
    let mut text = format!("{} -> {}{}", all.paths.join("|"), all.target, heredocs(&all.heredocs));
    for (name, value) in [("chown", &all.chown), ("chmod", &all.chmod)] {
        text += &value.as_ref().map(|value| format!(" {name}={value}")).unwrap_or_default();
    }
    text += if all.link { " link" } else { "" };
    all.exclude.iter().for_each(|one| text += &format!(" not={one}"));
    text
}

fn pairs(all: &[Pair]) -> String {
    let one = |pair: &Pair| format!("{}{}{}", pair.name, if pair.old_form { "~" } else { "=" }, pair.value);
    all.iter().map(one).collect::<Vec<_>>().join("|")
}

/// An instruction in one line.
fn show(kind: &Kind) -> String {
    match kind {
        Kind::Add(add) => {
            let mut text = format!("add {}", sources(&add.sources));
            text += &add.checksum.as_ref().map(|value| format!(" checksum={value}")).unwrap_or_default();
            text += &add.keep_git_dir.map(|value| format!(" git={value}")).unwrap_or_default();
            text + &add.unpack.map(|value| format!(" unpack={value}")).unwrap_or_default()
        }
        Kind::Arg(args) => {
            let one = |arg: &crate::instruction::Arg| match &arg.default {
                Some(default) => format!("{}={default}", arg.name),
                None => arg.name.clone(),
            };
            format!("arg {}", args.iter().map(one).collect::<Vec<_>>().join("|"))
        }
        Kind::Cmd(one) => format!("cmd {}", command(one)),
        Kind::Copy(copy) => {
            let mut text = format!("copy {}", sources(&copy.sources));
            text += &copy.from.as_ref().map(|value| format!(" from={value}")).unwrap_or_default();
            text + if copy.parents { " parents" } else { "" }
        }
        Kind::Entrypoint(one) => format!("entrypoint {}", command(one)),
        Kind::Env(all) => format!("env {}", pairs(all)),
        Kind::Expose(ports) => format!("expose {}", ports.join("|")),
        Kind::Healthcheck(Healthcheck::None) => "health none".into(),
        Kind::Healthcheck(Healthcheck::Cmd {
            command: one,
            interval,
            timeout,
            start_period,
            start_interval,
            retries,
        }) => {
            let mut text = format!("health {}", command(one));
            for (name, value) in
                [("every", interval), ("timeout", timeout), ("period", start_period), ("first", start_interval)]
            {
                text += &value.map(|value| format!(" {name}={}ms", value / 1_000_000)).unwrap_or_default();
            }
            text + &retries.map(|value| format!(" retries={value}")).unwrap_or_default()
        }
        Kind::Label(all) => format!("label {}", pairs(all)),
        Kind::Maintainer(text) => format!("maintainer {text}"),
        Kind::Onbuild(text) => format!("onbuild {}", text.escape_debug()),
        Kind::Run(run) => {
            let mut text = format!("run {}{}", command(&run.command), heredocs(&run.heredocs));
            text += &run.network.as_ref().map(|value| format!(" net={value}")).unwrap_or_default();
            text += &run.security.as_ref().map(|value| format!(" sec={value}")).unwrap_or_default();
            run.mounts.iter().for_each(|mount| text += &format!(" [{}]", self::mount(mount)));
            for device in &run.devices {
                text += &format!(" dev={}{}", device.name, if device.required { "!" } else { "" });
            }
            text
        }
        Kind::Shell(words) => format!("shell {}", words.join("|")),
        Kind::Stopsignal(text) => format!("stop {text}"),
        Kind::User(text) => format!("user {text}"),
        Kind::Volume(words) => format!("volume {}", words.join("|")),
        Kind::Workdir(text) => format!("workdir {text}"),
    }
}

fn mount(mount: &Mount) -> String {
    let mut text = mount.kind.name().to_owned();
    for (name, value) in [
        ("from", &mount.from),
        ("source", &mount.source),
        ("target", &mount.target),
        ("id", &mount.id),
        ("env", &mount.env),
    ] {
        text += &value.as_ref().map(|value| format!(" {name}={value}")).unwrap_or_default();
    }
    for (name, value) in [("uid", mount.uid), ("gid", mount.gid)] {
        text += &value.map(|value| format!(" {name}={value}")).unwrap_or_default();
    }
    text += &mount.mode.map(|value| format!(" mode={value:o}")).unwrap_or_default();
    text += &mount.size.map(|value| format!(" size={value}")).unwrap_or_default();
    text += &mount.readonly.map(|value| if value { " ro" } else { " rw" }.to_owned()).unwrap_or_default();
    text += match mount.sharing {
        None => "",
        Some(Sharing::Shared) => " shared",
        Some(Sharing::Private) => " private",
        Some(Sharing::Locked) => " locked",
    };
    text + if mount.required { " required" } else { "" }
}

#[test]
fn instructions() {
    for (text, expected) in [
        ("RUN make", "run sh make"),
        ("run make", "run sh make"),
        ("RuN\tmake  all ", "run sh make  all"),
        ("RUN", "run sh "),
        (r#"RUN ["a", "b c"]"#, "run exec a|b c"),
        (r#"RUN   [ "a" ]  "#, "run exec a"),
        (r#"RUN []"#, "run exec "),
        (r#"RUN ['a', 'b']"#, "run sh ['a', 'b']"),
        (r#"RUN ["a", "b"] && x"#, r#"run sh ["a", "b"] && x"#),
        (r#"RUN ["a","\u00e9\n"]"#, "run exec a|é\n"),
        ("RUN [ -f x ] && y", "run sh [ -f x ] && y"),
        ("RUN echo $x '#not' # a comment", "run sh echo $x '#not' # a comment"),
        ("RUN a \\\n  b \\\n  c", "run sh a   b   c"),
        ("RUN a\\\nb", "run sh ab"),
        ("RUN a \\\n# comment\n  # another\n  b", "run sh a   b"),
        ("RUN a \\\n\n\n  b", "run sh a   b"),
        ("RUN a \\ \t\n b", "run sh a  b"),
        ("RUN a \\\\\nRUN b", "run sh a \\\\"),
        ("RUN a \\", "run sh a"),
        ("RUN \\\n  a", "run sh a"),
        ("RUN a \\\r\n  b\r\n", "run sh a   b"),
        ("RUN --network=none x", "run sh x net=none"),
        ("RUN --network=host --security=insecure x", "run sh x net=host sec=insecure"),
        ("RUN --security=sandbox x", "run sh x sec=sandbox"),
        ("RUN -- --x", "run sh --x"),
        ("RUN --network=none -- --x", "run sh --x net=none"),
        ("RUN '--x'", "run sh '--x'"),
        ("RUN --device=vendor.com/gpu=all x", "run sh x dev=vendor.com/gpu=all"),
        ("RUN --device=name=v/c,required --device=w/d x", "run sh x dev=v/c! dev=w/d"),
        ("RUN --device=v/c,required=false x", "run sh x dev=v/c"),
        (r#"RUN --network=none ["a"]"#, "run exec a net=none"),
        ("CMD a b", "cmd sh a b"),
        ("CMD", "cmd sh "),
        (r#"CMD ["a","b"]"#, "cmd exec a|b"),
        (r#"CMD []"#, "cmd exec "),
        ("ENTRYPOINT a", "entrypoint sh a"),
        (r#"ENTRYPOINT ["a"]"#, "entrypoint exec a"),
        (r#"SHELL ["/bin/bash", "-c"]"#, "shell /bin/bash|-c"),
        ("WORKDIR /a b", "workdir /a b"),
        ("USER a:b", "user a:b"),
        ("STOPSIGNAL 9", "stop 9"),
        ("STOPSIGNAL $S", "stop $S"),
        ("MAINTAINER A B <a@b>", "maintainer A B <a@b>"),
        ("EXPOSE 80", "expose 80"),
        ("EXPOSE 80/tcp  53/udp\t$p 8000-8010", "expose $p|53/udp|80/tcp|8000-8010"),
        ("VOLUME /a /b", "volume /a|/b"),
        (r#"VOLUME ["/a", " /b c "]"#, "volume /a|/b c"),
        ("ENV a=b", "env a=b"),
        ("ENV a=b c=d", "env a=b|c=d"),
        (r#"ENV a="b c" d=e\ f g='h i'"#, r#"env a="b c"|d=e\ f|g='h i'"#),
        (r#"ENV a="\"x\"" b="#, r#"env a="\"x\""|b="#),
        ("ENV a= b=", "env a=|b="),
        ("ENV a b c", "env a~b c"),
        ("ENV a b=c", "env a~b=c"),
        ("ENV a  \t b", "env a~b"),
        ("ENV a=b=c", "env a=b=c"),
        ("ENV a=$b c=${d:-e}", "env a=$b|c=${d:-e}"),
        ("ENV a=b \\\n  c=d", "env a=b|c=d"),
        ("ENV $a=b", "env $a=b"),
        (r#"LABEL "a b"="c" d=e"#, r#"label "a b"="c"|d=e"#),
        ("LABEL a b c", "label a~b c"),
        ("LABEL a=\"x \\\n y\"", "label a=\"x  y\""),
        ("ARG a", "arg a"),
        ("ARG a=b", "arg a=b"),
        ("ARG a=", "arg a="),
        ("ARG a b=c d=\"e f\"", "arg a|b=c|d=\"e f\""),
        ("COPY a b", "copy a -> b"),
        ("COPY a b c/", "copy a|b -> c/"),
        (r#"COPY ["a b", "c d"]"#, "copy a b -> c d"),
        ("COPY --from=0 a b", "copy a -> b from=0"),
        ("COPY --from= a b", "copy a -> b"),
        ("COPY --chown=1:2 --chmod=0755 a b", "copy a -> b chown=1:2 chmod=0755"),
        ("COPY --chmod=u=rwX,go=rX a b", "copy a -> b chmod=u=rwX,go=rX"),
        ("COPY --link a b", "copy a -> b link"),
        ("COPY --link=false a b", "copy a -> b"),
        ("COPY --link=TRUE a b", "copy a -> b link"),
        ("COPY --parents --exclude=*.o --exclude=x a b", "copy a -> b not=*.o not=x parents"),
        ("COPY --chown=\"a b\" x y", "copy x -> y chown=a b"),
        ("COPY --chown=a\\ b x y", "copy x -> y chown=a b"),
        ("COPY \"a b\" c", "copy \"a|b\" -> c"),
        ("ADD a b", "add a -> b"),
        ("ADD --checksum=sha256:00 http://x/y z", "add http://x/y -> z checksum=sha256:00"),
        ("ADD --keep-git-dir https://x/y.git#v1 z", "add https://x/y.git#v1 -> z git=true"),
        ("ADD --keep-git-dir=false --unpack=true a b", "add a -> b git=false unpack=true"),
        ("ADD --link --chown=1 --chmod=1 --exclude=x a b", "add a -> b chown=1 chmod=1 link not=x"),
        ("HEALTHCHECK NONE", "health none"),
        ("HEALTHCHECK none", "health none"),
        ("HEALTHCHECK CMD curl x", "health sh curl x"),
        (r#"HEALTHCHECK cmd ["a","b"]"#, "health exec a|b"),
        (
            "HEALTHCHECK --interval=30s --timeout=1m --start-period=1.5s --start-interval=100ms --retries=3 CMD x",
            "health sh x every=30000ms timeout=60000ms period=1500ms first=100ms retries=3",
        ),
        ("HEALTHCHECK --interval=0 --retries=0 CMD x", "health sh x"),
        ("HEALTHCHECK --interval=1ms CMD x", "health sh x every=1ms"),
        ("ONBUILD RUN make", "onbuild RUN make"),
        ("onbuild   copy a b", "onbuild copy a b"),
        ("ONBUILD FOO", "onbuild FOO"),
        ("ONBUILD RUN a \\\n b", "onbuild RUN a  b"),
    ] {
        assert_eq!(show(&kind(text)), expected, "{text}");
    }
}

#[test]
fn here_documents() {
    for (text, expected) in [
        ("RUN <<EOF\na\nb\nEOF", r"run sh <<EOF <EOF:a\nb\n>"),
        ("RUN <<EOF\nEOF", "run sh <<EOF <EOF:>"),
        ("RUN 3<<EOF cat\nx\nEOF", r"run sh 3<<EOF cat <EOF 3:x\n>"),
        ("RUN <<-EOF\n\ta\n\tEOF", r"run sh <<-EOF <EOF chomp:\ta\n>"),
        ("RUN <<-'EOF'\n\ta\nEOF", r"run sh <<-'EOF' <EOF raw chomp:\ta\n>"),
        ("RUN <<\"EOF\" sh\n$a\nEOF", r#"run sh <<"EOF" sh <EOF raw:$a\n>"#),
        ("RUN <<eo'f'\nx\neof", r"run sh <<eo'f' <eof raw:x\n>"),
        ("RUN <<eo\\'f\nx\neo'f", r"run sh <<eo\'f <eo'f:x\n>"),
        ("RUN <<'one two'\nx\none two", r"run sh <<'one two' <one two raw:x\n>"),
        ("RUN <<$EOF\n$EOF", "run sh <<$EOF <$EOF:>"),
        ("RUN <<  EOF\nEOF", "run sh <<  EOF <EOF:>"),
        (
            "RUN <<-EOF > foo
EOF",
            "run sh <<-EOF > foo <EOF chomp:>",
        ),
        ("RUN cat <<- EOF", "run sh cat <<- EOF"),
        ("RUN << -EOF\n-EOF", "run sh << -EOF <-EOF:>"),
        ("RUN cat <<A <<B\n1\nA\n2\nB", r"run sh cat <<A <<B <A:1\n> <B:2\n>"),
        ("RUN <<EOF\n# no comment\nx \\\ny\n\nEOF", "run sh <<EOF <EOF:# no comment\\nx \\\\\\ny\\n\\n>"),
        ("RUN <<EOF\nFROM y\nRUN z\nEOF", r"run sh <<EOF <EOF:FROM y\nRUN z\n>"),
        ("RUN <<EOF\r\na\r\nEOF\r\n", r"run sh <<EOF <EOF:a\r\n>"),
        ("RUN --mount=type=cache,target=/c <<EOF\nx\nEOF", r"run sh <<EOF <EOF:x\n> [cache target=/c]"),
        ("RUN a \\\n <<EOF\nx\nEOF", r"run sh a  <<EOF <EOF:x\n>"),
        ("RUN \"<<EOF\"", "run sh \"<<EOF\""),
        ("RUN '<<EOF'", "run sh '<<EOF'"),
        ("RUN <<<word cat", "run sh <<<word cat"),
        ("RUN echo $((1<<2))", "run sh echo $((1<<2))"),
        ("RUN cat <<", "run sh cat <<"),
        ("RUN echo it's <<EOF", "run sh echo it's <<EOF"),
        (r#"RUN ["<<EOF"]"#, "run exec <<EOF"),
        ("CMD cat <<EOF", "cmd sh cat <<EOF"),
        ("USER <<EOF", "user <<EOF"),
        ("COPY <<EOF /x\nhi\nEOF", r"copy  -> /x <EOF:hi\n>"),
        ("COPY <<a.txt b <<'c' /x/\n1\na.txt\n2\nc", r"copy b -> /x/ <a.txt:1\n> <c raw:2\n>"),
        ("COPY <<X <<Y /d\nY\nX\nX\nY", r"copy  -> /d <X:Y\n> <Y:X\n>"),
        ("COPY --chmod=644 <<-E /x\n\thi\n\tE", r"copy  -> /x <E chomp:\thi\n> chmod=644"),
        ("ADD <<EOF a /x\nhi\nEOF", r"add a -> /x <EOF:hi\n>"),
        ("ONBUILD RUN <<EOF\nhi\nEOF", r"onbuild RUN <<EOF\nhi\nEOF"),
        ("ONBUILD COPY <<A <<B /\n1\nA\nB", r"onbuild COPY <<A <<B /\n1\nA\nB"),
        ("ONBUILD CMD <<EOF", "onbuild CMD <<EOF"),
    ] {
        assert_eq!(show(&kind(text)), expected, "{text}");
    }
    let Kind::Run(run) = kind("RUN <<-E\n\t\ta\n\t b\tc\nd\nE") else { panic!() };
    assert_eq!(run.heredocs[0].text(), "a\n b\tc\nd\n");
    for (word, is) in [("<<E", true), ("3<<-E", true), ("<<E sh", false), ("x<<E", false), ("<<", false), ("<E", false)]
    {
        assert_eq!(heredoc(word).unwrap().is_some(), is, "{word}");
    }
    assert!(heredoc("<<'E").is_err());
}

#[test]
fn mounts() {
    for (text, expected) in [
        ("target=/x", "bind target=/x"),
        ("type=bind,source=a,target=/x,rw", "bind source=a target=/x rw"),
        ("type=bind,src=a,dst=/x,readonly=false", "bind source=a target=/x rw"),
        ("type=BIND,destination=/x,ro", "bind target=/x ro"),
        ("TYPE=bind,Target=/x,RO=1", "bind target=/x ro"),
        ("type=bind,from=build,target=/x", "bind from=build target=/x"),
        ("type=bind,target=/x,readwrite=false", "bind target=/x ro"),
        ("type=cache,target=/x", "cache target=/x"),
        ("type=cache,id=i,target=/x,sharing=LOCKED", "cache target=/x id=i locked"),
        ("type=cache,target=/x,sharing=private,from=b,source=s", "cache from=b source=s target=/x private"),
        ("type=cache,target=/x,uid=1,gid=2,mode=0755", "cache target=/x uid=1 gid=2 mode=755"),
        ("type=tmpfs,target=/x,size=1.5m", "tmpfs target=/x size=1572864"),
        ("type=secret,id=s", "secret id=s"),
        ("type=secret,id=s,target=/x,required", "secret target=/x id=s required"),
        ("type=secret,id=s,required=false,uid=5", "secret id=s uid=5"),
        ("type=secret,id=s,env=TOKEN", "secret id=s env=TOKEN"),
        ("type=secret,id=s,env=", "secret id=s env="),
        ("type=secret,source=s", "secret source=s"),
        ("type=ssh", "ssh"),
        ("type=ssh,id=default,required=true,mode=0600", "ssh id=default mode=600 required"),
        ("type=cache,id=$ID,target=${T:-/x}", "cache target=${T:-/x} id=$ID"),
        // Left until there are variables.
        ("type=cache,target=/x,uid=$U,mode=$M", "cache target=/x"),
        ("type=$K,target=/x,size=$S,required=$R", "bind target=/x"),
        (r#"type=bind,\"source=a,b\",target=/x"#, "bind source=a,b target=/x"),
        (r#"type=bind,'"source=a""b"',target=/x"#, r#"bind source=a"b target=/x"#),
    ] {
        let Kind::Run(run) = kind(&format!("RUN --mount={text} x")) else { panic!() };
        assert_eq!(mount(&run.mounts[0]), expected, "{text}");
    }
    let Kind::Run(run) = kind("RUN --mount=type=cache,target=/a --mount=type=ssh x") else { panic!() };
    assert_eq!(run.mounts.len(), 2);
}

#[test]
fn mounts_with_variables() {
    let env: &[(&str, &str)] =
        &[("K", "tmpfs"), ("S", "2k"), ("U", "7"), ("T", "/t"), ("R", "true"), ("BAD", "x"), ("F", "stage")];
    let expand = |text: &str| {
        let Kind::Run(run) = kind(&format!("RUN --mount={text} x")) else { panic!() };
        run.mounts[0].expand(&Lexer::new('\\'), env)
    };
    for (text, expected) in [
        ("type=$K,target=$T,size=$S", "tmpfs target=/t size=2048"),
        ("type=cache,target=${T}/x,uid=$U", "cache target=/t/x uid=7"),
        ("type=cache,target=${NO:-/d},id=a$NO", "cache target=/d id=a"),
        ("\"type=bind,target='/a b'\"", "bind target=/a b"),
        ("type=secret,id=s,required=$R,env=$K", "secret id=s env=tmpfs required"),
    ] {
        assert_eq!(mount(&expand(text).unwrap().0), expected, "{text}");
    }
    assert_eq!(expand("type=cache,target=$NO$T").unwrap().1, ["NO"]);
    for (text, expected) in [
        ("type=$BAD,target=/x", "unsupported mount type \"x\""),
        ("type=cache,target=/x,uid=$BAD", "invalid value x for uid"),
        ("type=bind,target=/x,uid=$U", "uid not allowed for \"bind\" type mounts"),
        ("type=$K,target=/x,size=$BAD", "invalid value for size: x"),
        ("type=bind,target=${BAD:?}${NO:?gone}", "failed to process \"${BAD:?}${NO:?gone}\": NO: gone"),
        ("type=secret,id=$NO", "invalid secret mount. one of source, target required"),
    ] {
        assert_eq!(expand(text).unwrap_err(), expected, "{text}");
    }
    assert_eq!(MountKind::Ssh.name(), "ssh");
}

#[test]
fn refusals() {
    for (text, expected) in [
        ("FOO", "unknown instruction: FOO (did you mean FROM?)"),
        ("foo x", "unknown instruction: foo (did you mean from?)"),
        ("BUILDING x", "unknown instruction: BUILDING"),
        ("RUNN x", "unknown instruction: RUNN (did you mean RUN?)"),
        ("entrypont x", "unknown instruction: entrypont (did you mean entrypoint?)"),
        ("Copyy x", "unknown instruction: Copyy (did you mean COPY?)"),
        (
            "COPY",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "COPY a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "ADD a",
            "ADD requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            r#"ADD ["a"]"#,
            "ADD requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("COPY --from a b", "missing a value on flag: --from"),
        ("COPY --form=x a b", "unknown flag: --form (did you mean --from?)"),
        ("COPY --nothing a b", "unknown flag: --nothing"),
        ("COPY --from=a --from=b a b", "duplicate flag specified: --from"),
        ("COPY --link= a b", "missing a value on flag: --link"),
        ("COPY --link=yes a b", "expecting boolean value for flag --link, not: yes"),
        ("COPY --checksum=x a b", "unknown flag: --checksum"),
        ("ADD --from=x a b", "unknown flag: --from"),
        ("COPY a <<EOF\nEOF", "COPY cannot accept a heredoc as a destination"),
        ("ADD a <<EOF\nEOF", "ADD cannot accept a heredoc as a destination"),
        ("COPY [1, 2]", "when using JSON array syntax, arrays must be comprised of strings only"),
        (r#"RUN ["a", 1]"#, "when using JSON array syntax, arrays must be comprised of strings only"),
        (r#"CMD [null]"#, "when using JSON array syntax, arrays must be comprised of strings only"),
        ("RUN <<EOF\nx", "unterminated heredoc"),
        ("RUN <<A <<B\nA\nx", "unterminated heredoc"),
        ("RUN --network=bridge x", "invalid network mode \"bridge\""),
        ("RUN --security=none x", "security \"none\" is not valid"),
        ("RUN --volume=x y", "unknown flag: --volume"),
        ("RUN --mont=x y", "unknown flag: --mont (did you mean --mount?)"),
        ("RUN --device=a,b y", "invalid field 'b' must be a key=value pair"),
        ("RUN --device=a,b=c y", "unexpected key 'b' in 'b=c'"),
        ("RUN --device=name=a,name=b y", "device name already set to a"),
        ("RUN --device=a,required=x y", "invalid value for required: x"),
        ("RUN --device=a,requird=x y", "unexpected key 'requird' in 'requird=x' (did you mean required?)"),
        ("RUN --mount= x", "failed to parse csv mounts: EOF"),
        ("RUN --mount=type=bind,a\\\"b=c x", "failed to parse csv mounts: bare \" in non-quoted field"),
        ("RUN --mount='\"type=bind' x", "failed to parse csv mounts: extraneous or missing \" in quoted-field"),
        ("RUN --mount=type=volume,target=/x y", "unsupported mount type \"volume\""),
        ("RUN --mount=type=cahce,target=/x y", "unsupported mount type \"cahce\" (did you mean cache?)"),
        ("RUN --mount=type=bind,tagret=/x y", "unexpected key 'tagret' in 'tagret=/x' (did you mean target?)"),
        ("RUN --mount=target y", "invalid field 'target' must be a key=value pair"),
        ("RUN --mount=target=/x,required y", "unexpected key 'required' for mount type 'bind'"),
        ("RUN --mount=type=cache,target=/x,required=true y", "unexpected key 'required' for mount type 'cache'"),
        ("RUN --mount=type=bind,target=/x,size=1 y", "unexpected key 'size' for mount type 'bind'"),
        ("RUN --mount=type=ssh,env=x y", "unexpected key 'env' for mount type 'ssh'"),
        ("RUN --mount=type=tmpfs,target=/x,size=-1 y", "invalid value for size: -1"),
        ("RUN --mount=type=cache,target=/x,mode=9 y", "invalid value 9 for mode"),
        ("RUN --mount=type=cache,target=/x,uid=-1 y", "invalid value -1 for uid"),
        ("RUN --mount=type=cache,target=/x,gid=4294967296 y", "invalid value 4294967296 for gid"),
        (
            "RUN --mount=type=cache,target=/x,sharing=lock y",
            "unsupported sharing value \"lock\" (did you mean locked?)",
        ),
        ("RUN --mount=type=bind,target=/x,sharing=locked y", "invalid cache sharing set for bind mount"),
        ("RUN --mount=type=bind,target=/x,mode=1 y", "mode not allowed for \"bind\" type mounts"),
        ("RUN --mount=type=tmpfs,target=/x,uid=1 y", "uid not allowed for \"tmpfs\" type mounts"),
        ("RUN --mount=type=bind,target=/x,gid=1 y", "gid not allowed for \"bind\" type mounts"),
        ("RUN --mount=target=/x,ro=maybe y", "invalid value for ro: maybe"),
        ("RUN --mount=type=secret y", "invalid secret mount. one of source, target required"),
        ("RUN --mount=type=secret,id=a,source=b y", "both source and id can't be set"),
        ("RUN --mount=type=secret,id=a,from=b y", "secret mount should not have a from"),
        ("RUN --mount=type=secret,id=a,sharing=shared y", "secret mount should not define sharing"),
        ("RUN --mount=from=$x,target=/x y", "'from' doesn't support variable expansion, define alias stage instead"),
        ("ENV", "ENV requires at least one argument"),
        ("ENV a", "ENV must have two arguments"),
        ("ENV a=b c", "Syntax error - can't find = in \"c\". Must be of the form: name=value"),
        ("ENV =b", "ENV names can not be blank"),
        ("ENV a=b =c", "ENV names can not be blank"),
        ("ENV --x a=b", "unknown flag: --x"),
        ("LABEL", "LABEL requires at least one argument"),
        ("LABEL a", "LABEL must have two arguments"),
        ("LABEL =", "LABEL names can not be blank"),
        ("ARG", "ARG requires at least one argument"),
        ("ARG =x", "ARG names can not be blank"),
        ("WORKDIR", "WORKDIR requires exactly one argument"),
        ("USER", "USER requires exactly one argument"),
        ("STOPSIGNAL", "STOPSIGNAL requires exactly one argument"),
        ("MAINTAINER", "MAINTAINER requires exactly one argument"),
        ("MAINTAINER --boo joe", "unknown flag: --boo"),
        ("EXPOSE", "EXPOSE requires at least one argument"),
        ("VOLUME", "VOLUME requires at least one argument"),
        ("VOLUME []", "VOLUME requires at least one argument"),
        (r#"VOLUME ["/a", " "]"#, "VOLUME specified can not be an empty string"),
        ("SHELL", "SHELL requires at least one argument"),
        ("SHELL []", "SHELL requires at least one argument"),
        ("SHELL bash -c", "SHELL requires the arguments to be in JSON form"),
        ("CMD --help", "unknown flag: --help"),
        ("HEALTHCHECK", "HEALTHCHECK requires at least one argument"),
        ("HEALTHCHECK NONE x", "HEALTHCHECK NONE takes no arguments"),
        ("HEALTHCHECK CMD", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK CMD []", "Missing command after HEALTHCHECK CMD"),
        ("HEALTHCHECK curl x", "Unknown type \"CURL\" in HEALTHCHECK (try CMD)"),
        ("HEALTHCHECK --interval=5 CMD x", "time: missing unit in duration \"5\""),
        ("HEALTHCHECK --timeout=5d CMD x", "time: unknown unit \"d\" in duration \"5d\""),
        ("HEALTHCHECK --timeout=x CMD x", "time: invalid duration \"x\""),
        ("HEALTHCHECK --interval=50ns CMD x", "Interval \"interval\" cannot be less than 1ms"),
        ("HEALTHCHECK --start-period=-1s CMD x", "Interval \"start-period\" cannot be less than 1ms"),
        ("HEALTHCHECK --retries=-1 CMD x", "--retries cannot be negative (-1)"),
        ("HEALTHCHECK --retries=x CMD x", "strconv.ParseInt: parsing \"x\": invalid syntax"),
        ("HEALTHCHECK --retries=99999999999 CMD x", "strconv.ParseInt: parsing \"99999999999\": value out of range"),
        ("HEALTHCHECK --retry=1 CMD x", "unknown flag: --retry"),
        ("ONBUILD", "ONBUILD requires at least one argument"),
        ("ONBUILD ONBUILD RUN x", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"),
        ("ONBUILD from x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD MAINTAINER x", "MAINTAINER isn't allowed as an ONBUILD trigger"),
        ("ONBUILD --x RUN y", "unknown flag: --x"),
        ("ONBUILD ENV a", "ENV must have two arguments"),
        ("ONBUILD RUN [1]", "when using JSON array syntax, arrays must be comprised of strings only"),
        ("ONBUILD RUN <<EOF", "unterminated heredoc"),
        ("FROM", "FROM requires either one or three arguments"),
        ("FROM a b", "FROM requires either one or three arguments"),
        ("FROM a is b", "FROM requires either one or three arguments"),
        ("FROM a AS", "FROM requires either one or three arguments"),
        ("FROM a AS b c", "FROM requires either one or three arguments"),
        ("FROM a AS 1b", "invalid name for build stage: \"1b\", name can't start with a number or contain symbols"),
        ("FROM a AS b/c", "invalid name for build stage: \"b/c\", name can't start with a number or contain symbols"),
        ("FROM a AS é", "invalid name for build stage: \"é\", name can't start with a number or contain symbols"),
        ("FROM --platfrom=x a", "unknown flag: --platfrom (did you mean --platform?)"),
    ] {
        assert_eq!(wrong_below(text), expected, "{text}");
    }
}

#[test]
fn whole_files() {
    for (text, expected, lines) in [
        ("", "the Dockerfile cannot be empty", None),
        ("\n\n# only\n", "file with no instructions", None),
        ("ARG a=b\n", "dockerfile contains no stages to build", None),
        ("RUN x\nFROM y", "no build stage in current context", Some((1, 1))),
        ("\nARG a\nENV a=b\n", "no build stage in current context", Some((3, 3))),
        ("FROM x\nRUN a \\\n b \\\n c\nFOO y\n", "unknown instruction: FOO (did you mean FROM?)", Some((5, 5))),
        (
            "FROM x\nCOPY \\\n a",
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
            Some((2, 3)),
        ),
        ("# escape=x\nFROM x", "invalid escape token 'x' does not match ` or \\", Some((1, 1))),
        ("# escape=\\\n# ESCAPE=`\nFROM x", "only one escape parser directive can be used", Some((2, 2))),
        ("#syntax=a\n#syntax=b\nFROM x", "only one syntax parser directive can be used", Some((2, 2))),
        ("# check=nothing\nFROM x", "failed to parse check options: invalid check option \"nothing\"", Some((1, 1))),
        ("# check=a=b\nFROM x", "failed to parse check options: invalid check option \"a\"", Some((1, 1))),
        (
            "# check=error=2\nFROM x",
            "failed to parse check options: failed to parse check option \"error=2\": strconv.ParseBool: parsing \"2\": invalid syntax",
            Some((1, 1)),
        ),
    ] {
        assert_eq!(wrong(text), (expected.into(), lines), "{text}");
    }
    let long = format!("FROM x\nLABEL test={}\n", "a".repeat(65536));
    assert_eq!(wrong(&long), ("dockerfile line greater than max allowed size of 65535".into(), Some((2, 2))));
    assert!(parse(format!("FROM x\n#{}\n", "a".repeat(65534)).as_bytes()).is_ok());
    let large = "# x\n".repeat((16 << 20) / 4 + 1);
    assert_eq!(wrong(&large), ("Dockerfile exceeds maximum allowed size".into(), None));
}

#[test]
fn directives() {
    for (text, syntax, escape) in [
        ("FROM x", None, '\\'),
        ("# syntax=docker/dockerfile:1\nFROM x", Some("docker/dockerfile:1"), '\\'),
        ("#syntax = a b c\nFROM x", Some("a"), '\\'),
        ("#  SYNTAX\t=\ta  \r\n# Escape = `\r\nFROM x", Some("a"), '`'),
        ("# escape=`\nFROM x", None, '`'),
        ("  # escape=`\nFROM x", None, '`'),
        ("# escape=\nFROM x", None, '\\'),
        ("# a comment\n# escape=`\nFROM x", None, '\\'),
        ("\n# escape=`\nFROM x", None, '\\'),
        ("# unknown=1\n# escape=`\nFROM x", None, '\\'),
        ("FROM x\n# escape=`", None, '\\'),
        ("#!/usr/bin/env build\n# syntax=a\nFROM x", Some("a"), '\\'),
        ("#!/usr/bin/env build\n# escape=`\n# syntax=a\n# syntax=b\nFROM x", Some("a"), '\\'),
        ("\u{feff}# escape=`\nFROM x", None, '`'),
    ] {
        let file = parse(text.as_bytes()).unwrap();
        assert_eq!((file.directives.syntax.as_deref(), file.directives.escape), (syntax, escape), "{text}");
    }
    let file = parse(b"# escape=`\nFROM x\nRUN a `\n b\nCOPY c:\\x \\\nENV a=b` c d=e").unwrap();
    let shown: Vec<_> = file.stages[0].instructions.iter().map(|one| show(&one.kind)).collect();
    assert_eq!(shown, ["run sh a  b", "copy c:\\x -> \\", "env a=b` c|d=e"]);
    let check = parse(b"# check=skip=A, B\n# syntax=x\nFROM x").unwrap().directives.check;
    assert_eq!((check.skip, check.skip_all, check.error), (vec!["A".into(), "".into()], false, false));
}

#[test]
fn stages() {
    let text = "ARG v=1 w\narg x\nFROM --platform=$BUILDPLATFORM a:$v AS Build\nRUN 1\nFrom build as second\n# second's comment\n\nRUN 2\nRUN 3\nfrom scratch\n";
    let file = parse(text.as_bytes()).unwrap();
    assert_eq!(file.globals.len(), 2);
    let [first, second, third] = file.stages.as_slice() else { panic!() };
    assert_eq!((first.name.as_deref(), first.written_name.as_deref()), (Some("build"), Some("Build")));
    assert_eq!((first.base.as_str(), first.platform.as_deref()), ("a:$v", Some("$BUILDPLATFORM")));
    assert_eq!(first.text, "FROM --platform=$BUILDPLATFORM a:$v AS Build");
    assert_eq!(
        (second.keyword.as_str(), second.written_as.as_deref(), second.instructions.len()),
        ("From", Some("as"), 2)
    );
    assert_eq!((third.base.as_str(), &third.name, third.span), ("scratch", &None, Span { first: 10, last: 10 }));
    assert_eq!(second.instructions[0].comment, Vec::<String>::new());
}

#[test]
fn places_and_comments() {
    let text = "# syntax=x\n# about base\n#\n# base is the base\nFROM a AS base\n\n# lost\n\n# v is the version\n# w: another\nARG v=1 w=2\nRUN a \\\n# inside\n\n  b\n# doc\nRUN <<E\nx\nE\nRUN z";
    let file = parse(text.as_bytes()).unwrap();
    let stage = &file.stages[0];
    assert_eq!(stage.comment, ["base is the base"]);
    let [arg, run, doc, last] = stage.instructions.as_slice() else { panic!() };
    assert_eq!(arg.comment, ["v is the version", "w: another"]);
    let Kind::Arg(args) = &arg.kind else { panic!() };
    assert_eq!(
        (args[0].comment.clone(), args[1].comment.clone()),
        (vec!["is the version".into()], Vec::<String>::new())
    );
    assert_eq!((arg.span.first, run.span, run.text.as_str()), (11, Span { first: 12, last: 15 }, "RUN a   b"));
    assert_eq!(file.empty_continuations, [Span { first: 15, last: 15 }]);
    assert_eq!((doc.span, &doc.comment), (Span { first: 17, last: 19 }, &vec!["doc".to_owned()]));
    assert_eq!((last.span, last.keyword.as_str()), (Span { first: 20, last: 20 }, "RUN"));
}

#[test]
fn shown_errors() {
    for (text, expected) in [
        (
            "FROM x\nRUNN make\n",
            "Dockerfile:2: unknown instruction: RUNN (did you mean RUN?)\n   2 | RUNN make\n     | ^\n",
        ),
        (
            "FROM x\n  COPY --form=y a b",
            "Dockerfile:2: unknown flag: --form (did you mean --from?)\n   2 |   COPY --form=y a b\n     |        ^\n",
        ),
        (
            "FROM x\nRUN --mount=type=cache,target=/x \\\n\t--mount=type=x,target=/y \\\n  make",
            "Dockerfile:2: unsupported mount type \"x\"\n   2 | RUN --mount=type=cache,target=/x \\\n   3 |  --mount=type=x,target=/y \\\n     |          ^\n   4 |   make\n",
        ),
        (
            "FROM x\nENV a=é b\n",
            "Dockerfile:2: Syntax error - can't find = in \"b\". Must be of the form: name=value\n   2 | ENV a=é b\n     |         ^\n",
        ),
        (
            "FROM x\nCOPY a\n",
            "Dockerfile:2: COPY requires at least two arguments, but only one was provided. Destination could not be determined\n   2 | COPY a\n     |       ^\n",
        ),
        (
            "FROM x\nRUN cat <<E \\\n <<F\n",
            "Dockerfile:2: unterminated heredoc\n   2 | RUN cat <<E \\\n     |         ^\n   3 |  <<F\n",
        ),
        (
            "\u{feff}# escape=!\n",
            "Dockerfile:1: invalid escape token '!' does not match ` or \\\n   1 | # escape=!\n     |          ^\n",
        ),
        ("\n# x", "Dockerfile: file with no instructions"),
    ] {
        assert_eq!(parse(text.as_bytes()).unwrap_err().show("Dockerfile", text), expected, "{text}");
    }
    let error = parse(b"FROM x\n\nFOO").unwrap_err();
    assert_eq!(error.to_string(), "dockerfile parse error on line 3: unknown instruction: FOO (did you mean FROM?)");
    let long = format!("FROM x\nCOPY \\\n{}", " \\\n".repeat(100));
    let shown = parse(long.as_bytes()).unwrap_err().show("D", &long);
    assert!(shown.lines().count() < 50 && shown.ends_with("…\n"), "{shown}");
}

#[test]
fn triggers() {
    let span = Span { first: 7, last: 7 };
    for (text, expected) in [
        ("RUN make", "run sh make"),
        ("COPY --from=a b c", "copy b -> c from=a"),
        ("RUN <<EOF\nhi\nEOF", r"run sh <<EOF <EOF:hi\n>"),
        ("ENV a b", "env a~b"),
    ] {
        let instruction = trigger(text, span).unwrap();
        assert_eq!((show(&instruction.kind).as_str(), instruction.span), (expected, span));
    }
    for (text, expected) in [
        ("RUN a\nRUN b", "onbuild trigger should be a single expression"),
        ("", "onbuild trigger should be a single expression"),
        ("FROM x", "FROM isn't allowed as an ONBUILD trigger"),
        ("ONBUILD RUN x", "ONBUILD isn't allowed as an ONBUILD trigger"),
        ("FOO", "unknown instruction: FOO (did you mean FROM?)"),
        ("RUN <<EOF", "unterminated heredoc"),
    ] {
        let error = trigger(text, span).unwrap_err();
        assert!(error.message.ends_with(expected) && error.span == Some(span), "{error}");
    }
}

#[test]
fn many_of_everything_in_time() {
    let start = std::time::Instant::now();
    let words =
        |word: &str, count: usize| vec![word; count].chunks(8).map(|line| line.join(" ") + " \\\n").collect::<String>();
    for text in [
        format!("FROM x\nCOPY {} /d\n{}", words("<<A", 30_000), "A\n".repeat(30_000)),
        format!("FROM x\nENV {}", words("a=b", 100_000)),
        format!("FROM x\nRUN {} x", words("--mount=type=ssh", 30_000)),
        "FROM x\n".repeat(50_000),
        "ONBUILD ".repeat(8_000),
        format!("FROM x\nRUN {}", "[".repeat(60_000)),
        format!("FROM x\nRUN {}", "\\\n".repeat(100_000)),
    ] {
        let _ = parse(text.as_bytes());
    }
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

/// An instruction as it would be written, and how it shows.
fn written() -> impl Strategy<Value = (String, String)> {
    let word = "[a-z][a-z0-9_]{0,6}";
    let path = "/?[a-z][a-z0-9./_-]{0,8}";
    let pair = (word, "[a-zA-Z0-9:/$_.]{0,6}");
    prop_oneof![
        ("RUN|run", "[a-z][a-z /.$-]{0,12}[a-z]")
            .prop_map(|(k, text)| (format!("{k} {text}"), format!("run sh {text}"))),
        proptest::collection::vec("[^\\x00-\\x1f\\x7f]{0,6}", 0..4).prop_map(|words| {
            (format!("CMD {}", serde_json::to_string(&words).unwrap()), format!("cmd exec {}", words.join("|")))
        }),
        (proptest::collection::vec(path, 1..4), path, proptest::option::of(word), any::<bool>()).prop_map(
            |(from, to, stage, link)| {
                let flags = stage.as_ref().map(|stage| format!("--from={stage} ")).unwrap_or_default();
                let link_flag = if link { "--link " } else { "" };
                let mut shown = format!("copy {} -> {to}", from.join("|"));
                shown += if link { " link" } else { "" };
                shown += &stage.map(|stage| format!(" from={stage}")).unwrap_or_default();
                (format!("COPY {flags}{link_flag}{} {to}", from.join("  ")), shown)
            }
        ),
        proptest::collection::vec(pair, 1..4).prop_map(|pairs| {
            let one = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
            (format!("ENV {}", one.join(" ")), format!("env {}", one.join("|")))
        }),
        (word, proptest::collection::vec("[a-z# \\\\]{0,8}", 0..4)).prop_map(|(name, lines)| {
            let name = name.to_uppercase();
            let content: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let shown = format!("run sh cat <<{name} <{name}:{}>", content.escape_debug());
            (format!("RUN cat <<{name}\n{content}{name}"), shown)
        }),
        "/[a-z]{1,9}".prop_map(|path| (format!("WORKDIR  {path} "), format!("workdir {path}"))),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(all in proptest::collection::vec((written(), 0..4_usize), 1..8), crlf in any::<bool>()) {
        let mut text = "FROM x\n".to_owned();
        for ((written, _), noise) in &all {
            text += ["", "\n", "# comment\n", "  # indented\n\n"][*noise];
            text += written;
            text += "\n";
        }
        // Line ends of here-documents are theirs.
        let crlf = crlf && !text.contains("<<");
        let text = if crlf { text.replace('\n', "\r\n") } else { text };
        let file = parse(text.as_bytes()).unwrap();
        let shown: Vec<_> = file.stages[0].instructions.iter().map(|one| show(&one.kind)).collect();
        let expected: Vec<_> = all.into_iter().map(|((_, shown), _)| shown).collect();
        prop_assert_eq!(shown, expected);
    }

    /// Lines may be cut at any space that is not quoted.
    #[test]
    fn continuations_change_nothing(words in proptest::collection::vec("[a-z=$/.]{1,8}", 1..8), gaps in any::<u8>()) {
        let plain = kind(&format!("RUN x {}", words.join(" ")));
        let mut text = "RUN x ".to_owned();
        for (at, word) in words.iter().enumerate() {
            text += if at > 0 { " " } else { "" };
            text += if gaps >> (at % 8) & 1 == 1 { "\\\n# a comment\n" } else { "" };
            text += word;
        }
        prop_assert_eq!(kind(&text), plain);
    }

    /// The text of an instruction says the same again.
    #[test]
    fn texts_are_instructions((written, _) in written()) {
        let file = parse(format!("FROM x\n{written}\n").as_bytes()).unwrap();
        let instruction = &file.stages[0].instructions[0];
        let Kind::Onbuild(expression) = kind(&format!("ONBUILD {written}")) else { panic!() };
        prop_assert_eq!(&trigger(&expression, Span { first: 1, last: 1 }).unwrap().kind, &instruction.kind);
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Err(error) = parse(&bytes) {
            error.show("Dockerfile", &String::from_utf8_lossy(&bytes));
        }
    }
}
