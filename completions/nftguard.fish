# fish completion for nftguard. The words come from nftguard itself, through click's protocol.

function __nftguard_complete
    set -l words (commandline -cp)
    set -l current (commandline -ct)
    set -l option (string match -r -- '^--[^=]*=' $current)
    for line in (env COMP_WORDS="$words" COMP_CWORD="$current" _NFTGUARD_COMPLETE=fish_complete nftguard 2>/dev/null)
        set -l part (string split -m 1 , -- $line)
        switch $part[1]
            case plain
                echo "$option$part[2]"
            case dir
                string replace -r -- '^' "$option" (__fish_complete_directories (string replace -- "$option" '' $current))
            case file
                string replace -r -- '^' "$option" (__fish_complete_path (string replace -- "$option" '' $current))
        end
    end
end

complete --no-files --keep-order --command nftguard --arguments "(__nftguard_complete)"
