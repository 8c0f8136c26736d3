package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FfnSkip;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.runtime.calibrate.ForcedText;
import io.fletch.runtime.calibrate.SkipCalibration;
import java.util.List;
import java.util.SplittableRandom;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** The threshold of FFN skipping, looked for in similarities of a demo model. */
class SkipCalibrationTest {
  private static final int LAYERS = 8;
  private static final SkipCalibration CALIBRATION = new SkipCalibration(LAYERS);
  private static final FfnSkip SHAPE = new FfnSkip(1, 6, 2, 0, 8, 1, "");
  private static Model model;

  @BeforeAll
  static void measure() {
    ModelOptions options =
        TestModels.options(ModelOptions.Backend.CPU)
            .withContextLength(64)
            .withUnits(List.of(SkipCalibration.observer(LAYERS)));
    model = TestModels.open("demo", options);
    SplittableRandom random = new SplittableRandom(1);
    try (Session session = model.newSession()) {
      for (int t = 0; t < 6; t++) {
        int[] ids = random.ints(40, 0, 500).toArray();
        CALIBRATION.add(session, new ForcedText(ids, 8));
      }
    }
  }

  @AfterAll
  static void close() {
    model.close();
  }

  @Test
  void predictionFallsWithTheThreshold() {
    double before = 1;
    for (double ratio : new double[] {0.45, 0.3, 0.2, 0.1}) {
      FfnSkip skip = CALIBRATION.fit(SHAPE, ratio);
      double predicted = CALIBRATION.predict(skip);
      assertTrue(predicted >= ratio && predicted <= before, ratio + ": " + predicted);
      FfnSkip higher = skip.withThreshold(Math.nextUp(skip.threshold()));
      assertTrue(CALIBRATION.predict(higher) < ratio, "no larger threshold reaches " + ratio);
      before = predicted;
    }
  }

  /** Decoding that rests less than predicted, as a warm-up makes it. */
  @Test
  void decodingConfirmsTheThreshold() {
    AtomicInteger decoded = new AtomicInteger();
    SkipCalibration.Tuned tuned =
        CALIBRATION.tune(
            SHAPE,
            0.25,
            s -> {
              decoded.incrementAndGet();
              return 0.7 * CALIBRATION.predict(s);
            });
    assertEquals(0.25, tuned.share(), 0.015);
    assertEquals(tuned.share(), 0.7 * CALIBRATION.predict(tuned.skip()));
    assertEquals(0.7 * 4 / 8, tuned.most(), 1e-9);
    assertTrue(tuned.skip().threshold() < CALIBRATION.fit(SHAPE, 0.25).threshold());
    assertTrue(decoded.get() <= 13, decoded + " decodings");
  }

  @Test
  void whatTheRegionDoesNotAllowIsTold() {
    FfnSkip narrow = new FfnSkip(3, 5, 2, 0, 8, 1, "");
    SkipCalibration.Tuned tuned = CALIBRATION.tune(narrow, 0.25, CALIBRATION::predict);
    assertEquals(1.0 / 8, tuned.most(), 1e-9);
    assertEquals(tuned.most(), tuned.share());
    assertEquals(tuned.share(), CALIBRATION.predict(tuned.skip()));
  }
}
