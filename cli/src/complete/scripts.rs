//! The shells' side of completion: each asks `berth __complete`.

/// For bash, also without the package bash-completion.
pub const BASH: &str = r#"# bash completion for berth; put it into /usr/share/bash-completion/completions/berth, or: source <(berth completion bash)
_berth() {
    local cur line words cword directive=0
    if declare -F _get_comp_words_by_ref >/dev/null; then
        _get_comp_words_by_ref -n "=:" cur words cword
    else
        words=("${COMP_WORDS[@]}") cword=$COMP_CWORD cur=${COMP_WORDS[COMP_CWORD]}
    fi
    COMPREPLY=()
    while IFS='' read -r line; do
        case $line in
            :[0-9]*) directive=${line#:} ;;
            *) COMPREPLY+=("${line%%$'\t'*}") ;;
        esac
    done < <("${words[0]}" __complete "${words[@]:1:$((cword - 1))}" "$cur" 2>/dev/null)
    if [ ${#COMPREPLY[@]} -eq 0 ] && [ "$directive" -eq 0 ]; then
        COMPREPLY=($(compgen -f -- "$cur"))
        compopt -o filenames 2>/dev/null
        return
    fi
    case "${COMPREPLY[0]}" in *= | *:) compopt -o nospace 2>/dev/null ;; esac
    if declare -F __ltrim_colon_completions >/dev/null; then
        __ltrim_colon_completions "$cur"
    elif [[ $cur == *:* && $COMP_WORDBREAKS == *:* ]]; then
        local prefix=${cur%"${cur##*:}"} i
        for i in "${!COMPREPLY[@]}"; do COMPREPLY[i]=${COMPREPLY[i]#"$prefix"}; done
    fi
}
complete -o default -F _berth berth
"#;

/// For zsh.
pub const ZSH: &str = r#"#compdef berth
# zsh completion for berth; put it into a folder of $fpath as _berth, or: source <(berth completion zsh)
_berth() {
    local line word directive=0 space=' '
    local -a candidates plain
    while IFS='' read -r line; do
        case $line in
            :[0-9]*) directive=${line#:} ;;
            '') ;;
            *)
                word=${line%%$'\t'*}
                [[ $word == *[=:] ]] && space=''
                plain+=("$word")
                if [[ $line == *$'\t'* ]]; then
                    candidates+=("${word//:/\\:}:${line#*$'\t'}")
                else
                    candidates+=("${word//:/\\:}")
                fi
                ;;
        esac
    done < <("${words[1]}" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ${#plain} == 0 && directive == 0 )); then
        _files
        return
    fi
    _describe -V berth candidates -S "$space"
}
if [ "$funcstack[1]" = _berth ]; then _berth "$@"; else compdef _berth berth; fi
"#;

/// For fish.
pub const FISH: &str = r#"# fish completion for berth; put it into ~/.config/fish/completions/berth.fish, or: berth completion fish | source
function __berth_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l answer ($words[1] __complete $words[2..-1] "$current" 2>/dev/null)
    set -l directive 0
    test (count $answer) -gt 0; and set directive (string replace -r '^:' '' -- $answer[-1])
    set -l candidates (string match -v -r '^:[0-9]+$' -- $answer)
    if test (count $candidates) -eq 0; and test "$directive" = 0
        __fish_complete_path "$current"
        return
    end
    printf '%s\n' $candidates
end
complete -c berth -f -a '(__berth_complete)'
"#;
