# The container's side of jobs, in plain POSIX sh. `job_scripts` sends it with each action; the container keeps no copy.
#
# Arguments: the length of this script in bytes, the action, the job's name and id, and what else the action takes.
# A job is a folder with these files:
#   id           the job's id, which no earlier or later job of the same name has
#   command      the command, as JSON
#   supervisor   process id, boot id and start of the supervisor, which writes `ended`
#   leader       the same of the job's first process
#   began        the time of its start
#   stdout, stderr, times      the output, and lines of time, size of stdout, size of stderr
#   ended        exit status, time, and the kernel's clock; its space is taken ahead, so that a full disk cannot prevent it
# Times are seconds since 1970 by the container's clock. Variables that are set after the job's own begin with netmind_.

home=${HOME:-/root}
jobs=$home/.netmind_rentgpu/jobs
length=${1:-0} action=${2:-} name=${3:-} id=${4:-}
folder=$jobs/$name
boot_line='script=$(dd bs=1 count=$1 2>/dev/null); eval "$script"'

# Print a line for the client, and end.
say() {
  echo "netmind-job $*"
  exit 0
}

fail() {
  echo "$*" >&2
  exit 1
}

# Set `boot`, the id of the kernel's boot, or - if that is not known.
find_boot() {
  boot=-
  { read -r boot </proc/sys/kernel/random/boot_id; } 2>/dev/null
}

