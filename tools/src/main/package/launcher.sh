#!/bin/sh
# fletch with everything that it needs, a Java runtime too. The first start unpacks what follows the last line of this
# script into $XDG_CACHE_HOME/fletch, ~/.cache/fletch or a folder of this user's in $TMPDIR or /tmp, under the name of its checksum.
#   FLETCH_JAVA_OPTS  further JVM options
sum=@SUM@
bytes=@BYTES@
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

unpack() {
  [ -r "$self" ] || { echo "fletch: cannot read $self" >&2; exit 1; }
  find "$base" -maxdepth 1 -name '.unpack.*' -mtime +1 -exec rm -rf {} + 2>/dev/null
  new=$(mktemp -d "$base/.unpack.XXXXXX") || exit 1
  trap 'rm -rf "$new"' EXIT
  trap 'exit 130' INT TERM HUP
  tail -c "$bytes" "$self" >"$new/archive" || { echo "fletch: cannot unpack into $base" >&2; exit 1; }
  actual=$( (sha256sum || shasum -a 256) <"$new/archive" 2>/dev/null)
  [ "${actual%% *}" = "$sum" ] || { echo "fletch: $self is damaged: checksum expected=$sum actual=${actual%% *}" >&2; exit 1; }
  gzip -dc "$new/archive" | tar -xf - -C "$new" || { echo "fletch: cannot unpack into $base" >&2; exit 1; }
  [ -x "$new/fletch/runtime/bin/java" ] || { echo "fletch: cannot unpack into $base" >&2; exit 1; }
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
