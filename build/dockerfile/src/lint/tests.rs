use super::*;
use crate::parse::parse;

fn predefined() -> BTreeMap<String, String> {
    let all = [
        ("TARGETPLATFORM", "linux/amd64"),
        ("TARGETARCH", "amd64"),
        ("BUILDPLATFORM", "linux/amd64"),
        ("BUILDOS", "linux"),
        ("BUILDARCH", "amd64"),
    ];
    all.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn linted(text: &str) -> Linter {
    let file = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
    let mut args = predefined();
    for instruction in &file.globals {
        let Kind::Arg(all) = &instruction.kind else { continue };
        args.extend(all.iter().filter_map(|arg| Some((arg.name.clone(), arg.default.clone()?))));
    }
    let mut linter = Linter::new(&file.directives.check);
    linter.file(&file, &predefined(), &args);
    let mut before: BTreeMap<String, Inherited> = BTreeMap::new();
    for stage in &file.stages {
        let state = linter.stage(stage, before.get(&stage.base).copied().unwrap_or_default());
        before.extend(stage.name.clone().map(|name| (name, state)));
    }
    linter
}

/// `line rule: detail` of each.
fn shown(linter: &Linter) -> Vec<String> {
    linter.warnings().iter().map(|one| format!("{} {}: {}", one.span.first, one.rule, one.detail)).collect()
}

#[test]
fn rules_that_a_file_breaks() {
    for (text, expected) in [
        ("FROM x", &[][..]),
        // StageNameCasing
        ("FROM scratch AS BadName", &["1 StageNameCasing: Stage name 'BadName' should be lowercase"]),
        ("FROM scratch AS good-name.1_x", &[]),
        // FromAsCasing
        ("FROM scratch as base", &["1 FromAsCasing: 'as' and 'FROM' keywords' casing do not match"]),
        ("from scratch AS base", &["1 FromAsCasing: 'AS' and 'from' keywords' casing do not match"]),
        ("from scratch as base", &[]),
        (
            "From scratch as base",
            &[
                "1 ConsistentInstructionCasing: Command 'From' should match the case of the command majority (uppercase)",
            ],
        ),
        ("FROM scratch As base", &["1 FromAsCasing: 'As' and 'FROM' keywords' casing do not match"]),
        // NoEmptyContinuation
        ("FROM x\nRUN a \\\n\n  b", &["4 NoEmptyContinuation: Empty continuation line"]),
        ("FROM x\nRUN a \\\n# comment\n  b", &[]),
        ("FROM x\nRUN <<E\n\n\nE", &[]),
        // ConsistentInstructionCasing
        (
            "FROM x\nRUN a\ncopy a b",
            &[
                "3 ConsistentInstructionCasing: Command 'copy' should match the case of the command majority (uppercase)",
            ],
        ),
        (
            "from x\nrun a\nCOPY a b",
            &[
                "3 ConsistentInstructionCasing: Command 'COPY' should match the case of the command majority (lowercase)",
            ],
        ),
        (
            "FROM x\nrun a",
            &["2 ConsistentInstructionCasing: Command 'run' should match the case of the command majority (uppercase)"],
        ),
        (
            "from x\nrun a\nRuN b",
            &["3 ConsistentInstructionCasing: Command 'RuN' should match the case of the command majority (lowercase)"],
        ),
        ("arg a=b\nFROM x", &[]),
        // DuplicateStageName
        (
            "FROM x AS a\nFROM x AS A\nFROM x AS b",
            &[
                "2 StageNameCasing: Stage name 'A' should be lowercase",
                "2 DuplicateStageName: Duplicate stage name \"a\", stage names should be unique",
            ],
        ),
        // ReservedStageName
        (
            "FROM x AS scratch\nFROM x AS context",
            &[
                "1 ReservedStageName: Stage name should not use the same name as reserved stage \"scratch\"",
                "2 ReservedStageName: Stage name should not use the same name as reserved stage \"context\"",
            ],
        ),
        // JSONArgsRecommended
        (
            "FROM x\nCMD a",
            &[
                "2 JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
            ],
        ),
        (
            "FROM x\nENTRYPOINT a",
            &[
                "2 JSONArgsRecommended: JSON arguments recommended for ENTRYPOINT to prevent unintended behavior related to OS signals",
            ],
        ),
        ("FROM x\nCMD [\"a\"]\nENTRYPOINT [\"a\"]", &[]),
        ("FROM x\nSHELL [\"sh\"]\nCMD a\nENTRYPOINT b", &[]),
        ("FROM x AS a\nSHELL [\"sh\"]\nFROM a\nCMD a", &[]),
        // MaintainerDeprecated
        (
            "FROM x\nMAINTAINER me",
            &["2 MaintainerDeprecated: Maintainer instruction is deprecated in favor of using label"],
        ),
        // UndefinedArgInFrom
        (
            "FROM x:$v",
            &[
                "1 InvalidDefaultArgInFrom: Default value for ARG x:$v results in empty or invalid base image name",
                "1 UndefinedArgInFrom: FROM argument 'v' is not declared",
            ],
        ),
        (
            "ARG version=1\nFROM x:${versoin:-2}",
            &["2 UndefinedArgInFrom: FROM argument 'versoin' is not declared (did you mean version?)"],
        ),
        (
            "FROM --platform=$BUILDPLATFROM x",
            &["1 UndefinedArgInFrom: FROM argument 'BUILDPLATFROM' is not declared (did you mean BUILDPLATFORM?)"],
        ),
        ("ARG v\nFROM x:${v:-1}", &[]),
        ("FROM --platform=$BUILDPLATFORM x", &[]),
        // WorkdirRelativePath
        (
            "FROM x\nWORKDIR app/",
            &["2 WorkdirRelativePath: Relative workdir \"app/\" can have unexpected results if the base image changes"],
        ),
        ("FROM x\nWORKDIR /a\nWORKDIR b", &[]),
        ("FROM x AS a\nWORKDIR /a\nFROM a\nWORKDIR b", &[]),
        ("FROM x\nWORKDIR $HOME/b", &[]),
        ("FROM x\nWORKDIR \"/a b\"", &[]),
        (
            "FROM x\nWORKDIR a\nWORKDIR b",
            &["2 WorkdirRelativePath: Relative workdir \"a\" can have unexpected results if the base image changes"],
        ),
        // MultipleInstructionsDisallowed
        (
            "FROM x\nCMD [\"a\"]\nCMD [\"b\"]\nCMD [\"c\"]",
            &[
                "2 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used",
                "3 MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used",
            ],
        ),
        (
            "FROM x\nENTRYPOINT [\"a\"]\nHEALTHCHECK NONE\nENTRYPOINT [\"b\"]\nHEALTHCHECK CMD x",
            &[
                "2 MultipleInstructionsDisallowed: Multiple ENTRYPOINT instructions should not be used in the same stage because only the last one will be used",
                "3 MultipleInstructionsDisallowed: Multiple HEALTHCHECK instructions should not be used in the same stage because only the last one will be used",
            ],
        ),
        ("FROM x AS a\nCMD [\"a\"]\nFROM a\nCMD [\"b\"]", &[]),
        // LegacyKeyValueFormat
        (
            "FROM x\nENV a b\nLABEL c d",
            &[
                "2 LegacyKeyValueFormat: \"ENV key=value\" should be used instead of legacy \"ENV key value\" format",
                "3 LegacyKeyValueFormat: \"LABEL key=value\" should be used instead of legacy \"LABEL key value\" format",
            ],
        ),
        ("FROM x\nENV a=b\nLABEL c=d", &[]),
        // RedundantTargetPlatform
        (
            "FROM --platform=$TARGETPLATFORM x",
            &[
                "1 RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
            ],
        ),
        (
            "FROM --platform=${TARGETPLATFORM} x",
            &[
                "1 RedundantTargetPlatform: Setting platform to predefined ${TARGETPLATFORM} in FROM is redundant as this is the default behavior",
            ],
        ),
        ("FROM --platform=linux/$TARGETARCH x", &[]),
        // SecretsUsedInArgOrEnv
        (
            "FROM x\nARG SECRET_PASSPHRASE\nENV SUPER_Secret=foo\nENV password=bar a=b\nENV git_key=",
            &[
                "2 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ARG \"SECRET_PASSPHRASE\")",
                "3 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"SUPER_Secret\")",
                "4 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"password\")",
                "5 SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"git_key\")",
            ],
        ),
        ("FROM x\nENV PUBLIC_KEY= monkey=1 KEY_FILE=x\nARG public_token TOKEN_VERSION authority", &[]),
        // InvalidDefaultArgInFrom
        (
            "ARG v\nFROM x:$v",
            &["2 InvalidDefaultArgInFrom: Default value for ARG x:$v results in empty or invalid base image name"],
        ),
        (
            "ARG image\nFROM $image",
            &["2 InvalidDefaultArgInFrom: Default value for ARG $image results in empty or invalid base image name"],
        ),
        ("ARG v=1\nARG image=x:$v\nFROM $image", &[]),
        ("ARG v\nFROM x:${v:-1}", &[]),
        // FromPlatformFlagConstDisallowed
        (
            "FROM --platform=linux/arm64 x",
            &["1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/arm64\""],
        ),
        ("FROM --platform=linux/arm64 x AS build_arm64", &[]),
        ("FROM --platform=aarch64 x AS build_arm64", &[]),
        ("FROM --platform=linux/amd64 x AS linux-build", &[]),
        (
            "FROM --platform=windows x AS build",
            &["1 FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"windows\""],
        ),
        // InvalidDefinitionDescription
        ("# nothing of it\nFROM x AS base", &[]),
        (
            "# check=experimental=InvalidDefinitionDescription\n# bar this is the bar\nARG foo=bar\n# BasE this\nFROM scratch AS base\n# bad\nARG version=latest\n# bad\nARG foo=baz bar=qux\n# fine\nRUN x",
            &[
                "3 InvalidDefinitionDescription: Comment for ARG should follow the format: `# foo <description>`",
                "7 InvalidDefinitionDescription: Comment for ARG should follow the format: `# version <description>`",
                "9 InvalidDefinitionDescription: Comment for ARG should follow the format: `# <arg_key> <description>`",
                "5 InvalidDefinitionDescription: Comment for FROM should follow the format: `# base <description>`",
            ],
        ),
        (
            "# check=experimental=all\n# foo this is the foo\nARG foo=bar\n\n# base is it\nFROM scratch AS base\n# baz this\nARG foo=baz bar=qux baz=quux\n#\nARG bit=bat\n# bad\n\nARG x",
            &[],
        ),
        // ExposeProtoCasing
        (
            "FROM x\nEXPOSE 80/TCP",
            &["2 ExposeProtoCasing: Defined protocol '80/TCP' in EXPOSE instruction should be lowercase"],
        ),
        ("FROM x\nEXPOSE 80/tcp $p/UDP", &[]),
        // ExposeInvalidFormat
        (
            "FROM x\nEXPOSE 127.0.0.1:80:80",
            &[
                "2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '127.0.0.1:80:80'",
            ],
        ),
        (
            "FROM x\nEXPOSE 5000-5010:5000-5010 [::1]:8080:80/Udp",
            &[
                "2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '5000-5010:5000-5010'",
                "2 ExposeProtoCasing: Defined protocol '[::1]:8080:80/Udp' in EXPOSE instruction should be lowercase",
                "2 ExposeInvalidFormat: EXPOSE instruction should not define an IP address or host-port mapping, found '[::1]:8080:80/Udp'",
            ],
        ),
        ("FROM x\nEXPOSE 80 8000-8010/udp", &[]),
    ] {
        let mut found = shown(&linted(text));
        let mut expected: Vec<_> = expected.iter().map(|one| (*one).to_owned()).collect();
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "{text}");
    }
}

