use super::*;
use proptest::prelude::*;

const ENV: &[(&str, &str)] = &[
    ("PWD", "/home"),
    ("SHELL", "bash"),
    ("KOREAN", "한국어"),
    ("NULL", ""),
    ("TWO", "one two"),
    ("P", "/usr/lib/a.tar.gz"),
    ("X", "xxyy"),
    ("STAR", "a*b*c"),
    ("LINES", "a\nb"),
    ("1", "first"),
    ("10", "tenth"),
    ("@", "all"),
];

fn word(text: &str) -> Result<String, String> {
    Lexer::new('\\').word(text, ENV).map(|word| word.text).map_err(|error| error.message)
}

#[test]
fn words_and_variables() {
    for (text, expected) in [
        ("", ""),
        ("hello", "hello"),
        ("he'll'o", "hello"),
        ("he'llo'", "hello"),
        (r"he\'llo", "he'llo"),
        (r#"abc\tdef"#, "abctdef"),
        (r#""abc\tdef""#, r"abc\tdef"),
        (r#"'abc\tdef'"#, r"abc\tdef"),
        ("hello   there", "hello   there"),
        (r"hello\", "hello"),
        (r#""hello\""there"""#, r#"hello"there"#),
        (r#""a\$b""#, "a$b"),
        (r#""a\\b""#, r"a\b"),
        (r#""it's""#, "it's"),
        (r#"'say "x"'"#, r#"say "x""#),
        (r#"'$PWD'"#, "$PWD"),
        (r#""$PWD""#, "/home"),
        (r"\$PWD", "$PWD"),
        (r"\\$PWD", r"\/home"),
        ("$PWD", "/home"),
        ("${PWD}", "/home"),
        ("$PWDx", ""),
        ("${PWD}x", "/homex"),
        ("a$", "a$"),
        ("$", "$"),
        ("$ x", "$ x"),
        ("$/x", "$/x"),
        ("he$PWD/$SHELL", "he/home/bash"),
        ("$한", ""),
        ("안녕$KOREAN", "안녕한국어"),
        ("${KOREAN}하", "한국어하"),
        ("$NULL", ""),
        ("$NOPE", ""),
        ("${NOPE}x", "x"),
        ("$1x", "firstx"),
        ("$10x", "tenthx"),
        ("${1}0", "first0"),
        ("$@", "all"),
        ("$*x", "x"),
        ("<< EOF", "<< EOF"),
        ("a<b", "a<b"),
    ] {
        assert_eq!(word(text), Ok(expected.into()), "{text}");
    }
}

#[test]
fn modifiers() {
    for (text, expected) in [
        ("${NOPE:-d}", "d"),
        ("${NOPE-d}", "d"),
        ("${NULL:-d}", "d"),
        ("${NULL-d}", ""),
        ("${PWD:-d}", "/home"),
        ("${NOPE:-}", ""),
        ("${NOPE:-$PWD}", "/home"),
        ("${NOPE:-${NOPE2:-deep}}", "deep"),
        ("${NOPE:-'a b'}", "a b"),
        (r#"${NOPE:-"a}b"}"#, "a}b"),
        (r"${NOPE:-a\}b}", "a}b"),
        ("${NOPE:-$NOPE2}x", "x"),
        ("${PWD:+y}", "y"),
        ("${PWD+y}", "y"),
        ("${NULL:+y}", ""),
        ("${NULL+y}", "y"),
        ("${NOPE:+y}", ""),
        ("${NOPE+y}", ""),
        ("${PWD:+${SHELL}}", "bash"),
        ("${PWD:?no}", "/home"),
        ("${PWD?no}", "/home"),
        ("${NULL?no}", ""),
        ("${P#*/}", "usr/lib/a.tar.gz"),
        ("${P##*/}", "a.tar.gz"),
        ("${P%.*}", "/usr/lib/a.tar"),
        ("${P%%.*}", "/usr/lib/a"),
        ("${P%.zip}", "/usr/lib/a.tar.gz"),
        ("${P#x}", "/usr/lib/a.tar.gz"),
        ("${P#/usr}", "/lib/a.tar.gz"),
        ("${P:#/usr}", "/lib/a.tar.gz"),
        ("${X#*}", "xxyy"),
        ("${X##*}", ""),
        ("${X%%*}", ""),
        ("${X#?}", "xyy"),
        ("${X%?}", "xxy"),
        ("${X#*x*y}", "y"),
        ("${X##*x*y}", ""),
        ("${X##*x}", "yy"),
        ("${X#}", "xxyy"),
        ("${X##}", "xxyy"),
        ("${X%}", "xxyy"),
        ("${X%x}", "xxyy"),
        ("${X%%y*}", "xx"),
        ("${STAR%%\\**}", "a"),
        ("${STAR#a\\*}", "b*c"),
        ("${STAR#a?}", "b*c"),
        ("${KOREAN#?}", "국어"),
        ("${KOREAN%어}", "한국"),
        ("${LINES#*b}", "a\nb"),
        ("${X#$NULL}", "xxyy"),
        ("${NOPE#x}", ""),
        ("${X/x/z}", "zxyy"),
        ("${X//x/z}", "zzyy"),
        ("${X//x/}", "yy"),
        ("${X/q/z}", "xxyy"),
        ("${X//?/ab}", "abababab"),
        ("${X/*/z}", "z"),
        ("${X/$NULL/ww}", "wwxxyy"),
        ("${X///}", "xxyy"),
        ("${NOPE///}", ""),
        (r"${P//\//:}", ":usr:lib:a.tar.gz"),
        (r"${P//\//\/}", r"\/usr\/lib\/a.tar.gz"),
        ("${P/$PWD/x}", "/usr/lib/a.tar.gz"),
        ("${STAR//\\*/-}", "a-b-c"),
        ("${PWD/home/$SHELL}", "/bash"),
        ("${KOREAN//국/xy}", "한xy어"),
        ("${P//.*/}", "/usr/lib/a"),
        ("${X//(x)[y]+/z}", "xxyy"),
    ] {
        assert_eq!(word(text), Ok(expected.into()), "{text}");
    }
}

#[test]
fn refusals() {
    for (text, expected) in [
        ("'a", "unexpected end of statement while looking for matching single-quote"),
        ("\"a", "unexpected end of statement while looking for matching double-quote"),
        ("a\"$x", "unexpected end of statement while looking for matching double-quote"),
        ("${", "syntax error: missing '}'"),
        ("${a", "syntax error: missing '}'"),
        ("${a:", "syntax error: missing '}'"),
        ("${a:-", "syntax error: missing '}'"),
        ("${a:-${b}", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:}", "syntax error: bad substitution"),
        ("${{a}}", "syntax error: bad substitution"),
        ("${:-x}", "syntax error: bad substitution"),
        ("${a=b}", "unsupported modifier (=) in substitution"),
        ("${a:=b}", "unsupported modifier (:=) in substitution"),
        ("${a,,}", "unsupported modifier (,) in substitution"),
        ("${a b}", "unsupported modifier ( ) in substitution"),
        ("${NOPE:?no way}", "NOPE: no way"),
        ("${NOPE?no $SHELL}", "NOPE: no bash"),
        ("${NOPE:?}", "NOPE: is not allowed to be unset"),
        ("${NOPE?}", "NOPE: is not allowed to be unset"),
        ("${NULL:?}", "NULL: is not allowed to be empty"),
        ("${X//ww}", "syntax error: missing '/' in ${}"),
        ("${X//}", "syntax error: missing '/' in ${}"),
        ("${X/a/b", "syntax error: missing '}'"),
        (r"${X#\x}", r"invalid pattern (\x) in substitution: invalid escape '\x'"),
        (r"${X/\q/r}", r"invalid pattern (\q) in substitution: invalid escape '\q'"),
    ] {
        assert_eq!(word(text), Err(expected.into()), "{text}");
    }
    let error = Lexer::new('\\').word("'a", ENV).unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to process \"'a\": unexpected end of statement while looking for matching single-quote"
    );
}

#[test]
fn split_words() {
    for (text, expected) in [
        ("", vec![]),
        ("   ", vec![]),
        ("a b", vec!["a", "b"]),
        ("  a \t b  ", vec!["a", "b"]),
        ("'a b' c", vec!["a b", "c"]),
        ("\"a b\"c d", vec!["a bc", "d"]),
        (r"a\ b c", vec!["a b", "c"]),
        ("$TWO", vec!["one", "two"]),
        ("\"$TWO\"", vec!["one two"]),
        ("x$TWO", vec!["xone", "two"]),
        ("${TWO}y z", vec!["one", "twoy", "z"]),
        ("'' a", vec!["a"]),
        ("$NULL $NULL a", vec!["a"]),
        ("8080-8090/tcp", vec!["8080-8090/tcp"]),
        ("a\u{a0}b", vec!["a", "b"]),
        ("<<  EOF x", vec!["<<  EOF", "x"]),
        ("< < x", vec!["<", "<", "x"]),
    ] {
        assert_eq!(
            Lexer::new('\\').words(text, ENV),
            Ok(expected.iter().map(|word| (*word).into()).collect()),
            "{text}"
        );
    }
}

#[test]
fn other_lexers() {
    let show = Lexer::display('\\');
    for (text, expected) in [
        ("'$PWD' $NOPE \"$PWD\"", "'$PWD' $NOPE \"/home\""),
        (r"a\ b", r"a\ b"),
        ("${NOPE}", "${NOPE}"),
        ("${NOPE:-d}", "${NOPE:-d}"),
        ("${NOPE/a/b}", "${NOPE/a/b}"),
        ("${PWD:-d}", "/home"),
    ] {
        assert_eq!(show.word(text, ENV).unwrap().text, expected, "{text}");
    }
    let heredoc = Lexer::heredoc();
    for (text, expected) in [("it's \"$PWD\"", "it's \"/home\""), (r"\$PWD \n", r"$PWD n"), ("${NOPE:-'d'}", "'d'")] {
        assert_eq!(heredoc.word(text, ENV).unwrap().text, expected, "{text}");
    }
    let backtick = Lexer::new('`');
    for (text, expected) in [(r"C:\x\$SHELL", r"C:\x\bash"), ("`$PWD", "$PWD"), ("\"`\"\"", "\"")] {
        assert_eq!(backtick.word(text, ENV).unwrap().text, expected, "{text}");
    }
}

#[test]
fn names_that_were_asked_for() {
    for (text, used, unmatched) in [
        ("x", &[][..], &[][..]),
        ("$PWD $PWD $NOPE", &["PWD"], &["NOPE"]),
        ("${NOPE:-$OTHER}", &[], &["NOPE", "OTHER"]),
        ("${PWD:+$SHELL}", &["PWD", "SHELL"], &[]),
        ("'$PWD'", &[], &[]),
        ("${X/$P/$Q}", &["P", "X"], &["Q"]),
    ] {
        let word = Lexer::new('\\').word(text, ENV).unwrap();
        assert_eq!(
            (word.used, word.unmatched),
            (used.iter().map(|x| (*x).into()).collect(), unmatched.iter().map(|x| (*x).into()).collect()),
            "{text}"
        );
    }
}

#[test]
fn bounds() {
    let large = vec![("A".to_owned(), "x".repeat(600_000))];
    let failed = |text: &str| Lexer::new('\\').word(text, &large).unwrap_err().message;
    assert_eq!(failed("$A$A"), "the word is larger than 1048576 bytes");
    assert!(failed("${A//x/yyyy}").contains("the result is larger"));
    assert!(failed(&format!("${{A//{}y/z}}", "?".repeat(2000))).contains("takes too long"));
    let nested = "${a:-".repeat(10_000) + &"}".repeat(10_000);
    assert_eq!(failed(&nested), "substitutions are nested deeper than 64");
    let error = Lexer::new('\\').word(&("'".to_owned() + &"x".repeat(5000)), &()).unwrap_err();
    assert!(error.word.chars().count() == 201, "{}", error.word.len());
}

/// What shells say, where there is one.
#[test]
fn as_bash_does() {
    for text in [
        "${P#*/}",
        "${P##*/}",
        "${P%.*}",
        "${P%%.*}",
        "${X#*x*y}",
        "${X##*x*y}",
        "${X%y*}",
        "${X/x/z}",
        "${X//x/z}",
        "${STAR//\\*/-}",
        "${NOPE:-d}",
        "${NULL-d}",
        "${NULL:+y}",
        "${NULL+y}",
        "${X%%?y}",
        "${KOREAN#?}",
        "\"$TWO\"",
        "a\\ b",
        "'$X'",
    ] {
        let script = format!("printf %s {text}");
        let Ok(output) = std::process::Command::new("bash")
            .args(["-c", &script])
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .envs(ENV.iter().filter(|(name, _)| name.starts_with(char::is_alphabetic)).copied())
            .output()
        else {
            return;
        };
        assert_eq!(word(text).unwrap(), String::from_utf8_lossy(&output.stdout), "{text}");
    }
}

proptest! {
    #[test]
    fn never_panics(text in r#"[a-c$\{\}:\-+?#%/\\'" *<`1]{0,40}"#) {
        for escape in ['\\', '`'] {
            for lexer in [Lexer::new(escape), Lexer::display(escape), Lexer::heredoc()] {
                let _ = lexer.word(&text, ENV);
                let _ = lexer.words(&text, ENV);
            }
        }
    }

    #[test]
    fn plain_text_stays(text in "[a-zA-Z0-9/._=:, -]{0,60}") {
        prop_assert_eq!(word(&text), Ok(text.clone()));
        let words: Vec<String> = text.split_whitespace().map(Into::into).collect();
        prop_assert_eq!(Lexer::new('\\').words(&text, ENV).unwrap(), words);
    }

    #[test]
    fn a_quoted_text_is_itself(text in "[^']{0,40}") {
        prop_assert_eq!(word(&format!("'{text}'")), Ok(text));
    }

    /// A prefix that goes and what stays are the whole; the longest is not shorter than the shortest.
    #[test]
    fn prefixes(pattern in r"[ab*?]{0,6}", value in "[abc]{0,12}") {
        let env = vec![("V".to_owned(), value.clone())];
        let trim = |sign: &str| Lexer::new('\\').word(&format!("${{V{sign}{pattern}}}"), &env).unwrap().text;
        let (short, long) = (trim("#"), trim("##"));
        prop_assert!(value.ends_with(&short) && value.ends_with(&long) && long.len() <= short.len());
        let (short, long) = (trim("%"), trim("%%"));
        prop_assert!(value.starts_with(&short) && value.starts_with(&long) && long.len() <= short.len());
    }
}
