//! Go's text templates, as docker's `--format` takes them: everything that text/template has, with docker's functions.

mod eval;
mod format;
mod funcs;
mod lexer;
mod parser;

use super::value::Value;

/// A template that has been read.
#[derive(Debug)]
pub struct Template {
    text: String,
    trees: parser::Trees,
}

/// What a template is applied to.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The fields, "." of the template.
    pub fields: Value,
    /// Labels, for `.Label "name"`. A text in their place: the fields are titles, and so are the labels.
    pub labels: Value,
}

/// What is wrong with a template, or with a template for this value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It can't be read.
    #[error("template: :{line}: {cause}")]
    Parse {
        /// The line.
        line: usize,
        /// Why.
        cause: String,
    },
    /// It can't be applied.
    #[error("template: :{place}: executing \"{template}\" at <{what}>: {cause}")]
    Execute {
        /// Where in the template, in bytes.
        at: usize,
        /// Line and column.
        place: String,
        /// The piece of the template.
        what: String,
        /// Why.
        cause: String,
        /// The name of the template.
        template: String,
    },
}

impl TemplateError {
    fn parse(text: &str, at: usize, cause: &str) -> Self {
        Self::Parse { line: 1 + text[..at].matches('\n').count(), cause: cause.to_owned() }
    }