#[test]
fn checks_that_are_not_wanted() {
    let body = "FROM scratch as base\ncopy a b\n";
    for (check, expected) in [
        ("", &["ConsistentInstructionCasing", "FromAsCasing"][..]),
        ("#check=skip=all\n", &[]),
        ("#check=skip=all;error=true\n", &[]),
        ("#check=skip=ConsistentInstructionCasing,FromAsCasing\n", &[]),
        ("# check = skip=ConsistentInstructionCasing;error=false\n", &["FromAsCasing"]),
        ("#check=skip=all;experimental=all\n", &[]),
    ] {
        let linter = linted(&format!("{check}{body}"));
        let rules: BTreeSet<_> = linter.warnings().iter().map(|one| one.rule).collect();
        assert_eq!(rules.into_iter().collect::<Vec<_>>(), expected, "{check}");
        assert!(linter.finish().is_ok());
    }
    let error = linted(&format!("#check=skip=FromAsCasing;error=true\n{body}CMD a")).finish().unwrap_err();
    assert_eq!(error.message, "lint violation found for rules: ConsistentInstructionCasing, JSONArgsRecommended");
    assert_eq!(error.span.map(|span| span.first), Some(3));
    // Of one instruction.
    let text = "FROM x\n# check=skip=JSONArgsRecommended\nCMD a\n# Check = skip=all\nWORKDIR b\n# check=skip=Other\nENTRYPOINT c";
    assert_eq!(linted(text).warnings().iter().map(|one| one.span.first).collect::<Vec<_>>(), [7]);
}