# Return 0 if a process has other threads than its first one, which may have ended before them.
has_threads() {
  set -- "/proc/$1/task"/*
  [ $# -gt 1 ]
}

# Return 0 if a process runs; set `start`, and where there is /proc, `state`, `parent` and `session`.
look_up() {
  start='' state='' parent='' session='' looked_up=$1
  if [ -r /proc/self/stat ]; then
    stat_line=''
    { while read -r part; do stat_line="$stat_line $part"; done <"/proc/$1/stat"; } 2>/dev/null || return 1
    set -- ${stat_line##*") "}
    [ $# -ge 20 ] || return 1
    state=$1 parent=$2 session=$4 start=${20}
    [ "$state" != X ] && { [ "$state" != Z ] || has_threads "$looked_up"; }
  else
    start=$(ps -o lstart= -p "$1" 2>/dev/null)
    [ -n "$start" ]
  fi
}

# Return 0 if the process that a file names still runs; set `known`, its process id.
runs() {
  known='' known_boot='' known_start=''
  { read -r known known_boot known_start <"$1"; } 2>/dev/null
  find_boot
  [ -n "$known_start" ] && [ "$known_boot" = "$boot" ] && look_up "$known" && [ "$start" = "$known_start" ]
}

# Set `known_id`, the id that a job's folder has.
read_id() {
  known_id=''
  { read -r known_id <"$1/id"; } 2>/dev/null || :
}

# Print the sizes of stdout and stderr, in a subshell. `wc` would read the files on some systems.
sizes() {
  unset TIME_STYLE BLOCK_SIZE LS_BLOCK_SIZE POSIXLY_CORRECT
  export LC_ALL=C
  set -- $(ls -ln stderr 2>/dev/null) - $(ls -ln stdout 2>/dev/null)
  size_of_err=0
  if [ "$1" != - ]; then
    size_of_err=$5
    while [ "$1" != - ]; do shift; done
  fi
  echo "${6:-0} $size_of_err"
}

# Wait a moment, as short as this system's sleep can be.
pause() {
  [ -n "${moment:-}" ] || if sleep 0.01 2>/dev/null; then moment=0.2 moments=5; else moment=1 moments=1; fi
  sleep "$moment"
}

# Wait a moment, or a second once that has been done for long; print a line now and then, which ends this process if the
# client is gone, because its pipe is broken.
pause_for_client() {
  rounds=$((${rounds:-0} + 1))
  if [ $rounds -lt 100 ]; then
    pause
  else
    sleep 1
    [ $((rounds % 15)) -ne 0 ] || echo "$1" || exit 1
  fi
}

# Enter the folder, if it is this job's.
enter() {
  read_id "$folder"
  [ "$known_id" = "$id" ] && cd "$folder" 2>/dev/null || say missing
}

# Print the state of the job whose folder this is.
describe() {
  is_running=no began=- status=- ended_at=- tick=- command='""'
  # First, because the supervisor writes `ended` before its own end.
  if runs supervisor; then is_running=yes; elif runs leader; then is_running=alone; fi
  { read -r began <began; } 2>/dev/null
  { read -r status ended_at tick <ended; } 2>/dev/null
  { read -r command <command; } 2>/dev/null
  read_id .
  [ -n "$known_id" ] && printf '%s\n' "netmind-job job $1 $known_id $is_running $status $began $ended_at $(sizes) $command"
}

# Set `given`, what the job needs, and return 0 if nothing of it was cut off.
read_given() {
  given=$(cat)
  case $given in
  *"netmind_complete=$id") ;;
  *) return 1 ;;
  esac
}

# Print a value of what is given.
given_value() {
  eval "$given" 2>/dev/null
  eval "printf %s \"\$netmind_$1\""
}

# Enter the folder in which the job is to start.
enter_directory() {
  cd "$home" && CDPATH='' cd -- "$directory" >/dev/null
}

# Start the job, unless an earlier start with this id has done so, whose connection was lost.
start_job() {
  # Otherwise, the values would be on the command line of a program.
  [ "$(command -v printf)" = printf ] || fail 'the /bin/sh of this container has no printf of its own'
  read_given || say cut
  directory=$(given_value directory)
  problem=$(enter_directory 2>&1) || say directory "$problem"
  # A shell may print warnings before.
  answer=$(launch)
  case "
$answer" in
  *"
ready" | *"
taken") ;;
  *) fail "${answer:-the supervisor of the job could not start}" ;;
  esac
  count=0
  while [ ! -s "$folder/began" ] && [ $count -lt 10 ]; do
    read_id "$folder"
    [ -z "$known_id" ] || [ "$known_id" = "$id" ] || break
    count=$((count + 1))
    sleep 1
  done
  read_id "$folder"
  [ "$known_id" = "$id" ] || say taken
  cd "$folder" && describe "$name"
}

# Start the supervisor, and print its answer. It makes the folder, so that this process's end leaves a whole job or none.
launch() {
  if command -v setsid >/dev/null 2>&1; then
    # The second setsid forks, because the first has made it a leader. With `&`, the job would ignore SIGINT for good.
    printf '%s%s' "$script" "$given" |
      setsid setsid /bin/sh -c "$boot_line" netmind-job-supervisor "$length" supervise "$name" "$id" 2>&1
  else
    # Without braces, because a shell that waits for the pipeline would keep its output open.
    printf '%s%s' "$script" "$given" |
      /bin/sh -c "$boot_line" netmind-job-supervisor "$length" supervise "$name" "$id" 2>&1 &
  fi
}

# Make the job's folder with all that does not change; print `taken`, and fail, if there is one.
make_folder() {
  mkdir -p -m 700 "$jobs" || { echo "cannot make $jobs"; return 1; }
  if ! mkdir -m 700 "$folder" 2>/dev/null; then
    # A start that was killed at once has left a folder without an id, whose name is free again.
    count=0
    while read_id "$folder" && [ -z "$known_id" ] && [ -d "$folder" ] && [ $count -lt 5 ]; do
      count=$((count + 1))
      sleep 1
    done
    if [ -z "$known_id" ] && [ -d "$folder" ]; then rm -rf "$folder"; fi
    if ! mkdir -m 700 "$folder" 2>/dev/null; then
      if [ -d "$folder" ]; then echo taken; else echo "cannot make $folder"; fi
      return 1
    fi
  fi
  cd "$folder" && echo "$id" >id.new && mv id.new id && : >stdout && : >stderr && : >times &&
    printf '%s\n' "$(given_value shown)" >command && printf '%99s\n' '' >ended.new &&
    echo "$$ $boot $start" >supervisor && { [ -z "$input" ] || mkfifo -m 600 stdin; } &&
    date +%s >began.new && mv began.new began && return
  rm -rf "$folder"
  return 1
}

# Run the job, and write how it has ended. What the client has sent is kept in no file.
supervise() {
  read_given || exit 1
  find_boot
  look_up $$
  input=$(given_value input)
  make_folder || exit 1
  # The client's process may have been ended, so that its pipe is broken.
  trap '' HUP INT QUIT TERM PIPE
  echo ready
  exec </dev/null >/dev/null 2>&1
  # This process holds the input until the job has read it.
  [ -z "$input" ] || printf "$input" >stdin &
  input=''
  sample &
  run_job
  status=$?
  (
    look_up self
    echo "$(date +%s) $(sizes)" >>times
    echo "$status $(date +%s) $start" 1<>ended.new
  )
  mv ended.new ended
}

# Run the job's command in a session of its own where there is setsid, otherwise in a process group.
run_job() {
  directory=$(given_value directory)
  set -- "$(command -v setsid)" "$boot" "$folder" "$id" "$(given_value command)"
  [ -n "$1" ] || set -m
  (
    exec >>stdout 2>>stderr
    if [ -p stdin ]; then
      exec <stdin
      rm -f stdin
    fi
    trap - INT QUIT TERM PIPE
    [ -z "$1" ] || trap - HUP
    enter_directory || exit 1
    # It writes `leader` before the command runs in the same process.
    netmind_record='{ read -r netmind_line </proc/$$/stat; } 2>/dev/null
      set -- "$1" "$2" "$3" ${netmind_line##*") "}
      echo "$$ $1 ${23:-$(ps -o lstart= -p $$)}" >"$2/leader"
      exec "${SHELL:-/bin/sh}" -c "$3"'
    # Last, because the variables may be those that the shell itself uses.
    eval "$given"
    export NETMIND_RENTGPU_JOB="$4"
    if [ -n "$1" ]; then
      exec "$1" /bin/sh -c "$netmind_record" netmind-job "$2" "$3" "$5"
    else
      exec /bin/sh -c "$netmind_record" netmind-job "$2" "$3" "$5"
    fi
  )
}

# Note the sizes once a second, if they have changed.
sample() {
  last='0 0'
  while runs supervisor && [ ! -e ended ]; do
    now=$(sizes)
    [ "$now" = "$last" ] || echo "$(date +%s) $now" >>times
    last=$now
    sleep 1
  done
}

# Wait until the job is over, and print its state.
wait_for_job() {
  enter
  while runs supervisor && [ ! -e ended ]; do pause_for_client waiting; done
  describe "$name"
}

# Print process:start of all that the job has started: its session, what has its id in the environment, and descendants.
list_processes() {
  has_leader=no
  runs leader && has_leader=yes
  leader=${known:-none} status='' ended_at='' tick=''
  { read -r status ended_at tick <ended; } 2>/dev/null
  marked=$(
    for each in /proc/[0-9]*/environ; do
      echo "= $each"
      cat "$each"
      echo
    done 2>/dev/null | tr '\0' '\n' |
      sed -n -e '/^= .proc.[0-9]*.environ$/h' -e "/^NETMIND_RENTGPU_JOB=$id\$/{x;s/[^0-9]//g;p;x;}"
  )
  marked=" $(echo $marked) "
  found=' ' others=''
  for each in /proc/[0-9]*; do
    process=${each#/proc/}
    [ "$process" != 1 ] && [ "$process" != $$ ] && look_up "$process" || continue
    is_ours=no
    # Once the leader is gone, a younger process of that session may belong to another one with the same number.
    if [ "$session" = "$leader" ]; then
      if [ $has_leader = yes ] || [ "$start" -le "${tick:-0}" ]; then is_ours=yes; fi
    fi
    case "$marked" in *" $process "*) is_ours=yes ;; esac
    case " $processes " in *" $process:$start "*) is_ours=yes ;; esac
    if [ $is_ours = yes ]; then
      found="$found$process "
      echo "$process:$start"
    else
      others="$others $process:$parent:$start"
    fi
  done
  # The descendants of those, until there are no more.
  is_complete=no
  while [ $is_complete = no ]; do
    is_complete=yes
    left=''
    for each in $others; do
      process=${each%%:*} parent=${each#*:}
      start=${parent#*:} parent=${parent%%:*}
      case "$found" in
      *" $parent "*)
        found="$found$process "
        echo "$process:$start"
        is_complete=no
        ;;
      *) left="$left $each" ;;
      esac
    done
    others=$left
  done
}

