package io.fletch.tools;

import io.fletch.Generation;
import io.fletch.GenerationOptions;
import io.fletch.Message;
import io.fletch.Model;
import io.fletch.Session;
import io.fletch.runtime.calibrate.Calibration;
import io.fletch.runtime.calibrate.ForcedText;
import io.fletch.tools.QuestionSet.Question;
import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.commons.cli.Option;

/**
 * The tokens that techniques are calibrated on: pieces of a text, or the answers that the model
 * itself gives to questions. Every fourth is held back to measure with.
 */
final class ForcedTexts {
  private static final int HELD_BACK = 4;

  private final List<ForcedText> all;

  private ForcedTexts(List<ForcedText> all) {
    this.all = all;
  }

  static List<Option> options() {
    return List.of(
        Command.value("text", "FILE", "a text, instead of questions"),
        Command.value(
            "samples", "N", "most pieces of the text, spread evenly over it (default: 128)"),
        Command.value("sample-length", "N", "tokens of a piece (default: 256)"));
  }

  /** Reads the text, or lets the model answer the questions greedily. */
  static ForcedTexts of(Arguments arguments, Io io, Model model) throws IOException {
    if (arguments.has("text") == arguments.has("set")) {
      throw new UsageException("calibration: expected=one of --text and --set");
    }
    List<ForcedText> all = new ArrayList<>();
    if (arguments.has("text")) {
      int[] ids = model.tokenizer().encode(Texts.readStrict(Path.of(arguments.required("text"))));
      int count = arguments.integer("samples", 128, 1, 1 << 20);
      int length =
          arguments.integer(
              "sample-length", Math.min(256, model.info().contextLength()), 2, 1 << 20);
      for (int[] piece : Calibration.sequences(ids, count, length)) {
        all.add(new ForcedText(piece, 0));
      }
    } else {
      answers(arguments, io, model, all);
    }
    if (all.size() < HELD_BACK) {
      throw new CommandException(
          "calibration: expected=at least " + HELD_BACK + " texts actual=" + all.size());
    }
    return new ForcedTexts(all);
  }

  private static void answers(Arguments arguments, Io io, Model model, List<ForcedText> all)
      throws IOException {
    int most = arguments.integer("max-tokens", 256, 1, Integer.MAX_VALUE);
    List<Question> questions =
        QuestionSet.thinned(
            QuestionSet.read(Path.of(arguments.required("set"))),
            arguments.integer("limit", 0, 0, Integer.MAX_VALUE));
    AtomicInteger done = new AtomicInteger();
    try (Progress _ =
            Progress.show(io, () -> "answering, " + done.get() + " of " + questions.size());
        Session session = model.newSession()) {
      for (Question question : questions) {
        ForcedText text = answer(session, question, most);
        if (text != null) {
          all.add(text);
        }
        done.incrementAndGet();
      }
    }
  }

  private static ForcedText answer(Session session, Question question, int most) {
    Generation.Result result;
    try (Generation generation =
        session.chat(
            List.of(Message.user(question.question())),
            GenerationOptions.greedy().withMaxTokens(most))) {
      result = generation.result();
    }
    int prompt = result.promptTokens();
    int answer = result.ids().size();
    if (answer == 0) {
      return null;
    }
    int[] ids =
        Arrays.copyOf(
            session.tokens().stream().mapToInt(Integer::intValue).toArray(), prompt + answer);
    for (int i = 0; i < answer; i++) {
      ids[prompt + i] = result.ids().get(i);
    }
    return new ForcedText(ids, prompt);
  }

  /** What is fitted. */
  List<ForcedText> fitting() {
    return part(false);
  }

  /** What is measured with. */
  List<ForcedText> heldBack() {
    return part(true);
  }

  private List<ForcedText> part(boolean held) {
    List<ForcedText> part = new ArrayList<>();
    for (int i = 0; i < all.size(); i++) {
      if (held == (i % HELD_BACK == HELD_BACK - 1)) {
        part.add(all.get(i));
      }
    }
    return part;
  }

  /** Tokens that count as generated. */
  static int tokens(List<ForcedText> texts) {
    return texts.stream().mapToInt(t -> t.ids().length - t.start()).sum();
  }
}
