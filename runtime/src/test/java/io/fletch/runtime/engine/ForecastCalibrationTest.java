package io.fletch.runtime.engine;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.fletch.FletchException;
import io.fletch.Model;
import io.fletch.ModelOptions;
import io.fletch.Session;
import io.fletch.UnitForecasts;
import io.fletch.quant.WeightFile;
import io.fletch.runtime.calibrate.ForecastCalibration;
import io.fletch.runtime.calibrate.ForecastCalibration.Judge;
import io.fletch.runtime.calibrate.ForecastCalibration.Options;
import io.fletch.runtime.calibrate.ForecastCalibration.Routed;
import io.fletch.runtime.calibrate.ForecastCalibration.UnitFit;
import io.fletch.runtime.calibrate.ForecastCalibration.Units;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.SplittableRandom;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Forecasters and routers that are fitted to a demo model, written, and used by it. */
class ForecastCalibrationTest {
  private static final String DEMO = "demo-small";

  @TempDir Path folder;

  private static int[][] texts(int count, long seed) {
    SplittableRandom random = new SplittableRandom(seed);
    int[][] texts = new int[count][24];
    for (int[] text : texts) {
      for (int i = 0; i < text.length; i++) {
        text[i] = random.nextInt(100);
      }
    }
    return texts;
  }

  private static Options options(boolean silu, int routerWidth) {
    return new Options(
        Units.BOTH, 16, 1e-3, silu, silu ? 100 : 0, routerWidth, 100, Judge.RECOVERABILITY, 1);
  }

  @ParameterizedTest
  @ValueSource(booleans = {false, true})
  void whatIsFittedRunsInTheModel(boolean silu) {
    Path file = folder.resolve("lff.arrow");
    Path more = folder.resolve("more.arrow");
    ModelOptions plain = TestModels.options(ModelOptions.Backend.CPU);
    int[] ids = texts(1, 9)[0];
    try (Model dense = TestModels.open(DEMO, plain)) {
      try (WeightFile weights = WeightFile.open(TestModels.demo(DEMO));
          ForecastCalibration c =
              ForecastCalibration.fit(
                  weights, texts(24, 1), texts(8, 2), options(silu, silu ? 8 : 0), t -> {})) {
        assertEquals(2 * dense.info().layers(), c.fits().size());
        for (UnitFit f : c.fits()) {
          assertTrue(f.error() < f.skipError(), f.toString());
        }
        List<Routed> routed = c.route(List.of(0.25, 0.7), t -> {});
        assertEquals(0.25, routed.get(0).routed(), 0.12);
        assertEquals(0.7, routed.get(1).routed(), 0.12);
        routed.get(0).save(file, dense, Map.of("sparsity", 0.25));
        routed.get(1).save(more, dense, Map.of("sparsity", 0.7));
      }
      float[][] expected;
      try (Session session = dense.newSession()) {
        expected = session.logits(ids);
      }
      UnitForecasts never = UnitForecasts.of(file).withThreshold(Float.NEGATIVE_INFINITY);
      try (Model model = TestModels.open(DEMO, plain.withUnits(List.of(never)));
          Session session = model.newSession()) {
        UnitScores.Run run = UnitScores.of(session, ids, 0);
        // L1.
        for (int t = 0; t < ids.length; t++) {
          assertArrayEquals(expected[t], run.logits()[t], "token " + t);
        }
        assertEquals(0, run.units().approximated());
      }
      long few = approximated(plain, UnitForecasts.of(file), ids);
      long many = approximated(plain, UnitForecasts.of(more), ids);
      assertTrue(0 < few && few < many, few + " " + many);
    }
  }

  private static long approximated(ModelOptions plain, UnitForecasts policy, int[] ids) {
    try (Model model = TestModels.open(DEMO, plain.withUnits(List.of(policy)));
        Session session = model.newSession()) {
      return UnitScores.of(session, ids, 0).units().approximated();
    }
  }

  @Test
  void otherModelsAndDamagedFilesAreRefused() throws IOException {
    Path file = folder.resolve("lff.arrow");
    ModelOptions plain = TestModels.options(ModelOptions.Backend.CPU);
    try (Model dense = TestModels.open(DEMO, plain);
        WeightFile weights = WeightFile.open(TestModels.demo(DEMO));
        ForecastCalibration c =
            ForecastCalibration.fit(
                weights, texts(4, 1), texts(2, 2), options(false, 0), t -> {})) {
      c.route(List.of(0.5), t -> {}).getFirst().save(file, dense, Map.of());
      assertThrows(FletchException.class, () -> c.route(List.of(1.0), t -> {}));
    }
    ModelOptions routed = plain.withUnits(List.of(UnitForecasts.of(file)));
    FletchException e =
        assertThrows(FletchException.class, () -> TestModels.open("demo", routed).close());
    assertTrue(e.getMessage().contains("expected="), e.getMessage());
    byte[] whole = Files.readAllBytes(file);
    for (int keep : new int[] {0, 7, 100, whole.length / 2, whole.length - 9}) {
      Files.write(file, java.util.Arrays.copyOf(whole, keep));
      RuntimeException refused =
          assertThrows(RuntimeException.class, () -> TestModels.open(DEMO, routed).close());
      assertNotEquals(ArrayIndexOutOfBoundsException.class, refused.getClass());
    }
  }
}
