# bash completion for nftguard. The words come from nftguard itself, through click's protocol.
#
# Unlike click's own script it takes the line as it was typed: bash makes several words of @mail and 203.0.113.7:25.

_nftguard()
{
    local line=${COMP_LINE:0:COMP_POINT} cur rest prefix kind value
    local -a words
    read -ra words <<<"$line"
    if [[ $line == *[[:space:]] ]]; then
        words+=('')
    fi
    cur=${words[-1]}
    # To bash a word begins behind = and :, and with @, as far as it is told so; what stands before that stays as it is.
    rest=$cur
    [[ $COMP_WORDBREAKS != *=* ]] || rest=${rest##*=}
    [[ $COMP_WORDBREAKS != *:* ]] || rest=${rest##*:}
    [[ $COMP_WORDBREAKS != *@* || $rest != *@* ]] || rest=@${rest##*@}
    prefix=${cur%"$rest"}
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("${value#"$prefix"}") ;;
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
        esac
    done < <(env COMP_WORDS="$line" COMP_CWORD=$((${#words[@]} - 1)) _NFTGUARD_COMPLETE=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F _nftguard nftguard