#[test]
fn options() {
    let check = parse_check(" skip= A , B ; error=1; experimental=C,D").unwrap();
    assert_eq!(
        (check.skip, check.error, check.experimental),
        (vec!["A".into(), "B".into()], true, vec!["C".into(), "D".into()])
    );
    assert!(parse_check("").is_ok_and(|check| check == Check::default()));
    assert!(parse_check("skip=all").is_ok_and(|check| check.skip_all));
    for (text, expected) in [
        ("skip", "invalid check option \"skip\""),
        ("skip=A;", "invalid check option \"\""),
        ("a=b", "invalid check option \"a\""),
        ("error=yes", "failed to parse check option \"error=yes\": strconv.ParseBool: parsing \"yes\": invalid syntax"),
    ] {
        assert_eq!(parse_check(text).unwrap_err(), expected, "{text}");
    }
}

#[test]
fn what_a_conversion_tells() {
    let file =
        parse(b"# check=experimental=CopyIgnoredFile\nFROM x AS s\nCOPY $foo .\nADD a b\nENV PATH=$PAHT").unwrap();
    let mut linter = Linter::new(&file.directives.check);
    let stage = &file.stages[0];
    let [copy, add, env] = stage.instructions.as_slice() else { panic!() };
    let names = |all: &[&str]| all.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let declared = BTreeSet::from(["declared".to_owned()]);
    linter.undefined_vars(copy, &names(&["foo", "foo", "declared", "BUILDKIT_SBOM_SCAN_STAGE"]), &declared, ["HOME"]);
    linter.undefined_vars(env, &names(&["PAHT"]), &declared, ["HOME", "PATH"]);
    linter.ignored_file(copy, "Dockerfile");
    linter.ignored_file(add, "a");
    linter.port("53/UDP", env);
    linter.base_platform(stage, "x", "linux/amd64", "linux/amd64/v2");
    linter.base_platform(stage, "x", "linux/amd64", "linux/arm64");
    assert_eq!(
        shown(&linter),
        [
            "3 UndefinedVar: Usage of undefined variable '$foo'",
            "5 UndefinedVar: Usage of undefined variable '$PAHT' (did you mean $PATH?)",
            "3 CopyIgnoredFile: Attempting to Copy file \"Dockerfile\" that is excluded by .dockerignore",
            "4 CopyIgnoredFile: Attempting to Add file \"a\" that is excluded by .dockerignore",
            "5 ExposeProtoCasing: Defined protocol '53/UDP' in EXPOSE instruction should be lowercase",
            "2 InvalidBaseImagePlatform: Base image x was pulled with platform \"linux/arm64\", expected \"linux/amd64\" for current build",
        ]
    );
    let mut plain = Linter::default();
    plain.ignored_file(copy, "Dockerfile");
    assert_eq!(plain.warnings(), []);
}

#[test]
fn every_rule_has_a_page() {
    let names: BTreeSet<_> = rules::ALL.iter().map(|rule| rule.name).collect();
    assert_eq!((names.len(), rules::ALL.len()), (22, 22));
    for rule in rules::ALL {
        let page =
            rule.url.strip_prefix("https://docs.docker.com/go/dockerfile/rule/").unwrap().strip_suffix('/').unwrap();
        assert_eq!(page.replace('-', ""), rule.name.to_lowercase(), "{rule:?}");
        assert!(!rule.description.is_empty());
    }
}
