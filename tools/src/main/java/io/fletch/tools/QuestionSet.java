package io.fletch.tools;

import com.fasterxml.jackson.jr.ob.JSON;
import io.fletch.Generation;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Questions with one right answer each: one JSON object per line. */
final class QuestionSet {
  /** A line of a set. */
  record Question(String task, String question, String answer) {
    /** Whether a result is the answer: all of it, up to the end of the turn. */
    boolean isAnsweredBy(Generation.Result result) {
      return result.finishReason() == Generation.FinishReason.STOP && result.text().equals(answer);
    }
  }

  /** Answers that are right. */
  static final class Score {
    private int correct;
    private int total;

    void add(boolean right) {
      correct += right ? 1 : 0;
      total++;
    }

    int correct() {
      return correct;
    }

    int total() {
      return total;
    }

    double accuracy() {
      return (double) correct / total;
    }

    Map<String, Object> json() {
      Map<String, Object> json = new LinkedHashMap<>();
      json.put("correct", correct);
      json.put("total", total);
      json.put("accuracy", accuracy());
      return json;
    }

    String line() {
      return Texts.format("%5.1f %%  (%d of %d)", 100 * accuracy(), correct, total);
    }
  }

  private QuestionSet() {}

  /** Every k-th question, as the evaluator of the demo models chooses them. */
  static <T> List<T> thinned(List<T> questions, int limit) {
    if (limit == 0 || limit >= questions.size()) {
      return questions;
    }
    int stride = questions.size() / limit;
    List<T> chosen = new ArrayList<>(limit);
    for (int i = 0; i < limit; i++) {
      chosen.add(questions.get(i * stride));
    }
    return chosen;
  }

  static List<Question> read(Path set) throws IOException {
    List<Question> questions = new ArrayList<>();
    int number = 0;
    for (String line : Texts.readStrict(set).lines().toList()) {
      number++;
      if (line.isBlank()) {
        continue;
      }
      String place = set + ":" + number;
      Map<String, Object> object;
      try {
        object = JSON.std.mapFrom(line);
      } catch (IOException e) {
        throw new CommandException(place + ": not a JSON object: " + e.getMessage(), e);
      }
      questions.add(
          new Question(
              text(object, "task", place),
              text(object, "question", place),
              text(object, "answer", place)));
    }
    if (questions.isEmpty()) {
      throw new CommandException(set + ": no questions");
    }
    return questions;
  }

  private static String text(Map<String, Object> object, String key, String place) {
    if (object.get(key) instanceof String text) {
      return text;
    }
    throw new CommandException(place + ": " + key + ": expected=a text actual=" + object.get(key));
  }
}