# Set `processes`, those that still run, and what they have started meanwhile.
find_processes() {
  if [ -r /proc/self/stat ]; then
    processes=$(echo $(list_processes))
  elif runs leader; then
    # Without /proc, the job's process group is all that can be found.
    processes="-$known:$start"
  else
    processes=''
  fi
}

# Send a signal to `processes`, but to none whose start is another.
send_signal() {
  for each in $processes; do
    process=${each%%:*}
    look_up "${process#-}" && [ "$start" = "${each#*:}" ] && kill -s "$1" -- "$process" 2>/dev/null
  done
}

has_processes() {
  for each in $processes; do
    process=${each%%:*}
    look_up "${process#-}" && [ "$start" = "${each#*:}" ] && return 0
  done
  return 1
}

# End all processes of the job: by SIGTERM, and after so many seconds by SIGKILL.
stop_job() {
  enter
  processes=''
  count=0
  # A job that has only just been started may have no process yet.
  while find_processes && [ -z "$processes" ] && [ ! -e ended ] && runs supervisor && [ $count -lt 50 ]; do
    count=$((count + 1))
    pause
  done
  send_signal TERM
  count=0
  while has_processes || { find_processes && [ -n "$processes" ]; }; do
    pause
    [ $count -lt $(($1 * moments)) ] || break
    count=$((count + 1))
  done
  count=0
  while find_processes && [ -n "$processes" ] && [ $count -lt 50 ]; do
    send_signal KILL
    count=$((count + 1))
    pause
  done
  [ -z "$processes" ] || fail "processes that SIGKILL did not end: $processes"
  count=0
  while runs supervisor && [ ! -e ended ] && [ $count -lt 50 ]; do
    count=$((count + 1))
    pause
  done
  if runs supervisor && [ ! -e ended ]; then fail 'the job still runs, although no process of it was found'; fi
  describe "$name"
}

