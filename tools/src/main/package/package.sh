# Sourced by fletch for `fletch package`: writes one executable file with everything in it, a Java runtime too.
#   $1            where to write it (default tools/target/fletch-OS-ARCH)
# Needs what fletch has set: here, target, jar, flags, JAVA_HOME.
os=$(uname -s | tr 'A-Z' 'a-z')
out=${1:-$target/fletch-$os-$(uname -m)}
case $out in -*) echo "fletch: package: expected=a file to write actual=$out" >&2; exit 2 ;; esac
[ $# -le 1 ] || { echo "fletch: package: expected=at most one argument actual=$#" >&2; exit 2; }
[ ! -d "$out" ] || { echo "fletch: package: is a folder: $out" >&2; exit 1; }

stage=$target/package.$$
trap 'rm -rf "$stage" "$out.new.$$"' EXIT
trap 'exit 130' INT TERM HUP
mkdir -p "$stage/fletch" || exit 1

echo "fletch: linking a Java runtime ..." >&2
# jdk.incubator.vector is in the image but resolved on demand alone: in the boot layer it would slow every start.
# Classes are compressed one by one: nearly all come from the start-up cache, so that the first start need not expand them.
"$JAVA_HOME/bin/jlink" --add-modules java.base,java.logging,java.management,jdk.management,jdk.httpserver,jdk.incubator.vector,jdk.jfr,jdk.unsupported \
  --strip-debug --compress zip-9 --no-man-pages --no-header-files --output "$stage/fletch/runtime" 2>"$stage/jlink.log" || {
  cat "$stage/jlink.log" >&2
  exit 1
}
cp "$jar" "$stage/fletch/fletch.jar" && cp -R "$target/lib" "$stage/fletch/lib" || exit 1

echo "fletch: training its start-up cache ..." >&2
if ! "$stage/fletch/runtime/bin/java" $flags -XX:AOTCacheOutput="$stage/fletch/fletch.aot" -jar "$stage/fletch/fletch.jar" \
  run --model demo --temp 0 --max-tokens 24 --json "What is 457 + 386?" </dev/null >"$stage/aot.log" 2>&1; then
  cat "$stage/aot.log" >&2
  exit 1
fi

# What is worth compressing goes alone, the rest as it is: the first start expands two parts at once and copies the third.
jvm=$stage/fletch/runtime/lib/server/libjvm.so
[ -f "$jvm" ] || jvm=$stage/fletch/runtime/lib/server/libjvm.dylib
gzip -9 <"$jvm" >"$stage/jvm.gz" && gzip -9 <"$stage/fletch/fletch.aot" >"$stage/aot.gz" || exit 1
rm -f "$jvm" "$stage/fletch/fletch.aot"
(cd "$stage" && tar -cf tar fletch) || exit 1
size() { echo $(($(wc -c <"$1"))); }
sum=$(cat "$stage/tar" "$stage/jvm.gz" "$stage/aot.gz" | (sha256sum 2>/dev/null || shasum -a 256)) || exit 1
sum=${sum%% *}
sed -e "s/@SUM@/$sum/" -e "s/@TAR_BYTES@/$(size "$stage/tar")/" -e "s/@JVM_BYTES@/$(size "$stage/jvm.gz")/" -e "s/@AOT_BYTES@/$(size "$stage/aot.gz")/" \
  -e "s/@TAR_CHECK@/$(cksum <"$stage/tar")/" -e "s/@JVM@/${jvm##*/}/" -e "s/@FLAGS@/$flags/" \
  "$here/tools/src/main/package/launcher.sh" >"$out.new.$$" || exit 1
cat "$stage/tar" "$stage/jvm.gz" "$stage/aot.gz" >>"$out.new.$$" && chmod 755 "$out.new.$$" && mv -f "$out.new.$$" "$out" || exit 1
echo "fletch: $out, $(($(wc -c <"$out") / 1000000)) MB" >&2
exit 0
