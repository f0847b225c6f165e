#compdef rentgpu netmind-rentgpu
# The completion of rentgpu for zsh.

_rentgpu_completion() {
    local -a plain part
    local line typed has_files
    typed="${(F)words[1,CURRENT-1]}"$'\n'"$QIPREFIX$PREFIX"
    for line in "${(@f)$(_RENTGPU_COMPLETE=zsh _RENTGPU_LINE="$typed" ${~words[1]} 2>/dev/null)}"; do
        case $line in
            file$'\t'*) has_files=1 ;;
            part$'\t'*) part+=("${line#*$'\t'}") ;;
            plain$'\t'*) plain+=("${line#*$'\t'}") ;;
        esac
    done
    local found=1
    (( $#plain )) && _describe -V word plain && found=0
    (( $#part )) && _describe -V word part -S '' && found=0
    if [[ -n $has_files ]]; then
        [[ $PREFIX == --*=* ]] && compset -P '*='
        _files && found=0
    fi
    return found
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _rentgpu_completion "$@"
else
    compdef _rentgpu_completion rentgpu netmind-rentgpu
fi
