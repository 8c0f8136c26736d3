#!/bin/sh
# fletch with everything that it needs, a Java runtime too. The first start unpacks what follows the last line of this
# script into $XDG_CACHE_HOME/fletch, ~/.cache/fletch or a folder of this user's in $TMPDIR or /tmp, under the name of its checksum.
# Three parts follow, which are unpacked at once: a tar of what is compressed already, the Java virtual machine and the start-up cache.
#   FLETCH_JAVA_OPTS  further JVM options
sum=@SUM@
tar_bytes=@TAR_BYTES@ jvm_bytes=@JVM_BYTES@ aot_bytes=@AOT_BYTES@
tar_check="@TAR_CHECK@"
PATH=${PATH:+$PATH:}/usr/bin:/bin
export PATH

self=$0
case $self in */*) ;; *) self=$(command -v -- "$self") ;; esac

# Whether $1 holds or can take the program; sets home.
usable() {
  case $1 in /*) ;; *) return 1 ;; esac
  home=$1/program-$sum
  [ ! -x "$home/runtime/bin/java" ] || return 0
  mkdir -p -m 700 "$1" 2>/dev/null && [ -w "$1" ]
}

# A folder that others can write to: ours only if nobody else has made it.
private() { [ -d "$1" ] && [ ! -h "$1" ] && [ -O "$1" ]; }

# The parts of this file, each from its own end.
tar_part() { tail -c "$((tar_bytes + jvm_bytes + aot_bytes))" "$self" | head -c "$tar_bytes"; }
jvm_part() { tail -c "$((jvm_bytes + aot_bytes))" "$self" | head -c "$jvm_bytes"; }
aot_part() { tail -c "$aot_bytes" "$self"; }

# gzip checks its own parts.
sound() { [ "$(tar_part | cksum)" = "$tar_check" ] && jvm_part | gzip -t 2>/dev/null && aot_part | gzip -t 2>/dev/null; }

unpack() {
  [ -r "$self" ] || { echo "fletch: cannot read $self" >&2; exit 1; }
  find "$base" -maxdepth 1 -name '.unpack.*' -mtime +1 -exec rm -rf {} + 2>/dev/null
  new=$(mktemp -d "$base/.unpack.XXXXXX") || exit 1
  jobs=
  # Jobs of a script do not hear Ctrl-C.
  trap '[ -z "$jobs" ] || kill $jobs 2>/dev/null; rm -rf "$new"' EXIT
  trap 'exit 130' INT TERM HUP
  mkdir -p "$new/fletch/runtime/lib/server"
  jvm_part | gzip -dc >"$new/fletch/runtime/lib/server/@JVM@" 2>/dev/null &
  jobs=$!
  aot_part | gzip -dc >"$new/fletch/fletch.aot" 2>/dev/null &
  aot_job=$!
  jobs="$jobs $aot_job"
  tar_part | tar -xf - -C "$new" 2>/dev/null && [ "$(tar_part | cksum)" = "$tar_check" ] && wait "${jobs% *}" && wait "$aot_job" &&
    [ -x "$new/fletch/runtime/bin/java" ] || {
    if sound; then echo "fletch: cannot unpack into $base" >&2; else echo "fletch: $self is damaged: its parts do not have their checksums" >&2; fi
    exit 1
  }
  jobs=
  mv "$new/fletch" "$new/program-$sum" || exit 1
  # A rename: of several first starts at once one succeeds, the others use its result.
  mv "$new/program-$sum" "$base/" 2>/dev/null || [ -x "$home/runtime/bin/java" ] || { echo "fletch: cannot write to $base" >&2; exit 1; }
  rm -rf "$new"
  trap - EXIT INT TERM HUP
}

user=
base=${XDG_CACHE_HOME:-}/fletch
[ -n "${XDG_CACHE_HOME:-}" ] && usable "$base" || {
  base=${HOME:-}/.cache/fletch
  [ -n "${HOME:-}" ] && usable "$base"
} || {
  user=$(id -u)
  base=${TMPDIR:-/tmp}/fletch-$user
  usable "$base" && private "$base"
} || {
  echo "fletch: no folder to unpack into: set XDG_CACHE_HOME to one that can be written" >&2
  exit 1
}
[ -x "$home/runtime/bin/java" ] || unpack

# Arguments and file names are decoded by the locale; output is UTF-8 anyway.
case ${LC_ALL:-${LC_CTYPE:-${LANG:-}}} in
  *[Uu][Tt][Ff]-8* | *[Uu][Tt][Ff]8*) ;;
  *)
    LC_ALL=C.UTF-8
    export LC_ALL
    ;;
esac
tty=
for fd in 0 1 2; do [ ! -t $fd ] || tty=$tty$fd; done
exec "$home/runtime/bin/java" @FLAGS@ "-XX:AOTCache=$home/fletch.aot" "-Dfletch.tty=$tty" ${FLETCH_JAVA_OPTS:-} -jar "$home/fletch.jar" "$@"
exit 1
