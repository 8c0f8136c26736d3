# Sourced by fletch and fletchw: sets JAVA_HOME to a JDK 25, or says what to install and ends the script.
fletch_javac=$(command -v javac 2>/dev/null || :)
[ -z "$fletch_javac" ] || fletch_javac=$(readlink -f -- "$fletch_javac" 2>/dev/null || :)
fletch_found=
for j in "${FLETCH_JDK:-}" "${JAVA_HOME:-}" "${fletch_javac%/bin/javac}" \
  /usr/lib/jvm/*25* /usr/local/*jdk*25* /usr/local/java/*25* /opt/*jdk*25* /opt/java/*25* /opt/java/openjdk \
  "${HOME:-}"/.sdkman/candidates/java/25* "${HOME:-}"/.jdks/*25* "${HOME:-}"/.local/share/mise/installs/java/*25* \
  /Library/Java/JavaVirtualMachines/*25*/Contents/Home /opt/homebrew/opt/openjdk@25/libexec/openjdk.jdk/Contents/Home; do
  if [ -n "$j" ] && [ -x "$j/bin/javac" ] && grep -q '^JAVA_VERSION="25' "$j/release" 2>/dev/null; then
    JAVA_HOME=$j
    export JAVA_HOME
    fletch_found=1
    break
  fi
done
if [ -z "$fletch_found" ]; then
  echo "fletch: no JDK 25 found (looked at FLETCH_JDK, JAVA_HOME, PATH, /usr/lib/jvm, /usr/local, /opt, SDKMAN, ~/.jdks). Install one, for example Temurin 25 (apt-get install temurin-25-jdk, brew install openjdk@25, or sdk install java 25-tem), or point FLETCH_JDK at one." >&2
  exit 1
fi