# Remove the files of a job that is over.
remove_job() {
  enter
  if runs supervisor && [ ! -e ended ]; then say running; fi
  cd "$jobs" && mv "$name" ".$id" && rm -rf ".$id" && say removed
}

# Print the states of all jobs, or of one.
list_jobs() {
  for each in "$jobs"/${name:-*}/; do
    each=${each%/}
    [ -d "$each" ] && (cd "$each" && describe "${each##*/}")
  done
  say end
}

# --- logs ---

# Move a descriptor of a file forward by so many bytes.
skip() {
  dd bs=65536 skip=$(($1 / 65536)) count=0 2>/dev/null
  dd bs=1 skip=$(($1 % 65536)) count=0 2>/dev/null
}

# Print so many bytes of standard input, in frames of a letter and a length.
send() {
  left=$2
  while [ "$left" -gt 0 ]; do
    piece=$((left > 262144 ? 262144 : left))
    echo "$1 $piece"
    dd bs="$piece" count=1 2>/dev/null
    left=$((left - piece))
  done
}

# Return 0 if the fields of a sample are numbers: a full disk may have cut a line off.
is_sample() {
  case "$moment_of.$size_out.$size_err" in
  *[!0-9.]* | .* | *..* | *.) return 1 ;;
  esac
  [ ${#moment_of} -le 12 ] && [ ${#size_out} -le 18 ] && [ ${#size_err} -le 18 ]
}

# Print what was written up to the sizes `to_out` and `to_err`, and the samples of that. The job may have shortened it.
flush() {
  set -- $(sizes)
  if [ "$1" -lt "$out" ] || [ "$2" -lt "$err" ]; then
    echo S
    exit 0
  fi
  if [ "$to_out" -le "$1" ] && [ "$to_err" -le "$2" ]; then
    printf %s "$samples"
  else
    to_out=$((to_out < $1 ? to_out : $1)) to_err=$((to_err < $2 ? to_err : $2))
    printf %s "$samples" | while read -r letter moment_of size_out size_err; do
      echo "$letter $moment_of $((size_out < to_out ? size_out : to_out)) $((size_err < to_err ? size_err : to_err))"
    done
  fi
  [ "$to_out" -le "$out" ] || send O $((to_out - out)) <&3
  [ "$to_err" -le "$err" ] || send E $((to_err - err)) <&4
  out=$((to_out > out ? to_out : out)) err=$((to_err > err ? to_err : err))
  samples='' batch=0
}

# Set `out` and `err` to where the last lines begin, or somewhat before.
find_tail() {
  set -- "$1" $(sizes)
  out=$(($2 - $(tail -n "$1" stdout | wc -c))) err=$(($3 - $(tail -n "$1" stderr | wc -c)))
  out=$((out > 0 ? out : 0)) err=$((err > 0 ? err : 0))
}

# Set `out` and `err` to the sizes before a time by the client's clock, which says what time it is now.
find_time() {
  skew=$(($(date +%s) - $2))
  # A clock that seems to be ahead may be right, because the request may have been on its way for that long.
  [ $skew -lt 0 ] || [ $skew -gt 60 ] || skew=0
  set -- $(($1 + skew))
  while read -r moment_of size_out size_err; do
    is_sample || continue
    [ "$moment_of" -lt "$1" ] || break
    out=$size_out err=$size_err
  done <times
}

# Print the output, in frames: first where it starts; T, time, out and err: a sample; O or E, and a length: so many bytes of
# stdout or stderr follow; X: the job is over, and all of it is sent; C: all is sent that was there; S: the
# job has shortened its output; K: nothing new.
print_logs() {
  enter
  out=$1 err=$2
  [ "$4" = - ] || find_tail "$4"
  [ "$5" = - ] || find_time "$5" "$6"
  # From the byte before, so that the client sees if a line begins there.
  if [ "$4$5" != -- ]; then out=$((out > 0 ? out - 1 : 0)) err=$((err > 0 ? err - 1 : 0)); fi
  echo "netmind-job logs $out $err"
  exec 3<stdout 4<stderr 5<times
  skip "$out" <&3
  skip "$err" <&4
  samples='' batch=0 to_out=$out to_err=$err is_over=no is_first=yes
  while :; do
    while read -r moment_of size_out size_err <&5; do
      is_sample || continue
      [ "$size_out" -gt "$to_out" ] || [ "$size_err" -gt "$to_err" ] || continue
      # Many samples at once, because each frame costs a process; but only one if it is large.
      if [ $((size_out - out + size_err - err)) -gt 262144 ] || [ $batch -ge 200 ]; then flush; fi
      batch=$((batch + 1))
      samples="${samples}T $moment_of $size_out $size_err
"
      to_out=$((size_out > to_out ? size_out : to_out)) to_err=$((size_err > to_err ? size_err : to_err))
    done
    flush
    if [ $is_over = no ] && [ "$3" = yes ]; then
      [ $is_first = no ] || echo C
      is_first=no
      # What is sampled until then is sent in one more round.
      if [ -e ended ] || ! runs supervisor; then is_over=yes; else pause_for_client K; fi
      continue
    fi
    break
  done
  if [ -e ended ] || ! runs supervisor; then is_over=yes; else is_over=no; fi
  set -- $(sizes)
  to_out=$1 to_err=$2
  if [ "$to_out" -gt "$out" ] || [ "$to_err" -gt "$err" ]; then
    samples="T $(date +%s) $to_out $to_err
"
    flush
  fi
  [ $is_over = no ] || echo X
  echo C
}

case $action in
start) start_job ;;
supervise) supervise ;;
list) list_jobs ;;
status) enter && describe "$name" ;;
wait) wait_for_job ;;
stop) stop_job "$5" ;;
remove) remove_job ;;
logs) print_logs "$5" "$6" "$7" "$8" "$9" "${10}" ;;
esac
