//! Dockerfiles that nobody would write, made of those that somebody would: whatever becomes of one, it is read or refused, and a
//! refusal can be shown; what is read can be checked, and filled in.
//!
//! Some thousands of them in every run of the unit tests; `make fuzz-build` goes on for BERTH_FUZZ_SECONDS. What fails is printed with
//! its seed: BERTH_FUZZ_SEED tries that one again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::{
    expand::Lexer,
    instruction::Kind,
    lint::{Inherited, Linter},
    parse::{parse, trigger},
};

/// Lines with everything in them.
const LINES: &[&str] = &[
    "# syntax=docker/dockerfile:1",
    "# escape=`",
    "# check=skip=StageNameCasing,FromAsCasing;error=true;experimental=all",
    "\u{feff}# comment",
    "#",
    "",
    "ARG VERSION=1.0 OTHER",
    "FROM --platform=$BUILDPLATFORM debian:${VERSION:-12} AS Build",
    "FROM scratch",
    "FROM build as final",
    "RUN make \\",
    "  && make install \\",
    "# inside",
    "RUN [\"make\", \"-j\", \"\\u00e9\"]",
    "RUN --mount=type=cache,target=/c,sharing=locked,uid=$U,mode=0755 --network=none --device=v/c=a,required make",
    "RUN --mount=type=secret,id=s,env=TOKEN,required --mount=type=tmpfs,target=/t,size=1.5GiB \\",
    "RUN --mount=\"type=bind,\"\"source=a,b\"\",target=/x\" --security=insecure <<-'EOF' cat",
    "RUN <<A <<-\"B\" 3<< C",
    "A",
    "\tB",
    "EOF",
    "COPY --from=build --chown=1:2 --chmod=u=rwX --link=true --parents --exclude=*.o a \"b c\" /d/",
    "COPY <<EOF <<A /x",
    "COPY [\"a b\", \"c\"]",
    "ADD --checksum=sha256:00 --keep-git-dir=false --unpack https://x/y.git#v1:sub /z",
    "ENV a=\"b c\" d=e\\ f g='h' $i=${j:+k}",
    "ENV old form ${P##*/} ${P//a\\/b/c}",
    "LABEL \"a b\"=\"c\\\"d\" e=${f:?g}",
    "EXPOSE 80 127.0.0.1:53:53/UDP $P",
    "VOLUME [\"/a\", \"/b\"]",
    "HEALTHCHECK --interval=1m30.5s --timeout=3s --start-period=1h --start-interval=5s --retries=3 CMD curl -f x",
    "HEALTHCHECK NONE",
    "SHELL [\"/bin/bash\", \"-c\"]",
    "ONBUILD COPY <<EOF /x",
    "ONBUILD RUN make",
    "MAINTAINER me",
    "STOPSIGNAL 9",
    "USER a:b",
    "WORKDIR rel/$x",
    "CMD a b",
    "ENTRYPOINT [\"a\"]",
];
/// Pieces that mean something somewhere.
const PIECES: &[&str] = &[
    "\\",
    "`",
    "\"",
    "'",
    "$",
    "${",
    "}",
    "<<",
    "<<-",
    "--",
    "=",
    ",",
    "[",
    "]",
    "\n",
    "\r\n",
    "#",
    " ",
    "\t",
    "\0",
    "é",
    "\u{2028}",
    ":-",
    "%%",
    "//",
    "*",
    "9999999999999999999999",
    "-1",
    "{\"a\":1}",
    "\u{feff}",
    "EOF\n",
];

/// Numbers that look like chance, and come again with the seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % sides.max(1) as u64) as usize
    }

    fn one<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.roll(all.len())]
    }
}

fn bent(seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut text = String::new();
    if dice.roll(4) > 0 {
        text += "FROM x\n";
    }
    for _ in 0..dice.roll(12) {
        text += dice.one(LINES);
        text += if dice.roll(20) == 0 { "\r\n" } else { "\n" };
    }
    let mut bytes = text.into_bytes();
    for _ in 0..dice.roll(6) {
        let at = dice.roll(bytes.len() + 1);
        let until = (at + dice.roll(12)).min(bytes.len());
        match dice.roll(5) {
            0 => drop(bytes.drain(at..until)),
            1 => {
                let copy = bytes[at..until].to_vec();
                let to = dice.roll(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            2 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
            3 => bytes.truncate(at.max(bytes.len() / 2)),
            _ => drop(bytes.splice(at..at, dice.one(PIECES).bytes())),
        }
    }
    bytes
}

fn try_one(seed: u64) -> bool {
    let bytes = bent(seed);
    let source = String::from_utf8_lossy(&bytes);
    let file = match parse(&bytes) {
        Ok(file) => file,
        Err(error) => {
            let shown = error.show("Dockerfile", &source);
            let lines = source.lines().count().max(1);
            if let Some(span) = error.span {
                assert!(span.first >= 1 && span.first <= span.last && span.last <= lines, "{error:?}");
                assert!(
                    error.column.is_none() || shown.contains('^') || shown.contains('…'),
                    "no caret: {error:?}\n{shown}"
                );
            }
            assert!(!error.message.is_empty() && shown.contains(&error.message));
            return false;
        }
    };
    let env = BTreeMap::from([("VERSION".to_owned(), "1".to_owned()), ("P".to_owned(), "/a/b".to_owned())]);
    let mut linter = Linter::new(&file.directives.check);
    linter.file(&file, &env, &env);
    let mut end = 0;
    for stage in &file.stages {
        linter.stage(stage, Inherited::default());
        assert!(stage.span.first > end, "{stage:?}");
        end = stage.span.last;
        for instruction in &stage.instructions {
            assert!(instruction.span.first > end && instruction.span.last >= instruction.span.first, "{instruction:?}");
            end = instruction.span.last;
            let lexer = Lexer::new(file.directives.escape);
            let _ = lexer.word(&instruction.text, &env);
            match &instruction.kind {
                Kind::Onbuild(expression) => drop(trigger(expression, instruction.span)),
                Kind::Run(run) => run.mounts.iter().for_each(|mount| drop(mount.expand(&lexer, &env))),
                _ => {}
            }
        }
    }
    let _ = linter.finish();
    true
}

#[test]
fn fuzz() {
    let variable = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    if let Some(seed) = variable("BERTH_FUZZ_SEED") {
        println!("{}", String::from_utf8_lossy(&bent(seed)));
        try_one(seed);
        return;
    }
    let limit = variable("BERTH_FUZZ_SECONDS").map(Duration::from_secs);
    let start = Instant::now();
    let first = if limit.is_some() { u64::from(std::process::id()) << 32 } else { 0 };
    let (mut tried, mut read) = (0_u64, 0_u64);
    while limit.map_or(tried < 4000, |limit| start.elapsed() < limit) {
        let seed = first + tried;
        match std::panic::catch_unwind(|| try_one(seed)) {
            Ok(ok) => read += u64::from(ok),
            Err(_) => panic!("BERTH_FUZZ_SEED={seed}\n{}", String::from_utf8_lossy(&bent(seed))),
        }
        tried += 1;
    }
    println!("{tried} Dockerfiles, {read} of them read");
    assert!(read > tried / 20, "only {read} of {tried} were read: nothing behind the parser was tried");
}
