# The signs that a container is in use, in plain POSIX sh. `activity` sends it; the container keeps no copy, and it changes
# nothing there. It starts a handful of programs in all, however many processes the container has.
#
# It prints lines that begin with netmind-activity:
#   login ADDRESS PORT ADDRESS PORT    the connection of this login: the client's end, then the server's
#   processes NUMBER                   the processes that logins have started, without those of this session
#   connection END END                 an established connection to the server's port: local end, remote end
#   connections-read                   the end of these
#   gpus                               the lines that follow are those of nvidia-smi
#   gpus-read STATUS                   the end of these
#   unknown FIELD CAUSE                the cause for which something could not be read

# A login may export options that change how a script runs.
set +e +u +f +C
line_end='
'

say() {
  echo "netmind-activity $*"
}

is_number() {
  case $1 in '' | *[!0-9]*) return 1 ;; esac
}

# Return 0 if a process exists; set `state`, `parent` and `session`.
look_up() {
  state='' parent='' session='' stat_line=''
  { while read -r part; do stat_line="$stat_line $part"; done <"/proc/$1/stat"; } 2>/dev/null || return 1
  # The name, in parentheses, may have spaces, parentheses and line ends.
  set -- ${stat_line##*") "}
  [ $# -ge 4 ] && state=$1 parent=$2 session=$4
}

# Return 0 if a login has started the process.
is_of_login() {
  case "$line_end$found$line_end" in
  *"$line_end$1/environ$line_end"*) ;;
  *) return 1 ;;
  esac
}

# Set `own`, this process and its ancestors, between spaces.
find_ancestors() {
  own=' ' parent=$$
  while [ "$parent" -gt 0 ]; do
    own="$own$parent "
    look_up "$parent" || return
  done
}

# Print the number of the processes that logins have started.
count_processes() {
  if ! look_up 1; then
    say 'unknown processes the container has no /proc that shows all processes'
    return
  fi
  # A process keeps the variable after nohup and setsid, and in tmux. One that ends meanwhile is an error of grep.
  found=$(cd /proc && LC_ALL=C grep -lz -e "^SSH_CONNECTION=[^ ]* [0-9]* [^ ]* $1\$" [0-9]*/environ 2>/dev/null)
  if ! is_of_login $$ || ! look_up $$; then
    say 'unknown processes the variables of processes cannot be searched'
    return
  fi
  own_session=$session own=' '
  # Some servers start all commands of a connection in one session, which is not ours alone then.
  is_of_login "$own_session" || { own_session=none && find_ancestors; }
  count=0
  for process in $found; do
    process=${process%/environ}
    case $own in *" $process "*) continue ;; esac
    look_up "$process" || continue
    case $state in Z | X) continue ;; esac
    [ "$session" = "$own_session" ] || count=$((count + 1))
  done
  say "processes $count"
}

# Print the established connections to a port.
list_connections() {
  end='[0-9A-F]*:[0-9A-F]*'
  port=$(printf %04X "$1")
  LC_ALL=C sed -n "s/^ *[0-9]*: \([0-9A-F]*:$port\) \($end\) 01 .*/netmind-activity connection \1 \2/p" \
    /proc/net/tcp /proc/net/tcp6 2>/dev/null
  say connections-read
}

# Print the use of the GPUs. It comes last, because nvidia-smi hangs if the driver does.
list_gpus() {
  if command -v nvidia-smi >/dev/null 2>&1; then
    say gpus
    nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits </dev/null 2>/dev/null
    say "gpus-read $?"
  else
    say 'unknown gpu_use the container has no nvidia-smi'
  fi
}

read_activity() {
  # The login's startup script may have left a line without an end.
  echo
  set -- $SSH_CONNECTION
  if [ $# -eq 4 ] && is_number "$4"; then
    say "login $*"
    count_processes "$4"
    list_connections "$4"
  else
    say 'unknown processes SSH_CONNECTION does not name the connection of the login'
    say 'unknown connections SSH_CONNECTION does not name the connection of the login'
  fi
  list_gpus
}

read_activity