    /// Tells where it is by line and column.
    fn placed(mut self, text: &str) -> Self {
        if let Self::Execute { at, place, .. } = &mut self {
            let before = text.get(..*at).unwrap_or_default();
            let column = before.rfind('\n').map_or(before.len(), |line| before.len() - line - 1);
            *place = format!("{}:{column}", 1 + before.matches('\n').count());
        }
        self
    }
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self { text: text.to_owned(), trees: parser::parse(text)? })
    }

    /// Applies it.
    pub fn execute(&self, context: &Context) -> Result<String, TemplateError> {
        eval::execute(&self.trees, context).map_err(|error| error.placed(&self.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(template: &str, json: &str) -> Result<String, String> {
        let fields = serde_json::from_str(json).unwrap();
        let labels = serde_json::from_str(r#"{"a":"b"}"#).unwrap();
        let template = Template::parse(template).map_err(|e| e.to_string())?;
        template.execute(&Context { fields, labels }).map_err(|e| e.to_string())
    }

    const DATA: &str = r#"{"Name":"/web","Id":"abc","State":{"Running":true,"Pid":42,"Health":null,"Error":""},
        "Config":{"Env":["A=1","B=2"],"Labels":{"k":"v","x":"y"},"Entrypoint":null,"Image":"img"},
        "NetworkSettings":{"Ports":{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"}],"81/tcp":null},
        "Networks":{"bridge":{"IPAddress":"172.17.0.2"}}},"Args":[],"Ratio":1.5}"#;

    #[test]
    fn results_are_gos() {
        for (template, want) in [
            ("plain", "plain"),
            ("{{.Name}}", "/web"),
            ("{{.ID}}", "abc"),
            ("a {{- .Name -}} b", "a/webb"),
            ("{{/* note */}}x", "x"),
            ("{{.State.Running}} {{.State.Pid}} {{.Ratio}}", "true 42 1.5"),
            ("{{json .Config.Env}}", r#"["A=1","B=2"]"#),
            ("{{json .State.Health}} {{.State.Health}}", "null <nil>"),
            ("{{.Config.Env}} {{.Args}} {{.Config.Entrypoint}}", "[A=1 B=2] [] []"),
            ("{{.Config.Labels}}", "map[k:v x:y]"),
            ("{{index .Config.Labels \"k\"}}|{{index .Config.Labels \"no\"}}|", "v||"),
            ("{{.Config.Labels.k}} {{.Config.Labels.no}}", "v <no value>"),
            ("{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}", "8080"),
            ("{{range .Config.Env}}[{{.}}]{{end}}", "[A=1][B=2]"),
            ("{{range $i, $e := .Config.Env}}{{if $i}},{{end}}{{$i}}={{$e}}{{end}}", "0=A=1,1=B=2"),
            ("{{range $k, $v := .NetworkSettings.Networks}}{{$k}} {{$v.IPAddress}}{{end}}", "bridge 172.17.0.2"),
            ("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "172.17.0.2"),
            ("{{range .Args}}x{{else}}none{{end}}", "none"),
            ("{{range .Config.Env}}{{.}}{{break}}{{end}}", "A=1"),
            ("{{range .Config.Env}}{{if eq . \"A=1\"}}{{continue}}{{end}}{{.}}{{end}}", "B=2"),
            ("{{if .State.Error}}bad{{else if .State.Running}}up{{else}}down{{end}}", "up"),
            ("{{if .State.Health}}{{.State.Health.Status}}{{else}}no check{{end}}", "no check"),
            ("{{with .Config}}{{.Image}} {{$.Name}}{{end}}", "img /web"),
            ("{{with .State.Error}}{{.}}{{else}}fine{{end}}", "fine"),
            ("{{$x := .Name}}{{$x}}{{$x = \"y\"}}{{$x}}", "/weby"),
            ("{{len .Config.Env}} {{len .Name}} {{len .Config.Labels}}", "2 4 2"),
            (
                "{{printf \"%s-%d|%5s|%-5s|%q|%05d|%x|%v|%%\" .Name .State.Pid \"a\" \"b\" \"c\" 7 255 .Args}}",
                "/web-42|    a|b    |\"c\"|00007|ff|[]|%",
            ),
            ("{{printf \"%.2f %t\" .Ratio true}}", "1.50 true"),
            ("{{printf \"%d\" .Name}}", "%!d(string=/web)"),
            ("{{join .Config.Env \";\"}}", "A=1;B=2"),
            ("{{split .Name \"e\" | json}}", r#"["/w","b"]"#),
            ("{{.Name | upper | printf \"%s!\"}}", "/WEB!"),
            ("{{title \"ab cd\"}} {{lower \"AB\"}} {{pad \"x\" 1 2}}| {{truncate \"abcdef\" 3}}", "Ab Cd ab  x  | abc"),
            (
                "{{eq .State.Pid 42}} {{ne 1 2}} {{lt 1 2}} {{le 2 2}} {{gt 1 2}} {{ge 2 3}} {{eq 1 2 1}}",
                "true true true true false false true",
            ),
            ("{{and true .Name}} {{or \"\" .Name}} {{not .Name}} {{and 0 .Nope}}", "/web /web false 0"),
            ("{{if and .State.Running (not .State.Error)}}ok{{end}}", "ok"),
            ("{{println .Name 1}}{{print 1 2 \"a\" \"b\"}}", "/web 1\n1 2ab"),
            ("{{`raw\\n`}}{{\"a\\tb\\u00e9\"}}{{'x'}}", "raw\\na\tbé120"),
            ("{{.Label \"a\"}}|{{.Label \"zz\"}}|", "b||"),
            ("{{slice .Name 1 3}}", "we"),
            ("{{json .State}}", r#"{"Running":true,"Pid":42,"Health":null,"Error":""}"#),
        ] {
            assert_eq!(run(template, DATA).as_deref(), Ok(want), "{template}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (template, part) in [
            ("{{.Nope}}", "template: :1:2: executing \"\" at <.Nope>: map has no entry for key \"Nope\""),
            ("{{.State.Nope}}", "template: :1:8: executing \"\" at <.State.Nope>: map has no entry for key \"Nope\""),
            ("{{.Name.X}}", "can't evaluate field X in type string"),
            ("{{foo}}", "function \"foo\" not defined"),
            ("{{.Name", "unclosed action"),
            ("{{if .Name}}x", "unexpected EOF"),
            ("{{end}}", "unexpected {{end}}"),
            ("{{else}}", "unexpected {{else}}"),
            ("{{\"x}}", "unterminated quoted string"),
            ("{{$x}}", "undefined variable \"$x\""),
            ("{{}}", "missing value for command"),
            ("{{index .Config.Env 7}}", "index out of range: 7"),
            ("{{lt 1 \"a\"}}", "incompatible types for comparison"),
            ("{{break}}", "{{break}} outside {{range}}"),
            ("{{len 3}}", "len of type"),
            ("{{range .Name}}{{end}}", "range can't iterate over /web"),
        ] {
            let error = run(template, DATA).unwrap_err();
            assert!(error.contains(part), "{template}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_template_panics(text in r#"(\{\{|\}\}|[-.a-z$" |():=,0-9%]|if |range |end|else|with |index |printf ){0,30}"#) {
            let _ = run(&text, DATA);
        }
    }
}
