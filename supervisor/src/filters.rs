//! containerd's filter language: `labels."a.b"==x,name~=^docker` (comma = and, several filters = or).
//!
//! ```text
//! filter   = selector *( "," selector )              blanks between tokens mean nothing
//! selector = path [ ("==" | "!=" | "~=") value ]     without operator: the field is present
//! path     = field *( "." field )                    field = letters, digits, "_" | quoted
//! value    = quoted | anything up to a comma or blank
//! quoted   = Go's string in ""; patterns also in || or //, where only the quote is escaped
//! ```

mod parser;

use regex_lite::Regex;

use crate::store::Labels;

/// Why a text is not a filter.
#[derive(Debug, thiserror::Error)]
#[error("filter {filter:?}: {why} at character {at}")]
pub(crate) struct FilterError {
    filter: String,
    why: &'static str,
    at: usize,
}

enum Test {
    Present,
    Equal(String),
    Differs(String),
    Matches(Regex),
}

struct Selector {
    path: Vec<String>,
    test: Test,
}

impl Selector {
    fn accepts(&self, value: Option<String>) -> bool {
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.as_ref() == Some(wanted),
            // An absent field differs from every value, and is empty to a pattern, as in containerd.
            Test::Differs(wanted) => value.unwrap_or_default() != *wanted,
            Test::Matches(pattern) => pattern.is_match(&value.unwrap_or_default()),
        }
    }
}

/// Filters of one request: an object passes if any of them accepts it, or if there are none.
#[derive(Default)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

impl Filters {
    /// Reads the filters of a request; empty ones accept everything.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, FilterError> {
        texts.iter().map(|text| parser::filter(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an object passes; `field` gives the value of a path (`["labels", "a.b"]`), `None` if it has none.
    pub(crate) fn accept(&self, field: impl Fn(&[&str]) -> Option<String>) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|filter| {
                filter.iter().all(|selector| {
                    let path: Vec<&str> = selector.path.iter().map(String::as_str).collect();
                    selector.accepts(field(&path))
                })
            })
    }

    /// Whether an object with a set of named fields and labels passes. A field that is empty isn't there; a label is.
    pub(crate) fn accept_labelled(&self, labels: &Labels, field: impl Fn(&str) -> Option<String>) -> bool {
        self.accept(|path| match path {
            ["labels", rest @ ..] => labels.get(&rest.join(".")).cloned(),
            _ => field(&path.join(".")).filter(|value| !value.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        let labels = [
            ("a.b/c".to_owned(), "1".to_owned()),
            ("plain".to_owned(), "x,y".to_owned()),
            ("empty".to_owned(), String::new()),
            ("odd \"name\"\n".to_owned(), "ÿ".to_owned()),
        ]
        .into();
        let field = |name: &str| match name {
            "name" => Some("docker.io/library/nginx:1".to_owned()),
            "target.digest" => Some("sha256:00".to_owned()),
            "nothing" => Some(String::new()),
            _ => None,
        };
        Filters::parse(&filters).unwrap_or_else(|e| panic!("{e}")).accept_labelled(&labels, field)
    }

    #[test]
    fn selects() {
        for good in [
            &[][..],
            &[""],
            &["  "],
            &["name==docker.io/library/nginx:1"],
            &["name == docker.io/library/nginx:1 , labels.plain"],
            &["name~=nginx"],
            &["name~=/^docker\\.io\\/lib/"],
            &["name~=|^docker\\.io/|"],
            &["name~=\"^docker\\\\.io\""],
            &["name~=^docker.*:1$"],
            &["target.digest==sha256:00"],
            &["labels.\"a.b/c\"==1"],
            &["labels.\"a.b/c\""],
            &["\"labels\".plain==\"x,y\""],
            &["labels.plain"],
            &["labels.empty"],
            &["labels.empty==\"\""],
            &["labels.\"odd \\\"name\\\"\\n\"==\"\\u00ff\""],
            &["labels.\"odd \\x22name\\042\\n\"==\"\\U000000ff\""],
            &["name!=x,labels.plain"],
            &["absent!=x"],
            &["absent~=^$"],
            &["name==no", "labels.plain"],
        ] {
            assert!(accepts(good), "{good:?}");
        }
        for bad in [
            &["name==x"][..],
            &["absent"],
            &["nothing"],
            &["absent==\"\""],
            &["absent!=\"\""],
            &["labels.other"],
            &["labels.\"a.b/c\"==2"],
            &["name~=nginx,labels.plain==x"],
            &["name~=^nginx"],
        ] {
            assert!(!accepts(bad), "{bad:?}");
        }
    }

    #[test]
    fn refuses() {
        for (bad, why) in [
            ("==x", "expected a field"),
            ("name==\"x", "quote is not closed"),
            ("name~=|x", ""),
            ("a,", "expected a selector"),
            (",a", "expected a field"),
            ("a b", "expected ','"),
            ("a=b", "expected an operator"),
            ("a===b", ""),
            ("name~=[", "not a regular expression"),
            ("labels.==x", "expected a field"),
            ("name==", "expected a value"),
            ("name==,b", "expected a value"),
            ("name==\"\\q\"", "unknown escape"),
            ("name==\"\\ud800\"", "unknown escape"),
            ("name==\"a\"b", "expected ','"),
        ] {
            match Filters::parse(&[bad.to_owned()]) {
                Err(error) => assert!(error.to_string().contains(why), "{bad}: {error}"),
                // What begins like a quote or an operator and isn't one is a plain value.
                Ok(_) => assert!(why.is_empty(), "{bad} is taken"),
            }
        }
        assert!(Filters::parse(&["a".repeat(5000)]).is_err());
    }

    /// A text as the language quotes it.
    fn quote(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z.\"|/\\\\=~!, é0-7ux]{0,40}") {
            let _ = Filters::parse(&[text]);
        }

        #[test]
        fn any_text_can_be_asked_for(key in "\\PC{1,20}", value in "[\\PC\n]{0,20}", other in "\\PC{0,20}") {
            let labels: Labels = [(key.clone(), value.clone())].into();
            let accepts = |text: String| {
                let text = [text];
                Filters::parse(&text).unwrap_or_else(|e| panic!("{e}")).accept_labelled(&labels, |_| None)
            };
            let label = format!("labels.{}", quote(&key));
            prop_assert!(accepts(label.clone()));
            let equal = format!("{label}=={}", quote(&value));
            prop_assert!(accepts(equal.clone()));
            let differs = format!("{label}!={}", quote(&other));
            prop_assert_eq!(accepts(differs.clone()), other != value);
            // Comma is and.
            prop_assert_eq!(accepts(format!("{equal},{differs}")), other != value);
        }
    }
}
