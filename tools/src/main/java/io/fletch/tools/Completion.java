package io.fletch.tools;

import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import org.apache.commons.cli.Option;

/**
 * The script that makes bash complete commands, options and models; made from the options
 * themselves, so that it knows them all. Stateless.
 */
final class Completion {
  private Completion() {}

  /**
   * The script.
   *
   * @param commands the sections of every command
   */
  static String bash(Map<String, List<Command.Section>> commands) {
    String names = String.join(" ", commands.keySet());
    StringBuilder text =
        new StringBuilder(
            """
            # bash completion of fletch: source <(fletch completion bash)
            _fletch() {
              local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} options=
              COMPREPLY=()
              if [ "$COMP_CWORD" -eq 1 ] || [ "$COMP_CWORD" -eq 2 -a "$prev" = help ]; then
                COMPREPLY=($(compgen -W "NAMES help completion --version" -- "$cur"))
                return
              fi
              case $prev in
                -m|--model|--small|--guide)
                  COMPREPLY=($(compgen -W "MODELS" -- "$cur"))
                  mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$cur")
                  return ;;
              esac
              case ${COMP_WORDS[1]} in
            """
                .replace("NAMES", names)
                .replace("MODELS", "demo demo-small demo-diffusion"));
    commands.forEach((name, sections) ->
        text.append("    ")
            .append(name)
            .append(") options=\"")
            .append(options(sections))
            .append("\" ;;\n"));
    return text.append(
            """
              esac
              # What is neither a command nor an option is a file, as by default.
              [[ $cur != -* ]] || COMPREPLY=($(compgen -W "$options" -- "$cur"))
            }
            complete -o default -o filenames -F _fletch fletch
            """)
        .toString();
  }

  private static String options(List<Command.Section> sections) {
    return sections.stream()
        .flatMap(section -> section.options().stream())
        .map(Option::getLongOpt)
        .map(name -> "--" + name)
        .distinct()
        .collect(Collectors.joining(" "));
  }
}
