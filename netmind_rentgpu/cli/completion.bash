# The completion of rentgpu for bash, 4.4 or newer.

_rentgpu_completion() {
    local program=${1/#\~\//$HOME/} kind word
    COMPREPLY=()
    while IFS=$'\t' read -r kind word; do
        case $kind in
            file) compopt -o default ;;
            part) compopt -o nospace && COMPREPLY+=("$word") ;;
            plain) COMPREPLY+=("$word") ;;
        esac
    done < <(
        _RENTGPU_COMPLETE=bash _RENTGPU_LINE="${COMP_LINE:0:COMP_POINT}" _RENTGPU_REPLACED="$2" "$program" 2>/dev/null
    )
}

complete -o nosort -F _rentgpu_completion rentgpu netmind-rentgpu
