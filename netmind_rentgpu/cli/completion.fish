# The completion of rentgpu for fish.

function __rentgpu_completion
    set -l words (commandline --tokenize --current-process --cut-at-cursor)
    set -l program (string match --regex '^(?:.*/)?(?:netmind-)?rentgpu$' -- $words; echo rentgpu)[1]
    set program (string replace --regex '^~/' "$HOME/" -- $program)
    set -l typed (commandline --current-process --cut-at-cursor | string collect)
    set -l token (commandline --current-token --cut-at-cursor)
    for line in (_RENTGPU_COMPLETE=fish _RENTGPU_LINE="$typed" $program 2>/dev/null)
        set -l parts (string split --max 1 \t -- $line)
        if test $parts[1] = file
            # Behind an option and its equals sign, each path needs them in front.
            set -l path (string sub --start (math (string length -- $parts[2]) + 1) -- $token)
            string join \n -- $parts[2](__fish_complete_path $path)
        else
            printf '%s\n' $parts[2]
        end
    end
end

complete --command rentgpu --command netmind-rentgpu --no-files --keep-order --arguments '(__rentgpu_completion)'
