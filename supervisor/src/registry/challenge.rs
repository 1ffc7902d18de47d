//! Challenges of the `WWW-Authenticate` header (RFC 9110, 11.6.1), and the scopes that tokens are for.

use std::collections::{BTreeMap, BTreeSet};

/// A challenge: scheme in lower case, and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Reads one header, which may hold several challenges: `Bearer realm="…",scope="a,b", Basic realm="x"`.
    pub(super) fn parse(text: &str) -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        let mut rest = text.trim_start_matches([' ', '\t', ',']);
        while !rest.is_empty() {
            let (word, after) = token(rest);
            if word.is_empty() {
                return found; // not in the grammar: what came before counts
            }
            let after = after.trim_start();
            // `name=value` belongs to the challenge before; a word alone begins a new one.
            if let Some(value) = after.strip_prefix('=')
                && let Some(last) = found.last_mut()
                && !value.starts_with('=')
            {
                let (value, tail) = value_of(value.trim_start());
                last.parameters.push((word.to_ascii_lowercase(), value));
                rest = tail;
            } else {
                found.push(Self { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
                rest = after;
            }
            rest = rest.trim_start_matches([' ', '\t', ',']);
        }
        found
    }
}

fn token(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))).unwrap_or(text.len());
    text.split_at(end)
}

fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        // Unquoted values with characters beyond tokens are seen in the wild; they end at a comma or space.
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// Puts lists of scopes together: `repository:a:pull` and `repository:a:push` are `repository:a:pull,push`.
pub(super) fn merge(lists: &[&str]) -> Vec<String> {
    let mut scopes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for scope in lists.iter().flat_map(|list| list.split(' ')).filter(|scope| !scope.is_empty()) {
        // The name in the middle may hold a port.
        let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
        scopes.entry(resource).or_default().extend(actions.split(',').filter(|action| !action.is_empty()));
    }
    let one = |(resource, actions): (&str, BTreeSet<&str>)| {
        format!("{resource}:{}", actions.into_iter().collect::<Vec<_>>().join(","))
    };
    scopes.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        let all = Challenge::parse(text);
        let one = |c: &Challenge| {
            let parameters: Vec<_> = c.parameters.iter().map(|(n, v)| format!("{n}={v}")).collect();
            format!("{}[{}]", c.scheme, parameters.join("|"))
        };
        all.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn challenges() {
        for (text, wanted) in [
            (
                r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull,push""#,
                "bearer[realm=https://auth.example/token|service=reg.example|scope=repository:a/b:pull,push]",
            ),
            (r#"Basic realm="a \"b\"", Bearer realm=x"#, r#"basic[realm=a "b"] bearer[realm=x]"#),
            ("Negotiate, Basic realm = \"x\"", "negotiate[] basic[realm=x]"),
            ("BASIC Realm=x", "basic[realm=x]"),
            (r#"Bearer realm="unclosed"#, "bearer[realm=unclosed]"),
            ("", ""),
            ("realm=x", "realm[]"),
            ("\"", ""),
        ] {
            assert_eq!(shown(text), wanted, "{text}");
        }
    }

    #[test]
    fn scopes_of_one_repository_are_one() {
        assert_eq!(
            merge(&["repository:a/b:push,pull", "", "repository:a/b:pull repository:c:pull", "registry:catalog:*"]),
            ["registry:catalog:*", "repository:a/b:pull,push", "repository:c:pull"]
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_ends(text in "[ -~é]{0,80}") {
            let _ = (Challenge::parse(&text), merge(&[&text]));
        }
    }
}
