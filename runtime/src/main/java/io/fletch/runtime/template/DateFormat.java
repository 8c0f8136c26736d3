package io.fletch.runtime.template;

import java.time.Clock;
import java.time.ZonedDateTime;
import java.time.format.DateTimeFormatter;
import java.util.Locale;

/** Dates by strftime directives, in the C locale. */
final class DateFormat {
  private DateFormat() {}

  static String format(String format, Clock clock) {
    ZonedDateTime now = ZonedDateTime.now(clock);
    StringBuilder out = new StringBuilder();
    for (int i = 0; i < format.length(); i++) {
      char c = format.charAt(i);
      if (c != '%') {
        out.append(c);
        continue;
      }
      boolean plain = i + 2 < format.length() && format.charAt(i + 1) == '-';
      i += plain ? 2 : 1;
      String pattern = i < format.length() ? pattern(format.charAt(i)) : null;
      if (pattern == null) {
        throw new TemplateError(
            "date directive '"
                + format.substring(format.lastIndexOf('%', i))
                + "' is not supported");
      }
      String text =
          pattern.equals("%") ? "%" : DateTimeFormatter.ofPattern(pattern, Locale.US).format(now);
      out.append(plain ? text.replaceFirst("^0+(?=\\d)", "") : text);
    }
    return out.toString();
  }

  private static String pattern(char directive) {
    return switch (directive) {
      case 'Y' -> "yyyy";
      case 'y' -> "yy";
      case 'm' -> "MM";
      case 'd' -> "dd";
      case 'e' -> "ppd";
      case 'H' -> "HH";
      case 'I' -> "hh";
      case 'M' -> "mm";
      case 'S' -> "ss";
      case 'f' -> "SSSSSS";
      case 'p' -> "a";
      case 'B' -> "MMMM";
      case 'b', 'h' -> "MMM";
      case 'A' -> "EEEE";
      case 'a' -> "EEE";
      case 'j' -> "DDD";
      case 'F' -> "yyyy-MM-dd";
      case 'T' -> "HH:mm:ss";
      case 'D' -> "MM/dd/yy";
      case 'R' -> "HH:mm";
      case 'z' -> "xx";
      case 'Z' -> "zzz";
      case '%' -> "%";
      default -> null;
    };
  }
}
