//! containerd's filter language: `labels."a.b"==x,name~=^docker` (comma = and, several filters = or).
//!
//! ```text
//! filter   = selector *( "," selector )
//! selector = path [ ("==" | "!=" | "~=") value ]     without operator: the field is present
//! path     = field *( "." field )                    field = word | quoted
//! value    = quoted | anything up to a comma         quoted in ""; patterns also in || or //
//! ```

use regex_lite::Regex;

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

/// Filters of one request: an object passes if any of them accepts it, or if there are none.
#[derive(Default)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

impl Filters {
    /// Reads the filters of a request; empty ones accept everything.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, FilterError> {
        texts.iter().map(|text| Parser { text, at: 0 }.filter()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an object passes; `field` gives the value of a path (`["labels", "a.b"]`), `None` if it has none.
    pub(crate) fn accept(&self, field: impl Fn(&[&str]) -> Option<String>) -> bool {
        self.0.is_empty()
            || self.0.iter().any(|filter| {
                filter.iter().all(|selector| {
                    let path: Vec<&str> = selector.path.iter().map(String::as_str).collect();
                    let value = field(&path);
                    match &selector.test {
                        Test::Present => value.is_some(),
                        Test::Equal(wanted) => value.as_ref() == Some(wanted),
                        // An absent field differs from every value, as in containerd.
                        Test::Differs(wanted) => value.as_ref() != Some(wanted),
                        Test::Matches(pattern) => value.is_some_and(|value| pattern.is_match(&value)),
                    }
                })
            })
    }

    /// Whether an object with a set of named fields and labels passes.
    pub(crate) fn accept_labelled(
        &self,
        labels: &crate::store::Labels,
        field: impl Fn(&str) -> Option<String>,
    ) -> bool {
        self.accept(|path| match path {
            [single] => field(single).filter(|value| !value.is_empty()),
            ["labels", rest @ ..] => labels.get(&rest.join(".")).cloned(),
            _ => field(&path.join(".")),
        })
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

// Far above any real filter; a bound, since patterns come from clients.
const LIMIT: usize = 4096;

impl Parser<'_> {
    fn fail<T>(&self, why: &'static str) -> Result<T, FilterError> {
        Err(FilterError { filter: self.text.chars().take(200).collect(), why, at: self.at })
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn filter(mut self) -> Result<Vec<Selector>, FilterError> {
        if self.text.len() > LIMIT {
            return self.fail("longer than 4096 bytes");
        }
        let mut selectors = Vec::new();
        while !self.rest().is_empty() {
            selectors.push(self.selector()?);
            if self.rest().is_empty() {
                break;
            }
            if !self.rest().starts_with(',') {
                return self.fail("expected ','");
            }
            self.at += 1;
            if self.rest().is_empty() {
                return self.fail("expected a selector");
            }
        }
        Ok(selectors)
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.rest().starts_with('.') {
            self.at += 1;
            path.push(self.field()?);
        }
        let operator = self.rest().get(..2).unwrap_or("").to_owned();
        if !matches!(operator.as_str(), "==" | "!=" | "~=") {
            return Ok(Selector { path, test: Test::Present });
        }
        self.at += 2;
        let start = self.at;
        let value = self.value(operator == "~=")?;
        let test = match operator.as_str() {
            "==" => Test::Equal(value),
            "!=" => Test::Differs(value),
            _ => match Regex::new(&value) {
                Ok(pattern) => Test::Matches(pattern),
                Err(_) => {
                    self.at = start;
                    return self.fail("not a regular expression");
                }
            },
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        if self.rest().starts_with('"') {
            return self.quoted('"');
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let length = self.rest().find(|c: char| !word(c)).unwrap_or(self.rest().len());
        if length == 0 {
            return self.fail("expected a field");
        }
        let field = self.rest()[..length].to_owned();
        self.at += length;
        Ok(field)
    }

    // | and / quote patterns only, as in containerd: `topic==/tasks/exit` is a plain value. A pattern that only begins with
    // a slash (`topic~=/tasks/.*`) is one too.
    fn value(&mut self, pattern: bool) -> Result<String, FilterError> {
        let start = self.at;
        match self.rest().chars().next() {
            Some('"') => return self.quoted('"'),
            Some(quote @ ('|' | '/')) if pattern => {
                let value = self.quoted(quote);
                if value.is_ok() && (self.rest().is_empty() || self.rest().starts_with(',')) {
                    return value;
                }
                self.at = start;
            }
            _ => {}
        }
        let length = self.rest().find([',', ' ', '\t', '\n']).unwrap_or(self.rest().len());
        let value = self.rest()[..length].to_owned();
        self.at += length;
        Ok(value)
    }

    // Backslash escapes as in Go strings, of those that occur: the quote, the backslash, n, t, xHH. In patterns (| and /)
    // only the quote is escaped, since backslashes belong to the expression.
    fn quoted(&mut self, quote: char) -> Result<String, FilterError> {
        let mut value = String::new();
        let mut chars = self.rest()[1..].char_indices();
        let mut end = None;
        while let Some((at, c)) = chars.next() {
            if c == quote {
                end = Some(at);
                break;
            }
            if c != '\\' {
                value.push(c);
                continue;
            }
            match chars.next() {
                Some((_, c)) if c == quote => value.push(c),
                Some((_, c)) if quote != '"' => value.extend(['\\', c]),
                Some((_, 'n')) => value.push('\n'),
                Some((_, 't')) => value.push('\t'),
                Some((_, '\\')) => value.push('\\'),
                _ => return self.fail("unknown escape in quotes"),
            }
        }
        match end {
            Some(at) => {
                self.at += 1 + at + 1;
                Ok(value)
            }
            None => self.fail("quote is not closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn accepts(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        let labels = [("a.b/c".to_owned(), "1".to_owned()), ("plain".to_owned(), "x,y".to_owned())].into();
        Filters::parse(&filters)
            .unwrap_or_else(|e| panic!("{e}"))
            .accept_labelled(&labels, |f| (f == "name").then(|| "docker.io/library/nginx:1".to_owned()))
    }

    #[test]
    fn selects() {
        for good in [
            &[][..],
            &[""],
            &["name==docker.io/library/nginx:1"],
            &["name~=nginx"],
            &["name~=/^docker\\.io\\/lib/"],
            &["name~=|^docker\\.io/|"],
            &["labels.\"a.b/c\"==1"],
            &["labels.\"a.b/c\""],
            &["labels.plain==\"x,y\""],
            &["labels.plain"],
            &["name!=x,labels.plain"],
            &["absent!=x"],
            &["name==no", "labels.plain"],
        ] {
            assert!(accepts(good), "{good:?}");
        }
        for bad in [
            &["name==x"][..],
            &["absent"],
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
        for bad in ["==x", "name==\"x", "a,", ",a", "a b", "name~=[", "labels.==x", "name==\"\\q\""] {
            assert!(Filters::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "[a-z.\"|/\\\\=~!, é]{0,40}") {
            let _ = Filters::parse(&[text]);
        }
    }
}
